//! `make bench BENCH=outage`: for how long nobody can write, as a client sees it: from its last acknowledged commit before
//! a fault to its first one behind it. Default settings, quorum durability, no replay backlog; twenty runs of each fault,
//! shown as a distribution. It prints and asserts nothing.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks and starts threads")]

#[allow(dead_code, reason = "there are other kinds of targets")]
#[path = "bench_wal/figure.rs"]
mod figure;
#[allow(dead_code, unused_imports, reason = "the tests use more of the harness than the benchmark")]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use figure::{Figure, Target};
use harness::{Cluster, Instances, Options, SHORT_SILENCE, Server, eventually};
use nix::sys::signal::Signal;
use tokio_postgres::{Client, NoTls};

const RUNS: usize = 20;
const TABLE: &str = "CREATE TABLE ticks (n bigint)";
/// A client that cannot log in, or whose statement fails, tries again after this.
const BACK_OFF: Duration = Duration::from_millis(5);

/// What is struck.
trait Subject {
    /// Waits until all is well; who is primary then.
    fn steady(&mut self) -> Server;
    /// Of a client that is not on the primary's host.
    fn conninfo(&self, primary: &Server) -> String;
    /// What an instance that is not on the primary's host says.
    fn state(&self, primary: &Server) -> Result<serde_json::Value, String>;
}

impl Subject for Cluster {
    fn steady(&mut self) -> Server {
        self.await_steady();
        self.primary()
    }

    fn conninfo(&self, _: &Server) -> String {
        self.conninfo()
    }

    fn state(&self, _: &Server) -> Result<serde_json::Value, String> {
        self.api("/api/v1/cluster")
    }
}

impl Subject for Instances {
    fn steady(&mut self) -> Server {
        let primary = self.await_steady();
        // Where it is to be, off the primary's host, before it is looked at what its lack costs.
        eventually("another host's instance leads", Duration::from_secs(60), || match self.leader()? {
            leader if leader == self.beside(&primary) => Err("not yet".to_owned()),
            _ => Ok(()),
        });
        primary
    }

    fn conninfo(&self, primary: &Server) -> String {
        self.conninfo_without(self.beside(primary))
    }

    fn state(&self, primary: &Server) -> Result<serde_json::Value, String> {
        self.state((self.beside(primary) + 1) % self.len())
    }
}

struct Fault<S> {
    name: &'static str,
    /// Milliseconds.
    median_wanted: f64,
    strike: fn(&mut S, &Server),
    /// Behind the outage: what was struck can come back.
    heal: fn(&mut S, &Server),
}

/// Of one instance.
const ALONE: [Fault<Cluster>; 3] = [
    Fault {
        name: "outage, primary killed",
        median_wanted: 500.0,
        strike: |cluster, primary| cluster.lose_machine(primary),
        heal: |_, _| (),
    },
    Fault {
        name: "outage, primary silent",
        median_wanted: 3000.0,
        strike: |cluster, primary| cluster.signal_machine(primary, Signal::SIGSTOP),
        heal: |cluster, primary| cluster.signal_machine(primary, Signal::SIGCONT),
    },
    Fault {
        name: "outage, planned switchover",
        median_wanted: 300.0,
        strike: |cluster, _| {
            let (status, why) = cluster.http("POST", "/api/v1/switchover").expect("an answer");
            assert_eq!(status, 200, "{why}");
        },
        heal: |_, _| (),
    },
];

