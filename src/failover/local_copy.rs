#![expect(clippy::disallowed_methods, reason = "shell: starts the task that writes")]
//! The copy that every one of several instances keeps of what is in etcd, for a start without it.
//!
//! It is written by a task: clients wait for what is decided, and nobody for the copy. Within a term an older one is as
//! good, where others say that the term still holds; a term itself is in the file before anybody here obeys it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{self, JoinHandle};

use super::decide::State;
use super::error::{FailoverError, JournalError};
use super::state::FileJournal;
use crate::topology::Term;

#[derive(Debug)]
pub(super) struct LocalCopy {
    newest: watch::Sender<Option<State>>,
    /// Of what the file holds, or could not be made to hold.
    term: watch::Receiver<Term>,
    /// Ends when `newest` is dropped, or by an error.
    task: JoinHandle<Result<(), FailoverError>>,
}

impl LocalCopy {
    /// `term`: of what is in the file.
    pub(super) fn start(file: Arc<FileJournal>, term: Term) -> LocalCopy {
        let (newest, to_write) = watch::channel(None);
        let (written, term) = watch::channel(term);
        LocalCopy { newest, term, task: tokio::spawn(write(file, to_write, written)) }
    }

    /// When it returns the term is in the file. The rest may come later, or be left out for what is newer.
    pub(super) async fn keep(&mut self, state: State) -> Result<(), FailoverError> {
        let term = state.term;
        self.newest.send_replace(Some(state));
        let is_written =
            !self.task.is_finished() && self.term.wait_for(|written| *written >= term).await.is_ok();
        if is_written { Ok(()) } else { (&mut self.task).await? }
    }

    /// Nothing is written any more when it returns, and what was kept last is in the file.
    pub(super) async fn close(self) -> Result<(), FailoverError> {
        drop(self.newest);
        self.task.await?
    }
}

async fn write(
    file: Arc<FileJournal>,
    mut newest: watch::Receiver<Option<State>>,
    written: watch::Sender<Term>,
) -> Result<(), FailoverError> {
    while newest.changed().await.is_ok() {
        let Some(state) = newest.borrow_and_update().clone() else { continue };
        let (file, term) = (file.clone(), state.term);
        match task::spawn_blocking(move || file.put(&state)).await? {
            Err(error @ JournalError::Unwritten { .. }) => {
                tracing::info!(error = &error as &dyn std::error::Error, "no copy of the state is kept");
            }
            kept => kept?,
        }
        written.send_replace(term);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::LocalCopy;
    use crate::failover::decide::State;
    use crate::failover::state::FileJournal;
    use crate::topology::{Durability, Term};

    fn state(term: u64, drains: u64) -> State {
        State { term: Term(term), drains, ..State::bootstrapping(Durability::Quorum, 7) }
    }

    #[tokio::test]
    async fn a_term_is_there_at_once_and_the_last_of_all_in_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = Arc::new(FileJournal::new(dir.path().join("state")));
        let mut copy = LocalCopy::start(file.clone(), Term(0));
        for term in 1..4 {
            copy.keep(state(term, 0)).await.expect("kept");
            assert_eq!(file.load().expect("read").map(|state| state.term), Some(Term(term)));
            for drains in 1..20 {
                copy.keep(state(term, drains)).await.expect("taken");
            }
        }
        copy.close().await.expect("written");
        assert_eq!(file.load().expect("read"), Some(state(3, 19)));
    }

    #[tokio::test]
    async fn what_cannot_be_written_holds_nobody_up_and_is_written_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = Arc::new(FileJournal::new(dir.path().join("state")));
        let in_the_way = dir.path().join("state.new");
        std::fs::create_dir(&in_the_way).expect("a directory");
        let mut copy = LocalCopy::start(file.clone(), Term(0));
        copy.keep(state(1, 0)).await.expect("goes on");
        assert_eq!(file.load().expect("read"), None);
        std::fs::remove_dir(&in_the_way).expect("removed");
        copy.keep(state(2, 0)).await.expect("kept");
        assert_eq!(file.load().expect("read"), Some(state(2, 0)));
        copy.close().await.expect("written");
    }

    #[tokio::test]
    async fn an_error_that_nobody_may_go_on_from_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut copy = LocalCopy::start(Arc::new(FileJournal::new(dir.path().join("state"))), Term(0));
        copy.task.abort();
        assert!(copy.keep(state(1, 0)).await.is_err());
    }
}
