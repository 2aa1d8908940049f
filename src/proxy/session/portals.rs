//! Which statement a portal runs, where its completion changes the session.

use std::collections::HashMap;
use std::sync::Arc;

use super::ledger::Follow;
use crate::proxy::route::Verdict;

/// Those of the transaction under way.
#[derive(Debug, Default)]
pub(super) struct Portals {
    unnamed: Option<Arc<Verdict>>,
    /// At most [`MAX_NAMED`].
    named: HashMap<Box<[u8]>, Arc<Verdict>>,
}

/// What the statement of a followed portal does is noted when it is executed: that may be units after its Bind, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    No,
    Yes,
}

/// Beyond it what portals do to the session is not followed; nobody binds as many that change it.
const MAX_NAMED: usize = 1000;

impl Portals {
    pub(super) fn bound(&mut self, portal: &[u8], verdict: Option<&Arc<Verdict>>) -> Followed {
        let followed = verdict.filter(|verdict| !verdict.steps.is_empty());
        match followed {
            followed if portal.is_empty() => self.unnamed = followed.cloned(),
            Some(verdict) if self.named.len() < MAX_NAMED => {
                self.named.insert(portal.into(), verdict.clone());
            }
            _ if self.named.is_empty() => return Followed::No,
            _ => {
                self.named.remove(portal);
                return Followed::No;
            }
        }
        if followed.is_some() { Followed::Yes } else { Followed::No }
    }

    /// None of them changes the session: what is executed need not be known.
    pub(super) fn is_empty(&self) -> bool {
        self.unnamed.is_none() && self.named.is_empty()
    }

    pub(super) fn executed(&self, portal: &[u8]) -> Follow {
        let verdict = if portal.is_empty() { self.unnamed.as_ref() } else { self.named.get(portal) };
        verdict.map(Follow::of).unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.unnamed = None;
        self.named.clear();
    }
}
