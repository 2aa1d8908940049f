//! While a primary is open for writes: noticing its end, and the duties that keep the cluster whole.

use super::{
    Action, Agent, Agreement, Election, EstablishStep, Finding, Fired, Ledger, NodeView, Now, Patient, Phase,
    Policy, Primary, Process, Request, RuleId, Spent, StartAs, State, Step, View, What, Why, budget,
    establish, rolling, rule_of, switchover,
};
use crate::failover::health::{Facts, PrimaryVerdict, SlotState};
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Durability, Election as Record, Follower, LeftBehind, NodeName, Outcome, Role, Term};

pub(super) fn watch(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<Fired> {
    let dead = primary_dead(view, state, policy, now).or_else(|| budget::watch(view, state, policy, now));
    if dead.is_some() {
        return dead;
    }
    match &view.request {
        Some(Request::Failover { to }) => return asked(view, state, to.as_ref(), now),
        Some(Request::Switchover { to, stragglers }) => {
            let why = "an operator asked for it".to_owned();
            if let Some(fired) = switchover::begin(view, state, to.as_ref(), *stragglers, why, now) {
                return Some(fired);
            }
        }
        Some(Request::Restart { nodes, stragglers }) => {
            if let Some(fired) = rolling::begin(state, nodes, *stragglers, now) {
                return Some(fired);
            }
        }
        None => {}
    }
    restarted(view, state, now)
        .or_else(|| follows_again(view, state))
        .or_else(|| stranded(view, state))
        .or_else(|| starved(view, state, policy, now))
        .or_else(|| removed(view, state))
        .or_else(|| rolling::advance(view, state, policy, now))
        .or_else(|| settled(view, state))
        .or_else(|| other_instances(view, state, policy, now))
}

/// F1..F5: the primary is dead and we are to do something about it.
pub(super) fn primary_dead(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<Fired> {
    let PrimaryVerdict::Dead { cause } = &view.verdict else { return None };
    if !budget::is_automatic(state, policy) {
        return None;
    }
    let begin = || fence(view, state, rule_of(*cause), view.evidence(), None, now);
    budget::spend(state, policy, now, begin)
}

/// F6.
pub(super) fn asked(view: &View<'_>, state: &State, to: Option<&NodeName>, now: Now) -> Option<Fired> {
    let evidence = vec!["an operator asked for it".to_owned()];
    let mut fired = fence(view, state, RuleId::F6, evidence, to.cloned(), now)?;
    fired.next.budget = Spent::refreshed();
    Some(fired)
}

/// Begins an election: the next term, and nobody is primary in it yet.
pub(super) fn fence(
    view: &View<'_>,
    state: &State,
    rule: RuleId,
    evidence: Vec<String>,
    preferred: Option<NodeName>,
    now: Now,
) -> Option<Fired> {
    let from = state.primary.as_ref().map(|p| p.node.clone());
    let mut next = state.clone().in_term(view.next_term(state));
    if let Some(from) = &from {
        next.depose(from);
    }
    let ailment = view.diagnosis.as_ref().map(|found| found.ailment);
    let record = Record { ailment, ..record(next.term, rule, evidence, from, now) };
    next.phase = Phase::Election(Box::new(election(record, Step::Fence, preferred, now)));
    Fired::new(rule, next)
}

pub(super) fn record(
    term: Term,
    rule: RuleId,
    evidence: Vec<String>,
    from: Option<NodeName>,
    now: Now,
) -> Record {
    Record {
        term,
        started_at_ms: now.unix_ms,
        rule: rule.as_str().to_owned(),
        evidence,
        ailment: None,
        from,
        to: None,
        timeline: None,
        switchpoint: None,
        lost_bytes: 0,
        unacknowledged_bytes: 0,
        left_behind: Vec::new(),
        saved: Vec::new(),
        phases: Vec::new(),
        outcome: Outcome::Running,
    }
}

/// One that begins with `step`.
pub(super) fn election(record: Record, step: Step, preferred: Option<NodeName>, now: Now) -> Election {
    Election {
        record,
        step,
        since_ms: now.unix_ms,
        fenced: None,
        acknowledgers: None,
        round: 0,
        excluded: Vec::new(),
        not_cleared: Vec::new(),
        preferred,
        resumed_ms: 0,
        planned: None,
    }
}

/// S1, S2. A crashed primary's recovery makes commits visible that the relay may not hold yet: with quorum
/// durability it goes through a term of its own, whose marker follows them all.
fn restarted(view: &View<'_>, state: &State, now: Now) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    let facts = view.node(&primary.node).filter(|n| n.is_up_as(Role::Primary))?.facts?;
    if primary.started_at.as_ref() == Some(&facts.started_at) {
        return None;
    }
    let seen = Primary { started_at: Some(facts.started_at.clone()), ..primary.clone() };
    let mut next = State { primary: Some(seen), ..state.clone() };
    if primary.started_at.is_none() {
        return Fired::new(RuleId::S1, next);
    }
    if state.durability == Durability::Quorum {
        next = next.in_term(view.next_term(state));
        next = establish::establishing(next, Why::Restarted, EstablishStep::Confirm, now);
    }
    Fired::new(RuleId::S2, next)
}

/// S3.
fn follows_again(view: &View<'_>, state: &State) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    let follows = |name: &NodeName| {
        view.node(name).is_some_and(|n| n.is_up_as(Role::Standby))
            && view.wal.follower(name).is_some_and(|f| f.streams() && f.timeline == primary.timeline)
    };
    let back = state.away().find(|name| *name == &primary.node || follows(name))?.clone();
    let mut next = state.clone();
    next.deposed.retain(|name| *name != back);
    next.stranded.retain(|name| *name != back);
    Fired::new(RuleId::S3, next)
}

/// S4. How it comes about: (1) a standby is copied from the primary, or rewound to it, up to WAL that the relay
/// does not hold yet; (2) the primary is lost; (3) another takes over from where the relay was. The standby runs,
/// and asks for ever for what comes behind WAL that nobody else has.
fn stranded(view: &View<'_>, state: &State) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    let found = |node: &NodeView<'_>| {
        let name = &node.node.name;
        if state.stranded.contains(name)
            || state.is_in_maintenance(name)
            || !seems_stranded(view, node, primary)
        {
            return None;
        }
        match view.ledger.finding(&locate(state, name))? {
            Finding::Located { timeline, replayed } if is_beyond(primary, *timeline, *replayed) => {
                Some(LeftBehind { node: name.clone(), timeline: *timeline, position: *replayed })
            }
            _ => None,
        }
    };
    let left_behind = view.nodes.iter().find_map(found)?;
    let mut next = state.clone();
    next.stranded.push(left_behind.node.clone());
    let mut fired = Fired::new(RuleId::S4, next)?;
    fired.left_behind = Some(left_behind);
    Some(fired)
}

/// By its last answer: what a standby says of its timeline may be old while its walreceiver has no connection.
/// So it is asked to write it down before this is believed ([`What::Locate`]).
fn seems_stranded(view: &View<'_>, node: &NodeView<'_>, primary: &Primary) -> bool {
    let follows =
        view.wal.follower(&node.node.name).is_some_and(|f| f.streams() && f.timeline == primary.timeline);
    let beyond = node.facts.is_some_and(|f| is_beyond(primary, f.timeline, f.position));
    node.node.name != primary.node && node.is_up_as(Role::Standby) && !follows && beyond
}

fn is_beyond(primary: &Primary, timeline: TimelineId, replayed: Lsn) -> bool {
    primary.fork_of(timeline).is_some_and(|fork| fork < replayed)
}

/// S5. How it comes about: (1) a standby is away, or slow, for so long that its slot costs more than `wal.retain`
/// allows and is given up; (2) the WAL that it needs next is removed; (3) it comes back, and is refused for ever. Its
/// slot alone says nothing: it may have found that WAL elsewhere, and stream from another relay ever since; so the wait
/// begins when it ceases to. Where there is an archive it may still find it there,
/// by its restore_command: then people are told, by the alarm, and nothing is done. What it has received it need not have
/// replayed: while replay is paused nothing is asked for, and behind the pause that comes first.
fn starved(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<Fired> {
    let primary = state.primary.as_ref().filter(|_| view.wal.archive.is_none())?;
    let lost_for = |name: &NodeName| {
        view.wal.slot_lost_at_ms(&name.slot()).map(|at| u128::from(now.unix_ms.saturating_sub(at)))
    };
    let is_starved = |node: &&NodeView<'_>| {
        let name = &node.node.name;
        *name != primary.node
            && !state.stranded.contains(name)
            && !state.is_in_maintenance(name)
            && node.is_up_as(Role::Standby)
            && lost_for(name).is_some_and(|millis| millis >= policy.lost_slot_wait.as_millis())
            && node
                .streamed_at
                .is_some_and(|at| now.instant.saturating_duration_since(at) >= policy.lost_slot_wait)
            && !view.wal.follower(name).is_some_and(Follower::streams)
            && node.facts.is_some_and(|facts| facts.position.max(facts.received) < view.wal.oldest)
    };
    let starved = view.nodes.iter().find(is_starved)?;
    let mut next = state.clone();
    next.stranded.push(starved.node.name.clone());
    Fired::new(RuleId::S5, next)
}

/// S7. One instance more, or one less, is in all lists. The term is what makes the change safe: relays promise it, so no
/// stream acknowledges by the setting of before once the next one is in force. Until S8 an election needs enough of those
/// before and of these. The primary is the same; but an instance of which the relays have promised the term before it has
/// heard of it is not vouched for, and its transactions end. Relays that do not stream would hold all writes; should they
/// stop to amid the change, a list that is taken back is the way back.
pub(super) fn other_instances(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<Fired> {
    let primary = state.primary.as_ref().filter(|_| view.agreed_on_instances == Agreement::Yes)?;
    let node = view.node(&primary.node).filter(|node| node.is_up_as(Role::Primary))?;
    let wanted = policy.acknowledgers(node)?;
    let streaming = wanted.relays.iter().filter(|relay| view.streaming.contains(relay)).count();
    let is_named = state.quorums.last().is_some_and(|named| named.relays == wanted.relays);
    if is_named || streaming < wanted.quorum().acks() {
        return None;
    }
    let mut next = state.clone().in_term(view.next_term(state));
    next.primary = Some(Primary { term: next.term, ..primary.clone() });
    next.acknowledged_by(Some(wanted));
    Fired::new(RuleId::S7, establish::establishing(next, Why::Instances, EstablishStep::Prepare, now))
}

/// S8. Those who acknowledged before the last change do not count any more. Not as soon as writes are open: one of them that
/// has not heard of the term (etcd does not reach it) may still be vouched for by the others, or by its own word alone. As
/// long as they count, whoever replaces the primary has to have their promises, too.
fn settled(view: &View<'_>, state: &State) -> Option<Fired> {
    let settled = state.quorums.len() > 1 && view.settled == Agreement::Yes;
    settled.then(|| state.clone().acknowledged_by_the_last()).and_then(|next| Fired::new(RuleId::S8, next))
}

/// S9. What is not in the configuration any more follows nobody, and nobody works on it.
fn removed(view: &View<'_>, state: &State) -> Option<Fired> {
    let is_known = |name: &NodeName| view.node(name).is_some();
    if state.away().chain(&state.maintenance).all(is_known) {
        return None;
    }
    let mut next = state.clone();
    for nodes in [&mut next.deposed, &mut next.stranded, &mut next.maintenance] {
        nodes.retain(is_known);
    }
    Fired::new(RuleId::S9, next)
}

fn locate(state: &State, node: &NodeName) -> Action {
    Action { term: state.term, node: node.clone(), what: What::Locate }
}

pub(super) fn wanted(view: &View<'_>, state: &State, policy: &Policy) -> Vec<Action> {
    let Some(primary) = &state.primary else { return Vec::new() };
    let mut actions = rolling::wanted(view, state);
    actions.extend(budget::wanted(view, state, policy));
    let want = |node: &NodeName, what| Action { term: state.term, node: node.clone(), what };
    let source = view.node(&primary.node).filter(|n| n.is_up_as(Role::Primary)).and_then(|n| n.facts);
    if let Some(facts) = source {
        let names = policy.names(state);
        if !names.fits(&facts.synchronous_standby_names) || facts.relay_slot == SlotState::Absent {
            actions.push(want(&primary.node, What::Prepare { names }));
        }
        if facts.checkpoint_timeline != primary.timeline {
            actions.push(want(&primary.node, What::Checkpoint));
        }
    }
    // What an operator works on is the operator's.
    let others = view.nodes.iter().filter(|n| n.node.name != primary.node);
    let others = others.filter(|n| !state.is_in_maintenance(&n.node.name));
    for node in others.filter(|n| !view.ledger.is_server_busy(&n.node.name)) {
        if seems_stranded(view, node, primary) && !state.stranded.contains(&node.node.name) {
            actions.push(locate(state, &node.node.name));
            continue;
        }
        let Some(what) = duty(node, state, primary, source) else { continue };
        let action = want(&node.node.name, what);
        // A server that does not start as the standby it was is looked at more closely, and one that was never made, or
        // whose disk is new, is made.
        let starts = matches!(action.what, What::Start { .. });
        let fails = view.ledger.failures(&action) >= policy.attempts;
        let is_missing = view.ledger.finding(&action) == Some(&Finding::NothingThere);
        let rejoin = What::Rejoin { source: primary.node.clone() };
        let closer = starts && (is_missing || fails) && source.is_some();
        actions.push(if closer { Action { what: rejoin, ..action } } else { action });
    }
    actions
}

/// What a node that is not the primary needs. `source`: the primary's own answer, while it gives one.
fn duty(node: &NodeView<'_>, state: &State, primary: &Primary, source: Option<&Facts>) -> Option<What> {
    let name = &node.node.name;
    let runs_as_primary = node.is_up_as(Role::Primary);
    let out_of_use = node.is_down() || node.process == Process::Absent;
    let was_primary = node.facts.is_some_and(|f| f.role == Role::Primary);
    let advise = |patient| Some(What::Advise { source: primary.node.clone(), patient });
    if state.stranded.contains(name) && !runs_as_primary {
        return match (node.agent, source) {
            (Agent::Local, Some(_)) => Some(What::Rebuild { source: primary.node.clone() }),
            (Agent::Local, None) | (Agent::Away, _) => None,
            (Agent::None, _) => advise(Patient::Stranded),
        };
    }
    if runs_as_primary || (out_of_use && (was_primary || state.is_deposed(name))) {
        // pg_rewind finds the fork by the source's control file, which has the new timeline only after a
        // checkpoint (before PostgreSQL 16).
        let source_is_ready = source.is_some_and(|f| f.checkpoint_timeline == primary.timeline);
        return match node.agent {
            Agent::Local if source_is_ready => Some(What::Rejoin { source: primary.node.clone() }),
            Agent::Local => runs_as_primary.then_some(What::Stop),
            Agent::Away => None,
            Agent::None => advise(Patient::FormerPrimary),
        };
    }
    if node.process == Process::Absent {
        return (node.agent == Agent::Local).then_some(What::Start { role: StartAs::Standby });
    }
    let stale_slot =
        node.is_up_as(Role::Standby) && node.facts.is_some_and(|f| f.relay_slot == SlotState::Inactive);
    stale_slot.then_some(What::DropSlot)
}

/// A server whose files were replaced again and again, and that never followed.
pub(super) fn obstacle_to_follow(view: &View<'_>, state: &State, policy: &Policy) -> Option<String> {
    let copies = |node: &NodeView<'_>| view.ledger.copies(&node.node.name);
    let in_vain = |node: &&NodeView<'_>| {
        let follows = view.wal.follower(&node.node.name).is_some_and(Follower::streams);
        copies(node) >= Ledger::COPIES_IN_PEACE && !follows && !state.is_in_maintenance(&node.node.name)
    };
    let node = view.nodes.iter().find(in_vain)?;
    Some(format!(
        "{} does not follow after {} attempts to make a standby of it, the log says why; it is tried ever more \
         seldom, and at once when {} is restarted",
        node.node.name,
        copies(node),
        policy.instance
    ))
}

/// The record of a running election ends badly, and the next term begins.
pub(super) fn fence_again(
    view: &View<'_>,
    state: &State,
    failed: &Election,
    why: String,
    now: Now,
) -> Option<Fired> {
    let record = super::election::concluded(failed, Outcome::Failed { why: why.clone() }, now);
    let mut fired = fence(view, state, RuleId::E11, vec![why], failed.preferred.clone(), now)?;
    fired.concluded = Some(record);
    Some(fired)
}
