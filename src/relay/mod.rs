//! The WAL plane: it takes the primary's write-ahead log once, keeps it durably, and ships it to every standby.

pub(crate) mod store;
