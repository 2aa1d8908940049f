//! Two pools that share a limit, under sessions that come, wait, give up, break and come back, across workers,
//! while terms change, sizes change, both are paused and resumed, and connections are opened ahead of need.
//!
//! The production bookkeeping (`proxy::pool::core`) with a shell of this file's own. Connections and sessions are
//! numbers here; what the shell of the proxy does with them (dial, move, wake) is left out.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::clock::Rng;
use crate::proxy::parts::PoolSize;
use crate::proxy::parts::pool::{Checkout, Core, MAX_PASSED_OVER, Next, Returned};

const SEEDS: u64 = 300;
const STEPS: usize = 400;
const WORKERS: u64 = 3;
const RESERVE_AFTER: Duration = Duration::from_millis(100);

/// What a session does with its pool now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Waiting { ticket: u64 },
    Dialling,
    Using { connection: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Opened {
    generation: u64,
    expires_at: Instant,
}

/// A mistake that the shell makes on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    /// The place of a connection that broke is not freed.
    LeakPlace,
    /// A connection of an earlier term comes back as one of this term.
    ForgetGeneration,
    /// A connection comes back although its session goes on with it.
    ShareConnection,
    /// Who gave up is still handed a connection, and drops it.
    StayInQueue,
    /// The permit of a connection that was closed is kept.
    LeakPermit,
    /// The limit that pools share is not asked about.
    IgnoreCap,
    /// A permit that is free is offered to nobody.
    OfferToNobody,
    /// Who is served goes behind everybody else instead.
    SendToTheEnd,
}

/// Connections of both pools together.
#[derive(Debug)]
struct Permits {
    cap: usize,
    used: Cell<usize>,
    plant: Option<Plant>,
}

impl Permits {
    fn take(&self) -> bool {
        let free = self.used.get() < self.cap || self.plant == Some(Plant::IgnoreCap);
        self.used.set(self.used.get() + usize::from(free));
        free
    }

    fn release(&self, count: usize) -> Result<(), String> {
        if self.plant == Some(Plant::LeakPermit) {
            return Ok(());
        }
        let left = self.used.get().checked_sub(count).ok_or("a permit is released twice")?;
        self.used.set(left);
        Ok(())
    }
}

/// One pool, and what can be known of it from outside.
struct Side {
    pool: Core<u64, u64>,
    sessions: BTreeMap<u64, Doing>,
    connections: BTreeMap<u64, Opened>,
    /// Who waits, of which worker, in the order in which they came.
    queue: VecDeque<(u64, usize)>,
    /// How often the first of `queue` was passed over.
    passed_over: u32,
}

struct World {
    rng: Rng,
    now: Instant,
    /// Both pools are.
    paused: bool,
    permits: Permits,
    sides: [Side; 2],
    last: u64,
    plant: Option<Plant>,
}

type Outcome = Result<(), String>;

impl World {
    fn new(seed: u64, plant: Option<Plant>, origin: Instant) -> World {
        let mut rng = Rng::new(seed);
        let cap = 1 + usize::try_from(rng.below(8)).expect("small");
        let mut side = || Side {
            pool: Core::new(size(&mut rng)),
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            queue: VecDeque::new(),
            passed_over: 0,
        };
        let sides = [side(), side()];
        World {
            rng,
            paused: false,
            now: origin,
            permits: Permits { cap, used: Cell::new(0), plant },
            sides,
            last: 0,
            plant,
        }
    }

