//! `bellwether demo` as a test's cluster: three stock servers, the endpoint, and everything to disturb them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::disk::Disk;
use super::guardian::Guardian;
use super::port::free_port;
use super::wait::eventually;

/// Machines that tests run on are shared: whole seconds may pass in which nothing runs.
const READY: Duration = Duration::from_secs(300);
/// In tests that are not about silence a server is taken for dead when its process is.
const LONGER_THAN_A_STALL: &str = "10s";
/// For those that are: the default.
pub(crate) const SHORT_SILENCE: &str = "2s";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Async,
    Quorum,
}

/// What the WAL store lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskKind {
    Sound,
    /// It fails on command: [`Cluster::disk`].
    Faulty,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) nodes: usize,
    pub(crate) durability: Durability,
    pub(crate) disk: DiskKind,
    /// A directory with `postgres`, `initdb` and `pg_ctl`; the distribution's by default.
    pub(crate) pg_bin: Option<PathBuf>,
    /// `failover.detect.timeout`.
    pub(crate) silence: &'static str,
    /// Of Bellwether, beside the test's own.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Log lines (substrings) at WARN or ERROR that this test provokes on purpose.
    pub(crate) expected_warnings: &'static [&'static str],
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 3,
            durability: Durability::Quorum,
            disk: DiskKind::Sound,
            pg_bin: None,
            silence: LONGER_THAN_A_STALL,
            environment: Vec::new(),
            expected_warnings: &[],
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) port: u16,
    pub(crate) admin_port: u16,
    options: Options,
    dir: PathBuf,
    bellwether: Option<Child>,
    disk: Option<Disk>,
    guardian: Guardian,
}

/// One PostgreSQL server of the cluster, as `bellwether.yaml` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) data_dir: PathBuf,
}

/// A process whose place another has taken.
pub(crate) struct Former {
    child: Child,
    pid_file: PathBuf,
}

impl Former {
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("signal");
    }

    /// How it ended.
    pub(crate) fn ended(mut self, limit: Duration) -> ExitStatus {
        let ended = eventually("the former process's end", limit, || {
            self.child.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
        });
        fs::remove_file(&self.pid_file).expect("pid file");
        ended
    }
}

impl Cluster {
    /// Starts it and waits until the endpoint takes writes and every standby streams.
    pub(crate) fn start(options: Options) -> Cluster {
        let dir = TempDir::with_prefix("bellwether-test-").expect("temporary directory").keep();
        // The servers run as another user and must be able to enter.
        set_mode(&dir, 0o755);
        let mut cluster = Cluster {
            port: free_port(),
            admin_port: free_port(),
            guardian: Guardian::over(&dir).expect("guardian shell"),
            disk: (options.disk == DiskKind::Faulty).then(|| Disk::new(&dir, dir.join("cluster/wal"))),
            options,
            dir,
            bellwether: None,
        };
        cluster.start_bellwether();
        // Servers may be made by their agent before the demo comes to them, and it sets their upstream when it does.
        eventually("the demo is ready", READY, || {
            cluster.check_alive()?;
            let log = cluster.log();
            if log.contains("Bellwether is ready") { Ok(()) } else { Err(log) }
        });
        let silence = cluster.options.silence;
        cluster.rewrite(|config| {
            config["failover"]["detect"] =
                serde_yaml::Mapping::from_iter([("timeout".into(), silence.into())]).into();
        });
        assert_eq!(cluster.http("POST", "/api/v1/reload").expect("an answer").0, 200);
        cluster.await_steady();
        cluster
    }

    /// Starts `bellwether demo` on the cluster's directory: a new cluster the first time, the same one later.
    pub(crate) fn start_bellwether(&mut self) {
        assert!(self.bellwether.is_none(), "bellwether is running");
        let mut command = bellwether();
        command.arg("demo").arg("--dir").arg(self.data()).args([
            format!("--nodes={}", self.options.nodes),
            format!("--port={}", self.port),
            format!("--admin-port={}", self.admin_port),
            format!(
                "--durability={}",
                match self.options.durability {
                    Durability::Async => "async",
                    Durability::Quorum => "quorum",
                }
            ),
        ]);
        if let Some(pg_bin) = &self.options.pg_bin {
            command.arg("--pg-bin").arg(pg_bin);
        }
        self.spawn(command);
    }

