//! Who is this client? Which rule is about it, what it must prove, against which secret, and what that lets us do at
//! a server.
//!
//! Nobody learns here whether a user exists: who is unknown goes through the same dialogue with a stand-in, and
//! hears the same. A failed proof costs a second (`penalty`).

mod name_map;
mod pattern;
mod penalty;
mod rules;
#[cfg(test)]
mod tests;

pub use name_map::{MapLine, MapLineError, NameMap};
pub use pattern::Pattern;
pub use rules::{
    CertificateName, DatabaseName, Encryption, Method, NameError, Origin, Rule, Rules, UserName, network,
};

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;

use penalty::Penalties;
use rules::Wanted;

use super::accept::Refusal;
use super::users::{Form, Known, Lookup, Secret};
use super::wire::Wire;
use super::{Credentials, Peer, ProvenKeys, Users};
use crate::pg::auth::md5::Md5Secret;
use crate::pg::auth::scram::{
    self, Binding, ExpectClientFinal, Proven, SCRAM_SHA_256_PLUS, ScramError, Verifier, password_failed,
};
use crate::pg::protocol::startup::{Replication, Startup};
use crate::pg::protocol::{backend, frontend};
use crate::pg::{ErrorFields, SqlState};

/// `PG_MAX_AUTH_TOKEN_LENGTH` (auth.c), for passwords.
const MAX_PASSWORD_LEN: usize = 65_535;

/// From a failed proof to the answer.
const PENALTY: Duration = Duration::from_secs(1);

/// Who may come in, and how. Shared by all listeners and threads.
#[derive(Debug)]
pub struct Authenticator {
    rules: Rules,
    users: Arc<Users>,
    /// Replication is a right of its own: who reads WAL reads everything.
    replication_users: Vec<String>,
    penalties: Arc<Penalties>,
}

/// A client that has proved what its rule asks for.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) credentials: Credentials,
    /// In the words of the rules.
    pub(super) method: &'static str,
}

impl Authenticator {
    pub fn new(rules: Rules, users: Arc<Users>) -> Authenticator {
        let penalties = Arc::new(Penalties::new(PENALTY));
        Authenticator { rules, users, replication_users: Vec::new(), penalties }
    }

    /// In the place of `before`: who waits for the answer to a failed proof goes on counting.
    #[must_use]
    pub fn succeeding(mut self, before: &Authenticator) -> Authenticator {
        self.penalties = before.penalties.clone();
        self
    }

    #[must_use]
    pub fn with_replication_users(mut self, users: impl IntoIterator<Item = String>) -> Authenticator {
        self.replication_users.extend(users);
        self
    }

    #[cfg(test)]
    pub(super) fn with_penalty(mut self, delay: Duration) -> Authenticator {
        self.penalties = Arc::new(Penalties::new(delay));
        self
    }

    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Takes the client through its proof. All but AuthenticationOk is then in `wire.out`.
    pub(super) async fn authenticate(
        &self,
        wire: &mut Wire,
        peer: &Peer,
        startup: &Startup,
    ) -> Result<Admitted, Refusal> {
        let wanted = Wanted {
            peer,
            user: &startup.user,
            database: &startup.database,
            replication: startup.replication,
        };
        let (number, rule) = self.rules.find(wanted).ok_or_else(|| Refusal::Because(wanted.not_let_in()))?;
        tracing::debug!(peer = %peer.address, user = wanted.user, database = wanted.database, rule = number, "a login");
        let dialogue = Dialogue { users: &self.users, wire, peer, user: &startup.user };
        let credentials = match &rule.method {
            Method::Reject => return Err(Refusal::Because(wanted.rejected())),
            Method::Trust => dialogue.listed_credentials(),
            Method::Md5 => self.by_password(dialogue, &[Form::Md5, Form::Scram]).await?,
            Method::ScramSha256 => self.by_password(dialogue, &[Form::Scram]).await?,
            Method::Cert { name, map } => dialogue.certificate(*name, map.as_ref())?,
        };
        // After the proof, so that nobody learns who may replicate by asking.
        if startup.replication != Replication::Off && !self.replication_users.contains(&startup.user) {
            let message = format!("user \"{}\" may not connect for replication", startup.user);
            return Err(Refusal::Because(
                ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
                    .with_hint("List the user in auth.replication_users."),
            ));
        }
        Ok(Admitted { credentials, method: rule.method.as_str() })
    }

