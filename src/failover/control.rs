#![expect(clippy::disallowed_methods, reason = "shell: reads the clocks")]
//! The shell of the control plane: gathers events, does what [`Core`] wants done. It decides nothing itself, and
//! not in which order.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio_util::sync::CancellationToken;

use super::command::{Asked, Questions};
use super::core::{Core, Effect, Standing};
use super::decide::{Action, Finding, Now, RuleId, State};
use super::error::{ActionError, CommandError, FailoverError};
use super::execute::Executor;
use super::health::Watch;
use super::journal::{Journal, News, Written};
use super::metrics::Metrics;
use super::probe::{Probe, Probed, Sign};
use super::state::{EtcdConfig, EtcdMetrics, FileJournal};
use super::{FailoverConfig, Outputs, Plan, Tuning};
use crate::net::Target;
use crate::topology::{
    Ailment, Diagnosis, Directive, Durability, Election, Members, Node, NodeName, Term, Upstream,
};

const TICK: Duration = Duration::from_millis(100);
/// Whoever was given the lead and did not take it is not asked again for so long: meanwhile nobody leads.
const YIELD_AGAIN: Duration = Duration::from_secs(600);
/// Probe results waiting to be looked at; a probe waits for its turn beyond that.
const PROBE_QUEUE: usize = 64;

#[derive(Debug)]
pub(super) struct Control {
    core: Core,
    tuning: watch::Receiver<Tuning>,
    /// Of an instance that is one of several, once it runs: it takes part in nothing before.
    journal: Journal,
    instance: String,
    shared: Option<((EtcdConfig, EtcdMetrics), Arc<FileJournal>)>,
    durability: Durability,
    /// The last state that is in the journal.
    settled: State,
    /// When another instance was last given the chance to lead.
    yielded_at: Option<Instant>,
    clock: Clock,
    executor: Arc<Executor>,
    inputs: (
        watch::Receiver<Arc<crate::topology::WalStatus>>,
        watch::Receiver<Arc<crate::topology::ProxyStatus>>,
    ),
    members: watch::Receiver<Arc<Members>>,
    outputs: Outputs,
    metrics: Metrics,
    commands: Questions,
    kicks: HashMap<NodeName, Arc<Notify>>,
    probes: Vec<Probe>,
    /// Whether the relay heard its upstream at the last look.
    stream: StreamSeen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamSeen {
    Alive,
    Gone,
}

/// The result of an action that ran as a task.
type Finished = (Action, Result<Finding, ActionError>);

impl Control {
    pub(super) fn new(plan: Plan, commands: Questions) -> Result<Control, FailoverError> {
        let Plan { config, etcd, inputs, outputs, metrics } = plan;
        let policy = config.policy();
        let file = Arc::new(FileJournal::new(config.state.clone()));
        let history = file.history()?;
        let clock = Clock::read();
        let now_ms = clock.0.unix_ms;
        let state = match file.load()? {
            Some(state) if config.etcd.is_none() => state.resumed(config.durability, now_ms),
            Some(state) => state,
            None => State::bootstrapping(config.durability, now_ms),
        };
        let probes: Vec<Probe> = config.nodes.iter().map(|node| probe(node, &config)).collect();
        let executor = Executor {
            targets: config.nodes.iter().map(|node| (node.name.clone(), target(node, &config))).collect(),
            relay_slots: config.relay_slots.clone(),
            promote_limit: policy.promote_timeout,
            local: inputs.local,
        };
        let watch = Watch::new(&config.nodes, config.tuning.borrow().detect);
        let local = executor.local.keys().cloned().collect();
        let mut core = Core::new(config.nodes, local, policy, watch, state.clone(), history);
        if config.etcd.is_some() {
            core.follow(state.clone());
        }
        let control = Control {
            core,
            tuning: config.tuning,
            shared: etcd.map(|etcd| (etcd, file.clone())),
            journal: Journal::file(file),
            instance: config.instance,
            durability: config.durability,
            settled: state,
            yielded_at: None,
            clock,
            executor: Arc::new(executor),
            inputs: (inputs.wal, inputs.proxy),
            members: inputs.members,
            outputs,
            metrics,
            commands,
            kicks: probes.iter().map(|p| (p.node.clone(), p.kick.clone())).collect(),
            probes,
            stream: StreamSeen::Gone,
        };
        control.direct(control.core.directive().clone());
        control.publish();
        Ok(control)
    }

