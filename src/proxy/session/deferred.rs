//! A transaction block that has no server yet: BEGIN is answered here and sent in front of the first statement that
//! needs one, so that a client which thinks between the two keeps nobody waiting.
//!
//! The block's time (`now()`) is that of its first statement, not of its BEGIN. Only a simple query with nothing but
//! a BEGIN is deferred: in the extended protocol drivers send it along with the first statement.

use std::sync::Arc;

use super::core::{Core, Demand, PoolMode};
use super::lane::Lane;
use super::ledger::Owed;
use super::look::query_text;
use super::message::{self, Status, put_complete, put_ready};
use super::upstream::Lanes;
use crate::proxy::route::{Access, SessionEffect, TransactionEffect, Verdict, WriteReason};

/// The BEGIN that was answered and not sent.
#[derive(Debug)]
pub(super) struct Deferred {
    verdict: Arc<Verdict>,
    text: Box<str>,
}

/// A longer BEGIN is sent as it comes, in bytes.
const MAX_TEXT: usize = 256;

impl Core {
    /// Answers the simple query in front, of `total` bytes, if it begins a block or ends one that never had a server;
    /// whether it did.
    pub(super) fn answer_block(
        &mut self,
        verdict: &Arc<Verdict>,
        total: usize,
        lanes: &mut Lanes<'_>,
    ) -> bool {
        if verdict.statements != 1 || self.mode != PoolMode::Transaction {
            return false;
        }
        let (tag, status) = match (&verdict.transaction, &self.deferred) {
            (TransactionEffect::Begin(_), None) => {
                let text = query_text(&lanes.up.unread()[..total]).and_then(|text| str::from_utf8(text).ok());
                let Some((text, tag)) = text.and_then(|text| Some((text, tag_of(text)?))) else {
                    return false;
                };
                self.deferred = Some(Deferred { verdict: verdict.clone(), text: text.into() });
                (tag, Status::Block)
            }
            (TransactionEffect::Commit, Some(_)) => ("COMMIT", Status::Idle),
            (TransactionEffect::Rollback, Some(_)) => ("ROLLBACK", Status::Idle),
            _ => return false,
        };
        if status == Status::Idle {
            self.deferred = None;
            self.knobs.transaction_ended();
        }
        self.status = status;
        self.ahead.clear();
        self.prepared.forget_unnamed();
        lanes.up.skip(total);
        put_complete(lanes.down.out(), tag);
        put_ready(lanes.down.out(), status);
        self.count_answer(status);
        true
    }

    /// What a server is needed for: in a block that may write, for the block.
    pub(super) fn demand_of_block(&self, demand: Demand) -> Demand {
        let Some(Deferred { verdict: begin, .. }) = &self.deferred else { return demand };
        let reads_only =
            matches!(&begin.transaction, TransactionEffect::Begin(modes) if modes.fit_for_standby());
        if reads_only && begin.hint.is_none() && !only_sets(&demand.verdict) {
            return demand;
        }
        Demand { verdict: begin.clone(), ..demand }
    }

    /// The block gets its server: it begins there, in front of its first statement and without waiting. When that
    /// fails, nothing of the client's is run, as for [`Core::bring_settings`].
    pub(super) fn begin_deferred(&mut self, up: &mut Lane) {
        let Some(deferred) = self.deferred.take() else { return };
        message::put_statement(up.out(), &deferred.text);
        self.portals.lend_unnamed(self.ledger.unit());
        self.ledger.sent(Owed::Ahead { statements: 1 });
        self.unit.begun = Some(deferred);
    }
}

/// Settings may be set wherever the block reads.
fn only_sets(verdict: &Verdict) -> bool {
    let sets = |effect: &SessionEffect| {
        matches!(effect, SessionEffect::Set(..) | SessionEffect::SetLocal(_) | SessionEffect::Reset(_))
    };
    verdict.access == Access::Write { reason: WriteReason::Session }
        && !verdict.session.is_empty()
        && verdict.session.iter().all(sets)
}

/// What the server would answer; `None` for a text that does not begin with its command.
fn tag_of(text: &str) -> Option<&'static str> {
    let text = text.trim_ascii_start();
    let begins = |word: &str| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    match () {
        () if text.len() > MAX_TEXT => None,
        () if begins("BEGIN") => Some("BEGIN"),
        () if begins("START") => Some("START TRANSACTION"),
        () => None,
    }
}
