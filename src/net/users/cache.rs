//! What was looked up, and when. No clock of its own: `now` is an argument.
//!
//! Also the finding that there is no such user is kept, apart from the others: whoever tries many names must not
//! push out those that exist.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::{Known, Lookup};

/// What is in doubt is looked up again, but not within this time after it was; and so is who was not there, since it
/// may have been created meanwhile. Whatever clients try costs a server one lookup a second and name.
const CERTAIN: Duration = Duration::from_secs(1);
/// Users. Beyond it the one that was used longest ago is forgotten.
const MAX_FOUND: NonZeroUsize = NonZeroUsize::new(10_000).expect("is not zero");
/// Names without a user; the same holds.
const MAX_UNKNOWN: NonZeroUsize = NonZeroUsize::new(1000).expect("is not zero");

#[derive(Debug)]
pub(super) struct Cache {
    found: LruCache<Arc<str>, Entry>,
    /// And when they were not found.
    unknown: LruCache<Arc<str>, Instant>,
    keep: Duration,
}

#[derive(Debug)]
struct Entry {
    known: Arc<Known>,
    found_at: Instant,
    /// Its `VALID UNTIL`.
    expires_at: Option<Instant>,
}

/// A user as a server has it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) known: Arc<Known>,
    /// Until its `VALID UNTIL`; `None`: for ever.
    pub(super) valid_for: Option<Duration>,
}

impl Cache {
    /// What is found is used for `keep` without asking again.
    pub(super) fn new(keep: Duration) -> Cache {
        Cache { found: LruCache::new(MAX_FOUND), unknown: LruCache::new(MAX_UNKNOWN), keep }
    }

    /// `None`: it must be asked for.
    pub(super) fn fresh(&mut self, user: &str, now: Instant) -> Option<Lookup> {
        if let Some(entry) = self.found.get(user) {
            let age = now.duration_since(entry.found_at);
            let doubted = entry.known.doubt.is_cast() && age >= CERTAIN;
            let fresh = age < self.keep && !doubted && !entry.has_expired(now);
            return fresh.then(|| Lookup::Found(entry.known.clone()));
        }
        let asked_at = self.unknown.get(user)?;
        (now.duration_since(*asked_at) < CERTAIN).then_some(Lookup::Unknown)
    }

    /// Of whatever age: while no server answers, that is better than nothing. Who cannot log in anywhere is not
    /// harmed by it.
    pub(super) fn any(&mut self, user: &str, now: Instant) -> Option<Lookup> {
        match self.found.get(user) {
            Some(entry) if entry.has_expired(now) => Some(Lookup::Unknown),
            Some(entry) => Some(Lookup::Found(entry.known.clone())),
            None => self.unknown.get(user).map(|_| Lookup::Unknown),
        }
    }

    pub(super) fn insert(&mut self, user: &str, found: Option<Found>, now: Instant) {
        let user: Arc<str> = user.into();
        match found {
            Some(Found { known, valid_for }) => {
                self.unknown.pop(&user);
                let expires_at = valid_for.and_then(|valid_for| now.checked_add(valid_for));
                self.found.put(user, Entry { known, found_at: now, expires_at });
            }
            None => {
                self.found.pop(&user);
                self.unknown.put(user, now);
            }
        }
    }
}

impl Entry {
    fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::{Known, Lookup, Secret};
    use super::{Cache, Found, MAX_UNKNOWN};

    fn joe() -> Arc<Known> {
        Known::new(Secret::new("joe", "pw", [0; 16]))
    }

    fn found(known: &Arc<Known>, valid_for: Option<Duration>) -> Option<Found> {
        Some(Found { known: known.clone(), valid_for })
    }

    fn word(lookup: &Option<Lookup>) -> &'static str {
        match lookup {
            None => "ask",
            Some(Lookup::Found(_)) => "found",
            Some(Lookup::Unknown) => "unknown",
            Some(Lookup::Unavailable) => "unavailable",
        }
    }

    /// A cache that keeps entries for 30 s, and a clock in milliseconds.
    fn start() -> (Cache, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        (Cache::new(Duration::from_secs(30)), move |millis| start + Duration::from_millis(millis))
    }

    #[tokio::test]
    async fn entries_age() {
        let (mut cache, at) = start();
        cache.insert("joe", found(&joe(), None), at(0));
        cache.insert("ghost", None, at(0));
        for (user, millis, expected) in [
            ("joe", 29_999, "found"),
            ("joe", 30_000, "ask"),
            ("ghost", 999, "unknown"),
            ("ghost", 1000, "ask"),
            ("somebody", 0, "ask"),
        ] {
            assert_eq!(word(&cache.fresh(user, at(millis))), expected, "{user} {millis}");
        }
        assert_eq!(word(&cache.any("joe", at(90_000))), "found");
        assert_eq!(word(&cache.any("ghost", at(90_000))), "unknown");
        cache.insert("joe", None, at(40_000));
        assert_eq!(word(&cache.fresh("joe", at(40_000))), "unknown");
        cache.insert("ghost", found(&joe(), None), at(40_000));
        assert_eq!(word(&cache.fresh("ghost", at(40_000))), "found");
    }

    #[tokio::test]
    async fn doubt_has_it_asked_again_once_a_second() {
        let (mut cache, at) = start();
        let known = joe();
        cache.insert("joe", found(&known, None), at(0));
        known.doubt.cast();
        assert_eq!(word(&cache.fresh("joe", at(999))), "found");
        assert_eq!(word(&cache.fresh("joe", at(1000))), "ask");
        assert_eq!(word(&cache.any("joe", at(1000))), "found");
        cache.insert("joe", found(&joe(), None), at(1000));
        assert_eq!(word(&cache.fresh("joe", at(2000))), "found");
    }

    #[tokio::test]
    async fn an_expired_password_is_none() {
        let (mut cache, at) = start();
        cache.insert("joe", found(&joe(), Some(Duration::from_secs(2))), at(0));
        assert_eq!(word(&cache.fresh("joe", at(1999))), "found");
        assert_eq!(word(&cache.fresh("joe", at(2000))), "ask");
        assert_eq!(word(&cache.any("joe", at(2000))), "unknown");
        // Beyond what a clock can hold.
        cache.insert("joe", found(&joe(), Some(Duration::MAX)), at(0));
        assert_eq!(word(&cache.fresh("joe", at(2000))), "found");
    }

    #[tokio::test]
    async fn ghosts_do_not_push_out_users() {
        let (mut cache, at) = start();
        cache.insert("joe", found(&joe(), None), at(0));
        for ghost in 0..20_000 {
            cache.insert(&format!("ghost{ghost}"), None, at(0));
        }
        assert_eq!(word(&cache.fresh("joe", at(1))), "found");
        assert_eq!(cache.unknown.len(), MAX_UNKNOWN.get());
    }
}
