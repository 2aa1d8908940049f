//! Parsed once at the edge, trusted afterwards: no `u64` for an LSN, no `String` for a slot name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A position in the write-ahead log, in bytes from its beginning; printed `%X/%X` (`pg_lsn`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `InvalidXLogRecPtr`: no position. Nothing valid is ever written at 0/0.
    pub const INVALID: Lsn = Lsn(0);

    pub fn is_valid(self) -> bool {
        self != Lsn::INVALID
    }

    /// Bytes from `earlier` to `self`; 0 when `earlier` is ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position `bytes` further on.
    #[must_use]
    pub fn advanced(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid LSN {0:?}: two hexadecimal numbers of up to 8 digits separated by a slash are expected")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |digits: &str| -> Option<u64> {
            let well_formed =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            well_formed.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The number of a timeline, 1 for a freshly initialised cluster; a promotion takes a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number `initdb` gives a cluster; every server and every WAL segment of it carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The major version of a server, such as 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerMajor(pub u32);

impl ServerMajor {
    /// Of a `server_version` such as `15.20 (Debian ...)` or `18beta1`.
    pub fn parse(server_version: &str) -> Option<ServerMajor> {
        let end = server_version.find(|c: char| !c.is_ascii_digit()).unwrap_or(server_version.len());
        server_version[..end].parse().ok().map(ServerMajor)
    }

    /// Of the server whose ParameterStatus values these are.
    pub fn of(parameters: &[(String, String)]) -> Option<ServerMajor> {
        let version = parameters.iter().find(|(name, _)| name == "server_version");
        version.and_then(|(_, version)| ServerMajor::parse(version))
    }
}

impl fmt::Display for ServerMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Microseconds since 2000-01-01 00:00 UTC (`TimestampTz`), as replication messages carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// Seconds from the Unix epoch to PostgreSQL's.
    pub const UNIX_OFFSET_SECONDS: i64 = 946_684_800;

    pub fn from_unix_micros(micros: i64) -> PgTimestamp {
        PgTimestamp(micros - Self::UNIX_OFFSET_SECONDS * 1_000_000)
    }
}

/// A replication slot's name: 1 to 63 of `a-z`, `0-9`, `_` (`ReplicationSlotValidateName` in slot.c).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("replication slot name {0:?} may have 1 to 63 lower case letters, digits and underscores only")]
pub struct InvalidSlotName(pub String);

impl SlotName {
    /// `NAMEDATALEN - 1`.
    pub const MAX_LEN: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotName {
    type Err = InvalidSlotName;

    fn from_str(name: &str) -> Result<SlotName, InvalidSlotName> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let valid = (1..=Self::MAX_LEN).contains(&name.len()) && name.bytes().all(allowed);
        if valid { Ok(SlotName(name.into())) } else { Err(InvalidSlotName(name.to_owned())) }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Lsn, ServerMajor, SlotName};

    #[test]
    fn lsn_reads_what_it_prints_and_nothing_else() {
        for text in ["0/0", "0/16B3748", "AD/9ED160D8", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().map(|lsn| lsn.to_string()).as_deref(), Ok(text));
        }
        // PostgreSQL 19 pads the lower half.
        assert_eq!("1/00000A0F".parse(), Ok(Lsn(0x1_0000_0A0F)));
        for text in ["", "/", "0", "0/", "0/+1", "0/123456789", "0/G", "0/1/2", " 0/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn majors() {
        let check = |version, expected: Option<u32>| {
            assert_eq!(ServerMajor::parse(version), expected.map(ServerMajor), "{version}");
        };
        check("14.19 (Debian)", Some(14));
        check("18beta1", Some(18));
        check("devel", None);
        check("", None);
    }

    #[test]
    fn slot_names_follow_slot_c() {
        assert!("pg_walreceiver_17".parse::<SlotName>().is_ok());
        for name in ["", "Upper", "with-dash", "ünïcode", &"x".repeat(64)] {
            assert!(name.parse::<SlotName>().is_err(), "{name:?}");
        }
    }
}