    /// Until `shutdown`: then nothing is under way any more that was begun here, and who asks goes on waiting for
    /// the next to run.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<Questions, FailoverError> {
        let (probed, mut probes) = mpsc::channel(PROBE_QUEUE);
        let mut tasks = JoinSet::new();
        for probe in std::mem::take(&mut self.probes) {
            tasks.spawn(probe.run(probed.clone(), shutdown.clone()));
        }
        let mut actions = Running::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if let Some((etcd, copy)) = self.shared.take() {
            self.journal = Journal::shared(etcd, copy, self.settled.term);
        }
        let state = self.core.state();
        tracing::info!(term = %state.term, phase = ?state.phase, "control plane started");
        loop {
            let (wal, proxy) = &mut self.inputs;
            let tuning = &mut self.tuning;
            let members = &mut self.members;
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => self.core.tick(Instant::now()),
                Some(Probed { at, node, what }) = probes.recv() => match what {
                    Sign::Answer(result) => self.core.probed(at, &node, result),
                    Sign::Knock(knock) => self.core.knocked(at, &node, knock),
                    Sign::DiskFull => self.core.disk_was_full(at, &node),
                },
                Some(ended) = actions.next() => match ended? {
                    Ended::Finished(finished) => self.finished(finished),
                    Ended::GivenUp(action) => self.core.acted(&action, None, Instant::now()),
                },
                Some(asked) = self.commands.recv() => {
                    self.asked(asked, &mut actions).await?;
                    continue;
                }
                Ok(()) = tuning.changed() => self.core.tune(*self.tuning.borrow_and_update()),
                () = self.journal.changed() => {}
                Ok(()) = members.changed() => {
                    let members = members.borrow_and_update().clone();
                    self.core.heard(members, Instant::now());
                }
                Ok(()) = wal.changed() => if self.nothing_new_of_wal() { continue },
                Ok(()) = proxy.changed() => if self.core.is_steady() { continue },
            }
            self.turn(&mut actions).await?;
            self.yield_if_better().await;
        }
        actions.tasks.shutdown().await;
        tasks.shutdown().await;
        self.journal.close().await?;
        Ok(self.commands)
    }

    async fn turn(&mut self, actions: &mut Running) -> Result<Written, FailoverError> {
        if self.core.is_steady() {
            self.clock = Clock::read();
        }
        if let Some(news) = self.journal.news(Instant::now()).await? {
            self.take_up(news);
        }
        let (wal, proxy) = (self.inputs.0.borrow().clone(), self.inputs.1.borrow().clone());
        let mut written = Written::Yes;
        for effect in self.core.turn(self.clock.now(), &wal, &proxy) {
            if let Effect::Journal(state) = effect {
                written = self.make_durable(state).await?;
                if written == Written::No {
                    // Nobody hears of what was decided.
                    self.core.retract();
                    if matches!(self.journal, Journal::Shared(_)) {
                        self.core.follow(self.settled.clone());
                    }
                    break;
                }
                self.settled = self.core.state().clone();
                continue;
            }
            self.perform(effect, actions).await?;
        }
        self.publish();
        Ok(written)
    }

    async fn yield_if_better(&mut self) {
        let now = Instant::now();
        if self.journal.another_leader().is_some() {
            self.yielded_at = None;
        }
        let lately = self.yielded_at.is_some_and(|at| now.saturating_duration_since(at) < YIELD_AGAIN);
        if !lately && self.core.had_better_yield(now) {
            tracing::info!("another instance is to lead: this one is on the primary's host");
            self.yielded_at = Some(now);
            self.journal.give_way().await;
        }
    }

    fn take_up(&mut self, news: News) {
        let leads = self.core.standing() == Standing::Leads;
        match news {
            News::Lead(state, history) => {
                let now_ms = self.clock.now().unix_ms;
                let state = match state {
                    Some(state) => state.taken_over(self.durability, now_ms),
                    // etcd is new: what this instance has seen is more than nothing.
                    None => self.settled.clone().resumed(self.durability, now_ms),
                };
                tracing::info!(term = %state.term, phase = ?state.phase, "this instance leads");
                self.settled = state.clone();
                self.core.lead(state);
                if let Some(history) = history {
                    self.core.remember(history);
                }
            }
            News::Follow(state, history) => {
                if leads {
                    tracing::info!("this instance leads no more");
                }
                self.settled = state.unwrap_or_else(|| self.settled.clone());
                self.core.follow(self.settled.clone());
                if let Some(history) = history {
                    self.core.remember(history);
                }
            }
        }
    }

    async fn perform(&mut self, effect: Effect, actions: &mut Running) -> Result<(), FailoverError> {
        match effect {
            Effect::Fired { term, rule, ailment } => fired(term, rule, ailment),
            Effect::Diagnosed(found) => log_diagnosed(found.as_ref()),
            Effect::Warn { term, why } => tracing::warn!(%term, "{why}"),
            Effect::Alarm { term, why } => tracing::error!(%term, why, "a person is needed"),
            // Done before anything else.
            Effect::Journal(_) => {}
            Effect::GiveUpBefore(term) => actions.give_up_before(term),
            Effect::Concluded(election) => {
                self.metrics.concluded(&election);
                log_concluded(&election);
            }
            Effect::LeftBehind(standby) => {
                tracing::info!(?standby, "a standby holds WAL beyond the fork");
            }
            Effect::Direct(directive) => self.direct(directive),
            Effect::Probe(node) => self.kick(&node),
            Effect::Remember(history) => self.journal.put_history(history).await?,
            Effect::Start(action) => {
                let (term, node, name) = (action.term, &action.node, action.what.name());
                tracing::debug!(%term, %node, action = name, "action started");
                let executor = self.executor.clone();
                actions.start(action.clone(), async move { Box::pin(executor.run(&action)).await });
            }
        }
        Ok(())
    }

    async fn make_durable(&mut self, state: State) -> Result<Written, FailoverError> {
        let started = Instant::now();
        let written = self.journal.put(state).await?;
        self.metrics.journal_seconds.observe(started.elapsed().as_secs_f64());
        Ok(written)
    }

    fn direct(&self, directive: Directive) {
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
    }

    /// What others only look at.
    fn publish(&self) {
        let health = self.core.health(Instant::now());
        let directive = self.core.directive();
        let failovers = self.core.failovers(self.clock.now());
        self.metrics.observe(&health, &self.inputs.0.borrow(), directive);
        self.metrics.failovers_are(failovers);
        replace(&self.outputs.failovers, failovers);
        replace(&self.outputs.health, health);
        replace(&self.outputs.history, self.core.history());
        replace(&self.outputs.leader, self.leader());
        replace(&self.outputs.restarts, self.core.restarts());
        replace(&self.outputs.at_work, self.core.at_work());
        replace(&self.outputs.deeds, self.core.deeds().to_vec());
    }

    fn leader(&self) -> Option<String> {
        match self.core.standing() {
            Standing::Leads => Some(self.instance.clone()),
            Standing::Follows => self.journal.another_leader(),
        }
    }

    fn finished(&mut self, (action, result): Finished) {
        let (term, node, name) = (action.term, &action.node, action.what.name());
        let finding = match result {
            Ok(finding) => {
                tracing::debug!(%term, %node, action = name, ?finding, "action done");
                self.kick(node);
                Some(finding)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(%term, %node, action = name, %error, cause, "action failed, to be repeated");
                None
            }
        };
        self.core.acted(&action, finding, Instant::now());
    }

    /// Answered when what was accepted is durable.
    async fn asked(&mut self, asked: Asked, actions: &mut Running) -> Result<(), FailoverError> {
        let (wal, proxy) = (self.inputs.0.borrow().clone(), self.inputs.1.borrow().clone());
        let answer = match self.core.standing() {
            Standing::Leads => self.core.command(&asked.command, self.clock.now(), &wal, &proxy),
            Standing::Follows => Err(CommandError::Elsewhere { leader: self.journal.another_leader() }),
        };
        let answer = match self.turn(actions).await? {
            Written::Yes => answer,
            Written::No => {
                self.core.withdraw();
                answer.and(Err(CommandError::NotNow("it could not be made durable".to_owned())))
            }
        };
        // Who asked may have gone.
        let _ = asked.answer.send(answer);
        Ok(())
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
        !changed && self.core.is_steady()
    }

    fn kick(&self, node: &NodeName) {
        if let Some(kick) = self.kicks.get(node) {
            kick.notify_one();
        }
    }
}

