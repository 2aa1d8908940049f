//! What a switch of timelines must not break: who follows, follows on its connection, and finds the same bytes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::wal::{
    SEGMENT_BYTES, assert_same_from, await_replayed, compare_up_to, compare_with_primary, durable_lsn,
    end_of_records, flush_lsn, lsn_at, parse_lsn, segment_name, segment_start, segments,
};
use crate::harness::{
    Cluster, Follower, Heard, Options, Server, eventually, major, second_major, stop_waiting,
};

const SOON: Duration = Duration::from_secs(120);

#[test]
fn a_switch_is_followed() {
    switch(Options::default);
}

#[test]
fn a_switch_is_followed_second_major() {
    let binaries = second_major();
    switch(|| Options { pg_bin: Some(binaries.bin()), ..Options::default() });
}

#[test]
#[ignore = "needs the other majors: make soak"]
fn a_switch_is_followed_other_majors() {
    for number in [14, 16, 17] {
        let binaries = major(number);
        switch(|| Options { pg_bin: Some(binaries.bin()), ..Options::default() });
    }
}

/// How it comes about: (1) both standbys stop to receive and to replay; (2) a commit is acknowledged, which the relay
/// alone has; (3) the primary is lost in the middle of a record of several segments, and the relay holds its first
/// half; (4) an election begins, and only then the standbys receive again.
///
/// The relay gives up followers that say nothing for ten seconds. On a machine that needs longer for this the standbys
/// have other connections behind it, and it is brought about once more.
fn switch(options: impl Fn() -> Options) {
    let came_about = (0..3).any(|_| switched(options()) == Fault::CameAbout);
    assert!(came_about, "three times a standby was given up while it stood still");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    CameAbout,
    CameLate,
}

fn switched(options: Options) -> Fault {
    let mut cluster = Cluster::start(options);
    cluster.psql("CREATE TABLE acknowledged AS SELECT 0 AS n").expect("create");
    // The last checkpoint that old and new primary share lies whole segments before the fork; a primary keeps no more
    // than it needs itself.
    let lost = cluster.primary();
    let superuser = cluster.direct_conninfo(&lost, "postgres");
    for server in cluster.servers() {
        let conninfo = cluster.direct_conninfo(&server, "postgres");
        for sql in ["ALTER SYSTEM SET wal_keep_size = 0", "SELECT pg_reload_conf()"] {
            cluster.psql_at(&conninfo, sql).expect("settings");
        }
    }
    for _ in 0..2 {
        cluster.psql("INSERT INTO acknowledged VALUES (-1)").expect("insert");
        cluster.psql_at(&superuser, "SELECT pg_switch_wal()").expect("a new segment");
    }
    cluster.await_steady();
    let standbys = cluster.standbys();
    let walreceivers: Vec<Pid> = standbys.iter().map(|standby| walreceiver(&cluster, standby)).collect();
    let logged: Vec<usize> = standbys.iter().map(|standby| log_of(standby).len()).collect();
    for (standby, walreceiver) in standbys.iter().zip(&walreceivers) {
        let conninfo = cluster.direct_conninfo(standby, "postgres");
        cluster.psql_at(&conninfo, "SELECT pg_wal_replay_pause()").expect("pause");
        stop_waiting(*walreceiver);
    }
    cluster.psql("INSERT INTO acknowledged SELECT generate_series(1, 1000)").expect("insert");
    let held = lose_in_the_middle_of_a_record(&cluster, &lost);
    eventually("an election", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        if state["term"] == 2 { Ok(()) } else { Err(state.to_string()) }
    });
    // Whoever promotes somebody who lacks what was acknowledged does it now.
    let chosen = |log: &str| log.contains("rule=\"E3\"");
    eventually("a candidate", SOON, || {
        let log = cluster.log();
        if chosen(&log) { Ok(()) } else { Err("nobody is chosen".to_owned()) }
    });
    standbys.iter().for_each(|standby| seen_again(&cluster, standby));
    for walreceiver in &walreceivers {
        kill(*walreceiver, Signal::SIGCONT).expect("continue");
    }
    eventually("another primary", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let open = state["directive"]["writes"]["state"] == "open";
        if open && cluster.primary().name != lost.name { Ok(()) } else { Err(state.to_string()) }
    });
    if cluster.log().contains("reason=\"timeout\"") {
        return Fault::CameLate;
    }
    let promoted = cluster.primary();
    cluster.psql_at(&cluster.direct_conninfo(&promoted, "postgres"), "CHECKPOINT").expect("a checkpoint");
    let count = "SELECT count(*) FROM acknowledged WHERE n > 0";
    assert_eq!(cluster.psql_at(&cluster.direct_conninfo(&promoted, "app"), count), Ok("1000".to_owned()));
    for (index, standby) in standbys.iter().enumerate().filter(|(_, s)| s.name != promoted.name) {
        let conninfo = cluster.direct_conninfo(standby, "postgres");
        cluster.psql_at(&conninfo, "SELECT pg_wal_replay_resume()").expect("resume");
        follows_on_its_connection(&cluster, standby, walreceivers[index], logged[index]);
    }

    let switchpoint = switchpoint(&cluster);
    assert!(switchpoint + SEGMENT_BYTES < held, "nothing was left beyond the switchpoint");
    old_timeline_ends_there(&cluster, &promoted, switchpoint);
    cluster.await_steady();
    fork_segment_is_whole(&cluster, &promoted, switchpoint);
    // The packages of the other majors have no pg_rewind, and the base backup in its place ends the fork segment.
    if cluster.is_of_the_distribution() {
        rewound_node_joined_from_the_relay(&lost, &promoted);
        stale_pages_are_no_wal(&mut cluster, &promoted, switchpoint);
    }
    Fault::CameAbout
}

