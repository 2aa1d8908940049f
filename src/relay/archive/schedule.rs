//! Base backups in turns: one as soon as the archive has none, and from then on one in each interval.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

use super::backup::{BackupError, BackupJob, BackupSource, CopiedAs, backup, clean};
use super::reserve::{Occasion, remove_left_by_schedule};
use super::retention::{Retained, look};
use super::sentinel::{Facts, Maker};
use super::ship::Outputs;
use super::storage::Storage;
use super::{ArchiveConfig, Progress};
use crate::net::Target;
use crate::relay::explain;
use crate::topology::{Directive, NodeName};

/// Between two attempts: the first one, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// A clock that is set, or a backup that somebody else takes or removes, is noticed by then.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Whose backups, and how to reach the servers.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Servers {
    pub(in crate::relay) instance: String,
    pub(in crate::relay) nodes: Vec<(NodeName, Target)>,
    pub(in crate::relay) directive: watch::Receiver<Arc<Directive>>,
}

impl Servers {
    /// Standbys first: the primary has enough to do. `None`: who it is is not known now.
    fn sources(&self) -> Option<Vec<BackupSource>> {
        let primary = self.directive.borrow().primary.clone()?;
        let (primaries, standbys): (Vec<_>, Vec<_>) =
            self.nodes.iter().partition(|(name, _)| *name == primary);
        let source = |copied_as| {
            move |(_, target): &(NodeName, Target)| BackupSource { target: target.clone(), copied_as }
        };
        let standbys = standbys.into_iter().map(source(CopiedAs::Standby));
        Some(standbys.chain(primaries.into_iter().map(source(CopiedAs::Whatever))).collect())
    }
}

/// Never ends.
pub(super) async fn run(config: ArchiveConfig, every: Duration, servers: Servers, outputs: Outputs) {
    let (first, longest) = RETRY;
    let mut pause = first;
    let mut told = None;
    let metrics = outputs.metrics.clone();
    let mut turns = Turns { config, every, servers, outputs, owed: Owed::Leftovers };
    loop {
        tokio::time::sleep(pause).await;
        match turns.next().await {
            Ok(next) => {
                if told.take().is_some() {
                    tracing::info!("base backups work again");
                }
                pause = next.min(LOOK_AGAIN).max(first);
            }
            Err(BackupError::NoWal) => pause = first,
            Err(error) => {
                let (reason, what) = match error {
                    BackupError::Cleaning(_) => ("retention", "old base backups and WAL are still there"),
                    _ => ("backup", "no base backup"),
                };
                metrics.errors.with_label_values(&[reason]).inc();
                let error = explain(&error);
                if told.as_ref() != Some(&error) {
                    tracing::warn!(error, "{what}; it is tried again");
                    told = Some(error);
                }
                pause = (pause * 2).clamp(first, longest);
            }
        }
    }
}

struct Turns {
    config: ArchiveConfig,
    every: Duration,
    servers: Servers,
    outputs: Outputs,
    owed: Owed,
}

/// What is to be removed before anything else.
enum Owed {
    Nothing,
    /// What the process before this one has left half made.
    Leftovers,
    /// What the last turn could not remove.
    Cleaning,
}

impl Turns {
    /// Takes a backup if one is due; how long until the next one.
    async fn next(&mut self) -> Result<Duration, BackupError> {
        let config = &self.config;
        let storage = Storage::make(&config.url, config.level)?;
        if let Owed::Cleaning = self.owed {
            clean(&storage, config.backups.keep).await?;
            self.owed = Owed::Nothing;
        }
        let backups = look(&storage).await?;
        self.outputs.not_understood(&backups.unknown);
        if let Owed::Leftovers = self.owed {
            let instance = &self.servers.instance;
            for name in remove_left_by_schedule(&storage, &backups.unfinished, instance).await? {
                tracing::info!(backup = name.as_str(), "a base backup that was cut off is removed");
            }
            self.owed = Owed::Nothing;
        }
        let wait = due_in(&backups.whole, SystemTime::now().into(), self.every);
        if !wait.is_zero() {
            return Ok(wait);
        }
        let Some(sources) = self.servers.sources() else { return Ok(RETRY.0) };
        let job = BackupJob {
            url: config.url.clone(),
            level: config.level,
            sources,
            instance: self.servers.instance.clone(),
            occasion: Occasion::Schedule,
            keep: config.backups.keep,
        };
        let done = backup(&job, &Silent).await?;
        tracing::info!(
            backup = done.name,
            source = done.source,
            bytes = done.bytes,
            compressed = done.compressed_bytes,
            "a base backup is in the archive"
        );
        match done.retained {
            Ok(Retained { removed, .. }) if removed.is_empty() => {}
            Ok(Retained { removed, .. }) => {
                tracing::info!(?removed, "old base backups are removed from the archive");
            }
            Err(error) => {
                self.owed = Owed::Cleaning;
                return Err(BackupError::Cleaning(error));
            }
        }
        Ok(self.every)
    }
}

