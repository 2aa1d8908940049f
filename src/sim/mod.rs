//! A deterministic world that drives the real cores.
//!
//! Virtual time, one seed: three model servers, one Bellwether made of the production cores (`failover::decide`
//! and `health` with the journal, the walreceiver, the store, the walsenders, slots), clients that write
//! tokens, and faults. What the promises of `ARCHITECTURE.md` say is looked at from outside after every event.
//!
//! * `BELLWETHER_SIM_SEEDS=1000` runs that many seeds (300 if not set), `BELLWETHER_SIM_SEED=17` only that one.
//! * A failure names its seed and the last things that happened; the same seed gives the same course again.
//! * Every check is itself checked: [`planted`] has a bug for each, which some seed must find.
//!
//! Worlds of their own: [`pools`], the bookkeeping of one pool under sessions of several workers; [`power`], the store's
//! files under power cuts at every operation; [`relays`], every order of steps of an election among several relays; and
//! [`several`], several instances, with etcd and hosts that do not reach each other, where WAL is a list of values.
//!
//! Not here: TLS, authentication, SQL, sockets, threads. Nor is a model server a proof of how PostgreSQL
//! behaves: that is what the integration tests are for.
#![expect(clippy::disallowed_methods, reason = "reads the seeds from the environment")]

mod bellwether;
mod clock;
mod disk;
mod faults;
mod invariants;
mod log;
mod planted;
mod pools;
mod postgres;
mod power;
mod relays;
mod several;
mod stage;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use self::invariants::{Broken, Promise};
use self::planted::Plant;
use self::world::{Outcome, World};

const SEEDS: u64 = 300;
/// Seeds within which a planted bug has to be found.
const SEEDS_FOR_PLANTS: u64 = 100;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the environment asks for, or the first of them.
fn seeds() -> Vec<u64> {
    match number("BELLWETHER_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("BELLWETHER_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// What a course came to; a panic in it is told as text.
fn caught<T>(course: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(course)).map_err(|panic| {
        let how = panic.downcast_ref::<String>().cloned();
        how.or_else(|| panic.downcast_ref::<&str>().map(|how| (*how).to_owned())).unwrap_or_default()
    })
}

/// What the seeds came to, on as many threads as help. Panics with the first failure; `tests` names the world.
fn search<O: Send>(
    tests: &str,
    seeds: &[u64],
    run: impl Fn(u64) -> Result<O, String> + Sync,
) -> Vec<(u64, O)> {
    const THREADS: usize = 2;
    let part = |thread: usize| {
        let own = seeds.iter().skip(thread).step_by(THREADS).copied();
        own.map(|seed| match run(seed) {
            Ok(outcome) => (seed, outcome),
            Err(how) => {
                let how = how.trim_end();
                panic!("seed {seed}: {how}\nagain: BELLWETHER_SIM_SEED={seed} cargo test --lib {tests}")
            }
        })
        .collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || part(thread))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<(u64, O)>>| match thread.join() {
            Ok(outcomes) => outcomes,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(join).collect()
    })
}

/// The course of one seed, and what happened last in it.
fn run(seed: u64, plant: Option<Plant>) -> (Result<Outcome, Broken>, String) {
    let mut world = World::new(seed, plant);
    let result = caught(|| world.run()).unwrap_or_else(|how| Err(Broken { promise: Promise::Panicked, how }));
    let trace = world.stage.trace();
    (result, trace)
}

/// Without a planted bug; how it failed, as text.
fn sound(seed: u64) -> Result<Outcome, String> {
    let (result, trace) = run(seed, None);
    result.map_err(|broken| format!("{:?}: {}\n{trace}", broken.promise, broken.how))
}

#[test]
fn no_seed_breaks_a_promise() {
    let seeds = seeds();
    let outcomes = search("sim::", &seeds, sound);
    let elections = outcomes.iter().filter(|(_, outcome)| outcome.terms > 1).count();
    let acknowledged: usize = outcomes.iter().map(|(_, outcome)| outcome.acknowledged).sum();
    let switchovers: usize = outcomes.iter().map(|(_, outcome)| outcome.switchovers).sum();
    println!(
        "{} seeds: {elections} with more than one term, {switchovers} switchovers, {acknowledged} commits",
        outcomes.len()
    );
    if seeds.len() >= 50 {
        assert!(elections > seeds.len() / 3, "the faults provoke too little: {elections} elections");
        assert!(switchovers > seeds.len() / 10, "too few planned switchovers: {switchovers}");
    }
}

#[test]
fn a_seed_is_its_course() {
    for seed in [3, 4] {
        let (first, second) = (run(seed, None), run(seed, None));
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for (plant, promises) in Plant::ALL {
        let mut other = Vec::new();
        let found = (1..=SEEDS_FOR_PLANTS).find(|seed| match run(*seed, Some(plant)).0 {
            Ok(_) => false,
            Err(broken) if promises.contains(&broken.promise) => true,
            Err(broken) => {
                other.push((*seed, broken.promise));
                false
            }
        });
        println!("{plant:?}: found by seed {found:?}, elsewhere {other:?}");
        assert!(found.is_some(), "{plant:?} is not found; what broke instead: {other:?}");
    }
}
