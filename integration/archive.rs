//! The archive: everything in it is the primary's, byte for byte, in WAL-G's layout, and a server is made of it alone,
//! as of a position, a time and the end, over two timelines.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    Cluster, Disk, Durability, Fault, Options, Server, bellwether, eventually, free_port, set_mode,
};

const LIMIT: Duration = Duration::from_secs(120);

/// A directory beside the cluster's.
pub(crate) fn archive_dir(cluster: &Cluster) -> PathBuf {
    cluster.data().join("archive")
}

/// The same cluster, archiving. The servers' user, who recovers, may read there.
fn archiving() -> Cluster {
    let mut cluster = Cluster::start(Options::default());
    let directory = archive_dir(&cluster);
    fs::create_dir(&directory).expect("archive directory");
    set_mode(&directory, 0o755);
    cluster.reconfigure(|config| {
        config["wal"]["archive"]["url"] = url_of(&directory).into();
        config["wal"]["archive"]["partial_interval"] = "200ms".into();
    });
    cluster
}

pub(crate) fn url_of(directory: &Path) -> String {
    format!("file://{}", directory.display())
}

fn on_primary(cluster: &Cluster, sql: &str) -> String {
    let conninfo = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&conninfo, sql).expect(sql)
}

/// Waits until all of the primary's WAL is in the archive.
pub(crate) fn await_archived(cluster: &Cluster) -> u64 {
    let end: u64 = on_primary(cluster, "SELECT pg_current_wal_flush_lsn() - '0/0'").parse().expect("an LSN");
    eventually("the archive has it all", LIMIT, || {
        let archived = cluster.metric("bellwether_archive_lsn_bytes").ok_or("no metric")?;
        if archived as u64 >= end { Ok(end) } else { Err(format!("{archived} of {end}")) }
    })
}

fn await_backup(cluster: &Cluster) -> String {
    eventually("a base backup", LIMIT, || {
        let names = names(&archive_dir(cluster).join("basebackups_005"));
        let sentinel = names.iter().find_map(|name| name.strip_suffix("_backup_stop_sentinel.json"));
        sentinel.map(str::to_owned).ok_or_else(|| format!("{names:?}"))
    })
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn decompressed(path: &Path) -> Vec<u8> {
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(file).expect("zstd")
}

/// The program where the servers' user may run it, as that user.
fn bellwether_of_servers(cluster: &Cluster) -> Command {
    let program = cluster.data().join("bellwether");
    if !program.exists() {
        let built = env!("CARGO_BIN_EXE_bellwether");
        fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).expect("program");
    }
    let mut command = Command::new(program);
    cluster.run_as_server_user(&mut command);
    command
}

fn restore(cluster: &Cluster, moment: &[&str], data_dir: &Path) -> Output {
    restoring(cluster, moment, data_dir).output().expect("runs")
}

fn restoring(cluster: &Cluster, moment: &[&str], data_dir: &Path) -> Command {
    let archive = url_of(&archive_dir(cluster));
    let mut command = bellwether_of_servers(cluster);
    command.arg("restore").args(moment).arg("--data-dir").arg(data_dir).args(["--archive", &archive]);
    command
}

