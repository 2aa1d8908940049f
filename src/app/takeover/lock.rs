//! Two locks beside the state file.
//!
//! `<state>.lock` belongs to whoever rules. It is handed over by passing the open file itself: a lock of flock(2)
//! belongs to that, not to a process, so there is no moment at which a third process could have it. The old process keeps
//! its end until it has ended; so nobody else starts while its sessions may still be there, even if the new one dies.
//!
//! `<state>.draining` is held by an old process whose sessions are seen off. The kernel releases it when the process has
//! ended, however it does, and its sockets with it: all its threads have stopped before the first of its files is closed.
//! A pid would have to be told from a later process's, and a zombie from one that lives.
#![expect(clippy::disallowed_methods, reason = "shell: waits for another process to end")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long a process that is just ending may keep it.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Held as long as the file is open in any process. Dropping it closes it here; it never unlocks for another.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// `None`: somebody else has it.
    pub(super) fn try_take(path: &Path) -> io::Result<Option<Lock>> {
        Lock::hold(open(path)?)
    }

    /// Waits for a process that is just ending. `None`: it goes on.
    pub(super) async fn take(path: &Path) -> io::Result<Option<Lock>> {
        let since = Instant::now();
        loop {
            match Lock::try_take(path)? {
                None if since.elapsed() < LOCK_LIMIT => tokio::time::sleep(LOOK_AGAIN).await,
                taken => return Ok(taken),
            }
        }
    }

    /// One that was passed by the process that holds it. `None`: it does not.
    pub(super) fn inherit(file: OwnedFd) -> io::Result<Option<Lock>> {
        Lock::hold(File::from(file))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn hold(file: File) -> io::Result<Option<Lock>> {
        Ok(try_lock(&file)?.then_some(Lock(file)))
    }
}

/// A lock that another process has. The file is open before it is needed: when there are no descriptors left, the end of
/// that process is still seen.
#[derive(Debug)]
pub(super) struct Theirs(File);

impl Theirs {
    pub(super) fn open(path: &Path) -> io::Result<Theirs> {
        open(path).map(Theirs)
    }

    /// Until nobody holds it. Not known to be free is not free: an error is told once, and it is tried again.
    pub(super) async fn free(self) {
        let mut told = false;
        loop {
            match try_lock(&self.0) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if !told => {
                    told = true;
                    tracing::error!(%error, "whether the old process has ended cannot be seen: no failover is possible");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The state file's name with a suffix.
pub(super) fn beside(state: &Path, suffix: &str) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::{Lock, Theirs};

    #[test]
    fn a_lock_is_handed_over_without_ever_being_free() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.lock");
        let first = Lock::try_take(&path).expect("a file").expect("nobody has it");
        assert!(Lock::try_take(&path).expect("a file").is_none());
        let passed = first.as_fd().try_clone_to_owned().expect("a descriptor");
        let next = Lock::inherit(passed).expect("a file").expect("it has the lock");
        drop(first);
        assert!(Lock::try_take(&path).expect("a file").is_none(), "it is the next one's");
        drop(next);
        assert!(Lock::try_take(&path).expect("a file").is_some());
    }

    #[tokio::test]
    async fn what_another_has_is_free_when_it_has_gone_and_is_not_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.draining");
        let held = Lock::try_take(&path).expect("a file").expect("nobody has it");
        let theirs = Theirs::open(&path).expect("a file");
        // Where it is has no part in it any more.
        std::fs::rename(&path, directory.path().join("elsewhere")).expect("renamed");
        let mut free = std::pin::pin!(theirs.free());
        assert!(at_once(free.as_mut()).await.is_none(), "it is held");
        drop(held);
        free.await;
        // A process that another test forks just now has all files until it runs its program.
        let mut tries = 0;
        while Lock::try_take(&directory.path().join("elsewhere")).expect("a file").is_none() {
            tries += 1;
            assert!(tries < 1000, "it is kept");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// What is there already.
    async fn at_once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }

    #[test]
    fn what_is_not_locked_by_who_passes_it_is_not_inherited() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.lock");
        let _other = Lock::try_take(&path).expect("a file").expect("nobody has it");
        let stranger = std::fs::File::open(&path).expect("a file");
        assert!(Lock::inherit(stranger.into()).expect("a file").is_none());
    }
}
