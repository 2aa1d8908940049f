//! Relays of which some must have a commit's WAL on disk before it is told: how many, and what follows from that. PURE.
//!
//! Two sets of relays matter. Those that acknowledge a commit, `acks` of them, and those that promise a new term before
//! anybody is promoted ([`Quorum::recruits`]). Any two of these sets share a relay, so what was acknowledged is found;
//! and any two recruitments share one, so that two elections cannot miss each other.

/// `acks` of `relays`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    relays: usize,
    acks: usize,
}

/// What one relay's log is, as it was when it promised the term of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position<T, L> {
    /// The last term under which this relay held all that the election before it recovered. It goes first: a longer log
    /// of an earlier term has at its end what no later term knows of (Raft, section 5.4.2 and its figure 8).
    pub term: T,
    pub end: L,
}

impl Quorum {
    /// `None` where no set of `acks` is possible, or needed.
    pub fn new(relays: usize, acks: usize) -> Option<Quorum> {
        (1..=relays).contains(&acks).then_some(Quorum { relays, acks })
    }

    /// Half of them and one more.
    pub fn majority(relays: usize) -> Option<Quorum> {
        Quorum::new(relays, relays / 2 + 1)
    }

    pub fn acks(self) -> usize {
        self.acks
    }

    /// So many relays have to promise a term: the rest cannot acknowledge a commit, and cannot promise another one.
    pub fn recruits(self) -> usize {
        (self.relays - self.acks + 1).max(self.relays / 2 + 1)
    }

    /// Up to where enough of them have it, of all relays' ends in one term; `None` while that is nowhere.
    pub fn durable<L: Ord>(self, ends: impl IntoIterator<Item = L>) -> Option<L> {
        let mut ends: Vec<L> = ends.into_iter().collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.into_iter().nth(self.acks - 1)
    }

    /// Whose log an election goes on with, once enough have promised.
    pub fn recovery<R: Copy, T: Ord + Copy, L: Ord + Copy>(
        self,
        promised: impl IntoIterator<Item = (R, Position<T, L>)>,
    ) -> Option<R> {
        let promised: Vec<_> = promised.into_iter().collect();
        if promised.len() < self.recruits() {
            return None;
        }
        promised.into_iter().max_by_key(|(_, position)| *position).map(|(relay, _)| relay)
    }
}

#[cfg(test)]
mod tests {
    use super::{Position, Quorum};

    #[test]
    fn who_acknowledges_and_who_promises_have_one_in_common() {
        for relays in 1..=7 {
            assert_eq!(Quorum::new(relays, 0), None);
            assert_eq!(Quorum::new(relays, relays + 1), None);
            for acks in 1..=relays {
                let quorum = Quorum::new(relays, acks).expect("a quorum");
                assert!(acks + quorum.recruits() > relays, "{quorum:?}");
                assert!(2 * quorum.recruits() > relays, "{quorum:?}");
                assert!(quorum.recruits() <= relays, "{quorum:?}");
            }
        }
        assert_eq!(Quorum::majority(3), Quorum::new(3, 2));
        assert_eq!(Quorum::majority(4), Quorum::new(4, 3));
    }

    #[test]
    fn durable_is_what_enough_have() {
        let check = |relays, acks, ends: &[u64], durable| {
            let quorum = Quorum::new(relays, acks).expect("a quorum");
            assert_eq!(quorum.durable(ends.iter().copied()), durable, "{acks} of {ends:?}");
        };
        check(3, 2, &[10, 30, 20], Some(20));
        check(3, 3, &[10, 30, 20], Some(10));
        check(3, 1, &[10, 30, 20], Some(30));
        check(3, 2, &[10], None);
    }

    #[test]
    fn the_latest_term_goes_before_the_longest_log() {
        let quorum = Quorum::new(3, 2).expect("a quorum");
        let at = |term, end| Position { term, end };
        assert_eq!(quorum.recovery([("a", at(1, 50))]), None, "one of three has promised");
        assert_eq!(quorum.recovery([("a", at(1, 50)), ("b", at(2, 40))]), Some("b"));
        assert_eq!(quorum.recovery([("a", at(2, 50)), ("b", at(2, 40))]), Some("a"));
    }
}
