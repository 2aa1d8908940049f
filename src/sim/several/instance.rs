//! One instance: its planes, joined as `app::instance` joins them.

use std::sync::Arc;
use std::time::Duration;

use super::control::{Control, Ended, Inputs, Plan, ToControl};
use super::members::{Exchange, Heeded, Matters};
use super::planted::Plant;
use super::proxy::Proxy;
use super::relay::{Disk, Relay};
use super::server::instance_name;
use super::stage::{Event, InstanceId, Life, Stage, ToInstance};
use crate::app::together::gated;
use crate::failover::decide::State;
use crate::topology::{Agreed, Directive, Member, NodeName, Term, WalStatus};

/// As in `app::together`.
const GATE: Duration = Duration::from_millis(100);

/// What survives of an instance.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) disk: Disk,
    pub(super) state: Option<State>,
}

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) life: Life,
    plan: Plan,
    names: Vec<NodeName>,
    pub(super) control: Control,
    pub(super) relay: Relay,
    pub(super) proxy: Proxy,
    exchange: Exchange,
    pub(super) file: Option<State>,
    /// The last of a term before.
    older: Option<State>,
    wal: Arc<WalStatus>,
    agreed: Agreed,
    /// What the proxy was told last.
    told: Arc<Directive>,
    matters: Option<Matters>,
    pub(super) orders: u64,
}

impl Instance {
    pub(super) fn start(
        stage: &mut Stage,
        id: InstanceId,
        life: Life,
        plan: &Plan,
        files: Files,
    ) -> Instance {
        let Files { disk, state } = files;
        let control = Control::new(stage, (id, life), plan, state.clone());
        let directive = control.directive.clone();
        let told = Arc::new(directive.unvouched());
        let mut relay = Relay::new(stage, id, life, disk);
        stage.note(|| {
            format!("bw{} starts, relay {:?} {:?}", id + 1, relay.disk.promised, relay.disk.log.end())
        });
        let mut instance = Instance {
            id,
            life,
            names: plan.nodes.iter().map(|node| node.name.clone()).collect(),
            plan: plan.clone(),
            wal: relay.status(stage),
            control,
            relay,
            proxy: Proxy::new(id, life, told.clone()),
            exchange: Exchange::new(stage, (id, life), plan.instances),
            older: state.clone(),
            file: state,
            agreed: Agreed::Quorum { term: Term(0), end: None },
            told,
            matters: None,
            orders: 0,
        };
        instance.gate_soon(stage);
        instance.settle(stage);
        instance
    }

    /// What is left of it.
    pub(super) fn ends(self, stage: &Stage) -> Files {
        let state = if stage.plant == Some(Plant::ForgetPromise) { self.older } else { self.file };
        Files { disk: self.relay.disk, state }
    }

    fn gate_soon(&self, stage: &mut Stage) {
        stage.timer(self.id, GATE, Event::Instance { of: self.id, life: self.life, what: ToInstance::Gate });
    }

    pub(super) fn handle(&mut self, stage: &mut Stage, what: ToInstance) -> Ended {
        let before = self.file.clone().filter(|_| stage.plant == Some(Plant::ForgetPromise));
        let ended = match what {
            ToInstance::Control(what) => {
                // Probes, in particular, have nothing to look at.
                let inputs = self.inputs(stage);
                self.control.handle(stage, &inputs, what, &mut self.file)
            }
            ToInstance::Members(what) => self.exchanged(stage, what),
            ToInstance::Relay(what) => {
                self.relay.handle(stage, what, self.agreed);
                Ended::Done
            }
            ToInstance::Proxy(what) => {
                self.proxy.handle(stage, what);
                Ended::Done
            }
            ToInstance::Gate => {
                self.gate_soon(stage);
                self.proxy.resolve(stage, &self.relay);
                Ended::Done
            }
        };
        if let (Some(before), Some(now)) = (before, &self.file)
            && before.term < now.term
        {
            self.older = Some(before);
        }
        if ended == Ended::Done {
            self.settle(stage);
        }
        ended
    }

    fn inputs(&mut self, stage: &Stage) -> Inputs {
        self.look(stage);
        Inputs {
            members: self.exchange.members.clone(),
            wal: self.wal.clone(),
            proxy: self.proxy.status.clone(),
        }
    }

    fn look(&mut self, stage: &Stage) {
        self.wal = self.relay.status(stage);
    }

    fn exchanged(&mut self, stage: &mut Stage, what: super::members::ToMembers) -> Ended {
        let ordered = self.control.directive.clone();
        self.look(stage);
        let (wal, proxy) = (self.wal.clone(), self.proxy.status.clone());
        let local = self.plan.local.iter().cloned().collect::<Vec<_>>();
        let at_work = self.control.core.at_work();
        let deeds = self.control.core.deeds().to_vec();
        let instance = instance_name(self.id);
        let instances: Vec<String> = (0..self.plan.instances).map(instance_name).collect();
        let started = self.exchange.members.speaks_since.expect("it speaks from its start on");
        let own = move |_: &Stage| Member {
            instance: instance.clone(),
            directive: ordered.clone(),
            wal: wal.clone(),
            proxy: proxy.clone(),
            local: local.clone(),
            at_work: at_work.clone(),
            deeds: deeds.clone(),
            last_words: std::collections::BTreeMap::new(),
            speaks_since: started,
            instances: instances.clone(),
        };
        match self.exchange.handle(stage, what, &own) {
            Heeded::Heard => {
                let inputs = self.inputs(stage);
                self.control.hear(stage, &inputs, &mut self.file)
            }
            Heeded::LastWords | Heeded::Nothing => Ended::Done,
        }
    }

    /// Everybody is told what has changed.
    fn settle(&mut self, stage: &mut Stage) {
        let ordered = self.control.directive.clone();
        self.relay.obey(stage, &ordered, &self.names);
        self.exchange.promised(stage, self.relay.disk.promised);
        self.look(stage);
        let gated = gated(stage.instant(self.id), &self.exchange.members, &ordered, &self.wal, &self.told);
        self.agreed = gated.agreed;
        let directive =
            if stage.plant == Some(Plant::IgnoreGate) { ordered.clone() } else { gated.directive };
        if directive != self.told {
            self.told = directive.clone();
            self.proxy.obey(stage, directive);
        }
        let matters = self.matters(&ordered);
        if self.matters.as_ref() != Some(&matters) {
            self.matters = Some(matters);
            self.exchange.changed(stage);
        }
    }

    fn matters(&self, ordered: &Arc<Directive>) -> Matters {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let (wal, proxy) = (&self.wal, &self.proxy.status);
        let mut rest = DefaultHasher::new();
        (wal.promised, wal.log_term, wal.timeline, wal.durable).hash(&mut rest);
        self.control.core.at_work().hash(&mut rest);
        self.control.core.deeds().len().hash(&mut rest);
        std::mem::discriminant(&wal.upstream).hash(&mut rest);
        proxy.confirmed.hash(&mut rest);
        proxy.cleared.as_ref().map(|cleared| (cleared.node.clone(), cleared.round)).hash(&mut rest);
        proxy.drained.as_ref().map(|drained| (drained.round, drained.busy)).hash(&mut rest);
        (self.control.journal.known.unwrap_or(0), ordered.clone(), rest.finish())
    }

    pub(super) fn order(&mut self, stage: &mut Stage, command: crate::failover::Command) -> Ended {
        self.orders += 1;
        self.handle(stage, ToInstance::Control(ToControl::Order(command)))
    }
}
