//! What comes next is removed where it was written, behind a switch of the timeline, while nobody looked.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::harness::wal::{
    assert_same_from, compare_with_primary, durable_lsn, flush_lsn, parse_lsn, segment_start, segments,
};
use crate::harness::{Cluster, Durability, Options, Server, eventually, pg_ctl};
use crate::sources::{await_replayed, execute, keep_nothing, remove_wal};

const SOON: Duration = Duration::from_secs(120);

/// Pitfall 18. While the relay is away another server is promoted by hand, writes, and removes what it has written, the
/// fork among it. A standby that has followed it has all; at the next switch nobody has.
#[test]
fn behind_a_switch_what_is_removed_is_filled_or_missed_and_never_skipped() {
    let mut cluster = Cluster::start(Options {
        durability: Durability::Async,
        expected_warnings: &["no source has the WAL behind", "a person is needed"],
        ..Options::default()
    });
    let first = cluster.primary();
    let [second, witness] = &cluster.standbys()[..] else { panic!("two standbys") };
    for server in [&first, second] {
        keep_nothing(&cluster, server);
    }
    let keep = "ALTER SYSTEM SET wal_keep_size = '2GB'";
    execute(&cluster, witness, &[keep, "SELECT pg_reload_conf()"]);
    await_replayed(&cluster, &first, second);
    await_replayed(&cluster, &first, witness);

    cluster.kill_bellwether();
    let from = takes_over(&cluster, &first, second);
    streams_from(&cluster, witness, second);
    remove_wal(&cluster, second);
    await_replayed(&cluster, second, witness);
    let mut writer = write_in_background(&cluster, second);
    cluster.run_bellwether(None);
    assert!(writer.wait().expect("psql").success());
    compare_with_primary(&cluster, second);
    assert!(cluster.log().contains("WAL comes from a substitute"), "whence else?");
    await_replayed(&cluster, second, witness);
    let end = flush_lsn(&cluster, second).min(durable_lsn(&cluster).expect("a position"));
    assert_same_from(&cluster.wal_dir(), &witness.data_dir.join("pg_wal"), from, end);
    eventually("the first one is back", SOON, || {
        let replayed = "SELECT pg_last_wal_replay_lsn()";
        cluster.psql_at(&cluster.direct_conninfo(&first, "postgres"), replayed).map(|_| ())
    });
    await_replayed(&cluster, second, &first);

    cluster.kill_bellwether();
    execute(&cluster, witness, &["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"]);
    let fork = takes_over(&cluster, second, &first);
    remove_wal(&cluster, &first);
    cluster.run_bellwether(None);
    eventually("the gap is said aloud", SOON, || {
        let alarm = cluster.api("/api/v1/cluster")?["wal"]["alarm"].clone();
        let said = alarm.as_str().is_some_and(|alarm| alarm.starts_with("no source has the WAL behind"));
        if said { Ok(()) } else { Err(alarm.to_string()) }
    });
    let durable = durable_lsn(&cluster).expect("a position");
    assert!(durable <= fork, "{durable} is durable, and what is behind {fork} is nowhere");
    let beyond: Vec<String> =
        segments(&cluster.wal_dir()).into_keys().filter(|name| segment_start(name) > fork).collect();
    assert_eq!(beyond, Vec::<String>::new(), "WAL was skipped");
}

/// In order: `successor` has all of it and is promoted, `former` follows the relay from now on. Where the new timeline
/// begins.
fn takes_over(cluster: &Cluster, former: &Server, successor: &Server) -> u64 {
    let of_relay = cluster.psql_at(&cluster.direct_conninfo(successor, "postgres"), "SHOW primary_conninfo");
    let of_relay = of_relay.expect("its upstream").replace(&*successor.name, &former.name);
    streams_from(cluster, successor, former);
    let follow = format!("ALTER SYSTEM SET primary_conninfo = '{}'", of_relay.replace('\'', "''"));
    execute(cluster, former, &[&follow, "ALTER SYSTEM SET primary_slot_name = ''"]);
    await_replayed(cluster, former, successor);
    pg_ctl(cluster, &former.data_dir, &["stop", "-m", "fast"]);
    execute(cluster, successor, &["SELECT pg_promote()"]);
    let unused =
        "SELECT pg_drop_replication_slot('direct') FROM pg_replication_slots WHERE slot_name = 'direct'";
    execute(cluster, successor, &[unused]);
    let history =
        "SELECT pg_read_file('pg_wal/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) || '.history')";
    let history =
        cluster.psql_at(&cluster.direct_conninfo(successor, "postgres"), history).expect("a history");
    let fork = history.lines().last().and_then(|line| line.split('\t').nth(1)).expect("a fork");
    let mut signal = std::process::Command::new("touch");
    signal.arg(former.data_dir.join("standby.signal"));
    cluster.run_as_server_user(&mut signal);
    assert!(signal.status().expect("touch").success());
    parse_lsn(fork)
}

/// Past the relay, and it is kept for it.
fn streams_from(cluster: &Cluster, standby: &Server, upstream: &Server) {
    let slot = "SELECT pg_create_physical_replication_slot('direct', true) \
                WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'direct')";
    execute(cluster, upstream, &[slot]);
    let conninfo = cluster.direct_conninfo(upstream, "postgres").replace("dbname=postgres", "");
    let upstream = format!("ALTER SYSTEM SET primary_conninfo = '{conninfo} application_name=direct'");
    let slot = "ALTER SYSTEM SET primary_slot_name = 'direct'";
    execute(cluster, standby, &[&upstream, slot, "SELECT pg_reload_conf()"]);
}

fn write_in_background(cluster: &Cluster, server: &Server) -> Child {
    let write = "SELECT pg_logical_emit_message(true, 'filler', repeat('x', 500000)), pg_sleep(0.01)";
    let mut psql = cluster.program("psql");
    psql.args(["-X", "-q", "-d"]).arg(cluster.direct_conninfo(server, "postgres"));
    for _ in 0..100 {
        psql.args(["-c", write]);
    }
    psql.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("psql")
}