    fn run(&mut self) -> Outcome {
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.rng.below(30));
            let before = self.sides.each_ref().map(Side::open);
            let side = usize::try_from(self.rng.below(2)).expect("small");
            self.step(side)?;
            self.settle()?;
            self.check(before)?;
        }
        self.drain()
    }

    fn step(&mut self, at: usize) -> Outcome {
        match self.rng.below(25) {
            0..=8 => self.arrive(at),
            9..=16 => match self.any_session(at) {
                Some((session, doing)) => self.go_on(at, session, doing),
                None => Ok(()),
            },
            17 | 18 => {
                let broken = self.rng.below(4) == 0;
                let closed = self.sides[at].pool.expire(self.now, |_| !broken);
                self.forget(at, &closed)
            }
            19 => {
                let closed = self.sides[at].pool.renew();
                self.forget(at, &closed)
            }
            20 => {
                let limits = size(&mut self.rng);
                self.sides[at].pool.set_limits(limits);
                Ok(())
            }
            21 => {
                if self.sides[at].pool.warm_up(|| self.permits.take()) {
                    let session = self.fresh();
                    self.sides[at].sessions.insert(session, Doing::Dialling);
                }
                Ok(())
            }
            22 => self.turn(),
            _ => self.demand(at),
        }
    }

    /// PAUSE, or RESUME.
    fn turn(&mut self) -> Outcome {
        self.paused = !self.paused;
        for at in [0, 1] {
            if self.paused {
                let closed = self.sides[at].pool.pause();
                self.forget(at, &closed)?;
            } else {
                self.sides[at].pool.resume();
            }
        }
        Ok(())
    }

    fn any_session(&mut self, at: usize) -> Option<(u64, Doing)> {
        let sessions = &self.sides[at].sessions;
        let count = u64::try_from(sessions.len()).ok().filter(|count| *count > 0)?;
        let nth = usize::try_from(self.rng.below(count)).ok()?;
        sessions.iter().nth(nth).map(|(session, doing)| (*session, *doing))
    }

    fn worker(&mut self) -> usize {
        usize::try_from(self.rng.below(WORKERS)).expect("small")
    }

    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn arrive(&mut self, at: usize) -> Outcome {
        let (session, worker) = (self.fresh(), self.worker());
        let (now, permits) = (self.now, &self.permits);
        let side = &mut self.sides[at];
        match side.pool.checkout(worker, now, |_| false, || permits.take(), || session) {
            Checkout::Idle(connection) => side.lend(session, connection),
            Checkout::Dial => {
                side.sessions.insert(session, Doing::Dialling);
                Ok(())
            }
            Checkout::Wait(ticket) => {
                side.sessions.insert(session, Doing::Waiting { ticket });
                side.queue.push_back((session, worker));
                // What the shell does for who lacks a permit only.
                self.evict_for(at)
            }
        }
    }

    fn evict_for(&mut self, at: usize) -> Outcome {
        if !self.sides[at].pool.wants_permit() {
            return Ok(());
        }
        let evicted = self.sides[1 - at].pool.evict();
        self.forget(1 - at, evicted.as_slice())
    }

    /// Whoever lacks a permit gets one of the other pool's, sooner or later.
    fn demand(&mut self, at: usize) -> Outcome {
        if self.sides[at].pool.wants_permit() && self.sides[1 - at].open() > self.sides[at].open() {
            self.sides[1 - at].pool.owe();
        }
        Ok(())
    }

    fn go_on(&mut self, at: usize, session: u64, doing: Doing) -> Outcome {
        let luck = self.rng.below(4);
        match doing {
            Doing::Waiting { ticket } if luck == 0 => {
                self.sides[at].leave(session);
                self.sides[at].sessions.remove(&session);
                if self.plant != Some(Plant::StayInQueue) {
                    self.sides[at].pool.give_up(ticket);
                }
                Ok(())
            }
            Doing::Waiting { ticket } => {
                let (now, permits) = (self.now, &self.permits);
                let side = &mut self.sides[at];
                if side.pool.take_reserve(ticket, now, || permits.take()) {
                    side.leave(session);
                    side.sessions.insert(session, Doing::Dialling);
                }
                Ok(())
            }
            Doing::Dialling if luck == 0 => {
                self.sides[at].sessions.remove(&session);
                self.close(at)
            }
            Doing::Dialling => {
                let connection = self.fresh();
                let lifetime = Duration::from_millis(1000 + self.rng.below(1000));
                let side = &mut self.sides[at];
                let opened = Opened { generation: side.pool.generation(), expires_at: self.now + lifetime };
                side.connections.insert(connection, opened);
                side.lend(session, connection)
            }
            Doing::Using { connection } if luck == 0 => {
                self.sides[at].sessions.remove(&session);
                self.sides[at].connections.remove(&connection);
                if self.plant == Some(Plant::LeakPlace) { Ok(()) } else { self.close(at) }
            }
            Doing::Using { connection } => {
                if self.plant != Some(Plant::ShareConnection) {
                    self.sides[at].sessions.remove(&session);
                }
                self.put_back(at, connection)
            }
        }
    }

    fn put_back(&mut self, at: usize, connection: u64) -> Outcome {
        let worker = self.worker();
        let side = &mut self.sides[at];
        let Some(opened) = side.connections.get(&connection).copied() else {
            return Err(format!("connection {connection} is closed and comes back"));
        };
        let plant = self.plant == Some(Plant::ForgetGeneration);
        let generation = if plant { side.pool.generation() } else { opened.generation };
        let returned = Returned { worker, generation, expires_at: opened.expires_at };
        let next = side.pool.put_back(connection, returned, self.now);
        self.follow(at, &next, Some(worker))
    }

    fn close(&mut self, at: usize) -> Outcome {
        let next = self.sides[at].pool.closed();
        if next == Next::Nobody {
            self.permits.release(1)?;
        }
        self.follow(at, &next, None)
    }

    /// `worker`: of the connection that came back.
    fn follow(&mut self, at: usize, next: &Next<u64, u64>, worker: Option<usize>) -> Outcome {
        match *next {
            Next::Nobody => Ok(()),
            Next::Serve(session, connection) => {
                self.sides[at].is_next(session, worker, self.plant)?;
                self.sides[at].lend(session, connection)
            }
            Next::Dial(session) => {
                self.sides[at].is_next(session, None, self.plant)?;
                self.sides[at].sessions.insert(session, Doing::Dialling);
                Ok(())
            }
            Next::Close(connection) => {
                self.sides[at].connections.remove(&connection);
                self.close(at)
            }
        }
    }

    /// Idle connections were closed.
    fn forget(&mut self, at: usize, closed: &[u64]) -> Outcome {
        for connection in closed {
            let gone = self.sides[at].connections.remove(connection);
            gone.ok_or_else(|| format!("connection {connection} is closed twice"))?;
        }
        self.permits.release(closed.len())
    }

    /// Room and permits go to who waits for them.
    fn settle(&mut self) -> Outcome {
        if self.plant == Some(Plant::OfferToNobody) {
            return Ok(());
        }
        for at in [0, 1] {
            while let Some(session) = self.sides[at].pool.offer(|| self.permits.take()) {
                self.follow(at, &Next::Dial(session), None)?;
            }
        }
        Ok(())
    }

    fn check(&self, before: [usize; 2]) -> Outcome {
        let open: usize = self.sides.iter().map(Side::open).sum();
        let (used, cap) = (self.permits.used.get(), self.permits.cap);
        if open != used || open > cap {
            return Err(format!("{open} connections with {used} permits of {cap}"));
        }
        for (side, before) in self.sides.iter().zip(before) {
            side.check(before, cap - used)?;
        }
        Ok(())
    }

    /// When nobody comes any more, everybody is served.
    fn drain(&mut self) -> Outcome {
        let count: usize = self.sides.iter().map(|side| side.sessions.len()).sum();
        if self.paused {
            self.turn()?;
            self.settle()?;
        }
        let mut served = BTreeSet::new();
        for _ in 0..count * 4 {
            let before = self.sides.each_ref().map(Side::open);
            for at in [0, 1] {
                self.demand(at)?;
                self.evict_for(at)?;
                self.settle()?;
                let busy = |doing: &Doing| !matches!(doing, Doing::Waiting { .. });
                let first = self.sides[at].sessions.iter().find(|(_, doing)| busy(doing));
                let Some((session, doing)) = first.map(|(session, doing)| (*session, *doing)) else {
                    continue;
                };
                self.sides[at].sessions.remove(&session);
                match doing {
                    Doing::Using { connection } => {
                        served.insert(session);
                        self.put_back(at, connection)?;
                    }
                    _ => self.close(at)?,
                }
                self.settle()?;
            }
            self.check(before)?;
        }
        let left: Vec<_> = self.sides.iter().flat_map(|side| &side.sessions).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("never served: {left:?}")) }
    }
}

