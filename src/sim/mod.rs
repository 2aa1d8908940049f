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
//! files under power cuts at every operation; and [`relays`], every order of steps of an election among several relays.
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

/// The course of one seed, and what happened last in it.
fn run(seed: u64, plant: Option<Plant>) -> (Result<Outcome, Broken>, String) {
    let mut world = World::new(seed, plant);
    let result = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let how = panic.downcast_ref::<String>().cloned();
        let how = how.or_else(|| panic.downcast_ref::<&str>().map(|how| (*how).to_owned()));
        Err(Broken { promise: Promise::Panicked, how: how.unwrap_or_default() })
    });
    let trace = world.stage.trace();
    (result, trace)
}

/// The first failure among the seeds, on as many threads as help.
fn search(seeds: &[u64]) -> Vec<(u64, Outcome)> {
    const THREADS: usize = 2;
    let part = |thread: usize| {
        let own = seeds.iter().skip(thread).step_by(THREADS).copied();
        own.map(|seed| match run(seed, None) {
            (Ok(outcome), _) => (seed, outcome),
            (Err(broken), trace) => panic!(
                "seed {seed}: {:?}: {}\n{trace}again: BELLWETHER_SIM_SEED={seed} cargo test --lib sim::",
                broken.promise, broken.how
            ),
        })
        .collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || part(thread))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<(u64, Outcome)>>| match thread.join() {
            Ok(outcomes) => outcomes,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().flat_map(join).collect()
    })
}

#[test]
fn no_seed_breaks_a_promise() {
    let seeds: Vec<u64> = match number("BELLWETHER_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("BELLWETHER_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let outcomes = search(&seeds);
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
