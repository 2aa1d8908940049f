//! Who keeps an election waiting, by name: for people. PURE.

use std::time::{Duration, Instant};

use super::Members;
use crate::topology::{Acknowledgers, Candidate, ProxyStatus, Term, WalStatus};

/// The instances that are waited for, each list in order; none of several where this one is alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Whose relays have not promised the term, while too few have.
    pub promises: Vec<String>,
    /// Whose proxies have not confirmed it, and have not certainly stopped by themselves.
    pub confirmations: Vec<String>,
    /// Whose proxies do not say that no session uses the candidate.
    pub clearances: Vec<String>,
    /// Of all others, who has not been heard for longer than is waited for anybody.
    pub silent: Vec<String>,
}

/// An election of a term, as far as others have a part in it.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    pub quorums: &'a [Acknowledgers],
    pub term: Term,
    pub candidate: Option<&'a Candidate>,
    /// How long anybody is waited for.
    pub patience: Duration,
}

impl Members {
    pub fn waited_for(
        &self,
        now: Instant,
        (proxy, wal): (&ProxyStatus, &WalStatus),
        waiting: Waiting<'_>,
    ) -> Waited {
        let Waiting { quorums, term, candidate, patience } = waiting;
        let others = self.proxies_in_use(now, wal, self.promised(wal, quorums), term);
        let all: Vec<(&String, Option<&ProxyStatus>)> =
            others.into_iter().chain([(&self.own, Some(proxy))]).collect();
        let those = |lacks: &dyn Fn(Option<&ProxyStatus>) -> bool| {
            let names = all.iter().filter(|(_, said)| lacks(*said)).map(|(name, _)| (*name).clone());
            in_order(names)
        };
        Waited {
            promises: self.not_promised(wal, quorums, term),
            confirmations: those(&|said| said.is_none_or(|said| said.confirmed < term)),
            clearances: those(&|said| {
                candidate
                    .is_some_and(|candidate| said.and_then(|said| said.cleared.as_ref()) != Some(candidate))
            }),
            silent: self.silent(now, patience),
        }
    }

    /// Who was never heard is silent since this instance speaks.
    fn silent(&self, now: Instant, patience: Duration) -> Vec<String> {
        let last = |name: &String| match self.others.get(name) {
            Some(Some(heard)) => Some(heard.asked_at),
            Some(None) | None => self.speaks_since,
        };
        let is_silent =
            |name: &String| last(name).is_some_and(|at| now.saturating_duration_since(at) >= patience);
        let all = self.others.keys().chain(self.unknown());
        in_order(all.filter(|name| is_silent(name)).cloned())
    }

    fn not_promised(&self, own: &WalStatus, quorums: &[Acknowledgers], term: Term) -> Vec<String> {
        missing(quorums, |name| self.relay(own, name).is_none_or(|relay| relay.promised < term))
    }

    /// Whose relays are not heard, where the others are too few for an election.
    pub fn missing_for_an_election(&self, now: Instant, quorums: &[Acknowledgers]) -> Vec<String> {
        let is_heard = |name: &String| *name == self.own || self.present(now).any(|m| m.instance == *name);
        missing(quorums, |name| !is_heard(name))
    }
}

/// Who lacks what an election needs of enough relays, while too few have it.
fn missing(quorums: &[Acknowledgers], lacks: impl Fn(&String) -> bool) -> Vec<String> {
    let too_few = quorums.iter().filter(|relays| {
        let others = relays.relays.iter().filter(|name| !lacks(name)).count();
        others < relays.quorum().recruits()
    });
    in_order(too_few.flat_map(|relays| relays.relays.iter().filter(|name| lacks(name))).cloned())
}

