//! What a server still owes for what was sent: when nothing more will come by itself, the next batch may go. It
//! follows the protocol as PostgreSQL's documentation has it (protocol-flow.html), and knows nothing of either
//! side, so that both are waited for alike.

use std::collections::VecDeque;

use super::message::Encoded;

#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Tags of the messages not yet answered; a Describe of a statement is [`DESCRIBE_STATEMENT`].
    queue: VecDeque<u8>,
    copying_in: bool,
    closing: bool,
}

/// Two messages answer it, ParameterDescription first.
const DESCRIBE_STATEMENT: u8 = b't';

impl Owed {
    pub(super) fn sent(&mut self, message: &Encoded) {
        let tag = match (message.tag(), message.kind()) {
            (b'D', b'S') => DESCRIBE_STATEMENT,
            (tag, _) => tag,
        };
        self.closing |= !is_known(tag);
        self.queue.push_back(tag);
        self.skip_idle();
    }

    pub(super) fn heard(&mut self, tag: u8) {
        let front = self.queue.front().copied();
        match (tag, front) {
            (b'Z', _) => self.ready(),
            (b'E', Some(b'Q' | b'F')) => self.copying_in = false,
            (b'E', _) => {
                // Everything up to the next Sync is skipped by the server.
                self.copying_in = false;
                while self.queue.front().is_some_and(|tag| *tag != b'S') {
                    self.queue.pop_front();
                }
            }
            (b'G', _) => {
                self.copying_in = true;
                // In COPY mode Flush and Sync are ignored (CopyGetData in copyfromparse.c).
                while matches!(self.queue.get(1), Some(b'S' | b'H')) {
                    self.queue.remove(1);
                }
            }
            (b'C', Some(b'Q')) => self.copied(),
            (b'C', Some(b'E')) => {
                self.copied();
                self.queue.pop_front();
            }
            (b'1', Some(b'P'))
            | (b'2', Some(b'B'))
            | (b'3', Some(b'C'))
            | (b'T' | b'n', Some(b'D' | DESCRIBE_STATEMENT))
            | (b'I' | b's', Some(b'E')) => {
                self.queue.pop_front();
            }
            _ => {}
        }
        self.skip_idle();
    }

    /// Nothing more comes before the client goes on.
    pub(super) fn is_settled(&self) -> bool {
        let forces = |tag: &u8| matches!(tag, b'Q' | b'F' | b'S' | b'H');
        let copies =
            self.copying_in && self.queue.iter().skip(1).all(|tag| matches!(tag, b'd' | b'S' | b'H'));
        !self.closing && (copies || !self.queue.iter().any(forces))
    }

    /// Nothing at all was left unanswered.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && !self.closing
    }

    /// For messages: what is waited for.
    pub(super) fn waiting_for(&self) -> String {
        let tags: String = self.queue.iter().map(|tag| char::from(*tag)).collect();
        if self.closing { "the end".to_owned() } else { format!("answers to {tags}") }
    }

    fn ready(&mut self) {
        self.copying_in = false;
        // A FATAL aside, only these are answered so.
        if matches!(self.queue.front(), Some(b'Q' | b'F' | b'S')) {
            self.queue.pop_front();
        }
    }

    pub(super) fn is_copying_in(&self) -> bool {
        self.copying_in
    }

    /// A COPY has ended: its data were consumed.
    fn copied(&mut self) {
        if !std::mem::take(&mut self.copying_in) {
            return;
        }
        while matches!(self.queue.get(1), Some(b'd')) {
            self.queue.remove(1);
        }
        if matches!(self.queue.get(1), Some(b'c' | b'f')) {
            self.queue.remove(1);
        }
    }

    /// What is never answered: COPY's messages outside of one, and a Flush all of whose answers came.
    fn skip_idle(&mut self) {
        while matches!(self.queue.front(), Some(b'd' | b'c' | b'f' | b'H')) {
            self.queue.pop_front();
        }
    }
}

/// Terminate ends the connection, and so does what is no message.
fn is_known(tag: u8) -> bool {
    b"QPBDECSHFdcft".contains(&tag)
}

#[test]
fn settles_when_all_was_answered() {
    let check = |sent: &[&str], heard: &str, settled: &[bool]| {
        let mut owed = Owed::default();
        for line in sent {
            owed.sent(&super::message::encode(line).expect("a message"));
        }
        let mut found = vec![owed.is_settled()];
        found.extend(heard.bytes().map(|tag| {
            owed.heard(tag);
            owed.is_settled()
        }));
        assert_eq!(found, settled, "{sent:?} {heard}");
    };
    check(&["query SELECT"], "TDCZ", &[false, false, false, false, true]);
    // Without a Sync or Flush nothing has to come.
    check(&["parse - SELECT"], "", &[true]);
    check(&["parse - SELECT", "flush"], "1", &[false, true]);
    check(&["describe statement -", "flush"], "tT", &[false, false, true]);
    check(&["bind - -", "execute - 1", "flush"], "2Ds", &[false, false, false, true]);
    // Skipped up to the Sync.
    check(&["parse - x", "bind - -", "query y", "sync"], "EZ", &[false, false, true]);
    check(&["parse - x", "sync", "query y"], "EZCZ", &[false, false, false, false, true]);
    // COPY: the client's turn, its Sync swallowed.
    check(&["query COPY"], "G", &[false, true]);
    check(&["execute -", "sync"], "G", &[false, true]);
    check(&["query COPY", "data x", "done", "query y"], "GCZCZ", &[false, false, false, false, false, true]);
    check(&["execute -", "data x", "done", "sync"], "GCZ", &[false, false, false, true]);
    check(&["query COPY", "data x", "done"], "GEZ", &[false, false, false, true]);
    // Only the end answers these.
    check(&["terminate"], "", &[false]);
    check(&["raw \\x00\\x00\\x00\\x00\\x04"], "E", &[false, false]);
}
