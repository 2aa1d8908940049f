//! A cluster on the hosts of a layout, what it says of itself, and what each of its servers says directly.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio_postgres::NoTls;

use super::check::writable::Order;
use super::daemon::{Daemon, Supervisor};
use super::hosts::{self, Enter, Host, Lan, Slow};
use super::layout::Layout;
use super::{config, load};
use crate::harness::{distribution_bin, set_mode};

pub(crate) const SERVER_PORT: u16 = 5432;
pub(crate) const PORT: u16 = 6432;
pub(crate) const ADMIN_PORT: u16 = 9632;
pub(crate) const ETCD_PORT: u16 = 2379;
pub(crate) const ETCD_PEER_PORT: u16 = 2380;
/// Of Bellwether's own login, a superuser. Nobody else is on this network.
pub(crate) const PASSWORD: &str = "chaos";

/// One answer of an instance or a server, connection included.
const ANSWER: Duration = Duration::from_secs(1);
/// The first server's first words; a database is copied.
const BEGIN: Duration = Duration::from_secs(30);

/// Every host is full of processes of the same few programs: their memory is small, and what they keep is short.
const SETTINGS: &str = "
wal_level = replica
max_wal_senders = 20
max_replication_slots = 20
max_connections = 100
shared_buffers = 32MB
min_wal_size = 64MB
max_wal_size = 128MB
hot_standby = on
hot_standby_feedback = on
wal_log_hints = on
wal_keep_size = 64MB
wal_retrieve_retry_interval = 500ms
wal_receiver_status_interval = 1s
wal_receiver_timeout = 10s
wal_sender_timeout = 10s
password_encryption = scram-sha-256
log_line_prefix = '%m [%p] %q%u@%d/%a '
unix_socket_directories = ''
";

/// On a network of their own.
const HBA: &str = "\
host all all 10.99.0.0/24 scram-sha-256
host replication all 10.99.0.0/24 scram-sha-256
";

pub(crate) struct Cluster {
    // Dropped in this order: nothing is started again while the hosts go.
    supervisor: Supervisor,
    pub(crate) runtime: Handle,
    pub(crate) layout: &'static Layout,
    pub(crate) lan: Arc<Lan>,
}

/// What an instance says.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) order: Order,
    whole: Value,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whole.fmt(f)
    }
}

impl Cluster {
    /// Starts the first server, makes copies of it for the others, and starts etcd and the instances; those start the
    /// others.
    pub(crate) fn start(layout: &'static Layout, runtime: Handle, lan: Lan) -> Cluster {
        let lan = Arc::new(lan);
        fs::create_dir(lan.dir.join("log")).expect("a directory");
        fs::write(lan.dir.join("password"), PASSWORD).expect("a file");
        fs::write(lan.dir.join("app.password"), load::PASSWORD).expect("a file");
        let slow = Arc::new(Slow::build(&lan.dir));
        let enter = Enter::build(&lan.dir);
        let mut daemons = Vec::new();
        for (host, name) in layout.etcds() {
            daemons.push(etcd(layout, &lan, host, name));
        }
        for (agent, name) in layout.instances() {
            for (host, _) in layout.nodes().filter(|(host, _)| layout.is_agent(agent, *host)) {
                programs(&lan.hosts[host], (agent != host).then_some((&enter, &*slow)));
            }
            let yaml = config::instance(layout, &lan, agent);
            let file = lan.dir.join(format!("{name}.yaml"));
            fs::write(&file, yaml).expect("a configuration");
            daemons.push(instance(&lan, &slow, agent, name, &file));
        }
        let cluster = Cluster { supervisor: Supervisor::over(daemons), runtime, layout, lan };
        cluster.start_first_server(&slow);
        cluster.copy_first_server();
        cluster.daemons().iter().for_each(Daemon::release);
        cluster
    }

    pub(crate) fn daemons(&self) -> &[Daemon] {
        &self.supervisor.daemons
    }

