//! The shell with a real store and a real socket, without a server.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Metrics, SenderConfig, Shared, serve};
use crate::net::{Client, Credentials, Peer, PeerAddress, Stream, TlsForServers};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::protocol::replication::{FromServer, Reply, StandbyStatus};
use crate::pg::protocol::startup::Minor;
use crate::pg::wal::build::{SYSTEM, WalBuilder};
use crate::pg::{Lsn, PgTimestamp, TimelineId};
use crate::relay::followers::Followers;
use crate::relay::slots::Slots;
use crate::relay::store::{Change, Files, Store, StoreConfig, StreamId, Waiting};
use crate::relay::{RelayInputs, RelayTuning, agreed};
use crate::topology::{Agreed, Directive, Durability, Floor, FollowerState, Term, WalStatus};

const START: Lsn = Lsn(0x30_0000);

struct World {
    shared: Arc<Shared>,
    wal: WalBuilder,
    streamed: Lsn,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(wal_sender_timeout: Duration) -> World {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let registry = Registry::new();
        let config = StoreConfig { retain_bytes: 64 << 20, ring_bytes: 256 << 10 };
        let metrics = crate::relay::metrics::Metrics::new(&registry).expect("a fresh registry");
        let files = Files::open(directory.path()).expect("an empty directory");
        let store = Store::open(files.clone(), &config, &metrics).expect("an empty directory");
        tokio::spawn(store.announce());
        let wal = WalBuilder::new(START, TimelineId(1));
        let adopt = Change::Adopt { system: SYSTEM, segment_size: wal.segment_size() };
        store.change(adopt).await.expect("adopted");
        store.change(Change::Begin { timeline: TimelineId(1), start: START }).await.expect("begun");
        let shared = Arc::new(Shared {
            shipped: store.tail(),
            store,
            slots: Arc::new(Slots::open(files).expect("no slots yet")),
            followers: Arc::new(Followers::new()),
            backups: Arc::default(),
            inputs: alone(),
            config: SenderConfig { wal_sender_timeout },
            metrics: Metrics::new(&registry).expect("a fresh registry"),
            apart: super::Apart::default(),
            shutdown: CancellationToken::new(),
        });
        World { shared, wal, streamed: START, _directory: directory }
    }

    /// Makes a record of `length` bytes durable.
    async fn write(&mut self, length: usize) {
        self.wal.record(length);
        let at = |lsn: Lsn| usize::try_from(lsn.bytes_since(START)).expect("small");
        let bytes = Bytes::copy_from_slice(&self.wal.bytes()[at(self.streamed)..at(self.wal.end())]);
        self.shared
            .store
            .append(StreamId(1), self.streamed, bytes, Some(self.wal.end()), Waiting::Commits)
            .await
            .expect("queued");
        self.streamed = self.wal.end();
        let mut tail = self.shared.store.tail();
        tail.wait_for(|tail| tail.durable >= self.streamed).await.expect("the store lives");
    }

    fn connect(&self, name: &str) -> (Follower, impl Future<Output = ()> + use<>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let client = Client {
            peer: Peer::plain(PeerAddress::Unix),
            stream: Stream::Unix(ours),
            received: BytesMut::new(),
            out: BytesMut::new(),
            user: "rep".into(),
            database: "replication".into(),
            parameters: vec![("application_name".to_owned(), name.to_owned())],
            credentials: Credentials::Trust,
            minor: Minor::default(),
        };
        let follower = Follower { socket: theirs, inbox: BytesMut::new(), wal: Vec::new() };
        (follower, serve(client, Arc::clone(&self.shared)))
    }
}

/// Without a node.
fn alone() -> RelayInputs {
    RelayInputs {
        tuning: watch::channel(RelayTuning::default()).1,
        directive: watch::channel(Arc::new(Directive::starting(Durability::Async))).1,
        in_doubt: watch::channel(Arc::default()).1,
        nodes: Vec::new(),
        agreed: watch::channel(Agreed::Alone).1,
        all: watch::channel(Arc::new(WalStatus::starting())).1,
        peers: Vec::new(),
        relays: Vec::new(),
        user: "bellwether".into(),
        credentials: Credentials::Trust,
        tls: TlsForServers::default(),
    }
}

