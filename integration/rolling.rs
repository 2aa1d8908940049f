//! Restarts of all servers by one command, under load: each of them starts anew, and no client hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::harness::ledger::{audit, tokens};
use crate::harness::wal::caught_up;
use crate::harness::{Cluster, Options, bellwether, eventually, eventually_async};
use crate::switchover::{Writers, client};

const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_are_restarted_under_load() {
    let mut cluster = Cluster::start(Options::default());
    without_an_error(&mut cluster).await;
    an_open_read_is_spared_and_then_cut(&cluster).await;
    a_new_process_goes_on_with_it(&mut cluster);
}

async fn without_an_error(cluster: &mut Cluster) {
    let (before, old) = (start_times(cluster), cluster.primary());
    let writers = Writers::start(cluster, 6).await;
    let readers = Readers::start(cluster, 4);
    writers.go_on(100).await;
    let (code, foreseen) = restart(cluster, &["--rolling", "--dry-run"]);
    assert!(code == Some(0) && foreseen.contains("nothing stands in the way"), "{foreseen}");
    assert_eq!(start_times(cluster), before, "nothing is done");

    let (code, said) = restart(cluster, &["--rolling"]);
    assert_eq!(code, Some(0), "{said}");
    println!("{said}");
    let after = start_times(cluster);
    assert!(before.iter().all(|(node, at)| after[node] > *at), "{before:?} {after:?}");
    assert_ne!(cluster.primary().name, old.name);
    let last = last(cluster);
    assert_eq!(last["outcome"], "completed", "{last}");
    let nodes = last["nodes"].as_array().expect("nodes");
    assert_eq!((nodes.len(), &nodes[2]["node"]), (3, &Value::from(old.name)), "{last}");
    assert!(nodes.iter().all(|node| node["to_version"].is_string()), "{last}");
    writers.go_on(100).await;

    let (reads, errors) = readers.finish().await;
    assert!(reads > 100 && errors.is_empty(), "{reads} reads, {errors:?}");
    let entries = writers.finish_without_an_error().await;
    cluster.await_steady();
    cluster.standbys().iter().for_each(|standby| caught_up(cluster, standby));
    for server in cluster.servers() {
        let found = tokens(&cluster.direct_conninfo(&server, "app")).await;
        assert_eq!(audit(&entries, &found), Vec::<String>::new(), "{}", server.name);
    }
}

/// A read-only block at a standby that is to be restarted, longer than `failover.drain`.
async fn an_open_read_is_spared_and_then_cut(cluster: &Cluster) {
    cluster.rewrite(|config| config["failover"]["drain"] = "500ms".into());
    assert_eq!(cluster.http("POST", "/api/v1/reload").expect("an answer").0, 200);
    let reader = client(&cluster.conninfo()).await;
    let standby = begins_at(cluster, &reader).await;
    let (code, said) = restart(cluster, &[&standby]);
    let why = format!("transactions still open at {standby} after 500ms: 1");
    assert!(code == Some(1) && said.contains(&why), "{said}");
    let status = bellwether().args(["status", "--admin", &admin(cluster)]).output().expect("status");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(&format!("restart given up, 0 of 1 restarted: {why}")), "{status}");
    reader.batch_execute("SELECT count(*) FROM pg_class; COMMIT").await.expect("it was spared");

    // Wherever it begins this time.
    let standby = begins_at(cluster, &reader).await;
    let before = start_times(cluster);
    let (code, said) = restart(cluster, &[&standby, "--force"]);
    assert!(code == Some(0) && said.contains("transactions cut off after 500ms: 1"), "{said}");
    let after = start_times(cluster);
    for (node, at) in &before {
        assert_eq!(after[node] > *at, *node == standby, "{node} of {before:?} {after:?}");
    }
    let error = reader.batch_execute("COMMIT").await.expect_err("it was cut");
    let told = error.code().map(|code| code.code().to_owned());
    assert!(told.as_deref().is_none_or(|told| ["40001", "57P01", "08006"].contains(&told)), "{error:?}");
    let (code, said) = restart(cluster, &["--cancel"]);
    assert!(code == Some(1) && said.contains("no restart is under way"), "{said}");
}

