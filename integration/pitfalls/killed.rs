//! The process killed, and the power cut, in the middle of a segment rollover or of a timeline switch: wherever that
//! hits, the store opens again, holds all that anybody was told of, and is on the timeline that it had announced.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::durable::{acknowledged_lsn, never_starts_again, told};
use crate::harness::wal::{
    SEGMENT_BYTES, assert_same_from, await_replayed, compare_with_primary, durable_lsn, end_of_records,
    end_of_segments, flush_lsn, segment_name,
};
use crate::harness::{Cluster, DiskKind, Fault, Options, Server, eventually};

const SOON: Duration = Duration::from_secs(120);

/// What names files, removes them, and makes names last.
const NAMES: &str = "rename+unlink+fsync";
const EVERYTHING: &str = "rename+unlink+fsync+fdatasync+pwrite+write";

/// About as many calls as a rollover makes that allocates two segments, with 16 writes each.
const ROLLOVER: u32 = 60;

/// More than any switch makes.
const MANY: u32 = 200;

/// In a rollover before each call that is about names; in one switch, which goes on after each restart, before a
/// later call each time.
#[test]
fn killed_in_a_rollover_and_in_a_switch() {
    let mut cluster = faulty();
    // With a segment allocated ahead, a rollover makes fewer calls than without.
    let rollovers = (1..=6).filter(|n| dies_in_a_rollover(&mut cluster, NAMES, *n)).count();
    assert!(rollovers >= 3, "{:?}", cluster.disk().hit());
    cluster.await_steady();
    let former = cluster.primary();
    begin_election(&cluster, Fault::KillBefore { calls: NAMES, n: 1 });
    let kills = (2..MANY).take_while(|n| dies_in_a_switch(&mut cluster, &former, NAMES, *n)).count();
    assert!(kills > 3, "{:?}", cluster.disk().hit());
    in_order_again(&mut cluster);
    println!("killed at {:?}", cluster.disk().hit());
}

#[test]
#[ignore = "minutes: make soak"]
fn killed_at_every_call_of_a_rollover_and_of_a_switch() {
    let mut cluster = faulty();
    let rollovers = (1..=ROLLOVER).filter(|n| dies_in_a_rollover(&mut cluster, EVERYTHING, *n)).count();
    assert!(rollovers > 20, "{:?}", cluster.disk().hit());
    cluster.await_steady();
    let switches = (1..MANY).take_while(|n| {
        let former = cluster.primary();
        begin_election(&cluster, Fault::KillBefore { calls: EVERYTHING, n: *n });
        // Once only: what is left of the switch is done in peace.
        let died = dies_in_a_switch(&mut cluster, &former, EVERYTHING, MANY);
        if died {
            assert!(!dies_in_a_switch(&mut cluster, &former, EVERYTHING, MANY), "it has died twice");
        }
        in_order_again(&mut cluster);
        died
    });
    let switches = switches.count();
    assert!(switches > 20, "{:?}", cluster.disk().hit());
    println!("killed at {:?}", cluster.disk().hit());
}

/// Little is kept, so that a rollover removes and recycles, too.
fn faulty() -> Cluster {
    // A candidate whose preparation was cut short waits for its next turn, and that is told.
    let expected_warnings = &["a person is needed"];
    let options = Options { disk: DiskKind::Faulty, expected_warnings, ..Options::default() };
    let mut cluster = Cluster::start(options);
    cluster.rewrite(|config| {
        config["wal"]["retain"] = serde_yaml::from_str("{size: 16MiB}").expect("YAML");
        // Commits that will never be acknowledged keep nobody for long.
        config["shutdown"] = serde_yaml::from_str("{transactions: 1s}").expect("YAML");
    });
    cluster.kill_bellwether();
    cluster.run_bellwether(None);
    cluster.await_steady();
    cluster
}

/// Whether the process made that many calls before the primary's WAL was here.
fn dies_in_a_rollover(cluster: &mut Cluster, calls: &'static str, n: u32) -> bool {
    let primary = cluster.primary();
    let timeline = stored_timeline(cluster);
    cluster.disk().order(Fault::KillBefore { calls, n });
    let write = "SET synchronous_commit = local; SELECT pg_switch_wal(); \
                 SELECT pg_logical_emit_message(true, 'rollover', repeat('x', 100000))";
    cluster.psql_at(&cluster.direct_conninfo(&primary, "postgres"), write).expect("a new segment");
    let end = flush_lsn(cluster, &primary);
    let died = eventually("death, or the end of the rollover", SOON, || {
        if cluster.has_ended() {
            return Ok(true);
        }
        let durable = durable_lsn(cluster).unwrap_or_default();
        if durable >= end { Ok(false) } else { Err(format!("{durable} of {end}")) }
    });
    if died {
        after_a_power_cut(cluster);
        assert_eq!(stored_timeline(cluster), timeline);
        holds(cluster, &primary, acknowledged_lsn(cluster, &primary));
        cluster.disk().heal();
        cluster.run_bellwether(None);
    } else {
        cluster.disk().heal();
    }
    eventually("the relay has it all, and writes are open", SOON, || {
        let durable = durable_lsn(cluster).ok_or("no answer")?;
        let state = cluster.api("/api/v1/cluster")?;
        let open = state["directive"]["writes"]["state"] == "open";
        if open && durable >= end { Ok(()) } else { Err(format!("{durable} of {end}: {state}")) }
    });
    assert_eq!(stored_timeline(cluster), timeline);
    died
}

