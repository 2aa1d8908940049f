//! The server's side: client-first, our challenge, client-final, our signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{
    BINDING_TYPE, Binding, ClientKeys, Key, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError, Verifier,
    attribute, decode_key, equal, hmac_sha256, is_nonce, sha256, xor,
};

/// The mechanisms to offer, the better one first; `end_point` where the connection has one to bind to
/// (scram_get_mechanisms).
pub fn offered(end_point: Option<&[u8]>) -> &'static [&'static str] {
    match end_point {
        Some(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
        None => &[SCRAM_SHA_256],
    }
}

impl<'a> Binding<'a> {
    /// What the client has chosen of what was [`offered`].
    pub fn chosen(mechanism: &[u8], end_point: Option<&'a [u8]>) -> Result<Binding<'a>, ScramError> {
        match (mechanism, end_point) {
            (b"SCRAM-SHA-256-PLUS", Some(end_point)) => Ok(Binding::EndPoint(end_point)),
            (b"SCRAM-SHA-256", Some(_)) => Ok(Binding::Unused),
            (b"SCRAM-SHA-256", None) => Ok(Binding::Unavailable),
            _ => Err(ScramError::Violation("client selected an invalid SASL authentication mechanism")),
        }
    }
}

/// The challenge is out; the proof is to come.
#[derive(Debug)]
pub struct ExpectClientFinal {
    verifier: Verifier,
    /// The GSS-API header of client-first and what it announces, in base64: client-final must repeat it.
    binding: String,
    /// What it means if it does not.
    unbound: ScramError,
    /// The client's and ours.
    nonce: String,
    /// `client-first-bare,server-first`: the beginning of the AuthMessage.
    dialogue: String,
}

/// The client knows the password.
#[derive(Debug)]
pub struct Proven {
    pub keys: ClientKeys,
    /// To be sent: the client checks that we know the verifier.
    pub server_final: String,
}

impl ExpectClientFinal {
    /// Takes client-first, gives server-first. `nonce`: ours, random, printable and without commas.
    pub fn challenge(
        verifier: &Verifier,
        binding: Binding<'_>,
        client_first: &[u8],
        nonce: &str,
    ) -> Result<(ExpectClientFinal, String), ScramError> {
        let first = ClientFirst::read(client_first)?;
        check_flag(first.flag, binding)?;
        let (end_point, unbound) = match binding {
            Binding::EndPoint(end_point) => (end_point, ScramError::OtherChannel),
            Binding::Unavailable | Binding::Unused => (&[][..], UNEXPECTED_BINDING),
        };
        let nonce = format!("{}{nonce}", first.nonce);
        let salt = STANDARD.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let state = ExpectClientFinal {
            verifier: verifier.clone(),
            binding: STANDARD.encode([first.header.as_bytes(), end_point].concat()),
            unbound,
            nonce,
            dialogue: format!("{},{server_first}", first.bare),
        };
        Ok((state, server_first))
    }

    /// Takes client-final.
    pub fn check(self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let text = utf8(client_final)?;
        let (without_proof, proof) =
            text.rsplit_once(",p=").ok_or(ScramError::Malformed("No proof in client-final-message."))?;
        let mut attributes = without_proof.split(',');
        let mut expect = |name| attributes.next().and_then(|text| attribute(text, name));
        let binding = expect("c").ok_or(ScramError::Malformed("No binding in client-final-message."))?;
        if !equal(binding.as_bytes(), self.binding.as_bytes()) {
            return Err(self.unbound);
        }
        if expect("r") != Some(&self.nonce) {
            return Err(ScramError::Violation("invalid SCRAM response"));
        }
        let proof = decode_key(proof.as_bytes())
            .ok_or(ScramError::Malformed("Malformed proof in client-final-message."))?;

        let Verifier { iterations, salt, stored_key, server_key } = self.verifier;
        let auth_message = [self.dialogue.as_bytes(), b",", without_proof.as_bytes()];
        let client_signature = hmac_sha256(&stored_key, &auth_message);
        let client_key: Key = xor(&proof, &client_signature);
        if !equal(&sha256(&client_key), &stored_key) {
            return Err(ScramError::Proof);
        }
        let signature = STANDARD.encode(hmac_sha256(&server_key, &auth_message));
        let keys = ClientKeys { client_key, server_key, salt, iterations };
        Ok(Proven { keys, server_final: format!("v={signature}") })
    }
}

const UNEXPECTED_BINDING: ScramError =
    ScramError::Violation("unexpected SCRAM channel-binding attribute in client-final-message");

/// The first word of client-first against the mechanism that was chosen (read_client_first_message).
fn check_flag(flag: &str, binding: Binding<'_>) -> Result<(), ScramError> {
    match (flag, binding) {
        // "The client does not bind." "It would, but thinks that we do not", and is right.
        ("n", Binding::Unavailable | Binding::Unused) | ("y", Binding::Unavailable) => Ok(()),
        // It thinks so, and is wrong: somebody has changed the list of mechanisms on its way.
        ("y", Binding::Unused) => Err(ScramError::Downgrade),
        ("n" | "y", Binding::EndPoint(_)) => Err(ScramError::Malformed(
            "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
        )),
        (flag, binding) => match (flag.strip_prefix("p="), binding) {
            (None, _) => Err(ScramError::Malformed("Unexpected channel-binding flag.")),
            (Some(_), Binding::Unavailable | Binding::Unused) => Err(ScramError::Malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes \
                 channel binding data.",
            )),
            (Some(BINDING_TYPE), Binding::EndPoint(_)) => Ok(()),
            (Some(_), Binding::EndPoint(_)) => {
                Err(ScramError::Violation("unsupported SCRAM channel-binding type"))
            }
        },
    }
}

/// `n,,n=user,r=nonce` taken apart (read_client_first_message).
struct ClientFirst<'a> {
    /// `n`, `y` or `p=type`.
    flag: &'a str,
    /// The flag and its two commas.
    header: &'a str,
    /// From `n=` on.
    bare: &'a str,
    nonce: &'a str,
}

