//! How fast WAL that is there becomes durable elsewhere, and at what cost: `pg_receivewal --synchronous`, a native
//! standby's walreceiver (its replay is paused), and Bellwether without followers.
//!
//! All three are stopped (SIGSTOP) while the primary writes, and continued one after another, in another order each
//! round. The clock stops when the primary has heard that all of it is flushed. Rounds before the first that counts
//! fill the stores until they use their old segments again.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cost::Usage;
use super::figure::{Figure, Target};
use super::harness::{Durability, eventually};
use super::median;
use super::receivewal::ReceiveWal;
use super::scene::{Records, Scene, Sql};

const MEBIBYTES: u64 = 640;
/// Bellwether keeps a gigabyte before it uses a segment again.
const WARM_UP: usize = 2;
const ROUNDS: usize = 5;

struct Contestant {
    name: &'static str,
    /// In `pg_stat_replication`.
    application: &'static str,
    pid: u32,
    /// Bellwether is to be so many times as fast.
    speed_wanted: f64,
    samples: Vec<Sample>,
}

struct Sample {
    megabytes_per_second: f64,
    /// Milliseconds per megabyte, and of which threads.
    cpu: f64,
    threads: Vec<(String, f64)>,
}

pub(crate) fn run() -> Vec<Figure> {
    let scene = Scene::start(Durability::Quorum);
    let (_standby, standby_sql) = scene.standby("standby", scene.primary.port);
    let receivewal = ReceiveWal::start(&scene, scene.primary.port);
    println!(
        "\n| durable ingest | MB/s | Bellwether's are times as many | CPU ms/MB | Bellwether's is times as much | of it |\n|---|---|---|---|---|---|"
    );
    let mut figures = Vec::new();
    for records in [Records::Large, Records::Small] {
        let mut contestants = [
            ("pg_receivewal --synchronous", "pg_receivewal", receivewal.pid(), 1.5),
            ("native walreceiver", "standby", walreceiver(&standby_sql), 1.0),
            ("Bellwether", "bellwether%", scene.bellwether(), 1.0),
        ]
        .map(|(name, application, pid, speed_wanted)| Contestant {
            name,
            application,
            pid,
            speed_wanted,
            samples: Vec::new(),
        });
        for round in 0..WARM_UP + ROUNDS {
            recycle(&scene, &standby_sql, &receivewal);
            one_round(&scene, records, &mut contestants, round);
            if round < WARM_UP {
                contestants.iter_mut().for_each(|contestant| contestant.samples.clear());
            }
        }
        standby_sql.run("SELECT pg_wal_replay_resume()");
        figures.extend(report(records, &contestants));
    }
    figures
}

fn walreceiver(standby: &Sql) -> u32 {
    u32::try_from(standby.number("SELECT pid::int8 FROM pg_stat_wal_receiver")).expect("a pid")
}

/// Replays what there is and makes new segments of the old ones; then replay is paused.
fn recycle(scene: &Scene, standby: &Sql, receivewal: &ReceiveWal) {
    standby.run("SELECT pg_wal_replay_resume()");
    scene.sql.run("CHECKPOINT");
    let end = scene.end();
    standby.await_position("pg_last_wal_replay_lsn()", end);
    standby.run("CHECKPOINT");
    standby.run("SELECT pg_wal_replay_pause()");
    receivewal.tidy();
}

fn one_round(scene: &Scene, records: Records, contestants: &mut [Contestant], round: usize) {
    let flushed = "SELECT (flush_lsn - '0/0')::int8 FROM pg_stat_replication WHERE application_name LIKE $1";
    let flushed = scene.sql.prepare(flushed);
    let is_at = |contestant: &Contestant, end: u64| {
        scene.sql.ask(&flushed, &[&contestant.application]).is_some_and(|at| at as u64 >= end)
    };
    let end = scene.end();
    for contestant in &*contestants {
        eventually(contestant.name, Duration::from_secs(60), || {
            if is_at(contestant, end) { Ok(()) } else { Err("behind".to_owned()) }
        });
    }
    contestants.iter().for_each(|contestant| signal(contestant.pid, Signal::SIGSTOP));
    let (start, end) = scene.write_wal(records, MEBIBYTES);
    let megabytes = (end - start) as f64 / 1e6;
    contestants.rotate_left(round % 2 + 1);
    for contestant in contestants {
        let before = Usage::of(&[contestant.pid]);
        let began = Instant::now();
        signal(contestant.pid, Signal::SIGCONT);
        while !is_at(contestant, end) {
            assert!(began.elapsed() < Duration::from_secs(120), "{} does not arrive", contestant.name);
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = began.elapsed().as_secs_f64();
        let used = Usage::of(&[contestant.pid]);
        contestant.samples.push(Sample {
            megabytes_per_second: megabytes / took,
            cpu: used.since(&before) / megabytes,
            threads: used
                .by_thread(&before)
                .into_iter()
                .map(|(name, spent)| (name, spent / megabytes))
                .collect(),
        });
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("signal");
}

fn report(records: Records, contestants: &[Contestant]) -> Vec<Figure> {
    let speed = |of: &Contestant| median(of.samples.iter().map(|sample| sample.megabytes_per_second));
    let cpu = |of: &Contestant| median(of.samples.iter().map(|sample| sample.cpu));
    let ours = contestants.iter().find(|of| of.name == "Bellwether").expect("among them");
    let mut sorted: Vec<&Contestant> = contestants.iter().collect();
    sorted.sort_by_key(|of| of.name);
    for of in sorted.into_iter().rev() {
        println!(
            "| {records:?} records: {} | {:.0} | {:.2} | {:.2} | {:.2} | {} |",
            of.name,
            speed(of),
            speed(ours) / speed(of),
            cpu(of),
            cpu(ours) / cpu(of),
            threads(of),
        );
    }
    let figures = contestants.iter().filter(|of| of.name != ours.name).flat_map(|of| {
        let what = |what| format!("{what} of durable ingest, {records:?} records, times that of {}", of.name);
        [
            Figure::new(what("speed"), speed(ours) / speed(of), Target::AtLeast(of.speed_wanted)),
            Figure::new(what("CPU time"), cpu(ours) / cpu(of), Target::AtMost(1.0)),
        ]
    });
    figures.collect()
}

/// The threads that took more than a fiftieth.
fn threads(of: &Contestant) -> String {
    let Some(sample) = of.samples.first() else { return String::new() };
    let name_and_median = sample.threads.iter().map(|(name, _)| {
        let spent =
            |sample: &Sample| sample.threads.iter().find(|(n, _)| n == name).map_or(0.0, |(_, ms)| *ms);
        (name, median(of.samples.iter().map(spent)))
    });
    let large = name_and_median.filter(|(_, ms)| *ms > sample.cpu / 50.0);
    let shown: Vec<String> = large.map(|(name, ms)| format!("{name} {ms:.2}")).collect();
    if shown.len() > 1 { shown.join(", ") } else { String::new() }
}
