//! The protocol of several relays, small enough to look at every order of its steps: a term is taken, relays promise it
//! and thereby stop acknowledging to the primary before, enough of them hold the log that goes on, one node is promoted.
//!
//! Everything may stand still or come late: coordinators that lost their lease, primaries that were deposed and do not
//! know it, acknowledgements under way. Nothing depends on a clock. Not here: the disk (`sim::power`), what clients hear,
//! time; so a word that vouches for a term is as new as the relay that gives it.
//!
//! Meanwhile other relays may become those that acknowledge (rules S7 and S8), one set after the other.

use std::collections::BTreeSet;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

use crate::topology::{Position, Quorum};

/// Elections, the first primary's term included.
const TERMS: u8 = 3;

const THREADS: usize = 2;

const ONE_PRIMARY: &str = "one primary per term";
const KEPT: &str = "what was acknowledged is in every later primary";
const NOT_AHEAD: &str = "no standby is ahead of a fork";
const NOT_VOUCHED: &str = "nobody is vouched for under a primary that was replaced";

/// By the term it was written in; a primary's entries of one term follow each other.
type Entry = u8;
type Log = Vec<Entry>;

/// Relays and nodes are kept sorted: which is which does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// What etcd holds: the last term that anybody has taken.
    term: u8,
    /// What it holds, too: whose relays may have acknowledged; the last are those that do from now on.
    sets: Vec<usize>,
    /// By term: those it began with.
    sets_of: Vec<Vec<usize>>,
    /// By term: the one whose election its primary is of.
    reigns: Vec<u8>,
    /// Nobody knows whether those of earlier terms have ended.
    coordinators: Vec<Coordinator>,
    relays: Vec<Relay>,
    nodes: Vec<Node>,
    /// By term: the longest log whose last commit a client has heard of.
    committed: Vec<Log>,
}

/// Leads the election of its term, or has other relays acknowledge in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Coordinator {
    term: u8,
    what: What,
    /// The term's floor.
    recovered: Option<Log>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Election,
    Change,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Relay {
    /// In which sets it is.
    sets: &'static [usize],
    /// Its instance was stopped, since it is in no set to come.
    gone: bool,
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
    TakeTerm(u8, What),
    /// Node, coordinator: its setting names the relays of the change.
    Prepare(usize, usize),
    /// Only the last set counts from now on.
    Forget(usize),
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
    /// Those who acknowledged before are forgotten, whatever they have promised.
    ForgottenUnpromised,
    /// They are forgotten before those who follow them have a commit.
    ForgottenTooEarly,
    /// One is vouched for by any of the sets that its term began with.
    VouchedByAny,
}

struct Protocol {
    /// In which sets each is.
    relays: Vec<&'static [usize]>,
    /// Of each set: the first ones acknowledge at the beginning.
    quorums: Vec<Quorum>,
    terms: u8,
    nodes: usize,
    /// Commits in all terms.
    writes: usize,
    planted: Planted,
}

impl Protocol {
    /// Under the relay's own term.
    fn quorum_has(&self, world: &World, relay: &Relay, len: usize) -> bool {
        let set = world.acknowledging(relay.term);
        let has = |other: &&Relay| other.term == relay.term && other.log.starts_with(&relay.log[..len]);
        world.of(set).filter(has).count() >= self.quorums[set].acks()
    }

    /// What the coordinator goes on with, once it knows enough.
    fn recovery(&self, world: &World, c: usize) -> Option<Log> {
        let of = |relay: &Relay| match &relay.answers[c] {
            Answer::Promised(term, log) => {
                let term = if self.planted == Planted::LongestLog { 0 } else { *term };
                Some((log.clone(), Position { term, end: log.len() }))
            }
            Answer::None | Answer::Complete => None,
        };
        let enough = |set: &usize| {
            let mut promised: Vec<_> = world.of(*set).filter_map(of).map(|(_, end)| ((), end)).collect();
            if self.planted == Planted::TooFewPromises {
                promised.extend(promised.first().copied());
            }
            self.quorums[*set].recovery(promised).is_some()
        };
        let sets = &world.sets_of[usize::from(world.coordinators[c].term)];
        let logs = world.relays.iter().filter_map(of).filter(|_| sets.iter().all(enough));
        logs.max_by_key(|(_, position)| *position).map(|(log, _)| log)
    }

