//! Conversations with a scripted upstream. What the receiver does is written down as one line per output.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Input, Now, Output, Promised, Receiver, ReceiverConfig, Role, Stored};
use crate::pg::protocol::backend;
use crate::pg::protocol::replication::{FromStandby, Keepalive, Reply, XLogDataHeader};
use crate::pg::wal::WalSegmentSize;
use crate::pg::wal::build::{SYSTEM, WalBuilder};
use crate::pg::{ErrorFields, Lsn, PgTimestamp, SqlState, TimelineId};
use crate::relay::store::StoreError;
use crate::topology::{Durability, Term};

struct Talk {
    receiver: Receiver,
    begin: Instant,
    elapsed: Duration,
}

fn empty() -> Stored {
    Stored {
        system: None,
        segment_size: WalSegmentSize::default(),
        timeline: TimelineId(0),
        durable: Lsn::INVALID,
        verified: Lsn::INVALID,
        oldest: None,
        to_show: None,
        histories: BTreeMap::new(),
    }
}

/// Holds WAL of timeline 1 in segments of 1 MiB.
fn stored(durable: u64, verified: u64) -> Stored {
    Stored {
        system: Some(SYSTEM),
        segment_size: WalSegmentSize::new(1 << 20).expect("valid"),
        timeline: TimelineId(1),
        durable: Lsn(durable),
        verified: Lsn(verified),
        oldest: Some(Lsn(0x10_0000)),
        to_show: None,
        histories: BTreeMap::new(),
    }
}

impl Talk {
    fn new(stored: Stored, durability: Durability) -> Talk {
        Talk::with(stored, durability, Role::Named)
    }

    fn with(stored: Stored, durability: Durability, role: Role) -> Talk {
        let promised = match durability {
            Durability::Quorum => Promised::Everything,
            Durability::Async => Promised::Nothing,
        };
        Talk::with_config(stored, durability, role, promised)
    }

    fn with_config(stored: Stored, durability: Durability, role: Role, promised: Promised) -> Talk {
        let mut talk = Talk::begun(stored, durability, role, promised);
        if role == Role::Named {
            talk.named("\"bellwether_bw1_t7\"");
        }
        talk
    }

    fn begun(stored: Stored, durability: Durability, role: Role, promised: Promised) -> Talk {
        let config = ReceiverConfig {
            role,
            term: Term(7),
            promised,
            slot: "bellwether_bw1".parse().expect("a slot name"),
            durability,
            upstream_timeout: Duration::from_secs(10),
            ask_after: Duration::from_millis(300),
            upstream_major: 15,
        };
        let begin = Instant::now();
        let now = Now { at: begin, timestamp: PgTimestamp(0) };
        Talk { receiver: Receiver::new(config, stored, now), begin, elapsed: Duration::ZERO }
    }

    /// The upstream's `synchronous_standby_names`.
    fn named(&mut self, setting: &str) {
        self.says("ask SHOW synchronous_standby_names");
        self.row(&[Some(setting)]);
    }

    /// Up to START_REPLICATION, the upstream being on timeline 1.
    fn streaming(stored: Stored) -> Talk {
        Talk::streaming_with(stored, Durability::Quorum)
    }

    fn streaming_with(stored: Stored, durability: Durability) -> Talk {
        let whole = if stored.verified.is_valid() { stored.verified } else { stored.durable };
        let from = stored.segment_size.segment_start(whole);
        let mut talk = Talk::new(stored, durability);
        talk.says("ask IDENTIFY_SYSTEM");
        talk.identify(1, "0/400000");
        talk.says("ask SHOW wal_segment_size");
        talk.row(&[Some("1MB")]);
        talk.says("ask CREATE_REPLICATION_SLOT \"bellwether_bw1\" PHYSICAL RESERVE_WAL");
        talk.error(SqlState::DUPLICATE_OBJECT);
        talk.says(&format!("ask START_REPLICATION SLOT \"bellwether_bw1\" PHYSICAL {from} TIMELINE 1"));
        talk.message(b'W', b"\0\0\0");
        talk
    }

    fn now(&self) -> Now {
        Now { at: self.begin + self.elapsed, timestamp: PgTimestamp(0) }
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        self.receiver.handle(now, input);
    }

    fn message(&mut self, tag: u8, payload: &[u8]) {
        self.input(Input::Message { tag, payload: Bytes::copy_from_slice(payload) });
    }

    /// Every message that was encoded into `bytes`.
    fn messages(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        encode(&mut bytes);
        while !bytes.is_empty() {
            let total = 1 + u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
            let message = bytes.split_to(total);
            self.message(message[0], &message[5..]);
        }
    }

    fn row(&mut self, values: &[Option<&str>]) {
        self.messages(|out| backend::data_row(values, out));
        self.message(b'C', b"X\0");
        self.message(b'Z', b"I");
    }

