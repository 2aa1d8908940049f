//! The store on a real directory, without a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use prometheus::Registry;

use super::{
    Change, CheckedReader, Disk, Files, Metrics, Platter, Rewind, Room, Store, StoreConfig, StoreError,
    StreamId, Tail, Waiting,
};
use crate::pg::wal::build::{SYSTEM, WalBuilder};
use crate::pg::wal::{Defect, SegmentFile, SegmentNumber};
use crate::pg::{Lsn, TimelineId};
use crate::topology::Term;

const START: Lsn = Lsn(0x30_0000);

struct World {
    directory: tempfile::TempDir,
    wal: WalBuilder,
}

impl World {
    fn new() -> World {
        World {
            directory: tempfile::tempdir().expect("a temporary directory"),
            wal: WalBuilder::new(START, TimelineId(1)),
        }
    }

    fn open(&self) -> Result<Store, StoreError> {
        Self::open_on(Files::open(self.directory.path())?)
    }

    #[expect(clippy::disallowed_methods, reason = "as the plane does; it ends with the test")]
    fn open_on(files: Files) -> Result<Store, StoreError> {
        let config = StoreConfig { retain_bytes: 64 << 20, ring_bytes: 1 << 20 };
        let metrics = Metrics::new(&Registry::new()).expect("fresh registry");
        let store = Store::open(files, &config, &metrics)?;
        tokio::spawn(store.announce());
        Ok(store)
    }

    async fn begun(&self) -> Store {
        self.begun_on(Files::open(self.directory.path()).expect("nobody else has it")).await
    }

    async fn begun_on(&self, files: Files) -> Store {
        let store = Self::open_on(files).expect("opens");
        let adopt = Change::Adopt { system: SYSTEM, segment_size: self.wal.segment_size() };
        store.change(adopt).await.expect("adopted");
        store.change(Change::Begin { timeline: TimelineId(1), start: START }).await.expect("begun");
        store
    }

    /// Streams the builder's bytes from `from` in chunks and waits until the last one is durable.
    async fn stream(&self, store: &Store, from: Lsn, to: Lsn) {
        let bytes = self.bytes(from, to);
        let mut at = from;
        for chunk in bytes.chunks(77_777) {
            let end = at.advanced(chunk.len() as u64);
            let whole = self.wal.record_ends().take_while(|lsn| *lsn <= end).last();
            store
                .append(StreamId(1), at, Bytes::copy_from_slice(chunk), whole, Waiting::Commits)
                .await
                .expect("queued");
            at = end;
        }
        reached(store, to).await;
    }

    fn bytes(&self, from: Lsn, to: Lsn) -> &[u8] {
        let at = |lsn: Lsn| usize::try_from(lsn.bytes_since(START)).expect("small");
        &self.wal.bytes()[at(from)..at(to)]
    }

