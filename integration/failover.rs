//! The primary dies under load, three times in a row; nobody is lied to.

use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::ledger::{Answer, Entry, Ledger, audit, tokens};
use crate::harness::{Cluster, Options, Server, eventually, eventually_async, second_major};

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_under_load() {
    let options =
        Options { expected_warnings: &["the primary is dead and is not replaced"], ..Options::default() };
    let mut cluster = under_load(options, 3).await;
    three_were_enough(&mut cluster);
}

/// PostgreSQL 18. Its package has no pg_rewind: the old primary returns by a base backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_under_load_second_major() {
    let binaries = second_major();
    drop(under_load(Options { pg_bin: Some(binaries.bin()), ..Options::default() }, 1).await);
}

/// Whoever uses a standby loses it before it is promoted, and so cannot write there before writes open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_on_the_candidate_are_cut_before_it_is_promoted() {
    let mut cluster = Cluster::start(Options::default());
    let told = cluster.data().join("events.jsonl");
    let (url, posted) = webhook().await;
    cluster.reconfigure(|config| {
        let command = ["sh", "-c", &format!("cat >> {}", told.display())].map(serde_yaml::Value::from);
        config["events"] = serde_yaml::Mapping::from_iter([
            ("command".into(), command.to_vec().into()),
            ("webhook".into(), url.into()),
        ])
        .into();
    });
    cluster
        .psql(
            "CREATE TABLE early (who text); \
             CREATE FUNCTION write_early() RETURNS void LANGUAGE sql AS $$INSERT INTO early VALUES ('me')$$",
        )
        .unwrap();
    let candidate = cluster.standbys().remove(0);
    let there = "SELECT to_regprocedure('write_early()') IS NOT NULL";
    eventually("the candidate has the function", LIMIT, || {
        match cluster.psql_at(&cluster.direct_conninfo(&candidate, "app"), there) {
            Ok(answer) if answer.trim() == "t" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let port = candidate.port.to_string();
    let pinned = on_standby(&cluster, &port, "DECLARE kept CURSOR WITH HOLD FOR SELECT 1").await;
    let reading = on_standby(&cluster, &port, "BEGIN READ ONLY; SELECT 1").await;

    let order = format!("/api/v1/failover?to={}", candidate.name);
    assert_eq!(cluster.http("POST", &order).unwrap().0, 200);
    for (client, code) in [(&pinned, "57P01"), (&reading, "40001")] {
        let error = loop {
            // Each write is refused by the standby, or its session is gone.
            match client.batch_execute("SELECT write_early()").await {
                Ok(()) => panic!("a session wrote through a standby"),
                Err(error) if error.code().is_some_and(|code| code.code() == "25006") => {}
                Err(error) => break error,
            }
        };
        let told = error.code().map(|code| code.code().to_owned());
        // The last word may have come before the question, and then the question finds a closed connection.
        assert!(
            told.as_deref().is_none_or(|told| told == code || told == "25P02"),
            "{code} expected: {error:?}"
        );
    }
    cluster.await_steady();
    assert_eq!(cluster.primary().name, candidate.name);
    assert_eq!(cluster.psql("SELECT count(*) FROM early").unwrap().trim(), "0");
    let (_, metrics) = cluster.http("GET", "/metrics").unwrap();
    assert!(metrics.contains("bellwether_pins_cut_total{reason="), "{metrics}");
    let whole = |events: &str| {
        let has = |name: &str, of: &str| {
            let (name, of) = (format!(r#""event":"{name}""#), format!(r#"":"{of}""#));
            events.lines().any(|line| line.contains(&name) && line.contains(&of))
        };
        let new = candidate.name.as_str();
        // At its begin it is not known whom an election comes to.
        let all = [("election_begun", "F6"), ("role_changed", new), ("election_ended", new)];
        let all = all.iter().all(|(name, of)| has(name, of));
        if all { Ok(()) } else { Err(events.to_owned()) }
    };
    eventually("the events, by a command", LIMIT, || {
        whole(&std::fs::read_to_string(&told).unwrap_or_default())
    });
    eventually("the events, by a webhook", LIMIT, || whole(&posted.lock().expect("nobody panics")));
    queries_on_the_candidate_hold_no_promotion_up(&mut cluster).await;
}

/// Replay waits for them as long as they like.
async fn queries_on_the_candidate_hold_no_promotion_up(cluster: &mut Cluster) {
    let candidate = cluster.standbys().remove(0);
    let direct = cluster.direct_conninfo(&candidate, "app");
    for sql in ["ALTER SYSTEM SET max_standby_streaming_delay = -1", "SELECT pg_reload_conf()"] {
        cluster.psql_at(&direct, sql).expect("a superuser");
    }
    let (idle, connection) = tokio_postgres::connect(&direct, tokio_postgres::NoTls).await.expect("direct");
    tokio::spawn(connection);
    let (busy, connection) = tokio_postgres::connect(&direct, tokio_postgres::NoTls).await.expect("direct");
    tokio::spawn(connection);
    idle.batch_execute("BEGIN; SELECT FROM early").await.expect("a lock that replay needs");
    let busy = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(600) FROM pg_class").await });
    cluster.psql("TRUNCATE early").expect("the primary");
    eventually("replay waits", LIMIT, || {
        let waits = "SELECT wait_event_type FROM pg_stat_activity WHERE backend_type = 'startup'";
        match cluster.psql_at(&direct, waits) {
            Ok(answer) if answer.trim() == "Lock" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let order = format!("/api/v1/failover?to={}", candidate.name);
    assert_eq!(cluster.http("POST", &order).expect("an answer").0, 200);
    cluster.await_primary(&candidate);
    cluster.await_steady();
    let cancelled = busy.await.expect("a client").expect_err("it would run for hours");
    assert_eq!(cancelled.code().map(tokio_postgres::error::SqlState::code), Some("57014"), "{cancelled:?}");
    idle.batch_execute("SELECT 1").await.expect_err("its session was ended");
}

/// A server that takes everything that is posted: where, and what was.
async fn webhook() -> (String, Arc<Mutex<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let posted = Arc::new(Mutex::new(String::new()));
    let taken = posted.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let taken = taken.clone();
            tokio::spawn(async move {
                let mut request = String::new();
                // The body is one line behind an empty one; a connection may carry several.
                let mut chunk = [0; 4096];
                while let Ok(read) = stream.read(&mut chunk).await
                    && read > 0
                {
                    request += &String::from_utf8_lossy(&chunk[..read]);
                    if let Some((_, body)) = request.split_once("\r\n\r\n")
                        && body.ends_with('\n')
                    {
                        taken.lock().expect("nobody panics").push_str(body);
                        request.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    (url, posted)
}

/// A session that has the standby at `port`, by what it does first.
async fn on_standby(cluster: &Cluster, port: &str, first: &str) -> tokio_postgres::Client {
    // The others stay meanwhile, so that the standbys take turns.
    let mut others = Vec::new();
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let (client, connection) = tokio_postgres::connect(&cluster.conninfo(), tokio_postgres::NoTls)
            .await
            .expect("the endpoint answers");
        tokio::spawn(connection);
        client.batch_execute("SET bellwether.route = 'standby'").await.expect("the endpoint answers");
        // A standby that has just started may not be known yet.
        if client.batch_execute(first).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let at = client.simple_query("SELECT current_setting('port')").await.expect("the endpoint answers");
        let row = at.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        if row == Some(port) {
            return client;
        }
        others.push(client);
        // Each holds one of the pool's servers. If one standby only is known, the other needs a moment.
        if others.len() >= 8 {
            others.clear();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    panic!("no session came to the standby at {port}");
}

async fn under_load(options: Options, rounds: u32) -> Cluster {
    let mut cluster = Cluster::start(options);
    pgbench_init(&cluster);
    for round in 1..=rounds {
        one_round(&mut cluster, round).await;
    }
    cluster
}

/// The fourth primary that dies is not replaced: it comes back by itself.
fn three_were_enough(cluster: &mut Cluster) {
    let elections =
        |cluster: &Cluster| cluster.api("/api/v1/history").expect("history").as_array().map(Vec::len);
    let before = elections(cluster);
    let budget: serde_yaml::Value = serde_yaml::from_str("{failovers: 3, within: 1h}").expect("YAML");
    cluster.rewrite(|config| config["failover"]["budget"] = budget);
    assert_eq!(cluster.http("POST", "/api/v1/reload").expect("an answer").0, 200);
    let old = cluster.primary();
    cluster.signal(&old, Signal::SIGKILL);
    eventually("the warning", LIMIT, || {
        let log = cluster.log();
        let told = log.contains("3 automatic failovers within 1h are enough (failover.budget)");
        if told { Ok(()) } else { Err(log) }
    });
    // Before F7 the metrics say what they say behind it.
    eventually("the old primary is back", LIMIT, || {
        let log = cluster.log();
        let since = log.rsplit_once("rule=\"F7\"").map_or("", |(_, since)| since);
        let is_back = ["S6", "P3"].iter().any(|rule| since.contains(&format!("rule=\"{rule}\"")));
        if is_back { Ok(()) } else { Err(log) }
    });
    eventually("the metrics say so", LIMIT, || {
        let metrics = cluster.http("GET", "/metrics")?.1;
        let is_back = metrics.contains("bellwether_failover_mode{mode=\"automatic\"} 1");
        if is_back { Ok(()) } else { Err(metrics) }
    });
    cluster.await_steady();
    assert_eq!((cluster.primary().name, elections(cluster)), (old.name, before));
}

async fn one_round(cluster: &mut Cluster, round: u32) {
    let old = cluster.primary();
    let mut load = pgbench(cluster);
    let ledger = Ledger::start(&cluster.conninfo(), i64::from(round), 8).await;
    acknowledged_beyond(&ledger, 200).await;

    let killed_at = Instant::now();
    cluster.signal(&old, Signal::SIGKILL);
    let before = ledger.acknowledged();
    acknowledged_beyond(&ledger, before + 500).await;
    let new = cluster.primary();
    assert_ne!(new.name, old.name, "the dead primary is primary");

    cluster.await_steady();
    let returned_after = killed_at.elapsed();
    let entries = ledger.finish().await;
    let _ = load.kill();
    let _ = load.wait();

    let pause = writes_paused(&entries, killed_at);
    println!(
        "round {round}: {} -> {}: writes paused {pause:?}, {} back after {returned_after:?}",
        old.name, new.name, old.name
    );
    // Straight from the primary: another session's read through the endpoint may be as old as max_lag allows.
    let found = tokens(&cluster.direct_conninfo(&cluster.primary(), "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
    let broken: Vec<&Entry> = entries.iter().filter(|e| matches!(e.answer, Answer::Broken(_))).collect();
    assert!(broken.is_empty(), "clients lost their connection to the endpoint: {broken:?}");

    assert_equal_servers(cluster);
    let history = cluster.api("/api/v1/history").expect("history");
    let last = history.as_array().and_then(|all| all.last()).expect("an election").clone();
    assert_eq!(last["term"], round + 1, "{last}");
    assert_eq!(last["outcome"], "completed", "{last}");
    assert_eq!(last["lost_bytes"], 0, "{last}");
    assert_eq!(last["ailment"], "process_dead", "{last}");
}

/// The longest time without an acknowledgement to anybody, from the kill on.
fn writes_paused(entries: &[Entry], killed_at: Instant) -> Duration {
    let mut moments: Vec<Instant> = entries
        .iter()
        .filter(|e| e.answer == Answer::Acknowledged && e.at > killed_at)
        .map(|e| e.at)
        .collect();
    moments.push(killed_at);
    moments.sort();
    moments.windows(2).map(|pair| pair[1] - pair[0]).max().expect("writes flow again")
}

async fn acknowledged_beyond(ledger: &Ledger, goal: u64) {
    eventually_async("acknowledged tokens", LIMIT, || async {
        let now = ledger.acknowledged();
        if now > goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
    })
    .await;
}

/// All servers have replayed the same LSN on the same timeline and give the same dump there.
fn assert_equal_servers(cluster: &Cluster) {
    let primary = cluster.primary();
    let superuser = |server: &Server| cluster.direct_conninfo(server, "app");
    let at = |server: &Server, sql: &str| cluster.psql_at(&superuser(server), sql);
    let dump = |server: &Server| {
        if cluster.is_of_the_distribution() { pg_dump(cluster, server) } else { digests(cluster, server) }
    };
    // Killed clients leave COMMITs behind.
    let open = "SELECT count(*) FROM pg_stat_activity \
                WHERE usename = 'app' AND (state <> 'idle' OR backend_xid IS NOT NULL)";
    eventually("no transaction is left", LIMIT, || {
        let left = at(&primary, open)?;
        if left == "0" { Ok(()) } else { Err(left) }
    });
    let truth = dump(&primary);
    let end = at(&primary, "SELECT pg_current_wal_flush_lsn()").expect("primary's end");
    for standby in cluster.standbys() {
        eventually("replay", LIMIT, || {
            let behind = at(&standby, &format!("SELECT pg_last_wal_replay_lsn() < '{end}'"))?;
            if behind == "f" { Ok(()) } else { Err(format!("{} is before {end}", standby.name)) }
        });
        assert!(truth == dump(&standby), "{} differs from {}", standby.name, primary.name);
    }
    let timelines: Vec<_> = cluster.api("/api/v1/cluster").expect("state")["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .map(|node| node["timeline"].clone())
        .collect();
    assert!(timelines.windows(2).all(|pair| pair[0] == pair[1]), "timelines differ: {timelines:?}");
}

fn pg_dump(cluster: &Cluster, server: &Server) -> String {
    let conninfo = cluster.direct_conninfo(server, "app");
    let output = cluster.program("pg_dump").arg("-d").arg(conninfo).output().expect("pg_dump");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Newer minors put a random key into \restrict lines.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let keys = |line: &&str| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
    text.lines().filter(|line| !keys(line)).collect::<Vec<_>>().join("\n")
}

/// Every table's row count and a sum over its rows' hashes: pg_dump refuses servers newer than itself.
fn digests(cluster: &Cluster, server: &Server) -> String {
    let conninfo = cluster.direct_conninfo(server, "app");
    let queries = "SELECT format('SELECT %L, count(*), sum(hashtextextended(t::text, 0)) FROM %s t', \
                   oid::regclass, oid::regclass) FROM pg_class \
                   WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname";
    let queries = cluster.psql_at(&conninfo, queries).expect("tables");
    let digest = |query: &str| cluster.psql_at(&conninfo, query).expect("digest");
    queries.lines().map(digest).collect::<Vec<_>>().join("\n")
}

fn pgbench_init(cluster: &Cluster) {
    let output = cluster
        .program("pgbench")
        .args(["-i", "-q", "-s", "5", &cluster.conninfo()])
        .output()
        .expect("pgbench");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// 16 clients, TPC-B and selects, until killed. Those whose COMMIT was in doubt give up; the others retry.
fn pgbench(cluster: &Cluster) -> Child {
    cluster
        .program("pgbench")
        .args(["-n", "-c", "16", "-j", "2", "-T", "600", "--max-tries=1000"])
        .args(["-b", "tpcb-like@1", "-b", "select-only@4", &cluster.conninfo()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench")
}
