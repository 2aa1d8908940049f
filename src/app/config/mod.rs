//! `bellwether.yaml`: read once, checked as a whole, trusted afterwards.
//!
//! [`parse()`] is a function of the text and of the [`Sources`] of its secrets; it reports every problem at once.
//! The planes do not see [`Config`]: `run` makes each plane's own configuration from it.

mod auth;
mod etcd;
mod events;
mod listen;
mod parse;
mod reader;
mod secret;
mod tls;
mod units;
mod userlist;
mod wal;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use etcd::Etcd;
pub use parse::parse;
pub use reader::{Findings, Problem};
pub use secret::{Secret, Sources, System};
pub use tls::{ClientTls, Tls};

use crate::admin::console::Access;
use crate::net::authenticate::Rules;
use crate::net::{ForServers, Lookups, Proxies, SocketMode};
use crate::proxy::limits::Plan;
use crate::proxy::peers::Peer;
use crate::relay::Retain;
use crate::relay::archive::{ArchiveConfig, ArchiveUrl};
use crate::topology::{Address, Durability, Node, NodeName, RemoteApply};

#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read; `None`: from no file.
    pub file: Option<PathBuf>,
    /// The cluster's name; for people.
    pub cluster: String,
    /// This process's name among the instances of the cluster, part of its `application_name` at the servers.
    pub instance: String,
    /// Other instances that clients may reach in the place of this one; marks distinct.
    pub peers: Vec<Peer>,
    pub listen: Vec<Listen>,
    pub admin: Option<SocketAddr>,
    pub console: Access,
    /// At least one, names and addresses distinct.
    pub nodes: Vec<NodeConfig>,
    pub server_login: ServerLogin,
    pub auth: Auth,
    pub pool: Pool,
    pub routing: Routing,
    pub wal: Wal,
    pub durability: Durability,
    /// How many relays have to acknowledge a commit; `None`: a majority.
    pub acks: Option<u32>,
    /// Whether the outcome of commits whose server is lost is found out.
    pub resolve_commits: bool,
    pub failover: Failover,
    /// Terms and elections, across restarts.
    pub state_file: PathBuf,
    /// Where several instances share it; `None`: this one is alone.
    pub etcd: Option<Etcd>,
    /// Threads of the query plane; `None`: one per four cores.
    pub workers: Option<u32>,
    pub tls: Tls,
    pub log: Log,
    pub events: Events,
    pub shutdown: Shutdown,
}

impl Config {
    pub fn node(&self, name: &NodeName) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.node.name == *name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub on: ListenOn,
    pub route: ListenRoute,
    /// Who connects on clients' behalf, and says so in a PROXY header; `None`: nobody.
    pub proxies: Option<Proxies>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    Tcp(SocketAddr),
    /// A directory, in which the socket is `.s.PGSQL.<port>` as libpq expects.
    Unix {
        directory: PathBuf,
        port: u16,
        mode: SocketMode,
    },
}

/// Where a listener's statements may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListenRoute {
    #[default]
    Auto,
    Primary,
    Standby,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub node: Node,
    /// How it is reached; `None`: as `tls.servers` says.
    pub tls: Option<ForServers>,
    /// Where this instance is the server's agent.
    pub local: Option<Local>,
}

/// A server on this host, which we start, stop, rewind and rebuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub data_dir: PathBuf,
    /// Where `postgres`, `pg_ctl` and the others are.
    pub bin_dir: PathBuf,
    /// The user its processes run as, when we are root.
    pub run_as: Option<String>,
    /// With which it logs in at us to stream (libpq's `passfile`); without, the password is in its
    /// `primary_conninfo`.
    pub passfile: Option<PathBuf>,
}

