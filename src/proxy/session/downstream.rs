//! From the server to the client.

use super::core::{Core, Heard, ServerState};
use super::durability::Refusal;
use super::lane::Lane;
use super::ledger::{For, Owed};
use super::listening::Notified;
use super::message::{self, Status, put};
use super::names::undo;
use super::unit::Failure;
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::proxy::route::SessionEffect;

/// An ErrorResponse up to this long is read before it is forwarded; longer ones are only forwarded.
const MAX_ERROR: usize = 64 * 1024;

/// What to do with the message in front.
enum Deal {
    Pass,
    Swallow,
    /// The client hears this in its place.
    Replace(Vec<u8>),
    /// Wait until all of it is there.
    Whole,
    /// Pass it, behind what is to be told first.
    Ready,
    /// Pass it, and nothing more.
    Last,
    Stop(Heard),
}

impl Core {
    /// Decides about as many of the server's messages as it can; stops behind a ReadyForQuery for the client.
    pub(crate) fn server(&mut self, down: &mut Lane, server: &mut ServerState) -> Heard {
        loop {
            if !self.go_on_with_answer(down) {
                return Heard::Nothing;
            }
            // As soon as their turn has come: behind a Flush nothing else may follow.
            while let Some(tag) = self.ledger.pop_own() {
                put(down.out(), tag, &[]);
                self.unit.answering();
            }
            let header = match Header::peek(down.unread()) {
                Err(error) => return broken(&error.to_string()),
                Ok(None) => return Heard::Nothing,
                Ok(Some(header)) => header,
            };
            // Rows and COPY data, the bulk of all bytes, concern nobody but the client; but for one kind.
            let is_bulk = match header.tag {
                b'D' => !self.state.pins().heed_rows(),
                tag => tag == b'd',
            };
            if is_bulk && !self.ledger.awaits_own() {
                self.down_pass = header.total;
                self.unit.answering();
                continue;
            }
            let deal = match header.tag {
                b'S' => self.hear_parameter(header, down.unread(), server),
                _ if self.ledger.awaits_own() => self.swallow(header, down.unread(), server),
                _ => self.hear(header, down.unread(), server),
            };
            match deal {
                Deal::Pass => {
                    self.down_pass = header.total;
                    self.unit.answering();
                }
                Deal::Ready => {
                    // In this order (`PostgresMain` in postgres.c).
                    self.tell_heard(down);
                    self.tell_changes(server, down);
                    down.pass(header.total);
                    return Heard::Ready;
                }
                Deal::Swallow => self.down_skip = header.total,
                Deal::Replace(message) => {
                    down.skip(header.total);
                    down.out().extend_from_slice(&message);
                    self.unit.answering();
                }
                Deal::Whole => return Heard::Nothing,
                Deal::Last => {
                    down.pass(header.total);
                    return Heard::Over;
                }
                Deal::Stop(heard) => return heard,
            }
        }
    }

    fn go_on_with_answer(&mut self, down: &mut Lane) -> bool {
        let passed = self.down_pass.min(down.unread().len());
        down.pass(passed);
        self.down_pass -= passed;
        let skipped = self.down_skip.min(down.unread().len());
        if skipped > 0 {
            down.skip(skipped);
            self.down_skip -= skipped;
        }
        self.down_pass == 0 && self.down_skip == 0
    }

