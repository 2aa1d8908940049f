//! Restarts of servers, one after the other, as an operator orders them: the standbys first, and the primary, if it is
//! among them, by a switchover to one that was restarted before. Each start is by the binaries that lie there then, so
//! with a newer minor version installed this is its upgrade.
//!
//! It goes on beside the steady phase, as a part of the journaled state: a restart of this process, or another leader,
//! takes it up where it is. It never adds to a trouble: a server is taken down only while everything else is as it
//! should be ([`obstacle`]), and whatever else happens to the primary meanwhile ends it ([`after`]). What was taken down is
//! started as any standby that does not run, also when the restart has ended.
//!
//! A standby serves nobody when it is stopped: its reads go elsewhere first, and what runs there may end, up to the drain
//! limit; behind that it goes on and the restart ends, unless the operator wants it cut.
//!
//! Not here: the switchover ([`switchover`]), and what starts servers ([`super::steady`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Action, Agent, Automatic, Fired, NodeView, Now, Phase, Policy, Primary, RuleId, State, Stragglers, View,
    What, switchover,
};
use crate::topology::{
    Drained, Draining, FollowerState, NodeName, Outcome, Phase as Timing, Restart, RestartedNode, Role,
};

/// The restart that is under way, and those that have ended, the oldest first: at most [`Restarts::PAST`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Restarts {
    pub now: Option<Box<Rolling>>,
    pub past: Vec<Restart>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rolling {
    /// As it will be remembered; grows with every step.
    pub record: Restart,
    /// Of the node whose turn it is ([`Restart::turn`]).
    pub step: Turn,
    /// When `step` began, Unix milliseconds.
    pub since_ms: u64,
    /// Of the node whose turn it is, before its restart: its `pg_postmaster_start_time()`.
    pub started_at: Option<String>,
    pub stragglers: Stragglers,
    /// Why it ends as soon as no server is down for its sake.
    pub ends: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// Until nothing stands in its way.
    Wait,
    /// A restartpoint, while reads go on, so that the shutdown has little left to write and the start little to replay.
    Checkpoint,
    /// No new read begins there; those that run may end.
    Drain,
    /// The agent stops it, and starts it.
    Restart,
    /// The primary: a switchover to this standby, which shuts it down.
    HandOver { to: NodeName },
    /// The former primary comes back as a standby.
    Rejoin,
}

impl Restarts {
    pub const PAST: usize = 8;

    /// All, the one that is under way last.
    pub fn all(&self) -> Vec<Restart> {
        self.past.iter().chain(self.now.iter().map(|rolling| &rolling.record)).cloned().collect()
    }

    /// The standby that serves nobody, since it is about to be restarted.
    pub(super) fn resting(&self) -> Option<&NodeName> {
        let rolling = self.now.as_deref()?;
        matches!(rolling.step, Turn::Drain | Turn::Restart).then(|| rolling.turn()).flatten()
    }

    /// Another process goes on with it: time counts anew.
    pub(super) fn taken_over(&mut self, now_ms: u64) {
        self.now.iter_mut().for_each(|rolling| rolling.since_ms = now_ms);
    }

    /// No more of it follows.
    pub fn end(&mut self, outcome: Outcome, now_ms: u64) {
        let Some(mut rolling) = self.now.take() else { return };
        rolling.note_time(now_ms);
        let record = rolling.record.clone();
        self.past.push(Restart { outcome, ended_at_ms: Some(now_ms), ..record });
        let excess = self.past.len().saturating_sub(Restarts::PAST);
        self.past.drain(..excess);
    }
}

impl Rolling {
    /// `nodes`: in the order of their turns.
    pub fn new(nodes: Vec<NodeName>, stragglers: Stragglers, now_ms: u64) -> Rolling {
        let nodes = nodes.into_iter().map(RestartedNode::new).collect();
        Rolling {
            record: Restart {
                started_at_ms: now_ms,
                ended_at_ms: None,
                nodes,
                waits_for: None,
                outcome: Outcome::Running,
            },
            step: Turn::Wait,
            since_ms: now_ms,
            started_at: None,
            stragglers,
            ends: None,
        }
    }

