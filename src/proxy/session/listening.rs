//! LISTEN of a client that has no server of its own.
//!
//! Before a LISTEN goes to the server, the connection that all share listens to its channel ([`Ask::Listen`]), and
//! the server gets a stand-in that does nothing (`route::stand_in`) but fails, commits and rolls back as the LISTEN
//! would. So it is in effect at the latest when the client hears of it, and no pooled server ever listens. Where
//! the shared connection cannot be had, the LISTEN goes to the server as it is, and pins.
//!
//! A client hears a notification when no transaction is open (async.c: `ProcessNotifyInterrupt`). Before a
//! ReadyForQuery that says so it hears whatever was committed before, its own above all: until that is known
//! ([`Heard::Settle`]) the ReadyForQuery waits. Of its own notifications the sender is itself, as it was told in
//! BackendKeyData.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::core::{Ask, Core, Heard, PoolMode};
use super::lane::Lane;
use super::message::{self, Status, cstr};
use super::upstream::Step;
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::frame::HEADER_LEN;
use crate::proxy::listen::Notification;
use crate::proxy::route::{self, SessionEffect, Verdict};

#[derive(Debug, Default)]
pub(super) struct Listening {
    /// What the shared connection listens to for this client: what is in effect, and of the open transaction.
    asked: BTreeSet<Box<str>>,
    wait: Wait,
    /// To be told with the next ReadyForQuery outside of a transaction.
    heard: Vec<Arc<Notification>>,
}

/// For what the shared connection has been asked.
#[derive(Debug, Default, PartialEq, Eq)]
enum Wait {
    #[default]
    Nothing,
    /// To listen to these: nothing of the client's goes on before.
    Listen(Vec<Box<str>>),
    /// It does not: the LISTEN in front goes to the server.
    Refused,
    /// What others have said by way of the server at hand: nothing of the client's goes there before.
    Clear,
    /// What was committed before: a ReadyForQuery is held.
    Settle,
    /// It is known: the ReadyForQuery may go.
    Settled,
}

/// What the shared connection has said to [`Ask::Listen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listens {
    Yes,
    No,
}

impl Core {
    /// The client's messages wait for the shared connection.
    pub(super) fn holds_client(&self) -> bool {
        matches!(self.listening.wait, Wait::Listen(_) | Wait::Clear)
    }

    /// The server is not heard before the shared connection has answered.
    pub(crate) fn holds_server(&self) -> bool {
        matches!(self.listening.wait, Wait::Listen(_) | Wait::Clear | Wait::Settle)
    }

