//! Physical replication's own language inside the frontend/backend protocol (protocol-replication.html): the
//! payloads of CopyData in both directions ([`message`]) and the commands that a Query may carry
//! ([`command`]); of BASE_BACKUP also what the answer consists of ([`base_backup`]).
//!
//! Not here: logical replication, and the ordinary messages around (result sets, errors).

pub mod base_backup;
pub mod command;
pub mod message;

pub use command::{Command, CommandError, ReserveWal, SlotLifetime, SlotOptions, Wait};
pub use message::{
    FromServer, FromStandby, FullTransactionId, HotStandbyFeedback, InvalidReplicationMessage, Keepalive,
    Reply, StandbyStatus, XLogDataHeader,
};
