//! The shell around `failover::core` of one instance among several, as `failover::control` is one: does the effects of a
//! turn in their order, waits for etcd amid them, and may die after any.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::etcd::Snapshot;
use super::journal::{BEAT, Journal, News};
use super::planted::Plant;
use super::server::{ToServer, instance_name};
use super::stage::{Event, InstanceId, Life, NodeId, Stage, ToInstance};
use crate::failover::Command;
use crate::failover::core::{Core, Effect, MAX_CHAIN, Standing};
use crate::failover::decide::{Action, Finding, Phase, Policy, Spent, State, Step, What};
use crate::failover::health::{Detect, ProbeResult, Watch};
use crate::topology::{
    Directive, Durability, Members, Node, NodeName, Outcome, ProxyStatus, Term, WalStatus,
};

const TICK: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_millis(500);
/// Of a request to etcd.
const PUT_LIMIT: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(100);
const SQL_LIMIT: Duration = Duration::from_secs(3);
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);
const SERVER_LIMIT: Duration = Duration::from_secs(30);
const YIELD_AGAIN: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub(super) enum ToControl {
    Tick,
    Probe {
        node: NodeId,
        number: u64,
    },
    ProbeTimeout {
        node: NodeId,
        number: u64,
    },
    Probed {
        node: NodeId,
        number: u64,
        result: ProbeResult,
    },
    Acted {
        number: u64,
        action: Action,
        result: Option<Finding>,
    },
    Order(Command),
    Beat,
    Beaten {
        sent: Instant,
        seen: Snapshot,
    },
    Seen(Snapshot),
    /// `None`: refused.
    Put {
        number: u64,
        revision: Option<u64>,
    },
    PutTimeout {
        number: u64,
    },
    PutAgain {
        number: u64,
    },
}

/// What a turn looks at, beside what is its own.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) members: Arc<Members>,
    pub(super) wal: Arc<WalStatus>,
    pub(super) proxy: Arc<ProxyStatus>,
}

#[derive(Debug)]
pub(super) struct Control {
    pub(super) id: InstanceId,
    life: Life,
    pub(super) core: Core,
    pub(super) journal: Journal,
    nodes: Vec<Node>,
    durability: Durability,
    settled: State,
    /// What went out last.
    pub(super) directive: Arc<Directive>,
    pending: Option<Pending>,
    /// What came meanwhile.
    inbox: VecDeque<ToControl>,
    /// The number of the last question to each node.
    probes: Vec<u64>,
    running: BTreeMap<u64, Action>,
    yielded_at: Option<Instant>,
    pub(super) doomed: Option<Doom>,
    heard: Arc<Members>,
}

/// The process dies in the next turn that journals, after so many effects from there on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doom {
    pub(super) effects: usize,
    pub(super) begun: bool,
}

/// A turn that waits for etcd.
#[derive(Debug)]
struct Pending {
    number: u64,
    state: Arc<State>,
    rest: VecDeque<Effect>,
}

/// How an event was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    /// In the middle of a turn.
    Died,
}

/// What an instance is, whichever its life.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) nodes: Vec<Node>,
    pub(super) instances: usize,
    pub(super) durability: Durability,
    pub(super) policy: Policy,
    pub(super) local: BTreeSet<NodeName>,
}

impl Control {
    /// `copy`: the state file.
    pub(super) fn new(
        stage: &mut Stage,
        of: (InstanceId, Life),
        plan: &Plan,
        copy: Option<State>,
    ) -> Control {
        let (id, life) = of;
        let now = stage.clock(id);
        let state = copy.unwrap_or_else(|| State::bootstrapping(plan.durability, now.unix_ms));
        let watch = Watch::new(&plan.nodes, Detect::default());
        let (nodes, local, policy) = (plan.nodes.clone(), plan.local.clone(), plan.policy.clone());
        let mut core = Core::new(nodes, local, policy, watch, state.clone(), Vec::new());
        core.follow(state.clone());
        let control = Control {
            id,
            life,
            directive: Arc::new(core.directive().clone()),
            core,
            journal: Journal::new(of),
            nodes: plan.nodes.clone(),
            durability: plan.durability,
            settled: state,
            pending: None,
            inbox: VecDeque::new(),
            probes: vec![0; plan.nodes.len()],
            running: BTreeMap::new(),
            yielded_at: None,
            doomed: None,
            heard: Arc::new(Members::alone()),
        };
        control.soon(stage, ToControl::Tick);
        control.soon(stage, ToControl::Beat);
        for node in 0..plan.nodes.len() {
            control.soon(stage, ToControl::Probe { node, number: 0 });
        }
        control
    }

