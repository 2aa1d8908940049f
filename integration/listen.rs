//! LISTEN in transaction mode: many clients, few servers, and nobody misses or mistakes a notification.

use std::collections::HashMap;
use std::time::Duration;

use bellwether::net::{Backend, Credentials, Target, TlsForServers, dial};
use bellwether::pg::protocol::frame::{HEADER_LEN, Header};
use bellwether::pg::protocol::frontend;
use bellwether::topology::Address;
use bytes::{Buf, BytesMut};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::NoTls;

use crate::harness::{Cluster, Durability, Options, eventually};

const LIMIT: Duration = Duration::from_secs(120);

/// Who notified, on which channel, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Heard {
    sender: u32,
    channel: String,
    payload: String,
}

/// A client that sees every message in its place.
struct Client {
    backend: Backend,
    heard: Vec<Heard>,
}

impl Client {
    async fn connect(cluster: &Cluster) -> Client {
        Client::connect_as(cluster, "app").await
    }

    async fn connect_as(cluster: &Cluster, user: &str) -> Client {
        let target = Target {
            address: Address { host: "127.0.0.1".to_owned(), port: cluster.port },
            user: user.into(),
            database: "app".into(),
            credentials: Credentials::Password("demo".into()),
            tls: TlsForServers::default(),
            parameters: vec![],
        };
        Client { backend: dial(&target, LIMIT).await.expect("a login"), heard: vec![] }
    }

    fn pid(&self) -> u32 {
        self.backend.pid
    }

