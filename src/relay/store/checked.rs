//! WAL out of segment files for a follower: what the disk has made of it meanwhile is found here, and not by the
//! follower.
//!
//! A record leaves whole only behind its checksum, taken over the very bytes that leave. One that is longer than a
//! read leaves in parts, of which the last one does not leave before; without it nobody replays the others. What is
//! good before a damaged record is served, then nothing.
//!
//! Not here: WAL in memory. The receiver has checked it, and no disk has had it since. Of a record that began before
//! the first segment that is read the rest is not checked: what it began with may be nowhere here any more.

use bytes::Bytes;

use super::files::Segment;
use super::{Shared, Store, StoreError};
use crate::pg::wal::{Defect, Expected, SegmentFile, Verifier, VerifyError, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};

/// Bytes read at a time of what is only checked.
const READ: usize = 1 << 20;

/// The files of one timeline, read by one follower.
#[derive(Debug)]
pub(crate) struct CheckedReader {
    store: Store,
    timeline: TimelineId,
    /// Has seen everything before its position, from some segment's start on.
    verifier: Option<Box<Verifier>>,
}

impl CheckedReader {
    pub(crate) fn new(store: Store, timeline: TimelineId) -> CheckedReader {
        CheckedReader { store, timeline, verifier: None }
    }

    pub(crate) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// As [`Store::read`], but nothing that is damaged.
    pub(crate) async fn read(&mut self, from: Lsn, max: usize) -> Result<Bytes, StoreError> {
        let Some((segment, size, len)) = self.store.locate(self.timeline, from, max)? else {
            return Ok(Bytes::new());
        };
        let verifier = match self.verifier.take().filter(|known| leads_to(known.position(), from, size)) {
            Some(verifier) => verifier,
            None => Box::new(self.begin(from, size)),
        };
        let wanted = Wanted { segment, size, from, len };
        let shared = self.store.shared.clone();
        let read = move || {
            let read = shared.read_segment(segment, |file| wanted.read(file, verifier));
            match &read {
                Ok((_, Some(verifier))) => shared.note_good(segment, verifier.verified()),
                Ok((_, None)) => {}
                Err(error) => shared.note_damage(segment, error),
            }
            read
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::Stopped)?;
        let (bytes, verifier) = read?;
        self.verifier = verifier;
        Ok(bytes)
    }

    /// From the segment's start on: a page in its middle may lie in the filler behind a switch and be no page.
    fn begin(&self, from: Lsn, size: WalSegmentSize) -> Verifier {
        let expected = Expected { segment_size: size, timeline: self.timeline, system: self.store.system() };
        let begin = self.store.history().begin_of(self.timeline);
        Verifier::new(size.start(size.segment(from)), expected).own_from(begin)
    }
}

/// Whether a verifier at `position` can go on to `from`: what lies between is read, too, and nothing is read twice.
fn leads_to(position: Lsn, from: Lsn, size: WalSegmentSize) -> bool {
    position <= from && size.segment(position) == size.segment(from)
}

/// `len` bytes at `from`, all of one segment.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    segment: SegmentFile,
    size: WalSegmentSize,
    from: Lsn,
    len: usize,
}

impl Wanted {
    /// The verifier is gone behind damage: who comes again meets it from the segment's start on.
    fn read(
        self,
        mut file: Segment,
        mut verifier: Box<Verifier>,
    ) -> Result<(Bytes, Option<Box<Verifier>>), StoreError> {
        while verifier.position() < self.from {
            let missing = usize::try_from(self.from.bytes_since(verifier.position())).unwrap_or(usize::MAX);
            let before = self.bytes(&mut file, verifier.position(), missing.min(READ))?;
            verifier.feed(&before).map_err(|defect| self.corrupt(defect))?;
        }
        let mut bytes = self.bytes(&mut file, self.from, self.len)?;
        match verifier.feed(&bytes) {
            Ok(()) => Ok((Bytes::from(bytes), Some(verifier))),
            Err(defect) => {
                let good = verifier.verified().map_or(0, |end| end.0.saturating_sub(self.from.0));
                if good == 0 {
                    return Err(self.corrupt(defect));
                }
                bytes.truncate(usize::try_from(good).unwrap_or(usize::MAX));
                Ok((Bytes::from(bytes), None))
            }
        }
    }

    fn bytes(&self, file: &mut Segment, at: Lsn, len: usize) -> Result<Vec<u8>, StoreError> {
        let bytes = file.read(self.size.offset(at), len)?;
        if bytes.is_empty() {
            return Err(self.corrupt(VerifyError { lsn: at, defect: Defect::EndOfFile }));
        }
        Ok(bytes)
    }

    fn corrupt(&self, source: VerifyError) -> StoreError {
        StoreError::Corrupt { segment: self.segment.name(self.size), source }
    }
}

impl Shared {
    /// Somebody has put a good copy in the place of a damaged one.
    fn note_good(&self, segment: SegmentFile, verified: Option<Lsn>) {
        let mut state = self.state.lock();
        if state.damaged.get(&segment).is_some_and(|damage| verified > Some(damage.lsn)) {
            state.damaged.remove(&segment);
        }
    }

    /// Told once for each segment, however many followers meet it.
    fn note_damage(&self, segment: SegmentFile, error: &StoreError) {
        let StoreError::Corrupt { segment: name, source } = error else { return };
        let known = self.state.lock().damaged.insert(segment, *source);
        if known.is_none() {
            tracing::warn!(
                segment = name, lsn = %source.lsn, defect = %source.defect,
                "a segment in the store is damaged: followers that need it are refused"
            );
            self.moved.notify_one();
        }
    }
}
