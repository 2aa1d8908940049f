//! Making a node that already is primary ready for its term: at the first start, after a restart of this
//! process, after a primary came back. Writes are held until a marker transaction has committed.

use super::{
    Action, Agent, EstablishStep, Finding, Fired, Fork, NodeView, Now, Phase, Policy, Primary, Process,
    Request, RuleId, StartAs, State, View, What, Why, budget, marker, marker_is_durable, steady,
};
use crate::failover::health::{Facts, PrimaryVerdict};
use crate::topology::{Durability, Floor, NodeName, Role, Upstream};

/// B1. Nobody is chosen here: there must be one primary already, and no doubt about it.
pub(super) fn bootstrap(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    since_ms: u64,
    now: Now,
) -> Option<Fired> {
    let up: Vec<_> = view.nodes.iter().filter(|n| n.health.state.is_up()).collect();
    let accounted = up.len() + view.nodes.iter().filter(|n| n.process == Process::Absent).count();
    let waited = u128::from(now.unix_ms.saturating_sub(since_ms)) >= policy.bootstrap_timeout.as_millis();
    if accounted < view.nodes.len() && !(waited && accounted * 2 > view.nodes.len()) {
        return None;
    }
    if view.unheard > 0 && !waited {
        return None;
    }
    let mut primaries = up.iter().filter(|n| n.is_up_as(Role::Primary));
    let (Some(only), None) = (primaries.next(), primaries.next()) else { return None };
    let facts = only.facts?;
    let one_cluster = up.iter().all(|n| n.facts.is_some_and(|f| f.system == facts.system));
    let relay_agrees =
        view.wal.system.is_none_or(|system| system == facts.system) && view.wal.timeline <= facts.timeline;
    if !one_cluster || !relay_agrees {
        return None;
    }
    let mut next = state.clone().in_term(view.next_term(state));
    next.primary = Some(verified(&only.node.name, facts, &next, Vec::new()));
    next.acknowledged_by(policy.acknowledgers(only));
    Fired::new(RuleId::B1, establishing(next, Why::Bootstrap, EstablishStep::Prepare, now))
}

pub(super) fn advance(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    (why, step): (Why, EstablishStep),
    now: Now,
) -> Option<Fired> {
    let primary = state.primary.as_ref()?;
    if step == EstablishStep::Confirm
        && let Some(successor) = successor(view, state, primary)
    {
        return adopt_successor(view, state, policy, primary, successor, now);
    }
    if let Some(Request::Failover { to }) = view.request.as_ref().filter(|_| is_in_vain(view, state, step)) {
        return steady::asked(view, state, to.as_ref(), now);
    }
    if step == EstablishStep::Confirm
        && let Some((node, facts)) = confirmed(view, primary)
    {
        let mut next = state.clone().in_term(view.term_to_adopt(state));
        next.primary = Some(verified(&primary.node, facts, &next, primary.forks.clone()));
        next.acknowledged_by(policy.acknowledgers(node));
        return Fired::new(RuleId::A1, establishing(next, why, EstablishStep::Prepare, now));
    }
    if step != EstablishStep::Confirm && view.promised > state.term {
        let next = state.clone().in_term(view.term_to_adopt(state));
        return Fired::new(RuleId::A1, establishing(next, why, EstablishStep::Confirm, now));
    }
    let dead = steady::primary_dead(view, state, policy, now);
    let dead = dead.or_else(|| budget::watch(view, state, policy, now));
    if dead.is_some() {
        return dead;
    }
    // Perhaps the list was taken back since those who are to acknowledge do not.
    let others = (why == Why::Instances && step != EstablishStep::Confirm)
        .then(|| steady::other_instances(view, state, policy, now));
    if let Some(fired) = others.flatten() {
        return Some(fired);
    }
    match step {
        EstablishStep::Confirm => None,
        EstablishStep::Prepare => {
            let Finding::Prepared { end } = view.ledger.finding(&policy.prepare(state, &primary.node))?
            else {
                return None;
            };
            let mut next = state.clone();
            // Who acknowledges from here on must have what was acknowledged before. A relay that has not heard of the term
            // gets nothing that lies behind this: the streams of the terms before were ended, and none begins again.
            if next.floor.is_none() && !next.quorums.is_empty() {
                let log_term = state.log_term;
                next.floor = Some(Floor { timeline: primary.timeline, end: *end, source: None, log_term });
            }
            let step = match state.durability {
                Durability::Quorum => EstablishStep::Follow,
                // The primary's own disk is the promise; the relay connects meanwhile.
                Durability::Async => EstablishStep::Marker,
            };
            Fired::new(RuleId::P1, establishing(next, why, step, now))
        }
        EstablishStep::Follow => relay_follows(view, primary)
            .then(|| establishing(state.clone(), why, EstablishStep::Marker, now))
            .and_then(|next| Fired::new(RuleId::P2, next)),
        EstablishStep::Marker => marker_is_durable(view, state, &primary.node)
            .then(|| state.clone().opened())
            .and_then(|next| Fired::new(RuleId::P3, next)),
    }
}

