//! Many followers, some of them slow, dead or hostile: each is its own trouble, and nobody else's.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::wal::{
    SEGMENT_BYTES, caught_up, compare_up_to, durable_lsn, flush_lsn, lsn_at, segment_name, segment_start,
    segments,
};
use crate::harness::{Cluster, Follower, Heard, Options, Server, eventually, status, stop_waiting};

const SOON: Duration = Duration::from_secs(120);

/// Written while a standby stands still, 16 MiB each: far more than the relay keeps in memory.
const ROUNDS: u64 = 16;

/// What the process may grow by meanwhile. The ring of the newest WAL and what is on the way to each follower have
/// their bounds; the WAL that is written is four times this.
const MEMORY_BOUND: u64 = 64 << 20;

/// A follower that is silent, or takes nothing, for so long is dropped (`RelayConfig::follower_timeout`).
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn slow_followers_are_alone_with_it() {
    one_stands_still(ROUNDS, PATIENCE);
}

#[test]
#[ignore = "a minute of standing still: make soak"]
fn slow_followers_are_alone_with_it_for_a_minute() {
    one_stands_still(8 * ROUNDS, Duration::from_secs(60));
}

/// Pitfalls 15 and 16: of five followers one is stopped, one talks without end and never reads, one only never
/// reads, one lies about where it is; the fifth never notices.
fn one_stands_still(rounds: u64, at_least: Duration) {
    let cluster = Cluster::start(Options::default());
    let [stopped, other] = <[Server; 2]>::try_from(cluster.standbys()).expect("two standbys");
    let stopped_walreceiver = walreceiver(&cluster, &stopped);
    let begin = durable_lsn(&cluster).expect("a position") / SEGMENT_BYTES * SEGMENT_BYTES;
    let begin_of = |follower: &mut Follower| assert_eq!(follower.start(None, begin, 1), Ok(None));
    let [mut flooding, mut deaf] = ["flooding", "deaf"].map(|name| {
        let mut follower = Follower::connect(&cluster, name);
        begin_of(&mut follower);
        follower
    });
    let before = resident_bytes(&cluster);

    stop_waiting(stopped_walreceiver);
    let since = Instant::now();
    let flood = status(begin, begin, begin).repeat(2000);
    for round in 0.. {
        write_segment(&cluster);
        caught_up(&cluster, &other);
        // Whether it is taken is the relay's choice, as long as nobody suffers.
        let _ = flooding.push(&flood, Duration::from_millis(50));
        let grown = resident_bytes(&cluster).saturating_sub(before);
        assert!(grown < MEMORY_BOUND, "{grown} bytes more behind round {round}");
        if round >= rounds && since.elapsed() > at_least {
            break;
        }
    }
    let mut lying = Follower::connect(&cluster, "lying");
    begin_of(&mut lying);
    believes_no_lie(&cluster, &mut lying);
    eventually("who takes nothing is dropped", SOON, || {
        let names = followers(&cluster);
        let left = names.iter().any(|name| name == "flooding" || name == "deaf");
        if left { Err(format!("{names:?}")) } else { Ok(()) }
    });
    while !matches!(deaf.hear(SOON), Heard::Closed) {}

    kill(stopped_walreceiver, Signal::SIGCONT).expect("continue");
    caught_up(&cluster, &stopped);
    let end = lsn_at(&cluster, &stopped, "pg_last_wal_receive_lsn()");
    assert!(end - begin > rounds * SEGMENT_BYTES, "{} has received {end} only", stopped.name);
    assert!(compare_up_to(&cluster.wal_dir(), &stopped.data_dir.join("pg_wal"), end) > 0);
}

/// It claims to have what was never sent. Neither its position nor its slot moves there.
fn believes_no_lie(cluster: &Cluster, lying: &mut Follower) {
    let far = 1 << 40;
    lying.tell(far, far, far);
    let told = Instant::now();
    while told.elapsed() < Duration::from_secs(1) {
        assert!(!matches!(lying.hear(Duration::from_millis(200)), Heard::Error(_) | Heard::Closed));
    }
    let state = cluster.api("/api/v1/cluster").expect("state");
    let all = state["followers"].as_array().expect("followers");
    let lying = all.iter().find(|follower| follower["application_name"] == "lying").expect("it streams");
    for position in ["write", "flush", "replay"] {
        assert_eq!(lying[position], "0/0", "{lying}");
    }
}

