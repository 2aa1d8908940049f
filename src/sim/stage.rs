//! What all actors share: time, chance, the network between them, the eyes on them.
#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::clock::{Queue, Rng};
use super::faults::Fault;
use super::invariants::Checks;
use super::planted::Plant;
use super::postgres::Waiter;
use crate::failover::decide::{Action, Finding};
use crate::failover::health::ProbeResult;
use crate::pg::{Lsn, PgTimestamp};

/// Of a server in the world.
pub(super) type NodeId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnId(u64);

/// Every connection is one between Bellwether and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Bellwether,
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The relay's, to the primary.
    Upstream,
    /// A standby's, to the relay.
    Follower,
}

/// What happens. `life` numbers the starts of Bellwether: what was meant for an earlier one is lost.
#[derive(Debug)]
pub(super) enum Event {
    Tick,
    Deliver {
        conn: ConnId,
        to: Side,
        bytes: Bytes,
    },
    Closed {
        conn: ConnId,
        to: Side,
    },
    Fault(Fault),
    /// The node may be reached again.
    Heal {
        node: NodeId,
    },
    // Servers.
    Flush {
        node: NodeId,
        starts: u32,
        upto: Lsn,
    },
    Started {
        node: NodeId,
        starts: u32,
    },
    Follow {
        node: NodeId,
        starts: u32,
    },
    Execute {
        life: u64,
        node: NodeId,
        waiter: Waiter,
    },
    Act {
        life: u64,
        action: Action,
    },
    // Bellwether.
    Restart,
    Probe {
        life: u64,
        node: NodeId,
    },
    Probed {
        life: u64,
        node: NodeId,
        result: ProbeResult,
    },
    Acted {
        life: u64,
        action: Action,
        result: Option<Finding>,
    },
    Answered {
        life: u64,
        node: NodeId,
        starts: u32,
        waiter: Waiter,
    },
    Obey {
        life: u64,
    },
    ProxyObeys {
        life: u64,
    },
    Dialed {
        life: u64,
        attempt: u64,
        node: NodeId,
    },
    Redial {
        life: u64,
        attempt: u64,
    },
    Write {
        life: u64,
    },
    Sync {
        life: u64,
    },
    Tail {
        life: u64,
    },
    Client {
        life: u64,
    },
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) node: NodeId,
    pub(super) purpose: Purpose,
    /// When the last byte for each side arrives: nothing overtakes it.
    arrival: [Duration; 2],
}

/// How the network is in this world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// The longest delay of a message, in microseconds.
    pub(super) delay: u64,
    /// Bytes that arrive at once at most.
    pub(super) chunk: u64,
    /// The longest sync, in microseconds.
    pub(super) sync: u64,
}

#[derive(Debug)]
pub(super) struct Stage {
    base: Instant,
    pub(super) now: Duration,
    pub(super) queue: Queue<Event>,
    pub(super) rng: Rng,
    pub(super) weather: Weather,
    pub(super) conns: BTreeMap<ConnId, Conn>,
    last_conn: u64,
    /// Nothing passes between Bellwether and the node before this.
    cut_off: BTreeMap<NodeId, Duration>,
    pub(super) checks: Checks,
    pub(super) plant: Option<Plant>,
    trace: VecDeque<String>,
}

impl Stage {
    /// Lines that are kept for the one who has to understand a failure.
    const TRACE: usize = 120;

    pub(super) fn new(seed: u64, plant: Option<Plant>) -> Stage {
        let mut rng = Rng::new(seed);
        let weather = Weather {
            delay: [200, 2_000, 30_000][rng.below(3) as usize],
            chunk: [100, 5_000, 200_000][rng.below(3) as usize],
            sync: [500, 5_000, 80_000][rng.below(3) as usize],
        };
        Stage {
            base: Instant::now(),
            now: Duration::ZERO,
            queue: Queue::new(),
            rng,
            weather,
            conns: BTreeMap::new(),
            last_conn: 0,
            cut_off: BTreeMap::new(),
            checks: Checks::default(),
            plant,
            trace: VecDeque::new(),
        }
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + self.now
    }

