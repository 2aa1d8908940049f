//! Who is this client? What it must prove, against which secret, and what that lets us do at a server.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;

use super::accept::Refusal;
use super::users::{Lookup, Secret};
use super::wire::Wire;
use super::{Credentials, Peer, Users};
use crate::pg::auth::scram::{self, ExpectClientFinal, Proven, ScramError, Verifier, password_failed};
use crate::pg::protocol::startup::{Replication, Startup};
use crate::pg::protocol::{backend, frontend};
use crate::pg::{ErrorFields, SqlState};

/// `PG_MAX_AUTH_TOKEN_LENGTH` (auth.c), for passwords.
const MAX_PASSWORD_LEN: usize = 65_535;

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
pub struct Authenticator {
    method: Method,
    users: Arc<Users>,
    /// Replication is a right of its own: who reads WAL reads everything.
    replication_users: Vec<String>,
    /// What the stand-ins for unknown users are made of.
    mock_secret: scram::Key,
}

impl Authenticator {
    pub fn new(method: Method, users: Arc<Users>) -> Authenticator {
        Authenticator { method, users, replication_users: Vec::new(), mock_secret: rand::random() }
    }

    #[must_use]
    pub fn with_replication_users(mut self, users: impl IntoIterator<Item = String>) -> Authenticator {
        self.replication_users.extend(users);
        self
    }

    /// Takes the client through its proof. All but AuthenticationOk is then in `wire.out`.
    pub(super) async fn authenticate(
        &self,
        wire: &mut Wire,
        peer: &Peer,
        startup: &Startup,
    ) -> Result<Credentials, Refusal> {
        let credentials = Dialogue { authenticator: self, wire, peer, startup }.run().await?;
        // After the proof, so that nobody learns who may replicate by asking.
        if startup.replication != Replication::Off && !self.replication_users.contains(&startup.user) {
            let message = format!("user \"{}\" may not connect for replication", startup.user);
            return Err(Refusal::Because(
                ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
                    .with_hint("List the user in auth.replication_users."),
            ));
        }
        Ok(credentials)
    }
}

/// One client's proof.
struct Dialogue<'a> {
    authenticator: &'a Authenticator,
    wire: &'a mut Wire,
    peer: &'a Peer,
    startup: &'a Startup,
}

impl Dialogue<'_> {
    async fn run(&mut self) -> Result<Credentials, Refusal> {
        let user = self.startup.user.as_str();
        if self.authenticator.method == Method::Trust {
            return self.trust();
        }
        let secret = match self.authenticator.users.find(user).await {
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
        match (self.authenticator.method, secret.as_deref()) {
            (Method::Md5, None | Some(Secret::Md5(_) | Secret::Plain { .. })) => {
                self.md5(user, secret.as_deref()).await
            }
            (_, secret) => self.scram(user, secret).await,
        }
    }

    fn trust(&self) -> Result<Credentials, Refusal> {
        let (peer, startup) = (self.peer.address, self.startup);
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
        Ok(match self.authenticator.users.listed(&startup.user) {
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
                mock = Verifier::mock(&self.authenticator.mock_secret, user);
                &mock
            }
        };
        let proven = match self.scram_dialogue(user, verifier).await? {
            Ok(proven) => proven,
            Err(error) => {
                if error == ScramError::Proof {
                    self.authenticator.users.doubt(user);
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
                self.authenticator.users.doubt(user);
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
}
