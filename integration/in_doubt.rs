//! Commits, and both phases of prepared ones, whose primary dies before it answers: the client hears what became of them, on the
//! connection that it has.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::harness::ledger::{Ledger, audit, tokens};
use crate::harness::{
    Cluster, Gate, Options, Server, bellwether, eventually, eventually_async, second_major,
};

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
    make_room_for_prepared(&mut cluster);
    did_not_arrive(&mut cluster).await;
    arrived(&mut cluster).await;
    server_stays(&cluster).await;
    for round in 1..=rounds {
        under_load(&mut cluster, round).await;
    }
    let (_, metrics) = cluster.http("GET", "/metrics").expect("metrics");
    for outcome in ["committed", "not_committed"] {
        let counted = format!("bellwether_commits_in_doubt_total{{outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&counted), "{metrics}");
    }
    primary_goes_on(&mut cluster).await;
    quorum_lost(&cluster).await;
    let log = cluster.log();
    let found: Vec<&str> = log.lines().filter(|line| line.contains("commit in doubt")).collect();
    assert!(found.len() >= 3, "too little was in doubt: {found:?}");
    assert!(found.iter().all(|line| !line.contains("unknown")), "{found:?}");
}

/// Servers have no room for prepared transactions by default, and take more when they start: the standbys now, and whoever is
/// primary when it has been lost.
fn make_room_for_prepared(cluster: &mut Cluster) {
    for server in cluster.servers() {
        let more = "ALTER SYSTEM SET max_prepared_transactions = 20";
        cluster.psql_at(&cluster.direct_conninfo(&server, "app"), more).expect("a setting");
    }
    for standby in cluster.standbys() {
        cluster.lose_machine(&standby);
    }
    for standby in cluster.standbys() {
        eventually("a standby with more room", Duration::from_secs(120), || {
            let shown = cluster
                .psql_at(&cluster.direct_conninfo(&standby, "app"), "SHOW max_prepared_transactions")?;
            if shown.trim() == "20" { Ok(()) } else { Err(shown) }
        });
    }
    cluster.await_steady();
}

/// (1) The relay's stream stands still; (2) a commit is on the primary's disk, and waits; (3) the primary is lost.
async fn did_not_arrive(cluster: &mut Cluster) {
    let primary = cluster.primary();
    let client = in_block(cluster, "lost").await;
    let reader = reads(cluster, &primary).await;
    kill(walsender(cluster, &primary), Signal::SIGSTOP).expect("a walsender");
    let commit = run(client, "COMMIT");
    waiting_backend(cluster, &primary, "COMMIT");
    let insert = "INSERT INTO doubtful VALUES ($1)";
    let alone = connect(cluster).await;
    let alone = tokio::spawn(async move { alone.execute(insert, &[&"alone"]).await });
    waiting_backend(cluster, &primary, insert);
    cluster.lose_machine(&primary);
    let (client, answer) = commit.await.expect("a client");
    is_refused(&answer);
    assert_eq!(reader.await.expect("a client").expect("a read goes elsewhere"), 0);
    // No block, no xid: nobody can tell, and nobody tries again.
    let told = alone.await.expect("a client").expect_err("its WAL is lost");
    assert_eq!(told.code().map(SqlState::code), Some("08007"), "{told:?}");
    for id in ["lost", "alone"] {
        assert_eq!(count(&client, id).await, 0, "{id}");
    }
    cluster.await_steady();
}

/// By extended messages, and so that it is under way at the primary until that is lost: it waits for a lock.
async fn reads(cluster: &Cluster, primary: &Server) -> JoinHandle<Result<i64, tokio_postgres::Error>> {
    let locks = connect(cluster).await;
    locks.batch_execute("CREATE TABLE locked (id text)").await.expect("a table");
    let read = "/* bellwether: primary */ SELECT count(*) FROM locked WHERE id = $1";
    let reader = connect(cluster).await;
    let statement = reader.prepare(read).await.expect("a statement");
    let reading = tokio::spawn(async move {
        locks.batch_execute("BEGIN").await?;
        locks.batch_execute("LOCK TABLE locked").await?;
        let read = reader.query_one(&statement, &[&"x"]).await;
        drop(locks);
        read.map(|row| row.get(0))
    });
    let waits =
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM locked%'";
    pid(cluster, primary, waits);
    reading
}

