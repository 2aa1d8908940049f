//! `bellwether backup` and `bellwether restore`: base backups into the archive, and servers out of it.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use clap::Args;

use super::progress::Display;
use super::{directory, shell_word};
use crate::app::certificates::Certificates;
use crate::app::cli::chain;
use crate::app::config::{self, Config, LoadError};
use crate::app::plans;
use crate::net::{TablespaceMapping, Target, TlsError, sql};
use crate::pg::{Lsn, TimelineId};
use crate::relay::archive::{
    self, ArchiveUrl, BackupError, BackupJob, BackupSource, CopiedAs, Moment, Occasion, RestoreError,
    RestoreJob, Restored, Retained,
};

#[derive(Args, Debug)]
pub(in crate::app) struct Restore {
    #[command(flatten)]
    moment: Wanted,
    /// Along this timeline [default: the newest of the archive]
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// The new server's data directory, missing or empty
    #[arg(long, value_name = "D")]
    data_dir: PathBuf,
    /// The tablespace at OLD comes to NEW, missing or empty [default: to OLD]; \= is an equals sign of a path
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_mapping: Vec<TablespaceMapping>,
    #[command(flatten)]
    archive: Archive,
}

/// The moment that is wanted.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(in crate::app) struct Wanted {
    /// As of the last commit up to this time: 2026-11-21T10:30:00Z, '2026-11-21 10:30:00+00'
    #[arg(long, value_name = "T", value_parser = time)]
    to_time: Option<DateTime<Utc>>,
    /// As of this position, as pg_current_wal_lsn() gives it
    #[arg(long, value_name = "L")]
    to_lsn: Option<Lsn>,
    /// As of the end of the archive
    #[arg(long)]
    to_latest: bool,
}

