//! One pool under sessions that come, wait, give up, break and come back, across workers, while terms change.
//!
//! The production bookkeeping (`proxy::pool::core`) with a shell of this file's own. Connections and sessions are
//! numbers here; what the shell of the proxy does with them (dial, move, wake) is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::clock::Rng;
use crate::proxy::parts::pool::{Checkout, Core, Limits, Next};

const SEEDS: u64 = 300;
const STEPS: usize = 400;
const WORKERS: u64 = 3;

/// What a session does with the pool now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Waiting { ticket: u64 },
    Dialling,
    Using { connection: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Opened {
    generation: u64,
    at: Instant,
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
}

struct World {
    rng: Rng,
    now: Instant,
    size: usize,
    pool: Core<u64, u64>,
    sessions: BTreeMap<u64, Doing>,
    connections: BTreeMap<u64, Opened>,
    last: u64,
    plant: Option<Plant>,
}

impl World {
    fn new(seed: u64, plant: Option<Plant>, origin: Instant) -> World {
        let mut rng = Rng::new(seed);
        let size = 1 + usize::try_from(rng.below(5)).expect("small");
        let limits = Limits { size, idle: Duration::from_millis(200), lifetime: Duration::from_secs(2) };
        World {
            rng,
            now: origin,
            size,
            pool: Core::new(limits),
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            last: 0,
            plant,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.rng.below(30));
            self.step()?;
            self.check()?;
        }
        self.drain()
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(20) {
            0..=8 => self.arrive(),
            9..=16 => match self.any_session() {
                Some((session, doing)) => self.go_on(session, doing),
                None => Ok(()),
            },
            17 | 18 => {
                for connection in self.pool.expire(self.now) {
                    self.forget(connection)?;
                }
                Ok(())
            }
            _ => {
                for connection in self.pool.renew() {
                    self.forget(connection)?;
                }
                Ok(())
            }
        }
    }

    fn any_session(&mut self) -> Option<(u64, Doing)> {
        let count = u64::try_from(self.sessions.len()).ok().filter(|count| *count > 0)?;
        let nth = usize::try_from(self.rng.below(count)).ok()?;
        self.sessions.iter().nth(nth).map(|(session, doing)| (*session, *doing))
    }

    fn worker(&mut self) -> usize {
        usize::try_from(self.rng.below(WORKERS)).expect("small")
    }

    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn arrive(&mut self) -> Result<(), String> {
        let (session, worker) = (self.fresh(), self.worker());
        match self.pool.checkout(worker, self.now, || session) {
            Checkout::Idle(connection) => self.lend(session, connection),
            Checkout::Dial => {
                self.sessions.insert(session, Doing::Dialling);
                Ok(())
            }
            Checkout::Wait(ticket) => {
                self.sessions.insert(session, Doing::Waiting { ticket });
                Ok(())
            }
        }
    }

    /// Clean hands: one session at a time, and none of a term that is over.
    fn lend(&mut self, session: u64, connection: u64) -> Result<(), String> {
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

    fn go_on(&mut self, session: u64, doing: Doing) -> Result<(), String> {
        let luck = self.rng.below(4);
        match doing {
            Doing::Waiting { ticket } if luck == 0 => {
                self.sessions.remove(&session);
                if self.plant != Some(Plant::StayInQueue) {
                    self.pool.give_up(ticket);
                }
                Ok(())
            }
            Doing::Waiting { .. } => Ok(()),
            Doing::Dialling if luck == 0 => {
                self.sessions.remove(&session);
                self.close()
            }
            Doing::Dialling => {
                let connection = self.fresh();
                let opened = Opened { generation: self.pool.generation(), at: self.now };
                self.connections.insert(connection, opened);
                self.lend(session, connection)
            }
            Doing::Using { connection } if luck == 0 => {
                self.sessions.remove(&session);
                self.connections.remove(&connection);
                if self.plant == Some(Plant::LeakPlace) { Ok(()) } else { self.close() }
            }
            Doing::Using { connection } => {
                if self.plant != Some(Plant::ShareConnection) {
                    self.sessions.remove(&session);
                }
                self.put_back(connection)
            }
        }
    }

    fn put_back(&mut self, connection: u64) -> Result<(), String> {
        let Some(opened) = self.connections.get(&connection).copied() else {
            return Err(format!("connection {connection} is closed and comes back"));
        };
        let plant = self.plant == Some(Plant::ForgetGeneration);
        let generation = if plant { self.pool.generation() } else { opened.generation };
        let worker = self.worker();
        let next = self.pool.put_back(connection, worker, generation, opened.at, self.now);
        self.follow(&next)
    }

    fn close(&mut self) -> Result<(), String> {
        let next = self.pool.closed();
        self.follow(&next)
    }

    fn follow(&mut self, next: &Next<u64, u64>) -> Result<(), String> {
        match *next {
            Next::Nobody => Ok(()),
            Next::Serve(session, connection) => {
                self.was_waiting(session)?;
                self.lend(session, connection)
            }
            Next::Dial(session) => {
                self.was_waiting(session)?;
                self.sessions.insert(session, Doing::Dialling);
                Ok(())
            }
            Next::Close(connection) => {
                self.connections.remove(&connection);
                self.close()
            }
        }
    }

    fn was_waiting(&self, session: u64) -> Result<(), String> {
        match self.sessions.get(&session) {
            Some(Doing::Waiting { .. }) => Ok(()),
            other => Err(format!("session {session} is served and does not wait: {other:?}")),
        }
    }

    fn forget(&mut self, connection: u64) -> Result<(), String> {
        let gone = self.connections.remove(&connection);
        gone.map(|_| ()).ok_or_else(|| format!("connection {connection} is closed twice"))
    }

    /// Bounded, and nobody waits for nothing.
    fn check(&self) -> Result<(), String> {
        let out = self.sessions.values().filter(|doing| !matches!(doing, Doing::Waiting { .. })).count();
        let waiting = self.sessions.len() - out;
        let (idle, in_use) = (self.pool.idle(), self.pool.in_use());
        if in_use != out {
            return Err(format!("{out} places are used, the pool counts {in_use}"));
        }
        if idle + in_use > self.size {
            return Err(format!("{idle} idle and {in_use} used of {}", self.size));
        }
        if waiting > 0 && (idle > 0 || in_use < self.size) {
            return Err(format!("{waiting} wait with {idle} idle and {in_use} used of {}", self.size));
        }
        Ok(())
    }

    /// When nobody comes any more, everybody is served.
    fn drain(&mut self) -> Result<(), String> {
        let mut served = BTreeSet::new();
        for _ in 0..self.sessions.len() * 3 {
            let busy = self.sessions.iter().find(|(_, doing)| !matches!(doing, Doing::Waiting { .. }));
            let Some((session, doing)) = busy.map(|(session, doing)| (*session, *doing)) else { break };
            match doing {
                Doing::Using { connection } => {
                    served.insert(session);
                    self.sessions.remove(&session);
                    self.put_back(connection)?;
                }
                _ => {
                    self.sessions.remove(&session);
                    self.close()?;
                }
            }
            self.check()?;
        }
        if self.sessions.is_empty() { Ok(()) } else { Err(format!("never served: {:?}", self.sessions)) }
    }
}

fn run(seed: u64, plant: Option<Plant>) -> Result<(), String> {
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
    for plant in [Plant::LeakPlace, Plant::ForgetGeneration, Plant::ShareConnection, Plant::StayInQueue] {
        let found = (1..=SEEDS).find(|seed| run(*seed, Some(plant)).is_err());
        assert!(found.is_some(), "{plant:?} is not found");
    }
}
