//! From an accepted socket to a client that has proved who it is.
//!
//! Startup and authentication together have one time limit. Whoever fails is told why, in PostgreSQL's words and
//! with its SQLSTATE, and the connection is closed so that the words arrive. A client that says nothing at all,
//! such as a load balancer's check, is closed without a word.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::users::{Lookup, Secret};
use super::wire::{Wire, WireError};
use super::{Client, ConnectionKind, Credentials, Stream, Users};
use crate::pg::auth::scram::{self, ExpectClientFinal, Proven, ScramError, Verifier, password_failed};
use crate::pg::protocol::startup::{self, CancelKey, FirstPacket, Startup, StartupError};
use crate::pg::protocol::{Malformed, backend, frontend};
use crate::pg::{ErrorFields, SqlState};

/// `PG_MAX_AUTH_TOKEN_LENGTH` (auth.c), for passwords.
const MAX_PASSWORD_LEN: usize = 65_535;

/// Clients between accept and the end of their authentication. One more is refused with 53300.
const DEFAULT_MAX_LOGINS: usize = 2000;

const DEFAULT_LOGIN_LIMIT: Duration = Duration::from_secs(15);

/// What a client must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    ScramSha256,
    /// md5, or SCRAM for those whose password is stored that way, as in `pg_hba.conf`.
    Md5,
    /// Nothing; through a unix socket or a loopback address only.
    Trust,
}

/// Who may come in, and how. Shared by all listeners and threads.
#[derive(Debug)]
pub struct Acceptor {
    method: Method,
    users: Arc<Users>,
    /// For startup and authentication together.
    login_limit: Duration,
    /// Replication is a right of its own: who reads WAL reads everything.
    replication_users: Vec<String>,
    /// What the stand-ins for unknown users are made of.
    mock_secret: scram::Key,
    logins: Semaphore,
}

