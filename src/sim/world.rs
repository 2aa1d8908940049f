//! The world's course: takes the next event, lets it happen, looks at the promises.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::bellwether::{Bellwether, Ended};
use super::faults::{self, FAULTS_END, Fault};
use super::invariants::{Broken, Promise};
use super::log::{Kind, Log};
use super::planted::Plant;
use super::postgres::{Life, Server, Waiter};
use super::stage::{ConnId, Event, NodeId, Purpose, Side, Stage};
use crate::failover::decide::{Action, Phase, What};
use crate::failover::health::ProbeResult;
use crate::failover::{Command, Stragglers};
use crate::topology::{Durability, Node, Role};

#[derive(Debug)]
pub(super) struct World {
    pub(super) stage: Stage,
    servers: Vec<Server>,
    bellwether: Bellwether,
    durability: Durability,
    /// When the last write was acknowledged.
    last_acknowledged: (usize, Duration),
    /// What could not pass to and from isolated nodes.
    held: BTreeMap<NodeId, VecDeque<Event>>,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) acknowledged: usize,
    pub(super) terms: u64,
    pub(super) took: Duration,
    /// Planned, and completed.
    pub(super) switchovers: usize,
}

const TICK: Duration = Duration::from_millis(50);
/// After the last fault: this long until writes are open, and all servers whole.
const PATIENCE: Duration = Duration::from_secs(120);
/// The probe's limit.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Of an action whose node cannot be reached.
const ACTION_LIMIT: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>) -> World {
        let mut stage = Stage::new(seed, plant);
        let durability = if stage.rng.percent(85) { Durability::Quorum } else { Durability::Async };
        let mut log = Log::new();
        for _ in 0..stage.rng.between(1, 6) {
            let filler = stage.rng.between(0, 200_000);
            log.append(Kind::Marker, filler as usize);
        }
        let nodes: Vec<Node> = ["pg1", "pg2", "pg3"].into_iter().map(node).collect();
        let server = |(id, node): (usize, &Node)| {
            let role = if id == 0 { Role::Primary } else { Role::Standby };
            Server::new(id, node.clone(), role, log.clone())
        };
        let mut world = World {
            servers: nodes.iter().enumerate().map(server).collect(),
            bellwether: Bellwether::new(nodes, durability),
            stage,
            durability,
            last_acknowledged: (0, Duration::ZERO),
            held: BTreeMap::new(),
        };
        for server in &world.servers {
            let delay = world.stage.rng.millis(10, 500);
            world.stage.after(delay, Event::Follow { node: server.id, starts: server.starts });
        }
        world.stage.after(Duration::ZERO, Event::Tick);
        world.bellwether.start(&mut world.stage);
        faults::plan(&mut world.stage, world.servers.len());
        world
    }

    /// Until all is whole again after the last fault, or a promise is broken.
    pub(super) fn run(&mut self) -> Result<Outcome, Broken> {
        loop {
            let (at, event) = self.stage.queue.pop().expect("a tick is always there");
            self.stage.now = at;
            let is_tick = matches!(event, Event::Tick);
            self.happen(event);
            self.look();
            if let Some(broken) = self.stage.checks.broken.clone() {
                return Err(broken);
            }
            if is_tick && at > FAULTS_END && self.is_whole() {
                self.look_at_the_end();
                return match self.stage.checks.broken.clone() {
                    Some(broken) => Err(broken),
                    None => Ok(self.outcome()),
                };
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let running = self.bellwether.running.as_ref();
        Outcome {
            acknowledged: self.stage.checks.acknowledged.len(),
            terms: running.map_or(0, |running| running.control.core.state().term.0),
            took: self.stage.now,
            switchovers: self.stage.checks.switchovers,
        }
    }

    fn happen(&mut self, event: Event) {
        let stage = &mut self.stage;
        match event {
            Event::Tick => self.tick(),
            Event::Deliver { .. } | Event::Closed { .. } => self.network(event),
            Event::Fault(fault) => self.fault(fault),
            Event::Heal { node } => self.heal(node),
            Event::Flush { node, starts, upto } => {
                if let Some(server) = living(&mut self.servers, node, starts) {
                    server.flush(stage, upto);
                }
            }
            Event::Started { node, starts } => {
                let server = &mut self.servers[node];
                if server.starts == starts && server.life == Life::Starting {
                    server.started(stage);
                }
            }
            Event::Follow { node, starts } => self.follow(node, starts),
            Event::Execute { life, node, waiter } => self.servers[node].execute(stage, life, waiter),
            Event::Act { life, action } => self.act(life, action),
            Event::Restart => self.bellwether.start(stage),
            event => self.bellwether_event(event),
        }
    }

    fn bellwether_event(&mut self, event: Event) {
        let stage = &mut self.stage;
        match event {
            Event::Probe { life, node } => self.probe(life, node),
            Event::Probed { life, node, result } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.control.probed(stage, node, result);
                self.turn();
            }
            Event::Acted { life, action, result } => {
                let Some(running) = self.bellwether.living(life) else { return };
                stage.note(format!("action {:?} on {}: {result:?}", action.what, action.node));
                running.control.acted(stage, &action, result);
                self.turn();
            }
            Event::Answered { life, node, starts, waiter } => self.answered((life, node, starts), waiter),
            Event::Obey { life } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.relay.obey(stage, &running.control.directive);
            }
            Event::ProxyObeys { life } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.proxy.obey(stage, &running.control.directive);
            }
            Event::Dialed { life, attempt, node } => self.dialed(life, attempt, node),
            Event::Redial { life, attempt } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.relay.redial(stage, attempt);
            }
            Event::Write { life } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.relay.write(stage);
            }
            Event::Sync { life } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.relay.sync(stage);
            }
            Event::Tail { life } => {
                let Some(running) = self.bellwether.living(life) else { return };
                running.relay.tail_moved(stage);
            }
            Event::Client { life } => self.client(life),
            other => unreachable!("{other:?} is no event of Bellwether's"),
        }
    }

    fn turn(&mut self) {
        let stage = &mut self.stage;
        let Some(running) = &mut self.bellwether.running else { return };
        if running.turn(stage) == Ended::Died {
            let back = running.control.doomed.map_or(Duration::ZERO, |(_, back)| back);
            self.bellwether.crash(stage);
            stage.after(back, Event::Restart);
        }
    }

    fn tick(&mut self) {
        let stage = &mut self.stage;
        stage.after(TICK, Event::Tick);
        for server in &mut self.servers {
            server.tick(stage);
        }
        if let Some(running) = &mut self.bellwether.running {
            running.relay.tick(stage);
            running.control.tick(stage);
        }
        self.turn();
        let stage = &mut self.stage;
        let acknowledged = stage.checks.acknowledged.len();
        if acknowledged > self.last_acknowledged.0 {
            self.last_acknowledged = (acknowledged, stage.now);
        }
        if stage.now > FAULTS_END + PATIENCE {
            let how = self.what_is_missing();
            self.stage.checks.fail(Promise::Liveness, how);
        }
    }

    // The network.

    fn network(&mut self, event: Event) {
        let (Event::Deliver { conn, .. } | Event::Closed { conn, .. }) = &event else { return };
        let Some(node) = self.stage.conns.get(conn).map(|known| known.node) else {
            return self.arrive(event);
        };
        let held = self.held.entry(node).or_default();
        if self.stage.isolated(node).is_some() || !held.is_empty() {
            // TCP repeats it until it comes through.
            return held.push_back(event);
        }
        self.arrive(event);
    }

    fn heal(&mut self, node: NodeId) {
        if self.stage.isolated(node).is_none() {
            for event in self.held.remove(&node).unwrap_or_default() {
                self.arrive(event);
            }
        }
    }

    fn arrive(&mut self, event: Event) {
        match event {
            Event::Deliver { conn, to, bytes } => {
                let known = self.stage.conns.get(&conn).map(|known| (known.node, known.purpose));
                let Some((node, purpose)) = known else { return };
                self.deliver(conn, to, (node, purpose), &bytes);
            }
            Event::Closed { conn, to } => {
                self.stage.conns.remove(&conn);
                self.closed(conn, to);
            }
            _ => {}
        }
    }

    fn deliver(&mut self, conn: ConnId, to: Side, (node, purpose): (NodeId, Purpose), bytes: &[u8]) {
        match to {
            Side::Server => self.servers[node].received(&mut self.stage, conn, purpose, bytes),
            Side::Bellwether => {
                if let Some(running) = &mut self.bellwether.running {
                    running.relay.received(&mut self.stage, conn, purpose, bytes);
                }
            }
        }
    }

    fn closed(&mut self, conn: ConnId, to: Side) {
        match to {
            Side::Server => {
                for server in &mut self.servers {
                    server.closed(&mut self.stage, conn);
                }
            }
            Side::Bellwether => {
                if let Some(running) = &mut self.bellwether.running {
                    running.relay.closed(&mut self.stage, conn);
                }
            }
        }
    }

    /// A standby's walreceiver connects.
    fn follow(&mut self, node: NodeId, starts: u32) {
        let stage = &mut self.stage;
        let Some(server) = living(&mut self.servers, node, starts).filter(|s| s.wants_upstream()) else {
            return;
        };
        let reachable = stage.isolated(node).is_none() && stage.plant != Some(Plant::RefuseFollowers);
        match self.bellwether.running.as_mut().filter(|_| reachable) {
            Some(running) => {
                let conn = stage.connect(node, Purpose::Follower);
                server.connected(conn, stage.now);
                running.relay.accept(stage, conn, node);
            }
            None => {
                let delay = stage.rng.millis(100, 1000);
                stage.after(delay, Event::Follow { node, starts });
            }
        }
    }

    fn dialed(&mut self, life: u64, attempt: u64, node: NodeId) {
        let stage = &mut self.stage;
        let Some(running) = self.bellwether.living(life) else { return };
        let Some(application_name) = running.relay.dialed(attempt) else { return };
        let server = &mut self.servers[node];
        if stage.isolated(node).is_some() {
            running.relay.not_reached(stage, "timeout");
        } else if server.life == Life::Running {
            let conn = stage.connect(node, Purpose::Upstream);
            server.accept(conn, application_name);
            running.relay.reached(stage, conn);
        } else {
            running.relay.not_reached(stage, "connection refused");
        }
    }

    // Clients.

    fn client(&mut self, life: u64) {
        let stage = &mut self.stage;
        let Some(running) = self.bellwether.living(life) else { return };
        let Some((name, waiter)) = running.proxy.client(stage) else { return };
        let node = self.servers.iter().position(|s| s.node.name == name).expect("a node");
        if self.servers[node].life == Life::Stopped {
            running.proxy.refused(stage, &name);
        } else if stage.isolated(node).is_none() {
            if let Waiter::Client { token, .. } = &waiter {
                running.proxy.began(*token);
            }
            stage.soon(Event::Execute { life, node, waiter });
        }
    }

    fn answered(&mut self, (life, node, starts): (u64, NodeId, u32), waiter: Waiter) {
        let stage = &mut self.stage;
        let server = &self.servers[node];
        let flushed = server.flushed;
        if server.starts != starts || server.life != Life::Running || stage.isolated(node).is_some() {
            return;
        }
        let Some(running) = self.bellwether.living(life) else { return };
        match waiter {
            Waiter::Client { token, epoch } => {
                running.proxy.answered(stage, &server.node.name, token, epoch);
            }
            Waiter::Marker { action } => {
                let result = Some(crate::failover::decide::Finding::Committed { lsn: flushed });
                stage.soon(Event::Acted { life, action, result });
            }
        }
    }

    // The control plane's hands.

    fn probe(&mut self, life: u64, node: NodeId) {
        let stage = &mut self.stage;
        if self.bellwether.living(life).is_none() {
            return;
        }
        let (takes, result) = match stage.isolated(node) {
            Some(_) => (PROBE_LIMIT, ProbeResult::Timeout),
            None => (stage.delay(), self.servers[node].probe()),
        };
        stage.after(takes, Event::Probed { life, node, result });
        // One chain of probes per node: a kick is one more, and ends.
        if !self.bellwether.probing(node, stage.now) {
            stage.after(takes + PROBE_INTERVAL, Event::Probe { life, node });
        }
    }

    fn act(&mut self, life: u64, action: Action) {
        let stage = &mut self.stage;
        let node = self.servers.iter().position(|s| s.node.name == action.node).expect("a node");
        if stage.isolated(node).is_some() {
            return stage.after(ACTION_LIMIT, Event::Acted { life, action, result: None });
        }
        if matches!(action.what, What::Promote { .. })
            && let Some(running) = self.bellwether.living(life)
            && running.proxy.clings(stage, &action.node)
        {
            let how = format!("{} is promoted while a session has it", action.node);
            stage.checks.fail(Promise::OnePrimary, how);
        }
        if matches!(action.what, What::Promote { .. }) {
            self.look_at_promotion(life, node);
        }
        let stage = &mut self.stage;
        if action.what == What::ShutDown {
            if let Some(running) = self.bellwether.living(life)
                && let Phase::Election(election) = &running.control.core.state().phase
                && election.planned.as_ref().is_some_and(|planned| planned.stragglers == Stragglers::Spared)
                && let Some(token) = running.proxy.open()
            {
                stage
                    .checks
                    .fail(Promise::Drained, format!("token {token} is cut off by a planned shutdown"));
            }
            return self.servers[node].agent_shuts_down(stage, life, action);
        }
        if action.what == What::Marker {
            // Given up, and tried again, if nothing comes of it.
            let limit = Duration::from_secs(5);
            stage.after(limit, Event::Acted { life, action: action.clone(), result: None });
            let waiter = Waiter::Marker { action };
            return self.servers[node].execute(stage, life, waiter);
        }
        let result = self.done(node, &action);
        let takes = self.stage.delay() + self.stage.rng.millis(1, 40);
        self.stage.after(takes, Event::Acted { life, action, result });
    }

    fn done(&mut self, node: NodeId, action: &Action) -> Option<crate::failover::decide::Finding> {
        let stage = &mut self.stage;
        if let What::Rejoin { source } = &action.what {
            let source = node_of(&self.servers, source);
            let [server, source] = self.servers.get_disjoint_mut([node, source]).ok()?;
            return server.rejoin(stage, Some(source));
        }
        if let What::Rebuild { source } = &action.what {
            let source = node_of(&self.servers, source);
            let [server, source] = self.servers.get_disjoint_mut([node, source]).ok()?;
            return server.rebuild(stage, Some(source));
        }
        let server = &mut self.servers[node];
        match &action.what {
            What::Prepare { names } => server.prepare(stage, names),
            What::Promote { from } => server.promote(stage, *from),
            What::Inspect { from } => server.inspect(*from),
            What::Checkpoint => server.checkpoint(),
            What::DropSlot => server.drop_slot(),
            What::Stop => server.agent_stops(stage),
            What::Start { role } => server.agent_starts(stage, *role),
            What::Locate => server.locate(),
            What::LastWord => server.last_word(),
            What::ShutDown
            | What::StopStandby
            | What::Advise { .. }
            | What::Marker
            | What::Rejoin { .. }
            | What::Rebuild { .. } => None,
        }
    }

    // Faults.

    fn fault(&mut self, fault: Fault) {
        let stage = &mut self.stage;
        stage.note(format!("fault: {fault:?}"));
        match fault {
            Fault::CrashPrimary { back } => {
                let running = self.servers.iter().find(|s| s.runs_as(Role::Primary));
                if let Some(node) = running.map(|s| s.id) {
                    self.crash(node, back);
                }
            }
            Fault::Crash { node, back } => self.crash(node, back),
            Fault::Start { node } => self.servers[node].start(stage),
            Fault::CrashBellwether { back } => {
                if self.bellwether.running.is_some() {
                    self.bellwether.crash(stage);
                    stage.after(back, Event::Restart);
                }
            }
            Fault::CrashInTurn { after, back } => {
                if let Some(running) = &mut self.bellwether.running {
                    running.control.doomed = Some((after, back));
                }
            }
            Fault::Cling { node, lasting } => {
                let until = lasting.map(|lasting| stage.now + lasting);
                if let Some(running) = &mut self.bellwether.running {
                    running.proxy.cling(&self.servers[node].node.name, until);
                }
            }
            Fault::Cut { node } => stage.cut_all(|conn| conn.node == node),
            Fault::Isolate { node, lasting } => stage.isolate(node, stage.now + lasting),
            Fault::Switchover { to, stragglers } => {
                let to = to.map(|node| self.servers[node].node.name.clone());
                if let Some(running) = &mut self.bellwether.running {
                    running.order(stage, &Command::Switchover { to, stragglers });
                }
                self.turn();
            }
            Fault::Reconnect { node } => self.servers[node].reconnect(stage),
        }
    }

    fn crash(&mut self, node: NodeId, back: Option<Duration>) {
        if self.servers[node].life == Life::Stopped {
            return;
        }
        self.servers[node].crash(&mut self.stage);
        if let Some(back) = back {
            self.stage.after(back, Event::Fault(Fault::Start { node }));
        }
    }

    // The promises.

    /// What a planned switchover is for: whoever takes over has every byte that the old primary has written.
    fn look_at_promotion(&mut self, life: u64, node: NodeId) {
        let Some(running) = self.bellwether.living(life) else { return };
        let Phase::Election(election) = &running.control.core.state().phase else { return };
        let successor = election.planned.as_ref().and_then(|planned| planned.successor.as_ref());
        let (Some(successor), Some(from)) = (successor, &election.record.from) else { return };
        let (old, new) = (&self.servers[node_of(&self.servers, from)], &self.servers[node]);
        if new.node.name == *successor && new.log.whole() < old.log.end() {
            let (has, end) = (new.log.whole(), old.log.end());
            let how = format!("{successor} is promoted with {has}, {from} has written up to {end}");
            self.stage.checks.fail(Promise::Complete, how);
        }
    }

    fn look(&mut self) {
        let Some(running) = &mut self.bellwether.running else { return };
        if !std::mem::take(&mut running.control.opened) || self.durability == Durability::Async {
            return;
        }
        let Some(primary) = &running.control.core.state().primary else { return };
        let server = &self.servers[node_of(&self.servers, &primary.node)];
        // One that has restarted meanwhile was not looked at yet.
        let is_known = primary.started_at.as_ref().is_none_or(|at| *at == server.starts.to_string());
        if server.runs_as(Role::Primary) && is_known {
            self.stage.checks.opened(&server.node.name, &server.log, server.recovered);
        }
    }

    /// Writes are open and acknowledged, and when clients pause all servers are equal.
    fn is_whole(&mut self) -> bool {
        let Some(running) = &mut self.bellwether.running else { return false };
        let Some(primary) = running.control.directive.writable() else { return false };
        if self.last_acknowledged.1 < FAULTS_END + Duration::from_secs(1) {
            return false;
        }
        let primary = node_of(&self.servers, primary);
        let follows = |s: &Server| {
            s.id == primary
                || (s.runs_as(Role::Standby) && s.log.timeline == self.servers[primary].log.timeline)
        };
        let all_follow = self.servers.iter().all(follows) && running.control.core.is_steady();
        running.proxy.quiet = all_follow;
        let end = self.servers[primary].log.end();
        all_follow && self.servers.iter().all(|s| s.flushed == end && s.log.end() == end)
    }

    fn what_is_missing(&self) -> String {
        let servers = self
            .servers
            .iter()
            .map(|s| format!("{} {:?} {:?} t{} {}", s.node.name, s.life, s.role, s.log.timeline, s.flushed));
        let state = self.bellwether.running.as_ref().map(|running| running.control.core.state());
        format!("not whole {PATIENCE:?} after the last fault: {:?}; {state:#?}", servers.collect::<Vec<_>>())
    }

    fn look_at_the_end(&mut self) {
        let checks = &mut self.stage.checks;
        for server in &self.servers {
            checks.same_bytes(&server.node.name, &server.log);
        }
        let primary = self.servers.iter().find(|s| s.runs_as(Role::Primary));
        if let Some(primary) = primary.filter(|_| self.durability == Durability::Quorum) {
            checks.holds_all(&primary.node.name, &primary.log);
        }
    }
}

fn living(servers: &mut [Server], node: NodeId, starts: u32) -> Option<&mut Server> {
    Some(&mut servers[node]).filter(|s| s.starts == starts && s.life == Life::Running)
}

fn node_of(servers: &[Server], name: &crate::topology::NodeName) -> NodeId {
    servers.iter().position(|s| s.node.name == *name).expect("a node")
}

fn node(name: &str) -> Node {
    Node {
        name: name.parse().expect("a node name"),
        address: "127.0.0.1:5432".parse().expect("an address"),
        priority: 100,
        zone: None,
        no_failover: false,
    }
}