/// Pitfalls 13 and 17.
#[test]
fn what_a_follower_may_ask_for() {
    let mut cluster = Cluster::start(Options::default());
    // As little as possible is kept for those who have no slot.
    cluster
        .reconfigure(|config| config["wal"]["retain"] = serde_yaml::from_str("{size: 16MiB}").expect("YAML"));
    asked_slightly_ahead_it_waits(&cluster);
    slots_keep_whole_segments(&cluster);
}

fn asked_slightly_ahead_it_waits(cluster: &Cluster) {
    let primary = cluster.primary();
    let end = flush_lsn(cluster, &primary);
    let next = end / SEGMENT_BYTES * SEGMENT_BYTES + SEGMENT_BYTES;
    let mut follower = Follower::connect(cluster, "ahead");
    assert_eq!(follower.start(None, next, 1), Ok(None));
    // Twice the time after which it is spoken to at a quiet end.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        let heard = follower.hear(SOON);
        assert!(matches!(heard, Heard::Keepalive { .. }), "{heard:?}");
    }
    let superuser = cluster.direct_conninfo(&primary, "postgres");
    cluster.psql_at(&superuser, "SELECT pg_switch_wal()").expect("a new segment");
    write_segment(cluster);
    let wal = follower.read(next, next + SEGMENT_BYTES);
    let theirs = primary.data_dir.join("pg_wal").join(segment_name(1, next));
    assert!(fs::read(theirs).expect("a segment") == wal[..SEGMENT_BYTES as usize]);
}

/// A follower that has flushed half a segment comes back and asks for all of it, however much was written meanwhile.
fn slots_keep_whole_segments(cluster: &Cluster) {
    let begin = durable_lsn(cluster).expect("a position") / SEGMENT_BYTES * SEGMENT_BYTES;
    let mut follower = Follower::connect(cluster, "away");
    follower.ask("CREATE_REPLICATION_SLOT \"away\" PHYSICAL").expect("a new slot");
    assert_eq!(follower.start(Some("away"), begin, 1), Ok(None));
    write_segment(cluster);
    let middle = begin + SEGMENT_BYTES / 2 + 8;
    let first = follower.read(begin, middle);
    follower.tell(middle, middle, 0);
    // It has been heard once the answer is there.
    while !matches!(follower.hear(SOON), Heard::Keepalive { .. }) {}
    drop(follower);

    let goal = begin + 8 * SEGMENT_BYTES;
    while durable_lsn(cluster).expect("a position") < goal {
        write_segment(cluster);
        cluster.standbys().iter().for_each(|standby| caught_up(cluster, standby));
    }
    let oldest = || {
        let kept = segments(&cluster.wal_dir());
        kept.keys().map(|name| segment_start(name)).min().expect("WAL")
    };
    assert_eq!(oldest(), begin, "what is kept begins with the slot's segment");
    let mut follower = Follower::connect(cluster, "away");
    assert_eq!(follower.start(Some("away"), begin, 1), Ok(None));
    let again = follower.read(begin, goal);
    assert!(again[..first.len().min(again.len())] == first[..]);
    follower.tell(goal, goal, 0);
    while !matches!(follower.hear(SOON), Heard::Keepalive { .. }) {}
    assert_eq!(follower.end(), None);
    eventually("what nobody needs goes", SOON, || {
        write_segment(cluster);
        let oldest = oldest();
        if oldest > begin { Ok(()) } else { Err(format!("{oldest} is kept")) }
    });
    follower.ask("DROP_REPLICATION_SLOT \"away\"").expect("it is free");
}

fn walreceiver(cluster: &Cluster, standby: &Server) -> Pid {
    let conninfo = cluster.direct_conninfo(standby, "postgres");
    let pid = cluster.psql_at(&conninfo, "SELECT pid FROM pg_stat_wal_receiver").expect("a walreceiver");
    Pid::from_raw(pid.parse().expect("a pid"))
}

/// 16 MiB of WAL.
fn write_segment(cluster: &Cluster) {
    let write = "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 8192))) \
                 FROM generate_series(1, 64) i";
    let conninfo = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&conninfo, write).expect("WAL");
}

fn followers(cluster: &Cluster) -> Vec<String> {
    let state = cluster.api("/api/v1/cluster").expect("state");
    let all = state["followers"].as_array().into_iter().flatten();
    all.filter_map(|follower| follower["application_name"].as_str().map(str::to_owned)).collect()
}

fn resident_bytes(cluster: &Cluster) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.bellwether_pid())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}
