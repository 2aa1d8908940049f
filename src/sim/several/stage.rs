//! What all actors share: time, chance, the network, clocks that run differently, the eyes on everybody.
#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::checks::Checks;
use super::control::ToControl;
use super::etcd::ToEtcd;
use super::faults::Fault;
use super::members::ToMembers;
use super::network::{Host, Network};
use super::planted::Plant;
use super::proxy::ToProxy;
use super::relay::ToRelay;
use super::server::ToServer;
use crate::failover::decide::{Action, Now};
use crate::sim::clock::{Queue, Rng};

pub(super) type NodeId = usize;
pub(super) type InstanceId = usize;
/// Counts the starts of an instance: what was meant for an earlier one is lost.
pub(super) type Life = u64;
/// It is for whichever process is there.
pub(super) const ANY_LIFE: Life = 0;

const TRACE: usize = 300;

#[derive(Clone, Debug)]
pub(super) enum Event {
    Instance {
        of: InstanceId,
        life: Life,
        what: ToInstance,
    },
    Node {
        of: NodeId,
        what: ToServer,
    },
    Etcd(ToEtcd),
    /// The agent of an instance does something to the server beside it; an operator, where there is none.
    Agent {
        by: (InstanceId, Life),
        number: u64,
        action: Action,
    },
    Fault(Fault),
    Mend(Mend),
    /// A client somewhere wants something.
    Client,
    Look,
}

#[derive(Clone, Debug)]
pub(super) enum ToInstance {
    Control(ToControl),
    Members(ToMembers),
    Relay(ToRelay),
    Proxy(ToProxy),
    /// Is still vouched for what it obeys?
    Gate,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mend {
    Cut(u64),
    Instance(InstanceId),
    Resume(Who),
    Disk(InstanceId),
    Etcd,
    Node(NodeId),
}

/// Whose process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Instance(InstanceId),
    Node(NodeId),
}

/// A host's clocks.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// Parts of a million that it goes fast.
    fast: i64,
    /// Of the calendar, in milliseconds.
    off: i64,
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) now: Duration,
    pub(super) queue: Queue<Event>,
    pub(super) rng: Rng,
    pub(super) net: Network,
    pub(super) checks: Checks,
    pub(super) plant: Option<Plant>,
    epoch: Instant,
    clocks: Vec<Clock>,
    trace: VecDeque<String>,
    ids: u64,
}

impl Stage {
    pub(super) fn new(mut rng: Rng, hosts: usize, plant: Option<Plant>, checks: Checks) -> Stage {
        let clocks =
            (0..hosts).map(|_| Clock { fast: rng.between(0, 80_000) as i64 - 40_000, off: 0 }).collect();
        Stage {
            now: Duration::ZERO,
            queue: Queue::new(),
            net: Network::new(hosts),
            rng,
            checks,
            plant,
            epoch: Instant::now() + Duration::from_secs(3600),
            clocks,
            trace: VecDeque::new(),
            ids: 0,
        }
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// What the monotonic clock of a host shows.
    pub(super) fn instant(&self, host: Host) -> Instant {
        let fast = self.clocks[host].fast;
        let micros = self.now.as_micros() as i64;
        self.epoch + Duration::from_micros((micros + micros * fast / 1_000_000) as u64)
    }

    pub(super) fn clock(&self, host: Host) -> Now {
        let millis = 1_700_000_000_000 + self.now.as_millis() as i64 + self.clocks[host].off;
        Now { instant: self.instant(host), unix_ms: millis as u64 }
    }

    pub(super) fn shift_calendar(&mut self, host: Host, millis: i64) {
        self.clocks[host].off += millis;
    }

    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        self.queue.put(self.now + delay, event);
    }

    /// By the clock of the host.
    pub(super) fn timer(&mut self, host: Host, delay: Duration, event: Event) {
        let micros = delay.as_micros() as i64;
        let real = micros - micros * self.clocks[host].fast / 1_000_000;
        self.after(Duration::from_micros(real as u64), event);
    }

    /// Lost when the way is cut.
    pub(super) fn send(&mut self, from: Host, to: Host, event: Event) {
        if let Some(delay) = self.net.delay(from, to, &mut self.rng) {
            self.after(delay, event);
        } else if to == self.net.etcd() && self.rng.percent(40) {
            // What was sent is sent again, by a kernel that knows nothing of who has given it up.
            let late = self.rng.millis(500, 12_000);
            self.after(late, event);
        }
    }

    /// Of servers, whatever they are made ready for.
    pub(super) fn keeps_earlier_streams(&self) -> bool {
        self.plant == Some(Plant::NameWithoutTerm)
    }

    /// For whoever fails: what has happened last.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        let mut line = String::new();
        let _ = write!(line, "{:>10.3} ", self.now.as_secs_f64());
        line.push_str(&what());
        self.trace.push_back(line);
    }

    pub(super) fn trace(&self) -> String {
        self.trace.iter().fold(String::new(), |all, line| all + line + "\n")
    }
}

impl Event {
    /// Whose process has to run for it to happen.
    pub(super) fn who(&self) -> Option<Who> {
        match self {
            Event::Instance { of, .. } => Some(Who::Instance(*of)),
            Event::Node { of, .. } => Some(Who::Node(*of)),
            Event::Agent { by: (of, _), .. } => Some(Who::Instance(*of)),
            Event::Etcd(_) | Event::Fault(_) | Event::Mend(_) | Event::Client | Event::Look => None,
        }
    }
}
