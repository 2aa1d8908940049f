//! Commits whose primary dies before it answers: the client hears what became of them, on the connection that it has.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::harness::ledger::{Ledger, audit, tokens};
use crate::harness::{Cluster, Options, Server, eventually, eventually_async, second_major};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wal_tells_what_became_of_a_commit() {
    tell_truly(Options::default(), 1).await;
}

/// PostgreSQL 18.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: see make soak"]
async fn the_wal_tells_what_became_of_a_commit_second_major() {
    let binaries = second_major();
    tell_truly(Options { pg_bin: Some(binaries.bin()), ..Options::default() }, 20).await;
}

async fn tell_truly(options: Options, rounds: i64) {
    let mut cluster = Cluster::start(options);
    cluster.psql("CREATE TABLE doubtful (id text)").expect("a table");
    cluster.await_steady();
    did_not_arrive(&mut cluster).await;
    arrived(&mut cluster).await;
    server_stays(&cluster).await;
    for round in 1..=rounds {
        under_load(&mut cluster, round).await;
    }
    let log = cluster.log();
    let found: Vec<&str> = log.lines().filter(|line| line.contains("commit in doubt")).collect();
    assert!(found.len() >= 3, "too little was in doubt: {found:?}");
    assert!(found.iter().all(|line| !line.contains("unknown")), "{found:?}");
    let (_, metrics) = cluster.http("GET", "/metrics").expect("metrics");
    for outcome in ["committed", "not_committed"] {
        let counted = format!("bellwether_commits_in_doubt_total{{outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&counted), "{metrics}");
    }
}

/// (1) The relay's stream stands still; (2) a commit is on the primary's disk, and waits; (3) the primary is lost.
async fn did_not_arrive(cluster: &mut Cluster) {
    let primary = cluster.primary();
    let client = in_block(cluster, "lost").await;
    kill(walsender(cluster, &primary), Signal::SIGSTOP).expect("a walsender");
    let commit = commit(client);
    waiting_backend(cluster, &primary).await;
    cluster.lose_machine(&primary);
    let (client, answer) = commit.await.expect("a client");
    let told = answer.expect_err("its WAL is lost");
    assert_eq!(told.code().map(SqlState::code), Some("40001"), "{told:?}");
    assert_eq!(count(&client, "lost").await, 0);
    cluster.await_steady();
}

/// (1) The same; (2) the backend that waits stands still as well; (3) the stream goes on, and the relay has the commit;
/// (4) the primary is lost, and its backend has said nothing.
async fn arrived(cluster: &mut Cluster) {
    let primary = cluster.primary();
    let client = in_block(cluster, "kept").await;
    let walsender = walsender(cluster, &primary);
    kill(walsender, Signal::SIGSTOP).expect("a walsender");
    let commit = commit(client);
    let backend = waiting_backend(cluster, &primary).await;
    kill(backend, Signal::SIGSTOP).expect("a backend");
    let flushed = cluster
        .psql_at(
            &cluster.direct_conninfo(&primary, "app"),
            "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')",
        )
        .expect("the primary answers");
    let flushed: f64 = flushed.trim().parse().expect("bytes");
    kill(walsender, Signal::SIGCONT).expect("a walsender");
    eventually("the relay has the commit", Duration::from_secs(10), || {
        match cluster.metric("bellwether_wal_durable_lsn_bytes") {
            Some(durable) if durable >= flushed => Ok(()),
            other => Err(format!("{other:?} of {flushed}")),
        }
    });
    cluster.lose_machine(&primary);
    let (client, answer) = commit.await.expect("a client");
    answer.expect("its WAL has arrived");
    assert_eq!(count(&client, "kept").await, 1);
    cluster.await_steady();
}

/// Only the connection is lost: the backend is ended while its commit waits.
async fn server_stays(cluster: &Cluster) {
    let primary = cluster.primary();
    let client = in_block(cluster, "cut").await;
    let walsender = walsender(cluster, &primary);
    kill(walsender, Signal::SIGSTOP).expect("a walsender");
    let commit = commit(client);
    let backend = waiting_backend(cluster, &primary).await;
    kill(backend, Signal::SIGKILL).expect("a backend");
    kill(walsender, Signal::SIGCONT).expect("a walsender");
    let (client, answer) = commit.await.expect("a client");
    let there = count(&client, "cut").await;
    match answer {
        Ok(()) => assert_eq!(there, 1),
        Err(error) => {
            assert_eq!(error.code().map(SqlState::code), Some("40001"), "{error:?}");
            assert_eq!(there, 0);
        }
    }
}

async fn under_load(cluster: &mut Cluster, round: i64) {
    cluster.await_steady();
    let primary = cluster.primary();
    let ledger = Ledger::start(&cluster.conninfo(), round, 16).await;
    let busy =
        || async { if ledger.acknowledged() >= 200 { Ok(()) } else { Err("too few commits".to_owned()) } };
    eventually_async("writers are busy", Duration::from_secs(30), busy).await;
    let before = ledger.acknowledged();
    cluster.lose_machine(&primary);
    let resumed = || async {
        if ledger.acknowledged() >= before + 100 { Ok(()) } else { Err("no commits".to_owned()) }
    };
    eventually_async("writers go on", Duration::from_secs(60), resumed).await;
    let entries = ledger.finish().await;
    cluster.await_steady();
    assert_eq!(audit(&entries, &tokens(&cluster.conninfo()).await), Vec::<String>::new());
}

/// A client that has written `id`, and not committed.
async fn in_block(cluster: &Cluster, id: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(&cluster.conninfo(), NoTls).await.expect("the endpoint answers");
    tokio::spawn(connection);
    client.batch_execute("BEGIN").await.expect("a block");
    client.batch_execute(&format!("INSERT INTO doubtful VALUES ('{id}')")).await.expect("a row");
    client
}

fn commit(client: Client) -> JoinHandle<(Client, Result<(), tokio_postgres::Error>)> {
    tokio::spawn(async move {
        let answer = client.batch_execute("COMMIT").await;
        (client, answer)
    })
}

async fn count(client: &Client, id: &str) -> i64 {
    let sql = "/* bellwether: primary */ SELECT count(*) FROM doubtful WHERE id = $1";
    client.query_one(sql, &[&id]).await.expect("the session goes on").get(0)
}

/// The backend of the commit that waits for the quorum.
async fn waiting_backend(cluster: &Cluster, primary: &Server) -> Pid {
    let waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query ILIKE 'commit%'";
    pid(cluster, primary, waits)
}

fn walsender(cluster: &Cluster, primary: &Server) -> Pid {
    let streams = "SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'bellwether%'";
    pid(cluster, primary, streams)
}

fn pid(cluster: &Cluster, server: &Server, sql: &str) -> Pid {
    eventually("a process of the server's", Duration::from_secs(10), || {
        let pid = cluster.psql_at(&cluster.direct_conninfo(server, "app"), sql)?;
        pid.trim().parse().map(Pid::from_raw).map_err(|_| format!("{sql}: {pid:?}"))
    })
}