/// Of three instances, each beside a server. A host is the server and the instance.
const SEVERAL: [Fault<Instances>; 4] = [
    Fault {
        name: "outage, three instances, primary killed",
        median_wanted: 500.0,
        strike: |instances, primary| instances.cluster.lose_machine(primary),
        heal: |_, _| (),
    },
    Fault {
        name: "outage, three instances, primary's host killed",
        median_wanted: 3000.0,
        strike: |instances, primary| {
            instances.kill(instances.beside(primary));
            instances.cluster.lose_machine(primary);
        },
        heal: |instances, primary| instances.spawn(instances.beside(primary)),
    },
    Fault {
        name: "outage, three instances, primary's host silent",
        median_wanted: 3000.0,
        strike: |instances, primary| {
            instances.signal(instances.beside(primary), Signal::SIGSTOP);
            instances.cluster.signal_machine(primary, Signal::SIGSTOP);
        },
        heal: |instances, primary| {
            instances.signal(instances.beside(primary), Signal::SIGCONT);
            instances.cluster.signal_machine(primary, Signal::SIGCONT);
        },
    },
    Fault {
        name: "outage, three instances, planned switchover",
        median_wanted: 300.0,
        strike: |instances, _| {
            let leader = instances.leader().expect("a leader");
            let (status, why) = instances.order(leader, "/api/v1/switchover").expect("an answer");
            assert_eq!(status, 200, "{why}");
        },
        heal: |_, _| (),
    },
];

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let alone: Vec<_> = ALONE.iter().filter(|fault| wanted(fault.name)).collect();
    let several: Vec<_> = SEVERAL.iter().filter(|fault| wanted(fault.name)).collect();
    let options =
        Options { silence: SHORT_SILENCE, expected_warnings: &[" WARN ", " ERROR "], ..Options::default() };
    println!(
        "\n| milliseconds without writes | runs | least | median | p95 | worst | errors in all |\n|---|---|---|---|---|---|---|"
    );
    let mut figures = Vec::new();
    if !alone.is_empty() {
        let mut cluster = Cluster::start(options.clone());
        cluster.psql(TABLE).expect("a table");
        figures.extend(alone.into_iter().map(|fault| measure(&mut cluster, fault)));
    }
    if !several.is_empty() {
        let mut instances = Instances::start(options);
        instances.cluster.psql_at(&instances.conninfo(), TABLE).expect("a table");
        figures.extend(several.into_iter().map(|fault| measure(&mut instances, fault)));
    }
    if !figures.is_empty() {
        figure::print(&figures);
    }
}

fn measure<S: Subject>(cluster: &mut S, fault: &Fault<S>) -> Figure {
    let (mut outages, mut errors) = (Vec::new(), 0);
    for _ in 0..RUNS {
        let heard = outage(cluster, fault);
        outages.push(heard.longest.as_secs_f64() * 1e3);
        errors += heard.errors;
    }
    outages.sort_by(f64::total_cmp);
    let at = |part: f64| outages[((outages.len() - 1) as f64 * part).round() as usize];
    let (least, median, p95, worst) = (at(0.0), at(0.5), at(0.95), at(1.0));
    println!("| {} | {RUNS} | {least:.0} | {median:.0} | {p95:.0} | {worst:.0} | {errors} |", fault.name);
    Figure::new(format!("{}, median, ms", fault.name), median, Target::AtMost(fault.median_wanted))
}

fn outage<S: Subject>(cluster: &mut S, fault: &Fault<S>) -> Heard {
    let primary = cluster.steady();
    let writer = Writer::start(cluster.conninfo(&primary));
    thread::sleep(Duration::from_millis(500));
    (fault.strike)(cluster, &primary);
    eventually("another primary", Duration::from_secs(60), || {
        let state = cluster.state(&primary)?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != primary.name.as_str();
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    thread::sleep(Duration::from_millis(500));
    let heard = writer.finish();
    (fault.heal)(cluster, &primary);
    heard
}

/// By one client.
struct Heard {
    /// The longest time between two commits.
    longest: Duration,
    /// Statements that failed.
    errors: usize,
}

/// Commits one row after the other, whatever happens.
struct Writer {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Heard>,
}

impl Writer {
    fn start(conninfo: String) -> Writer {
        let end = Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(write(&conninfo, &told))
        });
        Writer { end, thread }
    }

    fn finish(self) -> Heard {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer ends in order")
    }
}

async fn write(conninfo: &str, end: &AtomicBool) -> Heard {
    let (mut last, mut heard) = (Instant::now(), Heard { longest: Duration::ZERO, errors: 0 });
    let mut client: Option<Client> = None;
    while !end.load(Ordering::Relaxed) {
        let Some(connected) = &client else {
            client = connect(conninfo).await;
            if client.is_none() {
                tokio::time::sleep(BACK_OFF).await;
            }
            continue;
        };
        if connected.batch_execute("INSERT INTO ticks VALUES (1)").await.is_ok() {
            heard.longest = heard.longest.max(last.elapsed());
            last = Instant::now();
            continue;
        }
        heard.errors += 1;
        if connected.is_closed() {
            client = None;
        } else {
            tokio::time::sleep(BACK_OFF).await;
        }
    }
    heard
}

async fn connect(conninfo: &str) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}