/// Why nothing was restored.
fn refusal(cluster: &Cluster, moment: &[&str], data_dir: &Path) -> String {
    let output = restore(cluster, moment, data_dir);
    assert_eq!(output.status.code(), Some(1), "{moment:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server made of the archive alone, until it is dropped.
struct Restored<'a> {
    cluster: &'a Cluster,
    data_dir: PathBuf,
    port: u16,
    environment: Vec<(&'static str, String)>,
}

impl<'a> Restored<'a> {
    fn as_of(cluster: &'a Cluster, place: &Path, moment: &[&str]) -> Restored<'a> {
        let data_dir = place.join(format!("restored{}", moment[0]));
        let output = restore(cluster, moment, &data_dir);
        assert!(output.status.success(), "{moment:?}: {}", String::from_utf8_lossy(&output.stderr));
        Restored::start(cluster, data_dir, Vec::new())
    }

    fn start(
        cluster: &'a Cluster,
        data_dir: PathBuf,
        environment: Vec<(&'static str, String)>,
    ) -> Restored<'a> {
        let restored = Restored { cluster, data_dir, port: free_port(), environment };
        let options =
            format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=", restored.port);
        let started = restored.pg_ctl(&["-w", "-t", "60", "-o", &options, "-l", "log", "start"]);
        assert!(started, "the restored server does not start:\n{}", restored.log());
        restored
    }

    fn pg_ctl(&self, arguments: &[&str]) -> bool {
        let mut command = self.cluster.program("pg_ctl");
        self.cluster.run_as_server_user(&mut command);
        command.current_dir(&self.data_dir).args(["-D", "."]).args(arguments);
        command.envs(self.environment.iter().cloned());
        // The server inherits its output: nobody waits for its end.
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("pg_ctl").success()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.data_dir.join("log")).unwrap_or_default()
    }

    fn conninfo(&self) -> String {
        let server = Server { name: String::new(), port: self.port, data_dir: self.data_dir.clone() };
        self.cluster.direct_conninfo(&server, "app")
    }

    /// After the end of its recovery.
    fn query(&self, sql: &str) -> String {
        let conninfo = self.conninfo();
        eventually("the end of recovery", LIMIT, || {
            let recovers = self.cluster.psql_at(&conninfo, "SELECT pg_is_in_recovery()")?;
            if recovers == "f" { Ok(()) } else { Err(self.log()) }
        });
        self.cluster.psql_at(&conninfo, sql).expect(sql)
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        self.pg_ctl(&["-m", "immediate", "-w", "stop"]);
    }
}

/// Where new servers may be made.
fn room(cluster: &Cluster) -> PathBuf {
    let room = cluster.data().join("room");
    fs::create_dir(&room).expect("room");
    set_mode(&room, 0o777);
    room
}

fn fail_over(cluster: &mut Cluster) {
    let first = cluster.primary();
    cluster.signal(&first, Signal::SIGKILL);
    eventually("another primary", LIMIT, || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != first.name.as_str();
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    cluster.await_steady();
}

#[test]
fn restore_alone() {
    let mut cluster = archiving();
    let room = room(&cluster);
    let backup = await_backup(&cluster);
    let write = |cluster: &Cluster, what: &str| {
        on_primary(cluster, &format!("INSERT INTO written SELECT '{what}' FROM generate_series(1, 1000)"));
    };
    on_primary(&cluster, "CREATE TABLE written (what text)");
    write(&cluster, "A");
    let lsn = on_primary(&cluster, "SELECT pg_current_wal_lsn()");
    write(&cluster, "B");
    on_primary(&cluster, "SELECT pg_switch_wal()");
    write(&cluster, "C");
    let segments_of_first = wal_of(&cluster);
    fail_over(&mut cluster);
    write(&cluster, "D");
    let time = on_primary(
        &cluster,
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')",
    );
    write(&cluster, "E");
    on_primary(&cluster, "SELECT pg_switch_wal()");
    write(&cluster, "F");
    let end = await_archived(&cluster);

    layout_is_wal_gs(&cluster, &backup);
    let compared = compare_with_servers(&cluster, &segments_of_first)
        + compare_with_servers(&cluster, &wal_of(&cluster));
    assert!(compared >= 3, "only {compared} segments were compared");
    refused_moments(&cluster, &room, end);

    let rows = "SELECT string_agg(what || count, ' ' ORDER BY what) FROM (SELECT what, count(*) FROM written GROUP BY 1) counted";
    for (moment, expected) in [
        (vec!["--to-lsn", &lsn], "A1000"),
        (vec!["--to-time", &time], "A1000 B1000 C1000 D1000"),
        (vec!["--to-latest"], "A1000 B1000 C1000 D1000 E1000 F1000"),
    ] {
        let restored = Restored::as_of(&cluster, &room, &moment);
        assert_eq!(restored.query(rows), expected, "{moment:?}");
        restored.query("CREATE TABLE takes_writes ()");
        if moment[0] == "--to-time" {
            a_follower_of_the_restored_server_follows(&restored);
            is_like_a_restored_one(&cluster, &restored);
        }
    }
    check_uses_it(&cluster);
    what_was_restored_outlives_the_power(&cluster, &room);
    a_damaged_segment_is_not_served(&cluster, &room);
    two_backups_at_once(&cluster);
    a_backup_without_a_part_is_not_restored(&cluster, &room);
    retention_removes_what_is_old(&cluster, &backup);

    let lsn = on_primary(&cluster, "INSERT INTO written VALUES ('G') RETURNING pg_current_wal_lsn()");
    await_archived(&cluster);
    let restored = Restored::as_of(&cluster, &room.join("again"), &["--to-lsn", &lsn]);
    assert_eq!(
        restored.query(rows),
        "A1000 B1000 C1000 D1000 E1000 F1000",
        "another target than its old one"
    );
}

/// The moment of the restore is over for its followers.
fn a_follower_of_the_restored_server_follows(restored: &Restored<'_>) {
    let Restored { cluster, data_dir, port, environment: _ } = restored;
    let data_dir = data_dir.with_file_name("follower");
    let endpoint =
        format!("host=127.0.0.1 port={port} user=bellwether password={}", cluster.superuser_password());
    let mut init = bellwether_of_servers(cluster);
    init.args(["follower", "init", "--endpoint", &endpoint, "--data-dir"]).arg(&data_dir);
    let output = init.output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let follower = Restored::start(cluster, data_dir, Vec::new());
    restored.query("CREATE TABLE behind_the_target ()");
    let conninfo = follower.conninfo();
    eventually("the follower's replay", LIMIT, || {
        let sql = "SELECT pg_is_in_recovery(), to_regclass('behind_the_target') IS NOT NULL";
        let answer = cluster.psql_at(&conninfo, sql)?;
        if answer == "t|t" { Ok(()) } else { Err(format!("{answer}\n{}", follower.log())) }
    });
}

/// Its backups bring what a restored server's would.
fn is_like_a_restored_one(cluster: &Cluster, restored: &Restored<'_>) {
    let settings = fs::read_to_string(restored.data_dir.join("postgresql.auto.conf")).expect("settings");
    let target = settings.lines().find(|line| line.starts_with("recovery_target_time = '2"));
    let sql = format!("ALTER SYSTEM SET {}", target.expect("a target"));
    for server in cluster.servers() {
        // One of them has been killed.
        let _ = cluster.psql_at(&cluster.direct_conninfo(&server, "postgres"), &sql);
    }
}

/// `check` tells whether it can be used, and leaves nothing there.
fn check_uses_it(cluster: &Cluster) {
    let check = |url: &str| {
        let mut config = cluster.config();
        config["wal"]["archive"]["url"] = url.into();
        let path = cluster.data().join("check.yaml");
        fs::write(&path, serde_yaml::to_string(&config).expect("YAML")).expect("configuration");
        let output = bellwether().args(["check", "--config"]).arg(path).output().expect("bellwether runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let archive = archive_dir(cluster);
    let before = names(&archive);
    let report = check(&url_of(&archive));
    assert!(!report.contains("wal.archive"), "{report}");
    assert_eq!(names(&archive), before);
    let report = check(&url_of(&archive.join("nowhere")));
    assert!(report.lines().any(|line| line.starts_with("ERROR wal.archive.url: file:///")), "{report}");
}

/// The finished segments of its newest timeline follow each other without a hole.
pub(crate) fn archive_has_no_hole(cluster: &Cluster) {
    let names = names(&archive_dir(cluster).join("wal_005"));
    let segments: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".zst")).collect();
    let newest = segments.iter().filter(|name| name.len() == 24).map(|name| &name[..8]).max();
    let numbers: Vec<u64> = segments
        .iter()
        .filter(|name| name.len() == 24 && Some(&name[..8]) == newest)
        .map(|name| {
            let digits = |at| u64::from_str_radix(&name[at..at + 8], 16).expect("a segment's name");
            digits(8) * 256 + digits(16)
        })
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{names:?}");
}

/// It is told that all is there when it is on disk, and not when it cannot be.
fn what_was_restored_outlives_the_power(cluster: &Cluster, room: &Path) {
    let data_dir = room.join("durable");
    let disk = Disk::new(room, data_dir.clone());
    for directory in ["disk", "disk/kept"] {
        set_mode(&room.join(directory), 0o777);
    }
    let restored = || {
        let mut command = restoring(cluster, &["--to-latest"], &data_dir);
        disk.put_under(&mut command);
        command.output().expect("runs")
    };
    disk.order(Fault::IoErrorOnce { calls: "fsync" });
    let output = restored();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("sync ") && !data_dir.join("global/pg_control").exists(), "{complaint}");
    disk.heal();
    disk.cut_power();
    fs::remove_dir_all(&data_dir).expect("removed");

    let output = restored();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    disk.cut_power();
    let restored = Restored::start(cluster, data_dir, Vec::new());
    assert_eq!(restored.query("SELECT count(*) FROM written"), "6000");
}

/// The finished segments in the servers' own directories, by name.
pub(crate) fn wal_of(cluster: &Cluster) -> BTreeMap<String, Vec<u8>> {
    let is_segment = |name: &str| name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let directory = cluster.primary().data_dir.join("pg_wal");
    let segments = names(&directory).into_iter().filter(|name| is_segment(name));
    segments.map(|name| (name.clone(), fs::read(directory.join(name)).unwrap_or_default())).collect()
}

/// How many archived segments `servers` has, too: they are the same.
pub(crate) fn compare_with_servers(cluster: &Cluster, servers: &BTreeMap<String, Vec<u8>>) -> usize {
    let wal = archive_dir(cluster).join("wal_005");
    let both = names(&wal).into_iter().filter_map(|name| {
        let segment = name.strip_suffix(".zst")?.to_owned();
        Some((decompressed(&wal.join(&name)), servers.get(&segment)?, segment))
    });
    both.map(|(archived, own, segment)| assert!(archived == *own, "{segment} differs")).count()
}

/// As in WAL-G's `streaming_base_backup.go`, `backup_sentinel_dto.go` and `wal_segment.go`.
fn layout_is_wal_gs(cluster: &Cluster, backup: &str) {
    let archive = archive_dir(cluster);
    let wal = names(&archive.join("wal_005"));
    let history = fs::read(cluster.primary().data_dir.join("pg_wal/00000002.history")).expect("history file");
    assert_eq!(decompressed(&archive.join("wal_005/00000002.history.zst")), history);
    let forks: Vec<&String> =
        wal.iter().filter(|name| name.starts_with("00000001") && name.ends_with(".partial.zst")).collect();
    assert_eq!(forks.len(), 1, "the end of timeline 1: {wal:?}");
    assert!(wal.iter().any(|name| name.len() == 28 && name.starts_with("00000002")), "{wal:?}");

    let backups = archive.join("basebackups_005");
    assert_eq!(names(&backups), [backup.to_owned(), format!("{backup}_backup_stop_sentinel.json")]);
    assert_eq!(names(&backups.join(backup)), ["files_metadata.json", "metadata.json", "tar_partitions"]);
    let parts = names(&backups.join(backup).join("tar_partitions"));
    assert_eq!(parts, ["part_001.tar.zst", "pg_control.tar.zst"]);
    let control = decompressed(&backups.join(backup).join("tar_partitions/pg_control.tar.zst"));
    assert!(control.starts_with(b"global/pg_control\0"), "the first member's name");
    let read = |path: PathBuf| -> Value {
        serde_json::from_slice(&fs::read(path).expect("a document")).expect("JSON")
    };
    let sentinel = read(backups.join(format!("{backup}_backup_stop_sentinel.json")));
    let metadata = read(backups.join(backup).join("metadata.json"));
    let system = on_primary(cluster, "SELECT system_identifier FROM pg_control_system()");
    for (here, there) in [
        ("LSN", "start_lsn"),
        ("FinishLSN", "finish_lsn"),
        ("SystemIdentifier", "system_identifier"),
        ("PgVersion", "pg_version"),
    ] {
        assert!(sentinel[here].is_u64(), "{here} in {sentinel}");
        assert_eq!(sentinel[here], metadata[there]);
    }
    assert_eq!(sentinel["SystemIdentifier"].to_string(), system);
    assert_eq!(sentinel["FilesMetadataDisabled"], true);
    let start = sentinel["LSN"].as_u64().expect("a position");
    assert_eq!(backup, format!("base_00000001{:08X}{:08X}", start >> 32, (start & 0xFFFF_FFFF) >> 24));
}

fn refused_moments(cluster: &Cluster, room: &Path, end: u64) {
    let nowhere = room.join("nowhere");
    let far = format!("{:X}/{:X}", (end >> 32) + 1, end & 0xFFFF_FFFF);
    for (moment, why) in [
        (["--to-lsn", "0/1000000"], "is consistent from"),
        (["--to-lsn", &far], "without a hole"),
        (["--to-time", "2020-01-01T00:00:00Z"], "was finished at"),
        (["--to-time", "2200-01-01T00:00:00Z"], "--to-latest restores all of it"),
    ] {
        let refusal = refusal(cluster, &moment, &nowhere);
        assert!(refusal.contains(why), "{moment:?}: {refusal}");
        assert!(!nowhere.exists(), "{moment:?} left something");
    }
    let refusal = refusal(cluster, &["--to-latest"], &cluster.primary().data_dir);
    assert!(refusal.contains("is not empty"), "{refusal}");
}

fn a_damaged_segment_is_not_served(cluster: &Cluster, room: &Path) {
    let wal = archive_dir(cluster).join("wal_005");
    let name = names(&wal).into_iter().find(|name| name.len() == 28).expect("a segment");
    let whole = fs::read(wal.join(&name)).expect("an object");
    let mut segment = decompressed(&wal.join(&name));
    // One bit of a record, in an object that zstd has nothing against.
    let at = segment.iter().rposition(|byte| *byte != 0).expect("a record");
    segment[at] ^= 1;
    fs::write(wal.join(&name), zstd::encode_all(&segment[..], 1).expect("compresses")).expect("writes");
    let mut get = bellwether_of_servers(cluster);
    let place = room.join("RECOVERYXLOG");
    get.current_dir(room).args(["wal", "get", name.trim_end_matches(".zst")]).arg(&place);
    get.args(["--archive", &url_of(&archive_dir(cluster))]);
    let output = get.output().expect("runs");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(255), "{complaint}");
    assert!(complaint.contains("is not served"), "{complaint}");
    assert!(!place.exists());
    fs::write(wal.join(&name), whole).expect("writes");
    assert_eq!(get.output().expect("runs").status.code(), Some(0));
}

fn backup_now(cluster: &Cluster) -> Command {
    let mut backup = bellwether();
    backup.args(["backup", "--config"]).arg(cluster.data().join("bellwether.yaml"));
    backup
}

/// By two who do not know of each other. They begin at the same restartpoint; neither spoils what the other makes.
fn two_backups_at_once(cluster: &Cluster) {
    let begin = || backup_now(cluster).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let outputs = [begin(), begin()].map(|child| child.wait_with_output().expect("ends"));
    assert!(outputs.iter().any(|output| output.status.success()), "{outputs:?}");
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("somebody else is making it"), "{complaint}");
    }
    let backups = archive_dir(cluster).join("basebackups_005");
    let is_sentinel = |name: &String| name.ends_with(".json");
    let (sentinels, folders): (Vec<String>, Vec<String>) = names(&backups).into_iter().partition(is_sentinel);
    assert_eq!(sentinels.len(), folders.len(), "{sentinels:?} {folders:?}");
    for folder in folders {
        let parts = names(&backups.join(&folder).join("tar_partitions"));
        assert_eq!(parts, ["part_001.tar.zst", "pg_control.tar.zst"], "{folder}");
    }
}

