//! PostgreSQL's language: its types, its wire messages, its WAL. PURE: no clock, socket, file, environment,
//! randomness or task; whatever of these a rule needs is an argument.

pub mod auth;
pub mod backup_manifest;
pub mod error;
pub mod protocol;
pub mod settings;
pub mod types;
pub mod wal;

pub use error::{ErrorFields, Severity, SqlState};
pub use types::{Lsn, ParseLsnError, PgTimestamp, ServerMajor, SlotName, SystemIdentifier, TimelineId};
