//! From a real store into a real directory, without a server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use super::layout::wal_object;
use super::storage::{Created, Storage};
use super::{
    ArchiveConfig, BackupPlan, FetchError, Fetched, Hold, Metrics, Outputs, Server, Servers, Sources,
    StorageError, Wal, fetch, start,
};
use crate::pg::wal::build::{SYSTEM, WalBuilder};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::relay::store::{Change, Control, Files, Store, StoreConfig, StreamId, Waiting};
use crate::topology::{Directive, Durability, Floor, Term};

const START: Lsn = Lsn(0x30_0000);
const MIB: usize = 1 << 20;

fn storage(directory: &Path) -> Storage {
    let url = format!("file://{}", directory.display()).parse().expect("a URL");
    Storage::make(&url, 3).expect("opens")
}

#[test]
fn urls() {
    let check = |text: &str, understood: bool| {
        assert_eq!(text.parse::<super::ArchiveUrl>().is_ok(), understood, "{text}");
    };
    check("file:///var/lib/archive", true);
    check("s3://bucket", true);
    check("s3://bucket/a/prefix/", true);
    check("gs://bucket/prefix", true);
    check("az://container/prefix", true);
    for text in
        ["", "/var/lib/archive", "file://relative", "s3://", "s3:///prefix", "ftp://host/x", "s3://a/b//c"]
    {
        check(text, false);
    }
}

#[tokio::test]
async fn objects_are_final() {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = storage(&directory.path().join("made/on/demand"));
    let (one, other) = (Bytes::from(vec![1; MIB]), Bytes::from(vec![2; MIB]));
    assert_eq!(storage.get("wal_005/x.zst").await.expect("reads"), None);
    assert!(
        matches!(storage.create("wal_005/x.zst", one.clone()).await, Ok(Created::New(size)) if size < 1000)
    );
    assert!(matches!(storage.create("wal_005/x.zst", one.clone()).await, Ok(Created::Same)));
    let differs = storage.create("wal_005/x.zst", other.clone()).await;
    assert!(matches!(differs, Err(StorageError::Differs { .. })), "{differs:?}");
    assert_eq!(storage.get("wal_005/x.zst").await.expect("reads"), Some(one.clone()));
    storage.replace("wal_005/y.zst", one).await.expect("puts");
    storage.replace("wal_005/y.zst", other.clone()).await.expect("puts again");
    assert_eq!(storage.get("wal_005/y.zst").await.expect("reads"), Some(other));
    let found = storage.list("wal_005").await.expect("lists");
    let mut names: Vec<&str> = found.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["wal_005/x.zst", "wal_005/y.zst"]);
    storage.remove("wal_005/x.zst").await.expect("removes");
    storage.remove("wal_005/x.zst").await.expect("and again");
    assert_eq!(storage.get("wal_005/x.zst").await.expect("reads"), None);
}

#[tokio::test]
async fn a_damaged_object_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = storage(directory.path());
    let content: Vec<u8> = (0..MIB).map(|i| ((i * i) >> 7) as u8).collect();
    storage.create("x.zst", Bytes::from(content)).await.expect("puts");
    let path = directory.path().join("x.zst");
    let whole = std::fs::read(&path).expect("a file");
    for damaged in [whole[..whole.len() / 2].to_vec(), Vec::new(), b"no zstd at all".to_vec(), {
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        flipped
    }] {
        std::fs::write(&path, &damaged).expect("writes");
        let read = storage.get("x.zst").await;
        assert!(matches!(read, Err(StorageError::Corrupt { .. })), "{} bytes: {read:?}", damaged.len());
    }
}

struct World {
    store_dir: tempfile::TempDir,
    archive_dir: tempfile::TempDir,
    wal: WalBuilder,
}

impl World {
    fn new() -> World {
        let directory = || tempfile::tempdir().expect("a directory");
        let wal = WalBuilder::new(START, TimelineId(1));
        World { store_dir: directory(), archive_dir: directory(), wal }
    }

