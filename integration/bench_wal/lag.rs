//! What the relay between adds to a standby's lag: one standby streams from the primary, one from Bellwether. A
//! transaction commits, and one of them, in turns, is asked until it has replayed it.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::figure::{Figure, Target};
use super::harness::Durability;
use super::median;
use super::scene::{Scene, Sql};

const SAMPLES: usize = 400;
const PAUSE: Duration = Duration::from_millis(7);
/// Transactions per second of the others, where there are others.
const RATE: u32 = 500;

pub(crate) fn run() -> Vec<Figure> {
    let mut figures = Vec::new();
    println!("\n| from commit to replay | direct, ms | through Bellwether, ms | more |\n|---|---|---|---|");
    for durability in [Durability::Quorum, Durability::Async] {
        let scene = Scene::start(durability);
        let (_direct, direct) = scene.standby("direct", scene.primary.port);
        let (_relayed, relayed) = scene.standby("relayed", scene.cluster.port);
        figures.push(measure(&scene, &format!("{durability:?}, nothing else"), [&direct, &relayed]));
        scene.initialise_pgbench();
        let others = Others::start(&scene);
        let name = format!("{durability:?}, {RATE} other commits per second");
        figures.push(measure(&scene, &name, [&direct, &relayed]));
        drop(others);
    }
    figures
}

fn measure(scene: &Scene, name: &str, standbys: [&Sql; 2]) -> Figure {
    let commit = scene.sql.prepare("SELECT (pg_logical_emit_message(true, 'lag', '') - '0/0')::int8");
    let replayed = "SELECT (pg_last_wal_replay_lsn() - '0/0')::int8";
    let questions = standbys.map(|standby| standby.prepare(replayed));
    let mut samples = [Vec::new(), Vec::new()];
    for number in 0..2 * SAMPLES {
        let of = number % 2;
        std::thread::sleep(PAUSE);
        let position = scene.sql.ask(&commit, &[]);
        let committed = Instant::now();
        while standbys[of].ask(&questions[of], &[]) < position {
            assert!(committed.elapsed() < Duration::from_secs(60), "{name}: nothing is replayed");
        }
        samples[of].push(committed.elapsed().as_secs_f64() * 1e3);
    }
    let [direct, relayed] = samples.map(median);
    println!("| {name} | {direct:.2} | {relayed:.2} | {:.2} |", relayed - direct);
    Figure::new(format!("lag more, median, ms: {name}"), relayed - direct, Target::AtMost(1.0))
}

/// pgbench at the primary, at a steady rate.
struct Others(Child);

impl Others {
    fn start(scene: &Scene) -> Others {
        let mut pgbench = scene.cluster.program("pgbench");
        pgbench.args(["-n", "-c", "4", "-T", "600", "-R", &RATE.to_string()]);
        pgbench.arg(format!("{} dbname=postgres", scene.conninfo(scene.primary.port)));
        Others(pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench"))
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
