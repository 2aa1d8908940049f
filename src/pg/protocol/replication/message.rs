//! What CopyData carries while WAL streams. Integers are big-endian, times are [`PgTimestamp`].
//!
//! | kind | direction | fields | bytes |
//! |---|---|---|---|
//! | `w` | to the standby | start, end of WAL, time, then the WAL itself | 25 + n |
//! | `k` | to the standby | end of WAL, time, reply requested | 18 |
//! | `r` | from the standby | write, flush, apply, time, reply requested | 34 |
//! | `h` | from the standby | time, xmin, its epoch, catalog xmin, its epoch | 25 |

use bytes::{Buf, BufMut};

use crate::pg::{Lsn, PgTimestamp};

/// Whether the other side is asked to answer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Requested,
    NotRequested,
}

/// In front of the WAL of a `w` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XLogDataHeader {
    /// Where the bytes that follow begin.
    pub start: Lsn,
    /// The sender's end of WAL, not the end of this message.
    pub end: Lsn,
    pub sent_at: PgTimestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// The sender's end of WAL.
    pub end: Lsn,
    pub sent_at: PgTimestamp,
    pub reply: Reply,
}

/// Each position is the byte after the last one written, flushed, applied; 0/0 when not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatus {
    /// After a reconnect this starts again at the segment's start and may be less than `flush`.
    pub write: Lsn,
    pub flush: Lsn,
    pub apply: Lsn,
    pub sent_at: PgTimestamp,
    pub reply: Reply,
}

/// A transaction id with its epoch in the upper half (`FullTransactionId`), so that ids compare across a
/// wraparound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FullTransactionId(pub u64);

impl FullTransactionId {
    /// `FirstNormalTransactionId` (transam.h): ids below are no transactions.
    const FIRST_NORMAL: u32 = 3;

    fn from_halves(xid: u32, epoch: u32) -> Option<FullTransactionId> {
        (xid >= Self::FIRST_NORMAL).then_some(FullTransactionId(u64::from(epoch) << 32 | u64::from(xid)))
    }

    fn xid(self) -> u32 {
        u32::try_from(self.0 & 0xFFFF_FFFF).expect("the lower half")
    }

    fn epoch(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("the upper half")
    }
}

/// The oldest transactions whose rows a standby's queries may still need; `None` holds nothing back and clears
/// what was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotStandbyFeedback {
    pub sent_at: PgTimestamp,
    pub xmin: Option<FullTransactionId>,
    pub catalog_xmin: Option<FullTransactionId>,
}

/// A walsender's CopyData payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromServer<'a> {
    XLogData(XLogDataHeader, &'a [u8]),
    Keepalive(Keepalive),
    /// A kind that a later version may add: to be ignored.
    Unknown(u8),
}

/// A walreceiver's CopyData payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromStandby {
    Status(StandbyStatus),
    Feedback(HotStandbyFeedback),
    /// A kind that a later version may add: to be ignored.
    Unknown(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReplicationMessage {
    #[error("empty replication message")]
    Empty,
    #[error("replication message of type {kind:?} has {length} bytes, {expected} are expected")]
    Length { kind: char, length: usize, expected: usize },
}

impl XLogDataHeader {
    /// The kind included.
    pub const LEN: usize = 25;

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(b'w');
        out.put_u64(self.start.0);
        out.put_u64(self.end.0);
        out.put_i64(self.sent_at.0);
    }
}

impl Keepalive {
    /// The kind included. A walreceiver takes no other length.
    pub const LEN: usize = 18;

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(b'k');
        out.put_u64(self.end.0);
        out.put_i64(self.sent_at.0);
        out.put_u8(self.reply.to_wire());
    }
}

impl StandbyStatus {
    /// The kind included.
    pub const LEN: usize = 34;

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(b'r');
        out.put_u64(self.write.0);
        out.put_u64(self.flush.0);
        out.put_u64(self.apply.0);
        out.put_i64(self.sent_at.0);
        out.put_u8(self.reply.to_wire());
    }
}

impl HotStandbyFeedback {
    /// The kind included.
    pub const LEN: usize = 25;