impl Side {
    fn open(&self) -> usize {
        self.pool.idle() + self.pool.in_use()
    }

    /// Clean hands: one session at a time, and none of a term that is over.
    fn lend(&mut self, session: u64, connection: u64) -> Outcome {
        let held = |doing: &Doing| *doing == Doing::Using { connection };
        if self.sessions.values().any(held) {
            return Err(format!("connection {connection} is lent twice"));
        }
        let Some(opened) = self.connections.get(&connection) else {
            return Err(format!("connection {connection} is closed and lent"));
        };
        if opened.generation != self.pool.generation() {
            return Err(format!("connection {connection} of an earlier term is lent"));
        }
        self.sessions.insert(session, Doing::Using { connection });
        Ok(())
    }

    fn leave(&mut self, session: u64) {
        if self.queue.front().is_some_and(|(first, _)| *first == session) {
            self.passed_over = 0;
        }
        self.queue.retain(|(waiting, _)| *waiting != session);
    }

    /// In order: the first that waits, or the first of the connection's worker, which may go before it so often.
    fn is_next(&mut self, session: u64, worker: Option<usize>, plant: Option<Plant>) -> Outcome {
        if !matches!(self.sessions.get(&session), Some(Doing::Waiting { .. })) {
            return Err(format!("session {session} is served and does not wait"));
        }
        if plant == Some(Plant::SendToTheEnd) && self.queue.len() > 1 {
            self.queue.rotate_left(1);
        }
        let first = self.queue.front().map(|(first, _)| *first);
        let own = self.queue.iter().find(|(_, of)| Some(*of) == worker).map(|(own, _)| *own);
        if first == Some(session) {
            self.passed_over = 0;
        } else if own == Some(session) && self.passed_over < MAX_PASSED_OVER {
            self.passed_over += 1;
        } else {
            return Err(format!("session {session} is served before its turn: {:?}", self.queue));
        }
        self.queue.retain(|(waiting, _)| *waiting != session);
        Ok(())
    }