/// Whom we log in as for monitoring, replication and promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLogin {
    pub user: String,
    /// `None`: the servers are expected not to ask.
    pub password: Option<Secret>,
    pub database: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    pub rules: Rules,
    /// Of the users' file first; of two entries for a name the later one counts.
    pub users: Vec<User>,
    /// Whether users that are not listed are looked up on the servers.
    pub query: AuthQuery,
    /// As whom they are looked up; `None`: as `server_login`.
    pub lookup_login: Option<LookupLogin>,
    pub lookups: Lookups,
    /// Who may stream WAL from the relay; `server_login.user` always may.
    pub replication_users: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthQuery {
    On,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupLogin {
    pub user: String,
    pub password: Option<Secret>,
    /// `None`: that of `server_login`.
    pub database: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// A password, or its verifier as in `pg_authid.rolpassword`.
    pub secret: Secret,
    /// Whether it may stream WAL.
    pub replication: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// For all, per database and per user.
    pub limits: Plan,
    /// A client must have logged in by then.
    pub login: Duration,
    /// For connecting and logging in to a server.
    pub connect_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// A standby that is further behind in bytes, or in time, gets no reads.
    pub max_lag_bytes: u64,
    pub max_lag_time: Duration,
    pub consistency: Consistency,
    pub balance: Balance,
}

/// What a read may miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever the standby's lag allows.
    Eventual,
    /// Nothing the session itself wrote.
    Session,
    /// Nothing that anybody was told is committed.
    Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    LeastOutstanding,
    RoundRobin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wal {
    pub dir: PathBuf,
    pub retain: Retain,
    /// Other relays' endpoints, asked for WAL that no node can give.
    pub upstreams: Vec<Address>,
    /// Of commits under `durability: quorum`.
    pub remote_apply: RemoteApply,
    /// WAL to one follower, in bytes per second; 0: as fast as it goes.
    pub follower_rate: u64,
    pub archive: Option<ArchiveConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    pub mode: FailoverMode,
    /// From one probe of a node to the next.
    pub interval: Duration,
    /// How long every side must be silent before a primary counts as dead. A refused connection is no silence.
    pub timeout: Duration,
    /// How long a server may say that it is starting before another takes over.
    pub restart_timeout: Duration,
    /// How long a write that only the primary can hold up may hang.
    pub stall_timeout: Duration,
    /// Transactions wait so long for a new primary before they get 57P03.
    pub hold_clients: Duration,
    /// A switchover waits so long for open transactions.
    pub drain: Duration,
    /// How many automatic failovers there may be; `None`: any number.
    pub budget: Option<Budget>,
    /// Nothing is promoted that is known to lack more WAL than this.
    pub max_lost_bytes: u64,
}

/// So many automatic failovers within a window that slides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub failovers: u32,
    pub within: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverMode {
    Automatic,
    /// Decides nothing by itself.
    Manual,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A `tracing` filter: `info`, or `info,bellwether::relay=debug`.
    pub level: String,
}

/// Who is told of elections, roles and alarms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// A program and its arguments; empty: none.
    pub command: Vec<String>,
    /// May hold a secret: it is not logged.
    pub webhook: Option<reqwest::Url>,
    /// For one event, each of them.
    pub timeout: Duration,
}

/// How clients are let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// After another process has taken over, clients are served on for so long; then each session ends with its
    /// transaction.
    pub drain: Duration,
    /// Transactions have so long to end, then and on SIGTERM.
    pub transactions: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} cannot be used:\n{}", path.display(), lines(problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

/// Reads the file at `path` and whatever its secrets name. Relative paths in it start at its directory.
pub fn load(path: &Path) -> Result<(Config, Vec<Problem>), LoadError> {
    let read_error = |source| LoadError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read_error)?;
    let directory = std::path::absolute(path).map_err(read_error)?;
    let directory = directory.parent().map_or_else(PathBuf::new, Path::to_owned);
    let sources = System { directory: directory.clone() };
    let (config, findings) = parse(&text, &directory, &sources);
    match config {
        Some(config) => Ok((Config { file: Some(path.to_owned()), ..config }, findings.warnings)),
        None => Err(LoadError::Invalid { path: path.to_owned(), problems: findings.problems }),
    }
}

/// Where the instance of the file at `path` answers admin commands. Its secrets are not read: whoever asks for
/// the status need not be allowed to.
pub fn admin_address(path: &Path) -> Result<Option<SocketAddr>, LoadError> {
    let read_error = |source| LoadError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read_error)?;
    parse::admin_address(&text).map_err(|problems| LoadError::Invalid { path: path.to_owned(), problems })
}

/// Where the instance of the file at `path` keeps WAL, and where it archives it. As with the admin address, nothing else
/// is looked at: PostgreSQL's own user asks.
pub fn wal_places(path: &Path) -> Result<(PathBuf, Option<ArchiveUrl>), LoadError> {
    let read_error = |source| LoadError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read_error)?;
    let directory = std::path::absolute(path).map_err(read_error)?;
    let directory = directory.parent().unwrap_or(Path::new("/"));
    let wal = wal::alone(&text, directory);
    let wal = wal.map_err(|problems| LoadError::Invalid { path: path.to_owned(), problems })?;
    Ok((wal.dir, wal.archive.map(|archive| archive.url)))
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}
