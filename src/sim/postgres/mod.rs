//! An honest, simple PostgreSQL: a log, what of it is flushed, a walsender, a walreceiver, synchronous commit,
//! promotion, crash and recovery. It has no tables; a client's transaction is a record with a token.

mod receiver;
mod sender;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use self::receiver::Walreceiver;
use self::sender::Walsender;
use super::log::{Kind, Log};
use super::planted::Plant;
use super::stage::{ConnId, Event, NodeId, Purpose, Side, Stage};
use crate::failover::decide::{Action, Finding, Promoted, StartAs, SyncNames};
use crate::failover::health::{Facts, ProbeResult, SlotState};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::wal::History;
use crate::pg::wal::build::SYSTEM;
use crate::pg::{Lsn, SqlState, TimelineId};
use crate::topology::{Node, Role};

/// After it the agent does not wait any longer.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Stopped,
    /// Recovers; answers 57P03.
    Starting,
    Running,
}

/// Who waits for a commit.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Waiter {
    Client { token: u64, epoch: u64 },
    Marker { action: Action },
}

#[derive(Debug)]
struct Waiting {
    lsn: Lsn,
    life: u64,
    waiter: Waiter,
}

/// A fast shutdown under way: nobody writes any more, its checkpoint is in the control file, and walsenders stay until they
/// are heard to have sent all.
#[derive(Debug)]
struct Stopping {
    checkpoint: Lsn,
    /// Who waits for its end, and until when: an agent that did not see it begin.
    agent: Option<(u64, Action)>,
    until: Duration,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: NodeId,
    pub(super) node: Node,
    pub(super) life: Life,
    /// As its files say.
    pub(super) role: Role,
    pub(super) starts: u32,
    pub(super) log: Log,
    /// <= the log's end; survives a crash.
    pub(super) flushed: Lsn,
    /// Everything before is visible to clients, whoever waited for it: recovery brought it back.
    pub(super) recovered: Lsn,
    histories: BTreeMap<TimelineId, Bytes>,
    names: String,
    /// Where the relay's slot holds WAL.
    slot: Option<Lsn>,
    checkpoint: TimelineId,
    stopping: Option<Stopping>,
    /// Where the checkpoint of its shutdown begins, while it is shut down in order.
    shut_down: Option<Lsn>,
    waiting: Vec<Waiting>,
    senders: BTreeMap<ConnId, Walsender>,
    receiver: Option<(ConnId, Walreceiver)>,
}

impl Server {
    pub(super) fn new(id: NodeId, node: Node, role: Role, log: Log) -> Server {
        Server {
            id,
            node,
            life: Life::Running,
            role,
            starts: 1,
            flushed: log.end(),
            recovered: log.end(),
            log,
            histories: BTreeMap::new(),
            names: String::new(),
            slot: None,
            checkpoint: TimelineId(1),
            stopping: None,
            shut_down: None,
            waiting: Vec::new(),
            senders: BTreeMap::new(),
            receiver: None,
        }
    }

    pub(super) fn runs_as(&self, role: Role) -> bool {
        self.life == Life::Running && self.role == role
    }

    pub(super) fn history(&self) -> History {
        let timeline = self.log.timeline;
        match self.histories.get(&timeline) {
            Some(content) => History::parse(timeline, content).expect("written by a model server"),
            None => History::without_ancestors(timeline),
        }
    }

    // Life and death.

    /// The process is gone; with the host, also what was not flushed, or any part of it.
    pub(super) fn crash(&mut self, stage: &mut Stage) {
        let unflushed = self.log.end().bytes_since(self.flushed);
        let kept = match stage.rng.below(3) {
            0 => 0,
            1 => unflushed,
            _ => stage.rng.between(0, unflushed),
        };
        stage.note(format!("{} crashes, keeps {kept} of {unflushed} unflushed bytes", self.node.name));
        self.log.truncate(self.flushed.advanced(kept));
        self.gone(stage);
    }

    /// A fast shutdown: everything is flushed first.
    fn stop(&mut self, stage: &mut Stage) {
        self.flushed = self.log.end();
        self.gone(stage);
    }

    fn gone(&mut self, stage: &mut Stage) {
        self.end();
        let id = self.id;
        stage.cut_all(|conn| conn.node == id);
    }

    fn end(&mut self) {
        self.life = Life::Stopped;
        self.stopping = None;
        self.waiting.clear();
        self.senders.clear();
        self.receiver = None;
    }

