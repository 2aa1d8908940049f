//! PostgreSQL's frontend/backend protocol, version 3 (protocol.html; pqformat.c, pqcomm.c).
//!
//! Forwarded messages are never decoded: [`frame`] tells where one ends, and the rooms look into the few they
//! must understand.

pub mod frame;
pub mod replication;
