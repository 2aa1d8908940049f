//! What clients cost the instance in memory: those who are idle, and those who move values of any size, or do not
//! take theirs. Memory is the instance's own, from `/proc`; the clients live in this process.

use std::fs;
use std::time::Duration;

use bellwether::net::{self, Backend, Credentials, ForServers, ServerTlsMode, Target, TlsForServers};
use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::harness::{Authority, Cluster, Durability, Options, eventually_async};

const LIMIT: Duration = Duration::from_secs(120);

const CLIENTS: u64 = 10_000;
/// What all of them may cost, without TLS.
const AT_MOST: u64 = 60 << 20;
/// Logins at a time.
const AT_ONCE: usize = 64;

/// Of the instance, in bytes: `VmRSS` is what is resident now, `VmHWM` the most since [`forget_peak`].
fn memory(cluster: &Cluster, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.bellwether_pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).expect("a figure");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

fn target(cluster: &Cluster, tls: &TlsForServers) -> Target {
    Target {
        address: format!("127.0.0.1:{}", cluster.port).parse().expect("an address"),
        user: "app".into(),
        database: "app".into(),
        credentials: Credentials::Password("demo".into()),
        tls: tls.clone(),
        parameters: vec![("application_name".to_owned(), "idle".to_owned())],
    }
}

/// Logs in and runs one statement, as drivers do: prepared without a name, with a parameter.
async fn client(target: &Target) -> Backend {
    let mut backend = net::dial(target, LIMIT).await.expect("a login");
    let mut unit = BytesMut::new();
    frontend::parse("", "SELECT $1::int AS n", [], &mut unit).expect("a Parse");
    let put = |value: &str, out: &mut BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(postgres_protocol::IsNull::No)
    };
    let bound = frontend::bind("", "", [], ["7"], put, [], &mut unit);
    assert!(bound.is_ok(), "a Bind");
    frontend::describe(b'P', "", &mut unit).expect("a Describe");
    frontend::execute("", 0, &mut unit).expect("an Execute");
    frontend::sync(&mut unit);
    backend.stream.write_all(&unit).await.expect("a statement");
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"Z\0\0\0\x05I") {
        assert_ne!(backend.stream.read_buf(&mut answer).await.expect("an answer"), 0);
    }
    backend
}

/// What [`CLIENTS`] of them cost, after the first, which opens the server connection.
async fn cost_of_idle_clients(cluster: &Cluster, tls: &TlsForServers) -> u64 {
    let target = target(cluster, tls);
    let _first = client(&target).await;
    let before = memory(cluster, "VmRSS");
    let (mut joining, mut clients) = (JoinSet::new(), vec![]);
    for _ in 0..CLIENTS {
        if joining.len() == AT_ONCE {
            clients.extend(joining.join_next().await.map(|joined| joined.expect("no panic")));
        }
        let target = target.clone();
        joining.spawn(async move { client(&target).await });
    }
    clients.extend(joining.join_all().await);
    assert_eq!(clients.len() as u64, CLIENTS);
    memory(cluster, "VmRSS").saturating_sub(before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_clients_take_little_memory() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("descriptors for the clients");
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    let authority = Authority::new(cluster.data().join("tls"));
    authority.sign(&authority.dir, "server", "server");
    let (certificate, key) = (authority.file("server.crt"), authority.file("server.key"));
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{size: 20, max_clients: 10100}").expect("YAML");
        let tls = format!("{{cert_file: {certificate}, key_file: {key}, client: allow}}");
        config["tls"] = serde_yaml::from_str(&tls).expect("YAML");
    });
    let plain = cost_of_idle_clients(&cluster, &TlsForServers::default()).await;
    // Another process, which has not seen the first clients.
    cluster.reconfigure(|_| {});
    let settings = ForServers { mode: ServerTlsMode::Require, ..ForServers::default() };
    let encrypted = cost_of_idle_clients(&cluster, &TlsForServers::load(&settings).expect("TLS")).await;
    println!("{CLIENTS} idle clients: {}, with TLS {}", megabytes(plain), megabytes(encrypted));
    assert!(plain <= AT_MOST, "{CLIENTS} idle clients take {}", megabytes(plain));
}

/// Of a large value, in bytes.
const LARGE: usize = 200 << 20;
/// What the instance may need more while it passes.
const FOR_LARGE: u64 = 32 << 20;

/// From here on `VmHWM` is the most that was resident.
fn forget_peak(cluster: &Cluster) {
    fs::write(format!("/proc/{}/clear_refs", cluster.bellwether_pid()), "5").expect("clear_refs");
}

async fn connect(cluster: &Cluster) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&cluster.conninfo(), tokio_postgres::NoTls).await.expect("a login");
    tokio::spawn(connection);
    client
}