    #[expect(clippy::disallowed_methods, reason = "as the plane does; it ends with the test")]
    async fn store(&self) -> Store {
        let config = StoreConfig { retain_bytes: 64 << 20, ring_bytes: 1 << 20 };
        let files = Files::open(self.store_dir.path()).expect("nobody else has it");
        let metrics = crate::relay::metrics::Metrics::new(&Registry::new()).expect("fresh registry");
        let store = Store::open(files, &config, &metrics).expect("opens");
        tokio::spawn(store.announce());
        let adopt = Change::Adopt { system: SYSTEM, segment_size: self.wal.segment_size() };
        store.change(adopt).await.expect("adopted");
        store.change(Change::Begin { timeline: TimelineId(1), start: START }).await.expect("begun");
        store
    }

    async fn stream(&self, store: &Store, from: Lsn) {
        let at = usize::try_from(from.bytes_since(START)).expect("small");
        let (bytes, end) = (Bytes::copy_from_slice(&self.wal.bytes()[at..]), self.wal.end());
        store.append(StreamId(1), from, bytes, Some(end), Waiting::Commits).await.expect("queued");
        store.tail().wait_for(|tail| tail.durable >= end).await.expect("the store lives");
    }

    fn archive(&self, store: &Store) -> (Hold, Registry, tokio_util::sync::DropGuard) {
        let url = format!("file://{}", self.archive_dir.path().display()).parse().expect("a URL");
        let config = ArchiveConfig {
            url,
            level: 3,
            partial_interval: Duration::from_millis(50),
            backups: BackupPlan::default(),
        };
        let (hold, stop, registry) = (Hold::everything(), CancellationToken::new(), Registry::new());
        let metrics = Metrics::new(&registry).expect("fresh registry");
        let (_, directive) = tokio::sync::watch::channel(Arc::new(Directive::starting(Durability::Async)));
        let (status, _) = tokio::sync::watch::channel(None);
        let outputs = Outputs { hold: hold.clone(), status, metrics };
        let servers = Servers { instance: "test".to_owned(), nodes: Vec::new(), directive };
        let wal = Wal { store: store.clone(), shipped: store.tail() };
        start(config, wal, servers, outputs, stop.clone()).expect("starts");
        (hold, registry, stop.drop_guard())
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.archive_dir.path().join("wal_005")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    async fn content(&self, name: &str) -> Bytes {
        storage(self.archive_dir.path()).get(name).await.expect("reads").expect("is there")
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 30 s");
}

fn metric(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    // A counter with labels is not there before its first count.
    let metrics = families
        .iter()
        .filter(|family| family.name() == name)
        .flat_map(prometheus::proto::MetricFamily::get_metric);
    metrics.map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value()).sum()
}

#[tokio::test]
async fn a_log_with_a_fork_is_archived() {
    let mut world = World::new();
    for len in [10, 20_000, 900_000, 5, 800_000, 77] {
        world.wal.record(len);
    }
    let store = world.store().await;
    world.stream(&store, START).await;
    let (hold, registry, stop) = world.archive(&store);
    let begun = "000000010000000000000004.partial.zst";
    until("the begun segment", || world.names() == ["000000010000000000000003.zst", begun]).await;
    assert_eq!(world.content("wal_005/000000010000000000000003.zst").await, &world.wal.bytes()[..MIB]);
    let half = world.content(&format!("wal_005/{begun}")).await;
    let (written, padding) = half.split_at(world.wal.bytes().len() - MIB);
    assert_eq!(written, &world.wal.bytes()[MIB..]);
    assert!(half.len() == MIB && padding.iter().all(|byte| *byte == 0));
    until("the hold", || hold.from() == Lsn(0x40_0000)).await;

    let fork = world.wal.end();
    let content = Bytes::from(format!("1\t{fork}\tno recovery target specified\n"));
    store
        .change(Change::KeepHistory { timeline: TimelineId(2), content: content.clone() })
        .await
        .expect("kept");
    store.change(Change::Follow { timeline: TimelineId(2), switchpoint: fork }).await.expect("followed");
    world.wal.fork(TimelineId(2));
    for _ in 0..3 {
        world.wal.record(600_000);
    }
    world.wal.record(77);
    world.stream(&store, fork).await;
    let expected = [
        "000000010000000000000003.zst",
        begun,
        "00000002.history.zst",
        "000000020000000000000004.zst",
        "000000020000000000000005.zst",
        "000000020000000000000006.partial.zst",
    ];
    until("the next timeline", || world.names() == expected).await;
    assert_eq!(world.content("wal_005/00000002.history.zst").await, content);
    assert_eq!(world.content("wal_005/000000020000000000000004.zst").await, &world.wal.bytes()[MIB..2 * MIB]);
    until("the end", || metric(&registry, "bellwether_archive_lag_bytes") == 0.0).await;
    drop(stop);

    // Another instance, or the same one later, finds its place.
    let (_, registry, _stop) = world.archive(&store);
    until("the end again", || metric(&registry, "bellwether_archive_lsn_bytes") == world.wal.end().0 as f64)
        .await;
    assert_eq!(metric(&registry, "bellwether_archive_errors_total"), 0.0);
    assert_eq!(world.names(), expected);
}

/// A finished segment whose last record goes on in the next one cannot be read to its end before that record is whole.
#[tokio::test]
async fn a_segment_is_put_when_its_last_record_is_whole() {
    let mut world = World::new();
    world.wal.record(500_000);
    let whole = world.wal.end();
    world.wal.record(1_000_000);
    world.wal.record(77);
    let store = world.store().await;
    let half = Bytes::copy_from_slice(&world.wal.bytes()[..MIB + 100_000]);
    store.append(StreamId(1), START, half, Some(whole), Waiting::Commits).await.expect("queued");
    let (_, registry, _stop) = world.archive(&store);
    until("the begun segment", || world.names() == ["000000010000000000000003.partial.zst"]).await;
    world.stream(&store, START.advanced((MIB + 100_000) as u64)).await;
    let expected = ["000000010000000000000003.zst", "000000010000000000000004.partial.zst"];
    until("the whole one", || world.names() == expected).await;
    assert_eq!(metric(&registry, "bellwether_archive_errors_total"), 0.0);
}

/// The begun part that cannot be removed does not keep what follows, and is removed later.
#[tokio::test]
async fn a_begun_part_is_removed_when_it_can_be() {
    let mut world = World::new();
    world.wal.record(500_000);
    let store = world.store().await;
    world.stream(&store, START).await;
    let (_, registry, _stop) = world.archive(&store);
    let begun = "000000010000000000000003.partial.zst";
    until("the begun segment", || world.names() == [begun]).await;
    // A directory in its place cannot be removed as a file.
    let path = world.archive_dir.path().join("wal_005").join(begun);
    std::fs::remove_file(&path).expect("removes");
    std::fs::create_dir(&path).expect("makes");
    let from = world.wal.end();
    world.wal.record(2 * MIB);
    world.stream(&store, from).await;
    let rest = ["000000010000000000000003.zst", "000000010000000000000004.zst"];
    until("what follows", || rest.iter().all(|name| world.names().contains(&(*name).to_owned()))).await;
    until("the error", || metric(&registry, "bellwether_archive_errors_total") > 0.0).await;
    std::fs::remove_dir(&path).expect("removes");
    std::fs::write(&path, "begun").expect("writes");
    until("it is gone", || !path.exists()).await;
}

#[tokio::test]
async fn another_clusters_archive_is_left_alone() {
    let mut world = World::new();
    world.wal.record(2 * MIB);
    let mut foreign = world.wal.bytes()[..MIB].to_vec();
    foreign[24..32].copy_from_slice(&SystemIdentifier(7).0.to_le_bytes());
    let there = "wal_005/000000010000000000000001.zst";
    storage(world.archive_dir.path()).create(there, Bytes::from(foreign)).await.expect("puts");
    let store = world.store().await;
    world.stream(&store, START).await;
    let (hold, registry, _stop) = world.archive(&store);
    until("the error", || metric(&registry, "bellwether_archive_errors_total") > 0.0).await;
    assert_eq!(world.names(), ["000000010000000000000001.zst"]);
    assert_eq!(hold.from(), Lsn(1), "the store keeps everything");
}

#[tokio::test]
async fn an_unreachable_archive_is_tried_again() {
    let mut world = World::new();
    world.wal.record(2 * MIB);
    let store = world.store().await;
    world.stream(&store, START).await;
    let obstacle = world.archive_dir.path().join("wal_005");
    std::fs::write(&obstacle, "no directory").expect("writes");
    let (_, registry, _stop) = world.archive(&store);
    until("the error", || metric(&registry, "bellwether_archive_errors_total") > 0.0).await;
    std::fs::remove_file(&obstacle).expect("removes");
    until("the segments", || world.names().len() >= 2).await;
}

/// An archive with segments 3 and 4 of timeline 1, the half of 5, and what a server that recovers has.
struct Recovery {
    world: World,
    data_dir: tempfile::TempDir,
    sources: Sources,
}

const THIRD: &str = "000000010000000000000003";
const FOURTH: &str = "000000010000000000000004";
const FIFTH: &str = "000000010000000000000005";

impl Recovery {
    async fn new() -> Recovery {
        let mut world = World::new();
        for _ in 0..9 {
            world.wal.record(300_000);
        }
        let storage = storage(world.archive_dir.path());
        let bytes = |range: std::ops::Range<usize>| Bytes::copy_from_slice(&world.wal.bytes()[range]);
        for (at, name) in [(0, THIRD), (MIB, FOURTH)] {
            storage.create(&wal_object(name), bytes(at..at + MIB)).await.expect("puts");
        }
        // Torn within its last record.
        let mut half = bytes(2 * MIB..world.wal.bytes().len() - 1000).to_vec();
        half.resize(MIB, 0);
        storage.create(&wal_object(&format!("{FIFTH}.partial")), half.into()).await.expect("puts");
        let archive = Some(format!("file://{}", world.archive_dir.path().display()).parse().expect("a URL"));
        let sources = Sources { store: None, archive, system: Some(SYSTEM), server: Server::Recovers };
        Recovery { world, data_dir: tempfile::tempdir().expect("a directory"), sources }
    }

