//! What a client says and hears through the endpoint is what it would be at a server, and is never another's.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::harness::{Cluster, Options, eventually_async};

const LIMIT: Duration = Duration::from_secs(120);

/// Runs `script` with psql, going on after errors; what it printed, and what it complained about.
fn script(cluster: &Cluster, script: &str) -> (String, String) {
    let mut psql = cluster
        .program("psql")
        .args(["-X", "-A", "-t", "-q", "-v", "VERBOSITY=verbose", "-d", &cluster.conninfo()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql runs");
    let mut stdin = psql.stdin.take().expect("piped");
    let script = script.to_owned();
    // It may print before it has read everything.
    let writer = std::thread::spawn(move || stdin.write_all(script.as_bytes()).expect("psql reads"));
    let output = psql.wait_with_output().expect("psql ends");
    writer.join().expect("a writer");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A client, and the payloads of the notifications that reach it.
async fn client(cluster: &Cluster) -> (Client, mpsc::UnboundedReceiver<String>) {
    let (client, mut connection) =
        tokio_postgres::connect(&cluster.conninfo(), NoTls).await.expect("connect");
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification.payload().to_owned());
            }
        }
    });
    (client, hears)
}

async fn text(client: &Client, sql: &str) -> Result<String, String> {
    let row = client.query_one(sql, &[]).await.map_err(|error| sqlstate(&error))?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}