fn a_backup_without_a_part_is_not_restored(cluster: &Cluster, room: &Path) {
    let backups = archive_dir(cluster).join("basebackups_005");
    let newest = names(&backups).into_iter().rfind(|name| !name.ends_with(".json"));
    let newest = backups.join(newest.expect("a backup"));
    let (part, aside) = (newest.join("tar_partitions/part_001.tar.zst"), room.join("aside"));
    fs::rename(&part, &aside).expect("renames");
    let refusal = refusal(cluster, &["--to-latest"], &room.join("nowhere"));
    assert!(refusal.contains("is not whole"), "{refusal}");
    assert!(!room.join("nowhere").exists());
    fs::rename(&aside, &part).expect("renames");
}

fn retention_removes_what_is_old(cluster: &Cluster, first: &str) {
    let archive = archive_dir(cluster);
    let oldest =
        names(&archive.join("wal_005")).into_iter().find(|name| name.len() == 28).expect("a segment");
    cluster.rewrite(|config| config["wal"]["archive"]["backups"]["keep"] = 1.into());
    let output = backup_now(cluster).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains(&format!("removed {first}")), "{told}");
    let backups = names(&archive.join("basebackups_005"));
    assert!(
        backups.iter().any(|name| name.ends_with(".json"))
            && !backups.iter().any(|name| name.starts_with(first) && name.ends_with(".json")),
        "{backups:?}"
    );
    let wal = names(&archive.join("wal_005"));
    assert!(!wal.contains(&oldest) && wal.contains(&"00000002.history.zst".to_owned()), "{wal:?}");
}

