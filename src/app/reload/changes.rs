//! Which keys of two configurations differ, and what a changed one holds for. PURE.
//!
//! A key that is not here would be changed silently, or silently not: both configurations are taken apart without
//! a `..`, so that a new one cannot be forgotten.

use crate::app::config::{Auth, Config, Failover, Log, NodeConfig, Pool, Routing, Shutdown, Tls, Wal};
use crate::proxy::limits::{Plan, Settings, Totals};
use crate::relay::Retain;

/// What a key's new value holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    AtOnce,
    /// Of clients, or at servers.
    NewConnections,
    Restart,
}

use Effect::{AtOnce, NewConnections, Restart};

/// A key, whether it has stayed the same, and what it holds for.
type Compared = (&'static str, bool, Effect);

/// The keys that differ, in the order of the file.
pub(super) fn changes(running: &Config, next: &Config) -> Vec<(&'static str, Effect)> {
    let Config {
        file: _,
        cluster,
        instance,
        peers,
        listen,
        admin,
        console,
        nodes,
        server_login,
        auth,
        pool,
        routing,
        wal,
        durability,
        acks,
        resolve_commits,
        failover,
        state_file,
        etcd,
        workers,
        tls,
        log,
        events,
        shutdown,
    } = running;
    let compared = [
        vec![
            ("cluster", *cluster == next.cluster, Restart),
            ("instance", *instance == next.instance, Restart),
            // Who is one of several is known by its peers.
            ("peers", *peers == next.peers, if etcd.is_some() { Restart } else { AtOnce }),
            ("listen", *listen == next.listen, Restart),
            ("admin.address", *admin == next.admin, Restart),
            ("admin.users", console.users == next.console.users, NewConnections),
            ("admin.stats_users", console.stats_users == next.console.stats_users, NewConnections),
        ],
        compare_nodes(nodes, &next.nodes),
        vec![("server_login", *server_login == next.server_login, Restart)],
        compare_auth(auth, &next.auth),
        compare_pool(pool, &next.pool),
        compare_routing(routing, &next.routing),
        compare_wal(wal, &next.wal),
        vec![
            ("durability.mode", *durability == next.durability, Restart),
            ("durability.acks", *acks == next.acks, Restart),
            ("durability.resolve_commits", *resolve_commits == next.resolve_commits, NewConnections),
        ],
        compare_failover(failover, &next.failover),
        vec![
            ("state", *state_file == next.state_file && *etcd == next.etcd, Restart),
            ("workers", *workers == next.workers, Restart),
        ],
        compare_tls(tls, &next.tls),
        compare_log(log, &next.log),
        vec![("events", *events == next.events, Restart)],
        compare_shutdown(shutdown, &next.shutdown),
    ];
    let differs = |(key, same, effect): Compared| (!same).then_some((key, effect));
    compared.into_iter().flatten().filter_map(differs).collect()
}

fn compare_nodes(nodes: &[NodeConfig], next: &[NodeConfig]) -> Vec<Compared> {
    let of = |NodeConfig { node, tls: _, local }: &NodeConfig| (node.clone(), local.clone());
    let same = nodes.iter().map(of).eq(next.iter().map(of));
    let reached = |node: &NodeConfig| {
        let other = next.iter().find(|other| other.node.name == node.node.name);
        other.is_none_or(|other| node.tls == other.tls)
    };
    vec![("nodes", same, Restart), ("nodes.tls", nodes.iter().all(reached), NewConnections)]
}

fn compare_auth(auth: &Auth, next: &Auth) -> Vec<Compared> {
    let Auth { rules, users, query, lookup_login, lookups, replication_users } = auth;
    let lookup = *lookup_login == next.lookup_login && *lookups == next.lookups;
    vec![
        ("auth.rules", *rules == next.rules, NewConnections),
        ("auth.users", *users == next.users, NewConnections),
        ("auth.query", *query == next.query, NewConnections),
        ("auth.lookup", lookup, NewConnections),
        ("auth.replication_users", *replication_users == next.replication_users, NewConnections),
    ]
}

fn compare_pool(pool: &Pool, next: &Pool) -> Vec<Compared> {
    let Pool { limits: Plan { all, databases, users }, login, connect_timeout } = pool;
    let mut compared = compare_limits(all, &next.limits.all);
    compared.extend([
        ("pool.login", *login == next.login, NewConnections),
        ("pool.connect_timeout", *connect_timeout == next.connect_timeout, AtOnce),
        ("pool.databases", *databases == next.limits.databases, AtOnce),
        ("pool.users", *users == next.limits.users, AtOnce),
    ]);
    compared
}

fn compare_limits(limits: &Settings, next: &Settings) -> Vec<Compared> {
    let Settings {
        mode,
        size,
        min_size,
        reserve_size,
        reserve_after,
        idle,
        lifetime,
        wait,
        notice_after,
        query_timeout,
        transaction_timeout,
        idle_transaction_timeout,
        client_idle_timeout,
        totals: Totals { max_clients, max_servers },
    } = limits;
    vec![
        ("pool.mode", *mode == next.mode, NewConnections),
        ("pool.size", *size == next.size, AtOnce),
        ("pool.min_size", *min_size == next.min_size, AtOnce),
        ("pool.reserve_size", *reserve_size == next.reserve_size, AtOnce),
        ("pool.reserve_after", *reserve_after == next.reserve_after, AtOnce),
        ("pool.idle", *idle == next.idle, AtOnce),
        ("pool.lifetime", *lifetime == next.lifetime, AtOnce),
        ("pool.wait", *wait == next.wait, AtOnce),
        ("pool.notice_after", *notice_after == next.notice_after, AtOnce),
        ("pool.query_timeout", *query_timeout == next.query_timeout, AtOnce),
        ("pool.transaction_timeout", *transaction_timeout == next.transaction_timeout, AtOnce),
        ("pool.idle_transaction_timeout", *idle_transaction_timeout == next.idle_transaction_timeout, AtOnce),
        ("pool.client_idle_timeout", *client_idle_timeout == next.client_idle_timeout, AtOnce),
        ("pool.max_clients", *max_clients == next.totals.max_clients, NewConnections),
        ("pool.max_servers", *max_servers == next.totals.max_servers, AtOnce),
    ]
}

fn compare_routing(routing: &Routing, next: &Routing) -> Vec<Compared> {
    let Routing { max_lag_bytes, max_lag_time, consistency, balance } = routing;
    vec![
        ("routing.max_lag.bytes", *max_lag_bytes == next.max_lag_bytes, AtOnce),
        ("routing.max_lag.time", *max_lag_time == next.max_lag_time, AtOnce),
        ("routing.consistency", *consistency == next.consistency, NewConnections),
        ("routing.balance", *balance == next.balance, AtOnce),
    ]
}

fn compare_wal(wal: &Wal, next: &Wal) -> Vec<Compared> {
    let Wal {
        dir,
        retain: Retain { size, age, max_size, min_free },
        follower_rate,
        upstreams,
        remote_apply,
        archive,
    } = wal;
    vec![
        ("wal.dir", *dir == next.dir, Restart),
        ("wal.retain.size", *size == next.retain.size, AtOnce),
        ("wal.retain.age", *age == next.retain.age, AtOnce),
        ("wal.retain.max_size", *max_size == next.retain.max_size, AtOnce),
        ("wal.retain.min_free", *min_free == next.retain.min_free, AtOnce),
        ("wal.remote_apply", *remote_apply == next.remote_apply, NewConnections),
        ("wal.upstreams", *upstreams == next.upstreams, Restart),
        ("wal.follower_rate", *follower_rate == next.follower_rate, AtOnce),
        ("wal.archive", *archive == next.archive, Restart),
    ]
}

fn compare_failover(failover: &Failover, next: &Failover) -> Vec<Compared> {
    let Failover {
        mode,
        interval,
        timeout,
        restart_timeout,
        stall_timeout,
        hold_clients,
        drain,
        budget,
        max_lost_bytes,
    } = failover;
    vec![
        ("failover.mode", *mode == next.mode, AtOnce),
        ("failover.detect.interval", *interval == next.interval, AtOnce),
        ("failover.detect.timeout", *timeout == next.timeout, AtOnce),
        ("failover.detect.restart_timeout", *restart_timeout == next.restart_timeout, AtOnce),
        ("failover.detect.stall_timeout", *stall_timeout == next.stall_timeout, AtOnce),
        ("failover.hold_clients", *hold_clients == next.hold_clients, AtOnce),
        ("failover.drain", *drain == next.drain, AtOnce),
        ("failover.budget", *budget == next.budget, AtOnce),
        ("failover.max_lost_bytes", *max_lost_bytes == next.max_lost_bytes, AtOnce),
    ]
}

fn compare_tls(tls: &Tls, next: &Tls) -> Vec<Compared> {
    let Tls { clients, servers } = tls;
    vec![
        ("tls", *clients == next.clients, NewConnections),
        ("tls.servers", *servers == next.servers, NewConnections),
    ]
}

fn compare_log(log: &Log, next: &Log) -> Vec<Compared> {
    let Log { format, level } = log;
    vec![("log.format", *format == next.format, Restart), ("log.level", *level == next.level, AtOnce)]
}

fn compare_shutdown(shutdown: &Shutdown, next: &Shutdown) -> Vec<Compared> {
    let Shutdown { drain, transactions } = shutdown;
    vec![
        ("shutdown.drain", *drain == next.drain, AtOnce),
        ("shutdown.transactions", *transactions == next.transactions, AtOnce),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::path::Path;

    use super::{
        Effect::{self, AtOnce, NewConnections, Restart},
        changes,
    };
    use crate::app::config::{Config, Sources, parse};

    /// No file, no variable, no command.
    struct Nowhere;

    impl Sources for Nowhere {
        fn file(&self, _: &Path) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn env(&self, _: &str) -> Option<String> {
            None
        }

        fn command(&self, _: &str) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    const BASE: &str = "
cluster: orders
instance: bw1
listen: [{address: '0.0.0.0:6432'}]
nodes: [{name: pg1, address: '10.0.0.11:5432'}]
server_login: {user: bellwether}
wal: {dir: wal}
state: {file: state}
";

    /// The usual configuration, with `changed` in the place of its key of that name, or beside it.
    pub(in crate::app::reload) fn config(changed: &str) -> Config {
        let key = changed.split(':').next().unwrap_or_default();
        let unchanged = |line: &&str| changed.is_empty() || !line.starts_with(&format!("{key}:"));
        let yaml: Vec<&str> = BASE.lines().filter(unchanged).chain([changed]).collect();
        let (config, findings) = parse(&yaml.join("\n"), Path::new("/etc"), &Nowhere);
        config.unwrap_or_else(|| panic!("{changed}: {:?}", findings.problems))
    }

    fn check(before: &str, after: &str, expected: &[(&str, Effect)]) {
        assert_eq!(changes(&config(before), &config(after)), expected, "{before} -> {after}");
        assert_eq!(changes(&config(after), &config(after)), [], "{after}");
    }

    #[test]
    fn each_key_by_what_it_holds_for() {
        check("cluster: others", "", &[("cluster", Restart)]);
        check("", "peers: [{instance: bw2, address: '10.0.0.2:6432'}]", &[("peers", AtOnce)]);
        let etcd = |lease: &str| {
            format!("state: {{file: state, etcd: {{endpoints: ['http://a:1'], lease: {lease}}}}}")
        };
        check("", &etcd("5s"), &[("state", Restart)]);
        check(&etcd("4s"), &etcd("5s"), &[("state", Restart)]);
        let several = format!("{}\npeers: [{{instance: bw2, address: '10.0.0.2:6432'}}]", etcd("5s"));
        check(&etcd("5s"), &several, &[("peers", Restart)]);
        check("", "listen: [{address: '0.0.0.0:6433'}]", &[("listen", Restart)]);
        check(
            "",
            "admin: {address: '127.0.0.1:1', users: [joe]}",
            &[("admin.address", Restart), ("admin.users", NewConnections)],
        );
        let node = |more: &str| format!("nodes: [{{name: pg1, address: '10.0.0.11:5432'{more}}}]");
        check("", &node(", priority: 7"), &[("nodes", Restart)]);
        check("", &node(", tls: {mode: require}"), &[("nodes.tls", NewConnections)]);
        check("", "server_login: {user: bellwether, password: x}", &[("server_login", Restart)]);
        check(
            "",
            "wal: {dir: other, retain: {size: 2GiB, max_size: 3GiB}, follower_rate: 1MiB}",
            &[
                ("wal.dir", Restart),
                ("wal.retain.size", AtOnce),
                ("wal.retain.max_size", AtOnce),
                ("wal.follower_rate", AtOnce),
            ],
        );
        let archive = |what: &str| format!("wal: {{dir: wal, archive: {{url: 'file:///a'{what}}}}}");
        check("", &archive(""), &[("wal.archive", Restart)]);
        for what in
            [", level: 9", ", partial_interval: 1s", ", backups: {keep: 2}", ", backups: {every: off}"]
        {
            check(&archive(""), &archive(what), &[("wal.archive", Restart)]);
        }
        check(
            "",
            "pool: {mode: session, size: 5, max_clients: 7, login: 1s}",
            &[
                ("pool.mode", NewConnections),
                ("pool.size", AtOnce),
                ("pool.max_clients", NewConnections),
                ("pool.login", NewConnections),
            ],
        );
        check(
            "pool: {databases: [{name: d, size: 1}]}",
            "pool: {databases: [{name: d, size: 2}]}",
            &[("pool.databases", AtOnce)],
        );
        check(
            "",
            "routing: {max_lag: {time: 2s}, consistency: eventual}",
            &[("routing.max_lag.time", AtOnce), ("routing.consistency", NewConnections)],
        );
        check(
            "",
            "failover: {mode: manual, hold_clients: 1s, drain: 1s, budget: {failovers: off}, detect: {timeout: 1s}}",
            &[
                ("failover.mode", AtOnce),
                ("failover.detect.timeout", AtOnce),
                ("failover.hold_clients", AtOnce),
                ("failover.drain", AtOnce),
                ("failover.budget", AtOnce),
            ],
        );
        check("", "tls: {servers: {mode: require}}", &[("tls.servers", NewConnections)]);
        check("log: {level: debug, format: json}", "", &[("log.format", Restart), ("log.level", AtOnce)]);
    }

    #[test]
    fn rules_are_compared_by_what_they_say() {
        let auth = |user: &str, system: &str| {
            let cert = "type: hostssl, database: [all, replication], address: all, method: cert, map: m";
            let files = "tls: {cert_file: a, key_file: b, client_ca_file: c}";
            format!(
                "auth: {{maps: [{{map: m, system: '{system}', user: x}}], rules: [{{user: {user}, {cert}}}]}}\n{files}"
            )
        };
        check(&auth("'/^a'", "/b"), &auth("'/^a'", "/b"), &[]);
        for (user, system) in [("'/^c'", "/b"), ("'/^a'", "/d"), ("a", "/b")] {
            check(&auth("'/^a'", "/b"), &auth(user, system), &[("auth.rules", NewConnections)]);
        }
        let users = |password: &str| format!("auth: {{users: [{{name: joe, password: {password}}}]}}");
        check(&users("one"), &users("two"), &[("auth.users", NewConnections)]);
    }
}
