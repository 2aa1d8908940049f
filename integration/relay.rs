//! The relay: restarted under load ten times, and byte for byte the primary's WAL.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::ledger::{Ledger, audit, tokens};
use crate::harness::{Cluster, Options, Server, eventually, eventually_async};

/// PostgreSQL's default; the demo's clusters use it.
const SEGMENT_BYTES: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_restart() {
    let mut cluster = Cluster::start(Options::default());
    let direct = cluster.direct_conninfo(&cluster.primary(), "app");
    let superuser = cluster.direct_conninfo(&cluster.primary(), "postgres");
    let standbys = cluster.standbys();
    let ledger = Ledger::start(&cluster.conninfo(), 1, 4).await;
    for _ in 0..10 {
        let goal = ledger.acknowledged() + 200;
        eventually_async("writes", Duration::from_secs(60), || async {
            let now = ledger.acknowledged();
            if now > goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        })
        .await;
        // A kill at a segment's border: who runs ahead there holds a segment that the store lacks.
        cluster.psql_at(&superuser, "SELECT pg_switch_wal()").expect("a new segment");
        cluster.kill_bellwether();
        // With the relay away nothing moves: what a standby holds now, the relay must hold on its disk.
        followers_hold_only_what_the_store_holds(&cluster, &standbys);
        cluster.start_bellwether();
        cluster.await_steady();
    }
    let entries = ledger.finish().await;
    assert_eq!(audit(&entries, &tokens(&direct).await), Vec::<String>::new());
    cluster.await_steady();
    assert!(compare_with_primary(&cluster, &cluster.primary()) > 0);
    for standby in standbys {
        assert!(cluster.pid(&standby).is_some(), "{} did not survive", standby.name);
    }
}

fn followers_hold_only_what_the_store_holds(cluster: &Cluster, standbys: &[Server]) {
    for standby in standbys {
        let received = all_received(cluster, standby);
        let compared = compare_up_to(&cluster.wal_dir(), standby, received);
        assert!(compared > 0, "nothing of {} was compared", standby.name);
    }
}

/// The end of what a standby holds, once it has taken from its broken connection what was still on the way.
fn all_received(cluster: &Cluster, standby: &Server) -> u64 {
    let conninfo = cluster.direct_conninfo(standby, "postgres");
    eventually("the end of the stream", Duration::from_secs(30), || {
        let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let streams = cluster.psql_at(&conninfo, streams)?;
        if streams == "0" { Ok(()) } else { Err(format!("{} streams", standby.name)) }
    });
    let end = cluster.psql_at(&conninfo, "SELECT pg_last_wal_receive_lsn() - '0/0'").expect("receive LSN");
    end.parse().expect("an LSN")
}

/// The store has the segment of the server's last byte before LSN `end`, and the bytes of every segment that
/// both have are the same up to there; how many they are.
fn compare_up_to(store: &Path, server: &Server, end: u64) -> u64 {
    let kept = segments(store);
    let servers = segments(&server.data_dir.join("pg_wal"));
    let holds_last = |name: &&String| segment_start(name) == (end - 1) / SEGMENT_BYTES * SEGMENT_BYTES;
    // The names sort by timeline first, and the server writes on its newest.
    let last = servers.keys().rev().find(holds_last);
    let last = last.unwrap_or_else(|| panic!("{} has no segment that ends at or behind {end}", server.name));
    assert!(kept.contains_key(last), "{} holds WAL in {last}, which the store lacks", server.name);
    let mut compared = 0;
    for (name, path) in &kept {
        let Some(theirs) = servers.get(name) else { continue };
        let start = segment_start(name);
        let length = end.saturating_sub(start).min(SEGMENT_BYTES) as usize;
        if length == 0 {
            continue;
        }
        let (a, b) = (fs::read(path).expect("store"), fs::read(theirs).expect("pg_wal"));
        let differs = a[..length].iter().zip(&b[..length]).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{} and {} differ at this offset", path.display(), theirs.display());
        compared += length as u64;
    }
    compared
}

fn segments(dir: &Path) -> BTreeMap<String, std::path::PathBuf> {
    let entries = fs::read_dir(dir).expect("a WAL directory").filter_map(Result::ok);
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    named.filter(|(name, _)| name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())).collect()
}

/// `TTTTTTTTHHHHHHHHLLLLLLLL`: timeline, high half, segment within it.
fn segment_start(name: &str) -> u64 {
    let part = |range| u64::from_str_radix(&name[range], 16).expect("hexadecimal");
    (part(8..16) << 32) | (part(16..24) * SEGMENT_BYTES)
}

/// Two gigabytes with a timeline switch in the middle.
#[test]
fn bytes() {
    let mut cluster = Cluster::start(Options::default());
    let first = cluster.primary();
    keep_all_wal(&cluster);
    write_gigabyte(&cluster);
    let mut compared = compare_with_primary(&cluster, &first);

    cluster.signal(&first, Signal::SIGKILL);
    eventually("another primary", Duration::from_secs(60), || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != first.name.as_str();
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    cluster.await_steady();
    assert_eq!(waldump_reads_all(&cluster), 2, "timelines");
    write_gigabyte(&cluster);
    let second = cluster.primary();
    compared += compare_with_primary(&cluster, &second);
    println!("compared {} MiB of segments with the primaries'", compared >> 20);
    assert!(compared >= 2 << 30, "only {compared} bytes were compared");
    waldump_reads_all(&cluster);
}

fn keep_all_wal(cluster: &Cluster) {
    for server in cluster.servers() {
        let conninfo = cluster.direct_conninfo(&server, "postgres");
        cluster.psql_at(&conninfo, "ALTER SYSTEM SET wal_keep_size = '4GB'").expect("wal_keep_size");
        cluster.psql_at(&conninfo, "SELECT pg_reload_conf()").expect("reload");
    }
}

fn write_gigabyte(cluster: &Cluster) {
    let message = "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 8192))) FROM generate_series(1, 1050 * 4) i";
    let conninfo = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&conninfo, message).expect("a gigabyte of WAL");
}

/// Waits until the relay has the primary's end durable, then compares every segment that both still have.
pub(crate) fn compare_with_primary(cluster: &Cluster, primary: &Server) -> u64 {
    let conninfo = cluster.direct_conninfo(primary, "postgres");
    let end = cluster.psql_at(&conninfo, "SELECT pg_current_wal_flush_lsn() - '0/0'").expect("flush LSN");
    let end: u64 = end.parse().expect("an LSN");
    eventually("the relay has it all", Duration::from_secs(120), || {
        let durable = cluster.metric("bellwether_wal_durable_lsn_bytes").ok_or("no metric")?;
        if durable as u64 >= end { Ok(()) } else { Err(format!("{durable} of {end}")) }
    });
    compare_up_to(&cluster.wal_dir(), primary, end)
}

/// pg_waldump reads each timeline from its first kept segment to its end, without a hole; how many there are.
fn waldump_reads_all(cluster: &Cluster) -> usize {
    let store = cluster.wal_dir();
    let names: Vec<String> = segments(&store).into_keys().collect();
    let timelines: BTreeSet<&str> = names.iter().map(|name| &name[..8]).collect();
    for timeline in &timelines {
        let of: Vec<&String> = names.iter().filter(|name| name.starts_with(*timeline)).collect();
        let (Some(first), Some(last)) = (of.first(), of.last()) else { continue };
        let span = (segment_start(last) - segment_start(first)) / SEGMENT_BYTES + 1;
        assert_eq!(span, of.len() as u64, "a hole in timeline {timeline}");
        let number = u32::from_str_radix(timeline, 16).expect("hexadecimal");
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
    timelines.len()
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
