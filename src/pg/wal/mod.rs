//! The write-ahead log on disk and in a stream: segments, pages, records, timeline history (xlog_internal.h,
//! xlogrecord.h, timeline.c). PURE: bytes in, facts out.

#[cfg(test)]
pub(crate) mod build;
mod ends;
mod history;
mod page;
mod record;
mod second_phase;
mod segment;
mod verify;

pub use ends::{TransactionEnd, TransactionEnds};
pub use history::{History, HistoryEntry, HistoryError, history_file_name, parse_history_file_name};
pub use page::{LongHeader, PAGE_SIZE, PageHeader, major_of_magic};
pub use record::{RecordHeader, RecordKind};
pub use segment::{InvalidSegmentSize, SegmentFile, SegmentNumber, WalSegmentSize};
pub use verify::{Defect, Expected, Record, Verifier, VerifyError};