    /// Each id goes before its epoch (`XLogWalRcvSendHSFeedback` in walreceiver.c): the pair is no big-endian
    /// u64.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(b'h');
        out.put_i64(self.sent_at.0);
        for id in [self.xmin, self.catalog_xmin] {
            out.put_u32(id.map_or(0, FullTransactionId::xid));
            out.put_u32(id.map_or(0, FullTransactionId::epoch));
        }
    }
}

impl<'a> FromServer<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<FromServer<'a>, InvalidReplicationMessage> {
        let (&kind, mut rest) = payload.split_first().ok_or(InvalidReplicationMessage::Empty)?;
        match kind {
            b'w' => {
                // WAL of any length may follow, none at all included.
                expect_length(kind, payload.len().min(XLogDataHeader::LEN), XLogDataHeader::LEN)?;
                let header =
                    XLogDataHeader { start: lsn(&mut rest), end: lsn(&mut rest), sent_at: time(&mut rest) };
                Ok(FromServer::XLogData(header, rest))
            }
            b'k' => {
                expect_length(kind, payload.len(), Keepalive::LEN)?;
                let (end, sent_at) = (lsn(&mut rest), time(&mut rest));
                Ok(FromServer::Keepalive(Keepalive { end, sent_at, reply: Reply::from_wire(rest.get_u8()) }))
            }
            other => Ok(FromServer::Unknown(other)),
        }
    }
}

impl FromStandby {
    pub fn decode(payload: &[u8]) -> Result<FromStandby, InvalidReplicationMessage> {
        let (&kind, mut rest) = payload.split_first().ok_or(InvalidReplicationMessage::Empty)?;
        match kind {
            b'r' => {
                expect_length(kind, payload.len(), StandbyStatus::LEN)?;
                let (write, flush, apply) = (lsn(&mut rest), lsn(&mut rest), lsn(&mut rest));
                let (sent_at, reply) = (time(&mut rest), Reply::from_wire(rest.get_u8()));
                Ok(FromStandby::Status(StandbyStatus { write, flush, apply, sent_at, reply }))
            }
            b'h' => {
                expect_length(kind, payload.len(), HotStandbyFeedback::LEN)?;
                let sent_at = time(&mut rest);
                let (xmin, catalog_xmin) = (full_xid(&mut rest), full_xid(&mut rest));
                Ok(FromStandby::Feedback(HotStandbyFeedback { sent_at, xmin, catalog_xmin }))
            }
            other => Ok(FromStandby::Unknown(other)),
        }
    }
}

impl Reply {
    fn to_wire(self) -> u8 {
        match self {
            Reply::Requested => 1,
            Reply::NotRequested => 0,
        }
    }

    fn from_wire(byte: u8) -> Reply {
        if byte == 0 { Reply::NotRequested } else { Reply::Requested }
    }
}

fn expect_length(kind: u8, length: usize, expected: usize) -> Result<(), InvalidReplicationMessage> {
    if length == expected {
        Ok(())
    } else {
        Err(InvalidReplicationMessage::Length { kind: char::from(kind), length, expected })
    }
}

fn lsn(rest: &mut &[u8]) -> Lsn {
    Lsn(rest.get_u64())
}

fn time(rest: &mut &[u8]) -> PgTimestamp {
    PgTimestamp(rest.get_i64())
}

fn full_xid(rest: &mut &[u8]) -> Option<FullTransactionId> {
    let (xid, epoch) = (rest.get_u32(), rest.get_u32());
    FullTransactionId::from_halves(xid, epoch)
}

#[cfg(test)]
mod tests {
    use super::{
        FromServer, FromStandby, FullTransactionId, HotStandbyFeedback, InvalidReplicationMessage, Keepalive,
        Reply, StandbyStatus, XLogDataHeader,
    };
    use crate::pg::{Lsn, PgTimestamp};

    const TIME: PgTimestamp = PgTimestamp(0x0003_03BB_8B5B_6B4A);
    const TIME_BYTES: [u8; 8] = [0x00, 0x03, 0x03, 0xBB, 0x8B, 0x5B, 0x6B, 0x4A];