#[derive(Args, Debug)]
pub(in crate::app) struct Archive {
    /// The configuration, which names the archive; the new server asks the relay's directory first
    #[arg(long, value_name = "FILE", required_unless_present = "archive", conflicts_with = "archive")]
    config: Option<PathBuf>,
    /// The archive: file:///directory, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    #[arg(long, value_name = "URL")]
    archive: Option<ArchiveUrl>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum CommandError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{} names no archive (wal.archive)", path.display())]
    NoArchive { path: PathBuf },
    #[error("no base backup")]
    Backup(#[from] BackupError),
    #[error("nothing is restored")]
    Restore(#[from] RestoreError),
    #[error("find out where this program is")]
    Program(#[source] io::Error),
}

/// To learn whether a server is a standby.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// One base backup now; returns what to tell.
pub(in crate::app) async fn backup(path: &Path) -> Result<String, CommandError> {
    let (config, _) = config::load(path)?;
    let Some(archive) = config.wal.archive.clone() else {
        return Err(CommandError::NoArchive { path: path.to_owned() });
    };
    let job = BackupJob {
        url: archive.url,
        level: archive.level,
        sources: sources(&config).await?,
        instance: config.instance.clone(),
        occasion: Occasion::Request,
        keep: archive.backups.keep,
    };
    let done = archive::backup(&job, &Display::new("packing")).await?;
    let retained = match &done.retained {
        Ok(retained) => told_of(retained),
        Err(error) => format!("what is too old is still there: {}\n", chain(error)),
    };
    Ok(format!(
        "{}: {} bytes of {}, {} compressed, from {} to {}\n{retained}",
        done.name, done.bytes, done.source, done.compressed_bytes, done.start, done.finish
    ))
}

fn told_of(Retained { removed, unknown }: &Retained) -> String {
    let removed = removed.iter().map(|name| format!("removed {name}\n"));
    let unknown = unknown
        .iter()
        .map(|backup| format!("not understood, all WAL from its begin on is kept for it: {backup}\n"));
    removed.chain(unknown).collect()
}

/// Standbys first. Who does not answer now is asked last.
async fn sources(config: &Config) -> Result<Vec<BackupSource>, TlsError> {
    let tls = Certificates::towards_servers(config)?;
    let mut ranked = Vec::new();
    for node in plans::nodes(config) {
        let target = plans::target(config, &tls, &node);
        let (rank, copied_as) = match in_recovery(&target).await {
            Some(true) => (0, CopiedAs::Standby),
            Some(false) => (1, CopiedAs::Whatever),
            None => (2, CopiedAs::Whatever),
        };
        ranked.push((rank, BackupSource { target, copied_as }));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    Ok(ranked.into_iter().map(|(_, source)| source).collect())
}

async fn in_recovery(target: &Target) -> Option<bool> {
    let asked = async {
        let connection = sql::connect(target, ASK_LIMIT).await.ok()?;
        connection.query_one("SELECT pg_is_in_recovery()", &[]).await.ok()?.try_get(0).ok()
    };
    tokio::time::timeout(ASK_LIMIT, asked).await.ok().flatten()
}

/// Returns what to tell.
pub(in crate::app) async fn restore(command: Restore) -> Result<String, CommandError> {
    let Restore { moment, timeline, data_dir, tablespace_mapping, archive } = command;
    let program = installed(env::current_exe().map_err(CommandError::Program)?);
    let (url, from) = match (archive.archive, archive.config) {
        (Some(url), _) => (url.clone(), ["--archive".to_owned(), url.to_string()]),
        (None, config) => {
            let path = config.unwrap_or_default();
            let (_, url) = config::wal_places(&path)?;
            let config = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
            let from = ["--config".to_owned(), config.display().to_string()];
            (url.ok_or(CommandError::NoArchive { path })?, from)
        }
    };
    let job = RestoreJob {
        url,
        moment: moment.moment(),
        timeline: timeline.map(TimelineId),
        data_dir: directory(&data_dir),
        tablespaces: tablespace_mapping,
        restore_command: restore_command(&program, &from),
    };
    let restored = archive::restore(&job, &Display::new("unpacking")).await?;
    Ok(told(&restored, &job.data_dir))
}

/// The running program has this name when an upgrade has replaced it; what has replaced it is in its place.
fn installed(program: PathBuf) -> PathBuf {
    let replaced = program.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    replaced.filter(|_| !program.exists()).unwrap_or(program)
}

/// PostgreSQL replaces what begins with `%` (`BuildRestoreCommand`, archive.c), and a shell runs the rest.
fn restore_command(program: &Path, from: &[String; 2]) -> String {
    let word = |text: &str| shell_word(text).replace('%', "%%");
    let [option, place] = from;
    format!("{} wal get %f \"%p\" {option} {}", word(&program.display().to_string()), word(place))
}

fn told(restored: &Restored, data_dir: &Path) -> String {
    let Restored { backup, finished_at, timeline, bytes, tablespaces } = restored;
    let (directory, word) = (data_dir.display(), shell_word(&data_dir.display().to_string()));
    let placed: String = tablespaces.iter().map(|tablespace| format!("{tablespace}\n")).collect();
    format!(
        "{directory}: {backup} of {finished_at} is unpacked ({bytes} bytes). A server started there recovers on \
         timeline {timeline} and then takes writes, on a timeline of its own:\n  pg_ctl -D {word} start\n{placed}"
    )
}

impl Wanted {
    fn moment(&self) -> Moment {
        match (self.to_time, self.to_lsn) {
            (Some(time), _) => Moment::Time(time),
            (_, Some(lsn)) => Moment::Lsn(lsn),
            (None, None) => Moment::Latest,
        }
    }
}

/// RFC 3339, or as psql shows it. Without a zone it would be a guess.
fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let parsed = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z"))
        .map(|time| time.to_utc());
    parsed.map_err(|_| match NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f") {
        Ok(_) => "a time zone is expected, such as +00".to_owned(),
        Err(_) => "a time is expected, such as 2026-11-21T10:30:00Z or '2026-11-21 10:30:00+00'".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{installed, restore_command, time};

    #[test]
    fn recovery_finds_this_program() {
        let from = ["--config".to_owned(), "/etc/it's 100%.yaml".to_owned()];
        assert_eq!(
            restore_command(Path::new("/opt/$x/bellwether"), &from),
            r#"'/opt/$x/bellwether' wal get %f "%p" --config '/etc/it'\''s 100%%.yaml'"#
        );
        for (told, expected) in [("/nowhere/bw (deleted)", "/nowhere/bw"), ("/nowhere/bw", "/nowhere/bw")] {
            assert_eq!(installed(PathBuf::from(told)), Path::new(expected));
        }
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("2026-11-21T10:30:00Z", Ok("2026-11-21 10:30:00 UTC")),
            ("2026-11-21T10:30:00.25+02:00", Ok("2026-11-21 08:30:00.250 UTC")),
            ("2026-11-21 10:30:00.123456+00", Ok("2026-11-21 10:30:00.123456 UTC")),
            ("2026-11-21 10:30:00+05:30", Ok("2026-11-21 05:00:00 UTC")),
            ("2026-11-21 10:30:00", Err("a time zone is expected, such as +00")),
            (
                "yesterday",
                Err("a time is expected, such as 2026-11-21T10:30:00Z or '2026-11-21 10:30:00+00'"),
            ),
        ] {
            let parsed = time(text).map(|time| time.to_string());
            assert_eq!(parsed.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }
}