    pub(super) fn leads(&self) -> bool {
        self.core.standing() == Standing::Leads
    }

    fn event(&self, what: ToControl) -> Event {
        Event::Instance { of: self.id, life: self.life, what: ToInstance::Control(what) }
    }

    fn soon(&self, stage: &mut Stage, what: ToControl) {
        self.timer(stage, Duration::ZERO, what);
    }

    fn timer(&self, stage: &mut Stage, delay: Duration, what: ToControl) {
        let delay = delay + stage.rng.micros(10, 200);
        let event = self.event(what);
        stage.timer(self.id, delay, event);
    }

    pub(super) fn handle(
        &mut self,
        stage: &mut Stage,
        inputs: &Inputs,
        what: ToControl,
        file: &mut Option<State>,
    ) -> Ended {
        match what {
            // Tasks of their own.
            ToControl::Probe { node, number } => return self.probe(stage, node, number),
            ToControl::Beat => {
                self.journal.beat(stage);
                self.timer(stage, BEAT, ToControl::Beat);
                return Ended::Done;
            }
            ToControl::Beaten { sent, seen } => self.journal.beaten(sent, seen),
            ToControl::Seen(seen) => self.journal.see(seen),
            ToControl::Put { number, revision } => {
                return self.put_answered(stage, inputs, number, revision, file);
            }
            ToControl::PutTimeout { number } => return self.put_not_answered(stage, inputs, number, file),
            ToControl::PutAgain { number } => {
                self.put_again(stage, number);
                return Ended::Done;
            }
            ToControl::Tick if self.pending.is_some() => {
                self.timer(stage, TICK, ToControl::Tick);
                return Ended::Done;
            }
            other => {
                if self.pending.is_some() {
                    if self.inbox.len() < 256 {
                        self.inbox.push_back(other);
                    }
                    return Ended::Done;
                }
                self.take(stage, inputs, other);
            }
        }
        if self.pending.is_some() { Ended::Done } else { self.turn(stage, inputs, file) }
    }

    /// The others have said something.
    pub(super) fn hear(&mut self, stage: &mut Stage, inputs: &Inputs, file: &mut Option<State>) -> Ended {
        if self.pending.is_some() { Ended::Done } else { self.turn(stage, inputs, file) }
    }

    fn take(&mut self, stage: &mut Stage, inputs: &Inputs, what: ToControl) {
        let now = stage.clock(self.id);
        match what {
            ToControl::Tick => {
                self.timer(stage, TICK, ToControl::Tick);
                self.core.tick(now.instant);
            }
            ToControl::ProbeTimeout { node, number } => {
                self.probed(stage, node, number, ProbeResult::Timeout);
            }
            ToControl::Probed { node, number, result } => self.probed(stage, node, number, result),
            // Else its time was up.
            ToControl::Acted { number, action, result } if self.running.remove(&number).is_some() => {
                stage.note(|| format!("bw{} {:?} on {}: {result:?}", self.id + 1, action.what, action.node));
                self.core.acted(&action, result, now.instant);
                let node = self.node(&action.node);
                self.probe_now(stage, node);
            }
            ToControl::Order(command) if self.leads() => {
                let said = self.core.command(&command, now, &inputs.wal, &inputs.proxy);
                if command == Command::Resume {
                    stage.checks.resumed();
                }
                stage.note(|| format!("bw{} {command:?}: {said:?}", self.id + 1));
            }
            _ => {}
        }
    }

    fn node(&self, name: &NodeName) -> NodeId {
        self.nodes.iter().position(|node| node.name == *name).expect("a node of ours")
    }

    // Probes.

