//! The WAL plane: it takes the primary's write-ahead log once, keeps it durably, and ships it to every standby.

#[cfg_attr(not(test), expect(dead_code, reason = "the receiver follows"))]
pub(crate) mod metrics;
#[cfg_attr(not(test), expect(dead_code, reason = "the receiver follows"))]
pub(crate) mod store;

#[allow(dead_code, reason = "the receiver follows")]
pub(crate) mod followers;
#[allow(dead_code, reason = "the receiver follows")]
pub(crate) mod sender;
#[allow(dead_code, reason = "the receiver follows")]
pub(crate) mod slots;