    /// `bellwether run` in the place of the demo, which takes SIGHUP for the end of its terminal.
    pub(crate) fn run_as_service(&mut self) {
        self.kill_bellwether();
        let mut command = bellwether();
        command.arg("run").arg("--config").arg(self.data().join("bellwether.yaml"));
        self.spawn(command);
        self.await_steady();
    }

    /// Where the store lies, of a cluster with [`DiskKind::Faulty`].
    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a disk that fails on command")
    }

    fn spawn(&mut self, mut command: Command) {
        if let Some(disk) = &self.disk {
            disk.put_under(&mut command);
        }
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("log file");
        let child = command
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("bellwether starts");
        fs::write(self.dir.join("bellwether.pid"), format!("{}\n", child.id())).expect("pid file");
        self.bellwether = Some(child);
    }

    /// `bellwether run` with the demo's configuration instead of the demo, which takes its servers along when it ends.
    /// `option`: `--takeover`, in place of the process that runs, which goes on for as long as it likes.
    pub(crate) fn run_bellwether(&mut self, option: Option<&str>) -> Option<Former> {
        let former = self.bellwether.take().map(|child| {
            let pid_file = self.dir.join(format!("bellwether.{}.pid", child.id()));
            fs::rename(self.dir.join("bellwether.pid"), &pid_file).expect("pid file");
            Former { child, pid_file }
        });
        let child = self.spawn_run(&self.data().join("bellwether.yaml"), option);
        fs::write(self.dir.join("bellwether.pid"), format!("{}\n", child.id())).expect("pid file");
        self.bellwether = Some(child);
        former
    }

    /// `bellwether run`, whoever else runs.
    pub(crate) fn spawn_run(&self, config: &Path, option: Option<&str>) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("log file");
        let mut command = bellwether();
        if let Some(disk) = &self.disk {
            disk.put_under(&mut command);
        }
        command.arg("run").args(option).arg("--config").arg(config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log file")).stderr(log).spawn().expect("bellwether starts")
    }

    /// Whether it has come to its end by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.bellwether.as_mut().expect("it was started").try_wait().expect("wait").is_some()
    }

    /// How it ended by itself.
    pub(crate) fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.bellwether.take().expect("bellwether runs");
        let ended = eventually("its end", limit, || {
            child.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
        });
        fs::remove_file(self.dir.join("bellwether.pid")).expect("pid file");
        ended
    }

    /// Ctrl-C; how the demo ended.
    pub(crate) fn interrupt_bellwether(&mut self) -> ExitStatus {
        let mut child = self.bellwether.take().expect("bellwether runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("signal");
        let ended = eventually("the demo's end", READY, || {
            child.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
        });
        // Nothing of it is left for the guardian: its pid may be another's by then.
        fs::remove_file(self.dir.join("bellwether.pid")).expect("pid file");
        ended
    }

    /// The same cluster, with `change` made to its `bellwether.yaml`.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut serde_yaml::Value)) {
        self.kill_bellwether();
        self.rewrite(change);
        self.start_bellwether();
        self.await_steady();
    }

    /// Makes `change` to the `bellwether.yaml`, and leaves alone who runs with it.
    pub(crate) fn rewrite(&self, change: impl FnOnce(&mut serde_yaml::Value)) {
        let mut config = self.config();
        change(&mut config);
        let yaml = serde_yaml::to_string(&config).expect("YAML");
        fs::write(self.data().join("bellwether.yaml"), yaml).expect("bellwether.yaml");
    }

    /// `kill -9`: no goodbye to anybody.
    pub(crate) fn kill_bellwether(&mut self) {
        let mut child = self.bellwether.take().expect("bellwether runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Waits until writes are open and every standby streams from the relay.
    pub(crate) fn await_steady(&mut self) {
        let standbys = self.options.nodes - 1;
        eventually("a steady cluster", READY, || {
            self.check_alive()?;
            let cluster = self.api("/api/v1/cluster")?;
            let open = cluster["directive"]["writes"]["state"] == "open";
            let streaming = cluster["followers"]
                .as_array()
                .map_or(0, |followers| followers.iter().filter(|f| f["state"] == "streaming").count());
            if open && streaming == standbys { Ok(()) } else { Err(cluster.to_string()) }
        });
    }

    fn check_alive(&mut self) -> Result<(), String> {
        let child = self.bellwether.as_mut().ok_or("bellwether was killed")?;
        match child.try_wait().expect("wait") {
            None => Ok(()),
            Some(status) => panic!("bellwether ended early: {status}\n{}", self.log()),
        }
    }

    /// It has been elected, and writes are open.
    pub(crate) fn await_primary(&self, server: &Server) {
        eventually("another primary", READY, || {
            let directive = self.api("/api/v1/cluster")?["directive"].clone();
            let open = directive["writes"]["state"] == "open";
            if open && directive["primary"] == *server.name { Ok(()) } else { Err(directive.to_string()) }
        });
    }

    pub(crate) fn signal_bellwether(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.bellwether_pid()).expect("a pid"));
        kill(pid, signal).expect("signal");
    }

    /// GET on the admin address.
    pub(crate) fn api(&self, path: &str) -> Result<Value, String> {
        self.api_at(self.admin_port, path)
    }

    /// GET on another instance's.
    pub(crate) fn api_at(&self, admin_port: u16, path: &str) -> Result<Value, String> {
        let (status, body) = self.http_at(admin_port, "GET", path)?;
        if status != 200 {
            return Err(format!("{path}: HTTP {status}: {body}"));
        }
        serde_json::from_str(&body).map_err(|e| format!("{path}: {e}: {body}"))
    }

    /// Status code and body.
    pub(crate) fn http(&self, method: &str, path: &str) -> Result<(u16, String), String> {
        self.http_at(self.admin_port, method, path)
    }

    pub(crate) fn http_at(&self, admin_port: u16, method: &str, path: &str) -> Result<(u16, String), String> {
        let exchange = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect(("127.0.0.1", admin_port))?;
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
            write!(socket, "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|e| format!("{method} {path}: {e}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the HTTP header")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no HTTP status")?;
        Ok((status, body.to_owned()))
    }

    /// The value of one metric line, labels included in `name`.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        self.metric_at(self.admin_port, name)
    }

    /// Of another instance.
    pub(crate) fn metric_at(&self, admin_port: u16, name: &str) -> Option<f64> {
        let (_, body) = self.http_at(admin_port, "GET", "/metrics").ok()?;
        body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub(crate) fn primary(&self) -> Server {
        let cluster = self.api("/api/v1/cluster").expect("cluster state");
        let name = cluster["directive"]["primary"].as_str().expect("a primary").to_owned();
        self.server(&name)
    }

    pub(crate) fn standbys(&self) -> Vec<Server> {
        let primary = self.primary().name;
        self.servers().into_iter().filter(|server| server.name != primary).collect()
    }

    pub(crate) fn server(&self, name: &str) -> Server {
        self.servers().into_iter().find(|server| server.name == name).expect("a configured node")
    }

    pub(crate) fn servers(&self) -> Vec<Server> {
        let config = self.config();
        let nodes = config["nodes"].as_sequence().expect("nodes").clone();
        let text = |value: &serde_yaml::Value| value.as_str().expect("a string").to_owned();
        nodes
            .iter()
            .map(|node| Server {
                name: text(&node["name"]),
                port: text(&node["address"]).rsplit(':').next().and_then(|p| p.parse().ok()).expect("port"),
                data_dir: PathBuf::from(text(&node["local"]["data_dir"])),
            })
            .collect()
    }

    /// The `bellwether.yaml` that the demo wrote and runs with.
    pub(crate) fn config(&self) -> serde_yaml::Value {
        let path = self.data().join("bellwether.yaml");
        serde_yaml::from_str(&fs::read_to_string(&path).expect("bellwether.yaml")).expect("YAML")
    }

    pub(crate) fn wal_dir(&self) -> PathBuf {
        PathBuf::from(self.config()["wal"]["dir"].as_str().expect("wal.dir"))
    }

    /// Password of Bellwether's own login, a superuser in the demo.
    pub(crate) fn superuser_password(&self) -> String {
        let config = self.config();
        let file = config["server_login"]["password_file"].as_str().expect("password_file");
        fs::read_to_string(file).expect("password file").trim().to_owned()
    }

    /// What a user types after `psql`.
    pub(crate) fn conninfo(&self) -> String {
        self.conninfo_at(self.port)
    }

    /// The same login at another port: a server's, or another pooler's.
    pub(crate) fn conninfo_at(&self, port: u16) -> String {
        format!("host=127.0.0.1 port={port} user=app password=demo dbname=app")
    }

    pub(crate) fn bellwether_pid(&self) -> u32 {
        self.bellwether.as_ref().expect("bellwether runs").id()
    }

    /// Servers refuse to run as root: `command` runs as the owner of the data directories.
    pub(crate) fn run_as_server_user(&self, command: &mut Command) {
        use std::os::unix::fs::MetadataExt;
        use std::os::unix::process::CommandExt;
        let owner = fs::metadata(&self.servers()[0].data_dir).expect("data directory");
        if nix::unistd::geteuid().is_root() {
            command.gid(owner.gid()).uid(owner.uid());
        }
    }

    /// Straight to a server, past the endpoint, as superuser.
    pub(crate) fn direct_conninfo(&self, server: &Server, database: &str) -> String {
        let password = self.superuser_password();
        format!("host=127.0.0.1 port={} user=bellwether password={password} dbname={database}", server.port)
    }

    /// Whether the servers are of the same major version as [`Cluster::program`]'s programs.
    pub(crate) fn is_of_the_distribution(&self) -> bool {
        self.options.pg_bin.is_none()
    }

    /// A program of the distribution's PostgreSQL (psql, pgbench, pg_waldump), with `PG*` unset.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(distribution_bin().join(name));
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("PG")) {
            command.env_remove(key);
        }
        command
    }

    /// Runs `sql` with psql through the endpoint; its output, or its error.
    pub(crate) fn psql(&self, sql: &str) -> Result<String, String> {
        self.psql_at(&self.conninfo(), sql)
    }

    pub(crate) fn psql_at(&self, conninfo: &str, sql: &str) -> Result<String, String> {
        let output = self
            .program("psql")
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-c", sql])
            .arg("-d")
            .arg(conninfo)
            .output()
            .expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The postmaster's pid.
    pub(crate) fn pid(&self, server: &Server) -> Option<Pid> {
        let file = fs::read_to_string(server.data_dir.join("postmaster.pid")).ok()?;
        file.lines().next()?.trim().parse().ok().map(Pid::from_raw)
    }

    pub(crate) fn signal(&self, server: &Server, signal: Signal) {
        kill(self.pid(server).expect("a running server"), signal).expect("signal");
    }

    /// Nobody is left to finish anything.
    pub(crate) fn lose_machine(&self, server: &Server) {
        self.signal_machine(server, Signal::SIGKILL);
    }

    /// To its postmaster and all of its processes at once.
    pub(crate) fn signal_machine(&self, server: &Server, signal: Signal) {
        let postmaster = self.pid(server).expect("a running server");
        let processes = fs::read_dir("/proc").expect("processes").filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            (parent.trim() == postmaster.to_string()).then(|| Pid::from_raw(pid))
        });
        let children: Vec<Pid> = processes.collect();
        for pid in std::iter::once(postmaster).chain(children) {
            // One of them may just have ended.
            let _ = kill(pid, signal);
        }
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.join("bellwether.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Of everything that belongs to the test.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("cluster")
    }

    fn unexpected_log_lines(&self) -> Vec<String> {
        let alarming =
            |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked at");
        let expected = |line: &&str| self.options.expected_warnings.iter().any(|part| line.contains(part));
        self.log().lines().filter(alarming).filter(|line| !expected(line)).map(str::to_owned).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let log = self.log();
        let unexpected = self.unexpected_log_lines();
        if let Some(mut child) = self.bellwether.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.guardian.finish();
        if std::thread::panicking() {
            let tail: Vec<&str> = log.lines().rev().take(120).collect();
            eprintln!("--- the end of bellwether's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(unexpected.is_empty(), "unexpected WARN or ERROR lines:\n{}", unexpected.join("\n"));
        }
    }
}

/// The program under test.
pub(crate) fn bellwether() -> Command {
    Command::new(env!("CARGO_BIN_EXE_bellwether"))
}

/// Where the distribution keeps the newest server's programs.
pub(crate) fn distribution_bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL of the distribution");
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("a PostgreSQL version");
    Path::new("/usr/lib/postgresql").join(newest.to_string()).join("bin")
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}
