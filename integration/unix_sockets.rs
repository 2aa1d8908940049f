//! Unix sockets as PostgreSQL makes them: the file, its mode, its lock file, and what is left behind.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Cluster, Durability, Options, bellwether, eventually, free_port, set_mode};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_socket_and_its_lock_file() {
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    let directory = tempfile::tempdir().expect("a directory");
    set_mode(directory.path(), 0o755);
    let (socket, lock) =
        (directory.path().join(".s.PGSQL.7000"), directory.path().join(".s.PGSQL.7000.lock"));
    cluster.reconfigure(|config| {
        let listen = config["listen"].as_sequence_mut().expect("listeners");
        let text = format!("{{unix: {}, port: 7000, mode: '0770'}}", directory.path().display());
        listen.push(serde_yaml::from_str(&text).expect("YAML"));
    });
    let conninfo = format!("host={} port=7000 user=app password=demo dbname=app", directory.path().display());
    let pid = |cluster: &Cluster| {
        let text = fs::read_to_string(&lock).expect("a lock file");
        assert_eq!(text.lines().next(), Some(cluster.bellwether_pid().to_string().as_str()), "{text}");
        assert_eq!(text.lines().nth(3), Some("7000"), "{text}");
    };
    assert_eq!(cluster.psql_at(&conninfo, "SELECT 'here'"), Ok("here".to_owned()));
    let metadata = fs::metadata(&socket).expect("a socket");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o770);
    pid(&cluster);

    // Another instance is told what is wrong, and changes nothing.
    let other = directory.path().join("other.yaml");
    let mut config = cluster.config();
    for (section, key) in [("state", "file"), ("wal", "dir")] {
        config[section][key] = format!("{}/{section}", directory.path().display()).into();
    }
    config["listen"].as_sequence_mut().expect("listeners").remove(0);
    config["admin"]["address"] = format!("127.0.0.1:{}", free_port()).into();
    for node in config["nodes"].as_sequence_mut().expect("nodes") {
        node.as_mapping_mut().expect("a node").remove("local");
    }
    fs::write(&other, serde_yaml::to_string(&config).expect("YAML")).expect("write");
    let output =
        bellwether().arg("run").arg("--config").arg(&other).stdin(Stdio::null()).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(told.contains("7000") && told.contains("another process listens on it"), "{told}");
    assert_eq!(cluster.psql_at(&conninfo, "SELECT 'here'"), Ok("here".to_owned()));

    // What a killed process leaves behind is the next one's.
    cluster.kill_bellwether();
    assert!(socket.exists() && lock.exists());
    cluster.start_bellwether();
    cluster.await_steady();
    assert_eq!(cluster.psql_at(&conninfo, "SELECT 'again'"), Ok("again".to_owned()));
    pid(&cluster);

    // In the end nothing is left; and a process that has nothing to do with it is respected.
    cluster.interrupt_bellwether();
    assert!(!socket.exists() && !lock.exists());
    let mut stranger = Command::new("sleep").arg("600").spawn().expect("sleep runs");
    fs::write(&lock, format!("{}\n", stranger.id())).expect("write");
    let output =
        bellwether().arg("run").arg("--config").arg(&other).stdin(Stdio::null()).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&format!("names process {}", stranger.id())), "{told}");
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
    cluster.start_bellwether();
    cluster.await_steady();
    eventually("the socket", LIMIT, || cluster.psql_at(&conninfo, "SELECT 1"));
}