/// moto, which speaks S3 and keeps everything in memory. Ends with the test.
struct S3 {
    process: Child,
    port: u16,
}

impl S3 {
    const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/s3/bin/moto_server");

    /// With an empty bucket.
    fn start(port: u16) -> S3 {
        assert!(Path::new(S3::SERVER).exists(), "integration/setup.sh tools installs it");
        let mut server = Command::new(S3::SERVER);
        server.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let s3 = S3 { process: server.spawn().expect("it starts"), port };
        eventually("the bucket", LIMIT, || s3.request("PUT", "/backups"));
        s3
    }

    /// The answer's body; moto believes everybody.
    fn request(&self, method: &str, path: &str) -> Result<String, String> {
        let exchange = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
            let credential = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request";
            write!(
                socket,
                "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: {credential}\r\nContent-Length: 0\r\n\r\n"
            )?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| error.to_string())?;
        match answer.split(' ').nth(1) {
            Some("200") => Ok(answer),
            _ => Err(answer),
        }
    }

    /// The names below `prefix`.
    fn list(&self, prefix: &str) -> Result<String, String> {
        self.request("GET", &format!("/backups?list-type=2&prefix={prefix}"))
    }

    fn environment(port: u16) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ]
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The rows of a table there, and where it is.
const TABLESPACE: &str = "SELECT (SELECT count(*) FROM written) || ' ' || pg_tablespace_location(oid) \
    FROM pg_tablespace WHERE spcname = 'fast'";