    pub fn turn(&self) -> Option<&NodeName> {
        self.record.turn().map(|node| &node.node)
    }

    fn entered(&mut self, step: Turn, now_ms: u64) {
        self.note_time(now_ms);
        self.step = step;
    }

    fn note_time(&mut self, now_ms: u64) {
        let millis = now_ms.saturating_sub(self.since_ms);
        let name = self.step.name().to_owned();
        if let Some(node) = self.this() {
            node.phases.push(Timing { name, millis });
        }
        self.since_ms = now_ms;
    }

    fn this(&mut self) -> Option<&mut RestartedNode> {
        self.record.nodes.iter_mut().find(|node| !node.is_back())
    }
}

impl Turn {
    /// As in [`RestartedNode::phases`].
    fn name(&self) -> &'static str {
        match self {
            Turn::Wait => "wait",
            Turn::Checkpoint => "checkpoint",
            Turn::Drain => "drain",
            Turn::Restart => "restart",
            Turn::HandOver { .. } => "hand_over",
            Turn::Rejoin => "rejoin",
        }
    }
}

/// R1.
pub(super) fn begin(state: &State, nodes: &[NodeName], stragglers: Stragglers, now: Now) -> Option<Fired> {
    if state.restarts.now.is_some() {
        return None;
    }
    // No two have the same name, whatever the calendar does.
    let last = state.restarts.past.last().map_or(0, |restart| restart.started_at_ms + 1);
    let rolling = Rolling::new(nodes.to_vec(), stragglers, now.unix_ms.max(last));
    let mut next = state.clone();
    next.restarts.now = Some(Box::new(rolling));
    Fired::new(RuleId::R1, next)
}

pub(super) fn advance(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<Fired> {
    let rolling = state.restarts.now.as_deref()?;
    let Some(node) = rolling.turn() else { return ended(RuleId::R9, state, Outcome::Completed, now) };
    let primary = state.primary.as_ref()?;
    Course { view, state, policy, rolling, primary, node, now }.advance()
}

fn ended(rule: RuleId, state: &State, outcome: Outcome, now: Now) -> Option<Fired> {
    let mut next = state.clone();
    next.restarts.end(outcome, now.unix_ms);
    Fired::new(rule, next)
}

/// What another rule means for the restart that is under way: anything that befalls the primary ends it, but for its own
/// switchover.
pub(super) fn after(before: &State, mut fired: Fired, now: Now) -> Fired {
    if let Some(why) = disturbance(before, &fired) {
        fired.next.restarts.end(Outcome::Failed { why }, now.unix_ms);
    }
    fired
}

fn disturbance(before: &State, fired: &Fired) -> Option<String> {
    fired.next.restarts.now.as_ref()?;
    let name = fired.rule.rule().map_or("", |rule| rule.name);
    let by_rule = || format!("{name} (rule {})", fired.rule.as_str());
    match fired.rule {
        RuleId::F1 | RuleId::F2 | RuleId::F3 | RuleId::F4 | RuleId::F5 | RuleId::F6 => {
            Some(format!("a failover began: {}", by_rule()))
        }
        RuleId::F7 | RuleId::S2 | RuleId::A2 | RuleId::B1 => {
            Some(format!("something else happened: {}", by_rule()))
        }
        _ => {
            // A switchover that only lost the process that drove it is begun again.
            let abandoned = matches!(&before.phase, Phase::Election(election) if election.is_abandoned());
            let outcome = &fired.concluded.as_ref().filter(|_| !abandoned)?.outcome;
            let Outcome::Failed { why } = outcome else { return None };
            Some(format!("the switchover did not take place: {why}"))
        }
    }
}

/// A restart that is under way, looked at once.
struct Course<'a> {
    view: &'a View<'a>,
    state: &'a State,
    policy: &'a Policy,
    /// Of `state`.
    rolling: &'a Rolling,
    primary: &'a Primary,
    /// Whose turn it is.
    node: &'a NodeName,
    now: Now,
}

