//! As much of the query plane as clients need to write: tokens go to the directive's writable primary, one
//! transaction each, and are remembered when their commit is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::sim::planted::Plant;
use crate::sim::postgres::Waiter;
use crate::sim::stage::{Event, Stage};
use crate::topology::{ClientEvidence, Directive, Drained, Durability, NodeName, ProxyStatus, Term};

#[derive(Debug)]
pub(in crate::sim) struct Proxy {
    life: u64,
    directive: Directive,
    confirmed: Term,
    /// Counts the cuts: an answer on a connection that was cut reaches nobody.
    epoch: u64,
    /// Transactions under way. One whose answer was lost stays until it is cut.
    open: BTreeSet<u64>,
    next_token: u64,
    first_primary: Option<NodeName>,
    evidence: BTreeMap<NodeName, Evidence>,
    /// Nodes that a session does not let go of, and until when; `None`: for ever.
    clinging: BTreeMap<NodeName, Option<Duration>>,
    /// The world has enough.
    pub(in crate::sim) quiet: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    answered_at: Option<Instant>,
    refused_at: Option<Instant>,
}

impl Proxy {
    pub(super) fn new(life: u64, durability: Durability, next_token: u64) -> Proxy {
        Proxy {
            life,
            directive: Directive::starting(durability),
            confirmed: Term(0),
            epoch: 0,
            open: BTreeSet::new(),
            next_token,
            first_primary: None,
            evidence: BTreeMap::new(),
            clinging: BTreeMap::new(),
            quiet: false,
        }
    }

    pub(super) fn next_token(&self) -> u64 {
        self.next_token
    }

    /// A higher term cuts what runs, and that is what confirms it.
    pub(in crate::sim) fn obey(&mut self, stage: &mut Stage, directive: &Directive) {
        if directive.term > self.directive.term {
            self.epoch += 1;
            self.open.clear();
            self.confirmed = directive.term;
            stage.note(format!("the proxy confirms term {}", directive.term));
        }
        self.directive = directive.clone();
    }

    /// A session that hangs has the node from now on. The candidate is given to nobody.
    pub(in crate::sim) fn cling(&mut self, node: &NodeName, until: Option<Duration>) {
        if self.directive.candidate.as_ref().is_none_or(|candidate| candidate.node != *node) {
            self.clinging.insert(node.clone(), until);
        }
    }

    pub(in crate::sim) fn clings(&self, stage: &Stage, node: &NodeName) -> bool {
        self.clinging.get(node).is_some_and(|until| until.is_none_or(|until| stage.now < until))
    }

    pub(super) fn status(&self, stage: &Stage) -> ProxyStatus {
        let evidence = self.evidence.iter().map(|(node, evidence)| ClientEvidence {
            node: node.clone(),
            answered_at: evidence.answered_at,
            refused_at: evidence.refused_at,
            broken_at: None,
        });
        let at_once = stage.plant == Some(Plant::ClearedAtOnce);
        let cleared = self
            .directive
            .candidate
            .clone()
            .filter(|candidate| at_once || !self.clings(stage, &candidate.node));
        ProxyStatus {
            confirmed: self.confirmed,
            cleared,
            drained: self.drained(stage),
            held: 0,
            evidence: evidence.collect(),
            ..ProxyStatus::default()
        }
    }

    fn drained(&self, stage: &Stage) -> Option<Drained> {
        let nodes = self.directive.drain.as_ref().map(|_| self.directive.coming_to_rest())?;
        let clinging = nodes.into_iter().filter(|node| self.clings(stage, node)).count();
        let busy = if stage.plant == Some(Plant::DrainedAtOnce) { 0 } else { self.open.len() + clinging };
        Some(Drained { round: self.directive.drains, busy, pinned: BTreeMap::new() })
    }

    /// A transaction that has not ended.
    pub(in crate::sim) fn open(&self) -> Option<u64> {
        self.open.first().copied()
    }

    /// It is on its way.
    pub(in crate::sim) fn began(&mut self, token: u64) {
        self.open.insert(token);
    }

    /// The next transaction and where it goes.
    pub(in crate::sim) fn client(&mut self, stage: &mut Stage) -> Option<(NodeName, Waiter)> {
        let life = self.life;
        let pause = stage.rng.millis(2, 60);
        stage.after(pause, Event::Client { life });
        let mut node = self.directive.writable().filter(|_| !self.quiet)?.clone();
        if stage.plant == Some(Plant::RouteToOldPrimary) {
            node = self.first_primary.get_or_insert(node).clone();
        }
        self.next_token += 1;
        stage.checks.sent += 1;
        stage.checks.served(self.directive.term, &node);
        Some((node, Waiter::Client { token: self.next_token, epoch: self.epoch }))
    }

    pub(in crate::sim) fn refused(&mut self, stage: &Stage, node: &NodeName) {
        self.evidence.entry(node.clone()).or_default().refused_at = Some(stage.instant());
    }

    pub(in crate::sim) fn answered(&mut self, stage: &mut Stage, node: &NodeName, token: u64, epoch: u64) {
        if epoch == self.epoch {
            self.open.remove(&token);
            stage.checks.acknowledged.insert(token);
            self.evidence.entry(node.clone()).or_default().answered_at = Some(stage.instant());
        }
    }
}
