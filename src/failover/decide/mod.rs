//! Who is primary: one pure function over a numbered rule table.
//!
//! ```text
//! decide(view, state, policy, now) -> Decision { rule, next, actions, concluded }
//! ```
//!
//! At most one rule fires per call; the caller repeats until none does, journals the last state, publishes its
//! [`State::directive`], and only then starts the actions. Two things follow. A term is durable before anybody
//! hears of it, and what is wanted is a function of the journaled state alone, so that a restart at any point
//! wants it again.
//!
//! | phase | rules | file |
//! |---|---|---|
//! | bootstrapping | B1 | `establish` |
//! | establishing: confirm, prepare, follow, marker | A1 A2 P1 P2 P3, F1..F5 | `establish` |
//! | steady | F1..F6, S1 S2 S3 S4 S5 | `steady` |
//! | switchover, in the old term: checkpoint, drain, shut_down or settle | W1..W5 | `switchover` |
//! | election: fence, elect, catch_up, prepare, promote, verify, follow, marker | E1..E12 | `election` |
//!
//! The table itself, with every condition in words, is [`RULES`].
//!
//! Why nothing here waits for a lease: the relay is the primary's only way to acknowledge (quorum) and the proxy
//! its only way to be written to. When both have confirmed the term, the old primary may live on, but nobody
//! hears it. What they do not cover, connections that bypass the proxy, is not ours to fence.

mod action;
mod election;
mod establish;
mod rules;
mod state;
mod steady;
mod switchover;
#[cfg(test)]
mod tests;

pub use action::{Action, Finding, Ledger, Patient, StartAs, SyncNames, What};
pub use rules::{RULES, Rule, RuleId};
pub use state::{
    Automatic, Election, EstablishStep, Fenced, Fork, Phase, Planned, Primary, Promoted, Rest, State, Step,
    Stragglers, Why,
};
pub use switchover::successor;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::election::Case;
use super::health::{Cause, Facts, PrimaryVerdict};
use crate::topology::{
    Candidate, Drained, Durability, Health, Node, NodeHealth, NodeName, NodeState, Role, Term, WalStatus,
    relay_application_name,
};

/// What is configured; the same for every call.
#[derive(Clone, Debug)]
pub struct Policy {
    pub instance: String,
    pub mode: Mode,
    pub durability: Durability,
    /// Async: more WAL than this is known to exist beyond what the relay holds: nobody is promoted. Quorum: such
    /// WAL was never acknowledged, so it does not count.
    pub max_lost_bytes: u64,
    /// How long a bootstrap waits for the nodes that have not been seen; then a majority is enough.
    pub bootstrap_timeout: Duration,
    /// How long an election waits for a candidate before the old primary may be restored.
    pub candidate_wait: Duration,
    /// How long a candidate may take to receive what the relay has.
    pub catch_up_timeout: Duration,
    /// How long relay and proxy may take to confirm a term, and the proxy to take the candidate from its sessions. Then
    /// a person is told, and another candidate tried; nobody is promoted without.
    pub clear_timeout: Duration,
    /// Async: writes open without the relay after this.
    pub follow_timeout: Duration,
    /// How long a candidate that still answers may take to leave recovery, its replay included.
    pub promote_timeout: Duration,
    /// How long a primary that answers may take from one step to the next until it is open; then a person is told.
    pub open_timeout: Duration,
    /// How long a promoted candidate may be silent before it counts as lost; a refused connection says so at once.
    pub lost_after: Duration,
    /// How long a standby whose slot is lost may look for what it lacks before it is made anew.
    pub lost_slot_wait: Duration,
    /// Failed runs of one step after which another candidate is tried.
    pub attempts: u32,
    /// Switchover: how long open transactions may take to end, while new ones wait.
    pub drain: Duration,
    /// Switchover: how long the checkpoint may take that makes the shutdown short. Clients go on meanwhile.
    pub checkpoint_timeout: Duration,
    /// Switchover: how long the shutdown may take, or the successor to have what the primary has written.
    pub hand_over_timeout: Duration,
    /// Switchover: how long the old primary may take to come back after it was given up.
    pub restore_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Automatic,
    /// A dead primary is reported, nothing else; an operator's command works.
    Manual,
}

/// Two clocks: the monotonic one for evidence, the calendar's for what is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    pub unix_ms: u64,
}

