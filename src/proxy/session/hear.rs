//! The session's side of the connection that listens for all: what it is asked, and what it has heard.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock when it asks for a connection")]

use std::time::Instant;

use super::listening::Listens;
use super::run::{Session, Turn};
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::listen::{Ended, Key, Subscription, Ticket};
use crate::topology::Role;

/// Of what waits for a client that is at rest: the rest waits until it has taken this.
const AT_ONCE: usize = 64 * 1024;

/// Of a client that listens, or is about to.
#[derive(Debug, Default)]
pub(super) struct Ear {
    subscription: Option<Subscription>,
    awaits: Option<(Awaited, Ticket)>,
    /// Something was asked, and whether it is answered already was not looked at.
    asked: Asked,
    /// What was read of the server's may go on.
    resumes: Resumes,
    /// Of the core's count of notifications.
    counted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Listen,
    Clear,
    Settle,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asked {
    #[default]
    LookedAt,
    Just,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Resumes {
    #[default]
    No,
    Yes,
}

impl Ear {
    fn await_round(&mut self, awaited: Awaited, ticket: Ticket) {
        self.awaits = Some((awaited, ticket));
        self.asked = Asked::Just;
    }

    /// Whether the session has to look again before it waits.
    pub(super) fn take_asked(&mut self) -> bool {
        std::mem::take(&mut self.asked) == Asked::Just
    }

    /// Whether there is something of the server's that was read and held.
    pub(super) fn take_resumed(&mut self) -> bool {
        std::mem::take(&mut self.resumes) == Resumes::Yes
    }

    /// The server at hand is given up.
    pub(super) fn leave_server(&mut self) {
        self.awaits = None;
        self.resumes = Resumes::No;
        if let Some(subscription) = &self.subscription {
            subscription.disown();
        }
    }
}

impl Session<'_> {
    /// `Ask::Listen`.
    pub(super) fn ask_to_listen(&mut self, channels: &[Box<str>]) {
        let usable = |subscription: &Subscription| self.core.wants_to_hear() || !subscription.is_lost();
        if self.ear.subscription.take_if(|subscription| !usable(subscription)).is_some()
            || self.ear.subscription.is_none()
        {
            let key = Key { database: self.database.clone(), encoding: self.core.client_encoding().into() };
            let account = (&self.user, &self.credentials);
            self.ear.subscription = self.shared.hubs.join(key, account, &self.slot, Instant::now());
        }
        match self.ear.subscription.as_ref().and_then(|subscription| subscription.listen(channels)) {
            Some(ticket) => self.ear.await_round(Awaited::Listen, ticket),
            None => self.core.listens(Listens::No),
        }
    }

    /// `Heard::Settle`.
    pub(super) fn ask_to_settle(&mut self) {
        match &self.ear.subscription {
            Some(subscription) => {
                let ticket = subscription.want_round();
                self.ear.await_round(Awaited::Settle, ticket);
            }
            None => {
                self.core.settled(vec![]);
                self.ear.resumes = Resumes::Yes;
                self.ear.asked = Asked::Just;
            }
        }
    }

    /// A server has come: what it says on behalf of its process is to be the client's own.
    pub(super) fn own_server(&mut self) {
        let Some(subscription) = &self.ear.subscription else { return };
        let Some(attached) = self.attached.as_mut().filter(|attached| attached.role == Role::Primary) else {
            return;
        };
        let Some(server) = attached.lease.connection() else { return };
        if let Some(ticket) = subscription.own(server.backend.key.pid, server.unused_since) {
            self.core.clear_first();
            self.ear.await_round(Awaited::Clear, ticket);
        }
    }

    /// What has come from the shared connection. Whether anything was done with it.
    pub(super) fn hear_shared(&mut self) -> Result<bool, Turn> {
        if self.ear.subscription.is_none() {
            return Ok(false);
        }
        self.count_notifications();
        let moved = self.hear_of_round();
        Ok(self.hear_notifications()? || moved)
    }

    fn hear_of_round(&mut self) -> bool {
        let (Some(subscription), Some((awaited, ticket))) = (&self.ear.subscription, self.ear.awaits) else {
            return false;
        };
        if !subscription.is_done(ticket) {
            return false;
        }
        self.ear.awaits = None;
        self.ear.resumes = Resumes::Yes;
        if awaited != Awaited::Settle
            && let Some(attached) = self.attached.as_mut().filter(|attached| attached.role == Role::Primary)
            && let Some(server) = attached.lease.connection()
        {
            // The round began when the server was at hand already.
            subscription.own_now(server.backend.key.pid);
        }
        match awaited {
            Awaited::Listen if subscription.is_lost() => self.core.listens(Listens::No),
            Awaited::Listen => self.core.listens(Listens::Yes),
            Awaited::Clear => self.core.cleared(),
            Awaited::Settle => self.core.settled(subscription.take(usize::MAX)),
        }
        true
    }

    /// For a client that may be told now.
    fn hear_notifications(&mut self) -> Result<bool, Turn> {
        if !self.core.is_at_rest(&self.up) {
            return Ok(false);
        }
        if let Some(kept) = self.core.gives_up()
            && let Some(subscription) = &self.ear.subscription
        {
            subscription.keep_only(kept);
        }
        let Some(subscription) = &self.ear.subscription else { return Ok(false) };
        if !self.core.is_listening() {
            self.ear = Ear::default();
            return Ok(false);
        }
        if let Some(ended) = subscription.ended() {
            return Err(Turn::Fatal(self.last_words(&ended)));
        }
        if self.down.has_pending() {
            return Ok(false);
        }
        let heard = subscription.take(AT_ONCE);
        self.core.tell(&heard, &mut self.down);
        Ok(!heard.is_empty())
    }

    fn count_notifications(&mut self) {
        let more = self.core.notified().wrapping_sub(self.ear.counted);
        if more > 0 {
            self.ear.counted = self.core.notified();
            self.shared.metrics.notifications.inc_by(more);
        }
    }

    fn last_words(&self, ended: &Ended) -> ErrorFields {
        let (reason, error) = match ended {
            Ended::Lost(why) => (
                "lost",
                ErrorFields::fatal(
                    SqlState::ADMIN_SHUTDOWN,
                    "terminating connection: notifications may have been lost",
                )
                .with_detail(format!(
                    "The connection that listens for this database's clients ended: {why}."
                )),
            ),
            Ended::Slow => (
                "slow",
                ErrorFields::fatal(
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    "terminating connection: too many notifications wait for this client",
                ),
            ),
        };
        self.shared.metrics.listeners_ended.with_label_values(&[reason]).inc();
        error
    }
}
