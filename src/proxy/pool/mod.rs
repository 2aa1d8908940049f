//! Server connections of one node, database and user, shared by all workers.
//!
//! A connection is moved into the session that uses it; what the pool keeps meanwhile is a number. The lock is
//! held for a few instructions and never across an await. Whoever holds a place holds a [`Lease`]: however its
//! holder ends, the place comes back.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock when it dials")]

mod census;
pub(crate) mod core;
#[cfg(test)]
mod core_tests;
mod pools;

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use self::census::Census;
use self::core::{Checkout, Core, Next, Returned};
use super::evidence::{DialEvidence, NodeEvidence};
use super::guc::Settings;
use super::limits::{Caps, PoolSize};
use super::session::core::ServerState;
use super::session::reported::Reported;
use crate::net::{self, Credentials, DialError, Stream, Target, TlsForServers};
use crate::pg::protocol::startup::CancelKey;
use crate::topology::{Address, NodeName};

pub(crate) use self::pools::{Blueprint, Permit, Pools};

/// A connection lives for its lifetime or up to this part less.
const LIFETIME_JITTER: f64 = 0.2;
/// Of connections that are registered with the reactor of the plane's own thread.
const NO_WORKER: usize = usize::MAX;

/// Where to send a CancelRequest for a server connection.
#[derive(Debug)]
pub(crate) struct BackendKey {
    pub(crate) address: Address,
    pub(crate) tls: TlsForServers,
    pub(crate) key: CancelKey,
}

/// A logged-in server connection with all that is known of it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    /// With whose reactor `stream` is registered.
    worker: usize,
    pub(crate) state: ServerState,
    pub(crate) backend: Arc<BackendKey>,
    /// ParameterStatus after login.
    pub(crate) parameters: Arc<[(String, String)]>,
    /// When its last client gave it back.
    pub(crate) unused_since: Option<Instant>,
    generation: u64,
    /// With a jitter, so that connections that were opened together do not end together.
    expires_at: Instant,
}

/// Which connections are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) node: NodeName,
    pub(crate) database: Arc<str>,
    pub(crate) user: Arc<str>,
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: Key,
    address: Address,
    tls: TlsForServers,
    /// Of every startup packet.
    parameters: Vec<(String, String)>,
    core: Mutex<Core<Connection, oneshot::Sender<Lease>>>,
    /// Those of its node, for the limits that they share.
    census: Arc<Mutex<Census>>,
    caps: Mutex<Caps>,
    pools: Weak<Pools>,
    /// The last that a server accepted, for connections that are opened before a client asks.
    credentials: Mutex<Option<Credentials>>,
    pub(crate) evidence: Arc<NodeEvidence>,
}

/// A pool at some moment.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) idle: Vec<Arc<BackendKey>>,
    pub(crate) in_use: usize,
    pub(crate) waiting: usize,
    pub(crate) waiting_since: Option<Instant>,
    pub(crate) is_paused: bool,
}

/// A place in a pool, with a connection or to dial one. Dropped, it closes the connection and frees the place.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    connection: Option<Connection>,
    place: Place,
}

/// Whether the lease still has a place to free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Held,
    PassedOn,
}

