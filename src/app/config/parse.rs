//! From the document to [`Config`], section by section. Each reader reads all its keys before it gives up on
//! one, so that nothing hides behind the first mistake.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::auth::{against_tls, auth};
use super::etcd::etcd;
use super::events::events;
use super::listen::listener;
use super::reader::{Findings, Parsed, Problem, Section};
use super::secret::{self, PASSWORD, Sources};
use super::tls::for_servers;
use super::units::{duration, duration_or_off, number, on_off, parsed, path, size, text, texts, word};
use super::wal::wal;
use super::{
    Balance, Budget, Config, Consistency, Failover, FailoverMode, Local, Log, LogFormat, NodeConfig, Pool,
    Routing, ServerLogin, Shutdown,
};
use crate::admin::console::Access;
use crate::proxy::PoolMode;
use crate::proxy::limits::{Plan, Settings, Totals};
use crate::proxy::peers::{Mark, Peer};
use crate::topology::{Durability, Node, NodeName};

/// Client connections unless the file says otherwise.
const MAX_CLIENTS: usize = 10_000;
/// Of a budget: so many are remembered (`failover::decide::Budget::MAX`).
const MAX_FAILOVERS: u32 = 100;

/// The configuration in `yaml`, or `None` and the problems that prevent it. Relative paths start at
/// `directory`.
pub fn parse(yaml: &str, directory: &Path, sources: &dyn Sources) -> (Option<Config>, Findings) {
    let mut findings = Findings::default();
    let document = match serde_yaml::from_str(yaml) {
        Ok(document) => document,
        Err(error) => {
            findings.problems.push(Problem { path: String::new(), what: format!("is not YAML: {error}") });
            return (None, findings);
        }
    };
    let parser = Parser { directory, sources };
    let config = Section::document(&document, &mut findings, |root| parser.config(root));
    (config.filter(|_| findings.problems.is_empty()), findings)
}

/// `admin.address` of a document in which nothing else is looked at.
pub(super) fn admin_address(yaml: &str) -> Result<Option<SocketAddr>, Vec<Problem>> {
    let not_yaml = |error| vec![Problem { path: String::new(), what: format!("is not YAML: {error}") }];
    let document: serde_yaml::Value = serde_yaml::from_str(yaml).map_err(not_yaml)?;
    match document.get("admin").and_then(|admin| admin.get("address")) {
        None => Ok(None),
        Some(address) => {
            parsed(address).map(Some).map_err(|what| vec![Problem { path: "admin.address".to_owned(), what }])
        }
    }
}

pub(super) struct Parser<'a> {
    directory: &'a Path,
    pub(super) sources: &'a dyn Sources,
}

