//! The relay: what it stores, and what its followers store, is byte for byte the primary's WAL.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::wal::{
    SEGMENT_BYTES, assert_same_from, await_replayed, durable_lsn, flush_lsn, parse_lsn, segment_start,
    segments,
};
use crate::harness::{Cluster, Options, Server, distribution_bin, eventually, restart};

const LIMIT: Duration = Duration::from_secs(240);

/// What one of the writer's statements writes.
const STATEMENT_BYTES: u64 = 16 << 20;

/// Behind a refusal.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Kept by every server and by the store: more than is written between two comparisons.
const KEPT: &str = "2GB";

/// What happens to the cluster while WAL is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    RelayKilled,
    RelayInterrupted,
    /// Each of them, one after the other, by a crash: Bellwether starts them again.
    FollowersRestarted,
    /// As by a crash; an operator has paused the control plane meanwhile.
    PrimaryRestarted,
    /// Three ways to another timeline. Of this one the postmaster dies, and its processes see that.
    PrimaryKilled,
    /// An operator asks for another one.
    PrimaryReplaced,
    /// Nobody is left to see anything.
    PrimaryLost,
}

use Disturbance::{
    FollowersRestarted, PrimaryKilled, PrimaryLost, PrimaryReplaced, PrimaryRestarted, RelayInterrupted,
    RelayKilled,
};

/// One gigabyte to five followers.
#[test]
fn bytes() {
    through_everything(1 << 30, 1);
}

#[test]
#[ignore = "20 GB: make soak"]
fn bytes_20_gb() {
    through_everything(20 << 30, 3);
}

/// Everything is restarted in turn and the timeline switched three times, so often, while so many bytes are written.
/// Behind each disturbance the store and all servers are equal up to where they are, and nothing of what was
/// acknowledged is missing anywhere.
fn through_everything(bytes: u64, times: u32) {
    let disturbances = [
        RelayKilled,
        PrimaryKilled,
        FollowersRestarted,
        PrimaryReplaced,
        PrimaryRestarted,
        PrimaryLost,
        RelayInterrupted,
    ];
    // While it is paused, that is what the control plane says of a primary that is restarted.
    let expected_warnings = &["a person is needed"];
    let mut cluster = Cluster::start(Options { nodes: 6, expected_warnings, ..Options::default() });
    keep_all_wal(&cluster);
    cluster.psql("CREATE TABLE marks (n bigint NOT NULL)").expect("create");
    let rounds = disturbances.repeat(times as usize);
    let (mut from, mut acknowledged) = (flush_lsn(&cluster, &cluster.primary()), BTreeSet::new());
    let begin = from;
    for (number, disturbance) in rounds.iter().enumerate() {
        let first = number as u64 * bytes;
        let writer = Writer::start(&cluster, first, bytes / rounds.len() as u64);
        writer.await_half();
        let deposed = disturb(&mut cluster, *disturbance);
        acknowledged.extend(writer.finish());
        cluster.await_steady();
        from = all_equal(&cluster, from, deposed.as_ref());
        assert_marked(&cluster, &acknowledged);
    }
    assert!(from - begin >= bytes, "only {} bytes were compared", from - begin);
    assert_eq!(waldump_reads_all(&cluster), 1 + 3 * times, "the newest timeline");
}

fn keep_all_wal(cluster: &Cluster) {
    for server in cluster.servers() {
        let conninfo = cluster.direct_conninfo(&server, "postgres");
        for sql in [&format!("ALTER SYSTEM SET wal_keep_size = '{KEPT}'"), "SELECT pg_reload_conf()"] {
            cluster.psql_at(&conninfo, sql).expect("settings");
        }
    }
    // It holds from the first restart on, before which there is less.
    cluster.rewrite(|config| config["wal"]["retain"] = serde_yaml::from_str("{size: 2GiB}").expect("YAML"));
}

