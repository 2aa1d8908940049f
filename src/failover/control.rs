#![expect(clippy::disallowed_methods, reason = "shell: reads the clocks")]
//! The circle of events, decisions and actions. It decides nothing itself.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use super::command::{Asked, Command, Commands};
use super::decide::{
    self, Action, Agent, Automatic, Finding, Ledger, NodeView, Now, Phase, Policy, Process, Request, State,
    View,
};
use super::error::{ActionError, CommandError, FailoverError};
use super::execute::Executor;
use super::health::Watch;
use super::metrics::Metrics;
use super::probe::{Probe, Probed};
use super::state::{FileJournal, MAX_HISTORY};
use super::{FailoverConfig, Inputs, Outputs, Tuning};
use crate::net::Target;
use crate::topology::{Election, Health, LeftBehind, Node, NodeName, Outcome, Term, Upstream};

const TICK: Duration = Duration::from_millis(100);
/// Probe results waiting to be looked at; a probe waits for its turn beyond that.
const PROBE_QUEUE: usize = 64;
/// Rules that may fire in one turn: more than any chain of them is long.
const MAX_CHAIN: usize = 16;

#[derive(Debug)]
pub(super) struct Control {
    nodes: Vec<Node>,
    policy: Policy,
    tuning: watch::Receiver<Tuning>,
    state: State,
    journal: Arc<FileJournal>,
    history: Vec<Election>,
    watch: Watch,
    ledger: Ledger,
    request: Option<Request>,
    executor: Arc<Executor>,
    local: BTreeSet<NodeName>,
    inputs: (
        watch::Receiver<Arc<crate::topology::WalStatus>>,
        watch::Receiver<Arc<crate::topology::ProxyStatus>>,
    ),
    outputs: Outputs,
    metrics: Metrics,
    commands: mpsc::Receiver<Asked>,
    kicks: HashMap<NodeName, Arc<Notify>>,
    probes: Vec<Probe>,
    /// What was last said to need a person.
    obstacle: Option<String>,
    /// Whether the relay heard its upstream at the last look.
    stream: StreamSeen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamSeen {
    Alive,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum History {
    Unchanged,
    Grown,
}

/// The result of an action that ran as a task.
type Finished = (Action, Result<Finding, ActionError>);

impl Control {
    pub(super) fn new(
        config: FailoverConfig,
        inputs: Inputs,
        outputs: Outputs,
        metrics: Metrics,
    ) -> Result<(Control, Commands), FailoverError> {
        let policy = config.policy();
        let detect = config.tuning.borrow().detect;
        let journal = FileJournal::new(config.state.clone());
        let history = journal.history()?;
        let now_ms = clock().unix_ms;
        let state = match journal.load()? {
            Some(state) => state.resumed(config.durability, now_ms),
            None => State::bootstrapping(config.durability, now_ms),
        };
        let probes: Vec<Probe> = config.nodes.iter().map(|node| probe(node, &config)).collect();
        let executor = Executor {
            targets: config.nodes.iter().map(|node| (node.name.clone(), target(node, &config))).collect(),
            relay_slot: config.relay_slot.clone(),
            promote_limit: policy.promote_timeout,
            local: inputs.local,
        };
        let (commands, asked) = Commands::channel();
        let control = Control {
            watch: Watch::new(&config.nodes, detect),
            nodes: config.nodes,
            policy,
            tuning: config.tuning,
            state,
            journal: Arc::new(journal),
            history,
            ledger: Ledger::default(),
            request: None,
            local: executor.local.keys().cloned().collect(),
            executor: Arc::new(executor),
            inputs: (inputs.wal, inputs.proxy),
            outputs,
            metrics,
            commands: asked,
            kicks: probes.iter().map(|p| (p.node.clone(), p.kick.clone())).collect(),
            probes,
            obstacle: None,
            stream: StreamSeen::Gone,
        };
        control.publish();
        Ok((control, commands))
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), FailoverError> {
        let (probed, mut probes) = mpsc::channel(PROBE_QUEUE);
        let mut tasks = JoinSet::new();
        for probe in std::mem::take(&mut self.probes) {
            tasks.spawn(probe.run(probed.clone(), shutdown.clone()));
        }
        let mut actions = Running::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tracing::info!(term = %self.state.term, phase = ?self.state.phase, "control plane started");
        loop {
            let (wal, proxy) = &mut self.inputs;
            let tuning = &mut self.tuning;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => self.watch.tick(Instant::now()),
                Some(probed) = probes.recv() => self.probed(probed),
                Some(ended) = actions.next() => match ended? {
                    Ended::Finished(finished) => self.finished(finished),
                    Ended::GivenUp(action) => self.ledger.failed(&action, Instant::now()),
                },
                Some(asked) = self.commands.recv() => self.asked(asked).await?,
                Ok(()) = tuning.changed() => self.tune(),
                Ok(()) = wal.changed() => if self.nothing_new_of_wal() { continue },
                Ok(()) = proxy.changed() => if matches!(self.state.phase, Phase::Steady) { continue },
            }
            self.turn(&mut actions).await?;
        }
    }

    fn tune(&mut self) {
        let Tuning { mode, max_lost_bytes, detect } = *self.tuning.borrow_and_update();
        self.policy.mode = mode;
        self.policy.max_lost_bytes = max_lost_bytes;
        self.watch.set_detect(detect);
    }

    /// Decide, journal, publish, act: in this order.
    async fn turn(&mut self, actions: &mut Running) -> Result<(), FailoverError> {
        let before = self.state.clone();
        let (wanted, concluded, left_behind) = self.decide();
        if self.state != before {
            if let Err(error) = self.make_durable().await {
                // Not journaled is not decided.
                self.state = before;
                return Err(error);
            }
            actions.give_up_before(self.state.term);
            let concluded = self.conclude(concluded, left_behind);
            self.publish();
            self.kick_primary();
            // Behind the directive: clients wait for that.
            self.remember(concluded).await?;
        }
        self.publish_health();
        let now = Instant::now();
        for action in wanted {
            if self.ledger.is_due(&action, now) {
                self.ledger.started(&action);
                tracing::debug!(term = %action.term, node = %action.node, action = action.what.name(), "action started");
                let executor = self.executor.clone();
                actions.start(action.clone(), async move { Box::pin(executor.run(&action)).await });
            }
        }
        Ok(())
    }

    fn decide(&mut self) -> (Vec<Action>, Vec<Election>, Vec<LeftBehind>) {
        let (mut wanted, mut concluded, mut left_behind) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..MAX_CHAIN {
            let now = clock();
            self.watch.expect_primary(self.state.primary.as_ref().map(|p| &p.node));
            let health = self.watch.health(now.instant);
            let view = self.view(&health, now);
            let decision = decide::decide(&view, &self.state, &self.policy, now);
            wanted = decision.actions;
            concluded.extend(decision.concluded);
            left_behind.extend(decision.left_behind);
            let Some(rule) = decision.rule else {
                let obstacle = decide::obstacle(&view, &self.state, &self.policy, now);
                self.say_obstacle(obstacle);
                break;
            };
            let words = rule.rule().map_or("", |r| r.name);
            tracing::info!(term = %decision.next.term, rule = rule.as_str(), "{words}");
            if decision.next.term > self.state.term {
                self.ledger.forget_before(decision.next.term);
                self.request = None;
            }
            self.state = decision.next;
        }
        (wanted, concluded, left_behind)
    }

    /// Once, not ten times a second; the numbers in it may change without being news.
    fn say_obstacle(&mut self, obstacle: Option<String>) {
        if let (Some(why), None) = (&obstacle, &self.obstacle) {
            tracing::error!(term = %self.state.term, why, "a person is needed");
        }
        self.obstacle = obstacle;
    }

    fn view<'a>(&'a self, health: &'a Health, now: Now) -> View<'a> {
        let node = |(node, health): (&'a Node, &'a crate::topology::NodeHealth)| NodeView {
            node,
            health,
            facts: self.watch.facts(&node.name),
            process: if self.watch.is_refused(&node.name) {
                Process::Absent
            } else {
                Process::PresentOrUnknown
            },
            agent: if self.local.contains(&node.name) { Agent::Local } else { Agent::None },
        };
        let (wal, proxy) = (self.inputs.0.borrow().clone(), self.inputs.1.borrow().clone());
        View {
            nodes: self.nodes.iter().zip(&health.nodes).map(node).collect(),
            verdict: self.watch.verdict(now.instant, &wal, &proxy),
            confirmed: proxy.confirmed,
            cleared: proxy.cleared.clone(),
            wal,
            ledger: &self.ledger,
            request: self.request.clone(),
        }
    }

    async fn make_durable(&self) -> Result<(), FailoverError> {
        let started = Instant::now();
        let (journal, state) = (self.journal.clone(), self.state.clone());
        tokio::task::spawn_blocking(move || journal.put(&state)).await??;
        self.metrics.journal_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Takes ended elections into the history.
    fn conclude(&mut self, elections: Vec<Election>, left_behind: Vec<LeftBehind>) -> History {
        if elections.is_empty() && left_behind.is_empty() {
            return History::Unchanged;
        }
        for election in elections {
            self.metrics.concluded(&election);
            tracing::info!(
                term = %election.term,
                rule = election.rule,
                to = election.to.as_ref().map(tracing::field::display),
                outcome = ?election.outcome,
                lost_bytes = election.lost_bytes,
                evidence = ?election.evidence,
                phases = ?election.phases.iter().map(|p| (p.name.as_str(), p.millis)).collect::<Vec<_>>(),
                "election ended"
            );
            self.history.push(election);
        }
        for left_behind in left_behind {
            tracing::info!(?left_behind, "a standby holds WAL beyond the fork");
            if let Some(election) = self.history.iter_mut().rev().find(|e| e.outcome == Outcome::Completed) {
                election.left_behind.push(left_behind);
            }
        }
        let excess = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..excess);
        History::Grown
    }

    async fn remember(&self, history: History) -> Result<(), FailoverError> {
        if history == History::Grown {
            let (journal, history) = (self.journal.clone(), self.history.clone());
            tokio::task::spawn_blocking(move || journal.put_history(&history)).await??;
        }
        Ok(())
    }

    fn publish(&self) {
        let directive = self.state.directive();
        self.outputs.directive.send_if_modified(|current| {
            let changed = **current != directive;
            if changed {
                tracing::info!(
                    term = %directive.term,
                    primary = directive.primary.as_ref().map(tracing::field::display),
                    upstream = directive.upstream.as_ref().map(tracing::field::display),
                    writes = ?directive.writes,
                    "directive"
                );
                *current = Arc::new(directive);
            }
            changed
        });
        let mut history = self.history.clone();
        if let Phase::Election(election) = &self.state.phase {
            history.push(election.record.clone());
        }
        self.outputs.history.send_if_modified(|current| {
            let changed = **current != history;
            if changed {
                *current = Arc::new(history);
            }
            changed
        });
    }

    fn publish_health(&self) {
        let mut health = self.watch.health(Instant::now());
        decide::quarantine(&mut health, &self.state);
        let directive = self.outputs.directive.borrow().clone();
        self.metrics.observe(&health, &self.inputs.0.borrow(), directive.term, directive.primary.as_ref());
        self.outputs.health.send_if_modified(|current| {
            let changed = **current != health;
            if changed {
                *current = Arc::new(health);
            }
            changed
        });
    }

    fn probed(&mut self, probed: Probed) {
        self.watch.observe(probed.at, &probed.node, probed.result);
    }

    fn finished(&mut self, (action, result): Finished) {
        let now = Instant::now();
        let (term, node, name) = (action.term, &action.node, action.what.name());
        match result {
            Ok(finding) => {
                tracing::debug!(%term, %node, action = name, ?finding, "action done");
                self.ledger.succeeded(&action, finding, now);
                self.kick(&action.node);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(%term, %node, action = name, %error, cause, "action failed, to be repeated");
                self.ledger.failed(&action, now);
            }
        }
    }

    async fn asked(&mut self, asked: Asked) -> Result<(), FailoverError> {
        let answer = match self.accept(&asked.command) {
            Ok(accepted) if matches!(asked.command, Command::Pause | Command::Resume) => {
                self.make_durable().await?;
                Ok(accepted)
            }
            other => other,
        };
        // Who asked may have gone.
        let _ = asked.answer.send(answer);
        Ok(())
    }

    fn accept(&mut self, command: &Command) -> Result<String, CommandError> {
        match command {
            Command::Failover { to } => {
                if !matches!(self.state.phase, Phase::Steady) {
                    return Err(CommandError::NotNow("an election or the start is under way".to_owned()));
                }
                if let Some(to) = to {
                    self.check_candidate(to)?;
                }
                self.request = Some(Request::Failover { to: to.clone() });
                Ok("failover has begun".to_owned())
            }
            Command::Switchover { .. } => Err(CommandError::Unsupported("switchover")),
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

    fn check_candidate(&self, to: &NodeName) -> Result<(), CommandError> {
        let node = self.nodes.iter().find(|n| n.name == *to);
        let node = node.ok_or_else(|| CommandError::UnknownNode(to.clone()))?;
        let unfit = |why: &str| Err(CommandError::Unfit(to.clone(), why.to_owned()));
        if self.state.primary.as_ref().is_some_and(|p| p.node == *to) {
            return unfit("it is the primary");
        }
        if node.no_failover { unfit("it is configured with no_failover") } else { Ok(()) }
    }

    /// The relay's positions change all the time; in peace only its stream's end is news. A stream that has
    /// just ended is a reason to probe its node now.
    fn nothing_new_of_wal(&mut self) -> bool {
        let wal = self.inputs.0.borrow_and_update().clone();
        let (seen, node) = match &wal.upstream {
            Upstream::Streaming { node, .. } => (StreamSeen::Alive, Some(node)),
            Upstream::Connecting { node, last_error: None, .. } => (self.stream, Some(node)),
            Upstream::Connecting { node, .. } | Upstream::Ended { node, .. } => {
                (StreamSeen::Gone, Some(node))
            }
            Upstream::Idle => (StreamSeen::Gone, None),
        };
        let changed = seen != self.stream;
        self.stream = seen;
        if changed
            && seen == StreamSeen::Gone
            && let Some(node) = node
        {
            self.kick(node);
        }
        !changed && matches!(self.state.phase, Phase::Steady)
    }

    fn kick_primary(&self) {
        if let Some(primary) = &self.state.primary {
            self.kick(&primary.node);
        }
    }

    fn kick(&self, node: &NodeName) {
        if let Some(kick) = self.kicks.get(node) {
            kick.notify_one();
        }
    }
}

/// The actions under way, each a task.
#[derive(Debug, Default)]
struct Running {
    tasks: JoinSet<Result<Finding, ActionError>>,
    actions: HashMap<task::Id, (Action, task::AbortHandle)>,
}

/// How an action ended.
#[derive(Debug)]
enum Ended {
    Finished(Finished),
    GivenUp(Action),
}

impl Running {
    fn start(
        &mut self,
        action: Action,
        run: impl Future<Output = Result<Finding, ActionError>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(run);
        self.actions.insert(handle.id(), (action, handle));
    }

    /// A promotion asked for in a term that is over must not begin now. What works on a server's files is left
    /// to its end: half done is worse.
    fn give_up_before(&self, term: Term) {
        for (action, handle) in self.actions.values() {
            if action.term < term && !action.what.touches_server() {
                handle.abort();
            }
        }
    }

    /// The next one that ends; `None` while there is none. An error is a panic.
    async fn next(&mut self) -> Option<Result<Ended, task::JoinError>> {
        let joined = self.tasks.join_next_with_id().await?;
        let id = joined.as_ref().map_or_else(task::JoinError::id, |(id, _)| *id);
        let (action, _) = self.actions.remove(&id)?;
        Some(match joined {
            Ok((_, result)) => Ok(Ended::Finished((action, result))),
            Err(error) if error.is_cancelled() => Ok(Ended::GivenUp(action)),
            Err(error) => Err(error),
        })
    }
}

fn probe(node: &Node, config: &FailoverConfig) -> Probe {
    Probe {
        node: node.name.clone(),
        target: target(node, config),
        tuning: config.tuning.clone(),
        relay_slot: config.relay_slot.clone(),
        kick: Arc::new(Notify::new()),
    }
}

fn target(node: &Node, config: &FailoverConfig) -> Target {
    Target {
        address: node.address.clone(),
        user: config.login.user.clone(),
        database: config.login.database.clone(),
        credentials: config.login.credentials.clone(),
        tls: config.login.tls.clone(),
        parameters: Vec::new(),
    }
}

fn clock() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::{Ended, Running};
    use crate::failover::decide::{Action, What};
    use crate::pg::TimelineId;
    use crate::topology::Term;

    #[tokio::test]
    async fn a_promotion_of_a_term_that_is_over_is_given_up() {
        let action = |term, what| Action { term: Term(term), node: "pg2".parse().expect("a name"), what };
        let promote = What::Promote { from: TimelineId(1) };
        let mut running = Running::default();
        for action in [action(1, promote.clone()), action(1, What::Stop), action(2, promote.clone())] {
            running.start(action, pending());
        }
        running.give_up_before(Term(2));
        let ended = running.next().await;
        assert!(
            matches!(&ended, Some(Ok(Ended::GivenUp(given_up))) if *given_up == action(1, promote)),
            "{ended:?}"
        );
        assert_eq!(running.tasks.len(), 2, "files are left to who works on them");
    }
}