/// Runs `passage` and sees to it that little of what passes is held.
async fn costs_little(cluster: &Cluster, what: &str, passage: impl Future<Output = ()>) {
    forget_peak(cluster);
    let before = memory(cluster, "VmRSS");
    passage.await;
    let more = memory(cluster, "VmHWM").saturating_sub(before);
    println!("{what}: {} more", megabytes(more));
    assert!(more <= FOR_LARGE, "{what}: {} more", megabytes(more));
}

/// The length of the only value of a simple query's answer.
async fn length_of(client: &tokio_postgres::Client, sql: &str) -> usize {
    let answer = client.simple_query(sql).await.expect("an answer");
    let row = answer.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::len),
        _ => None,
    });
    row.expect("a row")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_pass_in_pieces() {
    let cluster = Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    let client = connect(&cluster).await;
    client.batch_execute("CREATE TABLE large (v text)").await.expect("a table");
    let large = "x".repeat(LARGE);

    costs_little(&cluster, "up, simple", async {
        let client = connect(&cluster).await;
        assert_eq!(
            length_of(&client, &format!("SELECT repeat('y', length('{large}') / 1024)")).await,
            LARGE / 1024
        );
    })
    .await;
    costs_little(&cluster, "down, simple", async {
        assert_eq!(length_of(&client, &format!("SELECT repeat('x', {LARGE})")).await, LARGE);
    })
    .await;
    costs_little(&cluster, "up, extended", async {
        let row = client.query_one("SELECT length($1::text)", &[&large]).await.expect("an answer");
        assert_eq!(usize::try_from(row.get::<_, i32>(0)), Ok(LARGE));
    })
    .await;
    costs_little(&cluster, "down, extended", async {
        let count = i32::try_from(LARGE).expect("below 2 GB");
        let row = client.query_one("SELECT repeat('x', $1)", &[&count]).await.expect("an answer");
        assert_eq!(row.get::<_, &str>(0).len(), LARGE);
    })
    .await;
    let file = cluster.data().join("large");
    fs::write(&file, &large).expect("a file");
    costs_little(&cluster, "COPY in", async {
        let copy = format!("\\copy large FROM '{}'", file.display());
        cluster.psql(&copy).expect("COPY");
    })
    .await;
    costs_little(&cluster, "COPY out", async {
        assert_eq!(cluster.psql("COPY large TO STDOUT").expect("COPY").len(), LARGE);
    })
    .await;
}

/// How many clients do not read, and what each of them may cost: two buffers of 128 KiB, and their places.
const SLOW: u64 = 16;
const FOR_ONE: u64 = 512 << 10;
/// What each of them is sent, in rows of a megabyte: more than all sockets on the way take.
const ROWS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_costs_buffers_only() {
    let cluster = Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    let watcher = connect(&cluster).await;
    // What is needed once, the pool's connections and the allocator's own, is there after a first round.
    drop(clients_that_do_not_read(&cluster, &watcher).await);
    await_writers(&watcher, 0).await;
    forget_peak(&cluster);
    let before = memory(&cluster, "VmRSS");
    let mut slow = clients_that_do_not_read(&cluster, &watcher).await;
    let more = memory(&cluster, "VmHWM").saturating_sub(before);
    println!("{SLOW} clients that do not read: {} more", megabytes(more));
    assert!(more <= SLOW * FOR_ONE, "{} more", megabytes(more));
    // And they get all of it once they do.
    let mut reader = slow.pop().expect("a client");
    let (mut read, mut end, mut piece) = (0, vec![], vec![0; 1 << 16]);
    while !end.ends_with(b"Z\0\0\0\x05I") {
        let count = reader.stream.read(&mut piece).await.expect("more");
        assert_ne!(count, 0, "the end after {read} bytes");
        read += count;
        end.extend_from_slice(&piece[..count]);
        end.drain(..end.len().saturating_sub(6));
    }
    assert!(read > ROWS << 20, "{read} bytes");
}

/// [`SLOW`] of them, when all their servers wait for them.
async fn clients_that_do_not_read(cluster: &Cluster, watcher: &tokio_postgres::Client) -> Vec<Backend> {
    let target = target(cluster, &TlsForServers::default());
    let mut query = BytesMut::new();
    let rows = format!("SELECT repeat('x', 1 << 20) FROM generate_series(1, {ROWS})");
    frontend::query(&rows, &mut query).expect("a Query");
    let mut clients = vec![];
    for _ in 0..SLOW {
        let mut client = self::client(&target).await;
        client.stream.write_all(&query).await.expect("a statement");
        clients.push(client);
    }
    await_writers(watcher, SLOW).await;
    clients
}

async fn await_writers(watcher: &tokio_postgres::Client, expected: u64) {
    eventually_async("servers that wait for their clients", LIMIT, async || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND usename = 'app'";
        let row = watcher.query_one(waiting, &[]).await.map_err(|error| error.to_string())?;
        let count: i64 = row.get(0);
        if u64::try_from(count) == Ok(expected) { Ok(()) } else { Err(format!("{count} of {expected}")) }
    })
    .await;
}
