//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, RFC 5929; auth-scram.c, scram-common.c).
//!
//! A successful login reveals the client's ClientKey to whoever checks it, and with it one can log in as that
//! client wherever the same verifier is stored. That is how a pooler reaches a server on a client's behalf
//! without ever having seen a password.
//!
//! Passwords go through SASLprep, and are taken as they are where that fails, as PostgreSQL does.

mod client;
mod server;

pub use client::{ClientSecret, ExpectServerFinal, ExpectServerFirst};
pub use server::{ExpectClientFinal, Proven, offered};

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::pg::error::{ErrorFields, SqlState};

/// What PostgreSQL uses for new passwords (`SCRAM_SHA_256_DEFAULT_ITERATIONS`).
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// As a client we refuse to work harder than this, about half a second, for a server that asks for it.
const MAX_ITERATIONS: u32 = 1_000_000;

/// `PG_MAX_SASL_MESSAGE_LENGTH` (sasl.h): longer messages are refused before they are read.
pub const MAX_MESSAGE_LEN: usize = 1024;

/// A SHA-256 sized key.
pub type Key = [u8; 32];

/// Without and with channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The one kind of channel binding that PostgreSQL knows (RFC 5929, section 4).
const BINDING_TYPE: &str = "tls-server-end-point";

/// Whether a dialogue is tied to the TLS connection it runs over, so that nobody can relay it over another
/// (RFC 5802, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding<'a> {
    /// There is nothing to tie it to.
    Unavailable,
    /// There is. But, as a server, we offered it and the client chose to do without; or, as a client, we would
    /// and the server did not offer it.
    Unused,
    /// [`SCRAM_SHA_256_PLUS`] with this `tls-server-end-point`.
    EndPoint(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Violation(&'static str),
    #[error("{0}")]
    Unsupported(&'static str),
    /// Each side can bind, and somebody between them has said that the other cannot.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    /// The client talks to another TLS endpoint than us.
    #[error("SCRAM channel binding check failed")]
    OtherChannel,
    /// The client does not know the password.
    #[error("SCRAM proof does not match")]
    Proof,
    /// Our keys fit another verifier than the server's: the password has changed since.
    #[error("the server stores another SCRAM verifier than the one that is known here")]
    OtherVerifier,
    /// The server does not know the verifier: it is not who it pretends to be.
    #[error("incorrect server signature")]
    ServerSignature,
}

impl ScramError {
    /// What a client is told, in PostgreSQL's words; `user` as it called itself.
    pub fn fields(self, user: &str) -> ErrorFields {
        let fatal = |code| ErrorFields::fatal(code, self.to_string());
        match self {
            ScramError::Malformed(detail) => {
                ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message")
                    .with_detail(detail)
            }
            ScramError::Violation(_) => fatal(SqlState::PROTOCOL_VIOLATION),
            ScramError::Unsupported(_) => fatal(SqlState::FEATURE_NOT_SUPPORTED),
            ScramError::Downgrade => fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION).with_detail(
                "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding.",
            ),
            ScramError::OtherChannel => fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
            ScramError::Proof | ScramError::OtherVerifier | ScramError::ServerSignature => {
                password_failed(user)
            }
        }
    }
}

/// The same words whether the user exists or not (auth_failed in auth.c).
pub fn password_failed(user: &str) -> ErrorFields {
    let message = format!("password authentication failed for user \"{user}\"");
    ErrorFields::fatal(SqlState::INVALID_PASSWORD, message)
}

/// What a server stores of a password: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`. Enough to
/// check a proof, not enough to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl Verifier {
    /// The stored form, as in `pg_authid.rolpassword`; `None` when it is not one (parse_scram_secret).
    pub fn parse(secret: &str) -> Option<Verifier> {
        let rest = secret.strip_prefix("SCRAM-SHA-256$")?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Verifier {
            iterations: iterations.parse().ok().filter(|iterations| *iterations > 0)?,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: decode_key(stored_key.as_bytes())?,
            server_key: decode_key(server_key.as_bytes())?,
        })
    }

    /// Derives the keys: [`DEFAULT_ITERATIONS`] of HMAC, a few milliseconds. Once per password, not per login.
    pub fn from_password(password: &str, salt: [u8; 16]) -> Verifier {
        let keys = SaltedKeys::derive(password, &salt, DEFAULT_ITERATIONS);
        Verifier {
            iterations: DEFAULT_ITERATIONS,
            salt: salt.to_vec(),
            stored_key: sha256(&keys.client_key),
            server_key: keys.server_key,
        }
    }

    /// The stand-in for a user that does not exist or has no such password (mock_scram_secret): the dialogue
    /// looks as usual, with the same salt each time for the same name, and always fails, since nobody knows an
    /// inverse of its StoredKey. `secret` is nobody's business, and the same after a restart and on other
    /// instances: a salt that changes would tell that there is no such user.
    pub fn mock(secret: &Key, user: &str) -> Verifier {
        let part = |label: &[u8]| hmac_sha256(secret, &[label, user.as_bytes()]);
        Verifier {
            iterations: DEFAULT_ITERATIONS,
            salt: mock_salt(secret, user).to_vec(),
            stored_key: part(b"stored key:"),
            server_key: part(b"server key:"),
        }
    }
}

