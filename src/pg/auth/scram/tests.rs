//! Both sides against each other, and against whatever bytes come.

use super::{
    Binding, ClientKeys, ClientSecret, ExpectClientFinal, ExpectServerFirst, ScramError, Verifier, equal,
};

fn pencil() -> ClientSecret {
    ClientSecret::Password("pencil".into())
}

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

/// One dialogue; what the server says in the end. `at`: what the client's and the server's connection have to
/// bind to.
fn login_at(
    verifier: &Verifier,
    secret: ClientSecret,
    at: [Option<&[u8]>; 2],
) -> Result<super::Proven, ScramError> {
    let chosen = Binding::choose(super::offered(at[1]), at[0]).expect("there always is one");
    let (client, first) = ExpectServerFirst::start(secret, chosen, "client");
    let binding = Binding::chosen(chosen.mechanism().as_bytes(), at[1])?;
    let (server, challenge) = ExpectClientFinal::challenge(verifier, binding, first.as_bytes(), "server")?;
    let (client, answer) = client.answer(challenge.as_bytes())?;
    let proven = server.check(answer.as_bytes())?;
    client.verify(proven.server_final.as_bytes())?;
    Ok(proven)
}

fn login(verifier: &Verifier, secret: ClientSecret) -> Result<super::Proven, ScramError> {
    login_at(verifier, secret, [None, None])
}

#[test]
fn who_knows_the_password_or_its_keys_gets_in() {
    let verifier = Verifier::from_password("pencil", [7; 16]);
    let proven = login(&verifier, pencil()).expect("the password");
    assert!(login(&verifier, ClientSecret::Keys(proven.keys)).is_ok());
}

#[test]
fn nobody_else_does() {
    let verifier = Verifier::from_password("pencil", [7; 16]);
    assert_eq!(login(&verifier, ClientSecret::Password("Pencil".into())).err(), Some(ScramError::Proof));
    let keys = ClientKeys { client_key: [0; 32], server_key: [0; 32], salt: vec![7; 16], iterations: 4096 };
    assert_eq!(login(&verifier, ClientSecret::Keys(keys)).err(), Some(ScramError::Proof));
    let mock = Verifier::mock(&[1; 32], "ghost");
    assert_eq!(login(&mock, ClientSecret::Password(String::new())).err(), Some(ScramError::Proof));
}

#[test]
fn keys_fit_one_verifier_only() {
    let proven = login(&Verifier::from_password("pencil", [7; 16]), pencil()).expect("the password");
    let salted_anew = Verifier::from_password("pencil", [8; 16]);
    assert_eq!(login(&salted_anew, ClientSecret::Keys(proven.keys)).err(), Some(ScramError::OtherVerifier));
}

#[test]
fn a_dialogue_is_bound_to_its_connection() {
    let verifier = Verifier::from_password("pencil", [7; 16]);
    let check = |client, server, expected| {
        assert_eq!(login_at(&verifier, pencil(), [client, server]).err(), expected, "{client:?} {server:?}");
    };
    let (ours, theirs) = (Some(&b"ours"[..]), Some(&b"theirs"[..]));
    check(ours, ours, None);
    check(None, ours, None);
    check(ours, None, None);
    // Between them sits somebody with a certificate of its own.
    check(theirs, ours, Some(ScramError::OtherChannel));
}

/// Somebody in the middle has struck -PLUS from the list.
#[test]
fn a_downgrade_is_found_out() {
    let (_, first) = ExpectServerFirst::start(pencil(), Binding::Unused, "client");
    let verifier = Verifier::from_password("pencil", [7; 16]);
    let found = ExpectClientFinal::challenge(&verifier, Binding::Unused, first.as_bytes(), "server");
    assert_eq!(found.err(), Some(ScramError::Downgrade));
}

/// `SASLprep` makes an ordinary space of a no-break one, and composes letters; what it prohibits stays as it is.
#[test]
fn passwords_are_prepared() {
    let check = |stored: &str, given: &str, same: bool| {
        let verifier = Verifier::from_password(stored, [7; 16]);
        assert_eq!(
            login(&verifier, ClientSecret::Password(given.into())).is_ok(),
            same,
            "{stored:?} {given:?}"
        );
    };
    check("a b", "a\u{a0}b", true);
    check("\u{e9}", "e\u{301}", true);
    check("a\u{7}b", "a\u{7}b", true);
    check("a\u{7}b", "ab", false);
}

#[test]
fn a_ghost_looks_the_same_each_time_and_unlike_others() {
    let mock = |user| Verifier::mock(&[1; 32], user);
    assert_eq!(mock("ghost"), mock("ghost"));
    assert_ne!(mock("ghost").salt, mock("ghoul").salt);
    assert_ne!(Verifier::mock(&[2; 32], "ghost").salt, mock("ghost").salt);
    assert_ne!(super::mock_secret("a"), super::mock_secret("b"));
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

/// xorshift64*: enough to damage messages with, and the same each time.
struct Dice(u64);

impl Dice {
    /// From 0 to `sides - 1`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }

    fn byte(&mut self) -> u8 {
        self.roll(256) as u8
    }
}

/// A message that was right, damaged in a few places: cut, doubled, bytes put in, bits turned.
fn damaged(message: &str, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = message.as_bytes().to_vec();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len() + 1);
        match dice.roll(5) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_within(at..),
            2 => bytes.insert(at, dice.byte()),
            3 => bytes.insert(at, b",=nyprscvmea\0"[dice.roll(13)]),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.roll(8);
                }
            }
        }
    }
    bytes
}

/// Nothing that comes makes either side panic, and nothing damaged gets in.
#[test]
fn damaged_messages() {
    let mut dice = Dice(0x5C4A);
    let verifier = Verifier::from_password("pencil", [7; 16]);
    let keys = login(&verifier, pencil()).expect("the password").keys;
    for _ in 0..20_000 {
        let bindings = [Binding::Unavailable, Binding::Unused, Binding::EndPoint(b"hash")];
        let binding = bindings[dice.roll(3)];
        let client_says = if binding == Binding::Unused { Binding::Unavailable } else { binding };
        let start = || ExpectServerFirst::start(ClientSecret::Keys(keys.clone()), client_says, "client");
        let challenge = |first: &[u8]| ExpectClientFinal::challenge(&verifier, binding, first, "server");
        let (client, first) = start();
        let (_, server_first) = challenge(first.as_bytes()).expect("a fair beginning");
        let (_, client_final) = client.answer(server_first.as_bytes()).expect("a fair challenge");

        drop(challenge(&damaged(&first, &mut dice)));
        drop(start().0.answer(&damaged(&server_first, &mut dice)));
        let (server, _) = challenge(first.as_bytes()).expect("a fair beginning");
        let bytes = damaged(&client_final, &mut dice);
        let unharmed = bytes == client_final.as_bytes();
        assert!(unharmed || server.check(&bytes).is_err(), "{:?}", String::from_utf8_lossy(&bytes));
        let noise: Vec<u8> = (0..dice.roll(64)).map(|_| dice.byte()).collect();
        drop(challenge(&noise));
        let _ = crate::pg::protocol::frontend::decode_sasl_initial(&noise);
        drop(crate::pg::protocol::backend::decode_authentication(&noise));
        drop(Verifier::parse(&String::from_utf8_lossy(&damaged(&verifier.to_string(), &mut dice))));
    }
}