/// The last record switches the segment: servers are at the segment's end then, and a store that has opened again
/// cannot tell what fills it up from what was there before.
#[test]
fn a_primary_lost_behind_a_switch_of_segments() {
    let mut cluster = faulty();
    let lost = cluster.primary();
    let switch = "SELECT pg_switch_wal()";
    cluster.psql_at(&cluster.direct_conninfo(&lost, "postgres"), switch).expect("a new segment");
    let end = flush_lsn(&cluster, &lost);
    for standby in cluster.standbys() {
        await_replayed(&cluster, &standby, end);
    }
    cluster.kill_bellwether();
    cluster.lose_machine(&lost);
    never_starts_again(&lost);
    cluster.run_bellwether(None);
    eventually("another primary", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != lost.name.as_str();
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    compare_with_primary(&cluster, &cluster.primary());
}

fn begin_election(cluster: &Cluster, fault: Fault) {
    cluster.disk().order(fault);
    let begun = cluster.http("POST", "/api/v1/failover");
    // It may have died of it.
    assert!(begun.as_ref().map_or(true, |(status, _)| *status == 200), "{begun:?}");
}

/// Whether the process died before `former` was replaced. Then the next one goes on, and dies before its `n`-th call.
fn dies_in_a_switch(cluster: &mut Cluster, former: &Server, calls: &'static str, n: u32) -> bool {
    let died = eventually("death, or the end of the election", SOON, || {
        if cluster.has_ended() {
            return Ok(true);
        }
        let state = cluster.api("/api/v1/cluster")?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != former.name.as_str();
        if moved { Ok(false) } else { Err(state.to_string()) }
    });
    if died {
        after_a_power_cut(cluster);
        cluster.disk().order(Fault::KillBefore { calls, n });
        cluster.run_bellwether(None);
    }
    died
}

fn in_order_again(cluster: &mut Cluster) {
    cluster.disk().heal();
    if cluster.has_ended() {
        after_a_power_cut(cluster);
        cluster.run_bellwether(None);
    }
    cluster.await_steady();
    compare_with_primary(cluster, &cluster.primary());
}

/// What the disk has then is whole, and nobody has more.
fn after_a_power_cut(cluster: &mut Cluster) {
    assert_eq!(cluster.ended(SOON).signal(), Some(Signal::SIGKILL as i32));
    cluster.disk().cut_power();
    let timeline = stored_timeline(cluster);
    let end = end_of_records(&cluster.wal_dir(), timeline);
    let whole = end_of_segments(&cluster.wal_dir(), timeline);
    for standby in cluster.servers() {
        let is_standby = "SELECT pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS NOT NULL";
        let conninfo = cluster.direct_conninfo(&standby, "postgres");
        if cluster.psql_at(&conninfo, is_standby).as_deref() != Ok("t") {
            continue;
        }
        if let Some(received) = told(cluster, &standby) {
            assert!(received <= whole, "{} has {received}, the store {whole}", standby.name);
            // What fills a segment up behind a switch is nobody's loss: it comes again.
            holds(cluster, &standby, received.min(end));
        }
        let announced = newest_history(&standby.data_dir.join("pg_wal"));
        assert!(
            announced <= timeline,
            "{} was told of timeline {announced}, the store is on {timeline}",
            standby.name
        );
    }
}

/// The last segment before `end`; what comes before it is walked by its checksums.
fn holds(cluster: &Cluster, server: &Server, end: u64) {
    let from = (end - 1) / SEGMENT_BYTES * SEGMENT_BYTES;
    let last = cluster.wal_dir().join(segment_name(stored_timeline(cluster), from));
    if end == from + SEGMENT_BYTES && !last.exists() {
        // Nobody needs it any more, and little is kept here.
        return;
    }
    assert_same_from(&cluster.wal_dir(), &server.data_dir.join("pg_wal"), from, end);
}

/// Which it will announce.
fn stored_timeline(cluster: &Cluster) -> u32 {
    let control = fs::read_to_string(cluster.wal_dir().join("control.json")).expect("the control file");
    let control = control.lines().next().expect("a line");
    let control: serde_json::Value = serde_json::from_str(control).expect("JSON");
    control["timeline"].as_u64().and_then(|timeline| timeline.try_into().ok()).expect("a timeline")
}

/// The newest timeline that a server knows of by name.
fn newest_history(pg_wal: &Path) -> u32 {
    let names =
        fs::read_dir(pg_wal).expect("pg_wal").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let of = |name: String| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok();
    names.filter_map(of).max().unwrap_or(1)
}
