//! What a session holds beyond its transactions: its settings, which go with it from server to server, and its
//! pins, the reasons to keep the server that it has.
//!
//! What statements change is followed as the server completes them. It counts when their transaction commits,
//! and not when it, or a savepoint before them, is rolled back (guc.c: `AtEOXact_GUC`). SET LOCAL needs no
//! following: it ends with the transaction, and so before the server changes.
//!
//! A setting that the server reports is taken from the report where the text did not say (a function may have
//! set it). Others that functions set go unseen.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::core::ServerState;
use super::pins::{Pin, Pins, Unqualified};
use crate::proxy::guc::{MAX_SETTINGS, Settings};
use crate::proxy::route::{NewValue, SessionEffect, Step, TransactionEffect};

#[derive(Debug, Default)]
pub(super) struct SessionState {
    /// The startup packet's; what RESET means.
    defaults: Arc<Settings>,
    /// As of the last transaction's end.
    settings: Arc<Settings>,
    /// Of `settings`: what shared prepared statements are parsed under.
    context: Arc<[u8]>,
    /// While the settings at the server are not known to be these: the session's own.
    private_context: Option<Arc<[u8]>>,
    pins: Pins,
    /// What the client listens to by way of the connection that all share, as of the last transaction's end.
    channels: BTreeSet<Box<str>>,
    /// Of the transaction under way, in order. At most [`MAX_PENDING`].
    pending: Vec<SessionEffect>,
    /// Each with how many of `pending` come before it. At most [`MAX_PENDING`].
    savepoints: Vec<(Box<str>, usize)>,
    /// A bit for each of [`SETTABLE`] that was brought or reported since the last transaction's end: what it is at the
    /// server is what that has reported.
    touched: u16,
}

/// GUC_REPORT in guc_tables.c, of those that a session can set.
const SETTABLE: [&str; 9] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "scram_iterations",
    "search_path",
    "standard_conforming_strings",
    "TimeZone",
];

/// A transaction that changes more, or sets more savepoints, keeps its server.
const MAX_PENDING: usize = 1000;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Committed,
    RolledBack,
}

impl SessionState {
    pub(super) fn new(startup: Arc<Settings>) -> SessionState {
        let context = startup.parse_context();
        SessionState { defaults: startup.clone(), settings: startup, context, ..SessionState::default() }
    }

    pub(super) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// What is parsed now is the same for all whose context is the same.
    pub(super) fn parse_context(&self) -> &Arc<[u8]> {
        self.private_context.as_ref().unwrap_or(&self.context)
    }

    /// Something is sent that may change settings. `unique` among all sessions, and in this one.
    pub(super) fn unsettled(&mut self, unique: u64) {
        if self.private_context.is_none() {
            // No list of settings begins so.
            self.private_context = Some([&[0][..], &unique.to_be_bytes()].concat().into());
        }
    }

    /// Everything is answered, and no transaction is open.
    pub(super) fn settled(&mut self) {
        if self.pins.is_empty() {
            self.private_context = None;
        }
    }

