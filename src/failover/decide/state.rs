//! The journaled facts: what must survive a restart for the next decision to be the same. PURE.

use serde::{Deserialize, Serialize};

use super::budget::Spent;
use super::rolling::Restarts;
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Acknowledgers, Candidate, Directive, Drain, Durability, Election as Record, Floor, NodeName,
    Phase as Timing, Term, Writes,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Only grows; durable before anybody hears of it.
    pub term: Term,
    /// Who receives writes in `term`, or, during an election before its verification, who did before.
    pub primary: Option<Primary>,
    pub durability: Durability,
    pub automatic: Automatic,
    /// Nodes that were primary, or may have been promoted, and were not seen to follow since.
    pub deposed: Vec<NodeName>,
    /// Standbys with WAL that is not in the primary's history, until they follow: they have to be made anew.
    #[serde(default)]
    pub stranded: Vec<NodeName>,
    /// See [`Directive::drains`].
    #[serde(default)]
    pub drains: u64,
    /// Of servers, by an operator's order.
    #[serde(default)]
    pub restarts: Restarts,
    /// See [`Directive::floor`]. Of this term; `None` while this instance is alone.
    #[serde(default)]
    pub floor: Option<Floor>,
    /// The last term before this one that had a floor: what counts in it is in the history of the primary.
    #[serde(default)]
    pub log_term: Term,
    /// Whose relays may have acknowledged a commit, or may now: those that the primary's setting names, and before them
    /// those that it may have named before, until nobody goes by these any more. Empty while this instance is alone.
    #[serde(default)]
    pub quorums: Vec<Acknowledgers>,
    /// Nodes that operators work on, until they say that it is over. Never the primary.
    #[serde(default)]
    pub maintenance: Vec<NodeName>,
    /// Automatic failovers of late.
    #[serde(default)]
    pub budget: Spent,
    pub phase: Phase,
}

/// A verified primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Primary {
    pub node: NodeName,
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    /// The term in which it was verified last.
    pub term: Term,
    /// Where its history left the timelines before it, oldest first, as far as this cluster's elections showed it.
    /// At most [`Primary::FORKS`].
    #[serde(default)]
    pub forks: Vec<Fork>,
    /// `pg_postmaster_start_time()`: a change shows a restart between two probes. `None` until probed.
    pub started_at: Option<String>,
}

/// A timeline's end in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    pub timeline: TimelineId,
    pub at: Lsn,
}

impl Primary {
    /// The oldest are forgotten first: a standby that is so far behind finds no WAL either.
    pub const FORKS: usize = 16;

    /// The forks of a successor whose timeline left this one's at `at`.
    pub fn forks_of_successor(&self, at: Option<Lsn>) -> Vec<Fork> {
        let mut forks = self.forks.clone();
        forks.extend(at.map(|at| Fork { timeline: self.timeline, at }));
        let excess = forks.len().saturating_sub(Primary::FORKS);
        forks.drain(..excess);
        forks
    }

