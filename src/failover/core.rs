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
//! What operators order is in [`orders`]. Not here: rules ([`super::decide`]), clocks, files, channels, tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Tuning;
use super::decide::{
    self, Action, Agent, Agreement, Finding, Ledger, NodeView, Now, Phase, Policy, Process, Request, RuleId,
    State, View, What,
};
use super::health::{Knock, ProbeResult, Told, Watch, diagnose};
use super::state::MAX_HISTORY;
use crate::topology::{
    Ailment, Deed, Diagnosis, Directive, Done, Election, Failovers, Follower, Health, LeftBehind, Members,
    Node, NodeName, Outcome, ProxyStatus, SavedTail, Term, Waited, Waiting, WalStatus,
};

/// Rules that may fire in one turn: more than any chain of them is long. At the bound a person is told, and the next
/// turn goes on.
pub(crate) const MAX_CHAIN: usize = 16;

/// A name that stands for so long is told to people. Until all have heard and said what there is, it may change.
const NAMED_AFTER: Duration = Duration::from_secs(1);

/// Of an agent that others are told of: whoever leads hears of each within a second.
const MAX_DEEDS: usize = 16;

#[derive(Debug)]
pub(crate) struct Core {
    nodes: Vec<Node>,
    /// Nodes whose servers we start and stop.
    local: BTreeSet<NodeName>,
    policy: Policy,
    standing: Standing,
    state: State,
    /// All instances; alone, this one.
    members: Arc<Members>,
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
    /// What the agent of this instance has done, oldest first; at most [`MAX_DEEDS`].
    deeds: Vec<Deed>,
    /// What ails the primary, as of the last turn.
    diagnosis: Option<Diagnosis>,
    /// Since when it has had that name; before any, `None`.
    named_at: Option<Instant>,
    /// The last that people were told.
    told_of: Option<Ailment>,
    /// What was last said to need a person.
    obstacle: Option<String>,
    /// What a restart of servers waits for, by the last turn.
    waits_for: Option<String>,
    /// When each node was last seen to stream from a relay; who never was, since when it is looked for.
    streamed: BTreeMap<NodeName, Instant>,
    /// As it was before the last turn that journals.
    before: Option<Before>,
}

#[derive(Debug)]
struct Before {
    state: State,
    history: Vec<Election>,
    request: Option<Request>,
    directive: Directive,
    /// What the turn wanted begun, behind the journal.
    begun: Vec<Action>,
}

/// Whether this instance decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Leads,
    /// It obeys what another one decides, and has its servers do what they are to do.
    Follows,
}

