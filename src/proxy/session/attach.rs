//! Getting a server: choose a node, take a place in its pool, wait where waiting is what the situation asks for.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::core::{Demand, Takes};
use super::message;
use super::run::{Attached, Session, route_word, shutting_down};
use crate::net::DialError;
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::proxy::Shared;
use crate::proxy::cancel::{Hands, Poke, Serving, Slot};
use crate::proxy::limits::Limits;
use crate::proxy::pool::{Key, Lease, Pool, Waiting};
use crate::proxy::route::{
    Access, Choice, OwnWrite, Request, Route, Transaction, TransactionEffect, Verdict, WriteReason,
};
use crate::proxy::timeouts::Doing;
use crate::proxy::worker::Order;
use crate::topology::{NodeName, Role};

/// Between two attempts to reach a primary that does not answer.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Without a primary.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) enum Refusal {
    /// The unit fails, the connection goes on.
    Unit(ErrorFields),
    /// The connection ends with these words.
    Session(ErrorFields),
    /// The client hung up.
    Gone,
}

impl From<ErrorFields> for Refusal {
    fn from(error: ErrorFields) -> Refusal {
        Refusal::Unit(error)
    }
}

/// What an attempt came to, when it was not a server.
enum Obstacle {
    /// The primary's, and there is none or it does not answer: wait and try again.
    Hold(&'static str),
    /// This standby does not answer: try the primary.
    Standby,
    Refused(ErrorFields),
    /// The session is to end while it waits.
    Ended(Refusal),
}

/// What came of trying to get a server.
#[expect(clippy::large_enum_variant, reason = "it lives for a moment, and one at a time")]
enum Attempt {
    Attached,
    /// A place in the pool: to dial, or in its queue.
    Place(Chosen, Result<Lease, Waiting>),
    /// What was chosen does not hold any more.
    Changed,
    Failed(Obstacle),
}

/// Where a demand is to be served, and under which order that was decided.
#[derive(Debug)]
struct Chosen {
    node: NodeName,
    role: Role,
    reason: &'static str,
    order: Order,
}

/// Whether a standby will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standbys {
    Welcome,
    /// One of them did not answer.
    Avoided,
}

/// What becomes due for somebody who waits in a pool's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    Reserve,
    Notice,
    Limit,
}

/// For how long a session has been held: from the first time on, without the time in pools' queues.
#[derive(Debug, Default)]
struct Held {
    since: Option<Instant>,
}

impl Held {
    fn so_far(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.since.get_or_insert(now))
    }

    fn queued(&mut self, time: Duration) {
        self.since = self.since.map(|since| since + time);
    }
}

