//! The receiver's shell.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::write::{Then, Work};
use super::{Relay, moment, next_message};
use crate::pg::TimelineId;
use crate::relay::parts::{StreamId, receiver};
use crate::sim::bellwether::INSTANCE;
use crate::sim::stage::{ConnId, Side, Stage};
use crate::topology::Term;

const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) conn: ConnId,
    pub(super) id: StreamId,
    pub(super) term: Term,
    pub(super) since: Instant,
    pub(super) heard_at: Instant,
    pub(super) core: receiver::Receiver,
    pub(super) inbox: BytesMut,
    pub(super) streaming: Option<TimelineId>,
    /// For the store.
    pub(super) waiting: bool,
}

impl Relay {
    pub(super) fn stream(&mut self, stage: &mut Stage, conn: ConnId) {
        let Some(following) = self.following.as_ref().filter(|f| f.conn == Some(conn)) else { return };
        self.streams += 1;
        let config = receiver::ReceiverConfig {
            role: receiver::Role::Named,
            term: following.term,
            promised: receiver::Promised::under(&self.directive),
            slot: format!("bellwether_{INSTANCE}").parse().expect("a slot name"),
            durability: self.directive.durability,
            upstream_timeout: UPSTREAM_TIMEOUT,
            ask_after: ASK_AFTER,
            upstream_major: 15,
        };
        let stored = receiver::Stored::of(&self.store);
        let now = stage.instant();
        self.receiver = Some(Receiving {
            conn,
            id: StreamId(self.streams),
            term: following.term,
            since: now,
            heard_at: now,
            core: receiver::Receiver::new(config, stored, moment(stage)),
            inbox: BytesMut::new(),
            streaming: None,
            waiting: false,
        });
        self.pump_receiver(stage);
    }

    /// Carries out what the core wants, then gives it the next message, until it waits for the world.
    pub(super) fn pump_receiver(&mut self, stage: &mut Stage) {
        loop {
            let Some(receiving) = self.receiver.as_mut().filter(|r| !r.waiting) else { return };
            let (conn, term, stream) = (receiving.conn, receiving.term, receiving.id);
            match receiving.core.poll_output() {
                Some(receiver::Output::Send(bytes)) => stage.send(conn, Side::Server, bytes),
                Some(receiver::Output::Append { at, bytes, verified }) => {
                    self.order(stage, Work::Append { stream, term, at, bytes, verified });
                }
                Some(receiver::Output::Change(change)) => {
                    receiving.waiting = true;
                    self.order(stage, Work::Change { change, then: Then::Changed(conn) });
                }
                Some(receiver::Output::Streaming { timeline, from }) => {
                    receiving.streaming = Some(timeline);
                    stage.note(format!("the relay streams timeline {timeline} from {from}"));
                }
                Some(receiver::Output::LeftBehind { timeline, switchpoint, verified }) => {
                    stage.note(format!("left behind on timeline {timeline}: {switchpoint} to {verified}"));
                }
                Some(receiver::Output::End(how)) => {
                    stage.close(conn, Side::Bellwether);
                    return self.ended(stage, how);
                }
                None => {
                    let Some((tag, payload)) = next_message(&mut receiving.inbox) else { return };
                    receiving.core.handle(moment(stage), receiver::Input::Message { tag, payload });
                }
            }
        }
    }
}
