//! The promises, looked at from outside: what clients were told, what servers hold, what etcd has.

use std::collections::{BTreeMap, BTreeSet};

use super::log::{End, Log};
use super::server::{Server, node_name};
use super::stage::{InstanceId, NodeId};
use crate::failover::decide::{Action, Budget, Phase, State, Step, What};
use crate::failover::{Command, Upkeep};
use crate::topology::{
    Acknowledgers, Directive, Durability, Election as Record, Floor, NodeName, Role, Term,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) promise: Promise,
    pub(super) how: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    OnePrimary,
    /// What a client was told is committed, or has read, is in every later primary.
    Quorum,
    /// Nobody speaks to a primary that another has replaced.
    Stale,
    /// What was said of a commit in doubt is true.
    InDoubt,
    /// No standby has what the next primary has not.
    NotAhead,
    /// There are no more automatic failovers within the window than the budget allows.
    Budget,
    /// Who is in maintenance stays so until an operator says otherwise, and is neither primary nor promoted.
    Maintenance,
    Liveness,
    Panicked,
}

#[derive(Debug)]
pub(super) struct Checks {
    pub(super) broken: Option<Broken>,
    durability: Durability,
    budget: Option<Budget>,
    /// The begins of automatic failovers since a person's last word, by the calendars of those who led then.
    failovers: Vec<u64>,
    /// Of whom it was said that their maintenance is over.
    serving: BTreeSet<NodeName>,
    /// The last election that was looked at.
    election: Term,
    journaled: Option<State>,
    written_to: BTreeMap<Term, NodeId>,
    /// The last primary that was opened.
    opened: Option<(Term, NodeId)>,
    /// It was looked at who has been opened.
    pub(super) to_open: Option<(Term, NodeName)>,
    /// Where each token was written.
    written: BTreeMap<u64, End>,
    acknowledged: BTreeSet<u64>,
    /// Of all that was read, the ends.
    seen: BTreeMap<usize, End>,
    /// How often the opened primary had been started by then.
    opened_starts: u64,
    lost: BTreeSet<u64>,
    /// What happens now came while its process stood still, or before it saw that it had.
    pub(super) is_late: bool,
    /// Commits that a primary has just let go, and of whom how many had to have them.
    pub(super) released: Vec<(End, usize, Vec<String>)>,
    /// Who is about to be promoted, with which floor, and of whose relays some are to have that.
    pub(super) to_promote: Option<(NodeName, Floor, Vec<Acknowledgers>)>,
    pub(super) commits: usize,
    pub(super) in_doubt: usize,
    pub(super) switchovers: usize,
    pub(super) restarted: usize,
    pub(super) resets: usize,
}

impl Checks {
    pub(super) fn new(durability: Durability, budget: Option<Budget>) -> Checks {
        Checks {
            broken: None,
            durability,
            budget,
            failovers: Vec::new(),
            serving: BTreeSet::new(),
            election: Term(0),
            journaled: None,
            written_to: BTreeMap::new(),
            opened: None,
            to_open: None,
            written: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            seen: BTreeMap::new(),
            opened_starts: 0,
            lost: BTreeSet::new(),
            is_late: false,
            released: Vec::new(),
            to_promote: None,
            commits: 0,
            in_doubt: 0,
            switchovers: 0,
            restarted: 0,
            resets: 0,
        }
    }

    pub(super) fn fail(&mut self, promise: Promise, how: String) {
        self.broken.get_or_insert(Broken { promise, how });
    }

    pub(super) fn terms(&self) -> u64 {
        self.journaled.as_ref().map_or(0, |state| state.term.0)
    }

    pub(super) fn state(&self) -> Option<&State> {
        self.journaled.as_ref()
    }

    // What is decided.