fn sqlstate(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

#[test]
fn copies_notices_and_errors() {
    let cluster = Cluster::start(Options::default());
    let (out, complaints) = script(
        &cluster,
        "CREATE TABLE t (n int PRIMARY KEY, note text);\n\
         COPY t FROM STDIN;\n1\tone\n2\ttwo\n\\.\n\
         COPY t FROM STDIN;\n3\tthree\n1\tagain\n\\.\n\
         COPY t FROM STDIN;\nnothing\tof the kind\n\\.\n\
         COPY (SELECT n, note FROM t ORDER BY n) TO STDOUT;\n",
    );
    assert_eq!(out, "1\tone\n2\ttwo");
    assert!(complaints.contains("ERROR:  23505:") && complaints.contains("ERROR:  22P02:"), "{complaints}");

    let mut many = "COPY t FROM STDIN;\n".to_owned();
    for n in 10..200_010 {
        let _ = writeln!(many, "{n}\t{n:060}");
    }
    let (out, complaints) =
        script(&cluster, &(many.clone() + "\\.\nSELECT count(*) FROM t;\nCOPY t TO STDOUT;\n"));
    assert_eq!(complaints, "");
    assert_eq!(out.lines().next(), Some("200002"));
    let (mut sent, mut back): (Vec<&str>, Vec<&str>) =
        (many.lines().skip(1).collect(), out.lines().skip(3).collect());
    sent.sort_unstable();
    back.sort_unstable();
    assert!(sent == back, "{} lines went in, {} came out", sent.len(), back.len());

    let (out, complaints) = script(
        &cluster,
        "DO $$ BEGIN RAISE NOTICE 'hear this'; RAISE WARNING 'and this'; END $$;\n\
         BEGIN;\nSELECT 1/0;\nSELECT 'not run';\nROLLBACK;\n\
         BEGIN;\nSAVEPOINT s;\nSELECT 1/0;\nROLLBACK TO s;\nSELECT 'saved';\nCOMMIT;\n\
         SELECT FROM nowhere;\nSELEC;\nSELECT 42;\n",
    );
    assert_eq!(out, "saved\n42");
    for expected in [
        "NOTICE:  00000: hear this",
        "WARNING:  01000: and this",
        "ERROR:  22012:",
        "ERROR:  25P02:",
        "ERROR:  42P01:",
        "ERROR:  42601:",
    ] {
        assert!(complaints.contains(expected), "{expected} is not in\n{complaints}");
    }
}

/// How many backends of all servers run a statement with `mark` in it.
fn running(cluster: &Cluster, mark: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity \
         WHERE state = 'active' AND query LIKE '%{mark}%' AND pid <> pg_backend_pid()"
    );
    let count =
        |server| cluster.psql_at(&cluster.direct_conninfo(server, "postgres"), &sql).expect("activity");
    cluster.servers().iter().map(|server| count(server).parse::<usize>().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_hits_whom_it_is_for() {
    let cluster = Cluster::start(Options::default());
    let sleep = |mark: &'static str| {
        let cluster = &cluster;
        async move {
            let (client, _) = client(cluster).await;
            let token = client.cancel_token();
            let sql = format!("SELECT pg_sleep(600) /* {mark} */");
            (token, tokio::spawn(async move { client.batch_execute(&sql).await.map_err(|e| sqlstate(&e)) }))
        }
    };
    let (first, first_ends) = sleep("first").await;
    let (second, second_ends) = sleep("second").await;
    eventually_async("both run", LIMIT, || async {
        let found = (running(&cluster, "first"), running(&cluster, "second"));
        if found == (1, 1) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    first.cancel_query(NoTls).await.expect("cancel");
    assert_eq!(first_ends.await.expect("a client"), Err("57014".to_owned()));
    assert_eq!(running(&cluster, "second"), 1);
    // Its key means nothing any more.
    first.cancel_query(NoTls).await.expect("cancel");
    assert_eq!(cluster.psql("SELECT 1"), Ok("1".to_owned()));
    assert_eq!(running(&cluster, "second"), 1);
    second.cancel_query(NoTls).await.expect("cancel");
    assert_eq!(second_ends.await.expect("a client"), Err("57014".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_stays_with_its_client() {
    let mut cluster = Cluster::start(Options::default());
    state_of_one_client(&cluster).await;
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{mode: session}").expect("the test's own YAML");
    });
    state_of_one_client(&cluster).await;
}

async fn state_of_one_client(cluster: &Cluster) {
    let (owner, mut owner_hears) = client(cluster).await;
    let (other, mut other_hears) = client(cluster).await;
    let usual = text(&other, "SHOW work_mem").await.expect("show");
    owner.batch_execute("SET work_mem = '77MB'").await.expect("set");
    owner.batch_execute("CREATE TEMP TABLE secret AS SELECT 'mine' AS word").await.expect("temporary table");
    owner.batch_execute("PREPARE mine AS SELECT 'prepared'").await.expect("prepare");
    owner.query("SELECT pg_advisory_lock(7)", &[]).await.expect("lock");
    owner.batch_execute("LISTEN news").await.expect("listen");
    for _ in 0..5 {
        assert_eq!(text(&other, "SHOW work_mem").await, Ok(usual.clone()));
        assert_eq!(text(&other, "SELECT word FROM secret").await, Err("42P01".to_owned()));
        let execute = other.batch_execute("EXECUTE mine").await.map_err(|error| sqlstate(&error));
        assert_eq!(execute, Err("26000".to_owned()));
        assert_eq!(text(&other, "SELECT pg_try_advisory_lock(7)::text").await, Ok("false".to_owned()));
        assert_eq!(text(&owner, "SHOW work_mem").await, Ok("77MB".to_owned()));
        assert_eq!(text(&owner, "SELECT word FROM secret").await, Ok("mine".to_owned()));
    }
    owner.batch_execute("EXECUTE mine").await.expect("execute");
    other.batch_execute("NOTIFY news, 'extra'").await.expect("notify");
    let heard = tokio::time::timeout(LIMIT, owner_hears.recv()).await.expect("a notification in time");
    assert_eq!(heard.as_deref(), Some("extra"));
    // Once more than the notification could overtake.
    assert_eq!(text(&other, "SELECT 'still'").await, Ok("still".to_owned()));
    assert!(other_hears.try_recv().is_err());

    drop(owner);
    eventually_async("the lock is free", LIMIT, || async {
        let got = text(&other, "SELECT pg_try_advisory_lock(7)::text").await;
        if got.as_deref() == Ok("true") { Ok(()) } else { Err(format!("{got:?}")) }
    })
    .await;
    drop(other);
    // Whoever gets their server connections finds nothing of theirs.
    for _ in 0..10 {
        let (next, _) = client(cluster).await;
        let transaction = "SELECT concat_ws(' ', current_setting('work_mem'), to_regclass('pg_temp.secret')::text, \
             (SELECT count(*) FROM pg_listening_channels()), \
             (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'))";
        assert_eq!(text(&next, transaction).await, Ok(format!("{usual} 0 0")));
    }
}

/// Many clients over few servers: none of them keeps one, and each finds its own settings wherever it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_go_with_their_client_from_server_to_server() {
    /// A standby may be asked for these.
    const COMMON: &str = "current_setting('statement_timeout'), current_setting('search_path'), \
                          current_setting('role'), current_setting('timezone')";
    let mut cluster = Cluster::start(Options::default());
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{mode: transaction, size: 2}").expect("the test's own YAML");
    });
    let superuser = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&superuser, "CREATE ROLE guest ROLE app; CREATE SCHEMA elsewhere").expect("set up");
    cluster.psql("CREATE TABLE t (a int PRIMARY KEY)").expect("set up");
    let read = format!("SELECT concat_ws(' ', {COMMON})");
    let write = format!(
        "INSERT INTO public.t SELECT coalesce(max(a), 0) + 1 FROM public.t \
         RETURNING concat_ws(' ', {COMMON}, current_setting('my.number', true))"
    );
    let (plain, _) = client(&cluster).await;
    let usual = text(&plain, &read).await.expect("settings");
    let mut clients = Vec::new();
    for n in 1..=6 {
        let (client, _) = client(&cluster).await;
        let set = format!(
            "SET statement_timeout = '{n}min'; SELECT set_config('my.number', '{n}', false); \
             SET search_path = elsewhere, \"$user\"; SET TIME ZONE 'Asia/Tokyo'"
        );
        client.batch_execute(&set).await.expect("set");
        // What is rolled back never was.
        client
            .batch_execute("BEGIN; SET statement_timeout = 0; SET ROLE guest; ROLLBACK")
            .await
            .expect("roll back");
        let nested = "BEGIN; SAVEPOINT s; SET my.number = 0; ROLLBACK TO s; SET LOCAL my.number = 77; COMMIT";
        client.batch_execute(nested).await.expect("savepoint");
        let failing = client.batch_execute("SET statement_timeout = 0; SELECT 1/0").await;
        assert_eq!(failing.map_err(|error| sqlstate(&error)), Err("22012".to_owned()));
        clients.push((n, format!("{n}min elsewhere, \"$user\" none Asia/Tokyo"), client));
    }
    for _ in 0..3 {
        for (n, expected, client) in &clients {
            assert_eq!(text(client, &read).await.as_ref(), Ok(expected), "at a standby");
            assert_eq!(text(client, &write).await, Ok(format!("{expected} {n}")), "at the primary");
        }
        assert_eq!(text(&plain, &read).await.as_ref(), Ok(&usual));
    }
    // As somebody else, also where nothing was written since.
    let (_, _, guest) = &clients[0];
    guest.batch_execute("SET ROLE guest").await.expect("role");
    assert_eq!(text(guest, "SELECT current_user::text").await, Ok("guest".to_owned()));
    assert_eq!(text(&plain, "SELECT current_user::text").await, Ok("app".to_owned()));
    assert_eq!(text(guest, &write).await, Err("42501".to_owned()));
    // As asyncpg's pool releases it.
    for (_, _, client) in &clients {
        client
            .batch_execute("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL; RESET ROLE")
            .await
            .expect("reset");
        assert_eq!(text(client, &read).await.as_ref(), Ok(&usual));
    }
    let (_, metrics) = cluster.http("GET", "/metrics").expect("metrics");
    assert!(!metrics.contains("bellwether_pins_total{"), "{metrics}");
}

