//! Whether a dead primary is replaced without a person.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Failovers {
    #[default]
    Automatic,
    /// By the configuration.
    Manual,
    /// Until an operator resumes them.
    Paused,
    /// The primary is dead, and there were as many automatic failovers of late as there may be.
    Spent {
        failovers: usize,
        within_seconds: u64,
        /// Unix milliseconds.
        since_ms: u64,
        /// When the next may begin by itself.
        next_at_ms: u64,
    },
}

impl Failovers {
    /// As it is written in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Failovers::Automatic => "automatic",
            Failovers::Manual => "manual",
            Failovers::Paused => "paused",
            Failovers::Spent { .. } => "spent",
        }
    }
}

/// With what to do about it.
impl fmt::Display for Failovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failovers::Spent { failovers, within_seconds, next_at_ms, .. } = self else {
            return f.write_str(self.word());
        };
        let window = humantime::format_duration(Duration::from_secs(*within_seconds));
        let next = UNIX_EPOCH.checked_add(Duration::from_millis(*next_at_ms)).unwrap_or(UNIX_EPOCH);
        write!(
            f,
            "the primary is dead and is not replaced: {failovers} automatic failovers within {window} are enough \
             (failover.budget); the next may begin at {}; `bellwether failover` does not wait, and `bellwether resume` \
             gives a fresh budget",
            humantime::format_rfc3339_seconds(next)
        )
    }
}
