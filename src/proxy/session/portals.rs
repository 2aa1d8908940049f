//! Which statement a portal runs, where its completion changes the session.

use std::collections::HashMap;
use std::sync::Arc;

use super::ledger::Follow;
use crate::proxy::route::Verdict;

/// Those of the transaction under way, and of what is sent behind its end.
#[derive(Debug, Default)]
pub(super) struct Portals {
    unnamed: Unnamed,
    /// The unit by which the unnamed one was bound ([`Ledger::unit`](super::ledger::Ledger::unit)).
    unnamed_by: u64,
    /// At most [`MAX_NAMED`].
    named: HashMap<Box<[u8]>, Bound>,
}

#[derive(Debug)]
struct Bound {
    verdict: Arc<Verdict>,
    by: u64,
}

#[derive(Debug, Default)]
enum Unnamed {
    /// None, or one that changes nothing.
    #[default]
    Plain,
    Followed(Arc<Verdict>),
    /// Of a statement of our own, which stands where the client has none.
    Ours,
}

/// What the statement of a followed portal does is noted when it is executed: that may be units after its Bind, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// There is nothing to follow.
    No,
    Yes,
    /// It would have to be.
    TooMany,
}

/// Beyond it what portals do to the session is not followed, and the server is kept; hardly anybody binds as many that
/// change it.
const MAX_NAMED: usize = 1000;

impl Portals {
    /// `by` this unit.
    pub(super) fn bound(&mut self, portal: &[u8], verdict: Option<&Arc<Verdict>>, by: u64) -> Followed {
        if portal.is_empty() {
            (self.unnamed, self.unnamed_by) = (Unnamed::Plain, by);
        } else if !self.named.is_empty() {
            self.named.remove(portal);
        }
        let Some(verdict) = verdict.filter(|verdict| !verdict.steps.is_empty()) else { return Followed::No };
        if portal.is_empty() {
            self.unnamed = Unnamed::Followed(verdict.clone());
        } else if self.named.len() < MAX_NAMED {
            self.named.insert(portal.into(), Bound { verdict: verdict.clone(), by });
        } else {
            return Followed::TooMany;
        }
        Followed::Yes
    }

    /// None of them changes the session: what is executed need not be known.
    pub(super) fn is_empty(&self) -> bool {
        !matches!(self.unnamed, Unnamed::Followed(_)) && self.named.is_empty()
    }

    pub(super) fn executed(&self, portal: &[u8]) -> Follow {
        let verdict = match &self.unnamed {
            Unnamed::Followed(verdict) if portal.is_empty() => Some(verdict),
            _ => self.named.get(portal).map(|bound| &bound.verdict),
        };
        verdict.map(Follow::of).unwrap_or_default()
    }

    /// A statement of our own is about to be run by the unnamed one.
    pub(super) fn lend_unnamed(&mut self, unit: u64) {
        (self.unnamed, self.unnamed_by) = (Unnamed::Ours, unit);
    }

    /// Whether the unnamed one is ours, and is to be closed before the client hears of it.
    pub(super) fn take_ours(&mut self) -> bool {
        let is_ours = matches!(self.unnamed, Unnamed::Ours);
        if is_ours {
            self.unnamed = Unnamed::Plain;
        }
        is_ours
    }

    /// A simple query has its own in its place, and drops it (`exec_simple_query` in postgres.c).
    pub(super) fn drop_unnamed(&mut self) {
        self.unnamed = Unnamed::Plain;
    }

    /// A transaction has ended, and with it the portals that were bound before this unit.
    pub(super) fn ended(&mut self, next: u64) {
        if self.unnamed_by < next {
            self.unnamed = Unnamed::Plain;
        }
        self.named.retain(|_, bound| bound.by >= next);
    }

    pub(super) fn clear(&mut self) {
        self.unnamed = Unnamed::Plain;
        self.named.clear();
    }
}
