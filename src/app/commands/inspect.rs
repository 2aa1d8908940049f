//! `bellwether wal ls` and `verify`: what is in a directory of WAL, and whether it is whole. Both only read, and may
//! run beside the instance. `reset` needs it stopped.
#![expect(clippy::disallowed_methods, reason = "shell: measures a rate")]

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::progress::Display;
use crate::app::config::{self, LoadError};
use crate::relay::inspect::{self, InspectError, Inventory, TimelineView, Verification};
use crate::relay::{Reset, ResetError};

#[derive(Args, Debug)]
pub(in crate::app) struct Ls {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(in crate::app) struct Verify {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(in crate::app) struct ResetLog {
    #[command(flatten)]
    place: Place,
    /// Do it
    #[arg(long)]
    yes: bool,
}

#[derive(Args, Debug)]
struct Place {
    /// The configuration, which names the relay's directory
    #[arg(long, value_name = "FILE", default_value = "bellwether.yaml")]
    config: PathBuf,
    /// A directory of WAL segments: a store, the pg_wal of a server that is stopped, a copy of an archive
    #[arg(long, value_name = "D", conflicts_with = "config")]
    dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WalError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Reset(#[from] ResetError),
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

impl Place {
    fn directory(&self) -> Result<PathBuf, LoadError> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(config::wal_places(&self.config)?.0),
        }
    }
}

pub(super) fn list(command: &Ls) -> Result<ExitCode, WalError> {
    let inventory = inspect::list(&command.place.directory()?)?;
    print(&if command.json { json(&inventory) } else { inventory_text(&inventory) })?;
    Ok(if inventory.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn reset(command: &ResetLog) -> Result<ExitCode, WalError> {
    let reset = Reset::look(&command.place.directory()?)?;
    let mut text = match reset.segments.as_slice() {
        [] => "no segment is there\n".to_owned(),
        [first, .., last] => format!("{} segments, {first} to {last}", reset.segments.len()),
        [only] => format!("segment {only}"),
    };
    if !reset.segments.is_empty() {
        let _ = writeln!(text, " -> {}", reset.aside.display());
    }
    for slot in &reset.lost_slots {
        let _ = writeln!(text, "slot {slot} is lost");
    }
    let _ = writeln!(text, "term {} stays promised", reset.promised());
    if command.yes {
        reset.carry_out()?;
        print(&(text + "the log begins anew when the instance is started\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&(text + "nothing was done: say --yes\n"))?;
    Ok(ExitCode::FAILURE)
}

pub(super) fn verify(command: &Verify) -> Result<ExitCode, WalError> {
    let directory = command.place.directory()?;
    let began = Instant::now();
    let display = Display::new("verifying");
    let verification =
        inspect::verify(&directory, &mut |read, total| display.show("verifying", read, total))?;
    drop(display);
    let seconds = began.elapsed().as_secs_f64();
    print(&if command.json { json(&verification) } else { verification_text(&verification, seconds) })?;
    Ok(if verification.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn told(done: Result<ExitCode, WalError>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("bellwether: {}", crate::app::cli::chain(&error));
        ExitCode::FAILURE
    })
}

fn inventory_text(inventory: &Inventory) -> String {
    let mut text = format!("directory  {}\n", inventory.directory.display());
    if let Some(system) = inventory.system {
        let _ = writeln!(text, "system     {system}, segments of {} MiB", inventory.segment_bytes >> 20);
    }
    if let Some(control) = &inventory.control {
        let _ =
            writeln!(text, "relay      on timeline {}, term {} promised", control.timeline, control.promised);
    }
    for line in &inventory.timelines {
        text += &timeline_text(line);
    }
    for slot in &inventory.slots {
        let holds = match (slot.restart_timeline, slot.restart_lsn, slot.holds_bytes) {
            (Some(timeline), Some(lsn), holds) => {
                format!("from {lsn} of timeline {timeline}, holds {}", mebibytes(holds.unwrap_or_default()))
            }
            _ if slot.lost => "lost: what it held back exceeded wal.retain".to_owned(),
            _ => "holds nothing yet".to_owned(),
        };
        let _ = writeln!(text, "slot       {}: {holds}", slot.name);
    }
    let (spare, compressed) = (inventory.spare_segments, inventory.compressed_segments);
    let _ = writeln!(text, "spare      {spare} segments allocated ahead");
    if compressed > 0 {
        let _ = writeln!(text, "compressed {compressed} segments, not looked into");
    }
    for problem in &inventory.problems {
        let _ = writeln!(text, "problem    {problem}");
    }
    text
}

fn timeline_text(line: &TimelineView) -> String {
    let fork = line
        .forked_from
        .map_or_else(String::new, |(ancestor, lsn)| format!(", forked from timeline {ancestor} at {lsn}"));
    let segments = match (&line.first_segment, &line.last_segment) {
        (Some(first), Some(last)) => format!("{first} to {last}"),
        _ => "none".to_owned(),
    };
    let unused = match line.unused_segments {
        0 => String::new(),
        unused => format!(", {unused} named ahead"),
    };
    format!(
        "timeline   {}: {} to {}{fork}\n           {} segments{unused}: {segments}\n",
        line.timeline, line.start, line.end, line.segments
    )
}

fn verification_text(verification: &Verification, seconds: f64) -> String {
    let mut text = String::new();
    for line in &verification.timelines {
        let _ = writeln!(
            text,
            "timeline {}: {} to {} in {} segments",
            line.timeline, line.start, line.end, line.segments
        );
    }
    for problem in &verification.problems {
        let _ = writeln!(text, "{problem}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = verification.bytes as f64 / f64::from(1 << 20) / seconds.max(1e-3);
    let _ = writeln!(
        text,
        "{}: {}, {} problems ({rate:.0} MiB/s)",
        verification.directory.display(),
        mebibytes(verification.bytes),
        verification.problems.len()
    );
    text
}

fn mebibytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{mebibytes:.1} MiB")
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain values are JSON") + "\n"
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // `bellwether wal ls | head`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