impl Course<'_> {
    fn advance(&self) -> Option<Fired> {
        let ends = self.rolling.ends.clone().or_else(|| {
            (self.state.automatic == Automatic::Paused).then(|| "automatic failover was paused".to_owned())
        });
        if let Some(why) = ends.filter(|_| !self.has_one_down()) {
            return self.give_up(why);
        }
        match &self.rolling.step {
            Turn::Wait => self.its_turn(),
            Turn::Checkpoint => self.checkpointed(),
            Turn::Drain => self.drained(),
            Turn::HandOver { to } => self.handed_over(to),
            Turn::Restart | Turn::Rejoin => self.back(),
        }
    }

    /// Whether a server is down, or on its way there, for its sake.
    fn has_one_down(&self) -> bool {
        match &self.rolling.step {
            Turn::Restart | Turn::Rejoin => true,
            Turn::HandOver { to } => self.primary.node == *to,
            Turn::Wait | Turn::Checkpoint | Turn::Drain => false,
        }
    }

    /// R2, R6.
    fn its_turn(&self) -> Option<Fired> {
        if let Some(why) = obstacle(self.view, self.state, self.node) {
            return self.give_up_behind(self.policy.restart_timeout, || why);
        }
        let facts = self.view.node(self.node)?.facts?;
        let (rule, step) = if *self.node == self.primary.node {
            let to = successor(self.view, self.state, self.rolling).ok()?;
            (RuleId::R6, Turn::HandOver { to })
        } else {
            (RuleId::R2, Turn::Checkpoint)
        };
        self.enter(rule, step, |rolling| {
            rolling.started_at = Some(facts.started_at.clone());
            rolling.this()?.from_version = Some(facts.server_version.clone());
            Some(())
        })
    }

    /// R3. Without a restartpoint the shutdown takes longer, no more.
    fn checkpointed(&self) -> Option<Fired> {
        let action = self.on(What::Checkpoint);
        let done = self.view.ledger.finding(&action).is_some()
            || self.view.ledger.failures(&action) >= self.policy.attempts
            || self.has_waited(self.policy.checkpoint_timeout);
        if !done {
            return None;
        }
        let mut fired = self.enter(RuleId::R3, Turn::Drain, |_| Some(()))?;
        fired.next.drains += 1;
        Some(fired)
    }

    /// R4. It is looked around once more: from here on a server is down. What passes is waited for: behind a restart of this
    /// process standbys come back to its relay one after the other.
    fn drained(&self) -> Option<Fired> {
        if let Some(why) = obstacle(self.view, self.state, self.node) {
            return self.give_up_behind(self.policy.restart_timeout, || why);
        }
        let drained = self.view.drained.as_ref().filter(|drained| drained.round == self.state.drains);
        let (node, limit) = (self.node, self.policy.drain);
        let over = self.has_waited(limit);
        let Some(Drained { busy, pinned, .. }) = drained else {
            let why = || format!("the proxy did not say within {limit:?} what is open at {node}");
            return self.give_up_behind(limit, why);
        };
        if *busy > 0 && !over {
            return None;
        }
        if *busy > 0 && self.rolling.stragglers == Stragglers::Spared {
            return self.give_up(format!("transactions still open at {node} after {limit:?}: {busy}"));
        }
        let cut = (*busy > 0).then(|| format!("transactions cut off after {limit:?}: {busy}"));
        let pinned = pinned.iter().map(|(why, count)| format!("sessions pinned by {why}, cut off: {count}"));
        let evidence: Vec<String> = cut.into_iter().chain(pinned).collect();
        self.enter(RuleId::R4, Turn::Restart, |rolling| {
            rolling.this()?.evidence.extend(evidence);
            Some(())
        })
    }

    /// R6 wished for a switchover: W1, and behind it R7.
    fn handed_over(&self, to: &NodeName) -> Option<Fired> {
        if self.primary.node == *to {
            return self.enter(RuleId::R7, Turn::Rejoin, |_| Some(()));
        }
        if self.primary.node != *self.node {
            return self.give_up(format!("{} took over instead of {to}", self.primary.node));
        }
        let why = format!("{} is to be restarted", self.node);
        let stragglers = self.rolling.stragglers;
        switchover::begin(self.view, self.state, Some(to), stragglers, why, self.now).or_else(|| {
            let why = || switchover::successor(self.view, self.state, Some(to)).err().unwrap_or_default();
            self.give_up_behind(self.policy.hand_over_timeout, why)
        })
    }

    /// R5.
    fn back(&self) -> Option<Fired> {
        if let Some(why) = self.not_back() {
            let limit = self.policy.restart_timeout;
            let why = || format!("{} did not come back within {limit:?}: {why}", self.node);
            return self.give_up_behind(limit, why);
        }
        let version = self.view.node(self.node)?.facts?.server_version.clone();
        // Its time is noted before it is back.
        self.enter(RuleId::R5, Turn::Wait, |rolling| {
            rolling.started_at = None;
            rolling.this()?.to_version = Some(version);
            Some(())
        })
    }

    /// Up since a later start, and fit to take over: it streams and has little to replay.
    fn not_back(&self) -> Option<String> {
        let node = self.view.node(self.node)?;
        if let Some(why) = switchover::why_unusable(self.view, self.state, self.primary, node) {
            return Some(why);
        }
        if self.state.away().any(|away| away == self.node) {
            return Some("it does not follow yet".to_owned());
        }
        if node.facts.map(|facts| &facts.started_at) == self.rolling.started_at.as_ref() {
            return Some("it was not stopped".to_owned());
        }
        let follower = self.view.wal.follower(self.node);
        let streams = follower.is_some_and(|follower| follower.state == FollowerState::Streaming);
        (!streams).then(|| "it catches up".to_owned())
    }

    fn enter(
        &self,
        rule: RuleId,
        step: Turn,
        note: impl FnOnce(&mut Rolling) -> Option<()>,
    ) -> Option<Fired> {
        let mut rolling = self.rolling.clone();
        rolling.entered(step, self.now.unix_ms);
        note(&mut rolling)?;
        let mut next = self.state.clone();
        next.restarts.now = Some(Box::new(rolling));
        Fired::new(rule, next)
    }

    /// R8.
    fn give_up(&self, why: String) -> Option<Fired> {
        ended(RuleId::R8, self.state, Outcome::Failed { why }, self.now)
    }

    fn give_up_behind(&self, limit: Duration, why: impl FnOnce() -> String) -> Option<Fired> {
        if self.has_waited(limit) { self.give_up(why()) } else { None }
    }

    /// In this step.
    fn has_waited(&self, limit: Duration) -> bool {
        // Another host's calendar, or this one's before it was set back: rather too soon than not before it is as late.
        let waited = self.now.unix_ms.abs_diff(self.rolling.since_ms);
        u128::from(waited) >= limit.as_millis()
    }

    fn on(&self, what: What) -> Action {
        Action { term: self.state.term, node: self.node.clone(), what }
    }
}