/// (1) The same; (2) the backends that wait stand still as well; (3) the stream goes on, and the relay has the commits; (4) it stands
/// still again, and others wait; (5) the primary is lost, and no backend has said anything.
async fn arrived(cluster: &mut Cluster) {
    let primary = cluster.primary();
    for id in ["committed", "undone", "left", "left too"] {
        prepared(cluster, id).await;
    }
    let arriving = vec![
        (in_block(cluster, "kept").await, "COMMIT"),
        (in_block(cluster, "first phase").await, "PREPARE TRANSACTION 'first phase'"),
        (connect(cluster).await, "COMMIT PREPARED 'committed'"),
        (connect(cluster).await, "ROLLBACK PREPARED 'undone'"),
    ];
    let (arriving, _) = durable_and_silent(cluster, &primary, arriving);
    kill(walsender(cluster, &primary), Signal::SIGSTOP).expect("a walsender");
    let late = ["COMMIT PREPARED 'left'", "ROLLBACK PREPARED 'left too'"];
    let mut lost = vec![run(in_block(cluster, "no phase").await, "PREPARE TRANSACTION 'no phase'")];
    for statement in late {
        lost.push(run(connect(cluster).await, statement));
        waiting_backend(cluster, &primary, statement);
    }
    cluster.lose_machine(&primary);
    for told in arriving {
        told.await.expect("a client").1.expect("its WAL has arrived");
    }
    for told in lost {
        is_refused(&told.await.expect("a client").1);
    }
    let client = connect(cluster).await;
    for (id, there) in [("kept", 1), ("committed", 1), ("undone", 0), ("left", 0), ("left too", 0)] {
        assert_eq!(count(&client, id).await, there, "{id}");
    }
    // As their clients were told.
    for statement in late {
        client.batch_execute(statement).await.expect("it is still prepared");
    }
    client.batch_execute("COMMIT PREPARED 'first phase'").await.expect("it was prepared");
    client.batch_execute("COMMIT PREPARED 'no phase'").await.expect_err("it was not prepared");
    for (id, there) in [("first phase", 1), ("no phase", 0), ("left", 1), ("left too", 0)] {
        assert_eq!(count(&client, id).await, there, "{id}");
    }
    waits_for_no_snapshot(cluster).await;
    cluster.await_steady();
}

fn is_refused(answer: &Result<(), tokio_postgres::Error>) {
    let told = answer.as_ref().expect_err("its WAL is lost");
    assert_eq!(told.code().map(SqlState::code), Some("40001"), "{told:?}");
}

