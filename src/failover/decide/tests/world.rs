#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]
//! A small cluster of values: servers that write, stream, die and promote, a relay, a proxy, and a shell that does what
//! the real `Core` wants. Time goes in steps of 100 ms; nothing sleeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::peers::{OWN, Peers};
use crate::failover::command::Command;
use crate::failover::core::{Core, Effect, MAX_CHAIN};
use crate::failover::decide::{
    Action, Agent, Budget, Fenced, Finding, Mode, Now, Phase, Policy, Promoted, Rest, RuleId, State, What,
};
use crate::failover::health::{Detect, Facts, Knock, ProbeResult, SlotState, Watch};
use crate::failover::{CommandError, Tuning};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Alarm, AlarmKind, Candidate, Diagnosis, Directive, Drained, Durability, Election, Failovers, Follower,
    FollowerState, Hearing, Lag, Node, NodeName, ProxyStatus, Refusal, Role, StreamEnd, Term, Upstream,
    WalStatus, Writes,
};

pub(super) const SYSTEM: SystemIdentifier = SystemIdentifier(7);
const STEP: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Runs,
    Dead,
    /// Its directory is empty.
    Unmade,
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
    /// Bytes that a standby has flushed and not replayed.
    pub(super) backlog: u64,
    /// Where its replay is paused: it asks nobody for WAL then.
    pub(super) paused_at: Option<Lsn>,
    checkpoint: TimelineId,
    pub(super) names: String,
    pub(super) slot: SlotState,
    starts: u32,
    /// Of what it runs, and of what it would be started with.
    pub(super) version: String,
    pub(super) installed: String,
    /// Where the checkpoint of its shutdown is, if it is shut down in order.
    shut_down: Option<Lsn>,
}

impl Server {
    pub(super) fn started_at(&self) -> String {
        self.starts.to_string()
    }

    /// By the binaries that lie there now.
    fn is_started(&mut self) {
        self.starts += 1;
        self.version.clone_from(&self.installed);
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Now,
    pub(super) servers: Vec<Server>,
    policy: Policy,
    /// The other instances; none where this one is alone.
    pub(super) peers: Peers,
    pub(super) wal: WalStatus,
    relay_forks: Vec<(TimelineId, Lsn)>,
    pub(super) proxy: ProxyStatus,
    /// Nodes that a session does not let go of.
    pub(super) clinging: Vec<&'static str>,
    /// Where `synchronous_standby_names` cannot be set.
    pub(super) unpreparable: Vec<&'static str>,
    /// Whose files are replaced in vain: it does not start.
    pub(super) unrejoinable: Vec<&'static str>,
    /// What does not start.
    pub(super) unstartable: Vec<&'static str>,
    /// How often that was done, or tried.
    pub(super) copies: u32,
    /// From whom the relay cannot stream.
    pub(super) unheard: Vec<&'static str>,
    /// The proxy confirms nothing.
    pub(super) deaf: bool,
    /// Transactions that do not end.
    pub(super) open_transactions: usize,
    /// The proxy does nothing, and what it said last stands.
    pub(super) stuck: bool,
    core: Core,
    /// How actions went; told a step later, so that a turn sees them under way.
    answers: Vec<(Action, Option<Finding>)>,
    /// Markers whose commit waits for the relay.
    commits: Vec<Action>,
    /// What is journaled; after a restart, what was made of it.
    pub(super) state: State,
    /// What went out last.
    directive: Directive,
    /// What a person was told.
    pub(super) alarms: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// What ailed the primary, one after the other.
    pub(super) ailments: Vec<&'static str>,
    agent: Agent,
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
        World::with(durability, Agent::Local, &[])
    }

