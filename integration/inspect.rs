//! `bellwether wal ls` and `verify` on what real servers wrote: beside a running instance, over a promotion, on a
//! server's own directory, and on copies with one thing wrong each.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Cluster, Options, bellwether, eventually};

const SEGMENT_BYTES: usize = 16 << 20;
/// About 50 MB.
const FILL: &str = "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 4096))) FROM generate_series(1, 400) i";

#[test]
fn wal_ls_and_verify() {
    let mut cluster = Cluster::start(Options::default());
    let store = cluster.wal_dir();
    // The end moves meanwhile.
    let loaded = AtomicBool::new(false);
    let looks = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !loaded.load(Ordering::Relaxed) {
                clean(&verify(&store));
                looks += 1;
            }
            looks
        });
        let filled: Vec<_> = (0..3).map(|_| cluster.psql(FILL)).collect();
        loaded.store(true, Ordering::Relaxed);
        assert!(filled.iter().all(Result::is_ok), "{filled:?}");
        looking.join().expect("the store is clean")
    });
    assert!(looks > 0, "nobody looked");
    cluster.signal(&cluster.primary(), Signal::SIGKILL);
    eventually("writes", Duration::from_secs(180), || cluster.psql(FILL));
    cluster.await_steady();
    let promoted = cluster.primary();
    cluster.interrupt_bellwether();

    // The whole log of both timelines.
    let found = clean(&verify(&store));
    let ends: Vec<(u64, u64)> = found["timelines"].as_array().expect("timelines").iter().map(end).collect();
    assert_eq!(ends.iter().map(|(timeline, _)| *timeline).collect::<Vec<_>>(), [1, 2]);
    let listed = run(&["ls", "--json"], &store).1;
    assert_eq!(listed["control"]["timeline"], 2);
    assert_eq!(listed["timelines"][1]["end"], found["timelines"][1]["end"]);
    assert!(listed["slots"].as_array().is_some_and(|slots| slots.len() >= 3), "{listed}");

    // The promoted server's own directory ends with the checkpoint of its shutdown, whatever lies behind it.
    let found = clean(&verify(&promoted.data_dir.join("pg_wal")));
    let last = found["timelines"].as_array().and_then(|timelines| timelines.last()).map(end).expect("an end");
    let checkpoint = last_checkpoint(&cluster, &promoted.data_dir);
    assert!((checkpoint + 1..checkpoint + 256).contains(&last.1), "{last:?}, checkpoint at {checkpoint}");

    one_thing_wrong(&store);
}

/// A segment's name and content; `None`: it is left out.
type Change<'a> = dyn Fn(&str, Vec<u8>) -> Option<Vec<u8>> + 'a;

/// In copies of four segments that the load has filled.
fn one_thing_wrong(store: &Path) {
    let mut names: Vec<String> = names(store);
    names.retain(|name| name.len() == 24 && name.starts_with("00000001"));
    assert!(names.len() > 8, "little WAL");
    let names = &names[names.len() - 5..names.len() - 1];
    let copy = |change: &Change<'_>| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in names {
            let content = fs::read(store.join(name)).expect("a segment");
            if let Some(content) = change(name, content) {
                fs::write(directory.path().join(name), content).expect("room");
            }
        }
        let (code, report) = verify(directory.path());
        assert_eq!(code, Some(1), "{report}");
        let problems = report["problems"].as_array().cloned().expect("problems");
        assert_eq!(problems.len(), 1, "{report}");
        problems[0].clone()
    };
    let flipped = copy(&|name, mut content| {
        content[SEGMENT_BYTES / 2 + 100] ^= u8::from(name == names[1]);
        Some(content)
    });
    assert_eq!(flipped["problem"], "corrupt");
    // The record that the byte is in.
    let lsn = lsn(&flipped["lsn"]);
    let byte = segment_start(&names[1]) + SEGMENT_BYTES as u64 / 2 + 100;
    assert!(lsn < byte && byte - lsn < 200_000, "{flipped}");
    assert_eq!(flipped["offset"], lsn % SEGMENT_BYTES as u64);

    let gap = copy(&|name, content| (name != names[2]).then_some(content));
    assert_eq!((gap["problem"].as_str(), gap["first"].as_str()), (Some("gap"), Some(&*names[2])));
    assert_eq!(lsn_of(&gap, "from"), segment_start(&names[2]));

    let foreign = copy(&|name, mut content| {
        content[24] ^= u8::from(name == names[1]);
        Some(content)
    });
    assert_eq!((foreign["problem"].as_str(), foreign["file"].as_str()), (Some("foreign"), Some(&*names[1])));
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").filter_map(Result::ok);
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn verify(directory: &Path) -> (Option<i32>, Value) {
    run(&["verify", "--json"], directory)
}

fn run(arguments: &[&str], directory: &Path) -> (Option<i32>, Value) {
    let mut command = bellwether();
    command.arg("wal").args(arguments).arg("--dir").arg(directory);
    let output = command.output().expect("bellwether");
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{complaint}"));
    (output.status.code(), report)
}

fn clean((code, report): &(Option<i32>, Value)) -> Value {
    assert_eq!(*code, Some(0), "{report}");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
    report.clone()
}

fn end(timeline: &Value) -> (u64, u64) {
    (timeline["timeline"].as_u64().expect("a timeline"), lsn(&timeline["end"]))
}

fn lsn_of(problem: &Value, field: &str) -> u64 {
    lsn(&problem[field])
}

fn lsn(value: &Value) -> u64 {
    parse_lsn(value.as_str().expect("an LSN"))
}

fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let number = |hex: &str| u64::from_str_radix(hex, 16).expect("hex digits");
    number(high) << 32 | number(low)
}

fn segment_start(name: &str) -> u64 {
    u64::from_str_radix(&name[16..], 16).expect("a segment") * SEGMENT_BYTES as u64
}

fn last_checkpoint(cluster: &Cluster, data_dir: &Path) -> u64 {
    let output = cluster.program("pg_controldata").arg("-D").arg(data_dir).output().expect("pg_controldata");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("shut down"), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:"));
    parse_lsn(line.expect("a checkpoint").trim())
}
