//! What the session answers by itself: `bellwether.*` commands, DEALLOCATE of the client's own statements, units that
//! got no server, and the rest of a transaction block whose server is gone.

use std::sync::Arc;

use super::core::{Core, Demand, PoolMode, Texts};
use super::knobs::Rows;
use super::lane::Lane;
use super::look::query_text;
use super::message::{
    Parse, Status, bind_names, put, put_complete, put_error, put_ready, put_text_column, target,
};
use super::upstream::{Lanes, Step};
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::frame::Header;
use crate::proxy::route::{Deallocated, KnobCommand, Shown, TransactionEffect, Verdict};

/// A transaction block without a server.
#[derive(Debug)]
pub(super) enum Cut {
    /// It was lost between two statements: the next one is told.
    Untold(ErrorFields),
    /// 25P02 until the client ends the block.
    Told,
}

impl Core {
    /// No server for the unit in front: it fails with `error`, the connection goes on.
    pub(crate) fn refuse(&mut self, error: &ErrorFields, up: &mut Lane, down: &mut Lane) {
        let status = match self.deferred.take() {
            // The block has failed before it began.
            Some(_) => {
                self.cut = Some(Box::new(Cut::Told));
                Status::Failed
            }
            None => Status::Idle,
        };
        self.status = Status::Idle;
        self.fail_unit(error, status, &mut Lanes { up, down });
    }

    /// The unit in front fails.
    pub(super) fn fail_unit(&mut self, error: &ErrorFields, status: Status, lanes: &mut Lanes<'_>) {
        let simple = matches!(Header::peek(lanes.up.unread()), Ok(Some(Header { tag: b'Q' | b'F', .. })));
        put_error(lanes.down.out(), error);
        self.ahead.clear();
        if simple {
            if let Ok(Some(header)) = Header::peek(lanes.up.unread()) {
                self.up_skip = header.total;
            }
            put_ready(lanes.down.out(), status);
        } else {
            self.skip_to_sync = Some(status);
        }
    }

    /// A unit in a block whose server is gone.
    pub(super) fn answer_cut(
        &mut self,
        demand: &Demand,
        total: Option<usize>,
        lanes: &mut Lanes<'_>,
    ) -> Step {
        let simple = lanes.up.unread().first().is_some_and(|tag| matches!(tag, b'Q' | b'F'));
        let ending = match demand.verdict.transaction {
            TransactionEffect::Commit => Some(Ending::Commit),
            TransactionEffect::Rollback => Some(Ending::Rollback),
            _ => None,
        };
        match (self.cut.take().map(|cut| *cut), ending, total) {
            (Some(Cut::Untold(error)), Some(Ending::Commit), _) => {
                self.fail_unit(&error, Status::Idle, lanes);
            }
            (Some(_), Some(_), Some(total)) if simple => {
                lanes.up.skip(total);
                put_complete(lanes.down.out(), "ROLLBACK");
                put_ready(lanes.down.out(), Status::Idle);
            }
            (Some(_), Some(_), Some(total)) => {
                self.answer_extended(total, lanes, &mut |_, out| put_complete(out, "ROLLBACK"));
            }
            (Some(Cut::Untold(error)), _, _) => {
                self.cut = Some(Box::new(Cut::Told));
                self.fail_unit(&error, Status::Failed, lanes);
            }
            _ => {
                self.cut = Some(Box::new(Cut::Told));
                self.fail_unit(&aborted(), Status::Failed, lanes);
            }
        }
        Step::Next
    }

    pub(super) fn answer_cut_own(&mut self, _total: usize, lanes: &mut Lanes<'_>) -> Step {
        self.cut = Some(Box::new(Cut::Told));
        self.fail_unit(&aborted(), Status::Failed, lanes);
        Step::Next
    }

    /// Whether a text is answered here.
    pub(super) fn is_own(&self, verdict: &Verdict) -> bool {
        verdict.is_own() || self.status != Status::Failed && self.deallocates(verdict)
    }

    /// Whether it is SQL's DEALLOCATE of a statement of the protocol's. Drivers do this with what they keep no longer
    /// (pgx, PDO, DBD::Pg, psycopg with an older libpq); the server knows the statement by another name, if at all.
    pub(super) fn deallocates(&self, verdict: &Verdict) -> bool {
        match verdict.deallocates() {
            Some(Deallocated::One(name)) => self.prepared.named(name.as_bytes()).is_some(),
            // A server that is kept may have more than was seen.
            Some(Deallocated::All) => self.mode != PoolMode::Session && self.pinned().is_none(),
            None => false,
        }
    }

    fn deallocate(&mut self, what: Deallocated<'_>) {
        match what {
            Deallocated::One(name) => self.prepared.remove(name.as_bytes()),
            Deallocated::All => drop(self.prepared.take_all()),
        }
    }

