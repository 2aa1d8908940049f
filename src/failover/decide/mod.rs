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
//! | establishing: confirm, prepare, follow, marker | A1 A2 P1 P2 P3, F1..F5, F7, S7 | `establish` |
//! | steady | F1..F7, S1..S9 | `steady`; F7 and S6: `budget` |
//! | steady, while servers are restarted | R1..R9 | `rolling` |
//! | switchover, in the old term: checkpoint, drain, shut_down or settle | W1..W5 | `switchover` |
//! | election: fence, elect, catch_up, prepare, promote, verify, follow, marker | E1..E12 | `election` |
//!
//! The table itself, with every condition in words, is [`RULES`].
//!
//! Why nothing here waits for a lease: the relay is the primary's only way to acknowledge (quorum) and the proxy
//! its only way to be written to. When both have confirmed the term, the old primary may live on, but nobody
//! hears it. What they do not cover, connections that bypass the proxy, is not ours to fence.

mod action;
mod budget;
mod election;
mod establish;
mod forecast;
mod rolling;
mod rules;
mod state;
mod steady;
mod switchover;
#[cfg(test)]
mod tests;

pub use action::{Action, Finding, Ledger, Patient, StartAs, SyncNames, What};
pub use budget::{Budget, Spent, failovers};
pub use forecast::{Forecast, Handover, forecast};
pub use rolling::{Restarts, Rolling, Turn};
pub(super) use rolling::{obstacle as obstacle_to_restart, waits_for, why_not_by_agent};
pub use rules::{RULES, Rule, RuleId};
pub use state::{
    Automatic, Election, EstablishStep, Fenced, Fork, Phase, Planned, Primary, Promoted, Ready, Rest, State,
    Step, Stragglers, Why,
};
pub use switchover::successor;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::election::Case;
use super::health::{Cause, Facts, PrimaryVerdict, ReplaySpeed};
use crate::pg::{Lsn, TimelineId};
use crate::topology::{
    Acknowledgers, Ailment, Candidate, Diagnosis, Drained, Draining, Durability, Failovers, Health, Log,
    Node, NodeHealth, NodeName, NodeState, Role, Term, Waited, WalStatus, relay_application_name,
};

/// What is configured; the same for every call.
#[derive(Clone, Debug)]
pub struct Policy {
    pub instance: String,
    /// All instances, this one included; empty while it is alone.
    pub members: Vec<String>,
    /// How many relays have to acknowledge a commit; `None`: a majority.
    pub acks: Option<usize>,
    pub mode: Mode,
    /// `None`: automatic failovers are not counted.
    pub budget: Option<Budget>,
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
    /// Restart: how long a server may take to be back, its replay included, and something else may stand in its way.
    pub restart_timeout: Duration,
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
    /// What ails it, by name. No rule looks at it but to tell of it.
    pub diagnosis: Option<Diagnosis>,
    /// Of all relays together ([`wal`](crate::topology::Members::wal)).
    pub wal: Arc<WalStatus>,
    /// The highest term that any relay has promised.
    pub promised: Term,
    /// Other instances that were never heard: whose host they share is not known.
    pub unheard: usize,
    /// Whether all instances are heard and have the same list of instances.
    pub agreed_on_instances: Agreement,
    /// Whether nobody goes by an earlier term than the state's any more ([`is_settled`](crate::topology::Members::is_settled)).
    pub settled: Agreement,
    /// Instances whose relays stream from the state's primary.
    pub streaming: Vec<String>,
    /// By name, while an election waits for them.
    pub waited: Waited,
    /// With whose log an election goes on; `None` until enough relays have promised the state's term.
    pub log: Option<Log>,
    /// How far enough relays are ([`durable`](crate::topology::Members::durable)); `None` while this instance is alone.
    pub agreed: Option<(TimelineId, Lsn)>,
    /// `ProxyStatus::confirmed`, of all proxies.
    pub confirmed: Term,
    /// `ProxyStatus::cleared`.
    pub cleared: Option<Candidate>,
    /// `ProxyStatus::drained`.
    pub drained: Option<Drained>,
    /// Connections that the process before this one still serves.
    pub draining: Draining,
    /// The servers that other instances' agents are at work on.
    pub at_work: Vec<NodeName>,
    pub ledger: &'a Ledger,
    /// An operator's wish not yet taken up.
    pub request: Option<Request>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    No,
    Yes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Failover {
        to: Option<NodeName>,
    },
    Switchover {
        to: Option<NodeName>,
        stragglers: Stragglers,
    },
    /// In this order.
    Restart {
        nodes: Vec<NodeName>,
        stragglers: Stragglers,
    },
}

