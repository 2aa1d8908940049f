//! `bellwether check`: everything that stands in the way, at once, with what mends it.
//!
//! First the file; then, when the file is whole, every server, side by side, etcd, the other instances, and the archive.
//! `facts` asks the servers, `judge`, `hba` and `connections` decide, without a server, what the answers mean; `etcd` and
//! `peers` do both, each for its own.

mod connections;
mod etcd;
mod facts;
mod hba;
mod judge;
mod peers;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::certificates::Certificates;
use super::cli;
use super::config::{self, Config, LoadError, Problem};
use crate::pg::SystemIdentifier;
use crate::relay::archive::{ProbeError, probe, unknown_backups};

/// For the archive to be written to, read from and cleaned up again.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It will not work, or a promise would not hold.
    Error,
    /// It works, but somebody should know.
    Warn,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub severity: Severity,
    /// A path in the file, or a node.
    pub place: String,
    pub what: String,
    /// SQL, a line of a file, or what to do.
    pub mend: Option<String>,
}

impl Finding {
    fn new(severity: Severity, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding { severity, place: place.into(), what: what.into(), mend: None }
    }

    fn error(place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Error, place, what)
    }

    fn warn(place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Warn, place, what)
    }

    fn mend(mut self, how: impl Into<String>) -> Finding {
        self.mend = Some(how.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "ERROR",
            Severity::Warn => "WARN",
        };
        let stop = if self.what.ends_with(['?', '.']) { "" } else { "." };
        write!(f, "{severity} {}: {}{stop}", self.place, self.what)?;
        match &self.mend {
            Some(mend) => write!(f, " Mend: {mend}"),
            None => Ok(()),
        }
    }
}

/// Checks the file at `path` and, if it is whole, its servers.
pub async fn check(path: &Path) -> Vec<Finding> {
    match config::load(path) {
        Ok((config, warnings)) => {
            let mut findings: Vec<Finding> = warnings.into_iter().map(in_file(Severity::Warn)).collect();
            let (servers, archive) = tokio::join!(servers(&config), archive(&config));
            findings.extend(servers);
            findings.extend(archive);
            findings
        }
        Err(LoadError::Invalid { problems, .. }) => {
            problems.into_iter().map(in_file(Severity::Error)).collect()
        }
        Err(error @ LoadError::Read { .. }) => vec![Finding::error("--config", cli::chain(&error))],
    }
}

/// Asks every server of `config`, etcd and the other instances, and judges the answers.
pub async fn servers(config: &Config) -> Vec<Finding> {
    let tls = match Certificates::load(config) {
        Ok(certificates) => certificates.for_servers,
        Err(error) => return vec![Finding::error("tls", cli::chain(&error))],
    };
    let (answers, looks, peers) =
        tokio::join!(facts::gather(config, &tls), etcd::gather(config), peers::gather(config, &tls));
    let system = config.nodes.iter().zip(&answers).find_map(|(node, answer)| {
        let system = answer.as_ref().ok()?.system_identifier;
        Some((node.node.name.as_str(), SystemIdentifier(system.cast_unsigned())))
    });
    let mut findings = judge::judge(config, &answers);
    findings.extend(etcd::judge(config, &looks, system));
    findings.extend(peers::judge(config, &peers));
    findings
}

/// Uses the archive as the relay will.
async fn archive(config: &Config) -> Vec<Finding> {
    let Some(archive) = &config.wal.archive else { return Vec::new() };
    let (url, unique) = (&archive.url, format!("{}_{}", config.instance, std::process::id()));
    let used = async {
        probe(url, &unique).await?;
        Ok::<_, ProbeError>(unknown_backups(url).await?)
    };
    let error = match tokio::time::timeout(ARCHIVE_LIMIT, used).await {
        Ok(Ok(unknown)) => return unknown.iter().map(|backup| not_understood(backup)).collect(),
        Ok(Err(error)) => cli::chain(&error),
        Err(_elapsed) => format!("no answer within {ARCHIVE_LIMIT:?}"),
    };
    let finding = Finding::error("wal.archive.url", format!("{url} cannot be used: {error}"));
    vec![match url.directory() {
        Some(directory) => finding.mend(format!("a directory {} that we may write to", directory.display())),
        None => finding.mend(
            "credentials, region and endpoint are in the environment of this command and of the instance; the bucket \
             exists, and they may get, put, list and delete in it",
        ),
    }]
}

fn not_understood(backup: &str) -> Finding {
    let what =
        format!("a base backup is not understood, and all WAL from its begin on is kept for it: {backup}");
    Finding::warn("wal.archive", what).mend("remove it, if nobody needs it: its sentinel and its folder")
}

fn in_file(severity: Severity) -> impl Fn(Problem) -> Finding {
    move |problem| {
        let place = if problem.path.is_empty() { "the file".to_owned() } else { problem.path };
        Finding::new(severity, place, problem.what)
    }
}