    /// Nobody is vouched for by what was before the term any more, and what was acknowledged is in it.
    fn may_forget(&self, world: &World, c: usize) -> bool {
        let Coordinator { term, what, .. } = &world.coordinators[c];
        let has_committed = |node: &Node| {
            node.primary == Some(*term) && world.committed[usize::from(*term)].len() > node.fork
        };
        let has_promised = |relay: &&Relay| relay.gone || relay.promised >= *term;
        let is_promised =
            |set: &usize| world.of(*set).filter(has_promised).count() >= self.quorums[*set].recruits();
        let early = self.planted == Planted::ForgottenTooEarly;
        // An election has asked them all before.
        let promised = *what == What::Election || self.planted == Planted::ForgottenUnpromised;
        world.term == *term
            && world.sets.len() > 1
            && (early || world.nodes.iter().any(has_committed))
            && (promised || world.sets.iter().all(is_promised))
    }

    /// Whether the proxy beside a relay may use the primary of the term that the relay has promised.
    fn is_vouched(&self, world: &World, relay: &Relay) -> bool {
        let by = |set: &usize| {
            let word = |other: &&Relay| !other.gone && other.promised <= relay.promised;
            let needed = world.of(*set).count() - self.quorums[*set].recruits() + 1;
            world.of(*set).filter(word).count() >= needed
        };
        let sets = &world.sets_of[usize::from(relay.promised)];
        let vouched = if self.planted == Planted::VouchedByAny {
            sets.iter().any(by)
        } else {
            sets.last().is_some_and(by)
        };
        vouched && !relay.gone
    }

    fn may_promote(&self, world: &World, c: usize, node: &Node) -> bool {
        let Some(log) = &world.coordinators[c].recovered else { return false };
        let set = world.acknowledging(world.coordinators[c].term);
        let complete = world.of(set).filter(|relay| relay.answers[c] == Answer::Complete).count();
        let enough = complete >= self.quorums[set].acks() || self.planted == Planted::OldAcksCount;
        // A coordinator asks one node only.
        let term = world.coordinators[c].term;
        let asked = world.coordinators.iter().position(|other| other.term == term) == Some(c)
            && world.nodes.iter().any(|node| world.reign(node) == Some(term));
        enough && !asked && node.primary.is_none() && log.starts_with(&node.log)
    }
}

impl World {
    fn of(&self, set: usize) -> impl Iterator<Item = &Relay> {
        self.relays.iter().filter(move |relay| relay.sets.contains(&set))
    }

    /// The term whose election made it primary.
    fn reign(&self, node: &Node) -> Option<u8> {
        node.primary.map(|term| self.reigns[usize::from(term)])
    }

