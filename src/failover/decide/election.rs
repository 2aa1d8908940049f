//! The election: fence, elect, catch up, prepare, promote, verify, follow, marker. Writes are held throughout.

use super::{
    Action, Agent, Election, EstablishStep, Fenced, Finding, Fired, NodeView, Now, Phase, Policy, Primary,
    Process, Promoted, RuleId, StartAs, State, Step, View, What, Why, establish, marker, marker_is_durable,
    steady,
};
use crate::pg::Lsn;
use crate::topology::{Durability, Election as Record, Follower, NodeName, Outcome, Role};

pub(super) fn advance(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    now: Now,
) -> Option<Fired> {
    if view.wal.promised > state.term {
        // A state file from a backup: the relay obeys nothing below what it has promised.
        let why = format!("the relay has promised term {}", view.wal.promised);
        return steady::fence_again(view, state, election, why, now);
    }
    match &election.step {
        Step::Fence => fenced(view, state, election, now),
        Step::Elect => elect(view, state, policy, election, now),
        Step::CatchUp { candidate } => catch_up(view, state, policy, election, candidate, now),
        Step::Prepare { candidate } => prepare(view, state, policy, election, candidate, now),
        Step::Promote { candidate } => promote(view, state, policy, election, candidate, now),
        Step::Verify { candidate, found } => verify(view, state, policy, election, (candidate, *found), now),
        Step::Follow => follow(view, state, policy, election, now),
        Step::Marker => open(view, state, policy, election, now),
    }
}

/// E1. By acknowledgement, not by time.
fn fenced(view: &View<'_>, state: &State, election: &Election, now: Now) -> Option<Fired> {
    if view.wal.promised < state.term || view.confirmed < state.term {
        return None;
    }
    let fenced = Fenced {
        timeline: view.wal.timeline,
        durable: view.wal.durable,
        verified: view.wal.verified,
        upstream_end: view.wal.upstream_end,
    };
    let election = Election { fenced: Some(fenced), ..election.clone() };
    Fired::new(RuleId::E1, at(state, election, Step::Elect, now))
}

/// E3, or E2 when there is nobody and the old primary is back.
fn elect(view: &View<'_>, state: &State, policy: &Policy, election: &Election, now: Now) -> Option<Fired> {
    let fenced = election.fenced?;
    let waited = waited(election, now) >= policy.candidate_wait.as_millis();
    if known_loss(state, fenced) <= policy.max_lost_bytes
        && let Some(candidate) = candidate(view, state, election, waited)
    {
        let candidate = candidate.clone();
        return Fired::new(RuleId::E3, at(state, election.clone(), Step::CatchUp { candidate }, now));
    }
    if waited { restore(view, state, election, fenced, now) } else { None }
}

/// Quorum: what the relay does not hold was never acknowledged.
fn known_loss(state: &State, fenced: Fenced) -> u64 {
    match state.durability {
        Durability::Quorum => 0,
        Durability::Async => fenced.upstream_end.bytes_since(fenced.durable),
    }
}

/// Why the election needs a person.
pub(super) fn obstacle(state: &State, policy: &Policy, election: &Election, now: Now) -> Option<String> {
    if let Step::Verify { candidate, found } = &election.step {
        return mismatch(state, election, *found).map(|why| format!("{candidate} must not be opened: {why}"));
    }
    let fenced = election.fenced.filter(|_| election.step == Step::Elect)?;
    if waited(election, now) < policy.candidate_wait.as_millis() * 3 {
        return None;
    }
    let loss = known_loss(state, fenced);
    Some(if loss > policy.max_lost_bytes {
        format!("{loss} bytes of WAL would be lost, {} are allowed", policy.max_lost_bytes)
    } else {
        "no standby can be promoted, and the old primary is not back".to_owned()
    })
}

/// The most advanced first: it is ready soonest. Then the operator's priority, then the name, so that two
/// observers of the same world choose the same.
fn candidate<'a>(
    view: &'a View<'_>,
    state: &State,
    election: &Election,
    waited: bool,
) -> Option<&'a NodeName> {
    let eligible = |n: &&NodeView<'_>| {
        let preferred = election.preferred.as_ref().is_none_or(|wish| *wish == n.node.name || waited);
        let excluded = election.excluded.contains(&n.node.name) && !waited;
        preferred && !excluded && follower(view, state, n).is_some()
    };
    let rank = |n: &&NodeView<'_>| {
        let flush = follower(view, state, n).map_or(Lsn::INVALID, |f| f.flush);
        let wished = election.preferred.as_ref() == Some(&n.node.name);
        let fresh = !election.excluded.contains(&n.node.name);
        (wished, fresh, flush, n.node.priority, std::cmp::Reverse(n.node.name.clone()))
    };
    view.nodes.iter().filter(eligible).max_by_key(rank).map(|n| &n.node.name)
}

