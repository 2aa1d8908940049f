//! What is known of clients' passwords: a list from the configuration, and what the servers have in `pg_authid`.
//!
//! Looked-up secrets are kept for [`FRESH`], also the finding that there is no such user. A failed proof casts
//! doubt on the entry, so that a changed password works from the next try on; at most one lookup a second and
//! user comes of that, whatever clients try. While no server answers, an old entry is better than none: who
//! cannot log in anywhere is not harmed by it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::sql::{self, SqlConnection};
use super::{DialError, Target};
use crate::pg::auth::md5::Md5Secret;
use crate::pg::auth::scram::Verifier;
use crate::topology::Address;

/// How long a looked-up secret is used without asking again.
const FRESH: Duration = Duration::from_secs(30);
/// A failed proof does not cast doubt on what was looked up so recently.
const CERTAIN: Duration = Duration::from_secs(1);
/// Looked-up users. Beyond it the one that was used longest ago is forgotten.
const CACHED_USERS: NonZeroUsize = NonZeroUsize::new(10_000).expect("is not zero");
/// `NAMEDATALEN - 1`: no server has a user with a longer name.
const MAX_NAME_LEN: usize = 63;
/// For connecting to one server, and again for its answer.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);

/// Names with their schemas, and `search_path` pinned beside: nobody gets to say what `=` or `now` means here
/// (CVE-2025-12819 in a pooler). An expired password is none (CVE-2025-2291).
const LOOKUP: &str = "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin \
                      AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())";

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
    /// A stored form, or else a password (`get_password_type`, crypt.c).
    fn new(user: &str, secret: &str) -> Secret {
        Secret::stored(secret).unwrap_or_else(|| Secret::Plain {
            password: secret.into(),
            verifier: Verifier::from_password(secret, rand::random()),
            md5: Md5Secret::from_password(user, secret),
        })
    }

    fn stored(secret: &str) -> Option<Secret> {
        let scram = Verifier::parse(secret).map(Secret::Scram);
        scram.or_else(|| Md5Secret::parse(secret).map(Secret::Md5))
    }
}

#[derive(Clone, Debug)]
pub(super) enum Lookup {
    Found(Arc<Secret>),
    /// Not there, may not log in, or has no password.
    Unknown,
    /// No server could be asked.
    Unavailable,
}

#[derive(Debug)]
pub struct Users {
    listed: HashMap<String, Arc<Secret>>,
    servers: Option<Servers>,
}

impl Users {
    /// From the configuration: names with a password, or with what `pg_authid.rolpassword` holds. Each plain
    /// password costs a key derivation, some milliseconds.
    pub fn listed_only<'a>(users: impl IntoIterator<Item = (&'a str, &'a str)>) -> Users {
        let secret = |(user, secret): (&str, &str)| (user.to_owned(), Arc::new(Secret::new(user, secret)));
        Users { listed: users.into_iter().map(secret).collect(), servers: None }
    }

    /// Who is not listed is looked up on the first of `candidates` that answers. The login there must be
    /// allowed to read `pg_authid`.
    #[must_use]
    pub fn with_lookup(mut self, candidates: watch::Receiver<Vec<Target>>) -> Users {
        self.servers = Some(Servers {
            candidates,
            connection: tokio::sync::Mutex::new(None),
            cache: Mutex::new(Cache { entries: LruCache::new(CACHED_USERS) }),
        });
        self
    }

    pub(super) fn listed(&self, user: &str) -> Option<&Secret> {
        self.listed.get(user).map(Arc::as_ref)
    }

    pub(super) async fn find(&self, user: &str) -> Lookup {
        match (self.listed.get(user), &self.servers) {
            (Some(secret), _) => Lookup::Found(secret.clone()),
            (None, Some(servers)) if user.len() <= MAX_NAME_LEN => servers.find(user).await,
            (None, _) => Lookup::Unknown,
        }
    }

    /// A proof has failed, or a server has turned down what a proof gave us: is what we hold still true?
    pub(super) fn doubt(&self, user: &str) {
        if let Some(servers) = &self.servers {
            servers.cache.lock().doubt(user, Instant::now());
        }
    }
}

#[derive(Debug)]
struct Servers {
    candidates: watch::Receiver<Vec<Target>>,
    /// One connection and one lookup at a time; whoever waits for it is within its login limit.
    connection: tokio::sync::Mutex<Option<(Address, SqlConnection)>>,
    cache: Mutex<Cache>,
}

impl Servers {
    async fn find(&self, user: &str) -> Lookup {
        let fresh = || self.cache.lock().fresh(user, Instant::now());
        if let Some(lookup) = fresh() {
            return lookup;
        }
        let mut connection = self.connection.lock().await;
        // Somebody may have asked for the same user while we waited.
        if let Some(lookup) = fresh() {
            return lookup;
        }
        match self.ask(&mut connection, user).await {
            Some(secret) => {
                self.cache.lock().insert(user, secret.clone(), Instant::now());
                secret.map_or(Lookup::Unknown, Lookup::Found)
            }
            None => self.cache.lock().any(user).unwrap_or(Lookup::Unavailable),
        }
    }

    /// `None`: nobody could answer.
    async fn ask(
        &self,
        connection: &mut Option<(Address, SqlConnection)>,
        user: &str,
    ) -> Option<Option<Arc<Secret>>> {
        let candidates = self.candidates.borrow().clone();
        // The connection stays only while its server is a candidate.
        let usable = |(address, kept): &mut (Address, SqlConnection)| {
            !kept.is_closed() && candidates.iter().any(|target| target.address == *address)
        };
        if let Some((address, kept)) = connection.take_if(usable)
            && let Ok(secret) = look_up(&kept, user).await
        {
            *connection = Some((address, kept));
            return Some(secret);
        }
        *connection = None;
        for target in candidates {
            let address = target.address.clone();
            let attempt = async {
                let opened = sql::connect(&pinned(target), LOOKUP_LIMIT).await?;
                let secret = look_up(&opened, user).await?;
                Ok::<_, LookupError>((opened, secret))
            };
            match attempt.await {
                Ok((opened, secret)) => {
                    *connection = Some((address, opened));
                    return Some(secret);
                }
                Err(error) => error.log(&address),
            }
        }
        None
    }
}