    /// The same as one instance of several, in its first steady term.
    pub(super) fn among(durability: Durability, agent: Agent, others: &[&'static str]) -> World {
        World::with(durability, agent, others).settled()
    }

    fn with(durability: Durability, agent: Agent, others: &[&'static str]) -> World {
        let nodes: Vec<Node> = ["pg1", "pg2", "pg3"].into_iter().map(node).collect();
        let now = Now { instant: Instant::now(), unix_ms: 1_000_000 };
        let peers = Peers::new(others, now.instant);
        let policy = Policy {
            members: peers.names(),
            bootstrap_timeout: Duration::from_secs(10),
            catch_up_timeout: Duration::from_secs(10),
            restart_timeout: Duration::from_secs(60),
            ..Policy::new(OWN, Mode::Automatic, durability)
        };
        let server = |node: &Node| Server {
            node: node.clone(),
            life: Life::Runs,
            role: if node.name.as_str() == "pg1" { Role::Primary } else { Role::Standby },
            timeline: TimelineId(1),
            forks: Vec::new(),
            flush: Lsn(0x1000),
            backlog: 0,
            paused_at: None,
            checkpoint: TimelineId(1),
            names: String::new(),
            slot: SlotState::Absent,
            starts: 1,
            version: "15.1".to_owned(),
            installed: "15.1".to_owned(),
            shut_down: None,
        };
        let servers: Vec<Server> = nodes.iter().map(server).collect();
        let state = State::bootstrapping(durability, 1_000_000);
        World {
            now,
            peers,
            core: core(&servers, agent, &policy, state.clone()),
            answers: Vec::new(),
            commits: Vec::new(),
            servers,
            policy,
            wal: WalStatus::starting(),
            relay_forks: Vec::new(),
            proxy: ProxyStatus::default(),
            clinging: Vec::new(),
            unpreparable: Vec::new(),
            unrejoinable: Vec::new(),
            unstartable: Vec::new(),
            copies: 0,
            unheard: Vec::new(),
            deaf: false,
            open_transactions: 0,
            stuck: false,
            directive: state.directive(),
            state,
            alarms: Vec::new(),
            warnings: Vec::new(),
            ailments: Vec::new(),
            agent,
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
        World::steady_with(durability, Agent::Local)
    }

    /// The same without anybody who starts servers.
    pub(super) fn unattended(durability: Durability) -> World {
        World::steady_with(durability, Agent::None)
    }

    pub(super) fn steady_with(durability: Durability, agent: Agent) -> World {
        World::with(durability, agent, &[]).settled()
    }

    fn settled(mut self) -> World {
        self.run_until("steady", |w| matches!(w.state.phase, Phase::Steady) && w.state.deposed.is_empty());
        self.run(20);
        self.rules.clear();
        self
    }

    pub(super) fn server(&mut self, name: &str) -> &mut Server {
        self.servers.iter_mut().find(|s| s.node.name.as_str() == name).expect("one of pg1, pg2, pg3")
    }

    pub(super) fn diagnosis(&self) -> Option<Diagnosis> {
        self.core.health(self.now.instant).diagnosis
    }

    pub(super) fn primary(&self) -> Option<&str> {
        self.state.primary.as_ref().map(|p| p.node.as_str())
    }

    pub(super) fn failovers(&self) -> Failovers {
        self.core.failovers(self.now)
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.directive().writes == Writes::Open
    }

    pub(super) fn fenced(&self) -> Option<&Fenced> {
        let Phase::Election(election) = &self.state.phase else { return None };
        election.fenced.as_ref()
    }

    pub(super) fn kill(&mut self, name: &str) {
        self.server(name).life = Life::Dead;
    }

    pub(super) fn revive(&mut self, name: &str) {
        let server = self.server(name);
        if server.life == Life::Dead {
            server.is_started();
            server.shut_down = None;
        }
        server.life = Life::Runs;
    }

    /// The slot's WAL was too much: everything up to here is removed.
    pub(super) fn lose_slot(&mut self, name: &str, oldest: Lsn) {
        self.wal.oldest = oldest;
        self.wal.alarms = Arc::new(vec![Alarm {
            kind: AlarmKind::LostSlot,
            object: name.to_owned(),
            what: format!("replication slot {name} is lost"),
            raised_at_ms: self.now.unix_ms,
            over_at_ms: None,
        }]);
    }

    /// Bellwether dies and starts again: only the journal is left of what it knew.
    pub(super) fn restart(&mut self) {
        let state = self.state.clone().resumed(self.policy.durability, self.now.unix_ms);
        self.core = core(&self.servers, self.agent, &self.policy, state.clone());
        self.answers.clear();
        self.commits.clear();
        self.state = state;
        self.direct(self.core.directive().clone());
        self.proxy = ProxyStatus::default();
        self.wal.upstream = Upstream::Idle;
        self.wal.followers.clear();
    }

    pub(super) fn order_failover(&mut self, to: Option<NodeName>) {
        self.order(&Command::Failover { to }).expect("it is steady");
    }

    pub(super) fn order(&mut self, command: &Command) -> Result<String, CommandError> {
        self.core.command(command, self.now, &Arc::new(self.wal.clone()), &self.proxy)
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.policy.mode = mode;
        self.tune();
    }

    pub(super) fn set_budget(&mut self, failovers: usize, window: Duration) {
        self.policy.budget = Some(Budget { failovers, window });
        self.tune();
    }

    pub(super) fn allow_loss(&mut self, max_lost_bytes: u64) {
        self.policy.max_lost_bytes = max_lost_bytes;
        self.tune();
    }

    fn tune(&mut self) {
        let Policy { mode, budget, max_lost_bytes, drain, .. } = self.policy;
        self.core.tune(Tuning { mode, budget, max_lost_bytes, drain, detect: Detect::default() });
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
        self.commit();
        self.core.tick(self.now.instant);
        for index in 0..self.servers.len() {
            let result = self.probe(index);
            let server = &self.servers[index];
            self.core.probed(self.now.instant, &server.node.name, result);
            let knock = match server.life {
                _ if self.blind => Knock::NoAnswer,
                Life::Runs | Life::Frozen => Knock::Accepted,
                Life::Dead | Life::Unmade => Knock::Refused,
            };
            self.core.knocked(self.now.instant, &server.node.name, knock);
        }
        self.core.heard(Arc::new(self.peers.members(self.now.instant)), self.now.instant);
        let mut actions = Vec::new();
        let fired_before = self.rules.len();
        for effect in self.core.turn(self.now, &Arc::new(self.wal.clone()), &self.proxy) {
            match effect {
                Effect::Fired { rule, .. } => self.rules.push(rule),
                Effect::Alarm { why, .. } => self.alarms.push(why),
                Effect::Warn { why, .. } => self.warnings.push(why),
                Effect::Journal(next) => {
                    assert!(next.term >= self.state.term, "terms only grow");
                    self.state = next;
                }
                Effect::Direct(directive) => self.direct(directive),
                Effect::Concluded(election) => self.history.push(election),
                Effect::Start(action) => actions.push(action),
                Effect::Diagnosed(found) => self.ailments.extend(found.map(|found| found.ailment.as_str())),
                Effect::GiveUpBefore(_) | Effect::LeftBehind(_) | Effect::Probe(_) | Effect::Remember(_) => {}
            }
        }
        let fired = &self.rules[fired_before..];
        assert!(fired.len() < MAX_CHAIN, "in a circle: {fired:?}");
        self.obey();
        for (action, result) in std::mem::take(&mut self.answers) {
            self.core.acted(&action, result, self.now.instant);
        }
        for action in actions {
            if self.waits(&action) {
                self.commits.push(action);
                continue;
            }
            let result = self.execute(&action);
            self.answers.push((action, result));
        }
    }

    /// A commit that the relay has to acknowledge, which does not stream.
    fn waits(&self, action: &Action) -> bool {
        let runs =
            |s: &&Server| s.node.name == action.node && s.life == Life::Runs && s.role == Role::Primary;
        action.what == What::Marker
            && action.term == self.state.term
            && self.policy.durability == Durability::Quorum
            && self.servers.iter().any(|server| runs(&server))
            && !self.streams(&action.node)
    }

    /// What waited, if it waits no more.
    fn commit(&mut self) {
        for action in std::mem::take(&mut self.commits) {
            if self.waits(&action) {
                self.commits.push(action);
                continue;
            }
            let result = if action.term == self.state.term { self.execute(&action) } else { None };
            if result.is_some() {
                // It has acknowledged what it has.
                self.relay_streams(&action.node);
            }
            self.core.acted(&action, result, self.now.instant);
        }
    }

    fn streams(&self, node: &NodeName) -> bool {
        matches!(&self.wal.upstream, Upstream::Streaming { node: upstream, .. } if upstream == node)
    }

    /// The promises, looked at for every directive.
    fn direct(&mut self, directive: Directive) {
        assert_eq!(directive.term, self.state.term, "a term that is not journaled");
        if let Some(primary) = &directive.primary {
            let known = self.primaries.entry(directive.term).or_insert_with(|| primary.clone());
            assert_eq!(known, primary, "two primaries in term {}", directive.term);
            if directive.writes == Writes::Open && directive.durability == Durability::Quorum {
                let server = self.servers.iter().find(|s| s.node.name == *primary).expect("a node of ours");
                assert!(server.flush >= self.acknowledged, "{primary} opened without what was acknowledged");
            }
        }
        self.directive = directive;
    }

    /// Relay and proxy act on the directive.
    fn obey(&mut self) {
        let directive = &self.directive;
        if directive.term > self.wal.promised {
            self.wal.promised = directive.term;
            self.wal.upstream = Upstream::Idle;
        }
        if !self.deaf && !self.stuck {
            self.proxy.confirmed = directive.term;
        }
        if !self.stuck {
            let clings = |candidate: &Candidate| self.clinging.contains(&candidate.node.as_str());
            let (busy, pinned) = (self.open_transactions, [("temp_table".to_owned(), 2)].into());
            let drains = !directive.coming_to_rest().is_empty();
            self.proxy.drained = drains.then_some(Drained { round: directive.drains, busy, pinned });
            self.proxy.cleared = directive.candidate.clone().filter(|candidate| !clings(candidate));
        }
        if directive.upstream.is_none() {
            self.wal.upstream = Upstream::Idle;
        }
        self.peers.obey(&self.directive, &mut self.wal, self.now.instant);
    }

    fn servers_write_and_stream(&mut self) {
        let directive = self.directive.clone();
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
        if matches!(server.life, Life::Dead | Life::Unmade) || server.role == Role::Standby {
            if !matches!(self.wal.upstream, Upstream::Ended { .. }) {
                self.wal.upstream = Upstream::Ended {
                    node: node.clone(),
                    at: self.now.instant,
                    how: lost("connection reset"),
                };
            }
            return;
        }
        if server.life == Life::Frozen || self.blind || self.unheard.contains(&node.as_str()) {
            return;
        }
        if server.timeline == self.wal.timeline && server.flush < self.wal.verified {
            let how = StreamEnd::Refused {
                why: "WAL differs from what is stored".to_owned(),
                cause: Refusal::Other,
            };
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
        let named = server.names.contains(&format!("_t{}\"", self.state.term));
        let acknowledged = named && self.peers.acknowledge(&self.directive);
        if self.is_open() && (acknowledged || self.policy.durability == Durability::Async) {
            self.acknowledged = self.acknowledged.max(self.wal.durable);
        }
    }

    fn followers_stream(&mut self) {
        let (wal, forks, now) = (&self.wal, &self.relay_forks, self.now.instant);
        let mut followers = Vec::new();
        for server in self.servers.iter_mut().filter(|s| s.life == Life::Runs && s.role == Role::Standby) {
            if server.paused_at.is_some() {
                continue;
            }
            let fork = forks.iter().find(|(of, _)| *of == server.timeline).map(|(_, at)| *at);
            let follows = server.timeline == wal.timeline || fork.is_some_and(|at| server.flush <= at);
            if server.flush < wal.oldest {
                // It comes, and is refused.
                let refused = follower(server, now);
                followers.push(Follower { state: FollowerState::Startup, timeline: wal.timeline, ..refused });
                continue;
            }
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
            Life::Dead | Life::Unmade => ProbeResult::Refused,
            Life::Frozen => ProbeResult::Timeout,
            Life::Runs => ProbeResult::Answered(Facts {
                role: server.role,
                system: SYSTEM,
                timeline: server.timeline,
                position: server.paused_at.unwrap_or(server.flush),
                received: server.flush,
                started_at: server.starts.to_string(),
                server_version: server.version.clone(),
                synchronous_standby_names: server.names.clone(),
                checkpoint_timeline: server.checkpoint,
                relay_slot: server.slot,
                stalled_since: None,
            }),
        }
    }

    fn execute(&mut self, action: &Action) -> Option<Finding> {
        assert_eq!(action.term, self.state.term, "an action of a term that is not journaled");
        if std::mem::take(&mut self.fail_next) { None } else { self.done(action) }
    }

    fn done(&mut self, action: &Action) -> Option<Finding> {
        self.copies += u32::from(action.what.replaces_files());
        if action.what.replaces_files() && self.unrejoinable.contains(&action.node.as_str()) {
            return None;
        }
        let durability = self.policy.durability;
        let relay_durable = self.wal.durable;
        let journaled = self.state.clone();
        let source =
            self.servers.iter().find(|s| Some(&s.node.name) == journaled.primary.as_ref().map(|p| &p.node));
        let source = source.cloned();
        let streams = self.streams(&action.node);
        let server = self.servers.iter_mut().find(|s| s.node.name == action.node).expect("a node of ours");
        let answers = server.life == Life::Runs && !self.blind;
        match &action.what {
            What::Start { .. } | What::Rejoin { .. } if self.unstartable.contains(&action.node.as_str()) => {
                return None;
            }
            What::Start { .. } if server.life == Life::Dead => {
                server.life = Life::Runs;
                server.is_started();
                server.shut_down = None;
            }
            What::Start { .. } if server.life == Life::Unmade => return Some(Finding::NothingThere),
            What::Start { .. } | What::Advise { .. } => {}
            What::Rebuild { .. } => {
                let source = source.filter(|s| s.life == Life::Runs && s.role == Role::Primary)?;
                server.is_started();
                server.life = Life::Runs;
                server.role = Role::Standby;
                server.timeline = source.timeline;
                server.forks = source.forks;
                server.flush = relay_durable.min(source.flush);
            }
            What::Stop => server.life = Life::Dead,
            What::StopStandby if server.role != Role::Standby => return None,
            What::StopStandby if server.life != Life::Unmade => server.life = Life::Dead,
            What::StopStandby => {}
            What::Rejoin { .. } => {
                let source = source.filter(|s| s.life == Life::Runs && s.role == Role::Primary)?;
                assert_eq!(source.checkpoint, source.timeline, "rewound from a source without a checkpoint");
                server.is_started();
                server.life = Life::Runs;
                server.role = Role::Standby;
                server.timeline = source.timeline;
                server.forks = source.forks;
                server.checkpoint = source.timeline;
                server.flush = relay_durable.min(source.flush);
            }
            What::ShutDown => {
                if server.life != Life::Runs {
                    return server.shut_down.map(|checkpoint| Finding::ShutDown { checkpoint });
                }
                let checkpoint = server.flush;
                server.shut_down = Some(checkpoint);
                server.flush = checkpoint.advanced(0x80);
                server.life = Life::Dead;
                // Its walsender leaves when the relay has everything.
                if streams && !self.blind && !self.unheard.contains(&action.node.as_str()) {
                    let end = server.flush;
                    self.wal.durable = end;
                    (self.wal.received, self.wal.verified, self.wal.upstream_end) = (end, end, end);
                }
                return Some(Finding::ShutDown { checkpoint });
            }
            _ if !answers => return None,
            What::LastWord => {
                server.flush = server.flush.advanced(0x40);
                return Some(Finding::Committed { lsn: server.flush });
            }
            What::Prepare { .. } if self.unpreparable.contains(&action.node.as_str()) => return None,
            What::Prepare { names } => {
                server.names = names.setting();
                server.slot = SlotState::Inactive;
                return Some(Finding::Prepared { end: server.flush });
            }
            What::Locate => {
                return Some(Finding::Located { timeline: server.timeline, replayed: server.flush });
            }
            What::DropSlot => server.slot = SlotState::Absent,
            What::Checkpoint => server.checkpoint = server.timeline,
            What::Promote { .. } | What::Inspect { .. } => {
                let finding = promote(server, action, &journaled);
                self.nothing_is_lost(action);
                return Some(finding);
            }
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

impl World {
    /// A server that was shut down in order for its successor's sake has written nothing that this one lacks.
    fn nothing_is_lost(&self, action: &Action) {
        let Phase::Election(election) = &self.state.phase else { return };
        let Some(planned) = election.planned.as_ref().filter(|p| p.rest == Rest::ShutDown) else { return };
        if planned.successor.as_ref() != Some(&action.node) || !matches!(action.what, What::Promote { .. }) {
            return;
        }
        let find =
            |name: &NodeName| self.servers.iter().find(|s| s.node.name == *name).expect("a node of ours");
        let old = find(election.record.from.as_ref().expect("whom it was taken from"));
        let (_, fork) = *find(&action.node).forks.last().expect("it was promoted");
        assert_eq!(fork, old.flush, "promoted without all that the old primary has written");
    }
}

fn core(servers: &[Server], agent: Agent, policy: &Policy, state: State) -> Core {
    let nodes: Vec<Node> = servers.iter().map(|server| server.node.clone()).collect();
    let local = match agent {
        Agent::Local => nodes.iter().map(|node| node.name.clone()).collect(),
        Agent::Away | Agent::None => BTreeSet::new(),
    };
    let watch = Watch::new(&nodes, Detect::default());
    Core::new(nodes, local, policy.clone(), watch, state, Vec::new())
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
        replay: Lsn(server.flush.0.saturating_sub(server.backlog)),
        lag: Lag::default(),
        reported_at: now,
        hearing: Hearing::ByStream,
    }
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
