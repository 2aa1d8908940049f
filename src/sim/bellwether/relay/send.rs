//! The senders' shells, and the store as they see it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Leak, Relay, moment, next_message};
use crate::pg::wal::{History, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::relay::parts::{CheckedReader, FollowerKind, SenderConfig, Store, sender};
use crate::sim::planted::Plant;
use crate::sim::stage::{ConnId, NodeId, Side, Stage};

#[derive(Debug)]
pub(super) struct Sending {
    pub(super) pid: u32,
    pub(super) core: sender::Walsender<Source>,
    pub(super) inbox: BytesMut,
}

impl Relay {
    pub(in crate::sim) fn accept(&mut self, stage: &mut Stage, conn: ConnId, node: NodeId) {
        let application_name = self.nodes[node].name.to_string();
        let pid = self.followers.register(application_name.clone(), FollowerKind::Standby, stage.instant());
        let peer = sender::Peer { application_name, user: "sim".into(), pid, secret: 1 };
        let config = SenderConfig { wal_sender_timeout: Duration::from_secs(10) };
        let source = Source { store: self.store.clone(), leak: self.leak.clone() };
        let slots = self.slots.clone();
        let core = sender::Walsender::new(&peer, config, source, slots, self.tail(), moment(stage));
        self.senders.insert(conn, Sending { pid, core, inbox: BytesMut::new() });
        self.pump_sender(stage, conn);
    }

    pub(super) fn give_tail(&mut self, stage: &mut Stage, conn: ConnId) {
        let mut tail = self.tail();
        if stage.plant == Some(Plant::ShipBeforeSync)
            && let Some((at, bytes)) = self.leak.borrow().last()
        {
            tail.durable = tail.durable.max(at.advanced(bytes.len() as u64));
        }
        let Some(sending) = self.senders.get_mut(&conn) else { return };
        sending.core.handle(moment(stage), sender::Input::Tail(tail));
    }

    pub(super) fn pump_sender(&mut self, stage: &mut Stage, conn: ConnId) {
        let mut unwritten = false;
        loop {
            let Some(sending) = self.senders.get_mut(&conn) else { return };
            let now = moment(stage);
            match sending.core.poll_output() {
                Some(sender::Output::Send(bytes)) => {
                    unwritten = true;
                    stage.send(conn, Side::Server, bytes);
                }
                Some(sender::Output::SendWal { header, wal }) => {
                    unwritten = true;
                    stage.send(conn, Side::Server, header);
                    let wal = spoiled(stage, wal);
                    stage.send(conn, Side::Server, wal);
                }
                Some(sender::Output::Read { timeline, from, max }) => {
                    let mut files = CheckedReader::new(self.store.clone(), timeline);
                    let read = self.runtime.block_on(files.read(from, max));
                    let result = read.map_err(|_| sender::ReadFailure::Failed);
                    sending.core.handle(now, sender::Input::Read { from, result });
                }
                Some(sender::Output::SaveSlots) => {
                    let saved = self.slots.save().map_err(|_| sender::SlotsNotSaved::Failed);
                    sending.core.handle(now, sender::Input::SlotsSaved(saved));
                }
                Some(sender::Output::Report(progress)) => self.followers.update(sending.pid, progress),
                Some(sender::Output::Heard) => self.followers.heard(sending.pid, stage.instant()),
                Some(sender::Output::Feedback(xmins)) => self.followers.feedback(sending.pid, xmins),
                // Nobody here takes base backups.
                Some(sender::Output::PassOn(_)) => {}
                Some(sender::Output::Close(_)) => {
                    stage.close(conn, Side::Bellwether);
                    return self.forget_sender(conn);
                }
                None if unwritten => {
                    unwritten = false;
                    sending.core.handle(now, sender::Input::AllWritten);
                }
                None => {
                    if !sending.core.takes_messages() {
                        return;
                    }
                    let Some((tag, payload)) = next_message(&mut sending.inbox) else { return };
                    self.give_tail(stage, conn);
                    let Some(sending) = self.senders.get_mut(&conn) else { return };
                    sending.core.handle(now, sender::Input::Message { tag, payload: &payload });
                }
            }
        }
    }

    pub(super) fn forget_sender(&mut self, conn: ConnId) {
        if let Some(sending) = self.senders.remove(&conn) {
            self.slots.release_all(sending.pid);
            self.followers.unregister(sending.pid);
        }
    }
}

/// The store as walsenders see it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) store: Store,
    pub(super) leak: Leak,
}

impl sender::WalSource for Source {
    fn system(&self) -> Option<SystemIdentifier> {
        self.store.system()
    }

    fn segment_size(&self) -> WalSegmentSize {
        self.store.segment_size()
    }

    fn history_file(&self, timeline: TimelineId) -> Option<Bytes> {
        self.store.history_file(timeline)
    }

    fn history(&self) -> Arc<History> {
        self.store.history()
    }

    fn oldest(&self, timeline: TimelineId) -> Option<Lsn> {
        self.store.oldest(timeline)
    }

    fn recent(&self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        let leaked = |(at, bytes): &(Lsn, Bytes)| {
            let offset = usize::try_from(from.0.checked_sub(at.0)?).ok()?;
            bytes.get(offset..).filter(|rest| !rest.is_empty())?;
            Some(bytes.slice(offset..bytes.len().min(offset + max)))
        };
        self.store.recent(timeline, from, max).or_else(|| self.leak.borrow().iter().find_map(leaked))
    }

    fn server_parameters(&self) -> Arc<Vec<(String, String)>> {
        self.store.server_parameters()
    }
}

fn spoiled(stage: &mut Stage, wal: Bytes) -> Bytes {
    if stage.plant != Some(Plant::FlipBit) || !stage.rng.percent(5) {
        return wal;
    }
    let mut spoiled = wal.to_vec();
    let at = usize::try_from(stage.rng.below(spoiled.len() as u64)).expect("small");
    spoiled[at] ^= 1;
    spoiled.into()
}