    fn identify(&mut self, timeline: u32, position: &str) {
        let (system, timeline) = (SYSTEM.to_string(), timeline.to_string());
        self.row(&[Some(&system), Some(&timeline), Some(position), None]);
    }

    fn error(&mut self, code: SqlState) {
        self.messages(|out| ErrorFields::error(code, "no").encode(out));
        self.message(b'Z', b"I");
    }

    fn done(&mut self) {
        self.input(Input::Changed(Ok(())));
    }

    /// Up to a record's end.
    fn agreed(&mut self, lsn: Lsn) {
        self.input(Input::Agreed { lsn, whole: lsn });
    }

    fn wal(&mut self, start: Lsn, bytes: &[u8]) {
        let mut payload = Vec::new();
        let end = start.advanced(bytes.len() as u64);
        XLogDataHeader { start, end, sent_at: PgTimestamp(0) }.encode(&mut payload);
        payload.extend_from_slice(bytes);
        self.message(b'd', &payload);
    }

    /// A keepalive that wants to be answered.
    fn asked(&mut self) {
        let mut keepalive = Vec::new();
        let keepalive_of =
            Keepalive { end: Lsn(0x30_0000), sent_at: PgTimestamp(0), reply: Reply::Requested };
        keepalive_of.encode(&mut keepalive);
        self.message(b'd', &keepalive);
    }

    fn outputs(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.receiver.poll_output()).map(|output| line(&output)).collect()
    }

    #[track_caller]
    fn says(&mut self, expected: &str) {
        let expected: Vec<&str> = expected.split('|').filter(|line| !line.is_empty()).collect();
        assert_eq!(self.outputs(), expected);
    }
}

fn line(output: &Output) -> String {
    match output {
        Output::Send(bytes) if bytes[0] == b'Q' => {
            format!("ask {}", String::from_utf8_lossy(&bytes[5..bytes.len() - 1]))
        }
        Output::Send(bytes) if bytes[0] == b'c' => "CopyDone".to_owned(),
        Output::Send(bytes) => match FromStandby::decode(&bytes[5..]) {
            Ok(FromStandby::Status(s)) => {
                let asks = if s.reply == Reply::Requested { " and asks" } else { "" };
                format!("write {} flush {} apply {}{asks}", s.write, s.flush, s.apply)
            }
            other => format!("{other:?}"),
        },
        Output::Change(change) => format!("{change:?}"),
        Output::Append { at, bytes, verified } => {
            format!("append {} at {at}, good to {}", bytes.len(), verified.unwrap_or(Lsn::INVALID))
        }
        Output::Streaming { timeline, from } => format!("streaming {timeline} from {from}"),
        Output::LeftBehind { switchpoint, verified, .. } => {
            format!("left behind {switchpoint} to {verified}")
        }
        Output::End(end) => format!("{end:?}"),
    }
}

const HISTORY: &str = "1\t0/380000\tno recovery target specified\n";

#[test]
fn who_was_prepared_for_a_later_term_gives_nothing() {
    let asked = |setting| {
        let begun = || Talk::begun(stored(0x38_0000, 0), Durability::Quorum, Role::Named, Promised::Nothing);
        let mut talk = begun();
        talk.named(setting);
        talk.outputs()
    };
    let later = asked(r#"ANY 1 ("bellwether_bw1_t8", "bellwether_bw2_t8")"#);
    assert!(matches!(&later[..], [end] if end.starts_with("Lost")), "{later:?}");
    // Not prepared yet, without a quorum, or somebody else's.
    for setting in [r#""bellwether_bw1_t7""#, r#""bellwether_bw1_t6""#, "", "pg2"] {
        assert_eq!(asked(setting), ["ask IDENTIFY_SYSTEM"], "{setting}");
    }
}

#[test]
fn first_contact_begins_where_the_slot_holds_wal() {
    let mut talk = Talk::new(empty(), Durability::Async);
    talk.says("ask IDENTIFY_SYSTEM");
    talk.identify(2, "0/5400000");
    talk.says("ask SHOW wal_segment_size");
    talk.row(&[Some("16MB")]);
    talk.says(&format!("Adopt {{ system: {SYSTEM:?}, segment_size: WalSegmentSize(16777216) }}"));
    talk.done();
    talk.says("ask CREATE_REPLICATION_SLOT \"bellwether_bw1\" PHYSICAL RESERVE_WAL");
    talk.row(&[Some("bellwether_bw1"), Some("0/0"), None, None]);
    talk.says("ask READ_REPLICATION_SLOT \"bellwether_bw1\"");
    talk.row(&[Some("physical"), Some("0/4A00028"), Some("2")]);
    talk.says("ask TIMELINE_HISTORY 2");
    talk.row(&[Some("00000002.history"), Some(HISTORY)]);
    talk.says(&format!("KeepHistory {{ timeline: TimelineId(2), content: {:?} }}", Bytes::from(HISTORY)));
    talk.done();
    talk.says("Begin { timeline: TimelineId(2), start: 0/4000000 }");
    talk.done();
    talk.says("ask START_REPLICATION SLOT \"bellwether_bw1\" PHYSICAL 0/4000000 TIMELINE 2");
    talk.message(b'W', b"\0\0\0");
    talk.says("streaming 2 from 0/4000000|write 0/4000000 flush 0/4000000 apply 0/0");
}

#[test]
fn a_log_that_begins_anew_begins_at_the_end() {
    let mut talk = Talk::new(Stored { system: Some(SYSTEM), ..empty() }, Durability::Async);
    talk.says("ask IDENTIFY_SYSTEM");
    talk.identify(1, "0/5400000");
    talk.says("ask SHOW wal_segment_size");
    talk.row(&[Some("16MB")]);
    talk.says(&format!("Adopt {{ system: {SYSTEM:?}, segment_size: WalSegmentSize(16777216) }}"));
    talk.done();
    talk.says("ask CREATE_REPLICATION_SLOT \"bellwether_bw1\" PHYSICAL RESERVE_WAL");
    talk.error(SqlState::DUPLICATE_OBJECT);
    talk.says("Begin { timeline: TimelineId(1), start: 0/5000000 }");
}

#[test]
fn only_what_the_store_has_synced_is_acknowledged() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let durable = wal.end();
    wal.record(1000);
    let mut talk = Talk::streaming(stored(durable.0, durable.0));
    talk.outputs();
    let end = wal.end();
    talk.wal(Lsn(0x30_0000), wal.bytes());
    talk.says(&format!("append {} at 0/300000, good to {end}", wal.bytes().len()));
    talk.agreed(durable);
    talk.says(&format!("write {end} flush {durable} apply 0/0"));
    talk.asked();
    talk.says(&format!("write {end} flush {durable} apply 0/0"));
    talk.agreed(end);
    talk.says(&format!("write {end} flush {end} apply 0/0"));
    talk.agreed(end);
    talk.says("");
}

