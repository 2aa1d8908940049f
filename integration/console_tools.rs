//! What people point at PgBouncer's console, pointed at ours: an exporter, and Python's drivers. They are Debian's
//! packages (`integration/setup.sh tools`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Cluster, Durability, Options, Psql, eventually, free_port};

const LIMIT: Duration = Duration::from_secs(120);

/// With a client that is connected and has done something.
fn in_use() -> (Cluster, Psql) {
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    cluster.reconfigure(|config| {
        config["admin"]["stats_users"] = serde_yaml::from_str("[app]").expect("YAML");
    });
    let mut client = Psql::open(&cluster, &cluster.conninfo());
    client.ask(&format!("SELECT length('{}')", "x".repeat(20_000)));
    (cluster, client)
}

/// Ends with the test.
struct Exporter(Child);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn pgbouncer_exporter() {
    const EXPORTER: &str = "/usr/bin/prometheus-pgbouncer-exporter";
    assert!(Path::new(EXPORTER).exists(), "integration/setup.sh tools installs it");
    let (cluster, _client) = in_use();
    let port = free_port();
    let mut exporter = Command::new(EXPORTER);
    exporter.args(["--host=127.0.0.1", &format!("--port={port}"), "--pgbouncer-host=127.0.0.1"]);
    exporter.args([&format!("--pgbouncer-port={}", cluster.port), "--pgbouncer-user=app"]);
    exporter.env("PGPASSWORD", "demo").stdout(Stdio::null()).stderr(Stdio::null());
    let _exporter = Exporter(exporter.spawn().expect("it starts"));

    let expected = [
        "pgbouncer_active_clients{database=\"app\",user=\"app\"} 1.0",
        "pgbouncer_waiting_clients{database=\"app\",user=\"app\"} 0.0",
        "pgbouncer_pool_size{database=\"app\"} 20.0",
        "pgbouncer_databases 1.0",
        "pgbouncer_used_clients 1.0",
    ];
    let metrics = eventually("the exporter's metrics", LIMIT, || {
        let metrics = scrape(port)?;
        let missing = expected.iter().find(|line| !metrics.lines().any(|found| found == **line));
        missing.map_or(Ok(metrics.clone()), |line| Err(format!("{line} is not in {metrics}")))
    });
    for counted in ["requests_total", "received_bytes_total", "sent_bytes_total", "query_microseconds_total"]
    {
        let name = format!("pgbouncer_{counted}{{database=\"app\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name)).expect("counted");
        assert!(value.parse::<f64>().expect("a number") > 0.0, "{counted}: {value}");
    }
}

fn scrape(port: u16) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().map_err(|error| error.to_string())
}

#[test]
fn psycopg() {
    let (cluster, _client) = in_use();
    let conninfo = format!("host=127.0.0.1 port={} user=app password=demo dbname=pgbouncer", cluster.port);
    let output = Command::new("/usr/bin/python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/integration/console_tools.py"))
        .arg(conninfo)
        .output()
        .expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