/// A tablespace `fast` in a directory of the servers' user.
fn tablespace(cluster: &Cluster, room: &Path) -> PathBuf {
    let fast = room.join("fast");
    let mut mkdir = Command::new("mkdir");
    cluster.run_as_server_user(&mut mkdir);
    assert!(mkdir.arg(&fast).status().expect("mkdir").success());
    on_primary(cluster, &format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    fast
}

/// Its password comes from a file.
fn a_follower_has_tablespaces_too(cluster: &Cluster, room: &Path, fast: &Path) {
    let (data_dir, moved, passfile) =
        (room.join("follower"), room.join("follower_fast"), room.join("pgpass"));
    fs::write(&passfile, format!("127.0.0.1:*:replication:bellwether:{}\n", cluster.superuser_password()))
        .expect("written");
    set_mode(&passfile, 0o600);
    let endpoint = format!("host=127.0.0.1 port={} user=bellwether", cluster.port);
    let init = |mapping: &str| {
        let mut command = bellwether();
        command.env("PGPASSFILE", &passfile).args([
            "follower",
            "init",
            "--endpoint",
            &endpoint,
            "--max-rate=1000M",
        ]);
        command.arg("--data-dir").arg(&data_dir).args(["--tablespace-mapping", mapping]);
        command.output().expect("bellwether runs")
    };
    let refused = init("/elsewhere=/nowhere");
    let refusal = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && refusal.contains("--tablespace-mapping"), "{refusal}");
    let made = init(&format!("{}={}", fast.display(), moved.display()));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let verified = cluster.program("pg_verifybackup").arg("--no-parse-wal").arg(&data_dir).output();
    let verified = verified.expect("pg_verifybackup runs");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let follower = Restored::start(cluster, data_dir, Vec::new());
    eventually("the table on the follower", LIMIT, || {
        let found = cluster.psql_at(&follower.conninfo(), TABLESPACE)?;
        if found == format!("1000 {}", moved.display()) { Ok(()) } else { Err(found) }
    });
}

