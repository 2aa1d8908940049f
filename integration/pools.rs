//! Limits on connections and on time: each answers with its SQLSTATE, costs only whom it is for, and the connections
//! that clients share stay usable.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::harness::{Cluster, Durability, Options, eventually, eventually_async};

const LIMIT: Duration = Duration::from_secs(120);

/// One role per limit, so that one cluster serves all of this file's clients.
const POOL: &str = "
mode: transaction
size: 4
users:
  - {name: slow, query_timeout: 300ms}
  - {name: lazy, idle_transaction_timeout: 300ms}
  - {name: away, client_idle_timeout: 300ms}
  - {name: long, transaction_timeout: 700ms}
  - {name: few, max_clients: 1}
  - {name: each, mode: statement}
  - {name: queue, size: 1, wait: 1500ms, notice_after: 200ms}
  - {name: patient, size: 1, wait: 5min, notice_after: 200ms}
  - {name: reserve, size: 1, reserve_size: 1, reserve_after: 200ms}
  - {name: warm, min_size: 3}
  - {name: one, max_servers: 1}
";

fn cluster() -> Cluster {
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str(POOL).expect("YAML");
    });
    let pool: serde_yaml::Value = serde_yaml::from_str(POOL).expect("YAML");
    let roles: String = pool["users"]
        .as_sequence()
        .expect("users")
        .iter()
        .map(|user| format!("CREATE ROLE {} LOGIN PASSWORD 'demo';", user["name"].as_str().expect("a name")))
        .collect();
    let admin = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&admin, &roles).expect("roles");
    cluster.psql_at(&admin, "CREATE TABLE t (n int); GRANT ALL ON t TO public").expect("a table");
    cluster
}

/// A client, and the notices that reach it.
async fn connect(cluster: &Cluster, user: &str) -> Result<(Client, mpsc::Receiver<String>), String> {
    let conninfo = format!("host=127.0.0.1 port={} user={user} password=demo dbname=app", cluster.port);
    let connected = tokio_postgres::connect(&conninfo, NoTls).await;
    let (client, mut connection) = connected.map_err(|error| sqlstate(&error))?;
    let (heard, hears) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                let _ = heard.try_send(notice.message().to_owned());
            }
        }
    });
    Ok((client, hears))
}

async fn client(cluster: &Cluster, user: &str) -> Client {
    connect(cluster, user).await.expect("a login").0
}

async fn run(client: &Client, sql: &str) -> Result<(), String> {
    let answered = tokio::time::timeout(LIMIT, client.batch_execute(sql)).await.expect("an answer in time");
    answered.map_err(|error| sqlstate(&error))
}

fn sqlstate(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

/// What the session of `user` is told without having asked.
async fn last_word(cluster: &Cluster, user: &str, first: &str) -> String {
    let conninfo = format!("host=127.0.0.1 port={} user={user} password=demo dbname=app", cluster.port);
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("a login");
    let ended = tokio::spawn(connection);
    // On a busy machine it may come amid the first statement.
    if let Err(told) = run(&client, first).await {
        return told;
    }
    let ended = tokio::time::timeout(LIMIT, ended).await.expect("the end in time").expect("no panic");
    sqlstate(&ended.expect_err("not by itself"))
}

fn refused(code: &str) -> Result<(), String> {
    Err(code.to_owned())
}

#[tokio::test]
async fn limits_answer_with_their_sqlstate() {
    let cluster = cluster();

    let slow = client(&cluster, "slow").await;
    assert_eq!(run(&slow, "SELECT pg_sleep(20)").await, refused("57014"));
    // On a busy machine even that may take as long.
    eventually_async("the session goes on", LIMIT, async || run(&slow, "SELECT 1").await).await;

    assert_eq!(last_word(&cluster, "lazy", "BEGIN; INSERT INTO t VALUES (1)").await, "25P03");
    assert_eq!(last_word(&cluster, "away", "SELECT 1").await, "57P05");
    assert_eq!(last_word(&cluster, "long", "BEGIN; INSERT INTO t VALUES (1)").await, "25P04");
    let long = client(&cluster, "long").await;
    assert_eq!(run(&long, "BEGIN; SELECT pg_sleep(20)").await, refused("25P04"));
    let app = client(&cluster, "app").await;
    eventually_async("no transaction that was ended goes on", LIMIT, async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND usename IN ('lazy', 'long')";
        let count: i64 = app.query_one(open, &[]).await.map_err(|error| error.to_string())?.get(0);
        if count == 0 { Ok(()) } else { Err(format!("{count} transactions")) }
    })
    .await;

    let few = client(&cluster, "few").await;
    assert_eq!(connect(&cluster, "few").await.map(|_| ()), refused("53300"));
    drop(few);
    eventually_async("room for another client", LIMIT, async || connect(&cluster, "few").await.map(|_| ()))
        .await;

    let each = client(&cluster, "each").await;
    assert_eq!(run(&each, "BEGIN").await, refused("0A000"));
    assert_eq!(run(&each, "BEGIN; INSERT INTO t VALUES (2); COMMIT").await, Ok(()), "a block that is closed");
    let prepared = each.prepare("BEGIN").await.map(|_| ()).map_err(|error| sqlstate(&error));
    assert_eq!(prepared, refused("0A000"));
    assert_eq!(run(&each, "SELECT 1").await, Ok(()));
}