    /// Beyond this nothing of `timeline` is in the primary's history. Where only a later timeline's end is known,
    /// that one: the earlier ended at or before it.
    pub fn fork_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let earlier = timeline < self.timeline;
        self.forks.iter().find(|fork| earlier && timeline <= fork.timeline).map(|fork| fork.at)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Automatic {
    On,
    /// An operator asked for no automatic failover.
    Paused,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No primary was ever recorded.
    Bootstrapping {
        since_ms: u64,
    },
    /// `State::primary` is known and runs already; it is made ready for the term before writes open.
    Establishing {
        why: Why,
        step: EstablishStep,
        since_ms: u64,
    },
    Steady,
    Election(Box<Election>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Bootstrap,
    /// This process started and found a state.
    Adopt,
    /// The primary of the last term came back before anybody was promoted.
    Restore,
    /// The primary restarted by itself.
    Restarted,
    /// Other relays are to acknowledge. The primary is in no doubt, and stays in use.
    Instances,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EstablishStep {
    /// Is it still primary, on the recorded timeline?
    Confirm,
    /// `synchronous_standby_names` and the relay's slot.
    Prepare,
    /// The relay streams from it.
    Follow,
    /// A transaction commits as every client's will.
    Marker,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Election {
    /// As it will be remembered; grows with every step.
    pub record: Record,
    pub step: Step,
    /// When `step` began, Unix milliseconds.
    pub since_ms: u64,
    /// Where the relay stood when it had promised the term; `None` before.
    pub fenced: Option<Fenced>,
    /// Counts the candidates of this term.
    #[serde(default)]
    pub round: u32,
    /// Candidates that failed in this term, the last one last: tried again, in this order, when there is nobody else.
    pub excluded: Vec<NodeName>,
    /// Those whose sessions the proxy did not end in time.
    #[serde(default)]
    pub not_cleared: Vec<NodeName>,
    /// The operator's choice.
    pub preferred: Option<NodeName>,
    /// Who is to acknowledge what the candidate commits; `None`: nobody is prepared yet.
    #[serde(default)]
    pub acknowledgers: Option<Acknowledgers>,
    /// When this process took it up, Unix milliseconds; 0: it began it. It has seen nothing from before.
    #[serde(default)]
    pub resumed_ms: u64,
    /// Of a planned switchover.
    #[serde(default)]
    pub planned: Option<Planned>,
}

/// A planned switchover: until its candidate is asked to promote, the old primary can have the cluster back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// `None`: given up.
    pub successor: Option<NodeName>,
    pub stragglers: Stragglers,
    pub rest: Rest,
    /// `None`: the successor was not prepared yet.
    #[serde(default)]
    pub ready: Option<Ready>,
}

/// What a successor was prepared for before the drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub term: Term,
    pub durability: Durability,
    pub acknowledgers: Option<Acknowledgers>,
}

/// What becomes of transactions that are still open at the drain limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stragglers {
    /// They go on, and the switchover is given up.
    Spared,
    /// They are cut off (57P01 or 40001).
    Cut,
}

/// How the old primary comes to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// Its agent shuts it down: its WAL has an end.
    ShutDown,
    /// Nobody can: no client writes to it any more, and it is left as it is.
    LeftRunning,
}

/// The relays' word that not a byte of an older term comes after this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    pub timeline: TimelineId,
    /// Everything acknowledged is at or before this: the candidate must have it.
    pub durable: Lsn,
    /// The end of the last whole record: the new timeline must not begin before this.
    pub verified: Lsn,
    /// The last end of WAL that the old primary told of.
    pub upstream_end: Lsn,
    /// The instance whose relay has it; `None`: the only one.
    #[serde(default)]
    pub source: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Planned: while clients go on, so that the shutdown has little left to write.
    Checkpoint,
    /// Planned: no new transaction begins at the primary and its successor; those that run may end.
    Drain,
    /// Planned: the agent shuts the primary down.
    ShutDown,
    /// Planned, without an agent: until relay and successor have what the primary has written.
    Settle,
    /// Until the relay has promised and the proxy has confirmed the term.
    Fence,
    /// Fenced; looking for a candidate.
    Elect,
    CatchUp {
        candidate: NodeName,
    },
    Prepare {
        candidate: NodeName,
    },
    /// From here on the candidate may be a primary: only a higher term may choose another.
    Promote {
        candidate: NodeName,
    },
    /// Promoted, and compared with what was expected. Stays here when it does not fit.
    Verify {
        candidate: NodeName,
        found: Promoted,
    },
    Follow,
    Marker,
}

/// What a promoted node says of its new timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    /// Where it forked from the old timeline; `None` when the server could not tell.
    pub switchpoint: Option<Lsn>,
}

