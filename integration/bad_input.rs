//! What should not come, comes: each gets PostgreSQL's error with the SQLSTATE that README names, and nobody else
//! notices.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use bellwether::net::{Credentials, Target, TlsForServers, dial};
use bellwether::pg::error::ErrorFields;
use bellwether::pg::protocol::frontend;
use bellwether::topology::Address;
use bytes::BytesMut;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::wal::{SEGMENT_BYTES, caught_up, compare_with_primary, durable_lsn, segment_name};
use crate::harness::{
    Cluster, DiskKind, Fault, Follower, Heard, LoneServer, Options, Server, SmallDisk, eventually, free_port,
    stop_waiting,
};

const SOON: Duration = Duration::from_secs(120);

/// Where a write of another session is seen at once.
const COUNT_CALM: &str = "/* bellwether: primary */ SELECT count(*) FROM calm";

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

/// What a session of ours says to `bytes`, up to its error.
fn session_answer(cluster: &Cluster, bytes: &[u8]) -> Vec<u8> {
    let target = Target {
        address: Address { host: "127.0.0.1".to_owned(), port: cluster.port },
        user: "app".into(),
        database: "app".into(),
        credentials: Credentials::Password("demo".into()),
        tls: TlsForServers::default(),
        parameters: Vec::new(),
    };
    let limit = Duration::from_secs(30);
    let exchange = async {
        let mut backend = dial(&target, limit).await.expect("a login");
        backend.stream.write_all(bytes).await.expect("write");
        let mut answer = backend.received.to_vec();
        let mut chunk = [0; 4096];
        while sqlstate(&answer).is_none() {
            let read = backend.stream.read(&mut chunk).await.expect("read");
            assert!(read > 0, "closed without an error: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..read]);
        }
        answer
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { tokio::time::timeout(limit, exchange).await }).expect("an answer in time")
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

    // A follower that asks for WAL that is gone, for a timeline, its history or a slot that never was, for SQL.
    let mut asking = Follower::connect(&cluster, "asking");
    for (command, expected) in [
        ("START_REPLICATION PHYSICAL 0/0 TIMELINE 1", "58P01"),
        ("START_REPLICATION PHYSICAL 0/1000000 TIMELINE 77", "XX000"),
        ("TIMELINE_HISTORY 77", "58P01"),
        ("START_REPLICATION SLOT \"not_there\" PHYSICAL 0/1000000 TIMELINE 1", "42704"),
        ("SELECT 1", "0A000"),
        ("START_REPLICATION nonsense", "42601"),
    ] {
        let error = asking.ask(command).expect_err(command);
        assert_eq!(error.code.as_str(), expected, "{command}: {}", error.message);
    }
    // A command of 1 MB.
    let mut long = BytesMut::new();
    frontend::query(&"x".repeat(1 << 20), &mut long);
    assert_eq!(asking.provoke(&long).code.as_str(), "08P01");

    // After the login: a length of 2 GB, one below its own four bytes, a type that no message has; the same
    // with a transaction open.
    let open = {
        let mut begin = BytesMut::new();
        frontend::query("BEGIN", &mut begin);
        frontend::query("INSERT INTO calm VALUES (13)", &mut begin);
        begin.to_vec()
    };
    for garbage in [&b"Q\x7f\xff\xff\xff"[..], b"Q\0\0\0\x03", b"\x01\0\0\0\x04", b"GET / HTTP/1.1\r\n\r\n"] {
        for bytes in [garbage.to_vec(), [&open, garbage].concat()] {
            assert_eq!(sqlstate(&session_answer(&cluster, &bytes)).as_deref(), Some("08P01"), "{bytes:?}");
        }
    }

    // Nobody else noticed.
    cluster.psql("INSERT INTO calm VALUES (1)").expect("insert");
    assert_eq!(cluster.psql(COUNT_CALM), Ok("1".to_owned()));
}

/// Its system identifier is another one: PostgreSQL's own walreceiver says so, and ends.
#[test]
fn a_standby_of_another_cluster() {
    let cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE calm (n int)").expect("create");
    let stranger = LoneServer::init(&cluster, "stranger");
    stranger.become_standby();
    let upstream = format!(
        "primary_conninfo = 'host=127.0.0.1 port={} user=bellwether password={} application_name=stranger'\n",
        cluster.port,
        cluster.superuser_password()
    );
    stranger.start(&cluster, &upstream);
    eventually("the walreceiver's complaint", Duration::from_secs(120), || {
        let log = stranger.log();
        let told = log.contains("database system identifier differs between the primary and standby");
        if told { Ok(()) } else { Err(log) }
    });
    eventually("nobody but the cluster's own", SOON, || {
        let followers = cluster.api("/api/v1/cluster")?["followers"].clone();
        if followers.as_array().map(Vec::len) == Some(2) { Ok(()) } else { Err(followers.to_string()) }
    });
    cluster.psql("INSERT INTO calm VALUES (1)").expect("insert");
    assert_eq!(cluster.psql(COUNT_CALM), Ok("1".to_owned()));
    assert_eq!(cluster.metric("bellwether_term"), Some(1.0));
}

/// The store's own files are bad: who needs them is told so, and gets what is good; who does not never notices.
#[test]
fn a_damaged_store() {
    let expected_warnings = &["a segment in the store is damaged"];
    let mut cluster = Cluster::start(Options { expected_warnings, ..Options::default() });
    cluster.psql("CREATE TABLE calm (n int)").expect("create");
    let [stopped, other] = <[Server; 2]>::try_from(cluster.standbys()).expect("two standbys");
    let begin = durable_lsn(&cluster).expect("a position") / SEGMENT_BYTES * SEGMENT_BYTES;
    let walreceiver = "SELECT pid FROM pg_stat_wal_receiver";
    let walreceiver =
        cluster.psql_at(&cluster.direct_conninfo(&stopped, "postgres"), walreceiver).expect("a walreceiver");
    let walreceiver = Pid::from_raw(walreceiver.parse().expect("a pid"));
    stop_waiting(walreceiver);
    // More than its connection and the relay's memory hold, before and behind what will be damaged.
    while durable_lsn(&cluster).expect("a position") < begin + 6 * SEGMENT_BYTES {
        write_segment(&cluster);
    }

    let damaged = begin + 3 * SEGMENT_BYTES;
    let name = segment_name(1, damaged);
    let segment = cluster.wal_dir().join(&name);
    let good = fs::read(&segment).expect("a segment");
    let spoil = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&segment, bytes).expect("a segment");
    };
    // A bit of a record, the system identifier, the timeline, half a file.
    let middle = SEGMENT_BYTES as usize / 2;
    for (at, at_least) in [(middle, middle - (1 << 20)), (24, 0), (4, 0)] {
        spoil(at);
        let (sent, error) = what_comes(&cluster, damaged);
        assert_eq!(error.code.as_str(), "XX001", "{}", error.message);
        assert!(error.message.starts_with(&format!("WAL segment {name} is corrupt at 0/")), "{error:?}");
        assert!((at_least..=at).contains(&sent.len()), "{} bytes of it came", sent.len());
        assert!(sent == good[..sent.len()]);
    }
    fs::write(&segment, &good[..middle]).expect("a segment");
    assert_eq!(what_comes(&cluster, damaged).1.code.as_str(), "XX001");

    // A stock standby is told, too, and goes on once the segment is good again.
    spoil(middle);
    let warned = || cluster.log().matches("a segment in the store is damaged").count();
    let before = warned();
    kill(walreceiver, Signal::SIGCONT).expect("continue");
    let told = format!("WAL segment {name} is corrupt at");
    let log = stopped.data_dir.with_file_name(format!("{}.log", stopped.name));
    eventually("the standby's complaint", SOON, || {
        let log = fs::read_to_string(&log).expect("the server's log");
        if log.contains(&told) { Ok(()) } else { Err(log) }
    });
    cluster.psql("INSERT INTO calm VALUES (1)").expect("insert");
    caught_up(&cluster, &other);
    assert_eq!(warned(), before, "it is known: nobody is told again, however often the standby comes");
    let alarms = || cluster.api("/api/v1/cluster").map(|state| state["wal"]["alarms"].clone());
    eventually("the alarm", SOON, || {
        let lasting = alarms()?;
        let is_it = lasting[0]["kind"] == "damaged_segment" && lasting[0]["object"] == name.as_str();
        if is_it { Ok(()) } else { Err(lasting.to_string()) }
    });
    fs::write(&segment, &good).expect("a segment");
    caught_up(&cluster, &stopped);
    eventually("the alarm is over", SOON, || {
        let lasting = alarms()?;
        if lasting == serde_json::json!([]) { Ok(()) } else { Err(lasting.to_string()) }
    });

    a_missing_history_file(&mut cluster, begin);
}

