//! Two clients, a few servers between them: each hears what it would hear from a server of its own, whatever the order
//! in which answers and requests cross, and whatever the other has left at the server that it gets.
//!
//! `SEED=n`, when it is compiled, repeats a run.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::super::core::{Ask, Core, Heard, PoolMode, ServerState, Takes, Texts};
use super::super::knobs::Knobs;
use super::super::lane::Lane;
use super::super::message::{Status, only_value, read_error};
use super::model::{Model, Whose};
use super::{extended, query, tags};
use crate::pg::protocol::frame::Header;
use crate::proxy::prepared::Statements;
use crate::proxy::route::Classifier;

const CLIENTS: usize = 2;
const SERVERS: usize = 2;

/// What all servers and clients share.
struct World {
    servers: Vec<Server>,
    statements: Statements,
    classifier: Classifier,
}

struct Server {
    model: Model,
    state: ServerState,
    /// The client that has it.
    taken: Option<usize>,
}

/// A client that speaks to a server of its own and to the endpoint.
struct Twin {
    number: usize,
    own: Model,
    core: Core,
    up: Lane,
    down: Lane,
    server: Option<usize>,
    heard: Vec<u8>,
    /// What went to which server.
    wire: String,
}

/// When a server answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// As soon as it is asked.
    Eager,
    /// When nothing more can be asked.
    Lazy,
}

impl World {
    fn new() -> World {
        let server =
            |_| Server { model: Model::new(Whose::Pools), state: ServerState::default(), taken: None };
        World {
            servers: (0..SERVERS).map(server).collect(),
            statements: Statements::default(),
            classifier: Classifier::default(),
        }
    }

    fn free(&self, random: &mut StdRng) -> usize {
        let free: Vec<usize> = (0..SERVERS).filter(|at| self.servers[*at].taken.is_none()).collect();
        *free.choose(random).expect("a server for each client at least")
    }
}

impl Twin {
    fn new(number: usize) -> Twin {
        Twin {
            number,
            own: Model::new(Whose::Clients),
            core: Core::new(PoolMode::Transaction, u32::try_from(number).expect("few") + 1, Knobs::default()),
            up: Lane::default(),
            down: Lane::default(),
            server: None,
            heard: vec![],
            wire: String::new(),
        }
    }

    /// What it hears of both to the same messages.
    fn say(&mut self, bytes: &[u8], pace: Pace, world: &mut World, random: &mut StdRng) -> [Vec<String>; 2] {
        let direct = read(&self.own.answer(bytes));
        let mut unheard = vec![];
        let mut rest = bytes;
        // In pieces, which may end within a message or between an Execute and its Bind, with answers in between.
        while random.random_range(0..3) > 0 && !rest.is_empty() {
            let piece = rest.split_off(..random.random_range(1..=rest.len())).expect("of the rest");
            self.up.input.push(piece);
            self.ask(world, random, pace, &mut unheard);
            if random.random_range(0..2) > 0 {
                self.down.input.push(&std::mem::take(&mut unheard));
                self.hear(world);
            }
        }
        self.up.input.push(rest);
        loop {
            let asked = self.ask(world, random, pace, &mut unheard);
            self.down.input.push(&std::mem::take(&mut unheard));
            let told = self.hear(world);
            if !asked && !told && unheard.is_empty() {
                break;
            }
        }
        [direct, read(&std::mem::take(&mut self.heard))]
    }

    /// Whether anything went to a server.
    fn ask(&mut self, world: &mut World, random: &mut StdRng, pace: Pace, unheard: &mut Vec<u8>) -> bool {
        let mut asked = false;
        loop {
            let World { servers, statements, classifier } = &mut *world;
            let mut texts = Texts { classifier, statements };
            let state = self.server.map(|at| &mut servers[at].state);
            let ask = self.core.client(&mut self.up, &mut self.down, state, &mut texts);
            match ask {
                Ask::Server(_) => {
                    let at = world.free(random);
                    world.servers[at].taken = Some(self.number);
                    self.server = Some(at);
                    self.core.attached(Takes::Everything, &mut world.servers[at].state, &mut self.up);
                    asked = true;
                }
                Ask::Nothing => {}
                other => panic!("{other:?}"),
            }
            drain(&mut self.down, &mut self.heard);
            let mut sent = vec![];
            drain(&mut self.up, &mut sent);
            let Some(at) = self.server.filter(|_| !sent.is_empty()) else {
                return asked;
            };
            asked = true;
            let _ = write!(self.wire, " {at}>{}", tags(&sent, '>'));
            unheard.extend(world.servers[at].model.answer(&sent));
            if pace == Pace::Eager {
                return asked;
            }
        }
    }