/// The other end: a walreceiver of a few lines.
struct Follower {
    socket: UnixStream,
    inbox: BytesMut,
    wal: Vec<u8>,
}

impl Follower {
    async fn say(&mut self, tag: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len() + 4).expect("short");
        let message = [&[tag][..], &length.to_be_bytes(), payload].concat();
        self.socket.write_all(&message).await.expect("the walsender reads");
    }

    async fn start(&mut self) {
        self.expect(b'Z').await;
        self.say(b'Q', b"START_REPLICATION 0/300000 TIMELINE 1\0").await;
        self.expect(b'W').await;
    }

    /// The next message; `None` at the end of the connection.
    async fn next(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some(header) = Header::peek(&self.inbox).expect("a good length")
                && header.total <= self.inbox.len()
            {
                let mut message = self.inbox.split_to(header.total);
                message.advance(HEADER_LEN);
                return Some((header.tag, message));
            }
            if self.socket.read_buf(&mut self.inbox).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn expect(&mut self, wanted: u8) {
        while self.next().await.expect("the walsender lives").0 != wanted {}
    }

    /// Takes WAL until `end`.
    async fn follow_to(&mut self, end: Lsn) {
        while START.advanced(self.wal.len() as u64) < end {
            let (tag, payload) = self.next().await.expect("the walsender lives");
            assert_eq!(tag, b'd');
            if let FromServer::XLogData(header, bytes) = FromServer::decode(&payload).expect("well-formed") {
                assert_eq!(header.start, START.advanced(self.wal.len() as u64), "no gap, nothing twice");
                self.wal.extend_from_slice(bytes);
            }
        }
    }

    async fn report(&mut self, position: Lsn) {
        let sent_at = PgTimestamp(0);
        let reply = Reply::Requested;
        let status = StandbyStatus { write: position, flush: position, apply: position, sent_at, reply };
        let mut payload = Vec::new();
        status.encode(&mut payload);
        self.say(b'd', &payload).await;
    }
}

#[tokio::test]
async fn a_follower_gets_every_byte_from_files_and_from_memory() {
    let mut world = World::new(Duration::from_secs(10)).await;
    for _ in 0..5 {
        world.write(700_000).await;
    }
    let (mut follower, serving) = world.connect("pg2");
    let serving = tokio::spawn(serving);
    follower.start().await;
    follower.follow_to(world.wal.end()).await;
    for length in [10, 200_000, 3] {
        world.write(length).await;
        follower.follow_to(world.wal.end()).await;
    }
    assert_eq!(follower.wal, world.wal.bytes());

    follower.report(world.wal.end()).await;
    follower.expect(b'd').await;
    let seen = world.shared.followers.snapshot(std::time::Instant::now());
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].application_name.as_str(), seen[0].state), ("pg2", FollowerState::Streaming));
    assert_eq!((seen[0].sent, seen[0].replay), (world.wal.end(), world.wal.end()));

    follower.say(b'X', b"").await;
    serving.await.expect("no panic");
    assert!(world.shared.followers.snapshot(std::time::Instant::now()).is_empty());
}