/// More open blocks than server connections: they wait for nobody as long as they have done nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_has_done_nothing_has_no_server() {
    let mut cluster = Cluster::start(Options::default());
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{mode: transaction, size: 1}").expect("the test's own YAML");
    });
    cluster.psql("CREATE TABLE t (a int)").expect("table");
    let mut clients = Vec::new();
    for _ in 0..5 {
        let (client, _) = client(&cluster).await;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("begin");
        clients.push(client);
    }
    for client in &clients {
        assert_eq!(text(client, "SHOW transaction_isolation").await, Ok("repeatable read".to_owned()));
        client.batch_execute("INSERT INTO t VALUES (1)").await.expect("insert");
        let failed = client.batch_execute("SELECT 1/0").await.map_err(|error| sqlstate(&error));
        assert_eq!(failed, Err("22012".to_owned()));
        let aborted = client.batch_execute("SELECT 1").await.map_err(|error| sqlstate(&error));
        assert_eq!(aborted, Err("25P02".to_owned()));
        client.batch_execute("ROLLBACK").await.expect("roll back");
        client.batch_execute("BEGIN").await.expect("begin");
        client.batch_execute("INSERT INTO t VALUES (2)").await.expect("insert");
        client.batch_execute("COMMIT").await.expect("commit");
        client.batch_execute("BEGIN").await.expect("begin");
    }
    assert_eq!(text(&clients[0], "SELECT count(*) || ' ' || sum(a) FROM t").await, Ok("5 10".to_owned()));
}