impl Acceptor {
    pub fn new(method: Method, users: Arc<Users>) -> Acceptor {
        Acceptor {
            method,
            users,
            login_limit: DEFAULT_LOGIN_LIMIT,
            replication_users: Vec::new(),
            mock_secret: rand::random(),
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

    #[must_use]
    pub fn with_replication_users(mut self, users: impl IntoIterator<Item = String>) -> Acceptor {
        self.replication_users.extend(users);
        self
    }

    /// A server has turned down the credentials that a client's proof gave us (28P01): the password has changed
    /// since we looked it up. The client's next login looks again.
    pub fn doubt(&self, user: &str) {
        self.users.doubt(user);
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
    let peer = stream.peer();
    let mut login = Login { wire: Wire::new(stream), acceptor, waiting_for: Waiting::Startup };
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
    let wire = login.wire;
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
enum Refusal {
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
    fn fatal(code: SqlState, message: impl Into<String>) -> Refusal {
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
        let credentials = self.authenticate(&startup).await?;
        // After the proof, so that nobody learns who may replicate by asking.
        let allowed = || self.acceptor.replication_users.contains(&startup.user);
        if startup.replication != startup::Replication::Off && !allowed() {
            let message = format!("user \"{}\" may not connect for replication", startup.user);
            return Err(Refusal::Because(
                ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
                    .with_hint("List the user in auth.replication_users."),
            ));
        }
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

    async fn authenticate(&mut self, startup: &Startup) -> Result<Credentials, Refusal> {
        let user = startup.user.as_str();
        if self.acceptor.method == Method::Trust {
            return self.trust(startup);
        }
        let secret = match self.acceptor.users.find(user).await {
            Lookup::Found(secret) => Some(secret),
            Lookup::Unknown => None,
            Lookup::Unavailable => {
                let message = format!("the password of user \"{user}\" cannot be looked up now");
                return Err(Refusal::Because(
                    ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, message)
                        .with_detail("No server answers that has it."),
                ));
            }
        };
        match (self.acceptor.method, secret.as_deref()) {
            (Method::Md5, None | Some(Secret::Md5(_) | Secret::Plain { .. })) => {
                self.md5(user, secret.as_deref()).await
            }
            (_, secret) => self.scram(user, secret).await,
        }
    }

    fn trust(&self, startup: &Startup) -> Result<Credentials, Refusal> {
        let peer = self.wire.stream.peer();
        if !peer.is_local() {
            let message = format!(
                "no rule lets user \"{}\" connect to database \"{}\" from {peer}",
                startup.user, startup.database
            );
            return Err(Refusal::Because(
                ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
                    .with_detail("Method trust is for unix sockets and loopback addresses."),
            ));
        }
        Ok(match self.acceptor.users.listed(&startup.user) {
            Some(Secret::Plain { password, .. }) => Credentials::Password(password.clone()),
            Some(Secret::Md5(secret)) => Credentials::Md5(secret.clone()),
            Some(Secret::Scram(_)) | None => Credentials::Trust,
        })
    }

    /// Who is unknown, or has only an md5 password, goes through the same dialogue with a stand-in, and fails.
    async fn scram(&mut self, user: &str, secret: Option<&Secret>) -> Result<Credentials, Refusal> {
        let mock;
        let verifier = match secret {
            Some(Secret::Scram(verifier) | Secret::Plain { verifier, .. }) => verifier,
            Some(Secret::Md5(_)) | None => {
                mock = Verifier::mock(&self.acceptor.mock_secret, user);
                &mock
            }
        };
        let proven = match self.scram_dialogue(user, verifier).await? {
            Ok(proven) => proven,
            Err(error) => {
                if error == ScramError::Proof {
                    self.acceptor.users.doubt(user);
                }
                return Err(Refusal::Because(error.fields(user)));
            }
        };
        backend::authentication_sasl_final(&proven.server_final, &mut self.wire.out);
        Ok(match secret {
            // The servers may hold another verifier of the same password.
            Some(Secret::Plain { password, .. }) => Credentials::Password(password.clone()),
            _ => Credentials::ScramKeys { client_key: proven.client_key, server_key: proven.server_key },
        })
    }

    async fn scram_dialogue(
        &mut self,
        user: &str,
        verifier: &Verifier,
    ) -> Result<Result<Proven, ScramError>, Refusal> {
        backend::authentication_sasl(&[backend::SCRAM_SHA_256], &mut self.wire.out);
        let initial = self.ask(scram::MAX_MESSAGE_LEN + backend::SCRAM_SHA_256.len() + 5).await?;
        let (mechanism, client_first) = frontend::decode_sasl_initial(&initial)?;
        if mechanism != backend::SCRAM_SHA_256.as_bytes() {
            let message = "client selected an invalid SASL authentication mechanism";
            return Err(Refusal::fatal(SqlState::PROTOCOL_VIOLATION, message));
        }
        let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
        let challenged = ExpectClientFinal::challenge(verifier, client_first.unwrap_or_default(), &nonce);
        let (state, server_first) = challenged.map_err(|error| Refusal::Because(error.fields(user)))?;
        backend::authentication_sasl_continue(&server_first, &mut self.wire.out);
        let client_final = self.ask(scram::MAX_MESSAGE_LEN).await?;
        Ok(state.check(&client_final))
    }

    async fn md5(&mut self, user: &str, secret: Option<&Secret>) -> Result<Credentials, Refusal> {
        let salt: [u8; 4] = rand::random();
        backend::authentication_md5(salt, &mut self.wire.out);
        let answer = self.ask(MAX_PASSWORD_LEN).await?;
        let answer = frontend::decode_password(&answer)?;
        match secret {
            Some(Secret::Plain { password, md5, .. }) if md5.accepts(answer, salt) => {
                Ok(Credentials::Password(password.clone()))
            }
            Some(Secret::Md5(md5)) if md5.accepts(answer, salt) => Ok(Credentials::Md5(md5.clone())),
            _ => {
                self.acceptor.users.doubt(user);
                Err(Refusal::Because(password_failed(user)))
            }
        }
    }

    /// Sends what is in `out` and waits for a password message.
    async fn ask(&mut self, max_payload: usize) -> Result<BytesMut, Refusal> {
        self.wire.flush().await?;
        let message = self.wire.message(max_payload).await?;
        if message.tag != frontend::PASSWORD {
            let message = format!("expected password response, got message type {}", message.tag);
            return Err(Refusal::fatal(SqlState::PROTOCOL_VIOLATION, message));
        }
        Ok(message.payload)
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
