//! A pool's bookkeeping: which connections are idle, how many there are, who waits. It neither dials nor wakes.
//!
//! A connection is registered with the reactor of the worker that used it last. To move it to another one costs
//! more than the pool's whole bookkeeping, and wakes the other worker's thread; so a connection in steady use
//! stays with its worker as long as nobody has to wait too long for that.

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

/// Another worker's connection that has been idle for less will be wanted there in a moment: while there is room
/// to dial, it is left where it is.
const HOT: Duration = Duration::from_millis(10);
/// So often in a row a freed connection may go to somebody of its own worker before whoever has waited longest.
const MAX_PASSED_OVER: u32 = 16;

/// An idle connection.
#[derive(Debug)]
struct Idle<C> {
    connection: C,
    /// With whose reactor it is registered.
    worker: usize,
    since: Instant,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: u64,
    worker: usize,
    who: W,
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
    /// In the order in which they came.
    waiting: VecDeque<Waiter<W>>,
    last_ticket: u64,
    /// How often in a row the first in the queue was not the next one. <= MAX_PASSED_OVER.
    passed_over: u32,
    /// Connections of an earlier generation are not taken back.
    generation: u64,
}

impl<C, W> Core<C, W> {
    pub(crate) fn new(limits: Limits) -> Core<C, W> {
        Core {
            limits,
            idle: vec![],
            open: 0,
            waiting: VecDeque::new(),
            last_ticket: 0,
            passed_over: 0,
            generation: 0,
        }
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
    pub(crate) fn checkout(
        &mut self,
        worker: usize,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> Checkout<C> {
        if let Some(own) = self.idle.iter().rposition(|idle| idle.worker == worker) {
            return Checkout::Idle(self.idle.remove(own).connection);
        }
        let has_room = self.open < self.limits.size;
        // The one unused for longest is missed least.
        let foreign = self.idle.first().map(|idle| now.saturating_duration_since(idle.since) < HOT);
        match foreign {
            Some(is_hot) if !(is_hot && has_room) => Checkout::Idle(self.idle.remove(0).connection),
            _ if has_room => {
                self.open += 1;
                Checkout::Dial
            }
            _ => {
                self.last_ticket += 1;
                self.waiting.push_back(Waiter { ticket: self.last_ticket, worker, who: waiter() });
                Checkout::Wait(self.last_ticket)
            }
        }
    }

    /// Whoever waited with `ticket` does no longer.
    pub(crate) fn give_up(&mut self, ticket: u64) {
        self.waiting.retain(|waiter| waiter.ticket != ticket);
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
        match self.next_waiter(worker) {
            Some(waiter) => Next::Serve(waiter, connection),
            None => {
                self.idle.push(Idle { connection, worker, since: now });
                Next::Nobody
            }
        }
    }

    /// Who gets a connection of `worker`: the first of that worker, unless that has been unfair for too long.
    fn next_waiter(&mut self, worker: usize) -> Option<W> {
        let own = self.waiting.iter().position(|waiter| waiter.worker == worker);
        let next = own.filter(|_| self.passed_over < MAX_PASSED_OVER).unwrap_or(0);
        self.passed_over = if next == 0 { 0 } else { self.passed_over + 1 };
        self.waiting.remove(next).map(|waiter| waiter.who)
    }

    /// A connection was closed, or a dial failed: its place is free.
    pub(crate) fn closed(&mut self) -> Next<C, W> {
        debug_assert!(self.in_use() > 0, "only what was checked out is closed");
        match self.waiting.pop_front() {
            // The place passes on.
            Some(waiter) => Next::Dial(waiter.who),
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

    use super::{Checkout, Core, HOT, Limits, MAX_PASSED_OVER, Next};

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
        assert_eq!(pool.checkout(0, now, || "a"), Checkout::Dial);
        assert_eq!(pool.checkout(0, now, || "b"), Checkout::Wait(1));
        assert_eq!(pool.checkout(0, now, || "c"), Checkout::Wait(2));
        assert_eq!(pool.checkout(0, now, || "d"), Checkout::Wait(3));
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
            assert_eq!(pool.checkout(0, now, || ""), Checkout::Dial);
        }
        for (connection, worker) in [("s0", 0), ("s1", 1), ("s2", 2)] {
            assert_eq!(pool.put_back(connection, worker, 0, now, now), Next::Nobody);
        }
        assert_eq!(pool.checkout(0, now, || ""), Checkout::Idle("s0"));
        assert_eq!(pool.checkout(0, now, || ""), Checkout::Idle("s1"), "the one unused for longest");
    }

    #[test]
    fn a_hot_connection_is_left_to_its_worker_while_there_is_room() {
        let (mut pool, now) = pool(2);
        assert_eq!(pool.checkout(0, now, || ""), Checkout::Dial);
        assert_eq!(pool.put_back("s0", 0, 0, now, now), Next::Nobody);
        assert_eq!(pool.checkout(1, now, || ""), Checkout::Dial);
        assert_eq!(pool.checkout(1, now, || ""), Checkout::Idle("s0"), "there is no room");
        assert_eq!(pool.put_back("s0", 1, 0, now, now), Next::Nobody);
        assert_eq!(pool.closed(), Next::Nobody);
        assert_eq!(pool.checkout(0, now + HOT, || ""), Checkout::Idle("s0"), "it has cooled down");
    }

    #[test]
    fn those_of_the_connections_worker_go_first_but_not_for_ever() {
        let (mut pool, now) = pool(1);
        assert_eq!(pool.checkout(0, now, || ""), Checkout::Dial);
        assert_eq!(pool.checkout(1, now, || "of another"), Checkout::Wait(1));
        for _ in 0..MAX_PASSED_OVER {
            assert!(matches!(pool.checkout(0, now, || "own"), Checkout::Wait(_)));
            assert_eq!(pool.put_back("s", 0, 0, now, now), Next::Serve("own", "s"));
        }
        assert!(matches!(pool.checkout(0, now, || "own"), Checkout::Wait(_)));
        assert_eq!(pool.put_back("s", 0, 0, now, now), Next::Serve("of another", "s"));
        assert_eq!(pool.put_back("s", 0, 0, now, now), Next::Serve("own", "s"));
    }

    #[test]
    fn old_connections_are_closed() {
        let (mut pool, now) = pool(3);
        for _ in 0..3 {
            assert_eq!(pool.checkout(0, now, || ""), Checkout::Dial);
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
