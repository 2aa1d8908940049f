//! Sockets: accept, startup, authenticate, dial, shut down. Every wait here has a limit.
//!
//! Both sides of the house come through this room: [`Client`] is somebody who has connected to us and proved
//! who they are, [`Backend`] is a server we have connected to and logged in at.

mod accept;
pub mod authenticate;
mod base_backup;
mod conversation;
mod dial;
mod durable;
mod listen;
mod log_in;
mod metrics;
mod peer;
pub mod proxy_header;
mod socket_file;
pub mod sql;
mod stream;
mod tablespaces;
#[cfg(test)]
mod tests;
mod tls;
mod unpack;
mod users;
mod wire;

pub use crate::pg::protocol::startup::CancelKey;
pub use accept::{Acceptor, ClientTls, Hello, Proxies, Reception, hello};
pub use authenticate::Authenticator;
pub use base_backup::{BackupEvent, BaseBackup, BaseBackupError};
pub use conversation::{Conversation, ConversationError, Message};
pub use dial::{cancel, dial, knock};
pub use durable::{SyncError, make_parents, make_private_directory, sync, sync_data_directory};
pub use listen::{ListenAddress, Listener, SocketMode};
pub use log_in::log_in;
pub use metrics::LoginMetrics;
pub use peer::{ClientCertificate, Peer, TlsFacts};
pub use socket_file::SocketFile;
pub use stream::{Detached, PeerAddress, Stream};
pub use tablespaces::{PlacedTablespace, PlacingError, TablespaceMapping, is_vacant, place};
pub use tls::{ForClients, ForServers, ServerTlsMode, TlsError, TlsForClients, TlsForServers, TlsVersion};
pub use unpack::{Chunk, ChunkReader, UnpackError, unpack, write_file};
pub use users::{LookupStatement, Lookups, ProvenKeys, Users};

use std::sync::Arc;

use bytes::BytesMut;

use crate::pg::auth::md5::Md5Secret;
use crate::pg::error::ErrorFields;
use crate::pg::protocol::startup::{Minor, Replication};
use crate::topology::Address;

/// A client that has passed startup and authentication: AuthenticationOk is already in `out`, the rest of the
/// greeting (ParameterStatus, BackendKeyData, ReadyForQuery) is the plane's to send.
#[derive(Debug)]
pub struct Client {
    pub stream: Stream,
    pub peer: Peer,
    /// Bytes received and not yet consumed.
    pub received: BytesMut,
    /// Bytes to send first.
    pub out: BytesMut,
    pub user: Arc<str>,
    /// As asked for; the user's name when the startup packet named none.
    pub database: Arc<str>,
    /// What else the startup packet said, in its order, keys as sent (`application_name`, `options`, ...).
    pub parameters: Vec<(String, String)>,
    /// What to log in with at a server on this client's behalf.
    pub credentials: Credentials,
    /// Of protocol 3, as agreed upon.
    pub minor: Minor,
}

/// What the startup packet's `replication` asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    Sql,
    /// `replication=true`: the relay's.
    PhysicalReplication,
    /// `replication=database`.
    LogicalReplication,
}

impl From<Replication> for ConnectionKind {
    fn from(replication: Replication) -> ConnectionKind {
        match replication {
            Replication::Off => ConnectionKind::Sql,
            Replication::Physical => ConnectionKind::PhysicalReplication,
            Replication::Logical => ConnectionKind::LogicalReplication,
        }
    }
}

/// How we prove who we are to a server.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The server is expected not to ask.
    Trust,
    Password(Arc<str>),
    /// What a client's SCRAM proof revealed: enough to log in as that client wherever its verifier is the same,
    /// without ever seeing its password.
    ScramKeys(ProvenKeys),
    /// A stored md5 password, which is all that an md5 login takes.
    Md5(Md5Secret),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::Trust => "Trust",
            Credentials::Password(_) => "Password(..)",
            Credentials::ScramKeys(_) => "ScramKeys(..)",
            Credentials::Md5(_) => "Md5(..)",
        })
    }
}

/// A server connection after its first ReadyForQuery.
#[derive(Debug)]
pub struct Backend {
    pub stream: Stream,
    /// Bytes received behind that ReadyForQuery; normally none.
    pub received: BytesMut,
    /// ParameterStatus values as of that ReadyForQuery.
    pub parameters: Vec<(String, String)>,
    pub pid: u32,
    /// 4 bytes in protocol 3.0.
    pub cancel_key: Vec<u8>,
}

impl Backend {
    /// By its own word, which servers give from PostgreSQL 14 on.
    pub fn is_standby(&self) -> bool {
        self.parameters.iter().any(|(name, value)| name == "in_hot_standby" && value == "on")
    }
}

/// Whom to connect to and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: Address,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub credentials: Credentials,
    pub tls: TlsForServers,
    /// Further startup parameters (`replication`, `application_name`, ...).
    pub parameters: Vec<(String, String)>,
}

impl Target {
    /// The same, with a physical replication connection.
    #[must_use]
    pub fn for_replication(mut self) -> Target {
        self.parameters.retain(|(key, _)| key != "replication");
        self.parameters.push(("replication".to_owned(), "true".to_owned()));
        self
    }
}

/// Why a server connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens: the process is not there (first-hand evidence).
    #[error("{address} refused the connection")]
    Refused { address: Address },
    /// No answer within the limit, or no way to the host: silence, which proves nothing.
    #[error("{address} did not answer within {limit:?}")]
    Timeout { address: Address, limit: std::time::Duration },
    /// The server said no; the client may be told the same.
    #[error("{address} said {error}")]
    Rejected { address: Address, error: ErrorFields },
    /// The connection broke or could not be made for a reason of our own (a name that does not resolve, no more
    /// descriptors), or what came was not what PostgreSQL says.
    #[error("log in at {address}")]
    Protocol {
        address: Address,
        #[source]
        source: std::io::Error,
    },
}