    /// Bounded, and nobody waits for nothing.
    fn check(&self, before: usize, permits: usize) -> Outcome {
        let out = self.sessions.values().filter(|doing| !matches!(doing, Doing::Waiting { .. })).count();
        let waiting = self.sessions.len() - out;
        if self.pool.is_paused() && (self.pool.idle() > 0 || self.open() > before) {
            return Err("a paused pool hands out or keeps connections".to_owned());
        }
        let (idle, in_use, limits) = (self.pool.idle(), self.pool.in_use(), self.pool.limits());
        if in_use != out || waiting != self.pool.waiting() {
            return Err(format!(
                "{out} places are used, {waiting} wait; the pool counts {in_use} and {}",
                self.pool.waiting()
            ));
        }
        // A pool that was made smaller may be too large, but does not grow.
        if self.open() > before && self.open() > limits.size + limits.reserve_size {
            return Err(format!("{idle} idle and {in_use} used of {limits:?}"));
        }
        if waiting > 0 && !self.pool.is_paused() && (idle > 0 || (in_use < limits.size && permits > 0)) {
            return Err(format!(
                "{waiting} wait with {idle} idle, {in_use} used, {permits} permits: {limits:?}"
            ));
        }
        Ok(())
    }
}

fn size(rng: &mut Rng) -> PoolSize {
    let mut below = |limit| usize::try_from(rng.below(limit)).expect("small");
    PoolSize {
        size: 1 + below(5),
        min_size: below(3),
        reserve_size: below(3),
        reserve_after: RESERVE_AFTER,
        idle: Duration::from_millis(200),
        lifetime: Duration::from_secs(2),
    }
}

fn run(seed: u64, plant: Option<Plant>) -> Outcome {
    World::new(seed, plant, Instant::now()).run()
}

#[test]
fn no_seed_breaks_the_pool() {
    for seed in 1..=super::number("BELLWETHER_SIM_SEEDS").unwrap_or(SEEDS) {
        assert_eq!(run(seed, None), Ok(()), "seed {seed}");
    }
}

#[test]
fn planted_pool_bugs_are_found() {
    for plant in [
        Plant::LeakPlace,
        Plant::ForgetGeneration,
        Plant::ShareConnection,
        Plant::StayInQueue,
        Plant::LeakPermit,
        Plant::IgnoreCap,
        Plant::OfferToNobody,
        Plant::SendToTheEnd,
    ] {
        let found = (1..=SEEDS).find(|seed| run(*seed, Some(plant)).is_err());
        assert!(found.is_some(), "{plant:?} is not found");
    }
}