/// Pitfall 6. A standby is away over two promotions, and each of them skips a number that another branch has taken.
#[test]
fn two_switches_with_skipped_numbers_while_a_standby_is_away() {
    let mut cluster = Cluster::start(Options::default());
    let first = cluster.primary();
    let [second, away] = <[Server; 2]>::try_from(cluster.standbys()).expect("two standbys");
    let from = flush_lsn(&cluster, &first);
    let upstream = upstream_of(&cluster, &away);
    follow(&cluster, &away, "");
    cluster.psql("CREATE TABLE switches AS SELECT 1 AS n").expect("create");

    take_number(&second, 2);
    cluster.signal(&first, Signal::SIGKILL);
    follows_as(&cluster, &second, 3);
    streams(&cluster, &first);
    cluster.psql("INSERT INTO switches VALUES (2)").expect("insert");
    take_number(&first, 4);
    assert_eq!(cluster.http("POST", "/api/v1/failover").expect("an answer").0, 200);
    follows_as(&cluster, &first, 5);
    cluster.psql("INSERT INTO switches VALUES (3)").expect("insert");

    let history = fs::read_to_string(cluster.wal_dir().join("00000005.history")).expect("a history");
    let lines: Vec<&str> = history.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
    assert_eq!(lines, ["1", "", "3"], "{history}");
    follow(&cluster, &away, &upstream);
    cluster.await_steady();
    compare_with_primary(&cluster, &first);
    let end = flush_lsn(&cluster, &first);
    await_replayed(&cluster, &away, end);
    assert_same_from(&cluster.wal_dir(), &away.data_dir.join("pg_wal"), from, end);
    let conninfo = cluster.direct_conninfo(&away, "app");
    assert_eq!(cluster.psql_at(&conninfo, "SELECT count(*) FROM switches"), Ok("3".to_owned()));
}

fn upstream_of(cluster: &Cluster, standby: &Server) -> String {
    let superuser = cluster.direct_conninfo(standby, "postgres");
    cluster.psql_at(&superuser, "SHOW primary_conninfo").expect("a superuser may")
}

/// Nobody, where `upstream` is empty.
fn follow(cluster: &Cluster, standby: &Server, upstream: &str) {
    let superuser = cluster.direct_conninfo(standby, "postgres");
    let set = format!("ALTER SYSTEM SET primary_conninfo = '{}'", upstream.replace('\'', "''"));
    for sql in [set.as_str(), "SELECT pg_reload_conf()"] {
        cluster.psql_at(&superuser, sql).expect("a superuser may");
    }
    let connected = u8::from(!upstream.is_empty()).to_string();
    eventually("it follows whom it is told to", SOON, || {
        let found = cluster.psql_at(&superuser, "SELECT count(*) FROM pg_stat_wal_receiver")?;
        if found == connected { Ok(()) } else { Err(found) }
    });
}

/// A server takes no timeline whose history file it finds (`findNewestTimeLine` in timeline.c).
fn take_number(server: &Server, timeline: u32) {
    let file = server.data_dir.join("pg_wal").join(format!("{timeline:08X}.history"));
    fs::write(file, "# another branch\n").expect("a history file");
}

fn follows_as(cluster: &Cluster, primary: &Server, timeline: u32) {
    eventually("writes are open on the new timeline", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let open = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] == primary.name.as_str();
        if open && state["wal"]["timeline"] == timeline { Ok(()) } else { Err(state.to_string()) }
    });
}

fn streams(cluster: &Cluster, standby: &Server) {
    eventually("it streams", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let mut followers = state["followers"].as_array().into_iter().flatten();
        let streams = followers.any(|follower| {
            follower["application_name"] == standby.name.as_str() && follower["state"] == "streaming"
        });
        if streams { Ok(()) } else { Err(state.to_string()) }
    });
}

