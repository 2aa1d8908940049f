#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]
//! A small cluster of values: servers that write, stream, die and promote, a relay, a proxy, and the control
//! circle around the real `Watch` and `decide`. Time goes in steps of 100 ms; nothing sleeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::failover::decide::{
    self, Action, Agent, Finding, Ledger, Mode, NodeView, Now, Phase, Policy, Process, Promoted, Request,
    RuleId, State, View, What,
};
use crate::failover::health::{Detect, Facts, ProbeResult, SlotState, Watch};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Durability, Election, Follower, FollowerState, Lag, Node, NodeName, ProxyStatus, Role, StreamEnd, Term,
    Upstream, WalStatus, Writes,
};

pub(super) const SYSTEM: SystemIdentifier = SystemIdentifier(7);
const STEP: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Runs,
    Dead,
    /// SIGSTOP: the kernel still takes connections, nobody answers.
    Frozen,
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) node: Node,
    pub(super) life: Life,
    pub(super) role: Role,
    pub(super) timeline: TimelineId,
    /// Where its timeline forked from the one before; of a promoted one.
    pub(super) forks: Vec<(TimelineId, Lsn)>,
    pub(super) flush: Lsn,
    checkpoint: TimelineId,
    names: String,
    slot: SlotState,
    starts: u32,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Now,
    pub(super) servers: Vec<Server>,
    pub(super) policy: Policy,
    pub(super) wal: WalStatus,
    relay_forks: Vec<(TimelineId, Lsn)>,
    confirmed: Term,
    cleared: Option<NodeName>,
    /// Nodes that a session does not let go of.
    pub(super) clinging: Vec<&'static str>,
    /// The proxy confirms nothing.
    pub(super) deaf: bool,
    pub(super) state: State,
    journal: State,
    watch: Watch,
    ledger: Ledger,
    pub(super) request: Option<Request>,
    pub(super) agent: Agent,
    /// Nothing reaches us, whatever the servers do.
    pub(super) blind: bool,
    /// The next action fails instead of being done.
    pub(super) fail_next: bool,
    pub(super) rules: Vec<RuleId>,
    pub(super) history: Vec<Election>,
    /// Everything up to here was acknowledged to a client.
    pub(super) acknowledged: Lsn,
    /// Who was primary in which term.
    primaries: BTreeMap<Term, NodeName>,
}

impl World {
    pub(super) fn new(durability: Durability) -> World {
        let nodes: Vec<Node> = ["pg1", "pg2", "pg3"].into_iter().map(node).collect();
        let policy = Policy {
            bootstrap_timeout: Duration::from_secs(10),
            catch_up_timeout: Duration::from_secs(10),
            ..Policy::new("bw", Mode::Automatic, durability)
        };
        let server = |node: &Node| Server {
            node: node.clone(),
            life: Life::Runs,
            role: if node.name.as_str() == "pg1" { Role::Primary } else { Role::Standby },
            timeline: TimelineId(1),
            forks: Vec::new(),
            flush: Lsn(0x1000),
            checkpoint: TimelineId(1),
            names: String::new(),
            slot: SlotState::Absent,
            starts: 1,
        };
        let state = State::bootstrapping(durability, 1_000_000);
        World {
            now: Now { instant: Instant::now(), unix_ms: 1_000_000 },
            servers: nodes.iter().map(server).collect(),
            watch: Watch::new(&nodes, Detect::default()),
            policy,
            wal: WalStatus::starting(),
            relay_forks: Vec::new(),
            confirmed: Term(0),
            cleared: None,
            clinging: Vec::new(),
            deaf: false,
            journal: state.clone(),
            state,
            ledger: Ledger::default(),
            request: None,
            agent: Agent::Local,
            blind: false,
            fail_next: false,
            rules: Vec::new(),
            history: Vec::new(),
            acknowledged: Lsn::INVALID,
            primaries: BTreeMap::new(),
        }
    }

    /// A world in its first steady term.
    pub(super) fn steady(durability: Durability) -> World {
        let mut world = World::new(durability);
        world.run_until("steady", |w| matches!(w.state.phase, Phase::Steady) && w.state.deposed.is_empty());
        world.run(20);
        world.rules.clear();
        world
    }

    pub(super) fn server(&mut self, name: &str) -> &mut Server {
        self.servers.iter_mut().find(|s| s.node.name.as_str() == name).expect("one of pg1, pg2, pg3")
    }