    fn segment_path(&self, timeline: u32, lsn: Lsn) -> std::path::PathBuf {
        let size = self.wal.segment_size();
        let segment = SegmentFile { timeline: TimelineId(timeline), number: size.segment(lsn) };
        self.directory.path().join(segment.name(size))
    }
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_ever_again() {
    let mut world = World::new();
    world.wal.record(1000);
    let first = world.wal.end();
    world.wal.record(1000);
    let platter = Platter::default();
    let store = world.begun_on(Files::on(Arc::new(platter.clone())).expect("an empty disk")).await;
    world.stream(&store, START, first).await;
    platter.fail_next_sync("000000010000000000000003");
    let more = Bytes::copy_from_slice(world.bytes(first, world.wal.end()));
    store.append(StreamId(1), first, more, None, Waiting::Commits).await.expect("queued");
    let mut failed = store.failed();
    let failed = failed.wait_for(Option::is_some).await.expect("the store lives").clone();
    assert!(matches!(failed.as_deref(), Some(StoreError::Io { operation: "sync", .. })), "{failed:?}");
    assert_eq!(store.tail().borrow().durable, first);
    let again = store.change(Change::Settle).await;
    assert!(matches!(again, Err(StoreError::Stopped)), "{again:?}");
}

#[tokio::test]
async fn a_full_disk_only_makes_everybody_wait() {
    let mut world = World::new();
    three_segments(&mut world);
    let end = world.wal.end();
    let platter = Platter::default();
    let store = world.begun_on(Files::on(Arc::new(platter.clone())).expect("an empty disk")).await;
    // Room for the first segment; the promise of a term and further segments have none.
    world.stream(&store, START, Lsn(START.0 + 1000)).await;
    platter.set_room(Some(10));
    let promise = {
        let store = store.clone();
        async move { store.change(Change::Promise(Term(7))).await }
    };
    let streaming = async { world.stream(&store, START, end).await };
    let refused = async {
        let full = || platter.refused();
        while !full() {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.report().borrow().promised, Term(0));
        platter.set_room(None);
    };
    let (promised, (), ()) = tokio::join!(promise, streaming, refused);
    promised.expect("promised when there is room");
    assert_eq!(store.report().borrow().promised, Term(7));
    assert!(store.failed().borrow().is_none());
    assert_eq!(read_all(&store, 1, START).await, world.wal.bytes());
}

/// There is room for three segments, of the six that are needed.
async fn begun_on_a_small_disk(world: &mut World) -> (Store, Platter) {
    for _ in 0..6 {
        world.wal.record(1_000_000);
    }
    let platter = Platter::default();
    let segment_bytes = world.wal.segment_size().bytes();
    platter.set_room(Some(3 * segment_bytes + segment_bytes / 2));
    let store = world.begun_on(Files::on(Arc::new(platter.clone())).expect("an empty disk")).await;
    (store, platter)
}

async fn found_full(store: &Store) {
    let mut report = store.report();
    report.wait_for(|report| report.room == Room::None).await.expect("the store lives");
}

#[tokio::test]
async fn what_is_needed_no_more_makes_room_while_others_wait_for_it() {
    let mut world = World::new();
    let (store, platter) = begun_on_a_small_disk(&mut world).await;
    store.retain(0);
    let needed = Arc::new(AtomicBool::new(true));
    let pinned = needed.clone();
    store.set_pins(Box::new(move |_| pinned.load(Ordering::Relaxed).then_some(START)));
    let streaming = world.stream(&store, START, world.wal.end());
    let gives_way = async {
        found_full(&store).await;
        needed.store(false, Ordering::Relaxed);
    };
    tokio::join!(streaming, gives_way);
    assert!(platter.refused());
    assert_eq!(store.report().borrow().room, Room::Enough);
    assert!(store.oldest(TimelineId(1)) > Some(START), "the slot's WAL has given way");
}

#[tokio::test]
async fn whoever_waits_for_room_goes_when_nobody_needs_it() {
    let mut world = World::new();
    let (store, _platter) = begun_on_a_small_disk(&mut world).await;
    tokio::select! {
        () = world.stream(&store, START, world.wal.end()) => panic!("there is room"),
        () = found_full(&store) => {}
    }
    let mut failed = store.failed();
    drop(store);
    // It closes with the writer, and nothing has failed.
    assert!(failed.changed().await.is_err(), "{:?}", *failed.borrow());
}

async fn reached(store: &Store, lsn: Lsn) {
    let mut report = store.report();
    report.wait_for(|report| report.tail.durable >= lsn).await.expect("the store lives");
}

/// The first half of a record is durable, too, and may be all that there ever is of it.
#[tokio::test]
async fn followers_are_served_whole_records() {
    let mut world = World::new();
    three_segments(&mut world);
    let store = world.begun().await;
    let whole: Vec<Lsn> = world.wal.record_ends().collect();
    let [.., before, last] = whole.as_slice() else { panic!("several records") };
    world.stream(&store, START, Lsn(last.0 - 8)).await;
    assert_eq!(store.tail().borrow().durable, *before);
    assert_eq!(read_all(&store, 1, START).await, world.bytes(START, *before));
    world.stream(&store, Lsn(last.0 - 8), *last).await;
    assert_eq!(store.tail().borrow().durable, *last);
}

async fn read_all(store: &Store, timeline: u32, from: Lsn) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let at = from.advanced(all.len() as u64);
        let bytes = store.read(TimelineId(timeline), at, 100_000).await.expect("kept");
        if bytes.is_empty() {
            return all;
        }
        all.extend_from_slice(&bytes);
    }
}