impl Session<'_> {
    /// Attaches a server for `demand`.
    pub(super) async fn attach(&mut self, demand: &Demand) -> Result<(), Refusal> {
        match self.attach_at_once(demand) {
            Ok(()) => Ok(()),
            // On the heap: who has to wait can pay for it, and nobody else has to hold the room.
            Err((attempt, now)) => Box::pin(self.attach_later(demand, *attempt, now)).await,
        }
    }

    fn attach_at_once(&mut self, demand: &Demand) -> Result<(), (Box<Attempt>, Instant)> {
        let now = Instant::now();
        match self.try_attach(demand, now, Standbys::Welcome) {
            Attempt::Attached => Ok(()),
            other => Err((Box::new(other), now)),
        }
    }

    /// Goes on with an attempt that did not give a server at once, and tries again while that may help.
    async fn attach_later(
        &mut self,
        demand: &Demand,
        mut attempt: Attempt,
        started: Instant,
    ) -> Result<(), Refusal> {
        let mut now = started;
        let mut held = Held::default();
        let mut standbys = Standbys::Welcome;
        loop {
            if let Attempt::Place(chosen, place) = attempt {
                let arrived = match place {
                    Ok(lease) => Ok(Some(lease)),
                    Err(waiting) => {
                        let arrived = self.queue(waiting, &chosen, now).await;
                        held.queued(now.elapsed());
                        now = Instant::now();
                        arrived
                    }
                };
                attempt = match arrived {
                    Ok(Some(lease)) => self.complete(chosen, lease, now).await,
                    Ok(None) => Attempt::Changed,
                    Err(refusal) => Attempt::Failed(Obstacle::Ended(refusal)),
                };
            }
            match attempt {
                Attempt::Attached => return Ok(()),
                Attempt::Place(..) | Attempt::Changed => {}
                Attempt::Failed(Obstacle::Refused(error)) => return Err(error.into()),
                Attempt::Failed(Obstacle::Ended(refusal)) => return Err(refusal),
                Attempt::Failed(Obstacle::Standby) => standbys = Standbys::Avoided,
                Attempt::Failed(Obstacle::Hold(reason)) => {
                    let limit = self.shared.config().hold_clients;
                    let left = limit.saturating_sub(held.so_far(now));
                    if left.is_zero() {
                        return Err(no_primary(reason, limit).into());
                    }
                    self.hold(left).await;
                    // Nobody waits for the answer any more, and the client may have turned elsewhere with it.
                    if self.has_left().await {
                        return Err(Refusal::Gone);
                    }
                    if let Some(Poke::End(last_words)) = self.slot.poked() {
                        return Err(Refusal::Session(last_words));
                    }
                }
            }
            now = Instant::now();
            if self.shared.stop.is_cancelled() {
                return Err(Refusal::Session(shutting_down()));
            }
            attempt = self.try_attach(demand, now, standbys);
        }
    }

    /// What can be done without waiting: the usual way to a server.
    fn try_attach(&mut self, demand: &Demand, now: Instant, standbys: Standbys) -> Attempt {
        let chosen = match self.choose(demand, now, standbys) {
            (Choice::Node { node, role, reason }, order) => Chosen { node, role, reason, order },
            (Choice::Wait { reason }, _) => return Attempt::Failed(Obstacle::Hold(reason)),
            (Choice::Unavailable { reason }, _) => {
                return Attempt::Failed(Obstacle::Refused(unavailable(reason)));
            }
            (Choice::ReadOnly { reason }, _) => return Attempt::Failed(Obstacle::Refused(read_only(reason))),
        };
        let Some(pool) = self.pool(&chosen.node) else { return Attempt::Changed };
        match pool.checkout(self.worker.index, now, self.core.settings()) {
            Ok(mut lease) => {
                if lease.is_ready(self.worker.index) {
                    return self.take(lease, &chosen, now);
                }
                Attempt::Place(chosen, Ok(lease))
            }
            waiting => Attempt::Place(chosen, waiting),
        }
    }

    /// A node for `demand`, and the order under which it was chosen.
    fn choose(&mut self, demand: &Demand, now: Instant, standbys: Standbys) -> (Choice, Order) {
        self.learn_position();
        let knobs = &self.core.knobs;
        let verdict = &*demand.verdict;
        let hinted = verdict.hint.unwrap_or(knobs.route());
        let must_stay = verdict.transaction == TransactionEffect::None && !verdict.session.is_empty();
        // Whoever keeps its server for good writes sooner or later.
        let stays = must_stay || self.core.keeps_server() || self.core.settings().need_primary();
        let to_primary = demand.forced.is_some() || standbys == Standbys::Avoided || stays;
        let route = if hinted == Route::Auto && to_primary { Route::Primary } else { hinted };
        let request = Request {
            access: &verdict.access,
            transaction: match route {
                Route::Primary if stays => Transaction::ReadWrite,
                _ => transaction(verdict),
            },
            route,
            consistency: knobs.consistency(),
            own_write: knobs.write,
            min_lsn: knobs.min_lsn(),
            max_lag: knobs.max_lag(),
        };
        let rotation = self.worker.rotation();
        let shared = self.shared;
        let (choice, order) = self.worker.with_view(now, |view, order| {
            (view.choose(&request, now, rotation, |node| shared.outstanding(node)), order)
        });
        match (choice, demand.forced) {
            (Choice::Node { node, role, reason: "asked" }, Some(forced)) if hinted == Route::Auto => {
                (Choice::Node { node, role, reason: forced }, order)
            }
            (choice, _) => (choice, order),
        }
    }

    /// Where the session's last write is, if that has become known.
    pub(super) fn learn_position(&mut self) {
        let Some(written_at) = self.written_at else { return };
        match self.shared.sampler.since(written_at) {
            Some(lsn) => {
                self.written_at = None;
                self.core.knobs.write = OwnWrite::At(lsn);
            }
            None => self.shared.sampler.want(),
        }
    }

    /// With a place in the pool that may have no connection at hand.
    async fn complete(&mut self, chosen: Chosen, mut lease: Lease, now: Instant) -> Attempt {
        let limit = self.shared.config().connect_timeout;
        tokio::select! {
            ready = lease.ready(self.worker.index, &self.credentials, limit) => match ready {
                Ok(()) => self.take(lease, &chosen, now),
                Err(error) => Attempt::Failed(obstacle(&error, chosen.role)),
            },
            // A host that is gone does not even refuse: its successor is not to be waited for as long.
            () = superseded(self.shared, &chosen) => Attempt::Changed,
        }
    }

    /// Until it is this session's turn. `None`: what was chosen does not hold any more.
    async fn queue(
        &mut self,
        mut waiting: Waiting,
        chosen: &Chosen,
        since: Instant,
    ) -> Result<Option<Lease>, Refusal> {
        let shared = self.shared;
        let _counted = Counted::new(&shared.waiting);
        self.tell(Doing::Waiting);
        let _waits = Waits::new(self.slot.clone(), since);
        let mut over = std::pin::pin!(superseded(shared, chosen));
        let limits = self.limits();
        for (after, alarm) in alarms(&limits) {
            let lease = tokio::select! {
                lease = waiting.served() => Some(lease),
                () = &mut over => return Ok(None),
                refusal = poll_fn(|cx| self.poll_end(cx)) => return Err(refusal),
                () = tokio::time::sleep_until((since + after).into()) => match alarm {
                    Alarm::Reserve => waiting.take_reserve(Instant::now()),
                    Alarm::Notice => { self.say_that_it_waits(after); None }
                    Alarm::Limit => break,
                },
            };
            if lease.is_some() {
                shared.metrics.pool_wait.observe(since.elapsed().as_secs_f64());
                self.tally.waited(since.elapsed());
                return Ok(lease);
            }
        }
        shared.metrics.pool_wait.observe(since.elapsed().as_secs_f64());
        let message = format!("no server connection became free within {:?}", limits.wait);
        Err(ErrorFields::error(SqlState::TOO_MANY_CONNECTIONS, message).into())
    }

    /// Whoever is in the queue has no server, so nothing can be amid an answer.
    fn say_that_it_waits(&mut self, after: Duration) {
        let notice = ErrorFields::new(
            Severity::Notice,
            SqlState::SUCCESSFUL_COMPLETION,
            format!("waiting for a free server connection for {after:?}; all of the pool's are in use"),
        );
        message::put_error(self.down.out(), &notice);
    }

    /// Until the client hangs up, or is to be told to. What it says meanwhile is kept; what is to be said to it
    /// is.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        match self.slot.poked() {
            Some(Poke::End(last_words)) => return Poll::Ready(Refusal::Session(last_words)),
            Some(Poke::Shutdown) => return Poll::Ready(Refusal::Session(shutting_down())),
            Some(Poke::Cut | Poke::Unacknowledged) | None => {}
        }
        if self.write_client(cx).is_err() {
            return Poll::Ready(Refusal::Gone);
        }
        loop {
            match self.read_client(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(_) => return Poll::Ready(Refusal::Gone),
            }
        }
    }

    fn take(&mut self, mut lease: Lease, chosen: &Chosen, now: Instant) -> Attempt {
        let Chosen { node, role, reason, order } = chosen;
        let (role, term) = (*role, order.term);
        let Some(server) = lease.connection() else { return Attempt::Changed };
        let primary_of = (role == Role::Primary).then_some(term);
        // Not idle from the first moment: a drain looks at both.
        self.tell(Doing::Waiting);
        self.slot.serve(Serving { backend: server.backend.clone(), node: node.clone(), primary_of });
        let drains = self.shared.drains.load(Ordering::SeqCst) > order.drains;
        let outdated = drains
            || match role {
                Role::Primary => !self.worker.is_latest(*order) && !self.shared.has_primary(node, term),
                // It is about to be promoted.
                Role::Standby => self.shared.is_barred(node),
            };
        if outdated {
            // The order has changed since the choice: nothing was sent yet.
            if self.slot.vacate() == Hands::Clean {
                lease.put_back(now);
            }
            return Attempt::Changed;
        }
        let takes = if role == Role::Primary || self.core.knobs.route() == Route::Standby {
            Takes::Everything
        } else {
            Takes::ReadsOnly
        };
        let settings_before = server.state.settings.clone();
        self.core.attached(takes, &mut server.state, &mut self.up);
        self.core.serves(role);
        self.worker.counters.borrow_mut().statement(route_word(role), reason);
        lease.pool().evidence.chosen();
        self.attached = Some(Attached { lease, node: node.clone(), role, term, since: now, settings_before });
        Attempt::Attached
    }

    fn pool(&mut self, node: &NodeName) -> Option<Arc<Pool>> {
        if let Some(pool) = self.pools.iter().find(|pool| pool.key.node == *node) {
            return Some(pool.clone());
        }
        let key = Key { node: node.clone(), database: self.database.clone(), user: self.user.clone() };
        let pool = self.shared.pool(&key)?;
        self.pools.push(pool.clone());
        Some(pool)
    }

    /// Until the directive changes, at most for `limit`, and not much longer than a back-off: the primary may
    /// answer again without any order having changed, or a standby become fresh.
    async fn hold(&self, limit: Duration) {
        let _counted = Counted::new(&self.shared.held);
        self.shared.pressing.notify_one();
        // One that has come since the choice is looked at, too.
        let mut directive = self.worker.directive();
        let pause = if directive.borrow().writable().is_some() { BACK_OFF } else { LOOK_AGAIN };
        tokio::select! {
            _ = directive.changed() => {}
            () = tokio::time::sleep(pause.min(limit)) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    /// ParameterStatus, BackendKeyData, ReadyForQuery.
    pub(super) async fn greet(&mut self) -> Result<(), ErrorFields> {
        let key = (self.database.clone(), self.user.clone());
        let known = self.shared.greetings.lock().get(&key).cloned();
        let parameters = match known {
            Some(parameters) => parameters,
            None => {
                let parameters = self.first_greeting().await?;
                self.shared.greetings.lock().insert(key, parameters.clone());
                parameters
            }
        };
        let out = self.down.out();
        self.core.greet(&parameters, out);
        let cancel = &self.slot.key;
        message::put(out, b'K', &[&cancel.pid.to_be_bytes(), &cancel.secret]);
        message::put_ready(out, message::Status::Idle);
        Ok(())
    }

    /// As a server tells it that this database and user have not been seen at.
    async fn first_greeting(&mut self) -> Result<Arc<[(String, String)]>, ErrorFields> {
        let access = Access::Write { reason: WriteReason::Session };
        let verdict = Arc::new(Verdict { access, ..super::look::nothing() });
        match self.attach(&Demand { verdict, forced: None }).await {
            Ok(()) => {}
            Err(Refusal::Unit(error)) => return Err(ErrorFields { severity: Severity::Fatal, ..error }),
            Err(Refusal::Session(error)) => return Err(error),
            Err(Refusal::Gone) => {
                return Err(ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "the endpoint is shutting down"));
            }
        }
        let attached = self.attached.take();
        // What was to set there has not been sent.
        self.up.discard_pending();
        self.core.forget_attachment();
        let hands = self.slot.release().await;
        let parameters = attached.and_then(|mut attached| {
            let server = attached.lease.connection()?;
            server.state.settings = attached.settings_before.clone();
            let parameters = server.parameters.clone();
            if hands == Hands::Clean {
                attached.lease.put_back(Instant::now());
            }
            Some(parameters)
        });
        parameters.ok_or_else(|| ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, "no server connection"))
    }
}

