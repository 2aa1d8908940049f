//! PostgreSQL's md5 passwords (`pg_md5_encrypt`, md5_common.c). Weak, and gone in newer clusters; here for those
//! that still have them.

use md5::{Digest, Md5};

use super::scram::equal;

/// `md5` and 32 hexadecimal digits, as `pg_authid.rolpassword` holds it: what a server knows of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Secret(String);

impl std::fmt::Debug for Md5Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Md5Secret(..)")
    }
}

impl Md5Secret {
    /// `None` unless `secret` looks like one (`get_password_type`, crypt.c).
    pub fn parse(secret: &str) -> Option<Md5Secret> {
        let digits = secret.strip_prefix("md5")?;
        let well_formed = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        well_formed.then(|| Md5Secret(secret.to_owned()))
    }

    pub fn from_password(user: &str, password: &str) -> Md5Secret {
        Md5Secret(md5_hex(&[password.as_bytes(), user.as_bytes()]))
    }

    /// The right answer to a server's `salt`.
    pub fn answer(&self, salt: [u8; 4]) -> String {
        md5_hex(&[&self.0.as_bytes()[3..], &salt])
    }

    pub fn accepts(&self, answer: &[u8], salt: [u8; 4]) -> bool {
        equal(self.answer(salt).as_bytes(), answer)
    }
}

fn md5_hex(parts: &[&[u8]]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut text = String::with_capacity(35);
    text.push_str("md5");
    for byte in hash.finalize() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).expect("half a byte is below 16"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Md5Secret;

    #[test]
    fn answers_as_libpq_does() {
        let secret = Md5Secret::from_password("md5_user", "password");
        assert_eq!(secret.answer([0x2a, 0x3d, 0x8f, 0xe0]), "md562af4dd09bbb41884907a838a3233294");
        assert!(secret.accepts(b"md562af4dd09bbb41884907a838a3233294", [0x2a, 0x3d, 0x8f, 0xe0]));
        assert!(!secret.accepts(b"md562af4dd09bbb41884907a838a3233295", [0x2a, 0x3d, 0x8f, 0xe0]));
        assert!(!secret.accepts(b"", [0x2a, 0x3d, 0x8f, 0xe0]));
    }

    #[test]
    fn stored_forms() {
        let check = |text: &str, valid: bool| assert_eq!(Md5Secret::parse(text).is_some(), valid, "{text}");
        check("md562af4dd09bbb41884907a838a3233294", true);
        check("md562af4dd09bbb41884907a838a323329", false);
        check("md5z2af4dd09bbb41884907a838a3233294", false);
        check("SCRAM-SHA-256$4096:...", false);
        check("secret", false);
    }
}
