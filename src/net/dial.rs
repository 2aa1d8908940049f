//! Connecting to a server and logging in, up to its first ReadyForQuery.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::{TcpStream, UnixStream};

use super::listen::socket_path;
use super::wire::{Message, Wire, WireError};
use super::{Backend, Credentials, DialError, Stream, Target};
use crate::pg::auth::md5::Md5Secret;
use crate::pg::auth::scram::{ClientSecret, ExpectServerFinal, ExpectServerFirst, ScramError};
use crate::pg::error::ErrorFields;
use crate::pg::protocol::backend::{self, Authentication};
use crate::pg::protocol::startup::{CancelKey, put_cancel_request, put_startup};
use crate::pg::protocol::{Malformed, frontend};
use crate::topology::Address;

/// No message of a login is longer, except in error.
const MAX_LOGIN_MESSAGE: usize = 1 << 20;

/// ParameterStatus messages of one login. PostgreSQL 18 sends 16; a server that sends more than this is none.
const MAX_PARAMETERS: usize = 1000;

/// Connects and logs in, all within `limit`.
pub async fn dial(target: &Target, limit: Duration) -> Result<Backend, DialError> {
    within(limit, &target.address, async {
        let stream = open(&target.address).await?;
        LogIn::new(stream, target).run().await
    })
    .await
}

/// Logs in on a stream that is there already, within `limit`.
pub async fn log_in(stream: Stream, target: &Target, limit: Duration) -> Result<Backend, DialError> {
    within(limit, &target.address, LogIn::new(stream, target).run()).await
}

