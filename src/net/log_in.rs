//! Proving who we are to a server: from the startup packet to its first ReadyForQuery.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::dial::{DialFailure, within};
use super::wire::{Message, Wire};
use super::{Backend, Credentials, DialError, Stream, Target, TlsFacts};
use crate::pg::auth::md5::Md5Secret;
use crate::pg::auth::scram::{
    Binding, ClientSecret, ExpectServerFinal, ExpectServerFirst, ScramError, password_failed,
};
use crate::pg::error::SqlState;
use crate::pg::protocol::backend::{self, Authentication};
use crate::pg::protocol::frontend;
use crate::pg::protocol::startup::put_startup;

/// No message of a login is longer, except in error.
const MAX_LOGIN_MESSAGE: usize = 1 << 20;

/// ParameterStatus messages of one login. PostgreSQL 18 sends 16; a server that sends more than this is none.
const MAX_PARAMETERS: usize = 1000;

/// Logs in on a stream that is there already and not encrypted, within `limit`.
pub async fn log_in(stream: Stream, target: &Target, limit: Duration) -> Result<Backend, DialError> {
    within(limit, &target.address, LogIn::new(stream, None, target).run()).await
}

/// One login, on a stream that has been opened and, where wanted, encrypted.
pub(super) struct LogIn<'a> {
    wire: Wire,
    /// `None`: not encrypted. What the server's certificate gives for channel binding.
    tls: Option<TlsFacts>,
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
    pub(super) fn new(stream: Stream, tls: Option<TlsFacts>, target: &'a Target) -> LogIn<'a> {
        let (parameters, key) = (Vec::new(), None);
        LogIn { wire: Wire::new(stream), tls, target, proof: Proof::NotAsked, parameters, key }
    }

    pub(super) async fn run(self) -> Result<Backend, DialFailure> {
        let credentials = &self.target.credentials;
        let ended = self.dialogue().await;
        if let (Credentials::ScramKeys(proven), Err(DialFailure::Rejected(error))) = (credentials, &ended)
            && error.code == SqlState::INVALID_PASSWORD
        {
            proven.doubt.cast();
        }
        ended
    }

    async fn dialogue(mut self) -> Result<Backend, DialFailure> {
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
                // Who sits on the way could read it.
                if self.tls.is_none() && !self.wire.stream.peer().is_local() {
                    return Err(DialFailure::protocol(
                        "the server asks for a clear-text password over an unencrypted connection",
                    ));
                }
                frontend::password(self.target.credentials.password()?, out);
                Proof::Given
            }
            (Authentication::Md5 { salt }, Proof::NotAsked) => {
                let secret = self.target.credentials.md5(&self.target.user)?;
                frontend::password(&secret.answer(salt), out);
                Proof::Given
            }
            (Authentication::Sasl { mechanisms }, Proof::NotAsked) => {
                let end_point = self.tls.as_ref().and_then(|tls| tls.server_end_point.as_deref());
                let binding = Binding::choose(&mechanisms, end_point).ok_or_else(|| {
                    DialFailure::protocol(format!("no SASL mechanism we know: {mechanisms:?}"))
                })?;
                let nonce = STANDARD.encode(rand::random::<[u8; 18]>());
                let (state, first) =
                    ExpectServerFirst::start(self.target.credentials.scram()?, binding, &nonce);
                frontend::sasl_initial_response(binding.mechanism(), &first, out);
                Proof::ScramFirst(state)
            }
            (Authentication::SaslContinue(server_first), Proof::ScramFirst(state)) => {
                let answered = state.answer(server_first);
                let (state, client_final) = answered.map_err(|error| match error {
                    // The password has changed: what the server would say to a wrong proof.
                    ScramError::OtherVerifier => DialFailure::Rejected(password_failed(&self.target.user)),
                    error => error.into(),
                })?;
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
            Credentials::Trust | Credentials::ScramKeys(_) | Credentials::Md5(_) => {
                Err(DialFailure::protocol("the server asks for a clear-text password, and we have none"))
            }
        }
    }

    fn md5(&self, user: &str) -> Result<Md5Secret, DialFailure> {
        match self {
            Credentials::Password(password) => Ok(Md5Secret::from_password(user, password)),
            Credentials::Md5(secret) => Ok(secret.clone()),
            Credentials::Trust | Credentials::ScramKeys(_) => {
                Err(DialFailure::protocol("the server asks for an md5 password, and we have none"))
            }
        }
    }

    fn scram(&self) -> Result<ClientSecret, DialFailure> {
        match self {
            Credentials::Password(password) => Ok(ClientSecret::Password(password.to_string())),
            Credentials::ScramKeys(proven) => Ok(ClientSecret::Keys(proven.keys.clone())),
            Credentials::Trust | Credentials::Md5(_) => {
                Err(DialFailure::protocol("the server asks for a SCRAM proof, and we have no password"))
            }
        }
    }
}
