//! The answers of a walsender, message by message, as servers from 13 to 18 give them. Everything is in text
//! format and comes from no table.

use bytes::{BufMut, Bytes, BytesMut};

use crate::pg::protocol::backend::{self, Column, TransactionStatus};
use crate::pg::protocol::replication::{Keepalive, XLogDataHeader};
use crate::pg::wal::history_file_name;
use crate::pg::{ErrorFields, Lsn, ServerMajor, SystemIdentifier, TimelineId};
use crate::relay::slots::RestartPoint;

/// The relay has the manners of its upstream.
impl ServerMajor {
    /// READ_REPLICATION_SLOT came with 15.
    pub(super) fn reads_slots(self) -> bool {
        self >= ServerMajor(15)
    }

    /// `error_if_invalid` of `ReplicationSlotAcquire` came with 18.
    pub(super) fn refuses_lost_slots(self) -> bool {
        self >= ServerMajor(18)
    }

    fn timeline_column(self) -> Column<'static> {
        if self >= ServerMajor(16) { Column::int8("timeline") } else { Column::int4("timeline") }
    }

    /// 13 calls a history file bytea; up to 15 the modifier is 0.
    fn history_columns(self) -> [Column<'static>; 2] {
        let type_modifier = if self >= ServerMajor(16) { -1 } else { 0 };
        let content =
            if self >= ServerMajor(14) { Column::text("content") } else { Column::bytea("content") };
        [Column { type_modifier, ..Column::text("filename") }, Column { type_modifier, ..content }]
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
        backend::parameter_status(name, value, &mut self.out);
        self
    }

    pub(super) fn backend_key_data(mut self, pid: u32, secret: u32) -> Reply {
        backend::backend_key_data(pid, &secret.to_be_bytes(), &mut self.out);
        self
    }

    pub(super) fn error(mut self, fields: &ErrorFields) -> Reply {
        fields.encode(&mut self.out);
        self
    }

    pub(super) fn command_complete(mut self, tag: &str) -> Reply {
        backend::command_complete(tag, &mut self.out);
        self
    }

    /// Always outside a transaction: there are none here.
    pub(super) fn ready_for_query(mut self) -> Reply {
        backend::ready_for_query(TransactionStatus::Idle, &mut self.out);
        self
    }

    pub(super) fn copy_both(mut self) -> Reply {
        backend::copy_both_response(&mut self.out);
        self
    }

    pub(super) fn copy_done(mut self) -> Reply {
        backend::copy_done(&mut self.out);
        self
    }

    pub(super) fn keepalive(mut self, keepalive: &Keepalive) -> Reply {
        let mut payload = [0; Keepalive::LEN];
        keepalive.encode(&mut payload.as_mut_slice());
        backend::copy_data(&payload, &mut self.out);
        self
    }

    pub(super) fn identify_system(
        mut self,
        major: ServerMajor,
        system: SystemIdentifier,
        timeline: TimelineId,
        xlogpos: Lsn,
    ) -> Reply {
        backend::row_description(
            &[
                Column::text("systemid"),
                major.timeline_column(),
                Column::text("xlogpos"),
                Column::text("dbname"),
            ],
            &mut self.out,
        );
        backend::data_row(
            &[Some(&system.to_string()), Some(&timeline.to_string()), Some(&xlogpos.to_string()), None],
            &mut self.out,
        );
        self.command_complete("IDENTIFY_SYSTEM")
    }

    pub(super) fn show(mut self, name: &str, value: &str) -> Reply {
        backend::row_description(&[Column::text(name)], &mut self.out);
        backend::data_row(&[Some(value)], &mut self.out);
        self.command_complete("SHOW")
    }

    /// The columns of a history file; they go out even when the file turns out to be missing.
    pub(super) fn history_description(mut self, major: ServerMajor) -> Reply {
        backend::row_description(&major.history_columns(), &mut self.out);
        self
    }

    /// The file's bytes as they are, whatever the column's type says.
    pub(super) fn history_content(mut self, timeline: TimelineId, content: &[u8]) -> Reply {
        backend::data_row_bytes(
            &[Some(history_file_name(timeline).as_bytes()), Some(content)],
            &mut self.out,
        );
        self.command_complete("TIMELINE_HISTORY")
    }

    /// `slot`: `None` when there is no such slot, `Some(None)` when it reserves nothing yet.
    pub(super) fn slot(mut self, slot: Option<Option<RestartPoint>>) -> Reply {
        backend::row_description(
            &[Column::text("slot_type"), Column::text("restart_lsn"), Column::int8("restart_tli")],
            &mut self.out,
        );
        let restart = slot.flatten();
        backend::data_row(
            &[
                slot.map(|_| "physical"),
                restart.map(|restart| restart.lsn.to_string()).as_deref(),
                restart.map(|restart| restart.timeline.to_string()).as_deref(),
            ],
            &mut self.out,
        );
        self.command_complete("READ_REPLICATION_SLOT")
    }

    pub(super) fn slot_created(mut self, name: &str) -> Reply {
        backend::row_description(
            &[
                Column::text("slot_name"),
                Column::text("consistent_point"),
                Column::text("snapshot_name"),
                Column::text("output_plugin"),
            ],
            &mut self.out,
        );
        backend::data_row(&[Some(name), Some("0/0"), None, None], &mut self.out);
        self.command_complete("CREATE_REPLICATION_SLOT")
    }

    /// The end of a stream: with the next timeline when this one is over, and both completions always (libpq's
    /// `libpqrcv_endstreaming` insists).
    pub(super) fn end_of_stream(mut self, next: Option<(TimelineId, Lsn)>) -> Reply {
        if let Some((timeline, switchpoint)) = next {
            backend::row_description(
                &[Column::int8("next_tli"), Column::text("next_tli_startpos")],
                &mut self.out,
            );
            backend::data_row(&[Some(&timeline.to_string()), Some(&switchpoint.to_string())], &mut self.out);
        }
        self.command_complete("START_STREAMING").command_complete("START_REPLICATION").ready_for_query()
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