/// Commits that the relay has, and their backends, which stand still and show them to nobody yet.
fn durable_and_silent(
    cluster: &Cluster,
    primary: &Server,
    statements: Vec<(Client, &'static str)>,
) -> (Vec<Running>, Vec<Pid>) {
    let walsender = walsender(cluster, primary);
    kill(walsender, Signal::SIGSTOP).expect("a walsender");
    let (running, backends): (Vec<_>, Vec<_>) = statements
        .into_iter()
        .map(|(client, statement)| (run(client, statement), waiting_backend(cluster, primary, statement)))
        .unzip();
    for backend in &backends {
        kill(*backend, Signal::SIGSTOP).expect("a backend");
    }
    let flushed = cluster
        .psql_at(
            &cluster.direct_conninfo(primary, "app"),
            "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')",
        )
        .expect("the primary answers");
    let flushed: f64 = flushed.trim().parse().expect("bytes");
    kill(walsender, Signal::SIGCONT).expect("a walsender");
    eventually("the relay has the commits", Duration::from_secs(120), || {
        match cluster.metric("bellwether_wal_durable_lsn_bytes") {
            Some(durable) if durable >= flushed => Ok(()),
            other => Err(format!("{other:?} of {flushed}")),
        }
    });
    (running, backends)
}

/// As in [`arrived`], (1) to (3); (4) the connections to the backends are cut, and the primary goes on; (5) so do the backends. Whoever
/// is told that it is committed finds it.
async fn primary_goes_on(cluster: &mut Cluster) {
    let primary = cluster.primary();
    let gate = Gate::open(primary.port);
    let address = format!("127.0.0.1:{}", gate.port);
    cluster.reconfigure(|config| {
        let nodes = config["nodes"].as_sequence_mut().expect("nodes");
        let gated = nodes.iter_mut().find(|node| node["name"] == *primary.name).expect("the primary");
        gated["address"] = address.into();
    });
    prepared(cluster, "second").await;
    let other = connect(cluster).await;
    assert_eq!(count(&other, "shown").await, 0);
    let statements = vec![
        (in_block(cluster, "shown").await, "COMMIT"),
        (in_block(cluster, "first").await, "PREPARE TRANSACTION 'first'"),
        (connect(cluster).await, "COMMIT PREPARED 'second'"),
    ];
    let (running, backends) = durable_and_silent(cluster, &primary, statements);
    for backend in &backends {
        let from = format!("SELECT client_port FROM pg_stat_activity WHERE pid = {backend}");
        let from = cluster.psql_at(&cluster.direct_conninfo(&primary, "app"), &from).expect("a port");
        gate.cut(from.trim().parse().expect("a port"));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for id in ["shown", "second"] {
        assert_eq!(count(&other, id).await, 0, "the backends stand still");
    }
    assert!(running.iter().all(|told| !told.is_finished()), "told what nobody finds");
    for backend in backends {
        kill(backend, Signal::SIGCONT).expect("a backend");
    }
    for told in running {
        told.await.expect("a client").1.expect("it is durable, and shown");
    }
    other.batch_execute("COMMIT PREPARED 'first'").await.expect("it was prepared");
    for id in ["shown", "first", "second"] {
        assert_eq!(count(&other, id).await, 1, "{id}");
    }
}

/// Only the connection is lost: the backend is ended while its commit waits.
async fn server_stays(cluster: &Cluster) {
    let term = || cluster.api("/api/v1/cluster").expect("state")["directive"]["term"].clone();
    let (primary, before) = (cluster.primary(), term());
    let client = in_block(cluster, "cut").await;
    let walsender = walsender(cluster, &primary);
    kill(walsender, Signal::SIGSTOP).expect("a walsender");
    let commit = run(client, "COMMIT");
    let backend = waiting_backend(cluster, &primary, "COMMIT");
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
    // It is noticed a moment later, and cuts what has begun since then.
    eventually("the restart is noticed", Duration::from_secs(30), || {
        if term() == before { Err(before.to_string()) } else { Ok(()) }
    });
}

/// The stream stands still, and the primary goes on: a commit that waits is given up, what would have to wait is held, what
/// reads is served; and all goes on when the stream does.
async fn quorum_lost(cluster: &Cluster) {
    cluster.rewrite(|config| config["failover"]["hold_clients"] = "4s".into());
    let reloaded = bellwether()
        .arg("reload")
        .arg("--config")
        .arg(cluster.data().join("bellwether.yaml"))
        .output()
        .expect("bellwether runs");
    assert!(reloaded.status.success(), "{reloaded:?}");
    let primary = cluster.primary();
    let client = in_block(cluster, "late").await;
    let other = in_block(cluster, "other").await;
    other.batch_execute("ROLLBACK").await.expect("a client");
    let walsender = walsender(cluster, &primary);
    kill(walsender, Signal::SIGSTOP).expect("a walsender");
    let (client, answer) = run(client, "COMMIT").await.expect("a client");
    let told = answer.expect_err("nobody acknowledges it");
    assert_eq!(told.code().map(SqlState::code), Some("08007"), "{told:?}");
    let insert = "INSERT INTO doubtful VALUES ('held')";
    let told = other.batch_execute(insert).await.expect_err("it would have to wait");
    assert_eq!(told.code().map(SqlState::code), Some("57P03"), "{told:?}");
    for client in [&client, &other] {
        assert_eq!(count(client, "late").await, 0, "nobody sees what is not durable");
    }
    kill(walsender, Signal::SIGCONT).expect("a walsender");
    // Not before the stream is there again.
    eventually_async("commits come through again", Duration::from_secs(120), || async {
        match other.batch_execute(insert).await {
            Ok(()) => Ok(()),
            Err(error) if error.code().is_some_and(|code| code.code() == "57P03") => Err(error.to_string()),
            Err(error) => panic!("{error:?}"),
        }
    })
    .await;
    let there =
        || async { if count(&client, "late").await == 1 { Ok(()) } else { Err("not committed".to_owned()) } };
    eventually_async("what was given up was committed", Duration::from_secs(120), there).await;
    assert_eq!(cluster.metric("bellwether_quorum_lost"), Some(0.0));
}

async fn under_load(cluster: &mut Cluster, round: i64) {
    cluster.await_steady();
    let primary = cluster.primary();
    let ledger = Ledger::start(&cluster.conninfo(), round, 16).await;
    let busy =
        || async { if ledger.acknowledged() >= 200 { Ok(()) } else { Err("too few commits".to_owned()) } };
    eventually_async("writers are busy", Duration::from_secs(120), busy).await;
    let before = ledger.acknowledged();
    cluster.lose_machine(&primary);
    let resumed = || async {
        if ledger.acknowledged() >= before + 100 { Ok(()) } else { Err("no commits".to_owned()) }
    };
    eventually_async("writers go on", Duration::from_secs(120), resumed).await;
    let entries = ledger.finish().await;
    cluster.await_steady();
    assert_eq!(
        audit(&entries, &tokens(&cluster.direct_conninfo(&cluster.primary(), "app")).await),
        Vec::<String>::new()
    );
}

async fn connect(cluster: &Cluster) -> Client {
    let (client, connection) =
        tokio_postgres::connect(&cluster.conninfo(), NoTls).await.expect("the endpoint answers");
    tokio::spawn(connection);
    client
}

/// A client that has written `id`, and not committed.
async fn in_block(cluster: &Cluster, id: &str) -> Client {
    let client = connect(cluster).await;
    client.batch_execute("BEGIN").await.expect("a block");
    client.batch_execute(&format!("INSERT INTO doubtful VALUES ('{id}')")).await.expect("a row");
    client
}

/// By such defaults a transaction waits for all that might harm its snapshot, and the one that is to be ended might.
async fn waits_for_no_snapshot(cluster: &Cluster) {
    let client = connect(cluster).await;
    for statement in [
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "INSERT INTO doubtful VALUES ('safe')",
        "PREPARE TRANSACTION 'safe'",
        "SET default_transaction_isolation = serializable",
        "SET default_transaction_read_only = on",
        "SET default_transaction_deferrable = on",
    ] {
        client.batch_execute(statement).await.expect(statement);
    }
    let ending = client.batch_execute("COMMIT PREPARED 'safe'");
    let ended = tokio::time::timeout(Duration::from_secs(60), ending).await;
    ended.expect("it waits for itself").expect("it was prepared");
}

/// A row that waits for the second phase of `id`.
async fn prepared(cluster: &Cluster, id: &str) {
    let prepare = format!("PREPARE TRANSACTION '{id}'");
    in_block(cluster, id).await.batch_execute(&prepare).await.expect("room for it");
}

/// The client, and what it was told.
type Running = JoinHandle<(Client, Result<(), tokio_postgres::Error>)>;

fn run(client: Client, statement: &'static str) -> Running {
    tokio::spawn(async move {
        let answer = client.batch_execute(statement).await;
        (client, answer)
    })
}

async fn count(client: &Client, id: &str) -> i64 {
    let sql = "/* bellwether: primary */ SELECT count(*) FROM doubtful WHERE id = $1";
    client.query_one(sql, &[&id]).await.expect("the session goes on").get(0)
}

/// The backend of a statement that waits for the quorum.
fn waiting_backend(cluster: &Cluster, primary: &Server, statement: &str) -> Pid {
    let statement = statement.replace('\'', "''");
    let waits =
        format!("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = '{statement}'");
    pid(cluster, primary, &waits)
}

fn walsender(cluster: &Cluster, primary: &Server) -> Pid {
    let streams = "SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'bellwether%'";
    pid(cluster, primary, streams)
}

fn pid(cluster: &Cluster, server: &Server, sql: &str) -> Pid {
    eventually("a process of the server's", Duration::from_secs(120), || {
        let pid = cluster.psql_at(&cluster.direct_conninfo(server, "app"), sql)?;
        pid.trim().parse().map(Pid::from_raw).map_err(|_| format!("{sql}: {pid:?}"))
    })
}
