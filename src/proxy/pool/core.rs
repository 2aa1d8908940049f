//! A pool's bookkeeping: which connections are idle, how many there are, who waits. It neither dials nor wakes.
//!
//! A connection is registered with the reactor of the worker that used it last. To move it to another one costs
//! more than the pool's whole bookkeeping, and wakes the other worker's thread; so a connection in steady use
//! stays with its worker as long as nobody has to wait too long for that.
//!
//! Where limits on several pools together apply, each place in addition needs a permit, which the caller asks for
//! in the moment of taking it. Whoever does not get one waits with room in the pool, and is served with
//! [`Core::offer`] when another pool has given one back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::proxy::limits::PoolSize;

/// Another worker's connection that has been idle for less will be wanted there in a moment: while there is room
/// to dial, it is left where it is.
pub(crate) const HOT: Duration = Duration::from_millis(10);
/// So often in a row a freed connection may go to somebody of its own worker before whoever has waited longest.
pub(crate) const MAX_PASSED_OVER: u32 = 16;

/// An idle connection.
#[derive(Debug)]
struct Idle<C> {
    connection: C,
    /// With whose reactor it is registered.
    worker: usize,
    since: Instant,
    expires_at: Instant,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: u64,
    worker: usize,
    since: Instant,
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
    /// The connection is not to be used again.
    Close(C),
    Nobody,
}

/// Whether connections are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// Whoever asks waits, and what comes back is closed.
    Paused,
}

/// Which connection comes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Returned {
    /// With whose reactor it is registered.
    pub(crate) worker: usize,
    /// The pool's when it was dialled.
    pub(crate) generation: u64,
    /// Its lifetime ends then.
    pub(crate) expires_at: Instant,
}

/// `C`: a connection. `W`: somebody who waits.
#[derive(Debug)]
pub(crate) struct Core<C, W> {
    limits: PoolSize,
    gate: Gate,
    /// The most recently used at the back.
    idle: Vec<Idle<C>>,
    /// Idle, in use and being dialled. open <= limits.size + limits.reserve_size, unless that was made smaller.
    open: usize,
    /// In the order in which they came.
    waiting: VecDeque<Waiter<W>>,
    last_ticket: u64,
    /// How often in a row the first in the queue was not the next one. <= MAX_PASSED_OVER.
    passed_over: u32,
    /// Connections of an earlier generation are not taken back.
    generation: u64,
    /// So many of those in use are closed when they come back: others wait for their permits. <= in_use.
    owed: usize,
}

impl<C, W> Core<C, W> {
    pub(crate) fn new(limits: PoolSize) -> Core<C, W> {
        Core {
            limits,
            gate: Gate::Open,
            idle: vec![],
            open: 0,
            waiting: VecDeque::new(),
            last_ticket: 0,
            passed_over: 0,
            generation: 0,
            owed: 0,
        }
    }

    pub(crate) fn limits(&self) -> PoolSize {
        self.limits
    }

    /// What is open beyond them is closed when it comes back. Offer the room that there may be now.
    pub(crate) fn set_limits(&mut self, limits: PoolSize) {
        self.limits = limits;
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

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Since when the first in the queue has waited.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.waiting.front().map(|waiter| waiter.since)
    }

    /// An idle connection, one that `worker` used last if there is one, and among those the latest that `suits`;
    /// room to dial, if there is a `permit` for
    /// it; or a place in the queue.
    pub(crate) fn checkout(
        &mut self,
        worker: usize,
        now: Instant,
        suits: impl Fn(&C) -> bool,
        permit: impl FnOnce() -> bool,
        waiter: impl FnOnce() -> W,
    ) -> Checkout<C> {
        debug_assert!(self.gate == Gate::Open || self.idle.is_empty(), "nothing is idle in a paused pool");
        let is_own = |idle: &Idle<C>| idle.worker == worker;
        let suiting = self.idle.iter().rposition(|idle| is_own(idle) && suits(&idle.connection));
        if let Some(own) = suiting.or_else(|| self.idle.iter().rposition(is_own)) {
            return Checkout::Idle(self.idle.remove(own).connection);
        }
        // The one unused for longest is missed least.
        let is_hot = |idle: &Idle<C>| now.saturating_duration_since(idle.since) < HOT;
        match self.idle.first().map(is_hot) {
            Some(false) => Checkout::Idle(self.idle.remove(0).connection),
            _ if self.has_room() && self.waiting.is_empty() && permit() => {
                self.open += 1;
                Checkout::Dial
            }
            Some(true) => Checkout::Idle(self.idle.remove(0).connection),
            None => {
                self.last_ticket += 1;
                let (ticket, who) = (self.last_ticket, waiter());
                self.waiting.push_back(Waiter { ticket, worker, since: now, who });
                Checkout::Wait(ticket)
            }
        }
    }

    fn has_room(&self) -> bool {
        self.gate == Gate::Open && self.open < self.limits.size
    }

    fn has_reserve(&self) -> bool {
        self.gate == Gate::Open && self.open < self.limits.size + self.limits.reserve_size
    }

    /// What comes back is closed and its place given up.
    fn shrinks(&self) -> bool {
        let too_large = self.open > self.limits.size + self.limits.reserve_size;
        too_large || self.owed > 0 || self.gate == Gate::Paused
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.gate == Gate::Paused
    }

