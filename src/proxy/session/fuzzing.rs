//! A session and a server, for input of any kind: what both say is taken from bytes, and whatever the session asks for
//! is there at once. No socket, clock, node or task.
//!
//! `fuzz/` has a target for it, and `tests/fuzz.rs` plays whole and damaged messages to it.

use super::core::{Ask, Core, Heard, PoolMode, ServerState, Takes, Texts};
use super::knobs::Knobs;
use super::lane::Lane;
use super::listening::Listens;
use super::losses::{AfterLoss, Loss};
use crate::pg::SqlState;
use crate::proxy::guc::Startup;
use crate::proxy::prepared::Statements;
use crate::proxy::route::Classifier;
use crate::topology::Role;

/// Of one piece of input; a longer message comes in several.
pub const MAX_PIECE: usize = 255;
/// At most so many bytes are written to either side for one that came: an error of ours for a Sync, the settings and
/// prepared statements that a server has to be given for a short message.
const SAID_PER_BYTE: usize = 64;
/// And before the first of them matters.
const SAID_AT_LEAST: usize = 16 << 10;
/// In the byte before a piece: the server says it.
pub const SERVER: u8 = 1;
/// In the byte before a piece: its next byte is a message's tag, the rest that message's body.
pub const MESSAGE: u8 = 2;

/// Plays a conversation: a byte for the pool's mode, then pieces, each behind a byte that says whose it is and one with
/// its length. What the server would say while there is none is left out.
pub fn converse(bytes: &[u8]) {
    let Some((mode, mut rest)) = bytes.split_first() else { return };
    let mode = match mode % 3 {
        0 => PoolMode::Transaction,
        1 => PoolMode::Session,
        _ => PoolMode::Statement,
    };
    let mut conversation = Conversation::new(mode);
    while let [kind, length, behind @ ..] = rest {
        let (piece, after) = behind.split_at(behind.len().min(usize::from(*length)));
        rest = after;
        let message = match (kind & MESSAGE, piece) {
            (0, bytes) => bytes.to_vec(),
            (_, []) => continue,
            (_, [tag, body @ ..]) => framed(*tag, body),
        };
        match kind & SERVER {
            0 => conversation.client(&message),
            _ => conversation.server(&message),
        }
        if conversation.is_over() {
            return;
        }
    }
}

/// What a startup packet's `options` sets.
pub fn startup_options(text: &str) {
    let startup = Startup::read(&[("options".to_owned(), text.to_owned())]);
    assert!(startup.settings.len() <= text.len(), "more settings than there are bytes");
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("at most MAX_PIECE").to_be_bytes();
    [&[tag], &length[..], body].concat()
}

/// One session, and a server as soon as it asks for one.
#[derive(Debug)]
pub(super) struct Conversation {
    core: Core,
    up: Lane,
    down: Lane,
    server: ServerState,
    life: Life,
    statements: Statements,
    classifier: Classifier,
    /// What came, in bytes.
    heard: usize,
    /// What was written to either side, in bytes.
    said: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Detached,
    Attached,
    Over,
}

impl Conversation {
    pub(super) fn new(mode: PoolMode) -> Conversation {
        Conversation {
            core: Core::new(mode, 1, Knobs::default()),
            up: Lane::default(),
            down: Lane::default(),
            server: ServerState::default(),
            life: Life::Detached,
            statements: Statements::default(),
            classifier: Classifier::default(),
            heard: 0,
            said: 0,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.life == Life::Over
    }

    pub(super) fn is_attached(&self) -> bool {
        self.life == Life::Attached
    }

    pub(super) fn client(&mut self, bytes: &[u8]) {
        self.heard += bytes.len();
        self.up.input.push(bytes);
        self.settle();
        self.check();
    }

    pub(super) fn server(&mut self, bytes: &[u8]) {
        if !self.is_attached() {
            return;
        }
        self.heard += bytes.len();
        self.down.input.push(bytes);
        while self.is_attached() {
            let heard = self.core.server(&mut self.down, &mut self.server);
            self.flush();
            match heard {
                Heard::Nothing => break,
                Heard::Ready if self.core.can_release(&self.up) => {
                    self.core.detached();
                    self.life = Life::Detached;
                    if self.server.retires {
                        self.replace_server();
                    }
                }
                Heard::Ready => {}
                Heard::Settle => self.core.settled(vec![]),
                Heard::Lost(error) => {
                    let unbegun = error.code == SqlState::ADMIN_SHUTDOWN && !self.core.has_answered();
                    let loss = if unbegun { Loss::Unbegun } else { Loss::Connection };
                    self.replace_server();
                    let after = self.core.lost(loss, Role::Primary, "", &mut self.up, &mut self.down);
                    self.go_on(&after);
                }
                Heard::Refused(error) => {
                    self.replace_server();
                    let after =
                        self.core.settings_refused(error, Role::Primary, &mut self.up, &mut self.down);
                    self.go_on(&after);
                }
                Heard::Over | Heard::Broken(_) => self.life = Life::Over,
            }
        }
        self.settle();
        self.check();
    }

    fn replace_server(&mut self) {
        self.life = Life::Detached;
        self.server = ServerState::default();
        self.down = Lane::default();
    }

    fn go_on(&mut self, after: &AfterLoss) {
        self.flush();
        match after {
            AfterLoss::GoOn | AfterLoss::Retry => {}
            AfterLoss::Fatal(_) | AfterLoss::Close => self.life = Life::Over,
        }
    }

    fn settle(&mut self) {
        while !self.is_over() {
            let mut texts = Texts { classifier: &mut self.classifier, statements: &self.statements };
            let server = (self.life == Life::Attached).then_some(&mut self.server);
            let ask = self.core.client(&mut self.up, &mut self.down, server, &mut texts);
            self.flush();
            match ask {
                Ask::Nothing => return,
                Ask::Server(_) => {
                    self.life = Life::Attached;
                    self.core.attached(Takes::Everything, &mut self.server, &mut self.up);
                }
                Ask::Listen(_) => self.core.listens(Listens::No),
                // Known, or not to be had: the same command again.
                Ask::Position => {}
                Ask::End | Ask::Fatal(_) => self.life = Life::Over,
            }
        }
    }

    /// Everything is taken at once.
    fn flush(&mut self) {
        for lane in [&mut self.up, &mut self.down] {
            while lane.has_pending() {
                let length = lane.pending().len();
                self.said += length;
                lane.wrote(length);
            }
        }
    }

    /// A session keeps what came until it can be used and nothing else, says in proportion to what it hears, and is
    /// owed nothing by a server that it has not.
    fn check(&self) {
        let (heard, said) = (self.heard, self.said);
        let kept = self.up.unread().len() + self.down.unread().len();
        assert!(kept <= heard, "{kept} bytes are kept of {heard}");
        assert!(said <= SAID_AT_LEAST + SAID_PER_BYTE * heard, "{said} bytes are said to {heard}");
        assert!(self.life != Life::Detached || self.core.ledger.is_empty(), "{:?}", self.core.ledger);
    }
}
