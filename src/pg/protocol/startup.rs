//! The first packet of a connection: it has no tag, only a length and a code (ProcessStartupPacket in
//! backend_startup.c).
//!
//! With clients we speak protocol 3.0 to 3.2, like PostgreSQL 18. A client that asks for a newer minor version, or
//! for an option we do not know, is told so with [`Startup::negotiation`] and goes on in the newest that both speak.
//! Towards servers 3.0 is enough: what 3.2 adds is the length of keys.

use bytes::{BufMut, BytesMut};
use subtle::ConstantTimeEq;

use super::payload::{Malformed, Reader, put, put_counted, put_str};
use crate::pg::error::{ErrorFields, SqlState};

/// `MAX_STARTUP_PACKET_LENGTH` (pqcomm.h): a longer one is refused before it is read.
pub const MAX_STARTUP_PACKET_LEN: usize = 10_000;

/// The length and the code.
const MIN_STARTUP_PACKET_LEN: usize = 8;

/// The longest cancel key of protocol 3.2; in 3.0 it has 4 bytes.
pub const MAX_CANCEL_KEY_LEN: usize = 256;

/// Protocol 3.0.
const PROTOCOL_3_0: u32 = 3 << 16;

/// A minor version of protocol 3. There never was a 3.1: who asks for it gets it, and it is 3.0 by another name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minor(pub u16);

impl Minor {
    /// `PG_PROTOCOL_LATEST` of PostgreSQL 18 (pqcomm.h).
    pub const LATEST: Minor = Minor(2);

    /// Of the secrets that we make. PostgreSQL's are as long (InitPostgres in postinit.c of 18).
    pub fn cancel_secret_len(self) -> usize {
        if self >= Minor(2) { 32 } else { 4 }
    }
}

/// Codes in place of a protocol version: major 1234, which no version ever will be.
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_ENC_REQUEST: u32 = 80_877_104;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    SslRequest,
    GssEncRequest,
    Cancel(CancelKey),
    Startup(Startup),
}

/// Names a running backend and proves that one knows it (BackendKeyData).
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    pub pid: u32,
    /// 4 to [`MAX_CANCEL_KEY_LEN`] bytes.
    pub secret: Vec<u8>,
}

impl CancelKey {
    /// In a time that tells nothing of how much of the secret is right.
    pub fn proves(&self, other: &CancelKey) -> bool {
        self.pid == other.pid && bool::from(self.secret.ct_eq(&other.secret))
    }
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey").field("pid", &self.pid).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// As asked for.
    pub minor: Minor,
    /// Never empty.
    pub user: String,
    /// The user's name when the packet names none.
    pub database: String,
    pub replication: Replication,
    /// What else it said, in its order, keys as sent.
    pub parameters: Vec<(String, String)>,
    /// `_pq_.` options: all unknown to us.
    pub unknown_options: Vec<String>,
}

/// The startup packet's `replication`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    Off,
    Physical,
    Logical,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout: {0}")]
    Layout(#[from] Malformed),
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Protocol { major: u16, minor: u16 },
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("invalid value for parameter \"replication\": \"{0}\"")]
    Replication(String),
}

impl StartupError {
    pub fn fields(&self) -> ErrorFields {
        let code = match self {
            StartupError::Length | StartupError::Layout(_) => SqlState::PROTOCOL_VIOLATION,
            StartupError::Protocol { .. } => SqlState::FEATURE_NOT_SUPPORTED,
            StartupError::NoUser => SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            StartupError::Replication(_) => SqlState::INVALID_PARAMETER_VALUE,
        };
        ErrorFields::fatal(code, self.to_string())
    }
}

/// How long the packet at the start of `bytes` is, its length field included; `None` while that is not there.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, StartupError> {
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let in_range = (MIN_STARTUP_PACKET_LEN..=MAX_STARTUP_PACKET_LEN).contains(&length);
    if in_range { Ok(Some(length)) } else { Err(StartupError::Length) }
}

/// Reads a whole packet, of exactly the [`length`] it says.
pub fn parse(packet: &[u8]) -> Result<FirstPacket, StartupError> {
    if length(packet)? != Some(packet.len()) {
        return Err(StartupError::Length);
    }
    let mut reader = Reader(&packet[4..]);
    let code = reader.u32()?;
    match code {
        SSL_REQUEST | GSS_ENC_REQUEST => {
            reader.end().map_err(|_| StartupError::Length)?;
            Ok(if code == SSL_REQUEST { FirstPacket::SslRequest } else { FirstPacket::GssEncRequest })
        }
        CANCEL_REQUEST => cancel_key(reader).map(FirstPacket::Cancel),
        version => match ((version >> 16) as u16, version as u16) {
            (3, minor) => startup(reader, Minor(minor)).map(FirstPacket::Startup),
            (major, minor) => Err(StartupError::Protocol { major, minor }),
        },
    }
}

