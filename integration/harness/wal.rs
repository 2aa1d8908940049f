//! WAL files compared, and walked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bellwether::pg::wal::{Expected, History, SegmentFile, Verifier, WalSegmentSize, history_file_name};
use bellwether::pg::{Lsn, TimelineId};

use super::cluster::{Cluster, Server};
use super::wait::eventually;

/// PostgreSQL's default; the demo's clusters use it.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;

/// The store has the segment of the server's last byte before LSN `end`, and the bytes of every segment that
/// both have are the same up to there; how many they are.
pub(crate) fn compare_up_to(store: &Path, server: &Path, end: u64) -> u64 {
    let kept = segments(store);
    let servers = segments(server);
    let holds_last = |name: &&String| segment_start(name) == (end - 1) / SEGMENT_BYTES * SEGMENT_BYTES;
    // The names sort by timeline first, and the server writes on its newest.
    let last = servers.keys().rev().find(holds_last);
    let last =
        last.unwrap_or_else(|| panic!("{} has no segment that ends at or behind {end}", server.display()));
    assert!(kept.contains_key(last), "{} holds WAL in {last}, which the store lacks", server.display());
    let history = history(store, timeline(last));
    let mut compared = 0;
    for (name, path) in &kept {
        let Some(theirs) = servers.get(name) else { continue };
        let start = segment_start(name);
        // What an old timeline has beyond its end may be in one place and not in another.
        let end = history.switchpoint(timeline(name)).map_or(end, |fork| end.min(fork.0));
        let length = end.saturating_sub(start).min(SEGMENT_BYTES) as usize;
        if length == 0 {
            continue;
        }
        assert_same(path, theirs, length);
        compared += length as u64;
    }
    compared
}

/// Every byte from LSN `from` up to `end` is in the store and on the server, on the timeline that it belongs to, and it
/// is the same in both.
pub(crate) fn assert_same_from(store: &Path, server: &Path, from: u64, end: u64) {
    let (kept, theirs) = (segments(store), segments(server));
    let newest = timeline(kept.keys().next_back().expect("a store with WAL"));
    let history = history(store, newest);
    for start in (from / SEGMENT_BYTES * SEGMENT_BYTES..end).step_by(SEGMENT_BYTES as usize) {
        let end = end.min(start + SEGMENT_BYTES);
        // The fork segment of a timeline begins with what its ancestor left, so the newest one has all.
        let mut timelines = history.ancestors().iter().filter(|entry| entry.switchpoint.0 >= end);
        let name = segment_name(timelines.next().map_or(newest, |entry| entry.timeline).0, start);
        let found = |place: &BTreeMap<String, PathBuf>, whose: &Path| {
            place.get(&name).cloned().unwrap_or_else(|| panic!("{} lacks {name}", whose.display()))
        };
        assert_same(&found(&kept, store), &found(&theirs, server), (end - start) as usize);
    }
}

fn assert_same(one: &Path, other: &Path, length: usize) {
    let (a, b) = (fs::read(one).expect("a segment"), fs::read(other).expect("a segment"));
    if a[..length] != b[..length] {
        let differs = a[..length].iter().zip(&b[..length]).position(|(a, b)| a != b);
        panic!("{} and {} differ at offset {differs:?}", one.display(), other.display());
    }
}

fn timeline(name: &str) -> TimelineId {
    SegmentFile::parse(name, WalSegmentSize::default()).expect("a segment").timeline
}

fn history(store: &Path, timeline: TimelineId) -> History {
    match fs::read(store.join(history_file_name(timeline))) {
        Ok(content) => History::parse(timeline, &content).expect("a history"),
        Err(_) => History::without_ancestors(timeline),
    }
}