impl ClientFirst<'_> {
    fn read(message: &[u8]) -> Result<ClientFirst<'_>, ScramError> {
        let text = utf8(message)?;
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed("The client-first-message is incomplete."));
        };
        if !identity.is_empty() {
            return Err(ScramError::Unsupported(
                "client uses authorization identity, but it is not supported",
            ));
        }
        if bare.starts_with("m=") {
            return Err(ScramError::Unsupported("client requires an unsupported SCRAM extension"));
        }
        // The name is ignored, as PostgreSQL does: the startup packet's counts. What follows the nonce may be
        // extensions, which we may ignore.
        let mut attributes = bare.split(',');
        let name = attributes.next().and_then(|text| attribute(text, "n"));
        name.ok_or(ScramError::Malformed("No name in client-first-message."))?;
        let nonce = attributes.next().and_then(|text| attribute(text, "r"));
        let nonce = nonce.ok_or(ScramError::Malformed("No nonce in client-first-message."))?;
        if !is_nonce(nonce) {
            return Err(ScramError::Violation("non-printable characters in SCRAM nonce"));
        }
        Ok(ClientFirst { flag, header: &text[..text.len() - bare.len()], bare, nonce })
    }
}

fn utf8(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("The message is not UTF-8."))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::{Binding, ExpectClientFinal, ScramError, Verifier, offered};

    fn pencil() -> Verifier {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64").try_into();
        Verifier::from_password("pencil", salt.expect("16 bytes"))
    }

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const BOTH: &str = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    fn challenged(binding: Binding<'_>, first: &str) -> (ExpectClientFinal, String) {
        ExpectClientFinal::challenge(&pencil(), binding, first.as_bytes(), NONCE).expect("a fair beginning")
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let (state, server_first) = challenged(Binding::Unavailable, FIRST);
        assert_eq!(server_first, format!("r={BOTH},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let answer = format!("c=biws,r={BOTH},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        let proven = state.check(answer.as_bytes()).expect("the right proof");
        assert_eq!(proven.server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn mechanisms() {
        let some = Some(&b"hash"[..]);
        assert_eq!(offered(None), ["SCRAM-SHA-256"]);
        assert_eq!(offered(some), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        let check = |mechanism: &str, end_point, expected: Option<Binding<'_>>| {
            assert_eq!(Binding::chosen(mechanism.as_bytes(), end_point).ok(), expected, "{mechanism}");
        };
        check("SCRAM-SHA-256", None, Some(Binding::Unavailable));
        check("SCRAM-SHA-256", some, Some(Binding::Unused));
        check("SCRAM-SHA-256-PLUS", some, Some(Binding::EndPoint(b"hash")));
        check("SCRAM-SHA-256-PLUS", None, None);
        check("SCRAM-SHA-1", some, None);
        check("", None, None);
    }

    #[test]
    fn client_first_messages() {
        let check = |message: &[u8], expected: Option<ScramError>| {
            let result = ExpectClientFinal::challenge(&pencil(), Binding::Unavailable, message, NONCE);
            assert_eq!(result.err(), expected, "{:?}", String::from_utf8_lossy(message));
        };
        check(b"n,,n=,r=abc", None);
        check(b"y,,n=,r=abc", None);
        check(b"n,,n=,r=abc,ext=1", None);
        let identity = "client uses authorization identity, but it is not supported";
        check(b"n,a=joe,n=,r=abc", Some(ScramError::Unsupported(identity)));
        let extension = "client requires an unsupported SCRAM extension";
        check(b"n,,m=x,n=,r=abc", Some(ScramError::Unsupported(extension)));
        check(b"x,,n=,r=abc", Some(ScramError::Malformed("Unexpected channel-binding flag.")));
        check(b"", Some(ScramError::Malformed("The client-first-message is incomplete.")));
        check(b"n,,r=abc", Some(ScramError::Malformed("No name in client-first-message.")));
        check(b"n,,n=", Some(ScramError::Malformed("No nonce in client-first-message.")));
        let printable = Some(ScramError::Violation("non-printable characters in SCRAM nonce"));
        check(b"n,,n=,r=", printable);
        check(b"n,,n=,r=a c", printable);
        check(b"n,,n=,r=\xff", Some(ScramError::Malformed("The message is not UTF-8.")));
    }

    /// What the flag says against what was offered and chosen: `code` is the error's SQLSTATE.
    #[test]
    fn channel_binding_flags() {
        let check = |binding, flag: &str, code: Option<&str>| {
            let message = format!("{flag},,n=,r=abc");
            let result = ExpectClientFinal::challenge(&pencil(), binding, message.as_bytes(), NONCE);
            let found = result.err().map(|error| error.fields("joe").code.to_string());
            assert_eq!(found.as_deref(), code, "{binding:?} {flag}");
        };
        let bound = Binding::EndPoint(b"hash");
        check(Binding::Unavailable, "n", None);
        check(Binding::Unavailable, "y", None);
        check(Binding::Unavailable, "p=tls-server-end-point", Some("08P01"));
        check(Binding::Unused, "n", None);
        check(Binding::Unused, "y", Some("28000"));
        check(Binding::Unused, "p=tls-server-end-point", Some("08P01"));
        check(bound, "p=tls-server-end-point", None);
        check(bound, "p=tls-unique", Some("08P01"));
        check(bound, "n", Some("08P01"));
        check(bound, "y", Some("08P01"));
    }

    #[test]
    fn client_final_messages() {
        let zeros = STANDARD.encode([0; 32]);
        let check = |message: String, expected| {
            let (state, _) = challenged(Binding::Unavailable, FIRST);
            assert_eq!(state.check(message.as_bytes()).err(), Some(expected), "{message}");
        };
        check(format!("c=biws,r={BOTH},p={zeros}"), ScramError::Proof);
        check(format!("c=biws,r={BOTH}"), ScramError::Malformed("No proof in client-final-message."));
        check(
            format!("c=biws,r={BOTH},p=AAAA"),
            ScramError::Malformed("Malformed proof in client-final-message."),
        );
        check(format!("c=biws,r={BOTH}x,p={zeros}"), ScramError::Violation("invalid SCRAM response"));
        check(
            format!("c=eSws,r={BOTH},p={zeros}"),
            ScramError::Violation("unexpected SCRAM channel-binding attribute in client-final-message"),
        );
    }

    #[test]
    fn a_relayed_dialogue_is_found_out() {
        let zeros = STANDARD.encode([0; 32]);
        let check = |end_point: &[u8], expected| {
            let first = "p=tls-server-end-point,,n=user,r=rOprNGfwEbeRWgbNEkqO";
            let (state, _) = challenged(Binding::EndPoint(b"ours"), first);
            let binding = STANDARD.encode([b"p=tls-server-end-point,,", end_point].concat());
            let message = format!("c={binding},r={BOTH},p={zeros}");
            assert_eq!(state.check(message.as_bytes()).err(), Some(expected));
        };
        check(b"ours", ScramError::Proof);
        check(b"another's", ScramError::OtherChannel);
        check(b"", ScramError::OtherChannel);
    }
}
