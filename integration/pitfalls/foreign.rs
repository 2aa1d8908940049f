//! Clusters that are not like the last one: segments of another size, another system identifier.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use bellwether::pg::wal::{SegmentFile, WalSegmentSize};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::wal::{parse_lsn, segments};
use crate::harness::{Cluster, Durability, LoneServer, Options, eventually, free_port};

const SOON: Duration = Duration::from_secs(120);

/// Pitfall 11.
#[test]
fn any_segment_size_and_never_another_cluster() {
    let cluster = Cluster::start(Options {
        nodes: 1,
        durability: Durability::Async,
        expected_warnings: &["another cluster", "a person is needed"],
        ..Options::default()
    });
    let sizes = [("small", 1_u32), ("large", 64)];
    let servers = sizes.map(|(name, mib)| server(&cluster, name, mib));
    for ((name, mib), server) in sizes.iter().zip(&servers) {
        let relay = Relay::start(&cluster, name, server.port);
        ships(&cluster, &relay, name, server, WalSegmentSize::new(u64::from(*mib) << 20).expect("a size"));
    }

    // Nothing is known any more but what the store holds; the other cluster is in the old one's place.
    let store = Relay::wal_dir(&cluster, "small");
    let before = contents(&store);
    fs::remove_file(Relay::state(&cluster, "small")).expect("the journal");
    let relay = Relay::start(&cluster, "small", servers[1].port);
    eventually("it is refused", SOON, || {
        let state = cluster.api_at(relay.admin_port, "/api/v1/cluster")?;
        if cluster.log().contains("another cluster") { Ok(()) } else { Err(state.to_string()) }
    });
    assert!(contents(&store) == before, "something of another cluster was stored");
}

/// A standby of it that streams from the relay has the same bytes as the relay and the server.
fn ships(cluster: &Cluster, relay: &Relay, name: &str, server: &LoneServer, size: WalSegmentSize) {
    let standby_name = format!("{name}_standby");
    let standby = LoneServer::copy(cluster, &standby_name, &conninfo(server));
    standby.become_standby();
    let upstream = format!(
        "primary_conninfo = 'host=127.0.0.1 port={} user=bellwether password={} application_name=standby'\n",
        relay.port,
        cluster.superuser_password()
    );
    eventually("the relay streams", SOON, || {
        let state = cluster.api_at(relay.admin_port, "/api/v1/cluster")?;
        if state["wal"]["upstream"]["state"] == "streaming" { Ok(()) } else { Err(state.to_string()) }
    });
    standby.start(cluster, &upstream);
    let write = "SELECT pg_switch_wal() FROM pg_logical_emit_message(true, 'x', repeat('x', 300000))";
    for _ in 0..3 {
        cluster.psql_at(&conninfo(server), write).expect("a segment");
    }
    let end = cluster.psql_at(&conninfo(server), "SELECT pg_current_wal_flush_lsn()").expect("an LSN");
    let end = parse_lsn(&end);
    eventually("the standby has it all", SOON, || {
        let replayed = cluster.psql_at(&conninfo(&standby), "SELECT pg_last_wal_replay_lsn()")?;
        if parse_lsn(&replayed) >= end { Ok(()) } else { Err(replayed) }
    });
    let store = Relay::wal_dir(cluster, name);
    for other in [name, &standby_name] {
        let same = same_bytes(&store, &cluster.data().join(other).join("pg_wal"), size, end);
        assert!(same >= 2 * size.bytes(), "{other}: only {same} bytes were compared");
    }
    standby.stop(cluster);
}

fn same_bytes(store: &Path, server: &Path, size: WalSegmentSize, end: u64) -> u64 {
    let theirs = segments(server);
    let mut same = 0;
    for (name, path) in segments(store) {
        let start = size.start(SegmentFile::parse(&name, size).expect("a segment").number).0;
        let length = usize::try_from(end.saturating_sub(start).min(size.bytes())).expect("a segment");
        let Some(other) = theirs.get(&name) else { continue };
        let (ours, theirs) = (fs::read(path).expect("a segment"), fs::read(other).expect("a segment"));
        assert!(ours[..length] == theirs[..length], "{name} differs from {}", other.display());
        same += length as u64;
    }
    same
}

fn server(cluster: &Cluster, name: &str, segment_mib: u32) -> LoneServer {
    let server = LoneServer::init_with(cluster, name, &[&format!("--wal-segsize={segment_mib}")]);
    server.start(cluster, "wal_keep_size = '1GB'\n");
    cluster
        .psql_at(&conninfo(&server), "CREATE ROLE bellwether SUPERUSER LOGIN REPLICATION")
        .expect("a role");
    server
}

fn conninfo(server: &LoneServer) -> String {
    format!("host=127.0.0.1 port={} user=postgres dbname=postgres", server.port)
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    segments(dir).into_iter().map(|(name, path)| (name, fs::read(path).expect("a segment"))).collect()
}

/// An instance of its own in front of one server, which it does not run.
struct Relay {
    child: Child,
    port: u16,
    admin_port: u16,
}

impl Relay {
    fn start(cluster: &Cluster, name: &str, upstream: u16) -> Relay {
        let (port, admin_port) = (free_port(), free_port());
        let yaml = |text: String| -> serde_yaml::Value { serde_yaml::from_str(&text).expect("YAML") };
        let mut config = cluster.config();
        config["cluster"] = name.into();
        config["listen"] = yaml(format!("[{{address: \"127.0.0.1:{port}\"}}]"));
        config["admin"] = yaml(format!("{{address: \"127.0.0.1:{admin_port}\"}}"));
        config["nodes"] = yaml(format!("[{{name: only, address: \"127.0.0.1:{upstream}\"}}]"));
        config["wal"] = yaml(format!("{{dir: {}}}", Relay::wal_dir(cluster, name).display()));
        config["state"] = yaml(format!("{{file: {}}}", Relay::state(cluster, name).display()));
        config["failover"] = yaml("{mode: manual}".to_owned());
        let file = cluster.data().join(format!("{name}.yaml"));
        fs::write(&file, serde_yaml::to_string(&config).expect("YAML")).expect("a configuration");
        Relay { child: cluster.spawn_run(&file, None), port, admin_port }
    }

    fn wal_dir(cluster: &Cluster, name: &str) -> PathBuf {
        cluster.data().join(format!("{name}-wal"))
    }

    fn state(cluster: &Cluster, name: &str) -> PathBuf {
        cluster.data().join(format!("{name}-state"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
