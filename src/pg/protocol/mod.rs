//! PostgreSQL's frontend/backend protocol, version 3 (protocol.html; pqformat.c, pqcomm.c).
//!
//! Forwarded messages are never decoded: [`frame`] tells where one ends, and the rooms look into the few they
//! must understand. Encoders append whole messages, tag and length included, to a `BytesMut`; decoders take a
//! message's payload (what stands behind [`frame::HEADER_LEN`]) and borrow from it.

pub mod backend;
pub mod frame;
pub mod frontend;
mod payload;
pub mod replication;
pub mod startup;

pub use payload::Malformed;