/// What a turn wants done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// To be told to people.
    Fired {
        term: Term,
        rule: RuleId,
        /// What ailed the primary.
        ailment: Option<Ailment>,
    },
    /// Something else ails the primary than before, or nothing any more. For people only.
    Diagnosed(Option<Diagnosis>),
    /// The rules cannot go on by themselves. Once, not at every turn.
    Alarm {
        term: Term,
        why: String,
    },
    /// Something is left undone, and goes on by itself; people should know what they can do.
    Warn {
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
        mut state: State,
        history: Vec<Election>,
    ) -> Core {
        if policy.members.is_empty() {
            // Of a time when it was not alone.
            (state.floor, state.quorums) = (None, Vec::new());
        }
        Core {
            standing: Standing::Leads,
            members: Arc::new(Members::alone()),
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
            deeds: Vec::new(),
            diagnosis: None,
            named_at: None,
            told_of: None,
            obstacle: None,
            waits_for: None,
            streamed: BTreeMap::new(),
            before: None,
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
        health.diagnosis.clone_from(&self.diagnosis);
        health
    }

    /// Whether a dead primary is replaced without a person.
    pub(crate) fn failovers(&self, now: Now) -> Failovers {
        decide::failovers(&self.state, &self.policy, now.unix_ms)
    }

    /// Oldest first; a running election is the last.
    pub(crate) fn history(&self) -> Vec<Election> {
        let mut history = self.history.clone();
        if let Phase::Election(election) = &self.state.phase {
            history.push(election.record.clone());
        }
        history
    }

    // Who decides.

    /// From now on this instance decides, by what the journal holds.
    pub(crate) fn lead(&mut self, state: State) {
        self.adopt(state);
        self.standing = Standing::Leads;
    }

    /// Another one decides, and has journaled this; or has had it journaled when it was last heard.
    pub(crate) fn follow(&mut self, state: State) {
        self.adopt(state);
        self.standing = Standing::Follows;
        (self.request, self.obstacle, self.waits_for, self.remembered) = (None, None, None, Remembered::All);
    }

    /// Who has ordered something is told that it was not done.
    pub(crate) fn withdraw(&mut self) {
        self.request = None;
    }

    /// What the last turn has decided could not be made durable: it is as if it had not been. It may be decided again.
    pub(crate) fn retract(&mut self) {
        if let Some(Before { state, history, request, directive, begun }) = self.before.take() {
            begun.iter().for_each(|action| self.ledger.never_began(action));
            self.adopt(state);
            (self.history, self.request, self.directive) = (history, request, directive);
        }
    }

    fn adopt(&mut self, state: State) {
        self.ledger.forget_before(state.term);
        self.journaled = state.clone();
        self.state = state;
    }

    /// Whether another instance had better lead: this one would be gone together with the primary's host, and until its
    /// lease is over nobody would do anything about it.
    pub(crate) fn had_better_yield(&self, now: Instant) -> bool {
        let Some(primary) = &self.state.primary else { return false };
        self.standing == Standing::Leads
            && self.is_steady()
            && self.request.is_none()
            && self.local.contains(&primary.node)
            && self.members.has_one_apart_from(now, &primary.node)
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// As the journal has it.
    pub(crate) fn remember(&mut self, history: Vec<Election>) {
        self.history = history;
    }

    // What happened since the last turn.

    pub(crate) fn heard(&mut self, members: Arc<Members>, now: Instant) {
        if self.standing == Standing::Leads {
            members.deeds().for_each(|deed| self.learn(deed, now));
        }
        self.members = members;
    }

    /// Another instance's agent did it, as was wanted here.
    fn learn(&mut self, deed: &Deed, now: Instant) {
        match &deed.what {
            Done::ShutDown { checkpoint } if deed.term == self.state.term => {
                let action = Action { term: deed.term, node: deed.node.clone(), what: What::ShutDown };
                self.ledger.learned(&action, Finding::ShutDown { checkpoint: *checkpoint }, now);
            }
            Done::ShutDown { .. } => {}
            Done::Saved(tail) => self.save(tail),
        }
    }

    fn save(&mut self, tail: &SavedTail) {
        if !self.history.iter().any(|election| election.saved.contains(tail)) {
            self.note(|election| election.saved.push(tail.clone()));
        }
    }

    /// The servers of this host that something is done to, for whoever leads.
    pub(crate) fn at_work(&self) -> Vec<NodeName> {
        self.local.iter().filter(|node| self.ledger.is_server_busy(node)).cloned().collect()
    }

    /// For whoever leads.
    pub(crate) fn deeds(&self) -> &[Deed] {
        &self.deeds
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        self.watch.tick(now);
    }

    pub(crate) fn probed(&mut self, at: Instant, node: &NodeName, result: ProbeResult) {
        self.watch.observe(at, node, result);
    }

    pub(crate) fn tune(&mut self, tuning: Tuning) {
        let Tuning { mode, budget, max_lost_bytes, drain, detect } = tuning;
        self.policy.mode = mode;
        self.policy.budget = budget;
        self.policy.drain = drain;
        self.policy.max_lost_bytes = max_lost_bytes;
        self.watch.set_detect(detect);
    }

    /// What a bare connection to a silent node came to.
    pub(crate) fn knocked(&mut self, at: Instant, node: &NodeName, knock: Knock) {
        self.watch.knocked(at, node, knock);
    }

    /// A heartbeat has failed there for want of space.
    pub(crate) fn disk_was_full(&mut self, at: Instant, node: &NodeName) {
        self.watch.disk_was_full(at, node);
    }

    /// An action ended; `None`: it failed, or was given up.
    pub(crate) fn acted(&mut self, action: &Action, result: Option<Finding>, now: Instant) {
        let done = match &result {
            Some(Finding::Back { saved: Some(tail) }) => {
                self.save(tail);
                Some(Done::Saved(tail.clone()))
            }
            Some(Finding::ShutDown { checkpoint }) => Some(Done::ShutDown { checkpoint: *checkpoint }),
            _ => None,
        };
        if let Some(what) = done {
            self.deeds.push(Deed { term: action.term, node: action.node.clone(), what });
            let excess = self.deeds.len().saturating_sub(MAX_DEEDS);
            self.deeds.drain(..excess);
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

    /// Decides until nothing more follows.
    pub(crate) fn turn(&mut self, now: Now, wal: &Arc<WalStatus>, proxy: &ProxyStatus) -> Vec<Effect> {
        for Node { name, .. } in &self.nodes {
            let streams = wal.follower(name).is_some_and(Follower::streams)
                || self.members.has_follower(now.instant, name);
            let last = self.streamed.entry(name.clone()).or_insert(now.instant);
            if streams {
                *last = now.instant;
            }
        }
        match self.standing {
            Standing::Leads => self.turn_of_leader(now, wal, proxy),
            Standing::Follows => self.turn_of_follower(now, wal, proxy),
        }
    }

    /// What another has decided, and what the servers of this host are to do under it.
    fn turn_of_follower(&mut self, now: Now, wal: &Arc<WalStatus>, proxy: &ProxyStatus) -> Vec<Effect> {
        let mut effects = vec![Effect::GiveUpBefore(self.state.term)];
        self.direct(&mut effects);
        self.watch.expect_primary(self.state.primary.as_ref().map(|primary| &primary.node));
        let health = self.watch.health(now.instant);
        let view = self.view(&health, now, wal, proxy);
        let mut wanted = decide::wanted(&view, &self.state, &self.policy, now);
        let diagnosis = view.diagnosis;
        effects.extend(self.diagnosed(diagnosis, now.instant));
        wanted.retain(|action| action.what.touches_server() && self.is_believed(now, wal));
        self.start(wanted, now, &mut effects);
        effects
    }

    /// Whether what was journaled last, as far as it is known here, still holds. Else a server of this host might be the
    /// primary of a later term, and by what is known it would have to be stopped. Before there was any primary there is
    /// nothing to be known.
    fn is_believed(&self, now: Now, wal: &WalStatus) -> bool {
        let directive = self.state.directive();
        directive.quorums.is_empty() || self.members.vouched_until(now.instant, wal, &directive).is_some()
    }

    /// What is due of it, and this instance's to do: who is beside a server has a hand on it, and nobody else.
    fn start(&mut self, wanted: impl IntoIterator<Item = Action>, now: Now, effects: &mut Vec<Effect>) {
        for action in wanted {
            let elsewhere = action.what.touches_server() && !self.local.contains(&action.node);
            if !elsewhere && self.ledger.is_due(&action, now.instant) {
                self.ledger.started(&action);
                effects.push(Effect::Start(action));
            }
        }
    }

    fn turn_of_leader(&mut self, now: Now, wal: &Arc<WalStatus>, proxy: &ProxyStatus) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut decided = Decided::default();
        let request = self.request.clone();
        self.decide(MAX_CHAIN, now, wal, proxy, &mut decided, &mut effects);
        let journals = self.state != self.journaled;
        if journals {
            let state = std::mem::replace(&mut self.journaled, self.state.clone());
            let (history, directive) = (self.history.clone(), self.directive.clone());
            self.before = Some(Before { state, history, request, directive, begun: Vec::new() });
            effects.push(Effect::Journal(self.state.clone()));
            effects.push(Effect::GiveUpBefore(self.state.term));
            self.conclude(decided.concluded, decided.left_behind, &mut effects);
        }
        // Also what was journaled before this instance led.
        self.direct(&mut effects);
        if journals {
            effects.extend(self.state.primary.as_ref().map(|primary| Effect::Probe(primary.node.clone())));
        }
        if std::mem::replace(&mut self.remembered, Remembered::All) == Remembered::Behind {
            effects.push(Effect::Remember(self.history.clone()));
        }
        let rest = effects.len();
        self.start(decided.wanted, now, &mut effects);
        if let Some(before) = self.before.as_mut().filter(|_| journals) {
            let begun = |effect: &Effect| match effect {
                Effect::Start(action) => Some(action.clone()),
                _ => None,
            };
            before.begun = effects[rest..].iter().filter_map(begun).collect();
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
            let outlook = decide::outlook(&view, &self.state, &self.policy, now);
            let diagnosis = view.diagnosis.clone().map(|found| Diagnosis { outlook, ..found });
            decided.wanted = decision.actions;
            decided.concluded.extend(decision.concluded);
            decided.left_behind.extend(decision.left_behind);
            let Some(rule) = decision.rule else {
                let obstacle = decide::obstacle(&view, &self.state, &self.policy, now);
                let waits_for = decide::waits_for(&view, &self.state, &self.policy, now);
                let takes_failover = decide::takes_failover(&view, &self.state);
                self.waits_for = waits_for;
                // What could not begin at once is not to begin out of the blue.
                self.request.take_if(|asked| matches!(asked, Request::Failover { .. }) && !takes_failover);
                effects.extend(self.diagnosed(diagnosis, now.instant));
                effects.extend(self.alarm(obstacle));
                return;
            };
            effects.extend(self.diagnosed(diagnosis, now.instant));
            let ailment = self.diagnosis.as_ref().map(|found| found.ailment);
            effects.push(Effect::Fired { term: decision.next.term, rule, ailment });
            if decision.next.term > self.state.term {
                self.ledger.forget_before(decision.next.term);
                self.request = None;
            }
            if let (RuleId::W1, Phase::Election(election)) = (rule, &decision.next.phase) {
                // Of a switchover that was given up earlier in this term.
                let primary = decision.next.primary.as_ref().map(|primary| &primary.node);
                primary
                    .into_iter()
                    .chain(election.successor())
                    .for_each(|node| self.ledger.forget_results(node));
                self.request = None;
            }
            if rule == RuleId::R1 {
                self.request = None;
            }
            if let (RuleId::R2, Some(node)) = (rule, decision.next.restarting()) {
                // Of a restart earlier in this term.
                self.ledger.forget_results(node);
            }
            if let (RuleId::E3, Phase::Election(election)) = (rule, &decision.next.phase) {
                election.step.candidate().into_iter().for_each(|node| self.ledger.forget_results(node));
            }
            if rule == RuleId::S3 {
                let back = self.state.away().filter(|node| !decision.next.away().any(|other| other == *node));
                back.for_each(|node| self.ledger.forget_results(node));
            }
            self.state = decision.next;
            if rule == RuleId::F7 {
                let why = self.failovers(now).to_string();
                effects.push(Effect::Warn { term: self.state.term, why });
            }
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
            replay: self.watch.replay_speed(&node.name),
            process: if self.watch.is_refused(&node.name) {
                Process::Absent
            } else {
                Process::PresentOrUnknown
            },
            agent: self.agent(&node.name, now),
            beside: self.beside(&node.name),
            streamed_at: self.streamed.get(&node.name).copied(),
        });
        let diagnosis =
            self.watch.symptoms(now.instant, wal, proxy, self.told(now.instant)).as_ref().and_then(diagnose);
        let (members, quorums, term) = (&*self.members, &self.state.quorums, self.state.term);
        let (promised, log) = (members.promised_by_any(wal), members.recovery(wal, quorums, term));
        let directive = self.state.directive();
        let agreed = members.durable(wal, &directive);
        let waited = match self.state.phase {
            Phase::Election(_) if !members.is_alone() => {
                let (candidate, patience) = (directive.candidate.as_ref(), self.policy.clear_timeout);
                let waiting = Waiting { quorums, term, candidate, patience };
                members.waited_for(now.instant, (proxy, &**wal), waiting)
            }
            _ => Waited::default(),
        };
        // Alone, what it sees itself is all there is.
        let all = (!members.is_alone()).then(|| {
            let wal_of_all = Arc::new(members.wal(now.instant, wal, &directive));
            (wal_of_all, members.proxies(now.instant, (proxy, &**wal), quorums, term))
        });
        let is_settled = members.is_settled(now.instant, (proxy, &**wal), quorums, term);
        let streaming =
            self.state.primary.as_ref().map(|primary| members.streaming(now.instant, wal, &primary.node));
        let (wal, proxy) = all.as_ref().map_or((wal, proxy), |(wal, proxy)| (wal, proxy));
        let is_agreed = members.are_agreed(now.instant);
        let agreement = |yes| if yes { Agreement::Yes } else { Agreement::No };
        View {
            nodes: nodes.collect(),
            verdict: self.watch.verdict(now.instant, wal, proxy),
            diagnosis,
            wal: wal.clone(),
            promised,
            unheard: members.others.values().filter(|heard| heard.is_none()).count(),
            agreed_on_instances: agreement(is_agreed),
            settled: agreement(is_settled),
            streaming: streaming.unwrap_or_default(),
            waited,
            log,
            agreed,
            confirmed: proxy.confirmed,
            cleared: proxy.cleared.clone(),
            drained: proxy.drained.clone(),
            draining: proxy.draining,
            at_work: members.at_work(now.instant).cloned().collect(),
            ledger: &self.ledger,
            request: self.request.clone(),
        }
    }

    /// What the other instances say of the primary.
    fn told(&self, now: Instant) -> Told {
        let Some(primary) = &self.state.primary else { return Told::default() };
        let (heard, hearing) = self.members.who_hears(now, &primary.node);
        let owned = |names: Vec<&String>| names.into_iter().cloned().collect();
        let beside = self.members.beside(&primary.node).cloned().collect();
        Told { heard: owned(heard), hearing: owned(hearing), beside }
    }

    /// A new name that stands is news.
    fn diagnosed(&mut self, diagnosis: Option<Diagnosis>, now: Instant) -> Option<Effect> {
        let name = |diagnosis: &Option<Diagnosis>| diagnosis.as_ref().map(|found| found.ailment);
        if name(&self.diagnosis) != name(&diagnosis) {
            self.named_at = Some(now);
        }
        self.diagnosis.clone_from(&diagnosis);
        let stands = self.named_at.is_some_and(|at| now.saturating_duration_since(at) >= NAMED_AFTER);
        if !stands || self.told_of == name(&diagnosis) {
            return None;
        }
        self.told_of = name(&diagnosis);
        Some(Effect::Diagnosed(diagnosis))
    }

    fn agent(&self, node: &NodeName, now: Now) -> Agent {
        if self.local.contains(node) || self.members.has_agent(now.instant, node) {
            Agent::Local
        } else if self.members.beside(node).next().is_some() {
            Agent::Away
        } else {
            Agent::None
        }
    }

    fn beside(&self, node: &NodeName) -> Vec<String> {
        let own = self.local.contains(node).then_some(&self.policy.instance);
        self.members.beside(node).chain(own).cloned().collect()
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

mod orders;
mod restart;
#[cfg(test)]
mod tests;
