//! Messages of a client and of a server in any order, whole and damaged: no session panics over them, and none holds
//! more than its bounds allow. `SEED=n`, when it is compiled, repeats a run.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::{answer, extended, query};
use crate::proxy::session::core::PoolMode;
use crate::proxy::session::fuzzing::{Conversation, startup_options};

const TEXTS: &[&str] = &[
    "select 1",
    "/**/begin",
    "begin",
    "commit; select 2",
    "rollback to s",
    "savepoint s; set local search_path = a",
    "set work_mem = '1MB'; reset all",
    "select set_config('a.b', 'c', false)",
    "create temp table t (n int)",
    "drop table t",
    "select pg_advisory_lock(1)",
    "select pg_advisory_unlock(1)",
    "declare c cursor with hold for select 1",
    "close c",
    "listen x",
    "unlisten *",
    "prepare p as select 1",
    "execute p",
    "deallocate a",
    "discard all",
    "copy t from stdin",
    "show bellwether.lsn",
    "set bellwether.route = 'standby'",
    "selekt",
    "",
];

const SCRIPTS: &[&str] = &[
    "P:a:select 1|B:a|E|S",
    "P::select pg_advisory_lock(1)|B|E|S",
    "P::set work_mem = '1MB'|B|E|H",
    "D:a|H",
    "C:a|S",
    "B:b|E",
    "S",
    "H",
];

const ANSWERS: &[&str] = &[
    "T D:t C:SELECT_1 ZI",
    "1 2 n D: C:SELECT_1 ZT",
    "C:BEGIN ZT",
    "C:COMMIT ZI",
    "C:ROLLBACK ZE",
    "E:42601 ZI",
    "E:22012",
    "S:TimeZone=UTC S:application_name=x",
    "G",
    "H d c C:COPY_1 ZI",
    "A",
    "N",
    "s",
    "3",
    "F:57P01",
    "ZI",
];

/// `bytes`, at times cut short or with a byte changed.
fn damaged(random: &mut StdRng, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..20) {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] = random.random(),
        _ => {}
    }
    bytes
}

fn play(random: &mut StdRng) {
    let mode = [PoolMode::Transaction, PoolMode::Session, PoolMode::Statement][random.random_range(0..3)];
    let mut conversation = Conversation::new(mode);
    for _ in 0..40 {
        if conversation.is_over() {
            return;
        }
        if conversation.is_attached() && random.random_range(0..2) == 0 {
            let said = answer(ANSWERS.choose(random).expect("answers"));
            conversation.server(&damaged(random, said));
        } else {
            let said = match random.random_range(0..3) {
                0 => extended(SCRIPTS.choose(random).expect("scripts")),
                _ => query(TEXTS.choose(random).expect("texts")),
            };
            conversation.client(&damaged(random, said));
        }
    }
}

fn seeded() -> StdRng {
    let seed: u64 = option_env!("SEED").and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[test]
fn a_session_survives_whatever_is_said_to_it() {
    let mut random = seeded();
    for _ in 0..10_000 {
        play(&mut random);
    }
}

#[test]
fn startup_options_of_any_kind() {
    let mut random = seeded();
    let pieces = ["-c ", "--", "a=b", "\\", " ", "work_mem", "=", "bellwether.route=x", "\u{e4}", "-", "'"];
    for _ in 0..20_000 {
        let count = random.random_range(0..12);
        let options: String = (0..count).map(|_| *pieces.choose(&mut random).expect("pieces")).collect();
        startup_options(&options);
    }
}