    pub(super) fn start(&mut self, stage: &mut Stage) {
        if self.life != Life::Stopped {
            return;
        }
        stage.note(format!("{} starts as {:?}", self.node.name, self.role));
        self.life = Life::Starting;
        self.shut_down = None;
        self.starts += 1;
        let delay = stage.rng.millis(20, 1500);
        stage.after(delay, Event::Started { node: self.id, starts: self.starts });
    }

    pub(super) fn started(&mut self, stage: &mut Stage) {
        match self.role {
            Role::Primary => self.log.recover(),
            // A standby's replay ends with the last whole record; it asks for the rest again.
            Role::Standby => self.log.truncate(self.log.whole()),
        }
        self.flushed = self.log.end();
        self.recovered = self.flushed;
        self.life = Life::Running;
        stage.note(format!("{} runs as {:?} up to {}", self.node.name, self.role, self.flushed));
        if self.role == Role::Standby {
            self.follow_soon(stage);
        }
    }

    // What clients and the control plane do.

    pub(super) fn execute(&mut self, stage: &mut Stage, life: u64, waiter: Waiter) {
        if !self.runs_as(Role::Primary) || self.stopping.is_some() {
            // 57P03, 25006, or nobody listens.
            return;
        }
        let filler = match stage.rng.below(30) {
            0 => stage.rng.between(0, 60_000),
            1..5 => stage.rng.between(0, 9_000),
            _ => stage.rng.between(0, 300),
        };
        let kind = match &waiter {
            Waiter::Client { token, .. } => Kind::Token(*token),
            Waiter::Marker { .. } => Kind::Marker,
        };
        let begin = self.log.end();
        let lsn = self.log.append(kind, usize::try_from(filler).expect("small"));
        self.waiting.push(Waiting { lsn, life, waiter });
        // The WAL writer flushes whole pages when it comes by, whatever record they end in.
        let page = Lsn(lsn.0 / 8192 * 8192);
        if begin < page && stage.rng.percent(50) {
            let delay = stage.rng.micros(10, 100);
            stage.after(delay, Event::Flush { node: self.id, starts: self.starts, upto: page });
        }
        let delay = stage.sync_time();
        stage.after(delay, Event::Flush { node: self.id, starts: self.starts, upto: lsn });
    }

    pub(super) fn flush(&mut self, stage: &mut Stage, upto: Lsn) {
        self.flushed = self.flushed.max(upto.min(self.log.end()));
        if self.role == Role::Standby {
            return self.report(stage);
        }
        self.send_wal(stage);
        self.release(stage);
    }

    /// Ends the wait of commits that are flushed here and at the synchronous standby (`SyncRepReleaseWaiters`).
    fn release(&mut self, stage: &mut Stage) {
        let synced = if self.names.is_empty() {
            self.flushed
        } else {
            let named = |s: &&Walsender| self.names == format!("\"{}\"", s.application_name);
            let flush = self.senders.values().filter(named).filter_map(Walsender::confirmed).max();
            self.flushed.min(flush.unwrap_or(Lsn::INVALID))
        };
        let (done, waiting) = self.waiting.drain(..).partition(|w| w.lsn <= synced);
        self.waiting = waiting;
        for Waiting { life, waiter, .. } in Vec::from_iter::<Vec<Waiting>>(done) {
            stage.soon(Event::Answered { life, node: self.id, starts: self.starts, waiter });
        }
    }

    pub(super) fn prepare(&mut self, stage: &mut Stage, names: &SyncNames) -> Option<Finding> {
        if self.life != Life::Running {
            return None;
        }
        if self.slot.is_none() || self.role == Role::Standby {
            self.slot = Some(self.flushed);
        }
        if !names.fits(&self.names) {
            self.names = names.setting();
            self.release(stage);
        }
        Some(Finding::Prepared { end: self.flushed })
    }

    pub(super) fn promote(&mut self, stage: &mut Stage, from: TimelineId) -> Option<Finding> {
        if self.life != Life::Running {
            return None;
        }
        if self.role == Role::Standby {
            if let Some((conn, _)) = self.receiver.take() {
                stage.close(conn, Side::Server);
            }
            let old = self.log.timeline;
            let newest = self.histories.keys().last().copied().unwrap_or(old).max(old);
            let timeline = TimelineId(newest.0 + 1);
            let switchpoint = self.log.promote(timeline);
            let mut content = self.histories.get(&old).map_or(Vec::new(), |content| content.to_vec());
            content.extend(format!("{old}\t{switchpoint}\tno recovery target specified\n\n").bytes());
            self.histories.insert(timeline, content.into());
            self.role = Role::Primary;
            self.flushed = self.log.end();
            self.recovered = self.flushed;
            stage.note(format!("{} promoted: timeline {timeline} from {switchpoint}", self.node.name));
        }
        self.inspect(from)
    }

