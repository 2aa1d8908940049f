//! Lists to which transactions append unique values, and which they read.
//!
//! The final lists are the order in which everything happened. So of each read it is known which state it saw: a prefix
//! of each list, or something that never was.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Moment, Outcome, Token, is_truth};

pub(crate) type Key = i32;
pub(crate) type Lists = BTreeMap<Key, Vec<Token>>;

#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    /// One connection to an endpoint, from its begin to its end.
    pub(crate) session: u32,
    pub(crate) began: Moment,
    pub(crate) ended: Moment,
    /// One statement each, in front of all appends.
    pub(crate) reads: Vec<Read>,
    pub(crate) appends: Vec<(Key, Token)>,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) of: Source,
    /// All that it asked for, empty ones included.
    pub(crate) lists: Lists,
}

/// From where a read may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a block that may write: what was acknowledged to anybody before it began is there.
    Primary,
    /// By any node that is fresh enough: what was acknowledged to the session itself is there.
    Anywhere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It is there so many times, which is not what its writer was told.
    Untrue { token: Token, times: usize, told: Outcome },
    /// Of one transaction some appends are there, and some are not.
    Torn { tokens: Vec<Token> },
    /// In the final lists, and nobody wrote it.
    Unheard { token: Token },
    /// A read saw what is no prefix of the final list.
    NeverWas { session: u32, at: Moment, key: Key, place: usize, saw: Option<Token>, is: Option<Token> },
    /// A read saw a part of a transaction.
    Fractured { session: u32, at: Moment, tokens: Vec<Token> },
    /// A read does not have what had been acknowledged before it began: to anybody, or to its session.
    Stale { session: u32, at: Moment, of: Source, key: Key, token: Token },
}

/// Everything in `transactions` that `lists`, read after all of them have ended, contradict.
pub(crate) fn check(transactions: &[Transaction], lists: &Lists) -> Vec<Wrong> {
    let places = Places::of(lists);
    let mut wrong = truth(transactions, lists, &places);
    wrong.extend(transactions.iter().flat_map(|read| prefixes(read, lists)));
    // Where a read saw what never was, the rest of what it says has no meaning.
    if wrong.iter().any(|wrong| matches!(wrong, Wrong::NeverWas { .. })) {
        return wrong;
    }
    wrong.extend(fractures(transactions, &places));
    wrong.extend(staleness(transactions, &places));
    wrong
}

/// Where each value is in its list, counted from 0.
struct Places(HashMap<Token, Vec<(Key, usize)>>);

impl Places {
    fn of(lists: &Lists) -> Places {
        let mut places: HashMap<Token, Vec<(Key, usize)>> = HashMap::new();
        for (key, list) in lists {
            for (place, token) in list.iter().enumerate() {
                places.entry(*token).or_default().push((*key, place));
            }
        }
        Places(places)
    }

    fn times(&self, token: Token) -> usize {
        self.0.get(&token).map_or(0, Vec::len)
    }

    /// The first, of one that is there.
    fn place(&self, key: Key, token: Token) -> Option<usize> {
        self.0.get(&token)?.iter().find_map(|(k, place)| (*k == key).then_some(*place))
    }
}

fn truth(transactions: &[Transaction], lists: &Lists, places: &Places) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let mut written: HashSet<Token> = HashSet::new();
    for transaction in transactions {
        let tokens: Vec<Token> = transaction.appends.iter().map(|(_, token)| *token).collect();
        written.extend(&tokens);
        for (key, token) in &transaction.appends {
            let times = places.times(*token);
            let misplaced = times == 1 && places.place(*key, *token).is_none();
            if misplaced || !is_truth(&transaction.outcome, times) {
                wrong.push(Wrong::Untrue { token: *token, times, told: transaction.outcome.clone() });
            }
        }
        let there = tokens.iter().filter(|token| places.times(**token) > 0).count();
        if there > 0 && there < tokens.len() {
            wrong.push(Wrong::Torn { tokens });
        }
    }
    let unheard = lists.values().flatten().filter(|token| !written.contains(token));
    wrong.extend(unheard.map(|token| Wrong::Unheard { token: *token }));
    wrong
}

