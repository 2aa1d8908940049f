//! Followers that begin far back, fed from files: by the primary's walsenders and by Bellwether, one and four at once,
//! into sinks.

use std::sync::Barrier;
use std::time::Instant;

use super::cost::{Usage, server};
use super::figure::{Figure, Target};
use super::harness::Durability;
use super::median;
use super::scene::{Records, Scene};
use super::sink;

const MEBIBYTES: u64 = 768;
const SEGMENT: u64 = 16 << 20;
const ROUNDS: usize = 7;
const FOLLOWERS: [usize; 2] = [1, 4];
/// The primary has something to do by itself now and then.
const NO_COST: f64 = 0.01;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Native,
    Bellwether,
}

#[derive(Clone, Copy, Default)]
struct Sample {
    /// All followers together.
    megabytes_per_second: f64,
    /// Milliseconds per megabyte: of the server that sends, and of the primary.
    cpu: f64,
    primary: f64,
}

pub(crate) fn run() -> Vec<Figure> {
    let scene = Scene::start(Durability::Quorum);
    let (start, end) = scene.write_wal(Records::Large, MEBIBYTES);
    let range = (start / SEGMENT * SEGMENT, end);
    scene.sql.await_position("(SELECT flush_lsn FROM pg_stat_replication)", end);
    println!(
        "\n| catch-up from files, 128 KiB records | MB/s in sum | times one native walsender | sender's CPU ms/MB | primary's CPU ms/MB |\n|---|---|---|---|---|"
    );
    let rows = FOLLOWERS.map(|followers| [From::Native, From::Bellwether].map(|from| (from, followers)));
    let mut samples = rows.as_flattened().iter().map(|row| (*row, Vec::new())).collect::<Vec<_>>();
    for round in 0..=ROUNDS {
        for ((from, followers), samples) in &mut samples {
            let sample = sample(&scene, *from, *followers, range);
            // The first round warms the caches.
            samples.extend((round > 0).then_some(sample));
        }
    }
    let of = |samples: &[Sample], part: fn(&Sample) -> f64| median(samples.iter().map(part));
    let native = of(&samples[0].1, |sample| sample.megabytes_per_second);
    let mut figures = Vec::new();
    for ((from, followers), samples) in &samples {
        let speed = of(samples, |sample| sample.megabytes_per_second);
        println!(
            "| {from:?}, {followers} at once | {speed:.0} | {:.2} | {:.2} | {:.2} |",
            speed / native,
            of(samples, |sample| sample.cpu),
            of(samples, |sample| sample.primary),
        );
        if *from == From::Bellwether {
            let what = format!("catch-up of {followers}, times one native walsender");
            let wanted = if *followers == 1 { 1.0 } else { 2.0 };
            figures.push(Figure::new(what, speed / native, Target::AtLeast(wanted)));
            let what = format!("catch-up of {followers}, the primary's CPU, ms/MB");
            figures.push(Figure::new(what, of(samples, |sample| sample.primary), Target::AtMost(NO_COST)));
        }
    }
    figures
}

fn sample(scene: &Scene, from: From, followers: usize, range: (u64, u64)) -> Sample {
    let port = if from == From::Native { scene.primary.port } else { scene.cluster.port };
    let target = sink::target(scene, port);
    let barriers = [Barrier::new(followers + 1), Barrier::new(followers + 1)];
    let [ready, done] = &barriers;
    std::thread::scope(|scope| {
        let drain = || sink::drain(&target, range, [ready, done]);
        let sinks: Vec<_> = (0..followers).map(|_| scope.spawn(drain)).collect();
        ready.wait();
        let primary = server(scene.postmaster());
        let usage = || (Usage::of(&primary), Usage::of(&[scene.bellwether()]));
        let (began, before) = (Instant::now(), usage());
        done.wait();
        // Their servers are still there: they leave behind this.
        let after = usage();
        done.wait();
        let ended = sinks.into_iter().map(|sink| sink.join().expect("a sink")).max().expect("at least one");
        let megabytes = (range.1 - range.0) as f64 / 1e6 * followers as f64;
        let primary = after.0.since(&before.0) / megabytes;
        let ours = after.1.since(&before.1) / megabytes;
        Sample {
            megabytes_per_second: megabytes / (ended - began).as_secs_f64(),
            cpu: if from == From::Native { primary } else { ours },
            primary,
        }
    })
}