impl Pool {
    /// A place at once, or the place in the queue. A connection that has `settings` is taken before others.
    pub(crate) fn checkout(
        self: &Arc<Pool>,
        worker: usize,
        now: Instant,
        settings: &Arc<Settings>,
    ) -> Result<Lease, Waiting> {
        let mut receiver = None;
        let waiter = || {
            let (sender, waits) = oneshot::channel();
            receiver = Some(waits);
            sender
        };
        let mut denied = false;
        let permit = || {
            denied = !self.take_permit();
            !denied
        };
        let suits = |connection: &Connection| {
            let present = &connection.state.settings;
            Arc::ptr_eq(present, settings) || present == settings
        };
        let checkout = self.core.lock().checkout(worker, now, suits, permit, waiter);
        match (checkout, receiver) {
            (Checkout::Wait(ticket), Some(receiver)) => {
                if denied {
                    self.claim_idle();
                }
                Err(Waiting { pool: self.clone(), ticket, receiver })
            }
            (Checkout::Idle(connection), _) => Ok(self.lease(Some(connection))),
            (Checkout::Dial | Checkout::Wait(_), _) => Ok(self.lease(None)),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    fn lease(self: &Arc<Pool>, connection: Option<Connection>) -> Lease {
        self.evidence.lent();
        Lease { pool: self.clone(), connection, place: Place::Held }
    }

    fn take_permit(&self) -> bool {
        let caps = *self.caps.lock();
        self.census.lock().take(&self.key.database, &self.key.user, caps)
    }

    /// Connections are gone: others may have waited for their permits.
    fn release_permits(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.census.lock().release(&self.key.database, &self.key.user, count);
        if let Some(pools) = self.pools.upgrade() {
            pools.offer(&self.key.node);
        }
    }

    /// An idle connection of another pool is closed for the sake of who waits here.
    fn claim_idle(&self) {
        if let Some(pools) = self.pools.upgrade() {
            pools.evict_for(self);
        }
    }

    /// Room that there may be now goes to who waits.
    fn offer(self: &Arc<Pool>) {
        loop {
            let waiter = self.core.lock().offer(|| self.take_permit());
            let Some(waiter) = waiter else { return };
            // If nobody waits any more, the lease inside frees the place.
            drop(waiter.send(self.lease(None)));
        }
    }

    /// Nothing that is open now is used again.
    pub(crate) fn renew(&self) {
        let closed = self.core.lock().renew();
        self.release_permits(closed.len());
    }

    /// Closes idle connections whose time is over, and those that the server has closed.
    fn expire(&self, now: Instant) {
        let mut broken = 0;
        let is_alive = |connection: &mut Connection| {
            let alive = is_silent(&mut connection.stream);
            broken += usize::from(!alive);
            alive
        };
        let closed = self.core.lock().expire(now, is_alive);
        self.release_permits(closed.len());
        if broken > 0 {
            tracing::info!(node = %self.key.node, broken, "idle server connections were closed by the server");
        }
    }

    /// Nothing is handed out until [`Pool::resume`].
    fn pause(&self) {
        let closed = self.core.lock().pause();
        self.release_permits(closed.len());
    }

    fn resume(self: &Arc<Pool>) {
        self.core.lock().resume();
        self.offer();
    }

    fn resize(self: &Arc<Pool>, size: PoolSize, caps: Caps) {
        self.core.lock().set_limits(size);
        *self.caps.lock() = caps;
        self.offer();
    }

    /// What it looks like now.
    pub(crate) fn state(&self) -> State {
        let core = self.core.lock();
        State {
            idle: core.idle_connections().map(|connection| connection.backend.clone()).collect(),
            in_use: core.in_use(),
            waiting: core.waiting(),
            waiting_since: core.waiting_since(),
            is_paused: core.is_paused(),
        }
    }

    /// Idle and used connections.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let core = self.core.lock();
        (core.idle(), core.in_use())
    }
}

/// A place in the queue. Dropped, it is left.
#[derive(Debug)]
pub(crate) struct Waiting {
    pool: Arc<Pool>,
    ticket: u64,
    receiver: oneshot::Receiver<Lease>,
}

impl Waiting {
    /// Until it is this one's turn. May be dropped and called again.
    pub(crate) async fn served(&mut self) -> Lease {
        match (&mut self.receiver).await {
            Ok(lease) => lease,
            // The queue forgets nobody while a place in it is held.
            Err(_) => std::future::pending().await,
        }
    }

