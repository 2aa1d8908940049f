//! The write-ahead log on disk and in a stream: segments, pages, records, timeline history (xlog_internal.h,
//! xlogrecord.h, timeline.c). PURE: bytes in, facts out.

mod history;
mod segment;

pub use history::{History, HistoryEntry, HistoryError, history_file_name, parse_history_file_name};
pub use segment::{InvalidSegmentSize, SegmentFile, SegmentNumber, WalSegmentSize};