/// F6: whoever is made ready is dead, and nobody else is primary. How it comes about: (1) nothing replaces a dead primary
/// by itself (F7, a pause, `failover.mode`); (2) it comes back, and crashes again before it is ready.
pub(super) fn is_in_vain(view: &View<'_>, state: &State, step: EstablishStep) -> bool {
    let is_dead = matches!(view.verdict, PrimaryVerdict::Dead { .. });
    let succeeded = |primary| step == EstablishStep::Confirm && successor(view, state, primary).is_some();
    is_dead && state.primary.as_ref().is_some_and(|primary| !succeeded(primary))
}

/// The relay streams from the primary, on its timeline.
pub(super) fn relay_follows(view: &View<'_>, primary: &Primary) -> bool {
    matches!(&view.wal.upstream, Upstream::Streaming { node, .. } if *node == primary.node)
        && view.wal.timeline == primary.timeline
}

pub(super) fn establishing(state: State, why: Why, step: EstablishStep, now: Now) -> State {
    State { phase: Phase::Establishing { why, step, since_ms: now.unix_ms }, ..state }
}

/// The recorded primary's answer, when it is still what was recorded.
fn confirmed<'a>(view: &'a View<'a>, primary: &Primary) -> Option<(&'a NodeView<'a>, &'a Facts)> {
    let node = view.node(&primary.node).filter(|n| n.is_up_as(Role::Primary))?;
    let facts = node.facts.filter(|f| f.system == primary.system && f.timeline == primary.timeline);
    facts.filter(|f| !lacks_wal(view, primary, f)).map(|facts| (node, facts))
}

/// It came back with less than it had sent: its disk did not keep what it promised, and what it writes now
/// differs from what the relay holds at the same place.
fn lacks_wal(view: &View<'_>, primary: &Primary, facts: &Facts) -> bool {
    view.wal.timeline == primary.timeline && facts.position < view.wal.verified
}

/// Somebody else who runs as a primary and is not one of those we have deposed ourselves.
fn successor<'a>(view: &'a View<'_>, state: &State, primary: &Primary) -> Option<&'a NodeName> {
    let is_foreign = |name: &NodeName| *name != primary.node && !state.is_deposed(name);
    view.nodes.iter().find(|n| n.is_up_as(Role::Primary) && is_foreign(&n.node.name)).map(|n| &n.node.name)
}

/// A2. While this process was away somebody promoted another node. It is believed only when nothing else claims
/// to be primary, every node is accounted for, and its history takes over all that the relay holds; else writes
/// stay held, for a person to decide.
fn adopt_successor(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    primary: &Primary,
    successor: &NodeName,
    now: Now,
) -> Option<Fired> {
    let all_accounted = view.nodes.iter().all(|n| n.health.state.is_up() || n.process == Process::Absent);
    let alone = view.nodes.iter().filter(|n| n.is_up_as(Role::Primary)).count() == 1;
    if !all_accounted || !alone {
        return None;
    }
    let Some(Finding::Promoted(found)) = view.ledger.finding(&inspect(state, primary, successor)) else {
        return None;
    };
    let node = view.node(successor)?;
    let facts = node.facts?;
    let descends = found.system == primary.system
        && found.timeline > primary.timeline
        && found.timeline == facts.timeline
        && found.switchpoint.is_some_and(|at| view.wal.verified <= at);
    if !descends {
        return None;
    }
    let mut next = state.clone().in_term(view.next_term(state));
    next.depose(&primary.node);
    next.maintenance.retain(|node| node != successor);
    let forks = primary.forks_of_successor(found.switchpoint);
    next.primary = Some(verified(successor, facts, &next, forks));
    next.acknowledged_by(policy.acknowledgers(node));
    Fired::new(RuleId::A2, establishing(next, Why::Adopt, EstablishStep::Prepare, now))
}

fn verified(node: &NodeName, facts: &Facts, state: &State, forks: Vec<Fork>) -> Primary {
    Primary {
        node: node.clone(),
        system: facts.system,
        timeline: facts.timeline,
        term: state.term,
        forks,
        started_at: Some(facts.started_at.clone()),
    }
}

fn inspect(state: &State, primary: &Primary, node: &NodeName) -> Action {
    Action { term: state.term, node: node.clone(), what: What::Inspect { from: primary.timeline } }
}

