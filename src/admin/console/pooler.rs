//! The tables that PgBouncer has, too: its names and types (admin.c, stats.c), so that what reads those reads these.
//! PURE.
//!
//! What it counts per pool is here summed over the nodes: a pool to it is a database and a user.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::table::{Columns, Table, Type, value};
use crate::net::PeerAddress;
use crate::proxy::PoolMode;
use crate::proxy::limits::Limits;
use crate::proxy::report::{ClientReport, PoolReport, Report, ServerReport};
use crate::proxy::stats::{DatabaseStats, Totals};

use Type::{Int4, Int8, Numeric, Text};

const POOLS: Columns = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
];

/// Clients that are idle or with a server are active, as PgBouncer counts.
pub(super) fn pools(report: &Report) -> Table {
    let mut accounts: BTreeMap<(&str, &str), Vec<&PoolReport>> = BTreeMap::new();
    for pool in &report.pools {
        accounts.entry((&pool.database, &pool.user)).or_default().push(pool);
    }
    for client in &report.clients {
        accounts.entry((&client.database, &client.user)).or_default();
    }
    let rows = accounts.into_iter().map(|((database, user), pools)| {
        let own =
            report.clients.iter().filter(|client| *client.database == *database && *client.user == *user);
        let (waiting, active): (Vec<_>, Vec<_>) = own.partition(|client| client.waiting.is_some());
        let sum = |of: fn(&PoolReport) -> usize| pools.iter().map(|pool| of(pool)).sum::<usize>();
        let longest = pools.iter().filter_map(|pool| pool.longest_wait).max().unwrap_or_default();
        let limits = pools.first().map_or(report.limits, |pool| pool.limits);
        vec![
            value(database),
            value(user),
            value(active.len()),
            value(waiting.len()),
            value(0),
            value(0),
            value(sum(|pool| pool.in_use)),
            value(0),
            value(0),
            value(sum(|pool| pool.idle)),
            value(0),
            value(0),
            value(0),
            value(longest.as_secs()),
            value(longest.subsec_micros()),
            value(mode(limits.mode)),
        ]
    });
    Table::new(POOLS, rows)
}

const SOCKETS: Columns = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int4),
    ("id", Int8),
    // Ours: why a session keeps its server between transactions.
    ("pinned", Text),
];

pub(super) fn clients(report: &Report) -> Table {
    Table::new(SOCKETS, report.clients.iter().map(client))
}

fn client(client: &ClientReport) -> Vec<Option<String>> {
    let (host, port) = match client.peer {
        PeerAddress::Tcp(address) => (address.ip().to_canonical().to_string(), address.port()),
        PeerAddress::Unix | PeerAddress::Unknown => ("unix".to_owned(), 0),
    };
    let wait = client.waiting.unwrap_or_default();
    vec![
        value("C"),
        value(&client.user),
        value(&client.database),
        value(client.replication),
        value(client.state),
        value(host),
        value(port),
        None,
        None,
        value(time(client.connected_at)),
        None,
        value(wait.as_secs()),
        value(wait.subsec_micros()),
        value(0),
        value(format!("{:#x}", client.id)),
        value(client.server.as_ref().map(|(_, pid)| format!("{pid:#x}")).unwrap_or_default()),
        value(0),
        value(""),
        value(&client.application_name),
        None,
        value(client.id),
        client.pinned.map(str::to_owned),
    ]
}

pub(super) fn servers(report: &Report) -> Table {
    Table::new(SOCKETS, report.servers.iter().map(server))
}

fn server(server: &ServerReport) -> Vec<Option<String>> {
    vec![
        value("S"),
        value(&server.user),
        value(&server.database),
        value(server.replication),
        value(if server.client.is_some() { "active" } else { "idle" }),
        value(&server.address.host),
        value(server.address.port),
        None,
        None,
        None,
        None,
        value(0),
        value(0),
        value(0),
        value(format!("{:#x}", server.pid)),
        value(server.client.map(|id| format!("{id:#x}")).unwrap_or_default()),
        value(server.pid),
        value(""),
        value(format!("{}", server.node)),
        None,
        value(server.pid),
        server.pinned.map(str::to_owned),
    ]
}

const DATABASES: Columns = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool", Int4),
    ("pool_mode", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
    ("reserve_pool_size", Int4),
];

