//! Several instances of one cluster, each beside one of its servers, with a real etcd between them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cluster::{Cluster, Options, Server, bellwether};
use super::etcd::Etcd;
use super::port::free_port;
use super::wait::eventually;

const LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Instances {
    pub(crate) etcd: Etcd,
    members: Vec<Member>,
    /// The servers, made by a demo that does not run any more.
    pub(crate) cluster: Cluster,
    expected_warnings: &'static [&'static str],
}

/// One instance.
struct Member {
    name: String,
    port: u16,
    admin_port: u16,
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl Member {
    fn new(cluster: &Cluster, n: usize) -> Member {
        Member {
            name: format!("bw{n}"),
            port: free_port(),
            admin_port: free_port(),
            config: cluster.data().join(format!("bw{n}.yaml")),
            log: cluster.dir().join(format!("bw{n}.log")),
            process: None,
        }
    }
}

/// The process before a takeover.
pub(crate) struct Former(Child);

impl Former {
    pub(crate) fn await_end(mut self) {
        let ended = eventually("the end of the process before", LIMIT, || {
            self.0.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
        });
        assert!(ended.success(), "{ended}");
    }
}

impl Drop for Former {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Instances {
    /// As many as there are servers: `bw1` beside `pg1`, and so on. When it returns, all of them serve and every standby
    /// streams.
    pub(crate) fn start(options: Options) -> Instances {
        let expected_warnings = options.expected_warnings;
        let mut cluster = Cluster::start(options);
        cluster.kill_bellwether();
        let etcd = Etcd::start(1);
        let servers = cluster.servers();
        let members: Vec<Member> = (1..=servers.len()).map(|n| Member::new(&cluster, n)).collect();
        // For all endpoints; the demo's has one line for its own.
        let login = format!("*:*:*:bellwether:{}\n", cluster.superuser_password());
        fs::write(cluster.data().join("pgpass"), login).expect("a password file");
        let mut instances = Instances { etcd, members, cluster, expected_warnings };
        for (n, server) in servers.iter().enumerate() {
            instances.configure(n, server);
            instances.point(server);
        }
        (0..servers.len()).for_each(|n| instances.spawn(n));
        instances.await_steady();
        instances
    }

    /// One more, beside no server, whose list has all; it runs when this returns.
    pub(crate) fn join(&mut self, change: impl FnOnce(&mut serde_yaml::Value)) -> usize {
        let n = self.members.len();
        self.members.push(Member::new(&self.cluster, n + 1));
        let all: Vec<usize> = (0..=n).collect();
        let (mut config, own) = (self.config(0), &self.members[n]);
        let yaml = |text: String| serde_yaml::from_str::<serde_yaml::Value>(&text).expect("YAML");
        config["instance"] = own.name.as_str().into();
        config["listen"] = yaml(format!("[{{address: '127.0.0.1:{}'}}]", own.port));
        config["admin"] = yaml(format!("{{address: '127.0.0.1:{}'}}", own.admin_port));
        config["wal"]["dir"] = self.file_of(own, "wal").into();
        config["state"]["file"] = self.file_of(own, "state").into();
        for node in config["nodes"].as_sequence_mut().expect("nodes") {
            node.as_mapping_mut().expect("a node").remove("local");
        }
        change(&mut config);
        fs::write(&own.config, serde_yaml::to_string(&config).expect("YAML")).expect("a configuration");
        self.list(n, &all);
        self.spawn(n);
        n
    }

    /// `n` is to know these, and no other. For its next process.
    pub(crate) fn list(&self, n: usize, instances: &[usize]) {
        let peers: Vec<String> = instances
            .iter()
            .filter(|other| **other != n)
            .map(|other| &self.members[*other])
            .map(|peer| format!("{{instance: {}, address: '127.0.0.1:{}'}}", peer.name, peer.port))
            .collect();
        let peers = serde_yaml::from_str(&format!("[{}]", peers.join(", "))).expect("YAML");
        self.rewrite(n, |config| config["peers"] = peers);
    }

    fn file_of(&self, member: &Member, what: &str) -> String {
        self.cluster.data().join(format!("{what}-{}", member.name)).to_string_lossy().into_owned()
    }