/// How long until a backup is due. Others' count for nothing: they may be removed by whoever made them.
fn due_in(backups: &[Facts], now: DateTime<Utc>, every: Duration) -> Duration {
    let ours = backups.iter().filter(|backup| backup.maker != Maker::AnotherTool);
    let Some(newest) = ours.map(|backup| backup.started_at).max() else { return Duration::ZERO };
    let every = TimeDelta::from_std(every).unwrap_or(TimeDelta::MAX);
    let due = newest.checked_add_signed(every).unwrap_or(DateTime::<Utc>::MAX_UTC);
    due.signed_duration_since(now).to_std().unwrap_or_default()
}

struct Silent;

impl Progress for Silent {
    fn total(&self, _: u64) {}

    fn done(&self, _: u64) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use chrono::{DateTime, Utc};
    use tokio::sync::watch;

    use super::{Servers, due_in};
    use crate::net::{Credentials, Target, TlsForServers};
    use crate::pg::wal::WalSegmentSize;
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::archive::CopiedAs;
    use crate::relay::archive::sentinel::{BackupName, Facts, Maker};
    use crate::topology::{Address, Directive, Durability, NodeName};

    fn name(name: &str) -> NodeName {
        name.parse().expect("a name")
    }

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(hour * 3600, 0).expect("a time")
    }

    fn backup(hour: i64, maker: Maker) -> Facts {
        let start = Lsn(0x100_0000);
        Facts {
            name: BackupName::new(TimelineId(1), start, WalSegmentSize::default()),
            timeline: TimelineId(1),
            start,
            finish: start,
            started_at: at(hour),
            finished_at: at(hour),
            version: 150_000,
            system: None,
            uncompressed_bytes: 0,
            compressed_bytes: 0,
            parts: None,
            data_dir: String::new(),
            tablespaces: Vec::new(),
            maker,
        }
    }

    /// An old primary that nobody has stopped is neither: its timeline is given up.
    #[test]
    fn standbys_are_asked_first_and_must_be_some() {
        let target = |host: &str| Target {
            address: Address { host: host.to_owned(), port: 5432 },
            user: "bw".into(),
            database: "postgres".into(),
            credentials: Credentials::Trust,
            tls: TlsForServers::default(),
            parameters: Vec::new(),
        };
        let check = |primary: Option<&str>, expected: Option<&[(&str, CopiedAs)]>| {
            let directive =
                Directive { primary: primary.map(name), ..Directive::starting(Durability::Async) };
            let servers = Servers {
                instance: "bw1".to_owned(),
                nodes: ["pg1", "pg2", "pg3"].map(|node| (name(node), target(node))).into(),
                directive: watch::channel(Arc::new(directive)).1,
            };
            let sources = servers.sources();
            let told = sources.as_ref().map(|sources| -> Vec<(&str, CopiedAs)> {
                sources.iter().map(|source| (source.target.address.host.as_str(), source.copied_as)).collect()
            });
            assert_eq!(told.as_deref(), expected, "{primary:?}");
        };
        let (standby, any) = (CopiedAs::Standby, CopiedAs::Whatever);
        check(Some("pg2"), Some(&[("pg1", standby), ("pg3", standby), ("pg2", any)]));
        check(None, None);
    }

    #[test]
    fn one_in_each_interval() {
        let ours = Maker::Us { segment_size: WalSegmentSize::default() };
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let check = |backups: &[Facts], now, expected| {
            assert_eq!(due_in(backups, at(now), hours(24)), expected, "at {now}");
        };
        check(&[], 5, Duration::ZERO);
        check(&[backup(100, ours), backup(90, ours)], 101, hours(23));
        check(&[backup(100, ours)], 124, Duration::ZERO);
        check(&[backup(100, ours)], 1000, Duration::ZERO);
        check(&[backup(100, Maker::AnotherTool)], 101, Duration::ZERO);
    }
}