/// The node as the relay sees it, when it may be promoted: a live standby of this cluster that streams from the
/// relay on the relay's timeline. One on another timeline either has not followed yet or never can.
fn follower<'a>(view: &'a View<'_>, state: &State, node: &NodeView<'_>) -> Option<&'a Follower> {
    let system = state.primary.as_ref().map(|p| p.system);
    let fits = !node.node.no_failover
        && node.is_up_as(Role::Standby)
        && node.facts.is_some_and(|f| system.is_none_or(|system| f.system == system));
    let follower = view.wal.follower(&node.node.name)?;
    (fits && follower.timeline == view.wal.timeline && follower.flush.is_valid()).then_some(follower)
}

/// E2. Nobody was promoted, so the old primary still has the newest history; it gets the new term.
fn restore(view: &View<'_>, state: &State, election: &Election, fenced: Fenced, now: Now) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    let facts = view.node(&primary.node).filter(|n| n.is_up_as(Role::Primary))?.facts?;
    let unchanged = facts.system == primary.system && facts.timeline == primary.timeline;
    // A server that came back with less than it had sent has lost its disk's word.
    if !unchanged || facts.position < fenced.verified {
        return None;
    }
    let mut next = state.clone();
    next.deposed.retain(|name| *name != primary.node);
    next.primary =
        Some(Primary { term: state.term, started_at: Some(facts.started_at.clone()), ..primary.clone() });
    let why = "no standby could be promoted; the old primary is back".to_owned();
    Some(Fired {
        rule: RuleId::E2,
        next: establish::establishing(next, Why::Restore, EstablishStep::Prepare, now),
        concluded: Some(concluded(election, Outcome::Failed { why }, now)),
        left_behind: None,
    })
}

/// E4.
fn catch_up(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    candidate: &NodeName,
    now: Now,
) -> Option<Fired> {
    let fenced = election.fenced?;
    let Some(follower) = view.node(candidate).and_then(|n| follower(view, state, n)) else {
        return next_candidate(state, election, candidate, now);
    };
    // Half a record behind the last whole one is not found again when the relay restarts: nobody can have it then.
    let held = fenced.durable.min(view.wal.durable).max(fenced.verified);
    if held <= follower.flush {
        let step = Step::Prepare { candidate: candidate.clone() };
        return Fired::new(RuleId::E4, at(state, election.clone(), step, now));
    }
    let too_slow = waited(election, now) >= policy.catch_up_timeout.as_millis();
    if too_slow { next_candidate(state, election, candidate, now) } else { None }
}

/// E5.
fn prepare(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    candidate: &NodeName,
    now: Now,
) -> Option<Fired> {
    let action = policy.prepare(state.term, candidate);
    let is_standby = view.node(candidate).is_some_and(|n| n.is_up_as(Role::Standby));
    if !is_standby || view.ledger.failures(&action) >= policy.attempts {
        return next_candidate(state, election, candidate, now);
    }
    view.ledger.finding(&action)?;
    if view.cleared.as_ref() != Some(candidate) {
        return None;
    }
    let mut next = state.clone();
    // From now on it may be a primary, and if it is lost now it must not come back as one.
    next.depose(candidate);
    let step = Step::Promote { candidate: candidate.clone() };
    Fired::new(RuleId::E5, at(&next, election.clone(), step, now))
}

/// E6, or E11: a candidate that was asked to promote may have done so unseen, with a timeline of its own. Only a
/// higher term, which its relay connection can never have, makes it safe to choose another.
fn promote(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    candidate: &NodeName,
    now: Now,
) -> Option<Fired> {
    let from = election.fenced?.timeline;
    if let Some(Finding::Promoted(found)) = view.ledger.finding(&promote_action(state, candidate, from)) {
        let step = Step::Verify { candidate: candidate.clone(), found: *found };
        return Fired::new(RuleId::E6, at(state, election.clone(), step, now));
    }
    let lost = view.node(candidate).is_none_or(|n| n.is_lost(policy, now));
    let too_slow = waited(election, now) >= policy.promote_timeout.as_millis();
    if !lost && !too_slow {
        return None;
    }
    let why = format!("{candidate} was lost while it was being promoted");
    steady::fence_again(view, state, election, why, now)
}

/// E7. What does not fit stays here, with writes held: a primary that lacks acknowledged WAL is never opened.
fn verify(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    (candidate, found): (&NodeName, Promoted),
    now: Now,
) -> Option<Fired> {
    let fenced = election.fenced?;
    if mismatch(state, election, found).is_some() {
        let lost = view.node(candidate).is_none_or(|n| n.is_lost(policy, now));
        let why = format!("{candidate} was promoted, did not fit, and is gone");
        return if lost { steady::fence_again(view, state, election, why, now) } else { None };
    }
    let mut election = election.clone();
    election.record.to = Some(candidate.clone());
    election.record.timeline = Some(found.timeline);
    election.record.switchpoint = found.switchpoint;
    let tail = found.switchpoint.map_or(0, |switchpoint| fenced.upstream_end.bytes_since(switchpoint));
    match state.durability {
        Durability::Quorum => election.record.unacknowledged_bytes = tail,
        Durability::Async => election.record.lost_bytes = tail,
    }
    let mut next = state.clone();
    next.deposed.retain(|name| name != candidate);
    next.primary = Some(Primary {
        node: candidate.clone(),
        system: found.system,
        timeline: found.timeline,
        term: state.term,
        forks: state.primary.as_ref().map_or_else(Vec::new, |p| p.forks_of_successor(found.switchpoint)),
        started_at: None,
    });
    Fired::new(RuleId::E7, at(&next, election, Step::Follow, now))
}

