//! Verdicts by statement text, the least recently used out first. One per worker thread: no lock, no sharing.
//!
//! A text is looked up by its shape, which is the text without the values of its literals. Where the verdict
//! depends on them (`SET a = 'b'`, `current_setting('c')`), the shape says so, and the text itself is the key.

use std::sync::Arc;

use lru::LruCache;

use super::classify::{Literals, classify_with_literals};
use super::{Verdict, shape};

/// Longer texts are classified each time: they are rare, and seldom come twice.
pub(super) const MAX_CACHED_TEXT: usize = 64 << 10;

/// When one is reached, the least recently used text goes.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    pub texts: usize,
    /// Of the keys, texts and shapes; the verdict beside one takes about 200 bytes.
    pub bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> CacheLimits {
        CacheLimits { texts: 4096, bytes: 8 << 20 }
    }
}

/// [`classify()`](super::classify()) with a memory.
#[derive(Debug)]
pub struct Classifier {
    limits: CacheLimits,
    /// Shapes hold a zero byte for each literal, which no text has: a shape never equals another text.
    entries: LruCache<Box<[u8]>, Entry>,
    /// The sum of the keys' lengths; <= `limits.bytes`.
    bytes: usize,
    misses: u64,
    /// Room for one shape, kept.
    shape: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Entry {
    Verdict(Arc<Verdict>),
    /// Of a shape: look for the text itself.
    ByText,
}

impl Default for Classifier {
    fn default() -> Classifier {
        Classifier::new(CacheLimits::default())
    }
}

impl Classifier {
    pub fn new(limits: CacheLimits) -> Classifier {
        // The bounds are kept by `remember`, since one of them counts bytes.
        Classifier { limits, entries: LruCache::unbounded(), bytes: 0, misses: 0, shape: Vec::new() }
    }

    pub fn verdict(&mut self, sql: &str) -> Arc<Verdict> {
        if sql.len() > MAX_CACHED_TEXT {
            self.misses += 1;
            return Arc::new(classify_with_literals(sql).0);
        }
        let mut shape = std::mem::take(&mut self.shape);
        let key = if shape::write(sql, &mut shape) { shape.as_slice() } else { sql.as_bytes() };
        let verdict = self.look_up(sql, key);
        self.shape = shape;
        verdict
    }

    fn look_up(&mut self, sql: &str, key: &[u8]) -> Arc<Verdict> {
        let mut entry = self.entries.get(key);
        if matches!(entry, Some(Entry::ByText)) {
            entry = self.entries.get(sql.as_bytes());
        }
        if let Some(Entry::Verdict(verdict)) = entry {
            return Arc::clone(verdict);
        }
        self.misses += 1;
        let (verdict, literals) = classify_with_literals(sql);
        let verdict = Arc::new(verdict);
        if literals == Literals::Irrelevant || key == sql.as_bytes() {
            self.remember(key, Entry::Verdict(Arc::clone(&verdict)));
        } else {
            self.remember(key, Entry::ByText);
            self.remember(sql.as_bytes(), Entry::Verdict(Arc::clone(&verdict)));
        }
        verdict
    }

    /// How often a text had to be classified.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    fn remember(&mut self, key: &[u8], entry: Entry) {
        if key.len() > self.limits.bytes || self.limits.texts == 0 {
            return;
        }
        self.forget(key);
        while self.entries.len() >= self.limits.texts || self.bytes + key.len() > self.limits.bytes {
            let Some((oldest, _)) = self.entries.pop_lru() else { break };
            self.bytes -= oldest.len();
        }
        self.bytes += key.len();
        self.entries.put(key.into(), entry);
    }

    fn forget(&mut self, key: &[u8]) {
        if self.entries.pop(key).is_some() {
            self.bytes -= key.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CacheLimits, Classifier, MAX_CACHED_TEXT};
    use crate::proxy::route::TransactionEffect;

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
            assert!(classifier.entries.len() <= limits.texts, "{} texts", classifier.entries.len());
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

    #[test]
    fn texts_that_differ_in_literals_share_a_verdict() {
        check(
            CacheLimits::default(),
            &["SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 22", "SELECT a FROM t WHERE b = 'x'"],
            &["SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 'x'"],
        );
    }

    #[test]
    fn unless_the_literals_matter() {
        let mut classifier = Classifier::default();
        for _ in 0..2 {
            for (sql, read) in [
                ("SELECT current_setting('server_version')", true),
                ("SELECT current_setting('port')", false),
                ("SELECT current_setting('')", false),
                ("SELECT lower('port')", true),
                ("SELECT lower('x') FROM f(1)", false),
                ("SHOW \"search_path\"", true),
            ] {
                assert_eq!(classifier.verdict(sql).is_read(), read, "{sql}");
            }
        }
        for gid in ["a", "b"] {
            let verdict = classifier.verdict(&format!("COMMIT PREPARED '{gid}'"));
            assert_eq!(verdict.transaction, TransactionEffect::CommitPrepared(gid.into()));
        }
        let texts = ["SET a.b = '1'", "SET a.b = '2'", "SET a.b = '1'", "SET bellwether.route = 'auto'"];
        check(CacheLimits::default(), &texts, &[texts[0], texts[1], texts[3]]);
    }
}
