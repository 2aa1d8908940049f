//! What an instance knows of etcd, and who may decide: the simulation's part of `failover::journal`, without waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::etcd::{Campaigns, LEASE, LeaderKey, Snapshot, ToEtcd};
use super::stage::{Event, InstanceId, Life, Stage};
use crate::failover::decide::State;

#[derive(Debug)]
pub(super) struct Journal {
    of: (InstanceId, Life),
    seen: Snapshot,
    /// The lease is certainly there until then.
    until: Option<Instant>,
    /// The revision of the state that was last taken up, or written.
    pub(super) known: Option<u64>,
    held: Option<u64>,
    behind: Option<(u64, Option<u64>)>,
    /// Given up, whatever etcd says yet.
    resigned: Option<u64>,
    campaigns_from: Option<Instant>,
}

#[derive(Debug)]
pub(super) enum News {
    Lead(Option<Arc<State>>),
    Follow(Option<Arc<State>>),
}

impl Journal {
    pub(super) fn new(of: (InstanceId, Life)) -> Journal {
        Journal {
            of,
            seen: Snapshot::default(),
            until: None,
            known: None,
            held: None,
            behind: None,
            resigned: None,
            campaigns_from: None,
        }
    }

    pub(super) fn beat(&self, stage: &mut Stage) {
        // Until its key is gone: the word of it may have been lost.
        if let Some(LeaderKey { fence, .. }) = self.seen.leader.filter(|key| Some(key.fence) == self.resigned)
        {
            stage.send(self.of.0, stage.net.etcd(), Event::Etcd(ToEtcd::Resign { by: self.of, fence }));
        }
        let now = stage.instant(self.of.0);
        let campaigns =
            if self.campaigns_from.is_some_and(|from| now < from) { Campaigns::No } else { Campaigns::Yes };
        let beat = ToEtcd::Beat { by: self.of, sent: now, campaigns };
        stage.send(self.of.0, stage.net.etcd(), Event::Etcd(beat));
    }

    pub(super) fn beaten(&mut self, sent: Instant, seen: Snapshot) {
        self.until = self.until.max(Some(sent + LEASE - LEASE / 10));
        self.see(seen);
    }

    /// Never goes back.
    pub(super) fn see(&mut self, seen: Snapshot) {
        if seen.revision >= self.seen.revision {
            self.seen = seen;
        }
    }

    fn own(&self, now: Instant) -> Option<u64> {
        let key = self
            .seen
            .leader
            .filter(|LeaderKey { of, fence }| *of == self.of && Some(*fence) != self.resigned);
        key.filter(|_| self.until.is_some_and(|until| now < until)).map(|key| key.fence)
    }

    pub(super) fn holds(&self, now: Instant) -> bool {
        self.held.is_some() && self.own(now) == self.held
    }

    /// `None`: nothing may be written.
    pub(super) fn put(&self, stage: &mut Stage, number: u64, state: Arc<State>) -> Option<()> {
        let put = ToEtcd::Put { by: self.of, number, fence: self.held?, expected: self.known, state };
        stage.send(self.of.0, stage.net.etcd(), Event::Etcd(put));
        Some(())
    }

    pub(super) fn written(&mut self, revision: u64, state: Arc<State>) {
        self.known = Some(revision);
        if self.seen.state.as_ref().is_none_or(|(seen, _)| *seen < revision) {
            self.seen.state = Some((revision, state));
        }
    }

    pub(super) fn refused(&mut self) {
        self.behind = self.held.take().map(|fence| (fence, self.known));
    }

    pub(super) fn not_known(&mut self) {
        (self.held, self.behind) = (None, None);
    }

    pub(super) fn resign(&mut self, stage: &mut Stage) {
        let Some(fence) = self.held else { return };
        let now = stage.instant(self.of.0);
        (self.resigned, self.campaigns_from) = (Some(fence), Some(now + 2 * LEASE));
        stage.send(self.of.0, stage.net.etcd(), Event::Etcd(ToEtcd::Resign { by: self.of, fence }));
    }

    /// `None`: all is as it was. The state that comes with it is to be kept on disk first.
    pub(super) fn news(&mut self, now: Instant) -> Option<News> {
        let seen = self.seen.state.clone();
        let revision = seen.as_ref().map(|(revision, _)| *revision);
        let state = seen.map(|(_, state)| state);
        let newer = state.clone().filter(|_| revision > self.known);
        let fence = self.own(now);
        if fence.is_some() && fence == self.held && newer.is_none() {
            return None;
        }
        let is_behind = |fence: u64| self.behind.is_some_and(|(of, at)| of == fence && revision <= at);
        if let Some(fence) = fence.filter(|fence| !is_behind(*fence)) {
            (self.held, self.known) = (Some(fence), revision.max(self.known));
            return Some(News::Lead(state));
        }
        let was_leading = self.held.take().is_some();
        if newer.is_none() && !was_leading {
            return None;
        }
        self.known = revision.max(self.known);
        Some(News::Follow(newer))
    }
}

/// Between two beats.
pub(super) const BEAT: Duration = Duration::from_secs(1);
