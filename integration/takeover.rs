//! A new process takes the place of the one that runs, under load: nobody is refused, nobody is lied to, and there is
//! never a second relay under the name.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::archive::{
    archive_dir, archive_has_no_hole, await_archived, compare_with_servers, url_of, wal_of,
};
use crate::harness::ledger::{Answer, Entry, Ledger, audit, tokens};
use crate::harness::{Authority, Cluster, Options, Psql, eventually, eventually_async, set_mode};

const LIMIT: Duration = Duration::from_secs(120);

/// The demo's cluster with `bellwether run` in front of it.
fn cluster(drain: &str, expected_warnings: &'static [&'static str]) -> Cluster {
    changed_cluster(expected_warnings, |config, _| {
        config["shutdown"] = serde_yaml::from_str(drain).expect("the test's own YAML");
    })
}

fn changed_cluster(
    expected_warnings: &'static [&'static str],
    change: impl FnOnce(&mut serde_yaml::Value, &Path),
) -> Cluster {
    let mut cluster = Cluster::start(Options { expected_warnings, ..Options::default() });
    cluster.kill_bellwether();
    let archive = archive_dir(&cluster);
    cluster.rewrite(|config| change(config, &archive));
    cluster.run_bellwether(None);
    cluster.await_steady();
    cluster
}

fn term(cluster: &Cluster) -> Value {
    cluster.api("/api/v1/cluster").expect("state")["directive"]["term"].clone()
}

/// By the new process; then everything is as it was before.
fn took_over(cluster: &mut Cluster, times: usize) {
    eventually("the takeover", LIMIT, || {
        let took = cluster.log().matches("took over").count();
        if took == times { Ok(()) } else { Err(format!("{took} times")) }
    });
    cluster.await_steady();
}