/// Who was primary before, where another one is now.
fn disturb(cluster: &mut Cluster, disturbance: Disturbance) -> Option<Server> {
    let primary = cluster.primary();
    match disturbance {
        RelayKilled => {
            cluster.kill_bellwether();
            cluster.run_bellwether(None);
            None
        }
        RelayInterrupted => {
            cluster.interrupt_bellwether();
            cluster.run_bellwether(None);
            None
        }
        FollowersRestarted => {
            for standby in cluster.standbys() {
                crash(cluster, &standby);
            }
            None
        }
        PrimaryRestarted => {
            order(cluster, "pause");
            restart(cluster, &primary, "immediate");
            back_again(cluster, &primary);
            order(cluster, "resume");
            None
        }
        PrimaryKilled => {
            cluster.signal(&primary, Signal::SIGKILL);
            Some(replaced(cluster, primary))
        }
        PrimaryReplaced => {
            order(cluster, "failover");
            Some(replaced(cluster, primary))
        }
        PrimaryLost => {
            cluster.lose_machine(&primary);
            Some(replaced(cluster, primary))
        }
    }
}

fn crash(cluster: &Cluster, standby: &Server) {
    let before = cluster.pid(standby);
    cluster.lose_machine(standby);
    eventually("it runs again", LIMIT, || {
        cluster.psql_at(&cluster.direct_conninfo(standby, "postgres"), "SELECT 1")?;
        if cluster.pid(standby) == before { Err("it still runs".to_owned()) } else { Ok(()) }
    });
}

/// Before that is known, whoever resumes asks for another primary.
fn back_again(cluster: &Cluster, primary: &Server) {
    eventually("the primary is seen again", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        let mut nodes = state["nodes"].as_array().into_iter().flatten();
        let up = nodes.any(|node| node["name"] == primary.name.as_str() && node["state"] == "up");
        let open = state["directive"]["writes"]["state"] == "open";
        let streams = state["wal"]["upstream"]["state"] == "streaming";
        if up && open && streams { Ok(()) } else { Err(state.to_string()) }
    });
}

fn order(cluster: &Cluster, what: &str) {
    let (status, body) = cluster.http("POST", &format!("/api/v1/{what}")).expect("an answer");
    assert_eq!(status, 200, "{what}: {body}");
}

fn replaced(cluster: &Cluster, former: Server) -> Server {
    eventually("another primary", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != former.name.as_str();
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    former
}

/// Once everybody has the primary's end, which is returned. Who was deposed meanwhile may have been made anew: then it
/// has nothing from before the fork.
fn all_equal(cluster: &Cluster, from: u64, deposed: Option<&Server>) -> u64 {
    let primary = cluster.primary();
    let end = flush_lsn(cluster, &primary);
    let fork = deposed.map(|_| last_switchpoint(cluster));
    eventually("the relay has it all", LIMIT, || {
        let durable = durable_lsn(cluster).ok_or("no metric")?;
        if durable >= end { Ok(()) } else { Err(format!("{durable} of {end}")) }
    });
    for server in cluster.servers() {
        if server.name != primary.name {
            await_replayed(cluster, &server, end);
        }
        let anew = fork.filter(|_| deposed.is_some_and(|deposed| deposed.name == server.name));
        let pg_wal = server.data_dir.join("pg_wal");
        assert_same_from(&cluster.wal_dir(), &pg_wal, anew.unwrap_or(from), end);
    }
    end
}

fn last_switchpoint(cluster: &Cluster) -> u64 {
    let history = cluster.api("/api/v1/history").expect("history");
    let last = history.as_array().and_then(|all| all.last()).expect("an election");
    parse_lsn(last["switchpoint"].as_str().expect("an LSN"))
}

/// On every server.
fn assert_marked(cluster: &Cluster, acknowledged: &BTreeSet<u64>) {
    for server in cluster.servers() {
        let conninfo = cluster.direct_conninfo(&server, "app");
        let found = cluster.psql_at(&conninfo, "SELECT DISTINCT n FROM marks").expect("the marks");
        let found: BTreeSet<u64> = found.lines().map(|line| line.parse().expect("a mark")).collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "{} lacks what was acknowledged: {lost:?}", server.name);
    }
}