    fn start_first_server(&self, slow: &Slow) {
        let (host, node) = self.layout.nodes().next().expect("a cluster has servers");
        let host = &self.lan.hosts[host];
        let data_dir = data_dir(host, node);
        let password = self.lan.dir.join("password");
        let initdb = distribution_bin().join("initdb");
        let mut initdb = as_servers_user(host, &initdb);
        initdb.args([
            "-U",
            "bellwether",
            "-A",
            "scram-sha-256",
            "-k",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        run(initdb.arg("--pwfile").arg(password).arg("-D").arg(&data_dir));
        let conf = data_dir.join("postgresql.conf");
        let settings = fs::read_to_string(&conf).expect("postgresql.conf") + SETTINGS;
        let own =
            format!("listen_addresses = '{}'\nport = {SERVER_PORT}\ncluster_name = '{node}'\n", host.address);
        fs::write(&conf, settings).expect("postgresql.conf");
        fs::write(data_dir.join("postgresql.auto.conf"), own).expect("postgresql.auto.conf");
        fs::write(data_dir.join("pg_hba.conf"), HBA).expect("pg_hba.conf");
        let mut start = as_servers_user(host, &distribution_bin().join("pg_ctl"));
        start.envs(slow.environment(host)).args(["start", "--wait", "--silent", "-D"]).arg(&data_dir);
        run(start.arg("-l").arg(host.dir.join(format!("{node}.log"))));
        let ask = |sql: &str| {
            let answer = self.runtime.block_on(ask(host.address, "postgres", sql, BEGIN));
            answer.expect("a fresh server answers")
        };
        ask(&format!("CREATE ROLE {} LOGIN PASSWORD '{}'", load::USER, load::PASSWORD));
        ask(&format!("CREATE DATABASE {} OWNER {}", load::DATABASE, load::USER));
    }

    /// As standbys of the instances.
    fn copy_first_server(&self) {
        let mut nodes = self.layout.nodes();
        let (first, _) = nodes.next().expect("a cluster has servers");
        for (number, node) in nodes {
            let (host, data_dir) = (&self.lan.hosts[number], data_dir(&self.lan.hosts[number], node));
            let mut copy = as_servers_user(host, &distribution_bin().join("pg_basebackup"));
            copy.env("PGPASSWORD", PASSWORD).args(["-U", "bellwether", "--checkpoint=fast", "--no-sync"]);
            copy.arg("-h").arg(self.lan.hosts[first].address.to_string());
            run(copy.arg("-p").arg(SERVER_PORT.to_string()).arg("-D").arg(&data_dir));
            let settings =
                config::server(host, node) + &config::standby(self.layout, &self.lan, number, node);
            fs::write(data_dir.join("postgresql.auto.conf"), settings).expect("postgresql.auto.conf");
            let signal = data_dir.join("standby.signal");
            fs::write(&signal, "").expect("standby.signal");
            let user = hosts::server_user();
            chown(&signal, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("owner");
        }
    }

    /// The rows of one question to a server, past the endpoint, as superuser; columns separated by `|`.
    pub(crate) fn ask(&self, host: usize, sql: &str) -> Result<Vec<String>, String> {
        self.ask_for(host, sql, ANSWER)
    }

    /// As [`Cluster::ask`], with more patience.
    pub(crate) fn ask_for(&self, host: usize, sql: &str, limit: Duration) -> Result<Vec<String>, String> {
        self.runtime.block_on(ask(self.lan.hosts[host].address, load::DATABASE, sql, limit))
    }

    /// Of the latest term that any instance tells.
    pub(crate) fn view(&self) -> Option<View> {
        let views = self.layout.instances().filter_map(|(host, _)| self.view_of(host).ok());
        views.max_by_key(|view| (view.order.term, view.order.primary.is_some()))
    }

    pub(crate) fn view_of(&self, host: usize) -> Result<View, String> {
        let whole = self.http(host, "GET", "/api/v1/cluster")?;
        let whole: Value = serde_json::from_str(&whole).map_err(|error| format!("{error}: {whole}"))?;
        let directive = &whole["directive"];
        let term = directive["term"].as_u64().ok_or_else(|| format!("no term: {whole}"))?;
        let open = directive["writes"]["state"] == "open";
        let primary = directive["primary"].as_str().filter(|_| open).map(str::to_owned);
        Ok(View { order: Order { term, primary }, whole })
    }

    /// The host of the primary, if writes are open.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.host_of(&self.view()?.order.primary?)
    }

    pub(crate) fn host_of(&self, node: &str) -> Option<usize> {
        self.layout.nodes().find_map(|(host, name)| (name == node).then_some(host))
    }

    /// To the first instance that takes it.
    pub(crate) fn order(&self, path: &str) -> Result<(), String> {
        let mut refused = String::new();
        for (host, _) in self.layout.instances() {
            match self.http(host, "POST", path) {
                Ok(_) => return Ok(()),
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }

    fn http(&self, host: usize, method: &str, path: &str) -> Result<String, String> {
        let address = SocketAddr::from((self.lan.hosts[host].address, ADMIN_PORT));
        let exchange = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect_timeout(&address, ANSWER)?;
            socket.set_read_timeout(Some(ANSWER))?;
            write!(socket, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| format!("{method} {path} at {address}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the HTTP header")?;
        if head.split(' ').nth(1) == Some("200") {
            Ok(body.to_owned())
        } else {
            Err(format!("{path}: {body}"))
        }
    }

    /// Everything serves, as before the fault: all instances obey one order, writes are open, one server is no standby,
    /// and the others stream.
    pub(crate) fn is_whole(&self) -> Result<(), String> {
        let views: Vec<View> =
            self.layout.instances().map(|(host, _)| self.view_of(host)).collect::<Result<_, _>>()?;
        let first = views.first().ok_or("no instance")?;
        if let Some(other) = views.iter().find(|view| view.order != first.order) {
            return Err(format!("{:?} and {:?}", first.order, other.order));
        }
        let primary = first.order.primary.as_deref().and_then(|primary| self.host_of(primary));
        let primary = primary.ok_or_else(|| format!("nobody may write: {}", first.whole["directive"]))?;
        for (host, node) in self.layout.nodes() {
            let streams = "SELECT pg_is_in_recovery(), \
                           coalesce((SELECT status FROM pg_stat_wal_receiver), 'no walreceiver')";
            let is = self.ask(host, streams).map_err(|why| format!("{node}: {why}"))?.concat();
            let expected = if host == primary { "f|no walreceiver" } else { "t|streaming" };
            if is != expected {
                return Err(format!("{node}: {is}, not {expected}"));
            }
        }
        Ok(())
    }

    /// `Err`: the last complaint of [`Cluster::is_whole`].
    pub(crate) fn await_whole(&self, limit: Duration) -> Result<Duration, String> {
        let begin = Instant::now();
        loop {
            match self.is_whole() {
                Ok(()) => return Ok(begin.elapsed()),
                Err(why) if begin.elapsed() >= limit => return Err(why),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The data directory is gone, and the server with it; whoever looks finds nothing, not a half.
    pub(crate) fn lose_data(&self, host: usize) {
        let node = self.layout.hosts[host].node.expect("a host with a server");
        let host = &self.lan.hosts[host];
        let lost = host.dir.join("lost");
        fs::rename(data_dir(host, node), &lost).expect("a data directory");
        hosts::signal_all(&host.servers_processes(), Signal::SIGKILL);
        fs::remove_dir_all(&lost).expect("nobody uses it any more");
    }

    /// One of a server's processes without which it restarts itself.
    pub(crate) fn checkpointer(&self, host: usize) -> Option<Pid> {
        let pid = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        self.ask(host, pid).ok()?.first()?.parse().ok().map(Pid::from_raw)
    }

    pub(crate) fn endpoints(&self) -> Vec<SocketAddr> {
        self.layout
            .instances()
            .map(|(host, _)| SocketAddr::from((self.lan.hosts[host].address, PORT)))
            .collect()
    }

    /// What the instances have logged.
    pub(crate) fn logs(&self) -> Vec<String> {
        let instances = self.layout.instances();
        let log = |(_, name)| {
            let daemon = self.daemons().iter().find(|daemon| daemon.name == name)?;
            fs::read_to_string(&daemon.log).ok()
        };
        instances.filter_map(log).collect()
    }

    /// Copies everybody's log there.
    pub(crate) fn keep_logs(&self, to: &Path) {
        fs::create_dir_all(to).expect("a directory");
        let servers =
            self.layout.nodes().map(|(host, node)| self.lan.hosts[host].dir.join(format!("{node}.log")));
        for log in self.daemons().iter().map(|daemon| daemon.log.clone()).chain(servers) {
            if let Some(name) = log.file_name() {
                // One that never started has none.
                let _ = fs::copy(&log, to.join(name));
            }
        }
    }
}

pub(crate) fn data_dir(host: &Host, node: &str) -> PathBuf {
    host.dir.join(node)
}

/// Where its agent finds the host's PostgreSQL.
pub(crate) fn bin_dir(host: &Host) -> PathBuf {
    host.dir.with_extension("bin")
}

/// PostgreSQL's programs as a directory of links. `pg_rewind` fails on demand. For an agent on another host `pg_ctl` goes
/// over there first.
fn programs(host: &Host, remote: Option<(&Enter, &Slow)>) {
    let here = bin_dir(host);
    fs::create_dir(&here).expect("a directory");
    for program in fs::read_dir(distribution_bin()).expect("PostgreSQL").flatten() {
        std::os::unix::fs::symlink(program.path(), here.join(program.file_name())).expect("a link");
    }
    let real = distribution_bin();
    let real = real.display();
    let no_rewind = host.no_rewind();
    let rewind = format!("[ ! -e {} ] || exit 1\nexec {real}/pg_rewind \"$@\"", no_rewind.display());
    script(&here.join("pg_rewind"), &rewind);
    if let Some((enter, slow)) = remote {
        let environment = slow.environment(host).map(|(name, value)| format!("{name}={}", value.display()));
        let (enter, door) = (enter.program.display(), host.door());
        let go = format!("exec {enter} --net={} env {}", door.display(), environment.join(" "));
        script(&here.join("pg_ctl"), &format!("{go} {real}/pg_ctl \"$@\""));
    }
}

/// In the place of a link.
fn script(path: &Path, text: &str) {
    fs::remove_file(path).expect("a link");
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    set_mode(path, 0o755);
}

fn instance(lan: &Arc<Lan>, slow: &Arc<Slow>, host: usize, name: &str, config: &Path) -> Daemon {
    let log = lan.dir.join("log").join(format!("{name}.log"));
    let (lan, slow, config) = (Arc::downgrade(lan), slow.clone(), config.to_owned());
    Daemon::new(name, host, log, move || {
        let lan = lan.upgrade().expect("hosts last longer than what runs there");
        let host = &lan.hosts[host];
        let mut command = host.command(Path::new(env!("CARGO_BIN_EXE_bellwether")));
        command.envs(slow.environment(host)).arg("run").arg("--config").arg(&config);
        command
    })
}

fn etcd(layout: &Layout, lan: &Arc<Lan>, host: usize, name: &str) -> Daemon {
    let log = lan.dir.join("log").join(format!("{name}.log"));
    let arguments = config::etcd(layout, lan, host, name);
    let lan = Arc::downgrade(lan);
    Daemon::new(name, host, log, move || {
        let lan = lan.upgrade().expect("hosts last longer than what runs there");
        let mut command = lan.hosts[host].command(Path::new("etcd"));
        command.args(&arguments);
        command
    })
}

fn as_servers_user(host: &Host, program: &Path) -> Command {
    let user = hosts::server_user();
    let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.gid));
    let mut command = host.command(Path::new("setpriv"));
    command.args([uid.as_str(), gid.as_str(), "--clear-groups"]).arg(program).current_dir("/");
    command
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert!(status.expect("it starts").success(), "{command:?}");
}

/// As superuser, straight at a server.
async fn ask(address: Ipv4Addr, database: &str, sql: &str, limit: Duration) -> Result<Vec<String>, String> {
    let asked = async {
        let mut config = tokio_postgres::Config::new();
        config
            .host(address.to_string())
            .port(SERVER_PORT)
            .user("bellwether")
            .password(PASSWORD)
            .dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let answer = client.simple_query(sql).await;
        drop(client);
        connection.abort();
        answer
    };
    let answer = tokio::time::timeout(limit, asked).await.map_err(|_elapsed| "no answer".to_owned())?;
    let told = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(told) => format!("{} {}", told.code().code(), told.message()),
        None => error.to_string(),
    };
    let rows = answer.map_err(told)?.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|column| row.get(column).unwrap_or_default());
            Some(columns.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok(rows.collect())
}
