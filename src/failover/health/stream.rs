//! What the relay's stream from a node says of it. PURE.

use std::time::{Duration, Instant};

use crate::topology::{NodeName, StreamEnd, Upstream};

/// The relay's stream from one node, as evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Talking,
    Silent(Duration),
    Ended(String),
    /// The relay was not told to stream from it, or has only begun to try.
    None,
}

impl Stream {
    pub(super) fn of(upstream: &Upstream, name: &NodeName, now: Instant, timeout: Duration) -> Stream {
        match upstream {
            Upstream::Streaming { node, last_message, .. } if node == name => {
                let silent = now.saturating_duration_since(*last_message);
                if silent < timeout { Stream::Talking } else { Stream::Silent(silent) }
            }
            Upstream::Ended { node, how, .. } if node == name => Stream::Ended(describe(how)),
            Upstream::Connecting { node, last_error: Some(error), .. } if node == name => {
                Stream::Ended(error.clone())
            }
            _ => Stream::None,
        }
    }
}

fn describe(how: &StreamEnd) -> String {
    match how {
        StreamEnd::TimelineEnd { next, switchpoint } => format!("timeline {next} begins at {switchpoint}"),
        StreamEnd::Shutdown => "the server shut down".to_owned(),
        StreamEnd::Lost { why } | StreamEnd::Refused { why, .. } => why.clone(),
    }
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