    fn probe(&mut self, stage: &mut Stage, node: NodeId, number: u64) -> Ended {
        if number == self.probes[node] {
            self.probe_now(stage, node);
        }
        Ended::Done
    }

    fn probe_now(&mut self, stage: &mut Stage, node: NodeId) {
        let number = stage.next_id();
        self.probes[node] = number;
        let probe = ToServer::Probe { by: (self.id, self.life), number };
        stage.send(self.id, node, Event::Node { of: node, what: probe });
        self.timer(stage, PROBE, ToControl::ProbeTimeout { node, number });
        self.timer(stage, PROBE + Duration::from_millis(5), ToControl::Probe { node, number });
    }

    /// An answer counts once.
    fn probed(&mut self, stage: &mut Stage, node: NodeId, number: u64, result: ProbeResult) {
        let is_timeout = matches!(result, ProbeResult::Timeout);
        if self.probes[node] != number {
            return;
        }
        if !is_timeout {
            // So that its time limit says nothing any more.
            let number = stage.next_id();
            self.probes[node] = number;
            self.timer(stage, PROBE, ToControl::Probe { node, number });
        }
        self.core.probed(stage.instant(self.id), &self.nodes[node].name, result);
    }

    // Turns.

    fn turn(&mut self, stage: &mut Stage, inputs: &Inputs, file: &mut Option<State>) -> Ended {
        loop {
            if self.one_turn(stage, inputs, file) == Ended::Died {
                return Ended::Died;
            }
            if self.pending.is_some() {
                return Ended::Done;
            }
            let Some(next) = self.inbox.pop_front() else { break };
            self.take(stage, inputs, next);
        }
        self.yield_if_better(stage);
        Ended::Done
    }

    fn one_turn(&mut self, stage: &mut Stage, inputs: &Inputs, file: &mut Option<State>) -> Ended {
        let now = stage.clock(self.id);
        if let Some(news) = self.journal.news(now.instant) {
            self.take_up(stage, news, file);
        }
        if !Arc::ptr_eq(&self.heard, &inputs.members) {
            self.heard = inputs.members.clone();
            self.core.heard(self.as_heard(stage, &inputs.members), now.instant);
        }
        let mut effects = self.core.turn(now, &inputs.wal, &inputs.proxy);
        let fired = effects.iter().filter(|effect| matches!(effect, Effect::Fired { .. })).count();
        assert!(fired < MAX_CHAIN, "the rules go round in a circle: {effects:?}");
        if stage.plant == Some(Plant::DirectBeforeJournal) {
            effects.sort_by_key(|effect| !matches!(effect, Effect::Direct(_)));
        }
        self.perform_all(stage, effects.into())
    }

    fn as_heard(&self, stage: &Stage, members: &Arc<Members>) -> Arc<Members> {
        let mut heard = members.clone();
        if stage.plant == Some(Plant::NobodyIsSilent) {
            let ever = Arc::make_mut(&mut heard).others.values_mut().flatten();
            ever.for_each(|other| other.asked_at = stage.instant(self.id) + Duration::from_secs(3600));
        }
        heard
    }

    fn perform_all(&mut self, stage: &mut Stage, mut effects: VecDeque<Effect>) -> Ended {
        while let Some(effect) = effects.pop_front() {
            if self.dies_before(&effect) {
                stage.note(|| format!("bw{} dies before {effect:?}", self.id + 1));
                return Ended::Died;
            }
            if let Effect::Journal(state) = effect {
                let number = stage.next_id();
                let state = Arc::new(state);
                self.pending = Some(Pending { number, state, rest: effects });
                self.put_again(stage, number);
                return Ended::Done;
            }
            self.perform(stage, effect);
        }
        if self.doomed.is_some_and(|doom| doom.begun) { Ended::Died } else { Ended::Done }
    }

    fn dies_before(&mut self, effect: &Effect) -> bool {
        let Some(doom) = &mut self.doomed else { return false };
        doom.begun |= matches!(effect, Effect::Journal(_));
        let is_over = doom.begun && doom.effects == 0;
        doom.effects = doom.effects.saturating_sub(usize::from(doom.begun));
        is_over
    }

