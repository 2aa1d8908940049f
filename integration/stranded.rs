//! WAL that only the lost primary and one standby have: it is saved, and both follow the new primary.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Cluster, Options, Server, eventually};

/// What is in no other server's WAL, as pg_waldump shows it: `gone` in hexadecimal.
const GONE: &str = "67 6F 6E 65";

/// How it comes about: (1) a standby was told to stream from the primary itself; (2) the relay's stream stands
/// still, without an end; (3) the primary writes, and only that standby gets it; (4) the primary dies. The relay
/// and the other standby know nothing of it, and under quorum no client was told that it is committed. The standby
/// runs, and asks for ever for what comes behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_beyond_the_fork_is_located_and_rebuilt_and_its_wal_is_saved() {
    let mut cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS id").unwrap();
    cluster.await_steady();
    let primary = cluster.primary();
    let [candidate, stranded] = <[Server; 2]>::try_from(cluster.standbys()).expect("two standbys");

    let upstream = upstream(&cluster, &stranded);
    stream_from(&cluster, &stranded, &primary);
    let walsender = walsender_of_the_relay(&cluster, &primary);
    kill(walsender, Signal::SIGSTOP).expect("a walsender");
    write_unheard(&cluster, &primary, &stranded);
    point_back(&cluster, &stranded, &upstream);
    cluster.signal(&primary, Signal::SIGKILL);
    kill(walsender, Signal::SIGKILL).expect("a walsender");

    eventually("the candidate is primary", Duration::from_secs(120), || {
        let state = cluster.api("/api/v1/cluster")?;
        if state["directive"]["primary"] == candidate.name.as_str() { Ok(()) } else { Err(state.to_string()) }
    });
    cluster.await_steady();
    eventually("both tails are in the history", Duration::from_secs(120), || {
        let history = cluster.api("/api/v1/history")?;
        let last = history.as_array().and_then(|all| all.last()).ok_or("no election")?;
        let names = |list: &str| -> Vec<String> {
            let all = last[list].as_array().into_iter().flatten();
            all.filter_map(|entry| entry["node"].as_str().map(str::to_owned)).collect()
        };
        let (behind, mut saved) = (names("left_behind"), names("saved"));
        saved.sort();
        let mut both = [primary.name.clone(), stranded.name.clone()];
        both.sort();
        if behind == [stranded.name.clone()] && saved == both { Ok(()) } else { Err(last.to_string()) }
    });
    let history = cluster.api("/api/v1/history").expect("history");
    let saved = history.as_array().and_then(|all| all.last()).expect("an election")["saved"].clone();
    for tail in saved.as_array().expect("a list") {
        assert_is_readable(&cluster, tail);
    }

    cluster.await_steady();
    cluster.psql("INSERT INTO kept VALUES (101)").unwrap();
    for server in [&primary, &stranded] {
        eventually("it follows", Duration::from_secs(120), || {
            let count =
                cluster.psql_at(&cluster.direct_conninfo(server, "app"), "SELECT count(*) FROM kept")?;
            if count == "101" { Ok(()) } else { Err(count) }
        });
    }
    let log = cluster.log();
    assert!(log.contains("rule=\"S4\""), "{log}");
    let log = server_log(&stranded);
    assert!(log.contains("fetching timeline history file for timeline 2"), "{log}");
}

/// The settings that make it a follower of the relay.
fn upstream(cluster: &Cluster, standby: &Server) -> [(&'static str, String); 2] {
    ["primary_conninfo", "primary_slot_name"].map(|name| {
        let value = cluster.psql_at(&superuser(cluster, standby), &format!("SHOW {name}"));
        (name, value.expect("a superuser may"))
    })
}

/// It asks the relay for WAL that the relay does not have, again and again, and when the relay has a new timeline,
/// for its history: so its files tell of a timeline that it is not on.
fn point_back(cluster: &Cluster, standby: &Server, upstream: &[(&str, String)]) {
    let at = superuser(cluster, standby);
    for (name, value) in upstream {
        let value = value.replace('\'', "''");
        cluster.psql_at(&at, &format!("ALTER SYSTEM SET {name} = '{value}'")).expect("a superuser may");
    }
    for set in ["ALTER SYSTEM SET wal_retrieve_retry_interval = '20ms'", "SELECT pg_reload_conf()"] {
        cluster.psql_at(&at, set).expect("a superuser may");
    }
    eventually("it has asked the relay in vain", Duration::from_secs(120), || {
        let log = server_log(standby);
        let asked = log.rsplit_once("received SIGHUP").map_or("", |(_, since)| since);
        if asked.contains("FATAL") { Ok(()) } else { Err(asked.to_owned()) }
    });
}

fn server_log(server: &Server) -> String {
    let beside = server.data_dir.parent().expect("a directory");
    fs::read_to_string(beside.join(format!("{}.log", server.name))).expect("a log")
}

fn superuser(cluster: &Cluster, server: &Server) -> String {
    cluster.direct_conninfo(server, "app")
}

/// Past the relay, and without a slot.
fn stream_from(cluster: &Cluster, standby: &Server, primary: &Server) {
    let upstream = cluster.direct_conninfo(primary, "app").replace(" dbname=app", "");
    let at = superuser(cluster, standby);
    for set in [
        format!("ALTER SYSTEM SET primary_conninfo = '{upstream} application_name=astray'"),
        "ALTER SYSTEM SET primary_slot_name = ''".to_owned(),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        cluster.psql_at(&at, &set).expect("a superuser may");
    }
    eventually("it streams from the primary", Duration::from_secs(120), || {
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'astray' \
                       AND state = 'streaming'";
        let found = cluster.psql_at(&superuser(cluster, primary), streams)?;
        if found == "1" { Ok(()) } else { Err(found) }
    });
}

fn walsender_of_the_relay(cluster: &Cluster, primary: &Server) -> Pid {
    let question = "SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'bellwether%'";
    let found = cluster.psql_at(&superuser(cluster, primary), question).expect("the relay streams");
    Pid::from_raw(found.trim().parse().expect("one pid"))
}

/// The primary's own disk has it, and the standby has replayed it.
fn write_unheard(cluster: &Cluster, primary: &Server, standby: &Server) {
    let write = "SET synchronous_commit = local; SELECT pg_logical_emit_message(true, 'test', 'gone')";
    let end = cluster.psql_at(&superuser(cluster, primary), write).expect("it commits locally");
    eventually("it is replayed", Duration::from_secs(120), || {
        let question = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", end.trim());
        let answer = cluster.psql_at(&superuser(cluster, standby), &question)?;
        if answer == "t" { Ok(()) } else { Err(answer) }
    });
}

/// With the command that the history gives.
fn assert_is_readable(cluster: &Cluster, tail: &serde_json::Value) {
    let text = |field: &str| tail[field].as_str().map_or_else(|| tail[field].to_string(), str::to_owned);
    let output = cluster
        .program("pg_waldump")
        .args(["-p", &text("directory"), "-t", &text("timeline"), "-s", &text("from"), "-e", &text("to")])
        .output()
        .expect("pg_waldump");
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(found.contains(GONE), "{tail}: {found}{}", String::from_utf8_lossy(&output.stderr));
    assert!(Path::new(&text("directory")).is_dir());
}