fn pinned(mut target: Target) -> Target {
    target.parameters.push(("search_path".to_owned(), "pg_catalog".to_owned()));
    target
}

async fn look_up(connection: &SqlConnection, user: &str) -> Result<Option<Arc<Secret>>, LookupError> {
    let asked = async { connection.query_opt(LOOKUP, &[&user]).await };
    let row = tokio::time::timeout(LOOKUP_LIMIT, asked).await.map_err(|_| LookupError::Silence)??;
    let stored: Option<String> = match row {
        Some(row) => row.try_get(0)?,
        None => None,
    };
    Ok(stored.and_then(|stored| Secret::stored(&stored)).map(Arc::new))
}

#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("look up a password")]
    Sql(#[from] tokio_postgres::Error),
    #[error("no answer within {LOOKUP_LIMIT:?}")]
    Silence,
}

impl LookupError {
    /// A missing grant is for a person to mend; a server that is not there is somebody else's to report.
    fn log(&self, address: &Address) {
        let denied = match self {
            LookupError::Sql(error) => {
                error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
            }
            LookupError::Dial(_) | LookupError::Silence => false,
        };
        if denied {
            tracing::warn!(%address, "server_login may not read pg_authid: users cannot be looked up");
        } else {
            tracing::info!(%address, error = %self, "a user could not be looked up here");
        }
    }
}

/// What was found, and when.
#[derive(Debug)]
struct Cache {
    entries: LruCache<Arc<str>, Entry>,
}

#[derive(Debug)]
struct Entry {
    secret: Option<Arc<Secret>>,
    found_at: Instant,
    /// Set by a failed proof.
    doubted: Doubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    None,
    Cast,
}

impl Cache {
    fn fresh(&mut self, user: &str, now: Instant) -> Option<Lookup> {
        let entry = self.entries.get(user)?;
        let fresh = now.duration_since(entry.found_at) < FRESH && entry.doubted == Doubt::None;
        fresh.then(|| entry.lookup())
    }

    /// Of whatever age.
    fn any(&mut self, user: &str) -> Option<Lookup> {
        self.entries.get(user).map(Entry::lookup)
    }

    fn insert(&mut self, user: &str, secret: Option<Arc<Secret>>, now: Instant) {
        self.entries.put(user.into(), Entry { secret, found_at: now, doubted: Doubt::None });
    }

    fn doubt(&mut self, user: &str, now: Instant) {
        if let Some(entry) = self.entries.peek_mut(user)
            && now.duration_since(entry.found_at) >= CERTAIN
        {
            entry.doubted = Doubt::Cast;
        }
    }
}

impl Entry {
    fn lookup(&self) -> Lookup {
        self.secret.clone().map_or(Lookup::Unknown, Lookup::Found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{CACHED_USERS, Cache, Lookup, LruCache, Secret, Users};

    fn word(lookup: &Option<Lookup>) -> &'static str {
        match lookup {
            None => "ask",
            Some(Lookup::Found(_)) => "found",
            Some(Lookup::Unknown) => "unknown",
            Some(Lookup::Unavailable) => "unavailable",
        }
    }

    #[tokio::test]
    async fn entries_age_and_are_doubted() {
        let mut cache = Cache { entries: LruCache::new(CACHED_USERS) };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        cache.insert("joe", Some(Arc::new(Secret::new("joe", "pw"))), start);
        cache.insert("ghost", None, start);

        assert_eq!(word(&cache.fresh("joe", at(29_999))), "found");
        assert_eq!(word(&cache.fresh("ghost", at(29_999))), "unknown");
        assert_eq!(word(&cache.fresh("joe", at(30_000))), "ask");
        assert_eq!(word(&cache.any("joe")), "found");
        assert_eq!(word(&cache.fresh("somebody", start)), "ask");

        cache.doubt("joe", at(999));
        assert_eq!(word(&cache.fresh("joe", at(999))), "found");
        cache.doubt("joe", at(1000));
        assert_eq!(word(&cache.fresh("joe", at(1000))), "ask");
        cache.insert("joe", None, at(1000));
        assert_eq!(word(&cache.fresh("joe", at(1001))), "unknown");
    }

    #[tokio::test]
    async fn who_is_listed_is_not_looked_up() {
        let (_keep, candidates) = tokio::sync::watch::channel(Vec::new());
        let users = Users::listed_only([("joe", "pw")]).with_lookup(candidates);
        assert_eq!(word(&Some(users.find("joe").await)), "found");
        assert_eq!(word(&Some(users.find("jim").await)), "unavailable");
        assert_eq!(word(&Some(users.find(&"x".repeat(64)).await)), "unknown");
    }

    #[test]
    fn secrets_are_told_by_their_form() {
        let check = |secret: &str, expected: &str| {
            let kind = match Secret::new("joe", secret) {
                Secret::Scram(_) => "scram",
                Secret::Md5(_) => "md5",
                Secret::Plain { .. } => "plain",
            };
            assert_eq!(kind, expected, "{secret}");
        };
        check("md562af4dd09bbb41884907a838a3233294", "md5");
        check("md5", "plain");
        let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        check(&format!("SCRAM-SHA-256$4096:AAAA${key}:{key}"), "scram");
        check("SCRAM-SHA-256$4096:AAAA", "plain");
    }
}