#[test]
fn pgbench_in_every_protocol() {
    let mut cluster = Cluster::start(Options::default());
    pgbench(&cluster, &["-i", "-q", "-s", "1"]);
    for mode in ["simple", "extended", "prepared"] {
        let report = pgbench(&cluster, &["-n", "-M", mode, "-c", "8", "-j", "2", "-t", "50"]);
        assert!(report.contains("processed: 400/400"), "{report}");
        let report = pgbench(&cluster, &["-n", "-S", "-M", mode, "-c", "8", "-j", "2", "-t", "200"]);
        assert!(report.contains("processed: 1600/1600"), "{report}");
    }
    let sums = "/* bellwether: primary */ SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), \
                (SELECT count(*) FROM pgbench_history)";
    assert_eq!(cluster.psql(sums), Ok("t|1200".to_owned()));

    // All of them name their statements alike, and mean something else by them.
    same_names_other_statements(&cluster);
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{mode: session}").expect("the test's own YAML");
    });
    same_names_other_statements(&cluster);
    let report = pgbench(&cluster, &["-n", "-M", "prepared", "-c", "8", "-j", "2", "-t", "50"]);
    assert!(report.contains("processed: 400/400"), "{report}");
}

/// pgbench calls the first statement of its first file alike in every process.
fn same_names_other_statements(cluster: &Cluster) {
    let running: Vec<_> = (1..=4)
        .map(|number| {
            let file = cluster.data().join(format!("own-{number}.sql"));
            let own = format!(
                "SELECT {number} AS mine \\gset\n\\if :mine <> {number}\nSELECT 1/0;\n\\endif\n\
                 BEGIN;\nSELECT {number} * 10 AS more \\gset\nCOMMIT;\n\\if :more <> {number}0\nSELECT 1/0;\n\\endif\n"
            );
            fs::write(&file, own).expect("script");
            let mut pgbench = cluster.program("pgbench");
            pgbench.args(["-n", "-M", "prepared", "-c", "3", "-t", "100", "-f"]).arg(&file);
            pgbench.arg(cluster.conninfo()).stdout(Stdio::piped()).stderr(Stdio::piped());
            pgbench.spawn().expect("pgbench runs")
        })
        .collect();
    for pgbench in running {
        let output = pgbench.wait_with_output().expect("pgbench ends");
        let report = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && report.contains("processed: 300/300"), "{report}{complaints}");
    }
}

/// Its report; it must not fail, nor may a transaction.
fn pgbench(cluster: &Cluster, arguments: &[&str]) -> String {
    let output =
        cluster.program("pgbench").args(arguments).arg(cluster.conninfo()).output().expect("pgbench runs");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {report}{complaints}");
    assert!(arguments.contains(&"-i") || report.contains("failed transactions: 0 "), "{report}{complaints}");
    report
}