    /// Until [`Core::resume`] nothing is handed out. The permits of what was idle are free.
    pub(crate) fn pause(&mut self) -> Vec<C> {
        self.gate = Gate::Paused;
        self.close_idle()
    }

    /// Offer the room that there is now.
    pub(crate) fn resume(&mut self) {
        self.gate = Gate::Open;
    }

    fn close_idle(&mut self) -> Vec<C> {
        let closed: Vec<C> = self.idle.drain(..).map(|idle| idle.connection).collect();
        self.open -= closed.len();
        closed
    }

    pub(crate) fn idle_connections(&self) -> impl Iterator<Item = &C> {
        self.idle.iter().map(|idle| &idle.connection)
    }

    /// Whoever waited with `ticket` does no longer.
    pub(crate) fn give_up(&mut self, ticket: u64) {
        if self.waiting.front().is_some_and(|first| first.ticket == ticket) {
            self.passed_over = 0;
        }
        self.waiting.retain(|waiter| waiter.ticket != ticket);
    }

    /// Whoever waits with `ticket`, and has for long enough, takes one of the reserve's places and dials.
    pub(crate) fn take_reserve(&mut self, ticket: u64, now: Instant, permit: impl FnOnce() -> bool) -> bool {
        let long_enough =
            |waiter: &Waiter<W>| now.saturating_duration_since(waiter.since) >= self.limits.reserve_after;
        let entitled = self.waiting.iter().any(|waiter| waiter.ticket == ticket && long_enough(waiter));
        let taken = entitled && self.has_reserve() && permit();
        if taken {
            self.open += 1;
            self.give_up(ticket);
        }
        taken
    }

    /// Room that there may be now, and a permit for it: for the first in the queue, who dials.
    pub(crate) fn offer(&mut self, permit: impl FnOnce() -> bool) -> Option<W> {
        if !self.wants_permit() || !permit() {
            return None;
        }
        self.open += 1;
        self.first()
    }

    fn first(&mut self) -> Option<W> {
        self.passed_over = 0;
        self.waiting.pop_front().map(|waiter| waiter.who)
    }

    /// Somebody waits although there is room: only a permit is missing.
    pub(crate) fn wants_permit(&self) -> bool {
        self.has_room() && !self.waiting.is_empty()
    }

    /// Whether the place for one more connection, which is to be dialled and put back, was taken: there are fewer
    /// than there should be at least.
    pub(crate) fn warm_up(&mut self, permit: impl FnOnce() -> bool) -> bool {
        let wanted = self.has_room() && self.open < self.limits.min_size && self.waiting.is_empty();
        let taken = wanted && permit();
        self.open += usize::from(taken);
        taken
    }

    /// A clean connection comes back.
    pub(crate) fn put_back(&mut self, connection: C, returned: Returned, now: Instant) -> Next<C, W> {
        if self.shrinks() || now >= returned.expires_at || returned.generation != self.generation {
            return Next::Close(connection);
        }
        match self.next_waiter(returned.worker) {
            Some(waiter) => Next::Serve(waiter, connection),
            None => {
                let Returned { worker, expires_at, .. } = returned;
                self.idle.push(Idle { connection, worker, since: now, expires_at });
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

    /// A connection was closed, or a dial failed: its place is free. With [`Next::Nobody`] its permit is, too.
    pub(crate) fn closed(&mut self) -> Next<C, W> {
        debug_assert!(self.in_use() > 0, "only what was checked out is closed");
        if self.shrinks() {
            self.owed = self.owed.saturating_sub(1);
            self.open -= 1;
            return Next::Nobody;
        }
        match self.first() {
            // The place passes on.
            Some(waiter) => Next::Dial(waiter),
            None => {
                self.open -= 1;
                Next::Nobody
            }
        }
    }

    /// Idle connections whose time is over, and those that `is_alive` denies. Their permits are free.
    pub(crate) fn expire(&mut self, now: Instant, mut is_alive: impl FnMut(&mut C) -> bool) -> Vec<C> {
        let limits = self.limits;
        let mut spare = self.open.saturating_sub(limits.min_size);
        let expired = |idle: &mut Idle<C>| {
            let unused = spare > 0 && now.saturating_duration_since(idle.since) > limits.idle;
            let ends = unused || now >= idle.expires_at || !is_alive(&mut idle.connection);
            spare = spare.saturating_sub(usize::from(ends));
            ends
        };
        let closed: Vec<C> = self.idle.extract_if(.., expired).map(|idle| idle.connection).collect();
        self.open -= closed.len();
        closed
    }

    /// The idle connection that is missed least, for another pool's sake. Its permit is free.
    pub(crate) fn evict(&mut self) -> Option<C> {
        if self.idle.is_empty() {
            return None;
        }
        self.open -= 1;
        Some(self.idle.remove(0).connection)
    }

    /// The next connection that comes back is closed, for another pool's sake.
    pub(crate) fn owe(&mut self) {
        self.owed = (self.owed + 1).min(self.in_use());
    }

    /// Nothing that is open now is used again. The permits of what was idle are free.
    pub(crate) fn renew(&mut self) -> Vec<C> {
        self.generation += 1;
        self.close_idle()
    }
}
