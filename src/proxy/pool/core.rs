//! A pool's bookkeeping: which connections are idle, how many there are, who waits. It neither dials nor wakes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bounds of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Server connections in all, those being dialled included. Beyond it clients wait.
    pub(crate) size: usize,
    /// An idle connection is closed after this time.
    pub(crate) idle: Duration,
    /// A connection older than this is closed when it comes back.
    pub(crate) lifetime: Duration,
}

/// An idle connection.
#[derive(Debug)]
struct Idle<C> {
    connection: C,
    /// With whose reactor it is registered.
    worker: usize,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checkout<C> {
    Idle(C),
    /// There is room for one more: the place is taken, the caller dials.
    Dial,
    /// The caller's place in the queue.
    Wait(u64),
}

/// What a freed place means for somebody who waits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<C, W> {
    /// `W` gets this connection.
    Serve(W, C),
    /// `W` may dial.
    Dial(W),
    /// The connection is too old.
    Close(C),
    Nobody,
}

/// `C`: a connection. `W`: somebody who waits.
#[derive(Debug)]
pub(crate) struct Core<C, W> {
    limits: Limits,
    /// The most recently used at the back.
    idle: Vec<Idle<C>>,
    /// Idle, in use and being dialled. open <= limits.size.
    open: usize,
    /// First come, first served.
    waiting: VecDeque<(u64, W)>,
    last_ticket: u64,
    /// Connections of an earlier generation are not taken back.
    generation: u64,
}

impl<C, W> Core<C, W> {
    pub(crate) fn new(limits: Limits) -> Core<C, W> {
        Core { limits, idle: vec![], open: 0, waiting: VecDeque::new(), last_ticket: 0, generation: 0 }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    pub(crate) fn in_use(&self) -> usize {
        self.open - self.idle.len()
    }

    /// An idle connection, one that `worker` used last if there is one; room to dial; or a place in the queue.
    pub(crate) fn checkout(&mut self, worker: usize, waiter: impl FnOnce() -> W) -> Checkout<C> {
        let own = self.idle.iter().rposition(|idle| idle.worker == worker);
        if let Some(at) = own.or(self.idle.len().checked_sub(1)) {
            return Checkout::Idle(self.idle.remove(at).connection);
        }
        if self.open < self.limits.size {
            self.open += 1;
            return Checkout::Dial;
        }
        self.last_ticket += 1;
        self.waiting.push_back((self.last_ticket, waiter()));
        Checkout::Wait(self.last_ticket)
    }

    /// Whoever waited with `ticket` does no longer.
    pub(crate) fn give_up(&mut self, ticket: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
    }

    /// A clean connection comes back.
    pub(crate) fn put_back(
        &mut self,
        connection: C,
        worker: usize,
        generation: u64,
        opened_at: Instant,
        now: Instant,
    ) -> Next<C, W> {
        let too_old = now.saturating_duration_since(opened_at) > self.limits.lifetime;
        if too_old || generation != self.generation {
            return Next::Close(connection);
        }
        match self.waiting.pop_front() {
            Some((_, waiter)) => Next::Serve(waiter, connection),
            None => {
                self.idle.push(Idle { connection, worker, since: now });
                Next::Nobody
            }
        }
    }

    /// A connection was closed, or a dial failed: its place is free.
    pub(crate) fn closed(&mut self) -> Next<C, W> {
        debug_assert!(self.in_use() > 0, "only what was checked out is closed");
        match self.waiting.pop_front() {
            // The place passes on.
            Some((_, waiter)) => Next::Dial(waiter),
            None => {
                self.open -= 1;
                Next::Nobody
            }
        }
    }

    /// Idle connections whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<C> {
        let limit = self.limits.idle;
        let expired = |idle: &mut Idle<C>| now.saturating_duration_since(idle.since) > limit;
        let closed: Vec<C> = self.idle.extract_if(.., expired).map(|idle| idle.connection).collect();
        self.open -= closed.len();
        closed
    }

    /// Nothing that is open now is used again.
    pub(crate) fn renew(&mut self) -> Vec<C> {
        self.generation += 1;
        let closed: Vec<C> = self.idle.drain(..).map(|idle| idle.connection).collect();
        self.open -= closed.len();
        closed
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Checkout, Core, Limits, Next};

    const SECOND: Duration = Duration::from_secs(1);

    fn pool(size: usize) -> (Core<&'static str, &'static str>, Instant) {
        let limits = Limits { size, idle: 10 * SECOND, lifetime: 100 * SECOND };
        // The only clock of these tests: everything else is relative to it.
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let now = Instant::now();
        (Core::new(limits), now)
    }

    #[test]
    fn first_come_first_served() {
        let (mut pool, now) = pool(1);
        assert_eq!(pool.checkout(0, || "a"), Checkout::Dial);
        assert_eq!(pool.checkout(0, || "b"), Checkout::Wait(1));
        assert_eq!(pool.checkout(0, || "c"), Checkout::Wait(2));
        assert_eq!(pool.checkout(0, || "d"), Checkout::Wait(3));
        pool.give_up(2);
        assert_eq!(pool.put_back("s1", 0, 0, now, now), Next::Serve("b", "s1"));
        // A connection that breaks leaves its place to the next one.
        assert_eq!(pool.closed(), Next::Dial("d"));
        assert_eq!(pool.put_back("s2", 0, 0, now, now), Next::Nobody);
        assert_eq!((pool.idle(), pool.in_use()), (1, 0));
    }

    #[test]
    fn a_worker_gets_its_own_connection_back() {
        let (mut pool, now) = pool(3);
        for _ in 0..3 {
            assert_eq!(pool.checkout(0, || ""), Checkout::Dial);
        }
        for (connection, worker) in [("s0", 0), ("s1", 1), ("s2", 2)] {
            assert_eq!(pool.put_back(connection, worker, 0, now, now), Next::Nobody);
        }
        assert_eq!(pool.checkout(0, || ""), Checkout::Idle("s0"));
        assert_eq!(pool.checkout(0, || ""), Checkout::Idle("s2"));
    }

    #[test]
    fn old_connections_are_closed() {
        let (mut pool, now) = pool(3);
        for _ in 0..3 {
            assert_eq!(pool.checkout(0, || ""), Checkout::Dial);
        }
        assert_eq!(pool.put_back("old", 0, 0, now, now + 101 * SECOND), Next::Close("old"));
        assert_eq!(pool.closed(), Next::Nobody);
        assert_eq!(pool.put_back("idle", 0, 0, now, now), Next::Nobody);
        assert_eq!(pool.expire(now + 10 * SECOND), [""; 0]);
        assert_eq!(pool.expire(now + 11 * SECOND), ["idle"]);
        assert_eq!(pool.renew(), [""; 0]);
        assert_eq!(pool.put_back("before", 0, 0, now, now), Next::Close("before"));
        assert_eq!(pool.closed(), Next::Nobody);
        assert_eq!((pool.idle(), pool.in_use()), (0, 0));
    }
}