fn cancel_key(mut reader: Reader<'_>) -> Result<CancelKey, StartupError> {
    let pid = reader.u32().map_err(|_| StartupError::Length)?;
    let secret = reader.0.to_vec();
    let in_range = (4..=MAX_CANCEL_KEY_LEN).contains(&secret.len());
    if in_range { Ok(CancelKey { pid, secret }) } else { Err(StartupError::Length) }
}

fn startup(mut reader: Reader<'_>, minor: Minor) -> Result<Startup, StartupError> {
    let (mut user, mut database, mut replication) = (String::new(), String::new(), Replication::Off);
    let (mut parameters, mut unknown_options) = (Vec::new(), Vec::new());
    loop {
        let name = reader.text()?;
        if name.is_empty() {
            break;
        }
        let value = reader.text()?;
        match name {
            "user" => value.clone_into(&mut user),
            "database" => value.clone_into(&mut database),
            "replication" => {
                replication =
                    replication_mode(value).ok_or_else(|| StartupError::Replication(value.to_owned()))?;
            }
            _ if name.starts_with("_pq_.") => unknown_options.push(name.to_owned()),
            _ => parameters.push((name.to_owned(), value.to_owned())),
        }
    }
    // PostgreSQL: "expected terminator as last byte".
    reader.end()?;
    if user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if database.is_empty() {
        database.clone_from(&user);
    }
    Ok(Startup { minor, user, database, replication, parameters, unknown_options })
}

/// `database`, or whatever `parse_bool` (bool.c) takes: any case, any unambiguous beginning of a word.
fn replication_mode(value: &str) -> Option<Replication> {
    if value == "database" {
        return Some(Replication::Logical);
    }
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, at_least: usize| value.len() >= at_least && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || value == "1" {
        Some(Replication::Physical)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(Replication::Off)
    } else {
        None
    }
}

impl Startup {
    /// What is spoken from now on.
    pub fn spoken(&self) -> Minor {
        self.minor.min(Minor::LATEST)
    }

    /// Appends NegotiateProtocolVersion when the client asked for more than it gets.
    pub fn negotiation(&self, out: &mut BytesMut) {
        if self.minor <= Minor::LATEST && self.unknown_options.is_empty() {
            return;
        }
        put(out, b'v', |out| {
            out.put_u32(PROTOCOL_3_0 | u32::from(self.spoken().0));
            // At most MAX_STARTUP_PACKET_LEN / 7 of them fit in a packet.
            out.put_u32(self.unknown_options.len() as u32);
            for option in &self.unknown_options {
                put_str(out, option);
            }
        });
    }
}

/// The startup packet of a client that speaks 3.0.
pub fn put_startup(user: &str, database: &str, parameters: &[(String, String)], out: &mut BytesMut) {
    put_counted(out, |out| {
        out.put_u32(PROTOCOL_3_0);
        let parameters = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in parameters.chain([("user", user), ("database", database)]) {
            put_str(out, name);
            put_str(out, value);
        }
        out.put_u8(0);
    });
}

pub fn put_cancel_request(key: &CancelKey, out: &mut BytesMut) {
    put_counted(out, |out| {
        out.put_u32(CANCEL_REQUEST);
        out.put_u32(key.pid);
        out.put_slice(&key.secret);
    });
}