#[test]
fn replay_is_the_followers_and_within_what_is_acknowledged() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let end = wal.end();
    let mut talk = Talk::streaming(stored(0x30_0000, 0));
    talk.outputs();
    talk.wal(Lsn(0x30_0000), wal.bytes());
    talk.outputs();
    talk.agreed(end);
    talk.says(&format!("write {end} flush {end} apply 0/0"));
    talk.input(Input::Replayed(Some((TimelineId(1), Lsn(0x30_0100)))));
    talk.says(&format!("write {end} flush {end} apply 0/300100"));
    talk.input(Input::Replayed(Some((TimelineId(1), Lsn(0x30_0080)))));
    talk.says("");
    talk.input(Input::Replayed(Some((TimelineId(1), Lsn(0x39_0000)))));
    talk.says(&format!("write {end} flush {end} apply {end}"));
}

/// What is sent again may be another branch's: acknowledged, it would release that branch's commits.
#[test]
fn what_is_stored_already_is_acknowledged_as_it_is_compared() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let durable = wal.end();
    let mut talk = Talk::streaming(stored(durable.0, durable.0));
    talk.says("streaming 1 from 0/300000|write 0/300000 flush 0/300000 apply 0/0");
    let (first, rest) = wal.bytes().split_at(512);
    talk.wal(Lsn(0x30_0000), first);
    talk.outputs();
    talk.asked();
    talk.says("write 0/300000 flush 0/300000 apply 0/0");
    talk.agreed(Lsn(0x30_0200));
    talk.says("write 0/300200 flush 0/300200 apply 0/0");
    talk.wal(Lsn(0x30_0200), rest);
    talk.outputs();
    // Nothing new comes: the commits that wait for what is stored are released all the same.
    talk.agreed(durable);
    talk.says(&format!("write {durable} flush {durable} apply 0/0"));
    wal.record(1000);
    talk.wal(
        durable,
        &wal.bytes()[wal.bytes().len() - usize::try_from(wal.end().bytes_since(durable)).expect("small")..],
    );
    talk.outputs();
    talk.asked();
    talk.says(&format!("write {} flush {durable} apply 0/0", wal.end()));
}

