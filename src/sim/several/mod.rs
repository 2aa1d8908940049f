//! Several instances: a deterministic world of values.
//!
//! Two to five instances, each made of the production cores (`failover::core` with its rules, `topology::Members`, what
//! `app::together` tells the planes, the relay's `Standing`), three model servers with a host each, an etcd, a network
//! whose ways are cut one by one, processes that stand still and die in the middle of a turn, hosts that never come back,
//! clocks that run differently.
//! WAL is a list of entries here, not bytes. The promises are looked at from outside.
//!
//! * `BELLWETHER_SIM_SEEDS=1000` runs that many seeds (300 if not set), `BELLWETHER_SIM_SEED=17` only that one.
//! * A failure names its seed and the last things that happened; the same seed gives the same course again.
//! * Every check is itself checked: [`planted`] has bugs that some seed must find.
//!
//! Not here: bytes, torn disks, the dialogue with a walsender ([`super::world`] has those, of one instance), sessions at
//! standbys, base backups, WAL that is removed, substitutes for an upstream that is away.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a world is small"
)]

mod checks;
mod control;
mod etcd;
mod faults;
mod instance;
mod journal;
mod log;
mod members;
mod network;
mod planted;
mod proxy;
mod relay;
mod server;
mod stage;
mod world;

use self::checks::{Broken, Promise};
use self::planted::Plant;
use self::world::{Outcome, World};
use super::{caught, search, seeds};

/// Seeds within which a planted bug has to be found.
const SEEDS_FOR_PLANTS: u64 = 500;

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
    let outcomes = search("sim::several", &seeds, sound);
    let sum =
        |count: fn(&Outcome) -> usize| outcomes.iter().map(|(_, outcome)| count(outcome)).sum::<usize>();
    let elections = outcomes.iter().filter(|(_, outcome)| outcome.terms > 1).count();
    let (commits, in_doubt) = (sum(|o| o.commits), sum(|o| o.in_doubt));
    let (switchovers, resets) = (sum(|o| o.switchovers), sum(|o| o.resets));
    let restarted = sum(|o| o.restarted);
    println!(
        "{} seeds: {elections} with more than one term, {switchovers} switchovers, {restarted} standbys restarted, {commits} commits, {in_doubt} resolved, \
         {resets} logs begun anew",
        outcomes.len()
    );
    if seeds.len() >= 50 {
        assert!(elections > seeds.len() / 2, "the faults provoke too little: {elections} elections");
        assert!(switchovers > seeds.len() / 20, "too few planned switchovers: {switchovers}");
        assert!(in_doubt > seeds.len() / 10, "too few commits in doubt: {in_doubt}");
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
    let mut not_found = Vec::new();
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
        not_found.extend(found.is_none().then_some(plant));
    }
    assert_eq!(not_found, []);
}