/// In the order in which they become due; none behind the limit.
fn alarms(limits: &Limits) -> Vec<(Duration, Alarm)> {
    let reserve = (limits.size.reserve_size > 0).then_some((limits.size.reserve_after, Alarm::Reserve));
    let mut alarms: Vec<_> = reserve
        .into_iter()
        .chain([(limits.notice_after, Alarm::Notice), (limits.wait, Alarm::Limit)])
        .collect();
    alarms.sort_by_key(|(after, alarm)| (*after, *alarm == Alarm::Limit));
    alarms
}

fn transaction(verdict: &Verdict) -> Transaction {
    match &verdict.transaction {
        TransactionEffect::Begin(modes) if modes.fit_for_standby() => Transaction::ReadOnly,
        TransactionEffect::None => Transaction::Autocommit,
        _ => Transaction::ReadWrite,
    }
}

fn obstacle(error: &DialError, role: Role) -> Obstacle {
    match (error, role) {
        // Starting up, or shutting down: as good as not there.
        (DialError::Rejected { error, .. }, Role::Primary)
            if !matches!(error.code, SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN) =>
        {
            Obstacle::Refused(ErrorFields { severity: Severity::Error, ..error.clone() })
        }
        (error, Role::Primary) => {
            tracing::info!(%error, "primary not reached");
            Obstacle::Hold("primary_unreachable")
        }
        (error, Role::Standby) => {
            tracing::info!(%error, "standby not reached");
            Obstacle::Standby
        }
    }
}