#[test]
fn object_store() {
    const URL: &str = "s3://backups/orders/prod";
    let port = free_port();
    let s3 = S3::start(port);
    let mut cluster = Cluster::start(Options {
        nodes: 1,
        durability: Durability::Async,
        environment: S3::environment(port),
        expected_warnings: &["WAL is not archived; it is tried again", "no base backup; it is tried again"],
        ..Options::default()
    });
    let room = room(&cluster);
    let fast = tablespace(&cluster, &room);
    on_primary(&cluster, "CREATE TABLE written TABLESPACE fast AS SELECT i FROM generate_series(1, 1000) i");
    cluster.reconfigure(|config| {
        config["wal"]["archive"]["url"] = URL.into();
        config["wal"]["archive"]["partial_interval"] = "200ms".into();
    });
    on_primary(&cluster, "SELECT pg_switch_wal()");
    eventually("a base backup", LIMIT, || {
        let listed = s3.list("orders/prod/basebackups_005/base_")?;
        if listed.contains("_backup_stop_sentinel.json") { Ok(()) } else { Err(listed) }
    });
    await_archived(&cluster);
    let restored = room.join("restored");
    let restore = |mappings: &[String]| {
        let mut restore = bellwether_of_servers(&cluster);
        restore.envs(S3::environment(port)).args(["restore", "--to-latest", "--archive", URL, "--data-dir"]);
        restore.arg(&restored).args(mappings).output().expect("runs")
    };
    let output = restore(&[]);
    let refusal = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{refusal}");
    assert!(refusal.contains("--tablespace-mapping") && !restored.exists(), "{refusal}");
    let moved = room.join("moved");
    let output =
        restore(&["--tablespace-mapping".to_owned(), format!("{}={}", fast.display(), moved.display())]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let server = Restored::start(&cluster, restored, S3::environment(port));
    assert_eq!(server.query(TABLESPACE), format!("1000 {}", moved.display()));
    drop(server);
    a_follower_has_tablespaces_too(&cluster, &room, &fast);

    // Killed in the middle of the archive's work, it forgets everything; the archive goes on where it was.
    drop(s3);
    on_primary(&cluster, "INSERT INTO written SELECT i FROM generate_series(1, 1000) i");
    let segment = on_primary(&cluster, "SELECT pg_walfile_name(pg_switch_wal())");
    eventually("the error", LIMIT, || {
        let errors = cluster.metric("bellwether_archive_errors_total{reason=\"storage\"}");
        if errors > Some(0.0) { Ok(()) } else { Err("none".to_owned()) }
    });
    let mut get = bellwether_of_servers(&cluster);
    get.envs(S3::environment(port)).current_dir(&room).args([
        "wal",
        "get",
        &segment,
        "segment",
        "--archive",
        URL,
    ]);
    fs::write(room.join("standby.signal"), "").expect("writes");
    assert_eq!(get.output().expect("runs").status.code(), Some(1), "a standby asks again");
    let s3 = S3::start(port);
    eventually("the segment", LIMIT, || {
        let listed = s3.list("orders/prod/wal_005/")?;
        if listed.contains(&format!("{segment}.zst")) { Ok(()) } else { Err(listed) }
    });
    let output = get.output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let own = fs::read(cluster.primary().data_dir.join("pg_wal").join(&segment)).expect("the primary's");
    assert!(fs::read(room.join("segment")).expect("fetched") == own, "{segment} differs");
}
