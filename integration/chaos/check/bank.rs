//! Accounts between which money is moved; each transfer leaves a row with its number.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Moment, Outcome, Token, is_truth};

pub(crate) type Account = i32;

#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) token: Token,
    pub(crate) from: Account,
    pub(crate) to: Account,
    pub(crate) amount: i64,
    pub(crate) outcome: Outcome,
}

/// All balances, by one statement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub(crate) at: Moment,
    pub(crate) total: i64,
}

/// What a server holds in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) balances: BTreeMap<Account, i64>,
    /// The rows that transfers left.
    pub(crate) transfers: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It is there so many times, which is not what its client was told.
    Untrue { token: Token, times: usize, told: Outcome },
    /// A row, and nobody moved anything.
    Unheard { token: Token },
    /// A snapshot in which money was made or lost.
    Sum { at: Moment, total: i64, expected: i64 },
    /// The rows do not explain it.
    Balance { account: Account, is: i64, expected: i64 },
}

/// Everything that the `books` at the end contradict; each account began with `initial`.
pub(crate) fn check(transfers: &[Transfer], sums: &[Sum], initial: i64, books: &Books) -> Vec<Wrong> {
    let mut times: HashMap<Token, usize> = HashMap::new();
    for token in &books.transfers {
        *times.entry(*token).or_default() += 1;
    }
    let times = |token: Token| times.get(&token).copied().unwrap_or(0);
    let untrue = transfers.iter().filter(|transfer| !is_truth(&transfer.outcome, times(transfer.token)));
    let mut wrong: Vec<Wrong> = untrue
        .map(|transfer| {
            let (token, told) = (transfer.token, transfer.outcome.clone());
            Wrong::Untrue { token, times: times(token), told }
        })
        .collect();

    let made: HashSet<Token> = transfers.iter().map(|transfer| transfer.token).collect();
    let unheard = books.transfers.iter().filter(|token| !made.contains(token));
    wrong.extend(unheard.map(|token| Wrong::Unheard { token: *token }));

    let expected = initial * i64::try_from(books.balances.len()).unwrap_or(i64::MAX);
    let off = sums.iter().filter(|sum| sum.total != expected);
    wrong.extend(off.map(|sum| Wrong::Sum { at: sum.at, total: sum.total, expected }));

    wrong.extend(books.balances.iter().filter_map(|(account, is)| {
        let there = transfers.iter().filter(|transfer| times(transfer.token) > 0);
        let moved: i64 = there.map(|transfer| transfer.effect_on(*account)).sum();
        let expected = initial + moved;
        (*is != expected).then_some(Wrong::Balance { account: *account, is: *is, expected })
    }));
    wrong
}

impl Transfer {
    fn effect_on(&self, account: Account) -> i64 {
        let gained = if self.to == account { self.amount } else { 0 };
        let spent = if self.from == account { self.amount } else { 0 };
        gained - spent
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Books, Outcome, Sum, Token, Transfer, Wrong, check};

    fn transfer(token: Token, outcome: Outcome) -> Transfer {
        Transfer { token, from: 1, to: 2, amount: 5, outcome }
    }

    fn books(first: i64, second: i64, transfers: &[Token]) -> Books {
        Books { balances: [(1, first), (2, second)].into(), transfers: transfers.to_vec() }
    }

    fn sum(total: i64) -> Sum {
        Sum { at: Duration::ZERO, total }
    }

    #[test]
    fn honest_books() {
        let transfers = [
            transfer(7, Outcome::Acknowledged),
            transfer(8, Outcome::Refused("40001".to_owned())),
            transfer(9, Outcome::Unknown("08007".to_owned())),
        ];
        for books in [books(95, 105, &[7]), books(90, 110, &[7, 9])] {
            assert_eq!(check(&transfers, &[sum(200)], 100, &books), []);
        }
    }

    #[test]
    fn false_books() {
        let refused = || Outcome::Refused("40001".to_owned());
        let acknowledged = [transfer(7, Outcome::Acknowledged)];
        let untrue = |times, told| Wrong::Untrue { token: 7, times, told };

        let lost = check(&acknowledged, &[], 100, &books(100, 100, &[]));
        assert_eq!(lost, [untrue(0, Outcome::Acknowledged)], "an acknowledged transfer is lost");
        let resurrected = check(&[transfer(7, refused())], &[], 100, &books(95, 105, &[7]));
        assert_eq!(resurrected, [untrue(1, refused())], "a refused one is there");
        let broken = check(&acknowledged, &[sum(200), sum(195)], 100, &books(95, 105, &[7]));
        assert_eq!(
            broken,
            [Wrong::Sum { at: Duration::ZERO, total: 195, expected: 200 }],
            "half of a transfer"
        );
        let half = check(&acknowledged, &[], 100, &books(95, 100, &[7]));
        assert_eq!(half, [Wrong::Balance { account: 2, is: 100, expected: 105 }]);
        let unheard = check(&[], &[], 100, &books(100, 100, &[7]));
        assert_eq!(unheard, [Wrong::Unheard { token: 7 }]);
    }
}
