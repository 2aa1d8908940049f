//! One turn of the control plane: what follows from all that is known now. PURE.
//!
//! ```text
//! turn(now, wal, proxy) -> [Fired ..] Journal, GiveUpBefore, Direct, Probe, Remember, [Start ..]
//! ```
//!
//! The order of the effects is the promise: what is decided is durable before anybody hears of it, and the
//! directive is out before an action begins that relies on it. A shell does them in this order, each to its end,
//! and nothing after one that failed: then the process ends, and what it knew with it. The simulation's shell is
//! held to that from outside, and may die after any of them.
//!
//! Not here: rules ([`super::decide`]), clocks, files, channels, tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::Tuning;
use super::command::Command;
use super::decide::{
    self, Action, Agent, Automatic, Finding, Ledger, NodeView, Now, Phase, Policy, Process, Request, RuleId,
    State, View,
};
use super::error::CommandError;
use super::health::{ProbeResult, Watch};
use super::state::MAX_HISTORY;
use crate::topology::{
    Directive, Draining, Election, Health, LeftBehind, Node, NodeName, Outcome, ProxyStatus, Term, WalStatus,
};

/// Rules that may fire in one turn: more than any chain of them is long. At the bound a person is told, and the next
/// turn goes on.
pub(crate) const MAX_CHAIN: usize = 16;

#[derive(Debug)]
pub(crate) struct Core {
    nodes: Vec<Node>,
    /// Nodes whose servers we start and stop.
    local: BTreeSet<NodeName>,
    policy: Policy,
    state: State,
    /// What the shell was last asked to journal; `state` differs from it within a turn, and after a command.
    journaled: State,
    /// The last directive that went out.
    directive: Directive,
    watch: Watch,
    ledger: Ledger,
    request: Option<Request>,
    /// Ended elections, oldest first; at most [`MAX_HISTORY`].
    history: Vec<Election>,
    /// Of `history`.
    remembered: Remembered,
    /// What was last said to need a person.
    obstacle: Option<String>,
}

/// What a turn wants done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// To be told to people.
    Fired {
        term: Term,
        rule: RuleId,
    },
    /// The rules cannot go on by themselves. Once, not at every turn.
    Alarm {
        term: Term,
        why: String,
    },
    /// To be made durable, before anything else of this turn.
    Journal(State),
    /// Actions of earlier terms must not begin any more.
    GiveUpBefore(Term),
    /// An election is over, for the metrics and the log.
    Concluded(Election),
    /// A standby was found that cannot follow.
    LeftBehind(LeftBehind),
    Direct(Directive),
    /// Its next answer matters: now, not in turn.
    Probe(NodeName),
    /// The whole history, to be made durable. Behind the directive: clients wait for that.
    Remember(Vec<Election>),
    Start(Action),
}

impl Core {
    /// `state`: of the journal, [`State::resumed`], or [`State::bootstrapping`].
    pub(crate) fn new(
        nodes: Vec<Node>,
        local: BTreeSet<NodeName>,
        policy: Policy,
        watch: Watch,
        state: State,
        history: Vec<Election>,
    ) -> Core {
        Core {
            directive: state.directive(),
            journaled: state.clone(),
            nodes,
            local,
            policy,
            state,
            watch,
            ledger: Ledger::default(),
            request: None,
            history,
            remembered: Remembered::All,
            obstacle: None,
        }
    }

    /// What holds now; of a shell that has done all effects.
    pub(crate) fn directive(&self) -> &Directive {
        &self.directive
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn is_steady(&self) -> bool {
        matches!(self.state.phase, Phase::Steady)
    }

    /// Of the nodes, those that answer and must not be used marked.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let mut health = self.watch.health(now);
        decide::quarantine(&mut health, &self.state);
        health
    }

    /// Oldest first; a running election is the last.
    pub(crate) fn history(&self) -> Vec<Election> {
        let mut history = self.history.clone();
        if let Phase::Election(election) = &self.state.phase {
            history.push(election.record.clone());
        }
        history
    }

    // What happened since the last turn.

    pub(crate) fn tick(&mut self, now: Instant) {
        self.watch.tick(now);
    }

    pub(crate) fn probed(&mut self, at: Instant, node: &NodeName, result: ProbeResult) {
        self.watch.observe(at, node, result);
    }

    pub(crate) fn tune(&mut self, tuning: Tuning) {
        let Tuning { mode, max_lost_bytes, drain, detect } = tuning;
        self.policy.mode = mode;
        self.policy.drain = drain;
        self.policy.max_lost_bytes = max_lost_bytes;
        self.watch.set_detect(detect);
    }