    pub(super) fn journaled(&mut self, state: &State) {
        let before = self.journaled.replace(state.clone());
        if let Some(before) = before.as_ref().filter(|before| state.term < before.term) {
            self.fail(Promise::OnePrimary, format!("term {} after term {} in etcd", state.term, before.term));
        }
        if let Phase::Election(election) = &state.phase {
            self.begun(&election.record);
        }
        self.maintained(before.as_ref(), state);
        let opens = matches!(state.phase, Phase::Steady)
            && before.is_none_or(|before| before.term < state.term || !matches!(before.phase, Phase::Steady));
        if let Some(primary) = state.primary.as_ref().filter(|_| opens) {
            self.to_open = Some((state.term, primary.node.clone()));
        }
    }

    fn maintained(&mut self, before: Option<&State>, state: &State) {
        let primary = state.primary.as_ref().map(|primary| &primary.node);
        let candidate = match &state.phase {
            Phase::Election(election) => election.step.candidate(),
            _ => None,
        };
        let used = state.maintenance.iter().find(|node| Some(*node) == primary || Some(*node) == candidate);
        if let Some(node) = used {
            self.fail(Promise::Maintenance, format!("{node} is in maintenance, and is to be primary"));
        }
        let kept = |node: &&NodeName| state.is_in_maintenance(node) || self.serving.contains(*node);
        let forgotten = before.and_then(|before| before.maintenance.iter().find(|node| !kept(node)));
        if let Some(node) = forgotten.filter(|node| Some(*node) != primary) {
            self.fail(Promise::Maintenance, format!("nobody has ended the maintenance of {node}"));
        }
    }

    pub(super) fn maintain(&mut self, node: NodeName) -> Command {
        self.serving.remove(&node);
        Command::Maintenance { node, upkeep: Upkeep::Begin }
    }

    pub(super) fn serve(&mut self, node: NodeName) -> Command {
        self.serving.insert(node.clone());
        Command::Maintenance { node, upkeep: Upkeep::End }
    }

    /// An election is in etcd.
    fn begun(&mut self, election: &Record) {
        if election.term <= self.election {
            return;
        }
        self.election = election.term;
        if election.rule == "F6" {
            return self.resumed();
        }
        let is_automatic = election.rule.starts_with('F');
        let Some(budget) = self.budget.filter(|_| is_automatic) else { return };
        self.failovers.push(election.started_at_ms);
        let window = budget.window.as_millis() as u64;
        let lately = |at: &&u64| at.abs_diff(election.started_at_ms) < window;
        let count = self.failovers.iter().filter(lately).count();
        if count > budget.failovers {
            let how = format!("{count} automatic failovers within {window} ms: {:?}", self.failovers);
            self.fail(Promise::Budget, how);
        }
    }

    /// An operator gives a fresh budget.
    pub(super) fn resumed(&mut self) {
        self.failovers.clear();
    }

    /// Nobody hears of a term before etcd has it.
    pub(super) fn directed(&mut self, directive: &Directive) {
        let term = self.journaled.as_ref().map_or(Term(0), |state| state.term);
        if directive.term > term {
            self.fail(Promise::OnePrimary, format!("term {} is obeyed, etcd has {term}", directive.term));
        }
    }

    /// A promotion begins.
    pub(super) fn started(&mut self, action: &Action) {
        let Some(state) = self.journaled.clone().filter(|_| matches!(action.what, What::Promote { .. }))
        else {
            return;
        };
        let Phase::Election(election) = &state.phase else { return };
        let Step::Promote { candidate } = &election.step else { return };
        if state.term == action.term && *candidate != action.node {
            let how = format!("{} is promoted, the journal has {candidate}", action.node);
            self.fail(Promise::OnePrimary, how);
        } else if let Some(floor) = state.floor.as_ref().filter(|_| state.term == action.term) {
            self.to_promote = Some((action.node.clone(), floor.clone(), state.quorums.clone()));
        }
    }

    // What clients do and hear.

