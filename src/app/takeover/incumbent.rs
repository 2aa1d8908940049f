//! The old process's half of the handover, step by step. PURE.
//!
//! The shell does [`Incumbent::step`] and tells how it went. Up to [`Step::HandOver`] every failure leads back:
//! [`Step::Reopen`], and everything goes on as before. That one step is a write of a few bytes into the kernel. Once it
//! has succeeded there is no way back, whatever becomes of the new process.

use std::time::{Duration, Instant};

use super::message::{Again, FromSuccessor, Identity, Refusal};

/// For the question to come, once somebody has connected.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// For the new process to open everything: it walks the newest WAL.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// How long reopening is tried: a new process that hangs may still have the store.
const REOPEN_LIMIT: Duration = Duration::from_secs(60);

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for a message, until then.
    Hear(Instant),
    Refuse(Refusal),
    /// Stop accepting and deciding, end the stream, let go of the store.
    Close,
    /// Send the sockets and the lock.
    Pass,
    /// Say that it is theirs: the point of no return.
    HandOver,
    /// Hang up, and take everything back.
    Reopen,
    Over(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everything goes on as before.
    Stayed { why: String },
    /// What is left is to see the sessions off.
    Yielded,
    /// The new process did not take it, and it could not be taken back: the process has to end.
    Lost { why: String },
}

/// How the step went.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Heard(FromSuccessor),
    Overdue,
    /// The other end has gone, or talks nonsense.
    Broken(String),
    Done,
    Failed(String),
    /// It failed, and so will every further attempt.
    Ruined(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Asked { until: Instant },
    Refusing(Refusal),
    Closing,
    Passing,
    Opening { until: Instant },
    HandingOver,
    Reopening { why: String, until: Instant },
    Over(Outcome),
}

#[derive(Debug)]
pub(super) struct Incumbent {
    identity: Identity,
    /// Why not now.
    busy: Option<String>,
    phase: Phase,
}

impl Incumbent {
    /// Somebody has connected.
    pub(super) fn new(now: Instant, identity: Identity, busy: Option<String>) -> Incumbent {
        Incumbent { identity, busy, phase: Phase::Asked { until: now + ASK_LIMIT } }
    }

    pub(super) fn step(&self) -> Step {
        match &self.phase {
            Phase::Asked { until } | Phase::Opening { until } => Step::Hear(*until),
            Phase::Refusing(refusal) => Step::Refuse(refusal.clone()),
            Phase::Closing => Step::Close,
            Phase::Passing => Step::Pass,
            Phase::HandingOver => Step::HandOver,
            Phase::Reopening { .. } => Step::Reopen,
            Phase::Over(outcome) => Step::Over(outcome.clone()),
        }
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input) {
        let back = |why: String| Phase::Reopening { why, until: now + REOPEN_LIMIT };
        self.phase = match (&self.phase, input) {
            (Phase::Asked { .. }, Input::Heard(FromSuccessor::Ask(theirs))) => self.judge(&theirs),
            (Phase::Asked { .. }, other) => stayed(unexpected(&other)),
            (Phase::Refusing(refusal), _) => stayed(refusal.why.clone()),
            (Phase::Closing, Input::Done) => Phase::Passing,
            (Phase::Passing, Input::Done) => Phase::Opening { until: now + OPEN_LIMIT },
            (Phase::Opening { .. }, Input::Heard(FromSuccessor::Ready)) => Phase::HandingOver,
            (Phase::HandingOver, Input::Done) => Phase::Over(Outcome::Yielded),
            (Phase::Closing, Input::Ruined(why)) => Phase::Over(Outcome::Lost { why }),
            (Phase::Closing | Phase::Passing | Phase::Opening { .. } | Phase::HandingOver, other) => {
                back(unexpected(&other))
            }
            (Phase::Reopening { why, .. }, Input::Done) => stayed(why.clone()),
            (Phase::Reopening { why, until }, Input::Failed(error)) if now >= *until => lost(why, &error),
            (Phase::Reopening { why, .. }, Input::Ruined(error)) => lost(why, &error),
            (again @ Phase::Reopening { .. }, _) => again.clone(),
            (over @ Phase::Over(_), _) => over.clone(),
        };
    }

    fn judge(&self, theirs: &Identity) -> Phase {
        if let Some(why) = difference(&self.identity, theirs) {
            return Phase::Refusing(Refusal { why, again: Again::Never });
        }
        match &self.busy {
            Some(why) => Phase::Refusing(Refusal { why: why.clone(), again: Again::Later }),
            None => Phase::Closing,
        }
    }
}

fn stayed(why: String) -> Phase {
    Phase::Over(Outcome::Stayed { why })
}

fn lost(why: &str, error: &str) -> Phase {
    let why = format!("{why}; and it could not be taken back: {error}");
    Phase::Over(Outcome::Lost { why })
}

fn unexpected(input: &Input) -> String {
    match input {
        Input::Heard(_) => "it said something that was not expected".to_owned(),
        Input::Overdue => "it did not answer in time".to_owned(),
        Input::Done => "done out of order".to_owned(),
        Input::Broken(why) | Input::Failed(why) | Input::Ruined(why) => why.clone(),
    }
}