    fn acknowledging(&self, term: u8) -> usize {
        *self.sets_of[usize::from(term)].last().expect("of a term that was taken")
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let node = |primary| Node { primary, log: vec![], fork: 0 };
        let mut nodes: Vec<Node> = (0..self.nodes).map(|at| node((at == 0).then_some(1))).collect();
        nodes.sort();
        let terms = usize::from(self.terms) + 1;
        let relay = |sets: &&'static [usize]| Relay {
            sets,
            gone: false,
            promised: 1,
            term: 1,
            log: vec![],
            acknowledged: vec![0; terms],
            answers: vec![],
        };
        let mut relays: Vec<Relay> = self.relays.iter().map(relay).collect();
        relays.sort_unstable();
        vec![World {
            term: 1,
            sets: vec![0],
            sets_of: vec![vec![], vec![0]],
            reigns: vec![0, 1],
            coordinators: vec![],
            relays,
            nodes,
            committed: vec![vec![]; terms],
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.term < self.terms {
            steps.push(Step::TakeTerm(world.term + 1, What::Election));
            let reigns = world.nodes.iter().any(|node| node.primary == Some(world.term));
            if reigns && world.acknowledging(world.term) + 1 < self.quorums.len() {
                steps.push(Step::TakeTerm(world.term + 1, What::Change));
            }
        }
        if self.planted == Planted::TermWithoutCompare && (2..=self.terms).contains(&world.term) {
            steps.push(Step::TakeTerm(world.term, What::Election));
        }
        for (c, coordinator) in world.coordinators.iter().enumerate() {
            if self.may_forget(world, c) {
                steps.push(Step::Forget(c));
            }
            if coordinator.what == What::Change {
                let before = Some(coordinator.term - 1);
                let reigns = world.nodes.iter().position(|node| node.primary == before);
                steps.extend(reigns.map(|n| Step::Prepare(n, c)));
                let prepared = world.nodes.iter().any(|node| node.primary == Some(coordinator.term));
                if prepared && coordinator.recovered.is_none() && world.term == coordinator.term {
                    steps.push(Step::Recover(c));
                }
                let promises = |relay: &Relay| !relay.gone && relay.promised < coordinator.term;
                let able = world.relays.iter().enumerate().filter(|(_, relay)| promises(relay));
                steps.extend(able.map(|(r, _)| Step::Promise(r, c)));
                continue;
            }
            for (r, relay) in world.relays.iter().enumerate().filter(|(_, relay)| !relay.gone) {
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
                let serve = world.relays.iter().enumerate().filter(|(_, relay)| !relay.gone);
                steps.extend(serve.map(|(r, _)| Step::Ship(n, r)));
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
            let floorless =
                |c: &Coordinator| c.what == What::Change && c.term == term && c.recovered.is_none();
            let is_followed = !world.coordinators.iter().any(floorless);
            for (r, relay) in world.relays.iter().enumerate().filter(|(_, relay)| !relay.gone) {
                if relay.promised == term && relay.term == term {
                    steps.push(Step::Receive(r, n));
                }
                if relay.promised <= term && relay.term < term && is_followed {
                    steps.push(Step::Follow(r, n));
                }
            }
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::TakeTerm(term, what) => {
                world.coordinators.push(Coordinator { term, what, recovered: None });
                world.relays.iter_mut().for_each(|relay| relay.answers.push(Answer::None));
                if what == What::Change {
                    let next = before.acknowledging(before.term) + 1;
                    world.sets.push(next);
                    let goes = |relay: &&mut Relay| !relay.sets.iter().any(|set| *set >= next);
                    world.relays.iter_mut().filter(goes).for_each(|relay| relay.gone = true);
                }
                if term > before.term {
                    world.term = term;
                    world.sets_of.push(world.sets.clone());
                    let of = if what == What::Change { before.reigns[usize::from(term) - 1] } else { term };
                    world.reigns.push(of);
                }
            }
            Step::Prepare(n, c) => {
                let node = &mut world.nodes[n];
                (node.primary, node.fork) = (Some(before.coordinators[c].term), node.log.len());
            }
            Step::Forget(_) => {
                world.sets.drain(..before.sets.len() - 1);
            }
            Step::Recover(c) if before.coordinators[c].what == What::Change => {
                let term = Some(before.coordinators[c].term);
                let node = before.nodes.iter().find(|node| node.primary == term)?;
                world.coordinators[c].recovered = Some(node.log[..node.fork].to_vec());
            }
            Step::Promise(r, c) => {
                let relay = &mut world.relays[r];
                if before.coordinators[c].what == What::Election {
                    relay.answers[c] = Answer::Promised(relay.term, relay.log.clone());
                }
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
                let Coordinator { term, recovered, .. } = &before.coordinators[c];
                let relay = &mut world.relays[r];
                if relay.term < *term {
                    (relay.log, relay.term, relay.promised) = (recovered.clone()?, *term, *term);
                }
                relay.answers[c] = Answer::Complete;
            }
            Step::Promote(n, c) => {
                let Coordinator { term, recovered, .. } = before.coordinators[c].clone();
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
                let set = before.acknowledging(node.primary?);
                let len = self.quorums[set].durable(before.of(set).map(heard))?.min(node.log.len());
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
            Property::always(NOT_VOUCHED, |protocol: &Protocol, world: &World| {
                let last = world.nodes.iter().filter_map(|node| world.reign(node)).max();
                let old = |relay: &&Relay| last > Some(world.reigns[usize::from(relay.promised)]);
                !world.relays.iter().filter(old).any(|relay| protocol.is_vouched(world, relay))
            }),
            Property::sometimes("the last primary commits", |protocol: &Protocol, world: &World| {
                !world.committed[usize::from(protocol.terms)].is_empty()
            }),
            Property::sometimes("the last relays elect alone", |protocol: &Protocol, world: &World| {
                let alone = [protocol.quorums.len() - 1];
                let elected = |c: &Coordinator| {
                    let is_alone = world.sets_of[usize::from(c.term)] == alone;
                    is_alone && world.nodes.iter().any(|node| node.primary == Some(c.term))
                };
                world.coordinators.iter().filter(|c| c.what == What::Election).any(elected)
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
fn wrong(protocol: Protocol) -> Vec<&'static str> {
    let stop = match protocol.planted {
        Planted::Nothing => HasDiscoveries::All,
        _ => HasDiscoveries::AnyFailures,
    };
    let checker = protocol.checker().threads(THREADS).finish_when(stop).spawn_bfs().join();
    let found = checker.discoveries();
    let wrong = |property: &Property<Protocol>| {
        (property.expectation == Expectation::Always) == found.contains_key(property.name)
    };
    checker.model().properties().into_iter().filter(wrong).map(|property| property.name).collect()
}

/// `acks` of `relays`, always the same.
fn check(relays: usize, acks: usize, (nodes, writes): (usize, usize), planted: Planted) -> Vec<&'static str> {
    let quorums = vec![Quorum::new(relays, acks).expect("a quorum")];
    wrong(Protocol { relays: vec![&[0]; relays], quorums, terms: TERMS, nodes, writes, planted })
}

/// `relays`: in which sets each is; `acks`: of each set.
fn change(relays: &[&'static [usize]], acks: &[usize], terms: u8, planted: Planted) -> Vec<&'static str> {
    let of = |set: usize| relays.iter().filter(|sets| sets.contains(&set)).count();
    let quorum = |(set, acks): (usize, &usize)| Quorum::new(of(set), *acks).expect("a quorum");
    let quorums = acks.iter().enumerate().map(quorum).collect();
    wrong(Protocol { relays: relays.to_vec(), quorums, terms, nodes: 2, writes: 1, planted })
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
fn nothing_is_lost_while_others_come_to_acknowledge() {
    let check = |relays: &[&'static [usize]], acks: &[usize]| {
        assert_eq!(change(relays, acks, TERMS, Planted::Nothing), NOTHING_WRONG, "{acks:?} of {relays:?}");
    };
    // One more, one less, another in its place.
    check(&[&[0, 1], &[1]], &[1, 1]);
    check(&[&[0, 1], &[1]], &[1, 2]);
    check(&[&[0, 1], &[0]], &[1, 1]);
    check(&[&[0, 1], &[0]], &[2, 1]);
    check(&[&[0], &[1]], &[1, 1]);
    check(&[&[0, 1], &[0, 1], &[1]], &[2, 2]);
}

#[test]
#[ignore = "millions of states: make sim"]
fn nothing_is_lost_while_others_of_three_come_to_acknowledge() {
    for (relays, acks, terms) in [
        (&[&[0, 1][..], &[0, 1], &[1]][..], &[1, 1][..], TERMS),
        (&[&[0, 1], &[0, 1], &[0]], &[2, 2], TERMS),
        // The list is taken back.
        (&[&[0, 1, 2], &[1]], &[1, 2, 1], TERMS + 1),
    ] {
        assert_eq!(change(relays, acks, terms, Planted::Nothing), NOTHING_WRONG, "{acks:?} of {relays:?}");
    }
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
    let planted = [
        (Planted::ForgottenUnpromised, NOT_VOUCHED),
        (Planted::ForgottenTooEarly, KEPT),
        (Planted::VouchedByAny, NOT_VOUCHED),
    ];
    for (planted, broken) in planted {
        let wrong = change(&[&[0, 1], &[1], &[1]], &[1, 2], TERMS, planted);
        assert!(wrong.contains(&broken), "{planted:?} is found by: {wrong:?}");
    }
}
