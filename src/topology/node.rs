//! The PostgreSQL servers of the cluster, as configured.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::pg::SlotName;

/// A node's name: 1 to 40 of `a-z`, `0-9`, `-`, `_`. It is also the standby's `application_name` and, with
/// `-` written as `_`, the name of its slot, so that everything one sees of a node has one name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node name {0:?} may have 1 to 40 lower case letters, digits, '-' and '_' only")]
pub struct InvalidNodeName(pub String);

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The slot that keeps this node's WAL at the relay.
    pub fn slot(&self) -> SlotName {
        self.0.replace('-', "_").parse().expect("a node name without '-' is a slot name")
    }
}

impl FromStr for NodeName {
    type Err = InvalidNodeName;

    fn from_str(name: &str) -> Result<NodeName, InvalidNodeName> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        let valid = (1..=40).contains(&name.len()) && name.bytes().all(allowed);
        if valid { Ok(NodeName(name.into())) } else { Err(InvalidNodeName(name.to_owned())) }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NodeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<NodeName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a server listens: a host and port, or a directory with a unix socket (a host that starts with `/`,
/// as in libpq).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address {0:?}: HOST:PORT is expected, an IPv6 host in brackets")]
pub struct InvalidAddress(pub String);

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Address, InvalidAddress> {
        let parsed = || {
            let (host, port) = text.rsplit_once(':')?;
            let host = match host.strip_prefix('[') {
                Some(bracketed) => bracketed.strip_suffix(']')?,
                None if host.contains(':') && !host.starts_with('/') => return None,
                None => host,
            };
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (!host.is_empty()).then(|| Address { host: host.to_owned(), port })
        };
        parsed().ok_or_else(|| InvalidAddress(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') && !self.host.starts_with('/') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// One server of the cluster, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: NodeName,
    pub address: Address,
    /// Among candidates that have all that they need the highest wins.
    pub priority: u32,
    /// Whatever its owner calls a place: among candidates of the same priority one of the lost primary's zone wins, since
    /// its clients are near.
    pub zone: Option<String>,
    /// Never promoted.
    pub no_failover: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Primary,
    Standby,
}

#[cfg(test)]
mod tests {
    use super::{Address, NodeName};

    #[test]
    fn addresses() {
        let ok = |text: &str| text.parse::<Address>().map(|a| (a.host.clone(), a.port, a.to_string()));
        assert_eq!(ok("10.0.0.11:5432"), Ok(("10.0.0.11".into(), 5432, "10.0.0.11:5432".into())));
        assert_eq!(ok("[::1]:6432"), Ok(("::1".into(), 6432, "[::1]:6432".into())));
        assert_eq!(
            ok("/run/postgresql:5432"),
            Ok(("/run/postgresql".into(), 5432, "/run/postgresql:5432".into()))
        );
        for text in ["", "host", ":1", "host:", "host:0", "host:65536", "::1:5432", "[::1:5432"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_node_name_gives_a_slot_name() {
        assert_eq!("pg-0".parse::<NodeName>().map(|n| n.slot().to_string()), Ok("pg_0".to_owned()));
        for name in ["", "PG1", "pg 1", &"x".repeat(41)] {
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
    }
}
