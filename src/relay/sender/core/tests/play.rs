//! A stage for the walsender: a made-up store, and both sides of the conversation written as lines.
#![expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::protocol::replication::{FromServer, Reply, SlotLifetime, StandbyStatus};
use crate::pg::wal::{Defect, History, VerifyError, WalSegmentSize};
use crate::pg::{Lsn, PgTimestamp, SystemIdentifier, TimelineId};
use crate::relay::followers::Progress;
use crate::relay::sender::SenderConfig;
use crate::relay::sender::core::{
    Input, Now, Output, Peer, ReadFailure, SlotsNotSaved, WalSource, Walsender,
};
use crate::relay::sender::pacing::Rate;
use crate::relay::sender::passage::NoSource;
use crate::relay::slots::{Available, RestartPoint, SlotStatus, Slots};
use crate::relay::store::{Files, Tail};

/// A store whose byte at each position is a function of the position.
pub(super) struct World {
    facts: Rc<RefCell<Facts>>,
    slots: Arc<Slots>,
    _directory: tempfile::TempDir,
}

struct Facts {
    version: String,
    tail: Tail,
    history: Arc<History>,
    history_text: String,
    oldest: BTreeMap<TimelineId, Lsn>,
    /// What lies at or behind it is in memory.
    ring: Option<Lsn>,
}

#[derive(Clone)]
pub(super) struct Source(Rc<RefCell<Facts>>);

impl World {
    pub(super) fn new(version: &str, timeline: u32, durable: u64, history: &str) -> World {
        let timeline = TimelineId(timeline);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = Files::open(directory.path()).expect("an empty directory");
        let slots = Slots::open(files).expect("no slots yet");
        let facts = Facts {
            version: version.to_owned(),
            tail: Tail { timeline, durable: Lsn(durable) },
            history: Arc::new(History::parse(timeline, history.as_bytes()).expect("a good history")),
            history_text: history.to_owned(),
            oldest: BTreeMap::new(),
            ring: None,
        };
        World { facts: Rc::new(RefCell::new(facts)), slots: Arc::new(slots), _directory: directory }
    }

    pub(super) fn oldest(self, timeline: u32, lsn: u64) -> World {
        self.facts.borrow_mut().oldest.insert(TimelineId(timeline), Lsn(lsn));
        self
    }

    pub(super) fn ring(self, from: u64) -> World {
        self.facts.borrow_mut().ring = Some(Lsn(from));
        self
    }

    pub(super) fn slot(self, name: &str) -> World {
        self.slots.create(name, SlotLifetime::Persistent, None, 99).expect("a new slot");
        self
    }

    pub(super) fn used_slot(self, name: &str, pid: u32) -> World {
        let world = self.slot(name);
        let start = RestartPoint { timeline: TimelineId(1), lsn: Lsn(16 << 20) };
        world.slots.acquire(name, pid, start, Available::Kept).expect("a free slot");
        world
    }

    pub(super) fn lost_slot(self, name: &str) -> World {
        let world = self.used_slot(name, 99);
        let name = name.parse().expect("a slot name");
        world.slots.release(&name, 99);
        world.slots.invalidate(&name, Lsn(u64::MAX)).expect("it held something back");
        world
    }
}

impl WalSource for Source {
    fn system(&self) -> Option<SystemIdentifier> {
        Some(SystemIdentifier(7_710_395_414_144_942_410))
    }

    fn segment_size(&self) -> WalSegmentSize {
        WalSegmentSize::default()
    }

    fn history_file(&self, timeline: TimelineId) -> Option<Bytes> {
        let facts = self.0.borrow();
        let known = timeline == facts.tail.timeline && !facts.history_text.is_empty();
        known.then(|| Bytes::from(facts.history_text.clone()))
    }

    fn history(&self) -> Arc<History> {
        self.0.borrow().history.clone()
    }

    fn oldest(&self, timeline: TimelineId) -> Option<Lsn> {
        self.0.borrow().oldest.get(&timeline).copied()
    }

    fn recent(&self, _timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        let in_ring = self.0.borrow().ring.is_some_and(|start| start <= from);
        in_ring.then(|| wal(from, max))
    }

    fn server_parameters(&self) -> Arc<Vec<(String, String)>> {
        let version = self.0.borrow().version.clone();
        let parameter = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Arc::new(vec![
            parameter("server_version", &version),
            parameter("application_name", "bellwether_bw1_t1"),
            parameter("session_authorization", "bellwether"),
        ])
    }
}

/// Plays `script` against a new connection: input, then everything that comes out.
#[track_caller]
pub(super) fn check(world: World, script: &[(&str, &[&str])]) {
    let mut play = Play::new(world);
    play.take();
    play.check(script);
}

