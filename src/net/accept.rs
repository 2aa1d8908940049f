//! From an accepted socket to a client that has proved who it is.
//!
//! Startup and authentication together have one time limit. Whoever fails is told why, in PostgreSQL's words and
//! with its SQLSTATE, and the connection is closed so that the words arrive. A client that says nothing at all,
//! such as a load balancer's check, is closed without a word.

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::authenticate::Admitted;
use super::proxy_header::{self, Source};
use super::tls::Negotiation;
use super::wire::{Wire, WireError};
use super::{
    Authenticator, Client, ConnectionKind, Credentials, LoginMetrics, Peer, PeerAddress, Stream,
    TlsForClients,
};
use crate::pg::protocol::Malformed;
use crate::pg::protocol::backend;
use crate::pg::protocol::startup::{self, CancelKey, FirstPacket, Startup, StartupError};
use crate::pg::{ErrorFields, SqlState};

/// Clients between accept and the end of their authentication. One more is refused with 53300.
const DEFAULT_MAX_LOGINS: usize = 2000;

const DEFAULT_LOGIN_LIMIT: Duration = Duration::from_secs(15);

/// Who greets clients. Shared by all listeners and threads.
#[derive(Debug)]
pub struct Acceptor {
    reception: Mutex<Arc<Reception>>,
    logins: Semaphore,
    metrics: LoginMetrics,
}

/// How clients are received: what they must prove, how encrypted, within which time.
#[derive(Debug)]
pub struct Reception {
    authenticator: Authenticator,
    /// For startup and authentication together.
    login_limit: Duration,
    tls: ClientTls,
}

/// Whether clients can, or must, come with TLS. Through unix sockets there is none, and nothing is demanded.
#[derive(Clone, Debug, Default)]
pub enum ClientTls {
    #[default]
    Disable,
    Allow(Arc<TlsForClients>),
    /// Who comes over TCP without it is refused with 28000. CancelRequests are not: they have always been sent
    /// without, and whoever has the key may use it.
    Require(Arc<TlsForClients>),
}

impl ClientTls {
    fn offered(&self) -> Option<&TlsForClients> {
        match self {
            ClientTls::Disable => None,
            ClientTls::Allow(tls) | ClientTls::Require(tls) => Some(tls),
        }
    }
}

impl Acceptor {
    pub fn new(reception: Reception, metrics: LoginMetrics) -> Acceptor {
        let (reception, logins) = (Mutex::new(Arc::new(reception)), Semaphore::new(DEFAULT_MAX_LOGINS));
        Acceptor { reception, logins, metrics }
    }

    /// Counts for itself.
    #[cfg(test)]
    pub(super) fn uncounted(reception: Reception) -> Acceptor {
        Acceptor::new(reception, LoginMetrics::unregistered().expect("valid names"))
    }

    #[must_use]
    pub fn with_max_logins(mut self, max_logins: usize) -> Acceptor {
        self.logins = Semaphore::new(max_logins);
        self
    }

    /// Of the clients that come now.
    pub fn reception(&self) -> Arc<Reception> {
        self.reception.lock().clone()
    }

    /// Of the clients that come from now on. Who is being greeted goes on as it began.
    pub fn change(&self, reception: Reception) {
        *self.reception.lock() = Arc::new(reception);
    }
}

impl Reception {
    pub fn by(authenticator: Authenticator) -> Reception {
        Reception { authenticator, login_limit: DEFAULT_LOGIN_LIMIT, tls: ClientTls::default() }
    }

    #[must_use]
    pub fn with_tls(mut self, tls: ClientTls) -> Reception {
        self.tls = tls;
        self
    }

    #[must_use]
    pub fn with_login_limit(mut self, login_limit: Duration) -> Reception {
        self.login_limit = login_limit;
        self
    }

    pub fn authenticator(&self) -> &Authenticator {
        &self.authenticator
    }
}

#[derive(Debug)]
pub enum Hello {
    Client(ConnectionKind, Box<Client>),
    /// To be dropped when the cancel has been carried out: libpq waits for that end of file.
    Cancel(CancelKey, Stream),
    /// Refused, or gone.
    Closed,
}

