//! A script of raw messages is answered by the endpoint as it is by a server: the same messages in the same order,
//! for every byte that matters. Scripts are written by hand, one per feature, and put together at random.

mod client;
mod judge;
mod known;
mod message;
mod owed;
mod script;
mod trace;
mod world;

use std::path::PathBuf;

use self::client::Delivery;
use self::judge::compare;
use self::script::{Script, written_by_hand};
use self::world::{LANES, Lane, Mode, World};

const WORKERS: usize = 2;

fn differential(pg_bin: Option<PathBuf>) {
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

async fn in_every_lane(
    [one, other]: &mut [Lane; LANES],
    work: impl AsyncFn(&mut Lane, usize) -> Vec<String>,
) -> Vec<String> {
    let (one, other) = tokio::join!(work(one, 0), work(other, 1));
    [one, other].concat()
}

#[test]
fn as_postgresql_answers() {
    differential(None);
}