/// A record from segment 3 over segment 4 into segment 5: a restart counts none of it, and asks for segment 3 again.
#[test]
fn half_a_record_is_not_acknowledged_to_who_keeps_wal_for_us() {
    let begin = Lsn(0x30_0000);
    let mut wal = WalBuilder::new(begin, TimelineId(1));
    wal.record(0xF_0000);
    let whole = wal.end();
    wal.record(0x18_0000);
    let (half, rest) = wal.bytes().split_at(0x20_1000);
    let middle = begin.advanced(half.len() as u64);
    let mut talk = Talk::streaming(stored(begin.0, 0));
    talk.outputs();
    talk.wal(begin, half);
    talk.outputs();
    talk.input(Input::Agreed { lsn: middle, whole });
    talk.says(&format!("write {middle} flush {whole} apply 0/0"));
    // It is told, and not at every turn.
    assert!(talk.receiver.poll_timeout() > Some(talk.now().at));
    talk.input(Input::Replayed(Some((TimelineId(1), Lsn(0x51_0000)))));
    talk.says(&format!("write {middle} flush {whole} apply {whole}"));
    talk.wal(middle, rest);
    talk.outputs();
    talk.input(Input::Agreed { lsn: wal.end(), whole: wal.end() });
    let end = wal.end();
    talk.says(&format!("write {end} flush {end} apply 0/510000"));

    // Connected anew before that: what was promised to be asked for is asked for.
    let mut again = Talk::streaming(stored(middle.0, whole.0));
    again.says("streaming 1 from 0/300000|write 0/300000 flush 0/300000 apply 0/0");
    again.wal(begin, half);
    again.outputs();
    again.input(Input::Agreed { lsn: Lsn(0x38_0000), whole });
    again.says("write 0/380000 flush 0/380000 apply 0/0");
    again.input(Input::Agreed { lsn: middle, whole });
    again.says(&format!("write {middle} flush {whole} apply 0/0"));
}

/// It ends where its own upstream died, and its shutdown waits until it has heard that we have that.
#[test]
fn half_a_record_is_acknowledged_to_a_substitute() {
    let begin = Lsn(0x30_0000);
    let mut wal = WalBuilder::new(begin, TimelineId(1));
    wal.record(1000);
    let whole = wal.end();
    wal.record(1000);
    let mut talk = stands_in(stored(begin.0, 0), 1, None);
    talk.message(b'W', b"\0\0\0");
    talk.wal(begin, &wal.bytes()[..1500]);
    talk.outputs();
    let middle = begin.advanced(1500);
    talk.input(Input::Agreed { lsn: middle, whole });
    talk.says(&format!("write {middle} flush {middle} apply 0/0"));
}

/// Where a timeline begins is a record's end, whatever was seen of that record.
#[test]
fn a_new_timeline_is_asked_for_from_the_segment_of_its_fork() {
    let mut own = stored(0x38_0000, 0x2F_0000);
    own.timeline = TimelineId(2);
    own.histories.insert(TimelineId(2), Bytes::from(HISTORY));
    let mut talk = Talk::new(own, Durability::Quorum);
    talk.identify(2, "0/400000");
    talk.row(&[Some("1MB")]);
    talk.error(SqlState::DUPLICATE_OBJECT);
    talk.row(&[Some("00000002.history"), Some(HISTORY)]);
    let asked = talk.outputs().pop();
    let expected = "ask START_REPLICATION SLOT \"bellwether_bw1\" PHYSICAL 0/300000 TIMELINE 2";
    assert_eq!(asked.as_deref(), Some(expected));
}

#[test]
fn something_of_a_log_in_doubt_is_compared() {
    // What the log has, from where on, up to where it has to be shown, and on which timeline; from where it is asked for.
    let check = |end, oldest, to_show, timeline, expected: &str| {
        let mut own = stored(end, end);
        (own.oldest, own.to_show, own.timeline) = (Some(Lsn(oldest)), to_show, TimelineId(timeline));
        own.histories.insert(TimelineId(2), Bytes::from(HISTORY));
        let mut talk = Talk::with(own, Durability::Quorum, Role::Source { timeline: TimelineId(timeline) });
        talk.identify(timeline, "0/500000");
        talk.row(&[Some("1MB")]);
        if timeline > 1 {
            talk.row(&[Some("00000002.history"), Some(HISTORY)]);
        }
        let asked = talk.outputs().pop();
        let expected = format!("ask START_REPLICATION PHYSICAL {expected} TIMELINE {timeline}");
        assert_eq!(asked.as_deref(), Some(&*expected), "{end:x} from {oldest:x}, to show {to_show:?}");
    };
    let up_to = |lsn| Some(Lsn(lsn));
    check(0x40_0000, 0x10_0000, None, 1, "0/400000");
    // It ends where a segment does.
    check(0x40_0000, 0x10_0000, up_to(0x40_0000), 1, "0/300000");
    check(0x40_0028, 0x10_0000, up_to(0x40_0028), 1, "0/400000");
    // The upstream's ends in an earlier segment, or where that does.
    check(0x40_0000, 0x10_0000, up_to(0x28_0000), 1, "0/200000");
    check(0x40_0000, 0x10_0000, up_to(0x20_0000), 1, "0/100000");
    // Nothing is there before.
    check(0x40_0000, 0x40_0000, up_to(0x40_0000), 1, "0/400000");
    check(0x40_0000, 0x40_0000, up_to(0x20_0000), 1, "0/400000");
    check(0x40_0000, 0x30_0000, up_to(0x20_0000), 2, "0/300000");
    // Who shows nothing.
    let mut own = stored(0x40_0000, 0x40_0000);
    own.to_show = up_to(0x40_0000);
    let mut talk = Talk::with(own, Durability::Quorum, Role::Substitute { known: TimelineId(1) });
    talk.identify(1, "0/500000");
    talk.row(&[Some("1MB")]);
    let asked = talk.outputs().pop();
    assert_eq!(asked.as_deref(), Some("ask START_REPLICATION PHYSICAL 0/400000 TIMELINE 1"));
    // The timeline begins there.
    check(0x50_0000, 0x10_0000, up_to(0x30_0000), 2, "0/300000");
}