/// Everything a decision may look at.
#[derive(Debug)]
pub struct View<'a> {
    pub nodes: Vec<NodeView<'a>>,
    /// Of the state's primary.
    pub verdict: PrimaryVerdict,
    pub wal: Arc<WalStatus>,
    /// `ProxyStatus::confirmed`.
    pub confirmed: Term,
    /// `ProxyStatus::cleared`.
    pub cleared: Option<Candidate>,
    /// `ProxyStatus::drained`.
    pub drained: Option<Drained>,
    pub ledger: &'a Ledger,
    /// An operator's wish not yet taken up.
    pub request: Option<Request>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Failover { to: Option<NodeName> },
    Switchover { to: Option<NodeName>, stragglers: Stragglers },
}

#[derive(Debug)]
pub struct NodeView<'a> {
    pub node: &'a Node,
    pub health: &'a NodeHealth,
    /// Its last answer.
    pub facts: Option<&'a Facts>,
    pub process: Process,
    pub agent: Agent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The last probe was refused: no server runs there.
    Absent,
    PresentOrUnknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// We start, stop and rebuild this server.
    Local,
    None,
}

#[derive(Debug)]
pub struct Decision {
    /// `None`: nothing changes, only `actions` count.
    pub rule: Option<RuleId>,
    pub next: State,
    /// What `next` wants done, in this order of importance.
    pub actions: Vec<Action>,
    /// An election that this decision ended.
    pub concluded: Option<crate::topology::Election>,
    /// A standby that the last election has left behind, as this decision found.
    pub left_behind: Option<crate::topology::LeftBehind>,
}

/// A rule that fired.
#[derive(Debug)]
pub(super) struct Fired {
    rule: RuleId,
    next: State,
    concluded: Option<crate::topology::Election>,
    left_behind: Option<crate::topology::LeftBehind>,
}

impl Fired {
    fn new(rule: RuleId, next: State) -> Option<Fired> {
        Some(Fired { rule, next, concluded: None, left_behind: None })
    }
}

