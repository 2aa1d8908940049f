//! A planned switchover, up to where the election takes over: checkpoint, drain, shut down (or settle). All of it in
//! the old term, whose primary can have the cluster back at any moment.
//!
//! While clients go on, the successor gets what it needs as the candidate of the next term ([`Ready`]): nobody has to
//! wait for that. On a standby none of it counts. When the switchover is given up, the slots go (`DropSlot`), and names of a
//! term that has not begun are nobody's: whoever makes that node a primary sets them first.
//!
//! What is proven before anybody is promoted: the primary's own control file tells where the record of its shutdown
//! checkpoint begins, behind which it has written nothing; the relay holds that record whole, checked and durable; and
//! the successor has flushed as much. Then the next term follows, and the same steps as after a failure.
//!
//! Without an agent nobody can shut the server down: SQL cannot. What is proven then is less: nothing is missing that
//! a client of ours has written. What the server writes by itself afterwards stays with it.

use super::election::{self, Case};
use super::{
    Action, Agent, EstablishStep, Finding, Fired, NodeView, Now, Phase, Planned, Primary, Process, Ready,
    Rest, RuleId, State, Step, Stragglers, View, What, Why, establish, steady,
};
use crate::failover::health::PrimaryVerdict;
use crate::pg::Lsn;
use crate::topology::{Drained, NodeName, NodeState, Outcome, Role};

/// A standby with more to replay would let clients wait for longer than they should.
const MAX_BEHIND: u64 = 16 << 20;

/// W1.
pub(super) fn begin(
    view: &View<'_>,
    state: &State,
    to: Option<&NodeName>,
    stragglers: Stragglers,
    why: String,
    now: Now,
) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    let successor = successor(view, state, to).ok()?;
    let rest = match view.node(&primary.node)?.agent {
        Agent::Local => Rest::ShutDown,
        Agent::Away | Agent::None => Rest::LeftRunning,
    };
    let record = steady::record(state.term, RuleId::W1, vec![why], Some(primary.node.clone()), now);
    let mut election = steady::election(record, Step::Checkpoint, Some(successor.clone()), now);
    election.planned = Some(Planned { successor: Some(successor), stragglers, rest, ready: None });
    Fired::new(RuleId::W1, State { phase: Phase::Election(Box::new(election)), ..state.clone() })
}

/// Who would take over now: the operator's choice, or the best by priority and position; or why nobody can.
pub fn successor(view: &View<'_>, state: &State, to: Option<&NodeName>) -> Result<NodeName, String> {
    successor_among(view, state, |node| to.is_none_or(|to| node == to))
}

/// The primary, when nothing is wrong with it.
pub(super) fn at_peace<'a>(view: &View<'_>, state: &'a State) -> Result<&'a Primary, String> {
    let Some(primary) = &state.primary else { return Err("no primary is known".to_owned()) };
    let node = &primary.node;
    match &view.verdict {
        PrimaryVerdict::Alive => {}
        PrimaryVerdict::Suspect { why } => return Err(format!("the primary {node} is not well: {why}")),
        PrimaryVerdict::Dead { .. } => return Err(format!("the primary {node} is dead; order a failover")),
        PrimaryVerdict::Unknown => return Err(format!("the primary {node} has not been seen yet")),
    }
    if !establish::relay_follows(view, primary) {
        return Err(format!("the relay does not stream from {node}"));
    }
    Ok(primary)
}

