//! Planned switchovers under load: not one error, not one row lost or doubled, and the old primary back as a standby.

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::ledger::{Answer, Entry, Ledger, audit, tokens};
use crate::harness::{Cluster, Options, bellwether, eventually, eventually_async};

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switchovers_under_load() {
    let mut cluster = Cluster::start(Options::default());
    three_without_an_error(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disturbed_switchovers() {
    let mut cluster = Cluster::start(Options::default());
    cluster.reconfigure(|config| {
        config["failover"]["drain"] = "1s".into();
        config["failover"]["hold_clients"] = "5min".into();
    });
    an_open_transaction_is_spared_and_then_cut(&mut cluster).await;
    a_successor_that_dies_is_not_missed(&mut cluster).await;
    a_standby_in_maintenance_is_left_alone(&mut cluster).await;
}

async fn three_without_an_error(cluster: &mut Cluster) {
    // Pinned to its server, and in no transaction: it is not waited for, and told.
    let pinned = client(&cluster.conninfo()).await;
    pinned.batch_execute("CREATE TEMP TABLE mine (x int)").await.expect("the endpoint answers");
    let writers = Writers::start(cluster, 8).await;
    for round in 1..=3 {
        writers.go_on(200).await;
        let old = cluster.primary();
        eventually("a successor is foreseen", LIMIT, || {
            let (code, foreseen) = switchover(cluster, &["--dry-run"]);
            assert_eq!(code, Some(0), "{foreseen}");
            let named = foreseen.starts_with(&format!("switchover from {} to ", old.name));
            if named { Ok(()) } else { Err(foreseen) }
        });
        assert_eq!(cluster.primary().name, old.name, "nothing is done");
        let started = Instant::now();
        let (code, said) = switchover(cluster, &[]);
        assert_eq!(code, Some(0), "{said}");
        let took = started.elapsed();
        assert_ne!(cluster.primary().name, old.name);
        cluster.await_steady();
        let last = last(cluster);
        assert_eq!((&last["rule"], &last["outcome"]), (&"W1".into(), &"completed".into()), "{last}");
        assert_eq!((&last["lost_bytes"], &last["saved"]), (&0.into(), &serde_json::json!([])), "{last}");
        println!("round {round}: {took:?}, whole again after {:?}: {}", started.elapsed(), said.trim());
    }
    let error = pinned.batch_execute("SELECT 1").await.expect_err("its server is gone");
    let told = error.code().map(|code| code.code().to_owned());
    assert!(told.as_deref().is_none_or(|told| told == "57P01"), "{error:?}");
    let history = cluster.api("/api/v1/history").expect("history").to_string();
    assert!(history.contains("sessions pinned by temporary, cut off: 1"), "{history}");

    let entries = writers.finish_without_an_error().await;
    let found = tokens(&cluster.direct_conninfo(&cluster.primary(), "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
}

/// Clients that write all the time: some who note every answer, and pgbench's.
pub(crate) struct Writers {
    ledger: Ledger,
    load: Child,
}

impl Writers {
    pub(crate) async fn start(cluster: &Cluster, clients: i64) -> Writers {
        let load = pgbench(cluster);
        Writers { ledger: Ledger::start(&cluster.conninfo(), 1, clients).await, load }
    }

    /// So many more commits are acknowledged.
    pub(crate) async fn go_on(&self, commits: u64) {
        acknowledged_beyond(&self.ledger, self.ledger.acknowledged() + commits).await;
    }

    pub(crate) async fn finish_without_an_error(mut self) -> Vec<Entry> {
        let entries = self.ledger.finish().await;
        let errors: Vec<&Entry> = entries.iter().filter(|e| e.answer != Answer::Acknowledged).collect();
        assert!(errors.is_empty(), "{} of {}: {errors:?}", errors.len(), entries.len());
        println!("longest commit: {:?}", entries.iter().map(|entry| entry.took).max());
        // Ctrl-C ends pgbench without an error of its own; a client's error would have ended that client before.
        let alive = self.load.try_wait().expect("pgbench").is_none();
        let _ = self.load.kill();
        let Output { stderr, .. } = self.load.wait_with_output().expect("pgbench");
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(alive && !stderr.contains("ERROR") && !stderr.contains("aborted"), "{stderr}");
        entries
    }
}

async fn an_open_transaction_is_spared_and_then_cut(cluster: &mut Cluster) {
    let old = cluster.primary().name;
    let open = client(&cluster.conninfo()).await;
    open.batch_execute("CREATE TABLE slow (x int); BEGIN; INSERT INTO slow VALUES (1)")
        .await
        .expect("it is open");
    let (code, said) = switchover(cluster, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("transactions still open after 1s: 1"), "{said}");
    assert_eq!(cluster.primary().name, old);
    open.batch_execute("COMMIT").await.expect("it was spared");

    open.batch_execute("BEGIN; INSERT INTO slow VALUES (2)").await.expect("it is open");
    let (code, said) = switchover(cluster, &["--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("transactions cut off after 1s: 1"), "{said}");
    let error = open.batch_execute("COMMIT").await.expect_err("it was cut");
    let told = error.code().map(|code| code.code().to_owned());
    assert!(told.as_deref().is_none_or(|told| ["40001", "57P01", "08006"].contains(&told)), "{error:?}");
    cluster.await_steady();
    assert_eq!(cluster.psql("SELECT string_agg(x::text, ',') FROM slow").expect("psql").trim(), "1");
}

/// The successor cannot be made ready, and nobody is held; or nobody can connect any more while the old primary is being shut
/// down, and it is killed right before or behind that: somebody else goes on, with all that there was.
async fn a_successor_that_dies_is_not_missed(cluster: &mut Cluster) {
    let ledger = Ledger::start(&cluster.conninfo(), 2, 4).await;
    acknowledged_beyond(&ledger, 50).await;
    let (old, successor) = (cluster.primary(), cluster.standbys().remove(0));
    let pid = cluster.pid(&old);
    cluster.signal(&successor, Signal::SIGSTOP);
    let (code, said) = switchover(cluster, &["--to", &successor.name]);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!((cluster.primary().name, cluster.pid(&old)), (old.name.clone(), pid), "{said}");
    let phases = last(cluster)["phases"].clone();
    assert_eq!(phases.as_array().map(Vec::len), Some(1), "writes were not held: {phases}");
    cluster.signal(&successor, Signal::SIGCONT);
    cluster.await_steady();

    // Time to strike in.
    cluster.rewrite(|config| config["failover"]["drain"] = "8s".into());
    assert_eq!(cluster.http("POST", "/api/v1/reload").expect("an answer").0, 200);
    let open = client(&cluster.conninfo()).await;
    open.batch_execute("BEGIN; INSERT INTO slow VALUES (3)").await.expect("it is open");
    let order = format!("/api/v1/switchover?to={}&force", successor.name);
    eventually("the order is taken", LIMIT, || {
        let (status, said) = cluster.http("POST", &order)?;
        if status == 200 { Ok(()) } else { Err(said) }
    });
    eventually("the drain, which waits for it", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        if state["directive"]["writes"]["state"] == "held" { Ok(()) } else { Err(state.to_string()) }
    });
    // Its walreceiver goes on, but nobody can connect: it has the record of the shutdown, and cannot be promoted.
    cluster.signal(&successor, Signal::SIGSTOP);
    eventually("the shutdown", LIMIT, || {
        if cluster.pid(&old).is_none() { Ok(()) } else { Err(last(cluster).to_string()) }
    });
    cluster.signal(&successor, Signal::SIGKILL);
    let goal = ledger.acknowledged() + 50;
    acknowledged_beyond(&ledger, goal).await;
    let history = cluster.api("/api/v1/history").expect("history");
    let planned = history.as_array().into_iter().flatten().rfind(|election| election["rule"] == "W1");
    assert!(planned.is_some_and(|planned| planned["outcome"]["failed"]["why"].is_string()), "{history}");
    assert_ne!(cluster.primary().name, successor.name, "{history}");
    cluster.await_steady();
    let entries = ledger.finish().await;
    let errors: Vec<&Entry> = entries.iter().filter(|e| e.answer != Answer::Acknowledged).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let found = tokens(&cluster.direct_conninfo(&cluster.primary(), "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
}

/// No reads, no promotion, and nobody starts it before it is over.
async fn a_standby_in_maintenance_is_left_alone(cluster: &mut Cluster) {
    let (primary, ours) = (cluster.primary(), cluster.standbys().remove(0));
    let (code, said) = maintenance(cluster, &[&primary.name]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is the primary: switch over first"), "{said}");
    let console = format!(
        "host=127.0.0.1 port={} user=bellwether password={} dbname=bellwether",
        cluster.port,
        cluster.superuser_password()
    );
    eventually("nobody is at work on it", LIMIT, || {
        cluster.psql_at(&console, &format!("MAINTENANCE {}", ours.name))
    });
    let node = |cluster: &Cluster| {
        let view = cluster.api("/api/v1/cluster").expect("the cluster");
        let nodes = view["nodes"].as_array().expect("nodes").clone();
        nodes.into_iter().find(|node| node["name"] == *ours.name).expect("it is a node")
    };
    assert_eq!(node(cluster)["maintenance"], true);
    let standby = format!("/standby?node={}", ours.name);
    assert_eq!(cluster.http("GET", &standby).expect("an answer").0, 503);
    let (status, said) =
        cluster.http("POST", &format!("/api/v1/switchover?to={}", ours.name)).expect("an answer");
    assert!(status == 409 && said.contains("it is in maintenance"), "{status} {said}");

    let reader = client(&format!("{} options='-c bellwether.route=standby'", cluster.conninfo())).await;
    let port = "SELECT current_setting('port')";
    eventually_async("no reads there", LIMIT, || async {
        let mut found = Vec::new();
        for _ in 0..20 {
            match reader.query_one(port, &[]).await {
                Ok(row) => found.push(row.get::<_, String>(0)),
                Err(error) => return Err(error.to_string()),
            }
        }
        if found.contains(&ours.port.to_string()) { Err(format!("{found:?}")) } else { Ok(()) }
    })
    .await;

    cluster.signal(&ours, Signal::SIGINT);
    eventually("it is seen that it is down", LIMIT, || match &node(cluster)["state"] {
        state if state == "down" => Ok(()),
        state => Err(state.to_string()),
    });
    // Longer than its agent would take to start it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.pid(&ours), None);
    let metrics = cluster.http("GET", "/metrics").expect("metrics").1;
    let metric = format!("bellwether_node_maintenance{{node=\"{}\"}} 1", ours.name);
    assert!(metrics.contains(&metric), "{metrics}");
    let (code, said) = maintenance(cluster, &[&ours.name, "--end"]);
    assert_eq!((code, said.trim()), (Some(0), format!("{} is in service again", ours.name).as_str()));
    cluster.await_steady();
}

fn maintenance(cluster: &Cluster, options: &[&str]) -> (Option<i32>, String) {
    let admin = format!("http://127.0.0.1:{}", cluster.admin_port);
    let output = bellwether().args(["maintenance", "--admin", &admin]).args(options).output();
    let output = output.expect("bellwether maintenance");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// What the command says, and its exit code.
fn switchover(cluster: &Cluster, options: &[&str]) -> (Option<i32>, String) {
    let admin = format!("http://127.0.0.1:{}", cluster.admin_port);
    // On a busy machine a server may not be well for a moment; then an operator tries again, too.
    eventually("the order is taken", LIMIT, || {
        let output = bellwether().args(["switchover", "--admin", &admin]).args(options).output();
        let output = output.expect("bellwether switchover");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if said.contains("409 Conflict") { Err(said) } else { Ok((output.status.code(), said)) }
    })
}

fn last(cluster: &Cluster) -> serde_json::Value {
    let history = cluster.api("/api/v1/history").expect("history");
    history.as_array().and_then(|all| all.last()).expect("an election").clone()
}

pub(crate) async fn client(conninfo: &str) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.expect("the endpoint answers");
    tokio::spawn(connection);
    client
}

async fn acknowledged_beyond(ledger: &Ledger, goal: u64) {
    eventually_async("acknowledged tokens", LIMIT, || async {
        let now = ledger.acknowledged();
        if now > goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
    })
    .await;
}

/// TPC-B and selects, also on the standbys. Without --max-tries: an error ends its client.
fn pgbench(cluster: &Cluster) -> Child {
    let initialised = cluster
        .program("pgbench")
        .args(["-i", "-q", "-s", "2", &cluster.conninfo()])
        .output()
        .expect("pgbench");
    assert!(initialised.status.success(), "{}", String::from_utf8_lossy(&initialised.stderr));
    cluster
        .program("pgbench")
        .args(["-n", "-c", "8", "-j", "2", "-T", "600", "-b", "tpcb-like@1", "-b", "select-only@4"])
        .arg(cluster.conninfo())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench")
}
