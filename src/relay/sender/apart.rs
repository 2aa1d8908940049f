//! Followers that are far behind are served apart from the plane's thread, on threads of their own: what they need is
//! copied out of files, which takes a processor for as long as it takes, and the newest WAL must not wait for that.
//! Whoever has caught up comes back to where the durable end moves, and is told of it there without a system call.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// A follower that lacks more than this goes apart.
const FAR_BYTES: u64 = 32 << 20;
/// Not before it lacks less than this does it come back.
const NEAR_BYTES: u64 = 4 << 20;
/// Each of them can feed several followers; more of them would take processors from the servers on this host.
const MAX_THREADS: usize = 4;

/// Where a follower is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On the plane's thread, with all who are close to the end.
    Plane,
    Apart,
}

impl Place {
    /// Where one who is served here and lacks `behind` bytes of what is durable belongs.
    pub(super) fn next(self, behind: u64) -> Place {
        match self {
            Place::Plane if behind > FAR_BYTES => Place::Apart,
            Place::Apart if behind < NEAR_BYTES => Place::Plane,
            stay => stay,
        }
    }
}

/// The threads, once there was need of them. Those who wait for nothing cost nothing.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    runtime: OnceLock<Option<Runtime>>,
}

impl Apart {
    /// Runs `task` there; it ends with the handle.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<AbortOnDropHandle<T>> {
        let start = || {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
            let runtime = Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("wal-send")
                .enable_all()
                .build();
            runtime
                .inspect_err(|error| tracing::error!(%error, "no threads for followers that are far behind"))
                .ok()
        };
        let runtime = self.runtime.get_or_init(start).as_ref();
        let runtime =
            runtime.ok_or_else(|| io::Error::other("no threads for followers that are far behind"))?;
        Ok(AbortOnDropHandle::new(runtime.spawn(task)))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // Whoever drops this may be a task, which must not wait.
        if let Some(Some(runtime)) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FAR_BYTES, NEAR_BYTES, Place};

    #[test]
    fn nobody_goes_to_and_fro() {
        let check = |place: Place, behind, expected| assert_eq!(place.next(behind), expected, "{behind}");
        check(Place::Plane, 0, Place::Plane);
        check(Place::Plane, FAR_BYTES, Place::Plane);
        check(Place::Plane, FAR_BYTES + 1, Place::Apart);
        check(Place::Apart, FAR_BYTES, Place::Apart);
        check(Place::Apart, NEAR_BYTES, Place::Apart);
        check(Place::Apart, NEAR_BYTES - 1, Place::Plane);
    }
}
