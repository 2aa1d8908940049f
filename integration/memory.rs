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

use crate::harness::{Authority, Cluster, Durability, Options};

const LIMIT: Duration = Duration::from_secs(60);

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