    /// A statement goes to the primary of `term`.
    pub(super) fn served(&mut self, term: Term, node: NodeId) {
        let first = *self.written_to.entry(term).or_insert(node);
        if first != node {
            let (a, b) = (node_name(first), node_name(node));
            self.fail(Promise::OnePrimary, format!("in term {term} both {a} and {b} are written to"));
        }
        let opened = self.opened.filter(|(opened, at)| *opened > term && *at != node && !self.is_late);
        if let Some((opened, at)) = opened {
            let (old, new) = (node_name(node), node_name(at));
            self.fail(
                Promise::Stale,
                format!("{old} is used under term {term}, {new} is open under {opened}"),
            );
        }
    }

    pub(super) fn wrote(&mut self, end: End) {
        self.written.insert(end.last.expect("it was written"), end);
    }

    pub(super) fn acknowledged(&mut self, token: u64) {
        self.commits += 1;
        self.acknowledged.insert(token);
    }

    /// A server that was started again shows what nobody has acknowledged, until that is noticed (S2): as PostgreSQL does.
    pub(super) fn saw(&mut self, node: NodeId, starts: u64, seen: End) {
        let is_opened = self.opened.is_some_and(|(_, opened)| opened == node) && starts == self.opened_starts;
        if self.durability == Durability::Quorum && is_opened && seen.len > 0 {
            self.seen.insert(seen.len, seen);
        }
    }

    /// In doubt, and told to be committed.
    pub(super) fn found(&mut self, token: u64) {
        self.in_doubt += 1;
        self.acknowledged.insert(token);
        if self.lost.contains(&token) {
            self.fail(Promise::InDoubt, format!("{token} was said to be lost, and to be there"));
        }
    }

    pub(super) fn lost(&mut self, token: u64) {
        self.in_doubt += 1;
        self.lost.insert(token);
    }

    // What there is.

    /// A relay takes what came over a stream of `term`.
    pub(super) fn taken(&mut self, relay: InstanceId, term: Term, promised: Term) {
        if term < promised {
            let how = format!("relay {} takes WAL of term {term} and has promised {promised}", relay + 1);
            self.fail(Promise::OnePrimary, how);
        }
    }

    pub(super) fn shipped_beyond(&mut self, relay: InstanceId, shipped: usize, fork: usize) {
        let how = format!("relay {} has shipped {shipped} entries, the fork is at {fork}", relay + 1);
        self.fail(Promise::NotAhead, how);
    }

    /// Writes are open at `node`.
    pub(super) fn opened(&mut self, term: Term, node: &Server, nodes: &[Server]) {
        self.opened = Some((term, node.id));
        self.opened_starts = node.starts;
        self.holds_all(&node.name, &node.log);
        // Without a quorum a primary may be open that no relay has followed yet.
        if self.durability == Durability::Async {
            return;
        }
        let ahead =
            nodes.iter().filter(|other| other.role == Role::Standby && other.log.len() > other.copied);
        for other in ahead.filter(|other| !node.log.starts_with(&other.log)) {
            let how = format!(
                "{} has {:?}, of which {} of term {term} has {} entries",
                other.name,
                other.log.end(),
                node.name,
                node.log.common(&other.log)
            );
            self.fail(Promise::NotAhead, how);
        }
    }

    pub(super) fn holds_all(&mut self, name: &NodeName, log: &Log) {
        let has = |token: &u64| self.written.get(token).is_some_and(|end| log.has(*end));
        let lost = self.acknowledged.iter().find(|token| !has(token)).copied();
        let appeared = self.lost.iter().find(|token| has(token)).copied();
        let unseen = self.seen.values().find(|end| !log.has(**end)).copied();
        if let Some(token) = appeared {
            self.fail(Promise::InDoubt, format!("{name} has {token}, which was said to be lost"));
        }
        if self.durability == Durability::Async {
            return;
        }
        if let Some(token) = lost {
            let end = self.written.get(&token);
            self.fail(
                Promise::Quorum,
                format!("{name} lacks {token}, which is committed: {end:?}, {:?}", log.end()),
            );
        }
        if let Some(end) = unseen {
            self.fail(
                Promise::Quorum,
                format!("{name} lacks {end:?}, which a client has read; {:?}", log.end()),
            );
        }
    }
}