/// With a quorum each sync is told at once: commits wait for it.
#[test]
fn without_a_quorum_what_is_stored_is_told_now_and_then() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    let ends: Vec<Lsn> = (0..3).map(|_| (wal.record(1000), wal.end()).1).collect();
    let told = |durability| {
        let mut talk = Talk::streaming_with(stored(0x30_0000, 0), durability);
        talk.wal(Lsn(0x30_0000), wal.bytes());
        talk.outputs();
        let mut told = Vec::new();
        for (millis, end) in [5, 10, 25].into_iter().zip(&ends) {
            talk.elapsed = Duration::from_millis(millis);
            talk.agreed(*end);
            told.extend(talk.outputs().into_iter().map(|status| (millis, status)));
        }
        told.iter().map(|(millis, _)| *millis).collect::<Vec<u64>>()
    };
    assert_eq!(told(Durability::Quorum), [5, 10, 25]);
    assert_eq!(told(Durability::Async), [25]);
}

#[test]
fn what_was_not_told_at_once_is_told_by_the_clock() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let end = wal.end();
    let mut talk = Talk::streaming_with(stored(0x30_0000, 0), Durability::Async);
    talk.wal(Lsn(0x30_0000), wal.bytes());
    talk.outputs();
    talk.elapsed = Duration::from_millis(1);
    talk.agreed(end);
    talk.says("");
    talk.elapsed = Duration::from_millis(20);
    assert_eq!(talk.receiver.poll_timeout(), Some(talk.now().at));
    talk.input(Input::Tick);
    talk.says(&format!("write {end} flush {end} apply 0/0"));
}

/// A store that is ahead says nothing of what this stream has sent.
#[test]
fn what_the_stream_has_not_sent_is_not_acknowledged() {
    let mut talk = Talk::streaming(stored(0x30_1000, 0));
    talk.outputs();
    talk.agreed(Lsn(0x30_1000));
    talk.says("");
}

#[test]
fn gaps_and_bad_records_end_the_stream() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let mut talk = Talk::streaming(stored(0x30_0000, 0));
    talk.outputs();
    talk.wal(Lsn(0x30_2000), wal.bytes());
    talk.says("Refused { why: \"WAL at 0/302000 was sent where 0/300000 is next\", cause: Other }");

    let mut talk = Talk::streaming(stored(0x30_0000, 0));
    talk.outputs();
    let mut bytes = wal.bytes().to_vec();
    bytes[500] ^= 1;
    talk.wal(Lsn(0x30_0000), &bytes);
    let outputs = talk.outputs();
    assert!(
        matches!(&outputs[..], [end] if end.contains("invalid WAL at 0/300028: record checksum")),
        "{outputs:?}"
    );
    talk.wal(Lsn(0x30_0000), wal.bytes());
    talk.says("");
}

#[test]
fn another_cluster_or_branch_is_refused() {
    let refused = |timeline: u32, answer: &dyn Fn(&mut Talk)| {
        let mut own = stored(0x38_1000, 0x38_0000);
        own.timeline = TimelineId(2);
        own.histories.insert(TimelineId(2), Bytes::from(HISTORY));
        let mut talk = Talk::new(own, Durability::Async);
        talk.identify(timeline, "0/400000");
        answer(&mut talk);
        talk.outputs().pop().unwrap_or_default()
    };
    let settings = |talk: &mut Talk| {
        talk.row(&[Some("1MB")]);
        talk.error(SqlState::DUPLICATE_OBJECT);
    };
    // Where the log has left its history.
    let behind = refused(1, &settings);
    assert!(behind.contains("timeline 1 does not descend from ours, 2"), "{behind}");
    assert!(behind.contains("fork: (TimelineId(1), 0/380000)"), "{behind}");
    let ask_history = |content: &'static str| {
        move |talk: &mut Talk| {
            talk.row(&[Some("1MB")]);
            talk.error(SqlState::DUPLICATE_OBJECT);
            talk.row(&[Some("x.history"), Some(content)]);
            talk.done();
        }
    };
    assert!(refused(2, &ask_history("1\t0/390000\tx\n")).contains("another branch"));
    assert!(
        refused(3, &ask_history("1\t0/390000\tx\n")).contains("timeline 3 does not descend from ours, 2")
    );
    assert!(refused(2, &|talk| talk.row(&[Some("16MB")])).contains("segments of 16MB instead of 1MB"));

    let mut talk = Talk::new(stored(0x38_0000, 0), Durability::Async);
    talk.outputs();
    talk.row(&[Some("1"), Some("1"), Some("0/400000"), None]);
    assert!(talk.outputs()[0].contains("another cluster"));
}

