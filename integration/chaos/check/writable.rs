//! Who takes writes, asked past the endpoint: of those that say they are no standby, at most one may acknowledge.

use std::collections::{BTreeMap, HashSet};

use super::Token;

/// Who may be written to, by what an instance says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) term: u64,
    /// `None`: nobody, for now.
    pub(crate) primary: Option<String>,
}

/// One write straight at a server that is not the primary by any order, and yet no standby.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) token: Token,
    pub(crate) node: String,
    pub(crate) before: Order,
    pub(crate) after: Order,
    /// Within two seconds; otherwise it may still come, and mean nothing.
    pub(crate) acknowledged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A server acknowledged while another was the primary.
    Second { node: String, order: Order },
    /// What a server acknowledged is gone.
    Lost { node: String, token: Token },
    /// Instances name different primaries in one term.
    TwoInOneTerm { term: u64, primaries: [String; 2] },
}

/// `found`: the tokens of probes that are there in the end; `orders`: whatever instances said.
pub(crate) fn check(probes: &[Probe], orders: &[Order], found: &HashSet<Token>) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for probe in probes.iter().filter(|probe| probe.acknowledged) {
        let other = probe.before.primary.as_ref().is_some_and(|primary| *primary != probe.node);
        if other && probe.before == probe.after {
            wrong.push(Wrong::Second { node: probe.node.clone(), order: probe.before.clone() });
        }
        if !found.contains(&probe.token) {
            wrong.push(Wrong::Lost { node: probe.node.clone(), token: probe.token });
        }
    }
    let mut terms: BTreeMap<u64, &String> = BTreeMap::new();
    for order in orders {
        let Some(primary) = &order.primary else { continue };
        let known = terms.entry(order.term).or_insert(primary);
        if *known != primary {
            let primaries = [(*known).clone(), primary.clone()];
            wrong.push(Wrong::TwoInOneTerm { term: order.term, primaries });
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Order, Probe, Wrong, check};

    fn order(term: u64, primary: Option<&str>) -> Order {
        Order { term, primary: primary.map(str::to_owned) }
    }

    fn probe(before: Order, after: Order, acknowledged: bool) -> Probe {
        Probe { token: 7, node: "pg1".to_owned(), before, after, acknowledged }
    }

    #[test]
    fn one_writes() {
        let found = HashSet::from([7]);
        let pg2 = || order(2, Some("pg2"));
        let check = |probe| check(&[probe], &[], &found);
        assert_eq!(check(probe(pg2(), pg2(), false)), []);
        assert_eq!(
            check(probe(order(2, None), order(2, Some("pg1")), true)),
            [],
            "it was about to be primary"
        );
        assert_eq!(check(probe(pg2(), order(3, Some("pg1")), true)), [], "an election in between");
        let second = Wrong::Second { node: "pg1".to_owned(), order: pg2() };
        assert_eq!(check(probe(pg2(), pg2(), true)), [second]);
    }

    #[test]
    fn what_is_acknowledged_stays() {
        let lost = probe(order(2, None), order(2, None), true);
        let lost = check(&[lost], &[], &HashSet::new());
        assert_eq!(lost, [Wrong::Lost { node: "pg1".to_owned(), token: 7 }]);
    }

    #[test]
    fn one_primary_in_a_term() {
        let honest = [order(1, Some("pg1")), order(2, None), order(2, Some("pg2")), order(1, Some("pg1"))];
        assert_eq!(check(&[], &honest, &HashSet::new()), []);
        let two = [order(1, Some("pg1")), order(1, Some("pg2"))];
        let primaries = ["pg1".to_owned(), "pg2".to_owned()];
        assert_eq!(check(&[], &two, &HashSet::new()), [Wrong::TwoInOneTerm { term: 1, primaries }]);
    }
}