/// Why `node` must not be restarted now; `None`: it may be.
pub(in crate::failover) fn obstacle(view: &View<'_>, state: &State, name: &NodeName) -> Option<String> {
    let primary = match switchover::at_peace(view, state) {
        Ok(primary) => primary,
        Err(why) => return Some(why),
    };
    if view.draining != Draining::default() {
        return Some("connections are still served by the process before this one".to_owned());
    }
    if let Some(away) = state.away().next() {
        return Some(format!("{away} does not follow yet"));
    }
    let Some(node) = view.node(name) else { return Some(format!("{name} is not a node of this cluster")) };
    if let Some(why) = why_not_by_agent(node) {
        return Some(why);
    }
    let others = view.nodes.iter().filter(|other| other.node.name != *name);
    if let Some(busy) = view.nodes.iter().map(|node| &node.node.name).find(|node| view.is_server_busy(node)) {
        return Some(format!("{busy}'s server is being started or made"));
    }
    if *name == primary.node {
        let rolling = state.restarts.now.as_deref();
        let successor = rolling.map_or_else(
            || switchover::successor(view, state, None),
            |rolling| successor(view, state, rolling),
        );
        return successor.err();
    }
    if let Some(why) = switchover::why_unusable(view, state, primary, node) {
        return Some(format!("{name}: {why}"));
    }
    // Without another one a lost primary has no successor while this one is down.
    let mut candidates =
        others.filter(|other| other.node.name != primary.node && !other.node.no_failover).peekable();
    candidates.peek()?;
    let why_not = |other: &NodeView<'_>| switchover::why_unfit(view, state, primary, other);
    let unfit: Option<Vec<String>> =
        candidates.map(|other| why_not(other).map(|why| format!("{}: {why}", other.node.name))).collect();
    unfit.map(|unfit| format!("no other standby could take over meanwhile: {}", unfit.join("; ")))
}

