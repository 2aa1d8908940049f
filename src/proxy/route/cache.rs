//! Verdicts by statement text, the least recently used out first. One per worker thread: no lock, no sharing.

use std::sync::Arc;

use lru::LruCache;

use super::{Verdict, classify};

/// Longer texts are classified each time: they are rare, and seldom come twice.
pub(super) const MAX_CACHED_TEXT: usize = 64 << 10;

/// When one is reached, the least recently used text goes.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    pub texts: usize,
    /// Of the texts themselves; the verdict beside one takes about 200 bytes.
    pub bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits { texts: 4096, bytes: 8 << 20 }
    }
}

/// [`classify`] with a memory.
#[derive(Debug)]
pub struct Classifier {
    limits: CacheLimits,
    verdicts: LruCache<Box<str>, Arc<Verdict>>,
    /// The sum of the keys' lengths; <= `limits.bytes`.
    bytes: usize,
    misses: u64,
}

impl Default for Classifier {
    fn default() -> Classifier {
        Classifier::new(CacheLimits::default())
    }
}

impl Classifier {
    pub fn new(limits: CacheLimits) -> Classifier {
        // The bounds are kept by `remember`, since one of them counts bytes.
        Classifier { limits, verdicts: LruCache::unbounded(), bytes: 0, misses: 0 }
    }

    pub fn verdict(&mut self, sql: &str) -> Arc<Verdict> {
        if let Some(verdict) = self.verdicts.get(sql) {
            return Arc::clone(verdict);
        }
        self.misses += 1;
        let verdict = Arc::new(classify(sql));
        self.remember(sql, &verdict);
        verdict
    }

    /// How often a text had to be classified.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    fn remember(&mut self, sql: &str, verdict: &Arc<Verdict>) {
        if sql.len() > MAX_CACHED_TEXT.min(self.limits.bytes) || self.limits.texts == 0 {
            return;
        }
        while self.verdicts.len() >= self.limits.texts || self.bytes + sql.len() > self.limits.bytes {
            let Some((text, _)) = self.verdicts.pop_lru() else { break };
            self.bytes -= text.len();
        }
        self.bytes += sql.len();
        self.verdicts.put(sql.into(), Arc::clone(verdict));
    }
}

#[cfg(test)]
mod tests {
    use super::{CacheLimits, Classifier, MAX_CACHED_TEXT};

    /// Asks for each text in turn and tells which were classified anew.
    fn check(limits: CacheLimits, texts: &[&str], expected_misses: &[&str]) {
        let mut classifier = Classifier::new(limits);
        let mut missed = Vec::new();
        for text in texts {
            let before = classifier.misses();
            classifier.verdict(text);
            if classifier.misses() > before {
                missed.push(*text);
            }
            assert!(classifier.verdicts.len() <= limits.texts, "{} texts", classifier.verdicts.len());
            assert!(classifier.bytes <= limits.bytes, "{} bytes", classifier.bytes);
        }
        assert_eq!(missed, expected_misses);
    }

    #[test]
    fn the_least_recently_used_text_goes_first() {
        check(CacheLimits { texts: 2, bytes: 100 }, &["a", "b", "a", "c", "a", "b"], &["a", "b", "c", "b"]);
    }

    #[test]
    fn bytes_are_bounded() {
        check(
            CacheLimits { texts: 9, bytes: 4 },
            &["aa", "b", "c", "dddd", "dddd", "aa"],
            &["aa", "b", "c", "dddd", "aa"],
        );
        check(CacheLimits { texts: 9, bytes: 2 }, &["aaa", "aaa"], &["aaa", "aaa"]);
    }

    #[test]
    fn no_room_is_no_cache() {
        check(CacheLimits { texts: 0, bytes: 9 }, &["a", "a"], &["a", "a"]);
    }

    #[test]
    fn long_texts_are_not_kept() {
        let long = format!("SELECT '{}'", "x".repeat(MAX_CACHED_TEXT));
        check(CacheLimits::default(), &[&long, &long], &[&long, &long]);
    }
}