    pub(super) fn timestamp(&self) -> PgTimestamp {
        PgTimestamp(i64::try_from(self.now.as_micros()).expect("minutes"))
    }

    /// Of a calendar that began when the world did.
    pub(super) fn unix_ms(&self) -> u64 {
        1_000_000 + u64::try_from(self.now.as_millis()).expect("minutes")
    }

    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        self.queue.put(self.now + delay, event);
    }

    /// After the time a message takes.
    pub(super) fn soon(&mut self, event: Event) {
        let delay = self.delay();
        self.after(delay, event);
    }

    pub(super) fn delay(&mut self) -> Duration {
        let longest = self.weather.delay;
        self.rng.micros(50, 50 + longest)
    }

    pub(super) fn sync_time(&mut self) -> Duration {
        let longest = self.weather.sync;
        self.rng.micros(50, 50 + longest)
    }

    pub(super) fn note(&mut self, line: impl AsRef<str>) {
        let again = |known: &String| known.ends_with(line.as_ref());
        if self.trace.iter().rev().take(3).any(again) {
            return;
        }
        if self.trace.len() == Stage::TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>11.6} {}", self.now.as_secs_f64(), line.as_ref()));
    }

    pub(super) fn trace(&self) -> String {
        self.trace.iter().fold(String::new(), |mut text, line| {
            writeln!(text, "  {line}").expect("a string takes all");
            text
        })
    }

    // The network.

    pub(super) fn connect(&mut self, node: NodeId, purpose: Purpose) -> ConnId {
        self.last_conn += 1;
        let id = ConnId(self.last_conn);
        self.conns.insert(id, Conn { node, purpose, arrival: [self.now; 2] });
        id
    }

    /// In pieces, in order.
    pub(super) fn send(&mut self, conn: ConnId, to: Side, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let chunk = self.weather.chunk.max(bytes.len() as u64 / 16);
            let length = usize::try_from(self.rng.between(1, chunk)).expect("small").min(bytes.len());
            let piece = bytes.split_to(length);
            let Some(at) = self.arrival(conn, to) else { return };
            self.queue.put(at, Event::Deliver { conn, to, bytes: piece });
        }
    }

    /// One side closes it: the other still gets what was sent before.
    pub(super) fn close(&mut self, conn: ConnId, by: Side) {
        let to = other(by);
        if let Some(at) = self.arrival(conn, to) {
            self.queue.put(at, Event::Closed { conn, to });
        }
    }

    /// What is under way is lost, and both sides learn of it.
    pub(super) fn cut(&mut self, conn: ConnId) {
        if self.conns.remove(&conn).is_some() {
            for to in [Side::Bellwether, Side::Server] {
                self.soon(Event::Closed { conn, to });
            }
        }
    }

    pub(super) fn cut_all(&mut self, of: impl Fn(&Conn) -> bool) {
        let conns: Vec<ConnId> = self.conns.iter().filter(|(_, conn)| of(conn)).map(|(id, _)| *id).collect();
        for conn in conns {
            self.cut(conn);
        }
    }

    pub(super) fn isolate(&mut self, node: NodeId, until: Duration) {
        let known = self.cut_off.entry(node).or_default();
        *known = until.max(*known);
        let until = *known;
        self.queue.put(until, Event::Heal { node });
    }

    /// Until when nothing passes to and from the node.
    pub(super) fn isolated(&self, node: NodeId) -> Option<Duration> {
        self.cut_off.get(&node).copied().filter(|until| self.now < *until)
    }

    fn arrival(&mut self, conn: ConnId, to: Side) -> Option<Duration> {
        let delay = self.delay();
        let conn = self.conns.get_mut(&conn)?;
        let at = (self.now + delay).max(conn.arrival[to as usize]);
        conn.arrival[to as usize] = at;
        Some(at)
    }
}

pub(super) fn other(side: Side) -> Side {
    match side {
        Side::Bellwether => Side::Server,
        Side::Server => Side::Bellwether,
    }
}
