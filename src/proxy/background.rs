//! The plane's own tasks, on a thread of their own: they obey the directive's terms, publish what the plane has
//! seen, sample the primary's WAL, ask it which commits it shows, and look after idle connections.
#![expect(clippy::disallowed_methods, reason = "shell: starts a thread and reads the clock")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, DropGuard};

use super::quorum::{self, Progress, Quorum};
use super::timeouts::{Doing, Due, TICK, Timeout};
use super::{Proxy, Shared, listen};
use crate::pg::error::{ErrorFields, SqlState};
use crate::topology::{Candidate, Drained, Draining, NodeName, ProxyStatus, Term};

/// How often evidence is published while nothing presses.
const STATUS_INTERVAL: Duration = Duration::from_millis(50);
/// How often a term that is not confirmed yet is looked at.
const CUT_INTERVAL: Duration = Duration::from_millis(2);
/// How often pools are looked after, in status intervals.
const UPKEEP_EVERY: u32 = 20;

/// `end` is dropped with the thread, also by a panic.
pub(super) fn start(proxy: &Proxy, stop: &CancellationToken, end: DropGuard) -> io::Result<JoinHandle<()>> {
    let (shared, stop) = (proxy.shared.clone(), stop.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
        let _end = end;
        runtime.block_on(async {
            let directive = shared.inputs.directive.clone();
            let sampling =
                shared.sampler.clone().run(shared.login.clone(), shared.inputs.nodes.clone(), directive);
            let directive = shared.inputs.directive.clone();
            let asking = shared.shown.run(shared.login.clone(), shared.inputs.nodes.clone(), directive);
            tokio::select! {
                () = sampling => {}
                () = asking => {}
                () = obey(&shared) => {}
                () = listen::run(&shared) => {}
                () = watch_time(&shared) => {}
                () = watch_quorum(&shared) => {}
                () = see_off(&shared, &stop) => {}
            }
        });
    })
}

/// After `stop`: sessions end with their transactions, and until the last has gone the directive is obeyed.
async fn see_off(shared: &Shared, stop: &CancellationToken) {
    stop.cancelled().await;
    while shared.slots.shut_down() > 0 {
        tokio::time::sleep(STATUS_INTERVAL).await;
    }
}