impl Parser<'_> {
    fn config(&self, root: &mut Section<'_>) -> Option<Config> {
        let cluster = root.required("cluster", text);
        let instance = root.required("instance", instance);
        let peers = peers(root, instance.as_deref());
        let listen = root.list("listen", |item| listener(item, self.directory));
        if !root.has("listen") {
            root.problem("listen", "is missing");
        }
        let (admin, mut console) = root.section("admin", admin);
        let nodes = self.nodes(root);
        let server_login = root.section("server_login", |login| self.server_login(login));
        let auth = root.section("auth", |section| auth(self, section));
        let pool = root.section("pool", pool);
        let routing = root.section("routing", routing);
        let wal = root.section("wal", |section| wal(section, self.directory));
        let (durability, acks, resolve_commits) =
            root.section("durability", |section| durability(section, peers.len() + 1));
        let failover = root.section("failover", failover);
        let (state_file, etcd) = root.section("state", |state| {
            let file = state.required("file", path).map(|file| self.directory.join(file));
            (file, state.section("etcd", |section| etcd(self, section, self.directory)))
        });
        if etcd.is_some() && cluster.as_ref().is_some_and(|cluster| cluster.contains('/')) {
            root.problem("cluster", "may not have a slash: it is part of the keys in etcd");
        }
        let workers = root.optional("workers", number(1..=1024));
        let log = root.section("log", log);
        let events = root.section("events", events);
        let shutdown = root.section("shutdown", shutdown);
        let tls = root.section("tls", |tls| super::tls::tls(tls, self.directory));
        against_tls(root, &auth.rules, &tls.clients);
        let server_login = server_login?;
        console.users.push(server_login.user.clone());
        Some(Config {
            file: None,
            cluster: cluster?,
            instance: instance?,
            peers,
            listen,
            admin,
            console,
            nodes,
            server_login,
            auth,
            pool,
            routing,
            wal: wal?,
            durability,
            acks,
            resolve_commits,
            failover,
            state_file: state_file?,
            etcd,
            workers,
            tls,
            log,
            events,
            shutdown,
        })
    }

    fn nodes(&self, root: &mut Section<'_>) -> Vec<NodeConfig> {
        let mut nodes: Vec<NodeConfig> = Vec::new();
        root.list("nodes", |item| {
            let node = self.node(item)?;
            if nodes.iter().any(|other| other.node.name == node.node.name) {
                item.problem("name", format!("{} is the name of another node", node.node.name));
            }
            if nodes.iter().any(|other| other.node.address == node.node.address) {
                item.problem("address", format!("{} is the address of another node", node.node.address));
            }
            nodes.push(node);
            Some(())
        });
        if !root.has("nodes") {
            root.problem("nodes", "is missing");
        }
        root.section("local", |local| {
            let name = local.optional("node", parsed::<NodeName>);
            let Some(settings) = self.local(local) else { return };
            let target = match (name, nodes.as_mut_slice()) {
                (None, [only]) => Some(only),
                (None, _) => {
                    local.problem("node", "is missing: which of the nodes is this host's?");
                    None
                }
                (Some(name), nodes) => {
                    let found = nodes.iter_mut().find(|node| node.node.name == name);
                    if found.is_none() {
                        local.problem("node", format!("{name} is not in nodes"));
                    }
                    found
                }
            };
            if let Some(node) = target {
                node.local = Some(settings);
            }
        });
        nodes
    }

    fn node(&self, item: &mut Section<'_>) -> Option<NodeConfig> {
        let name = item.required("name", parsed);
        let address = item.required("address", parsed);
        let priority = item.or("priority", 100, number(0..=1_000_000));
        let zone = item.optional("zone", text);
        let no_failover = item.or("no_failover", false, on_off);
        let tls = item.section("tls", |tls| (!tls.is_absent()).then(|| for_servers(tls, self.directory)));
        let local = item.section("local", |local| self.local(local));
        let node = Node { name: name?, address: address?, priority, zone, no_failover };
        Some(NodeConfig { node, tls, local })
    }

    /// `None` also when there is no such section.
    fn local(&self, local: &mut Section<'_>) -> Option<Local> {
        if local.is_absent() {
            return None;
        }
        let data_dir = local.required("data_dir", path);
        let bin_dir = local.required("bin_dir", path);
        let run_as = local.optional("run_as", text);
        let passfile = local.optional("passfile", path).map(|file| self.directory.join(file));
        let (data_dir, bin_dir) = (self.directory.join(data_dir?), self.directory.join(bin_dir?));
        Some(Local { data_dir, bin_dir, run_as, passfile })
    }

    fn server_login(&self, login: &mut Section<'_>) -> Option<ServerLogin> {
        let user = login.required("user", text);
        let password = secret::read(login, PASSWORD, self.sources);
        let database = login.or("database", "postgres".to_owned(), text);
        Some(ServerLogin { user: user?, password, database })
    }
}

/// It becomes part of `application_name` and of `synchronous_standby_names`.
fn instance(value: &serde_yaml::Value) -> Result<String, String> {
    let name = text(value)?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.len() <= 32 && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err("may have 1 to 32 lower case letters, digits and '_' only".to_owned())
    }
}

/// A pid has room for a hash of the instance's name only: two with the same one could not be told apart.
fn peers(root: &mut Section<'_>, own: Option<&str>) -> Vec<Peer> {
    let mut known: Vec<String> = own.into_iter().map(str::to_owned).collect();
    root.list("peers", |item| {
        let name = item.required("instance", instance);
        let address = item.required("address", parsed);
        let name = name?;
        if let Some(other) = known.iter().find(|other| Mark::of(other) == Mark::of(&name)) {
            let why = if *other == name {
                format!("{name} is here already, or this instance itself")
            } else {
                format!("{name} and {other} look the same in the keys for cancel requests; rename one")
            };
            item.problem("instance", why);
        }
        known.push(name.clone());
        Some(Peer { instance: name, address: address? })
    })
}

fn admin(admin: &mut Section<'_>) -> (Option<SocketAddr>, Access) {
    let address = admin.optional("address", parsed::<SocketAddr>);
    let users = admin.or("users", Vec::new(), texts);
    let stats_users = admin.or("stats_users", Vec::new(), texts);
    (address, Access { users, stats_users })
}

fn pool(pool: &mut Section<'_>) -> Pool {
    let mut all = limits(pool);
    all.totals.max_clients.get_or_insert(MAX_CLIENTS);
    let limits = Plan { all, databases: overrides(pool, "databases"), users: overrides(pool, "users") };
    Pool {
        limits,
        login: pool.or("login", Duration::from_secs(15), duration),
        connect_timeout: pool.or("connect_timeout", Duration::from_secs(15), duration),
    }
}

/// By name: what is said of one database, or of one user.
fn overrides(pool: &mut Section<'_>, key: &'static str) -> BTreeMap<String, Settings> {
    let mut said = BTreeMap::new();
    pool.list(key, |item| {
        let (name, settings) = (item.required("name", text), limits(item));
        if let Some(name) = name.filter(|name| said.insert(name.clone(), settings).is_some()) {
            item.problem("name", format!("{name} is in the list already"));
        }
        Some(())
    });
    said
}

