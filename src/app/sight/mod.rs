//! What the planes publish, on its way to another process: to the one whose place is taken, to the other instances.
//! PURE.
//!
//! Each type is the mirror of a value of `topology` with moments in it; what has none travels as it is. Moments travel
//! as ages: no clock is shared. What took long on its way looks as fresh as it was when it left: whoever needs to know
//! counts from when it asked.

mod health;
mod proxy;
mod wal;

pub(super) use health::NodeSight;
pub(super) use proxy::ProxySight;
pub(super) use wal::WalSight;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long ago something was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Age(Duration);

impl Age {
    pub(super) fn of(now: Instant, at: Instant) -> Age {
        Age(now.saturating_duration_since(at))
    }

    /// Before the beginning of this host's clock is its beginning, as far as that can be told.
    pub(super) fn at(self, now: Instant) -> Instant {
        now.checked_sub(self.0).unwrap_or(now)
    }
}