fn in_order(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::Waiting;
    use crate::topology::members::tests::{any, member, members, relay, start};
    use crate::topology::{Acknowledgers, Candidate, Heard, ProxyStatus, Term};
    use std::sync::Arc;
    use std::time::Duration;

    fn waiting<'a>(quorums: &'a [Acknowledgers], candidate: Option<&'a Candidate>) -> Waiting<'a> {
        Waiting { quorums, term: Term(7), candidate, patience: Duration::from_secs(10) }
    }

    #[test]
    fn who_was_not_heard_for_long_is_silent() {
        let now = start();
        let ago = |secs| now - Duration::from_secs(secs);
        // `b` was heard, so long ago, and knows `d`; `c` never was.
        let check = |heard: u64, speaks: Option<u64>, expected: &str| {
            let mut b = member("b", relay("7 6 1 50"), 7);
            b.last_words = [("d".to_owned(), now)].into();
            let mut all = members(now, &["c"]);
            all.others.insert("b".to_owned(), Some(Heard { asked_at: ago(heard), member: Arc::new(b) }));
            all.speaks_since = speaks.map(ago);
            assert_eq!(all.silent(now, Duration::from_secs(10)).join(" "), expected, "{heard}, {speaks:?}");
        };
        check(9, None, "");
        check(10, None, "b");
        check(9, Some(9), "");
        check(9, Some(10), "c d");
        check(10, Some(10), "b c d");
    }

    #[test]
    fn an_election_needs_enough_that_are_heard() {
        let now = start();
        let check = |heard: &[&str], quorums: &[Acknowledgers], expected: &str| {
            let mut all = members(now, &["b", "c", "d"]);
            all.others.extend(members(now, heard).others);
            assert_eq!(
                all.missing_for_an_election(now, quorums).join(" "),
                expected,
                "{heard:?}, {quorums:?}"
            );
            assert_eq!(all.missing_for_an_election(now + super::super::VOUCH, &[any(1, "a")]), [""; 0]);
        };
        let (b, c) = ("b 7 7 1 50", "c 7 7 1 50");
        check(&[], &[], "");
        check(&[b], &[any(2, "a b c")], "");
        check(&[b], &[any(1, "b c")], "c");
        check(&[b, c], &[any(1, "b c")], "");
        check(&[b], &[any(2, "a b c"), any(2, "b c d")], "c d");
    }

    #[test]
    fn who_is_waited_for_has_a_name() {
        let now = start();
        // `b` and `c`: what the relay has promised and the proxy confirmed; `d` is known to `b` alone.
        let check = |own: (u64, u64), others: [(u64, u64); 2], expected: [&str; 2]| {
            let mut all = members(now, &[]);
            for (name, (promised, confirmed)) in ["b", "c"].into_iter().zip(others) {
                let mut member = member(name, relay(&format!("{promised} 6 1 50")), confirmed);
                member.last_words = [("d".to_owned(), now)].into();
                all.others.insert(name.to_owned(), Some(Heard { asked_at: now, member: Arc::new(member) }));
            }
            let proxy = ProxyStatus { confirmed: Term(own.1), ..ProxyStatus::default() };
            let wal = relay(&format!("{} 6 1 50", own.0));
            let waited = all.waited_for(now, (&proxy, &wal), waiting(&[any(2, "a b c")], None));
            let found = [waited.promises.join(" "), waited.confirmations.join(" ")];
            assert_eq!(found, expected, "{own:?}, {others:?}");
            assert_eq!(waited.clearances, [""; 0]);
        };
        check((7, 7), [(7, 7), (6, 6)], ["", "c d"]);
        check((7, 7), [(6, 7), (6, 6)], ["b c", "c d"]);
        check((6, 6), [(7, 7), (7, 7)], ["", "a d"]);
    }

    #[test]
    fn whose_session_holds_a_candidate() {
        let now = start();
        let candidate = Candidate { node: "pg2".parse().expect("a name"), round: 1 };
        let mut b = member("b", relay("7 6 1 50"), 7);
        b.proxy = Arc::new(ProxyStatus { cleared: Some(candidate.clone()), ..(*b.proxy).clone() });
        let mut all = members(now, &["c"]);
        all.others.insert("b".to_owned(), Some(Heard { asked_at: now, member: Arc::new(b) }));
        let (proxy, wal) = (ProxyStatus { confirmed: Term(7), ..ProxyStatus::default() }, relay("7 6 1 50"));
        let waited = all.waited_for(now, (&proxy, &wal), waiting(&[any(2, "a b c")], Some(&candidate)));
        assert_eq!(waited.clearances, ["a", "c"]);
    }
}