#[derive(Debug)]
pub struct NodeView<'a> {
    pub node: &'a Node,
    pub health: &'a NodeHealth,
    /// Its last answer.
    pub facts: Option<&'a Facts>,
    /// How fast it replays, as far as that was seen.
    pub replay: Option<ReplaySpeed>,
    pub process: Process,
    pub agent: Agent,
    /// Instances on the same host.
    pub beside: Vec<String>,
    /// When it was last seen to stream from a relay; not before this process has looked for it.
    pub streamed_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The last probe was refused: no server runs there.
    Absent,
    PresentOrUnknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// This instance, or another one, starts, stops and rebuilds this server.
    Local,
    /// The instance that does is not heard now.
    Away,
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
    let fired = fired.map(|fired| rolling::after(state, fired, now));
    let (rule, next, concluded, left_behind) = match fired {
        Some(fired) => (Some(fired.rule), fired.next, fired.concluded, fired.left_behind),
        None => (None, state.clone(), None, None),
    };
    let actions = wanted(view, &next, policy, now);
    Decision { rule, next, actions, concluded, left_behind }
}

/// What `state` wants done, in this order of importance.
pub fn wanted(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Vec<Action> {
    match &state.phase {
        Phase::Bootstrapping { .. } => establish::wanted_to_bootstrap(view, state),
        Phase::Establishing { step, .. } => establish::wanted(view, state, policy, *step),
        Phase::Steady => steady::wanted(view, state, policy),
        Phase::Election(election) => Case { view, state, policy, election, now }.wanted(),
    }
}

/// Whether an operator's failover can begin now.
pub fn takes_failover(view: &View<'_>, state: &State) -> bool {
    match state.phase {
        Phase::Steady => true,
        Phase::Establishing { step, .. } => establish::is_in_vain(view, state, step),
        Phase::Bootstrapping { .. } | Phase::Election(_) => false,
    }
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
            dead(view, state, policy)
                .or_else(|| relay_stays(view))
                .or_else(|| establish::obstacle_to_open(view, state, *step).filter(|_| waits))
        }
        Phase::Steady => dead(view, state, policy)
            .or_else(|| relay_stays(view))
            .or_else(|| steady::obstacle_to_follow(view, state, policy)),
        Phase::Election(election) => Case { view, state, policy, election, now }.obstacle(),
    }
}

/// Where the budget is spent it is told by F7, and waits for time.
fn dead(view: &View<'_>, state: &State, policy: &Policy) -> Option<String> {
    let PrimaryVerdict::Dead { .. } = &view.verdict else { return None };
    if budget::is_automatic(state, policy) {
        return None;
    }
    Some(format!("the primary is dead and failover is not automatic: {}", view.evidence().join("; ")))
}

