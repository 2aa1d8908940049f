//! Whose question is answered when. PURE.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admin::{MAX_WAITING, PATIENCE};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Candidate, Deed, Directive, Drained, Draining, Member, NodeName, Term, Upstream, Writes,
};

/// From one look to the next: nobody is answered more often, and what changes meanwhile is told at once.
const INTERVAL: Duration = Duration::from_millis(5);
/// The same while writes are held: then clients wait for what one instance tells another, and there is little to tell.
const INTERVAL_WHILE_HELD: Duration = Duration::from_millis(1);

/// What others wait for. A follower's every step is in it only while writes are held, and somebody waits for one of them
/// to have what there is: who is told anything else is told that, too.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matters {
    directive: Arc<Directive>,
    promised: Term,
    log_term: Term,
    system: Option<SystemIdentifier>,
    timeline: TimelineId,
    durable: Lsn,
    verified: Lsn,
    flushed: Vec<(String, Lsn)>,
    upstream: (Stream, Option<NodeName>),
    confirmed: Term,
    cleared: Option<Candidate>,
    drained: Option<Drained>,
    draining: Draining,
    local: Vec<NodeName>,
    at_work: Vec<NodeName>,
    deeds: Vec<Deed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Idle,
    Connecting,
    Streaming,
    Ended,
}

impl Matters {
    pub(super) fn of(member: &Member) -> Matters {
        let (wal, proxy) = (&member.wal, &member.proxy);
        let flushed = wal.followers.iter().filter(|_| member.directive.writes != Writes::Open);
        Matters {
            directive: member.directive.clone(),
            promised: wal.promised,
            log_term: wal.log_term,
            system: wal.system,
            timeline: wal.timeline,
            durable: wal.durable,
            verified: wal.verified,
            flushed: flushed.map(|follower| (follower.application_name.clone(), follower.flush)).collect(),
            upstream: stream(&wal.upstream),
            confirmed: proxy.confirmed,
            cleared: proxy.cleared.clone(),
            drained: proxy.drained.clone(),
            draining: proxy.draining,
            local: member.local.clone(),
            at_work: member.at_work.clone(),
            deeds: member.deeds.clone(),
        }
    }
}

impl Matters {
    fn interval(&self) -> Duration {
        match self.directive.writes {
            Writes::Open => INTERVAL,
            Writes::Held { .. } => INTERVAL_WHILE_HELD,
        }
    }
}

fn stream(upstream: &Upstream) -> (Stream, Option<NodeName>) {
    match upstream {
        Upstream::Idle => (Stream::Idle, None),
        Upstream::Connecting { node, .. } => (Stream::Connecting, Some(node.clone())),
        Upstream::Streaming { node, .. } => (Stream::Streaming, Some(node.clone())),
        Upstream::Ended { node, .. } => (Stream::Ended, Some(node.clone())),
    }
}

/// Questions `Q` that wait, and what the answers are about.
#[derive(Debug)]
pub(super) struct Answers<Q> {
    /// Of what `last` is. A process begins anew with 1: another number is another answer, whichever is greater.
    serial: u64,
    last: Option<Matters>,
    /// At most [`MAX_WAITING`]: when there are more, the oldest is answered at the next look.
    waiting: Vec<Waiting<Q>>,
    looked_at: Option<Instant>,
    /// Whether anything may be different from the last look.
    fresh: Freshness,
}

#[derive(Debug)]
struct Waiting<Q> {
    question: Q,
    after: Option<u64>,
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Seen,
    Changed,
}

impl<Q> Answers<Q> {
    pub(super) fn new() -> Answers<Q> {
        Answers { serial: 0, last: None, waiting: Vec::new(), looked_at: None, fresh: Freshness::Changed }
    }

