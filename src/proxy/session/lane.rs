//! Bytes on their way from one socket to the other, and what the session has decided about them.
//!
//! The usual message is never copied: it is read into [`Buffer`], approved with [`Lane::pass`] and written from
//! there. Only what the session adds or changes goes through `output`. The order on the wire is always
//! `output`, then the passed prefix of `input`.

/// What one read asks for, and what a session that waits gives back to its worker.
pub(crate) const BUFFER_LEN: usize = 16 * 1024;
/// How far a buffer grows while reads fill it.
pub(crate) const BUFFER_MAX: usize = 128 * 1024;
/// From here on a client that does not read its answers is not read from.
const OUTPUT_MAX: usize = 2 * BUFFER_MAX;

/// A flat buffer: filled at the end, consumed at the front.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether a read would have a buffer to go to without an allocation.
    pub(crate) fn has_storage(&self) -> bool {
        !self.data.is_empty()
    }

    /// Takes `storage` to read into; only while nothing is held.
    pub(crate) fn lend(&mut self, storage: Vec<u8>) {
        debug_assert!(self.is_empty(), "bytes would be lost");
        *self = Buffer { data: storage, start: 0, end: 0 };
    }

    /// The storage, for somebody else; `None` while bytes are in it.
    pub(crate) fn give_back(&mut self) -> Option<Vec<u8>> {
        (self.is_empty() && self.has_storage()).then(|| std::mem::take(self).data)
    }

    /// Room for one read: what is free, at least `least` bytes.
    pub(crate) fn space(&mut self, least: usize) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
        if self.data.len() - self.end < least {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let wanted = (self.end + least).max(BUFFER_LEN);
            if self.data.len() < wanted {
                self.data.resize(wanted.next_power_of_two(), 0);
            }
        }
        &mut self.data[self.end..]
    }

    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.data.len(), "a read stays within its space");
    }

    /// When a read took all the room there was, the next one gets more.
    pub(crate) fn grow_if_full(&mut self) {
        if self.end == self.data.len() && self.data.len() < BUFFER_MAX {
            self.data.resize(self.data.len() * 2, 0);
        }
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "only what is there is consumed");
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let least = bytes.len();
        self.space(least)[..least].copy_from_slice(bytes);
        self.filled(least);
    }
}

/// One direction of a session.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) input: Buffer,
    /// The prefix of `input` that may be written as it is. passed <= input.len().
    passed: usize,
    /// Goes out before the passed prefix.
    output: Vec<u8>,
    /// Of `output`, already written. sent <= output.len().
    sent: usize,
    /// Bytes that were read, and written, in all.
    pub(crate) received: u64,
    pub(crate) written: u64,
}

impl Lane {
    /// What has been read and not been decided upon.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.input.bytes()[self.passed..]
    }

    /// Approves the next `count` unread bytes.
    pub(crate) fn pass(&mut self, count: usize) {
        self.passed += count;
        debug_assert!(self.passed <= self.input.bytes().len(), "only what is there is passed");
    }

    /// Leaves out the next `count` unread bytes.
    pub(crate) fn skip(&mut self, count: usize) {
        self.spill();
        self.input.consume(count);
    }

    /// What is written behind everything passed so far.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        self.spill();
        &mut self.output
    }

    /// Makes one run of what would be two, so that one `write` does for it.
    fn spill(&mut self) {
        if self.passed > 0 {
            self.output.extend_from_slice(&self.input.bytes()[..self.passed]);
            self.input.consume(self.passed);
            self.passed = 0;
        }
    }

    /// Whoever is to take our own answers does not: nothing that would make more of them is read.
    pub(crate) fn is_backed_up(&self) -> bool {
        self.output.len() - self.sent > OUTPUT_MAX
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.sent < self.output.len() || self.passed > 0
    }

    /// The next bytes to write; empty when there are none.
    pub(crate) fn pending(&mut self) -> &[u8] {
        /// Below this a copy is cheaper than a second system call.
        const JOIN: usize = 4096;
        if self.sent < self.output.len() {
            if self.passed > 0 && self.passed <= JOIN {
                self.spill();
            }
            return &self.output[self.sent..];
        }
        &self.input.bytes()[..self.passed]
    }

    pub(crate) fn wrote(&mut self, count: usize) {
        self.written += count as u64;
        if self.sent < self.output.len() {
            self.sent += count;
            if self.sent == self.output.len() {
                self.output.clear();
                self.sent = 0;
                // An unusual statement must not keep its memory for the session's life.
                self.output.shrink_to(BUFFER_LEN);
            }
        } else {
            self.input.consume(count);
            self.passed -= count;
        }
    }

    /// Room for what the session adds, where it has none.
    pub(crate) fn lend_output(&mut self, room: impl FnOnce() -> Option<Vec<u8>>) {
        if self.output.capacity() == 0 {
            self.output = room().unwrap_or_default();
        }
    }

    /// The same, for somebody else; `None` while something is in it.
    pub(crate) fn give_output_back(&mut self) -> Option<Vec<u8>> {
        let spare = self.output.is_empty() && self.output.capacity() > 0;
        spare.then(|| std::mem::take(&mut self.output))
    }

    /// Forgets what was approved and not written: its receiver is gone.
    pub(crate) fn discard_pending(&mut self) {
        self.input.consume(self.passed);
        self.passed = 0;
        self.output.clear();
        self.sent = 0;
    }

    /// Puts `bytes` in front of everything unread. Nothing may be pending.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        debug_assert!(!self.has_pending(), "what is pending would come out of order");
        let rest = self.input.bytes().to_vec();
        self.input.consume(rest.len());
        self.input.push(bytes);
        self.input.push(&rest);
    }
}

#[cfg(test)]
mod tests {
    use super::Lane;

    fn drain(lane: &mut Lane) -> Vec<u8> {
        let mut wire = Vec::new();
        while lane.has_pending() {
            let bytes = lane.pending().to_vec();
            wire.extend_from_slice(&bytes);
            lane.wrote(bytes.len());
        }
        wire
    }

    #[test]
    fn the_order_on_the_wire_is_the_order_of_the_decisions() {
        let mut lane = Lane::default();
        lane.input.push(b"abcDEFghi");
        lane.pass(3);
        lane.skip(3);
        lane.out().extend_from_slice(b"-x-");
        lane.pass(2);
        assert_eq!(drain(&mut lane), b"abc-x-gh");
        assert_eq!(lane.unread(), b"i");
        lane.put_back(b"12");
        assert_eq!(lane.unread(), b"12i");
    }

    #[test]
    fn answers_that_nobody_takes_are_bounded() {
        let mut lane = Lane::default();
        while !lane.is_backed_up() {
            lane.out().extend_from_slice(&[b'Z'; 6]);
        }
        assert!(lane.output.len() <= super::OUTPUT_MAX + 6);
        lane.wrote(6);
        assert!(!lane.is_backed_up());
    }

    #[test]
    fn a_buffer_is_only_given_back_empty() {
        let mut lane = Lane::default();
        assert_eq!(lane.input.give_back(), None);
        lane.input.push(b"a");
        assert_eq!(lane.input.give_back(), None);
        lane.skip(1);
        assert!(lane.input.give_back().is_some());
        assert!(!lane.input.has_storage());
    }
}
