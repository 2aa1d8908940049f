//! Which statement a portal runs, where its completion changes the session.

use std::collections::HashMap;
use std::sync::Arc;

use super::ledger::Follow;
use crate::proxy::route::Verdict;

/// Those of the transaction under way.
#[derive(Debug, Default)]
pub(super) struct Portals {
    unnamed: Unnamed,
    /// At most [`MAX_NAMED`].
    named: HashMap<Box<[u8]>, Arc<Verdict>>,
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
    No,
    Yes,
}

/// Beyond it what portals do to the session is not followed; nobody binds as many that change it.
const MAX_NAMED: usize = 1000;

impl Portals {
    pub(super) fn bound(&mut self, portal: &[u8], verdict: Option<&Arc<Verdict>>) -> Followed {
        let followed = verdict.filter(|verdict| !verdict.steps.is_empty());
        match followed {
            followed if portal.is_empty() => {
                self.unnamed = followed.cloned().map_or(Unnamed::Plain, Unnamed::Followed);
            }
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
        !matches!(self.unnamed, Unnamed::Followed(_)) && self.named.is_empty()
    }

    pub(super) fn executed(&self, portal: &[u8]) -> Follow {
        let verdict = match &self.unnamed {
            Unnamed::Followed(verdict) if portal.is_empty() => Some(verdict),
            _ => self.named.get(portal),
        };
        verdict.map(Follow::of).unwrap_or_default()
    }

    /// A statement of our own is about to be run by the unnamed one.
    pub(super) fn lend_unnamed(&mut self) {
        self.unnamed = Unnamed::Ours;
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

    pub(super) fn clear(&mut self) {
        self.unnamed = Unnamed::Plain;
        self.named.clear();
    }
}