fn replace<T: PartialEq>(output: &watch::Sender<Arc<T>>, value: T) {
    output.send_if_modified(|current| {
        let changed = **current != value;
        if changed {
            *current = Arc::new(value);
        }
        changed
    });
}

fn fired(term: Term, rule: RuleId, ailment: Option<Ailment>) {
    let words = rule.rule().map_or("", |rule| rule.name);
    let ailment = ailment.map(Ailment::as_str);
    tracing::info!(%term, rule = rule.as_str(), ailment, "{words}");
}

/// Load comes and goes with every late answer.
fn log_diagnosed(found: Option<&Diagnosis>) {
    let Some(Diagnosis { ailment, evidence, outlook }) = found else {
        return tracing::debug!("nothing ails the primary");
    };
    let evidence = evidence.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let outlook = outlook.as_deref();
    if *ailment == Ailment::Overloaded {
        tracing::debug!(%ailment, evidence, outlook, "what ails the primary");
    } else {
        tracing::info!(%ailment, evidence, outlook, "what ails the primary");
    }
}

fn log_concluded(election: &Election) {
    tracing::info!(
        term = %election.term,
        rule = election.rule,
        to = election.to.as_ref().map(tracing::field::display),
        ailment = election.ailment.map(tracing::field::display),
        outcome = ?election.outcome,
        lost_bytes = election.lost_bytes,
        evidence = ?election.evidence,
        phases = ?election.phases.iter().map(|p| (p.name.as_str(), p.millis)).collect::<Vec<_>>(),
        "election ended"
    );
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
        relay_slots: config.relay_slots.clone(),
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

/// The calendar as it was read once, and monotonic time from there on: while something is waited for, a calendar that is
/// set back or forth makes no difference.
#[derive(Clone, Copy, Debug)]
struct Clock(Now);

impl Clock {
    fn read() -> Clock {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        Clock(Now { instant: Instant::now(), unix_ms })
    }

    fn now(self) -> Now {
        let instant = Instant::now();
        let passed = instant.saturating_duration_since(self.0.instant).as_millis();
        Now { instant, unix_ms: self.0.unix_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)) }
    }
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
