//! What the instances ask of each other, over and over, as `app::members` does: an answer counts from when its question
//! was sent, and who answers remembers whom it gave its word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::planted::Plant;
use super::server::instance_name;
use super::stage::{ANY_LIFE, Event, InstanceId, Life, Stage, ToInstance};
use crate::topology::{Heard, Member, Members, Term, Upstream};

/// An answer waits so long for something new.
const PATIENCE: Duration = Duration::from_millis(500);
/// What changes together is told together.
const TOGETHER: Duration = Duration::from_millis(5);
/// For an answer, then it is asked anew.
const LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
pub(super) enum ToMembers {
    Ask {
        peer: InstanceId,
        number: u64,
    },
    Asked {
        by: (InstanceId, Life),
        number: u64,
        after: u64,
    },
    Patience {
        by: InstanceId,
        number: u64,
    },
    Look,
    /// `at`: by the clock of who answers.
    Answered {
        by: InstanceId,
        number: u64,
        serial: u64,
        at: Instant,
        member: Arc<Member>,
    },
    Timeout {
        peer: InstanceId,
        number: u64,
    },
}

#[derive(Debug)]
pub(super) struct Exchange {
    id: InstanceId,
    life: Life,
    pub(super) members: Arc<Members>,
    asking: BTreeMap<InstanceId, Question>,
    waiting: Vec<Waiting>,
    serial: u64,
    looks: bool,
    words: BTreeMap<InstanceId, Words>,
}

#[derive(Debug)]
struct Question {
    number: u64,
    sent: Instant,
    /// Of the last answer.
    serial: u64,
}

#[derive(Debug)]
struct Waiting {
    by: (InstanceId, Life),
    number: u64,
    after: u64,
    is_due: bool,
}

/// When somebody was told of which promise.
#[derive(Clone, Copy, Debug)]
struct Words {
    /// Of an earlier promise than the last one.
    before: Instant,
    last: (Term, Instant),
}

/// What others wait for.
pub(super) type Matters = (u64, Arc<crate::topology::Directive>, u64);

impl Exchange {
    pub(super) fn new(stage: &mut Stage, (id, life): (InstanceId, Life), instances: usize) -> Exchange {
        let now = stage.instant(id);
        let others = || (0..instances).filter(move |other| *other != id);
        let words = others().map(|other| (other, Words { before: now, last: (Term(0), now) })).collect();
        let asking = others().map(|other| (other, Question { number: 0, sent: now, serial: 0 })).collect();
        let members = Members {
            own: instance_name(id),
            others: others().map(|other| (instance_name(other), None)).collect(),
            last_words: others().map(|other| (instance_name(other), now)).collect(),
            last_words_under: Term(0),
            speaks_since: Some(now),
        };
        let exchange = Exchange {
            id,
            life,
            members: Arc::new(members),
            asking,
            waiting: Vec::new(),
            serial: 1,
            looks: false,
            words,
        };
        for peer in others() {
            exchange.timer(stage, Duration::ZERO, ToMembers::Ask { peer, number: 0 });
        }
        exchange
    }

    fn event(&self, what: ToMembers) -> Event {
        Event::Instance { of: self.id, life: self.life, what: ToInstance::Members(what) }
    }

    fn timer(&self, stage: &mut Stage, delay: Duration, what: ToMembers) {
        let delay = delay + stage.rng.micros(10, 300);
        stage.timer(self.id, delay, self.event(what));
    }

    /// Something of what the others wait for has changed.
    pub(super) fn changed(&mut self, stage: &mut Stage) {
        self.serial += 1;
        if !self.waiting.is_empty() && !std::mem::replace(&mut self.looks, true) {
            self.timer(stage, TOGETHER, ToMembers::Look);
        }
    }

    /// `own`: how this instance stands now. Whether `members` is another.
    pub(super) fn handle(
        &mut self,
        stage: &mut Stage,
        what: ToMembers,
        own: &dyn Fn(&Stage) -> Member,
    ) -> Heeded {
        match what {
            ToMembers::Ask { peer, number } => self.ask(stage, peer, number),
            // Who is not in the list is told nothing.
            ToMembers::Asked { by, .. } if !self.words.contains_key(&by.0) => {}
            ToMembers::Asked { by, number, after } => {
                self.waiting.retain(|waiting| waiting.by.0 != by.0);
                self.waiting.push(Waiting { by, number, after, is_due: false });
                self.timer(stage, PATIENCE, ToMembers::Patience { by: by.0, number });
                if after != self.serial && !std::mem::replace(&mut self.looks, true) {
                    self.timer(stage, TOGETHER, ToMembers::Look);
                }
            }
            ToMembers::Patience { by, number } => {
                for waiting in self.waiting.iter_mut().filter(|w| w.by.0 == by && w.number == number) {
                    waiting.is_due = true;
                }
                return self.look(stage, own);
            }
            ToMembers::Look => {
                self.looks = false;
                return self.look(stage, own);
            }
            ToMembers::Answered { by, number, serial, at, member } => {
                let now = stage.instant(self.id);
                let member = Arc::new(as_seen(&member, &|moment| now - at.saturating_duration_since(moment)));
                return self.answered(stage, by, number, serial, member);
            }
            ToMembers::Timeout { peer, number } => {
                if self.asking.get(&peer).is_some_and(|question| question.number == number) {
                    self.timer(stage, PAUSE, ToMembers::Ask { peer, number });
                }
            }
        }
        Heeded::Nothing
    }