/// As a follower reads, and what it is told at the end.
async fn read_checked(store: &Store, timeline: u32, from: Lsn) -> (Vec<u8>, Option<StoreError>) {
    let mut files = CheckedReader::new(store.clone(), TimelineId(timeline));
    let mut all = Vec::new();
    loop {
        match files.read(from.advanced(all.len() as u64), 100_000).await {
            Ok(bytes) if bytes.is_empty() => return (all, None),
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (all, Some(error)),
        }
    }
}

fn three_segments(world: &mut World) {
    for len in [10, 20_000, 900_000, 5, 800_000, 77] {
        world.wal.record(len);
    }
}

#[tokio::test]
async fn what_was_durable_is_found_again() {
    let mut world = World::new();
    three_segments(&mut world);
    let end = world.wal.end();
    let store = world.begun().await;
    world.stream(&store, START, end).await;
    assert_eq!(read_all(&store, 1, START).await, world.wal.bytes());
    assert_eq!(
        store.recent(TimelineId(1), Lsn(end.0 - 8), 100).as_deref(),
        Some(world.bytes(Lsn(end.0 - 8), end))
    );
    drop(store);

    let store = world.open().expect("opens again");
    assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(1), durable: end });
    assert_eq!(store.system(), Some(SYSTEM));
    assert_eq!(read_all(&store, 1, START).await, world.wal.bytes());
    assert_eq!(store.oldest(TimelineId(1)), Some(START));
}

#[tokio::test]
async fn a_torn_tail_is_streamed_again_and_a_corrupt_middle_is_not() {
    let mut world = World::new();
    three_segments(&mut world);
    let whole = world.wal.end();
    world.wal.record(30_000);
    let store = world.begun().await;
    world.stream(&store, START, Lsn(world.wal.end().0 - 10_000)).await;
    drop(store);

    let store = world.open().expect("a torn tail is normal");
    assert_eq!(store.tail().borrow().durable, whole);
    let again = world.wal.segment_size().segment_start(whole);
    world.stream(&store, again, world.wal.end()).await;
    assert_eq!(read_all(&store, 1, START).await, world.wal.bytes());
    drop(store);

    // In a record that lies wholly in an earlier segment.
    let path = world.segment_path(1, START);
    let mut content = std::fs::read(&path).expect("readable");
    content[500_000] ^= 1;
    std::fs::write(&path, content).expect("writable");
    assert!(matches!(world.open(), Err(StoreError::Corrupt { .. })));
}

/// It was acknowledged to its end, so it may not be there to be asked for again.
#[tokio::test]
async fn a_switched_segment_is_whole_after_a_restart_if_its_filler_has_come() {
    let mut world = World::new();
    world.wal.record(1000);
    world.wal.switch();
    let (switch, end) = (world.wal.record_ends().last().expect("it was written"), world.wal.end());
    let store = world.begun().await;
    world.stream(&store, START, switch).await;
    drop(store);
    // A reused segment has old WAL there.
    let path = world.segment_path(1, START);
    let mut content = std::fs::read(&path).expect("readable");
    *content.last_mut().expect("not empty") = 1;
    std::fs::write(&path, content).expect("writable");
    let store = world.open().expect("opens again");
    assert_eq!(store.tail().borrow().durable, switch);

    world.stream(&store, START, end).await;
    drop(store);
    let store = world.open().expect("opens again");
    assert_eq!(store.tail().borrow().durable, end);
    drop(store);

    // Half a record behind it changes nothing.
    world.wal.record(50_000);
    let store = world.open().expect("opens again");
    world.stream(&store, end, end.advanced(20_000)).await;
    drop(store);
    let store = world.open().expect("opens again");
    assert_eq!(store.tail().borrow().durable, end);
}

