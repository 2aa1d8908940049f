//! Everything together: events in their order, faults, and the look at the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::{Broken, Checks, Promise};
use super::control::{Doom, Ended, Plan, names};
use super::etcd::Etcd;
use super::faults::{self, Choice, FAULTS_BEGIN, FAULTS_END, Fault, Loss, Order, Ways};
use super::instance::{Files, Instance};
use super::log::{End, Log};
use super::network::Host;
use super::planted::Plant;
use super::proxy::ToProxy;
use super::server::{Run, Server, instance_name, node_name};
use super::stage::{ANY_LIFE, Event, InstanceId, Life, Mend, NodeId, Stage, ToInstance, Who};
use crate::failover::decide::{
    Action, Automatic, Budget, Finding, Mode, Phase, Policy, StartAs, State, What,
};
use crate::failover::{Command, Servers, Stragglers};
use crate::pg::TimelineId;
use crate::sim::clock::Rng;
use crate::topology::{Acknowledgers, Durability, Node, NodeName, Role};

const NODES: usize = 3;
const CLIENT: (u64, u64) = (40, 260);
const LOOK: Duration = Duration::from_millis(500);
/// By then all is well, counted from the last fault.
const LIVENESS: Duration = Duration::from_secs(120);
/// An operator waits this long before doing what only a person may.
const OPERATOR: Duration = Duration::from_secs(20);