/// It is asked for again, and until then known not to be there.
fn a_missing_history_file(cluster: &mut Cluster, begin: u64) {
    let lost = cluster.primary().name;
    assert_eq!(cluster.http("POST", "/api/v1/failover").expect("an answer").0, 200);
    eventually("another primary", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let open = state["directive"]["writes"]["state"] == "open";
        if open && state["directive"]["primary"] != lost.as_str() { Ok(()) } else { Err(state.to_string()) }
    });
    cluster.await_steady();
    cluster.kill_bellwether();
    fs::remove_file(cluster.wal_dir().join("00000002.history")).expect("it was kept");
    cluster.start_bellwether();
    cluster.await_steady();
    let mut asking = Follower::connect(cluster, "asking");
    let rows = asking.ask("TIMELINE_HISTORY 2").expect("it is there again");
    assert!(rows[0][1].as_ref().is_some_and(|content| content.starts_with("1\t0/")), "{rows:?}");
    // And with it the way from the old timeline to the new one.
    assert_eq!(asking.start(None, begin, 1), Ok(None));
    while !matches!(asking.hear(SOON), Heard::CopyDone) {}
    let next = asking.end().expect("the next timeline");
    assert_eq!(next[0].as_deref(), Some("2"));
}

/// WAL that has no room is acknowledged to nobody; all of it is there once there is.
#[test]
fn a_full_disk() {
    let expected_warnings = &["disk full: WAL is not acknowledged"];
    let mut cluster =
        Cluster::start(Options { disk: DiskKind::Faulty, expected_warnings, ..Options::default() });
    cluster.psql("CREATE TABLE calm (n int)").expect("create");
    // However long the commits wait.
    cluster.reconfigure(|config| config["failover"]["hold_clients"] = "10min".into());

    // The write of WAL itself, in a segment that was allocated long before.
    nothing_is_acknowledged(
        &cluster,
        || cluster.disk().order(Fault::Full { calls: "write+pwrite" }),
        || cluster.disk().heal(),
    );

    // A real file system.
    let directory = cluster.data().join("small");
    let Some(small) = SmallDisk::mount(directory.clone(), 192) else {
        eprintln!("not shown: a file system that is full; nothing can be mounted here");
        return;
    };
    cluster.reconfigure(|config| {
        config["wal"]["dir"] = directory.join("wal").to_str().expect("UTF-8").into();
        // No old segment becomes a new one.
        config["wal"]["retain"] =
            serde_yaml::from_str("{size: 1GiB, max_size: 1GiB, min_free: 0B}").expect("YAML");
    });
    write_segment(&cluster);
    nothing_is_acknowledged(
        &cluster,
        || {
            small.fill();
            // More than was allocated before.
            for _ in 0..4 {
                write_segment(&cluster);
            }
        },
        || small.free(),
    );
    cluster.standbys().iter().for_each(|standby| caught_up(&cluster, standby));
    assert!(compare_with_primary(&cluster, &cluster.primary()) > 0);
    let alarms = cluster.api("/api/v1/alarms").expect("alarms");
    let full = alarms.as_array().expect("a list").iter().filter(|alarm| alarm["kind"] == "disk_full");
    assert!(full.clone().count() >= 1 && full.clone().all(|alarm| alarm["over_at_ms"].is_u64()), "{alarms}");
}