/// How it comes about: (1) a candidate tells of its timeline 2, and dies before any of its WAL comes; (2) another one is
/// promoted, elsewhere, and takes the same number; or a third one behind that.
#[test]
fn what_was_told_of_a_timeline_that_was_not_followed_is_no_word_on_another() {
    let stale = "1\t0/3A0000\tno recovery target specified\n";
    let own = || {
        let mut own = stored(0x38_0000, 0x38_0000);
        own.histories.insert(TimelineId(2), Bytes::from(stale));
        own
    };
    let follow = "Follow { timeline: TimelineId(2), switchpoint: 0/380000 }".to_owned();
    assert_eq!(met_promoted(Talk::new(own(), Durability::Quorum)), [follow]);

    let mut talk = Talk::new(own(), Durability::Quorum);
    talk.identify(3, "0/400000");
    talk.row(&[Some("1MB")]);
    talk.error(SqlState::DUPLICATE_OBJECT);
    talk.row(&[Some("00000003.history"), Some("1\t0/380000\tx\n2\t0/390000\tx\n")]);
    talk.done();
    assert_eq!(talk.outputs().pop().as_deref(), Some("ask TIMELINE_HISTORY 2"));
    talk.row(&[Some("00000002.history"), Some(HISTORY)]);
    let kept = talk.outputs().pop().unwrap_or_default();
    assert!(kept.starts_with("KeepHistory { timeline: TimelineId(2)"), "{kept}");
    // A substitute's word is none.
    let last = stands_in(own(), 2, Some(HISTORY)).outputs().pop().unwrap_or_default();
    assert!(last.contains("another branch"), "{last}");
}

#[test]
fn a_timeline_ends_and_the_next_one_goes_on_over_the_same_connection() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let switchpoint = wal.end();
    let mut talk = Talk::streaming(stored(0x30_0000, 0));
    talk.wal(Lsn(0x30_0000), wal.bytes());
    talk.outputs();
    talk.message(b'c', b"");
    talk.says("CopyDone");
    talk.messages(|out| backend::data_row(&[Some("4"), Some(&switchpoint.to_string())], out));
    talk.message(b'C', b"START_STREAMING\0");
    talk.message(b'C', b"START_REPLICATION\0");
    // Comes at a promotion.
    talk.message(b'S', b"in_hot_standby\0off\0");
    talk.message(b'Z', b"I");
    talk.says("Settle");
    talk.done();
    talk.says("ask IDENTIFY_SYSTEM");
    talk.identify(4, "0/400000");
    talk.says("ask TIMELINE_HISTORY 4");
    let history = format!("1\t{switchpoint}\tx\n");
    talk.row(&[Some("00000004.history"), Some(&history)]);
    talk.says(&format!("KeepHistory {{ timeline: TimelineId(4), content: {:?} }}", Bytes::from(history)));
    talk.done();
    // Skipped numbers are asked for, because standbys will ask; not to have them is no error.
    talk.says("ask TIMELINE_HISTORY 2");
    talk.error(SqlState::UNDEFINED_FILE);
    talk.says("ask TIMELINE_HISTORY 3");
    talk.error(SqlState::UNDEFINED_FILE);
    talk.says(&format!("Follow {{ timeline: TimelineId(4), switchpoint: {switchpoint} }}"));
    talk.done();
    talk.says("ask START_REPLICATION SLOT \"bellwether_bw1\" PHYSICAL 0/300000 TIMELINE 4");
}

/// A commit of the new timeline that waits for replay is not released by what was replayed of the old one.
#[test]
fn replay_beyond_a_fork_does_not_count_behind_it() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    wal.record(1000);
    let switchpoint = wal.end();
    let mut new = wal.clone();
    wal.record(1000);
    let mut talk = Talk::streaming_with(stored(0x30_0000, 0), Durability::Async);
    talk.wal(Lsn(0x30_0000), wal.bytes());
    talk.agreed(wal.end());
    talk.input(Input::Replayed(Some((TimelineId(1), wal.end()))));
    talk.message(b'c', b"");
    talk.messages(|out| backend::data_row(&[Some("2"), Some(&switchpoint.to_string())], out));
    talk.message(b'C', b"START_STREAMING\0");
    talk.message(b'Z', b"I");
    talk.done();
    talk.identify(2, "0/400000");
    talk.row(&[Some("00000002.history"), Some(&format!("1\t{switchpoint}\tx\n"))]);
    talk.done();
    talk.done();
    talk.message(b'W', b"\0\0\0");
    // Said before its follower knew of the switch.
    talk.input(Input::Replayed(Some((TimelineId(1), wal.end()))));
    new.fork(TimelineId(2));
    new.record(5000);
    talk.wal(Lsn(0x30_0000), new.bytes());
    talk.outputs();
    talk.elapsed = Duration::from_secs(1);
    talk.agreed(new.end());
    let end = new.end();
    talk.says(&format!("write {end} flush {end} apply {switchpoint}"));
    talk.input(Input::Replayed(Some((TimelineId(2), end))));
    talk.says(&format!("write {end} flush {end} apply {end}"));
    talk.input(Input::Replayed(None));
    talk.asked();
    talk.says(&format!("write {end} flush {end} apply 0/0"));
}