    /// Until the ReadyForQuery; the SQLSTATE of an error.
    async fn run(&mut self, sql: &str) -> Result<(), String> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out);
        self.backend.stream.write_all(&out).await.map_err(|error| error.to_string())?;
        let mut failed = Ok(());
        loop {
            match self.message().await? {
                (b'Z', _) => return failed,
                (b'E', error) => failed = Err(error),
                _ => {}
            }
        }
    }

    /// The next message's tag; of an error the SQLSTATE. A notification is kept.
    async fn message(&mut self) -> Result<(u8, String), String> {
        let Backend { stream, received, .. } = &mut self.backend;
        let whole = async {
            loop {
                if let Ok(Some(header)) = Header::peek(received)
                    && received.len() >= header.total
                {
                    return Ok(header);
                }
                match stream.read_buf(received).await {
                    Ok(0) => return Err("closed".to_owned()),
                    Ok(_) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let header = tokio::time::timeout(LIMIT, whole).await.map_err(|_| "silence".to_owned())??;
        let mut message = received.split_to(header.total);
        message.advance(HEADER_LEN);
        if header.tag == b'A' {
            let sender = message.get_u32();
            let mut words =
                message[..].split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into());
            let (channel, payload) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            self.heard.push(Heard { sender, channel, payload });
        }
        let fields = String::from_utf8_lossy(&message).into_owned();
        let code = fields.split('\0').find_map(|field| field.strip_prefix('C')).unwrap_or_default();
        Ok((header.tag, code.to_owned()))
    }

    /// Until so many notifications have been heard in all.
    async fn hear(&mut self, count: usize) {
        while self.heard.len() < count {
            if let Err(why) = self.message().await {
                panic!("{why}, after {} of {count} notifications", self.heard.len());
            }
        }
    }

    fn payloads(&self) -> Vec<&str> {
        self.heard.iter().map(|heard| heard.payload.as_str()).collect()
    }

    /// The SQLSTATE of what it is told without having asked.
    async fn last_word(&mut self) -> String {
        loop {
            match self.message().await {
                Ok((b'E', code)) => return code,
                Ok(_) => {}
                Err(why) => return why,
            }
        }
    }
}

fn cluster(nodes: usize) -> Cluster {
    let mut cluster = Cluster::start(Options { nodes, durability: Durability::Async, ..Options::default() });
    cluster.reconfigure(|config| {
        config["pool"] = serde_yaml::from_str("{mode: transaction, size: 4}").expect("YAML");
    });
    cluster
}

async fn direct(cluster: &Cluster) -> tokio_postgres::Client {
    let conninfo = cluster.direct_conninfo(&cluster.primary(), "app");
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("a login");
    tokio::spawn(connection);
    client
}

fn pinned(cluster: &Cluster) -> f64 {
    cluster.metric("bellwether_pins_total{reason=\"listen\"}").unwrap_or(0.0)
}

/// Until a gauge, which is set about once a second, is `wanted`.
fn await_metric(cluster: &Cluster, name: &str, wanted: f64) {
    eventually(name, LIMIT, || match cluster.metric(name) {
        Some(value) if (value - wanted).abs() < 0.5 => Ok(()),
        other => Err(format!("{other:?}, not {wanted}")),
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_listen_over_few_servers() {
    const CLIENTS: usize = 40;
    const EACH: usize = 25;
    let cluster = cluster(1);
    let beside = direct(&cluster).await;
    let mut clients = vec![];
    for number in 0..CLIENTS {
        let mut client = Client::connect(&cluster).await;
        client.run(&format!("LISTEN own_{number}")).await.expect("LISTEN");
        client.run("BEGIN; LISTEN \"Everybody\"; LISTEN nobody; COMMIT").await.expect("LISTEN");
        client.run("UNLISTEN nobody").await.expect("UNLISTEN");
        // In effect when it is answered.
        beside
            .batch_execute(&format!("NOTIFY own_{number}, '{number}'; NOTIFY nobody"))
            .await
            .expect("NOTIFY");
        client.hear(1).await;
        assert_eq!(client.payloads(), [number.to_string()]);
        clients.push(client);
    }
    let node = cluster.primary().name;
    await_metric(&cluster, &format!("bellwether_servers{{node=\"{node}\",state=\"active\"}}"), 0.0);
    await_metric(&cluster, "bellwether_listeners", CLIENTS as f64);
    await_metric(&cluster, "bellwether_listen_channels", CLIENTS as f64 + 1.0);
    assert_eq!(pinned(&cluster).to_bits(), 0.0f64.to_bits());

    // All at once, beside senders that do not listen: each hears everything once, in the order of each sender,
    // and takes for its own what it has said itself, and nothing else.
    let talking = clients.into_iter().enumerate().map(|(number, mut client)| {
        tokio::spawn(async move {
            client.heard.clear();
            for nth in 0..EACH {
                let notify = match nth % 3 {
                    0 => format!("NOTIFY \"Everybody\", '{number} {nth}'"),
                    1 => format!("BEGIN; SELECT pg_notify('Everybody', '{number} {nth}'); COMMIT"),
                    _ => format!("SELECT 1 FROM (SELECT pg_notify('Everybody', '{number} {nth}')) n"),
                };
                client.run(&notify).await.expect("NOTIFY");
                let own = client.heard.iter().filter(|heard| heard.sender == client.backend.pid).count();
                assert_eq!(own, nth + 1, "its own is heard before the end of its transaction");
            }
            client
        })
    });
    let talking: Vec<_> = talking.collect();
    let mut silent = Client::connect(&cluster).await;
    for nth in 0..EACH {
        silent.run(&format!("NOTIFY \"Everybody\", 'silent {nth}'")).await.expect("NOTIFY");
        beside.batch_execute(&format!("NOTIFY \"Everybody\", 'beside {nth}'")).await.expect("NOTIFY");
    }
    let mut pids = HashMap::new();
    let mut clients = vec![];
    for (number, client) in talking.into_iter().enumerate() {
        let client = client.await.expect("no panic");
        pids.insert(client.pid(), number.to_string());
        clients.push(client);
    }
    assert!(silent.heard.is_empty());
    for mut client in clients {
        client.hear((CLIENTS + 2) * EACH).await;
        let mut next: HashMap<String, usize> = HashMap::new();
        for heard in &client.heard {
            let (who, nth) = heard.payload.split_once(' ').expect("who and which");
            let expected = next.entry(who.to_owned()).or_default();
            assert_eq!(nth.parse(), Ok(*expected), "{heard:?}");
            *expected += 1;
            let said_itself = who == pids[&client.pid()];
            assert_eq!(heard.sender == client.pid(), said_itself, "{heard:?}");
            // A name is right or is not said.
            assert!(pids.get(&heard.sender).is_none_or(|named| named == who), "{heard:?}");
        }
        assert_eq!(next.len(), CLIENTS + 2);
    }
    await_metric(&cluster, "bellwether_listeners", 0.0);
    // The connection is closed with the last of them.
    let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bellwether_listen'";
    let admin = cluster.direct_conninfo(&cluster.primary(), "app");
    eventually("nobody listens", LIMIT, || match cluster.psql_at(&admin, left) {
        Ok(count) if count == "0" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_hears_of_a_gap() {
    let mut cluster = cluster(3);
    let mut listener = Client::connect(&cluster).await;
    let mut other = Client::connect(&cluster).await;
    listener.run("LISTEN news").await.expect("LISTEN");

    // The connection that listens ends: whoever listens may have missed something, others have not.
    let beside = direct(&cluster).await;
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bellwether_listen'";
    beside.execute(end, &[]).await.expect("terminate");
    assert_eq!(listener.last_word().await, "57P01");
    other.run("SELECT 1").await.expect("undisturbed");
    let lost = "bellwether_listeners_ended_total{reason=\"lost\"}";
    await_metric(&cluster, lost, 1.0);

    // A failover, with one at rest and one in a transaction.
    let mut listener = Client::connect(&cluster).await;
    listener.run("LISTEN news").await.expect("LISTEN again");
    let mut amid = Client::connect(&cluster).await;
    amid.run("LISTEN news").await.expect("LISTEN");
    amid.run("BEGIN; CREATE TABLE t ()").await.expect("a block");
    let before = cluster.primary();
    cluster.signal(&before, Signal::SIGKILL);
    assert_eq!(listener.last_word().await, "57P01");
    assert_eq!(amid.run("INSERT INTO t DEFAULT VALUES").await, Err("40001".to_owned()));
    amid.run("ROLLBACK").await.expect("an answer");
    assert_eq!(amid.last_word().await, "57P01");
    await_metric(&cluster, lost, 3.0);
    // The next LISTEN waits for the new primary.
    let mut listener = Client::connect(&cluster).await;
    listener.run("LISTEN news").await.expect("LISTEN");
    other.run("NOTIFY news, 'from the new primary'").await.expect("NOTIFY");
    listener.hear(1).await;
    assert_eq!(listener.payloads(), ["from the new primary"]);
    assert_eq!(pinned(&cluster).to_bits(), 0.0f64.to_bits());
    cluster.await_steady();
    assert_ne!(cluster.primary().name, before.name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_is_ended_alone() {
    // In all beyond what sockets and the queue hold, while whoever reads is never far behind.
    const ROUNDS: usize = 10;
    const EACH: usize = 800;
    let cluster = cluster(1);
    let (mut deaf, mut listener) = (Client::connect(&cluster).await, Client::connect(&cluster).await);
    for client in [&mut deaf, &mut listener] {
        client.run("LISTEN news").await.expect("LISTEN");
    }
    let beside = direct(&cluster).await;
    let notify =
        format!("SELECT pg_notify('news', n || repeat('x', 7900)) FROM generate_series(1, {EACH}) n");
    for round in 1..=ROUNDS {
        beside.execute(&notify, &[]).await.expect("NOTIFY");
        listener.hear(round * EACH).await;
    }
    await_metric(&cluster, "bellwether_listeners_ended_total{reason=\"slow\"}", 1.0);
    listener.run("SELECT 1").await.expect("undisturbed");
    assert_eq!(listener.heard.len(), ROUNDS * EACH);
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_connection_can_be_had_it_pins() {
    let cluster = cluster(1);
    let beside = direct(&cluster).await;
    // One for its statements, and none to listen by.
    let role = "CREATE ROLE few LOGIN PASSWORD 'demo' CONNECTION LIMIT 1";
    beside.batch_execute(role).await.expect("a role");
    let mut client = Client::connect_as(&cluster, "few").await;
    client.run("LISTEN news").await.expect("LISTEN");
    assert_eq!(pinned(&cluster).to_bits(), 1.0f64.to_bits());
    beside.batch_execute("NOTIFY news, 'heard'").await.expect("NOTIFY");
    client.hear(1).await;
    client.run("NOTIFY news, 'its own'").await.expect("NOTIFY");
    assert_eq!(client.payloads(), ["heard", "its own"]);
    assert_eq!(client.heard[1].sender, client.pid());
}
