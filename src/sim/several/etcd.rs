//! etcd as a value: one leader by lease, and the state, written by a transaction that compares. It is asked by messages
//! that may be lost, and answers by such.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::ToControl;
use super::planted::Plant;
use super::stage::{ANY_LIFE, Event, InstanceId, Life, Stage, ToInstance};
use crate::failover::decide::State;

pub(super) const LEASE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub(super) enum ToEtcd {
    Tick,
    /// Keeps the lease, or gets one. Then it wants to lead, if nobody does.
    Beat {
        by: (InstanceId, Life),
        sent: Instant,
        campaigns: Campaigns,
    },
    Put {
        by: (InstanceId, Life),
        number: u64,
        fence: u64,
        expected: Option<u64>,
        state: Arc<State>,
    },
    Resign {
        by: (InstanceId, Life),
        fence: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Campaigns {
    Yes,
    /// It has resigned.
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaderKey {
    pub(super) of: (InstanceId, Life),
    /// The revision of its creation.
    pub(super) fence: u64,
}

/// All that it holds, at one revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) revision: u64,
    pub(super) leader: Option<LeaderKey>,
    pub(super) state: Option<(u64, Arc<State>)>,
}

#[derive(Debug)]
pub(super) struct Etcd {
    runs: bool,
    pub(super) holds: Snapshot,
    /// By its own clock.
    leases: BTreeMap<(InstanceId, Life), Instant>,
    instances: usize,
}

impl Etcd {
    pub(super) fn new(stage: &mut Stage, instances: usize) -> Etcd {
        stage.after(TICK, Event::Etcd(ToEtcd::Tick));
        Etcd { runs: true, holds: Snapshot::default(), leases: BTreeMap::new(), instances }
    }

    pub(super) fn leader(&self) -> Option<InstanceId> {
        self.holds.leader.map(|key| key.of.0)
    }

    pub(super) fn stop(&mut self) {
        self.runs = false;
    }

    /// Leases begin anew: who kept one could not tell.
    pub(super) fn start(&mut self, stage: &Stage) {
        let now = stage.instant(stage.net.etcd());
        if !std::mem::replace(&mut self.runs, true) {
            self.leases.values_mut().for_each(|until| *until = now + LEASE);
        }
    }

    pub(super) fn handle(&mut self, stage: &mut Stage, what: ToEtcd) {
        if let ToEtcd::Tick = what {
            stage.after(TICK, Event::Etcd(ToEtcd::Tick));
        }
        if !self.runs {
            return;
        }
        let now = stage.instant(stage.net.etcd());
        match what {
            ToEtcd::Tick => self.expire(stage, now),
            ToEtcd::Beat { by, sent, campaigns } => {
                self.leases.insert(by, now + LEASE);
                if self.holds.leader.is_none() && campaigns == Campaigns::Yes {
                    self.holds.revision += 1;
                    self.holds.leader = Some(LeaderKey { of: by, fence: self.holds.revision });
                    stage.note(|| format!("bw{} leads", by.0 + 1));
                    self.tell_all(stage);
                }
                self.answer(stage, by, ToControl::Beaten { sent, seen: self.holds.clone() });
            }
            ToEtcd::Put { by, number, fence, expected, state } => {
                let revision = self.put(stage, fence, expected, state);
                self.answer(stage, by, ToControl::Put { number, revision });
            }
            ToEtcd::Resign { by, fence } => {
                if self.holds.leader == Some(LeaderKey { of: by, fence }) {
                    self.holds.leader = None;
                    self.holds.revision += 1;
                    self.tell_all(stage);
                }
            }
        }
    }

    /// `None`: compared, and refused.
    fn put(
        &mut self,
        stage: &mut Stage,
        fence: u64,
        expected: Option<u64>,
        state: Arc<State>,
    ) -> Option<u64> {
        let leads = self.holds.leader.is_some_and(|key| key.fence == fence);
        let found = self.holds.state.as_ref().map(|(revision, _)| *revision);
        if stage.plant != Some(Plant::PutWithoutCompare) {
            if !leads {
                return None;
            }
            if found != expected {
                // An earlier request that got no answer may have been the one that wrote it.
                let ours = self.holds.state.as_ref().filter(|(at, found)| *at > fence && **found == *state);
                return ours.map(|(revision, _)| *revision);
            }
        }
        self.holds.revision += 1;
        stage.checks.journaled(&state);
        self.holds.state = Some((self.holds.revision, state));
        self.tell_all(stage);
        Some(self.holds.revision)
    }

    fn expire(&mut self, stage: &mut Stage, now: Instant) {
        self.leases.retain(|_, until| now < *until);
        if self.holds.leader.is_some_and(|key| !self.leases.contains_key(&key.of)) {
            stage.note(|| "the leader's lease is over".to_owned());
            self.holds.leader = None;
            self.holds.revision += 1;
            self.tell_all(stage);
        }
    }

    /// Whoever watches, as far as it is reached.
    fn tell_all(&self, stage: &mut Stage) {
        for instance in 0..self.instances {
            self.answer(stage, (instance, ANY_LIFE), ToControl::Seen(self.holds.clone()));
        }
    }

    fn answer(&self, stage: &mut Stage, (of, life): (InstanceId, Life), what: ToControl) {
        let event = Event::Instance { of, life, what: ToInstance::Control(what) };
        stage.send(stage.net.etcd(), of, event);
    }
}
