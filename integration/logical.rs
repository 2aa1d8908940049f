//! Logical replication through the endpoint: PostgreSQL's own client, as it would be at the primary.

use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Cluster, Options, eventually};

const LIMIT: Duration = Duration::from_secs(120);

/// A cluster whose servers write what logical decoding needs.
fn logical_cluster() -> Cluster {
    let mut cluster = Cluster::start(Options::default());
    cluster.interrupt_bellwether();
    for server in cluster.servers() {
        let conf = server.data_dir.join("postgresql.conf");
        let mut conf = fs::File::options().append(true).open(conf).expect("postgresql.conf");
        conf.write_all(b"wal_level = logical\n").expect("write");
    }
    cluster.start_bellwether();
    cluster.await_steady();
    cluster.psql("CREATE TABLE t (n int PRIMARY KEY)").expect("create");
    cluster
}

/// The endpoint, by whom may replicate.
fn conninfo(cluster: &Cluster) -> String {
    let (port, password) = (cluster.port, cluster.superuser_password());
    format!("host=127.0.0.1 port={port} user=bellwether password={password} dbname=app")
}

fn replication(cluster: &Cluster) -> String {
    conninfo(cluster) + " replication=database"
}

fn recvlogical(cluster: &Cluster, options: &[&str]) -> Child {
    let mut program = cluster.program("pg_recvlogical");
    program.args(["-d", &conninfo(cluster), "--slot=s", "--no-loop"]).args(options);
    program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pg_recvlogical runs")
}

/// A stream of changes into `file`.
fn stream(cluster: &Cluster, file: &str) -> Child {
    let plain = ["-o", "include-xids=0", "-o", "skip-empty-xacts=1", "--fsync-interval=0", "-s", "1"];
    recvlogical(cluster, &[&["--start", "-f", file], &plain[..]].concat())
}

fn await_change(file: &str, number: u32) {
    let wanted = format!("table public.t: INSERT: n[integer]:{number}");
    eventually("the change", LIMIT, || {
        let text = fs::read_to_string(file).unwrap_or_default();
        if text.contains(&wanted) { Ok(()) } else { Err(text) }
    });
}