#[tokio::test]
async fn what_is_damaged_is_served_to_nobody_and_what_is_before_it_to_everybody() {
    let mut world = World::new();
    three_segments(&mut world);
    let end = world.wal.end();
    let store = world.begun().await;
    world.stream(&store, START, end).await;
    for from in [START, START.advanced(5), START.advanced(500_000), Lsn(end.0 - 8)] {
        let (bytes, error) = read_checked(&store, 1, from).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(bytes, world.bytes(from, end), "from {from}");
    }

    // In the third record, which reaches from the first segment into the second.
    let damaged = world.segment_path(1, START);
    let good = std::fs::read(&damaged).expect("readable");
    let spoil = |at: usize| {
        let mut content = good.clone();
        content[at] ^= 1;
        std::fs::write(&damaged, content).expect("writable");
    };
    let third = world.wal.record_ends().nth(1).expect("three records");
    let name = "000000010000000000000003";
    let check = |from: Lsn, served: Lsn, defect: fn(&Defect) -> bool| {
        let (store, world) = (store.clone(), &world);
        async move {
            let (bytes, error) = read_checked(&store, 1, from).await;
            assert_eq!(bytes, world.bytes(from, served.max(from)));
            let Some(StoreError::Corrupt { segment, source }) = error else { panic!("{error:?}") };
            assert!(segment == name && defect(&source.defect), "{segment}: {source}");
        }
    };
    let in_page_header = 40 * 8192 + 9;
    spoil(in_page_header);
    check(START, START.advanced(300_000), |defect| matches!(defect, Defect::Address { .. })).await;
    check(START.advanced(600_000), Lsn(0), |defect| matches!(defect, Defect::Address { .. })).await;
    let in_record_header = usize::try_from(third.bytes_since(START)).expect("small") + 9;
    spoil(in_record_header);
    check(START, third, |defect| matches!(defect, Defect::Previous { .. })).await;
    std::fs::write(&damaged, &good[..300_000]).expect("writable");
    check(START, START.advanced(300_000), |defect| *defect == Defect::EndOfFile).await;
    // Another cluster's, and one of another timeline.
    spoil(24);
    check(START, START, |defect| matches!(defect, Defect::System { .. })).await;
    spoil(4);
    check(START, START, |defect| matches!(defect, Defect::Timeline { .. })).await;
    assert_eq!(store.damaged().iter().map(|(segment, _)| segment.as_str()).collect::<Vec<_>>(), [name]);
    // Who does not need it never notices.
    let second = START.advanced(world.wal.segment_size().bytes());
    let (bytes, error) = read_checked(&store, 1, second).await;
    assert!(error.is_none() && bytes == world.bytes(second, end), "{error:?}");
    assert_eq!(store.damaged().len(), 1);
    std::fs::write(&damaged, &good).expect("writable");
    assert!(read_checked(&store, 1, START).await.1.is_none());
    assert_eq!(store.damaged(), [], "a good copy was put there");
}

/// The record ends in the next segment: all but its end was sent when the checksum turns out to be wrong.
#[tokio::test]
async fn a_damaged_record_never_leaves_whole() {
    let mut world = World::new();
    three_segments(&mut world);
    let end = world.wal.end();
    let store = world.begun().await;
    world.stream(&store, START, end).await;
    let path = world.segment_path(1, START);
    let mut content = std::fs::read(&path).expect("readable");
    content[500_000] ^= 1;
    std::fs::write(&path, content).expect("writable");
    let [_, start, record_end, ..] = world.wal.record_ends().collect::<Vec<_>>()[..] else {
        panic!("records")
    };
    let (bytes, error) = read_checked(&store, 1, START).await;
    let sent = START.advanced(bytes.len() as u64);
    assert!(start < sent && sent < record_end, "{sent}");
    let Some(StoreError::Corrupt { source, .. }) = error else { panic!("{error:?}") };
    assert_eq!(source.lsn, start);
    assert!(matches!(source.defect, Defect::Checksum { .. }), "{source}");
}