/// Never ends.
async fn obey(shared: &Arc<Shared>) {
    let mut fence = Fence::new();
    let mut directive = shared.inputs.directive.clone();
    let mut rounds = 0u32;
    loop {
        fence.obey(shared);
        shared.publish(&fence);
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(UPKEEP_EVERY) {
            shared.clone().keep_up(Instant::now());
        }
        let pause = if fence.is_cutting() { CUT_INTERVAL } else { STATUS_INTERVAL };
        tokio::select! {
            changed = directive.changed() => if changed.is_err() {
                tokio::time::sleep(pause).await;
            },
            () = shared.pressing.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Ends, or cancels, what takes longer than it may. Never ends.
async fn watch_time(shared: &Arc<Shared>) {
    loop {
        tokio::time::sleep(TICK).await;
        if !shared.plan().has_timeouts() {
            continue;
        }
        for (slot, activity, due) in shared.slots.due(Instant::now()) {
            match due {
                Due::Cancel => {
                    tracing::info!(user = %slot.about.user, "query timeout: the statement is cancelled");
                    shared.metrics.timeouts.with_label_values(&[Timeout::Query.as_str()]).inc();
                    let (shared, key) = (shared.clone(), slot.key.clone());
                    tokio::spawn(async move { shared.cancel(&key).await });
                }
                Due::End(timeout) => {
                    tracing::info!(user = %slot.about.user, timeout = timeout.as_str(), "session ended");
                    if timeout != Timeout::Query {
                        shared.metrics.timeouts.with_label_values(&[timeout.as_str()]).inc();
                    }
                    slot.end(Some(activity), last_words(timeout));
                }
            }
        }
    }
}

/// Holds what writes while commits do not come through, and gives up those that wait for too long. Never ends.
async fn watch_quorum(shared: &Shared) {
    let mut watch = quorum::Watch::default();
    loop {
        tokio::time::sleep(TICK).await;
        let progress = Progress::of(&shared.inputs.directive.borrow(), &shared.inputs.wal.borrow());
        let committing = match progress {
            Progress::All => Vec::new(),
            Progress::UpTo(..) => shared.slots.committing(),
        };
        let activities = committing.iter().map(|(slot, activity)| (slot.key.pid, *activity));
        let limit = shared.config().hold_clients;
        for (pid, activity) in watch.look(Instant::now(), progress, activities, limit) {
            if let Some((slot, _)) = committing.iter().find(|(slot, _)| slot.key.pid == pid) {
                slot.give_up(activity);
            }
        }
        let quorum = watch.quorum();
        if shared.quorum.send_if_modified(|last| std::mem::replace(last, quorum) != quorum) {
            tracing::info!(?quorum, ?progress, commits = committing.len(), "do commits come through?");
            shared.metrics.quorum_lost.set(i64::from(quorum == Quorum::Lost));
        }
    }
}

/// PostgreSQL's, where it has them (`ProcessInterrupts` in postgres.c).
fn last_words(timeout: Timeout) -> ErrorFields {
    let (code, message) = match timeout {
        Timeout::Query => {
            (SqlState::QUERY_CANCELED, "terminating connection: its statement could not be cancelled")
        }
        Timeout::Transaction => {
            (SqlState::TRANSACTION_TIMEOUT, "terminating connection due to transaction timeout")
        }
        Timeout::IdleInTransaction => (
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            "terminating connection due to idle-in-transaction timeout",
        ),
        Timeout::ClientIdle => {
            (SqlState::IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout")
        }
    };
    ErrorFields::fatal(code, message)
}

/// The proxy's half of "one primary".
struct Fence {
    term: Term,
    primary: Option<NodeName>,
    /// The last primary that `primary` is not.
    former: Option<NodeName>,
    /// confirmed <= term.
    confirmed: Term,
    /// Of `former`, whose term has not ended, but in which it must not be used: nobody says that it still holds.
    letting_go: LettingGo,
    candidate: Option<Candidate>,
    /// Of `candidate`.
    cleared: Cleared,
    drained: Option<Drained>,
    /// The directive's.
    resting: Option<NodeName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LettingGo {
    No,
    Yes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cleared {
    No,
    /// No session has it, and none gets it.
    Yes,
}

impl Fence {
    fn new() -> Fence {
        Fence {
            term: Term(0),
            primary: None,
            former: None,
            confirmed: Term(0),
            letting_go: LettingGo::No,
            candidate: None,
            cleared: Cleared::No,
            drained: None,
            resting: None,
        }
    }

    fn obey(&mut self, shared: &Shared) {
        let directive = shared.inputs.directive.borrow().clone();
        if directive.term < self.term {
            return;
        }
        let before = self.primary.clone();
        if directive.term > self.term {
            self.term = directive.term;
            tracing::info!(term = %directive.term, primary = ?directive.primary, "proxy: new term");
        }
        self.primary.clone_from(&directive.primary);
        if let Some(before) = before.filter(|before| directive.primary.as_ref() != Some(before)) {
            shared.renew(&before);
            self.former = Some(before);
            // An instance that is alone looks whether its primary is well, after a takeover for example; nobody else can
            // have put another in its place without a later term.
            if !directive.quorums.is_empty() {
                self.letting_go = LettingGo::Yes;
            }
        }
        // A session that takes a primary behind this sees the order; one that did so before is in its slot.
        let cut = || shared.slots.cut(self.term, self.primary.as_ref(), self.former.as_ref());
        if self.is_letting_go() && cut() == 0 {
            self.confirmed = self.term;
            self.letting_go = LettingGo::No;
        }
        self.clear(shared, directive.candidate.as_ref());
        // In this order: a session that checks out after this sees it; one that did so before is in its slot.
        shared.drains.store(directive.drains, Ordering::SeqCst);
        self.rest(shared, directive.resting.as_ref());
        let nodes = directive.coming_to_rest();
        self.drained = (!nodes.is_empty()).then(|| shared.slots.drained(directive.drains, &nodes));
    }

    /// What is idle at a standby goes before it is restarted, and what was left there does not come back behind it.
    fn rest(&mut self, shared: &Shared, resting: Option<&NodeName>) {
        if self.resting.as_ref() != resting {
            self.resting.iter().chain(resting).for_each(|node| shared.renew(node));
            self.resting = resting.cloned();
        }
    }

    /// In this order: a session that checks out after the bar sees it; one that did so before is in its slot.
    fn clear(&mut self, shared: &Shared, candidate: Option<&Candidate>) {
        if self.candidate.as_ref() != candidate {
            shared.bar(candidate.map(|candidate| &candidate.node));
            self.candidate = candidate.cloned();
            self.cleared = Cleared::No;
        }
        let Some(candidate) = candidate.filter(|_| self.cleared == Cleared::No) else { return };
        if shared.slots.clear(&candidate.node) == 0 {
            self.cleared = Cleared::Yes;
        }
    }

    fn is_letting_go(&self) -> bool {
        self.confirmed < self.term || self.letting_go == LettingGo::Yes
    }

    /// Sessions were told to let go, or are waited for, and have not all done so.
    fn is_cutting(&self) -> bool {
        let drains = self.drained.as_ref().is_some_and(|drained| drained.busy > 0);
        drains || self.is_letting_go() || (self.candidate.is_some() && self.cleared == Cleared::No)
    }
}

impl Shared {
    fn publish(&self, fence: &Fence) {
        let status = ProxyStatus {
            confirmed: fence.confirmed,
            cleared: fence.candidate.clone().filter(|_| fence.cleared == Cleared::Yes),
            drained: fence.drained.clone(),
            held: self.held.load(Ordering::Relaxed),
            draining: Draining::default(),
            evidence: self.evidence.iter().map(|evidence| evidence.publish()).collect(),
        };
        self.status.send_if_modified(|last| {
            let modified = **last != status;
            if modified {
                *last = Arc::new(status);
            }
            modified
        });
    }

    /// Closes what is idle at `node`, and what is in use when it comes back.
    fn renew(&self, node: &NodeName) {
        for pool in self.pools.of(node) {
            pool.renew();
        }
    }

    fn keep_up(self: Arc<Shared>, now: Instant) {
        for (lease, credentials) in self.pools.keep_up(now) {
            tokio::spawn(lease.warm(credentials, self.config().connect_timeout));
        }
        self.stats.sample(now);
        self.count();
    }

    /// Sets the gauges.
    fn count(&self) {
        let pools = self.pools.all();
        let mut active_clients = 0;
        for evidence in &self.evidence {
            let (mut idle, mut active) = (0, 0);
            for pool in pools.iter().filter(|pool| pool.key.node == evidence.node) {
                let sizes = pool.sizes();
                idle += sizes.0;
                active += sizes.1;
            }
            active_clients += active;
            let servers = |state| self.metrics.servers.with_label_values(&[evidence.node.as_str(), state]);
            servers("idle").set(gauge(idle));
            servers("active").set(gauge(active));
        }
        let all = self.clients.lock().all();
        let waiting = self.waiting.load(Ordering::Relaxed);
        let clients = |state| self.metrics.clients.with_label_values(&[state]);
        clients("active").set(gauge(active_clients.min(all)));
        clients("waiting").set(gauge(waiting));
        let replicating = self.slots.count(Doing::Replicating);
        clients("replicating").set(gauge(replicating));
        clients("idle").set(gauge(all.saturating_sub(active_clients + waiting + replicating)));
        let listening = self.hubs.sizes();
        self.metrics.listeners.set(gauge(listening.listeners));
        self.metrics.listen_channels.set(gauge(listening.channels));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Cleared, Fence};
    use crate::proxy::ProxyConfig;
    use crate::proxy::stage::{Stage, node_name};
    use crate::topology::{Candidate, Term, Writes};

    #[tokio::test]
    async fn a_proxy_that_is_cut_off_keeps_what_it_has_said_of_a_candidate() {
        let stage = Stage::new(ProxyConfig::default());
        let (shared, pg2) = (stage.shared(), node_name("pg2"));
        let candidate = Candidate { node: pg2.clone(), round: 1 };
        let mut fence = Fence::new();
        fence.obey(shared);
        assert!(!shared.is_barred(&pg2));
        stage.order(|order| {
            (order.term, order.primary, order.candidate) = (Term(8), None, Some(candidate));
            order.writes = Writes::Held { reason: "an election".to_owned() };
        });
        fence.obey(shared);
        assert_eq!((fence.cleared, shared.is_barred(&pg2)), (Cleared::Yes, true));
        stage.order(|order| *order = order.unvouched());
        fence.obey(shared);
        assert_eq!(
            (fence.cleared, shared.is_barred(&pg2)),
            (Cleared::Yes, true),
            "who leads may count with it"
        );
        stage.order(|order| order.candidate = None);
        fence.obey(shared);
        assert!(!shared.is_barred(&pg2));
    }
}