fn difference(ours: &Identity, theirs: &Identity) -> Option<String> {
    let same = [
        ("the version of these messages", ours.version == theirs.version),
        ("cluster", ours.cluster == theirs.cluster),
        ("instance", ours.instance == theirs.instance),
        ("state.file", ours.state == theirs.state),
        ("wal.dir", ours.wal == theirs.wal),
        ("durability", ours.durability == theirs.durability),
    ];
    let (what, _) = same.into_iter().find(|(_, same)| !same)?;
    Some(format!("{what} is another one in the process that runs; to change it takes a restart"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::message::{FromSuccessor, Identity, VERSION};
    use super::{Incumbent, Input, Outcome, Step, difference};
    use crate::topology::Durability;

    fn identity(instance: &str) -> Identity {
        Identity {
            version: VERSION,
            cluster: "orders".to_owned(),
            instance: instance.to_owned(),
            state: "/s".into(),
            wal: "/w".into(),
            durability: Durability::Async,
        }
    }

    /// Words for inputs, and the steps they lead to.
    fn check(busy: Option<&str>, said: &str, expected: &str) {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
        let mut now = Instant::now();
        let mut core = Incumbent::new(now, identity("bw1"), busy.map(str::to_owned));
        let mut steps = vec![name(&core.step())];
        for word in said.split_whitespace() {
            let input = match word {
                "ask" => Input::Heard(FromSuccessor::Ask(identity("bw1"))),
                "other" => Input::Heard(FromSuccessor::Ask(identity("bw2"))),
                "ready" => Input::Heard(FromSuccessor::Ready),
                "done" => Input::Done,
                "fail" => Input::Failed("failed".to_owned()),
                "ruin" => Input::Ruined("failed for good".to_owned()),
                "gone" => Input::Broken("gone".to_owned()),
                "late" => Input::Overdue,
                "minute" => {
                    now += Duration::from_secs(60);
                    continue;
                }
                word => panic!("{word}"),
            };
            core.handle(now, input);
            steps.push(name(&core.step()));
        }
        assert_eq!(steps.join(" "), expected, "{said}");
    }

    fn name(step: &Step) -> String {
        match step {
            Step::Hear(_) => "hear".to_owned(),
            Step::Refuse(refusal) => format!("refuse({:?})", refusal.again),
            Step::Close => "close".to_owned(),
            Step::Pass => "pass".to_owned(),
            Step::HandOver => "hand-over".to_owned(),
            Step::Reopen => "reopen".to_owned(),
            Step::Over(Outcome::Stayed { .. }) => "stayed".to_owned(),
            Step::Over(Outcome::Yielded) => "yielded".to_owned(),
            Step::Over(Outcome::Lost { .. }) => "lost".to_owned(),
        }
    }

    #[test]
    fn a_handover() {
        check(None, "ask done done ready done", "hear close pass hear hand-over yielded");
    }

    #[test]
    fn up_to_the_last_step_every_failure_leads_back() {
        check(None, "ask fail done", "hear close reopen stayed");
        check(None, "ask done fail done", "hear close pass reopen stayed");
        for failure in ["gone", "late", "ask"] {
            check(None, &format!("ask done done {failure} done"), "hear close pass hear reopen stayed");
        }
        check(None, "ask done done ready fail done", "hear close pass hear hand-over reopen stayed");
    }

    #[test]
    fn after_the_last_step_there_is_no_way_back() {
        check(None, "ask done done ready done gone", "hear close pass hear hand-over yielded yielded");
    }

    #[test]
    fn what_is_not_taken_back_within_a_minute_is_lost() {
        check(None, "ask fail fail fail done", "hear close reopen reopen reopen stayed");
        check(None, "ask fail fail minute fail", "hear close reopen reopen lost");
    }

    #[test]
    fn what_cannot_be_taken_back_is_lost_at_once() {
        check(None, "ask ruin done", "hear close lost lost");
        check(None, "ask fail ruin", "hear close reopen lost");
        check(None, "ask done fail fail ruin", "hear close pass reopen reopen lost");
    }

    /// Its sessions were let in without a quorum in mind: their commits would be told as its.
    #[test]
    fn a_change_of_durability_takes_a_restart() {
        let ours = identity("bw1");
        let theirs = Identity { durability: Durability::Quorum, ..ours.clone() };
        let why = "durability is another one in the process that runs; to change it takes a restart";
        assert_eq!(difference(&ours, &theirs).as_deref(), Some(why));
        assert_eq!(difference(&theirs, &ours).as_deref(), Some(why));
        assert_eq!(difference(&ours, &ours), None);
    }

    #[test]
    fn nothing_is_closed_for_a_stranger_or_in_a_bad_moment() {
        check(None, "other done", "hear refuse(Never) stayed");
        check(Some("an election"), "other done", "hear refuse(Never) stayed");
        check(Some("an election"), "ask done", "hear refuse(Later) stayed");
        check(Some("an election"), "ask gone", "hear refuse(Later) stayed");
        for nonsense in ["ready", "gone", "late"] {
            check(None, nonsense, "hear stayed");
        }
    }
}
