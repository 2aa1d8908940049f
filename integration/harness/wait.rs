//! Waiting for a condition instead of for a time.

use std::future::Future;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Returns the first `Some`; panics with `what` and the last complaint when there was none within `limit`.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}: {why}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// As [`eventually`], for probes that wait themselves.
pub(crate) async fn eventually_async<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(why) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}: {why}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