/// Connects to an upstream on timeline 2 that forked at 0/380000.
fn meet_promoted(durable: u64, verified: u64, durability: Durability) -> Vec<String> {
    met_promoted(Talk::new(stored(durable, verified), durability))
}

fn met_promoted(mut talk: Talk) -> Vec<String> {
    talk.identify(2, "0/400000");
    talk.row(&[Some("1MB")]);
    talk.error(SqlState::DUPLICATE_OBJECT);
    talk.row(&[Some("00000002.history"), Some(HISTORY)]);
    talk.outputs();
    talk.done();
    talk.outputs()
}

#[test]
fn a_promoted_upstream() {
    let follow = "Follow { timeline: TimelineId(2), switchpoint: 0/380000 }".to_owned();
    let old = "ask START_REPLICATION SLOT \"bellwether_bw1\" PHYSICAL 0/300000 TIMELINE 1".to_owned();
    // Something of the old timeline is lacking: that comes first.
    assert_eq!(meet_promoted(0x37_0000, 0x37_0000, Durability::Quorum), [old]);
    assert_eq!(meet_promoted(0x38_0000, 0x38_0000, Durability::Quorum), std::slice::from_ref(&follow));
    // Half a record beyond the fork is nobody's.
    assert_eq!(meet_promoted(0x38_2000, 0x38_0000, Durability::Quorum), std::slice::from_ref(&follow));
    // Whole records are: promised with a quorum, said aloud without.
    let refused = meet_promoted(0x38_2000, 0x38_1000, Durability::Quorum);
    assert!(
        matches!(&refused[..], [why] if why.contains("4096 bytes before the durable end")),
        "{refused:?}"
    );
    let left_behind = "left behind 0/380000 to 0/381000".to_owned();
    assert_eq!(meet_promoted(0x38_2000, 0x38_1000, Durability::Async), [left_behind, follow]);
}

#[test]
fn among_several_relays_what_lies_behind_the_floor_was_promised_to_nobody() {
    let meet = |timeline, end| {
        let promised = Promised::UpTo(TimelineId(timeline), Lsn(end));
        let own = stored(0x38_2000, 0x38_1000);
        met_promoted(Talk::with_config(own, Durability::Quorum, Role::Named, promised))
    };
    let left_behind = "left behind 0/380000 to 0/381000";
    assert_eq!(meet(1, 0x38_0000)[0], left_behind);
    // The floor is on the new timeline itself.
    assert_eq!(meet(2, 0x39_0000)[0], left_behind);
    assert!(meet(1, 0x38_0800)[0].contains("2048 bytes before the durable end"));
}

#[test]
fn a_relay_whose_log_goes_on_is_believed_as_far_as_the_election_goes() {
    let meet = |own: Stored, theirs| {
        let role = Role::Source { timeline: TimelineId(2) };
        let mut talk = Talk::with(own, Durability::Quorum, role);
        talk.outputs();
        talk.identify(theirs, "0/400000");
        talk
    };
    let mut talk = meet(stored(0x38_0000, 0x38_0000), 2);
    talk.says("ask SHOW wal_segment_size");
    talk.row(&[Some("1MB")]);
    talk.says("ask TIMELINE_HISTORY 2");
    talk.row(&[Some("00000002.history"), Some(HISTORY)]);
    assert!(talk.outputs()[0].starts_with("KeepHistory"));
    talk.done();
    talk.says("Follow { timeline: TimelineId(2), switchpoint: 0/380000 }");
    talk.done();
    talk.says("ask START_REPLICATION PHYSICAL 0/300000 TIMELINE 2");
    // It obeys an earlier directive, or a later one.
    for theirs in [1, 3] {
        let lost = meet(stored(0x38_0000, 0x38_0000), theirs).outputs();
        assert!(lost[0].contains("not on 2 any more, or not yet"), "{lost:?}");
    }
}

#[test]
fn silence_is_asked_about_and_then_ends_the_stream() {
    let mut talk = Talk::streaming(stored(0x30_0000, 0));
    talk.outputs();
    let status = "write 0/300000 flush 0/300000 apply 0/0";
    for (millis, expected) in [
        (300, format!("{status} and asks")),
        // Once: what is lost is lost with its connection.
        (1300, status.to_owned()),
        (2300, status.to_owned()),
    ] {
        talk.elapsed = Duration::from_millis(millis);
        assert_eq!(talk.receiver.poll_timeout(), Some(talk.now().at));
        talk.input(Input::Tick);
        talk.says(&expected);
    }
    // It speaks, and is silent again.
    talk.elapsed = Duration::from_millis(2400);
    talk.asked();
    talk.outputs();
    talk.elapsed = Duration::from_millis(2700);
    talk.input(Input::Tick);
    talk.says(&format!("{status} and asks"));
    talk.elapsed = Duration::from_millis(12_400);
    talk.input(Input::Tick);
    talk.says("Lost { why: \"silent for 10s\" }");
    assert_eq!(talk.receiver.poll_timeout(), None);
}