impl Step {
    /// As in [`Timing::name`] and in the metric's label.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Checkpoint => "checkpoint",
            Step::Drain => "drain",
            Step::ShutDown => "shut_down",
            Step::Settle => "settle",
            Step::Fence => "fence",
            Step::Elect => "elect",
            Step::CatchUp { .. } => "catch_up",
            Step::Prepare { .. } => "prepare",
            Step::Promote { .. } => "promote",
            Step::Verify { .. } => "verify",
            Step::Follow => "follow",
            Step::Marker => "marker",
        }
    }

    /// Who is being made primary.
    pub fn candidate(&self) -> Option<&NodeName> {
        match self {
            Step::CatchUp { candidate }
            | Step::Prepare { candidate }
            | Step::Promote { candidate }
            | Step::Verify { candidate, .. } => Some(candidate),
            Step::Checkpoint
            | Step::Drain
            | Step::ShutDown
            | Step::Settle
            | Step::Fence
            | Step::Elect
            | Step::Follow
            | Step::Marker => None,
        }
    }

    /// Of a planned switchover whose primary still has its term.
    pub fn is_before_the_term(&self) -> bool {
        matches!(self, Step::Checkpoint | Step::Drain | Step::ShutDown | Step::Settle)
    }
}

impl Election {
    /// A planned switchover whose process has gone, before its primary was told anything that cannot be taken back.
    pub(super) fn is_abandoned(&self) -> bool {
        let given_up = self.planned.as_ref().is_some_and(|planned| planned.successor.is_none());
        given_up && self.step.is_before_the_term()
    }

    /// Of a planned switchover that was not given up.
    pub fn successor(&self) -> Option<&NodeName> {
        self.planned.as_ref()?.successor.as_ref()
    }

    /// What its successor got before the drain.
    pub fn ready(&self) -> Option<&Ready> {
        self.planned.as_ref()?.ready.as_ref()
    }

    /// Beyond this, rounds are told as sums.
    const MAX_PHASES: usize = 64;

    /// Goes on to `step`; the time spent in the last one is remembered.
    #[must_use]
    pub fn entered(mut self, step: Step, now_ms: u64) -> Election {
        self.note_time(now_ms);
        self.step = step;
        self
    }

    /// A planned switchover whose old primary is wanted back.
    #[must_use]
    pub fn given_up(mut self, why: &str) -> Election {
        self.record.evidence.push(format!("given up: {why}"));
        if let Some(planned) = &mut self.planned {
            planned.successor = None;
        }
        self
    }

    pub fn note_time(&mut self, now_ms: u64) {
        let millis = now_ms.saturating_sub(self.since_ms);
        let (name, phases) = (self.step.name(), &mut self.record.phases);
        let earlier = phases.iter().rposition(|phase| phase.name == name);
        match earlier.filter(|_| phases.len() >= Election::MAX_PHASES) {
            Some(earlier) => phases[earlier].millis += millis,
            None => phases.push(Timing { name: name.to_owned(), millis }),
        }
        self.since_ms = now_ms;
    }
}

impl State {
    pub fn bootstrapping(durability: Durability, now_ms: u64) -> State {
        State {
            term: Term(0),
            primary: None,
            durability,
            automatic: Automatic::On,
            deposed: Vec::new(),
            stranded: Vec::new(),
            drains: 0,
            restarts: Restarts::default(),
            floor: None,
            log_term: Term(0),
            quorums: Vec::new(),
            maintenance: Vec::new(),
            budget: Spent::default(),
            phase: Phase::Bootstrapping { since_ms: now_ms },
        }
    }

    /// The state after a restart of this process: what was steady has to be looked at again; an election goes
    /// on where it was, for every one of its steps may be repeated.
    #[must_use]
    pub fn resumed(self, durability: Durability, now_ms: u64) -> State {
        let mut next = self.taken_over(durability, now_ms);
        next.phase = match next.phase {
            Phase::Steady => {
                Phase::Establishing { why: Why::Adopt, step: EstablishStep::Confirm, since_ms: now_ms }
            }
            Phase::Establishing { why, .. } => {
                Phase::Establishing { why, step: EstablishStep::Confirm, since_ms: now_ms }
            }
            phase @ (Phase::Bootstrapping { .. } | Phase::Election(_)) => phase,
        };
        next
    }

