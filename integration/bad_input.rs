//! What should not come, comes: each gets PostgreSQL's error with the SQLSTATE of the design, and nobody else
//! notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Cluster, Options};

/// Everything the endpoint answers to `bytes` until it closes.
fn send(cluster: &Cluster, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(("127.0.0.1", cluster.port)).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("time limit");
    socket.write_all(bytes).expect("write");
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("the endpoint neither answers nor closes: {error}; so far {answer:?}"),
    }
}

fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for (key, value) in parameters {
        body.extend([key.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).expect("short");
    [&length.to_be_bytes()[..], &body].concat()
}

/// The SQLSTATE field of the first ErrorResponse in `answer`.
fn sqlstate(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    let fields = text.split('\0').filter_map(|field| field.strip_prefix('C'));
    fields.filter(|code| code.len() == 5).map(str::to_owned).next()
}

#[test]
fn bad_input() {
    let cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE calm (n int)").expect("create");

    // Garbage, a length of 2 GB, an unknown protocol.
    assert_eq!(sqlstate(&send(&cluster, b"GET / HTTP/1.1\r\n\r\n")).as_deref(), Some("08P01"));
    assert_eq!(sqlstate(&send(&cluster, &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0])).as_deref(), Some("08P01"));
    assert_eq!(sqlstate(&send(&cluster, &[0, 0, 0, 9, 0, 2, 0, 0, 0])).as_deref(), Some("0A000"));
    // Half a startup packet, then silence: cut at the login time limit.
    let half = startup(&[("user", "app")]);
    send(&cluster, &half[..half.len() / 2]);

    let with = |user: &str, password: &str, database: &str| {
        let conninfo =
            format!("host=127.0.0.1 port={} user={user} password={password} dbname={database}", cluster.port);
        cluster.psql_at(&conninfo, "SELECT 1").expect_err("let in")
    };
    let wrong = with("app", "wrong", "app");
    assert!(wrong.contains("password authentication failed for user \"app\""), "{wrong}");
    let unknown = with("nobody_here", "wrong", "app");
    assert!(unknown.contains("password authentication failed for user \"nobody_here\""), "{unknown}");
    let database = with("app", "demo", "not_there");
    assert!(database.contains("database \"not_there\" does not exist"), "{database}");

    // A client that may not replicate.
    let conninfo =
        format!("host=127.0.0.1 port={} user=app password=demo dbname=app replication=true", cluster.port);
    assert!(cluster.psql_at(&conninfo, "IDENTIFY_SYSTEM").is_err());

    // A follower that asks for WAL that is gone, one of an unknown timeline, one that wants SQL.
    let walsender = |command: &str| {
        let password = cluster.superuser_password();
        let conninfo = format!(
            "host=127.0.0.1 port={} user=bellwether password={password} replication=true",
            cluster.port
        );
        cluster.psql_at(&conninfo, command).expect_err("accepted")
    };
    let gone = walsender("START_REPLICATION PHYSICAL 0/0 TIMELINE 1");
    assert!(gone.contains("58P01"), "{gone}");
    let timeline = walsender("START_REPLICATION PHYSICAL 0/1000000 TIMELINE 77");
    assert!(timeline.contains("requested timeline 77 is not in this server's history"), "{timeline}");
    let slot = walsender("START_REPLICATION SLOT \"not_there\" PHYSICAL 0/1000000 TIMELINE 1");
    assert!(slot.contains("42704"), "{slot}");
    let sql = walsender("SELECT 1");
    assert!(sql.contains("0A000"), "{sql}");

    // Nobody else noticed.
    cluster.psql("INSERT INTO calm VALUES (1)").expect("insert");
    assert_eq!(cluster.psql("SELECT count(*) FROM calm"), Ok("1".to_owned()));
}
