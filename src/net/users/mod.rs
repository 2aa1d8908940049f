//! What is known of clients' passwords: a list from the configuration, and what the servers have (`lookup`, which
//! keeps it in `cache`).

mod cache;
mod lookup;

pub use lookup::{LookupStatement, Lookups};

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::Target;
use crate::pg::auth::md5::Md5Secret;
use crate::pg::auth::scram::{self, ClientKeys, Verifier};
use lookup::Servers;

/// `NAMEDATALEN - 1`: no server has a user with a longer name.
const MAX_NAME_LEN: usize = 63;

/// What we hold of one user's password.
#[derive(Clone)]
pub(super) enum Secret {
    Scram(Verifier),
    Md5(Md5Secret),
    Plain { password: Arc<str>, verifier: Verifier, md5: Md5Secret },
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A stored form, or else a password (`get_password_type`, crypt.c). `salt` is for a password's verifier.
    fn new(user: &str, secret: &str, salt: [u8; 16]) -> Secret {
        Secret::stored(secret).unwrap_or_else(|| Secret::Plain {
            password: secret.into(),
            verifier: Verifier::from_password(secret, salt),
            md5: Md5Secret::from_password(user, secret),
        })
    }

    /// Whether it was made of this password.
    fn is_password(&self, secret: &str) -> bool {
        matches!(self, Secret::Plain { password, .. } if **password == *secret)
    }

    fn stored(secret: &str) -> Option<Secret> {
        let scram = Verifier::parse(secret).map(Secret::Scram);
        scram.or_else(|| Md5Secret::parse(secret).map(Secret::Md5))
    }
}

/// A secret, and whether it still is the user's.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) secret: Secret,
    pub(super) doubt: Doubt,
}

impl Known {
    fn new(secret: Secret) -> Arc<Known> {
        Arc::new(Known { secret, doubt: Doubt::default() })
    }
}

/// Shared by a secret and whatever was derived of it: a proof that fails, or a server that turns down the keys of
/// one that did not, casts doubt on all of them. What was looked up is then looked up again.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    pub(super) fn cast(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_cast(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a client's proof has revealed ([`ClientKeys`]), and whom to tell when a server does not take it.
#[derive(Clone, Debug)]
pub struct ProvenKeys {
    pub(super) keys: ClientKeys,
    pub(super) doubt: Doubt,
}

impl PartialEq for ProvenKeys {
    fn eq(&self, other: &ProvenKeys) -> bool {
        self.keys == other.keys
    }
}

impl Eq for ProvenKeys {}

#[derive(Clone, Debug)]
pub(super) enum Lookup {
    Found(Arc<Known>),
    /// Not there, may not log in, or has no password.
    Unknown,
    /// No server could be asked.
    Unavailable,
}

/// In which form passwords are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Scram,
    Md5,
}

#[derive(Debug)]
pub struct Users {
    listed: HashMap<String, Arc<Known>>,
    servers: Option<Arc<Servers>>,
    mock_secret: scram::Key,
}

