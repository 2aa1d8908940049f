//! Who was told what this instance's relay had promised, and when. PURE.
//!
//! An instance that is told that nothing later than its own term was promised goes on for
//! [`VOUCH`](crate::topology::VOUCH). So whoever replaces its primary must know when it was last told so.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::topology::Term;

/// `None` while this process may not speak for its instance.
#[derive(Debug, Default)]
pub(super) struct LastWords(Option<Open>);

#[derive(Debug)]
struct Open {
    /// Nobody else was told anything.
    since: Instant,
    /// Of every peer, for good.
    told: BTreeMap<String, Told>,
}

/// before <= at
#[derive(Clone, Copy, Debug)]
struct Told {
    /// The latest promise it was told of.
    promised: Term,
    /// The last time that.
    at: Instant,
    /// The last time it was told of an earlier one.
    before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Closed,
    Unknown,
}

impl LastWords {
    /// Up to `now` another process may have spoken for this instance, and told anybody anything.
    pub(super) fn open(&mut self, now: Instant, peers: impl Iterator<Item = String>) {
        let told = Told { promised: Term(0), at: now, before: now };
        self.0 = Some(Open { since: now, told: peers.map(|peer| (peer, told)).collect() });
    }

    /// From here on nothing is told.
    pub(super) fn close(&mut self) {
        self.0 = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// `None`: not now.
    pub(super) fn since(&self) -> Option<Instant> {
        self.0.as_ref().map(|open| open.since)
    }

    /// Whether `asker` may be told.
    pub(super) fn admits(&self, asker: Option<&str>) -> Result<(), Unfit> {
        let open = self.0.as_ref().ok_or(Unfit::Closed)?;
        let known = asker.is_none_or(|asker| open.told.contains_key(asker));
        if known { Ok(()) } else { Err(Unfit::Unknown) }
    }

    /// `asker` is told at `at` that the relay had promised `promised`, which never becomes less.
    pub(super) fn tell(&mut self, asker: &str, promised: Term, at: Instant) {
        let told = self.0.as_mut().and_then(|open| open.told.get_mut(asker));
        let Some(told) = told else { return };
        if promised > told.promised {
            (told.promised, told.before) = (promised, told.at);
        }
        told.at = at;
    }

    /// When each peer was last told of an earlier promise than `promised`.
    pub(super) fn before(&self, promised: Term) -> BTreeMap<String, Instant> {
        let told = self.0.iter().flat_map(|open| &open.told);
        let last = |told: &Told| if told.promised < promised { told.at } else { told.before };
        told.map(|(peer, told)| (peer.clone(), last(told))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{LastWords, Unfit};
    use crate::topology::Term;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn the_last_word_of_an_earlier_promise_is_kept() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut words = LastWords::default();
        words.open(at(0), ["bw2", "bw3"].into_iter().map(str::to_owned));
        // (told of a promise, at), then what is known of bw2 under a promise.
        for (promise, when, expected) in [
            (3, 1, [(3, 0), (4, 1)]),
            (3, 2, [(3, 0), (4, 2)]),
            (5, 4, [(5, 2), (6, 4)]),
            (5, 6, [(5, 2), (6, 6)]),
        ] {
            words.tell("bw2", Term(promise), at(when));
            for (under, last) in expected {
                let before = words.before(Term(under));
                assert_eq!(before["bw2"], at(last), "told {promise} at {when}, under {under}");
                // Who asked nothing may have been told by the process before this one.
                assert_eq!(before["bw3"], at(0));
            }
        }
        words.open(at(9), ["bw2"].into_iter().map(str::to_owned));
        assert_eq!(words.before(Term(5)), [("bw2".to_owned(), at(9))].into());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn nobody_is_told_behind_ones_back() {
        let mut words = LastWords::default();
        assert_eq!(words.admits(None), Err(Unfit::Closed));
        words.open(Instant::now(), ["bw2".to_owned()].into_iter());
        assert_eq!(words.admits(None), Ok(()));
        assert_eq!(words.admits(Some("bw2")), Ok(()));
        assert_eq!(words.admits(Some("bw4")), Err(Unfit::Unknown));
        words.close();
        assert_eq!(words.admits(Some("bw2")), Err(Unfit::Closed));
        assert_eq!(words.before(Term(1)), [].into());
    }
}