/// One connection and its follower, who reads whatever it gets until told to stop.
pub(super) struct Play {
    world: World,
    sender: Walsender<Source>,
    now: Now,
    lines: Vec<String>,
    read: Option<(Lsn, usize)>,
    progress: Progress,
    follower: Follower,
}

#[derive(PartialEq)]
enum Follower {
    Reading,
    NotReading,
}

impl Play {
    pub(super) fn new(world: World) -> Play {
        let now = Now { at: Instant::now(), timestamp: PgTimestamp(0) };
        let peer = Peer { application_name: "pg2".to_owned(), user: "rep".into(), pid: 7, secret: 42 };
        let config = SenderConfig { wal_sender_timeout: Duration::from_secs(10) };
        let tail = world.facts.borrow().tail;
        let source = Source(Rc::clone(&world.facts));
        let sender = Walsender::new(&peer, config, source, Arc::clone(&world.slots), tail, now);
        let follower = Follower::Reading;
        let mut play = Play {
            world,
            sender,
            now,
            lines: Vec::new(),
            read: None,
            progress: Progress::starting(),
            follower,
        };
        play.drain();
        play
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    pub(super) fn slot(&self, name: &str) -> SlotStatus {
        self.world.slots.status(&name.parse().expect("a slot name")).expect("the slot exists")
    }

    #[track_caller]
    pub(super) fn check(&mut self, script: &[(&str, &[&str])]) {
        for (input, expected) in script {
            self.say(input);
            assert_eq!(self.take(), *expected, "after {input:?}");
        }
    }

    fn say(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "Q" => self.message(b'Q', &[rest.as_bytes(), b"\0"].concat()),
            "r" => self.message(b'd', &status(rest)),
            "tail" => {
                let tail = self.change_tail(rest);
                self.give(Input::Tail(tail));
            }
            "history" => self.change_history(rest),
            "time" => {
                self.now.at += Duration::from_millis(rest.parse().expect("milliseconds"));
                self.give(Input::Timer);
            }
            "data" => self.answer_read(rest),
            "saved" => self.give(Input::SlotsSaved(Ok(()))),
            "not" => self.give(Input::SlotsSaved(Err(SlotsNotSaved::Failed))),
            "no" => self.give(Input::SlotsSaved(Err(SlotsNotSaved::DiskFull))),
            "stop" => self.follower = Follower::NotReading,
            "rate" => self.give(Input::Rate(rest.parse().ok().map(Rate))),
            "nobody" => self.give(Input::NotPassed(NoSource)),
            "shutdown" => self.give(Input::Shutdown),
            "malformed" => self.give(Input::Malformed),
            "release" => {
                let (slot, pid) = rest.split_once(' ').expect("slot and pid");
                self.world.slots.release(&slot.parse().expect("a slot name"), pid.parse().expect("a pid"));
            }
            tag => self.message(tag.as_bytes()[0], rest.as_bytes()),
        }
    }

    fn message(&mut self, tag: u8, payload: &[u8]) {
        self.give(Input::Message { tag, payload });
    }

    fn give(&mut self, input: Input<'_>) {
        self.sender.handle(self.now, input);
        self.drain();
    }

    fn change_tail(&mut self, text: &str) -> Tail {
        let (timeline, durable) = text.split_once(' ').expect("timeline and LSN");
        let timeline = TimelineId(timeline.parse().expect("a timeline"));
        let tail = Tail { timeline, durable: durable.parse().expect("an LSN") };
        self.world.facts.borrow_mut().tail = tail;
        tail
    }

    fn change_history(&mut self, text: &str) {
        let (timeline, content) = text.split_once(' ').expect("timeline and content");
        let timeline = TimelineId(timeline.parse().expect("a timeline"));
        let history = History::parse(timeline, content.as_bytes()).expect("a good history");
        self.world.facts.borrow_mut().history = Arc::new(history);
    }

    fn answer_read(&mut self, how: &str) {
        let (from, max) = self.read.take().expect("a read was asked for");
        let result = match how {
            "removed" => Err(ReadFailure::Removed),
            "failed" => Err(ReadFailure::Failed),
            "corrupt" => Err(ReadFailure::Corrupt {
                segment: "000000010000000000000002".to_owned(),
                source: VerifyError { lsn: Lsn(0x200_0028), defect: Defect::Previous { found: Lsn(8) } },
            }),
            _ => Ok(wal(from, max)),
        };
        self.give(Input::Read { from, result });
    }

    fn drain(&mut self) {
        while let Some(output) = self.sender.poll_output() {
            let sends = matches!(output, Output::Send(_) | Output::SendWal { .. });
            self.write_down(output);
            if sends && self.follower == Follower::Reading {
                self.sender.handle(self.now, Input::AllWritten);
            }
        }
    }

