//! The WAL plane: it takes the primary's write-ahead log once, keeps it durably, and ships it to every standby.

#[cfg_attr(not(test), expect(dead_code, reason = "the receiver follows"))]
pub(crate) mod metrics;
#[cfg_attr(not(test), expect(dead_code, reason = "the receiver follows"))]
pub(crate) mod store;

#[expect(dead_code, reason = "the walsender follows")]
pub(crate) mod followers;
#[expect(dead_code, reason = "the walsender follows")]
pub(crate) mod slots;