fn walreceiver(cluster: &Cluster, standby: &Server) -> Pid {
    let conninfo = cluster.direct_conninfo(standby, "postgres");
    let pid = cluster.psql_at(&conninfo, "SELECT pid FROM pg_stat_wal_receiver").expect("a walreceiver");
    Pid::from_raw(pid.parse().expect("a pid"))
}

/// The control plane has asked it once more.
fn seen_again(cluster: &Cluster, server: &Server) {
    let mut before = None::<f64>;
    eventually("another look at it", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let mut nodes = state["nodes"].as_array().into_iter().flatten();
        let node = nodes.find(|node| node["name"] == server.name.as_str()).ok_or("no such node")?;
        let ago = node["seen_seconds_ago"].as_f64().ok_or("never seen")?;
        let older = before.replace(ago).is_some_and(|before| ago < before);
        if older { Ok(()) } else { Err(format!("{ago} seconds ago")) }
    });
}

fn log_of(server: &Server) -> String {
    let name = format!("{}.log", server.name);
    fs::read_to_string(server.data_dir.with_file_name(name)).expect("the server's log")
}

/// Pitfall 12's half record, for 4 and 5. Where the relay's WAL ends then.
fn lose_in_the_middle_of_a_record(cluster: &Cluster, primary: &Server) -> u64 {
    let begin = flush_lsn(cluster, primary);
    let (mut psql, backend) = write_large_record(cluster, primary);
    let there = primary.data_dir.join("pg_wal").join(segment_name(1, begin + 4 * SEGMENT_BYTES));
    eventually("four segments of it", SOON, || if there.exists() { Ok(()) } else { Err(String::new()) });
    kill(backend, Signal::SIGSTOP).expect("stop");
    let goal = begin + 2 * SEGMENT_BYTES;
    eventually("the relay has half of it", SOON, || {
        let durable = durable_lsn(cluster).ok_or("no metric")?;
        if durable > goal { Ok(()) } else { Err(format!("{durable} of {goal}")) }
    });
    cluster.lose_machine(primary);
    psql.wait().expect("psql ends");
    durable_lsn(cluster).expect("a position")
}

/// Its psql, and its backend.
fn write_large_record(cluster: &Cluster, primary: &Server) -> (Child, Pid) {
    let mut psql = cluster.program("psql");
    let write = "SELECT pg_logical_emit_message(false, 'half', repeat('x', 400 << 20))";
    psql.args(["-X", "-q", "-A", "-t", "-c", "SELECT pg_backend_pid()", "-c", write, "-d"]);
    psql.arg(cluster.direct_conninfo(primary, "app"));
    psql.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut psql = psql.spawn().expect("psql");
    let mut pid = String::new();
    BufReader::new(psql.stdout.as_mut().expect("piped")).read_line(&mut pid).expect("a pid");
    (psql, Pid::from_raw(pid.trim().parse().expect("a pid")))
}

fn follows_on_its_connection(cluster: &Cluster, standby: &Server, before: Pid, logged: usize) {
    let conninfo = cluster.direct_conninfo(standby, "app");
    eventually("the other standby follows", SOON, || {
        let timeline = "SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let timeline = cluster.psql_at(&conninfo, timeline)?;
        if timeline == "2" { Ok(()) } else { Err(timeline) }
    });
    assert_eq!(walreceiver(cluster, standby), before, "{} has another walreceiver", standby.name);
    let log = log_of(standby).split_off(logged);
    assert!(!log.contains("started streaming WAL from primary"), "{} connected again:\n{log}", standby.name);
}

fn switchpoint(cluster: &Cluster) -> u64 {
    let history = cluster.api("/api/v1/history").expect("history");
    let last = history.as_array().and_then(|all| all.last()).expect("an election");
    parse_lsn(last["switchpoint"].as_str().expect("an LSN"))
}

/// The store holds segments beyond it on that timeline. Nobody gets them.
fn old_timeline_ends_there(cluster: &Cluster, promoted: &Server, switchpoint: u64) {
    let begin = switchpoint / SEGMENT_BYTES * SEGMENT_BYTES;
    let store = segments(&cluster.wal_dir());
    assert!(store.contains_key(&segment_name(1, switchpoint + SEGMENT_BYTES)), "it holds no more than that");

    let mut follower = Follower::connect(cluster, "late");
    assert_eq!(follower.start(None, begin, 1), Ok(None));
    let wal = follower.read(begin, switchpoint);
    assert_eq!(wal.len() as u64, switchpoint - begin, "it got WAL from beyond the switchpoint");
    assert!(matches!(follower.hear(SOON), Heard::CopyDone));
    let next = Some("2".to_owned());
    let row = follower.end().expect("what comes next");
    assert_eq!((&row[0], parse_lsn(row[1].as_deref().expect("an LSN"))), (&next, switchpoint));
    let fork = promoted.data_dir.join("pg_wal").join(segment_name(2, switchpoint));
    assert!(fs::read(fork).expect("the fork segment").starts_with(&wal));

    let row = follower.start(None, switchpoint, 1).expect("no error").expect("nothing is left");
    assert_eq!(row[0], next);
    let error = follower.start(None, switchpoint + 8, 1).expect_err("beyond its end");
    assert!(error.message.contains("is not in this server's history"), "{error}");
}