    /// The answers to statements of our own.
    fn swallow(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        match header.tag {
            b'V' | b'D' | b'E' if matches!(self.ledger.head(), Some(Owed::Asked(_))) => {
                self.hear_asked(header, bytes, server)
            }
            b'C' | b'E' if header.total > MAX_ERROR => {
                Deal::Stop(broken("an answer to settings is too long"))
            }
            b'C' | b'E' if bytes.len() < header.total => Deal::Whole,
            b'E' if !matches!(self.ledger.head(), Some(Owed::Ahead { .. })) => {
                self.hear_bring_failed(header, bytes, server)
            }
            b'E' => {
                let error = message::read_error(&bytes[..header.total]);
                let error =
                    error.unwrap_or_else(|| ErrorFields::error(SqlState::INTERNAL_ERROR, "settings refused"));
                match error.severity {
                    // No word on the settings: another server may take them.
                    Severity::Fatal => self.hear_farewell(error),
                    _ => Deal::Stop(Heard::Refused(error)),
                }
            }
            // A pinned session may listen.
            b'A' => self.hear_of_notification(header, bytes, server),
            tag => {
                self.ledger.own_answered(tag);
                Deal::Swallow
            }
        }
    }

    /// An error: the block has failed, and its COMMIT says so by itself.
    fn hear_asked(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        if header.total > MAX_ERROR {
            return Deal::Swallow;
        }
        let Some(whole) = bytes.get(..header.total) else { return Deal::Whole };
        if let Some(error) = message::read_error(whole).filter(|error| error.severity == Severity::Fatal) {
            return self.hear_farewell(error);
        }
        if let (b'V' | b'D', Some(Owed::Asked(question))) = (header.tag, self.ledger.head()) {
            self.hear_value(*question, whole, server);
        }
        Deal::Swallow
    }

    fn hear_of_notification(&self, header: Header, bytes: &[u8], server: &ServerState) -> Deal {
        if header.total > MAX_ERROR {
            return Deal::Pass;
        }
        let Some(whole) = bytes.get(..header.total) else { return Deal::Whole };
        match self.hear_notification(whole, server.pid) {
            Notified::AsItIs => Deal::Pass,
            Notified::Own(message) => Deal::Replace(message),
            Notified::Elsewhere => Deal::Swallow,
        }
    }

    /// A statement could not be brought along: in front of a simple query, that is told where the query misses it.
    fn hear_bring_failed(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        if !self.ledger.is_own_unit() {
            return self.hear_error(header, bytes, server);
        }
        let whole = &bytes[..header.total];
        if let Some(error) = message::read_error(whole).filter(|error| error.severity == Severity::Fatal) {
            return self.hear_farewell(error);
        }
        // In a failed block the query says so by itself.
        if message::read_error(whole).is_some_and(|error| error.code != SqlState::IN_FAILED_SQL_TRANSACTION) {
            self.unit.not_brought.get_or_insert_with(|| whole.to_vec());
        }
        self.leave_out(server);
        Deal::Swallow
    }

    /// The server skips what it was sent, up to a Sync.
    fn leave_out(&mut self, server: &mut ServerState) {
        let prepared = &mut self.prepared;
        self.ledger.failed(|left_out| undo(prepared, Some(&mut server.statements), left_out));
    }

    /// What the client hears of it is decided at ReadyForQuery, which follows.
    fn hear_parameter(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        if header.total > MAX_ERROR {
            return Deal::Pass;
        }
        let Some(whole) = bytes.get(..header.total) else { return Deal::Whole };
        let Some((name, value)) = message::parameter(whole) else { return Deal::Pass };
        self.state.reported(name);
        server.reported.set(name, value);
        Deal::Swallow
    }

    fn hear(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        match header.tag {
            b'1' | b'2' | b'3' | b'n' | b'T' | b'I' | b's' | b'C' | b't' => {
                self.hear_answer(header, bytes, server)
            }
            b'Z' => self.hear_ready(header, bytes, server),
            b'E' => self.hear_error(header, bytes, server),
            b'G' => {
                self.ledger.copy_in_began();
                // The Sync behind its Execute was none.
                self.unit.open |= self.ledger.units() == 0;
                Deal::Pass
            }
            b'N' => hear_notice(header, bytes),
            b'D' => self.hear_row(header, bytes),
            b'A' => self.hear_of_notification(header, bytes, server),
            // CopyOutResponse, CopyDone, FunctionCallResponse.
            b'H' | b'c' | b'V' => Deal::Pass,
            other => Deal::Stop(broken(&format!("message of type 0x{other:02x}"))),
        }
    }