#[tokio::test]
async fn a_follower_gets_what_enough_relays_have_and_a_relay_gets_all() {
    let mut world = World::new(Duration::from_secs(10)).await;
    let mut ends = Vec::new();
    for length in [1000, 2000, 3000] {
        world.write(length).await;
        ends.push(world.wal.end());
    }
    let floor = Floor { timeline: TimelineId(1), end: ends[0], source: None, log_term: Term(0) };
    let recorded = world.shared.store.change(Change::Floor { term: Term(7), floor }).await;
    recorded.expect("a disk");
    let agreed = |end| Agreed::Quorum { term: Term(7), end };
    let (agree, seen) = watch::channel(agreed(None));
    let (shipped, gate) = agreed::shipped(&world.shared.store, &seen);
    tokio::spawn(gate.expect("one among several").run());
    let shared = Arc::get_mut(&mut world.shared).expect("nobody is served yet");
    shared.shipped = shipped.clone();
    shared.inputs.peers = vec![("b".to_owned(), "127.0.0.1:1".parse().expect("an address"))];

    let (mut early, serving) = world.connect("pg2");
    tokio::spawn(serving);
    let (tag, refused) = early.next().await.expect("an answer");
    assert_eq!(tag, b'E');
    assert!(refused.windows(5).any(|code| code == b"57P03"), "{refused:?}");
    let (mut relay, serving) = world.connect("bellwether_b_t7");
    tokio::spawn(serving);
    relay.start().await;
    relay.follow_to(ends[2]).await;

    // Half of the third record.
    let say = |end: Lsn| {
        agree.send_replace(agreed(Some((TimelineId(1), end))));
    };
    say(ends[1].advanced(500));
    shipped.clone().wait_for(|tail| tail.durable == ends[1]).await.expect("the gate lives");
    let (mut standby, serving) = world.connect("pg2");
    tokio::spawn(serving);
    standby.start().await;
    standby.follow_to(ends[1]).await;
    say(ends[2].advanced(500));
    standby.follow_to(ends[2]).await;
    assert_eq!(standby.wal, world.wal.bytes());
}

#[tokio::test]
async fn one_that_does_not_read_costs_the_others_nothing() {
    let mut world = World::new(Duration::from_millis(200)).await;
    for _ in 0..8 {
        world.write(700_000).await;
    }
    let (mut deaf, serving_deaf) = world.connect("deaf");
    let (mut good, serving_good) = world.connect("good");
    let (serving_deaf, serving_good) = (tokio::spawn(serving_deaf), tokio::spawn(serving_good));
    deaf.start().await;
    good.start().await;
    good.follow_to(world.wal.end()).await;
    assert_eq!(good.wal, world.wal.bytes());
    // It talks all the time, and takes nothing: dropped, with its socket still full.
    let end = world.wal.end();
    let talk = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            let mut payload = Vec::new();
            let (write, flush, apply) = (START, START, START);
            let status =
                StandbyStatus { write, flush, apply, sent_at: PgTimestamp(0), reply: Reply::Requested };
            status.encode(&mut payload);
            let message = [b"d\0\0\0\x26".as_slice(), &payload].concat();
            if deaf.socket.write_all(&message).await.is_err() {
                std::future::pending::<()>().await;
            }
            good.report(end).await;
        }
    };
    tokio::select! {
        ended = serving_deaf => ended.expect("no panic"),
        () = talk => {}
    }
    let left = world.shared.followers.snapshot(std::time::Instant::now());
    assert_eq!(left.iter().map(|f| f.application_name.as_str()).collect::<Vec<_>>(), ["good"]);
    drop(good);
    serving_good.await.expect("no panic");
}

#[tokio::test]
async fn half_a_message_and_a_huge_one() {
    let mut world = World::new(Duration::from_secs(10)).await;
    world.write(1000).await;
    for garbage in [&b"Q\x7f\xff\xff\xff"[..], b"Q\0\0\0\x01", b"Q\0\x02\0\0"] {
        let (mut follower, serving) = world.connect("garbage");
        let talk = async {
            follower.expect(b'Z').await;
            follower.socket.write_all(garbage).await.expect("the walsender reads");
            let (tag, payload) = follower.next().await.expect("an answer");
            assert_eq!(tag, b'E');
            assert!(payload.windows(5).any(|code| code == b"08P01"), "{payload:?}");
            assert_eq!(follower.next().await, None);
        };
        tokio::join!(serving, talk);
    }
    let (mut follower, serving) = world.connect("gone");
    let talk = async {
        follower.expect(b'Z').await;
        follower.socket.write_all(b"Q\0\0\0\x20IDENT").await.expect("the walsender reads");
        drop(follower);
    };
    tokio::join!(serving, talk);
    assert!(world.shared.followers.snapshot(std::time::Instant::now()).is_empty());
}