/// The keys that can be said for all, for a database and for a user.
fn limits(section: &mut Section<'_>) -> Settings {
    let modes = [
        ("transaction", PoolMode::Transaction),
        ("session", PoolMode::Session),
        ("statement", PoolMode::Statement),
    ];
    let count = |range| {
        move |value: &serde_yaml::Value| {
            number(range)(value).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        }
    };
    Settings {
        mode: section.optional("mode", word(&modes)),
        size: section.optional("size", count(1..=10_000)),
        min_size: section.optional("min_size", count(0..=10_000)),
        reserve_size: section.optional("reserve_size", count(0..=10_000)),
        reserve_after: section.optional("reserve_after", duration),
        idle: section.optional("idle", duration),
        lifetime: section.optional("lifetime", duration),
        wait: section.optional("wait", duration),
        notice_after: section.optional("notice_after", duration),
        query_timeout: section.optional("query_timeout", duration_or_off),
        transaction_timeout: section.optional("transaction_timeout", duration_or_off),
        idle_transaction_timeout: section.optional("idle_transaction_timeout", duration_or_off),
        client_idle_timeout: section.optional("client_idle_timeout", duration_or_off),
        totals: Totals {
            max_clients: section.optional("max_clients", count(1..=1_000_000)),
            max_servers: section.optional("max_servers", count(1..=1_000_000)),
        },
    }
}

fn routing(routing: &mut Section<'_>) -> Routing {
    let levels = [
        ("session", Consistency::Session),
        ("eventual", Consistency::Eventual),
        ("global", Consistency::Global),
    ];
    let balances = [("least_outstanding", Balance::LeastOutstanding), ("round_robin", Balance::RoundRobin)];
    let (max_lag_bytes, max_lag_time) = routing.section("max_lag", |lag| {
        (lag.or("bytes", 16 << 20, size), lag.or("time", Duration::from_secs(1), duration))
    });
    Routing {
        max_lag_bytes,
        max_lag_time,
        consistency: routing.or("consistency", Consistency::Session, word(&levels)),
        balance: routing.or("balance", Balance::LeastOutstanding, word(&balances)),
    }
}

/// `instances`: how many relays there are.
fn durability(durability: &mut Section<'_>, instances: usize) -> (Durability, Option<u32>, bool) {
    let modes = [("async", Durability::Async), ("quorum", Durability::Quorum)];
    let mode = durability.or("mode", Durability::Async, word(&modes));
    let instances = u32::try_from(instances).unwrap_or(u32::MAX);
    let acks = durability.optional("acks", number(1..=instances));
    // Without a quorum nobody waits for a commit to be safe, and the question would be paid for in vain.
    (mode, acks, durability.or("resolve_commits", mode == Durability::Quorum, on_off))
}

fn failover(failover: &mut Section<'_>) -> Failover {
    let modes = [("automatic", FailoverMode::Automatic), ("manual", FailoverMode::Manual)];
    let seconds = Duration::from_secs;
    let [interval, timeout, restart_timeout, stall_timeout] = failover.section("detect", |detect| {
        [
            detect.or("interval", Duration::from_millis(500), duration),
            detect.or("timeout", seconds(2), duration),
            detect.or("restart_timeout", seconds(10), duration),
            detect.or("stall_timeout", seconds(10), duration),
        ]
    });
    // Each of them costs clients a pause and the cluster a timeline; whoever is woken finds the sixth within ten minutes not
    // done, rather than all standbys worn out. And a primary that is dead for good does not wait for a person.
    let (failovers, within) = failover.section("budget", |budget| {
        (budget.or("failovers", 5, failovers_or_off), budget.or("within", seconds(600), duration))
    });
    Failover {
        budget: (failovers > 0).then_some(Budget { failovers, within }),
        mode: failover.or("mode", FailoverMode::Automatic, word(&modes)),
        interval,
        timeout,
        restart_timeout,
        stall_timeout,
        hold_clients: failover.or("hold_clients", seconds(30), duration),
        drain: failover.or("drain", seconds(5), duration),
        max_lost_bytes: failover.or("max_lost_bytes", 0, size_or_zero),
    }
}

/// `off` and 0 are the same.
fn failovers_or_off(value: &serde_yaml::Value) -> Parsed<u32> {
    let off = matches!(value, serde_yaml::Value::Bool(false)) || value.as_str() == Some("off");
    if off { Ok(0) } else { number(0..=MAX_FAILOVERS)(value) }
}

/// As a limit, plain `0` needs no unit.
fn size_or_zero(value: &serde_yaml::Value) -> Result<u64, String> {
    if value.as_u64() == Some(0) { Ok(0) } else { size(value) }
}

fn shutdown(shutdown: &mut Section<'_>) -> Shutdown {
    Shutdown {
        drain: shutdown.or("drain", Some(Duration::from_secs(30)), duration_or_off).unwrap_or_default(),
        transactions: shutdown.or("transactions", Duration::from_secs(10), duration),
    }
}

fn log(log: &mut Section<'_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        format: log.or("format", LogFormat::Text, word(&formats)),
        level: log.or("level", "info".to_owned(), |value| {
            let level = text(value)?;
            tracing_subscriber::EnvFilter::try_new(&level).map(|_| level).map_err(|error| error.to_string())
        }),
    }
}
