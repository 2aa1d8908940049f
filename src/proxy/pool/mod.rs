//! Server connections of one node, database and user, shared by all workers.
//!
//! A connection is moved into the session that uses it; what the pool keeps meanwhile is a number. The lock is
//! held for a few instructions and never across an await. Whoever holds a place holds a [`Lease`]: however its
//! holder ends, the place comes back.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock when it dials")]

pub(crate) mod core;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use self::core::{Checkout, Core, Limits, Next};
use super::evidence::{DialEvidence, NodeEvidence};
use super::session::core::ServerState;
use crate::net::{self, Credentials, Detached, DialError, Stream, Target};
use crate::pg::protocol::startup::CancelKey;
use crate::topology::{Address, NodeName};

/// Where to send a CancelRequest for a server connection.
#[derive(Debug)]
pub(crate) struct BackendKey {
    pub(crate) address: Address,
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
    opened_at: Instant,
    generation: u64,
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
    /// Of every startup packet.
    parameters: Vec<(String, String)>,
    core: Mutex<Core<Connection, oneshot::Sender<Lease>>>,
    pub(crate) evidence: Arc<NodeEvidence>,
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

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckoutError {
    #[error("no server connection became free within {limit:?}")]
    Wait { limit: Duration },
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Pool {
    pub(crate) fn new(
        key: Key,
        address: Address,
        parameters: Vec<(String, String)>,
        limits: Limits,
        evidence: Arc<NodeEvidence>,
    ) -> Pool {
        Pool { key, address, parameters, core: Mutex::new(Core::new(limits)), evidence }
    }

    /// A place at once, or the place in the queue.
    pub(crate) fn checkout(self: &Arc<Pool>, worker: usize, now: Instant) -> Result<Lease, Waiting> {
        let mut receiver = None;
        let waiter = || {
            let (sender, waits) = oneshot::channel();
            receiver = Some(waits);
            sender
        };
        let checkout = self.core.lock().checkout(worker, now, waiter);
        match (checkout, receiver) {
            (Checkout::Wait(ticket), Some(receiver)) => Err(Waiting { pool: self.clone(), ticket, receiver }),
            (Checkout::Idle(connection), _) => Ok(self.lease(Some(connection))),
            (Checkout::Dial | Checkout::Wait(_), _) => Ok(self.lease(None)),
        }
    }

    fn lease(self: &Arc<Pool>, connection: Option<Connection>) -> Lease {
        self.evidence.lent();
        Lease { pool: self.clone(), connection, place: Place::Held }
    }

    /// Nothing that is open now is used again.
    pub(crate) fn renew(&self) {
        let closed = self.core.lock().renew();
        drop(closed);
    }

    pub(crate) fn expire(&self, now: Instant) {
        let closed = self.core.lock().expire(now);
        drop(closed);
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
    pub(crate) async fn wait(mut self, limit: Duration) -> Result<Lease, CheckoutError> {
        match tokio::time::timeout(limit, &mut self.receiver).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) | Err(_) => Err(CheckoutError::Wait { limit }),
        }
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
            parameters: self.pool.parameters.clone(),
        };
        let generation = self.pool.core.lock().generation();
        let backend = net::dial(&target, limit).await.inspect_err(|error| self.failed(error))?;
        self.connection = Some(Connection {
            stream: backend.stream,
            worker,
            state: ServerState::default(),
            backend: Arc::new(BackendKey {
                address: target.address,
                key: CancelKey { pid: backend.pid, secret: backend.cancel_key },
            }),
            parameters: backend.parameters.into(),
            opened_at: Instant::now(),
            generation,
        });
        Ok(())
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
        let Some(connection) = self.connection.take() else { return };
        let (worker, generation, opened_at) =
            (connection.worker, connection.generation, connection.opened_at);
        let next = self.pool.core.lock().put_back(connection, worker, generation, opened_at, now);
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
        if let Next::Dial(waiter) = next {
            drop(waiter.send(self.lease(None)));
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
        // The new reactor does not know yet what has come: the kernel does.
        let nothing = match &detached {
            Detached::Tcp(stream) => stream.peek(&mut [0]),
            Detached::Unix(stream) => {
                socket2::SockRef::from(stream).peek(&mut [std::mem::MaybeUninit::uninit()])
            }
        };
        let silent = matches!(nothing, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        let stream = silent.then(|| detached.attach().ok()).flatten()?;
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