/// Why a primary that is known is not opened yet.
pub(super) fn obstacle_to_open(view: &View<'_>, state: &State, step: EstablishStep) -> Option<String> {
    let node = &state.primary.as_ref()?.node;
    match step {
        EstablishStep::Confirm => None,
        EstablishStep::Prepare => Some(format!(
            "{node} is not opened: its synchronous_standby_names cannot be set, or the relay's slot not created"
        )),
        EstablishStep::Follow => {
            let why = match &view.wal.upstream {
                Upstream::Connecting { last_error: Some(why), .. } => format!(": {why}"),
                _ => String::new(),
            };
            Some(format!("{node} is not opened: the relay does not stream from it{why}"))
        }
        EstablishStep::Marker => {
            Some(format!("{node} is not opened: a transaction does not commit there, or not durably"))
        }
    }
}

/// After the bootstrap timeout: why there is still no primary.
pub(super) fn obstacle_to_bootstrap(
    view: &View<'_>,
    policy: &Policy,
    since_ms: u64,
    now: Now,
) -> Option<String> {
    if u128::from(now.unix_ms.saturating_sub(since_ms)) < policy.bootstrap_timeout.as_millis() {
        return None;
    }
    let named = |role| {
        let nodes = view.nodes.iter().filter(move |n| n.is_up_as(role)).map(|n| n.node.name.as_str());
        nodes.collect::<Vec<_>>().join(", ")
    };
    let systems: Vec<_> = view.nodes.iter().filter_map(|n| n.facts.map(|f| f.system)).collect();
    let (primaries, standbys) = (named(Role::Primary), named(Role::Standby));
    Some(if systems.windows(2).any(|pair| pair[0] != pair[1]) {
        "the nodes belong to different clusters: their system identifiers differ".to_owned()
    } else if view.wal.system.is_some_and(|system| systems.iter().any(|s| *s != system)) {
        "the relay's store holds WAL of another cluster".to_owned()
    } else {
        format!(
            "exactly one primary is needed to begin with; primaries: [{primaries}], standbys: [{standbys}], \
             {} nodes configured",
            view.nodes.len()
        )
    })
}

/// Why a recorded primary is not confirmed, after the same time.
pub(super) fn obstacle_to_confirm(
    view: &View<'_>,
    state: &State,
    policy: &Policy,
    since_ms: u64,
    now: Now,
) -> Option<String> {
    if u128::from(now.unix_ms.saturating_sub(since_ms)) < policy.bootstrap_timeout.as_millis() {
        return None;
    }
    let primary = state.primary.as_ref()?;
    let facts = view.node(&primary.node).filter(|n| n.is_up_as(Role::Primary)).and_then(|n| n.facts);
    if let Some(facts) = facts.filter(|facts| lacks_wal(view, primary, facts)) {
        let (node, position, held) = (&primary.node, facts.position, view.wal.verified);
        return Some(format!(
            "{node} came back with WAL up to {position} only; the relay holds it up to {held}"
        ));
    }
    Some(match successor(view, state, primary) {
        Some(other) => format!(
            "{other} runs as a primary, but {} was recorded, and it is not proven that {other} has all its WAL",
            primary.node
        ),
        None => format!(
            "{} does not answer as the primary of timeline {} that was recorded, and nobody may take over yet",
            primary.node, primary.timeline
        ),
    })
}

/// Local servers that do not run are started: without them nothing can be learned.
pub(super) fn wanted_to_bootstrap(view: &View<'_>, state: &State) -> Vec<Action> {
    let absent = view.nodes.iter().filter(|n| n.agent == Agent::Local && n.process == Process::Absent);
    absent
        .filter(|n| !state.is_in_maintenance(&n.node.name))
        .map(|n| Action {
            term: state.term,
            node: n.node.name.clone(),
            what: What::Start { role: StartAs::ItIs },
        })
        .collect()
}

pub(super) fn wanted(view: &View<'_>, state: &State, policy: &Policy, step: EstablishStep) -> Vec<Action> {
    let Some(primary) = &state.primary else { return Vec::new() };
    let duties = match step {
        EstablishStep::Confirm => match successor(view, state, primary) {
            Some(successor) => vec![inspect(state, primary, successor)],
            // A deposed node is not started here: it would come up as a primary.
            None => {
                wanted_to_bootstrap(view, state).into_iter().filter(|a| !state.is_deposed(&a.node)).collect()
            }
        },
        EstablishStep::Prepare => vec![policy.prepare(state, &primary.node)],
        EstablishStep::Follow => Vec::new(),
        EstablishStep::Marker => vec![marker(state.term, &primary.node)],
    };
    let start = budget::wanted(view, state, policy).filter(|_| step != EstablishStep::Confirm);
    duties.into_iter().chain(start).collect()
}