fn nothing_is_acknowledged(cluster: &Cluster, fill: impl FnOnce(), free: impl FnOnce()) {
    let before: u64 = cluster.psql(COUNT_CALM).expect("count").parse().expect("a number");
    let full = |expected: f64| {
        let now = cluster.metric("bellwether_wal_disk_full");
        if now == Some(expected) { Ok(()) } else { Err(format!("{now:?}")) }
    };
    fill();
    let mut psql = cluster.program("psql");
    psql.args(["-X", "-q", "-c", "INSERT INTO calm VALUES (1)", "-d", &cluster.conninfo()]);
    let mut commit = psql.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("psql runs");
    eventually("a full disk", SOON, || full(1.0));
    eventually("the alarm", SOON, || {
        let alarms = cluster.api("/api/v1/cluster")?["wal"]["alarms"].clone();
        if alarms[0]["kind"] == "disk_full" { Ok(()) } else { Err(alarms.to_string()) }
    });
    let error = Follower::connect(cluster, "asking").ask("CREATE_REPLICATION_SLOT \"more\" PHYSICAL");
    assert_eq!(error.expect_err("no room").code.as_str(), "53100");
    assert!(commit.try_wait().expect("wait").is_none(), "a commit that is not durable was acknowledged");
    free();
    eventually("room", SOON, || full(0.0));
    assert!(commit.wait().expect("psql ends").success());
    assert_eq!(cluster.psql(COUNT_CALM), Ok((before + 1).to_string()));
    let mut asking = Follower::connect(cluster, "asking");
    asking.ask("CREATE_REPLICATION_SLOT \"more\" PHYSICAL").expect("room, and no slot of before");
    asking.ask("DROP_REPLICATION_SLOT \"more\"").expect("it is free");
    eventually("the alarm is over", SOON, || {
        let alarms = cluster.api("/api/v1/cluster")?["wal"]["alarms"].clone();
        if alarms.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(alarms.to_string()) }
    });
}

