//! Where PostgreSQL's programs are, and which version they have.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::{Program, ProgramError};

/// Without these nothing can be run.
const REQUIRED: [&str; 3] = ["initdb", "pg_ctl", "postgres"];
/// Where Debian and Ubuntu keep one directory per major version.
const DEBIAN: &str = "/usr/lib/postgresql";
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// One installation of PostgreSQL's server programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgBinaries {
    pub bin_dir: PathBuf,
    pub version: PgVersion,
    /// Not part of every package; without it a diverged node is rebuilt by a base backup.
    pub pg_rewind: Option<PathBuf>,
}

/// Ordered: 15.2 < 15.10 < 16.0; betas and development versions count as `.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgVersion {
    pub major: u32,
    pub minor: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    #[error("{bin_dir}: no PostgreSQL server programs there ({missing} is missing)")]
    Incomplete { bin_dir: PathBuf, missing: &'static str },
    #[error(
        "no PostgreSQL server programs (initdb, pg_ctl, postgres) in PATH or {DEBIAN}: \
         install PostgreSQL or name their directory"
    )]
    NotFound,
    #[error("ask {postgres} for its version")]
    Version {
        postgres: PathBuf,
        #[source]
        source: ProgramError,
    },
    #[error("{postgres} gives its version as {output:?}")]
    UnknownVersion { postgres: PathBuf, output: String },
    #[error("{bin_dir} has PostgreSQL {version}: 14 or later is needed")]
    TooOld { bin_dir: PathBuf, version: PgVersion },
}

impl PgBinaries {
    /// The oldest major version that is supported.
    pub const OLDEST_MAJOR: u32 = 14;

    /// `bin_dir` if named, else the first directory of `search_path` (the value of `PATH`) that has them all, else the newest of
    /// `/usr/lib/postgresql/*/bin`.
    pub async fn discover(
        bin_dir: Option<&Path>,
        search_path: Option<&OsStr>,
    ) -> Result<PgBinaries, BinariesError> {
        let bin_dir = match bin_dir {
            Some(bin_dir) => bin_dir.to_owned(),
            None => in_path(search_path).or_else(newest_of_debian).ok_or(BinariesError::NotFound)?,
        };
        if let Some(missing) = REQUIRED.into_iter().find(|name| !bin_dir.join(name).is_file()) {
            return Err(BinariesError::Incomplete { bin_dir, missing });
        }
        let version = version_of(&bin_dir).await?;
        if version.major < Self::OLDEST_MAJOR {
            return Err(BinariesError::TooOld { bin_dir, version });
        }
        let pg_rewind = Some(bin_dir.join("pg_rewind")).filter(|path| path.is_file());
        Ok(PgBinaries { bin_dir, version, pg_rewind })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

impl PgVersion {
    /// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-1)`, also `18beta2` and `19devel`.
    pub fn parse(output: &str) -> Option<PgVersion> {
        let (_, version) = output.split_once("(PostgreSQL) ")?;
        let (major, rest) = number(version)?;
        let minor = rest.strip_prefix('.').and_then(number).map_or(0, |(minor, _)| minor);
        Some(PgVersion { major, minor })
    }
}

/// The number at the start of `text`, and what follows it.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Links are followed: PostgreSQL finds its libraries relative to the real directory of its programs.
fn in_path(search_path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(search_path?).filter(|dir| dir.is_absolute()).find_map(|dir| {
        let postgres = dir.join("postgres").canonicalize().ok()?;
        let real = postgres.parent()?.to_owned();
        REQUIRED.into_iter().all(|name| real.join(name).is_file()).then_some(real)
    })
}

fn newest_of_debian() -> Option<PathBuf> {
    let versions = std::fs::read_dir(DEBIAN).ok()?.flatten();
    versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, bin)| REQUIRED.into_iter().all(|name| bin.join(name).is_file()))
        .max_by_key(|(major, _)| *major)
        .map(|(_, bin)| bin)
}

async fn version_of(bin_dir: &Path) -> Result<PgVersion, BinariesError> {
    let postgres = bin_dir.join("postgres");
    let output = match Program::new(&postgres, VERSION_LIMIT).arg("-V").run().await {
        Ok(output) => output,
        Err(source) => return Err(BinariesError::Version { postgres, source }),
    };
    PgVersion::parse(&output).ok_or(BinariesError::UnknownVersion { postgres, output })
}

#[cfg(test)]
mod tests {
    use super::PgVersion;

    #[test]
    fn versions() {
        let check = |output: &str, expected: Option<(u32, u32)>| {
            assert_eq!(PgVersion::parse(output).map(|v| (v.major, v.minor)), expected, "{output}");
        };
        check("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some((15, 14)));
        check("postgres (PostgreSQL) 18.4\n", Some((18, 4)));
        check("postgres (PostgreSQL) 18beta2\n", Some((18, 0)));
        check("postgres (PostgreSQL) 19devel\n", Some((19, 0)));
        check("postgres (EnterpriseDB) x\n", None);
        check("postgres (PostgreSQL) next\n", None);
    }
}