/// Why a promoted candidate is not what was expected.
fn mismatch(state: &State, election: &Election, found: Promoted) -> Option<String> {
    let fenced = election.fenced?;
    let expected = state.primary.as_ref().map(|p| p.system);
    if expected.is_some_and(|system| system != found.system) {
        return Some(format!("its system identifier is {}", found.system));
    }
    if found.timeline <= fenced.timeline {
        return Some(format!("its timeline {} does not follow {}", found.timeline, fenced.timeline));
    }
    match found.switchpoint {
        None => Some("it cannot tell where its timeline forked".to_owned()),
        Some(at) if at < fenced.verified => Some(format!(
            "its timeline forked at {at}, before {}, which may have been acknowledged",
            fenced.verified
        )),
        Some(_) => None,
    }
}

/// E8.
fn follow(view: &View<'_>, state: &State, policy: &Policy, election: &Election, now: Now) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    if let Some(fired) = new_primary_lost(view, state, policy, election, now) {
        return Some(fired);
    }
    let patience_over =
        state.durability == Durability::Async && waited(election, now) >= policy.follow_timeout.as_millis();
    if !establish::relay_follows(view, primary) && !patience_over {
        return None;
    }
    Fired::new(RuleId::E8, at(state, election.clone(), Step::Marker, now))
}

/// E9.
fn open(view: &View<'_>, state: &State, policy: &Policy, election: &Election, now: Now) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    if let Some(fired) = new_primary_lost(view, state, policy, election, now) {
        return Some(fired);
    }
    if !marker_is_durable(view, state, &primary.node) {
        return None;
    }
    Some(Fired {
        rule: RuleId::E9,
        next: State { phase: Phase::Steady, ..state.clone() },
        concluded: Some(concluded(election, Outcome::Completed, now)),
        left_behind: None,
    })
}

fn new_primary_lost(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    now: Now,
) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    let lost = view.node(&primary.node).is_none_or(|n| n.is_lost(policy, now));
    let why = format!("{} was lost before writes opened", primary.node);
    if lost { steady::fence_again(view, state, election, why, now) } else { None }
}

/// E10.
fn next_candidate(state: &State, election: &Election, failed: &NodeName, now: Now) -> Option<Fired> {
    let mut election = election.clone();
    if !election.excluded.contains(failed) {
        election.excluded.push(failed.clone());
    }
    Fired::new(RuleId::E10, at(state, election, Step::Elect, now))
}

fn at(state: &State, election: Election, step: Step, now: Now) -> State {
    State { phase: Phase::Election(Box::new(election.entered(step, now.unix_ms))), ..state.clone() }
}

pub(super) fn concluded(election: &Election, outcome: Outcome, now: Now) -> Record {
    let mut election = election.clone();
    election.note_time(now.unix_ms);
    Record { outcome, ..election.record }
}

fn waited(election: &Election, now: Now) -> u128 {
    u128::from(now.unix_ms.saturating_sub(election.since_ms))
}

fn promote_action(state: &State, candidate: &NodeName, from: crate::pg::TimelineId) -> Action {
    Action { term: state.term, node: candidate.clone(), what: What::Promote { from } }
}

pub(super) fn wanted(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    now: Now,
) -> Vec<Action> {
    match &election.step {
        Step::Fence | Step::CatchUp { .. } | Step::Verify { .. } | Step::Follow => Vec::new(),
        Step::Elect => old_primary_start(view, state, policy, election, now).into_iter().collect(),
        Step::Prepare { candidate } => vec![policy.prepare(state.term, candidate)],
        Step::Promote { candidate } => {
            let from = election.fenced.map(|f| f.timeline);
            from.map(|from| promote_action(state, candidate, from)).into_iter().collect()
        }
        Step::Marker => state.primary.iter().map(|p| marker(state.term, &p.node)).collect(),
    }
}

/// With nobody to promote, the old primary is the only hope: our agent starts it, for E2.
fn old_primary_start(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    election: &Election,
    now: Now,
) -> Option<Action> {
    let node = view.node(&state.primary.as_ref()?.node)?;
    let startable = node.agent == Agent::Local && node.process == Process::Absent;
    let waited = waited(election, now) >= policy.candidate_wait.as_millis();
    (startable && waited).then(|| Action {
        term: state.term,
        node: node.node.name.clone(),
        what: What::Start { role: StartAs::ItIs },
    })
}