    fn hear_answer(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        let mut instead = None;
        if header.tag == b'C' {
            if bytes.len() < header.total.min(MAX_ERROR) {
                return Deal::Whole;
            }
            let tag = bytes.get(HEADER_LEN..header.total).and_then(|tag| tag.strip_suffix(b"\0"));
            instead = self.completed(tag.unwrap_or_default(), server);
        }
        let answers = match (header.tag, self.ledger.head()) {
            (b'1', Some(Owed::Parse(whom, _))) => Some(*whom),
            (b'3', Some(Owed::Close(whom, _))) => Some(*whom),
            (b'2', Some(Owed::Bind)) | (b'n' | b'T', Some(Owed::Describe)) => Some(For::Client),
            (b'C' | b'I' | b's', Some(Owed::Execute(_))) => {
                if header.tag == b's' && self.ledger.advisory().is_some() {
                    self.state.pins_mut().rows_suspended();
                }
                self.ledger.copy_ended();
                Some(For::Client)
            }
            // Of a simple query, and ParameterDescription.
            _ => None,
        };
        if answers.is_some() {
            self.ledger.pop();
        }
        match instead {
            _ if answers == Some(For::Nobody) => Deal::Swallow,
            Some(tag) => {
                let mut message = vec![];
                message::put_complete(&mut message, tag);
                Deal::Replace(message)
            }
            None => Deal::Pass,
        }
    }

    /// Of a call about an advisory lock, among others.
    fn hear_row(&mut self, header: Header, bytes: &[u8]) -> Deal {
        let Some(call) = self.ledger.advisory() else { return Deal::Pass };
        if header.total > MAX_ERROR {
            self.state.pins_mut().row(call, None);
            return Deal::Pass;
        }
        let Some(whole) = bytes.get(..header.total) else { return Deal::Whole };
        self.state.pins_mut().row(call, message::only_value(whole));
        Deal::Pass
    }

    fn hear_ready(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        if bytes.len() < header.total {
            return Deal::Whole;
        }
        let Some(status) = bytes.get(5).copied().and_then(Status::from_byte) else {
            return Deal::Stop(broken("ReadyForQuery without a status"));
        };
        if status == Status::Idle
            && let Some(held) = self.settle()
        {
            return Deal::Stop(held);
        }
        if self.is_beyond_mode(status) {
            let error = ErrorFields { severity: Severity::Fatal, ..no_blocks() };
            return Deal::Stop(Heard::Broken(error));
        }
        self.ledger.ready();
        self.unit_ended(status, server);
        Deal::Ready
    }

    fn hear_error(&mut self, header: Header, bytes: &[u8], server: &mut ServerState) -> Deal {
        if header.total <= MAX_ERROR {
            let Some(whole) = bytes.get(..header.total) else { return Deal::Whole };
            if let Some(error) = message::read_error(whole).filter(|error| error.severity == Severity::Fatal)
            {
                return self.hear_farewell(error);
            }
        }
        self.commit = None;
        let error = bytes.get(..header.total).and_then(message::read_error);
        let no_sql = error.is_some_and(|error| error.code == SqlState::SYNTAX_ERROR);
        self.unit.failure = Some(if no_sql { Failure::NoSql } else { Failure::Other });
        let instead = bytes.get(..header.total).and_then(|whole| self.hear_of_statements(whole, server));
        if !matches!(self.ledger.head(), Some(Owed::Query(_) | Owed::Function | Owed::Sync)) {
            self.leave_out(server);
        }
        instead.map_or(Deal::Pass, Deal::Replace)
    }