/// Writes WAL through the endpoint, and goes on until enough is written, whatever happens.
struct Writer {
    thread: JoinHandle<Vec<u64>>,
    half: mpsc::Receiver<()>,
}

impl Writer {
    /// Its marks are numbered from `first` on.
    fn start(cluster: &Cluster, first: u64, bytes: u64) -> Writer {
        let conninfo = cluster.conninfo();
        let (told, half) = mpsc::channel();
        let thread = thread::spawn(move || {
            let psql = distribution_bin().join("psql");
            let mut acknowledged = Vec::new();
            for number in first.. {
                let written = acknowledged.len() as u64 * STATEMENT_BYTES;
                if written >= bytes / 2 {
                    // Nobody listens any more.
                    let _ = told.send(());
                }
                if written >= bytes {
                    break;
                }
                if write(&psql, &conninfo, number) {
                    acknowledged.push(number);
                } else {
                    thread::sleep(BACK_OFF);
                }
            }
            acknowledged
        });
        Writer { thread, half }
    }

    fn await_half(&self) {
        self.half.recv_timeout(LIMIT).expect("half is written");
    }

    /// The marks that were acknowledged.
    fn finish(self) -> Vec<u64> {
        self.thread.join().expect("the writer ends in order")
    }
}

/// Whether all of it was acknowledged.
fn write(psql: &Path, conninfo: &str, number: u64) -> bool {
    let filler = format!(
        "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 8192))) \
         FROM generate_series({number}, {number} + 63) i"
    );
    let mut psql = Command::new(psql);
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", &filler, "-c"]);
    psql.arg(format!("INSERT INTO marks VALUES ({number})")).args(["-d", conninfo]);
    psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    psql.status().expect("psql").success()
}

/// pg_waldump reads each timeline that is kept from its first segment to its end, without a hole. Returns the newest.
fn waldump_reads_all(cluster: &Cluster) -> u32 {
    let store = cluster.wal_dir();
    let names: Vec<String> = segments(&store).into_keys().collect();
    let timelines: BTreeSet<&str> = names.iter().map(|name| &name[..8]).collect();
    let mut newest = 0;
    for timeline in &timelines {
        let of: Vec<&String> = names.iter().filter(|name| name.starts_with(*timeline)).collect();
        let (Some(first), Some(last)) = (of.first(), of.last()) else { continue };
        let span = (segment_start(last) - segment_start(first)) / SEGMENT_BYTES + 1;
        assert_eq!(span, of.len() as u64, "a hole in timeline {timeline}");
        let number = u32::from_str_radix(timeline, 16).expect("hexadecimal");
        newest = newest.max(number);
        let start = segment_start(first);
        let output = cluster
            .program("pg_waldump")
            .args([
                "-q",
                "-t",
                &number.to_string(),
                "-s",
                &format!("{:X}/{:X}", start >> 32, start & 0xFFFF_FFFF),
            ])
            .args(["-e", &end_of_timeline(cluster, number), "-p"])
            .arg(&store)
            .output()
            .expect("pg_waldump");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaint.is_empty(), "timeline {number}: {complaint}");
    }
    newest
}

/// Where the next timeline forked; of the newest, the end of the last whole record that the relay holds.
fn end_of_timeline(cluster: &Cluster, timeline: u32) -> String {
    let history = cluster.api("/api/v1/history").expect("history");
    let next = history.as_array().expect("elections").iter().find(|e| e["timeline"] == timeline + 1);
    let end = match next {
        Some(election) => election["switchpoint"].clone(),
        None => cluster.api("/api/v1/cluster").expect("state")["wal"]["verified"].clone(),
    };
    end.as_str().expect("an LSN").to_owned()
}
