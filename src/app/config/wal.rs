//! The section `wal`: where the log is kept, how much of it, and where it is archived.

use std::path::Path;
use std::time::Duration;

use super::Wal;
use super::reader::{Findings, Problem, Section};
use super::units::{duration, duration_or_off, number, parsed, path, size, text, texts, word};
use crate::relay::Retain;
use crate::relay::archive::{ArchiveConfig, BackupPlan};
use crate::topology::{Address, RemoteApply};

/// As fast as the log comes, and a fifth of its size.
const LEVEL: u32 = 3;
const PARTIAL_INTERVAL: Duration = Duration::from_secs(5);
const BACKUP_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
const BACKUPS_KEPT: u32 = 7;

pub(super) fn wal(wal: &mut Section<'_>, directory: &Path) -> Option<Wal> {
    let dir = wal.required("dir", path);
    let retain = wal.section("retain", retain);
    let follower_rate = wal.or("follower_rate", 0, size);
    let archive = wal.section("archive", archive);
    let upstreams = wal.or("upstreams", Vec::new(), addresses);
    let rules = [("off", RemoteApply::Off), ("followers", RemoteApply::Followers)];
    let remote_apply = wal.or("remote_apply", RemoteApply::Off, word(&rules));
    Some(Wal { dir: directory.join(dir?), retain: retain?, follower_rate, upstreams, remote_apply, archive })
}

fn retain(retain: &mut Section<'_>) -> Option<Retain> {
    let default = Retain::default();
    let read = Retain {
        size: retain.or("size", default.size, size),
        age: retain.or("age", default.age, age),
        max_size: retain.or("max_size", default.max_size, size),
        min_free: retain.or("min_free", default.min_free, size),
    };
    if read.max_size < read.size {
        retain.problem("max_size", "is less than size");
    }
    Some(read)
}

/// Here zero has a meaning.
fn age(value: &serde_yaml::Value) -> Result<Duration, String> {
    if text(value).is_ok_and(|text| text == "0s") { Ok(Duration::ZERO) } else { duration(value) }
}

/// The section of a document in which nothing else is looked at.
pub(super) fn alone(yaml: &str, directory: &Path) -> Result<Wal, Vec<Problem>> {
    let mut findings = Findings::default();
    let document: serde_yaml::Value = serde_yaml::from_str(yaml)
        .map_err(|error| vec![Problem { path: String::new(), what: format!("is not YAML: {error}") }])?;
    let section = document.get("wal").cloned().unwrap_or_default();
    let found = Section::document(&section, &mut findings, |section| wal(section, directory));
    match found {
        Some(wal) if findings.problems.is_empty() => Ok(wal),
        _ => {
            let below = |Problem { path, what }| Problem { path: format!("wal.{path}"), what };
            Err(findings.problems.into_iter().map(below).collect())
        }
    }
}

fn addresses(value: &serde_yaml::Value) -> Result<Vec<Address>, String> {
    let address = |text: String| text.parse::<Address>().map_err(|error| error.to_string());
    texts(value)?.into_iter().map(address).collect()
}

/// `None` also when there is no such section.
fn archive(archive: &mut Section<'_>) -> Option<ArchiveConfig> {
    if archive.is_absent() {
        return None;
    }
    let url = archive.required("url", parsed);
    archive.or("compression", (), word(&[("zstd", ())]));
    let level = archive.or("level", LEVEL, number(1..=19));
    let partial_interval = archive.or("partial_interval", PARTIAL_INTERVAL, duration);
    let backups = archive.section("backups", backups);
    Some(ArchiveConfig { url: url?, level: level.cast_signed(), partial_interval, backups })
}

/// Who takes none by itself removes none, unless it is told how many to keep.
fn backups(backups: &mut Section<'_>) -> BackupPlan {
    let every = backups.optional("every", duration_or_off).unwrap_or(Some(BACKUP_EVERY));
    let keep = backups.optional("keep", number(1..=10_000)).or(every.map(|_| BACKUPS_KEPT));
    BackupPlan { every, keep: keep.map(|keep| keep as usize) }
}