    /// The last word of a server. Where the client itself is what ends it, the word is the client's; otherwise what it
    /// means for the client depends on what was under way.
    fn hear_farewell(&self, error: ErrorFields) -> Deal {
        let is_clients = match error.code {
            // Something else than COPY's messages within a COPY: the server cannot go on (`PostgresMain` in postgres.c,
            // "protocol synchronization was lost").
            SqlState::PROTOCOL_VIOLATION => true,
            // Limits of a transaction, which is the client's (`ProcessInterrupts`). Nothing of it is committed:
            // CommitTransaction in xact.c ends them first.
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT | SqlState::TRANSACTION_TIMEOUT => true,
            // The limit of a session, which is the client's where it keeps its server.
            SqlState::IDLE_SESSION_TIMEOUT => self.keeps_server() || self.pinned().is_some(),
            _ => false,
        };
        if is_clients { Deal::Last } else { Deal::Stop(Heard::Lost(error)) }
    }

    /// An error that may be about a prepared statement of ours; what the client hears in its place.
    fn hear_of_statements(&mut self, whole: &[u8], server: &mut ServerState) -> Option<Vec<u8>> {
        let error = message::read_error(whole)?;
        match (error.code, self.ledger.head()) {
            // Ours. The values that the server would accept are not those that the client may have.
            (SqlState::INVALID_PARAMETER_VALUE, _) if Refusal::words_for(&error.message).is_some() => {
                return message::with_text(whole, Refusal::words_for(&error.message)?);
            }
            // In a failed block nothing can be brought, either.
            (
                SqlState::INVALID_SQL_STATEMENT_NAME | SqlState::IN_FAILED_SQL_TRANSACTION,
                Some(Owed::Query(_)),
            ) if self.unit.not_brought.is_some() => return self.unit.not_brought.take(),
            // "cached plan must not change result type": for everybody who has it prepared there.
            (SqlState::FEATURE_NOT_SUPPORTED, _)
                if message::routine(whole) == Some(b"RevalidateCachedQuery") =>
            {
                self.unit.uses.iter().for_each(|statement| statement.outdate());
                // Not seen here, or it would not have been used.
                self.schema.changed();
            }
            // Something may have deallocated it behind our back.
            (SqlState::INVALID_SQL_STATEMENT_NAME, Some(Owed::Bind | Owed::Describe)) => {
                self.unit.uses.iter().for_each(|statement| server.statements.doubt(statement.id));
            }
            (SqlState::INVALID_SQL_STATEMENT_NAME, Some(Owed::Query(follow) | Owed::Execute(follow))) => {
                let verdict = follow.verdict();
                for effect in verdict.iter().flat_map(|verdict| &verdict.session) {
                    if let SessionEffect::Execute(name) = effect {
                        server.statements.doubt_name(name.as_bytes());
                    }
                }
            }
            _ => {}
        }
        None
    }
}

/// A commit that stopped waiting for its synchronous standby looks like any other, but for a warning: it is on
/// the primary's disk only. Messages are translated; the function that warns is not (`SyncRepWaitForLSN` in
/// syncrep.c).
fn hear_notice(header: Header, bytes: &[u8]) -> Deal {
    if header.total > MAX_ERROR {
        return Deal::Pass;
    }
    let Some(whole) = bytes.get(..header.total) else { return Deal::Whole };
    if message::routine(whole) != Some(b"SyncRepWaitForLSN") {
        return Deal::Pass;
    }
    Deal::Stop(Heard::Broken(
        ErrorFields::fatal(
            SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            "the wait for the commit to be durable on the quorum was cancelled",
        )
        .with_detail("The transaction is committed on the primary, and may be lost with it."),
    ))
}

/// In statement mode; the words are PgBouncer's.
pub(super) fn no_blocks() -> ErrorFields {
    let message = "transaction blocks not allowed in statement pooling mode";
    ErrorFields::error(SqlState::FEATURE_NOT_SUPPORTED, message)
}

fn broken(what: &str) -> Heard {
    Heard::Broken(ErrorFields::fatal(
        SqlState::PROTOCOL_VIOLATION,
        format!("the server broke the protocol: {what}"),
    ))
}
