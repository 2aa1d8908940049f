//! From an accepted socket to a client that has proved who it is.
//!
//! Startup and authentication together have one time limit. Whoever fails is told why, in PostgreSQL's words and
//! with its SQLSTATE, and the connection is closed so that the words arrive. A client that says nothing at all,
//! such as a load balancer's check, is closed without a word.

use std::time::Duration;

use bytes::Buf;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::wire::{Wire, WireError};
use super::{Authenticator, Client, ConnectionKind, Credentials, Peer, Stream};
use crate::pg::protocol::Malformed;
use crate::pg::protocol::backend;
use crate::pg::protocol::startup::{self, CancelKey, FirstPacket, Startup, StartupError};
use crate::pg::{ErrorFields, SqlState};

/// Clients between accept and the end of their authentication. One more is refused with 53300.
const DEFAULT_MAX_LOGINS: usize = 2000;

const DEFAULT_LOGIN_LIMIT: Duration = Duration::from_secs(15);

/// How clients are received: within which limits, and what they must prove. Shared by all listeners and threads.
#[derive(Debug)]
pub struct Acceptor {
    authenticator: Authenticator,
    /// For startup and authentication together.
    login_limit: Duration,
    logins: Semaphore,
}

impl Acceptor {
    pub fn new(authenticator: Authenticator) -> Acceptor {
        Acceptor {
            authenticator,
            login_limit: DEFAULT_LOGIN_LIMIT,
            logins: Semaphore::new(DEFAULT_MAX_LOGINS),
        }
    }

    #[must_use]
    pub fn with_login_limit(mut self, login_limit: Duration) -> Acceptor {
        self.login_limit = login_limit;
        self
    }

    #[must_use]
    pub fn with_max_logins(mut self, max_logins: usize) -> Acceptor {
        self.logins = Semaphore::new(max_logins);
        self
    }
}

#[derive(Debug)]
pub enum Hello {
    Client(ConnectionKind, Client),
    /// To be dropped when the cancel has been carried out: libpq waits for that end of file.
    Cancel(CancelKey, Stream),
    /// Refused, or gone.
    Closed,
}

/// Greets whoever is at the other end. Takes at most the login limit, and two seconds for last words.
pub async fn hello(stream: Stream, acceptor: &Acceptor) -> Hello {
    let peer = Peer::plain(stream.peer());
    let mut login = Login { wire: Wire::new(stream), peer, acceptor, waiting_for: Waiting::Startup };
    let outcome = match acceptor.logins.try_acquire() {
        Err(_) => Err(Refusal::Because(ErrorFields::fatal(
            SqlState::TOO_MANY_CONNECTIONS,
            "sorry, too many clients are logging in already",
        ))),
        Ok(_permit) => match tokio::time::timeout(acceptor.login_limit, login.run()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(login.out_of_time()),
        },
    };
    let (wire, peer) = (login.wire, login.peer.address);
    match outcome {
        Ok(Outcome::Cancel(key)) => Hello::Cancel(key, wire.stream),
        Ok(Outcome::Client(startup, credentials)) => client(wire, startup, credentials),
        Err(Refusal::Gone) => {
            tracing::debug!(%peer, "a client went before it had logged in");
            Hello::Closed
        }
        Err(Refusal::Because(why)) => {
            let user = match &login.waiting_for {
                Waiting::Startup => None,
                Waiting::Proof { user } => Some(user.as_str()),
            };
            tracing::info!(%peer, user, sqlstate = %why.code, reason = why.message, "login refused");
            let mut wire = wire;
            why.encode(&mut wire.out);
            wire.farewell().await;
            Hello::Closed
        }
    }
}

fn client(wire: Wire, startup: Startup, credentials: Credentials) -> Hello {
    let client = Client {
        stream: wire.stream,
        received: wire.received,
        out: wire.out,
        user: startup.user.into(),
        database: startup.database.into(),
        parameters: startup.parameters,
        credentials,
    };
    Hello::Client(startup.replication.into(), client)
}

struct Login<'a> {
    wire: Wire,
    peer: Peer,
    acceptor: &'a Acceptor,
    /// For the error when time runs out.
    waiting_for: Waiting,
}

enum Waiting {
    Startup,
    Proof { user: String },
}

enum Outcome {
    Client(Startup, Credentials),
    Cancel(CancelKey),
}

/// Why nothing came of it.
pub(super) enum Refusal {
    /// There is nobody left to tell.
    Gone,
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
    async fn run(&mut self) -> Result<Outcome, Refusal> {
        let startup = match self.first_packets().await? {
            FirstPackets::Startup(startup) => startup,
            FirstPackets::Cancel(key) => return Ok(Outcome::Cancel(key)),
        };
        self.waiting_for = Waiting::Proof { user: startup.user.clone() };
        startup.negotiation(&mut self.wire.out);
        let authenticator = &self.acceptor.authenticator;
        let credentials = authenticator.authenticate(&mut self.wire, &self.peer, &startup).await?;
        backend::authentication_ok(&mut self.wire.out);
        Ok(Outcome::Client(startup, credentials))
    }

    /// Up to the startup packet. Encryption is offered once in each kind, and declined: TLS will answer 'S' and
    /// wrap the stream here.
    async fn first_packets(&mut self) -> Result<FirstPackets, Refusal> {
        let (mut ssl_declined, mut gss_declined) = (false, false);
        loop {
            let declined = match self.first_packet().await? {
                FirstPacket::Startup(startup) => return Ok(FirstPackets::Startup(startup)),
                FirstPacket::Cancel(key) => return Ok(FirstPackets::Cancel(key)),
                FirstPacket::SslRequest => &mut ssl_declined,
                FirstPacket::GssEncRequest => &mut gss_declined,
            };
            if std::mem::replace(declined, true) {
                return Err(Refusal::fatal(SqlState::PROTOCOL_VIOLATION, "encryption was declined already"));
            }
            // Bytes behind the request were sent before the answer: somebody in the middle may have put them
            // there, to be taken for the client's after the handshake (CVE-2021-23214).
            if !self.wire.received.is_empty() {
                let message = "received unencrypted data after an encryption request";
                return Err(Refusal::fatal(SqlState::PROTOCOL_VIOLATION, message));
            }
            self.wire.stream.write_all(b"N").await?;
        }
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