/// Its replay began in a segment that the primary had no more.
fn rewound_node_joined_from_the_relay(lost: &Server, promoted: &Server) {
    let log = log_of(lost);
    let redo = log.rsplit_once("redo starts at ").expect("a recovery").1;
    let redo = parse_lsn(redo.lines().next().expect("a line").trim());
    let kept = segments(&promoted.data_dir.join("pg_wal"));
    let oldest = kept.keys().map(|name| segment_start(name)).min().expect("WAL");
    assert!(redo < oldest, "the primary still had {redo}, from {oldest} on");
    assert!(!log.contains("has already been removed"), "{log}");
}

/// On the new timeline it begins with what the old one left: who asks for its start gets all of it.
fn fork_segment_is_whole(cluster: &Cluster, promoted: &Server, switchpoint: u64) {
    let begin = switchpoint / SEGMENT_BYTES * SEGMENT_BYTES;
    compare_with_primary(cluster, promoted);
    let end = flush_lsn(cluster, promoted).min(begin + SEGMENT_BYTES);
    let mut follower = Follower::connect(cluster, "new");
    assert_eq!(follower.start(None, begin, 2), Ok(None));
    let wal = follower.read(begin, end);
    let name = segment_name(2, switchpoint);
    let length = (end - begin) as usize;
    let theirs = fs::read(promoted.data_dir.join("pg_wal").join(&name)).expect("the fork segment");
    assert!(wal[..length] == theirs[..length], "the fork segment differs from {}'s", promoted.name);
    // Who was made anew has nothing of it.
    let with_fork = |standby: &Server| standby.data_dir.join("pg_wal").join(&name).exists();
    let followed: Vec<Server> = cluster.standbys().into_iter().filter(with_fork).collect();
    assert!(!followed.is_empty(), "nobody has followed");
    for standby in followed {
        let received = lsn_at(cluster, &standby, "pg_last_wal_receive_lsn()");
        compare_up_to(&cluster.wal_dir(), &standby.data_dir.join("pg_wal"), received.min(end));
    }
}

/// Behind its last record the promoted server's fork segment repeats older pages. A store that finds them in its
/// place ends where the server's WAL does.
fn stale_pages_are_no_wal(cluster: &mut Cluster, promoted: &Server, switchpoint: u64) {
    cluster.kill_bellwether();
    let end = quiet_end(cluster, promoted);
    let name = segment_name(2, end);
    assert_eq!(name, segment_name(2, switchpoint), "the fork segment is no longer the last one");
    let theirs = promoted.data_dir.join("pg_wal").join(&name);
    let tail = fs::read(&theirs).expect("the fork segment").split_off((end % SEGMENT_BYTES) as usize);
    assert!(tail.iter().any(|byte| *byte != 0), "there is nothing stale in it");
    put_segment(&theirs, &cluster.wal_dir().join(&name));
    assert_eq!(end_of_records(&cluster.wal_dir(), 2), end);

    // It is asked before it has heard of the server.
    cluster.signal(promoted, Signal::SIGSTOP);
    cluster.run_bellwether(None);
    let found =
        eventually("what the store ends with", SOON, || durable_lsn(cluster).ok_or("no answer".to_owned()));
    cluster.signal(promoted, Signal::SIGCONT);
    assert_eq!(found, end, "where the store found its end");
    cluster.await_steady();
    cluster.psql("INSERT INTO acknowledged VALUES (-2)").expect("insert");
    compare_with_primary(cluster, promoted);
}

/// Once nothing is written any more.
fn quiet_end(cluster: &Cluster, server: &Server) -> u64 {
    let mut last = 0;
    eventually("silence", SOON, || {
        let before = std::mem::replace(&mut last, flush_lsn(cluster, server));
        let insert = lsn_at(cluster, server, "pg_current_wal_insert_lsn()");
        if before == last && insert == last { Ok(last) } else { Err(format!("{before}, {last}, {insert}")) }
    })
}

fn put_segment(from: &Path, to: &Path) {
    // Into the same file: its owner and mode stay.
    fs::write(to, fs::read(from).expect("a segment")).expect("a segment");
}
