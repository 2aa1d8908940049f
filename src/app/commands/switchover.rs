//! `bellwether switchover`: orders one, and tells how it goes until it is over.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;

use crate::admin::{self, ClientError};
use crate::failover::Stragglers;
use crate::topology::{Election, NodeName, Outcome};

/// Between two looks at the history.
const INTERVAL: Duration = Duration::from_millis(100);
/// Looks that may fail in a row: an instance that restarts goes on with what it had begun.
const FAILURES: u32 = 100;
/// The rule that begins one.
const RULE: &str = "W1";
/// In it clients go on.
const CHECKPOINT: &str = "checkpoint";

#[derive(Args, Debug)]
pub(in crate::app) struct Wish {
    /// To whom [default: the best]
    #[arg(long, value_name = "NODE")]
    to: Option<NodeName>,
    /// Cut off transactions that are still open after failover.drain, instead of giving up
    #[arg(long)]
    force: bool,
    /// Tell what it would come to now, and who would be chosen; nothing is done
    #[arg(long, conflicts_with = "force")]
    dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum SwitchoverError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the instance's answer is not understood")]
    Answer(#[from] serde_json::Error),
    #[error("the switchover did not take place: {0}")]
    Failed(String),
}

impl Wish {
    pub(in crate::app) fn is_dry(&self) -> bool {
        self.dry_run
    }

    pub(in crate::app) fn path(&self) -> String {
        let to = self.to.iter().map(|node| format!("to={node}"));
        let stragglers = if self.force { Stragglers::Cut } else { Stragglers::Spared };
        let force = (stragglers == Stragglers::Cut).then(|| "force".to_owned());
        let options: Vec<String> =
            to.chain(force).chain(self.dry_run.then(|| "dry_run".to_owned())).collect();
        format!("/api/v1/switchover?{}", options.join("&"))
    }
}

/// `tell` gets what is to be shown, line by line.
pub(in crate::app) async fn switchover<E: From<SwitchoverError>>(
    base: &str,
    wish: &Wish,
    mut tell: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let of_others: BTreeSet<u64> =
        history(base).await?.iter().map(|election| election.started_at_ms).collect();
    let begun = admin::post(base, &wish.path()).await.map_err(SwitchoverError::from)?;
    tell(&String::from_utf8_lossy(&begun))?;
    let mut told = 0;
    let mut failures = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let elections = match history(base).await {
            Ok(elections) => elections,
            Err(SwitchoverError::Client(_)) if failures < FAILURES => {
                failures += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        failures = 0;
        let ours =
            |election: &&Election| election.rule == RULE && !of_others.contains(&election.started_at_ms);
        let Some(election) = elections.iter().find(ours) else { continue };
        for phase in &election.phases[told.min(election.phases.len())..] {
            tell(&format!("{:<10} {} ms\n", phase.name, phase.millis))?;
        }
        told = election.phases.len();
        match &election.outcome {
            Outcome::Running => {}
            Outcome::Completed => return tell(&completed(election)),
            Outcome::Failed { why } => return Err(SwitchoverError::Failed(why_failed(election, why)).into()),
        }
    }
}

async fn history(base: &str) -> Result<Vec<Election>, SwitchoverError> {
    let body = admin::fetch(base, "/api/v1/history").await?;
    Ok(serde_json::from_slice(&body)?)
}

fn completed(election: &Election) -> String {
    let mut text = String::new();
    let held: u64 = election.phases.iter().filter(|p| p.name != CHECKPOINT).map(|p| p.millis).sum();
    let to = election.to.as_ref().map_or("nobody", NodeName::as_str);
    // Writing to a String cannot fail. The first line of evidence is that somebody asked.
    for line in election.evidence.iter().skip(1) {
        let _ = writeln!(text, "{line}");
    }
    let (term, lost) = (election.term, election.lost_bytes);
    let _ = writeln!(
        text,
        "{to} is the primary of term {term}: writes waited for {held} ms, {lost} bytes of WAL lost"
    );
    text
}

fn why_failed(election: &Election, why: &str) -> String {
    let given_up = election.evidence.iter().filter_map(|line| line.strip_prefix("given up: "));
    given_up.map(|line| format!("{line}; ")).collect::<String>() + why
}