/// [`successor`], of those that `may` be.
pub(super) fn successor_among(
    view: &View<'_>,
    state: &State,
    may: impl Fn(&NodeName) -> bool,
) -> Result<NodeName, String> {
    let primary = at_peace(view, state)?;
    let node = &primary.node;
    if view.node(node).is_some_and(|n| n.agent == Agent::Away) {
        return Err(format!("the instance beside {node}, which has to shut it down, is not heard"));
    }
    let mut unfit = Vec::new();
    let mut fit = Vec::new();
    let asked = |n: &&NodeView<'_>| n.node.name != *node && may(&n.node.name);
    for candidate in view.nodes.iter().filter(asked) {
        match why_unfit(view, state, primary, candidate) {
            Some(why) => unfit.push(format!("{}: {why}", candidate.node.name)),
            None => fit.push(candidate),
        }
    }
    let rank = |n: &&&NodeView<'_>| {
        let replay = view.wal.follower(&n.node.name).map_or(Lsn::INVALID, |f| f.replay);
        (n.node.priority, replay, std::cmp::Reverse(n.node.name.clone()))
    };
    match fit.iter().max_by_key(rank) {
        Some(best) => Ok(best.node.name.clone()),
        None if unfit.is_empty() => Err("there is no standby".to_owned()),
        None => Err(format!("no standby can take over: {}", unfit.join("; "))),
    }
}

/// Why a node cannot take over; `None`: it can.
pub(super) fn why_unfit(
    view: &View<'_>,
    state: &State,
    primary: &Primary,
    node: &NodeView<'_>,
) -> Option<String> {
    if node.node.no_failover {
        return Some("it is configured with no_failover".to_owned());
    }
    why_unusable(view, state, primary, node)
}

/// Why a node is no standby that follows closely.
pub(super) fn why_unusable(
    view: &View<'_>,
    state: &State,
    primary: &Primary,
    node: &NodeView<'_>,
) -> Option<String> {
    if state.is_in_maintenance(&node.node.name) {
        return Some("it is in maintenance".to_owned());
    }
    match &node.health.state {
        NodeState::Up => {}
        NodeState::Unknown => return Some("it has not been seen yet".to_owned()),
        NodeState::Down { why, .. } => return Some(format!("it is down: {why}")),
        NodeState::Quarantined { why } => return Some(format!("it is quarantined: {why}")),
    }
    let Some(facts) = node.facts else { return Some("it has not been seen yet".to_owned()) };
    if facts.system != primary.system {
        return Some("it belongs to another cluster".to_owned());
    }
    if facts.role == Role::Primary {
        return Some("it runs as a primary, and is none".to_owned());
    }
    if state.stranded.contains(&node.node.name) {
        return Some("it has to be made anew first".to_owned());
    }
    let Some(follower) = view.wal.follower(&node.node.name).filter(|f| f.streams()) else {
        return Some("it does not stream from the relay".to_owned());
    };
    if follower.timeline != primary.timeline {
        return Some(format!("it is on timeline {}, not {}", follower.timeline, primary.timeline));
    }
    // A walreceiver that has just connected has not said yet where replay is; the probe's answer has.
    let behind = view.wal.durable.bytes_since(follower.replay.max(facts.position));
    (behind > MAX_BEHIND).then(|| format!("it has {behind} bytes of WAL to replay"))
}