#[test]
fn ends_are_told_apart() {
    let end = |act: &dyn Fn(&mut Talk)| {
        let mut talk = Talk::streaming(stored(0x30_0000, 0));
        talk.outputs();
        act(&mut talk);
        talk.outputs().concat()
    };
    assert_eq!(end(&|talk| talk.message(b'C', b"COPY 0\0")), "Shutdown");
    assert!(end(&|talk| talk.error(SqlState::ADMIN_SHUTDOWN)).starts_with("Lost"));
    assert!(end(&|talk| talk.error(SqlState::UNDEFINED_FILE)).ends_with("cause: Removed }"));
    let diverged = || StoreError::Diverged { timeline: TimelineId(1), lsn: Lsn(0x30_0010) };
    assert!(
        end(&|talk| talk.input(Input::Unfit(Arc::new(diverged()))))
            .ends_with("cause: Diverged { timeline: TimelineId(1), lsn: 0/300010 } }")
    );
    assert!(end(&|talk| talk.message(b'd', b"w123")).starts_with("Lost"));
    assert!(end(&|talk| talk.message(b'T', b"")).starts_with("Lost"));
}

#[test]
fn feedback_is_sent_once_a_second_at_most_and_repeated_seldom() {
    use crate::pg::protocol::replication::FullTransactionId;
    let mut talk = Talk::streaming(stored(0x30_0000, 0));
    talk.outputs();
    let mut sent = Vec::new();
    for (millis, xmin) in [(0, 700), (500, 701), (1000, 701), (1500, 701), (10_900, 701), (11_000, 701)] {
        talk.elapsed = Duration::from_millis(millis);
        talk.input(Input::Feedback { xmin: Some(FullTransactionId(xmin)), catalog_xmin: None });
        sent.extend(talk.outputs().iter().map(|_| millis));
    }
    assert_eq!(sent, [0, 1000, 11_000]);
}

/// A substitute on timeline `theirs`, where timeline 2 is known: its WAL is asked for, without a slot.
fn stands_in(own: Stored, theirs: u32, history: Option<&str>) -> Talk {
    let mut talk = Talk::with(own, Durability::Quorum, Role::Substitute { known: TimelineId(2) });
    talk.outputs();
    talk.identify(theirs, "0/400000");
    talk.row(&[Some("1MB")]);
    if let Some(history) = history {
        talk.row(&[Some("x.history"), Some(history)]);
    }
    talk
}

#[test]
fn a_substitute_gives_nothing_behind_the_known_end_of_its_timeline() {
    let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
    while wal.end() < Lsn(0x38_1000) {
        wal.record(500);
    }
    let begin = Lsn(0x30_0000);
    let mut own = stored(begin.0, 0);
    own.histories.insert(TimelineId(2), Bytes::from(HISTORY));
    let mut talk = stands_in(own, 1, None);
    let line = talk.outputs().pop();
    assert_eq!(line.as_deref(), Some("ask START_REPLICATION PHYSICAL 0/300000 TIMELINE 1"));
    talk.message(b'W', b"\0\0\0");
    talk.outputs();
    talk.wal(begin, wal.bytes());
    let outputs = talk.outputs();
    assert!(outputs[0].starts_with("append 524288 at 0/300000"), "{outputs:?}");
    assert_eq!(outputs[1], "TimelineEnd { next: TimelineId(2), switchpoint: 0/380000 }");
}

#[test]
fn the_known_timeline_is_followed_with_a_substitute_and_no_other() {
    let mut own = stored(0x38_0000, 0x38_0000);
    own.histories.insert(TimelineId(2), Bytes::from(HISTORY));
    let mut talk = stands_in(own.clone(), 2, Some(HISTORY));
    talk.done();
    let follow = "Follow { timeline: TimelineId(2), switchpoint: 0/380000 }";
    assert!(talk.outputs().contains(&follow.to_owned()));
    // Another branch of the same number.
    let last = |mut talk: Talk| talk.outputs().pop().unwrap_or_default();
    assert!(last(stands_in(own.clone(), 2, Some("1\t0/390000\tx\n"))).contains("another branch"));
    // It has been promoted where nobody elected it: what it has of timeline 2 is taken, what it made is not.
    own.timeline = TimelineId(2);
    let mut promoted = stands_in(own, 3, Some("1\t0/380000\tx\n2\t0/390000\tx\n"));
    promoted.says(
        "ask SHOW wal_segment_size|ask TIMELINE_HISTORY 3|ask START_REPLICATION PHYSICAL 0/300000 TIMELINE 2",
    );
}
