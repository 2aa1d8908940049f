//! `bellwether restart`: orders one, and tells how it goes until it is over.

use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::admin::{self, ClientError};
use crate::failover::Stragglers;
use crate::topology::{NodeName, Outcome, Restart};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Looks that may fail in a row: an instance that restarts goes on with what it had begun.
const FAILURES: u32 = 100;
/// Looks in a row that may not find it: an instance that does not lead hears of it a little later than it was accepted.
const MISSES: u32 = 100;

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("which").required(true))]
pub(in crate::app) struct Wish {
    /// This server alone
    #[arg(group = "which")]
    node: Option<NodeName>,
    /// All servers, one after the other
    #[arg(long, group = "which")]
    rolling: bool,
    /// No further server; one that is down for it comes back first
    #[arg(long, group = "which", conflicts_with_all = ["force", "dry_run"])]
    cancel: bool,
    /// Cut off transactions that are still open after failover.drain, instead of giving up
    #[arg(long)]
    force: bool,
    /// Tell the order, and what stands in the way; nothing is done
    #[arg(long, conflicts_with = "force")]
    dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum RestartError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the instance's answer is not understood")]
    Answer(#[from] serde_json::Error),
    #[error("the restart was given up: {0}")]
    Failed(String),
    /// It is in memory until it begins, and nobody else has it if another instance leads then.
    #[error(
        "the restart was accepted and is not known any more: something else came before it (`bellwether history` tells), \
         or another instance leads since then; order it again"
    )]
    Dropped,
}

impl Wish {
    /// Until it is over; the others are answered at once.
    pub(in crate::app) fn is_followed(&self) -> bool {
        !self.dry_run && !self.cancel
    }

    pub(in crate::app) fn path(&self) -> String {
        let which = match &self.node {
            Some(node) => format!("node={node}"),
            None if self.rolling => "all".to_owned(),
            None => "cancel".to_owned(),
        };
        let stragglers = if self.force { Stragglers::Cut } else { Stragglers::Spared };
        let option = match (self.dry_run, stragglers) {
            (true, _) => "&dry_run",
            (false, Stragglers::Cut) => "&force",
            (false, Stragglers::Spared) => "",
        };
        format!("/api/v1/restart?{which}{option}")
    }
}

/// `tell` gets what is to be shown, line by line.
pub(in crate::app) async fn restart<E: From<RestartError>>(
    base: &str,
    wish: &Wish,
    mut tell: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let before = restarts(base).await?.last().map(|restart| restart.started_at_ms);
    let begun = admin::post(base, &wish.path()).await.map_err(RestartError::from)?;
    tell(&String::from_utf8_lossy(&begun))?;
    let mut followed = Followed { before, told: 0, missed: 0 };
    let mut failures = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let restarts = match restarts(base).await {
            Ok(restarts) => restarts,
            Err(RestartError::Client(_)) if failures < FAILURES => {
                failures += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        failures = 0;
        let (lines, end) = followed.look(&restarts);
        lines.iter().try_for_each(|line| tell(line))?;
        if let Some(end) = end {
            return end.map_err(E::from);
        }
    }
}

/// The one that was ordered.
struct Followed {
    /// The name of the last one before it.
    before: Option<u64>,
    /// Nodes of it that were told to be back.
    told: usize,
    /// Looks in a row that did not find it.
    missed: u32,
}

impl Followed {
    /// What is new of it, line by line; and how it ended, if it has.
    fn look(&mut self, restarts: &[Restart]) -> (Vec<String>, Option<Result<(), RestartError>>) {
        // Names grow: the first one behind what was there is this one.
        let ours = |restart: &&Restart| self.before.is_none_or(|before| restart.started_at_ms > before);
        let Some(restart) = restarts.iter().find(ours) else {
            self.missed += 1;
            return (Vec::new(), (self.missed >= MISSES).then_some(Err(RestartError::Dropped)));
        };
        self.missed = 0;
        let mut lines = Vec::new();
        for node in restart.nodes.iter().filter(|node| node.is_back()).skip(self.told) {
            lines.push(admin::restarted_text(node) + "\n");
            lines.extend(node.evidence.iter().map(|evidence| format!("          {evidence}\n")));
            self.told += 1;
        }
        let end = match &restart.outcome {
            Outcome::Running => None,
            Outcome::Completed => Some(Ok(())),
            Outcome::Failed { why } => Some(Err(RestartError::Failed(why.clone()))),
        };
        (lines, end)
    }
}

async fn restarts(base: &str) -> Result<Vec<Restart>, RestartError> {
    let body = admin::fetch(base, "/api/v1/restarts").await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::{Followed, MISSES, Restart, RestartError};
    use crate::topology::{Outcome, RestartedNode};

    fn restart(started_at_ms: u64, outcome: Outcome) -> Restart {
        let nodes = vec![RestartedNode::new("pg1".parse().expect("a name"))];
        Restart { started_at_ms, ended_at_ms: None, nodes, waits_for: None, outcome }
    }

    #[test]
    fn an_order_that_was_dropped_is_not_waited_for() {
        let mut followed = Followed { before: Some(7), told: 0, missed: 0 };
        let others = [restart(7, Outcome::Completed)];
        let ours = [restart(7, Outcome::Completed), restart(8, Outcome::Running)];
        // It comes late, and is gone with whoever led.
        for _ in 1..MISSES {
            assert!(followed.look(&others).1.is_none());
        }
        assert!(followed.look(&ours).1.is_none());
        for _ in 1..MISSES {
            assert!(followed.look(&others).1.is_none());
        }
        assert!(matches!(followed.look(&others).1, Some(Err(RestartError::Dropped))));
        let over = [restart(7, Outcome::Running), restart(8, Outcome::Completed)];
        assert!(matches!(followed.look(&over).1, Some(Ok(()))));
    }
}