async fn connect(cluster: &Cluster) -> Client {
    let (client, connection) = tokio_postgres::connect(&cluster.conninfo(), NoTls).await.expect("connect");
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

/// Something that goes on beside the takeovers until it is asked what it has met.
struct Watcher {
    stop: Arc<AtomicBool>,
    /// How often it has gone well.
    times: Arc<AtomicU64>,
    complaints: JoinHandle<Vec<String>>,
}

impl Watcher {
    /// What it has met, once it has gone well more than `enough` times.
    async fn finish(self, enough: u64) -> Vec<String> {
        eventually_async("it goes on", LIMIT, || async {
            let times = self.times.load(Ordering::Relaxed);
            if times > enough || self.complaints.is_finished() {
                Ok(())
            } else {
                Err(format!("{times} times"))
            }
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        self.complaints.await.expect("no panic")
    }
}

/// Connects, asks something, leaves, again and again.
fn newcomers(conninfo: String) -> Watcher {
    let (stop, times) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, served) = (Arc::clone(&stop), Arc::clone(&times));
    let complaints = tokio::spawn(async move {
        let mut complaints = vec![];
        while !stopped.load(Ordering::Relaxed) {
            let visit = async {
                let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
                tokio::spawn(connection);
                client.batch_execute("SELECT 1").await
            };
            match visit.await {
                Ok(()) => _ = served.fetch_add(1, Ordering::Relaxed),
                Err(error) => complaints.push(format!("{error}: {:?}", std::error::Error::source(&error))),
            }
        }
        complaints
    });
    Watcher { stop, times, complaints }
}

/// Looks at the primary's walsenders all the time: no name of ours twice.
fn walsenders(conninfo: String) -> Watcher {
    let (stop, times) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, looks) = (Arc::clone(&stop), Arc::clone(&times));
    let twice = "SELECT application_name FROM pg_stat_replication \
                 WHERE application_name LIKE 'bellwether%' GROUP BY 1 HAVING count(*) > 1";
    let complaints = tokio::spawn(async move {
        let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("connect");
        tokio::spawn(connection);
        let mut complaints = vec![];
        while !stopped.load(Ordering::Relaxed) {
            for row in client.query(twice, &[]).await.expect("the primary answers") {
                complaints.push(format!("two of {}", row.get::<_, String>(0)));
            }
            looks.fetch_add(1, Ordering::Relaxed);
        }
        complaints
    });
    Watcher { stop, times, complaints }
}

/// A new connection for each transaction, for `seconds`.
fn pgbench(cluster: &Cluster, seconds: u32) -> Child {
    cluster
        .program("pgbench")
        .args(["-n", "-C", "-c", "4", "-T", &seconds.to_string(), &cluster.conninfo()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench")
}

/// Whose connection ended with the old process was told so between two transactions: nothing of it has happened.
fn only_ended_in_order(entries: &[Entry], found: &std::collections::HashMap<i64, i64>) {
    for entry in entries {
        match &entry.answer {
            Answer::Acknowledged => {}
            Answer::Refused(why) if why.starts_with("57P01") => {}
            // The client library has read the 57P01 before it sent anything, and says that the connection is closed.
            Answer::Broken(why) if why == "connection closed" => {
                assert!(!found.contains_key(&entry.token), "amid a transaction: {entry:?}");
            }
            _ => panic!("{entry:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn again_and_again_under_load() {
    let mut cluster = changed_cluster(&[], |config, archive| {
        config["shutdown"] =
            serde_yaml::from_str("{drain: 2s, transactions: 5min}").expect("the test's own YAML");
        config["wal"]["archive"]["url"] = url_of(archive).into();
        config["wal"]["archive"]["partial_interval"] = "100ms".into();
    });
    let direct = cluster.direct_conninfo(&cluster.primary(), "app");
    let init = cluster.program("pgbench").args(["-i", "-q", &cluster.conninfo()]).output().expect("pgbench");
    assert!(init.status.success());
    let term_before = term(&cluster);
    let ledger = Ledger::start(&cluster.conninfo(), 1, 4).await;
    let newcomers = newcomers(cluster.conninfo());
    let walsenders = walsenders(direct.clone());
    let bench = pgbench(&cluster, 20);
    for round in 1..=3 {
        acknowledged_beyond(&ledger, ledger.acknowledged() + 50).await;
        // Transactions that are open when it happens come to their end.
        let long = connect(&cluster).await;
        let token = 1_000_000 + round;
        long.batch_execute(&format!("BEGIN; INSERT INTO tokens VALUES ({token})")).await.expect("begun");
        let former = cluster.run_bellwether(Some("--takeover")).expect("one was there");
        took_over(&mut cluster, round);
        long.batch_execute("COMMIT").await.expect("committed");
        assert_eq!(term(&cluster), term_before);
        let ended = tokio::task::spawn_blocking(move || former.ended(LIMIT)).await.expect("no panic");
        assert!(ended.success(), "{ended}");
    }
    let bench =
        tokio::task::spawn_blocking(|| bench.wait_with_output()).await.expect("no panic").expect("pgbench");
    let complaint = String::from_utf8_lossy(&bench.stderr);
    let said = String::from_utf8_lossy(&bench.stdout);
    assert!(bench.status.success() && !complaint.contains("error"), "{complaint}");
    assert!(said.contains("number of failed transactions: 0"), "{said}");
    assert_eq!(newcomers.finish(100).await, Vec::<String>::new());
    assert_eq!(walsenders.finish(100).await, Vec::<String>::new());

    let entries = ledger.finish().await;
    let found = tokens(&direct).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
    only_ended_in_order(&entries, &found);
    for round in 1..=3 {
        assert_eq!(found.get(&(1_000_000 + round)), Some(&1), "what was open in round {round}");
    }
    assert_eq!(cluster.log().matches("sessions seen off").count(), 3);
    assert_eq!(cluster.metric("bellwether_draining_clients"), Some(0.0));
    let ended = cluster.metric("bellwether_drained_clients_total{how=\"ended\"}").expect("a metric");
    assert!(ended >= 1.0, "the ledger's clients do not leave by themselves");
    cluster.await_steady();
    let primary = cluster.primary();
    assert!(crate::harness::wal::compare_with_primary(&cluster, &primary) > 0);
    whoever_archived_archived_all(&cluster);
}

/// Each process has gone on where the one before it was.
fn whoever_archived_archived_all(cluster: &Cluster) {
    cluster
        .psql_at(&cluster.direct_conninfo(&cluster.primary(), "app"), "SELECT pg_switch_wal()")
        .expect("a switch");
    await_archived(cluster);
    assert!(compare_with_servers(cluster, &wal_of(cluster)) > 0);
    archive_has_no_hole(cluster);
    for reason in ["differs", "corrupt", "foreign", "storage"] {
        let errors = cluster.metric(&format!("bellwether_archive_errors_total{{reason=\"{reason}\"}}"));
        assert_eq!(errors.unwrap_or_default(), 0.0, "{reason}");
    }
}

/// What sessions can still do in the old process, and what the new one's fence says of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_while_the_old_process_drains() {
    // Longer than all that follows: the old process leaves when the last of its sessions does.
    let mut cluster = cluster("{drain: 10min, transactions: 2s}", &[]);
    let ledger = Ledger::start(&cluster.conninfo(), 1, 4).await;
    let stays = connect(&cluster).await;
    stays.batch_execute("SELECT 1").await.expect("served");
    let busy = connect(&cluster).await;
    let cancel = busy.cancel_token();
    let sleeping = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(120)").await });
    acknowledged_beyond(&ledger, 50).await;

    let mut former = cluster.run_bellwether(Some("--takeover")).expect("one was there");
    took_over(&mut cluster, 1);
    // The request comes to the new process, the session is in the old one.
    cancel.cancel_query(NoTls).await.expect("asked");
    let told = tokio::time::timeout(LIMIT, sleeping).await.expect("in time").expect("no panic");
    let told = told.expect_err("it was cancelled");
    assert_eq!(told.code().map(tokio_postgres::error::SqlState::code), Some("57014"), "{told}");
    // Nobody else may take over meanwhile.
    let term_before = term(&cluster);

    let first = cluster.primary();
    let goal = ledger.acknowledged() + 100;
    cluster.signal(&first, Signal::SIGKILL);
    eventually("another primary", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved =
            state["directive"]["writes"]["state"] == "open" && state["directive"]["term"] != term_before;
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    assert!(former.runs(), "its sessions were there");
    // The same connection, the same old process, the new primary.
    let row = stays.query_one("SELECT inet_server_port()", &[]).await.expect("served on");
    assert_eq!(row.get::<_, i32>(0), i32::from(cluster.primary().port), "where writes go");
    acknowledged_beyond(&ledger, goal).await;
    let entries = ledger.finish().await;
    drop(stays);
    let ended = tokio::task::spawn_blocking(move || former.ended(LIMIT)).await.expect("no panic");
    assert!(ended.success(), "{ended}");
    cluster.await_steady();
    let found = tokens(&cluster.direct_conninfo(&cluster.primary(), "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
    let broken: Vec<&Entry> = entries.iter().filter(|e| matches!(e.answer, Answer::Broken(_))).collect();
    assert!(broken.is_empty(), "{broken:?}");
    let history = cluster.api("/api/v1/history").expect("history");
    let last = history.as_array().and_then(|all| all.last()).expect("an election").clone();
    assert_eq!((&last["outcome"], &last["lost_bytes"]), (&json!("completed"), &json!(0)), "{last}");
}

/// One of the two is not there any more, or does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_of_the_two_is_lost_nobody_writes_where_nobody_may() {
    let mut cluster = cluster("{drain: 60s}", &["the old process did not obey and was killed"]);
    let term_before = term(&cluster);
    let (idle, writing) = (connect(&cluster).await, connect(&cluster).await);
    writing
        .batch_execute("CREATE TABLE tokens (token bigint); BEGIN; INSERT INTO tokens VALUES (1)")
        .await
        .expect("begun");
    let former = cluster.run_bellwether(Some("--takeover")).expect("one was there");
    took_over(&mut cluster, 1);
    idle.batch_execute("SELECT 1").await.expect("it is served on");
    cluster.kill_bellwether();
    // Nobody rules its sessions any more: they end, and so does it, before a third process may start.
    let ended = tokio::task::spawn_blocking(move || former.ended(LIMIT)).await.expect("no panic");
    assert!(ended.success(), "{ended}");
    for client in [&idle, &writing] {
        assert!(client.batch_execute("COMMIT").await.is_err(), "there is nobody to commit");
    }
    cluster.run_bellwether(None);
    cluster.await_steady();
    assert_eq!(term(&cluster), term_before);
    // DDL and INSERT were in one implicit transaction before BEGIN made it a block.
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_class WHERE relname = 'tokens'").as_deref(), Ok("0"));

    // The old process hangs, a session of it in a transaction, when its primary is lost.
    let hangs = connect(&cluster).await;
    hangs.batch_execute("BEGIN; SELECT txid_current()").await.expect("begun");
    let former = cluster.run_bellwether(Some("--takeover")).expect("one was there");
    took_over(&mut cluster, 2);
    former.signal(Signal::SIGSTOP);
    cluster.signal(&cluster.primary(), Signal::SIGKILL);
    eventually("another primary", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved =
            state["directive"]["writes"]["state"] == "open" && state["directive"]["term"] != term_before;
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    let ended = tokio::task::spawn_blocking(move || former.ended(LIMIT)).await.expect("no panic");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(Signal::SIGKILL as i32));
    assert!(hangs.batch_execute("COMMIT").await.is_err(), "its process is gone");
    cluster.await_steady();
}

/// TLS, a unix socket, and logical replication: listeners go over as they are, sessions end in order.
#[test]
fn whatever_is_listened_on_and_whoever_is_served() {
    let mut cluster = Cluster::start(Options { nodes: 1, ..Options::default() });
    cluster.interrupt_bellwether();
    let conf = cluster.servers()[0].data_dir.join("postgresql.conf");
    let mut conf = fs::File::options().append(true).open(conf).expect("postgresql.conf");
    conf.write_all(b"wal_level = logical\n").expect("write");
    let authority = Authority::new(cluster.data().join("tls"));
    authority.sign(&authority.dir, "server", "server");
    let directory = tempfile::tempdir().expect("a directory");
    set_mode(directory.path(), 0o755);
    let at = directory.path().display();
    cluster.rewrite(|config| {
        let yaml = |text: &str| serde_yaml::from_str::<serde_yaml::Value>(text).expect("the test's own YAML");
        let (certificate, key) = (authority.file("server.crt"), authority.file("server.key"));
        config["tls"] = yaml(&format!("{{cert_file: {certificate}, key_file: {key}, client: require}}"));
        config["shutdown"] = yaml("{drain: 60s, transactions: 5s}");
        let listen = config["listen"].as_sequence_mut().expect("listeners");
        listen.push(yaml(&format!("{{unix: {at}, port: 7000}}")));
    });
    cluster.run_bellwether(None);
    cluster.await_steady();

    let secure =
        format!("{} sslmode=verify-full sslrootcert={}", cluster.conninfo(), authority.file("ca.crt"));
    let local = format!("host={at} port=7000 user=app password=demo dbname=app");
    let lock = || fs::read_to_string(directory.path().join(".s.PGSQL.7000.lock")).expect("a lock file");
    cluster.psql_at(&secure, "CREATE TABLE t (n int PRIMARY KEY)").expect("over TLS");
    // It waits for the transactions that are open.
    let created = recvlogical(&cluster, &["--create-slot", "-P", "test_decoding"]).wait_with_output();
    assert!(created.expect("it ends").status.success());
    let (mut over_tls, mut by_socket) = (Psql::open(&cluster, &secure), Psql::open(&cluster, &local));
    over_tls.ask("BEGIN; INSERT INTO t VALUES (1)");
    by_socket.ask("SET work_mem = '3MB'");
    let changes = cluster.data().join("changes");
    let stream = |cluster: &Cluster| {
        let file = changes.to_str().expect("UTF-8");
        recvlogical(
            cluster,
            &["--start", "-f", file, "-o", "skip-empty-xacts=1", "--fsync-interval=0", "-s", "1"],
        )
    };
    let streams = |number: u32| {
        eventually("the change", LIMIT, || {
            let text = fs::read_to_string(&changes).unwrap_or_default();
            if text.contains(&format!("INSERT: n[integer]:{number}")) { Ok(()) } else { Err(text) }
        });
    };
    let replicating = stream(&cluster);
    cluster.psql_at(&local, "INSERT INTO t VALUES (2)").expect("by the socket");
    streams(2);

    let pid = cluster.bellwether_pid();
    assert!(lock().starts_with(&format!("{pid}\n")));
    let former = cluster.run_bellwether(Some("--takeover")).expect("one was there");
    took_over(&mut cluster, 1);
    // The old process serves who is there, and the new one tells how many; who comes is the new one's.
    eventually("what is left of the old process", LIMIT, || {
        let clients = cluster.api("/api/v1/cluster")?["clients"].clone();
        if clients["draining"] == 3 { Ok(()) } else { Err(clients.to_string()) }
    });
    assert_eq!(cluster.psql_at(&secure, "SELECT ssl FROM pg_stat_ssl LIMIT 0").as_deref(), Ok(""));
    let plain = cluster.psql_at(&format!("{} sslmode=disable", cluster.conninfo()), "SELECT 1");
    assert!(plain.expect_err("TLS is required").contains("encryption"));
    cluster.psql_at(&local, "INSERT INTO t VALUES (3)").expect("by the socket");
    assert!(lock().starts_with(&format!("{}\n", cluster.bellwether_pid())), "{}", lock());
    assert_eq!(by_socket.ask("SHOW work_mem"), "3MB");
    assert_eq!(over_tls.ask("INSERT INTO t VALUES (4); COMMIT; SELECT count(*) FROM t"), "4");
    streams(4);

    // Nobody waits any longer.
    former.signal(Signal::SIGTERM);
    let output = replicating.wait_with_output().expect("it ends");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("terminating connection due to administrator command"), "{complaint}");
    assert!(former.ended(LIMIT).success());
    // Its walsender has to notice, too.
    let direct = cluster.direct_conninfo(&cluster.primary(), "app");
    eventually("the slot is free", LIMIT, || {
        let active =
            cluster.psql_at(&direct, "SELECT active FROM pg_replication_slots WHERE slot_name = 's'")?;
        if active == "f" { Ok(()) } else { Err(active) }
    });
    let mut replicating = stream(&cluster);
    cluster.psql_at(&secure, "INSERT INTO t VALUES (5)").expect("over TLS");
    streams(5);
    replicating.kill().expect("kill");
    replicating.wait().expect("wait");
    assert_eq!(cluster.psql_at(&local, "SELECT count(*) FROM t").as_deref(), Ok("5"));
    cluster.await_steady();
}

fn recvlogical(cluster: &Cluster, options: &[&str]) -> Child {
    let (port, password) = (cluster.port, cluster.superuser_password());
    let conninfo =
        format!("host=127.0.0.1 port={port} user=bellwether password={password} dbname=app sslmode=require");
    let mut program = cluster.program("pg_recvlogical");
    program.args(["-d", &conninfo, "--slot=s", "--no-loop"]).args(options);
    program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pg_recvlogical runs")
}

/// A new process as far as the old one can tell.
struct Pretender(UnixStream);

impl Pretender {
    fn new(cluster: &Cluster) -> Pretender {
        let config = cluster.config();
        let state = config["state"]["file"].as_str().expect("state.file");
        let stream = UnixStream::connect(format!("{state}.takeover")).expect("it can be asked");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        Pretender(stream)
    }

    fn say(&mut self, message: &Value) {
        let body = message.to_string();
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        self.0.write_all(&[&length[..], body.as_bytes()].concat()).expect("said");
    }

    fn ask(&mut self, cluster: &Cluster, instance: &str) {
        let config = cluster.config();
        let text = |value: &serde_yaml::Value| value.as_str().expect("text").to_owned();
        self.say(&json!({"ask": {
            "version": 6,
            "cluster": text(&config["cluster"]),
            "instance": instance,
            "state": text(&config["state"]["file"]),
            "wal": text(&config["wal"]["dir"]),
            "durability": text(&config["durability"]["mode"]),
        }}));
    }

    /// The descriptors that come beside it are closed unseen.
    fn hear(&mut self) -> Value {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a message");
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).expect("a message");
        serde_json::from_slice(&body).expect("JSON")
    }
}

/// Up to the last word the old process goes on, whatever becomes of the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_to_take_over_leaves_everything_as_it_was() {
    let mut cluster = cluster("{drain: 2s}", &[]);
    let direct = cluster.direct_conninfo(&cluster.primary(), "app");
    let term_before = term(&cluster);
    let instance = cluster.config()["instance"].as_str().expect("instance").to_owned();
    let ledger = Ledger::start(&cluster.conninfo(), 1, 4).await;
    let newcomers = newcomers(cluster.conninfo());
    acknowledged_beyond(&ledger, 20).await;

    // It never comes to asking: a configuration that cannot be used, one that is another's, a second instance.
    let broken = cluster.data().join("broken.yaml");
    fs::write(&broken, "cluster: [").expect("a file");
    assert_eq!(exit_code(cluster.spawn_run(&broken, Some("--takeover"))), Some(1));
    assert_eq!(exit_code(cluster.spawn_run(&cluster.data().join("bellwether.yaml"), None)), Some(1));
    let mut stranger = Pretender::new(&cluster);
    stranger.ask(&cluster, "another");
    assert_eq!(stranger.hear()["refused"]["again"], "never");
    assert!(!cluster.log().contains("WAL stream ended"), "nothing was closed for any of these");

    // It is gone at each of its steps.
    drop(Pretender::new(&cluster));
    let mut nonsense = Pretender::new(&cluster);
    nonsense.0.write_all(b"\xff\xff\xff\xff").expect("said");
    let mut asked = Pretender::new(&cluster);
    asked.ask(&cluster, &instance);
    drop(asked);
    goes_on(&mut cluster, &ledger).await;
    let mut yielded = Pretender::new(&cluster);
    yielded.ask(&cluster, &instance);
    assert!(yielded.hear()["yielded"]["sockets"].is_array());
    drop(yielded);
    goes_on(&mut cluster, &ledger).await;

    // It cannot open everything: somebody else has the port.
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("bound");
    let wanting = cluster.data().join("wanting.yaml");
    let mut config = cluster.config();
    let more = serde_yaml::from_str(&format!("{{address: '{taken}'}}")).expect("the test's own YAML");
    config["listen"].as_sequence_mut().expect("a list").push(more);
    fs::write(&wanting, serde_yaml::to_string(&config).expect("YAML")).expect("a file");
    assert_eq!(exit_code(cluster.spawn_run(&wanting, Some("--takeover"))), Some(1));
    goes_on(&mut cluster, &ledger).await;

    assert_eq!(term(&cluster), term_before);
    assert_eq!(newcomers.finish(20).await, Vec::<String>::new());
    let entries = ledger.finish().await;
    assert_eq!(audit(&entries, &tokens(&direct).await), Vec::<String>::new());
    assert!(entries.iter().all(|entry| entry.answer == Answer::Acknowledged), "somebody was disturbed");
    assert!(!cluster.log().contains("took over"));
    // And then somebody does.
    let former = cluster.run_bellwether(Some("--takeover")).expect("one was there");
    took_over(&mut cluster, 1);
    assert!(former.ended(LIMIT).success());
}

fn exit_code(mut process: Child) -> Option<i32> {
    eventually("its end", LIMIT, || process.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned()))
        .code()
}

/// The same process decides, accepts, receives and ships.
async fn goes_on(cluster: &mut Cluster, ledger: &Ledger) {
    cluster.await_steady();
    acknowledged_beyond(ledger, ledger.acknowledged() + 20).await;
}