    pub(super) fn channels(&self) -> &BTreeSet<Box<str>> {
        &self.channels
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn pins_mut(&mut self) -> &mut Pins {
        &mut self.pins
    }

    /// The server has completed a statement, with this command tag.
    pub(super) fn completed(&mut self, step: &Step, tag: &[u8], server: &mut ServerState) {
        match &step.transaction {
            // COMMIT of a failed transaction is answered so.
            TransactionEffect::Commit | TransactionEffect::CommitAndChain | TransactionEffect::Prepare(_)
                if tag != b"ROLLBACK" =>
            {
                self.transaction_ended(End::Committed, server);
            }
            TransactionEffect::Commit
            | TransactionEffect::CommitAndChain
            | TransactionEffect::Prepare(_)
            | TransactionEffect::Rollback
            | TransactionEffect::RollbackAndChain => self.transaction_ended(End::RolledBack, server),
            TransactionEffect::Savepoint(name) => self.savepoint(name),
            TransactionEffect::ReleaseSavepoint(name) => {
                if let Some(at) = self.find_savepoint(name) {
                    self.savepoints.truncate(at);
                }
            }
            TransactionEffect::RollbackToSavepoint(name) => {
                if let Some(at) = self.find_savepoint(name) {
                    self.pending.truncate(self.savepoints[at].1);
                    self.savepoints.truncate(at + 1);
                }
            }
            TransactionEffect::None
            | TransactionEffect::Begin(_)
            | TransactionEffect::SetTransaction(_)
            | TransactionEffect::CommitPrepared(_)
            | TransactionEffect::RollbackPrepared(_)
            | TransactionEffect::Several { .. } => {}
        }
        for effect in &step.session {
            self.pins.done(effect);
            match effect {
                // The server was told to do nothing.
                SessionEffect::Listen(channel) if tag == b"UNLISTEN" => {
                    self.add(&SessionEffect::ListenShared(channel.clone()));
                }
                effect => self.add(effect),
            }
        }
    }

    fn add(&mut self, effect: &SessionEffect) {
        let counts = is_setting(effect)
            || sets_path_locally(effect)
            || is_about_channels(effect)
            || Pins::heeds(effect);
        if counts && self.pending.len() < MAX_PENDING {
            self.pending.push(effect.clone());
        } else if counts {
            self.pins.take(Pin::Set);
        }
    }

    fn savepoint(&mut self, name: &str) {
        if self.savepoints.len() < MAX_PENDING {
            self.savepoints.push((name.into(), self.pending.len()));
        } else {
            self.pins.take(Pin::Set);
        }
    }

    /// The innermost of this name.
    fn find_savepoint(&self, name: &str) -> Option<usize> {
        self.savepoints.iter().rposition(|(known, _)| **known == *name)
    }

    /// ParameterStatus.
    pub(super) fn reported(&mut self, name: &str) {
        let known = SETTABLE.iter().position(|settable| *settable == name);
        self.touched |= known.map_or(0, |at| 1 << at);
    }

    /// A server that had `before` gets the client's settings.
    pub(super) fn brought(&mut self, before: &Settings) {
        for (at, name) in SETTABLE.iter().enumerate() {
            let name = name.to_ascii_lowercase();
            self.touched |= u16::from(before.value(&name) != self.settings.value(&name)) << at;
        }
    }

    /// What the client has where the server has reset what the client's startup packet set: the server is told when no
    /// transaction is open.
    pub(super) fn instead(&self, server: &ServerState) -> Vec<(Box<str>, Box<str>)> {
        let resets = self.pending.iter().any(|effect| {
            matches!(
                effect,
                SessionEffect::Set(_, NewValue::Default) | SessionEffect::Reset(_) | SessionEffect::ResetAll
            )
        });
        if !resets && Arc::ptr_eq(&self.settings, &server.settings) {
            return vec![];
        }
        let (mut wanted, mut present) = (Settings::clone(&self.settings), Settings::clone(&server.settings));
        for effect in &self.pending {
            wanted.apply(effect, &self.defaults);
            present.apply(effect, &Settings::default());
        }
        wanted.missing_in(&present).map(|(name, value)| (name.into(), value.into())).collect()
    }

    pub(super) fn transaction_ended(&mut self, end: End, server: &mut ServerState) {
        self.savepoints.clear();
        if self.pending.is_empty() {
            return;
        }
        if end == End::RolledBack {
            self.pending.clear();
            return;
        }
        let (mut wanted, mut present) = (Settings::clone(&self.settings), Settings::clone(&server.settings));
        let none = Settings::default();
        let mut unqualified = unqualified(&self.settings, server);
        for effect in self.pending.drain(..) {
            if sets_path_locally(&effect) {
                unqualified = Unqualified::Unclear;
            }
            self.pins.committed(&effect, unqualified);
            match &effect {
                SessionEffect::ListenShared(channel) => drop(self.channels.insert(channel.clone())),
                SessionEffect::Unlisten(channel) => drop(self.channels.remove(channel)),
                SessionEffect::UnlistenAll => self.channels.clear(),
                _ => {}
            }
            wanted.apply(&effect, &self.defaults);
            present.apply(&effect, &none);
        }
        if wanted.len() > MAX_SETTINGS {
            self.pins.take(Pin::Set);
        }
        self.agree(wanted, present, server);
    }

    /// No transaction is open: what the server has reported is what holds.
    pub(super) fn idle(&mut self, server: &mut ServerState) {
        let touched = std::mem::take(&mut self.touched);
        if touched == 0 {
            return;
        }
        let (mut wanted, mut present) = (Settings::clone(&self.settings), Settings::clone(&server.settings));
        let touched = SETTABLE.iter().enumerate().filter(|(at, _)| touched & 1 << at != 0);
        for (reported, value) in touched.filter_map(|(_, name)| Some((name, server.reported.value(name)?))) {
            let name = reported.to_ascii_lowercase();
            let had = present.value(&name).map(str::to_owned);
            if had.is_none() && server.reported.default_of(reported) == Some(value) {
                continue;
            }
            // Another spelling of what was set, or set by a function.
            if wanted.value(&name) == had.as_deref() {
                wanted.set(&name, value);
            }
            present.set(&name, value);
        }
        self.agree(wanted, present, server);
    }

    /// One and the same where they are equal, so that this is seen at a glance.
    fn agree(&mut self, wanted: Settings, present: Settings, server: &mut ServerState) {
        if wanted != *self.settings {
            self.context = wanted.parse_context();
            self.settings = Arc::new(wanted);
        }
        server.settings = if present == *self.settings { self.settings.clone() } else { Arc::new(present) };
    }

    /// DISCARD ALL.
    pub(super) fn discarded_all(&mut self, server: &mut ServerState) {
        self.settings = self.defaults.clone();
        self.context = self.settings.parse_context();
        self.channels.clear();
        server.settings = Arc::default();
    }

    /// The server went back, or away with whatever was not committed there.
    pub(super) fn detached(&mut self) {
        self.pins = Pins::default();
        self.private_context = None;
        self.pending.clear();
        self.savepoints.clear();
        self.touched = 0;
    }
}

/// `search_path`, until the transaction's end.
fn sets_path_locally(effect: &SessionEffect) -> bool {
    matches!(effect, SessionEffect::SetLocal(name) if **name == *"search_path")
}

/// The server's own default may name `pg_temp`, too; it is known where it is reported (since PostgreSQL 18).
fn unqualified(settings: &Settings, server: &ServerState) -> Unqualified {
    let path = settings.value("search_path").or_else(|| server.reported.default_of("search_path"));
    let names_it = path.is_some_and(|path| path.to_ascii_lowercase().contains("pg_temp"));
    if names_it { Unqualified::Unclear } else { Unqualified::Temporary }
}

fn is_setting(effect: &SessionEffect) -> bool {
    matches!(effect, SessionEffect::Set(..) | SessionEffect::Reset(_) | SessionEffect::ResetAll)
}

fn is_about_channels(effect: &SessionEffect) -> bool {
    matches!(effect, SessionEffect::ListenShared(_) | SessionEffect::Unlisten(_) | SessionEffect::UnlistenAll)
}