    fn hear(&mut self, world: &mut World) -> bool {
        let mut told = false;
        while let Some(at) = self.server {
            let heard = self.core.server(&mut self.down, &mut world.servers[at].state);
            told |= self.down.has_pending();
            drain(&mut self.down, &mut self.heard);
            match heard {
                Heard::Nothing => break,
                Heard::Ready if self.core.can_release(&self.up) => {
                    assert!(self.down.unread().is_empty(), "answers for the next client");
                    self.core.take_ended();
                    self.core.detached();
                    self.server = None;
                    world.servers[at].taken = None;
                }
                Heard::Ready => {}
                other => panic!("{other:?}"),
            }
        }
        told
    }
}

fn drain(lane: &mut Lane, into: &mut Vec<u8>) {
    while lane.has_pending() {
        let bytes = lane.pending().to_vec();
        lane.wrote(bytes.len());
        into.extend(bytes);
    }
}

/// What of a server's messages matters.
fn read(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = vec![];
    while let Ok(Some(header)) = Header::peek(bytes) {
        let (message, rest) = bytes.split_at(header.total);
        bytes = rest;
        let what = match header.tag {
            b'D' => String::from_utf8_lossy(only_value(message).flatten().unwrap_or_default()).into_owned(),
            b'C' | b'Z' => String::from_utf8_lossy(&message[5..]).into_owned(),
            b'E' => read_error(message).map(|error| error.code.to_string()).unwrap_or_default(),
            _ => String::new(),
        };
        lines.push(format!("{}{what}", char::from(header.tag)));
    }
    assert!(bytes.is_empty(), "whole messages");
    lines
}

/// Of two clients each has a name that only functions of the other prepare.
const NAMES: [[&str; 3]; CLIENTS] = [["a", "b", "c"], ["b", "c", "a"]];

/// A few units, with what they end with.
fn batch(random: &mut StdRng, names: &[&str; 3], status: Status, said: &mut String) -> Vec<u8> {
    let mut bytes = vec![];
    for _ in 0..random.random_range(1..=3) {
        let (script, unit) = match random.random_range(0..3) {
            0 => {
                let mut text = self::text(random, names);
                // Known: behind the end of a failed block a name may be missing.
                if random.random_range(0..2) == 0 && !matches!(text.as_str(), "commit" | "rollback") {
                    text = format!("{text}; {}", self::text(random, names));
                }
                (format!("Q:{text}"), query(&text))
            }
            _ => {
                let mut words: Vec<String> =
                    (0..random.random_range(1..=4)).map(|_| word(random, names)).collect();
                // The same; what is bound anew may be what ends it.
                let ends =
                    |word: &String| word == "B|E" || word.contains("commit") || word.contains("rollback");
                let ends = words.iter().position(ends);
                words.truncate(ends.map_or(words.len(), |at| at + 1));
                // At times what an earlier unit has bound. What a failed block says of it depends on whose it is.
                let is_first = bytes.is_empty() && status != Status::Failed;
                let first = if is_first && random.random_range(0..6) == 0 { "E|" } else { "" };
                let script = format!("{first}{}|S", words.join("|"));
                let unit = extended(&script);
                (script, unit)
            }
        };
        let _ = writeln!(said, "    {script}");
        bytes.extend(unit);
    }
    bytes
}

fn name(random: &mut StdRng, names: &[&str; 3]) -> String {
    (*names[..2].choose(random).expect("names")).to_owned()
}