impl Users {
    /// From the configuration: names with a password, or with what `pg_authid.rolpassword` holds. Of two entries
    /// for a name the later one counts. Each plain password costs a key derivation, a few milliseconds.
    /// `mock_secret`: see [`Verifier::mock`].
    pub fn listed_only<'a>(
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
        mock_secret: scram::Key,
    ) -> Users {
        Users { listed: HashMap::new(), servers: None, mock_secret }.relisted(users)
    }

    /// Another list in the place of this one. Of a password that has stayed the same nothing is derived again.
    #[must_use]
    pub fn relisted<'a>(&self, users: impl IntoIterator<Item = (&'a str, &'a str)>) -> Users {
        let known = |(user, secret): (&str, &str)| {
            let before = self.listed.get(user).filter(|known| known.secret.is_password(secret));
            let known = before.cloned().unwrap_or_else(|| {
                Known::new(Secret::new(user, secret, scram::mock_salt(&self.mock_secret, user)))
            });
            (user.to_owned(), known)
        };
        let listed = users.into_iter().map(known).collect();
        Users { listed, servers: None, mock_secret: self.mock_secret }
    }

    /// Who is not listed is looked up on the first of `candidates` that answers.
    #[must_use]
    pub fn with_lookup(mut self, candidates: watch::Receiver<Vec<Target>>, lookups: Lookups) -> Users {
        self.servers = Some(Arc::new(Servers::new(candidates, lookups)));
        self
    }

    /// Who is not listed is looked up, or not, as by `before`, and what it has found is known.
    #[must_use]
    pub fn with_lookup_of(mut self, before: &Users) -> Users {
        self.servers.clone_from(&before.servers);
        self
    }

    pub(super) fn listed(&self, user: &str) -> Option<&Secret> {
        self.listed.get(user).map(|known| &known.secret)
    }

    pub(super) async fn find(&self, user: &str) -> Lookup {
        match (self.listed.get(user), &self.servers) {
            (Some(known), _) => Lookup::Found(known.clone()),
            (None, Some(servers)) if user.len() <= MAX_NAME_LEN => servers.find(user).await,
            (None, _) => Lookup::Unknown,
        }
    }

    /// The stand-in for somebody who has no SCRAM secret.
    pub(super) fn mock(&self, user: &str) -> Verifier {
        Verifier::mock(&self.mock_secret, user)
    }

    /// How somebody whom nobody knows is asked where both forms are allowed: as most are (CheckPWChallengeAuth
    /// goes by `password_encryption`).
    pub(super) fn usual_form(&self) -> Form {
        let scram = self.listed.values().any(|known| matches!(known.secret, Secret::Scram(_)));
        if scram || self.servers.is_some() { Form::Scram } else { Form::Md5 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Form, Lookup, Lookups, Secret, Users};

    fn users<const N: usize>(listed: [(&str, &str); N]) -> Users {
        Users::listed_only(listed, [1; 32])
    }

    #[tokio::test]
    async fn who_is_listed_is_not_looked_up() {
        let (_keep, candidates) = tokio::sync::watch::channel(Vec::new());
        let users = users([("joe", "pw")]).with_lookup(candidates, Lookups::default());
        assert!(matches!(users.find("joe").await, Lookup::Found(_)));
        assert!(matches!(users.find("jim").await, Lookup::Unavailable));
        assert!(matches!(users.find(&"x".repeat(64)).await, Lookup::Unknown));
    }

    #[tokio::test]
    async fn another_list() {
        let (_keep, candidates) = tokio::sync::watch::channel(Vec::new());
        let before = users([("joe", "pw"), ("jim", "one"), ("ann", "x")]);
        let before = before.with_lookup(candidates, Lookups::default());
        let after = before.relisted([("joe", "pw"), ("jim", "two"), ("eve", "y")]).with_lookup_of(&before);
        let same = |user| match (before.listed.get(user), after.listed.get(user)) {
            (Some(one), Some(other)) => Some(Arc::ptr_eq(one, other)),
            _ => None,
        };
        assert_eq!((same("joe"), same("jim")), (Some(true), Some(false)));
        assert!(after.listed("ann").is_none() && after.listed("eve").is_some());
        assert!(matches!(after.find("ann").await, Lookup::Unavailable), "she is looked up now");
        assert!(matches!(before.relisted([]).find("ann").await, Lookup::Unknown));
    }

    const MD5: &str = "md562af4dd09bbb41884907a838a3233294";

    fn scram() -> String {
        let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        format!("SCRAM-SHA-256$4096:AAAA${key}:{key}")
    }

    #[test]
    fn secrets_are_told_by_their_form() {
        let check = |secret: &str, expected: &str| {
            let kind = match Secret::new("joe", secret, [0; 16]) {
                Secret::Scram(_) => "scram",
                Secret::Md5(_) => "md5",
                Secret::Plain { .. } => "plain",
            };
            assert_eq!(kind, expected, "{secret}");
        };
        check(MD5, "md5");
        check("md5", "plain");
        check(&scram(), "scram");
        check("SCRAM-SHA-256$4096:AAAA", "plain");
    }

    #[test]
    fn a_ghost_is_asked_as_the_others_are() {
        let check = |users: Users, expected| assert_eq!(users.usual_form(), expected);
        check(users([("joe", "pw"), ("jim", MD5)]), Form::Md5);
        check(users([("joe", scram().as_str()), ("jim", MD5)]), Form::Scram);
        let (_keep, candidates) = tokio::sync::watch::channel(Vec::new());
        check(users([]).with_lookup(candidates, Lookups::default()), Form::Scram);
    }

    /// A listed password's salt is the stand-in's: nothing changes to the eye when the user is added.
    #[test]
    fn salts_do_not_tell_who_is_listed() {
        let challenge = |users: &Users| {
            let verifier = match users.listed("joe") {
                Some(Secret::Plain { verifier, .. }) => verifier.clone(),
                _ => users.mock("joe"),
            };
            let binding = crate::pg::auth::scram::Binding::Unavailable;
            let challenged = crate::pg::auth::scram::ExpectClientFinal::challenge(
                &verifier,
                binding,
                b"n,,n=,r=abc",
                "nonce",
            );
            challenged.expect("a fair beginning").1
        };
        assert_eq!(challenge(&users([("joe", "pw")])), challenge(&users([])));
    }
}
