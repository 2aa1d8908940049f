//! Where a relay gets WAL that the primary does not give: a standby, another relay, nobody.

use std::fs;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::wal::compare_with_primary;
use crate::harness::{Cluster, Durability, Gate, Options, Server, bellwether, eventually, free_port};

const LIMIT: Duration = Duration::from_secs(120);

fn positions(cluster: &Cluster, server: &Server, function: &str) -> u64 {
    let position = format!("SELECT coalesce({function}() - '0/0', 0)");
    let position = cluster.psql_at(&cluster.direct_conninfo(server, "postgres"), &position);
    position.expect("a position").parse().expect("an LSN")
}

pub(crate) fn execute(cluster: &Cluster, server: &Server, statements: &[&str]) {
    for statement in statements {
        let done = cluster.psql_at(&cluster.direct_conninfo(server, "postgres"), statement);
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// The standby has replayed what the primary has.
pub(crate) fn await_replayed(cluster: &Cluster, primary: &Server, standby: &Server) {
    let end = positions(cluster, primary, "pg_current_wal_flush_lsn");
    eventually("the standby is where the primary is", LIMIT, || {
        let replayed = positions(cluster, standby, "pg_last_wal_replay_lsn");
        if replayed >= end { Ok(()) } else { Err(format!("{replayed} of {end}")) }
    });
}

/// Nothing holds back the primary's WAL for the relay any more, and it is removed from behind.
pub(crate) fn remove_wal(cluster: &Cluster, primary: &Server) {
    eventually("the relay's slot is gone", LIMIT, || {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'bellwether_demo'";
        cluster.psql_at(&cluster.direct_conninfo(primary, "postgres"), drop).map(|_| ())
    });
    let first = positions(cluster, primary, "pg_current_wal_flush_lsn") >> 24;
    for _ in 0..4 {
        let message =
            "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 2000000)), pg_switch_wal()";
        execute(cluster, primary, &[message]);
    }
    execute(cluster, primary, &["CHECKPOINT", "CHECKPOINT"]);
    let oldest = "SELECT min(('x' || substr(name, 17, 8))::bit(32)::int) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'";
    eventually("the WAL is removed", LIMIT, || {
        execute(cluster, primary, &["CHECKPOINT"]);
        let oldest = cluster.psql_at(&cluster.direct_conninfo(primary, "postgres"), oldest)?;
        if oldest.parse::<u64>().expect("a number") > first {
            Ok(())
        } else {
            Err(format!("segment {oldest} is there"))
        }
    });
}

pub(crate) fn keep_nothing(cluster: &Cluster, server: &Server) {
    for setting in ["min_wal_size = '32MB'", "max_wal_size = '32MB'", "wal_keep_size = 0"] {
        execute(cluster, server, &[&format!("ALTER SYSTEM SET {setting}")]);
    }
    execute(cluster, server, &["SELECT pg_reload_conf()"]);
}

/// What the primary has removed a standby still has; what nobody has is not skipped.
#[test]
fn wal_that_the_primary_has_removed_comes_from_a_standby_and_a_gap_is_said_aloud() {
    gap();
}

#[test]
#[ignore = "a slot is lost for half a minute before its standby is made anew: make soak"]
fn who_lacks_what_nobody_keeps_is_made_anew() {
    let mut cluster = gap();
    eventually("a standby is found that cannot follow", 2 * LIMIT, || {
        let log = cluster.log();
        if log.contains("rule=\"S5\"") { Ok(()) } else { Err("not yet".to_owned()) }
    });
    cluster.await_steady();
    eventually("no alarm lasts", LIMIT, || {
        let lasting = cluster.api("/api/v1/cluster")?["wal"]["alarms"].clone();
        if lasting == serde_json::json!([]) { Ok(()) } else { Err(lasting.to_string()) }
    });
}

/// Behind a gap the log was begun anew, and no standby has what was skipped.
fn gap() -> Cluster {
    let mut cluster = Cluster::start(Options {
        durability: Durability::Async,
        expected_warnings: &["no source has the WAL behind", "a person is needed"],
        ..Options::default()
    });
    let primary = cluster.primary();
    let standbys = cluster.standbys();
    let [direct, away] = &standbys[..] else { panic!("two standbys") };
    keep_nothing(&cluster, &primary);
    cluster.kill_bellwether();
    let conninfo = format!(
        "ALTER SYSTEM SET primary_conninfo = '{} application_name=direct'",
        cluster.direct_conninfo(&primary, "postgres").replace("dbname=postgres", "")
    );
    execute(&cluster, &primary, &["SELECT pg_create_physical_replication_slot('direct', true)"]);
    let slot = "ALTER SYSTEM SET primary_slot_name = 'direct'";
    execute(&cluster, direct, &[&conninfo, slot, "SELECT pg_reload_conf()"]);
    remove_wal(&cluster, &primary);
    await_replayed(&cluster, &primary, direct);
    cluster.run_bellwether(None);
    await_replayed(&cluster, &primary, away);
    assert!(cluster.log().contains("WAL comes from a substitute"), "whence else?");
    compare_with_primary(&cluster, &primary);
    let alarm = cluster.api("/api/v1/cluster").expect("state")["wal"]["alarm"].clone();
    assert!(alarm.is_null(), "{alarm}");

    cluster.kill_bellwether();
    execute(&cluster, direct, &["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"]);
    eventually("nobody has a slot", LIMIT, || {
        let drop = "SELECT pg_drop_replication_slot('direct')";
        cluster.psql_at(&cluster.direct_conninfo(&primary, "postgres"), drop).map(|_| ())
    });
    remove_wal(&cluster, &primary);
    cluster.run_bellwether(None);
    eventually("the gap is said aloud", LIMIT, || {
        let alarm = cluster.api("/api/v1/cluster")?["wal"]["alarm"].clone();
        let said = alarm.as_str().is_some_and(|alarm| alarm.starts_with("no source has the WAL behind"));
        let metric = cluster.metric("bellwether_wal_gap") == Some(1.0);
        if said && metric { Ok(()) } else { Err(alarm.to_string()) }
    });
    the_log_begins_anew(&mut cluster, &primary);
    cluster
}

/// A person has decided that it goes on without what is missing.
fn the_log_begins_anew(cluster: &mut Cluster, primary: &Server) {
    let config = cluster.data().join("bellwether.yaml");
    let reset = |yes: &[&str]| {
        let output = bellwether().args(["wal", "reset", "--config"]).arg(&config).args(yes).output();
        let output = output.expect("bellwether runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let (done, said) = reset(&["--yes"]);
    assert!(!done && said.contains("in use by another process"), "{said}");
    cluster.kill_bellwether();
    let (done, said) = reset(&[]);
    assert!(!done && said.contains("nothing was done"), "{said}");
    let (done, said) = reset(&["--yes"]);
    assert!(done && said.contains("term 1 stays promised"), "{said}");
    assert!(cluster.wal_dir().join("before-reset-1").is_dir());
    cluster.run_bellwether(None);
    eventually("it goes on", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        let streams = state["wal"]["upstream"]["state"] == "streaming" && state["wal"]["alarm"].is_null();
        let open = state["directive"]["writes"]["state"] == "open";
        if streams && open { Ok(()) } else { Err(state.to_string()) }
    });
    compare_with_primary(cluster, primary);
    // What it lacked, and who lacks it now, is remembered.
    let kinds = |alarms: serde_json::Value| -> Vec<String> {
        let of = alarms.as_array().cloned().unwrap_or_default();
        of.iter().filter_map(|alarm| alarm["kind"].as_str().map(str::to_owned)).collect()
    };
    let past = kinds(cluster.api("/api/v1/alarms").expect("alarms"));
    assert!(past.iter().any(|kind| kind == "gap"), "{past:?}");
    eventually("lost slots", LIMIT, || {
        let lasting = kinds(cluster.api("/api/v1/cluster")?["wal"]["alarms"].clone());
        let lost = lasting.iter().any(|kind| kind == "lost_slot");
        if lost && !lasting.iter().any(|kind| kind == "gap") { Ok(()) } else { Err(format!("{lasting:?}")) }
    });
}

/// Another instance of the same cluster, which decides nothing.
struct Second {
    child: Child,
    port: u16,
    admin_port: u16,
}

impl Second {
    fn start(cluster: &Cluster, node_ports: impl Fn(&Server) -> u16, upstream: u16) -> Second {
        let (port, admin_port) = (free_port(), free_port());
        let mut config = cluster.config();
        let wal = cluster.data().join("second-wal");
        config["instance"] = "second".into();
        config["listen"] = yaml(&format!("[{{address: \"127.0.0.1:{port}\"}}]"));
        config["admin"] = yaml(&format!("{{address: \"127.0.0.1:{admin_port}\"}}"));
        let (dir, state) = (wal.display(), cluster.data().join("second-state"));
        config["wal"] = yaml(&format!("{{dir: {dir}, upstreams: [\"127.0.0.1:{upstream}\"]}}"));
        config["state"] = yaml(&format!("{{file: {}}}", state.display()));
        config["failover"] = yaml("{mode: manual}");
        let nodes = cluster.servers();
        let nodes = nodes.iter().map(|server| {
            yaml(&format!("{{name: {}, address: \"127.0.0.1:{}\"}}", server.name, node_ports(server)))
        });
        config["nodes"] = nodes.collect::<Vec<_>>().into();
        let file = cluster.data().join("second.yaml");
        fs::write(&file, serde_yaml::to_string(&config).expect("YAML")).expect("second.yaml");
        Second { child: cluster.spawn_run(&file, None), port, admin_port }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn yaml(text: &str) -> serde_yaml::Value {
    serde_yaml::from_str(text).expect("YAML")
}

/// One relay feeds another that cannot reach the servers; a standby that lists both goes over to the other when its
/// relay dies, waits there as long as that one is behind, and loses nothing.
#[test]
fn several_relays() {
    let cluster = Cluster::start(Options {
        nodes: 2,
        durability: Durability::Async,
        expected_warnings: &["a person is needed"],
        ..Options::default()
    });
    let primary = cluster.primary();
    let standby = cluster.standbys().remove(0);
    let gates: Vec<(u16, Gate)> =
        cluster.servers().iter().map(|server| (server.port, Gate::open(server.port))).collect();
    let gate = |server: &Server| &gates.iter().find(|(port, _)| *port == server.port).expect("a gate").1;
    let relay_gate = Gate::open(cluster.port);
    let second = Second::start(&cluster, |server| gate(server).port, relay_gate.port);
    let of_second = |path: &str| cluster.api_at(second.admin_port, path);
    let durable = || -> Result<String, String> {
        Ok(of_second("/api/v1/cluster")?["wal"]["durable"].as_str().unwrap_or_default().to_owned())
    };
    let await_durable = |what: &str| {
        let end = cluster
            .psql_at(&cluster.direct_conninfo(&primary, "postgres"), "SELECT pg_current_wal_flush_lsn()");
        let end = lsn(&end.expect("an LSN"));
        eventually(what, LIMIT, || {
            let durable = durable()?;
            if lsn(&durable) >= end {
                Ok(())
            } else {
                Err(format!("{durable}, {}", of_second("/api/v1/cluster")?))
            }
        });
    };
    let write = |server: &Server| {
        execute(&cluster, server, &["SELECT pg_logical_emit_message(true, 'x', repeat('x', 2000000))"]);
    };
    await_durable("the second relay streams");

    gates.iter().for_each(|(_, gate)| gate.close());
    write(&primary);
    await_durable("the second relay streams from the first");
    let substitute = of_second("/api/v1/cluster").expect("state")["wal"]["substitute"].clone();
    assert_eq!(substitute, format!("127.0.0.1:{}", relay_gate.port));

    let hosts = format!(
        "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1,127.0.0.1 port={},{} user=bellwether password={} application_name={}'",
        cluster.port,
        second.port,
        cluster.superuser_password(),
        standby.name
    );
    execute(
        &cluster,
        &standby,
        &[&hosts, "ALTER SYSTEM SET wal_retrieve_retry_interval = '200ms'", "SELECT pg_reload_conf()"],
    );
    relay_gate.close();
    for _ in 0..3 {
        write(&primary);
        execute(&cluster, &primary, &["SELECT pg_switch_wal()"]);
    }
    write(&primary);
    await_replayed(&cluster, &primary, &standby);
    cluster.signal_bellwether(Signal::SIGKILL);
    write(&primary);
    gate(&primary).reopen();
    await_replayed(&cluster, &primary, &standby);
    write(&primary);
    await_replayed(&cluster, &primary, &standby);
    await_durable("the second relay has it all");
    let follower = of_second("/api/v1/cluster").expect("state")["followers"][0]["application_name"].clone();
    assert_eq!(follower, standby.name.as_str());
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap_or(("0", "0"));
    let part = |hex| u64::from_str_radix(hex, 16).unwrap_or(0);
    (part(high) << 32) | part(low)
}
