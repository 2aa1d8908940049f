//! The shell around `failover::core`, as `failover::control` is one: does the effects of a turn in their order,
//! each looked at from outside, and may die after any of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{INSTANCE, node_id};
use crate::failover::core::{Core, Effect, MAX_CHAIN};
use crate::failover::decide::{Action, Finding, Mode, Now, Policy, State, What};
use crate::failover::health::{Detect, ProbeResult, Watch};
use crate::failover::{Command, FileJournal};
use crate::pg::Lsn;
use crate::sim::planted::Plant;
use crate::sim::stage::{Event, NodeId, Stage};
use crate::topology::{Directive, Durability, Node, Outcome, ProxyStatus, WalStatus};

#[derive(Debug)]
pub(in crate::sim) struct Control {
    life: u64,
    nodes: Vec<Node>,
    pub(in crate::sim) core: Core,
    journal: FileJournal,
    /// What went out last.
    pub(in crate::sim) directive: Directive,
    /// To be looked at by the world: writes have just been opened.
    pub(in crate::sim) opened: bool,
    /// The process dies in the next turn that journals, after this many effects; when it is back.
    pub(in crate::sim) doomed: Option<(usize, Duration)>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Ended {
    Done,
    /// In the middle of it.
    Died,
}

impl Control {
    pub(super) fn open(
        stage: &mut Stage,
        life: u64,
        journal: PathBuf,
        nodes: &[Node],
        durability: Durability,
    ) -> Control {
        let policy = Policy { max_lost_bytes: 1 << 30, ..Policy::new(INSTANCE, Mode::Automatic, durability) };
        let journal = FileJournal::new(journal);
        let now = stage.unix_ms();
        let state = match journal.load().expect("what was put can be read") {
            Some(state) => state.resumed(durability, now),
            None => State::bootstrapping(durability, now),
        };
        stage.checks.journaled(&state);
        let local = nodes.iter().map(|node| node.name.clone()).collect();
        let watch = Watch::new(nodes, Detect::default());
        Control {
            life,
            directive: state.directive(),
            nodes: nodes.to_vec(),
            core: Core::new(nodes.to_vec(), local, policy, watch, state, Vec::new()),
            journal,
            opened: false,
            doomed: None,
        }
    }

    pub(in crate::sim) fn tick(&mut self, stage: &Stage) {
        self.core.tick(stage.instant());
    }

    pub(in crate::sim) fn probed(&mut self, stage: &mut Stage, node: NodeId, result: ProbeResult) {
        self.core.probed(stage.instant(), &self.nodes[node].name, result);
    }

    pub(in crate::sim) fn acted(&mut self, stage: &mut Stage, action: &Action, result: Option<Finding>) {
        self.core.acted(action, result, stage.instant());
        self.probe(stage, node_id(&self.nodes, &action.node));
    }

    pub(super) fn order(
        &mut self,
        stage: &mut Stage,
        command: &Command,
        wal: WalStatus,
        proxy: &ProxyStatus,
    ) {
        let now = Now { instant: stage.instant(), unix_ms: stage.unix_ms() };
        let said = self.core.command(command, now, &Arc::new(wal), proxy);
        stage.note(format!("{command:?}: {said:?}"));
    }

    pub(super) fn turn(&mut self, stage: &mut Stage, mut wal: WalStatus, proxy: &ProxyStatus) -> Ended {
        if stage.plant == Some(Plant::SkipCatchUp) {
            for follower in &mut wal.followers {
                follower.flush = follower.flush.max(wal.durable);
            }
        }
        let now = Now { instant: stage.instant(), unix_ms: stage.unix_ms() };
        let mut effects = self.core.turn(now, &Arc::new(wal), proxy);
        let fired = effects.iter().filter(|effect| matches!(effect, Effect::Fired { .. })).count();
        assert!(fired < MAX_CHAIN, "the rules go round in a circle: {effects:?}");
        disorder(stage.plant, &mut effects);
        let journals = effects.iter().any(|effect| matches!(effect, Effect::Journal(_)));
        let doomed = self.doomed.filter(|_| journals).map(|(after, _)| after % (effects.len() + 1));
        for (done, effect) in effects.into_iter().enumerate() {
            if doomed == Some(done) {
                stage.note(format!("dies before {effect:?}"));
                return Ended::Died;
            }
            self.perform(stage, effect);
        }
        if doomed.is_some() { Ended::Died } else { Ended::Done }
    }

    fn perform(&mut self, stage: &mut Stage, effect: Effect) {
        match effect {
            Effect::Fired { term, rule, .. } => {
                let name = rule.rule().map_or("", |rule| rule.name);
                stage.note(format!("rule {} of term {term}: {name}", rule.as_str()));
            }
            Effect::Warn { why, .. } => stage.note(format!("warning: {why}")),
            Effect::Diagnosed(found) => {
                stage.note(format!("ails: {:?}", found.map(|found| found.ailment)));
            }
            Effect::Alarm { why, .. } => stage.note(format!("alarm: {why}")),
            Effect::Journal(state) => {
                self.journal.put(&state).expect("a disk without errors");
                stage.checks.journaled(&state);
            }
            Effect::Direct(directive) => self.direct(stage, directive),
            Effect::Probe(node) => self.probe(stage, node_id(&self.nodes, &node)),
            Effect::Start(action) => self.start(stage, action),
            // A model server does an action at once, so none waits to be given up.
            Effect::Concluded(election) => {
                let planned = election.rule == "W1" && election.outcome == Outcome::Completed;
                stage.checks.switchovers += usize::from(planned);
            }
            Effect::GiveUpBefore(_) | Effect::LeftBehind(_) | Effect::Remember(_) => {}
        }
    }

    fn start(&mut self, stage: &mut Stage, action: Action) {
        stage.checks.started(&action);
        if action.what == What::Marker && stage.plant == Some(Plant::SkipMarker) {
            let finding = Some(Finding::Committed { lsn: Lsn(1) });
            let life = self.life;
            return stage.soon(Event::Acted { life, action, result: finding });
        }
        stage.note(format!("action {:?} on {}", action.what, action.node));
        stage.soon(Event::Act { life: self.life, action });
    }

    fn direct(&mut self, stage: &mut Stage, directive: Directive) {
        stage.note(format!(
            "directive: term {}, primary {:?}, upstream {:?}, {:?}",
            directive.term, directive.primary, directive.upstream, directive.writes
        ));
        stage.checks.directed(&directive);
        self.opened |= directive.writable().is_some() && self.directive.writable().is_none();
        self.directive = directive;
        stage.soon(Event::Obey { life: self.life });
        stage.soon(Event::ProxyObeys { life: self.life });
    }

    fn probe(&self, stage: &mut Stage, node: NodeId) {
        stage.soon(Event::Probe { life: self.life, node });
    }
}

/// Effects in another order than the core's.
fn disorder(plant: Option<Plant>, effects: &mut [Effect]) {
    match plant {
        Some(Plant::ActBeforeJournal) => {
            effects.sort_by_key(|effect| !matches!(effect, Effect::Start(_)));
        }
        Some(Plant::DirectBeforeJournal) => {
            effects.sort_by_key(|effect| !matches!(effect, Effect::Direct(_)));
        }
        _ => {}
    }
}
