//! One moment, as the cores are told it, and the wait for one.
#![expect(clippy::disallowed_methods, reason = "shell: reads both clocks")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::pg::PgTimestamp;

/// One moment, on the clock that measures and on the one that people read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    pub(crate) timestamp: PgTimestamp,
}

impl Now {
    pub(super) fn read() -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX);
        Now { at: Instant::now(), timestamp: PgTimestamp::from_unix_micros(micros) }
    }
}

/// For ever, if there is nothing to wait for.
pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
