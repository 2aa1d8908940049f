//! The protocol of several relays, small enough to look at every order of its steps: a term is taken, relays promise it
//! and thereby stop acknowledging to the primary before, enough of them hold the log that goes on, one node is promoted.
//!
//! Everything may stand still or come late: coordinators that lost their lease, primaries that were deposed and do not
//! know it, acknowledgements under way. Nothing depends on a clock. Not here: the disk (`sim::power`), what clients hear,
//! time.

use std::collections::BTreeSet;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

use crate::topology::{Position, Quorum};

/// Elections, the first primary's term included.
const TERMS: u8 = 3;

const THREADS: usize = 2;

const ONE_PRIMARY: &str = "one primary per term";
const KEPT: &str = "what was acknowledged is in every later primary";
const NOT_AHEAD: &str = "no standby is ahead of a fork";

/// By the term it was written in; a primary's entries of one term follow each other.
type Entry = u8;
type Log = Vec<Entry>;

/// Relays and nodes are kept sorted: which is which does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// What etcd holds: the last term that anybody has taken.
    term: u8,
    /// Nobody knows whether those of earlier terms have ended.
    coordinators: Vec<Coordinator>,
    relays: Vec<Relay>,
    nodes: Vec<Node>,
    /// By term: the longest log whose last commit a client has heard of.
    committed: Vec<Log>,
}

/// Leads the election of its term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Coordinator {
    term: u8,
    recovered: Option<Log>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Relay {
    promised: u8,
    /// Of the last election whose outcome it holds.
    term: u8,
    log: Log,
    /// By term: up to where it has acknowledged to that term's primary. It may be heard at any time later.
    acknowledged: Vec<usize>,
    /// By coordinator.
    answers: Vec<Answer>,
}

/// What a coordinator has heard of a relay.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Answer {
    None,
    /// As its log was then, and the term of that.
    Promised(u8, Log),
    /// It holds what the coordinator has recovered.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Node {
    /// `None`: a standby.
    primary: Option<u8>,
    log: Log,
    /// Where its timeline forked.
    fork: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    TakeTerm(u8),
    /// Relay, coordinator.
    Promise(usize, usize),
    Recover(usize),
    Complete(usize, usize),
    /// Node, coordinator.
    Promote(usize, usize),
    Write(usize),
    /// Relay, node.
    Receive(usize, usize),
    Follow(usize, usize),
    Commit(usize),
    /// Standby, relay.
    Ship(usize, usize),
    Rejoin(usize),
}

/// What the protocol must not do; each is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A term is taken without asking whether another has.
    TermWithoutCompare,
    /// One relay too few promises.
    TooFewPromises,
    /// A relay that has promised goes on acknowledging to the primary before.
    ForgottenPromise,
    /// The longest log goes on, of whatever term.
    LongestLog,
    /// A node is promoted before enough relays hold what it goes on with.
    OldAcksCount,
    /// The term is missing in a relay's name.
    NameWithoutTerm,
    /// Standbys get what one relay has.
    ShippedTooEarly,
}

struct Protocol {
    relays: usize,
    quorum: Quorum,
    nodes: usize,
    /// Commits in all terms.
    writes: usize,
    planted: Planted,
}

impl Protocol {
    /// Under the relay's own term.
    fn quorum_has(&self, world: &World, relay: &Relay, len: usize) -> bool {
        let has = |other: &&Relay| other.term == relay.term && other.log.starts_with(&relay.log[..len]);
        world.relays.iter().filter(has).count() >= self.quorum.acks()
    }

    /// What the coordinator goes on with, once it knows enough.
    fn recovery(&self, world: &World, c: usize) -> Option<Log> {
        let mut promised = Vec::new();
        for relay in &world.relays {
            if let Answer::Promised(term, log) = &relay.answers[c] {
                let term = if self.planted == Planted::LongestLog { 0 } else { *term };
                promised.push((log, Position { term, end: log.len() }));
            }
        }
        if self.planted == Planted::TooFewPromises {
            promised.extend(promised.first().cloned());
        }
        self.quorum.recovery(promised).cloned()
    }