pub fn put_ssl_request(out: &mut BytesMut) {
    put_counted(out, |out| out.put_u32(SSL_REQUEST));
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{
        CancelKey, FirstPacket, Minor, Replication, Startup, StartupError, length, parse, put_startup,
    };
    use crate::pg::protocol::Malformed;

    /// `body` behind its length.
    fn packet(body: &[u8]) -> Vec<u8> {
        let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
        packet.extend_from_slice(body);
        packet
    }

    fn startup(user: &str) -> Startup {
        Startup {
            minor: Minor(0),
            user: user.into(),
            database: user.into(),
            replication: Replication::Off,
            parameters: Vec::new(),
            unknown_options: Vec::new(),
        }
    }

    #[test]
    fn lengths() {
        let check = |bytes: &[u8], expected| assert_eq!(length(bytes), expected, "{bytes:?}");
        check(b"\0\0\0", Ok(None));
        check(b"\0\0\0\x08", Ok(Some(8)));
        check(b"\0\0\0\x07", Err(StartupError::Length));
        check(b"\0\0\x27\x10", Ok(Some(10_000)));
        check(b"\0\0\x27\x11", Err(StartupError::Length));
        check(b"\x7f\xff\xff\xff", Err(StartupError::Length));
        check(b"GET / HTTP/1.1", Err(StartupError::Length));
        check(b"\x16\x03\x01\x02", Err(StartupError::Length));
    }

    #[test]
    fn first_packets() {
        let check = |body: &[u8], expected| assert_eq!(parse(&packet(body)), expected, "{body:?}");
        check(b"\x04\xd2\x16\x2f", Ok(FirstPacket::SslRequest));
        check(b"\x04\xd2\x16\x30", Ok(FirstPacket::GssEncRequest));
        check(b"\x04\xd2\x16\x2fmore", Err(StartupError::Length));
        check(
            b"\x04\xd2\x16\x2e\0\0\0\x07abcd",
            Ok(FirstPacket::Cancel(CancelKey { pid: 7, secret: b"abcd".to_vec() })),
        );
        check(b"\x04\xd2\x16\x2e\0\0\0\x07abc", Err(StartupError::Length));
        check(&[b"\x04\xd2\x16\x2e\0\0\0\x07".as_slice(), &[1; 257]].concat(), Err(StartupError::Length));
        check(b"\0\x03\0\0user\0joe\0\0", Ok(FirstPacket::Startup(startup("joe"))));
        check(b"\0\x02\0\0user\0joe\0\0", Err(StartupError::Protocol { major: 2, minor: 0 }));
        check(b"\0\x03\0\0\0", Err(StartupError::NoUser));
        check(b"\0\x03\0\0user\0\0\0", Err(StartupError::NoUser));
        check(b"\0\x03\0\0user\0joe\0", Err(Malformed::STRING.into()));
        check(b"\0\x03\0\0user\0joe", Err(Malformed::STRING.into()));
        check(b"\0\x03\0\0user\0joe\0\0x", Err(Malformed::TRAILING.into()));
        check(b"\0\x03\0\0user\0\xff\0\0", Err(Malformed::STRING.into()));
        check(b"\0\x03\0\0user\0joe\0replication\0maybe\0\0", Err(StartupError::Replication("maybe".into())));
    }

    #[test]
    fn a_packet_that_is_not_whole_is_no_packet() {
        let whole = packet(b"\0\x03\0\0user\0joe\0\0");
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Err(StartupError::Length), "{end}");
        }
    }

    #[test]
    fn parameters_keep_their_order() {
        let body = b"\0\x03\0\x02b\x001\0user\0joe\0a\x002\0_pq_.x\0on\0database\0db\0replication\0T\0\0";
        let Ok(FirstPacket::Startup(startup)) = parse(&packet(body)) else { panic!("no startup") };
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(startup.parameters, [pair("b", "1"), pair("a", "2")]);
        assert_eq!((startup.database.as_str(), startup.replication), ("db", Replication::Physical));
        assert_eq!((startup.minor, startup.unknown_options), (Minor(2), vec!["_pq_.x".to_owned()]));
    }

    #[test]
    fn who_asks_for_more_than_there_is_hears_what_there_is() {
        let check = |minor, options: &[&str], expected: &[u8], spoken, secret_len| {
            let unknown_options = options.iter().map(ToString::to_string).collect();
            let startup = Startup { minor: Minor(minor), unknown_options, ..startup("joe") };
            let mut out = BytesMut::new();
            startup.negotiation(&mut out);
            assert_eq!(&out[..], expected, "{minor} {options:?}");
            assert_eq!(startup.spoken(), Minor(spoken));
            assert_eq!(startup.spoken().cancel_secret_len(), secret_len);
        };
        check(0, &[], b"", 0, 4);
        check(1, &[], b"", 1, 4);
        check(2, &[], b"", 2, 32);
        check(3, &[], b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0", 2, 32);
        check(9999, &[], b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0", 2, 32);
        check(0, &["_pq_.x"], b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0", 0, 4);
        check(2, &["_pq_.x", "_pq_.y"], b"v\0\0\0\x1a\0\x03\0\x02\0\0\0\x02_pq_.x\0_pq_.y\0", 2, 32);
    }

    #[test]
    fn only_the_whole_secret_proves() {
        let key = |pid, secret: &[u8]| CancelKey { pid, secret: secret.to_vec() };
        let mine = key(7, &[9; 32]);
        let nearly = [&[9; 31][..], &[8]].concat();
        assert!(mine.proves(&key(7, &[9; 32])));
        for other in [key(8, &[9; 32]), key(7, &nearly), key(7, &[9; 4]), key(7, &[9; 33])] {
            assert!(!mine.proves(&other), "{other:?}");
        }
    }

    #[test]
    fn what_we_send_we_can_read() {
        let mut out = BytesMut::new();
        put_startup("joe", "db", &[("application_name".into(), "a\0user\0root".into())], &mut out);
        let expected = Startup {
            database: "db".into(),
            parameters: vec![("application_name".into(), "a user root".into())],
            ..startup("joe")
        };
        assert_eq!(parse(&out), Ok(FirstPacket::Startup(expected)));
    }
}