/// Why nobody is promoted although something ails the primary; `None`: nothing does, or an election decides.
pub fn outlook(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<String> {
    let ailment = view.diagnosis.as_ref()?.ailment;
    if matches!(state.phase, Phase::Election(_)) {
        return None;
    }
    let why = match &view.verdict {
        PrimaryVerdict::Dead { .. } => match failovers(state, policy, now.unix_ms) {
            Failovers::Automatic => return None,
            Failovers::Manual => "failover.mode is manual: a person decides".to_owned(),
            Failovers::Paused => "automatic failover is paused".to_owned(),
            Failovers::Spent { .. } => "there were too many automatic failovers of late".to_owned(),
        },
        PrimaryVerdict::Suspect { why } => format!("this is not enough to act on: {why}"),
        PrimaryVerdict::Unknown => "not to see a server is no evidence that it is dead".to_owned(),
        PrimaryVerdict::Alive if ailment == Ailment::DiskFull => {
            "it answers, and its standbys have as much to store: free space on its disk".to_owned()
        }
        PrimaryVerdict::Alive => "it answers".to_owned(),
    };
    Some(why)
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
            members: Vec::new(),
            acks: None,
            mode,
            budget: None,
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
            restart_timeout: Duration::from_secs(600),
        }
    }

    /// What `synchronous_standby_names` has to be under `state`.
    fn names(&self, state: &State) -> SyncNames {
        self.names_in(state.term, state.named())
    }

    fn names_in(&self, term: Term, named: Option<&Acknowledgers>) -> SyncNames {
        let own = [self.instance.clone()];
        let all = if self.members.is_empty() { &own } else { &self.members[..] };
        let name = |instance: &String| relay_application_name(instance, term);
        match (self.durability, named) {
            (Durability::Async, _) => SyncNames::NotOurs {
                prefixes: all.iter().map(|name| format!("bellwether_{name}_t")).collect(),
            },
            (Durability::Quorum, None) => SyncNames::Relay(name(&self.instance)),
            (Durability::Quorum, Some(quorum)) => SyncNames::Any {
                acks: quorum.quorum().acks(),
                relays: quorum.relays.iter().map(name).collect(),
            },
        }
    }

    fn prepare(&self, state: &State, node: &NodeName) -> Action {
        Action { term: state.term, node: node.clone(), what: What::Prepare { names: self.names(state) } }
    }

    /// The same in `state`'s term of a standby that is to be the candidate of the next.
    fn prepare_ahead(&self, state: &State, node: &NodeName, ready: &Ready) -> Action {
        let names = self.names_in(ready.term, ready.acknowledgers.as_ref());
        Action { term: state.term, node: node.clone(), what: What::Prepare { names } }
    }

    /// Whose relays are to acknowledge what `node` commits. One on its own host is not asked: what befalls the node befalls
    /// it. The node's own disk stands for it then, so that of as many hosts a majority has every commit.
    fn acknowledgers(&self, node: &NodeView<'_>) -> Option<Acknowledgers> {
        let apart = |name: &&String| !node.beside.contains(name);
        let mut relays: Vec<String> = self.members.iter().filter(apart).cloned().collect();
        if relays.is_empty() {
            relays.clone_from(&self.members);
        }
        let majority = self.members.len() / 2 + 1;
        let beside = self.members.len() - relays.len();
        let acks = self.acks.unwrap_or(majority.saturating_sub(beside)).clamp(1, relays.len().max(1));
        (!self.members.is_empty()).then_some(Acknowledgers { relays, acks })
    }
}

impl View<'_> {
    /// Whether an agent is at work on it, wherever that runs.
    fn is_server_busy(&self, node: &NodeName) -> bool {
        self.ledger.is_server_busy(node) || self.at_work.contains(node)
    }

    /// Above every term that anybody has heard of: a state file that was lost, or came from a backup, must not
    /// take a term back.
    fn next_term(&self, state: &State) -> Term {
        state.term.max(self.promised).max(self.confirmed).next()
    }

    /// The journal's own term, unless the relay has promised a later one: that one may have had another primary.
    fn term_to_adopt(&self, state: &State) -> Term {
        if self.promised > state.term { self.next_term(state) } else { state.term }
    }

    /// What is known of what ails the primary, in sentences.
    fn evidence(&self) -> Vec<String> {
        let evidence = self.diagnosis.iter().flat_map(|found| &found.evidence);
        evidence.map(ToString::to_string).collect()
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