    fn ask(&mut self, stage: &mut Stage, peer: InstanceId, number: u64) {
        let Some(question) = self.asking.get_mut(&peer).filter(|question| question.number == number) else {
            return;
        };
        question.number = stage.next_id();
        question.sent = stage.instant(self.id);
        let (number, after) = (question.number, question.serial);
        let what = ToMembers::Asked { by: (self.id, self.life), number, after };
        let event = Event::Instance { of: peer, life: ANY_LIFE, what: ToInstance::Members(what) };
        stage.send(self.id, peer, event);
        self.timer(stage, LIMIT, ToMembers::Timeout { peer, number });
    }

    fn look(&mut self, stage: &mut Stage, own: &dyn Fn(&Stage) -> Member) -> Heeded {
        let serial = self.serial;
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.is_due || w.after != serial);
        self.waiting = waiting;
        if due.is_empty() {
            return Heeded::Nothing;
        }
        let now = stage.instant(self.id);
        let mut member = own(stage);
        let promised = member.wal.promised;
        for waiting in &due {
            let words = self.words.get_mut(&waiting.by.0).expect("a peer");
            words.told(promised, now);
        }
        member.last_words = self.last_words(stage);
        self.keep(member.last_words.clone(), promised);
        let member = Arc::new(member);
        for Waiting { by: (of, life), number, .. } in due {
            let what = ToMembers::Answered { by: self.id, number, serial, at: now, member: member.clone() };
            stage.send(self.id, of, Event::Instance { of, life, what: ToInstance::Members(what) });
        }
        Heeded::LastWords
    }

    /// The promise may be later than what was told.
    pub(super) fn promised(&mut self, stage: &Stage, promised: Term) {
        self.words.values_mut().for_each(|words| words.promised(promised));
        let last_words = self.last_words(stage);
        self.keep(last_words, promised);
    }

    fn keep(&mut self, last_words: BTreeMap<String, Instant>, under: Term) {
        if (&self.members.last_words, self.members.last_words_under) != (&last_words, under) {
            let members = Arc::make_mut(&mut self.members);
            (members.last_words, members.last_words_under) = (last_words, under);
        }
    }

    fn last_words(&self, stage: &Stage) -> BTreeMap<String, Instant> {
        let at = |words: &Words| match stage.plant {
            Some(Plant::NoLastWords) => words.before - Duration::from_secs(60),
            _ => words.before,
        };
        self.words.iter().map(|(of, words)| (instance_name(*of), at(words))).collect()
    }

    fn answered(
        &mut self,
        stage: &mut Stage,
        by: InstanceId,
        number: u64,
        serial: u64,
        member: Arc<Member>,
    ) -> Heeded {
        let now = stage.instant(self.id);
        let Some(question) = self.asking.get_mut(&by).filter(|question| question.number == number) else {
            return Heeded::Nothing;
        };
        question.serial = serial;
        let asked_at = if stage.plant == Some(Plant::AskedAtArrival) { now } else { question.sent };
        let members = Arc::make_mut(&mut self.members);
        members.others.insert(instance_name(by), Some(Heard { asked_at, member }));
        self.timer(stage, Duration::ZERO, ToMembers::Ask { peer: by, number });
        Heeded::Heard
    }
}

/// Moments travel as ages, as in `app::sight`.
fn as_seen(member: &Member, at: &dyn Fn(Instant) -> Instant) -> Member {
    let mut seen = member.clone();
    seen.last_words.values_mut().for_each(|moment| *moment = at(*moment));
    seen.speaks_since = at(seen.speaks_since);
    let wal = Arc::make_mut(&mut seen.wal);
    match &mut wal.upstream {
        Upstream::Idle => {}
        Upstream::Connecting { since: moment, .. } | Upstream::Ended { at: moment, .. } => {
            *moment = at(*moment);
        }
        Upstream::Streaming { since, last_message, .. } => {
            (*since, *last_message) = (at(*since), at(*last_message));
        }
    }
    wal.followers.iter_mut().for_each(|follower| follower.reported_at = at(follower.reported_at));
    for evidence in &mut Arc::make_mut(&mut seen.proxy).evidence {
        evidence.answered_at = evidence.answered_at.map(at);
    }
    seen
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heeded {
    Nothing,
    LastWords,
    Heard,
}

impl Words {
    fn promised(&mut self, promised: Term) {
        if promised > self.last.0 {
            // Nothing of the new promise was told yet.
            self.before = self.before.max(self.last.1);
            self.last.0 = promised;
        }
    }

    fn told(&mut self, promised: Term, at: Instant) {
        self.promised(promised);
        self.last.1 = at;
    }
}
