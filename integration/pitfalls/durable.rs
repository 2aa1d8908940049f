//! What is not synced nobody is told of: no follower, no commit, no successor.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::ledger::{Answer, Ledger, audit, tokens};
use crate::harness::wal::{SEGMENT_BYTES, compare_up_to, durable_lsn, flush_lsn, lsn_at, parse_lsn};
use crate::harness::{
    Cluster, DiskKind, Fault, Follower, Heard, Options, Server, eventually, eventually_async,
};

const SOON: Duration = Duration::from_secs(120);

/// What an I/O error of the disk is worth.
const ALARMS: &[&str] = &["the WAL plane", "sync 0000000"];

/// Pitfalls 1, 2 and 3, on one cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_synced_counts() {
    let options = Options { disk: DiskKind::Faulty, expected_warnings: ALARMS, ..Options::default() };
    let mut cluster = Cluster::start(options);
    tokio::task::block_in_place(|| nothing_leaves_while_a_sync_hangs(&mut cluster));
    let ledger = Ledger::start(&cluster.conninfo(), 1, 4).await;
    for _ in 0..3 {
        power_cut_under_load(&mut cluster, &ledger).await;
    }
    let successor = the_primary_goes_with_the_power(&mut cluster, &ledger).await;
    a_failed_sync_is_the_end(&mut cluster, &ledger).await;
    let entries = ledger.finish().await;
    let in_doubt = entries.iter().filter(|entry| entry.answer == Answer::InDoubt).count();
    assert!(in_doubt > 0, "whose commit hung when the sync failed was not told so");
    let found = tokens(&cluster.direct_conninfo(&successor, "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
}

fn nothing_leaves_while_a_sync_hangs(cluster: &mut Cluster) {
    cluster.psql("CREATE TABLE waiting (n int)").expect("create");
    let primary = cluster.primary();
    let begin = flush_lsn(cluster, &primary) / SEGMENT_BYTES * SEGMENT_BYTES;
    let mut follower = Follower::connect(cluster, "by hand");
    assert_eq!(follower.start(None, begin, 1), Ok(None));
    cluster.disk().order(Fault::Hang { calls: "fdatasync" });
    let mut commit = insert_in_background(cluster);
    follower.tell(0, 0, 0);
    write_unacknowledged(cluster, &primary);
    let end = flush_lsn(cluster, &primary);
    eventually("the relay has received it, and syncs", SOON, || {
        // Or it would be taken for dead.
        follower.tell(0, 0, 0);
        let state = cluster.api("/api/v1/cluster")?;
        let received = state["wal"]["received"].as_str().map(parse_lsn).ok_or("no position")?;
        if received >= end && !cluster.disk().hit().is_empty() { Ok(()) } else { Err(state.to_string()) }
    });
    let durable = durable_lsn(cluster).expect("a position");
    assert!(durable < end, "{durable} is all that there is");

    let mut heard = begin;
    loop {
        match follower.hear(SOON) {
            Heard::Wal { start, end, bytes } => {
                heard = start + bytes.len() as u64;
                assert!(heard <= durable, "{heard} was shipped, {durable} is durable");
                assert!(end <= durable, "{end} was announced");
            }
            // The second one: time has passed since all was sent.
            Heard::Keepalive { end } if heard == durable => {
                assert!(end <= durable, "{end} was announced");
                break;
            }
            Heard::Keepalive { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    for standby in cluster.standbys() {
        let received = lsn_at(cluster, &standby, "pg_last_wal_receive_lsn()");
        assert!(received <= durable, "{} has {received}, {durable} is durable", standby.name);
    }
    let acknowledged = acknowledged_lsn(cluster, &primary);
    assert!(acknowledged <= durable, "{acknowledged} was acknowledged, {durable} is durable");
    assert!(commit.try_wait().expect("wait").is_none(), "a commit that is not durable was acknowledged");
    assert_eq!(durable_lsn(cluster), Some(durable));

    cluster.kill_bellwether();
    cluster.disk().cut_power();
    followers_hold_only_what_the_store_holds(cluster);
    let _ = commit.kill();
    let _ = commit.wait();
    cluster.disk().heal();
    cluster.start_bellwether();
    cluster.await_steady();
}

/// Like that at a segment's border, too: who runs ahead there holds a segment that the store lacks.
async fn power_cut_under_load(cluster: &mut Cluster, ledger: &Ledger) {
    // Longer syncs: who does not wait for them is caught.
    cluster.disk().order(Fault::Delay { calls: "fdatasync", millis: 10 });
    acknowledged_beyond(ledger, 100).await;
    let superuser = cluster.direct_conninfo(&cluster.primary(), "postgres");
    cluster.psql_at(&superuser, "SELECT pg_switch_wal()").expect("a new segment");
    cluster.kill_bellwether();
    cluster.disk().cut_power();
    // With the relay away nothing moves: what a standby holds now, and what the primary was told, the store holds.
    followers_hold_only_what_the_store_holds(cluster);
    cluster.disk().heal();
    cluster.start_bellwether();
    cluster.await_steady();
}

/// What was acknowledged is on the relay's disk alone, or on a standby that may lack some of it; and is there
/// again on who is promoted.
async fn the_primary_goes_with_the_power(cluster: &mut Cluster, ledger: &Ledger) -> Server {
    let lost = cluster.primary();
    cluster.disk().order(Fault::Delay { calls: "fdatasync", millis: 10 });
    acknowledged_beyond(ledger, 100).await;
    cluster.signal(&lost, Signal::SIGKILL);
    cluster.kill_bellwether();
    cluster.disk().cut_power();
    cluster.disk().heal();
    never_starts_again(&lost);
    // Commits that will never be acknowledged keep nobody.
    let shutdown = serde_yaml::from_str("{transactions: 10min}").expect("YAML");
    cluster.rewrite(|config| config["shutdown"] = shutdown);
    cluster.run_bellwether(None);
    eventually("another primary", Duration::from_secs(120), || {
        let state = cluster.api("/api/v1/cluster")?;
        let open = state["directive"]["writes"]["state"] == "open";
        if open && cluster.primary().name != lost.name { Ok(()) } else { Err(state.to_string()) }
    });
    acknowledged_beyond(ledger, 100).await;
    cluster.primary()
}

/// The kernel has dropped what it could not write: a second fdatasync would succeed and mean nothing.
async fn a_failed_sync_is_the_end(cluster: &mut Cluster, ledger: &Ledger) {
    let before = cluster.disk().hit().len();
    cluster.disk().order(Fault::IoErrorOnce { calls: "fdatasync" });
    let ended = cluster.ended(SOON);
    assert!(!ended.success(), "{ended}");
    let hit = cluster.disk().hit().split_off(before);
    assert!(matches!(hit.as_slice(), [_]), "it went on: {hit:?}");
    assert!(cluster.log().contains("Input/output error"), "{}", cluster.log());
    cluster.disk().heal();
    cluster.disk().cut_power();
    followers_hold_only_what_the_store_holds(cluster);
    cluster.run_bellwether(None);
    acknowledged_beyond(ledger, 100).await;
}

fn followers_hold_only_what_the_store_holds(cluster: &Cluster) {
    let store = cluster.wal_dir();
    for server in cluster.servers() {
        let Some(end) = told(cluster, &server) else { continue };
        let compared = compare_up_to(&store, &server.data_dir.join("pg_wal"), end);
        assert!(compared > 0, "nothing of {} was compared", server.name);
    }
}

/// The end of what a standby holds, once it has taken from its broken connection what was still on the way; of the
/// primary, what it was told. `None`: it does not run.
pub(super) fn told(cluster: &Cluster, server: &Server) -> Option<u64> {
    let conninfo = cluster.direct_conninfo(server, "postgres");
    let standby = cluster.psql_at(&conninfo, "SELECT pg_is_in_recovery()").ok()?;
    if standby == "f" {
        return Some(acknowledged_lsn(cluster, server));
    }
    eventually("the end of the stream", SOON, || {
        let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let streams = cluster.psql_at(&conninfo, streams)?;
        if streams == "0" { Ok(()) } else { Err(format!("{} streams", server.name)) }
    });
    Some(lsn_at(cluster, server, "pg_last_wal_receive_lsn()"))
}

/// What the relay has told the primary that it has.
pub(super) fn acknowledged_lsn(cluster: &Cluster, primary: &Server) -> u64 {
    lsn_at(
        cluster,
        primary,
        "(SELECT restart_lsn FROM pg_replication_slots WHERE slot_name ~ '^bellwether_')",
    )
}

fn insert_in_background(cluster: &Cluster) -> Child {
    let mut psql = cluster.program("psql");
    psql.args(["-X", "-q", "-c", "INSERT INTO waiting VALUES (1)", "-d", &cluster.conninfo()]);
    psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql")
}

/// More than a segment, and less than the relay takes without writing it.
fn write_unacknowledged(cluster: &Cluster, primary: &Server) {
    let conninfo = cluster.direct_conninfo(primary, "app");
    let write = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 20 << 20))";
    for sql in [write, "CHECKPOINT"] {
        cluster.psql_at(&conninfo, sql).expect("nobody has to acknowledge it");
    }
}

pub(super) fn never_starts_again(server: &Server) {
    let conf = server.data_dir.join("postgresql.auto.conf");
    let mut conf = fs::File::options().append(true).open(conf).expect("settings");
    conf.write_all(b"lost = 'for good'\n").expect("settings");
}

async fn acknowledged_beyond(ledger: &Ledger, more: u64) {
    let goal = ledger.acknowledged() + more;
    eventually_async("writes", Duration::from_secs(120), || async {
        let now = ledger.acknowledged();
        if now > goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
    })
    .await;
}