    fn take_up(&mut self, stage: &mut Stage, news: News, file: &mut Option<State>) {
        let now = stage.clock(self.id).unix_ms;
        match news {
            News::Lead(state) => {
                if let Some(state) = &state {
                    copy(stage, file, state);
                }
                let mut state = match state {
                    Some(state) => (*state).clone().taken_over(self.durability, now),
                    None => self.settled.clone().resumed(self.durability, now),
                };
                stage.note(|| {
                    format!("bw{} takes the lead, term {}, {:?}", self.id + 1, state.term, state.phase)
                });
                if stage.plant == Some(Plant::ForgetBudget) {
                    state.budget = Spent::default();
                }
                if stage.plant == Some(Plant::ForgetMaintenance) {
                    state.maintenance.clear();
                }
                self.settled = state.clone();
                self.core.lead(state);
            }
            News::Follow(state) => {
                if let Some(state) = state {
                    copy(stage, file, &state);
                    self.settled = (*state).clone();
                }
                self.core.follow(self.settled.clone());
            }
        }
    }

    fn perform(&mut self, stage: &mut Stage, effect: Effect) {
        let name = self.id + 1;
        match effect {
            Effect::Fired { term, rule, .. } => stage.note(|| {
                format!(
                    "bw{name} rule {} of term {term}: {}",
                    rule.as_str(),
                    rule.rule().map_or("", |rule| rule.name)
                )
            }),
            Effect::Warn { why, .. } => stage.note(|| format!("bw{name} warns: {why}")),
            Effect::Diagnosed(found) => {
                stage.note(|| format!("bw{name} ails: {:?}", found.map(|found| found.ailment)));
            }
            Effect::Alarm { why, .. } => stage.note(|| format!("bw{name} alarm: {why}")),
            Effect::Journal(_) => {}
            Effect::GiveUpBefore(term) => self.give_up_before(stage, term),
            Effect::Concluded(election) => {
                let planned = election.rule == "W1" && election.outcome == Outcome::Completed;
                stage.checks.switchovers += usize::from(planned);
            }
            Effect::LeftBehind(standby) => stage.note(|| format!("left behind: {standby:?}")),
            Effect::Direct(directive) => self.direct(stage, directive),
            Effect::Probe(node) => {
                let node = self.node(&node);
                self.probe_now(stage, node);
            }
            Effect::Remember(_) => {}
            Effect::Start(action) if self.is_left(stage, &action) => {}
            Effect::Start(action) => self.start(stage, action),
        }
    }

    fn is_left(&self, stage: &Stage, action: &Action) -> bool {
        let is_fencing = match &self.core.state().phase {
            Phase::Election(election) => election.step == Step::Fence,
            _ => false,
        };
        stage.plant == Some(Plant::LeaveOldPrimary) && is_fencing && matches!(action.what, What::Start { .. })
    }

    fn direct(&mut self, stage: &mut Stage, directive: Directive) {
        stage.note(|| {
            let Directive { term, primary, upstream, writes, floor, .. } = &directive;
            format!(
                "bw{} directive: term {term}, {primary:?}, upstream {upstream:?}, {writes:?}, {floor:?}",
                self.id + 1
            )
        });
        stage.checks.directed(&directive);
        self.directive = Arc::new(directive);
    }

    fn start(&mut self, stage: &mut Stage, action: Action) {
        let number = stage.next_id();
        let by = (self.id, self.life);
        stage.note(|| format!("bw{} begins {:?} on {}", self.id + 1, action.what, action.node));
        stage.checks.started(&action);
        self.running.insert(number, action.clone());
        let node = self.node(&action.node);
        let limit = match &action.what {
            What::Promote { .. } => PROMOTE_LIMIT,
            what if what.touches_server() => SERVER_LIMIT,
            _ => SQL_LIMIT,
        };
        if action.what.touches_server() || matches!(action.what, What::Advise { .. }) {
            let delay = stage.rng.millis(5, 60);
            stage.after(delay, Event::Agent { by, number, action: action.clone() });
        } else {
            let what = ToServer::Act { by, number, action: action.clone() };
            stage.send(self.id, node, Event::Node { of: node, what });
        }
        self.timer(stage, limit, ToControl::Acted { number, action, result: None });
    }

