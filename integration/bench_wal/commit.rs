//! What a commit pays for being durable elsewhere: pgbench's TPC-B at a primary whose synchronous standby is
//! Bellwether, and at a copy of it whose one is `pg_receivewal --synchronous`. Beside each the same without waiting.

use super::figure::{Figure, Target};
use super::harness::Durability;
use super::median;
use super::receivewal::ReceiveWal;
use super::scene::Scene;

const CLIENTS: [u32; 2] = [1, 8];
const SECONDS: u32 = 2;
const ROUNDS: usize = 5;

pub(crate) fn run() -> Vec<Figure> {
    let scene = Scene::start(Durability::Quorum);
    scene.initialise_pgbench();
    let copy = scene.copy("copy");
    copy.start(&scene.cluster, "synchronous_standby_names = 'pg_receivewal'\nwal_sender_timeout = 60s\n");
    let _receivewal = ReceiveWal::start(&scene, copy.port);
    println!(
        "\n| synchronous commit | clients | local, ms | synchronous, ms | cost, ms |\n|---|---|---|---|---|"
    );
    let mut figures = Vec::new();
    for clients in CLIENTS {
        let servers =
            [("pg_receivewal --synchronous", copy.port), ("through Bellwether", scene.primary.port)];
        let mut latencies: [[Vec<f64>; 2]; 2] = Default::default();
        for _ in 0..ROUNDS {
            for ((_, port), latencies) in servers.iter().zip(&mut latencies) {
                for (commit, latencies) in ["local", "on"].into_iter().zip(latencies) {
                    latencies.push(pgbench(&scene, *port, clients, commit));
                }
            }
        }
        let mut costs = Vec::new();
        for ((name, _), latencies) in servers.iter().zip(latencies) {
            let cost = median(latencies[0].iter().zip(&latencies[1]).map(|(local, on)| on - local));
            let [local, on] = latencies.map(median);
            println!("| {name} | {clients} | {local:.2} | {on:.2} | {cost:.2} |");
            costs.push(cost);
        }
        let what = format!(
            "cost of a synchronous commit, {clients} clients, times that of pg_receivewal --synchronous"
        );
        figures.push(Figure::new(what, costs[1] / costs[0], Target::AtMost(1.0)));
    }
    figures
}

/// Milliseconds per transaction.
fn pgbench(scene: &Scene, port: u16, clients: u32, synchronous_commit: &str) -> f64 {
    let mut pgbench = scene.cluster.program("pgbench");
    pgbench.env("PGOPTIONS", format!("-c synchronous_commit={synchronous_commit}"));
    pgbench.args(["-n", "-M", "prepared", "-c", &clients.to_string(), "-T", &SECONDS.to_string()]);
    let output = pgbench.arg(format!("{} dbname=postgres", scene.conninfo(port))).output().expect("pgbench");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("latency average = "));
    line.and_then(|line| line.split(' ').next()?.parse().ok()).expect("pgbench's report")
}
