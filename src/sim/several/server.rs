//! A PostgreSQL server as far as WAL goes: it writes, waits for relays, is streamed from, follows, is promoted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::control::ToControl;
use super::log::{End, Log, Offer, lsn};
use super::planted::Plant;
use super::proxy::{Reply, ToProxy};
use super::relay::ToRelay;
use super::stage::{ANY_LIFE, Event, InstanceId, Life, NodeId, Stage, ToInstance};
use crate::failover::decide::{Action, Finding, Promoted, SyncNames, What};
use crate::failover::health::{Facts, ProbeResult, SlotState};
use crate::pg::{SqlState, SystemIdentifier, TimelineId};
use crate::topology::{NodeName, Role, Term, relay_application_name, term_named};

pub(super) const SYSTEM: SystemIdentifier = SystemIdentifier(7);
/// Between two questions of a standby for more.
const FOLLOW: Duration = Duration::from_millis(25);
/// A relay that does not answer for so long is not asked again for now.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A walsender that hears nothing for so long is gone.
const WALSENDER_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that shuts down waits for its walsenders, in this model no longer than this.
const SHUTDOWN: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    Dead,
    /// 57P03.
    Starting,
    Runs,
    /// Until its walsenders have sent everything.
    Stopping {
        until: Duration,
    },
}