#[tokio::test]
async fn gaps_and_other_bytes_are_refused_and_nothing_is_overwritten() {
    let mut world = World::new();
    three_segments(&mut world);
    let end = world.wal.end();
    let store = world.begun().await;
    world.stream(&store, START, end).await;

    let mut report = store.report();
    let gap = Bytes::from_static(b"x");
    store.append(StreamId(2), end.advanced(1), gap, None, Waiting::Commits).await.expect("queued");
    let refused = report.wait_for(|r| r.refused.as_ref().is_some_and(|(s, _)| *s == StreamId(2))).await;
    assert!(refused.is_ok());
    drop(refused);
    let mut other = world.bytes(START, START.advanced(9000)).to_vec();
    other[8500] ^= 1;
    store.append(StreamId(3), START, Bytes::from(other), None, Waiting::Commits).await.expect("queued");
    let report = report.wait_for(|r| r.refused.as_ref().is_some_and(|(s, _)| *s == StreamId(3))).await;
    let error = report.expect("the store lives").refused.clone().map(|(_, error)| error);
    let at = START.advanced(8500);
    assert!(matches!(error.as_deref(), Some(StoreError::Diverged { lsn, .. }) if *lsn == at), "{error:?}");
    assert_eq!(read_all(&store, 1, START).await, world.wal.bytes());
}

/// Of each stream by itself: that an earlier one sent the same says nothing of the next.
#[tokio::test]
async fn a_stream_is_agreed_with_as_far_as_it_was_compared() {
    let mut world = World::new();
    three_segments(&mut world);
    let end = world.wal.end();
    let store = world.begun().await;
    world.stream(&store, START, end).await;
    let mut report = store.report();
    // Behind it in the queue: everything before is reported.
    store.change(Change::Settle).await.expect("settled");
    assert_eq!(report.borrow_and_update().agreed_with(StreamId(1)), Some(end));
    assert_eq!(report.borrow_and_update().agreed_with(StreamId(2)), None);

    let middle = START.advanced(9000);
    let again = |from, to| Bytes::copy_from_slice(world.bytes(from, to));
    store.append(StreamId(2), START, again(START, middle), None, Waiting::Commits).await.expect("queued");
    let agreed = report.wait_for(|r| r.agreed_with(StreamId(2)) == Some(middle)).await;
    assert!(agreed.is_ok(), "though nothing was written");
    drop(agreed);
    let mut other = again(middle, end).to_vec();
    other[100] ^= 1;
    store.append(StreamId(2), middle, Bytes::from(other), None, Waiting::Commits).await.expect("queued");
    store
        .append(StreamId(2), end, Bytes::from_static(b"beyond"), None, Waiting::Commits)
        .await
        .expect("queued");
    store.change(Change::Settle).await.expect("settled");
    assert_eq!(report.borrow_and_update().agreed_with(StreamId(2)), Some(middle));
    assert_eq!(store.tail().borrow().durable, end);
}

