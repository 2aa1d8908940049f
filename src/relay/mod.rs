//! The WAL plane: it takes the primary's write-ahead log once, keeps it durably, and ships it to every standby.

pub(crate) mod metrics;
pub(crate) mod store;

#[expect(dead_code, reason = "the walsender follows")]
pub(crate) mod followers;
#[expect(dead_code, reason = "the walsender follows")]
pub(crate) mod slots;
