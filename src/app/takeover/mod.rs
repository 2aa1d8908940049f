//! A new process takes the place of the one that runs, and no client notices more than a pause.
//!
//! The old process (the incumbent) opens a unix socket beside the state file; the new one (the successor) asks there:
//!
//! ```text
//! successor                          incumbent
//!   reads and checks its configuration
//!   ── Ask ──────────────────────────>  stops accepting and deciding, ends the WAL stream and its
//!                                       followers, syncs, lets go of the store
//!   <── Yielded + lock + sockets ─────
//!   opens store and journal
//!   ── Ready ────────────────────────>
//!   <── Heard ────────────────────────  of several instances: what the others have told
//!   <── Yours ────────────────────────  the point of no return
//!   decides, streams, accepts           sees its sessions off
//!   ── directive, health, positions ─>  obeys them
//!   <── what it has confirmed ────────
//! ```
//!
//! Who connects meanwhile waits in the sockets' backlog: the sockets are never closed. Up to the point of no return the
//! old process takes everything back when anything fails, the new process's death included; after it, it never touches
//! WAL, state or nodes again. There is no moment at which both could: the state file's lock is passed on ([`lock`]), and
//! the store is let go before the new process opens it.
//!
//! Sessions stay where they are. They obey the new process's directive, and its fence waits for them ([`fence`]): a term
//! is confirmed when both processes say so. When the link between the two breaks, the old process ends all its sessions,
//! and the new one waits until that process is gone, as the kernel tells it ([`lock`]); a failover waits as long. Until
//! the old process has ended the next takeover is refused.
//!
//! [`incumbent`], [`successor`], [`drain`], [`fence`], [`sight`] and [`message`] are pure; the others do.
//!
//! Not here: handing over sessions, and the servers of the agent, which are nobody's children.

mod ask;
mod drain;
mod fence;
mod follow;
mod hand_over;
mod incumbent;
mod link;
mod lock;
mod message;
mod metrics;
mod see_off;
mod sight;
mod successor;

pub(super) use ask::{Inherited, ask};
pub(super) use drain::Limits;
pub(super) use follow::{Follow, Predecessor, Reach};
pub(super) use hand_over::{HandedOver, hand_over};
pub(super) use message::Socket;
pub(super) use see_off::see_off;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use self::link::{Door, Link, LinkError};
use self::lock::Lock;
use self::message::{Identity, VERSION};
use super::config::Config;

/// When no question can be taken, for want of descriptors for example, the next look is so much later.
const REST: Duration = Duration::from_millis(100);

/// How an instance comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// It runs inside something that must not be left alone.
    None,
    /// It starts by itself, and lets another take its place.
    Offered,
    /// It takes the place of the one that runs, if there is one.
    Wanted,
}

#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error("{} is another process's; `run --takeover` takes its place", state.display())]
    Running { state: PathBuf },
    #[error("{} is held by a process that cannot be asked to hand over", state.display())]
    Silent { state: PathBuf },
    #[error("lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the process that runs keeps its place: {0}")]
    Refused(String),
    #[error("the place of the process that runs was not taken: {0}")]
    Failed(String),
}

/// The state file's, from the start to the end of the process.
#[derive(Debug)]
pub(super) struct Place {
    lock: Lock,
    identity: Identity,
}

impl Place {
    /// For who starts by itself.
    pub(super) async fn take(config: &Config) -> Result<Option<Place>, TakeoverError> {
        let path = lock::beside(&config.state_file, ".lock");
        if let Some(directory) = config.state_file.parent() {
            // It may be the first start; whatever is wrong with it, opening the lock says.
            let _ = std::fs::create_dir_all(directory);
        }
        match Lock::take(&path).await {
            Ok(lock) => Ok(lock.map(|lock| Place { lock, identity: identity(config) })),
            Err(source) => Err(TakeoverError::Lock { path, source }),
        }
    }

    /// Where the next process may ask. Without it everything works but being taken over.
    pub(super) fn offer(&self) -> Offer {
        let path = self.door();
        let door = Door::open(&path);
        if let Err(error) = &door {
            tracing::warn!(path = %path.display(), %error, "no new process can take over from this one");
        }
        Offer(door.ok())
    }

    fn door(&self) -> PathBuf {
        lock::beside(&self.identity.state, ".takeover")
    }

    fn draining(&self) -> PathBuf {
        lock::beside(&self.identity.state, ".draining")
    }
}

/// Open, unless it could not be.
#[derive(Debug)]
pub(super) struct Offer(Option<Door>);

impl Offer {
    pub(super) fn none() -> Offer {
        Offer(None)
    }

    /// Somebody who may ask.
    pub(super) async fn asked(&self) -> Question {
        let Some(door) = &self.0 else { return std::future::pending().await };
        loop {
            match door.accept().await {
                Ok(link) => return Question(link),
                Err(error) => {
                    tracing::info!(%error, "nobody who may take over");
                    if matches!(error, LinkError::Io(_)) {
                        tokio::time::sleep(REST).await;
                    }
                }
            }
        }
    }

    fn leave(self) {
        if let Some(door) = self.0 {
            door.leave();
        }
    }
}

#[derive(Debug)]
pub(super) struct Question(Link);

fn identity(config: &Config) -> Identity {
    Identity {
        version: VERSION,
        cluster: config.cluster.clone(),
        instance: config.instance.clone(),
        state: config.state_file.clone(),
        wal: config.wal.dir.clone(),
        durability: config.durability,
    }
}

/// How long somebody with a process before the last waits for it to be seen off, at most.
fn patience(limits: Limits) -> Duration {
    limits.drain + limits.transactions + Duration::from_secs(10)
}

fn link_failed(error: &LinkError) -> String {
    crate::app::cli::chain(error)
}
