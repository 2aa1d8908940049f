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
    let (mut told, mut failures) = (0, 0);
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
        // Names grow: the first one behind what was there is this one.
        let ours = |restart: &&Restart| before.is_none_or(|before| restart.started_at_ms > before);
        let Some(restart) = restarts.iter().find(ours) else { continue };
        for node in restart.nodes.iter().filter(|node| node.is_back()).skip(told) {
            tell(&(admin::restarted_text(node) + "\n"))?;
            for evidence in &node.evidence {
                tell(&format!("          {evidence}\n"))?;
            }
            told += 1;
        }
        match &restart.outcome {
            Outcome::Running => {}
            Outcome::Completed => return Ok(()),
            Outcome::Failed { why } => return Err(RestartError::Failed(why.clone()).into()),
        }
    }
}

async fn restarts(base: &str) -> Result<Vec<Restart>, RestartError> {
    let body = admin::fetch(base, "/api/v1/restarts").await?;
    Ok(serde_json::from_slice(&body)?)
}