    pub(super) fn inspect(&self, from: TimelineId) -> Option<Finding> {
        if self.life != Life::Running {
            return None;
        }
        Some(Finding::Promoted(Promoted {
            system: SYSTEM,
            timeline: self.log.timeline,
            switchpoint: self.history().switchpoint(from),
        }))
    }

    pub(super) fn checkpoint(&mut self) -> Option<Finding> {
        (self.life == Life::Running).then(|| self.checkpoint = self.log.timeline)?;
        Some(Finding::Done)
    }

    pub(super) fn drop_slot(&mut self) -> Option<Finding> {
        if self.runs_as(Role::Standby) {
            self.slot = None;
        }
        Some(Finding::Done)
    }

    pub(super) fn agent_stops(&mut self, stage: &mut Stage) -> Option<Finding> {
        if self.life != Life::Stopped {
            self.stop(stage);
        }
        Some(Finding::Done)
    }

    /// Its end is told to `life` when it is there.
    pub(super) fn agent_shuts_down(&mut self, stage: &mut Stage, life: u64, action: Action) {
        let unseen = stage.plant == Some(Plant::BelieveShutdown);
        let told = match (&mut self.stopping, self.life) {
            (Some(stopping), _) => {
                stopping.agent = Some((life, action));
                return;
            }
            (None, Life::Running) if self.role == Role::Primary => {
                let checkpoint = self.log.end();
                self.waiting.clear();
                self.log.append(Kind::ShutdownCheckpoint, 90);
                self.flushed = self.log.end();
                stage.note(format!("{} shuts down at {checkpoint}", self.node.name));
                let until = stage.now + SHUTDOWN_LIMIT;
                self.stopping = Some(Stopping { checkpoint, agent: None, until });
                self.send_wal(stage);
                self.shut_down_further(stage);
                Some(if unseen { Lsn(1) } else { checkpoint })
            }
            _ => self.shut_down.filter(|_| self.life == Life::Stopped),
        };
        let result = told.map(|checkpoint| Finding::ShutDown { checkpoint });
        stage.soon(Event::Acted { life, action, result });
    }

    /// `WalSndDone`: each walsender leaves when its client has confirmed everything.
    fn shut_down_further(&mut self, stage: &mut Stage) {
        let Some(stopping) = &self.stopping else { return };
        let waits =
            self.senders.values().any(|s| s.streams() && s.confirmed().is_none_or(|at| at < self.flushed));
        if waits && stage.now < stopping.until {
            return;
        }
        let (checkpoint, agent) = (stopping.checkpoint, stopping.agent.clone());
        let tell = |stage: &mut Stage, result| {
            if let Some((life, action)) = agent {
                stage.soon(Event::Acted { life, action, result });
            }
        };
        if waits {
            // The agent gives up; the server does not.
            return tell(stage, None);
        }
        tell(stage, Some(Finding::ShutDown { checkpoint }));
        self.say_goodbye(stage);
        self.end();
        self.shut_down = Some(checkpoint);
    }

    pub(super) fn last_word(&mut self) -> Option<Finding> {
        if !self.runs_as(Role::Primary) {
            return None;
        }
        self.log.append(Kind::Marker, 16);
        self.flushed = self.log.end();
        Some(Finding::Committed { lsn: self.flushed })
    }

    pub(super) fn agent_starts(&mut self, stage: &mut Stage, role: StartAs) -> Option<Finding> {
        // The agent refuses to start a former primary as a standby.
        if role == StartAs::Standby && self.role == Role::Primary {
            return None;
        }
        self.start(stage);
        Some(Finding::Done)
    }

    /// The walreceiver starts anew and says nothing to the relay.
    pub(super) fn reconnect(&mut self, stage: &mut Stage) {
        if self.runs_as(Role::Standby) && self.receiver.take().is_some() {
            self.follow_soon(stage);
        }
    }

    /// As the agent plans it: a standby is started, a former primary is rewound.
    pub(super) fn rejoin(&mut self, stage: &mut Stage, source: Option<&Server>) -> Option<Finding> {
        let source = source.filter(|s| s.runs_as(Role::Primary) && s.checkpoint == s.log.timeline)?;
        if self.life != Life::Stopped {
            self.stop(stage);
        }
        if self.role == Role::Primary {
            stage.note(format!("{} is rewound to {}", self.node.name, source.node.name));
            self.copy(source);
        }
        self.start(stage);
        Some(Finding::Done)
    }