    pub(super) fn primary(&self) -> Option<&str> {
        self.state.primary.as_ref().map(|p| p.node.as_str())
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.directive().writes == Writes::Open
    }

    pub(super) fn kill(&mut self, name: &str) {
        self.server(name).life = Life::Dead;
    }

    pub(super) fn revive(&mut self, name: &str) {
        let server = self.server(name);
        if server.life == Life::Dead {
            server.starts += 1;
        }
        server.life = Life::Runs;
    }

    /// Bellwether dies and starts again: only the journal is left of what it knew.
    pub(super) fn restart(&mut self) {
        self.state = self.journal.clone().resumed(self.policy.durability, self.now.unix_ms);
        self.ledger = Ledger::default();
        let nodes: Vec<Node> = self.servers.iter().map(|s| s.node.clone()).collect();
        self.watch = Watch::new(&nodes, Detect::default());
        self.request = None;
        self.confirmed = Term(0);
        self.cleared = None;
        self.wal.upstream = Upstream::Idle;
        self.wal.followers.clear();
    }

    pub(super) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    pub(super) fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..2000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("never {what}: {:?}\nrules {:?}\n{:#?}", self.state, self.rules, self.servers);
    }

    pub(super) fn step(&mut self) {
        self.now.instant += STEP;
        self.now.unix_ms += 100;
        self.servers_write_and_stream();
        self.watch.tick(self.now.instant);
        for index in 0..self.servers.len() {
            let result = self.probe(index);
            let name = self.servers[index].node.name.clone();
            self.watch.observe(self.now.instant, &name, result);
        }
        let actions = self.turn();
        for action in actions {
            self.execute(&action);
        }
    }

    fn turn(&mut self) -> Vec<Action> {
        let mut wanted = Vec::new();
        for chain in 0.. {
            assert!(chain < 16, "rules fire in a circle: {:?}", self.rules);
            self.watch.expect_primary(self.state.primary.as_ref().map(|p| &p.node));
            let decision = self.decide();
            self.check(&decision.next);
            wanted = decision.actions;
            self.history.extend(decision.concluded);
            let Some(rule) = decision.rule else { break };
            self.rules.push(rule);
            if decision.next.term > self.state.term {
                self.ledger.forget_before(decision.next.term);
                self.request = None;
            }
            self.state = decision.next;
        }
        self.journal = self.state.clone();
        self.obey();
        wanted.retain(|action| self.ledger.is_due(action, self.now.instant));
        wanted
    }

    fn decide(&self) -> decide::Decision {
        self.look(|view| decide::decide(view, &self.state, &self.policy, self.now))
    }

    pub(super) fn obstacle(&self) -> Option<String> {
        self.look(|view| decide::obstacle(view, &self.state, &self.policy, self.now))
    }

    fn look<T>(&self, at: impl FnOnce(&View<'_>) -> T) -> T {
        let health = self.watch.health(self.now.instant);
        let proxy = ProxyStatus { confirmed: self.confirmed, ..ProxyStatus::default() };
        let nodes = self.servers.iter().zip(&health.nodes);
        let view = View {
            nodes: nodes
                .map(|(server, health)| NodeView {
                    node: &server.node,
                    health,
                    facts: self.watch.facts(&server.node.name),
                    process: match self.watch.is_refused(&server.node.name) {
                        true => Process::Absent,
                        false => Process::PresentOrUnknown,
                    },
                    agent: self.agent,
                })
                .collect(),
            verdict: self.watch.verdict(self.now.instant, &self.wal, &proxy),
            wal: Arc::new(self.wal.clone()),
            confirmed: self.confirmed,
            cleared: self.cleared.clone(),
            ledger: &self.ledger,
            request: self.request.clone(),
        };
        at(&view)
    }

    /// The promises, looked at for every state that is decided.
    fn check(&mut self, next: &State) {
        assert!(next.term >= self.state.term, "terms only grow");
        let directive = next.directive();
        assert_eq!(directive.term, next.term);
        let Some(primary) = directive.primary else { return };
        let known = self.primaries.entry(next.term).or_insert_with(|| primary.clone());
        assert_eq!(*known, primary, "two primaries in term {}", next.term);
        if directive.writes == Writes::Open && next.durability == Durability::Quorum {
            let server = self.servers.iter().find(|s| s.node.name == primary).expect("a node of ours");
            assert!(server.flush >= self.acknowledged, "{primary} opened without what was acknowledged");
        }
    }

    /// Relay and proxy act on the directive of the journaled state.
    fn obey(&mut self) {
        let directive = self.state.directive();
        if directive.term > self.wal.promised {
            self.wal.promised = directive.term;
            self.wal.upstream = Upstream::Idle;
        }
        if !self.deaf {
            self.confirmed = directive.term;
        }
        self.cleared = directive.candidate.clone().filter(|node| !self.clinging.contains(&node.as_str()));
        if directive.upstream.is_none() {
            self.wal.upstream = Upstream::Idle;
        }
    }

    fn servers_write_and_stream(&mut self) {
        let directive = self.state.directive();
        if let Some(writable) = directive.writable().cloned() {
            let up = self.servers.iter_mut().find(|s| s.node.name == writable);
            if let Some(server) = up.filter(|s| s.life == Life::Runs && s.role == Role::Primary) {
                server.flush = server.flush.advanced(0x100);
            }
        }
        if let Some(upstream) = directive.upstream.as_ref().filter(|_| directive.term >= self.wal.promised) {
            self.relay_streams(&upstream.clone());
        }
        if !self.blind {
            self.followers_stream();
        }
    }

    fn relay_streams(&mut self, node: &NodeName) {
        let server = self.servers.iter().find(|s| s.node.name == *node).expect("a node of ours").clone();
        let lost = |why: &str| StreamEnd::Lost { why: why.to_owned() };
        if server.life == Life::Dead || server.role == Role::Standby {
            if !matches!(self.wal.upstream, Upstream::Ended { .. }) {
                self.wal.upstream = Upstream::Ended {
                    node: node.clone(),
                    at: self.now.instant,
                    how: lost("connection reset"),
                };
            }
            return;
        }
        if server.life == Life::Frozen || self.blind {
            return;
        }
        if server.timeline == self.wal.timeline && server.flush < self.wal.verified {
            let how = StreamEnd::Refused { why: "WAL differs from what is stored".to_owned() };
            self.wal.upstream = Upstream::Ended { node: node.clone(), at: self.now.instant, how };
            return;
        }
        let fork = server.forks.iter().find(|(of, _)| *of == self.wal.timeline).map(|(_, at)| *at);
        if self.wal.timeline != server.timeline && self.wal.timeline != TimelineId(0) {
            assert!(
                fork.is_some_and(|at| at >= self.wal.verified),
                "the relay is asked to lose what it holds"
            );
            self.relay_forks.extend(fork.map(|at| (self.wal.timeline, at)));
        }
        self.wal.timeline = server.timeline;
        self.wal.system = Some(SYSTEM);
        self.wal.durable = server.flush;
        self.wal.received = server.flush;
        self.wal.verified = server.flush;
        self.wal.upstream_end = server.flush;
        let (node, since, last_message) = (node.clone(), self.now.instant, self.now.instant);
        self.wal.upstream = Upstream::Streaming { node, since, last_message };
        let names = format!("\"bellwether_bw_t{}\"", self.state.term);
        if self.is_open() && (server.names == names || self.policy.durability == Durability::Async) {
            self.acknowledged = self.acknowledged.max(self.wal.durable);
        }
    }

    fn followers_stream(&mut self) {
        let (wal, forks, now) = (&self.wal, &self.relay_forks, self.now.instant);
        let mut followers = Vec::new();
        for server in self.servers.iter_mut().filter(|s| s.life == Life::Runs && s.role == Role::Standby) {
            let fork = forks.iter().find(|(of, _)| *of == server.timeline).map(|(_, at)| *at);
            let follows = server.timeline == wal.timeline || fork.is_some_and(|at| server.flush <= at);
            if !follows || wal.durable < server.flush {
                continue;
            }
            server.timeline = wal.timeline;
            // Slower than the relay: who was away has to catch up.
            server.flush = wal.durable.min(server.flush.advanced(0x180));
            followers.push(follower(server, now));
        }
        self.wal.followers = followers;
    }

    fn probe(&self, index: usize) -> ProbeResult {
        let server = &self.servers[index];
        match server.life {
            _ if self.blind => ProbeResult::Timeout,
            Life::Dead => ProbeResult::Refused,
            Life::Frozen => ProbeResult::Timeout,
            Life::Runs => ProbeResult::Answered(Facts {
                role: server.role,
                system: SYSTEM,
                timeline: server.timeline,
                position: server.flush,
                started_at: server.starts.to_string(),
                synchronous_standby_names: server.names.clone(),
                checkpoint_timeline: server.checkpoint,
                relay_slot: server.slot,
                stalled_since: None,
            }),
        }
    }

    fn execute(&mut self, action: &Action) {
        assert_eq!(action.term, self.journal.term, "an action of a term that is not journaled");
        self.ledger.started(action);
        let result = if std::mem::take(&mut self.fail_next) { None } else { self.done(action) };
        match result {
            Some(finding) => self.ledger.succeeded(action, finding, self.now.instant),
            None => self.ledger.failed(action, self.now.instant),
        }
    }

    fn done(&mut self, action: &Action) -> Option<Finding> {
        let durability = self.policy.durability;
        let relay_durable = self.wal.durable;
        let journaled = self.journal.clone();
        let source =
            self.servers.iter().find(|s| Some(&s.node.name) == journaled.primary.as_ref().map(|p| &p.node));
        let source = source.cloned();
        let streams = matches!(&self.wal.upstream, Upstream::Streaming { node, .. } if *node == action.node);
        let server = self.servers.iter_mut().find(|s| s.node.name == action.node).expect("a node of ours");
        let answers = server.life == Life::Runs && !self.blind;
        match &action.what {
            What::Start { .. } if server.life == Life::Dead => {
                server.life = Life::Runs;
                server.starts += 1;
            }
            What::Start { .. } | What::Advise { .. } => {}
            What::Rebuild { .. } => {
                let source = source.filter(|s| s.life == Life::Runs && s.role == Role::Primary)?;
                server.starts += 1;
                server.life = Life::Runs;
                server.role = Role::Standby;
                server.timeline = source.timeline;
                server.forks = source.forks;
                server.flush = relay_durable.min(source.flush);
            }
            What::Stop => server.life = Life::Dead,
            What::Rejoin { .. } => {
                let source = source.filter(|s| s.life == Life::Runs && s.role == Role::Primary)?;
                assert_eq!(source.checkpoint, source.timeline, "rewound from a source without a checkpoint");
                server.starts += 1;
                server.life = Life::Runs;
                server.role = Role::Standby;
                server.timeline = source.timeline;
                server.forks = source.forks;
                server.checkpoint = source.timeline;
                server.flush = relay_durable.min(source.flush);
            }
            _ if !answers => return None,
            What::Prepare { names } => {
                server.names = names.setting();
                server.slot = SlotState::Inactive;
            }
            What::Locate => {
                return Some(Finding::Located { timeline: server.timeline, replayed: server.flush });
            }
            What::DropSlot => server.slot = SlotState::Absent,
            What::Checkpoint => server.checkpoint = server.timeline,
            What::Promote { .. } | What::Inspect { .. } => return Some(promote(server, action, &journaled)),
            What::Marker => {
                if server.role != Role::Primary || (durability == Durability::Quorum && !streams) {
                    return None;
                }
                server.flush = server.flush.advanced(0x40);
                return Some(Finding::Committed { lsn: server.flush });
            }
        }
        Some(Finding::Done)
    }
}