    fn give_up_before(&mut self, stage: &mut Stage, term: Term) {
        let over = |action: &Action| action.term < term && !action.what.touches_server();
        let given_up: Vec<(u64, Action)> =
            self.running.iter().filter(|(_, action)| over(action)).map(|(n, a)| (*n, a.clone())).collect();
        for (number, action) in given_up {
            self.soon(stage, ToControl::Acted { number, action, result: None });
        }
    }

    fn yield_if_better(&mut self, stage: &mut Stage) {
        let now = stage.instant(self.id);
        let lately = self.yielded_at.is_some_and(|at| now.saturating_duration_since(at) < YIELD_AGAIN);
        if !lately && self.core.had_better_yield(now) {
            stage.note(|| format!("bw{} gives way", self.id + 1));
            self.yielded_at = Some(now);
            self.journal.resign(stage);
        }
    }

    // The journal, amid a turn.

    fn put_again(&mut self, stage: &mut Stage, number: u64) {
        let Some(pending) = self.pending.as_ref().filter(|pending| pending.number == number) else { return };
        let state = pending.state.clone();
        let limit = match self.journal.put(stage, number, state) {
            Some(()) => PUT_LIMIT,
            None => Duration::ZERO,
        };
        self.timer(stage, limit, ToControl::PutTimeout { number });
    }

    fn put_answered(
        &mut self,
        stage: &mut Stage,
        inputs: &Inputs,
        number: u64,
        revision: Option<u64>,
        file: &mut Option<State>,
    ) -> Ended {
        let Some(pending) = self.pending.take_if(|pending| pending.number == number) else {
            return Ended::Done;
        };
        let is_planted = stage.plant == Some(Plant::UnknownPutIsDone);
        match revision {
            Some(revision) => {
                self.journal.written(revision, pending.state.clone());
                copy(stage, file, &pending.state);
            }
            None if is_planted => {}
            None => {
                self.journal.refused();
                return self.not_written(stage, inputs, file);
            }
        }
        self.settled = (*pending.state).clone();
        if self.perform_all(stage, pending.rest) == Ended::Died {
            return Ended::Died;
        }
        if self.pending.is_some() { Ended::Done } else { self.go_on(stage, inputs, file) }
    }

    fn put_not_answered(
        &mut self,
        stage: &mut Stage,
        inputs: &Inputs,
        number: u64,
        file: &mut Option<State>,
    ) -> Ended {
        if self.pending.as_ref().is_none_or(|pending| pending.number != number) {
            return Ended::Done;
        }
        if stage.plant == Some(Plant::UnknownPutIsDone) {
            return self.put_answered(stage, inputs, number, None, file);
        }
        if self.journal.holds(stage.instant(self.id)) {
            self.timer(stage, AGAIN, ToControl::PutAgain { number });
            return Ended::Done;
        }
        self.pending = None;
        self.journal.not_known();
        self.not_written(stage, inputs, file)
    }

    /// Nobody hears of what was decided.
    fn not_written(&mut self, stage: &mut Stage, inputs: &Inputs, file: &mut Option<State>) -> Ended {
        stage.note(|| format!("bw{} has not written", self.id + 1));
        self.core.retract();
        self.core.follow(self.settled.clone());
        self.go_on(stage, inputs, file)
    }

    /// With what came meanwhile.
    fn go_on(&mut self, stage: &mut Stage, inputs: &Inputs, file: &mut Option<State>) -> Ended {
        match self.inbox.pop_front() {
            Some(next) => {
                self.take(stage, inputs, next);
                self.turn(stage, inputs, file)
            }
            None => Ended::Done,
        }
    }
}

/// All of them, this one included.
/// It is written behind what is decided, but for a term.
fn copy(stage: &mut Stage, file: &mut Option<State>, state: &State) {
    if file.as_ref().is_none_or(|copy| copy.term < state.term) || stage.rng.percent(50) {
        *file = Some(state.clone());
    }
}

pub(super) fn names(instances: usize) -> Vec<String> {
    (0..instances).map(instance_name).collect()
}