    /// A base backup in any case.
    pub(super) fn rebuild(&mut self, stage: &mut Stage, source: Option<&Server>) -> Option<Finding> {
        let source = source.filter(|s| s.runs_as(Role::Primary))?;
        if self.life != Life::Stopped {
            self.stop(stage);
        }
        stage.note(format!("{} is rebuilt from {}", self.node.name, source.node.name));
        self.copy(source);
        self.start(stage);
        Some(Finding::Done)
    }

    /// Up to what the source has flushed, which may be more than the relay has.
    fn copy(&mut self, source: &Server) {
        self.log = source.log.clone();
        self.log.truncate(source.flushed);
        self.flushed = self.log.end();
        self.histories = source.histories.clone();
        self.checkpoint = source.checkpoint;
        self.role = Role::Standby;
        self.names.clear();
        self.slot = None;
    }

    pub(super) fn locate(&self) -> Option<Finding> {
        let replayed = self.log.whole().min(self.flushed);
        self.runs_as(Role::Standby).then_some(Finding::Located { timeline: self.log.timeline, replayed })
    }

    pub(super) fn probe(&self) -> ProbeResult {
        match self.life {
            Life::Stopped => ProbeResult::Refused,
            Life::Starting => ProbeResult::Rejected {
                code: SqlState::CANNOT_CONNECT_NOW,
                message: "the database system is starting up".to_owned(),
            },
            Life::Running if self.stopping.is_some() => ProbeResult::Rejected {
                code: SqlState::CANNOT_CONNECT_NOW,
                message: "the database system is shutting down".to_owned(),
            },
            Life::Running => ProbeResult::Answered(Facts {
                role: self.role,
                system: SYSTEM,
                timeline: self.log.timeline,
                position: match self.role {
                    Role::Primary => self.flushed,
                    Role::Standby => self.log.whole().min(self.flushed),
                },
                received: match self.role {
                    Role::Primary => Lsn::INVALID,
                    Role::Standby => self.flushed,
                },
                started_at: self.starts.to_string(),
                server_version: "15.1".to_owned(),
                synchronous_standby_names: self.names.clone(),
                checkpoint_timeline: self.checkpoint,
                relay_slot: match self.slot {
                    None => SlotState::Absent,
                    Some(_) if self.senders.is_empty() => SlotState::Inactive,
                    Some(_) => SlotState::Active,
                },
                stalled_since: None,
            }),
        }
    }

    // Connections.

    pub(super) fn accept(&mut self, conn: ConnId, application_name: String) {
        self.senders.insert(conn, Walsender::new(application_name));
    }

    fn follow_soon(&mut self, stage: &mut Stage) {
        let delay = stage.rng.millis(50, 800);
        stage.after(delay, Event::Follow { node: self.id, starts: self.starts });
    }

    /// The walreceiver has a connection.
    pub(super) fn connected(&mut self, conn: ConnId, now: Duration) {
        self.receiver = Some((conn, Walreceiver::new(now)));
    }

    /// Whether its walreceiver should connect now.
    pub(super) fn wants_upstream(&self) -> bool {
        self.runs_as(Role::Standby) && self.receiver.is_none()
    }

    pub(super) fn closed(&mut self, stage: &mut Stage, conn: ConnId) {
        self.senders.remove(&conn);
        if self.receiver.as_ref().is_some_and(|(own, _)| *own == conn) {
            self.receiver = None;
            self.follow_soon(stage);
        }
    }

    pub(super) fn received(&mut self, stage: &mut Stage, conn: ConnId, purpose: Purpose, bytes: &[u8]) {
        match purpose {
            Purpose::Upstream => self.sender_received(stage, conn, bytes),
            Purpose::Follower => self.receiver_received(stage, conn, bytes),
        }
    }

    pub(super) fn tick(&mut self, stage: &mut Stage) {
        if self.life == Life::Running {
            self.tick_senders(stage);
            self.shut_down_further(stage);
            self.tick_receiver(stage);
        }
    }
}

/// The next whole message.
fn next_message(inbox: &mut BytesMut) -> Option<(u8, Bytes)> {
    let header = Header::peek(inbox).expect("Bellwether sends good lengths")?;
    if inbox.len() < header.total {
        return None;
    }
    Some((header.tag, inbox.split_to(header.total).freeze().slice(HEADER_LEN..)))
}