    fn write_down(&mut self, output: Output) {
        match output {
            Output::Send(bytes) => self.describe(bytes),
            Output::SendWal { header, wal: bytes } => {
                let mut whole = BytesMut::from(&header[..]);
                whole.extend_from_slice(&bytes);
                self.describe(whole.freeze());
            }
            Output::Read { timeline, from, max } => {
                self.read = Some((from, max));
                self.lines.push(format!("READ {timeline} {from} {max}"));
            }
            Output::PassOn(text) => {
                self.lines.push(format!("PASS {}", String::from_utf8_lossy(&text)));
            }
            Output::SaveSlots => self.lines.push("SAVE".to_owned()),
            Output::Report(progress) => self.progress = progress,
            Output::Heard | Output::Feedback(_) => {}
            Output::Close(reason) => self.lines.push(format!("CLOSE {reason:?}")),
        }
    }

    fn describe(&mut self, mut bytes: Bytes) {
        while let Some(header) = Header::peek(&bytes).expect("a good length") {
            let mut payload = bytes.split_to(header.total);
            payload.advance(HEADER_LEN);
            self.lines.push(describe(header.tag, payload));
        }
        assert!(bytes.is_empty(), "half a message");
    }
}

/// The WAL at a position: only its own bytes will do.
fn wal(from: Lsn, length: usize) -> Bytes {
    (from.0..from.0 + length as u64).map(|at| (at % 251) as u8).collect()
}

fn status(text: &str) -> Vec<u8> {
    let mut words = text.split(' ');
    let mut lsn = || words.next().expect("three positions").parse().expect("an LSN");
    let (write, flush, apply) = (lsn(), lsn(), lsn());
    let reply = if words.next() == Some("!") { Reply::Requested } else { Reply::NotRequested };
    let mut payload = Vec::new();
    StandbyStatus { write, flush, apply, sent_at: PgTimestamp(0), reply }.encode(&mut payload);
    payload
}

fn describe(tag: u8, mut payload: Bytes) -> String {
    let tag_char = char::from(tag);
    match tag {
        b'Z' | b'W' | b'c' => tag_char.to_string(),
        b'S' => format!("S {}={}", cstr(&mut payload), cstr(&mut payload)),
        b'K' => format!("K {} {}", payload.get_u32(), payload.get_u32()),
        b'C' => format!("C {}", cstr(&mut payload)),
        b'T' => {
            let columns: Vec<String> = (0..payload.get_u16()).map(|_| column(&mut payload)).collect();
            format!("T {}", columns.join(" "))
        }
        b'D' => {
            let values: Vec<String> = (0..payload.get_u16()).map(|_| value(&mut payload)).collect();
            format!("D {}", values.join(" "))
        }
        b'E' => error(&mut payload),
        b'd' => copy_data(&payload),
        _ => panic!("unexpected message {tag_char}"),
    }
}

fn cstr(payload: &mut Bytes) -> String {
    let end = payload.iter().position(|b| *b == 0).expect("a terminated string");
    let text = payload.split_to(end);
    payload.advance(1);
    String::from_utf8(text.to_vec()).expect("UTF-8")
}

fn column(payload: &mut Bytes) -> String {
    let name = cstr(payload);
    assert_eq!((payload.get_u32(), payload.get_u16()), (0, 0), "table and attribute of {name}");
    let (oid, length, modifier) = (payload.get_u32(), payload.get_i16(), payload.get_i32());
    assert_eq!(payload.get_u16(), 0, "the format of {name}");
    format!("{name}:{oid}({length},{modifier})")
}

fn value(payload: &mut Bytes) -> String {
    match usize::try_from(payload.get_i32()) {
        Err(_) => "NULL".to_owned(),
        Ok(length) => String::from_utf8(payload.split_to(length).to_vec()).expect("UTF-8"),
    }
}

fn error(payload: &mut Bytes) -> String {
    let mut fields = BTreeMap::new();
    while payload[0] != 0 {
        fields.insert(payload.get_u8(), cstr(payload));
    }
    let detail = fields.get(&b'D').map(|detail| format!(" | {detail}")).unwrap_or_default();
    format!("E {} {} {}{detail}", fields[&b'V'], fields[&b'C'], fields[&b'M'])
}

fn copy_data(payload: &[u8]) -> String {
    match FromServer::decode(payload).expect("a well-formed message") {
        FromServer::XLogData(header, bytes) => {
            assert_eq!(bytes, wal(header.start, bytes.len()), "the WAL at {}", header.start);
            assert!(header.start.advanced(bytes.len() as u64) <= header.end, "bytes beyond the end");
            format!("w {} +{} end {}", header.start, bytes.len(), header.end)
        }
        FromServer::Keepalive(keepalive) => {
            let reply = if keepalive.reply == Reply::Requested { " reply" } else { "" };
            format!("k {}{reply}", keepalive.end)
        }
        FromServer::Unknown(kind) => panic!("unexpected kind {kind}"),
    }
}