/// Until the primary that was chosen must not be used.
async fn superseded(shared: &Shared, chosen: &Chosen) {
    match chosen.role {
        Role::Primary => shared.primary_is_withdrawn(&chosen.node, chosen.order.term).await,
        Role::Standby => std::future::pending().await,
    }
}

fn no_primary(reason: &str, limit: Duration) -> ErrorFields {
    ErrorFields::error(SqlState::CANNOT_CONNECT_NOW, "no primary can take this now")
        .with_detail(format!("Waited {limit:?}: {reason}."))
}

fn unavailable(reason: &str) -> ErrorFields {
    ErrorFields::error(SqlState::CANNOT_CONNECT_NOW, "no standby is fresh enough")
        .with_detail(format!("The nearest one: {reason}."))
}

fn read_only(reason: &str) -> ErrorFields {
    ErrorFields::error(SqlState::READ_ONLY_SQL_TRANSACTION, "cannot execute this statement on a standby")
        .with_detail(format!("It needs the primary: {reason}."))
        .with_hint("SET bellwether.route = 'auto', or connect to another listener.")
}

/// A session that is in a queue, as long as it lives.
struct Waits(Arc<Slot>);

impl Waits {
    fn new(slot: Arc<Slot>, since: Instant) -> Waits {
        slot.set_waiting(Some(since));
        Waits(slot)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.set_waiting(None);
    }
}

