//! SCRAM-SHA-256 without channel binding (RFC 5802, RFC 7677; auth-scram.c, scram-common.c).
//!
//! A successful login reveals the client's ClientKey to whoever checks it, and with it one can log in as that
//! client wherever the same verifier is stored. That is how a pooler reaches a server on a client's behalf
//! without ever having seen a password.
//!
//! Passwords are taken as raw UTF-8: what PostgreSQL itself falls back to where SASLprep fails, and the same
//! for ASCII. Passwords that SASLprep would change (other spaces, compatibility forms) are not supported.

mod client;
mod server;

pub use client::{ClientSecret, ExpectServerFinal, ExpectServerFirst};
pub use server::{ExpectClientFinal, Proven};

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::pg::error::{ErrorFields, SqlState};

/// What PostgreSQL uses for new passwords (`SCRAM_SHA_256_DEFAULT_ITERATIONS`).
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// As a client we refuse to work harder than this, about half a second, for a server that asks for it.
const MAX_ITERATIONS: u32 = 1_000_000;

/// `PG_MAX_SASL_MESSAGE_LENGTH` (sasl.h): longer messages are refused before they are read.
pub const MAX_MESSAGE_LEN: usize = 1024;

/// A SHA-256 sized key.
pub type Key = [u8; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("unsupported SCRAM feature: {0}")]
    Unsupported(&'static str),
    /// The client does not know the password.
    #[error("SCRAM proof does not match")]
    Proof,
    /// The server does not know the verifier: it is not who it pretends to be.
    #[error("incorrect server signature")]
    ServerSignature,
}

impl ScramError {
    /// What a client is told; `user` as it called itself.
    pub fn fields(self, user: &str) -> ErrorFields {
        let code = match self {
            ScramError::Malformed(_) => SqlState::PROTOCOL_VIOLATION,
            ScramError::Unsupported(_) => SqlState::FEATURE_NOT_SUPPORTED,
            ScramError::Proof | ScramError::ServerSignature => return password_failed(user),
        };
        ErrorFields::fatal(code, self.to_string())
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
    /// inverse of its StoredKey. `secret` is random and lives as long as the process.
    pub fn mock(secret: &Key, user: &str) -> Verifier {
        let part = |label: &[u8]| hmac_sha256(secret, &[label, user.as_bytes()]);
        Verifier {
            iterations: DEFAULT_ITERATIONS,
            salt: part(b"salt:")[..16].to_vec(),
            stored_key: part(b"stored key:"),
            server_key: part(b"server key:"),
        }
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
        let salted = salted_password(password.as_bytes(), salt, iterations);
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
    let differences = left.iter().zip(right).fold(0, |all, (l, r)| std::hint::black_box(all | (l ^ r)));
    left.len() == right.len() && differences == 0
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
mod tests {
    use super::{ClientSecret, ExpectClientFinal, ExpectServerFirst, ScramError, Verifier, equal};

    #[test]
    fn stored_forms() {
        let verifier = Verifier::from_password("pencil", *b"0123456789abcdef");
        let stored = verifier.to_string();
        assert!(stored.starts_with("SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$"), "{stored}");
        assert_eq!(Verifier::parse(&stored), Some(verifier));
        for end in [0, 5, 14, 20, 40, stored.len() - 1] {
            assert_eq!(Verifier::parse(&stored[..end]), None, "{end}");
        }
        assert_eq!(Verifier::parse(&stored.replace("4096", "0")), None);
        assert_eq!(Verifier::parse("md562af4dd09bbb41884907a838a3233294"), None);
    }

    /// One dialogue; what the server says in the end.
    fn login(verifier: &Verifier, secret: ClientSecret) -> Result<super::Proven, ScramError> {
        let (client, first) = ExpectServerFirst::start(secret, "client");
        let (server, challenge) = ExpectClientFinal::challenge(verifier, first.as_bytes(), "server")?;
        let (client, answer) = client.answer(challenge.as_bytes())?;
        let proven = server.check(answer.as_bytes())?;
        client.verify(proven.server_final.as_bytes())?;
        Ok(proven)
    }

    #[test]
    fn who_knows_the_password_or_its_keys_gets_in() {
        let verifier = Verifier::from_password("pencil", [7; 16]);
        let proven = login(&verifier, ClientSecret::Password("pencil".into())).expect("the password");
        let keys = ClientSecret::Keys { client_key: proven.client_key, server_key: proven.server_key };
        assert!(login(&verifier, keys).is_ok());
    }

    #[test]
    fn nobody_else_does() {
        let verifier = Verifier::from_password("pencil", [7; 16]);
        assert_eq!(login(&verifier, ClientSecret::Password("Pencil".into())).err(), Some(ScramError::Proof));
        let keys = ClientSecret::Keys { client_key: [0; 32], server_key: [0; 32] };
        assert_eq!(login(&verifier, keys).err(), Some(ScramError::Proof));
        let mock = Verifier::mock(&[1; 32], "ghost");
        assert_eq!(login(&mock, ClientSecret::Password(String::new())).err(), Some(ScramError::Proof));
    }

    #[test]
    fn a_ghost_looks_the_same_each_time_and_unlike_others() {
        let mock = |user| Verifier::mock(&[1; 32], user);
        assert_eq!(mock("ghost"), mock("ghost"));
        assert_ne!(mock("ghost").salt, mock("ghoul").salt);
        assert_ne!(Verifier::mock(&[2; 32], "ghost").salt, mock("ghost").salt);
    }

    #[test]
    fn equality() {
        let check = |left: &[u8], right: &[u8], expected| assert_eq!(equal(left, right), expected);
        check(b"", b"", true);
        check(b"ab", b"ab", true);
        check(b"ab", b"ac", false);
        check(b"ab", b"a", false);
        check(b"", b"a", false);
    }
}
