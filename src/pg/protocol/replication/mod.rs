//! Physical replication's own language inside the frontend/backend protocol (protocol-replication.html): the
//! payloads of CopyData in both directions ([`message`]) and the commands that a Query may carry
//! ([`command`]).
//!
//! Not here: logical replication, and the ordinary messages around (result sets, errors).

pub mod command;
pub mod message;

pub use command::{Command, CommandError, ReserveWal, SlotLifetime, SlotOptions, Wait};
pub use message::{
    FromServer, FromStandby, FullTransactionId, HotStandbyFeedback, InvalidReplicationMessage, Keepalive,
    Reply, StandbyStatus, XLogDataHeader,
};
