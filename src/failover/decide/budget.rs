//! How many automatic failovers there may be within a while: enough of them one after the other, and what ails the
//! cluster is hardly its primaries. Each of them costs clients a pause, a timeline and the old primary's place, and
//! the next would meet the same. PURE.
//!
//! Counted is each begin of one (F1 to F5), in the state, so that whoever leads next goes on counting. The window
//! slides: a primary that is dead for good does not stay so longer than [`Budget::window`], and nobody has to come.
//! A person's word ([`Spent::refreshed`]) ends the wait at once. What begins under an election that goes on is not
//! counted (E11): there is no primary to return to.
//!
//! While the budget is spent the dead primary is still the primary: its agent starts it, and when it comes back, it goes
//! on as after any restart of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Action, Agent, Automatic, Fired, Mode, Now, Policy, PrimaryVerdict, Process, RuleId, StartAs, State,
    View, What,
};
use crate::topology::Failovers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// At least 1.
    pub failovers: usize,
    pub window: Duration,
}

/// What was spent of it. Journaled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// When automatic failovers began, Unix milliseconds, oldest first; at most [`Budget::MAX`].
    begun_ms: Vec<u64>,
    /// Since when a dead primary is left as it is because of them, Unix milliseconds.
    stopped_ms: Option<u64>,
}

impl Budget {
    /// What can be configured, and is remembered.
    pub const MAX: usize = 100;

    /// When the next automatic failover may begin; `None`: now.
    pub(super) fn waits_until(&self, spent: &Spent, now_ms: u64) -> Option<u64> {
        let window = u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX);
        // Another host's clock may be ahead of this one; and what a clock that was set back makes a thing of the far
        // future must not count for ever.
        let counts = |at: &&u64| at.abs_diff(now_ms) < window;
        let lately: Vec<u64> = spent.begun_ms.iter().filter(counts).copied().collect();
        let first = lately.len().checked_sub(self.failovers)?;
        lately.get(first).map(|at| at.saturating_add(window))
    }
}

impl Spent {
    #[must_use]
    fn and_one_more(mut self, now_ms: u64) -> Spent {
        self.begun_ms.push(now_ms);
        self.begun_ms.sort_unstable();
        let excess = self.begun_ms.len().saturating_sub(Budget::MAX);
        self.begun_ms.drain(..excess);
        self.went_on()
    }

    /// There is a primary again, or is to be.
    #[must_use]
    pub(super) fn went_on(mut self) -> Spent {
        self.stopped_ms = None;
        self
    }

    /// A person has looked at it.
    pub(crate) fn refreshed() -> Spent {
        Spent::default()
    }
}

/// Whether a dead primary is replaced without a person, now or later.
pub(super) fn is_automatic(state: &State, policy: &Policy) -> bool {
    policy.mode == Mode::Automatic && state.automatic == Automatic::On
}

fn waits_until(state: &State, policy: &Policy, now_ms: u64) -> Option<u64> {
    policy.budget?.waits_until(&state.budget, now_ms)
}

/// F1..F5 as far as the budget lets them; `begin`: the rule's own election.
pub(super) fn spend(
    state: &State,
    policy: &Policy,
    now: Now,
    begin: impl FnOnce() -> Option<Fired>,
) -> Option<Fired> {
    if waits_until(state, policy, now.unix_ms).is_some() {
        return None;
    }
    let mut fired = begin()?;
    fired.next.budget = state.budget.clone().and_one_more(now.unix_ms);
    Some(fired)
}

/// F7, and S6. How it comes about: (1) a statement crashes every server that runs it; (2) its client tries again, at each
/// new primary; (3) so many have been elected within the window.
pub(super) fn watch(view: &View<'_>, state: &State, policy: &Policy, now: Now) -> Option<Fired> {
    let next = |budget| State { budget, ..state.clone() };
    match (&view.verdict, state.budget.stopped_ms) {
        (PrimaryVerdict::Dead { .. }, None) if is_automatic(state, policy) => {
            waits_until(state, policy, now.unix_ms)?;
            Fired::new(RuleId::F7, next(Spent { stopped_ms: Some(now.unix_ms), ..state.budget.clone() }))
        }
        (PrimaryVerdict::Alive, Some(_)) => Fired::new(RuleId::S6, next(state.budget.clone().went_on())),
        _ => None,
    }
}

/// The same primary may come back, and nobody else is to take over now: its agent starts it.
/// Where failover is not automatic, what befalls a primary is a person's.
pub(super) fn wanted(view: &View<'_>, state: &State, policy: &Policy) -> Option<Action> {
    let stopped = state.budget.stopped_ms.is_some() && is_automatic(state, policy);
    let primary = state.primary.as_ref().filter(|_| stopped)?;
    let node = view.node(&primary.node)?;
    let startable = node.agent == Agent::Local && node.process == Process::Absent;
    startable.then(|| Action {
        term: state.term,
        node: primary.node.clone(),
        what: What::Start { role: StartAs::ItIs },
    })
}

/// For people, and for whoever shows it to them.
pub fn failovers(state: &State, policy: &Policy, now_ms: u64) -> Failovers {
    if policy.mode == Mode::Manual {
        return Failovers::Manual;
    }
    if state.automatic == Automatic::Paused {
        return Failovers::Paused;
    }
    match (policy.budget, state.budget.stopped_ms) {
        (Some(budget), Some(since_ms)) => Failovers::Spent {
            failovers: budget.failovers,
            within_seconds: budget.window.as_secs(),
            since_ms,
            next_at_ms: budget.waits_until(&state.budget, now_ms).unwrap_or(since_ms),
        },
        (None, _) | (_, None) => Failovers::Automatic,
    }
}