/// Load balancers that say in a PROXY header whom they connect for: where they are. Whoever can send such a header
/// can claim any address, so nobody else is listened to. Through unix sockets they are known by reaching them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl Proxies {
    pub fn at(networks: Vec<IpNet>) -> Proxies {
        Proxies(networks)
    }

    fn include(&self, address: PeerAddress) -> bool {
        match address {
            PeerAddress::Unix => true,
            PeerAddress::Tcp(address) => {
                self.0.iter().any(|network| network.contains(&address.ip().to_canonical()))
            }
            PeerAddress::Unknown => false,
        }
    }
}

/// Whose the connection is that `proxy` has made. What is local to another host is not local here: then it is the
/// proxy's own.
fn on_behalf_of(source: Source, proxy: PeerAddress) -> PeerAddress {
    match source {
        Source::Proxy => proxy,
        Source::Client(address) if address.ip().to_canonical().is_loopback() && !proxy.is_local() => proxy,
        Source::Client(address) => PeerAddress::Tcp(address),
    }
}

/// Greets whoever is at the other end. Takes at most the login limit, and two seconds for last words. With `proxies`
/// it is one of them, and nothing else is expected: who is not is closed without a word, which it would not expect.
pub async fn hello(stream: Stream, proxies: Option<&Proxies>, acceptor: &Acceptor) -> Hello {
    let (peer, reception) = (Peer::plain(stream.peer()), acceptor.reception());
    let mut login =
        Login { wire: Wire::new(stream), peer, reception: &reception, waiting_for: Waiting::Startup };
    let outcome = match acceptor.logins.try_acquire() {
        Err(_) => Err(Refusal::Because(ErrorFields::fatal(
            SqlState::TOO_MANY_CONNECTIONS,
            "sorry, too many clients are logging in already",
        ))),
        Ok(_permit) => match tokio::time::timeout(reception.login_limit, login.run(proxies)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(login.out_of_time()),
        },
    };
    let (wire, peer) = (login.wire, login.peer);
    let address = peer.address;
    match outcome {
        Ok(Outcome::Cancel(key)) => Hello::Cancel(key, wire.stream),
        Ok(Outcome::Client(startup, Admitted { credentials, method })) => {
            acceptor.metrics.succeeded(method);
            client(wire, peer, startup, credentials)
        }
        Err(Refusal::Handshake(error)) => {
            // An alert has told the client as much as it may know.
            tracing::info!(peer = %address, %error, "TLS handshake failed");
            acceptor.metrics.handshake_failed();
            Hello::Closed
        }
        Err(Refusal::Gone) => {
            tracing::debug!(peer = %address, "a client went before it had logged in");
            Hello::Closed
        }
        Err(Refusal::Because(why)) => {
            let user = match &login.waiting_for {
                Waiting::Startup => None,
                Waiting::Proof { user } => Some(user.as_str()),
            };
            tracing::info!(peer = %address, user, sqlstate = %why.code, reason = why.message, "login refused");
            acceptor.metrics.refused(why.code);
            let mut wire = wire;
            why.encode(&mut wire.out);
            wire.farewell().await;
            Hello::Closed
        }
    }
}

fn client(wire: Wire, peer: Peer, startup: Startup, credentials: Credentials) -> Hello {
    let minor = startup.spoken();
    let client = Client {
        stream: wire.stream,
        peer,
        received: wire.received,
        out: wire.out,
        user: startup.user.into(),
        database: startup.database.into(),
        parameters: startup.parameters,
        credentials,
        minor,
    };
    Hello::Client(startup.replication.into(), Box::new(client))
}

struct Login<'a> {
    wire: Wire,
    peer: Peer,
    reception: &'a Reception,
    /// For the error when time runs out.
    waiting_for: Waiting,
}

enum Waiting {
    Startup,
    Proof { user: String },
}

enum Outcome {
    Client(Startup, Admitted),
    Cancel(CancelKey),
}

/// Why nothing came of it.
pub(super) enum Refusal {
    /// There is nobody left to tell.
    Gone,
    /// There was no encrypted connection on which to tell it.
    Handshake(std::io::Error),
    Because(ErrorFields),
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Refusal {
        Refusal::Gone
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Refusal {
        match error {
            WireError::Io(_) => Refusal::Gone,
            WireError::Length(error) => {
                Refusal::Because(ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string()))
            }
        }
    }
}