#[tokio::test]
async fn the_fork_segment_is_there_on_both_timelines() {
    let mut world = World::new();
    three_segments(&mut world);
    let fork = world.wal.end();
    let old = world.wal.clone();
    world.wal.record(9_000);
    let beyond = world.wal.end();
    let store = world.begun().await;
    // Half of a record that the promoted server never had.
    world.stream(&store, START, Lsn(beyond.0 - 100)).await;

    world.wal = old.clone();
    world.wal.fork(TimelineId(3));
    world.wal.record(50_000);
    let history = Bytes::from(format!("1\t{fork}\tno recovery target specified\n"));
    let keep = Change::KeepHistory { timeline: TimelineId(3), content: history.clone() };
    store.change(keep).await.expect("kept");
    store.change(Change::Follow { timeline: TimelineId(3), switchpoint: fork }).await.expect("follows");
    assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(3), durable: fork });
    assert_eq!(store.report().borrow().agreed_with(StreamId(1)), None, "on the new timeline");
    let segment = world.wal.segment_size().segment_start(fork);
    world.stream(&store, segment, world.wal.end()).await;

    let check = |store: Store| {
        let (old, new) = (old.bytes().to_vec(), world.bytes(segment, world.wal.end()).to_vec());
        let history = history.clone();
        async move {
            assert_eq!(read_all(&store, 1, START).await, old, "the old timeline ends at the switchpoint");
            assert_eq!(read_all(&store, 3, segment).await, new);
            for (timeline, from, expected) in [(1, START, &old), (3, segment, &new)] {
                let (bytes, error) = read_checked(&store, timeline, from).await;
                assert!(error.is_none() && bytes == *expected, "timeline {timeline}: {error:?}");
            }
            assert_eq!(store.history_file(TimelineId(3)), Some(history));
            assert_eq!(store.history().next(TimelineId(1)), Some((TimelineId(3), fork)));
            assert!(matches!(store.read(TimelineId(2), segment, 1).await, Err(StoreError::Removed { .. })));
        }
    };
    check(store.clone()).await;
    drop(store);
    let store = world.open().expect("opens again");
    assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(3), durable: world.wal.end() });
    check(store.clone()).await;
    drop(store);
    // A missing history file is asked for again.
    std::fs::remove_file(world.directory.path().join("00000003.history")).expect("it exists");
    let store = world.open().expect("opens without it");
    assert_eq!(store.history_file(TimelineId(3)), None);
    let keep = Change::KeepHistory { timeline: TimelineId(3), content: history.clone() };
    store.change(keep).await.expect("kept");
    check(store).await;
}

#[tokio::test]
async fn old_segments_become_new_ones_unless_a_slot_needs_them() {
    let mut world = World::new();
    for _ in 0..160 {
        world.wal.record(1_000_000);
    }
    let end = world.wal.end();
    let store = world.begun().await;
    store.set_pins(Box::new(|_| Some(Lsn(0x75_0000))));
    world.stream(&store, START, end).await;
    assert_eq!(store.oldest(TimelineId(1)), Some(Lsn(0x70_0000)));
    let gone = store.read(TimelineId(1), START, 10).await;
    assert!(matches!(gone, Err(StoreError::Removed { segment }) if segment == "000000010000000000000003"));
    drop(store);

    let store = world.open().expect("opens again");
    assert_eq!(store.tail().borrow().durable, end);
    let more = world.wal.segment_size();
    for _ in 0..8 {
        world.wal.record(1_000_000);
    }
    let from = more.segment_start(end);
    world.stream(&store, from, world.wal.end()).await;
    let oldest = store.oldest(TimelineId(1)).expect("not empty");
    assert!(world.wal.end().bytes_since(oldest) <= 66 << 20, "without the slot only the size counts");
    drop(store);
    let store = world.open().expect("recycled segments hold old pages");
    assert_eq!(store.tail().borrow().durable, world.wal.end());
    assert_eq!(read_all(&store, 1, oldest).await, world.bytes(oldest, world.wal.end()));
}

/// A backup that has said from where on it needs WAL, when retention had just asked.
#[tokio::test]
async fn what_is_needed_at_the_last_moment_is_not_removed() {
    let mut world = World::new();
    for _ in 0..5 {
        world.wal.record(1_000_000);
    }
    let store = world.begun().await;
    store.retain(1 << 20);
    let asked = AtomicBool::new(false);
    store.set_pins(Box::new(move |kept| {
        let late = kept.segments.len() < 2 || !asked.swap(true, Ordering::Relaxed);
        (!late).then_some(START)
    }));
    world.stream(&store, START, world.wal.end()).await;
    assert_eq!(store.oldest(TimelineId(1)), Some(START));
    assert_eq!(read_all(&store, 1, START).await, world.wal.bytes());
}