    /// An action ended; `None`: it failed, or was given up.
    pub(crate) fn acted(&mut self, action: &Action, result: Option<Finding>, now: Instant) {
        if let Some(Finding::Back { saved: Some(tail) }) = &result {
            self.note(|election| election.saved.push(tail.clone()));
        }
        match result {
            Some(finding) => self.ledger.succeeded(action, finding, now),
            None => self.ledger.failed(action, now),
        }
    }

    /// To the election that brought about what holds.
    fn note(&mut self, note: impl FnOnce(&mut Election)) {
        let last = self.history.iter_mut().rev().find(|e| e.outcome == Outcome::Completed);
        if let Some(election) = last {
            note(election);
            self.remembered = Remembered::Behind;
        }
    }

    /// What is accepted holds when the next turn's effects are done.
    pub(crate) fn command(
        &mut self,
        command: &Command,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> Result<String, CommandError> {
        match command {
            Command::Failover { to } => {
                if !self.is_steady() {
                    return Err(CommandError::NotNow("an election or the start is under way".to_owned()));
                }
                if let Some(to) = to {
                    self.check_candidate(to)?;
                }
                self.request = Some(Request::Failover { to: to.clone() });
                Ok("failover has begun".to_owned())
            }
            Command::Switchover { to, stragglers } => {
                let to = to.as_ref();
                let (primary, successor) = self.check_switchover(to, now, wal, proxy)?;
                self.request =
                    Some(Request::Switchover { to: Some(successor.clone()), stragglers: *stragglers });
                let has_agent = self.local.contains(&primary);
                Ok(if has_agent {
                    format!("switchover from {primary} to {successor} has begun")
                } else {
                    format!(
                        "switchover from {primary} to {successor} has begun; {primary} has no agent here that could \
                         shut it down, so it goes on running, cut off, and must be made a standby by hand afterwards"
                    )
                })
            }
            Command::Pause => {
                self.state.automatic = Automatic::Paused;
                Ok("automatic failover is paused".to_owned())
            }
            Command::Resume => {
                self.state.automatic = Automatic::On;
                Ok("automatic failover is on".to_owned())
            }
        }
    }

    /// From whom to whom, if that is possible now.
    fn check_switchover(
        &self,
        to: Option<&NodeName>,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> Result<(NodeName, NodeName), CommandError> {
        let not_now = |why: &str| Err(CommandError::NotNow(why.to_owned()));
        if let Some(to) = to {
            self.check_candidate(to)?;
        }
        if !self.is_steady() || self.request.is_some() {
            return not_now("an election, a switchover or the start is under way");
        }
        if self.state.automatic == Automatic::Paused {
            return not_now("automatic failover is paused; resume first");
        }
        if proxy.draining != Draining::default() {
            return not_now("connections are still served by the process before this one");
        }
        let health = self.watch.health(now.instant);
        let view = self.view(&health, now, wal, proxy);
        let successor = decide::successor(&view, &self.state, to).map_err(CommandError::NotNow)?;
        let primary = self.state.primary.as_ref().map(|primary| primary.node.clone());
        primary
            .map(|primary| (primary, successor))
            .ok_or_else(|| CommandError::NotNow("no primary".to_owned()))
    }

    fn check_candidate(&self, to: &NodeName) -> Result<(), CommandError> {
        let node = self.nodes.iter().find(|n| n.name == *to);
        let node = node.ok_or_else(|| CommandError::UnknownNode(to.clone()))?;
        let unfit = |why: &str| Err(CommandError::Unfit(to.clone(), why.to_owned()));
        if self.state.primary.as_ref().is_some_and(|p| p.node == *to) {
            return unfit("it is the primary");
        }
        if node.no_failover { unfit("it is configured with no_failover") } else { Ok(()) }
    }

    /// Decides until nothing more follows.
    pub(crate) fn turn(&mut self, now: Now, wal: &Arc<WalStatus>, proxy: &ProxyStatus) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut decided = Decided::default();
        self.decide(MAX_CHAIN, now, wal, proxy, &mut decided, &mut effects);
        if self.state != self.journaled {
            self.journaled = self.state.clone();
            effects.push(Effect::Journal(self.state.clone()));
            effects.push(Effect::GiveUpBefore(self.state.term));
            self.conclude(decided.concluded, decided.left_behind, &mut effects);
            self.direct(&mut effects);
            effects.extend(self.state.primary.as_ref().map(|primary| Effect::Probe(primary.node.clone())));
        }
        if std::mem::replace(&mut self.remembered, Remembered::All) == Remembered::Behind {
            effects.push(Effect::Remember(self.history.clone()));
        }
        for action in decided.wanted {
            if self.ledger.is_due(&action, now.instant) {
                self.ledger.started(&action);
                effects.push(Effect::Start(action));
            }
        }
        effects
    }

    fn decide(
        &mut self,
        chain: usize,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
        decided: &mut Decided,
        effects: &mut Vec<Effect>,
    ) {
        for _ in 0..chain {
            self.watch.expect_primary(self.state.primary.as_ref().map(|p| &p.node));
            let health = self.watch.health(now.instant);
            let view = self.view(&health, now, wal, proxy);
            let decision = decide::decide(&view, &self.state, &self.policy, now);
            decided.wanted = decision.actions;
            decided.concluded.extend(decision.concluded);
            decided.left_behind.extend(decision.left_behind);
            let Some(rule) = decision.rule else {
                let obstacle = decide::obstacle(&view, &self.state, &self.policy, now);
                effects.extend(self.alarm(obstacle));
                return;
            };
            effects.push(Effect::Fired { term: decision.next.term, rule });
            if decision.next.term > self.state.term {
                self.ledger.forget_before(decision.next.term);
                self.request = None;
            }
            if let (RuleId::W1, Some(primary)) = (rule, &decision.next.primary) {
                // Of a switchover that was given up earlier in this term.
                self.ledger.forget_results(&primary.node);
                self.request = None;
            }
            if let (RuleId::E3, Phase::Election(election)) = (rule, &decision.next.phase) {
                election.step.candidate().into_iter().for_each(|node| self.ledger.forget_results(node));
            }
            if rule == RuleId::S3 {
                let back = self.state.away().filter(|node| !decision.next.away().any(|other| other == *node));
                back.for_each(|node| self.ledger.forget_results(node));
            }
            self.state = decision.next;
        }
        effects
            .extend(self.alarm(Some(format!("the rules go round in a circle: {chain} have fired at once"))));
    }

    fn view<'a>(
        &'a self,
        health: &'a Health,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> View<'a> {
        let nodes = self.nodes.iter().zip(&health.nodes).map(|(node, health)| NodeView {
            node,
            health,
            facts: self.watch.facts(&node.name),
            process: if self.watch.is_refused(&node.name) {
                Process::Absent
            } else {
                Process::PresentOrUnknown
            },
            agent: if self.local.contains(&node.name) { Agent::Local } else { Agent::None },
        });
        View {
            nodes: nodes.collect(),
            verdict: self.watch.verdict(now.instant, wal, proxy),
            wal: wal.clone(),
            confirmed: proxy.confirmed,
            cleared: proxy.cleared.clone(),
            drained: proxy.drained.clone(),
            ledger: &self.ledger,
            request: self.request.clone(),
        }
    }

    /// The numbers in it may change without being news.
    fn alarm(&mut self, obstacle: Option<String>) -> Option<Effect> {
        let is_new = self.obstacle.is_none();
        self.obstacle.clone_from(&obstacle);
        obstacle.filter(|_| is_new).map(|why| Effect::Alarm { term: self.state.term, why })
    }

    /// Takes ended elections into the history.
    fn conclude(
        &mut self,
        concluded: Vec<Election>,
        left_behind: Vec<LeftBehind>,
        effects: &mut Vec<Effect>,
    ) {
        if !concluded.is_empty() {
            self.remembered = Remembered::Behind;
        }
        effects.extend(concluded.iter().cloned().map(Effect::Concluded));
        self.history.extend(concluded);
        for standby in left_behind {
            effects.push(Effect::LeftBehind(standby.clone()));
            self.note(|election| election.left_behind.push(standby));
        }
        let excess = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..excess);
    }

    fn direct(&mut self, effects: &mut Vec<Effect>) {
        let directive = self.state.directive();
        if directive != self.directive {
            self.directive = directive.clone();
            effects.push(Effect::Direct(directive));
        }
    }
}

/// Whether the shell was told of all that is in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remembered {
    All,
    Behind,
}

/// What a chain of decisions came to.
#[derive(Debug, Default)]
struct Decided {
    /// Of the last one.
    wanted: Vec<Action>,
    concluded: Vec<Election>,
    left_behind: Vec<LeftBehind>,
}

#[cfg(test)]
mod tests;