/// The salt of [`Verifier::mock`]. Verifiers that we make ourselves have the same, so that it tells nothing.
pub fn mock_salt(secret: &Key, user: &str) -> [u8; 16] {
    hmac_sha256(secret, &[b"salt:", user.as_bytes()])[..16].try_into().expect("16 of 32 bytes")
}

/// A secret of ours for [`Verifier::mock`], made of what all instances know and nobody else does.
pub fn mock_secret(shared: &str) -> Key {
    hmac_sha256(shared.as_bytes(), &[b"bellwether mock authentication"])
}

/// What a client's proof reveals: enough to log in as that client wherever its verifier is stored (RFC 5802,
/// section 3), without ever seeing its password.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKeys {
    client_key: Key,
    server_key: Key,
    /// Of the verifier that they fit.
    salt: Vec<u8>,
    iterations: u32,
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeys(..)")
    }
}

/// The stored form. A secret: for `ALTER ROLE ... PASSWORD`, not for logs.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        write!(
            f,
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            encode(&self.salt),
            encode(&self.stored_key),
            encode(&self.server_key)
        )
    }
}

/// What a password and a salt make.
struct SaltedKeys {
    client_key: Key,
    server_key: Key,
}

impl SaltedKeys {
    fn derive(password: &str, salt: &[u8], iterations: u32) -> SaltedKeys {
        let prepared = stringprep::saslprep(password).ok().filter(|prepared| !prepared.is_empty());
        let salted = salted_password(prepared.as_deref().unwrap_or(password).as_bytes(), salt, iterations);
        SaltedKeys {
            client_key: hmac_sha256(&salted, &[b"Client Key"]),
            server_key: hmac_sha256(&salted, &[b"Server Key"]),
        }
    }
}

/// `Hi` of RFC 5802: PBKDF2 with one block of output.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    // Keyed once: a clone skips the two compressions of the key schedule in each of the rounds.
    let keyed = keyed(password);
    let round = |input: &[u8]| -> Key { keyed.clone().chain_update(input).finalize().into_bytes().into() };
    let mut last = round(&[salt, &1_u32.to_be_bytes()].concat());
    let mut result = last;
    for _ in 1..iterations {
        last = round(&last);
        result = xor(&result, &last);
    }
    result
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn sha256(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

fn xor(left: &Key, right: &Key) -> Key {
    std::array::from_fn(|i| left[i] ^ right[i])
}

/// Equality in a time that depends on the lengths only.
pub(super) fn equal(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

fn decode_key(text: &[u8]) -> Option<Key> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// `text` without its `name=`.
fn attribute<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.strip_prefix(name)?.strip_prefix('=')
}

/// Printable ASCII without the comma that separates attributes (RFC 5802, section 7).
fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b',')
}

#[cfg(test)]
mod tests;