#[tokio::test]
async fn an_empty_store_has_no_end() {
    let world = World::new();
    let store = world.open().expect("opens");
    assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(0), durable: Lsn::INVALID });
    drop(store);
    let store = world.begun().await;
    drop(store);
    let store = world.open().expect("opens");
    assert_eq!(store.tail().borrow().timeline, TimelineId(1));
    assert!(!store.tail().borrow().durable.is_valid(), "begun, but nothing came");
    let size = world.wal.segment_size();
    let stray = SegmentFile { timeline: TimelineId(1), number: SegmentNumber(3) }.name(size);
    drop(store);
    std::fs::remove_file(world.directory.path().join("control.json")).expect("it exists");
    std::fs::write(world.directory.path().join(stray), b"").expect("writable");
    assert!(matches!(world.open(), Err(StoreError::NoControl { .. })));
}

#[tokio::test]
async fn a_log_goes_back_to_where_it_left_the_history_that_goes_on() {
    let mut world = World::new();
    three_segments(&mut world);
    let earlier = world.wal.end();
    world.wal.record(1_500_000);
    let fork = world.wal.end();
    let trunk = world.wal.clone();
    let store = world.begun().await;
    world.stream(&store, START, fork).await;
    let history = |fork: Lsn| Bytes::from(format!("1\t{fork}\tno recovery target specified\n"));
    let follow = async |store: &Store, fork: Lsn, world: &World| {
        let timeline = TimelineId(2);
        store.change(Change::KeepHistory { timeline, content: history(fork) }).await.expect("kept");
        store.change(Change::Follow { timeline, switchpoint: fork }).await.expect("follows");
        world.stream(store, world.wal.segment_size().segment_start(fork), world.wal.end()).await;
    };
    world.wal.fork(TimelineId(2));
    world.wal.record(2_000_000);
    follow(&store, fork, &world).await;
    let back = |timeline, to| Change::Rewind(Rewind { timeline: TimelineId(timeline), to });
    for (what, refused) in [("no ancestor", back(3, fork)), ("beyond its end", back(1, world.wal.end()))] {
        let error = store.change(refused).await.expect_err(what);
        assert!(error.concerns_stream_only(), "{what}: {error}");
    }
    assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(2), durable: world.wal.end() });

    // The history that goes on has less of the first timeline, and its second one has the same number.
    store.change(back(1, earlier)).await.expect("goes back");
    let names: Vec<_> = std::fs::read_dir(world.directory.path()).expect("there").flatten().collect();
    let of_branch = |name: &str| name.starts_with("00000002");
    assert!(!names.iter().any(|entry| entry.file_name().to_str().is_some_and(of_branch)), "{names:?}");
    let lsn = |lsn: Lsn| lsn.to_string().replace('/', "-");
    let aside = format!("discarded-timeline-2-from-{}-to-{}", lsn(earlier), lsn(world.wal.end()));
    check_aside(&world, &aside, earlier);
    let check = async |store: Store| {
        assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(1), durable: earlier });
        let kept = usize::try_from(earlier.bytes_since(START)).expect("small");
        assert_eq!(read_all(&store, 1, START).await, trunk.bytes()[..kept]);
        assert_eq!(store.history_file(TimelineId(2)), None);
    };
    check(store).await;
    check(world.open().expect("opens again")).await;
}