    fn bytes(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn xlog_data() {
        let header = XLogDataHeader { start: Lsn(0x1_0300_0000), end: Lsn(0x1_0306_0A80), sent_at: TIME };
        let golden = bytes(&[b"w\0\0\0\x01\x03\0\0\0", b"\0\0\0\x01\x03\x06\x0A\x80", &TIME_BYTES]);
        let mut encoded = Vec::new();
        header.encode(&mut encoded);
        assert_eq!(encoded, golden);
        assert_eq!(encoded.len(), XLogDataHeader::LEN);
        encoded.extend(b"wal");
        assert_eq!(FromServer::decode(&encoded), Ok(FromServer::XLogData(header, b"wal")));
        assert_eq!(FromServer::decode(&golden), Ok(FromServer::XLogData(header, b"")));
    }

    #[test]
    fn keepalive() {
        let message = Keepalive { end: Lsn(0x154_EA90), sent_at: TIME, reply: Reply::Requested };
        let golden = bytes(&[b"k\0\0\0\0\x01\x54\xEA\x90", &TIME_BYTES, b"\x01"]);
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        assert_eq!(encoded, golden);
        assert_eq!(encoded.len(), Keepalive::LEN);
        assert_eq!(FromServer::decode(&golden), Ok(FromServer::Keepalive(message)));
    }

    #[test]
    fn standby_status() {
        let message = StandbyStatus {
            write: Lsn(0x102_0000),
            flush: Lsn(0x15E_8140),
            apply: Lsn::INVALID,
            sent_at: TIME,
            reply: Reply::NotRequested,
        };
        let golden =
            bytes(&[b"r\0\0\0\0\x01\x02\0\0", b"\0\0\0\0\x01\x5E\x81\x40", &[0; 8], &TIME_BYTES, b"\0"]);
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        assert_eq!(encoded, golden);
        assert_eq!(encoded.len(), StandbyStatus::LEN);
        assert_eq!(FromStandby::decode(&golden), Ok(FromStandby::Status(message)));
    }

    #[test]
    fn feedback_puts_each_id_before_its_epoch() {
        let message = HotStandbyFeedback {
            sent_at: TIME,
            xmin: Some(FullTransactionId(0x0000_0002_0000_02E6)),
            catalog_xmin: None,
        };
        let golden = bytes(&[b"h", &TIME_BYTES, b"\0\0\x02\xE6\0\0\0\x02", &[0; 8]]);
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        assert_eq!(encoded, golden);
        assert_eq!(encoded.len(), HotStandbyFeedback::LEN);
        assert_eq!(FromStandby::decode(&golden), Ok(FromStandby::Feedback(message)));
    }

    #[test]
    fn an_id_of_zero_clears_whatever_its_epoch() {
        let payload = bytes(&[b"h", &TIME_BYTES, b"\0\0\0\0\0\0\0\x02", b"\0\0\0\x02\0\0\0\x02"]);
        let cleared = HotStandbyFeedback { sent_at: TIME, xmin: None, catalog_xmin: None };
        assert_eq!(FromStandby::decode(&payload), Ok(FromStandby::Feedback(cleared)));
    }

    #[test]
    fn wrong_lengths_are_errors_and_unknown_kinds_are_not() {
        let length = |kind, length, expected| InvalidReplicationMessage::Length { kind, length, expected };
        assert_eq!(FromServer::decode(b""), Err(InvalidReplicationMessage::Empty));
        assert_eq!(FromServer::decode(&[b'w'; 24]), Err(length('w', 24, 25)));
        assert_eq!(FromServer::decode(&[b'k'; 19]), Err(length('k', 19, 18)));
        assert_eq!(FromServer::decode(b"z123"), Ok(FromServer::Unknown(b'z')));
        assert_eq!(FromStandby::decode(b""), Err(InvalidReplicationMessage::Empty));
        assert_eq!(FromStandby::decode(&[b'r'; 33]), Err(length('r', 33, 34)));
        assert_eq!(FromStandby::decode(&[b'h'; 26]), Err(length('h', 26, 25)));
        assert_eq!(FromStandby::decode(b"p"), Ok(FromStandby::Unknown(b'p')));
    }
}