    fn may_promote(&self, world: &World, c: usize, node: &Node) -> bool {
        let Some(log) = &world.coordinators[c].recovered else { return false };
        let complete = world.relays.iter().filter(|relay| relay.answers[c] == Answer::Complete).count();
        let enough = complete >= self.quorum.acks() || self.planted == Planted::OldAcksCount;
        // A coordinator asks one node only.
        let term = world.coordinators[c].term;
        let asked = world.coordinators.iter().position(|other| other.term == term) == Some(c)
            && world.nodes.iter().any(|node| node.primary == Some(term));
        enough && !asked && node.primary.is_none() && log.starts_with(&node.log)
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let node = |primary| Node { primary, log: vec![], fork: 0 };
        let mut nodes: Vec<Node> = (0..self.nodes).map(|at| node((at == 0).then_some(1))).collect();
        nodes.sort();
        let terms = usize::from(TERMS) + 1;
        let relay =
            Relay { promised: 1, term: 1, log: vec![], acknowledged: vec![0; terms], answers: vec![] };
        let relays = vec![relay; self.relays];
        vec![World { term: 1, coordinators: vec![], relays, nodes, committed: vec![vec![]; terms] }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.term < TERMS {
            steps.push(Step::TakeTerm(world.term + 1));
        }
        if self.planted == Planted::TermWithoutCompare && (2..=TERMS).contains(&world.term) {
            steps.push(Step::TakeTerm(world.term));
        }
        for (c, coordinator) in world.coordinators.iter().enumerate() {
            for (r, relay) in world.relays.iter().enumerate() {
                if relay.promised < coordinator.term && relay.answers[c] == Answer::None {
                    steps.push(Step::Promise(r, c));
                }
                let kept = relay.promised == coordinator.term || self.planted == Planted::ForgottenPromise;
                if kept && coordinator.recovered.is_some() {
                    steps.push(Step::Complete(r, c));
                }
            }
            if coordinator.recovered.is_none() && self.recovery(world, c).is_some() {
                steps.push(Step::Recover(c));
            }
            let fit = world.nodes.iter().enumerate().filter(|(_, node)| self.may_promote(world, c, node));
            steps.extend(fit.map(|(n, _)| Step::Promote(n, c)));
        }
        for (n, node) in world.nodes.iter().enumerate() {
            let Some(term) = node.primary else {
                steps.extend((0..self.relays).map(|r| Step::Ship(n, r)));
                continue;
            };
            let written: usize = world.nodes.iter().map(|node| node.log.len() - node.fork).sum();
            if written < self.writes {
                steps.push(Step::Write(n));
            }
            if world.nodes.iter().any(|other| other.primary > node.primary) {
                steps.push(Step::Rejoin(n));
            }
            steps.push(Step::Commit(n));
            for (r, relay) in world.relays.iter().enumerate() {
                if relay.promised == term && relay.term == term {
                    steps.push(Step::Receive(r, n));
                }
                if relay.promised <= term && relay.term < term {
                    steps.push(Step::Follow(r, n));
                }
            }
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::TakeTerm(term) => {
                world.term = term;
                world.coordinators.push(Coordinator { term, recovered: None });
                world.relays.iter_mut().for_each(|relay| relay.answers.push(Answer::None));
            }
            Step::Promise(r, c) => {
                let relay = &mut world.relays[r];
                relay.answers[c] = Answer::Promised(relay.term, relay.log.clone());
                if self.planted != Planted::ForgottenPromise {
                    relay.promised = before.coordinators[c].term;
                }
            }
            Step::Recover(c) => {
                world.coordinators[c].recovered = self.recovery(before, c);
                // What they said is not looked at again.
                world.relays.iter_mut().for_each(|relay| relay.answers[c] = Answer::None);
            }
            Step::Complete(r, c) => {
                let Coordinator { term, recovered } = &before.coordinators[c];
                let relay = &mut world.relays[r];
                if relay.term < *term {
                    (relay.log, relay.term, relay.promised) = (recovered.clone()?, *term, *term);
                }
                relay.answers[c] = Answer::Complete;
            }
            Step::Promote(n, c) => {
                let Coordinator { term, recovered } = before.coordinators[c].clone();
                let log = recovered?;
                world.nodes[n] = Node { primary: Some(term), fork: log.len(), log };
            }
            Step::Write(n) => {
                let term = world.nodes[n].primary?;
                world.nodes[n].log.push(term);
            }
            Step::Receive(r, n) => {
                let relay = &mut world.relays[r];
                if !world.nodes[n].log.starts_with(&relay.log) {
                    return None;
                }
                relay.log.extend(world.nodes[n].log.get(relay.log.len()));
                relay.acknowledged[usize::from(relay.term)] = relay.log.len();
            }
            Step::Follow(r, n) => {
                let node = &world.nodes[n];
                let relay = &mut world.relays[r];
                (relay.promised, relay.term) = (node.primary?, node.primary?);
                relay.log = node.log[..node.fork].to_vec();
            }
            Step::Commit(n) => {
                let node = &before.nodes[n];
                let term = usize::from(node.primary?);
                let heard = |relay: &Relay| match self.planted {
                    Planted::NameWithoutTerm => relay.acknowledged.iter().copied().max().unwrap_or(0),
                    _ => relay.acknowledged[term],
                };
                let len = self.quorum.durable(before.relays.iter().map(heard))?.min(node.log.len());
                if len <= node.fork.max(before.committed[term].len()) {
                    return None;
                }
                world.committed[term] = node.log[..len].to_vec();
            }
            Step::Ship(n, r) => {
                let relay = &before.relays[r];
                let node = &mut world.nodes[n];
                let len = node.log.len() + 1;
                if len > relay.log.len() || !relay.log.starts_with(&node.log) {
                    return None;
                }
                if !self.quorum_has(before, relay, len) && self.planted != Planted::ShippedTooEarly {
                    return None;
                }
                node.log = relay.log[..len].to_vec();
            }
            Step::Rejoin(n) => {
                let newest = before.nodes.iter().max_by_key(|node| node.primary)?;
                let same = newest.log.iter().zip(&before.nodes[n].log).take_while(|(a, b)| a == b).count();
                let log = newest.log[..same].to_vec();
                world.nodes[n] = Node { primary: None, log, fork: 0 };
            }
        }
        world.relays.sort_unstable();
        world.nodes.sort_unstable();
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_PRIMARY, |_, world: &World| {
                let terms: Vec<u8> = world.nodes.iter().filter_map(|node| node.primary).collect();
                terms.iter().collect::<BTreeSet<_>>().len() == terms.len()
            }),
            Property::always(KEPT, |_, world: &World| {
                let later = |term: u8| world.nodes.iter().filter(move |node| node.primary > Some(term));
                let kept = |(term, log): (u8, &Log)| later(term).all(|node| node.log.starts_with(log));
                (0..).zip(&world.committed).all(kept)
            }),
            Property::always(NOT_AHEAD, |_, world: &World| {
                let newest =
                    world.nodes.iter().filter(|node| node.primary.is_some()).max_by_key(|n| n.primary);
                let standbys = || world.nodes.iter().filter(|node| node.primary.is_none());
                newest.is_none_or(|newest| standbys().all(|node| newest.log.starts_with(&node.log)))
            }),
            Property::sometimes("the third primary commits", |_, world: &World| {
                !world.committed[usize::from(TERMS)].is_empty()
            }),
            Property::sometimes(
                "an election goes on with what nobody had acknowledged",
                |_, world: &World| {
                    let unheard = |node: &Node| {
                        let base = &node.log[..node.fork];
                        !base.is_empty() && !world.committed.iter().any(|log| log.starts_with(base))
                    };
                    world.nodes.iter().any(|node| node.primary > Some(1) && unheard(node))
                },
            ),
            Property::sometimes("an old primary has what is lost", |_, world: &World| {
                let old = || world.nodes.iter().filter(|node| node.primary == Some(1));
                let new = || world.nodes.iter().filter(|node| node.primary > Some(1));
                old().any(|old| new().any(|new| !new.log.starts_with(&old.log)))
            }),
        ]
    }
}

