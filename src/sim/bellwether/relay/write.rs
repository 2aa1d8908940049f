//! The store's writer: what it is told, in order, and who hears of what it did.

use bytes::Bytes;

use super::Relay;
use super::moment;
use crate::pg::Lsn;
use crate::relay::parts::{Change, RestartPoint, StreamId, receiver};
use crate::sim::planted::Plant;
use crate::sim::stage::{ConnId, Event, Stage};
use crate::topology::Term;

/// A command for the store's writer.
#[derive(Debug)]
pub(super) enum Work {
    Append { stream: StreamId, term: Term, at: Lsn, bytes: Bytes, verified: Option<Lsn> },
    Change { change: Change, then: Then },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// Look at the directive again.
    Steer,
    /// Begin to stream on the connection.
    Stream(ConnId),
    /// Tell the receiver.
    Changed(ConnId),
}

impl Relay {
    pub(super) fn order(&mut self, stage: &mut Stage, work: Work) {
        self.work.push_back(work);
        if !self.writing {
            self.writing = true;
            let delay = stage.rng.micros(5, 200);
            stage.after(delay, Event::Write { life: self.life });
        }
    }

    /// A group: everything that was handed over meanwhile, or less.
    pub(in crate::sim) fn write(&mut self, stage: &mut Stage) {
        let group = stage.rng.between(1, 20);
        for _ in 0..group {
            let Some(work) = self.work.pop_front() else { break };
            match work {
                Work::Append { stream, term, at, bytes, verified } => {
                    stage.checks.taken(term);
                    if stage.plant == Some(Plant::ShipBeforeSync) {
                        self.leak.borrow_mut().push((at, bytes.clone()));
                    }
                    self.disk.append(stage, (stream, at), &bytes, verified);
                }
                Work::Change { change, then } => self.change(stage, change, then),
            }
        }
        let unsynced = self.store.report().borrow().tail.durable;
        if let Some(receiving) = &mut self.receiver
            && stage.plant == Some(Plant::AcknowledgeBeforeSync)
        {
            let written = receiving.core.received().max(unsynced);
            let input = receiver::Input::Agreed { lsn: written, whole: written };
            receiving.core.handle(moment(stage), input);
            self.pump_receiver(stage);
        }
        self.tail_soon(stage);
        let sync = stage.sync_time();
        stage.after(sync, Event::Sync { life: self.life });
    }

    pub(in crate::sim) fn sync(&mut self, stage: &mut Stage) {
        self.disk.sync(stage);
        self.tail_soon(stage);
        self.writing = !self.work.is_empty();
        if self.writing {
            stage.soon(Event::Write { life: self.life });
        }
    }

    pub(super) fn change(&mut self, stage: &mut Stage, change: Change, then: Then) {
        let promise = if let Change::Promise(term) = &change { Some(*term) } else { None };
        let result = self.disk.change(stage, change);
        if let Some(term) = promise {
            stage.checks.promised(term);
        }
        self.tail_soon(stage);
        match then {
            Then::Nothing => {}
            Then::Steer => {
                self.promising = false;
                self.steer(stage);
            }
            Then::Stream(conn) => self.stream(stage, conn),
            Then::Changed(conn) => {
                let Some(receiving) = self.receiver.as_mut().filter(|r| r.conn == conn) else { return };
                receiving.waiting = false;
                receiving.core.handle(moment(stage), receiver::Input::Changed(result));
                self.pump_receiver(stage);
            }
        }
    }

    pub(super) fn tail_soon(&mut self, stage: &mut Stage) {
        let delay = stage.rng.micros(1, 100);
        stage.after(delay, Event::Tail { life: self.life });
    }

    /// The durable end may have moved: its watchers look.
    pub(in crate::sim) fn tail_moved(&mut self, stage: &mut Stage) {
        self.ensure_slots();
        let report = self.store.report().borrow().clone();
        if let Some(receiving) = self.receiver.as_mut().filter(|r| !r.waiting) {
            let now = moment(stage);
            if let Some((_, error)) = report.refused.as_ref().filter(|(id, _)| *id == receiving.id) {
                receiving.core.handle(now, receiver::Input::Unfit(error.clone()));
            }
            let agreed = report.agreed_with(receiving.id);
            if let Some(lsn) = agreed.filter(|_| Some(report.tail.timeline) == receiving.streaming) {
                receiving.core.handle(now, receiver::Input::Agreed { lsn, whole: report.verified });
            }
            self.pump_receiver(stage);
        }
        if stage.plant == Some(Plant::SkipCatchUp) && stage.rng.percent(90) {
            return;
        }
        let conns: Vec<ConnId> = self.senders.keys().copied().collect();
        for conn in conns {
            self.give_tail(stage, conn);
            self.pump_sender(stage, conn);
        }
    }

    pub(super) fn ensure_slots(&mut self) {
        let tail = self.store.report().borrow().tail;
        if tail.durable.is_valid() {
            for node in &self.nodes {
                let restart = RestartPoint { timeline: tail.timeline, lsn: tail.durable };
                self.slots.ensure(&node.name.slot(), Some(restart));
            }
        }
    }
}
