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
}

/// Chunks in the ring. A stream of tiny commits must not make the search and the bookkeeping long.
const MAX_CHUNKS: usize = 65_536;

impl Ring {
    pub(super) fn new(timeline: TimelineId, capacity: usize) -> Ring {
        Ring { timeline, chunks: VecDeque::new(), bytes: 0, capacity }
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
        self.chunks.push_back((at, chunk));
        while self.bytes > self.capacity || self.chunks.len() > MAX_CHUNKS {
            let Some((_, oldest)) = self.chunks.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// Up to `max` bytes at `from`, as many as one chunk has.
    pub(super) fn get(&self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        if timeline != self.timeline {
            return None;
        }
        let behind = self.chunks.partition_point(|(start, _)| *start <= from);
        let (start, chunk) = self.chunks.get(behind.checked_sub(1)?)?;
        let offset = usize::try_from(from.bytes_since(*start)).ok()?;
        let len = chunk.len().checked_sub(offset)?.min(max);
        (len > 0).then(|| chunk.slice(offset..offset + len))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::Ring;
    use crate::pg::{Lsn, TimelineId};

    fn get(ring: &Ring, from: u64, max: usize) -> Option<String> {
        ring.get(TimelineId(1), Lsn(from), max).map(|b| String::from_utf8_lossy(&b).into_owned())
    }

    #[test]
    fn finds_what_is_there() {
        let mut ring = Ring::new(TimelineId(1), 8);
        ring.push(Lsn(10), Bytes::from_static(b"abcd"));
        ring.push(Lsn(14), Bytes::from_static(b"ef"));
        assert_eq!(get(&ring, 10, 100).as_deref(), Some("abcd"));
        assert_eq!(get(&ring, 12, 1).as_deref(), Some("c"));
        assert_eq!(get(&ring, 15, 9).as_deref(), Some("f"));
        assert_eq!(get(&ring, 9, 9), None);
        assert_eq!(get(&ring, 16, 9), None, "the end");
        assert_eq!(ring.get(TimelineId(2), Lsn(10), 9), None);
        ring.push(Lsn(16), Bytes::from_static(b"ghi"));
        assert_eq!(get(&ring, 10, 9), None, "gave way");
        assert_eq!(get(&ring, 14, 9).as_deref(), Some("ef"));
    }

    #[test]
    fn is_never_patched_together() {
        let mut ring = Ring::new(TimelineId(1), 100);
        ring.push(Lsn(10), Bytes::from_static(b"abcd"));
        ring.push(Lsn(20), Bytes::from_static(b"xyz"));
        assert_eq!(get(&ring, 10, 9), None);
        assert_eq!(get(&ring, 20, 9).as_deref(), Some("xyz"));
    }
}
