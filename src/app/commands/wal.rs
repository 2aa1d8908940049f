//! `bellwether wal`: the relay's WAL and the archive, for people and for PostgreSQL.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::inspect::{self, Ls, ResetLog, Verify};
use crate::app::config::{self, LoadError};
use crate::pg::SystemIdentifier;
use crate::relay::archive::{self, ArchiveUrl, FetchError, Fetched, Server, Sources};

#[derive(Debug, Subcommand)]
pub(in crate::app) enum Wal {
    /// List what is in a directory of WAL: timelines, segments, ends, slots
    Ls(Ls),
    /// Check every page, record and checksum of a directory of WAL, and that nothing is missing
    #[command(after_help = "Exit codes: 0 all is whole, 1 something is wrong or could not be read.")]
    Verify(Verify),
    /// Let the log of a relay that is stopped begin anew, where it does not go on: behind a gap, or after a split brain
    #[command(
        after_help = "What was stored is moved aside, slots that held some of it back are lost, the promised term \
        stays. Without --yes nothing is done. Exit codes: 0 done, 1 not."
    )]
    Reset(ResetLog),
    /// Fetch one file for a server that recovers: restore_command = 'bellwether wal get %f "%p" --config FILE'
    #[command(
        after_help = "Exit codes: 0 it is there, 1 there is no such file (or none for a standby now), 255 it \
        could not be fetched, and recovery must not end here."
    )]
    Get(Get),
}

#[derive(Args, Debug)]
pub(in crate::app) struct Get {
    /// The file: %f
    file: String,
    /// Where to put it: %p
    path: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// Where WAL is looked for.
#[derive(Args, Debug)]
pub(in crate::app) struct Places {
    /// The configuration, which names the relay's directory and the archive
    #[arg(long, value_name = "FILE", required_unless_present = "archive")]
    config: Option<PathBuf>,
    /// The archive: file:///directory, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    #[arg(long, value_name = "URL")]
    archive: Option<ArchiveUrl>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum WalError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// PostgreSQL takes 1 to 125 for "the archive has no such file", which ends a recovery; above that, recovery fails
/// instead (`RestoreArchivedFile` in xlogarchive.c).
const NO_SUCH_FILE: u8 = 1;
const FAILED: u8 = 255;

/// Whether the command line is that of a `restore_command`, however wrong the rest of it may be.
pub(in crate::app) fn is_get(words: &[OsString]) -> bool {
    words.iter().skip(1).map(OsString::as_os_str).take(2).eq(["wal", "get"])
}

/// How a `restore_command` that failed ends.
pub(in crate::app) fn failed() -> u8 {
    trouble(server(Path::new(".")))
}

pub(in crate::app) async fn wal(command: Wal) -> ExitCode {
    match command {
        Wal::Ls(command) => inspect::told(inspect::list(&command)),
        Wal::Verify(command) => inspect::told(inspect::verify(&command)),
        Wal::Reset(command) => inspect::told(inspect::reset(&command)),
        Wal::Get(command) => {
            let server = server(Path::new("."));
            let (code, complaint) = outcome(get(command, server).await, server);
            if let Some(complaint) = complaint {
                eprintln!("bellwether: {complaint}");
            }
            ExitCode::from(code)
        }
    }
}

async fn get(command: Get, server: Server) -> Result<Fetched, WalError> {
    let Get { file, path, places } = command;
    let (store, configured) = match &places.config {
        Some(config) => config::wal_places(config).map(|(store, archive)| (Some(store), archive))?,
        None => (None, None),
    };
    let archive = places.archive.or(configured);
    let sources = Sources { store, archive, system: system(Path::new(".")), server };
    Ok(archive::fetch(&sources, &file, &path).await?)
}

fn outcome(got: Result<Fetched, WalError>, server: Server) -> (u8, Option<String>) {
    match got {
        Ok(Fetched::Done) => (0, None),
        Ok(Fetched::Instead { of }) => {
            (0, Some(format!("{}; the archive's is good, and is taken", super::super::cli::chain(&*of))))
        }
        Ok(Fetched::Nowhere) => (NO_SUCH_FILE, None),
        Err(error) => (trouble(server), Some(super::super::cli::chain(&error))),
    }
}

/// A standby asks again by itself, and may do without: to fail it for an archive that cannot be reached would stop it.
fn trouble(server: Server) -> u8 {
    match server {
        Server::StandsBy => NO_SUCH_FILE,
        Server::Recovers => FAILED,
    }
}

/// PostgreSQL runs the command in its data directory.
fn server(data_dir: &Path) -> Server {
    if data_dir.join("standby.signal").exists() { Server::StandsBy } else { Server::Recovers }
}

/// The first field of `ControlFileData` (pg_control.h). `None` where this is no server's directory.
fn system(data_dir: &Path) -> Option<SystemIdentifier> {
    let control = fs::read(data_dir.join("global/pg_control")).ok()?;
    Some(SystemIdentifier(u64::from_le_bytes(*control.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::{WalError, is_get, outcome, server, system};
    use crate::pg::SystemIdentifier;
    use crate::relay::archive::{FetchError, Fetched, Server};

    #[test]
    fn exit_codes_tell_postgresql_whether_recovery_may_end() {
        let error = || {
            let source = io::Error::other("gone");
            FetchError::File { operation: "write", path: PathBuf::from("x"), source }
        };
        let failed = || Err(WalError::Fetch(error()));
        for server in [Server::Recovers, Server::StandsBy] {
            assert_eq!(outcome(Ok(Fetched::Done), server).0, 0);
            assert_eq!(outcome(Ok(Fetched::Nowhere), server).0, 1);
            let (code, told) = outcome(Ok(Fetched::Instead { of: Box::new(error()) }), server);
            assert_eq!(code, 0);
            assert!(told.is_some_and(|told| told.starts_with("write x: gone; the archive")));
        }
        assert_eq!(outcome(failed(), Server::Recovers), (255, Some("write x: gone".to_owned())));
        assert_eq!(outcome(failed(), Server::StandsBy).0, 1);
    }

    #[test]
    fn a_restore_command_is_known_by_its_first_words() {
        let check = |line: &str, expected| {
            let words: Vec<_> = line.split(' ').map(Into::into).collect();
            assert_eq!(is_get(&words), expected, "{line}");
        };
        check("bellwether wal get", true);
        check("/usr/bin/bellwether wal get x y --what", true);
        check("bellwether wal ls", false);
        check("bellwether wal", false);
        check("wal get x", false);
    }

    #[test]
    fn a_data_directory_tells_who_asks() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!((server(directory.path()), system(directory.path())), (Server::Recovers, None));
        std::fs::create_dir(directory.path().join("global")).expect("makes");
        let control = [&7_u64.to_le_bytes()[..], &[0; 100]].concat();
        std::fs::write(directory.path().join("global/pg_control"), control).expect("writes");
        std::fs::write(directory.path().join("standby.signal"), "").expect("writes");
        assert_eq!(server(directory.path()), Server::StandsBy);
        assert_eq!(system(directory.path()), Some(SystemIdentifier(7)));
    }
}
