//! `make bench`: pgbench direct, through PgBouncer and through Bellwether, interleaved, medians and ratios from
//! one run on one machine. It prints and asserts nothing. What the WAL path costs is `bench_wal`.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks")]

#[allow(dead_code, unused_imports, reason = "the tests use more of the harness than the benchmark")]
mod harness;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Cluster, Durability, Options, eventually, free_port};

const ROUNDS: usize = 3;
/// Of one pgbench run.
const SECONDS: u64 = 3;
const CLIENTS: [u32; 3] = [1, 16, 64];

/// One line of the table: what pgbench is told, and in which mode PgBouncer can serve it.
struct Load {
    name: &'static str,
    arguments: &'static [&'static str],
    script: Option<&'static str>,
    /// Debian's PgBouncer 1.18 knows no prepared statements in transaction mode.
    pgbouncer_mode: &'static str,
}

const LOADS: [Load; 6] = [
    Load {
        name: "select simple",
        arguments: &["-S", "-M", "simple"],
        script: None,
        pgbouncer_mode: "transaction",
    },
    Load {
        name: "select extended",
        arguments: &["-S", "-M", "extended"],
        script: None,
        pgbouncer_mode: "transaction",
    },
    Load {
        name: "select prepared",
        arguments: &["-S", "-M", "prepared"],
        script: None,
        pgbouncer_mode: "session",
    },
    Load { name: "tpc-b simple", arguments: &["-M", "simple"], script: None, pgbouncer_mode: "transaction" },
    Load {
        name: "1 MB result",
        arguments: &["-M", "simple"],
        script: Some("SELECT repeat('x', 1048576);\n"),
        pgbouncer_mode: "transaction",
    },
    Load {
        name: "connect each",
        arguments: &["-S", "-C", "-M", "simple"],
        script: None,
        pgbouncer_mode: "transaction",
    },
];

#[derive(Clone, Copy, Default)]
struct Sample {
    /// Transactions per second.
    tps: f64,
    /// Of the process in the middle, microseconds per transaction.
    cpu: f64,
    /// Of it, those of Bellwether's worker threads: without the relay, the probes and the control plane.
    workers: f64,
}

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    if !LOADS.iter().any(|load| wanted(load.name)) {
        return;
    }
    let cluster = Cluster::start(Options { durability: Durability::Async, ..Options::default() });
    let bouncers = ["transaction", "session"].map(|mode| PgBouncer::start(&cluster, mode));
    pgbench_init(&cluster);

    println!(
        "| load | clients | direct tps | PgBouncer tps | Bellwether tps | B/P | PgBouncer us/tx | Bellwether us/tx | B/P | of it workers |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for load in LOADS.iter().filter(|load| wanted(load.name)) {
        for clients in CLIENTS {
            row(&cluster, &bouncers, load, clients);
        }
    }
}

fn row(cluster: &Cluster, bouncers: &[PgBouncer], load: &Load, clients: u32) {
    let bouncer = bouncers.iter().find(|b| b.mode == load.pgbouncer_mode).expect("started");
    let direct = cluster.conninfo_at(cluster.primary().port);
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for _ in 0..ROUNDS {
        samples[0].push(pgbench(cluster, load, clients, &direct, None));
        samples[1].push(pgbench(
            cluster,
            load,
            clients,
            &cluster.conninfo_at(bouncer.port),
            Some(bouncer.child.id()),
        ));
        samples[2].push(pgbench(cluster, load, clients, &cluster.conninfo(), Some(cluster.bellwether_pid())));
    }
    let [direct, pgbouncer, bellwether] = samples.map(|mut of| {
        of.sort_by(|a, b| a.tps.total_cmp(&b.tps));
        let tps = of[of.len() / 2].tps;
        of.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        let cpu = of[of.len() / 2].cpu;
        of.sort_by(|a, b| a.workers.total_cmp(&b.workers));
        Sample { tps, cpu, workers: of[of.len() / 2].workers }
    });
    println!(
        "| {} | {clients} | {:.0} | {:.0} | {:.0} | {:.2} | {:.1} | {:.1} | {:.2} | {:.1} |",
        load.name,
        direct.tps,
        pgbouncer.tps,
        bellwether.tps,
        bellwether.tps / pgbouncer.tps,
        pgbouncer.cpu,
        bellwether.cpu,
        bellwether.cpu / pgbouncer.cpu,
        bellwether.workers,
    );
}