/// Looks at every order of steps. What is wrong: of the properties that must hold always those that do not; of those that
/// show what the protocol can come to, which keep the others from being empty words, the ones it never comes to.
fn check(relays: usize, acks: usize, (nodes, writes): (usize, usize), planted: Planted) -> Vec<&'static str> {
    let quorum = Quorum::new(relays, acks).expect("a quorum");
    let stop = match planted {
        Planted::Nothing => HasDiscoveries::All,
        _ => HasDiscoveries::AnyFailures,
    };
    let protocol = Protocol { relays, quorum, nodes, writes, planted };
    let checker = protocol.checker().threads(THREADS).finish_when(stop).spawn_bfs().join();
    let found = checker.discoveries();
    let wrong = |property: &Property<Protocol>| {
        (property.expectation == Expectation::Always) == found.contains_key(property.name)
    };
    checker.model().properties().into_iter().filter(wrong).map(|property| property.name).collect()
}

const NOTHING_WRONG: [&str; 0] = [];

#[test]
fn nothing_is_lost_in_any_order() {
    assert_eq!(check(1, 1, (3, 2), Planted::Nothing), NOTHING_WRONG);
    for acks in [1, 2] {
        assert_eq!(check(2, acks, (2, 2), Planted::Nothing), NOTHING_WRONG, "{acks} of 2");
    }
    for acks in [1, 2, 3] {
        assert_eq!(check(3, acks, (2, 1), Planted::Nothing), NOTHING_WRONG, "{acks} of 3");
    }
}

#[test]
#[ignore = "seven million states: make sim"]
fn nothing_is_lost_in_any_order_of_two_commits() {
    assert_eq!(check(3, 2, (2, 2), Planted::Nothing), NOTHING_WRONG);
}

#[test]
fn every_planted_bug_is_found() {
    let (primaries, lost, ahead) = (ONE_PRIMARY, KEPT, NOT_AHEAD);
    let planted = [
        (Planted::TermWithoutCompare, primaries),
        (Planted::TooFewPromises, lost),
        (Planted::ForgottenPromise, lost),
        (Planted::LongestLog, ahead),
        (Planted::OldAcksCount, ahead),
        (Planted::NameWithoutTerm, lost),
        (Planted::ShippedTooEarly, ahead),
    ];
    for (planted, broken) in planted {
        let wrong = check(3, 2, (3, 2), planted);
        assert!(wrong.contains(&broken), "{planted:?} is found by: {wrong:?}");
    }
}