/// One row per database that has been used, with the address of one of its nodes.
pub(super) fn databases(report: &Report) -> Table {
    let names: BTreeSet<&str> = report.pools.iter().map(|pool| &*pool.database).collect();
    let rows = names.into_iter().filter_map(|name| {
        let pools: Vec<_> = report.pools.iter().filter(|pool| *pool.database == *name).collect();
        let first = pools.first()?;
        let size = first.limits.size;
        Some(vec![
            value(name),
            value(&first.address.host),
            value(first.address.port),
            value(name),
            None,
            value(size.size),
            value(size.min_size),
            value(size.reserve_size),
            value(mode(first.limits.mode)),
            value(first.totals.max_servers.unwrap_or(0)),
            value(pools.iter().map(|pool| pool.idle + pool.in_use).sum::<usize>()),
            value(u8::from(first.is_paused)),
            value(0),
            value(size.reserve_size),
        ])
    });
    Table::new(DATABASES, rows)
}

/// Those who are configured, and those who are here.
pub(super) fn users(report: &Report) -> Table {
    let mut users: BTreeMap<&str, PoolMode> =
        report.pools.iter().map(|pool| (&*pool.user, pool.limits.mode)).collect();
    users.extend(report.users.iter().map(|(name, limits)| (name.as_str(), limits.mode)));
    let rows = users.into_iter().map(|(name, of)| vec![value(name), value(mode(of))]);
    Table::new(&[("name", Text), ("pool_mode", Text)], rows)
}

const STATS: Columns = &[
    ("database", Text),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
    // Its name for total_query_count up to 1.7; Debian's exporter still asks for it.
    ("total_requests", Numeric),
];

const STATS_PART: Columns = &[
    ("database", Text),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
];

pub(super) fn stats(report: &Report) -> Table {
    let row = |of: &DatabaseStats| {
        let requests = vec![value(of.totals.queries)];
        [vec![value(&of.database)], totals(&of.totals), averages(of), requests].concat()
    };
    Table::new(STATS, report.stats.iter().map(row))
}

pub(super) fn stats_totals(report: &Report) -> Table {
    let row = |of: &DatabaseStats| [vec![value(&of.database)], totals(&of.totals)].concat();
    Table::new(STATS_PART, report.stats.iter().map(row))
}

pub(super) fn stats_averages(report: &Report) -> Table {
    let row = |of: &DatabaseStats| [vec![value(&of.database)], averages(of)].concat();
    Table::new(STATS_PART, report.stats.iter().map(row))
}

/// A query's time is its transaction's: sessions read no clock in between.
fn totals(totals: &Totals) -> Vec<Option<String>> {
    let Totals { transactions, queries, received, sent, transaction_micros, wait_micros } = *totals;
    [transactions, queries, received, sent, transaction_micros, transaction_micros, wait_micros]
        .map(value)
        .into()
}

/// Per second; times per transaction and per query.
fn averages(stats: &DatabaseStats) -> Vec<Option<String>> {
    let seconds = stats.period.as_secs().max(1);
    let Totals { transactions, queries, received, sent, transaction_micros, wait_micros } = stats.last;
    [
        transactions / seconds,
        queries / seconds,
        received / seconds,
        sent / seconds,
        transaction_micros / transactions.max(1),
        transaction_micros / queries.max(1),
        wait_micros / seconds,
    ]
    .map(value)
    .into()
}

pub(super) fn lists(report: &Report) -> Table {
    let distinct = |of: fn(&PoolReport) -> &str| report.pools.iter().map(of).collect::<BTreeSet<_>>().len();
    let accounts: BTreeSet<_> = report.pools.iter().map(|pool| (&pool.database, &pool.user)).collect();
    let idle: usize = report.pools.iter().map(|pool| pool.idle).sum();
    let in_use: usize = report.pools.iter().map(|pool| pool.in_use).sum();
    let room = report.max_clients.map_or(0, |most| most.saturating_sub(report.clients.len()));
    let lists = [
        ("databases", distinct(|pool| &pool.database)),
        ("users", distinct(|pool| &pool.user)),
        ("peers", 0),
        ("pools", accounts.len()),
        ("peer_pools", 0),
        ("free_clients", room),
        ("used_clients", report.clients.len()),
        ("login_clients", 0),
        ("free_servers", idle),
        ("used_servers", in_use),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    let rows = lists.into_iter().map(|(name, count)| vec![value(name), value(count)]);
    Table::new(&[("list", Text), ("items", Int4)], rows)
}

const CONFIG: Columns = &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];

/// Of one database and user, as [`limits`] has them.
const LIMITS: [&str; 13] = [
    "pool_mode",
    "default_pool_size",
    "min_pool_size",
    "reserve_pool_size",
    "reserve_pool_timeout",
    "server_idle_timeout",
    "server_lifetime",
    "query_wait_timeout",
    "query_wait_notify",
    "query_timeout",
    "transaction_timeout",
    "idle_transaction_timeout",
    "client_idle_timeout",
];