    /// One of the reserve's places, when this one has waited for long enough.
    pub(crate) fn take_reserve(&mut self, now: Instant) -> Option<Lease> {
        let pool = &self.pool;
        let taken = pool.core.lock().take_reserve(self.ticket, now, || pool.take_permit());
        taken.then(|| pool.lease(None))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.core.lock().give_up(self.ticket);
    }
}

impl Lease {
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// A connection that lives and belongs to `worker`'s reactor: the one at hand, another idle one, or a new
    /// one.
    pub(crate) async fn ready(
        &mut self,
        worker: usize,
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<(), DialError> {
        if self.is_ready(worker) {
            return Ok(());
        }
        self.connection = None;
        let target = Target {
            address: self.pool.address.clone(),
            user: self.pool.key.user.clone(),
            database: self.pool.key.database.clone(),
            credentials: credentials.clone(),
            tls: self.pool.tls.clone(),
            parameters: self.pool.parameters.clone(),
        };
        let (generation, lifetime) = {
            let core = self.pool.core.lock();
            (core.generation(), core.limits().lifetime)
        };
        let backend = net::dial(&target, limit).await.inspect_err(|error| self.failed(error))?;
        *self.pool.credentials.lock() = Some(target.credentials);
        let parameters: Arc<[(String, String)]> = backend.parameters.into();
        self.connection = Some(Connection {
            stream: backend.stream,
            worker,
            state: ServerState {
                reported: Reported::first(parameters.clone()),
                pid: backend.pid,
                ..ServerState::default()
            },
            unused_since: None,
            backend: Arc::new(BackendKey {
                address: target.address,
                tls: target.tls,
                key: CancelKey { pid: backend.pid, secret: backend.cancel_key },
            }),
            parameters,
            generation,
            expires_at: Instant::now() + lifetime.mul_f64(1.0 - LIFETIME_JITTER * rand::random::<f64>()),
        });
        Ok(())
    }

    /// Opens a connection that nobody has asked for yet.
    pub(crate) async fn warm(mut self, credentials: Credentials, limit: Duration) {
        match self.ready(NO_WORKER, &credentials, limit).await {
            Ok(()) => self.put_back(Instant::now()),
            Err(error) => {
                tracing::debug!(%error, "no connection in advance");
                // Nothing is tried again before a client has.
                *self.pool.credentials.lock() = None;
            }
        }
    }

    fn failed(&self, error: &DialError) {
        if DialEvidence::from(error) == DialEvidence::Refused {
            self.pool.evidence.refused(Instant::now());
        }
    }

    /// Whether the connection at hand can be used by `worker` now.
    pub(crate) fn is_ready(&mut self, worker: usize) -> bool {
        self.connection = self.connection.take().and_then(|connection| connection.taken_over(worker));
        self.connection.is_some()
    }

    /// Gives a clean connection back.
    pub(crate) fn put_back(mut self, now: Instant) {
        let Some(mut connection) = self.connection.take() else { return };
        connection.unused_since = Some(now);
        let Connection { worker, generation, expires_at, .. } = connection;
        let returned = Returned { worker, generation, expires_at };
        let next = self.pool.core.lock().put_back(connection, returned, now);
        match next {
            Next::Serve(waiter, connection) => {
                self.place = Place::PassedOn;
                // If nobody waits any more, the lease inside frees the place.
                drop(waiter.send(self.pool.lease(Some(connection))));
            }
            // Freed when this lease is dropped.
            Next::Close(_) => {}
            Next::Dial(_) | Next::Nobody => self.place = Place::PassedOn,
        }
    }
}

impl Pool {
    fn free(self: &Arc<Pool>) {
        let next = self.core.lock().closed();
        match next {
            Next::Dial(waiter) => drop(waiter.send(self.lease(None))),
            Next::Serve(..) | Next::Close(_) | Next::Nobody => self.release_permits(1),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection = None;
        self.pool.evidence.returned();
        if self.place == Place::Held {
            self.pool.free();
        }
    }
}

impl Connection {
    /// `None` when the server has hung up, or has said something that nobody asked for.
    fn taken_over(mut self, worker: usize) -> Option<Connection> {
        if self.worker == worker {
            return is_silent(&mut self.stream).then_some(self);
        }
        let detached = self.stream.detach().ok()?;
        let stream = detached.is_silent().then(|| detached.attach().ok()).flatten()?;
        Some(Connection { stream, worker, ..self })
    }
}

/// Costs no system call while the reactor has seen nothing.
fn is_silent(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut context = Context::from_waker(std::task::Waker::noop());
    let read = Pin::new(stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte));
    matches!(read, Poll::Pending)
}