/// The standby that serves the block that the reader has open from here on.
async fn begins_at(cluster: &Cluster, reader: &tokio_postgres::Client) -> String {
    let ask = "SELECT count(*) FROM pg_stat_activity \
               WHERE usename = 'app' AND state = 'idle in transaction'";
    let serves = |server: &crate::harness::Server| {
        let conninfo = cluster.direct_conninfo(server, "postgres");
        cluster.psql_at(&conninfo, ask).is_ok_and(|count| count == "1")
    };
    // It is the primary's while no standby is fresh.
    eventually_async("a standby's block", LIMIT, async || {
        for statement in ["BEGIN READ ONLY", "SELECT count(*) FROM pg_class"] {
            reader.batch_execute(statement).await.expect("a server answers");
        }
        if let Some(server) = cluster.standbys().into_iter().find(serves) {
            return Ok(server.name);
        }
        reader.batch_execute("ROLLBACK").await.expect("a server answers");
        Err("the primary's".to_owned())
    })
    .await
}

fn a_new_process_goes_on_with_it(cluster: &mut Cluster) {
    let before = start_times(cluster);
    let first = cluster.standbys().remove(0).name;
    eventually("the order is taken", LIMIT, || {
        let (status, said) = cluster.http("POST", "/api/v1/restart?all")?;
        if status == 200 { Ok(()) } else { Err(said) }
    });
    eventually("the first one's turn", LIMIT, || {
        let last = last(cluster);
        let begun = last["nodes"][0]["from_version"].is_string();
        if begun && last["nodes"][0]["node"] == *first { Ok(()) } else { Err(last.to_string()) }
    });
    cluster.kill_bellwether();
    cluster.start_bellwether();
    eventually("all are restarted", LIMIT, || {
        let restarts = cluster.api("/api/v1/restarts")?;
        let last = restarts.as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        if last["outcome"] == "completed" { Ok(()) } else { Err(last.to_string()) }
    });
    let after = start_times(cluster);
    assert!(before.iter().all(|(node, at)| after[node] > *at), "{before:?} {after:?}");
    cluster.await_steady();
}

/// Clients whose every transaction is a read-only block of several statements.
struct Readers {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Option<String>>>,
}

impl Readers {
    fn start(cluster: &Cluster, clients: usize) -> Readers {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients).map(|_| {
            let (stop, reads, conninfo) = (stop.clone(), reads.clone(), cluster.conninfo());
            tokio::spawn(async move {
                let client = client(&conninfo).await;
                while !stop.load(Ordering::Relaxed) {
                    for statement in [
                        "BEGIN READ ONLY",
                        "SELECT count(*) FROM pg_class",
                        "SELECT pg_sleep(0.02)",
                        "COMMIT",
                    ] {
                        if let Err(error) = client.batch_execute(statement).await {
                            return Some(format!("{statement}: {error:?}"));
                        }
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                None
            })
        });
        Readers { clients: clients.collect(), stop, reads }
    }

    /// How many transactions, and what went wrong.
    async fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut errors = Vec::new();
        for client in self.clients {
            errors.extend(client.await.expect("a client"));
        }
        (self.reads.load(Ordering::Relaxed), errors)
    }
}

/// `pg_postmaster_start_time()` of each, as text that sorts.
pub(crate) fn start_times(cluster: &Cluster) -> BTreeMap<String, String> {
    let ask = "SELECT extract(epoch FROM pg_postmaster_start_time())";
    let asked = |server: crate::harness::Server| {
        let conninfo = cluster.direct_conninfo(&server, "postgres");
        let told = eventually("it answers", LIMIT, || cluster.psql_at(&conninfo, ask));
        (server.name, told.trim().to_owned())
    };
    cluster.servers().into_iter().map(asked).collect()
}

/// What the command says, and its exit code.
fn restart(cluster: &Cluster, options: &[&str]) -> (Option<i32>, String) {
    // On a busy machine a server may not be well for a moment; then an operator tries again, too.
    eventually("the order is taken", LIMIT, || {
        let output = bellwether().args(["restart", "--admin", &admin(cluster)]).args(options).output();
        let output = output.expect("bellwether restart");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let later = said.contains("409 Conflict") && !said.contains("no restart is under way")
            || said.contains("it would not begin now");
        if later { Err(said) } else { Ok((output.status.code(), said)) }
    })
}

fn admin(cluster: &Cluster) -> String {
    format!("http://127.0.0.1:{}", cluster.admin_port)
}

fn last(cluster: &Cluster) -> Value {
    let restarts = cluster.api("/api/v1/restarts").expect("restarts");
    restarts.as_array().and_then(|all| all.last()).expect("a restart").clone()
}