    fn path(&self) -> std::path::PathBuf {
        self.data_dir.path().join("RECOVERYXLOG")
    }

    /// What PostgreSQL would find in the place that it named.
    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, FetchError> {
        Ok(self.fetch(name).await?.0)
    }

    /// The same, and whether something else was refused before.
    async fn fetch(&self, name: &str) -> Result<(Option<Vec<u8>>, Option<Box<FetchError>>), FetchError> {
        let fetched = fetch(&self.sources, name, &self.path()).await?;
        let content = std::fs::read(self.path()).ok();
        let _ = std::fs::remove_file(self.path());
        assert_eq!(!matches!(fetched, Fetched::Nowhere), content.is_some(), "{name}");
        let refused = if let Fetched::Instead { of } = fetched { Some(of) } else { None };
        Ok((content, refused))
    }

    fn bytes(&self, segment: usize) -> &[u8] {
        &self.world.wal.bytes()[segment * MIB..(segment + 1) * MIB]
    }
}

#[tokio::test]
async fn a_server_recovers_from_the_archive() {
    let recovery = Recovery::new().await;
    assert_eq!(recovery.get(THIRD).await.expect("fetches").as_deref(), Some(recovery.bytes(0)));
    // It came with the one before.
    std::fs::remove_file(recovery.world.archive_dir.path().join(wal_object(FOURTH))).expect("removes");
    assert_eq!(recovery.get(FOURTH).await.expect("fetches").as_deref(), Some(recovery.bytes(1)));
    assert_eq!(recovery.get(FOURTH).await.expect("asks"), None, "it was handed over");
    let half = recovery.get(FIFTH).await.expect("fetches").expect("a segment");
    let (_, end) = recovery.world.wal.record_range(7);
    let (whole, rest) = half.split_at(end.next_multiple_of(8) - 2 * MIB);
    assert_eq!(whole, &recovery.world.wal.bytes()[2 * MIB..end.next_multiple_of(8)]);
    assert!(half.len() == MIB && rest.iter().all(|byte| *byte == 0), "the torn record is cut off");
    for name in ["000000010000000000000006", "000000020000000000000004", "00000002.history", "x", "../x"] {
        assert_eq!(recovery.get(name).await.expect("asks"), None, "{name}");
    }
}

#[tokio::test]
async fn a_standby_gets_no_half_segments() {
    let mut recovery = Recovery::new().await;
    recovery.sources.server = Server::StandsBy;
    assert!(recovery.get(THIRD).await.expect("fetches").is_some());
    assert_eq!(recovery.get(FIFTH).await.expect("asks"), None);
}

#[tokio::test]
async fn what_is_not_good_is_not_served() {
    let recovery = Recovery::new().await;
    let storage = storage(recovery.world.archive_dir.path());
    let mut flipped = recovery.bytes(0).to_vec();
    flipped[300_000] ^= 1;
    let mut foreign = recovery.bytes(0).to_vec();
    foreign[24..32].copy_from_slice(&7_u64.to_le_bytes());
    let torn = recovery.bytes(0)[..MIB / 2].to_vec();
    for (why, bytes) in [
        ("flipped", flipped),
        ("foreign", foreign),
        ("torn", torn),
        ("another's", recovery.bytes(1).to_vec()),
    ] {
        storage.replace(&wal_object(THIRD), bytes.into()).await.expect("puts");
        let got = recovery.get(THIRD).await;
        assert!(matches!(got, Err(FetchError::Segment { .. })), "{why}: {got:?}");
        assert!(!recovery.path().exists());
    }
    std::fs::write(recovery.world.archive_dir.path().join(wal_object(THIRD)), "garbage").expect("writes");
    assert!(matches!(recovery.get(THIRD).await, Err(FetchError::Storage(StorageError::Corrupt { .. }))));
    storage.replace("wal_005/00000002.history.zst", Bytes::from_static(b"1\tnowhere\n")).await.expect("puts");
    assert!(matches!(recovery.get("00000002.history").await, Err(FetchError::History { .. })));
}

#[tokio::test]
async fn the_relays_store_comes_first_as_far_as_it_is_durable() {
    let mut recovery = Recovery::new().await;
    let store = recovery.world.store_dir.path().to_owned();
    for (name, at) in [(THIRD, 0), (FOURTH, 1)] {
        std::fs::write(store.join(name), recovery.bytes(at)).expect("writes");
    }
    recovery.sources.store = Some(store.clone());
    recovery.sources.archive = None;
    assert_eq!(recovery.get(THIRD).await.expect("fetches").as_deref(), Some(recovery.bytes(0)));
    assert_eq!(recovery.get(FOURTH).await.expect("asks"), None, "the next one is not begun");
    std::fs::write(store.join(FIFTH), "begun").expect("writes");
    assert_eq!(recovery.get(FOURTH).await.expect("fetches").as_deref(), Some(recovery.bytes(1)));
    assert_eq!(recovery.get(FIFTH).await.expect("asks"), None);
}

#[tokio::test]
async fn of_one_relay_among_several_only_what_is_archived_is_served() {
    let mut recovery = Recovery::new().await;
    let store = recovery.world.store_dir.path().to_owned();
    let mut control = Control::default();
    let floor = Floor { timeline: TimelineId(1), end: START, source: None, log_term: Term(0) };
    control.standing = control.standing.with(Term(3), &floor, (TimelineId(1), START));
    std::fs::write(store.join(Control::FILE_NAME), control.encode()).expect("writes");
    for name in [THIRD, FOURTH] {
        std::fs::write(store.join(name), vec![0; MIB]).expect("writes");
    }
    recovery.sources.store = Some(store);
    let (content, refused) = recovery.fetch(THIRD).await.expect("fetches");
    assert_eq!(content.as_deref(), Some(recovery.bytes(0)));
    assert!(refused.is_none(), "the store was not asked: {refused:?}");
    recovery.sources.archive = None;
    assert!(matches!(recovery.get(THIRD).await, Err(FetchError::OneOfSeveral { .. })));
    recovery.sources.server = Server::StandsBy;
    assert_eq!(recovery.get(THIRD).await.expect("asks"), None, "it streams");
}

#[tokio::test]
async fn what_is_damaged_in_the_store_comes_out_of_the_archive_and_it_is_told() {
    let mut recovery = Recovery::new().await;
    let store = recovery.world.store_dir.path().to_owned();
    for (name, at) in [(THIRD, 0), (FOURTH, 1)] {
        std::fs::write(store.join(name), recovery.bytes(at)).expect("writes");
    }
    recovery.sources.store = Some(store.clone());
    let (content, refused) = recovery.fetch(THIRD).await.expect("fetches");
    assert!(content.is_some() && refused.is_none(), "{refused:?}");
    std::fs::write(store.join(THIRD), vec![0; MIB]).expect("writes");
    let (content, refused) = recovery.fetch(THIRD).await.expect("fetches");
    assert_eq!(content.as_deref(), Some(recovery.bytes(0)));
    let refused = refused.expect("it is told").to_string();
    assert!(refused.contains(&store.join(THIRD).display().to_string()), "{refused}");

    let (history, good) = ("00000002.history", b"1\t0/480000\tno recovery target specified\n");
    std::fs::write(store.join(history), "1\tnowhere\n").expect("writes");
    let got = recovery.get(history).await;
    assert!(matches!(got, Err(FetchError::History { .. })), "{got:?}");
    let storage = storage(recovery.world.archive_dir.path());
    storage.create(&wal_object(history), Bytes::from_static(good)).await.expect("puts");
    let (content, refused) = recovery.fetch(history).await.expect("fetches");
    assert_eq!((content.as_deref(), refused.is_some()), (Some(&good[..]), true));
}

/// Timeline 1 up to within segment 4, then timeline 2, in a store that had received timeline 1 beyond the fork.
async fn forked() -> (Recovery, WalBuilder) {
    let mut recovery = Recovery::new().await;
    let mut second = WalBuilder::new(START, TimelineId(1));
    for _ in 0..5 {
        second.record(300_000);
    }
    let fork = second.end();
    second.fork(TimelineId(2));
    for _ in 0..7 {
        second.record(300_000);
    }
    let store = recovery.world.store_dir.path().to_owned();
    for (name, at) in [(THIRD, 0), (FOURTH, 1)] {
        std::fs::write(store.join(name), recovery.bytes(at)).expect("writes");
    }
    let mut beyond = recovery.world.wal.bytes()[2 * MIB..].to_vec();
    beyond.resize(MIB, 0);
    std::fs::write(store.join(FIFTH), beyond).expect("writes");
    for (name, at) in
        [("000000020000000000000004", 1), ("000000020000000000000005", 2), ("000000020000000000000006", 3)]
    {
        let end = second.bytes().len().min((at + 1) * MIB);
        std::fs::write(store.join(name), &second.bytes()[at * MIB..end]).expect("writes");
    }
    let history = format!("1\t{fork}\tno recovery target specified\n");
    std::fs::write(store.join("00000002.history"), history).expect("writes");
    recovery.sources.store = Some(store);
    recovery.sources.archive = None;
    (recovery, second)
}

#[tokio::test]
async fn nothing_behind_a_fork_comes_out_of_the_store() {
    let (recovery, second) = forked().await;
    assert_eq!(recovery.get(THIRD).await.expect("fetches").as_deref(), Some(recovery.bytes(0)));
    assert!(recovery.get(FOURTH).await.expect("asks").is_none(), "it goes on in another history");
    assert!(recovery.get(FIFTH).await.expect("asks").is_none());
    let fork = recovery.get("000000020000000000000004").await.expect("fetches");
    assert_eq!(fork.as_deref(), Some(&second.bytes()[MIB..2 * MIB]));
    assert!(recovery.get("000000020000000000000005").await.expect("fetches").is_some());
    assert!(recovery.get("000000020000000000000006").await.expect("asks").is_none(), "it grows");
    // A store that was let go on on timeline 1 (`wal reset`) still has the other's history file.
    let store = recovery.world.store_dir.path();
    let follow = |timeline| {
        let mut control = Control::default();
        control.timeline = TimelineId(timeline);
        std::fs::write(store.join(Control::FILE_NAME), control.encode()).expect("writes");
    };
    follow(1);
    assert!(recovery.get(FOURTH).await.expect("fetches").is_some());
    follow(2);
    assert!(recovery.get(FOURTH).await.expect("asks").is_none());
    std::fs::write(store.join(Control::FILE_NAME), "garbage").expect("writes");
    assert!(matches!(recovery.get(FOURTH).await, Err(FetchError::File { .. })));
}

/// "No such file" ends a recovery, so it is said only where it is known.
#[tokio::test]
async fn a_store_that_cannot_be_read_is_told() {
    let mut recovery = Recovery::new().await;
    let store = recovery.world.store_dir.path().to_owned();
    recovery.sources.archive = None;
    recovery.sources.store = Some(store.join("missing"));
    assert_eq!(recovery.get(THIRD).await.expect("asks"), None);
    let no_directory = store.join("file");
    std::fs::write(&no_directory, "").expect("writes");
    recovery.sources.store = Some(no_directory);
    for name in [THIRD, "00000002.history"] {
        let got = recovery.get(name).await;
        assert!(matches!(got, Err(FetchError::File { .. })), "{name}: {got:?}");
    }
    recovery.sources.store = Some(store.clone());
    std::fs::create_dir(store.join("00000003.history")).expect("makes");
    let got = recovery.get("00000003.history").await;
    assert!(matches!(got, Err(FetchError::File { .. })), "{got:?}");
    std::fs::remove_dir(store.join("00000003.history")).expect("removes");
    // A finished one that is damaged, or cannot be read.
    std::fs::write(store.join(FOURTH), recovery.bytes(1)).expect("writes");
    std::fs::write(store.join(THIRD), vec![0; MIB]).expect("writes");
    let got = recovery.get(THIRD).await;
    assert!(matches!(got, Err(FetchError::Segment { .. })), "{got:?}");
    std::fs::remove_file(store.join(THIRD)).expect("removes");
    assert_eq!(recovery.get(THIRD).await.expect("asks"), None, "retention has taken it");
    std::fs::create_dir(store.join(THIRD)).expect("makes");
    let got = recovery.get(THIRD).await;
    assert!(matches!(got, Err(FetchError::File { .. })), "{got:?}");
    // The archive has it.
    recovery.sources.archive =
        Some(format!("file://{}", recovery.world.archive_dir.path().display()).parse().expect("a URL"));
    assert_eq!(recovery.get(THIRD).await.expect("fetches").as_deref(), Some(recovery.bytes(0)));
    // It has no finished one of this, which is not where the log ends as long as the store was not read.
    std::fs::write(store.join(FIFTH), vec![0; MIB]).expect("writes");
    std::fs::write(store.join("000000010000000000000006"), "begun").expect("writes");
    let got = recovery.get(FIFTH).await;
    assert!(matches!(got, Err(FetchError::Segment { .. })), "{got:?}");
}

/// Most segments say themselves of which timeline they are.
#[tokio::test]
async fn a_timelines_history_is_asked_for_only_where_it_matters() {
    let (mut recovery, second) = forked().await;
    recovery.sources.store = None;
    recovery.sources.archive =
        Some(format!("file://{}", recovery.world.archive_dir.path().display()).parse().expect("a URL"));
    let storage = storage(recovery.world.archive_dir.path());
    let fourth = Bytes::copy_from_slice(&second.bytes()[MIB..2 * MIB]);
    storage.create(&wal_object("000000020000000000000004"), fourth.clone()).await.expect("puts");
    std::fs::write(recovery.world.archive_dir.path().join(wal_object("00000002.history")), "garbage")
        .expect("writes");
    let got = recovery.get("000000020000000000000004").await.expect("fetches");
    assert_eq!(got.as_deref(), Some(&fourth[..]));
}

#[tokio::test]
async fn nothing_waits_where_the_log_ends() {
    let recovery = Recovery::new().await;
    let waiting = recovery.data_dir.path().join(".bellwether");
    for end in [FIFTH, "000000020000000000000004", "00000002.history"] {
        recovery.get(THIRD).await.expect("fetches");
        assert!(waiting.join(FOURTH).exists());
        recovery.get(end).await.expect("asks");
        assert!(!waiting.exists(), "{end}");
    }
}
