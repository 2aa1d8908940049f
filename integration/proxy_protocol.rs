//! Behind HAProxy: a client is who it is, not the load balancer.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_postgres::{Client, NoTls};

use crate::harness::{Cluster, Durability, Options, eventually_async, free_port};

const LIMIT: Duration = Duration::from_secs(120);

const fn loopback(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, host)
}

/// HAProxy, until it is dropped.
struct Haproxy(Child);

impl Haproxy {
    fn start(cluster: &Cluster, port: u16, server: u16) -> Haproxy {
        let config = cluster.data().join("haproxy.cfg");
        let text = format!(
            "defaults\n mode tcp\n timeout check 10s\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen pg\n bind 127.0.0.1:{port}\n \
             server bw 127.0.0.1:{server} send-proxy-v2 check inter 200ms fall 50 check-send-proxy\n"
        );
        fs::write(&config, text).expect("haproxy.cfg");
        let mut haproxy = Command::new("/usr/sbin/haproxy");
        let haproxy = haproxy.arg("-db").arg("-f").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        Haproxy(haproxy.spawn().expect("haproxy runs"))
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// From an address of this host to a port of it.
async fn connect(from: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    socket.connect(SocketAddr::from((loopback(1), port))).await
}

async fn client(from: Ipv4Addr, port: u16) -> Result<Client, String> {
    let stream = connect(from, port).await.map_err(|error| error.to_string())?;
    let mut config = tokio_postgres::Config::new();
    let config = config.user("app").password("demo").dbname("app");
    let connected = config.connect_raw(stream, NoTls).await;
    let (client, connection) = connected.map_err(|error| {
        error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
    })?;
    tokio::spawn(connection);
    Ok(client)
}

/// What the endpoint answers to `bytes` until it closes.
async fn answer(from: Ipv4Addr, port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(from, port).await.expect("connect");
    stream.write_all(bytes).await.expect("write");
    let mut answer = Vec::new();
    // Closed with bytes unread, it is reset.
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("an end in time");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_haproxy() {
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    let (behind, front) = (free_port(), free_port());
    cluster.reconfigure(|config| {
        let yaml = |text: &str| serde_yaml::from_str::<serde_yaml::Value>(text).expect("the test's own YAML");
        let listen = config["listen"].as_sequence_mut().expect("listeners");
        listen.push(yaml(&format!(
            "{{address: '127.0.0.1:{behind}', proxy_protocol: required, proxy_from: ['127.0.0.1']}}"
        )));
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.remove("method");
        let rules = "[{type: host, database: all, user: all, address: 127.0.0.6, method: reject},
             {type: host, database: [all, replication], user: all, address: all, method: scram-sha-256}]";
        auth.insert("rules".into(), yaml(rules));
    });
    let haproxy = Haproxy::start(&cluster, front, behind);
    let from = loopback(5);
    let app = eventually_async("HAProxy has found its server", LIMIT, || client(from, front)).await;
    app.batch_execute("CREATE TABLE t (n int)").await.expect("create");

    // Who is who: in the console, in the rules, in the log.
    let console = format!(
        "host=127.0.0.1 port={} user=bellwether password={} dbname=pgbouncer",
        cluster.port,
        cluster.superuser_password()
    );
    let clients = cluster.psql_at(&console, "SHOW CLIENTS").expect("SHOW CLIENTS");
    assert!(clients.contains("|127.0.0.5|"), "{clients}");
    let refused = client(loopback(6), front).await.expect_err("rejected by its address");
    assert!(refused.contains("127.0.0.6"), "{refused}");
    assert!(cluster.log().contains("peer=127.0.0.6:"), "{}", cluster.log());

    // Without a header, or from elsewhere, nobody comes in.
    assert!(client(loopback(1), behind).await.is_err());
    assert!(cluster.log().contains("does not begin with a PROXY header"));
    assert!(client(loopback(9), behind).await.is_err());
    assert!(cluster.log().contains("not in proxy_from"));
    // Behind a header, in the same write, an SSLRequest is what it would be by itself: there is no TLS here.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".as_slice();
    let ssl_request = b"\0\0\0\x08\x04\xd2\x16\x2f".as_slice();
    let said = answer(loopback(1), behind, &[local, ssl_request, b"\0\0\0\x09\0\x02\0\0\0"].concat()).await;
    assert!(said.starts_with(b"E"), "stuffed bytes are an error: {said:?}");
    let said = answer(loopback(1), behind, &[local, b"\0\0\0\x09\0\x02\0\0\0"].concat()).await;
    assert!(String::from_utf8_lossy(&said).contains("C0A000"), "{said:?}");
    assert_eq!(answer(loopback(1), behind, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff").await, b"");
    app.batch_execute("INSERT INTO t VALUES (1)").await.expect("the others did not notice");
    drop(haproxy);
}