/// Why nobody can restart the server; with what a person can do.
pub(in crate::failover) fn why_not_by_agent(node: &NodeView<'_>) -> Option<String> {
    let name = &node.node.name;
    match node.agent {
        Agent::Local => None,
        Agent::Away => Some(format!("the instance beside {name}, which is to restart it, is not heard")),
        Agent::None => Some(format!(
            "no agent runs on the host of {name} (`local` in the configuration of an instance there): restart it by hand, \
             with pg_ctl -D DIR -m fast restart; a primary after a switchover"
        )),
    }
}

/// To whom the primary would hand over: to one that this restart has restarted, if it has restarted any.
fn successor(view: &View<'_>, state: &State, rolling: &Rolling) -> Result<NodeName, String> {
    let back = |name: &NodeName| rolling.record.nodes.iter().any(|node| node.is_back() && node.node == *name);
    if rolling.record.nodes.iter().any(RestartedNode::is_back) {
        switchover::successor_among(view, state, back)
    } else {
        switchover::successor(view, state, None)
    }
}

/// What it waits for, for people.
pub(in crate::failover) fn waits_for(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    now: Now,
) -> Option<String> {
    let rolling = state.restarts.now.as_deref()?;
    let (node, primary) = (rolling.turn()?, state.primary.as_ref()?);
    let course = Course { view, state, policy, rolling, primary, node, now };
    match &rolling.step {
        Turn::Wait => obstacle(view, state, node),
        Turn::Checkpoint => Some(format!("a restartpoint of {node}")),
        Turn::Drain => {
            let busy = view.drained.as_ref().map(|drained| drained.busy);
            Some(format!(
                "transactions that are open at {node}: {}",
                busy.map_or("?".to_owned(), |n| n.to_string())
            ))
        }
        Turn::Restart | Turn::Rejoin => course.not_back().map(|why| format!("{node} to be back: {why}")),
        Turn::HandOver { to } => Some(format!("the switchover from {node} to {to}")),
    }
}

/// What the step wants done, beside what is wanted anyway.
pub(super) fn wanted(view: &View<'_>, state: &State) -> Vec<Action> {
    let wish = || {
        let rolling = state.restarts.now.as_deref()?;
        let node = view.node(rolling.turn()?)?;
        let facts = node.facts.filter(|_| node.is_up_as(Role::Standby))?;
        let as_before = rolling.started_at.as_ref() == Some(&facts.started_at);
        let what = match rolling.step {
            Turn::Checkpoint => What::Checkpoint,
            Turn::Restart if as_before && node.agent == Agent::Local => What::StopStandby,
            _ => return None,
        };
        let name = node.node.name.clone();
        (!view.ledger.is_server_busy(&name)).then_some(Action { term: state.term, node: name, what })
    };
    wish().into_iter().collect()
}