fn prefixes<'a>(read: &'a Transaction, lists: &'a Lists) -> impl Iterator<Item = Wrong> + 'a {
    let seen = read.reads.iter().flat_map(|read| &read.lists);
    seen.filter_map(|(key, saw)| {
        let is = lists.get(key).map(Vec::as_slice).unwrap_or_default();
        let place = (0..saw.len()).find(|place| is.get(*place) != Some(&saw[*place]))?;
        let (saw, is) = (saw.get(place).copied(), is.get(place).copied());
        Some(Wrong::NeverWas { session: read.session, at: read.began, key: *key, place, saw, is })
    })
}

/// Reads of several lists by one statement see all of a transaction or nothing.
fn fractures(transactions: &[Transaction], places: &Places) -> Vec<Wrong> {
    let several: Vec<Vec<(Key, usize, Token)>> = transactions
        .iter()
        .filter(|written| written.appends.len() > 1)
        .filter_map(|written| {
            let place = |(key, token): &(Key, Token)| Some((*key, places.place(*key, *token)?, *token));
            written.appends.iter().map(place).collect()
        })
        .collect();
    let mut wrong = Vec::new();
    for reader in transactions {
        for read in &reader.reads {
            let sees =
                |(key, place, _): &(Key, usize, Token)| read.lists.get(key).map(|saw| *place < saw.len());
            for written in &several {
                let seen: Option<Vec<bool>> = written.iter().map(sees).collect();
                if seen.is_some_and(|seen| seen.windows(2).any(|pair| pair[0] != pair[1])) {
                    let tokens = written.iter().map(|(_, _, token)| *token).collect();
                    wrong.push(Wrong::Fractured { session: reader.session, at: reader.began, tokens });
                }
            }
        }
    }
    wrong
}

/// An append that was acknowledged.
struct Known {
    session: u32,
    at: Moment,
    place: usize,
    token: Token,
}