    pub(super) fn ask(&mut self, now: Instant, question: Q, after: Option<u64>) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting[0].after = None;
        }
        self.waiting.push(Waiting { question, after, until: now + PATIENCE });
    }

    pub(super) fn changed(&mut self) {
        self.fresh = Freshness::Changed;
    }

    /// When to look; `None`: nobody waits.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let patience = self.waiting.iter().map(|waiting| waiting.until).min()?;
        let due =
            self.fresh == Freshness::Changed || self.waiting.iter().any(|waiting| self.is_news(waiting));
        let interval = self.last.as_ref().map_or(INTERVAL, Matters::interval);
        let earliest = self.looked_at.map(|at| at + interval);
        match earliest {
            // At once: when the first of them asked.
            None => Some(patience - PATIENCE),
            Some(earliest) if due => Some(earliest),
            Some(earliest) => Some(earliest.max(patience)),
        }
    }

    /// Who is answered now, with which serial number.
    pub(super) fn look(&mut self, now: Instant, matters: Matters) -> (u64, Vec<Q>) {
        (self.looked_at, self.fresh) = (Some(now), Freshness::Seen);
        if self.last.as_ref() != Some(&matters) {
            self.serial += 1;
            self.last = Some(matters);
        }
        let all = std::mem::take(&mut self.waiting);
        let (due, waiting) =
            all.into_iter().partition(|waiting| now >= waiting.until || self.is_news(waiting));
        self.waiting = waiting;
        (self.serial, due.into_iter().map(|waiting: Waiting<Q>| waiting.question).collect())
    }

    /// All who wait, for another word than an answer.
    pub(super) fn dismiss(&mut self) -> impl Iterator<Item = Q> {
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.question)
    }

    fn is_news(&self, waiting: &Waiting<Q>) -> bool {
        waiting.after != Some(self.serial)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Answers, Matters};
    use crate::admin::{MAX_WAITING, PATIENCE};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Candidate, ClientEvidence, Directive, Draining, Durability, Follower, FollowerState, Hearing, Lag,
        Member, NodeName, ProxyStatus, StreamEnd, Term, Upstream, WalStatus, Writes,
    };

    fn node(name: &str) -> NodeName {
        name.parse().expect("a name")
    }

    fn member() -> Member {
        Member {
            instance: "bw1".to_owned(),
            directive: Arc::new(Directive::starting(Durability::Quorum)),
            wal: Arc::new(WalStatus::starting()),
            proxy: Arc::default(),
            local: vec![],
            at_work: vec![],
            deeds: vec![],
            last_words: BTreeMap::new(),
            speaks_since: start(),
            instances: vec![],
        }
    }

    fn open() -> Member {
        let directive = Directive { writes: Writes::Open, ..Directive::starting(Durability::Quorum) };
        Member { directive: Arc::new(directive), ..member() }
    }

    fn durable_at(lsn: u64, member: Member) -> Matters {
        let wal = WalStatus { durable: Lsn(lsn), ..WalStatus::starting() };
        Matters::of(&Member { wal: Arc::new(wal), ..member })
    }

    fn durable(lsn: u64) -> Matters {
        durable_at(lsn, open())
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn what_matters() {
        let at = start();
        let check = |what: &str, change: &dyn Fn(&mut Member), matters: bool| {
            let mut changed = member();
            change(&mut changed);
            assert_eq!(Matters::of(&changed) != Matters::of(&member()), matters, "{what}");
        };
        fn wal(change: impl Fn(&mut WalStatus)) -> impl Fn(&mut Member) {
            move |member| change(Arc::make_mut(&mut member.wal))
        }
        fn proxy(change: impl Fn(&mut ProxyStatus)) -> impl Fn(&mut Member) {
            move |member| change(Arc::make_mut(&mut member.proxy))
        }
        check("directive", &|member| Arc::make_mut(&mut member.directive).drains = 1, true);
        check("promised", &wal(|wal| wal.promised = Term(1)), true);
        check("log_term", &wal(|wal| wal.log_term = Term(1)), true);
        check("durable", &wal(|wal| wal.durable = Lsn(1)), true);
        let streaming = |last_message| Upstream::Streaming { node: node("pg1"), since: at, last_message };
        check("upstream", &wal(|wal| wal.upstream = streaming(at)), true);
        let ended = || Upstream::Ended { node: node("pg1"), at, how: StreamEnd::Shutdown };
        check("the stream's end", &wal(|wal| wal.upstream = ended()), true);
        check("received", &wal(|wal| wal.received = Lsn(1)), false);
        check("confirmed", &proxy(|proxy| proxy.confirmed = Term(1)), true);
        check(
            "cleared",
            &proxy(|proxy| proxy.cleared = Some(Candidate { node: node("pg1"), round: 1 })),
            true,
        );
        check("draining", &proxy(|proxy| proxy.draining = Draining::Unknown), true);
        let evidence = |node| ClientEvidence { node, answered_at: None, refused_at: None, broken_at: None };
        check("evidence", &proxy(|proxy| proxy.evidence.push(evidence(node("pg1")))), false);
        check("local", &|member| member.local.push(node("pg1")), true);
        let flushed = |member: &mut Member| {
            let follower = |flush| Follower {
                application_name: "pg2".to_owned(),
                pid: 1,
                timeline: TimelineId(1),
                state: FollowerState::Streaming,
                sent: flush,
                write: flush,
                flush,
                replay: Lsn::INVALID,
                lag: Lag::default(),
                reported_at: at,
                hearing: Hearing::ByStream,
            };
            Arc::make_mut(&mut member.wal).followers.push(follower(Lsn(1)));
        };
        check("a follower's flush while writes are held", &flushed, true);
        let mut changed = open();
        flushed(&mut changed);
        assert_eq!(Matters::of(&changed), Matters::of(&open()), "a follower's flush while writes are open");
        check("last words", &|member| member.last_words = [("bw2".to_owned(), at)].into(), false);
    }

    #[test]
    fn news_is_told_at_once_and_silence_in_time() {
        let start = start();
        let at = |millis| start + Duration::from_millis(millis);
        let mut answers = Answers::new();
        assert_eq!(answers.next_look(), None, "nobody asks");
        // Who has no answer yet gets one now.
        answers.ask(at(100), "first", None);
        assert!(answers.next_look().is_some_and(|look| look <= at(100)));
        assert_eq!(answers.look(at(100), durable(1)), (1, vec!["first"]));
        // Nothing has changed: only its patience counts.
        answers.ask(at(101), "again", Some(1));
        assert_eq!(answers.next_look(), Some(at(101) + PATIENCE));
        // What changes soon after the last look waits for its turn; what has not mattered wakes nobody.
        answers.changed();
        assert_eq!(answers.next_look(), Some(at(105)));
        assert_eq!(answers.look(at(105), durable(1)), (1, vec![]));
        answers.changed();
        assert_eq!(answers.look(at(150), durable(2)), (2, vec!["again"]));
        // Another process's number, even a greater one, is another answer.
        answers.ask(at(151), "of old", Some(9));
        assert_eq!(answers.next_look(), Some(at(155)));
        assert_eq!(answers.look(at(155), durable(2)), (2, vec!["of old"]));
        // Silence is answered, too.
        answers.ask(at(200), "patient", Some(2));
        assert_eq!(answers.look(at(200) + PATIENCE, durable(2)), (2, vec!["patient"]));
    }

    #[test]
    fn what_changes_while_writes_are_held_is_told_sooner() {
        let start = start();
        let at = |millis| start + Duration::from_millis(millis);
        let mut answers = Answers::new();
        for (looked_at, told_at, member) in [(100, 105, open()), (200, 201, member())] {
            answers.look(at(looked_at), durable_at(looked_at, member));
            answers.ask(at(looked_at), "what is new", Some(answers.serial));
            answers.changed();
            assert_eq!(answers.next_look(), Some(at(told_at)));
        }
    }

    #[test]
    fn not_too_many_wait() {
        let start = start();
        let mut answers = Answers::new();
        assert_eq!(answers.look(start, durable(1)), (1, vec![]));
        for question in 0..=MAX_WAITING {
            answers.ask(start, question, Some(1));
        }
        assert_eq!(answers.look(start, durable(1)), (1, vec![0]));
        assert_eq!(answers.dismiss().count(), MAX_WAITING);
    }
}
