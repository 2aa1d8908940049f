//! `make bench BENCH=wal`: the WAL path beside PostgreSQL's own programs: ingest, catch-up, the relay hop, synchronous
//! commits. Everything is measured in turns on the same machine and shown as medians; what counts are the ratios. It
//! prints and asserts nothing.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks and starts threads")]

mod catch_up;
mod commit;
mod cost;
mod figure;
#[allow(dead_code, unused_imports, reason = "the tests use more of the harness than the benchmark")]
#[path = "../harness/mod.rs"]
mod harness;
mod ingest;
mod lag;
mod receivewal;
mod scene;
mod sink;

use std::time::Instant;

use figure::Figure;

/// What is compared, and how; each returns what there is a target for.
type Section = (&'static str, fn() -> Vec<Figure>);

const SECTIONS: [Section; 4] = [
    ("wal ingest", ingest::run),
    ("wal catch-up", catch_up::run),
    ("wal lag", lag::run),
    ("wal commit", commit::run),
];

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let mut figures = Vec::new();
    for (name, run) in SECTIONS.into_iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        figures.extend(run());
        eprintln!("{name}: {} s", began.elapsed().as_secs());
    }
    figure::print(&figures);
}

/// The middle one; of none, nothing.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