/// Waits until the relay has the primary's end durable, then compares every segment that both still have.
pub(crate) fn compare_with_primary(cluster: &Cluster, primary: &Server) -> u64 {
    let end = flush_lsn(cluster, primary);
    eventually("the relay has it all", Duration::from_secs(120), || {
        let durable = durable_lsn(cluster).ok_or("no metric")?;
        if durable >= end { Ok(()) } else { Err(format!("{durable} of {end}")) }
    });
    compare_up_to(&cluster.wal_dir(), &primary.data_dir.join("pg_wal"), end)
}

pub(crate) fn flush_lsn(cluster: &Cluster, primary: &Server) -> u64 {
    lsn_at(cluster, primary, "pg_current_wal_flush_lsn()")
}

/// What `function` gives there.
pub(crate) fn lsn_at(cluster: &Cluster, server: &Server, function: &str) -> u64 {
    ask_lsn(cluster, server, function).expect(function)
}

fn ask_lsn(cluster: &Cluster, server: &Server, function: &str) -> Result<u64, String> {
    let conninfo = cluster.direct_conninfo(server, "postgres");
    let lsn = cluster.psql_at(&conninfo, &format!("SELECT {function} - '0/0'"))?;
    lsn.parse().map_err(|_| format!("{lsn:?} is no LSN"))
}

/// Waits until the standby, which need not answer yet, has replayed all up to `end`.
pub(crate) fn await_replayed(cluster: &Cluster, standby: &Server, end: u64) {
    eventually("replay", Duration::from_secs(240), || {
        let replayed = ask_lsn(cluster, standby, "pg_last_wal_replay_lsn()")?;
        if replayed >= end { Ok(()) } else { Err(format!("{}: {replayed} of {end}", standby.name)) }
    });
}

/// Waits until the standby has replayed what the primary has written by now.
pub(crate) fn caught_up(cluster: &Cluster, standby: &Server) {
    await_replayed(cluster, standby, flush_lsn(cluster, &cluster.primary()));
}

/// `0/16B3748`.
pub(crate) fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let half = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
    half(high) << 32 | half(low)
}

/// The relay's.
pub(crate) fn durable_lsn(cluster: &Cluster) -> Option<u64> {
    cluster.metric("bellwether_wal_durable_lsn_bytes").map(|lsn| lsn as u64)
}

/// By name.
pub(crate) fn segments(dir: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(dir).expect("a WAL directory").filter_map(Result::ok);
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    named.filter(|(name, _)| name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())).collect()
}

pub(crate) fn segment_name(timeline: u32, lsn: u64) -> String {
    let size = WalSegmentSize::default();
    SegmentFile { timeline: TimelineId(timeline), number: size.segment(Lsn(lsn)) }.name(size)
}

pub(crate) fn segment_start(name: &str) -> u64 {
    let size = WalSegmentSize::default();
    size.start(SegmentFile::parse(name, size).expect("a segment").number).0
}

/// Where the last whole record of `timeline` ends in `dir`, walked from its oldest segment there without a hole.
pub(crate) fn end_of_records(dir: &Path, timeline: u32) -> u64 {
    walk(dir, timeline).verified().expect("a whole record").0
}

/// As [`end_of_records`], but where a server finds the end behind a switch of segments: that of the segment.
pub(crate) fn end_of_segments(dir: &Path, timeline: u32) -> u64 {
    walk(dir, timeline).whole().expect("a whole record").0
}

fn walk(dir: &Path, timeline: u32) -> Verifier {
    let size = WalSegmentSize::default();
    let mut verifier: Option<Verifier> = None;
    for (name, path) in segments(dir) {
        if SegmentFile::parse(&name, size).expect("a segment").timeline.0 != timeline {
            continue;
        }
        let start = Lsn(segment_start(&name));
        let expected = Expected { segment_size: size, timeline: TimelineId(timeline), system: None };
        let verifier = verifier.get_or_insert_with(|| Verifier::new(start, expected));
        assert_eq!(verifier.position(), start, "a hole before {name}");
        if verifier.feed(&fs::read(path).expect("a segment")).is_err() {
            break;
        }
    }
    verifier.expect("a segment of the timeline")
}
