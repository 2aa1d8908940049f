//! The memory that WAL is received into. What followers have taken and the store has written is filled again instead of
//! given back: new memory is cleared by the kernel page by page, and is in no cache.

use bytes::BytesMut;

/// Asked from the allocator at a time.
const SIZE: usize = 1 << 20;
/// Less room than this and the rest of a message moves to another buffer.
const MIN_ROOM: usize = 128 << 10;
/// Kept to be filled again. More than the store's queue and its ring hold is never in use for long.
const MAX_KEPT: usize = 48;

#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// What is left of buffers that were full; others hold parts of them. The last one was in use last.
    full: Vec<BytesMut>,
}

impl Buffers {
    /// Sees to it that there is room to read into, whatever part of a message is there already.
    pub(super) fn make_room(&mut self, buffer: &mut BytesMut) {
        if buffer.capacity() - buffer.len() >= MIN_ROOM {
            return;
        }
        let begun = buffer.split();
        let mut next = if begun.len() + MIN_ROOM <= SIZE {
            self.free().unwrap_or_else(|| BytesMut::with_capacity(SIZE))
        } else {
            BytesMut::with_capacity(begun.len() + SIZE)
        };
        next.extend_from_slice(&begun);
        drop(begun);
        self.full.push(std::mem::replace(buffer, next));
        if self.full.len() > MAX_KEPT {
            self.full.remove(0);
        }
    }

    /// One of which nobody else has any part any more, the warmest first.
    fn free(&mut self) -> Option<BytesMut> {
        let free = (0..self.full.len()).rev().find(|&at| self.full[at].try_reclaim(SIZE))?;
        Some(self.full.remove(free))
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::{Buffers, MIN_ROOM, SIZE};

    /// Fills what room there is but for `left` bytes, and takes it out but for the last `begun` bytes.
    fn fill(buffer: &mut BytesMut, left: usize, begun: usize) -> Bytes {
        let room = buffer.capacity() - buffer.len();
        buffer.extend(std::iter::repeat_n(7, room - left));
        buffer.split_to(buffer.len() - begun).freeze()
    }

    #[test]
    fn memory_is_used_again_when_nobody_holds_any_of_it() {
        let (mut buffers, mut buffer) = (Buffers::default(), BytesMut::new());
        buffers.make_room(&mut buffer);
        let first = buffer.as_ptr();
        let held = fill(&mut buffer, 10, 3);
        buffers.make_room(&mut buffer);
        assert_eq!((&buffer[..], buffer.capacity()), (&[7, 7, 7][..], SIZE), "what was begun goes along");
        assert_ne!(buffer.as_ptr(), first, "its memory is held");
        drop(held);
        let _held = fill(&mut buffer, 0, 0);
        buffers.make_room(&mut buffer);
        assert_eq!((buffer.as_ptr(), buffer.len()), (first, 0));
    }

    #[test]
    fn room_is_left_alone() {
        let (mut buffers, mut buffer) = (Buffers::default(), BytesMut::with_capacity(SIZE));
        let first = buffer.as_ptr();
        buffer.extend(std::iter::repeat_n(7, SIZE - MIN_ROOM));
        buffers.make_room(&mut buffer);
        assert_eq!(buffer.as_ptr(), first);
    }

    #[test]
    fn a_message_may_be_larger_than_a_buffer() {
        let (mut buffers, mut buffer) = (Buffers::default(), BytesMut::new());
        while buffer.len() < 5 * SIZE {
            buffers.make_room(&mut buffer);
            let room = buffer.capacity() - buffer.len();
            assert!(room >= MIN_ROOM, "{room} at {}", buffer.len());
            buffer.extend(std::iter::repeat_n(7, room));
        }
        assert!(buffer.iter().all(|byte| *byte == 7));
    }
}