fn promote(server: &mut Server, action: &Action, journaled: &State) -> Finding {
    if matches!(action.what, What::Promote { .. }) {
        let Phase::Election(election) = &journaled.phase else { panic!("promotion outside of an election") };
        assert_eq!(election.step.candidate(), Some(&action.node), "promoted before it was journaled");
        if server.role == Role::Standby {
            server.role = Role::Primary;
            server.forks.push((server.timeline, server.flush));
            server.timeline = TimelineId(server.timeline.0 + 1);
            server.flush = server.flush.advanced(0x80);
        }
    }
    let (What::Promote { from } | What::Inspect { from }) = &action.what else { panic!("not a question") };
    let switchpoint = server.forks.iter().find(|(of, _)| of == from).map(|(_, at)| *at);
    Finding::Promoted(Promoted { system: SYSTEM, timeline: server.timeline, switchpoint })
}

fn follower(server: &Server, now: Instant) -> Follower {
    Follower {
        application_name: server.node.name.to_string(),
        pid: 1,
        timeline: server.timeline,
        state: FollowerState::Streaming,
        sent: server.flush,
        write: server.flush,
        flush: server.flush,
        replay: server.flush,
        lag: Lag::default(),
        reported_at: now,
    }
}

fn node(name: &str) -> Node {
    Node {
        name: name.parse().expect("a node name"),
        address: "127.0.0.1:5432".parse().expect("an address"),
        priority: 100,
        no_failover: false,
    }
}