    async fn by_password(&self, mut dialogue: Dialogue<'_>, forms: &[Form]) -> Result<Credentials, Refusal> {
        let address = dialogue.peer.address;
        if self.penalties.exceeds(address) {
            let message = "too many logins from this address have failed just now";
            return Err(Refusal::fatal(SqlState::TOO_MANY_CONNECTIONS, message));
        }
        let proven = dialogue.password(forms).await;
        if let Err(Refusal::Because(why)) = &proven
            && why.code == SqlState::INVALID_PASSWORD
        {
            self.penalties.serve(address).await;
        }
        proven
    }
}

/// One client's proof.
struct Dialogue<'a> {
    users: &'a Users,
    wire: &'a mut Wire,
    peer: &'a Peer,
    user: &'a str,
}

impl Dialogue<'_> {
    /// In one of the `allowed` forms, the user's own if it is among them.
    async fn password(&mut self, allowed: &[Form]) -> Result<Credentials, Refusal> {
        let known = self.look_up().await?;
        let form = match known.as_deref().map(|known| &known.secret) {
            Some(Secret::Scram(_)) => Form::Scram,
            Some(Secret::Md5(_) | Secret::Plain { .. }) => Form::Md5,
            None => self.users.usual_form(),
        };
        match form {
            Form::Md5 if allowed.contains(&Form::Md5) => self.md5(known).await,
            Form::Md5 | Form::Scram => self.scram(known.as_deref()).await,
        }
    }

    async fn look_up(&self) -> Result<Option<Arc<Known>>, Refusal> {
        match self.users.find(self.user).await {
            Lookup::Found(known) => Ok(Some(known)),
            Lookup::Unknown => Ok(None),
            Lookup::Unavailable => {
                let message = format!("the password of user \"{}\" cannot be looked up now", self.user);
                Err(Refusal::Because(
                    ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, message)
                        .with_detail("No server answers that has it."),
                ))
            }
        }
    }

    /// The certificate was verified in the handshake; whose is it?
    fn certificate(&self, name: CertificateName, map: Option<&NameMap>) -> Result<Credentials, Refusal> {
        let invalid =
            |message: String| Refusal::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message);
        let Some(certificate) = self.peer.tls.as_ref().and_then(|tls| tls.client.as_ref()) else {
            return Err(invalid("connection requires a valid client certificate".to_owned()));
        };
        let name = match name {
            CertificateName::Common => certificate.common_name.as_deref(),
            CertificateName::Distinguished => Some(certificate.distinguished_name.as_str()),
        };
        let its_own = name.filter(|name| !name.is_empty()).is_some_and(|name| match map {
            Some(map) => map.lets(name, self.user),
            None => name == self.user,
        });
        if its_own {
            return Ok(self.listed_credentials());
        }
        tracing::info!(user = self.user, certificate = name, "a certificate is not the user's");
        Err(invalid(format!("certificate authentication failed for user \"{}\"", self.user)))
    }

    /// What we know without a proof that would reveal more.
    fn listed_credentials(&self) -> Credentials {
        match self.users.listed(self.user) {
            Some(Secret::Plain { password, .. }) => Credentials::Password(password.clone()),
            Some(Secret::Md5(secret)) => Credentials::Md5(secret.clone()),
            Some(Secret::Scram(_)) | None => Credentials::Trust,
        }
    }

    /// Who is unknown, or has only an md5 password, goes through the same dialogue with a stand-in, and fails.
    async fn scram(&mut self, known: Option<&Known>) -> Result<Credentials, Refusal> {
        let user = self.user;
        let mock;
        let verifier = match known.map(|known| &known.secret) {
            Some(Secret::Scram(verifier) | Secret::Plain { verifier, .. }) => verifier,
            Some(Secret::Md5(_)) | None => {
                mock = self.users.mock(user);
                &mock
            }
        };
        let proven = match self.scram_dialogue(verifier).await? {
            Ok(proven) => proven,
            Err(error) => {
                if let (ScramError::Proof, Some(known)) = (error, known) {
                    known.doubt.cast();
                }
                return Err(Refusal::Because(error.fields(user)));
            }
        };
        backend::authentication_sasl_final(&proven.server_final, &mut self.wire.out);
        match known {
            // The servers may hold another verifier of the same password.
            Some(Known { secret: Secret::Plain { password, .. }, .. }) => {
                Ok(Credentials::Password(password.clone()))
            }
            Some(Known { secret: Secret::Scram(_), doubt }) => {
                Ok(Credentials::ScramKeys(ProvenKeys { keys: proven.keys, doubt: doubt.clone() }))
            }
            // Nobody can prove a stand-in.
            Some(Known { secret: Secret::Md5(_), .. }) | None => Err(Refusal::Because(password_failed(user))),
        }
    }

    async fn scram_dialogue(&mut self, verifier: &Verifier) -> Result<Result<Proven, ScramError>, Refusal> {
        let user = self.user;
        let end_point = self.peer.tls.as_ref().and_then(|tls| tls.server_end_point.as_deref());
        backend::authentication_sasl(scram::offered(end_point), &mut self.wire.out);
        let initial = self.ask(scram::MAX_MESSAGE_LEN + SCRAM_SHA_256_PLUS.len() + 5).await?;
        let (mechanism, client_first) = frontend::decode_sasl_initial(&initial)?;
        let binding = Binding::chosen(mechanism, end_point);
        let binding = binding.map_err(|error| Refusal::Because(error.fields(user)))?;
        let later;
        let client_first = match client_first {
            Some(client_first) => client_first,
            // A client may choose first and begin later (RFC 4422, section 3).
            None => {
                backend::authentication_sasl_continue("", &mut self.wire.out);
                later = self.ask(scram::MAX_MESSAGE_LEN).await?;
                &later
            }
        };
        let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
        let challenged = ExpectClientFinal::challenge(verifier, binding, client_first, &nonce);
        let (state, server_first) = challenged.map_err(|error| Refusal::Because(error.fields(user)))?;
        backend::authentication_sasl_continue(&server_first, &mut self.wire.out);
        let client_final = self.ask(scram::MAX_MESSAGE_LEN).await?;
        Ok(state.check(&client_final))
    }

    async fn md5(&mut self, known: Option<Arc<Known>>) -> Result<Credentials, Refusal> {
        let user = self.user;
        let salt: [u8; 4] = rand::random();
        backend::authentication_md5(salt, &mut self.wire.out);
        let answer = self.ask(MAX_PASSWORD_LEN).await?;
        let answer = frontend::decode_password(&answer)?;
        if let Some(credentials) = md5_answered(user, known.as_deref(), answer, salt) {
            return Ok(credentials);
        }
        // A changed password is not the client's mistake.
        if let Some(known) = known {
            known.doubt.cast();
            let again = self.look_up().await?.filter(|again| !Arc::ptr_eq(again, &known));
            if let Some(credentials) = again.and_then(|again| md5_answered(user, Some(&again), answer, salt))
            {
                return Ok(credentials);
            }
        }
        Err(Refusal::Because(password_failed(user)))
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

/// What the client's right answer lets us do; `None` for a wrong one. A stand-in is compared for who is unknown.
fn md5_answered(user: &str, known: Option<&Known>, answer: &[u8], salt: [u8; 4]) -> Option<Credentials> {
    match known.map(|known| &known.secret) {
        Some(Secret::Plain { password, md5, .. }) => {
            md5.accepts(answer, salt).then(|| Credentials::Password(password.clone()))
        }
        Some(Secret::Md5(md5)) => md5.accepts(answer, salt).then(|| Credentials::Md5(md5.clone())),
        Some(Secret::Scram(_)) | None => {
            let _ = Md5Secret::from_password(user, "").accepts(answer, salt);
            None
        }
    }
}