/// One more in a count, as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Counted<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Attempt, Chosen, Demand, Held, Session, Standbys, superseded};
    use crate::net::Credentials;
    use crate::proxy::pool::Lease;
    use crate::proxy::route::{Access, Verdict, WriteReason};
    use crate::proxy::session::look;
    use crate::proxy::stage::{Stage, let_in, node_name};
    use crate::proxy::{Entrance, ProxyConfig};
    use crate::topology::{Directive, Term};

    type Change = fn(&mut Directive);

    /// Behind the choice of pg1 in term 7; whether it can still be used.
    fn changes() -> [(Change, bool); 6] {
        [
            (|_| {}, true),
            (|order| *order = order.unvouched(), false),
            (|order| order.term = Term(8), false),
            (|order| order.primary = Some(node_name("pg2")), false),
            (|order| order.maintenance = vec![node_name("pg2")], true),
            // Withdrawn, and back.
            (|order| *order = Directive { primary: order.primary.clone(), ..order.unvouched() }, true),
        ]
    }

    fn write() -> Demand {
        let access = Access::Write { reason: WriteReason::Dml };
        Demand { verdict: Arc::new(Verdict { access, ..look::nothing() }), forced: None }
    }

    /// Has chosen pg1, and has a connection to it at hand.
    async fn dialled(stage: &Stage, session: &mut Session<'_>, now: Instant) -> (Lease, Chosen) {
        let Attempt::Place(chosen, Ok(mut lease)) = session.try_attach(&write(), now, Standbys::Welcome)
        else {
            panic!("the primary is chosen, and dialled");
        };
        let server = async { let_in(&mut stage.accept().await).await };
        let (ready, ()) = tokio::join!(lease.ready(0, &Credentials::Trust, Duration::from_secs(60)), server);
        ready.expect("logged in");
        (lease, chosen)
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn time_in_a_queue_is_not_time_held() {
        let now = Instant::now();
        let mut held = Held::default();
        let mut at = |queued, at| {
            held.queued(Duration::from_secs(queued));
            held.so_far(now + Duration::from_secs(at)).as_secs()
        };
        assert_eq!(at(35, 35), 0, "it had not been held before");
        assert_eq!(at(0, 36), 1);
        assert_eq!(at(29, 66), 2);
    }

    #[tokio::test]
    async fn a_primary_that_was_withdrawn_meanwhile_is_not_taken() {
        for (number, (change, expected)) in changes().into_iter().enumerate() {
            let stage = Stage::new(ProxyConfig::default());
            let (worker, (client, _peer)) = (stage.worker(), Stage::client());
            let session = Session::begin(stage.shared(), &worker, Entrance::default(), client);
            let mut session = session.unwrap_or_else(|_| panic!("it is let in"));
            #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
            let now = Instant::now();
            let (lease, chosen) = dialled(&stage, &mut session, now).await;
            stage.order(change);
            let taken = matches!(session.take(lease, &chosen, now), Attempt::Attached);
            assert_eq!(taken, expected, "{number}");
            assert_eq!(session.slot.serving().is_some(), expected, "what the fence sees: {number}");
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_primary_that_was_withdrawn_waits_no_more() {
        for (number, (change, expected)) in changes().into_iter().enumerate() {
            let stage = Stage::new(ProxyConfig::default());
            let (worker, (client, _peer)) = (stage.worker(), Stage::client());
            let session = Session::begin(stage.shared(), &worker, Entrance::default(), client);
            let mut session = session.unwrap_or_else(|_| panic!("it is let in"));
            #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
            let now = Instant::now();
            let (_lease, chosen) = dialled(&stage, &mut session, now).await;
            let mut over = std::pin::pin!(superseded(stage.shared(), &chosen));
            let mut noop = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(over.as_mut().poll(&mut noop).is_pending());
            stage.order(change);
            assert_eq!(over.as_mut().poll(&mut noop).is_pending(), expected, "{number}");
        }
    }
}