#[derive(Clone, Debug)]
pub(super) enum ToServer {
    Probe {
        by: (InstanceId, Life),
        number: u64,
    },
    Act {
        by: (InstanceId, Life),
        number: u64,
        action: Action,
    },
    /// Of a relay, for what comes behind `end`.
    Pull {
        by: (InstanceId, Life),
        stream: u64,
        term: Term,
        end: End,
    },
    /// What a relay has on disk.
    Acknowledge {
        starts: u64,
        by: InstanceId,
        term: Term,
        len: usize,
    },
    Execute {
        by: (InstanceId, Life),
        session: u64,
        starts: Option<u64>,
        what: Statement,
    },
    Started {
        starts: u64,
    },
    Follow {
        starts: u64,
    },
    /// Of a relay, to a standby.
    Offered {
        starts: u64,
        by: InstanceId,
        from: End,
        offer: Offer,
        known: TimelineId,
    },
    Stopping {
        starts: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Statement {
    Read,
    /// Is the connection still there?
    Ping,
    Commit {
        token: u64,
    },
}

/// Whose commit waits.
#[derive(Clone, Debug)]
enum Waiter {
    Session { by: (InstanceId, Life), session: u64, token: u64 },
    Action { by: (InstanceId, Life), number: u64, action: Action, since: Duration },
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: NodeId,
    pub(super) name: NodeName,
    pub(super) run: Run,
    /// What its files say.
    pub(super) role: Role,
    pub(super) starts: u64,
    pub(super) log: Log,
    /// What readers see of it.
    visible: usize,
    /// The highest timeline that it has a history of.
    known: TimelineId,
    checkpoint: TimelineId,
    names: Names,
    slot: SlotState,
    shut_down: Option<usize>,
    /// What each relay has said of its disk, in which name, and when it was last heard.
    walsenders: BTreeMap<InstanceId, (Term, usize, Duration)>,
    waiting: Vec<(usize, Waiter)>,
    /// Copied from a primary, with WAL that no relay may have yet.
    pub(super) copied: usize,
    /// Which relay it asks, and since when that has not answered.
    source: (usize, Duration),
    relays: Vec<InstanceId>,
    /// Its relay has something else where it has WAL.
    pub(super) is_diverged: bool,
}

#[derive(Clone, Debug, Default)]
struct Names {
    setting: String,
    any: Option<(usize, Vec<String>)>,
}

impl Server {
    pub(super) fn new(id: NodeId, name: NodeName, role: Role, log: Log, instances: usize) -> Server {
        let own = (id < instances).then_some(id);
        let relays = own.into_iter().chain((0..instances).filter(|i| Some(*i) != own)).collect();
        Server {
            id,
            name,
            run: Run::Runs,
            role,
            starts: 1,
            visible: log.len(),
            known: log.timeline,
            checkpoint: log.timeline,
            log,
            names: Names::default(),
            slot: SlotState::Absent,
            shut_down: None,
            walsenders: BTreeMap::new(),
            waiting: Vec::new(),
            copied: 0,
            source: (0, Duration::ZERO),
            relays,
            is_diverged: false,
        }
    }

    pub(super) fn is_primary(&self) -> bool {
        self.run == Run::Runs && self.role == Role::Primary
    }

    fn writes(&mut self, stage: &mut Stage) -> usize {
        let entry = stage.next_id();
        self.log.entries.push(entry);
        self.log.len()
    }

    // Processes.

    /// What was written was flushed.
    pub(super) fn crash(&mut self, stage: &mut Stage) {
        stage.note(|| format!("{} is dead, {:?}", self.name, self.log.end()));
        self.run = Run::Dead;
        self.waiting.clear();
        self.walsenders.clear();
    }

    pub(super) fn start(&mut self, stage: &mut Stage) {
        if self.run != Run::Dead {
            return;
        }
        self.starts += 1;
        self.run = Run::Starting;
        self.shut_down = None;
        let recovery = stage.rng.millis(100, 900);
        stage.after(recovery, Event::Node { of: self.id, what: ToServer::Started { starts: self.starts } });
    }

    /// A standby whose files are these.
    pub(super) fn becomes_standby(&mut self, stage: &mut Stage, log: Log) {
        self.run = Run::Dead;
        self.role = Role::Standby;
        self.is_diverged = false;
        (self.copied, self.known, self.checkpoint) = (log.len(), log.timeline, log.timeline);
        self.log = log;
        self.names = Names::default();
        self.slot = SlotState::Absent;
        self.start(stage);
    }

    pub(super) fn handle(&mut self, stage: &mut Stage, what: ToServer) {
        match what {
            ToServer::Probe { by, number } => self.probed(stage, by, number),
            ToServer::Act { by, number, action } => self.act(stage, by, number, action),
            ToServer::Pull { by, stream, term, end } => self.pulled(stage, by, stream, term, end),
            ToServer::Acknowledge { starts, by, term, len } if starts == self.starts => {
                let walsender = self.walsenders.entry(by).or_insert((term, 0, stage.now));
                if walsender.0 <= term {
                    let before = if walsender.0 == term { walsender.1 } else { 0 };
                    *walsender = (term, len.max(before), stage.now);
                }
                self.release(stage);
            }
            ToServer::Execute { by, session, starts, what } => self.execute(stage, by, session, starts, what),
            ToServer::Started { starts } if starts == self.starts && self.run == Run::Starting => {
                self.run = Run::Runs;
                // Recovery shows all.
                self.visible = self.log.len();
                self.follow_soon(stage);
                stage.note(|| format!("{} runs as {:?}, {:?}", self.name, self.role, self.log.end()));
            }
            ToServer::Follow { starts } if starts == self.starts => self.follow(stage),
            ToServer::Offered { starts, by, from, offer, known }
                if starts == self.starts && from == self.log.end() =>
            {
                self.offered(stage, by, offer, known);
            }
            ToServer::Stopping { starts } if starts == self.starts => self.stopping(stage),
            ToServer::Acknowledge { .. }
            | ToServer::Started { .. }
            | ToServer::Follow { .. }
            | ToServer::Offered { .. }
            | ToServer::Stopping { .. } => {}
        }
    }

    // Of others.

    fn probed(&mut self, stage: &mut Stage, (of, life): (InstanceId, Life), number: u64) {
        let not_now =
            || ProbeResult::Rejected { code: SqlState::CANNOT_CONNECT_NOW, message: "not now".to_owned() };
        let result = match self.run {
            Run::Dead => ProbeResult::Refused,
            Run::Starting | Run::Stopping { .. } => not_now(),
            Run::Runs => ProbeResult::Answered(self.facts()),
        };
        let what = ToControl::Probed { node: self.id, number, result };
        stage.send(self.id, of, Event::Instance { of, life, what: ToInstance::Control(what) });
    }

    fn facts(&self) -> Facts {
        Facts {
            role: self.role,
            system: SYSTEM,
            timeline: self.log.timeline,
            position: self.log.lsn(),
            received: self.log.lsn(),
            started_at: self.starts.to_string(),
            server_version: "15.1".to_owned(),
            synchronous_standby_names: self.names.setting.clone(),
            checkpoint_timeline: self.checkpoint,
            relay_slot: self.slot,
            stalled_since: None,
        }
    }

    fn act(&mut self, stage: &mut Stage, by: (InstanceId, Life), number: u64, action: Action) {
        if self.run != Run::Runs {
            return self.answer(stage, by, number, action, None);
        }
        let result = match &action.what {
            What::Prepare { names } => {
                self.prepare(names);
                if !stage.keeps_earlier_streams() {
                    self.walsenders.retain(|_, (term, ..)| *term >= action.term);
                }
                self.release(stage);
                Some(Finding::Prepared { end: self.log.lsn() })
            }
            What::Promote { from } => Some(self.promote(stage, *from)),
            What::Inspect { from } => (self.role == Role::Primary).then(|| self.inspect(*from)),
            What::Marker if self.role == Role::Primary => {
                let len = self.writes(stage);
                let since = stage.now;
                self.waiting.push((len, Waiter::Action { by, number, action, since }));
                return self.release(stage);
            }
            What::LastWord if self.role == Role::Primary => {
                Some(Finding::Committed { lsn: lsn(self.writes(stage)) })
            }
            What::Marker | What::LastWord => None,
            What::Checkpoint => {
                self.checkpoint = self.log.timeline;
                Some(Finding::Done)
            }
            What::DropSlot => {
                self.slot = SlotState::Absent;
                Some(Finding::Done)
            }
            What::Locate => Some(Finding::Located { timeline: self.log.timeline, replayed: self.log.lsn() }),
            What::Advise { .. }
            | What::Start { .. }
            | What::Stop
            | What::StopStandby
            | What::ShutDown
            | What::Rejoin { .. }
            | What::Rebuild { .. } => None,
        };
        self.answer(stage, by, number, action, result);
    }

    fn answer(
        &self,
        stage: &mut Stage,
        (of, life): (InstanceId, Life),
        number: u64,
        action: Action,
        result: Option<Finding>,
    ) {
        let what = ToInstance::Control(ToControl::Acted { number, action, result });
        stage.send(self.id, of, Event::Instance { of, life, what });
    }

    fn prepare(&mut self, names: &SyncNames) {
        self.slot = SlotState::Inactive;
        if names.fits(&self.names.setting) {
            return;
        }
        let any = match names {
            SyncNames::Any { acks, relays } => Some((*acks, relays.clone())),
            SyncNames::Relay(name) => Some((1, vec![name.clone()])),
            SyncNames::NotOurs { .. } => None,
        };
        self.names = Names { setting: names.setting(), any };
    }

    fn promote(&mut self, stage: &mut Stage, from: TimelineId) -> Finding {
        if self.role == Role::Standby {
            self.known = self.known.max(self.log.timeline);
            self.known = TimelineId(self.known.0 + 1);
            self.log.follow(self.known, self.log.len());
            self.role = Role::Primary;
            self.writes(stage);
            self.visible = self.log.len();
            stage.note(|| format!("{} is promoted, {:?}", self.name, self.log.end()));
        }
        self.inspect(from)
    }

    fn inspect(&self, from: TimelineId) -> Finding {
        Finding::Promoted(Promoted {
            system: SYSTEM,
            timeline: self.log.timeline,
            switchpoint: self.log.fork_of(from).map(lsn),
        })
    }

    fn pulled(
        &mut self,
        stage: &mut Stage,
        (of, life): (InstanceId, Life),
        stream: u64,
        term: Term,
        end: End,
    ) {
        // A relay that finds the names of a later term asks no further; a stream of an earlier one was ended (`prepare`).
        let is_late = !stage.keeps_earlier_streams()
            && term_named(&self.names.setting).is_some_and(|named| named > term);
        let runs = matches!(self.run, Run::Runs | Run::Stopping { .. }) && self.role == Role::Primary;
        let serves = runs && !is_late;
        let what = if serves {
            let walsender = self.walsenders.entry(of).or_insert((term, 0, stage.now));
            match walsender.0 == term {
                true => walsender.2 = stage.now,
                false => *walsender = (term, 0, stage.now),
            }
            let offer = self.log.offer(end);
            ToRelay::Offered { stream, starts: Some(self.starts), from: end, offer, end: self.log.end() }
        } else {
            ToRelay::NotServed { stream }
        };
        stage.send(self.id, of, Event::Instance { of, life, what: ToInstance::Relay(what) });
    }

    // Commits.

    fn execute(
        &mut self,
        stage: &mut Stage,
        by: (InstanceId, Life),
        session: u64,
        starts: Option<u64>,
        what: Statement,
    ) {
        let is_same = starts.is_none_or(|starts| starts == self.starts);
        if self.run != Run::Runs || !is_same {
            return self.reply(stage, by, session, Reply::Broken);
        }
        match what {
            Statement::Read => {
                let seen = self.log.up_to(self.visible).end();
                let reply = Reply::Read { starts: self.starts, timeline: self.log.timeline, seen };
                self.reply(stage, by, session, reply);
            }
            Statement::Ping => {}
            Statement::Commit { .. } if self.role == Role::Standby => {
                self.reply(stage, by, session, Reply::ReadOnly);
            }
            Statement::Commit { token } => {
                self.log.entries.push(token);
                stage.checks.wrote(self.log.end());
                self.waiting.push((self.log.len(), Waiter::Session { by, session, token }));
                self.release(stage);
            }
        }
    }

    fn reply(&self, stage: &mut Stage, (of, life): (InstanceId, Life), session: u64, reply: Reply) {
        let what = ToInstance::Proxy(ToProxy::Replied { session, reply });
        stage.send(self.id, of, Event::Instance { of, life, what });
    }

    /// Up to where enough of those that are named have it.
    fn acknowledged(&self, stage: &Stage) -> usize {
        let Some((acks, names)) = &self.names.any else { return self.log.len() };
        let is_named = |instance: &InstanceId, term: Term| match stage.plant {
            Some(Plant::NameWithoutTerm) => true,
            _ => names.contains(&relay_application_name(&instance_name(*instance), term)),
        };
        let mut ends: Vec<usize> = self
            .walsenders
            .iter()
            .filter(|(of, (term, ..))| is_named(of, *term))
            .map(|(_, (_, len, _))| *len)
            .collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(acks - 1).copied().unwrap_or(0)
    }

    fn release(&mut self, stage: &mut Stage) {
        let acknowledged = self.acknowledged(stage);
        let (done, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(len, _)| *len <= acknowledged);
        self.waiting = waiting;
        let done: Vec<(usize, Waiter)> = done;
        for (len, waiter) in done {
            self.visible = self.visible.max(len);
            if let Some((acks, names)) = &self.names.any {
                // Whatever the name was under which it was said.
                let instances =
                    names.iter().filter_map(|name| name.split('_').nth(1)).map(str::to_owned).collect();
                stage.checks.released.push((self.log.up_to(len).end(), *acks, instances));
            }
            match waiter {
                Waiter::Session { by, session, token } => {
                    self.reply(stage, by, session, Reply::Committed { token });
                }
                // Given up in vain already, or the cancel came first.
                Waiter::Action { by, number, action, since }
                    if stage.now < since + Duration::from_secs(2) =>
                {
                    let finding = Finding::Committed { lsn: self.log.lsn() };
                    self.answer(stage, by, number, action, Some(finding));
                }
                Waiter::Action { .. } => {}
            }
        }
    }

    // Shutdown in order.

    /// As soon as it is in the control file; `None`: whoever did not see it begin waits until it is down.
    pub(super) fn shut_down(&mut self, stage: &mut Stage) -> Option<usize> {
        match self.run {
            Run::Dead => return self.shut_down,
            Run::Stopping { .. } => return None,
            Run::Starting | Run::Runs => {}
        }
        let was_running = self.run == Run::Runs;
        self.writes(stage);
        self.waiting.clear();
        self.run = Run::Stopping { until: stage.now + SHUTDOWN };
        let starts = self.starts;
        stage.after(
            Duration::from_millis(5),
            Event::Node { of: self.id, what: ToServer::Stopping { starts } },
        );
        was_running.then(|| self.log.len() - 1)
    }

    fn stopping(&mut self, stage: &mut Stage) {
        let Run::Stopping { until } = self.run else { return };
        let len = self.log.len();
        let is_gone = |heard: Duration| heard + WALSENDER_TIMEOUT < stage.now;
        if self.walsenders.values().all(|(_, acknowledged, heard)| *acknowledged >= len || is_gone(*heard)) {
            self.shut_down = Some(len - 1);
            return self.crash(stage);
        }
        if until < stage.now {
            // Nobody's shutdown takes for ever: it is killed.
            return self.crash(stage);
        }
        let starts = self.starts;
        stage.after(
            Duration::from_millis(5),
            Event::Node { of: self.id, what: ToServer::Stopping { starts } },
        );
    }

    // A standby.

    pub(super) fn follow_soon(&self, stage: &mut Stage) {
        let pause = FOLLOW + stage.rng.micros(0, 5000);
        stage.after(pause, Event::Node { of: self.id, what: ToServer::Follow { starts: self.starts } });
    }

    fn follow(&mut self, stage: &mut Stage) {
        if self.run != Run::Runs || self.role != Role::Standby {
            return;
        }
        self.follow_soon(stage);
        let (index, since) = self.source;
        if stage.now > since + PATIENCE {
            self.source = ((index + 1) % self.relays.len(), stage.now);
        }
        let of = self.relays[self.source.0];
        let what = ToRelay::Followed { by: self.id, starts: self.starts, end: self.log.end() };
        // Whichever life the instance has: it is a connection to its port.
        stage.send(self.id, of, Event::Instance { of, life: ANY_LIFE, what: ToInstance::Relay(what) });
    }

    fn offered(&mut self, stage: &mut Stage, by: InstanceId, offer: Offer, known: TimelineId) {
        if self.run != Run::Runs || self.role != Role::Standby || self.relays[self.source.0] != by {
            return;
        }
        // It asks for all histories up to there.
        self.known = self.known.max(known);
        match offer {
            Offer::More(more) => {
                self.source.1 = stage.now;
                self.is_diverged = false;
                self.log.take(more);
                self.visible = self.log.len();
            }
            Offer::Diverged => self.is_diverged = true,
            // No use: the next one is asked by and by.
            Offer::Forked { .. } | Offer::Ahead(_) | Offer::Foreign(_) => {}
        }
    }
}

pub(super) fn instance_name(id: InstanceId) -> String {
    format!("bw{}", id + 1)
}

pub(super) fn node_name(id: NodeId) -> NodeName {
    format!("pg{}", id + 1).parse().expect("a node name")
}
