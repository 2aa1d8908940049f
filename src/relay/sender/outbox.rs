//! Bytes on their way to a socket: headers and WAL side by side, nothing copied.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes};

/// Bounded by the core: see `MAX_UNWRITTEN` there.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// None of them empty.
    queue: VecDeque<Bytes>,
}

impl Outbox {
    /// Pieces in one `writev`.
    pub(super) const MAX_SLICES: usize = 32;

    pub(super) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.queue.push_back(bytes);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        self.queue.iter().take(Self::MAX_SLICES).map(|bytes| IoSlice::new(bytes)).collect()
    }

    /// The first `written` bytes are gone.
    pub(super) fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::Outbox;

    #[test]
    fn a_partial_write_leaves_exactly_the_rest() {
        for written in 0..=9 {
            let mut outbox = Outbox::default();
            for piece in [&b"abc"[..], b"", b"defg", b"hi"] {
                outbox.push(Bytes::from_static(piece));
            }
            outbox.advance(written);
            let rest: Vec<u8> = outbox.slices().iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(rest, b"abcdefghi"[written..]);
            assert_eq!(outbox.is_empty(), written == 9);
        }
    }
}
