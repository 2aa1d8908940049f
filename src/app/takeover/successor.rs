//! The new process's half of the handover, step by step. PURE.
//!
//! The shell does [`Successor::step`] and tells how it went. Nothing is decided, streamed or accepted before
//! [`Outcome::Ours`]; before that the old process takes everything back as soon as this one is gone.

use std::time::{Duration, Instant};

use super::message::{FromIncumbent, FromSuccessor, Identity, Refusal};

/// For the old process to close: its goodbye to the upstream, a sync.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);
/// For its last word, which takes it no time.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(5);

/// What is to be done now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Say(FromSuccessor),
    /// Wait for a message, until then.
    Hear(Instant),
    /// Open everything, and do nothing with it.
    Open,
    /// Hear no more than what has come. From here on the old process cannot say anything: what it has said counts.
    StopHearing,
    /// What has come.
    HearRest,
    Over(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ours,
    Refused(Refusal),
    Failed { why: String },
}

/// How the step went.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Heard(FromIncumbent),
    Overdue,
    /// The other end has gone, or talks nonsense.
    Broken(String),
    Done,
    Failed(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Asking,
    Closing { until: Instant },
    Opening,
    Ready,
    Waiting { until: Instant },
    Deaf,
    LastWord,
    Over(Outcome),
}

#[derive(Debug)]
pub(super) struct Successor {
    identity: Identity,
    phase: Phase,
}

impl Successor {
    pub(super) fn new(identity: Identity) -> Successor {
        Successor { identity, phase: Phase::Asking }
    }

    pub(super) fn step(&self) -> Step {
        match &self.phase {
            Phase::Asking => Step::Say(FromSuccessor::Ask(self.identity.clone())),
            Phase::Closing { until } | Phase::Waiting { until } => Step::Hear(*until),
            Phase::Opening => Step::Open,
            Phase::Ready => Step::Say(FromSuccessor::Ready),
            Phase::Deaf => Step::StopHearing,
            Phase::LastWord => Step::HearRest,
            Phase::Over(outcome) => Step::Over(outcome.clone()),
        }
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input) {
        self.phase = match (&self.phase, input) {
            (Phase::Asking, Input::Done) => Phase::Closing { until: now + CLOSE_LIMIT },
            (Phase::Closing { .. }, Input::Heard(FromIncumbent::Yielded { .. })) => Phase::Opening,
            (Phase::Closing { .. }, Input::Heard(FromIncumbent::Refused(refusal))) => {
                Phase::Over(Outcome::Refused(refusal))
            }
            (Phase::Opening, Input::Done) => Phase::Ready,
            (Phase::Ready, Input::Done) => Phase::Waiting { until: now + LAST_WORD_LIMIT },
            (Phase::Waiting { .. } | Phase::LastWord, Input::Heard(FromIncumbent::Yours)) => {
                Phase::Over(Outcome::Ours)
            }
            (again @ (Phase::Waiting { .. } | Phase::LastWord), Input::Heard(FromIncumbent::Heard(_))) => {
                again.clone()
            }
            (Phase::Waiting { .. }, Input::Overdue) => Phase::Deaf,
            (Phase::Deaf, Input::Done) => Phase::LastWord,
            (over @ Phase::Over(_), _) => over.clone(),
            (_, other) => Phase::Over(Outcome::Failed { why: unexpected(&other) }),
        };
    }
}

fn unexpected(input: &Input) -> String {
    match input {
        Input::Heard(_) => "it said something that was not expected".to_owned(),
        Input::Overdue => "it did not answer in time".to_owned(),
        Input::Done => "done out of order".to_owned(),
        Input::Broken(why) | Input::Failed(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::message::{Again, FromIncumbent, FromSuccessor, Identity, Refusal, VERSION};
    use super::{Input, Outcome, Step, Successor};
    use crate::topology::Durability;

    fn check(said: &str, expected: &str) {
        let identity = Identity {
            version: VERSION,
            cluster: "orders".to_owned(),
            instance: "bw1".to_owned(),
            state: "/s".into(),
            wal: "/w".into(),
            durability: Durability::Async,
        };
        #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
        let now = Instant::now();
        let mut core = Successor::new(identity);
        let mut steps = vec![name(&core.step())];
        for word in said.split_whitespace() {
            let heard = |message| Input::Heard(message);
            core.handle(
                now,
                match word {
                    "done" => Input::Done,
                    "fail" => Input::Failed("failed".to_owned()),
                    "gone" => Input::Broken("gone".to_owned()),
                    "late" => Input::Overdue,
                    "yielded" => heard(FromIncumbent::Yielded { sockets: vec![] }),
                    "yours" => heard(FromIncumbent::Yours),
                    "heard" => heard(FromIncumbent::Heard(vec![])),
                    "later" => {
                        heard(FromIncumbent::Refused(Refusal { why: String::new(), again: Again::Later }))
                    }
                    word => panic!("{word}"),
                },
            );
            steps.push(name(&core.step()));
        }
        assert_eq!(steps.join(" "), expected, "{said}");
    }

    fn name(step: &Step) -> &'static str {
        match step {
            Step::Say(FromSuccessor::Ask(_)) => "ask",
            Step::Say(_) => "ready",
            Step::Hear(_) => "hear",
            Step::Open => "open",
            Step::StopHearing => "deaf",
            Step::HearRest => "rest",
            Step::Over(Outcome::Ours) => "ours",
            Step::Over(Outcome::Refused(_)) => "refused",
            Step::Over(Outcome::Failed { .. }) => "failed",
        }
    }

    #[test]
    fn a_handover() {
        check("done yielded done done yours", "ask hear open ready hear ours");
        check("done later", "ask hear refused");
    }

    #[test]
    fn what_others_have_told_comes_in_front_of_the_last_word() {
        check("done yielded done done heard yours", "ask hear open ready hear hear ours");
        check("done yielded done done late done heard yours", "ask hear open ready hear deaf rest rest ours");
        check("done yielded done done heard gone", "ask hear open ready hear hear failed");
        check("done heard yours", "ask hear failed failed");
    }

    #[test]
    fn nothing_is_ours_before_it_was_said() {
        check("fail", "ask failed");
        for failure in ["gone", "late", "yours"] {
            check(&format!("done {failure} yours"), "ask hear failed failed");
        }
        check("done yielded fail", "ask hear open failed");
        check("done yielded done fail", "ask hear open ready failed");
        check("done yielded done done gone", "ask hear open ready hear failed");
    }

    #[test]
    fn who_gives_up_waiting_looks_whether_it_was_said_in_the_last_moment() {
        check("done yielded done done late done yours", "ask hear open ready hear deaf rest ours");
        check("done yielded done done late done gone", "ask hear open ready hear deaf rest failed");
    }
}
