//! Several instances: one leads, all serve, and whoever goes, what was acknowledged stays.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::ledger::{Ledger, audit, tokens};
use crate::harness::{Authority, Instances, Options, Server, eventually};
use crate::rolling::start_times;

const LIMIT: Duration = Duration::from_secs(180);

fn await_writes(ledger: &Ledger) {
    let before = ledger.acknowledged();
    eventually("writes go on", LIMIT, || {
        let acknowledged = ledger.acknowledged();
        if acknowledged >= before + 20 { Ok(()) } else { Err(format!("{acknowledged} after {before}")) }
    });
}

/// Wherever they are given.
fn orders_reach_the_leader(instances: &Instances) {
    let other = (instances.await_leader() + 1) % instances.len();
    let run = |arguments: &[&str]| {
        let output = instances.command(other, arguments).output().expect("bellwether");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    assert_eq!(run(&["pause"]), (true, "automatic failover is paused\n".to_owned()));
    let (done, said) = run(&["switchover"]);
    assert!(!done && said.contains("409") && said.contains("resume first"), "{said}");
    let resumed = instances.cluster.psql_at(&instances.console_of(other), "FAILOVER RESUME");
    assert!(resumed.is_ok(), "{resumed:?}");
    eventually("the order is taken", LIMIT, || {
        let (done, said) = run(&["switchover"]);
        // What took over a moment ago may not be whole yet.
        assert!(done || said.contains("409"), "{said}");
        if done { Ok(()) } else { Err(said) }
    });
    let (done, said) = run(&["status"]);
    assert!(done && said.contains("\nleader  bw") && said.contains("s ago"), "{said}");
}

/// Each by the agent on its host, whoever leads.
fn all_servers_are_restarted(instances: &Instances) {
    let other = (instances.await_leader() + 1) % instances.len();
    let before = start_times(&instances.cluster);
    eventually("the order is taken", LIMIT, || {
        let output = instances.command(other, &["restart", "--rolling"]).output().expect("bellwether");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() {
            println!("{said}");
            return Ok(());
        }
        // What took over a moment ago may not be whole yet.
        assert!(said.contains("409"), "{said}");
        Err(said)
    });
    let after = start_times(&instances.cluster);
    assert!(before.iter().all(|(node, at)| after[node] > *at), "{before:?} {after:?}");
}

/// Of the one beside the primary, which needs another's word, by a process that hears nobody: it goes by what the others told
/// the one before it, and not for longer.
async fn a_takeover_cuts_nothing(instances: &mut Instances, primary: &Server) {
    for _ in 0..5 {
        if a_takeover_in_time_cuts_nothing(instances, primary).await {
            return;
        }
    }
    panic!("this machine is too slow: each time {VOUCH:?} were over before the commit");
}

/// How long an instance is vouched for from another's word on (`src/topology/members.rs`).
const VOUCH: Duration = Duration::from_secs(2);

/// Whether it was quick enough to show anything.
async fn a_takeover_in_time_cuts_nothing(instances: &mut Instances, primary: &Server) -> bool {
    let n = instances.beside(primary);
    let whole = instances.config(n);
    instances.rewrite(n, |config| {
        for peer in config["peers"].as_sequence_mut().expect("peers") {
            // Nobody listens there.
            peer["address"] = "127.0.0.1:1".into();
        }
    });
    let (client, connection) =
        tokio_postgres::connect(&instances.conninfo_of(n), tokio_postgres::NoTls).await.expect("connect");
    tokio::spawn(connection);
    client.batch_execute("BEGIN; CREATE TEMP TABLE open()").await.expect("begun");
    let began = Instant::now();
    let former = instances.take_over(n);
    let open = async {
        for _ in 0..10 {
            client.batch_execute("SELECT FROM open").await?;
        }
        client.batch_execute("COMMIT").await
    };
    let cut = open.await.err();
    // The word is as old as the last answer before.
    let in_time = began.elapsed() < VOUCH / 2;
    assert!(cut.is_none() || !in_time, "{cut:?}");
    eventually("it believes nobody any more", LIMIT, || {
        let state = instances.state(n)?;
        let primary = &state["directive"]["primary"];
        if primary.is_null() { Ok(()) } else { Err(state.to_string()) }
    });
    drop(client);
    tokio::task::block_in_place(|| former.await_end());

    instances.rewrite(n, |config| *config = whole);
    instances.kill(n);
    instances.spawn(n);
    instances.await_steady();
    cut.is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_the_others_go_on() {
    let mut instances = Instances::start(Options { silence: "5s", ..Options::default() });
    let primary = instances.await_steady();
    for n in 0..instances.len() {
        let written = instances
            .cluster
            .psql_at(&instances.conninfo_of(n), "CREATE TEMP TABLE t(); SELECT pg_is_in_recovery()");
        assert_eq!(written.as_deref(), Ok("f"), "every endpoint writes at the primary");
    }
    let names = instances
        .cluster
        .psql_at(&instances.cluster.direct_conninfo(&primary, "postgres"), "SHOW synchronous_standby_names");
    assert!(
        names.as_ref().is_ok_and(|names| names.starts_with("ANY 1 (") && names.contains("_t")),
        "{names:?}"
    );
    a_takeover_cuts_nothing(&mut instances, &primary).await;
    let ledger = Ledger::start(&instances.conninfo(), 1, 4).await;
    await_writes(&ledger);

    orders_reach_the_leader(&instances);
    instances.await_steady();
    all_servers_are_restarted(&instances);
    let primary = instances.await_steady();

    // The primary's process.
    instances.cluster.lose_machine(&primary);
    await_writes(&ledger);
    let second = instances.await_steady();
    assert_ne!(second.name, primary.name);

    // Who leads.
    let leader = instances.await_leader();
    instances.kill(leader);
    await_writes(&ledger);
    let next = instances.await_leader();
    assert_ne!(next, leader);
    instances.spawn(leader);
    instances.await_steady();

    // A whole host: the primary and the instance beside it stand still.
    let host = instances.beside(&second);
    instances.cluster.signal_machine(&second, Signal::SIGSTOP);
    instances.signal(host, Signal::SIGSTOP);
    // Whose connection is to that host waits for it.
    let elsewhere = Ledger::start(&instances.conninfo_without(host), 2, 2).await;
    await_writes(&elsewhere);
    instances.cluster.signal_machine(&second, Signal::SIGCONT);
    instances.signal(host, Signal::SIGCONT);
    let third = instances.await_steady();
    assert_ne!(third.name, second.name);
    // Who leads anew reads it first.
    let names = eventually("the history", LIMIT, || {
        let history = instances.history(instances.await_leader())?;
        let names = history.as_array().into_iter().flatten().map(|election| election["ailment"].as_str());
        let names: Vec<String> = names.flatten().map(str::to_owned).collect();
        if names.len() >= 2 { Ok(names) } else { Err(history.to_string()) }
    });
    assert_eq!(names, ["process_dead", "server_frozen"]);
    await_writes(&ledger);
    let mut entries = elsewhere.finish().await;

    // Without etcd everything goes on, and nobody is promoted.
    instances.etcd.kill(0);
    await_writes(&ledger);
    instances.cluster.lose_machine(&third);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let stays = ledger.acknowledged();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ledger.acknowledged(), stays, "nobody may be promoted while nobody can agree on it");
    instances.etcd.restart(0);
    await_writes(&ledger);
    let fourth = instances.await_steady();

    entries.extend(ledger.finish().await);
    let found = tokens(&instances.cluster.direct_conninfo(&fourth, "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
}

/// The relays that the primary's setting names.
fn await_acknowledgers(instances: &Instances, expected: &[&str]) {
    eventually(&format!("{expected:?} acknowledge"), LIMIT, || {
        let primary = instances.await_steady_without(&["pg1", "pg2"]);
        let direct = instances.cluster.direct_conninfo(&primary, "postgres");
        let names = instances.cluster.psql_at(&direct, "SHOW synchronous_standby_names")?;
        let beside = format!("bw{}", instances.beside(&primary) + 1);
        let named = |name: &str| names.contains(&format!("bellwether_{name}_t"));
        // The one beside the primary does not.
        let right = ["bw1", "bw2", "bw3"]
            .iter()
            .all(|name| named(name) == (expected.contains(name) && *name != beside));
        if right { Ok(()) } else { Err(names) }
    });
}

/// One more, then one less: by a takeover of each with another list, and nothing acknowledged is lost. The one that comes lets in
/// nobody without TLS, so that is what they speak to it.
#[tokio::test(flavor = "multi_thread")]
async fn instances_come_and_go() {
    let expected_warnings = &["another instance is not heard, and will not be by itself"];
    let mut instances = Instances::start(Options { nodes: 2, expected_warnings, ..Options::default() });
    for n in [0, 1] {
        instances.rewrite(n, |config| {
            config["shutdown"] = serde_yaml::from_str("{drain: 500ms, transactions: 60s}").expect("YAML");
        });
        instances.signal(n, Signal::SIGHUP);
    }
    let ledger = Ledger::start(&instances.conninfo(), 1, 4).await;
    await_writes(&ledger);
    let (client, connection) =
        tokio_postgres::connect(&instances.conninfo_of(0), tokio_postgres::NoTls).await.expect("connect");
    tokio::spawn(connection);
    client.batch_execute("BEGIN; CREATE TABLE t AS SELECT 1 AS n").await.expect("begun");

    let authority = Authority::new(instances.cluster.data().join("tls"));
    authority.sign(&authority.dir, "server", "server");
    let (certificate, key) = (authority.file("server.crt"), authority.file("server.key"));
    let tls = format!("{{cert_file: {certificate}, key_file: {key}, client: require}}");
    let new = instances.join(|config| config["tls"] = serde_yaml::from_str(&tls).expect("YAML"));
    instances.list(0, &[0, 1, new]);
    let mut formers = vec![instances.take_over(0)];
    eventually("they differ", LIMIT, || {
        let status = instances.command(0, &["status"]).output().expect("bellwether").stdout;
        let status = String::from_utf8_lossy(&status).into_owned();
        let differ = status.contains("bw2 counts other instances than this one: bw1, bw2\n");
        if differ { Ok(()) } else { Err(status) }
    });
    client.batch_execute("INSERT INTO t VALUES (2), (3); COMMIT").await.expect("it goes on");
    drop(client);
    instances.list(1, &[0, 1, new]);
    formers.push(instances.take_over(1));
    await_acknowledgers(&instances, &["bw1", "bw2", "bw3"]);
    for (n, metric) in [0, 1].into_iter().flat_map(|n| {
        ["bellwether_member_agrees{instance=\"bw3\"}", "bellwether_etcd_up"].map(|metric| (n, metric))
    }) {
        eventually(metric, LIMIT, || match instances.metric(n, metric) {
            Some(1.0) => Ok(()),
            other => Err(format!("{n}: {other:?}")),
        });
    }
    let plain = format!("{} sslmode=disable", instances.conninfo_of(new));
    assert!(instances.cluster.psql_at(&plain, "SELECT 1").is_err(), "nobody is let in without TLS");

    instances.stop(1);
    for n in [0, new] {
        instances.list(n, &[0, new]);
        formers.push(instances.take_over(n));
    }
    await_acknowledgers(&instances, &["bw1", "bw3"]);
    await_writes(&ledger);
    let report = instances.command(0, &["check"]).output().expect("bellwether").stdout;
    let report = String::from_utf8_lossy(&report).into_owned();
    for expected in [
        "the slot bellwether_bw2 is of no instance in this file, and keeps WAL. Mend: SELECT pg_drop_",
        "WARN state.etcd: there is one endpoint only",
    ] {
        assert!(report.contains(expected), "{expected}:\n{report}");
    }
    assert!(!report.contains("ERROR"), "{report}");

    let entries = ledger.finish().await;
    let primary = instances.await_steady_without(&["pg1", "pg2"]);
    let direct = instances.cluster.direct_conninfo(&primary, "app");
    assert_eq!(audit(&entries, &tokens(&direct).await), Vec::<String>::new());
    assert_eq!(instances.cluster.psql_at(&direct, "SELECT count(*) FROM t").as_deref(), Ok("3"));
}
