//! The server's side: client-first, our challenge, client-final, our signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Key, ScramError, Verifier, attribute, decode_key, equal, hmac_sha256, is_nonce, sha256, xor};

/// The challenge is out; the proof is to come.
#[derive(Debug)]
pub struct ExpectClientFinal {
    verifier: Verifier,
    /// The GSS-API header of client-first in base64, which client-final must repeat.
    binding: String,
    /// The client's and ours.
    nonce: String,
    /// `client-first-bare,server-first`: the beginning of the AuthMessage.
    dialogue: String,
}

/// The client knows the password.
pub struct Proven {
    pub client_key: Key,
    pub server_key: Key,
    /// To be sent: the client checks that we know the verifier.
    pub server_final: String,
}

impl std::fmt::Debug for Proven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proven(..)")
    }
}

impl ExpectClientFinal {
    /// Takes client-first, gives server-first. `nonce`: ours, random, printable and without commas.
    pub fn challenge(
        verifier: &Verifier,
        client_first: &[u8],
        nonce: &str,
    ) -> Result<(ExpectClientFinal, String), ScramError> {
        let first = ClientFirst::read(client_first)?;
        let nonce = format!("{}{nonce}", first.nonce);
        let salt = STANDARD.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let state = ExpectClientFinal {
            verifier: verifier.clone(),
            binding: STANDARD.encode(first.header),
            nonce,
            dialogue: format!("{},{server_first}", first.bare),
        };
        Ok((state, server_first))
    }

    /// Takes client-final.
    pub fn check(self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let text = utf8(client_final)?;
        let (without_proof, proof) =
            text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof in client-final-message"))?;
        let mut attributes = without_proof.split(',');
        let mut expect = |name| attributes.next().and_then(|text| attribute(text, name));
        if expect("c") != Some(&self.binding) {
            return Err(ScramError::Malformed("unexpected channel binding in client-final-message"));
        }
        if expect("r") != Some(&self.nonce) {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let proof = decode_key(proof.as_bytes())
            .ok_or(ScramError::Malformed("malformed proof in client-final-message"))?;

        let auth_message = [self.dialogue.as_bytes(), b",", without_proof.as_bytes()];
        let client_signature = hmac_sha256(&self.verifier.stored_key, &auth_message);
        let client_key = xor(&proof, &client_signature);
        if !equal(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::Proof);
        }
        let server_key = self.verifier.server_key;
        let signature = STANDARD.encode(hmac_sha256(&server_key, &auth_message));
        Ok(Proven { client_key, server_key, server_final: format!("v={signature}") })
    }
}

/// `n,,n=user,r=nonce` taken apart (read_client_first_message).
struct ClientFirst<'a> {
    /// `n,,` or `y,,`.
    header: &'a str,
    /// From `n=` on.
    bare: &'a str,
    nonce: &'a str,
}

impl ClientFirst<'_> {
    fn read(message: &[u8]) -> Result<ClientFirst<'_>, ScramError> {
        let text = utf8(message)?;
        let mut parts = text.splitn(3, ',');
        let (Some(binding), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed("client-first-message is incomplete"));
        };
        match binding {
            // "n": the client does not do channel binding. "y": it would, but thinks that we do not, and is right.
            "n" | "y" => {}
            _ if binding.starts_with("p=") => {
                return Err(ScramError::Unsupported("channel binding was not offered"));
            }
            _ => return Err(ScramError::Malformed("unexpected channel-binding flag")),
        }
        if !identity.is_empty() {
            return Err(ScramError::Unsupported("client uses authorization identity"));
        }
        if bare.starts_with("m=") {
            return Err(ScramError::Unsupported("client requires a SCRAM extension"));
        }
        // The name is ignored, as PostgreSQL does: the startup packet's counts. What follows the nonce may be
        // extensions, which we may ignore.
        let mut attributes = bare.split(',');
        attributes
            .next()
            .and_then(|text| attribute(text, "n"))
            .ok_or(ScramError::Malformed("no name in client-first-message"))?;
        let nonce = attributes
            .next()
            .and_then(|text| attribute(text, "r"))
            .filter(|nonce| is_nonce(nonce))
            .ok_or(ScramError::Malformed("no printable nonce in client-first-message"))?;
        Ok(ClientFirst { header: &text[..text.len() - bare.len()], bare, nonce })
    }
}

fn utf8(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("message is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::{ExpectClientFinal, ScramError, Verifier};

    fn pencil() -> Verifier {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64").try_into();
        Verifier::from_password("pencil", salt.expect("16 bytes"))
    }

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    fn challenged() -> (ExpectClientFinal, String) {
        ExpectClientFinal::challenge(&pencil(), FIRST.as_bytes(), NONCE).expect("RFC 7677's example")
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let (state, server_first) = challenged();
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        assert_eq!(server_first, format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let answer = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        let proven = state.check(answer.as_bytes()).expect("the right proof");
        assert_eq!(proven.server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn client_first_messages() {
        let check = |message: &[u8], expected: Option<ScramError>| {
            let result = ExpectClientFinal::challenge(&pencil(), message, NONCE);
            assert_eq!(result.err(), expected, "{:?}", String::from_utf8_lossy(message));
        };
        check(b"n,,n=,r=abc", None);
        check(b"y,,n=,r=abc", None);
        check(b"n,,n=,r=abc,ext=1", None);
        check(b"p=tls-unique,,n=,r=abc", Some(ScramError::Unsupported("channel binding was not offered")));
        check(b"n,a=joe,n=,r=abc", Some(ScramError::Unsupported("client uses authorization identity")));
        check(b"n,,m=x,n=,r=abc", Some(ScramError::Unsupported("client requires a SCRAM extension")));
        check(b"x,,n=,r=abc", Some(ScramError::Malformed("unexpected channel-binding flag")));
        check(b"", Some(ScramError::Malformed("client-first-message is incomplete")));
        check(b"n,,r=abc", Some(ScramError::Malformed("no name in client-first-message")));
        let no_nonce = Some(ScramError::Malformed("no printable nonce in client-first-message"));
        check(b"n,,n=", no_nonce);
        check(b"n,,n=,r=", no_nonce);
        check(b"n,,n=,r=a c", no_nonce);
        check(b"n,,n=,r=\xff", Some(ScramError::Malformed("message is not UTF-8")));
    }

    #[test]
    fn client_final_messages() {
        let nonce = format!("rOprNGfwEbeRWgbNEkqO{NONCE}");
        let zeros = STANDARD.encode([0; 32]);
        let check = |message: String, expected| {
            assert_eq!(challenged().0.check(message.as_bytes()).err(), Some(expected), "{message}");
        };
        check(format!("c=biws,r={nonce},p={zeros}"), ScramError::Proof);
        check(format!("c=biws,r={nonce}"), ScramError::Malformed("no proof in client-final-message"));
        check(
            format!("c=biws,r={nonce},p=AAAA"),
            ScramError::Malformed("malformed proof in client-final-message"),
        );
        check(format!("c=biws,r={nonce}x,p={zeros}"), ScramError::Malformed("nonce does not match"));
        check(
            format!("c=eSws,r={nonce},p={zeros}"),
            ScramError::Malformed("unexpected channel binding in client-final-message"),
        );
    }
}
