//! `bellwether demo` as a visitor meets it: refusals in one sentence that leave nothing behind, Ctrl-C that takes
//! everything along, and the same cluster again from the same directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::harness::{Cluster, Guardian, Options, bellwether, eventually, free_port, set_mode};

const NOTHING: [PathBuf; 0] = [];
/// A standby may not have it yet: a new session reads what is fresh enough, not what another one wrote.
const COUNT_KEPT: &str = "/* bellwether: primary */ SELECT count(*) FROM kept";

/// A directory that the servers' user can enter too.
fn open_dir() -> TempDir {
    let dir = TempDir::with_prefix("bellwether-test-").expect("temporary directory");
    set_mode(dir.path(), 0o755);
    dir
}

/// The one sentence with which `bellwether demo` refuses these arguments. Should it not refuse, it is interrupted.
fn refusal(arguments: &[String], temporary: &Path) -> String {
    let output = Command::new("timeout")
        .args(["--signal=INT", "60"])
        .arg(bellwether().get_program())
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", temporary)
        .output()
        .expect("bellwether runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    said.trim_end().to_owned()
}

/// Processes whose working directory lies in `dir`: every process of a PostgreSQL server has its data
/// directory there.
fn processes_in(dir: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok).map(|entry| entry.path());
    processes
        .filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir)))
        .collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry").path()).collect()
}

#[test]
fn a_demo_that_cannot_be_leaves_nothing() {
    let parent = open_dir();
    let temporary = open_dir();
    let new = parent.path().join("new");
    let holder = TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
    let taken = holder.local_addr().expect("address").port();
    let no_servers = parent.path().join("bin");
    fs::create_dir(&no_servers).expect("directory");
    let foreign = parent.path().join("foreign");
    fs::create_dir(&foreign).expect("directory");
    fs::write(foreign.join("letter"), "mine").expect("file");

    let ports = |port: u16, admin: u16| vec![format!("--port={port}"), format!("--admin-port={admin}")];
    let free = || ports(free_port(), free_port());
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let cases = [
        (ports(taken, free_port()), format!("port {taken} is taken: choose another with --port")),
        (ports(free_port(), taken), format!("port {taken} is taken: choose another with --admin-port")),
        (ports(taken, taken), format!("--port and --admin-port are both {taken}")),
        ([free(), vec!["--nodes=0".to_owned()]].concat(), "--nodes 0: 1 to 9 are possible".to_owned()),
        (
            [free(), vec![option("pg-bin", &no_servers)]].concat(),
            format!("{}: no PostgreSQL server programs there", no_servers.display()),
        ),
    ];
    for (arguments, expected) in cases {
        // In a directory of its own choice, and in a named one.
        for arguments in [arguments.clone(), [arguments, vec![option("dir", &new)]].concat()] {
            let said = refusal(&arguments, temporary.path());
            assert!(said.starts_with(&format!("bellwether: {expected}")), "{said}");
            assert!(!new.exists(), "{said}");
            assert_eq!(entries(temporary.path()), NOTHING, "{said}");
        }
    }

    let said = refusal(&[free(), vec![option("dir", &foreign)]].concat(), temporary.path());
    assert_eq!(said, format!("bellwether: {} is not empty and holds no demo", foreign.display()));
    assert_eq!(entries(&foreign), [foreign.join("letter")]);
    // One that was there and empty is empty again.
    let said =
        refusal(&[ports(taken, free_port()), vec![option("dir", &no_servers)]].concat(), temporary.path());
    assert!(said.contains("is taken"), "{said}");
    assert_eq!(entries(&no_servers), NOTHING);
    assert_eq!(processes_in(parent.path()), NOTHING);
    assert_eq!(processes_in(temporary.path()), NOTHING);
}

#[test]
fn a_demo_ends_with_all_its_processes_and_is_resumed() {
    let mut cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n").expect("create");
    let primary = cluster.primary().name;
    let temporary = open_dir();
    assert!(processes_in(&cluster.data()).len() > 3);

    // Nobody else gets the directory, and the demo that has it does not notice.
    let dir = format!("--dir={}", cluster.data().display());
    let other = [format!("--port={}", free_port()), format!("--admin-port={}", free_port()), dir];
    let said = refusal(&other, temporary.path());
    assert_eq!(said, format!("bellwether: a demo is running in {}", cluster.data().display()));
    assert_eq!(cluster.psql(COUNT_KEPT), Ok("100".to_owned()));

    assert!(cluster.interrupt_bellwether().success());
    assert_eq!(processes_in(&cluster.data()), NOTHING);
    for port in cluster.servers().iter().map(|server| server.port).chain([cluster.port, cluster.admin_port]) {
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "somebody listens on port {port}");
    }

    // Somebody took the port meanwhile: refused, and what is there stays.
    let holder = TcpListener::bind(("127.0.0.1", cluster.port)).expect("a free port");
    let said = refusal(&other, temporary.path());
    assert!(said.contains(&format!("port {} is taken", cluster.port)), "{said}");
    assert_eq!(processes_in(&cluster.data()), NOTHING);
    drop(holder);

    cluster.start_bellwether();
    cluster.await_steady();
    assert_eq!(cluster.primary().name, primary);
    assert_eq!(cluster.psql(COUNT_KEPT), Ok("100".to_owned()));
    cluster.psql("INSERT INTO kept VALUES (101)").expect("insert");
}

#[test]
fn a_demo_in_a_directory_of_its_own_choice_leaves_nothing() {
    let temporary = open_dir();
    let guardian = Guardian::over(temporary.path()).expect("guardian shell");
    let mut demo = bellwether()
        .arg("demo")
        .args([format!("--port={}", free_port()), format!("--admin-port={}", free_port())])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("bellwether starts");
    fs::write(temporary.path().join("bellwether.pid"), format!("{}\n", demo.id())).expect("pid file");
    let mut lines = BufReader::new(demo.stdout.take().expect("piped")).lines();
    let ready = lines.by_ref().any(|line| line.expect("text").contains("Bellwether is ready"));
    assert!(ready, "it ended: {:?}", demo.wait());
    assert!(!processes_in(temporary.path()).is_empty());

    let pid = Pid::from_raw(i32::try_from(demo.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("signal");
    let ended = eventually("the demo's end", Duration::from_secs(120), || {
        demo.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
    });
    assert!(ended.success(), "{ended}");
    let pid_file = temporary.path().join("bellwether.pid");
    fs::remove_file(&pid_file).expect("pid file");
    assert_eq!(entries(temporary.path()), NOTHING);
    assert_eq!(processes_in(temporary.path()), NOTHING);
    drop(guardian);
}