impl From<StartupError> for Refusal {
    fn from(error: StartupError) -> Refusal {
        Refusal::Because(error.fields())
    }
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Refusal {
        Refusal::Because(error.fields())
    }
}

impl Refusal {
    pub(super) fn fatal(code: SqlState, message: impl Into<String>) -> Refusal {
        Refusal::Because(ErrorFields::fatal(code, message))
    }
}

impl Login<'_> {
    async fn run(&mut self, proxies: Option<&Proxies>) -> Result<Outcome, Refusal> {
        if let Some(proxies) = proxies {
            self.proxy_header(proxies).await?;
        }
        let startup = match self.first_packets().await? {
            FirstPackets::Startup(startup) => startup,
            FirstPackets::Cancel(key) => return Ok(Outcome::Cancel(key)),
        };
        self.waiting_for = Waiting::Proof { user: startup.user.clone() };
        startup.negotiation(&mut self.wire.out);
        let authenticator = &self.reception.authenticator;
        let admitted = authenticator.authenticate(&mut self.wire, &self.peer, &startup).await?;
        backend::authentication_ok(&mut self.wire.out);
        Ok(Outcome::Client(startup, admitted))
    }

    /// Not a byte more than the header is read: what is behind it may be a handshake's.
    async fn proxy_header(&mut self, proxies: &Proxies) -> Result<(), Refusal> {
        let proxy = self.peer.address;
        if !proxies.include(proxy) {
            tracing::info!(peer = %proxy, "connection refused: not in proxy_from");
            return Err(Refusal::Gone);
        }
        let mut header = Vec::new();
        let source = loop {
            match proxy_header::missing(&header) {
                Ok(0) => break proxy_header::parse(&header),
                Ok(more) => {
                    let mut rest = (&mut self.wire.stream).take(more as u64);
                    if rest.read_buf(&mut header).await? == 0 {
                        return Err(Refusal::Gone);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let source = source.map_err(|error| {
            tracing::info!(peer = %proxy, %error, "connection refused");
            Refusal::Gone
        })?;
        self.peer.address = on_behalf_of(source, proxy);
        Ok(())
    }

    /// Up to the startup packet. Encryption is negotiated once in each kind; GSSAPI's is always declined.
    async fn first_packets(&mut self) -> Result<FirstPackets, Refusal> {
        self.direct_tls().await?;
        let (mut ssl_asked, mut gss_asked) = (self.peer.tls.is_some(), false);
        loop {
            let (request, asked) = match self.first_packet().await? {
                FirstPacket::Startup(startup) => {
                    self.require_tls(&startup)?;
                    return Ok(FirstPackets::Startup(startup));
                }
                FirstPacket::Cancel(key) => return Ok(FirstPackets::Cancel(key)),
                FirstPacket::SslRequest => (Encryption::Tls, &mut ssl_asked),
                FirstPacket::GssEncRequest => (Encryption::Gss, &mut gss_asked),
            };
            if std::mem::replace(asked, true) {
                return Err(Refusal::fatal(
                    SqlState::PROTOCOL_VIOLATION,
                    "encryption was negotiated already",
                ));
            }
            // Bytes behind the request were sent before the answer: somebody in the middle may have put them
            // there, to be taken for the client's after the handshake (CVE-2021-23214).
            if !self.wire.received.is_empty() {
                let message = "received unencrypted data after an encryption request";
                return Err(Refusal::fatal(SqlState::PROTOCOL_VIOLATION, message));
            }
            match (request, self.reception.tls.offered(), &self.wire.stream) {
                (Encryption::Tls, Some(tls), Stream::Tcp(_)) => {
                    self.wire.stream.write_all(b"S").await?;
                    self.handshake(tls, Negotiation::SslRequest).await?;
                    gss_asked = true;
                }
                _ => self.wire.stream.write_all(b"N").await?,
            }
        }
    }

    /// A client may begin with the handshake itself (`sslnegotiation=direct`): no startup packet is as long as one
    /// whose length begins with its first byte would be.
    async fn direct_tls(&mut self) -> Result<(), Refusal> {
        const HANDSHAKE: u8 = 0x16;
        let (Some(tls), Stream::Tcp(stream)) = (self.reception.tls.offered(), &self.wire.stream) else {
            return Ok(());
        };
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first == [HANDSHAKE] {
            self.handshake(tls, Negotiation::Direct).await?;
        }
        Ok(())
    }

    async fn handshake(&mut self, tls: &TlsForClients, negotiation: Negotiation) -> Result<(), Refusal> {
        let Stream::Tcp(stream) = std::mem::replace(&mut self.wire.stream, Stream::Gone) else {
            return Err(Refusal::Gone);
        };
        match tls.accept(stream, negotiation).await {
            Ok((stream, facts)) => {
                self.wire.stream = stream;
                self.peer.tls = Some(facts);
                Ok(())
            }
            Err(error) => Err(Refusal::Handshake(error)),
        }
    }

    fn require_tls(&self, startup: &Startup) -> Result<(), Refusal> {
        let (ClientTls::Require(_), None, Stream::Tcp(_)) =
            (&self.reception.tls, &self.peer.tls, &self.wire.stream)
        else {
            return Ok(());
        };
        let message = format!(
            "no rule lets user \"{}\" connect to database \"{}\" from {}, no encryption",
            startup.user, startup.database, self.peer.address
        );
        Err(Refusal::Because(
            ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
                .with_hint("Connect with sslmode=require."),
        ))
    }

    async fn first_packet(&mut self) -> Result<FirstPacket, Refusal> {
        let received = loop {
            match startup::length(&self.wire.received)? {
                Some(length) if length <= self.wire.received.len() => break length,
                _ => self.wire.fill().await?,
            }
        };
        let packet = startup::parse(&self.wire.received[..received])?;
        self.wire.received.advance(received);
        Ok(packet)
    }

    fn out_of_time(&self) -> Refusal {
        match &self.waiting_for {
            // Connected and never said a word.
            Waiting::Startup if self.wire.received.is_empty() => Refusal::Gone,
            Waiting::Startup => Refusal::fatal(SqlState::PROTOCOL_VIOLATION, "incomplete startup packet"),
            Waiting::Proof { .. } => {
                Refusal::fatal(SqlState::QUERY_CANCELED, "canceling authentication due to timeout")
            }
        }
    }
}

enum FirstPackets {
    Startup(Startup),
    Cancel(CancelKey),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encryption {
    Tls,
    Gss,
}

#[cfg(test)]
mod tests {
    use super::{Proxies, on_behalf_of};
    use crate::net::PeerAddress;
    use crate::net::proxy_header::Source;

    fn tcp(address: &str) -> PeerAddress {
        PeerAddress::Tcp(address.parse().expect("an address"))
    }

    #[test]
    fn only_known_proxies_are_listened_to() {
        let proxies =
            Proxies::at(["10.0.0.0/24", "2001:db8::5/128"].map(|net| net.parse().expect("CIDR")).to_vec());
        for (address, expected) in [
            (tcp("10.0.0.7:1"), true),
            (tcp("[::ffff:10.0.0.7]:1"), true),
            (tcp("10.0.1.7:1"), false),
            (tcp("[2001:db8::5]:1"), true),
            (tcp("127.0.0.1:1"), false),
            (PeerAddress::Unix, true),
            (PeerAddress::Unknown, false),
        ] {
            assert_eq!(proxies.include(address), expected, "{address}");
        }
    }

    #[test]
    fn what_is_local_elsewhere_is_not_local_here() {
        let client = |address: &str| Source::Client(address.parse().expect("an address"));
        let (near, far) = (tcp("127.0.0.1:1"), tcp("10.0.0.7:1"));
        for (source, proxy, expected) in [
            (client("192.0.2.1:5"), far, tcp("192.0.2.1:5")),
            (client("127.0.0.1:5"), far, far),
            (client("[::1]:5"), far, far),
            (client("[::ffff:127.0.0.1]:5"), far, far),
            (client("127.0.0.1:5"), near, tcp("127.0.0.1:5")),
            (client("127.0.0.1:5"), PeerAddress::Unix, tcp("127.0.0.1:5")),
            (Source::Proxy, far, far),
        ] {
            assert_eq!(on_behalf_of(source, proxy), expected, "{source:?} through {proxy}");
        }
    }
}
