//! A standby that stops replaying stops serving reads, and comes back when it has caught up.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Cluster, Durability, Options, Server, eventually};

const SOON: Duration = Duration::from_secs(120);

fn replay(cluster: &Cluster, server: &Server, what: &str) {
    let sql = format!("SELECT pg_wal_replay_{what}()");
    cluster.psql_at(&cluster.direct_conninfo(server, "postgres"), &sql).expect("pause or resume replay");
}

fn write_wal(cluster: &Cluster) {
    // More than the demo's bound of 16 MiB.
    cluster
        .psql("INSERT INTO gate SELECT repeat(md5(i::text), 30) FROM generate_series(1, 25000) i")
        .expect("insert");
}

fn standby_reads(cluster: &Cluster, node: &str) -> f64 {
    cluster.metric(&format!("bellwether_node_statements_total{{node=\"{node}\"}}")).unwrap_or(0.0)
}

/// Reads go to `expected` nodes only, all of them, within the time that routing needs to notice.
fn reads_settle_on(cluster: &Cluster, expected: &[&str]) {
    let names: Vec<String> = cluster.servers().into_iter().map(|s| s.name).collect();
    eventually(&format!("reads on {expected:?}"), SOON, || {
        let before: Vec<f64> = names.iter().map(|name| standby_reads(cluster, name)).collect();
        for _ in 0..20 {
            cluster.psql("SELECT count(*) FROM gate")?;
        }
        let served: Vec<&str> = names
            .iter()
            .zip(&before)
            .filter(|(name, before)| standby_reads(cluster, name) > **before)
            .map(|(name, _)| name.as_str())
            .collect();
        if served == expected { Ok(()) } else { Err(format!("served by {served:?}")) }
    });
}

#[test]
fn lag_gate() {
    let cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE gate (filler text)").expect("create");
    let primary = cluster.primary();
    let standbys = cluster.standbys();
    let [one, other] = standbys.as_slice() else { panic!("two standbys") };
    let names = |servers: &[&Server]| -> Vec<String> { servers.iter().map(|s| s.name.clone()).collect() };
    let settle = |servers: &[&Server]| {
        let names = names(servers);
        reads_settle_on(&cluster, &names.iter().map(String::as_str).collect::<Vec<_>>());
    };

    settle(&[one, other]);
    replay(&cluster, one, "pause");
    write_wal(&cluster);
    settle(&[other]);
    replay(&cluster, other, "pause");
    write_wal(&cluster);
    settle(&[&primary]);
    replay(&cluster, one, "resume");
    settle(&[one]);
    replay(&cluster, other, "resume");
    settle(&[one, other]);
}

/// The primary commits on, but its WAL does not come: without a quorum nobody knows how stale the standbys are.
#[test]
fn a_silent_stream_is_not_taken_for_an_idle_primary() {
    let cluster = Cluster::start(Options { durability: Durability::Async, ..Options::default() });
    cluster.psql("CREATE TABLE gate (filler text)").expect("create");
    let primary = cluster.primary();
    let standbys: Vec<String> = cluster.standbys().into_iter().map(|s| s.name).collect();
    let standbys: Vec<&str> = standbys.iter().map(String::as_str).collect();
    reads_settle_on(&cluster, &standbys);

    let admin = cluster.direct_conninfo(&primary, "postgres");
    let walsender = "SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'bellwether%'";
    let walsender = cluster.psql_at(&admin, walsender).expect("the relay's walsender");
    let walsender = Pid::from_raw(walsender.parse().expect("a pid"));
    kill(walsender, Signal::SIGSTOP).expect("stop");
    cluster.psql("INSERT INTO gate VALUES ('unseen')").expect("nobody has to acknowledge it");
    let upstream = eventually("the silence is noticed", SOON, || {
        let before = standby_reads(&cluster, &primary.name);
        cluster.psql("SELECT count(*) FROM gate")?;
        let upstream = cluster.api("/api/v1/cluster")?["wal"]["upstream"]["state"].clone();
        if standby_reads(&cluster, &primary.name) > before {
            Ok(upstream)
        } else {
            Err("a standby reads".to_owned())
        }
    });
    assert_eq!(upstream, "streaming", "the silence was noticed before the stream was given up");
    reads_settle_on(&cluster, &[&primary.name]);
    kill(walsender, Signal::SIGCONT).expect("continue");
    reads_settle_on(&cluster, &standbys);
}

/// A session never reads from before its own write, however the standbys lag.
#[test]
fn a_session_reads_its_own_writes() {
    let cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE own (n int)").expect("create");
    for standby in cluster.standbys() {
        replay(&cluster, &standby, "pause");
    }
    // One session, lag far below the bound: only its own last write keeps it off the standbys.
    let script: String =
        (1..=50).map(|n| format!("INSERT INTO own VALUES ({n});\nSELECT count(*) FROM own;\n")).collect();
    let script_path = cluster.data().join("own.sql");
    std::fs::write(&script_path, script).expect("script");
    let output = cluster
        .program("psql")
        .args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            script_path.to_str().expect("UTF-8"),
            "-d",
        ])
        .arg(cluster.conninfo())
        .output()
        .expect("psql");
    let answers: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let expected: Vec<String> = (1..=50).map(|n| n.to_string()).collect();
    assert_eq!(answers, expected, "{}", String::from_utf8_lossy(&output.stderr));
}
