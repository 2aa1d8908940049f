//! The header of the PROXY protocol, version 2, in which a load balancer says whom it connects for (HAProxy's
//! doc/proxy-protocol.txt, section 2.2). PURE.
//!
//! Not here: version 1, its text form, and what the additional fields (TLVs) say: they are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length of what follows.
const FIXED_LEN: usize = 16;

/// A header with all of today's additional fields, a client's certificate among them, is well below.
pub const MAX_LEN: usize = 4096;

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody else: the proxy's own (a health check), or of somebody whose address means nothing here (a unix
    /// socket on the proxy's host).
    Proxy,
    Client(SocketAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    #[error("the connection does not begin with a PROXY header of version 2")]
    Missing,
    #[error("PROXY header with version and command 0x{0:02x}")]
    Command(u8),
    #[error("PROXY header for the address family and protocol 0x{0:02x}, which no stream has")]
    Family(u8),
    #[error("PROXY header of {0} bytes")]
    Length(usize),
}

/// How many more bytes belong to the header that begins with `bytes`, as far as that is known; 0: it is whole.
pub fn missing(bytes: &[u8]) -> Result<usize, ProxyHeaderError> {
    let compared = bytes.len().min(SIGNATURE.len());
    if bytes[..compared] != SIGNATURE[..compared] {
        return Err(ProxyHeaderError::Missing);
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else { return Ok(FIXED_LEN - bytes.len()) };
    let total = FIXED_LEN + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if total > MAX_LEN { Err(ProxyHeaderError::Length(total)) } else { Ok(total.saturating_sub(bytes.len())) }
}

/// Reads a header of which nothing is [`missing`].
pub fn parse(header: &[u8]) -> Result<Source, ProxyHeaderError> {
    if missing(header)? > 0 {
        return Err(ProxyHeaderError::Length(header.len()));
    }
    let (fixed, addresses) = header.split_at(FIXED_LEN);
    match fixed[12] {
        0x20 => Ok(Source::Proxy),
        0x21 => client(fixed[13], addresses),
        command => Err(ProxyHeaderError::Command(command)),
    }
}

/// The source's address and port; the destination's are between them.
fn client(family: u8, addresses: &[u8]) -> Result<Source, ProxyHeaderError> {
    let too_short = ProxyHeaderError::Length(FIXED_LEN + addresses.len());
    let (ip, port) = match family {
        // AF_UNSPEC; AF_UNIX as a stream.
        0x00 | 0x31 => return Ok(Source::Proxy),
        0x11 => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *addresses.first_chunk().ok_or(too_short)?;
            (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), [high, low])
        }
        0x21 => {
            let addresses = addresses.first_chunk::<36>().ok_or(too_short)?;
            let source: [u8; 16] = *addresses.first_chunk().expect("16 of 36 bytes");
            (IpAddr::V6(Ipv6Addr::from(source)), [addresses[32], addresses[33]])
        }
        family => return Err(ProxyHeaderError::Family(family)),
    };
    Ok(Source::Client(SocketAddr::new(ip, u16::from_be_bytes(port))))
}

#[cfg(test)]
mod tests {
    use super::{MAX_LEN, ProxyHeaderError, SIGNATURE, Source, missing, parse};

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xc0, 0x01, 0x19, 0x20];

    #[test]
    fn whom_it_is_for() {
        let check = |command, family, rest: &[u8], expected: Result<&str, ProxyHeaderError>| {
            let expected = expected.map(|address| match address {
                "proxy" => Source::Proxy,
                address => Source::Client(address.parse().expect("an address")),
            });
            assert_eq!(parse(&header(command, family, rest)), expected, "{command:x} {family:x}");
        };
        let ipv6 =
            [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[9], &[0xff; 16], &[0x12, 0x34, 0x19, 0x20]].concat();
        check(0x21, 0x11, &IPV4, Ok("192.0.2.7:49153"));
        check(0x21, 0x11, &[&IPV4[..], b"\x03\0\x04crc3"].concat(), Ok("192.0.2.7:49153"));
        check(0x21, 0x21, &ipv6, Ok("[2001:db8::9]:4660"));
        check(0x21, 0x31, &[b'/'; 216], Ok("proxy"));
        check(0x21, 0x00, b"", Ok("proxy"));
        check(0x20, 0x00, b"", Ok("proxy"));
        // LOCAL: whatever else it says.
        check(0x20, 0x11, &IPV4, Ok("proxy"));
        check(0x20, 0xff, b"anything", Ok("proxy"));
        check(0x22, 0x11, &IPV4, Err(ProxyHeaderError::Command(0x22)));
        check(0x11, 0x11, &IPV4, Err(ProxyHeaderError::Command(0x11)));
        check(0x21, 0x12, &IPV4, Err(ProxyHeaderError::Family(0x12)));
        check(0x21, 0x11, &IPV4[..11], Err(ProxyHeaderError::Length(27)));
        check(0x21, 0x21, &ipv6[..35], Err(ProxyHeaderError::Length(51)));
    }

    #[test]
    fn it_is_read_to_its_last_byte_and_no_further() {
        let whole = header(0x21, 0x11, &IPV4);
        for end in 0..whole.len() {
            let more = missing(&whole[..end]).expect("the beginning of one");
            assert!((1..=whole.len() - end).contains(&more), "{end}: {more}");
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        assert_eq!(missing(&whole), Ok(0));
        assert_eq!(missing(&header(0x21, 0, &[0; MAX_LEN - 16])), Ok(0));
        assert_eq!(missing(&header(0x21, 0, &[0; MAX_LEN - 15])), Err(ProxyHeaderError::Length(MAX_LEN + 1)));
    }

    #[test]
    fn what_is_no_header_is_known_by_its_first_wrong_byte() {
        let check = |bytes: &[u8]| assert_eq!(missing(bytes), Err(ProxyHeaderError::Missing), "{bytes:?}");
        check(b"\0");
        check(b"\0\0\0\x08\x04\xd2\x16\x2f");
        check(b"PROXY TCP4 192.0.2.7 10.0.0.1 49153 6432\r\n");
        check(b"\r\n\r\n\0\r\nQUIX");
        check(b"\x16\x03\x01");
    }
}
