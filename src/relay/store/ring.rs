//! The newest durable WAL in memory, shared by all senders. PURE.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::pg::{Lsn, TimelineId};

/// Contiguous chunks of one timeline. Holds at most `capacity` bytes of WAL; the oldest chunk gives way.
#[derive(Debug)]
pub(super) struct Ring {
    timeline: TimelineId,
    chunks: VecDeque<(Lsn, Bytes)>,
    bytes: usize,
    capacity: usize,
    /// Pushed since somebody last got something.
    unread: usize,
}

/// Kept while nobody reads: memory that is used again at once stays in the processor's cache.
const UNREAD_CAPACITY: usize = 1 << 20;

/// Chunks in the ring. A stream of tiny commits must not make the search and the bookkeeping long.
const MAX_CHUNKS: usize = 65_536;

impl Ring {
    pub(super) fn new(timeline: TimelineId, capacity: usize) -> Ring {
        Ring { timeline, chunks: VecDeque::new(), bytes: 0, capacity, unread: 0 }
    }

    /// What is there belongs to another timeline from now on.
    pub(super) fn restart(&mut self, timeline: TimelineId) {
        *self = Ring::new(timeline, self.capacity);
    }

    /// Adds durable bytes. A chunk that does not follow the last one replaces everything.
    pub(super) fn push(&mut self, at: Lsn, chunk: Bytes) {
        let end = self.chunks.back().map(|(start, bytes)| start.advanced(bytes.len() as u64));
        if end.is_some_and(|end| end != at) {
            self.restart(self.timeline);
        }
        self.bytes += chunk.len();
        self.unread = self.unread.saturating_add(chunk.len());
        self.chunks.push_back((at, chunk));
        let capacity = self.wanted();
        while self.bytes > capacity || self.chunks.len() > MAX_CHUNKS {
            let Some((_, oldest)) = self.chunks.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// How many of the newest bytes are kept. Where nobody has read a whole ring's worth, nobody follows closely.
    pub(super) fn wanted(&self) -> usize {
        if self.unread > self.capacity { UNREAD_CAPACITY.min(self.capacity) } else { self.capacity }
    }

    /// Up to `max` bytes at `from`, as many as one chunk has.
    pub(super) fn get(&mut self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        if timeline != self.timeline {
            return None;
        }
        let behind = self.chunks.partition_point(|(start, _)| *start <= from);
        let (start, chunk) = self.chunks.get(behind.checked_sub(1)?)?;
        let offset = usize::try_from(from.bytes_since(*start)).ok()?;
        let len = chunk.len().checked_sub(offset)?.min(max);
        self.unread = 0;
        (len > 0).then(|| chunk.slice(offset..offset + len))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Ring, UNREAD_CAPACITY};
    use crate::pg::{Lsn, TimelineId};

    fn get(ring: &mut Ring, from: u64, max: usize) -> Option<String> {
        ring.get(TimelineId(1), Lsn(from), max).map(|b| String::from_utf8_lossy(&b).into_owned())
    }

    #[test]
    fn finds_what_is_there() {
        let mut ring = Ring::new(TimelineId(1), 8);
        ring.push(Lsn(10), Bytes::from_static(b"abcd"));
        ring.push(Lsn(14), Bytes::from_static(b"ef"));
        assert_eq!(get(&mut ring, 10, 100).as_deref(), Some("abcd"));
        assert_eq!(get(&mut ring, 12, 1).as_deref(), Some("c"));
        assert_eq!(get(&mut ring, 15, 9).as_deref(), Some("f"));
        assert_eq!(get(&mut ring, 9, 9), None);
        assert_eq!(get(&mut ring, 16, 9), None, "the end");
        assert_eq!(ring.get(TimelineId(2), Lsn(10), 9), None);
        ring.push(Lsn(16), Bytes::from_static(b"ghi"));
        assert_eq!(get(&mut ring, 10, 9), None, "gave way");
        assert_eq!(get(&mut ring, 14, 9).as_deref(), Some("ef"));
    }

    #[test]
    fn little_is_kept_while_nobody_reads() {
        let (half, capacity) = (UNREAD_CAPACITY / 2, 2 * UNREAD_CAPACITY);
        let mut ring = Ring::new(TimelineId(1), capacity);
        let push = |ring: &mut Ring, number: usize| {
            ring.push(Lsn((number * half) as u64), Bytes::from(vec![0; half]));
        };
        (0..4).for_each(|number| push(&mut ring, number));
        assert_eq!(ring.wanted(), capacity);
        push(&mut ring, 4);
        assert_eq!((ring.wanted(), ring.bytes), (UNREAD_CAPACITY, UNREAD_CAPACITY));
        assert_eq!(get(&mut ring, 0, 1), None, "gave way");
        assert_eq!(get(&mut ring, 4 * half as u64, 1).as_deref(), Some("\0"));
        assert_eq!(ring.wanted(), capacity, "somebody is there again");
    }

    #[test]
    fn is_never_patched_together() {
        let mut ring = Ring::new(TimelineId(1), 100);
        ring.push(Lsn(10), Bytes::from_static(b"abcd"));
        ring.push(Lsn(20), Bytes::from_static(b"xyz"));
        assert_eq!(get(&mut ring, 10, 9), None);
        assert_eq!(get(&mut ring, 20, 9).as_deref(), Some("xyz"));
    }
}
