//! The answers of a walsender, message by message, as servers from 13 to 18 give them. Everything is in text
//! format and comes from no table.

use bytes::{BufMut, Bytes, BytesMut};

use crate::pg::protocol::replication::{Keepalive, XLogDataHeader};
use crate::pg::wal::history_file_name;
use crate::pg::{ErrorFields, Lsn, SystemIdentifier, TimelineId};
use crate::relay::slots::RestartPoint;

/// The upstream's major version, whose manners the relay has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServerMajor(u32);

/// A type's OID, length and modifier in a RowDescription.
#[derive(Clone, Copy)]
struct Type(u32, i16, i32);

const BYTEA: Type = Type(17, -1, -1);
const INT8: Type = Type(20, 8, -1);
const INT4: Type = Type(23, 4, -1);
const TEXT: Type = Type(25, -1, -1);

impl ServerMajor {
    /// Of a `server_version` such as `15.20 (Debian ...)` or `18beta1`; what is not known is taken for new.
    pub(super) fn parse(server_version: &str) -> ServerMajor {
        let digits = server_version.find(|c: char| !c.is_ascii_digit()).unwrap_or(server_version.len());
        ServerMajor(server_version[..digits].parse().unwrap_or(u32::MAX))
    }

    /// READ_REPLICATION_SLOT came with 15.
    pub(super) fn reads_slots(self) -> bool {
        self >= ServerMajor(15)
    }

    fn timeline_type(self) -> Type {
        if self >= ServerMajor(16) { INT8 } else { INT4 }
    }

    /// 13 calls a history file bytea; up to 15 the modifier is 0.
    fn history_types(self) -> [Type; 2] {
        let modifier = if self >= ServerMajor(16) { -1 } else { 0 };
        let content = if self >= ServerMajor(14) { TEXT } else { BYTEA };
        [Type(TEXT.0, TEXT.1, modifier), Type(content.0, content.1, modifier)]
    }
}

/// Messages in the order they are appended.
#[derive(Debug, Default)]
pub(super) struct Reply {
    out: BytesMut,
}

impl Reply {
    pub(super) fn finish(self) -> Bytes {
        self.out.freeze()
    }

    pub(super) fn parameter_status(mut self, name: &str, value: &str) -> Reply {
        self.message(b'S', |out| {
            put_cstr(out, name);
            put_cstr(out, value);
        });
        self
    }

    pub(super) fn backend_key_data(mut self, pid: u32, secret: u32) -> Reply {
        self.message(b'K', |out| {
            out.put_u32(pid);
            out.put_u32(secret);
        });
        self
    }

    pub(super) fn error(mut self, fields: &ErrorFields) -> Reply {
        fields.encode(&mut self.out);
        self
    }

    pub(super) fn command_complete(mut self, tag: &str) -> Reply {
        self.message(b'C', |out| put_cstr(out, tag));
        self
    }

    /// Always outside a transaction: there are none here.
    pub(super) fn ready_for_query(mut self) -> Reply {
        self.message(b'Z', |out| out.put_u8(b'I'));
        self
    }

    pub(super) fn copy_both(mut self) -> Reply {
        // Text format, no columns.
        self.message(b'W', |out| out.put_slice(&[0, 0, 0]));
        self
    }

    pub(super) fn copy_done(mut self) -> Reply {
        self.message(b'c', |_| {});
        self
    }

    pub(super) fn keepalive(mut self, keepalive: &Keepalive) -> Reply {
        self.message(b'd', |out| keepalive.encode(out));
        self
    }

    pub(super) fn identify_system(
        mut self,
        major: ServerMajor,
        system: SystemIdentifier,
        timeline: TimelineId,
        xlogpos: Lsn,
    ) -> Reply {
        self.row_description(&[
            ("systemid", TEXT),
            ("timeline", major.timeline_type()),
            ("xlogpos", TEXT),
            ("dbname", TEXT),
        ]);
        self.data_row(&[
            Some(system.to_string().as_bytes()),
            Some(timeline.to_string().as_bytes()),
            Some(xlogpos.to_string().as_bytes()),
            None,
        ]);
        self.command_complete("IDENTIFY_SYSTEM")
    }