fn staleness(transactions: &[Transaction], places: &Places) -> Vec<Wrong> {
    let mut known: HashMap<Key, Vec<Known>> = HashMap::new();
    for written in transactions.iter().filter(|written| written.outcome == Outcome::Acknowledged) {
        for (key, token) in &written.appends {
            let Some(place) = places.place(*key, *token) else { continue };
            let append = Known { session: written.session, at: written.ended, place, token: *token };
            known.entry(*key).or_default().push(append);
        }
    }
    let mut wrong = Vec::new();
    for reader in transactions {
        for read in &reader.reads {
            // What a block has read counts when it has ended well; before, it may be told that all was in vain.
            if read.of == Source::Primary && reader.outcome != Outcome::Acknowledged {
                continue;
            }
            for (key, saw) in &read.lists {
                let concerns =
                    |append: &&Known| read.of == Source::Primary || append.session == reader.session;
                let before = known.get(key).into_iter().flatten().filter(concerns);
                let missed = before.filter(|append| append.at < reader.began && append.place >= saw.len());
                if let Some(missed) = missed.min_by_key(|append| append.place) {
                    wrong.push(Wrong::Stale {
                        session: reader.session,
                        at: reader.began,
                        of: read.of,
                        key: *key,
                        token: missed.token,
                    });
                }
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Key, Lists, Outcome, Read, Source, Token, Transaction, Wrong, check};

    /// At `at` seconds, and for half of one.
    fn at(at: u64, session: u32) -> Transaction {
        let began = Duration::from_secs(at);
        let ended = began + Duration::from_millis(500);
        let outcome = Outcome::Acknowledged;
        Transaction { session, began, ended, reads: Vec::new(), appends: Vec::new(), outcome }
    }

    impl Transaction {
        fn appends(mut self, key: Key, token: Token) -> Transaction {
            self.appends.push((key, token));
            self
        }

        fn told(mut self, outcome: Outcome) -> Transaction {
            self.outcome = outcome;
            self
        }

        fn reads(mut self, of: Source, lists: &[(Key, &[Token])]) -> Transaction {
            self.reads.push(Read { of, lists: these(lists) });
            self
        }
    }

    fn these(lists: &[(Key, &[Token])]) -> Lists {
        lists.iter().map(|(key, list)| (*key, list.to_vec())).collect()
    }

    fn refused() -> Outcome {
        Outcome::Refused("40001".to_owned())
    }

    fn unknown() -> Outcome {
        Outcome::Unknown("08007".to_owned())
    }

    #[test]
    fn an_honest_history() {
        let history = [
            at(0, 1).appends(1, 10).appends(2, 20),
            at(1, 2).appends(1, 11).told(unknown()),
            at(2, 2).appends(1, 12).told(unknown()),
            at(3, 3).appends(1, 13).told(refused()),
            // Session 3 has written nothing: it may see little, but of all lists at one time.
            at(4, 3).reads(Source::Anywhere, &[(1, &[]), (2, &[])]),
            at(5, 1).reads(Source::Anywhere, &[(1, &[10]), (2, &[20])]),
            at(6, 3).reads(Source::Primary, &[(1, &[10, 12])]),
            // While it was read, 14 was on its way.
            at(7, 1).reads(Source::Primary, &[(1, &[10, 12])]),
            at(7, 2).appends(1, 14),
        ];
        assert_eq!(check(&history, &these(&[(1, &[10, 12, 14]), (2, &[20])])), []);
    }

    /// Each of what the planted bugs of a cluster do is seen, and nothing else is.
    #[test]
    fn lies() {
        let written = |outcome| at(0, 1).appends(1, 10).told(outcome);
        let untrue = |times, told| Wrong::Untrue { token: 10, times, told };
        let found = |history: &[Transaction], lists: &[(Key, &[Token])]| check(history, &these(lists));

        let lost = [written(Outcome::Acknowledged)];
        assert_eq!(
            found(&lost, &[(1, &[])]),
            [untrue(0, Outcome::Acknowledged)],
            "an acknowledged append is lost"
        );
        assert_eq!(found(&lost, &[(1, &[10, 10])]), [untrue(2, Outcome::Acknowledged)], "it happened twice");
        assert_eq!(found(&lost, &[(2, &[10])]), [untrue(1, Outcome::Acknowledged)], "in another list");
        let resurrected = [written(refused())];
        assert_eq!(found(&resurrected, &[(1, &[10])]), [untrue(1, refused())], "a refused one is there");
        let doubted = [written(unknown())];
        assert_eq!(found(&doubted, &[(1, &[10, 10])]), [untrue(2, unknown())]);
        assert_eq!(found(&[], &[(1, &[10])]), [Wrong::Unheard { token: 10 }]);

        let half = [at(0, 1).appends(1, 10).appends(2, 20).told(unknown())];
        assert_eq!(found(&half, &[(1, &[10])]), [Wrong::Torn { tokens: vec![10, 20] }]);
    }

    #[test]
    fn what_reads_may_not_see() {
        let two = || [at(0, 1).appends(1, 10), at(1, 2).appends(1, 11)];
        let read = |reader: Transaction| {
            let mut history = two().to_vec();
            history.push(reader);
            check(&history, &these(&[(1, &[10, 11])]))
        };
        let second = Duration::from_secs;

        let lost =
            Wrong::NeverWas { session: 3, at: second(2), key: 1, place: 1, saw: Some(12), is: Some(11) };
        assert_eq!(
            read(at(2, 3).reads(Source::Anywhere, &[(1, &[10, 12])])),
            [lost],
            "what was lost afterwards"
        );
        let beyond = Wrong::NeverWas { session: 3, at: second(2), key: 1, place: 2, saw: Some(12), is: None };
        assert_eq!(read(at(2, 3).reads(Source::Anywhere, &[(1, &[10, 11, 12])])), [beyond]);

        let stale = |session, of| Wrong::Stale { session, at: second(2), of, key: 1, token: 11 };
        assert_eq!(read(at(2, 1).reads(Source::Anywhere, &[(1, &[10])])), [], "not its own");
        let own = read(at(2, 2).reads(Source::Anywhere, &[(1, &[10])]));
        assert_eq!(own, [stale(2, Source::Anywhere)], "its own last write");
        let former = read(at(2, 1).reads(Source::Primary, &[(1, &[10])]));
        assert_eq!(former, [stale(1, Source::Primary)], "a primary that was replaced");
        let in_vain = at(2, 1).reads(Source::Primary, &[(1, &[10])]).told(refused());
        assert_eq!(read(in_vain), []);

        let pair = at(0, 1).appends(1, 10).appends(2, 20);
        let half = at(0, 2).reads(Source::Anywhere, &[(1, &[10]), (2, &[])]);
        assert_eq!(
            check(&[pair, half], &these(&[(1, &[10]), (2, &[20])])),
            [Wrong::Fractured { session: 2, at: second(0), tokens: vec![10, 20] }]
        );
    }
}
