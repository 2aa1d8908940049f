//! The shell around `failover::decide`, as `failover::control` has it: decide until nothing more follows, make
//! the state durable, publish the directive, start the actions.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{INSTANCE, node_id};
use crate::failover::FileJournal;
use crate::failover::decide::{
    self, Action, Agent, Finding, Ledger, Mode, NodeView, Now, Phase, Policy, Process, State, View, What,
};
use crate::failover::health::{Detect, ProbeResult, Watch};
use crate::pg::Lsn;
use crate::sim::planted::Plant;
use crate::sim::stage::{Event, NodeId, Stage};
use crate::topology::{Directive, Durability, Health, Node, ProxyStatus, Term, WalStatus};

#[derive(Debug)]
pub(in crate::sim) struct Control {
    life: u64,
    nodes: Vec<Node>,
    policy: Policy,
    pub(in crate::sim) state: State,
    journal: FileJournal,
    watch: Watch,
    ledger: Ledger,
    pub(in crate::sim) directive: Directive,
    /// To be looked at by the world: writes have just been opened.
    pub(in crate::sim) opened: bool,
    probed_primary: Term,
}

/// Rules that may fire in one turn.
const MAX_CHAIN: usize = 16;

impl Control {
    pub(super) fn open(
        stage: &mut Stage,
        life: u64,
        journal: PathBuf,
        nodes: &[Node],
        durability: Durability,
    ) -> Control {
        let policy = Policy {
            instance: INSTANCE.to_owned(),
            mode: Mode::Automatic,
            durability,
            max_lost_bytes: 1 << 30,
            bootstrap_timeout: Duration::from_secs(15),
            candidate_wait: Duration::from_secs(3),
            catch_up_timeout: Duration::from_secs(30),
            follow_timeout: Duration::from_secs(5),
            promote_timeout: Duration::from_secs(60),
            lost_after: Duration::from_secs(10),
            attempts: 3,
        };
        let journal = FileJournal::new(journal);
        let now = stage.unix_ms();
        let state = match journal.load().expect("what was put can be read") {
            Some(state) => state.resumed(durability, now),
            None => State::bootstrapping(durability, now),
        };
        stage.checks.journaled(state.term);
        Control {
            life,
            directive: state.directive(),
            nodes: nodes.to_vec(),
            policy,
            state,
            journal,
            watch: Watch::new(nodes, Detect::default()),
            ledger: Ledger::default(),
            opened: false,
            probed_primary: Term(0),
        }
    }

    pub(in crate::sim) fn tick(&mut self, stage: &Stage) {
        self.watch.tick(stage.instant());
    }

    pub(in crate::sim) fn probed(&mut self, stage: &mut Stage, node: NodeId, result: ProbeResult) {
        self.watch.observe(stage.instant(), &self.nodes[node].name, result);
    }

    pub(in crate::sim) fn acted(&mut self, stage: &mut Stage, action: &Action, result: Option<Finding>) {
        let at = stage.instant();
        match result {
            Some(finding) => self.ledger.succeeded(action, finding, at),
            None => self.ledger.failed(action, at),
        }
        let node = node_id(&self.nodes, &action.node);
        stage.soon(Event::Probe { life: self.life, node });
    }

    pub(super) fn turn(&mut self, stage: &mut Stage, mut wal: WalStatus, proxy: &ProxyStatus) {
        if stage.plant == Some(Plant::SkipCatchUp) {
            for follower in &mut wal.followers {
                follower.flush = follower.flush.max(wal.durable);
            }
        }
        let wal = Arc::new(wal);
        let before = self.state.clone();
        let wanted = self.decide(stage, &wal, proxy);
        if self.state != before {
            self.journal.put(&self.state).expect("a disk without errors");
            stage.checks.journaled(self.state.term);
            self.publish(stage);
        }
        for action in wanted {
            if self.ledger.is_due(&action, stage.instant()) {
                self.act(stage, action);
            }
        }
    }

    fn act(&mut self, stage: &mut Stage, action: Action) {
        self.ledger.started(&action);
        if action.what == What::Marker && stage.plant == Some(Plant::SkipMarker) {
            let finding = Some(Finding::Committed { lsn: Lsn(1) });
            let life = self.life;
            return stage.soon(Event::Acted { life, action, result: finding });
        }
        stage.note(format!("action {:?} on {}", action.what, action.node));
        stage.soon(Event::Act { life: self.life, action });
    }

    fn decide(&mut self, stage: &mut Stage, wal: &Arc<WalStatus>, proxy: &ProxyStatus) -> Vec<Action> {
        let now = Now { instant: stage.instant(), unix_ms: stage.unix_ms() };
        for _ in 0..MAX_CHAIN {
            self.watch.expect_primary(self.state.primary.as_ref().map(|p| &p.node));
            let health = self.watch.health(now.instant);
            let decision =
                decide::decide(&self.view(&health, now, wal, proxy), &self.state, &self.policy, now);
            let Some(rule) = decision.rule else { return decision.actions };
            stage.note(format!(
                "rule {} of term {}: {}",
                rule.as_str(),
                decision.next.term,
                rule.rule().map_or("", |rule| rule.name)
            ));
            if decision.next.term > self.state.term {
                self.ledger.forget_before(decision.next.term);
            }
            self.state = decision.next;
        }
        Vec::new()
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
            agent: Agent::Local,
        });
        View {
            nodes: nodes.collect(),
            verdict: self.watch.verdict(now.instant, wal, proxy),
            wal: wal.clone(),
            confirmed: proxy.confirmed,
            cleared: proxy.cleared.clone(),
            ledger: &self.ledger,
            request: None,
        }
    }

    fn publish(&mut self, stage: &mut Stage) {
        let directive = self.state.directive();
        if directive == self.directive {
            return;
        }
        stage.note(format!(
            "directive: term {}, primary {:?}, upstream {:?}, {:?}",
            directive.term, directive.primary, directive.upstream, directive.writes
        ));
        self.opened |= directive.writable().is_some() && self.directive.writable().is_none();
        self.directive = directive;
        stage.soon(Event::Obey { life: self.life });
        stage.soon(Event::ProxyObeys { life: self.life });
        if let Some(primary) = &self.state.primary {
            self.probed_primary = self.state.term;
            stage.soon(Event::Probe { life: self.life, node: node_id(&self.nodes, &primary.node) });
        }
    }

    pub(in crate::sim) fn is_steady(&self) -> bool {
        matches!(self.state.phase, Phase::Steady)
    }
}