    fn configure(&self, n: usize, server: &Server) {
        use serde_yaml::Value;
        let mut config = self.cluster.config();
        let own = &self.members[n];
        let yaml = |text: String| serde_yaml::from_str::<Value>(&text).expect("YAML");
        config["instance"] = own.name.as_str().into();
        config["listen"] = yaml(format!("[{{address: '127.0.0.1:{}'}}]", own.port));
        config["admin"] = yaml(format!("{{address: '127.0.0.1:{}'}}", own.admin_port));
        config["wal"]["dir"] = self.file_of(own, "wal").into();
        let state = self.file_of(own, "state");
        let endpoints = self.etcd.endpoints().join("', '");
        config["state"] =
            yaml(format!("{{file: '{state}', etcd: {{endpoints: ['{endpoints}'], lease: 5s}}}}"));
        for node in config["nodes"].as_sequence_mut().expect("nodes") {
            if node["name"] != *server.name {
                node.as_mapping_mut().expect("a node").remove("local");
            }
        }
        fs::write(&own.config, serde_yaml::to_string(&config).expect("YAML")).expect("a configuration");
        self.list(n, &(0..self.members.len()).collect::<Vec<_>>());
    }

    pub(crate) fn config(&self, n: usize) -> serde_yaml::Value {
        let text = fs::read_to_string(&self.members[n].config).expect("its configuration");
        serde_yaml::from_str(&text).expect("YAML")
    }

    /// For its next process.
    pub(crate) fn rewrite(&self, n: usize, change: impl FnOnce(&mut serde_yaml::Value)) {
        let mut config = self.config(n);
        change(&mut config);
        fs::write(&self.members[n].config, serde_yaml::to_string(&config).expect("YAML")).expect("written");
    }

    /// The standby's upstream is all instances, its own host's first.
    fn point(&self, server: &Server) {
        let own = self.beside(server);
        let mut ports: Vec<String> = self.members.iter().map(|member| member.port.to_string()).collect();
        ports.rotate_left(own);
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        let conninfo = format!(
            "host={hosts} port={} user=bellwether password={} connect_timeout=2 dbname=postgres application_name={}",
            ports.join(","),
            self.cluster.superuser_password(),
            server.name
        );
        let alter = format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'");
        let at = self.cluster.direct_conninfo(server, "postgres");
        for sql in [alter.as_str(), "SELECT pg_reload_conf()"] {
            self.cluster.psql_at(&at, sql).expect("a superuser");
        }
    }

    pub(crate) fn spawn(&mut self, n: usize) {
        self.members[n].process = Some(self.run(n, None));
    }

    fn run(&self, n: usize, option: Option<&str>) -> Child {
        let member = &self.members[n];
        let log = fs::File::options().create(true).append(true).open(&member.log).expect("log file");
        let mut command = bellwether();
        command.arg("run").args(option).arg("--config").arg(&member.config).stdin(Stdio::null());
        let process =
            command.stdout(log.try_clone().expect("log file")).stderr(log).spawn().expect("bellwether");
        let pid_file = self.cluster.dir().join(format!("bellwether-{}.pid", member.name));
        fs::write(pid_file, process.id().to_string()).expect("pid file");
        process
    }

    /// A new process takes the place of the one that runs, which is returned: it ends by itself.
    pub(crate) fn take_over(&mut self, n: usize) -> Former {
        let took = |instances: &Instances| instances.log(n).matches("took over").count();
        let before = took(self);
        let process = self.run(n, Some("--takeover"));
        let former = self.members[n].process.replace(process).expect("it runs");
        eventually("the takeover", LIMIT, || if took(self) > before { Ok(()) } else { Err(self.log(n)) });
        Former(former)
    }

    /// The instance on the server's host.
    pub(crate) fn beside(&self, server: &Server) -> usize {
        let servers = self.cluster.servers();
        servers.iter().position(|other| other.name == server.name).expect("a server")
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn kill(&mut self, n: usize) {
        let mut process = self.members[n].process.take().expect("it runs");
        process.kill().expect("it is ours");
        process.wait().expect("it is ours");
    }

    /// In order; others may take over what it did at once.
    pub(crate) fn stop(&mut self, n: usize) {
        self.signal(n, Signal::SIGTERM);
        let mut process = self.members[n].process.take().expect("it runs");
        eventually("its end", LIMIT, || {
            process.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
        });
    }

    pub(crate) fn signal(&self, n: usize, signal: Signal) {
        let process = self.members[n].process.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(process.id()).expect("a pid")), signal).expect("it is ours");
    }

    pub(crate) fn runs(&self, n: usize) -> bool {
        self.members[n].process.is_some()
    }

    pub(crate) fn state(&self, n: usize) -> Result<Value, String> {
        self.cluster.api_at(self.members[n].admin_port, "/api/v1/cluster")
    }

    pub(crate) fn order(&self, n: usize, path: &str) -> Result<(u16, String), String> {
        self.cluster.http_at(self.members[n].admin_port, "POST", path)
    }

    pub(crate) fn history(&self, n: usize) -> Result<Value, String> {
        self.cluster.api_at(self.members[n].admin_port, "/api/v1/history")
    }

