//! The client's side: client-first, the server's challenge, our proof, the server's signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    Key, MAX_ITERATIONS, SaltedKeys, ScramError, attribute, decode_key, equal, hmac_sha256, is_nonce, sha256,
    xor,
};

/// What we can log in with.
#[derive(Clone)]
pub enum ClientSecret {
    Password(String),
    /// Fits wherever the verifier is the one these keys come from.
    Keys {
        client_key: Key,
        server_key: Key,
    },
}

impl std::fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ClientSecret::Password(_) => "Password(..)",
            ClientSecret::Keys { .. } => "Keys(..)",
        })
    }
}

/// client-first is out; the challenge is to come.
#[derive(Debug)]
pub struct ExpectServerFirst {
    secret: ClientSecret,
    nonce: String,
    first_bare: String,
}

/// The proof is out; the server's signature is to come.
#[derive(Debug)]
pub struct ExpectServerFinal {
    signature: Key,
}

impl ExpectServerFirst {
    /// Gives client-first. `nonce`: random, printable and without commas.
    pub fn start(secret: ClientSecret, nonce: &str) -> (ExpectServerFirst, String) {
        // No name, as libpq does: PostgreSQL takes the startup packet's.
        ExpectServerFirst::start_as("", secret, nonce)
    }

    fn start_as(name: &str, secret: ClientSecret, nonce: &str) -> (ExpectServerFirst, String) {
        let first_bare = format!("n={name},r={nonce}");
        let message = format!("n,,{first_bare}");
        (ExpectServerFirst { secret, nonce: nonce.to_owned(), first_bare }, message)
    }

    /// Takes server-first, gives client-final. With a password this derives the keys, which takes as long as
    /// the server's iteration count wants, up to a million.
    pub fn answer(self, server_first: &[u8]) -> Result<(ExpectServerFinal, String), ScramError> {
        let challenge = Challenge::read(server_first, &self.nonce)?;
        let keys = match self.secret {
            ClientSecret::Password(password) => {
                SaltedKeys::derive(&password, &challenge.salt, challenge.iterations)
            }
            ClientSecret::Keys { client_key, server_key } => SaltedKeys { client_key, server_key },
        };
        // biws: base64 of "n,,".
        let without_proof = format!("c=biws,r={}", challenge.nonce);
        let auth_message: [&[u8]; 5] =
            [self.first_bare.as_bytes(), b",", server_first, b",", without_proof.as_bytes()];
        let client_signature = hmac_sha256(&sha256(&keys.client_key), &auth_message);
        let proof = STANDARD.encode(xor(&keys.client_key, &client_signature));
        let signature = hmac_sha256(&keys.server_key, &auth_message);
        Ok((ExpectServerFinal { signature }, format!("{without_proof},p={proof}")))
    }
}

impl ExpectServerFinal {
    /// Takes server-final: is it the server that knows our verifier?
    pub fn verify(self, server_final: &[u8]) -> Result<(), ScramError> {
        let text = utf8(server_final)?;
        if attribute(text, "e").is_some() {
            return Err(ScramError::Proof);
        }
        let signature = text.split(',').next().and_then(|text| attribute(text, "v"));
        let signature = signature
            .and_then(|text| decode_key(text.as_bytes()))
            .ok_or(ScramError::Malformed("no signature in server-final-message"))?;
        if equal(&signature, &self.signature) { Ok(()) } else { Err(ScramError::ServerSignature) }
    }
}

/// `r=nonce,s=salt,i=iterations` taken apart (read_server_first_message in fe-auth-scram.c).
struct Challenge<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> Challenge<'a> {
    fn read(message: &'a [u8], client_nonce: &str) -> Result<Challenge<'a>, ScramError> {
        let text = utf8(message)?;
        let mut attributes = text.split(',');
        let mut expect = |name| attributes.next().and_then(|text| attribute(text, name));
        let nonce = expect("r")
            .filter(|nonce| is_nonce(nonce))
            .ok_or(ScramError::Malformed("no nonce in server-first-message"))?;
        // A server that adds nothing could have us repeat an old dialogue.
        if !nonce.starts_with(client_nonce) || nonce.len() == client_nonce.len() {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let salt = expect("s")
            .and_then(|salt| STANDARD.decode(salt).ok())
            .ok_or(ScramError::Malformed("no salt in server-first-message"))?;
        let iterations: u32 = expect("i")
            .and_then(|iterations| iterations.parse().ok())
            .ok_or(ScramError::Malformed("no iteration count in server-first-message"))?;
        if !(1..=MAX_ITERATIONS).contains(&iterations) {
            return Err(ScramError::Unsupported("iteration count out of range"));
        }
        Ok(Challenge { nonce, salt, iterations })
    }
}

fn utf8(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("message is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::{ClientSecret, ExpectServerFirst, ScramError};

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn started() -> ExpectServerFirst {
        ExpectServerFirst::start_as("user", ClientSecret::Password("pencil".into()), NONCE).0
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let (state, answer) = started().answer(SERVER_FIRST.as_bytes()).expect("a fair challenge");
        assert_eq!(
            answer,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(state.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
    }

    #[test]
    fn challenges() {
        let check = |message: &str, expected| {
            assert_eq!(started().answer(message.as_bytes()).err(), Some(expected), "{message}");
        };
        check("", ScramError::Malformed("no nonce in server-first-message"));
        check("r=other,s=AAAA,i=4096", ScramError::Malformed("nonce does not match"));
        check(&format!("r={NONCE},s=AAAA,i=4096"), ScramError::Malformed("nonce does not match"));
        check(&format!("r={NONCE}x,s=!,i=4096"), ScramError::Malformed("no salt in server-first-message"));
        let no_count = ScramError::Malformed("no iteration count in server-first-message");
        check(&format!("r={NONCE}x,s=AAAA"), no_count);
        check(&format!("r={NONCE}x,s=AAAA,i=-1"), no_count);
        let out_of_range = ScramError::Unsupported("iteration count out of range");
        check(&format!("r={NONCE}x,s=AAAA,i=0"), out_of_range);
        check(&format!("r={NONCE}x,s=AAAA,i=4000000000"), out_of_range);
    }

    #[test]
    fn an_impostor_is_found_out() {
        let check = |message: &[u8], expected| {
            let (state, _) = started().answer(SERVER_FIRST.as_bytes()).expect("a fair challenge");
            assert_eq!(state.verify(message), Err(expected));
        };
        check(b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ScramError::ServerSignature);
        check(b"v=AAAA", ScramError::Malformed("no signature in server-final-message"));
        check(b"", ScramError::Malformed("no signature in server-final-message"));
        check(b"e=invalid-proof", ScramError::Proof);
    }
}