/// What it complained about when it ended.
fn complaint(program: Child) -> String {
    let output = program.wait_with_output().expect("it ends");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn changes_stream_until_the_primary_is_lost() {
    let cluster = logical_cluster();
    for (round, number) in [("asked for", 1), ("killed", 2)] {
        let file = cluster.data().join(format!("changes-{number}"));
        let file = file.to_str().expect("UTF-8");
        let created = recvlogical(&cluster, &["--create-slot", "-P", "test_decoding"]);
        let created = created.wait_with_output().expect("it ends");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let streaming = stream(&cluster, file);
        cluster.psql(&format!("INSERT INTO t VALUES ({number})")).expect("insert");
        await_change(file, number);
        assert_eq!(cluster.metric("bellwether_term"), Some(f64::from(number)));

        let old = cluster.primary();
        if round == "killed" {
            cluster.signal(&old, Signal::SIGKILL);
        } else {
            assert_eq!(cluster.http("POST", "/api/v1/failover").expect("an answer").0, 200);
        }
        let complaint = complaint(streaming);
        assert!(complaint.contains("replication connection due to failover"), "{round}: {complaint}");
        // It waits for the next primary, whose slots are its own.
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
        assert_eq!(cluster.psql_at(&replication(&cluster), slots), Ok("0".to_owned()), "{round}");
        assert_ne!(cluster.primary().name, old.name);
        eventually("the fence", LIMIT, || {
            let served = cluster.metric("bellwether_clients{state=\"replicating\"}");
            if served == Some(0.0) { Ok(()) } else { Err(format!("{served:?}")) }
        });
        let mut cluster_again = || cluster.psql("SELECT count(*) FROM t");
        eventually("the endpoint serves", LIMIT, &mut cluster_again);
    }
    let cut = cluster.metric("bellwether_pins_cut_total{reason=\"logical_replication\"}");
    assert_eq!(cut, Some(2.0));
}

#[test]
fn it_is_a_session_of_the_primary_like_any_other() {
    let mut cluster = logical_cluster();
    let identified = cluster.psql_at(&replication(&cluster), "IDENTIFY_SYSTEM").expect("IDENTIFY_SYSTEM");
    assert!(identified.contains("|app"), "{identified}");
    let here = "SELECT pg_is_in_recovery() || ' ' || current_database() || ' ' || current_user";
    assert_eq!(cluster.psql_at(&replication(&cluster), here), Ok("false app bellwether".to_owned()));
    let weak = cluster.psql_at(&replication(&cluster), "SET synchronous_commit = off").expect_err("quorum");
    assert!(weak.contains("22023"), "{weak}");

    // To replicate is a right of its own.
    let app = cluster.conninfo() + " replication=database";
    let refused = cluster.psql_at(&app, "IDENTIFY_SYSTEM").expect_err("may not replicate");
    assert!(refused.contains("may not connect for replication"), "{refused}");
    let nowhere = replication(&cluster).replace("dbname=app", "dbname=nowhere");
    let refused = cluster.psql_at(&nowhere, "IDENTIFY_SYSTEM").expect_err("no such database");
    assert!(refused.contains("database \"nowhere\" does not exist"), "{refused}");

    // A cancel finds its statement; KILL_CLIENT its session.
    let sleeping = sleeper(&cluster, "cancelled");
    let interrupt = |child: &Child| {
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("signal");
    };
    interrupt(&sleeping);
    let cancelled = complaint(sleeping);
    assert!(cancelled.contains("canceling statement due to user request"), "{cancelled}");
    let sleeping = sleeper(&cluster, "killed");
    let console = conninfo(&cluster).replace("dbname=app", "dbname=pgbouncer");
    let clients = cluster.psql_at(&console, "SHOW CLIENTS").expect("SHOW CLIENTS");
    let client = clients.lines().find(|line| line.contains("|app|logical|active|")).expect("the session");
    let servers = cluster.psql_at(&console, "SHOW SERVERS").expect("SHOW SERVERS");
    assert!(servers.lines().any(|line| line.contains("|app|logical|active|")), "{servers}");
    let id =
        client.split('|').find_map(|field| field.strip_prefix("0x")).unwrap_or_else(|| panic!("{client}"));
    cluster.psql_at(&console, &format!("KILL_CLIENT 0x{id}")).expect("KILL_CLIENT");
    assert!(complaint(sleeping).contains("terminating connection due to administrator command"));

    // One server connection for all of the database: the second has none.
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{databases: [{name: app, max_servers: 1}]}").expect("YAML");
    });
    let sleeping = sleeper(&cluster, "last");
    let refused = cluster.psql_at(&replication(&cluster), "IDENTIFY_SYSTEM").expect_err("a second one");
    assert!(refused.contains("no server connection is free for logical replication"), "{refused}");
    // The end of the endpoint is told.
    cluster.interrupt_bellwether();
    assert!(complaint(sleeping).contains("terminating connection due to administrator command"));
}

/// psql in a long statement, through a replication connection. Its server does not notice when it is gone.
fn sleeper(cluster: &Cluster, mark: &str) -> Child {
    let sleep = format!("SELECT pg_sleep(600) /* {mark} */");
    let psql = cluster
        .program("psql")
        .args(["-X", "-q", "-c", &sleep, "-d", &replication(cluster)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql runs");
    eventually("it sleeps", LIMIT, || {
        let sql =
            format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{sleep}' AND state = 'active'");
        let count = cluster.psql_at(&cluster.direct_conninfo(&cluster.primary(), "postgres"), &sql)?;
        if count == "1" { Ok(()) } else { Err(count) }
    });
    psql
}