/// Asks the server to cancel what the backend `pid` is doing, and waits until the server has passed that on
/// (it closes the connection then). Whether anything was cancelled is not told (protocol-flow).
pub async fn cancel(address: &Address, pid: u32, secret: &[u8], limit: Duration) -> Result<(), DialError> {
    within(limit, address, async {
        let mut wire = Wire::new(open(address).await?);
        put_cancel_request(&CancelKey { pid, secret: secret.to_vec() }, &mut wire.out);
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

/// Opens a stream to `address`.
pub(super) async fn open(address: &Address) -> Result<Stream, DialFailure> {
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

struct LogIn<'a> {
    wire: Wire,
    target: &'a Target,
    proof: Proof,
    parameters: Vec<(String, String)>,
    key: Option<(u32, Vec<u8>)>,
}

/// How far the server's question has been answered.
enum Proof {
    NotAsked,
    ScramFirst(ExpectServerFirst),
    ScramFinal(ExpectServerFinal),
    /// Nothing more to prove: the password was sent, or the server's signature was right.
    Given,
}

impl<'a> LogIn<'a> {
    fn new(stream: Stream, target: &'a Target) -> LogIn<'a> {
        let (parameters, key) = (Vec::new(), None);
        LogIn { wire: Wire::new(stream), target, proof: Proof::NotAsked, parameters, key }
    }

    async fn run(mut self) -> Result<Backend, DialFailure> {
        let Target { user, database, parameters, .. } = self.target;
        put_startup(user, database, parameters, &mut self.wire.out);
        loop {
            self.wire.flush().await?;
            let message = self.wire.message(MAX_LOGIN_MESSAGE).await?;
            if message.tag == backend::READY_FOR_QUERY {
                break;
            }
            self.take(&message)?;
        }
        let (pid, cancel_key) = self.key.ok_or_else(|| DialFailure::protocol("no BackendKeyData"))?;
        let Wire { stream, received, .. } = self.wire;
        Ok(Backend { stream, received, parameters: self.parameters, pid, cancel_key })
    }

    fn take(&mut self, message: &Message) -> Result<(), DialFailure> {
        match message.tag {
            backend::AUTHENTICATION => self.authenticate(&message.payload)?,
            backend::PARAMETER_STATUS => {
                let (name, value) = backend::decode_parameter_status(&message.payload)?;
                if self.parameters.len() == MAX_PARAMETERS {
                    return Err(DialFailure::protocol("too many ParameterStatus messages"));
                }
                self.parameters.push((name.to_owned(), value.to_owned()));
            }
            backend::BACKEND_KEY_DATA => {
                let (pid, secret) = backend::decode_backend_key_data(&message.payload)?;
                self.key = Some((pid, secret.to_vec()));
            }
            backend::ERROR_RESPONSE => {
                return Err(DialFailure::Rejected(backend::decode_error(&message.payload)));
            }
            backend::NOTICE_RESPONSE | backend::NEGOTIATE_PROTOCOL_VERSION => {}
            tag => return Err(DialFailure::protocol(format!("unexpected message of type 0x{tag:02x}"))),
        }
        Ok(())
    }

    fn authenticate(&mut self, payload: &[u8]) -> Result<(), DialFailure> {
        let asked = backend::decode_authentication(payload)?;
        let proof = std::mem::replace(&mut self.proof, Proof::Given);
        let out = &mut self.wire.out;
        self.proof = match (asked, proof) {
            (Authentication::Ok, Proof::NotAsked | Proof::Given) => Proof::Given,
            (Authentication::Cleartext, Proof::NotAsked) => {
                frontend::password(self.target.credentials.password()?, out);
                Proof::Given
            }
            (Authentication::Md5 { salt }, Proof::NotAsked) => {
                let secret = self.target.credentials.md5(&self.target.user)?;
                frontend::password(&secret.answer(salt), out);
                Proof::Given
            }
            (Authentication::Sasl { mechanisms }, Proof::NotAsked) => {
                if !mechanisms.contains(&backend::SCRAM_SHA_256) {
                    return Err(DialFailure::protocol(format!("no SASL mechanism we know: {mechanisms:?}")));
                }
                let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
                let (state, first) = ExpectServerFirst::start(self.target.credentials.scram()?, &nonce);
                frontend::sasl_initial_response(backend::SCRAM_SHA_256, &first, out);
                Proof::ScramFirst(state)
            }
            (Authentication::SaslContinue(server_first), Proof::ScramFirst(state)) => {
                let (state, client_final) = state.answer(server_first)?;
                frontend::sasl_response(&client_final, out);
                Proof::ScramFinal(state)
            }
            (Authentication::SaslFinal(server_final), Proof::ScramFinal(state)) => {
                state.verify(server_final)?;
                Proof::Given
            }
            (Authentication::Unsupported(number), _) => {
                return Err(DialFailure::protocol(format!(
                    "authentication method {number} is not supported"
                )));
            }
            // Also an early AuthenticationOk: a server that does not finish SCRAM does not know the password.
            (_, _) => return Err(DialFailure::protocol("authentication messages out of order")),
        };
        Ok(())
    }
}

impl Credentials {
    fn password(&self) -> Result<&str, DialFailure> {
        match self {
            Credentials::Password(password) => Ok(password),
            Credentials::Trust | Credentials::ScramKeys { .. } | Credentials::Md5(_) => {
                Err(DialFailure::protocol("the server asks for a clear-text password, and we have none"))
            }
        }
    }

    fn md5(&self, user: &str) -> Result<Md5Secret, DialFailure> {
        match self {
            Credentials::Password(password) => Ok(Md5Secret::from_password(user, password)),
            Credentials::Md5(secret) => Ok(secret.clone()),
            Credentials::Trust | Credentials::ScramKeys { .. } => {
                Err(DialFailure::protocol("the server asks for an md5 password, and we have none"))
            }
        }
    }

    fn scram(&self) -> Result<ClientSecret, DialFailure> {
        match self {
            Credentials::Password(password) => Ok(ClientSecret::Password(password.to_string())),
            &Credentials::ScramKeys { client_key, server_key } => {
                Ok(ClientSecret::Keys { client_key, server_key })
            }
            Credentials::Trust | Credentials::Md5(_) => {
                Err(DialFailure::protocol("the server asks for a SCRAM proof, and we have no password"))
            }
        }
    }
}