/// All that the log had behind `from`, and the history.
fn check_aside(world: &World, directory: &str, from: Lsn) {
    let directory = world.directory.path().join(directory);
    let mut names: Vec<String> = std::fs::read_dir(&directory)
        .expect("kept")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let (size, mut at) = (world.wal.segment_size(), from);
    for name in names.iter().filter(|name| name.len() == 24) {
        let content = std::fs::read(directory.join(name)).expect("a file");
        let segment = SegmentFile::parse(name, size).expect("a segment");
        let end = size.end(segment.number).min(world.wal.end());
        let here = |lsn: Lsn| usize::try_from(lsn.bytes_since(size.start(segment.number))).expect("small");
        assert_eq!(content[here(at)..here(end)], *world.bytes(at, end), "{name}");
        at = end;
    }
    assert_eq!(at, world.wal.end(), "{names:?}");
    assert!(names.contains(&"00000002.history".to_owned()), "{names:?}");
}

/// A log of two timelines, on a disk that has room for the control file and for no segment any more.
async fn gone_astray(world: &mut World) -> (Store, Platter, Lsn) {
    world.wal.record(1_000_000);
    let fork = world.wal.end();
    let platter = Platter::default();
    let store = world.begun_on(Files::on(Arc::new(platter.clone())).expect("an empty disk")).await;
    world.stream(&store, START, fork).await;
    let content = Bytes::from(format!("1\t{fork}\tno recovery target specified\n"));
    let timeline = TimelineId(2);
    store.change(Change::KeepHistory { timeline, content }).await.expect("kept");
    store.change(Change::Follow { timeline, switchpoint: fork }).await.expect("follows");
    world.wal.fork(timeline);
    world.wal.record(1_500_000);
    world.stream(&store, world.wal.segment_size().segment_start(fork), world.wal.end()).await;
    let spares = || platter.names().expect("power").iter().filter(|name| name.starts_with("spare.")).count();
    while spares() < 2 {
        tokio::task::yield_now().await;
    }
    platter.set_room(Some(10_000));
    (store, platter, fork)
}

#[tokio::test]
async fn a_log_that_is_going_back_opens_on_a_full_disk() {
    let mut world = World::new();
    let (store, platter, fork) = gone_astray(&mut world).await;
    let back = Change::Rewind(Rewind { timeline: TimelineId(1), to: fork });
    tokio::select! {
        done = store.change(back) => panic!("there is no room: {done:?}"),
        () = found_full(&store) => {}
    }
    let mut failed = store.failed();
    drop(store);
    assert!(failed.changed().await.is_err(), "{:?}", *failed.borrow());
    assert!(platter.refused());
    let store =
        World::open_on(Files::on(Arc::new(platter)).expect("nobody has it")).expect("spares are room");
    assert_eq!(*store.tail().borrow(), Tail { timeline: TimelineId(1), durable: fork });
}

#[tokio::test]
async fn of_what_logs_left_behind_the_last_is_kept() {
    let mut world = World::new();
    world.wal.record(1000);
    let fork = world.wal.end();
    let store = world.begun().await;
    world.stream(&store, START, fork).await;
    for number in 2..=7_u32 {
        let timeline = TimelineId(number);
        let content = Bytes::from(format!("1\t{fork}\tno recovery target specified\n"));
        store.change(Change::KeepHistory { timeline, content }).await.expect("kept");
        store.change(Change::Follow { timeline, switchpoint: fork }).await.expect("follows");
        let mut branch = World { directory: tempfile::tempdir().expect("one"), wal: world.wal.clone() };
        branch.wal.fork(timeline);
        branch.wal.record(1000);
        branch.stream(&store, branch.wal.segment_size().segment_start(fork), branch.wal.end()).await;
        let back = Change::Rewind(Rewind { timeline: TimelineId(1), to: fork });
        store.change(back).await.expect("goes back");
    }
    let entries = std::fs::read_dir(world.directory.path()).expect("there").flatten();
    let mut kept: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    kept.retain(|name| name.starts_with("discarded-"));
    kept.sort();
    let timelines: Vec<&str> = kept.iter().filter_map(|name| name.split('-').nth(2)).collect();
    assert_eq!(timelines, ["4", "5", "6", "7"]);
}