    /// The state of which another instance is in charge from now on. What is steady stays so: clients go on.
    #[must_use]
    pub fn taken_over(mut self, durability: Durability, now_ms: u64) -> State {
        self.durability = durability;
        self.restarts.taken_over(now_ms);
        self.phase = match self.phase {
            Phase::Steady => Phase::Steady,
            Phase::Bootstrapping { .. } => Phase::Bootstrapping { since_ms: now_ms },
            Phase::Establishing { why, step, .. } => Phase::Establishing { why, step, since_ms: now_ms },
            Phase::Election(mut election) => {
                election.since_ms = now_ms;
                election.resumed_ms = now_ms;
                // A server that was told to shut down is, or is to be told again; anything before that is given up.
                if matches!(election.step, Step::Checkpoint | Step::Drain | Step::Settle) {
                    election.planned.iter_mut().for_each(|planned| planned.successor = None);
                }
                Phase::Election(election)
            }
        };
        self
    }

    /// Another term: what its floor is, is not known yet.
    #[must_use]
    pub fn in_term(mut self, term: Term) -> State {
        if term != self.term && self.floor.take().is_some() {
            self.log_term = self.term;
        }
        self.term = term;
        self
    }

    /// Whom the primary's setting is to name, or the candidate's.
    pub fn named(&self) -> Option<&Acknowledgers> {
        let candidates = match &self.phase {
            Phase::Election(election) => election.acknowledgers.as_ref(),
            _ => None,
        };
        candidates.or(self.quorums.last())
    }

    /// These are to acknowledge from now on. Those before them may still do.
    pub fn acknowledged_by(&mut self, relays: Option<Acknowledgers>) {
        let Some(relays) = relays else { return };
        self.quorums.retain(|before| *before != relays);
        self.quorums.push(relays);
    }

    /// Writes are open.
    #[must_use]
    pub fn opened(mut self) -> State {
        self.budget = self.budget.went_on();
        State { phase: Phase::Steady, ..self }
    }

    /// Only the relays that the primary's setting names count from now on: a commit has come through by it, so nobody else
    /// can acknowledge one any more; and enough of those before have promised this term, so nobody is vouched for by them.
    #[must_use]
    pub fn acknowledged_by_the_last(mut self) -> State {
        let before = self.quorums.len().saturating_sub(1);
        self.quorums.drain(..before);
        self
    }

    /// Whose turn it is.
    pub fn restarting(&self) -> Option<&NodeName> {
        self.restarts.now.as_ref()?.turn()
    }

    pub fn is_deposed(&self, node: &NodeName) -> bool {
        self.deposed.contains(node)
    }

    pub fn is_in_maintenance(&self, node: &NodeName) -> bool {
        self.maintenance.contains(node)
    }

    /// Who is to follow and was not seen to.
    pub fn away(&self) -> impl Iterator<Item = &NodeName> {
        self.deposed.iter().chain(&self.stranded)
    }

    pub fn depose(&mut self, node: &NodeName) {
        if !self.is_deposed(node) {
            self.deposed.push(node.clone());
        }
    }

    /// Who is about to be promoted, or was and is not open yet. A planned successor is from the beginning of its term: nothing
    /// has begun there since the drain.
    fn candidate(&self) -> Option<Candidate> {
        let Phase::Election(election) = &self.phase else { return None };
        let node = match &election.step {
            Step::Checkpoint | Step::Drain | Step::ShutDown | Step::Settle => return None,
            // E3 counts the round in which it is.
            Step::Fence | Step::Elect => {
                let node = election.successor()?.clone();
                return Some(Candidate { node, round: election.round.saturating_add(1) });
            }
            Step::CatchUp { candidate } => {
                election.successor().filter(|successor| *successor == candidate)?
            }
            Step::Prepare { candidate } | Step::Promote { candidate } | Step::Verify { candidate, .. } => {
                candidate
            }
            Step::Follow | Step::Marker => &self.primary.as_ref()?.node,
        };
        Some(Candidate { node: node.clone(), round: election.round })
    }

