#![expect(clippy::disallowed_methods, reason = "shell: waits between two attempts")]
//! Where what is decided is made durable, and who decides: the state file of an instance that is alone, which leads for
//! ever; or etcd, of whoever leads there.
//!
//! A leader whose write is not known to have arrived leads no more: nobody has heard of what it decided. It leads again
//! when it has seen what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task;
use tokio_util::sync::CancellationToken;

use super::decide::State;
use super::error::{FailoverError, JournalError};
use super::local_copy::LocalCopy;
use super::state::{
    EtcdConfig, EtcdError, EtcdJournal, EtcdMetrics, Fence, FileJournal, Leader, Revision, Seen,
};
use crate::topology::{Election, Term};

/// Between two attempts to write the same.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) enum Journal {
    File { file: Arc<FileJournal>, told: Told },
    Shared(Box<Shared>),
}

/// Of several instances.
#[derive(Debug)]
pub(super) struct Shared {
    etcd: EtcdJournal,
    seen: watch::Receiver<Arc<Seen>>,
    /// What this instance has seen last.
    copy: LocalCopy,
    /// Of the state that was last taken up, or written.
    known: Option<Revision>,
    held: Option<Fence>,
    /// A write under the fence was lost: the state is newer than this, whatever is seen yet.
    behind: Option<(Fence, Option<Revision>)>,
    /// The latest that this instance has obeyed, before its start too.
    least: Term,
    /// That etcd has an earlier one.
    told: Told,
    tasks: CancellationToken,
}

/// Whether people know of what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    No,
    Yes,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// Or it is not known. Nothing may follow from it.
    No,
}

/// What another instance, or etcd, has changed. Elections: those in etcd, if they could be read.
#[derive(Debug)]
pub(super) enum News {
    /// This instance leads from now on. `None`: there was never a state.
    Lead(Option<State>, Option<Vec<Election>>),
    /// It does not. `None`: nothing new is known.
    Follow(Option<State>, Option<Vec<Election>>),
}

impl Journal {
    pub(super) fn file(file: Arc<FileJournal>) -> Journal {
        Journal::File { file, told: Told::No }
    }

    /// `least`: the term of the copy.
    pub(super) fn shared(
        (etcd, metrics): (EtcdConfig, EtcdMetrics),
        copy: Arc<FileJournal>,
        least: Term,
    ) -> Journal {
        let tasks = CancellationToken::new();
        let etcd = EtcdJournal::start(etcd, metrics, tasks.clone());
        let seen = etcd.seen();
        Journal::Shared(Box::new(Shared {
            etcd,
            seen,
            copy: LocalCopy::start(copy, least),
            known: None,
            held: None,
            behind: None,
            least,
            told: Told::No,
            tasks,
        }))
    }