pub fn decide(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Decision {
    let fired = match &state.phase {
        Phase::Bootstrapping { since_ms } => establish::bootstrap(view, state, policy, *since_ms, now),
        Phase::Establishing { why, step, .. } => establish::advance(view, state, policy, (*why, *step), now),
        Phase::Steady => steady::watch(view, state, policy, now),
        Phase::Election(election) => Case { view, state, policy, election, now }.advance(),
    };
    let (rule, next, concluded, left_behind) = match fired {
        Some(fired) => (Some(fired.rule), fired.next, fired.concluded, fired.left_behind),
        None => (None, state.clone(), None, None),
    };
    let actions = match &next.phase {
        Phase::Bootstrapping { .. } => establish::wanted_to_bootstrap(view, &next),
        Phase::Establishing { step, .. } => establish::wanted(view, &next, policy, *step),
        Phase::Steady => steady::wanted(view, &next, policy),
        Phase::Election(election) => Case { view, state: &next, policy, election, now }.wanted(),
    };
    Decision { rule, next, actions, concluded, left_behind }
}

/// What a person has to help with; `None` while the rules can go on by themselves.
pub fn obstacle(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<String> {
    match &state.phase {
        Phase::Bootstrapping { since_ms } => establish::obstacle_to_bootstrap(view, policy, *since_ms, now),
        Phase::Establishing { step: EstablishStep::Confirm, since_ms, .. } => {
            establish::obstacle_to_confirm(view, state, policy, *since_ms, now)
        }
        Phase::Establishing { step, since_ms, .. } => {
            let waited = u128::from(now.unix_ms.saturating_sub(*since_ms));
            let waits = waited >= policy.open_timeout.as_millis();
            dead(view)
                .or_else(|| relay_stays(view))
                .or_else(|| establish::obstacle_to_open(view, state, *step).filter(|_| waits))
        }
        Phase::Steady => {
            dead(view).or_else(|| relay_stays(view)).or_else(|| steady::obstacle_to_follow(view, policy))
        }
        Phase::Election(election) => Case { view, state, policy, election, now }.obstacle(),
    }
}

fn dead(view: &View<'_>) -> Option<String> {
    let PrimaryVerdict::Dead { evidence, .. } = &view.verdict else { return None };
    Some(format!("the primary is dead and failover is not automatic: {}", evidence.join("; ")))
}

/// It neither skips WAL nor takes another branch's.
fn relay_stays(view: &View<'_>) -> Option<String> {
    view.wal.alarm.as_ref().map(|alarm| format!("the relay does not go on: {alarm}"))
}

/// Marks in `health` the nodes that answer and must not be used.
pub fn quarantine(health: &mut Health, state: &State) {
    let Some(primary) = &state.primary else { return };
    for node in health.nodes.iter_mut().filter(|n| n.state.is_up()) {
        let why = if node.system.is_some_and(|system| system != primary.system) {
            format!("it belongs to another cluster: the system identifier is not {}", primary.system)
        } else if node.role == Some(Role::Primary) && node.name != primary.node {
            format!("it runs as a primary, but {} is the primary of term {}", primary.node, primary.term)
        } else {
            continue;
        };
        node.state = NodeState::Quarantined { why };
    }
}

impl Policy {
    pub fn new(instance: &str, mode: Mode, durability: Durability) -> Policy {
        Policy {
            instance: instance.to_owned(),
            mode,
            durability,
            max_lost_bytes: 0,
            bootstrap_timeout: Duration::from_secs(15),
            candidate_wait: Duration::from_secs(3),
            catch_up_timeout: Duration::from_secs(30),
            clear_timeout: Duration::from_secs(10),
            follow_timeout: Duration::from_secs(5),
            promote_timeout: Duration::from_secs(60),
            open_timeout: Duration::from_secs(30),
            lost_after: Duration::from_secs(10),
            lost_slot_wait: Duration::from_secs(30),
            attempts: 3,
            drain: Duration::from_secs(5),
            checkpoint_timeout: Duration::from_secs(300),
            hand_over_timeout: Duration::from_secs(15),
            restore_timeout: Duration::from_secs(30),
        }
    }

    fn names(&self, term: Term) -> SyncNames {
        match self.durability {
            Durability::Quorum => SyncNames::Relay(relay_application_name(&self.instance, term)),
            Durability::Async => SyncNames::NotOurs { prefix: format!("bellwether_{}_t", self.instance) },
        }
    }

    fn prepare(&self, term: Term, node: &NodeName) -> Action {
        Action { term, node: node.clone(), what: What::Prepare { names: self.names(term) } }
    }
}

impl View<'_> {
    /// Above every term that anybody has heard of: a state file that was lost, or came from a backup, must not
    /// take a term back.
    fn next_term(&self, state: &State) -> Term {
        state.term.max(self.wal.promised).max(self.confirmed).next()
    }

    /// The journal's own term, unless the relay has promised a later one: that one may have had another primary.
    fn term_to_adopt(&self, state: &State) -> Term {
        if self.wal.promised > state.term { self.next_term(state) } else { state.term }
    }

    fn node(&self, name: &NodeName) -> Option<&NodeView<'_>> {
        self.nodes.iter().find(|n| n.node.name == *name)
    }
}

impl NodeView<'_> {
    fn is_up_as(&self, role: Role) -> bool {
        self.health.state.is_up() && self.facts.is_some_and(|f| f.role == role)
    }

    /// For good, as far as an election under way is concerned: a promoted server may be slow to answer while it
    /// replays, and choosing another costs a term and a timeline.
    fn is_lost(&self, policy: &Policy, now: Now) -> bool {
        let since = match self.health.state {
            NodeState::Down { since, .. } => since,
            NodeState::Unknown | NodeState::Up | NodeState::Quarantined { .. } => return false,
        };
        self.process == Process::Absent || now.instant.saturating_duration_since(since) >= policy.lost_after
    }

    fn is_down(&self) -> bool {
        matches!(self.health.state, NodeState::Down { .. })
    }
}

/// Whether the marker of `state`'s term has committed where it must be durable.
fn marker_is_durable(view: &View<'_>, state: &State, node: &NodeName) -> bool {
    let Some(Finding::Committed { lsn }) = view.ledger.finding(&marker(state.term, node)) else {
        return false;
    };
    match state.durability {
        Durability::Quorum => *lsn <= view.wal.durable,
        Durability::Async => true,
    }
}

fn marker(term: Term, node: &NodeName) -> Action {
    Action { term, node: node.clone(), what: What::Marker }
}

/// The automatic reasons for an election, as rules.
fn rule_of(cause: Cause) -> RuleId {
    match cause {
        Cause::Gone => RuleId::F1,
        Cause::Silent => RuleId::F2,
        Cause::Stalled => RuleId::F3,
        Cause::Restarting => RuleId::F4,
        Cause::Demoted => RuleId::F5,
    }
}