    /// A text that means `verdict` is about to be sent: what goes in its place. `Err`: not yet.
    pub(super) fn stand_in<'a>(
        &mut self,
        verdict: &Verdict,
        text: impl FnOnce() -> Option<&'a [u8]>,
    ) -> Result<Option<String>, Step> {
        if verdict.session.is_empty() || self.mode == PoolMode::Session {
            return Ok(None);
        }
        // Bytes of another encoding may mean another name.
        let text = text().and_then(|text| str::from_utf8(text).ok());
        let Some(text) = text.and_then(|text| route::stand_in(text, verdict)) else { return Ok(None) };
        match self.listen_to(verdict) {
            Some(_) if self.listening.wait == Wait::Refused => {
                self.listening.wait = Wait::Nothing;
                Ok(None)
            }
            Some(step) => Err(step),
            None => Ok(Some(text)),
        }
    }

    /// What the client has prepared as `name` is about to be run: what has to come first.
    pub(super) fn listen_again(&mut self, verdict: &Verdict, name: &[u8]) -> Option<Step> {
        if verdict.session.is_empty() || !self.prepared.text(name).is_some_and(route::is_stand_in) {
            return None;
        }
        let step = self.listen_to(verdict)?;
        if self.listening.wait != Wait::Refused {
            return Some(step);
        }
        // The server was never told to listen.
        let message =
            "cannot listen now: the connection that does so for this database's clients is not there";
        Some(Step::Ask(Ask::Fatal(ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, message))))
    }

    fn listen_to(&mut self, verdict: &Verdict) -> Option<Step> {
        // Fails anyway.
        if self.status == Status::Failed {
            return None;
        }
        let asked = &self.listening.asked;
        let new: Vec<_> = verdict.listens_to().filter(|name| !asked.contains(*name)).collect();
        if new.is_empty() {
            return None;
        }
        let new: Vec<Box<str>> = new.into_iter().map(Into::into).collect();
        match self.listening.wait {
            Wait::Nothing => {}
            _ => return Some(Step::Wait(0)),
        }
        self.listening.wait = Wait::Listen(new.clone());
        Some(Step::Ask(Ask::Listen(new)))
    }

    /// After [`Ask::Listen`].
    pub(crate) fn listens(&mut self, answer: Listens) {
        match (std::mem::take(&mut self.listening.wait), answer) {
            (Wait::Listen(channels), Listens::Yes) => self.listening.asked.extend(channels),
            (Wait::Listen(_), Listens::No) => self.listening.wait = Wait::Refused,
            (other, _) => self.listening.wait = other,
        }
    }

    /// The server at hand has served others, whose notifications could be taken for the client's: until
    /// [`Core::cleared`] nothing goes there.
    pub(crate) fn clear_first(&mut self) {
        if self.listening.wait == Wait::Nothing {
            self.listening.wait = Wait::Clear;
        }
    }

    pub(crate) fn cleared(&mut self) {
        if self.listening.wait == Wait::Clear {
            self.listening.wait = Wait::Nothing;
        }
    }

    /// A ReadyForQuery outside of a transaction has come: whether it has to wait.
    pub(super) fn settle(&mut self) -> Option<Heard> {
        match self.listening.wait {
            _ if self.listening.asked.is_empty() => None,
            Wait::Settled => {
                self.listening.wait = Wait::Nothing;
                None
            }
            Wait::Nothing | Wait::Refused => {
                self.listening.wait = Wait::Settle;
                Some(Heard::Settle)
            }
            Wait::Listen(_) | Wait::Clear | Wait::Settle => Some(Heard::Nothing),
        }
    }

    /// After [`Heard::Settle`]: what has come.
    pub(crate) fn settled(&mut self, heard: Vec<Arc<Notification>>) {
        if self.listening.wait == Wait::Settle {
            self.listening.wait = Wait::Settled;
        }
        self.listening.heard.extend(heard);
    }

    /// In front of a ReadyForQuery; the transaction's own LISTEN and UNLISTEN count already.
    pub(super) fn tell_heard(&mut self, down: &mut Lane) {
        if self.status == Status::Idle && !self.listening.heard.is_empty() {
            self.tell(&[], down);
        }
    }

    /// To a client that [`Core::is_at_rest`], behind what it should have been told with a ReadyForQuery that was lost with
    /// its server.
    pub(crate) fn tell(&mut self, heard: &[Arc<Notification>], down: &mut Lane) {
        let before = std::mem::take(&mut self.listening.heard);
        let channels = self.state.channels();
        let wanted =
            before.iter().chain(heard).filter(|notification| channels.contains(&notification.channel));
        for notification in wanted {
            down.out().extend_from_slice(&notification.message);
            self.notified = self.notified.wrapping_add(1);
        }
    }

    /// How many notifications of the shared connection the client was told; wraps.
    pub(crate) fn notified(&self) -> u64 {
        self.notified
    }

    /// No transaction is open and nothing is under way or waits to be: the client may be told anything.
    pub(crate) fn is_at_rest(&self, up: &Lane) -> bool {
        self.status == Status::Idle
            && up.unread().is_empty()
            && !self.is_busy()
            && self.is_between_messages()
            && self.skip_to_sync.is_none()
            && self.cut.is_none()
            && self.listening.wait == Wait::Nothing
    }

    /// Whether the client listens to anything by way of the shared connection.
    pub(crate) fn is_listening(&self) -> bool {
        !self.state.channels().is_empty()
    }

    /// The same, or it will when its transaction commits: a shared connection that is lost meanwhile cannot be
    /// replaced without a word.
    pub(crate) fn wants_to_hear(&self) -> bool {
        self.is_listening() || !self.listening.asked.is_empty()
    }

    /// What the shared connection is still to listen to, where that is less than what it was asked. Asked by who
    /// [`Core::is_at_rest`].
    pub(crate) fn gives_up(&mut self) -> Option<&BTreeSet<Box<str>>> {
        let channels = self.state.channels();
        if self.listening.asked == *channels {
            return None;
        }
        self.listening.asked.clone_from(channels);
        Some(channels)
    }

    /// What was waited for at the server that is gone is not waited for any more.
    pub(super) fn stop_listening_at_server(&mut self) {
        self.listening.wait = Wait::Nothing;
    }

    /// NotificationResponse of the server at hand: what the client hears in its place. `backend` is the server's
    /// process, which nobody else has used since it listens.
    pub(super) fn hear_notification(&self, message: &[u8], backend: u32) -> Notified {
        let Some((sender, rest)) = message.get(HEADER_LEN..).and_then(|body| body.split_first_chunk::<4>())
        else {
            return Notified::AsItIs;
        };
        let channel = cstr(rest).and_then(|(channel, _)| str::from_utf8(channel).ok());
        if channel.is_some_and(|channel| self.state.channels().contains(channel)) {
            return Notified::Elsewhere;
        }
        if u32::from_be_bytes(*sender) != backend {
            return Notified::AsItIs;
        }
        let mut own = vec![];
        message::put(&mut own, b'A', &[&self.pid.to_be_bytes(), rest]);
        Notified::Own(own)
    }
}

/// What becomes of a server's NotificationResponse.
#[derive(Debug)]
pub(super) enum Notified {
    AsItIs,
    /// The client said it itself.
    Own(Vec<u8>),
    /// The shared connection tells it.
    Elsewhere,
}

/// What CommandComplete says of a stand-in.
pub(super) fn tag_of(effects: &[SessionEffect], tag: &[u8]) -> Option<&'static str> {
    let listens = effects.iter().any(|effect| matches!(effect, SessionEffect::Listen(_)));
    (listens && tag == b"UNLISTEN").then_some("LISTEN")
}