    pub(super) async fn put(&mut self, state: State) -> Result<Written, FailoverError> {
        match self {
            Journal::File { file, told } => match keep(file, state).await {
                Ok(()) => {
                    *told = Told::No;
                    Ok(Written::Yes)
                }
                Err(FailoverError::Journal(error @ JournalError::Unwritten { .. })) => {
                    if *told == Told::No {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "nothing can be decided while it cannot be made durable");
                        *told = Told::Yes;
                    }
                    Ok(Written::No)
                }
                Err(error) => Err(error),
            },
            Journal::Shared(shared) => shared.put(state).await,
        }
    }

    pub(super) async fn put_history(&self, history: Vec<Election>) -> Result<(), FailoverError> {
        match self {
            Journal::File { file, .. } => {
                let file = file.clone();
                match task::spawn_blocking(move || file.put_history(&history)).await? {
                    Err(error @ JournalError::Unwritten { .. }) => {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "the history is written later"
                        );
                    }
                    written => written?,
                }
            }
            Journal::Shared(shared) => {
                let Some(fence) = shared.held else { return Ok(()) };
                if let Err(error) = shared.etcd.put_history(fence, &history).await {
                    tracing::info!(
                        error = &error as &dyn std::error::Error,
                        "the history is not written to etcd"
                    );
                }
            }
        }
        Ok(())
    }

    /// For ever where nobody else writes.
    pub(super) async fn changed(&mut self) {
        match self {
            Journal::File { .. } => std::future::pending().await,
            Journal::Shared(shared) => {
                if shared.seen.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// `None`: all is as it was.
    pub(super) async fn news(&mut self, now: Instant) -> Result<Option<News>, FailoverError> {
        match self {
            Journal::File { .. } => Ok(None),
            Journal::Shared(shared) => shared.news(now).await,
        }
    }

    /// Who leads, if it is not this instance and known.
    pub(super) fn another_leader(&self) -> Option<String> {
        match self {
            Journal::File { .. } => None,
            Journal::Shared(shared) => match &shared.seen.borrow().leader {
                Leader::Other(name) => Some(name.clone()),
                Leader::Nobody | Leader::Own { .. } => None,
            },
        }
    }

    /// Another one is to lead, for a while at least.
    pub(super) async fn give_way(&self) {
        if let Journal::Shared(shared) = self {
            shared.etcd.resign().await;
        }
    }

    /// Another one may lead at once.
    pub(super) async fn close(self) -> Result<(), FailoverError> {
        let Journal::Shared(shared) = self else { return Ok(()) };
        shared.etcd.resign().await;
        shared.tasks.cancel();
        shared.copy.close().await
    }
}

impl Shared {
    async fn put(&mut self, state: State) -> Result<Written, FailoverError> {
        let Some(fence) = self.held else { return Ok(Written::No) };
        loop {
            match self.etcd.put(fence, self.known, &state).await {
                Ok(revision) => {
                    self.known = Some(revision);
                    self.least = self.least.max(state.term);
                    self.copy.keep(state).await?;
                    return Ok(Written::Yes);
                }
                Err(error @ EtcdError::Unknown(_)) if self.holds(fence, Instant::now()) => {
                    tracing::info!(error = &error as &dyn std::error::Error, "written to etcd again");
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => {
                    tracing::info!(
                        error = &error as &dyn std::error::Error,
                        "nothing is decided here for now"
                    );
                    self.behind = matches!(error, EtcdError::Lost).then_some((fence, self.known));
                    self.held = None;
                    return Ok(Written::No);
                }
            }
        }
    }

    fn holds(&self, held: Fence, now: Instant) -> bool {
        matches!(self.seen.borrow().leader, Leader::Own { fence, until } if fence == held && now < until)
    }

    async fn news(&mut self, now: Instant) -> Result<Option<News>, FailoverError> {
        let seen = self.seen.borrow_and_update().clone();
        let revision = seen.state.as_ref().map(|versioned| versioned.revision);
        let found = seen.state.as_ref().map(|versioned| versioned.state.term);
        if let Some(found) = found.filter(|term| *term < self.least) {
            if self.told == Told::No {
                let obeyed = self.least;
                tracing::error!(%found, %obeyed, "etcd has an earlier term than this instance has obeyed: was it restored?");
                self.told = Told::Yes;
            }
            return Ok(None);
        }
        self.told = Told::No;
        let newer =
            seen.state.as_ref().filter(|_| revision > self.known).map(|versioned| versioned.state.clone());
        if let Some(state) = &newer {
            self.least = self.least.max(state.term);
            self.copy.keep(state.clone()).await?;
        }
        let fence = match seen.leader {
            Leader::Own { fence, until } if now < until => Some(fence),
            _ => None,
        };
        let is_behind = |fence: Fence| self.behind.is_some_and(|(of, at)| of == fence && revision <= at);
        if fence.is_some() && fence == self.held && newer.is_none() {
            // What is seen now, it has written itself. What is newer, too: by a request that was given up, and arrived late.
            return Ok(None);
        }
        if let Some(fence) = fence.filter(|fence| !is_behind(*fence)) {
            let history = self.history().await;
            (self.held, self.known) = (Some(fence), revision.max(self.known));
            let state = seen.state.as_ref().map(|versioned| versioned.state.clone());
            return Ok(Some(News::Lead(state, history)));
        }
        let was_leading = self.held.take().is_some();
        if newer.is_none() && !was_leading {
            return Ok(None);
        }
        self.known = revision.max(self.known);
        let history = self.history().await;
        Ok(Some(News::Follow(newer, history)))
    }

    async fn history(&self) -> Option<Vec<Election>> {
        let read = self.etcd.history().await;
        read.inspect_err(|error| {
            tracing::info!(error = error as &dyn std::error::Error, "the history is not read from etcd");
        })
        .ok()
    }
}

/// Durable when it returns.
async fn keep(file: &Arc<FileJournal>, state: State) -> Result<(), FailoverError> {
    let file = file.clone();
    task::spawn_blocking(move || file.put(&state)).await??;
    Ok(())
}