    /// Which nodes have to come to rest, from the drain on until the successor is the candidate, whom nobody uses either:
    /// what began there in between would be cut off.
    fn drain(&self) -> Option<Drain> {
        let Phase::Election(election) = &self.phase else { return None };
        match &election.step {
            Step::Drain | Step::ShutDown | Step::Settle => {}
            Step::Checkpoint
            | Step::Fence
            | Step::Elect
            | Step::CatchUp { .. }
            | Step::Prepare { .. }
            | Step::Promote { .. }
            | Step::Verify { .. }
            | Step::Follow
            | Step::Marker => return None,
        }
        Some(Drain { successor: election.successor()?.clone() })
    }

    /// What proxy and relay are told while the state is this.
    pub fn directive(&self) -> Directive {
        let primary = self.primary.as_ref().map(|p| p.node.clone());
        let held = |reason: &str| Writes::Held { reason: reason.to_owned() };
        let (primary, writes, follow) = match &self.phase {
            Phase::Bootstrapping { .. } => (None, held("starting: no primary is known yet"), Follow::Nobody),
            Phase::Establishing { why: Why::Instances, step: EstablishStep::Prepare, .. } => {
                (primary, held("other instances are to acknowledge"), Follow::Nobody)
            }
            Phase::Establishing { step: EstablishStep::Confirm | EstablishStep::Prepare, .. } => {
                (None, held("the primary is being verified"), Follow::Nobody)
            }
            Phase::Establishing { .. } => (primary, held("the primary is being made ready"), Follow::Primary),
            Phase::Steady => (primary, Writes::Open, Follow::Primary),
            Phase::Election(election) if election.is_abandoned() => {
                (None, held("the primary is being verified"), Follow::Nobody)
            }
            Phase::Election(election) => match election.step {
                Step::Checkpoint => (primary, Writes::Open, Follow::Primary),
                Step::Drain | Step::ShutDown | Step::Settle => {
                    (primary, held("switchover: the primary hands over"), Follow::Primary)
                }
                Step::Follow | Step::Marker => {
                    (primary, held("failover: the relay follows"), Follow::Primary)
                }
                _ => (None, held("failover: a new primary is being elected"), Follow::Nobody),
            },
        };
        let upstream = match follow {
            Follow::Primary => primary.clone(),
            Follow::Nobody => None,
        };
        let (candidate, drain, drains) = (self.candidate(), self.drain(), self.drains);
        let resting = self.restarts.resting().cloned();
        let timeline = self.primary.as_ref().filter(|_| upstream.is_some()).map(|primary| primary.timeline);
        let (term, durability) = (self.term, self.durability);
        Directive {
            term,
            primary,
            candidate,
            drain,
            resting,
            drains,
            maintenance: self.maintenance.clone(),
            writes,
            upstream,
            timeline,
            floor: self.floor.clone(),
            quorums: self.quorums.clone(),
            durability,
            unsure_since: None,
        }
    }
}

enum Follow {
    Nobody,
    Primary,
}

#[cfg(test)]
mod tests {
    use super::{Durability, Floor, State, Term};
    use crate::pg::{Lsn, TimelineId};

    #[test]
    fn a_term_goes_on_with_the_last_one_that_had_a_floor() {
        let floor = Floor { timeline: TimelineId(1), end: Lsn(100), source: None, log_term: Term(0) };
        let floor = Some(floor);
        let third = State { floor: floor.clone(), ..State::bootstrapping(Durability::Quorum, 0) };
        let third = State { term: Term(3), ..third }.in_term(Term(3));
        assert_eq!((&third.floor, third.log_term), (&floor, Term(0)), "it is no other term");
        let fourth = third.in_term(Term(4));
        assert_eq!((&fourth.floor, fourth.log_term), (&None, Term(3)));
        // Nothing counted in the fourth.
        assert_eq!(fourth.in_term(Term(5)).log_term, Term(3));
    }
}