impl Case<'_> {
    /// The steps in which the old primary still has its term.
    pub(super) fn advance_in_peace(&self) -> Option<Fired> {
        let planned = self.election.planned.as_ref()?;
        let primary = self.state.primary.as_ref()?;
        let Some(successor) = self.election.successor() else { return self.abandoned() };
        if self.election.step != Step::ShutDown
            && let Some(fired) = self.disturbed(primary, successor)
        {
            return Some(fired);
        }
        match &self.election.step {
            Step::Checkpoint => self.checkpointed(primary, successor),
            Step::Drain => self.drained(planned),
            Step::ShutDown => self.shut_down(primary, successor),
            Step::Settle => self.settled(primary, successor),
            _ => None,
        }
    }

    /// W2. First the checkpoint, which may take minutes, and then the successor: what that has got is as new as can be when
    /// it counts.
    fn checkpointed(&self, primary: &Primary, successor: &NodeName) -> Option<Fired> {
        let ready = self.ready(successor)?;
        let Some(missing) = self.before_the_drain(primary, successor, &ready) else {
            let mut election = self.election.clone();
            election.planned.iter_mut().for_each(|planned| planned.ready = Some(ready.clone()));
            let next = State { drains: self.state.drains + 1, ..self.state.clone() };
            return Fired::new(RuleId::W2, election::at(&next, election, Step::Drain, self.now));
        };
        let fails = self.view.ledger.failures(&missing) >= self.policy.attempts;
        if !fails && !self.has_waited(self.policy.checkpoint_timeout) {
            return None;
        }
        self.give_up(match missing.what {
            What::Checkpoint => format!("{} did not write a checkpoint", primary.node),
            _ => format!("{successor} could not be made ready"),
        })
    }

    /// As it has to be in the next term.
    fn ready(&self, successor: &NodeName) -> Option<Ready> {
        let acknowledgers = self.policy.acknowledgers(self.view.node(successor)?);
        let (term, durability) = (self.view.next_term(self.state), self.policy.durability);
        Some(Ready { term, durability, acknowledgers })
    }

    /// What is still to be done.
    fn before_the_drain(&self, primary: &Primary, successor: &NodeName, ready: &Ready) -> Option<Action> {
        let checkpoint = self.on(primary, What::Checkpoint);
        let mut all = [checkpoint, self.policy.prepare_ahead(self.state, successor, ready)].into_iter();
        all.find(|action| self.view.ledger.finding(action).is_none())
    }

    /// W3. Whoever is pinned in no transaction is not waited for: it may keep its server for days.
    fn drained(&self, planned: &Planned) -> Option<Fired> {
        let drained = self.view.drained.as_ref().filter(|drained| drained.round == self.state.drains);
        let limit = self.policy.drain;
        let over = self.has_waited(limit);
        let Some(Drained { busy, pinned, .. }) = drained else {
            let why = || format!("the proxy did not say within {limit:?} what is open");
            return if over { self.give_up(why()) } else { None };
        };
        if *busy > 0 && !over {
            return None;
        }
        if *busy > 0 && planned.stragglers == Stragglers::Spared {
            return self.give_up(format!("transactions still open after {limit:?}: {busy}"));
        }
        let mut election = self.election.clone();
        if *busy > 0 {
            election.record.evidence.push(format!("transactions cut off after {limit:?}: {busy}"));
        }
        let pinned =
            pinned.iter().map(|(reason, count)| format!("sessions pinned by {reason}, cut off: {count}"));
        election.record.evidence.extend(pinned);
        let step = match planned.rest {
            Rest::ShutDown => Step::ShutDown,
            Rest::LeftRunning => Step::Settle,
        };
        Fired::new(RuleId::W3, election::at(self.state, election, step, self.now))
    }

    /// W4, with an agent.
    fn shut_down(&self, primary: &Primary, successor: &NodeName) -> Option<Fired> {
        let action = self.on(primary, What::ShutDown);
        if let Some(Finding::ShutDown { checkpoint }) = self.view.ledger.finding(&action)
            && *checkpoint < self.view.wal.verified
            && self.has_flushed(successor, self.view.wal.verified)
        {
            return self.hand_over();
        }
        let fails = self.view.ledger.failures(&action) >= self.policy.attempts;
        let node = self.view.node(successor);
        if node.is_none_or(|n| n.process == Process::Absent) {
            return self.give_up(format!("{successor} was lost"));
        }
        if !fails && !self.has_waited(self.policy.hand_over_timeout) {
            return None;
        }
        let why = if self.view.ledger.finding(&action).is_none() {
            format!("{} was not shut down in order", primary.node)
        } else {
            format!("relay and {successor} do not have all of its WAL")
        };
        self.give_up(why)
    }

    /// W4, without one.
    fn settled(&self, primary: &Primary, successor: &NodeName) -> Option<Fired> {
        let action = self.on(primary, What::LastWord);
        if let Some(Finding::Committed { lsn }) = self.view.ledger.finding(&action)
            && *lsn <= self.view.wal.verified
            && self.has_flushed(successor, *lsn)
        {
            return self.hand_over();
        }
        let fails = self.view.ledger.failures(&action) >= self.policy.attempts;
        if !fails && !self.has_waited(self.policy.hand_over_timeout) {
            return None;
        }
        self.give_up(format!("relay and {successor} do not have all that {} has written", primary.node))
    }

    fn has_flushed(&self, node: &NodeName, lsn: Lsn) -> bool {
        let follower = self.view.node(node).and_then(|n| self.follower(n));
        follower.is_some_and(|follower| lsn <= follower.flush)
    }

    fn hand_over(&self) -> Option<Fired> {
        Fired::new(RuleId::W4, self.next_term(self.election.clone()))
    }

    /// The election goes on in the next term, with the same record.
    fn next_term(&self, mut election: super::Election) -> State {
        let mut next = self.state.clone().in_term(self.view.next_term(self.state));
        if let Some(primary) = &self.state.primary {
            next.depose(&primary.node);
        }
        election.record.term = next.term;
        election::at(&next, election, Step::Fence, self.now)
    }

    /// Something has happened to the primary, or to its successor.
    fn disturbed(&self, primary: &Primary, successor: &NodeName) -> Option<Fired> {
        if let Some(mut fired) = steady::primary_dead(self.view, self.state, self.policy, self.now) {
            let why = format!("{} was lost before it had handed over", primary.node);
            fired.concluded = Some(election::concluded(self.election, Outcome::Failed { why }, self.now));
            return Some(fired);
        }
        if let PrimaryVerdict::Dead { .. } = &self.view.verdict {
            let evidence = self.view.evidence().join("; ");
            return self.give_up(format!("{} was lost: {evidence}", primary.node));
        }
        let facts = self.view.node(&primary.node).and_then(|n| n.facts);
        let restarted =
            facts.is_some_and(|f| primary.started_at.as_ref().is_some_and(|at| *at != f.started_at));
        if restarted {
            return self.give_up(format!("{} was restarted", primary.node));
        }
        let lost = self.view.node(successor).is_none_or(NodeView::is_down);
        if lost { self.give_up(format!("{successor} was lost")) } else { None }
    }

    /// W5. A server that was told to shut down cannot be told otherwise: it is let go in a term of its own, and
    /// started again ([`Case::elect`]).
    fn give_up(&self, why: String) -> Option<Fired> {
        if self.election.step == Step::ShutDown {
            let election = self.election.clone().given_up(&why);
            return Fired::new(RuleId::W5, self.next_term(election));
        }
        let mut fired = Fired::new(RuleId::W5, State { phase: Phase::Steady, ..self.state.clone() })?;
        fired.concluded = Some(election::concluded(self.election, Outcome::Failed { why }, self.now));
        Some(fired)
    }

    /// W5, after a restart of this process: the primary is looked at first.
    fn abandoned(&self) -> Option<Fired> {
        let next = establish::establishing(self.state.clone(), Why::Adopt, EstablishStep::Confirm, self.now);
        let mut fired = Fired::new(RuleId::W5, next)?;
        let why = "this instance was restarted".to_owned();
        fired.concluded = Some(election::concluded(self.election, Outcome::Failed { why }, self.now));
        Some(fired)
    }

    pub(super) fn wanted_in_peace(&self) -> Option<Action> {
        let primary = self.state.primary.as_ref()?;
        match &self.election.step {
            Step::Checkpoint => {
                let successor = self.election.successor()?;
                self.before_the_drain(primary, successor, &self.ready(successor)?)
            }
            Step::ShutDown => Some(self.on(primary, What::ShutDown)),
            Step::Settle => Some(self.on(primary, What::LastWord)),
            _ => None,
        }
    }

    fn on(&self, primary: &Primary, what: What) -> Action {
        Action { term: self.state.term, node: primary.node.clone(), what }
    }
}