fn pgbench_init(cluster: &Cluster) {
    let output = cluster.program("pgbench").args(["-i", "-q", "-s", "10", &cluster.conninfo()]).output();
    let output = output.expect("pgbench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn pgbench(cluster: &Cluster, load: &Load, clients: u32, conninfo: &str, middle: Option<u32>) -> Sample {
    let script = load.script.map(|text| {
        let path = cluster.data().join("bench.sql");
        fs::write(&path, text).expect("script");
        path
    });
    let mut command = cluster.program("pgbench");
    command
        .args(["-n", "-c", &clients.to_string(), "-j", "2", "-T", &SECONDS.to_string()])
        .args(load.arguments);
    if let Some(path) = &script {
        command.arg("-f").arg(path);
    }
    let used = |pid| (cpu_seconds(pid), worker_seconds(pid));
    let before = middle.map(used).unwrap_or_default();
    let output = command.arg(conninfo).output().expect("pgbench");
    let after = middle.map(used).unwrap_or_default();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{} {clients}: {}", load.name, String::from_utf8_lossy(&output.stderr));
    let number = |prefix: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(prefix)).expect("pgbench's report");
        line.trim().split([' ', '/']).next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let per_transaction = 1e6 / number("number of transactions actually processed: ");
    Sample {
        tps: number("tps = "),
        cpu: (after.0 - before.0) * per_transaction,
        workers: (after.1 - before.1) * per_transaction,
    }
}

/// User and system time of all threads of `pid`, seconds.
fn cpu_seconds(pid: u32) -> f64 {
    stat_seconds(&fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives"))
}

/// The same of its threads named `worker-N`; PgBouncer has none.
fn worker_seconds(pid: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(" (worker-")).map(|stat| stat_seconds(&stat)).sum()
}

/// Fields 14 and 15 of proc(5)'s `stat`, in ticks of 10 ms.
fn stat_seconds(stat: &str) -> f64 {
    let after_name = stat.rsplit_once(") ").expect("proc(5)").1;
    let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// PgBouncer of the distribution in front of the primary, as the cluster's unprivileged user.
struct PgBouncer {
    mode: &'static str,
    port: u16,
    child: Child,
}

impl PgBouncer {
    fn start(cluster: &Cluster, mode: &'static str) -> PgBouncer {
        let port = free_port();
        let dir = cluster.data().join(format!("pgbouncer-{mode}"));
        fs::create_dir_all(&dir).expect("directory");
        // A session holds its server; otherwise PgBouncer's default, which is ours too.
        let pool_size = if mode == "session" { 64 } else { 20 };
        let ini = format!(
            "[databases]\napp = host=127.0.0.1 port={} dbname=app user=app password=demo\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
             auth_file = {users}\npool_mode = {mode}\ndefault_pool_size = {pool_size}\nmax_client_conn = 1000\n\
             ignore_startup_parameters = extra_float_digits\nlog_connections = 0\nlog_disconnections = 0\n",
            cluster.primary().port,
            users = dir.join("users.txt").display(),
        );
        fs::write(dir.join("pgbouncer.ini"), ini).expect("ini");
        fs::write(dir.join("users.txt"), format!("\"app\" \"{}\"\n", scram_secret(cluster))).expect("users");
        let mut command = Command::new("/usr/sbin/pgbouncer");
        command
            .arg("-q")
            .arg(dir.join("pgbouncer.ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        cluster.run_as_server_user(&mut command);
        let child = command.spawn().expect("pgbouncer");
        let conninfo = cluster.conninfo_at(port);
        eventually("PgBouncer answers", Duration::from_secs(10), || cluster.psql_at(&conninfo, "SELECT 1"));
        PgBouncer { mode, port, child }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As PostgreSQL keeps it: from a password in plain text PgBouncer would derive the keys anew at every login.
fn scram_secret(cluster: &Cluster) -> String {
    let admin = cluster.direct_conninfo(&cluster.primary(), "postgres");
    cluster.psql_at(&admin, "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'").expect("app's secret")
}