/// What may stand under a name: what is executed by its name begins and ends no block, and mentions no other.
fn plain(random: &mut StdRng) -> String {
    let number = random.random_range(1..4);
    match random.random_range(0..8) {
        0..3 => format!("select {number}"),
        3 => "select 1/0".to_owned(),
        4 => "select nowhere".to_owned(),
        5 => format!("set work_mem = '{number}MB'"),
        6 => "show work_mem".to_owned(),
        _ => "insert into t values (1)".to_owned(),
    }
}

fn text(random: &mut StdRng, names: &[&str; 3]) -> String {
    let name = name(random, names);
    match random.random_range(0..16) {
        0..7 => plain(random),
        7 => "begin".to_owned(),
        8 => "commit".to_owned(),
        9 => "rollback".to_owned(),
        10 => format!("prepare {name} as select {}", random.random_range(1..4)),
        11..14 => format!("execute {name}"),
        14 => format!("deallocate {name}"),
        _ => format!("select prepares_{}()", names[2]),
    }
}

/// Of a client's extended messages; what is bound is mostly executed.
fn word(random: &mut StdRng, names: &[&str; 3]) -> String {
    let named = name(random, names);
    match random.random_range(0..16) {
        0..2 => format!("P:{named}:{}", plain(random)),
        2..4 => format!("P:{named}:{}|B:{named}|E", plain(random)),
        4 => format!("P::{}", text(random, names)),
        5..8 => format!("P::{}|B|E", text(random, names)),
        8..10 => "B|E".to_owned(),
        10..13 => format!("B:{named}|E"),
        13..15 => format!("D:{named}"),
        _ => format!("C:{named}"),
    }
}

/// What went wrong.
fn play(seed: u64, batches: usize) -> Option<String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    let mut twins: Vec<Twin> = (0..CLIENTS).map(Twin::new).collect();
    let mut said = String::new();
    let has_functions = random.random_range(0..4) == 0;
    for _ in 0..batches {
        let client = random.random_range(0..CLIENTS);
        let pace = if random.random_range(0..2) == 0 { Pace::Eager } else { Pace::Lazy };
        let _ = writeln!(said, "{client}:");
        let names =
            if has_functions { &NAMES[client] } else { &[NAMES[client][0], NAMES[client][1], "none"] };
        let begin = said.len();
        let bytes = batch(&mut random, names, twins[client].own.status(), &mut said);
        let [direct, endpoint] = twins[client].say(&bytes, pace, &mut world, &mut random);
        // Known: a name that a function may have prepared is not told from one that another client's has.
        let anothers = NAMES[1 - client][2];
        let mentions =
            said[begin..].split(|letter: char| !letter.is_alphanumeric()).any(|word| word == anothers);
        if direct != endpoint && has_functions && mentions {
            return None;
        }
        if direct != endpoint {
            let wire = &twins[client].wire;
            return Some(format!("SEED={seed}\n{said}{direct:?}\n{endpoint:?}\n{wire}"));
        }
    }
    // The last of every block.
    twins.iter_mut().find_map(|twin| {
        let [direct, endpoint] = twin.say(&query("rollback"), Pace::Eager, &mut world, &mut random);
        let fits = direct == endpoint && twin.core.status() == Status::Idle && twin.server.is_none();
        (!fits).then(|| format!("SEED={seed}\n{said}{}: rollback\n{direct:?}\n{endpoint:?}", twin.number))
    })
}

/// Of each length.
const PLAYS: u64 = 1500;

/// Differences; more would hardly tell more.
const SHOWN: usize = 5;

#[test]
fn each_client_hears_what_it_would_hear_alone() {
    let given = option_env!("SEED").and_then(|seed| seed.parse::<u64>().ok());
    let first = given.unwrap_or(1);
    let last = if given.is_some() { first } else { first.saturating_add(PLAYS) };
    // Short ones first: they say more.
    let plays = [1, 2, 4, 8].into_iter().flat_map(|batches| (first..=last).map(move |seed| (seed, batches)));
    let wrong: Vec<String> = plays.filter_map(|(seed, batches)| play(seed, batches)).take(SHOWN).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