#[tokio::test]
async fn waiting_for_a_server_has_an_order_a_notice_and_an_end() {
    let cluster = cluster();

    let holder = client(&cluster, "queue").await;
    run(&holder, "BEGIN; INSERT INTO t VALUES (1)").await.expect("the only server");
    let (waits, mut notices) = connect(&cluster, "queue").await.expect("a login");
    assert_eq!(run(&waits, "INSERT INTO t VALUES (2)").await, refused("53300"));
    let notice = notices.recv().await.expect("a notice");
    assert!(notice.contains("waiting for a free server connection"), "{notice}");
    run(&holder, "COMMIT").await.expect("commit");

    // Who is served after a wait got the notice before the answer, and the answer is whole.
    let holder = client(&cluster, "patient").await;
    run(&holder, "BEGIN; INSERT INTO t VALUES (1)").await.expect("the only server");
    let (waits, mut notices) = connect(&cluster, "patient").await.expect("a login");
    let (served, _) = tokio::join!(run(&waits, "INSERT INTO t VALUES (2)"), async {
        notices.recv().await.expect("a notice");
        run(&holder, "COMMIT").await.expect("commit");
    });
    assert_eq!(served, Ok(()));
    // Who hangs up in the queue leaves it.
    run(&holder, "BEGIN; INSERT INTO t VALUES (1)").await.expect("the only server");
    let conninfo = format!("host=127.0.0.1 port={} user=patient password=demo dbname=app", cluster.port);
    let (gone, mut connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("a login");
    let notice = async {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notice(_))) => break,
                Some(Ok(_)) => {}
                other => panic!("{:?}", other.map(|heard| heard.map(|_| ()))),
            }
        }
    };
    tokio::select! {
        told = gone.batch_execute("INSERT INTO t VALUES (3)") => panic!("{told:?}"),
        () = notice => {}
    }
    drop((gone, connection));
    eventually("nobody waits", LIMIT, || match cluster.metric("bellwether_clients{state=\"waiting\"}") {
        Some(0.0) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    let (first, second) = (client(&cluster, "reserve").await, client(&cluster, "reserve").await);
    run(&first, "BEGIN; INSERT INTO t VALUES (1)").await.expect("the only server");
    assert_eq!(run(&second, "INSERT INTO t VALUES (2)").await, Ok(()), "by the reserve");

    // A shared limit: whoever comes from another database gets the one permit.
    let (here, there) = (client(&cluster, "one").await, {
        let conninfo = format!("host=127.0.0.1 port={} user=one password=demo dbname=postgres", cluster.port);
        let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("a login");
        tokio::spawn(connection);
        client
    });
    for _ in 0..3 {
        assert_eq!(run(&here, "SELECT 1").await, Ok(()));
        assert_eq!(run(&there, "SELECT 1").await, Ok(()));
    }
}

#[tokio::test]
async fn servers_are_opened_ahead_of_need_and_replaced_when_they_die() {
    let cluster = cluster();
    let app = client(&cluster, "app").await;
    let warm = client(&cluster, "warm").await;
    let backends = "SELECT pid FROM pg_stat_activity WHERE usename = 'warm' ORDER BY pid";
    let pids = async || -> Result<Vec<i32>, String> {
        let rows = app.query(backends, &[]).await.map_err(|error| error.to_string())?;
        let pids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        if pids.len() == 3 { Ok(pids) } else { Err(format!("{pids:?}")) }
    };
    run(&warm, "INSERT INTO t VALUES (1)").await.expect("the first use");
    let before = eventually_async("three connections", LIMIT, &pids).await;
    let admin = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster
        .psql_at(
            &admin,
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'warm'",
        )
        .expect("terminate");
    assert_eq!(run(&warm, "INSERT INTO t VALUES (2)").await, Ok(()), "nobody hears of it");
    eventually_async("three other connections", LIMIT, async || {
        let after = pids().await?;
        if after.iter().all(|pid| !before.contains(pid)) {
            Ok(())
        } else {
            Err(format!("{before:?} {after:?}"))
        }
    })
    .await;
}

/// Of the saturated pool.
const CLIENTS: usize = 2000;
const SERVERS: usize = 20;
/// Clients that come together: among them nobody is first.
const BATCH: usize = 330;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_clients_on_twenty_servers_are_served_in_their_order() {
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{size: 20, max_clients: 2000, wait: 30min}").expect("YAML");
        config["workers"] = 1.into();
    });
    cluster.psql("CREATE SEQUENCE served").expect("a sequence");
    let mut clients = vec![];
    for _ in 0..CLIENTS {
        clients.push(client(&cluster, "app").await);
    }
    assert_eq!(connect(&cluster, "app").await.map(|_| ()), refused("53300"), "one too many");

    let holders: Vec<Client> = clients.drain(..SERVERS).collect();
    for holder in &holders {
        run(holder, "BEGIN; SELECT nextval('served') FROM pg_class WHERE false").await.expect("a server");
    }
    let mut waiting = 0;
    let mut answers = vec![];
    while !clients.is_empty() {
        let batch: Vec<Client> = clients.drain(..BATCH.min(clients.len())).collect();
        waiting += batch.len();
        for client in batch {
            answers.push(tokio::spawn(async move {
                // In one unit: whoever prepares first would queue twice.
                let rows = client.simple_query("SELECT pg_backend_pid(), nextval('served')").await;
                let rows = rows.map_err(|error| sqlstate(&error))?;
                let row = rows.iter().find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => {
                        let number = |column| row.get(column)?.parse::<i64>().ok();
                        Some((number(0)?, number(1)?))
                    }
                    _ => None,
                });
                row.ok_or_else(|| "no number".to_owned())
            }));
        }
        eventually_async("a queue", LIMIT, async || {
            match cluster.metric("bellwether_clients{state=\"waiting\"}") {
                #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
                Some(now) if now == waiting as f64 => Ok(()),
                other => Err(format!("{other:?} of {waiting}")),
            }
        })
        .await;
    }
    // A cancel reaches its statement although nobody else gets on.
    let token = holders[0].cancel_token();
    let asleep = run(&holders[0], "SELECT pg_sleep(60)");
    tokio::pin!(asleep);
    let cancelled = loop {
        tokio::select! {
            told = &mut asleep => break told,
            // It hits nothing before the statement runs.
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                token.cancel_query(NoTls).await.expect("a cancel");
            }
        }
    };
    assert_eq!(cancelled, refused("57014"));
    for holder in &holders {
        run(holder, "ROLLBACK").await.expect("its end");
    }
    // What each server did, in its order: whom it served, by the batch in which they came.
    let mut served: BTreeMap<i64, BTreeMap<i64, usize>> = BTreeMap::new();
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = tokio::time::timeout(LIMIT, answer).await.expect("nobody starves").expect("no panic");
        let (server, turn) = answer.expect("an answer");
        served.entry(server).or_default().insert(turn, number / BATCH);
    }
    assert_eq!(served.len(), SERVERS);
    for (server, batches) in served {
        // With one worker, who came first is next, wherever a server becomes free. (One server may be slower than
        // others, so that between two of them nothing is certain.)
        assert!(batches.values().is_sorted(), "{server} served {batches:?}");
    }
}
