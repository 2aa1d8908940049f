//! A script of raw messages is answered by the endpoint as it is by a server: the same messages in the same order,
//! for every byte that matters. Scripts are written by hand, one per feature, and put together at random.

mod client;
mod generate;
mod judge;
mod known;
mod message;
mod owed;
mod planted;
mod script;
mod trace;
mod world;

use std::env;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::client::Delivery;
use self::generate::generate;
use self::judge::{Difference, compare};
use self::script::{Script, written_by_hand};
use self::world::{LANES, Lane, Mode, World};
use crate::harness::{major, second_major};

const WORKERS: usize = 2;

fn differential(pg_bin: Option<PathBuf>, seeds: &Range<u64>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::start(pg_bin).await;
        let mut wrong = Vec::new();
        for mode in [Mode::Transaction, Mode::Session] {
            let mut lanes = world.enter(mode).await;
            let [direct, endpoint] = lanes[0].greetings().await;
            assert_eq!(direct, endpoint, "{mode:?} mode: the first ParameterStatus messages");
            wrong.extend(by_hand(&mut lanes).await);
            wrong.extend(at_random(&mut lanes, seeds).await);
        }
        assert!(wrong.is_empty(), "{}\n{} outcomes are wrong", wrong.join("\n"), wrong.len());
    });
}

/// How often a script of the list may be equal before it counts as equal.
const CHANCES: u32 = 10;

/// These are cut at every byte.
const CUT: &[&str] = &["cut: extended", "cut: simple", "cut: copy"];

/// Every script twice: in few writes and in many.
async fn by_hand(lanes: &mut [Lane; LANES]) -> Vec<String> {
    let scripts = written_by_hand();
    let cut: Vec<Script> = scripts
        .iter()
        .filter(|script| CUT.contains(&script.name.as_str()))
        .map(Script::once_for_each_byte)
        .collect();
    assert_eq!(cut.len(), CUT.len());
    let cases: Vec<(&Script, Delivery)> = scripts
        .iter()
        .flat_map(|script| [(script, Delivery::Whole), (script, Delivery::Bytewise)])
        .chain(cut.iter().map(|script| (script, Delivery::Cut)))
        .collect();
    in_every_lane(lanes, async |lane, number| {
        let mut wrong = Vec::new();
        for (script, delivery) in cases.iter().skip(number).step_by(LANES) {
            let mut found = compare(lane.run(script, *delivery).await);
            // Some differ or not by the server that they get.
            let mut chances = if known::is_known(&script.name, lane.mode) { CHANCES } else { 0 };
            while found.is_none() && chances > 0 {
                found = compare(lane.run(script, *delivery).await);
                chances -= 1;
            }
            let judged = known::judge(&script.name, lane.mode, found.as_ref());
            wrong.extend(judged.err().map(|what| format!("{delivery:?}: {what}")));
        }
        wrong
    })
    .await
}

/// Some that are left out make an answer fail to come, which takes a while to see.
const SHRINK_FOR: Duration = Duration::from_secs(20);

/// Differences shown; more would hardly tell more.
const SHOWN: usize = 3;

async fn at_random(lanes: &mut [Lane; LANES], seeds: &Range<u64>) -> Vec<String> {
    in_every_lane(lanes, async |lane, number| {
        let mut wrong = Vec::new();
        for seed in seeds.clone().skip(number).step_by(LANES) {
            let script = generate(seed);
            let delivery = if seed % 3 == 0 { Delivery::Bytewise } else { Delivery::Whole };
            if let Some(found) = news(lane, &script, delivery).await {
                let (script, found) = shrink(lane, delivery, script, found).await;
                let mode = lane.mode;
                wrong.push(format!("{mode:?} mode differs, {delivery:?}, shrunk to:\n{script}{found}"));
            }
            if wrong.len() >= SHOWN {
                break;
            }
        }
        wrong
    })
    .await
}

async fn news(lane: &mut Lane, script: &Script, delivery: Delivery) -> Option<Difference> {
    let found = compare(lane.run(script, delivery).await);
    found.filter(|difference| !known::is_of_read_only_block(script, difference))
}

/// The same difference, as far as one can tell, with as little said as possible: whatever is not needed is left
/// out, batch by batch and then line by line.
async fn shrink(
    lane: &mut Lane,
    delivery: Delivery,
    mut script: Script,
    mut found: Difference,
) -> (Script, Difference) {
    println!("{} differs; looking for less", script.name);
    let (mut at, began) = (script.places(), Instant::now());
    while let Some(place) = at.pop().filter(|_| began.elapsed() < SHRINK_FOR) {
        let Some(less) = script.without(place) else { continue };
        if let Some(difference) = news(lane, &less, delivery).await {
            (script, found) = (less, difference);
        }
    }
    (script, found)
}

async fn in_every_lane(
    [one, other]: &mut [Lane; LANES],
    work: impl AsyncFn(&mut Lane, usize) -> Vec<String>,
) -> Vec<String> {
    let (one, other) = tokio::join!(work(one, 0), work(other, 1));
    [one, other].concat()
}

/// `SEEDS=n` takes another number of them than `usual`, `SEED=n` that one alone.
fn seeds(usual: u64) -> Range<u64> {
    let number = |name| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(usual),
    }
}

#[test]
fn as_postgresql_answers() {
    differential(None, &seeds(40));
}

#[test]
fn as_postgresql_18_answers() {
    differential(Some(second_major().bin()), &seeds(40));
}

#[test]
#[ignore = "the long run's: make soak"]
fn as_postgresql_14_answers() {
    differential(Some(major(14).bin()), &seeds(40));
}

#[test]
#[ignore = "the long run's: make soak"]
fn as_postgresql_16_answers() {
    differential(Some(major(16).bin()), &seeds(40));
}

#[test]
#[ignore = "the long run's: make soak"]
fn as_postgresql_17_answers() {
    differential(Some(major(17).bin()), &seeds(40));
}