    /// Who leads, by what the instances themselves say.
    pub(crate) fn leader(&self) -> Result<usize, String> {
        let running = (0..self.members.len()).filter(|n| self.runs(*n));
        let leads = |n: &usize| self.state(*n).is_ok_and(|state| state["leader"] == *self.members[*n].name);
        let leaders: Vec<usize> = running.filter(leads).collect();
        match leaders[..] {
            [leader] => Ok(leader),
            _ => Err(format!("leaders: {leaders:?}")),
        }
    }

    pub(crate) fn await_leader(&self) -> usize {
        eventually("a leader", LIMIT, || self.leader())
    }

    /// As an application names several: the first that answers is used.
    pub(crate) fn conninfo(&self) -> String {
        self.conninfo_of_all(&self.members.iter().collect::<Vec<_>>())
    }

    pub(crate) fn conninfo_without(&self, n: usize) -> String {
        let name = &self.members[n].name;
        self.conninfo_of_all(&self.members.iter().filter(|member| member.name != *name).collect::<Vec<_>>())
    }

    fn conninfo_of_all(&self, members: &[&Member]) -> String {
        let ports: Vec<String> = members.iter().map(|member| member.port.to_string()).collect();
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        format!("host={hosts} port={} user=app password=demo dbname=app connect_timeout=2", ports.join(","))
    }

    pub(crate) fn conninfo_of(&self, n: usize) -> String {
        self.cluster.conninfo_at(self.members[n].port)
    }

    /// Its SQL console, for everything.
    pub(crate) fn console_of(&self, n: usize) -> String {
        let (port, password) = (self.members[n].port, self.cluster.superuser_password());
        format!("host=127.0.0.1 port={port} user=bellwether password={password} dbname=bellwether")
    }

    /// The value of one line of its metrics, labels included in `name`.
    pub(crate) fn metric(&self, n: usize, name: &str) -> Option<f64> {
        self.cluster.metric_at(self.members[n].admin_port, name)
    }

    /// All instances that run say that writes are open, to the same primary; and each of the servers in `away` but no
    /// other is no standby of it.
    pub(crate) fn await_steady_without(&self, away: &[&str]) -> Server {
        let servers = self.cluster.servers();
        eventually("all instances serve", LIMIT, || {
            let mut primaries = Vec::new();
            for n in (0..self.members.len()).filter(|n| self.runs(*n)) {
                let state = self.state(n)?;
                if state["directive"]["writes"]["state"] != "open" {
                    return Err(state.to_string());
                }
                let primary = state["directive"]["primary"].as_str().ok_or("no primary")?.to_owned();
                let streams = |server: &&Server| {
                    let follows =
                        |f: &&Value| f["application_name"] == *server.name && f["state"] != "startup";
                    state["followers"].as_array().is_some_and(|all| all.iter().any(|f| follows(&f)))
                };
                let standbys = servers.iter().filter(|server| server.name != primary);
                let mut standbys = standbys.filter(|server| !away.contains(&server.name.as_str()));
                if let Some(missing) = standbys.find(|server| !streams(server)) {
                    return Err(format!("{} does not stream: {state}", missing.name));
                }
                primaries.push(primary);
            }
            primaries.dedup();
            match &primaries[..] {
                [primary] => Ok(self.cluster.server(primary)),
                _ => Err(format!("primaries: {primaries:?}")),
            }
        })
    }

    pub(crate) fn await_steady(&self) -> Server {
        self.await_steady_without(&[])
    }

    pub(crate) fn log(&self, n: usize) -> String {
        fs::read_to_string(&self.members[n].log).unwrap_or_default()
    }

    /// A command of `bellwether` that asks instance `n`.
    pub(crate) fn command(&self, n: usize, arguments: &[&str]) -> Command {
        let mut command = bellwether();
        command.args(arguments).arg("--config").arg(&self.members[n].config);
        command
    }

    fn unexpected_log_lines(&self) -> Vec<String> {
        let alarming =
            |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked at");
        let expected = |line: &&str| self.expected_warnings.iter().any(|part| line.contains(part));
        let lines = |n| {
            let log = self.log(n);
            let lines = log.lines().filter(alarming).filter(|line| !expected(line));
            lines.map(|line| format!("bw{}: {line}", n + 1)).collect::<Vec<_>>()
        };
        (0..self.members.len()).flat_map(lines).collect()
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        let unexpected = self.unexpected_log_lines();
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            for n in 0..self.members.len() {
                let log = self.log(n);
                eprintln!("--- the end of the log of bw{}", n + 1);
                let tail: Vec<&str> = log.lines().rev().take(60).collect();
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        } else {
            assert!(unexpected.is_empty(), "unexpected WARN or ERROR lines:\n{}", unexpected.join("\n"));
        }
    }
}
