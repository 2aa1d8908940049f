//! The client's side: client-first, the server's challenge, our proof, the server's signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    BINDING_TYPE, Binding, ClientKeys, Key, MAX_ITERATIONS, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, SaltedKeys,
    ScramError, attribute, decode_key, equal, hmac_sha256, is_nonce, sha256, xor,
};

/// What we can log in with.
#[derive(Clone)]
pub enum ClientSecret {
    Password(String),
    /// Fits wherever the verifier is the one these keys come from.
    Keys(ClientKeys),
}

impl std::fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ClientSecret::Password(_) => "Password(..)",
            ClientSecret::Keys(_) => "Keys(..)",
        })
    }
}

impl<'a> Binding<'a> {
    /// What to choose of the `mechanisms` that a server offers (pg_SASL_init in fe-auth.c); `None` where we know
    /// none of them. `end_point`: what our TLS connection has to bind to.
    pub fn choose(mechanisms: &[&str], end_point: Option<&'a [u8]>) -> Option<Binding<'a>> {
        match end_point {
            Some(end_point) if mechanisms.contains(&SCRAM_SHA_256_PLUS) => Some(Binding::EndPoint(end_point)),
            _ if !mechanisms.contains(&SCRAM_SHA_256) => None,
            Some(_) => Some(Binding::Unused),
            None => Some(Binding::Unavailable),
        }
    }

    pub fn mechanism(self) -> &'static str {
        match self {
            Binding::EndPoint(_) => SCRAM_SHA_256_PLUS,
            Binding::Unused | Binding::Unavailable => SCRAM_SHA_256,
        }
    }
}

/// client-first is out; the challenge is to come.
#[derive(Debug)]
pub struct ExpectServerFirst {
    secret: ClientSecret,
    /// The GSS-API header and what it announces.
    binding: Vec<u8>,
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
    pub fn start(secret: ClientSecret, binding: Binding<'_>, nonce: &str) -> (ExpectServerFirst, String) {
        // No name, as libpq does: PostgreSQL takes the startup packet's.
        ExpectServerFirst::start_as("", secret, binding, nonce)
    }

    fn start_as(
        name: &str,
        secret: ClientSecret,
        binding: Binding<'_>,
        nonce: &str,
    ) -> (ExpectServerFirst, String) {
        let first_bare = format!("n={name},r={nonce}");
        let (header, end_point) = match binding {
            Binding::Unavailable => ("n,,".to_owned(), &[][..]),
            Binding::Unused => ("y,,".to_owned(), &[][..]),
            Binding::EndPoint(end_point) => (format!("p={BINDING_TYPE},,"), end_point),
        };
        let message = format!("{header}{first_bare}");
        let binding = [header.as_bytes(), end_point].concat();
        (ExpectServerFirst { secret, binding, nonce: nonce.to_owned(), first_bare }, message)
    }

    /// Takes server-first, gives client-final. With a password this derives the keys, which takes as long as
    /// the server's iteration count wants, up to a million.
    pub fn answer(self, server_first: &[u8]) -> Result<(ExpectServerFinal, String), ScramError> {
        let challenge = Challenge::read(server_first, &self.nonce)?;
        let keys = match self.secret {
            ClientSecret::Password(password) => {
                SaltedKeys::derive(&password, &challenge.salt, challenge.iterations)
            }
            ClientSecret::Keys(keys) if challenge.is_of(&keys) => {
                SaltedKeys { client_key: keys.client_key, server_key: keys.server_key }
            }
            // A wrong proof would be all that could come of them.
            ClientSecret::Keys(_) => return Err(ScramError::OtherVerifier),
        };
        let without_proof = format!("c={},r={}", STANDARD.encode(&self.binding), challenge.nonce);
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
    fn is_of(&self, keys: &ClientKeys) -> bool {
        self.salt == keys.salt && self.iterations == keys.iterations
    }

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
    use super::{Binding, ClientSecret, ExpectServerFirst, ScramError};

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn started() -> ExpectServerFirst {
        let pencil = ClientSecret::Password("pencil".into());
        ExpectServerFirst::start_as("user", pencil, Binding::Unavailable, NONCE).0
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
    fn mechanisms_and_first_messages() {
        let check = |offered: &[&str], end_point, expected: Option<(&str, &str)>| {
            let binding = Binding::choose(offered, end_point);
            let found = binding.map(|binding| {
                let (_, first) = ExpectServerFirst::start(ClientSecret::Password("x".into()), binding, "abc");
                (binding.mechanism(), first)
            });
            let found = found.as_ref().map(|(mechanism, first)| (*mechanism, first.as_str()));
            assert_eq!(found, expected, "{offered:?}");
        };
        let (plain, plus) = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS");
        let some = Some(&b"hash"[..]);
        check(&[plain], None, Some((plain, "n,,n=,r=abc")));
        check(&[plus, plain], None, Some((plain, "n,,n=,r=abc")));
        check(&[plain], some, Some((plain, "y,,n=,r=abc")));
        check(&[plus, plain], some, Some((plus, "p=tls-server-end-point,,n=,r=abc")));
        check(&[plus], None, None);
        check(&["GSSAPI"], some, None);
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