    /// A unit of `total` bytes that holds nothing but commands of ours.
    pub(super) fn answer_own(&mut self, total: usize, lanes: &mut Lanes<'_>, texts: &mut Texts<'_>) {
        self.ahead.clear();
        let status = self.status;
        if lanes.up.unread().first() == Some(&b'Q') {
            let verdict = query_text(&lanes.up.unread()[..total]).map(|text| texts.verdict(text));
            self.prepared.forget_unnamed();
            lanes.up.skip(total);
            if let Some(what) = verdict.as_ref().and_then(|verdict| verdict.deallocates()) {
                self.deallocate(what);
                put_complete(lanes.down.out(), tag_of(what));
            }
            let commands = verdict.iter().flat_map(|verdict| &verdict.knobs);
            for command in commands {
                self.knobs.run(command, Rows::Described, lanes.down.out());
                if matches!(command, KnobCommand::Invalid(_)) {
                    break;
                }
            }
            put_ready(lanes.down.out(), status);
            return;
        }
        self.prepare_own(total, lanes, texts);
        let mut knobs = self.knobs;
        let mut deallocates: Vec<Arc<Verdict>> = Vec::new();
        self.answer_extended(total, lanes, &mut |verdict, out| {
            if let Some((verdict, what)) = verdict.and_then(|verdict| Some((verdict, verdict.deallocates()?)))
            {
                deallocates.push(verdict.clone());
                put_complete(out, tag_of(what));
            }
            for command in verdict.iter().flat_map(|verdict| &verdict.knobs) {
                knobs.run(command, Rows::Bare, out);
            }
        });
        self.knobs = knobs;
        deallocates.iter().filter_map(|verdict| verdict.deallocates()).for_each(|what| self.deallocate(what));
    }

    /// Remembers the statements that a unit of ours prepares.
    fn prepare_own(&mut self, total: usize, lanes: &Lanes<'_>, texts: &mut Texts<'_>) {
        let mut bytes = &lanes.up.unread()[..total];
        while let Ok(Some(header)) = Header::peek(bytes) {
            let (message, rest) = bytes.split_at(header.total.min(bytes.len()));
            bytes = rest;
            let Some(parse) = (header.tag == b'P').then(|| Parse::read(message)).flatten() else { continue };
            let verdict = texts.verdict(parse.text);
            if parse.name.is_empty() {
                self.last_unnamed += 1;
                self.prepared.remember_unnamed(self.last_unnamed, message, verdict);
            } else if !self.prepared.is_full() {
                let named = self.new_statement(parse.rest, &verdict, texts.statements);
                self.prepared.insert(parse.name, named);
            }
        }
    }

    /// Answers the extended messages of a whole unit; `execute` writes what an Execute answers.
    fn answer_extended(&mut self, total: usize, lanes: &mut Lanes<'_>, execute: &mut Execute<'_>) {
        let unit = lanes.up.unread()[..total].to_vec();
        lanes.up.skip(total);
        let status = self.status;
        let out = lanes.down.out();
        let mut bound = None;
        let mut bytes = &unit[..];
        while let Ok(Some(header)) = Header::peek(bytes) {
            let (message, rest) = bytes.split_at(header.total.min(bytes.len()));
            bytes = rest;
            match header.tag {
                b'P' => put(out, b'1', &[]),
                b'B' => {
                    bound = bind_names(message).and_then(|(_, name)| self.prepared.verdict(name)).cloned();
                    put(out, b'2', &[]);
                }
                b'D' => {
                    let described = match target(message) {
                        Some((b'S', name)) => {
                            put(out, b't', &[&[0, 0]]);
                            self.prepared.verdict(name).cloned()
                        }
                        _ => bound.clone(),
                    };
                    match described.as_deref().and_then(shown) {
                        Some(shown) => put_text_column(out, shown.name()),
                        None => put(out, b'n', &[]),
                    }
                }
                b'E' => execute(bound.as_ref(), out),
                b'C' => {
                    if let Some((b'S', name)) = target(message) {
                        self.prepared.remove(name);
                    }
                    put(out, b'3', &[]);
                }
                b'S' => put_ready(out, status),
                _ => {}
            }
        }
    }
}

/// Writes what an Execute of a portal answers.
type Execute<'a> = dyn FnMut(Option<&Arc<Verdict>>, &mut Vec<u8>) + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
}

fn tag_of(what: Deallocated<'_>) -> &'static str {
    match what {
        Deallocated::One(_) => "DEALLOCATE",
        Deallocated::All => "DEALLOCATE ALL",
    }
}

fn aborted() -> ErrorFields {
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    ErrorFields::error(SqlState::IN_FAILED_SQL_TRANSACTION, message)
}

fn shown(verdict: &Verdict) -> Option<Shown> {
    verdict.knobs.iter().find_map(|command| match command {
        KnobCommand::Show(shown) => Some(*shown),
        _ => None,
    })
}
