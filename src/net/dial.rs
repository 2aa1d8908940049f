//! Connecting to a server: the way to it, and the limit for everything on it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::listen::socket_path;
use super::log_in::LogIn;
use super::wire::{Wire, WireError};
use super::{Backend, DialError, ServerTlsMode, Stream, Target, TlsFacts, TlsForServers};
use crate::pg::auth::scram::ScramError;
use crate::pg::error::ErrorFields;
use crate::pg::protocol::Malformed;
use crate::pg::protocol::startup::{CancelKey, put_cancel_request, put_ssl_request};
use crate::topology::Address;

/// Connects and logs in, all within `limit`.
pub async fn dial(target: &Target, limit: Duration) -> Result<Backend, DialError> {
    within(limit, &target.address, async {
        let (stream, tls) = reach(&target.address, &target.tls).await?;
        LogIn::new(stream, tls, target).run().await
    })
    .await
}

/// Asks the server to cancel what the backend `pid` is doing, and waits until the server has passed that on
/// (it closes the connection then). Whether anything was cancelled is not told (protocol-flow).
pub async fn cancel(
    address: &Address,
    tls: &TlsForServers,
    key: &CancelKey,
    limit: Duration,
) -> Result<(), DialError> {
    within(limit, address, async {
        let (stream, _) = reach(address, tls).await?;
        let mut wire = Wire::new(stream);
        put_cancel_request(key, &mut wire.out);
        wire.flush().await?;
        match wire.fill().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            // The server may close before it has read everything that a longer key brings.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => Err(DialFailure::protocol("a cancel request was answered")),
        }
    })
    .await
}

/// Whether `address` takes a connection at all, within `limit`. Nothing is said on it: a kernel takes it for a server that
/// stands still.
pub async fn knock(address: &Address, limit: Duration) -> Result<(), DialError> {
    within(limit, address, async { open(address).await.map(drop) }).await
}

/// A [`DialError`] that does not know yet where it happened.
#[derive(Debug)]
pub(super) enum DialFailure {
    Refused,
    Unreachable,
    Rejected(ErrorFields),
    Protocol(io::Error),
}

impl DialFailure {
    pub(super) fn protocol(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DialFailure {
        DialFailure::Protocol(io::Error::new(io::ErrorKind::InvalidData, what))
    }
}

impl From<io::Error> for DialFailure {
    fn from(error: io::Error) -> DialFailure {
        DialFailure::Protocol(error)
    }
}

impl From<WireError> for DialFailure {
    fn from(error: WireError) -> DialFailure {
        DialFailure::Protocol(error.into())
    }
}

impl From<Malformed> for DialFailure {
    fn from(error: Malformed) -> DialFailure {
        DialFailure::protocol(error)
    }
}

impl From<ScramError> for DialFailure {
    fn from(error: ScramError) -> DialFailure {
        DialFailure::protocol(error)
    }
}

/// Gives `attempt` a limit, and its failure an address.
pub(super) async fn within<T>(
    limit: Duration,
    address: &Address,
    attempt: impl Future<Output = Result<T, DialFailure>>,
) -> Result<T, DialError> {
    let failure = match tokio::time::timeout(limit, attempt).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(failure)) => failure,
        Err(_) => DialFailure::Unreachable,
    };
    let address = address.clone();
    Err(match failure {
        DialFailure::Refused => DialError::Refused { address },
        DialFailure::Unreachable => DialError::Timeout { address, limit },
        DialFailure::Rejected(error) => DialError::Rejected { address, error },
        DialFailure::Protocol(source) => DialError::Protocol { address, source },
    })
}

/// Opens a stream to `address`, encrypted as `tls` says.
pub(super) async fn reach(
    address: &Address,
    tls: &TlsForServers,
) -> Result<(Stream, Option<TlsFacts>), DialFailure> {
    let way = tls.way(address);
    let mut stream = match open(address).await? {
        Stream::Tcp(stream) if way.mode() != ServerTlsMode::Disable => stream,
        plain => return Ok((plain, None)),
    };
    let mut request = BytesMut::new();
    put_ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Not a byte more: what comes behind the answer belongs to the handshake (CVE-2021-23222).
    match (stream.read_u8().await?, way.mode()) {
        (b'S', mode) => match way.connect(stream, &address.host).await {
            Ok((stream, facts)) => Ok((stream, Some(facts))),
            // As libpq: better than nothing is all that was asked for.
            Err(error) if mode == ServerTlsMode::Prefer => {
                tracing::debug!(%address, %error, "no TLS with this server");
                Ok((open(address).await?, None))
            }
            Err(error) => Err(error.into()),
        },
        (b'N', ServerTlsMode::Prefer) => Ok((Stream::tcp(stream)?, None)),
        (b'N', _) => Err(DialFailure::protocol("the server does not support TLS, but it was required")),
        (answer, _) => Err(DialFailure::protocol(format!("SSLRequest was answered with 0x{answer:02x}"))),
    }
}

/// Opens a stream to `address`.
async fn open(address: &Address) -> Result<Stream, DialFailure> {
    let opened = if address.host.starts_with('/') {
        let path = socket_path(Path::new(&address.host), address.port);
        UnixStream::connect(path).await.map(Stream::Unix)
    } else {
        TcpStream::connect((address.host.as_str(), address.port)).await.and_then(Stream::tcp)
    };
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => DialFailure::Refused,
        // No socket file: nobody listens there.
        io::ErrorKind::NotFound if address.host.starts_with('/') => DialFailure::Refused,
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            DialFailure::Unreachable
        }
        // A unix socket's backlog is full: somebody listens and does not accept.
        io::ErrorKind::WouldBlock => DialFailure::Unreachable,
        _ => DialFailure::Protocol(error),
    })
}