    pub(super) fn show(mut self, name: &str, value: &str) -> Reply {
        self.row_description(&[(name, TEXT)]);
        self.data_row(&[Some(value.as_bytes())]);
        self.command_complete("SHOW")
    }

    /// The columns of a history file; they go out even when the file turns out to be missing.
    pub(super) fn history_description(mut self, major: ServerMajor) -> Reply {
        let [filename, content] = major.history_types();
        self.row_description(&[("filename", filename), ("content", content)]);
        self
    }

    /// The file's bytes as they are, whatever the column's type says.
    pub(super) fn history_content(mut self, timeline: TimelineId, content: &[u8]) -> Reply {
        self.data_row(&[Some(history_file_name(timeline).as_bytes()), Some(content)]);
        self.command_complete("TIMELINE_HISTORY")
    }

    /// `slot`: `None` when there is no such slot, `Some(None)` when it reserves nothing yet.
    pub(super) fn slot(mut self, slot: Option<Option<RestartPoint>>) -> Reply {
        self.row_description(&[("slot_type", TEXT), ("restart_lsn", TEXT), ("restart_tli", INT8)]);
        let restart = slot.flatten();
        self.data_row(&[
            slot.map(|_| b"physical".as_slice()),
            restart.map(|restart| restart.lsn.to_string()).as_deref().map(str::as_bytes),
            restart.map(|restart| restart.timeline.to_string()).as_deref().map(str::as_bytes),
        ]);
        self.command_complete("READ_REPLICATION_SLOT")
    }

    pub(super) fn slot_created(mut self, name: &str) -> Reply {
        self.row_description(&[
            ("slot_name", TEXT),
            ("consistent_point", TEXT),
            ("snapshot_name", TEXT),
            ("output_plugin", TEXT),
        ]);
        self.data_row(&[Some(name.as_bytes()), Some(b"0/0"), None, None]);
        self.command_complete("CREATE_REPLICATION_SLOT")
    }

    /// The end of a stream: with the next timeline when this one is over, and both completions always (libpq's
    /// `libpqrcv_endstreaming` insists).
    pub(super) fn end_of_stream(mut self, next: Option<(TimelineId, Lsn)>) -> Reply {
        if let Some((timeline, switchpoint)) = next {
            self.row_description(&[("next_tli", INT8), ("next_tli_startpos", TEXT)]);
            self.data_row(&[Some(timeline.to_string().as_bytes()), Some(switchpoint.to_string().as_bytes())]);
        }
        self.command_complete("START_STREAMING").command_complete("START_REPLICATION").ready_for_query()
    }

    fn row_description(&mut self, columns: &[(&str, Type)]) {
        self.message(b'T', |out| {
            out.put_u16(u16::try_from(columns.len()).expect("a handful of columns"));
            for (name, Type(oid, length, modifier)) in columns {
                put_cstr(out, name);
                // No table, no column of one.
                out.put_u32(0);
                out.put_u16(0);
                out.put_u32(*oid);
                out.put_i16(*length);
                out.put_i32(*modifier);
                out.put_u16(0);
            }
        });
    }

    fn data_row(&mut self, values: &[Option<&[u8]>]) {
        self.message(b'D', |out| {
            out.put_u16(u16::try_from(values.len()).expect("a handful of columns"));
            for value in values {
                match value {
                    None => out.put_i32(-1),
                    Some(bytes) => {
                        out.put_u32(u32::try_from(bytes.len()).expect("far below a gigabyte"));
                        out.put_slice(bytes);
                    }
                }
            }
        });
    }

    fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.out.put_u8(tag);
        let length_at = self.out.len();
        self.out.put_u32(0);
        body(&mut self.out);
        let length = u32::try_from(self.out.len() - length_at).expect("far below a gigabyte");
        self.out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// CopyData's header and that of the WAL in it, for `length` bytes that follow.
pub(super) fn xlog_data_header(header: &XLogDataHeader, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + XLogDataHeader::LEN);
    out.put_u8(b'd');
    out.put_u32(u32::try_from(4 + XLogDataHeader::LEN + length).expect("a chunk is far below a gigabyte"));
    header.encode(&mut out);
    out.freeze()
}

/// A NUL inside would end the string early and shift all that follows.
fn put_cstr(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().map(|b| if b == 0 { b' ' } else { b }));
    out.put_u8(0);
}
