//! Finds out what became of a commit whose server was lost, and tells the client.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::attach::Refusal;
use super::run::Session;
use crate::pg::Lsn;
use crate::topology::{CommitInDoubt, CommitOutcome, CommitsInDoubt};

/// Commits that are looked for at the same time. Of more the outcome is unknown.
const MAX_IN_DOUBT: usize = 10_000;

impl Session<'_> {
    /// Where the server at hand is, before the COMMIT is sent to it.
    pub(super) fn note_origin(&mut self) {
        let origin = self.attached.as_ref().and_then(|attached| {
            let inputs = &self.shared.inputs;
            let timeline = {
                let order = inputs.directive.borrow();
                order.timeline.filter(|_| order.has_primary(&attached.node, attached.term))?
            };
            let wal = inputs.wal.borrow();
            // What the relay has on an earlier timeline is no position on this one.
            let durable = if wal.timeline == timeline { wal.durable } else { Lsn::INVALID };
            Some((timeline, durable))
        });
        self.core.commits_from(origin);
    }

    /// The commit that was under way with a primary that is gone. `Err`: the session is to end.
    pub(super) async fn resolve_commit(&mut self, what: &str) -> Result<(), Refusal> {
        let (outcome, ended) = match self.core.commit_in_doubt() {
            Some(commit) => self.outcome_of(commit).await,
            None => (CommitOutcome::Unknown, Ok(())),
        };
        self.count_in_doubt(outcome);
        match outcome {
            CommitOutcome::Committed => self.core.commit_found(&mut self.down),
            CommitOutcome::NotCommitted => self.core.commit_lost(what, &mut self.down),
            CommitOutcome::Unknown => {}
        }
        ended
    }

    pub(super) fn count_in_doubt(&self, outcome: CommitOutcome) {
        self.shared.metrics.commits_in_doubt.with_label_values(&[outcome.word()]).inc();
    }

    /// Waits for it as long as for a primary; for a commit that has happened, until it is shown, too.
    async fn outcome_of(&mut self, commit: CommitInDoubt) -> (CommitOutcome, Result<(), Refusal>) {
        let commits = &self.shared.inputs.commits;
        let (limit, began) = (self.shared.config().hold_clients, Instant::now());
        let mut outcomes = commits.outcomes.clone();
        let Some(_asked) = Asked::new(&commits.in_doubt, commit) else {
            return (CommitOutcome::Unknown, Ok(()));
        };
        let shown = &self.shared.shown;
        let known = async {
            let known = outcomes.wait_for(|outcomes| outcomes.of(&commit).is_some()).await;
            let outcome = known.ok().and_then(|outcomes| outcomes.of(&commit));
            if outcome == Some(CommitOutcome::Committed) {
                shown.await_shown(commit).await;
            }
            outcome
        };
        let (outcome, ended) = tokio::select! {
            outcome = known => (outcome, Ok(())),
            ended = poll_fn(|cx| self.poll_end(cx)) => (None, Err(ended)),
            () = tokio::time::sleep(limit) => (None, Ok(())),
        };
        let outcome = outcome.unwrap_or(CommitOutcome::Unknown);
        let (xid, waited) = (commit.xid, began.elapsed());
        tracing::info!(xid, from = %commit.from, outcome = outcome.word(), ?waited, "commit in doubt");
        (outcome, ended)
    }
}

/// Among what is asked for, as long as it is there.
struct Asked<'a> {
    all: &'a watch::Sender<Arc<CommitsInDoubt>>,
    commit: CommitInDoubt,
}

impl Asked<'_> {
    /// `None`: there are too many.
    fn new(all: &watch::Sender<Arc<CommitsInDoubt>>, commit: CommitInDoubt) -> Option<Asked<'_>> {
        let entered = all.send_if_modified(|asked| {
            let has_room = asked.len() < MAX_IN_DOUBT;
            has_room && Arc::make_mut(asked).insert(commit)
        });
        entered.then_some(Asked { all, commit })
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.all.send_modify(|asked| {
            Arc::make_mut(asked).remove(&self.commit);
        });
    }
}