const MAX_CLIENT_CONN: &str = "max_client_conn";
const MAX_DB_CONNECTIONS: &str = "max_db_connections";
const MAX_USER_CONNECTIONS: &str = "max_user_connections";
const MAX_SERVER_CONNECTIONS: &str = "max_server_connections";

/// Whether it is one of those that `SHOW CONFIG` has.
pub(super) fn is_config_key(name: &str) -> bool {
    let totals = [MAX_CLIENT_CONN, MAX_DB_CONNECTIONS, MAX_USER_CONNECTIONS, MAX_SERVER_CONNECTIONS];
    LIMITS.contains(&name) || totals.contains(&name)
}

/// Times in seconds.
fn limits(Limits { mode: of, size, wait, notice_after, timeouts }: &Limits) -> [String; 13] {
    let seconds = |time: Duration| time.as_secs_f64().to_string();
    let limit = |time: Option<Duration>| seconds(time.unwrap_or_default());
    [
        mode(*of).to_owned(),
        size.size.to_string(),
        size.min_size.to_string(),
        size.reserve_size.to_string(),
        seconds(size.reserve_after),
        seconds(size.idle),
        seconds(size.lifetime),
        seconds(*wait),
        seconds(*notice_after),
        limit(timeouts.query),
        limit(timeouts.transaction),
        limit(timeouts.idle_transaction),
        limit(timeouts.client_idle),
    ]
}

/// Under PgBouncer's names, what our own configuration says for all.
pub(super) fn config(report: &Report) -> Table {
    let count = |count: Option<usize>| count.unwrap_or(0).to_string();
    let totals = [
        (MAX_CLIENT_CONN, count(report.max_clients), "10000"),
        (MAX_DB_CONNECTIONS, "0".to_owned(), "0"),
        (MAX_USER_CONNECTIONS, "0".to_owned(), "0"),
        (MAX_SERVER_CONNECTIONS, count(report.max_servers), "0"),
    ];
    let totals = totals.into_iter().map(|(key, now, default)| (key, now, default.to_owned()));
    let said = LIMITS.into_iter().zip(limits(&report.limits)).zip(limits(&Limits::default()));
    let said = said.map(|((key, now), default)| (key, now, default));
    let rows = said
        .chain(totals)
        .map(|(key, now, default)| vec![value(key), value(now), value(default), value("yes")]);
    Table::new(CONFIG, rows)
}

pub(super) fn state(report: &Report) -> Table {
    let paused = !report.pools.is_empty() && report.pools.iter().all(|pool| pool.is_paused);
    let word = |is: bool| value(if is { "yes" } else { "no" });
    let rows = [("active", !paused), ("paused", paused), ("suspended", false)];
    let rows = rows.into_iter().map(|(key, is)| vec![value(key), word(is)]);
    Table::new(&[("key", Text), ("value", Text)], rows)
}

const MEM: Columns = &[("name", Text), ("size", Int4), ("used", Int8), ("free", Int8), ("memtotal", Int8)];

/// There are no caches of objects here as PgBouncer has them; what the process holds in memory is one.
pub(super) fn mem(resident_bytes: u64) -> Table {
    let row = vec![value("process"), value(1), value(resident_bytes), value(0), value(resident_bytes)];
    Table::new(MEM, [row])
}

/// No names are resolved here but when a server is dialled.
pub(super) fn dns_hosts() -> Table {
    Table::new(&[("hostname", Text), ("ttl", Int8), ("addrs", Text)], [])
}

pub(super) fn dns_zones() -> Table {
    Table::new(&[("zonename", Text), ("serial", Text), ("count", Int4)], [])
}

/// Clients and servers alike.
pub(super) fn sockets(report: &Report) -> Table {
    Table::new(SOCKETS, report.clients.iter().map(client).chain(report.servers.iter().map(server)))
}

/// Those between which something flows, or is waited for.
pub(super) fn active_sockets(report: &Report) -> Table {
    let clients = report.clients.iter().filter(|client| client.state != "idle").map(client);
    let servers = report.servers.iter().filter(|server| server.client.is_some()).map(server);
    Table::new(SOCKETS, clients.chain(servers))
}

pub(super) fn version() -> Table {
    let version = format!("Bellwether {}", env!("CARGO_PKG_VERSION"));
    Table::new(&[("version", Text)], [vec![value(version)]])
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
    }
}

/// As PgBouncer writes it, in UTC.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
}