/// What a course came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) terms: u64,
    pub(super) commits: usize,
    pub(super) in_doubt: usize,
    pub(super) switchovers: usize,
    /// Standbys that were stopped to be started again.
    pub(super) restarted: usize,
    /// Logs and copies that a person had to make anew.
    pub(super) resets: usize,
    pub(super) ended: Duration,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) stage: Stage,
    plan: Vec<Plan>,
    etcd: Etcd,
    nodes: Vec<Server>,
    instances: Vec<Option<Instance>>,
    /// Of those that do not run.
    files: Vec<Files>,
    lives: Vec<Life>,
    /// For good.
    lost: Option<(Loss, Host)>,
    paused: BTreeMap<Who, Vec<Event>>,
    /// Since when an event is not late any more.
    resumed: BTreeMap<Who, Duration>,
    clients: Clients,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    Write,
    /// All is quiet, so that what there is can be compared.
    Rest,
}

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>) -> World {
        let mut rng = Rng::new(seed);
        let instances = [3, 3, 3, 3, 3, 3, 3, 2, 4, 5][rng.below(10) as usize];
        let durability = if rng.percent(80) { Durability::Quorum } else { Durability::Async };
        let faults = faults::plan(&mut rng);
        let hosts = instances.max(NODES) + 1;
        // With so small a one many a course meets its end. Then a primary that nobody replaces comes back in a term of its own,
        // of which a relay that is cut off may not hear.
        let budget = Budget { failovers: 1, window: Duration::from_secs(15) };
        let is_small =
            durability == Durability::Async || seed.is_multiple_of(4) || plant == Some(Plant::ForgetBudget);
        let budget = is_small.then_some(budget);
        let mut stage = Stage::new(rng, hosts, plant, Checks::new(durability, budget));
        let mut log = Log { timeline: TimelineId(1), ..Log::default() };
        for _ in 0..3 {
            let entry = stage.next_id();
            log.entries.push(entry);
        }
        let role = |node| if node == 0 { Role::Primary } else { Role::Standby };
        let nodes: Vec<Server> =
            (0..NODES).map(|n| Server::new(n, node_name(n), role(n), log.clone(), instances)).collect();
        nodes.iter().for_each(|node| node.follow_soon(&mut stage));
        for (at, fault) in faults {
            stage.queue.put(at, Event::Fault(fault));
        }
        if seed.is_multiple_of(3) {
            // Without asking chance: other seeds have the course that they had.
            let at = FAULTS_BEGIN + Duration::from_millis(seed * 7919 % 15_000);
            stage.queue.put(at, Event::Fault(Fault::Order(Order::Maintain((seed / 3) as usize % NODES))));
        }
        // Without asking chance, too: the last one is in the lists of all from then on.
        let comes = seed % 4 == 2 && instances > 2;
        let listed = |id: InstanceId| instances - usize::from(comes && id + 1 < instances);
        if comes {
            for id in 0..instances - 1 {
                let at = FAULTS_BEGIN + Duration::from_millis(seed * 6271 % 12_000 + 2000 * id as u64);
                stage.queue.put(at, Event::Fault(Fault::List(id)));
            }
        }
        if seed.is_multiple_of(5) {
            for (at, fault) in faults::comes_back(seed / 5) {
                stage.queue.put(at, Event::Fault(fault));
            }
        }
        if instances >= 3 {
            faults::losses(seed).for_each(|(at, fault)| stage.queue.put(at, Event::Fault(fault)));
        }
        stage.after(Duration::from_secs(3), Event::Client);
        stage.after(FAULTS_END, Event::Look);
        let etcd = Etcd::new(&mut stage, instances);
        let mut world = World {
            plan: (0..instances).map(|id| plan(id, listed(id), durability, budget)).collect(),
            etcd,
            nodes,
            instances: (0..instances).map(|_| None).collect(),
            files: (0..instances).map(|_| Files::default()).collect(),
            lives: vec![ANY_LIFE; instances],
            lost: None,
            paused: BTreeMap::new(),
            resumed: BTreeMap::new(),
            clients: Clients::Write,
            stage,
        };
        (0..instances).for_each(|id| world.start_instance(id));
        world
    }

    pub(super) fn run(&mut self) -> Result<Outcome, Broken> {
        loop {
            let Some((at, event)) = self.stage.queue.pop() else {
                unreachable!("there is always a next look")
            };
            self.stage.now = at;
            let done = self.happen(event);
            self.look_at_opened();
            self.look_at_disks();
            if let Some(broken) = self.stage.checks.broken.take() {
                return Err(broken);
            }
            if done == Course::Over {
                return Ok(self.outcome());
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let checks = &self.stage.checks;
        Outcome {
            terms: checks.terms(),
            commits: checks.commits,
            in_doubt: checks.in_doubt,
            switchovers: checks.switchovers,
            restarted: checks.restarted,
            resets: checks.resets,
            ended: self.stage.now,
        }
    }

    fn happen(&mut self, event: Event) -> Course {
        if let Some(who) = event.who() {
            if let Some(deferred) = self.paused.get_mut(&who) {
                deferred.push(event);
                return Course::GoesOn;
            }
            self.stage.checks.is_late = self.resumed.get(&who) == Some(&self.stage.now);
        }
        match event {
            Event::Instance { of, life, what } => self.at_instance(of, life, what),
            Event::Node { of, what } => self.nodes[of].handle(&mut self.stage, what),
            Event::Etcd(what) => self.etcd.handle(&mut self.stage, what),
            Event::Agent { by, number, action } => self.agent(by, number, action),
            Event::Fault(fault) => self.befall(fault),
            Event::Mend(mend) => self.mend(mend),
            Event::Client => self.client(),
            Event::Look => return self.look(),
        }
        Course::GoesOn
    }

    fn at_instance(&mut self, of: InstanceId, life: Life, what: ToInstance) {
        let Some(instance) = self.instances[of].as_mut().filter(|i| life == ANY_LIFE || life == i.life)
        else {
            return;
        };
        if instance.handle(&mut self.stage, what) == Ended::Died {
            let back = self.stage.rng.millis(200, 5000);
            self.kill_instance(of, back);
        }
    }

    fn client(&mut self) {
        if self.clients == Clients::Write {
            let of = self.stage.rng.below(self.instances.len() as u64) as usize;
            let what = ToInstance::Proxy(ToProxy::Begin);
            self.stage.after(Duration::ZERO, Event::Instance { of, life: ANY_LIFE, what });
        }
        let (from, to) = CLIENT;
        let next = self.stage.rng.millis(from, to);
        self.stage.after(next, Event::Client);
    }

    fn look_at_opened(&mut self) {
        let Some((term, name)) = self.stage.checks.to_open.take() else { return };
        let node = self.nodes.iter().find(|node| node.name == name).expect("a node of ours");
        self.stage.note(|| format!("{name} is open under term {term}: {:?}", node.log.end()));
        self.stage.checks.opened(term, node, &self.nodes);
    }

    /// What only disks can show: whether a commit that was let go, and the log that a promotion relies on, are where they
    /// must be.
    fn look_at_disks(&mut self) {
        let disks = |instances: &[Option<Instance>], files: &[Files], names: &[String], end: End| {
            let disk = |(id, instance): (usize, &Option<Instance>)| {
                let log = instance.as_ref().map_or(&files[id].disk.log, |instance| &instance.relay.disk.log);
                names.contains(&instance_name(id)) && log.has(end)
            };
            instances.iter().enumerate().filter(|relay| disk(*relay)).count()
        };
        for (end, acks, names) in std::mem::take(&mut self.stage.checks.released) {
            let found = disks(&self.instances, &self.files, &names, end);
            if found < acks {
                let how = format!("{end:?} was let go, {found} of {names:?} have it, {acks} should");
                self.stage.checks.fail(Promise::Quorum, how);
            }
        }
        let Some((node, floor, quorums)) = self.stage.checks.to_promote.take() else { return };
        let Some(node) = self.nodes.iter().find(|other| other.name == node) else { return };
        let end = node.log.up_to(super::log::len(floor.end)).end();
        // The next election needs enough of each, so it is enough that it finds it at one.
        let has = |q: &Acknowledgers| disks(&self.instances, &self.files, &q.relays, end) >= q.acks;
        if !quorums.iter().any(has) || node.log.lsn() < floor.end {
            let how = format!("{} is promoted, too few of {quorums:?} have {floor:?}", node.name);
            self.stage.checks.fail(Promise::Quorum, how);
        }
    }

    // Processes.

    fn start_instance(&mut self, id: InstanceId) {
        if self.instances[id].is_none() && !self.is_lost(id) {
            self.lives[id] += 1;
            let files = std::mem::take(&mut self.files[id]);
            let instance = Instance::start(&mut self.stage, id, self.lives[id], &self.plan[id], files);
            self.instances[id] = Some(instance);
        }
    }

    /// The instance, and perhaps more.
    fn is_lost(&self, id: InstanceId) -> bool {
        self.lost.is_some_and(|(_, lost)| lost == id)
    }

    fn is_host_lost(&self, host: Host) -> bool {
        self.lost == Some((Loss::Host, host))
    }

    /// No agent starts it: a person does.
    fn is_unattended(&self, node: NodeId) -> bool {
        node >= self.instances.len() || self.is_lost(node)
    }

    fn start_node(&mut self, node: NodeId) {
        if !self.is_host_lost(node) {
            self.nodes[node].start(&mut self.stage);
        }
    }

    fn kill_instance(&mut self, id: InstanceId, back: Duration) {
        if let Some(instance) = self.instances[id].take() {
            self.stage.note(|| format!("bw{} is dead", id + 1));
            self.files[id] = instance.ends(&self.stage);
            self.resume(Who::Instance(id));
        }
        self.stage.after(back, Event::Mend(Mend::Instance(id)));
    }

    fn pause(&mut self, who: Who, lasts: Duration) {
        self.stage.note(|| format!("{who:?} stands still"));
        self.paused.entry(who).or_default();
        self.stage.after(lasts, Event::Mend(Mend::Resume(who)));
    }

    /// All that has come is there at once.
    fn resume(&mut self, who: Who) {
        let Some(deferred) = self.paused.remove(&who) else { return };
        self.stage.note(|| format!("{who:?} goes on"));
        self.resumed.insert(who, self.stage.now);
        for event in deferred {
            self.stage.after(Duration::ZERO, event);
        }
    }

    // Faults.

    fn choose(&mut self, choice: Choice, most: usize) -> usize {
        let primary = self.stage.checks.state().and_then(|state| state.primary.clone());
        let chosen = match choice {
            Choice::Leader => self.etcd.leader(),
            Choice::Primary => primary.and_then(|p| self.nodes.iter().position(|node| node.name == p.node)),
            Choice::Any(number) => Some((number % most as u64) as usize),
        };
        chosen.unwrap_or(0) % most
    }

    fn befall(&mut self, fault: Fault) {
        self.stage.note(|| format!("FAULT {fault:?}"));
        let instances = self.instances.len();
        let hosts = self.stage.net.hosts() - 1;
        match fault {
            Fault::KillNode { of, restart } => {
                let node = self.choose(of, NODES);
                self.kill_node(node, restart);
            }
            Fault::PauseNode { of, lasts } => {
                let node = self.choose(of, NODES);
                self.pause(Who::Node(node), lasts);
            }
            Fault::KillInstance { of, lasts } => {
                let id = self.choose(of, instances);
                self.kill_instance(id, lasts);
            }
            Fault::DoomInstance { of, effects } => {
                let id = self.choose(of, instances);
                if let Some(instance) = &mut self.instances[id] {
                    instance.control.doomed = Some(Doom { effects, begun: false });
                }
            }
            Fault::PauseInstance { of, lasts } => {
                let id = self.choose(of, instances);
                self.pause(Who::Instance(id), lasts);
            }
            Fault::KillHost { of, lasts } => {
                let node = self.choose(of, NODES);
                self.kill_node(node, Some(lasts));
                if node < instances {
                    self.kill_instance(node, lasts);
                }
            }
            Fault::Lose { what, of } => {
                let host = self.choose(of, instances);
                // Others must have what it has, and be known to.
                let is_apart = |state: &State| {
                    state.quorums.len() == 1 && state.away().all(|name| *name == node_name(host))
                };
                if self.stage.now >= FAULTS_END {
                    return;
                }
                if !self.stage.checks.state().is_some_and(is_apart) {
                    let again = Event::Fault(fault);
                    return self.stage.after(Duration::from_millis(50), again);
                }
                self.lost = Some((what, host));
                if what == Loss::Host && host < NODES {
                    self.kill_node(host, None);
                }
                self.kill_instance(host, Duration::ZERO);
                self.cut_off_lost();
            }
            Fault::Isolate { of, ways, lasts } => {
                let host = self.choose(of, hosts);
                let others = (0..=hosts).filter(|other| *other != host);
                self.cut(ways.between(host, others), lasts);
            }
            Fault::Cut { of, other, ways, lasts } => {
                let host = self.choose(of, hosts);
                let other = (host + 1 + other as usize % (hosts - 1)) % hosts;
                self.cut(ways.between(host, [other]), lasts);
            }
            Fault::CutEtcd { of, ways, lasts } => {
                let host = self.choose(of, hosts);
                self.cut(ways.between(host, [hosts]), lasts);
            }
            Fault::StopEtcd { lasts } => {
                self.etcd.stop();
                self.stage.after(lasts, Event::Mend(Mend::Etcd));
            }
            Fault::SlowDisk { of, lasts } | Fault::FullDisk { of, lasts } => {
                let (id, until) = (self.choose(of, instances), self.stage.now + lasts);
                let Some(instance) = &mut self.instances[id] else { return };
                match fault {
                    Fault::FullDisk { .. } => instance.relay.stalled_until = until,
                    _ => instance.relay.slow = Duration::from_millis(300),
                }
                self.stage.after(lasts, Event::Mend(Mend::Disk(id)));
            }
            Fault::SlowNetwork { most } => self.stage.net.slow(most),
            Fault::Calendar { of, millis } => {
                let host = self.choose(of, hosts);
                self.stage.shift_calendar(host, millis);
            }
            Fault::Order(order) => self.order(order),
            Fault::List(id) => self.list(id),
            Fault::Peace => self.peace(),
        }
    }

    fn kill_node(&mut self, node: NodeId, restart: Option<Duration>) {
        if self.nodes[node].run != Run::Dead {
            self.nodes[node].crash(&mut self.stage);
        }
        self.resume(Who::Node(node));
        let unattended = self.is_unattended(node);
        if let Some(after) = restart.or_else(|| unattended.then_some(Duration::from_secs(4))) {
            self.stage.after(after, Event::Mend(Mend::Node(node)));
        }
    }

    /// From its next process on it has all instances in its list.
    fn list(&mut self, id: InstanceId) {
        let (all, plan) = (self.instances.len(), &mut self.plan[id]);
        if plan.instances < all {
            plan.instances = all;
            plan.policy.members = names(all);
            self.kill_instance(id, Duration::from_millis(300));
        }
    }

    fn cut(&mut self, ways: Vec<(Host, Host)>, lasts: Duration) {
        let number = self.stage.next_id();
        self.stage.net.cut(number, ways);
        self.stage.after(lasts, Event::Mend(Mend::Cut(number)));
    }

    fn cut_off_lost(&mut self) {
        let Some((Loss::Host, host)) = self.lost else { return };
        let number = self.stage.next_id();
        let others = (0..self.stage.net.hosts()).filter(|other| *other != host);
        self.stage.net.cut(number, Ways::Both.between(host, others));
    }

    fn order(&mut self, order: Order) {
        let Some(leader) = self.etcd.leader() else { return };
        let command = match order {
            Order::Switchover => {
                let stragglers =
                    if self.stage.rng.percent(50) { Stragglers::Cut } else { Stragglers::Spared };
                Command::Switchover { to: None, stragglers }
            }
            Order::Restart => Command::Restart { servers: Servers::All, stragglers: Stragglers::Spared },
            Order::Failover => Command::Failover { to: None },
            Order::Pause => Command::Pause,
            Order::Maintain(node) => self.stage.checks.maintain(node_name(node)),
            Order::Serve(node) => self.stage.checks.serve(node_name(node)),
            Order::Resume => Command::Resume,
            Order::CancelRestart => Command::CancelRestart,
        };
        if self.paused.contains_key(&Who::Instance(leader)) {
            return;
        }
        if let Some(instance) = &mut self.instances[leader]
            && instance.order(&mut self.stage, command) == Ended::Died
        {
            self.kill_instance(leader, Duration::from_secs(1));
        }
    }

    fn mend(&mut self, mend: Mend) {
        self.stage.note(|| format!("mended: {mend:?}"));
        match mend {
            Mend::Cut(number) => self.stage.net.mend(number),
            Mend::Instance(id) => self.start_instance(id),
            Mend::Resume(who) => self.resume(who),
            Mend::Disk(id) => {
                if let Some(instance) = &mut self.instances[id] {
                    instance.relay.slow = Duration::ZERO;
                }
            }
            Mend::Etcd => self.etcd.start(&self.stage),
            Mend::Node(node) => self.start_node(node),
        }
    }

    fn peace(&mut self) {
        self.stage.net.mend_all();
        self.cut_off_lost();
        self.etcd.start(&self.stage);
        for id in 0..self.instances.len() {
            self.list(id);
            self.resume(Who::Instance(id));
            self.start_instance(id);
            if let Some(instance) = &mut self.instances[id] {
                (instance.relay.slow, instance.relay.stalled_until) = (Duration::ZERO, Duration::ZERO);
            }
        }
        for node in 0..NODES {
            self.resume(Who::Node(node));
            if self.is_unattended(node) {
                self.start_node(node);
            }
        }
    }

    // Agents and operators.

    fn agent(&mut self, (by, life): (InstanceId, Life), number: u64, action: Action) {
        if self.instances[by].as_ref().is_none_or(|instance| instance.life != life) {
            return;
        }
        let node = self.nodes.iter().position(|node| node.name == action.node).expect("a node of ours");
        let result = match &action.what {
            What::Start { role } => {
                let on_disk = self.nodes[node].role;
                let refused = *role == StartAs::Standby && on_disk == Role::Primary;
                (!refused).then(|| {
                    self.nodes[node].start(&mut self.stage);
                    Finding::Done
                })
            }
            What::Stop => {
                self.nodes[node].crash(&mut self.stage);
                Some(Finding::Done)
            }
            What::StopStandby if self.nodes[node].role == Role::Primary => None,
            What::StopStandby => {
                self.stage.checks.restarted += 1;
                self.nodes[node].crash(&mut self.stage);
                Some(Finding::Done)
            }
            What::ShutDown => match self.nodes[node].shut_down(&mut self.stage) {
                Some(len) => Some(Finding::ShutDown { checkpoint: super::log::lsn(len) }),
                None if self.nodes[node].run == Run::Dead => None,
                None => {
                    let again = Event::Agent { by: (by, life), number, action };
                    return self.stage.after(Duration::from_millis(10), again);
                }
            },
            What::Rejoin { source } | What::Rebuild { source } => {
                let source = self.nodes.iter().position(|n| n.name == *source).expect("a node of ours");
                self.copy(source, node).then_some(Finding::Back { saved: None })
            }
            What::Advise { source, .. } => {
                // There is an operator who does it, when it still is what is wanted.
                let source = self.nodes.iter().position(|n| n.name == *source).expect("a node of ours");
                let holds = self.stage.checks.state().is_some_and(|state| state.term == action.term);
                if holds && node >= self.instances.len() {
                    self.copy(source, node);
                }
                Some(Finding::Done)
            }
            _ => None,
        };
        let what = super::control::ToControl::Acted { number, action, result };
        let event = Event::Instance { of: by, life, what: ToInstance::Control(what) };
        self.stage.after(Duration::from_millis(1), event);
    }

    /// A rewound server, or a new one: with all that the source has.
    fn copy(&mut self, source: NodeId, to: NodeId) -> bool {
        let reached = self.stage.net.is_open(to, source) && self.stage.net.is_open(source, to);
        let stands_still = self.paused.contains_key(&Who::Node(source));
        if source == to
            || self.is_host_lost(to)
            || !reached
            || stands_still
            || !self.nodes[source].is_primary()
        {
            return false;
        }
        let log = self.nodes[source].log.clone();
        self.resume(Who::Node(to));
        self.stage
            .note(|| format!("{} becomes a copy of {}, {:?}", node_name(to), node_name(source), log.end()));
        self.nodes[to].becomes_standby(&mut self.stage, log);
        true
    }

    // Peace.

    fn look(&mut self) -> Course {
        self.stage.after(LOOK, Event::Look);
        let since = self.stage.now - FAULTS_END;
        let trouble = self.trouble();
        if self.clients == Clients::Write && trouble.is_none() && since > Duration::from_secs(5) {
            self.clients = Clients::Rest;
            return Course::GoesOn;
        }
        if self.stage.checks.state().is_some_and(|state| state.automatic == Automatic::Paused) {
            self.order(Order::Resume);
        }
        let in_maintenance = |node: &usize| {
            self.stage.checks.state().is_some_and(|state| state.is_in_maintenance(&node_name(*node)))
        };
        let maintained: Vec<usize> = (0..NODES).filter(in_maintenance).collect();
        maintained.into_iter().for_each(|node| self.order(Order::Serve(node)));
        if since > OPERATOR {
            self.operate();
        }
        if since > LIVENESS {
            let trouble = trouble.or_else(|| self.difference()).unwrap_or_default();
            self.stage.checks.fail(Promise::Liveness, trouble);
        } else if self.clients == Clients::Rest && trouble.is_none() && self.difference().is_none() {
            let lost = self.lost;
            for node in self.nodes.iter().filter(|node| lost != Some((Loss::Host, node.id))) {
                self.stage.checks.holds_all(&node.name, &node.log);
            }
            return Course::Over;
        }
        Course::GoesOn
    }

    /// What only a person may do: two branches of the same timeline's number.
    fn operate(&mut self) {
        for instance in self.instances.iter_mut().flatten().filter(|instance| instance.relay.is_diverged) {
            self.stage.note(|| format!("relay {} is reset", instance.id + 1));
            self.stage.checks.resets += 1;
            instance.relay.reset();
        }
        let state = self.stage.checks.state().and_then(|state| state.primary.as_ref());
        let is_it =
            |node: &Server| state.is_some_and(|primary| primary.node == node.name) && node.is_primary();
        let Some(primary) = self.nodes.iter().position(is_it) else { return };
        if self.lost.is_some() {
            // It would wait for its turn.
            self.order(Order::CancelRestart);
        }
        for node in 0..NODES {
            let strays =
                |node: &Server| node.is_primary() || node.log.timeline != self.nodes[primary].log.timeline;
            if node != primary && self.is_unattended(node) && strays(&self.nodes[node]) {
                // As the log says.
                self.copy(primary, node);
            }
            if self.nodes[node].is_diverged
                && self.nodes[node].role == Role::Standby
                && self.copy(primary, node)
            {
                self.stage.checks.resets += 1;
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        let state = self.stage.checks.state()?;
        let is_lost = |name: &NodeName| {
            self.lost.is_some_and(|(what, host)| what == Loss::Host && node_name(host) == *name)
        };
        if !matches!(state.phase, Phase::Steady) || state.away().any(|name| !is_lost(name)) {
            return Some(format!(
                "term {}: {:?}, away {:?}",
                state.term,
                state.phase,
                state.away().collect::<Vec<_>>()
            ));
        }
        let acknowledging = |set: &Acknowledgers| {
            let beside = state
                .primary
                .as_ref()
                .is_some_and(|p| self.plan.iter().any(|plan| plan.local.contains(&p.node)));
            set.relays.len() + usize::from(beside) == self.instances.len()
        };
        let is_settled = state.quorums.len() == 1 && state.quorums.iter().all(acknowledging);
        // No list is agreed upon, and no set of before promises, while one that is lost is in it.
        if self.lost.is_none() && !is_settled {
            return Some(format!("these acknowledge: {:?}", state.quorums));
        }
        // One that waits for a server that is lost gives up later than this is looked at.
        if let Some(restart) = state.restarts.now.as_ref().filter(|_| self.lost.is_none()) {
            return Some(format!("servers are restarted: {restart:?}"));
        }
        let primary = state.primary.as_ref()?;
        if is_lost(&primary.node) {
            return Some(format!("the primary, {}, is lost", primary.node));
        }
        let node = self.nodes.iter().find(|node| node.name == primary.node)?;
        let closed =
            |instance: &Option<Instance>| instance.as_ref().is_none_or(|instance| !instance.proxy.is_open());
        let is_closed = |id: &InstanceId| !self.is_lost(*id) && closed(&self.instances[*id]);
        if let Some(closed) = (0..self.instances.len()).find(is_closed) {
            return Some(format!("writes are held at {}", instance_name(closed)));
        }
        let away = |other: &&Server| {
            !self.is_host_lost(other.id)
                && (other.run != Run::Runs
                    || other.log.timeline != node.log.timeline
                    || other.id != node.id && other.role == Role::Primary)
        };
        if let Some(other) = self.nodes.iter().find(away) {
            return Some(format!("{} is {:?} {:?} {:?}", other.name, other.run, other.role, other.log.end()));
        }
        let logs = self.instances.iter().flatten().map(|instance| (instance.id, &instance.relay.disk.log));
        let (id, log) = logs.clone().find(|(_, log)| log.timeline != node.log.timeline)?;
        Some(format!("relay {} is at {:?}, {} at {:?}", id + 1, log.end(), node.name, node.log.end()))
    }

    /// Whose log is not the primary's.
    fn difference(&self) -> Option<String> {
        let primary = self.nodes.iter().find(|node| node.is_primary())?;
        let servers = self.nodes.iter().filter(|node| !self.is_host_lost(node.id));
        let servers = servers.map(|node| (node.name.to_string(), &node.log));
        let relays = self.instances.iter().flatten().map(|i| (instance_name(i.id), &i.relay.disk.log));
        let differs = servers.chain(relays).find(|(_, log)| **log != primary.log);
        differs.map(|(name, log)| {
            format!("{name} has {:?}, {} {:?}", log.end(), primary.name, primary.log.end())
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    GoesOn,
    Over,
}

fn plan(id: InstanceId, instances: usize, durability: Durability, budget: Option<Budget>) -> Plan {
    let nodes: Vec<Node> = (0..NODES)
        .map(|node| Node {
            name: node_name(node),
            address: "127.0.0.1:5432".parse().expect("an address"),
            priority: 100,
            no_failover: false,
            zone: None,
        })
        .collect();
    let policy = Policy {
        members: names(instances),
        budget,
        max_lost_bytes: 1 << 30,
        ..Policy::new(&instance_name(id), Mode::Automatic, durability)
    };
    let local: BTreeSet<_> = nodes.get(id).map(|node| node.name.clone()).into_iter().collect();
    Plan { nodes, instances, durability, policy, local }
}