/// From `from` on, up to the error.
fn what_comes(cluster: &Cluster, from: u64) -> (Vec<u8>, ErrorFields) {
    let mut follower = Follower::connect(cluster, "by hand");
    assert_eq!(follower.start(None, from, 1), Ok(None));
    let mut wal = Vec::new();
    loop {
        match follower.hear(SOON) {
            Heard::Wal { start, bytes, .. } => {
                assert_eq!(start, from + wal.len() as u64, "a hole");
                wal.extend_from_slice(&bytes);
            }
            Heard::Keepalive { .. } => {}
            Heard::Error(error) => return (wal, error),
            other => panic!("{other:?} behind {} bytes", wal.len()),
        }
    }
}

/// 16 MiB of WAL.
fn write_segment(cluster: &Cluster) {
    let write = "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 8192))) \
                 FROM generate_series(1, 64) i";
    cluster.psql_at(&cluster.direct_conninfo(&cluster.primary(), "app"), write).expect("WAL");
}

#[test]
fn too_many_clients_and_writes_where_one_only_reads() {
    let mut cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE calm (n int)").expect("create");
    let readers = free_port();
    cluster.reconfigure(|config| {
        let yaml = |text: &str| serde_yaml::from_str::<serde_yaml::Value>(text).expect("the test's own YAML");
        config["pool"] = yaml("{max_clients: 3}");
        let listen = config["listen"].as_sequence_mut().expect("listeners");
        listen.push(yaml(&format!("{{address: '127.0.0.1:{readers}', route: standby}}")));
    });

    let standby = cluster.conninfo_at(readers);
    let answer =
        eventually("a standby is fresh", SOON, || cluster.psql_at(&standby, "SELECT pg_is_in_recovery()"));
    assert_eq!(answer, "t");
    for write in ["INSERT INTO calm VALUES (13)", "CREATE TABLE no ()", "SELECT * FROM calm FOR UPDATE"] {
        let error = cluster.psql_at(&standby, write).expect_err(write);
        assert!(error.contains("25006"), "{write}: {error}");
    }
    assert_eq!(cluster.psql(COUNT_CALM), Ok("0".to_owned()));

    let stay = || {
        let mut psql = cluster.program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-d", &cluster.conninfo()]);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql runs");
        let mut stdin = psql.stdin.take().expect("piped");
        stdin.write_all(b"SELECT 'in';\n").expect("write");
        let mut answer = [0; 3];
        psql.stdout.as_mut().expect("piped").read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"in\n");
        (psql, stdin)
    };
    // Whoever was here before may still be leaving.
    eventually("nobody is left", Duration::from_secs(120), || {
        let count = cluster.metric("bellwether_clients{state=\"idle\"}").unwrap_or(0.0);
        if count == 0.0 { Ok(()) } else { Err(count.to_string()) }
    });
    let mut clients: Vec<_> = (0..3).map(|_| stay()).collect();
    let error = cluster.psql("SELECT 1").expect_err("a fourth client was let in");
    assert!(error.contains("sorry, too many clients already"), "{error}");
    let (mut gone, stdin) = clients.pop().expect("three clients");
    drop(stdin);
    gone.wait().expect("psql ends");
    eventually("one may come when one has left", Duration::from_secs(120), || cluster.psql("SELECT 1"));
    for (mut psql, stdin) in clients {
        drop(stdin);
        assert!(psql.wait().expect("psql ends").success());
    }
}
