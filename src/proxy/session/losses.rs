//! What a client hears when its server is gone: nothing, where the unit runs again elsewhere; an error for each unit that
//! was under way, with the truth about its commit; or the end of its session, where that was the server's.

use super::core::Core;
use super::lane::Lane;
use super::local::Cut;
use super::message::{self, Status};
use super::names::undo;
use super::unit::Progress;
use super::upstream::Lanes;
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::proxy::route::{MayWrite, OwnWrite};
use crate::topology::Role;

/// How a server came to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// By itself.
    Connection,
    /// By itself, and its farewell was its first word: what was sent to it last did not run, or was undone. A
    /// backend that is told to end answers so between statements or in the middle of one, whose transaction it
    /// aborts; a commit is neither, and answers first (`ProcessInterrupts`, `exec_simple_query` in postgres.c).
    Unbegun,
    /// A newer term has another primary.
    Failover,
    /// It is not gone, but its commit waits for a quorum that is.
    Unacknowledged,
}

/// What is left to do after a loss.
#[derive(Debug)]
pub(crate) enum AfterLoss {
    /// The client has its answer, or hears of it with its next statement.
    GoOn,
    /// Nothing of the answer had been forwarded, and the statement only reads: it is in the client's lane
    /// again.
    Retry,
    /// The client is told this and disconnected.
    Fatal(ErrorFields),
    /// A message was cut in the middle: nothing can be said any more.
    Close,
}

impl Core {
    /// Whether the unit under way runs again after `loss`, whatever it was that ended the server.
    pub(super) fn runs_again(&self, loss: Loss) -> bool {
        self.unit.replay.fits(loss)
            && !self.has_answered()
            && (self.status == Status::Idle || self.unit.begun.is_some())
            && self.state.pins().is_empty()
    }

    /// The server, which was a `role`, is gone. The client's unanswered units are answered, each with an error.
    pub(crate) fn lost(
        &mut self,
        loss: Loss,
        role: Role,
        what: &str,
        up: &mut Lane,
        down: &mut Lane,
    ) -> AfterLoss {
        let (busy, units, pinned) = (self.is_busy(), self.ledger.units(), self.pinned().is_some());
        let (status, mid_message) = (self.status, self.down_pass > 0);
        // A standby has committed nothing, and nobody is promoted under a session.
        let in_doubt = role == Role::Primary && self.may_be_committing();
        self.forget_server(up, down);
        let error = loss_error(loss, in_doubt, what);
        if in_doubt {
            // Whoever looks whether it is there must not look where it has not arrived yet.
            self.knobs.write = OwnWrite::Unknown;
        }
        let open = std::mem::take(&mut self.unit.open);
        let retry = self.unit.replay.fits(loss) && !self.has_answered() && !open && self.up_skip == 0;
        match () {
            () if mid_message => AfterLoss::Close,
            () if in_doubt && (pinned || self.keeps_server()) => {
                AfterLoss::Fatal(ErrorFields { severity: Severity::Fatal, ..error })
            }
            () if pinned || self.keeps_server() => AfterLoss::Fatal(
                ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection: its server is gone")
                    .with_detail(error.message),
            ),
            () if !busy && status == Status::Idle => AfterLoss::GoOn,
            () if !busy => {
                self.cut = Some(Box::new(Cut::Untold(error)));
                AfterLoss::GoOn
            }
            () if retry && (status == Status::Idle || self.unit.begun.is_some()) => {
                up.put_back(self.unit.replay.messages());
                // A block that began with it begins anew.
                self.deferred = self.unit.begun.take();
                self.status = status;
                AfterLoss::Retry
            }
            () => {
                self.tell_loss(&error, status, units, open, &mut Lanes { up, down });
                AfterLoss::GoOn
            }
        }
    }

    /// The server, which is a `role`, did not take the client's settings, and has run nothing of the client's. A
    /// standby may not have replayed what they name; what the primary refuses would be refused for ever.
    pub(crate) fn settings_refused(
        &mut self,
        error: ErrorFields,
        role: Role,
        up: &mut Lane,
        down: &mut Lane,
    ) -> AfterLoss {
        let (units, keeps) = (self.ledger.units(), self.pinned().is_some() || self.keeps_server());
        let status = self.status;
        self.forget_server(up, down);
        let is_cancelled = error.code == SqlState::QUERY_CANCELED;
        if keeps || (role == Role::Primary && !is_cancelled) {
            return AfterLoss::Fatal(ErrorFields { severity: Severity::Fatal, ..error });
        }
        let open = std::mem::take(&mut self.unit.open);
        self.tell_loss(&error, status, units, open, &mut Lanes { up, down });
        AfterLoss::GoOn
    }

    /// What was under way with a server that is gone is no more.
    fn forget_server(&mut self, up: &mut Lane, down: &mut Lane) {
        let prepared = &mut self.prepared;
        self.ledger.clear(|left_out| undo(prepared, None, left_out));
        self.up_skip += std::mem::take(&mut self.up_pass);
        (self.down_pass, self.down_skip) = (0, 0);
        up.discard_pending();
        let unread = down.unread().len();
        down.skip(unread);
        self.wrote = MayWrite::No;
        self.forget_altered();
        self.detached();
    }

    fn tell_loss(
        &mut self,
        error: &ErrorFields,
        status: Status,
        units: usize,
        open: bool,
        lanes: &mut Lanes<'_>,
    ) {
        let doubt = error.code == SqlState::TRANSACTION_RESOLUTION_UNKNOWN;
        let after = if status == Status::Idle || doubt { Status::Idle } else { Status::Failed };
        for _ in 0..units {
            message::put_error(lanes.down.out(), error);
            message::put_ready(lanes.down.out(), after);
        }
        if open {
            message::put_error(lanes.down.out(), error);
            self.skip_to_sync = Some(after);
        } else if units == 0 {
            // What the server was for has not been sent.
            self.fail_unit(error, after, lanes);
        }
        if after == Status::Failed {
            self.cut = Some(Box::new(Cut::Told));
        }
    }

    /// What was approved of the answer will not be written after all; a unit that was answered wholly stays
    /// answered.
    pub(super) fn take_answer_back(&mut self, down: &mut Lane) {
        if self.unit.progress == Progress::Settled {
            return;
        }
        down.discard_pending();
        self.down_pass = 0;
        self.unit.progress = Progress::Sent;
    }
}

fn loss_error(loss: Loss, in_doubt: bool, what: &str) -> ErrorFields {
    let (code, message) = match (in_doubt, loss) {
        (true, Loss::Unacknowledged) => (
            SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            "the transaction was not acknowledged by the quorum in time; it may still be committed",
        ),
        (true, _) => (
            SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            "the server was lost while the transaction was being committed; it may or may not have been",
        ),
        (false, Loss::Failover) => (SqlState::SERIALIZATION_FAILURE, "transaction cut by a failover"),
        (false, Loss::Connection | Loss::Unbegun | Loss::Unacknowledged) => {
            (SqlState::CONNECTION_FAILURE, "the connection to the server was lost")
        }
    };
    ErrorFields::error(code, message).with_detail(what)
}
