//! `import-pgbouncer`: an existing `pgbouncer.ini` as a `bellwether.yaml`, and what of it has no equivalent. PURE.
//!
//! What the file cannot say (our own login at the servers, where WAL and state are kept) is written as an example to
//! be completed. Its list of users is not read here: `auth.users_file` reads the same format.

mod ini;

use std::fmt::Write as _;

use self::ini::{Entry, Ini, pairs};

/// The result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Imported {
    pub(super) yaml: String,
    /// What is lost or has to be looked at, each with where it was.
    pub(super) report: Vec<String>,
}

pub(super) fn import(text: &str) -> Imported {
    let ini = Ini::parse(text);
    let mut import = Import::default();
    for line in &ini.others {
        import.report.push(format!("{line}: not read"));
    }
    for (key, value) in &ini.pgbouncer {
        import.global(key, value);
    }
    for (name, value) in &ini.databases {
        import.database(name, value);
    }
    for (name, value) in &ini.users {
        let keys = import.settings(&format!("[users] {name}"), &pairs(value), USER_KEYS);
        import.users.push((name.clone(), keys));
    }
    import.finish()
}

/// A key of theirs, ours, and how the value is written.
type Key = (&'static str, &'static str, Kind);

#[derive(Clone, Copy)]
enum Kind {
    Count,
    /// Seconds; 0 has no equivalent.
    Time,
    /// Seconds; 0 is `off`.
    Limit,
    Mode,
}

const GLOBAL_KEYS: &[Key] = &[
    ("pool_mode", "mode", Kind::Mode),
    ("default_pool_size", "size", Kind::Count),
    ("min_pool_size", "min_size", Kind::Count),
    ("reserve_pool_size", "reserve_size", Kind::Count),
    ("reserve_pool_timeout", "reserve_after", Kind::Time),
    ("max_client_conn", "max_clients", Kind::Count),
    ("query_wait_timeout", "wait", Kind::Time),
    ("query_wait_notify", "notice_after", Kind::Time),
    ("server_idle_timeout", "idle", Kind::Time),
    ("server_lifetime", "lifetime", Kind::Time),
    ("server_connect_timeout", "connect_timeout", Kind::Time),
    ("client_login_timeout", "login", Kind::Time),
    ("query_timeout", "query_timeout", Kind::Limit),
    ("transaction_timeout", "transaction_timeout", Kind::Limit),
    ("idle_transaction_timeout", "idle_transaction_timeout", Kind::Limit),
    ("client_idle_timeout", "client_idle_timeout", Kind::Limit),
];

const DATABASE_KEYS: &[Key] = &[
    ("pool_mode", "mode", Kind::Mode),
    ("pool_size", "size", Kind::Count),
    ("min_pool_size", "min_size", Kind::Count),
    ("reserve_pool", "reserve_size", Kind::Count),
    ("reserve_pool_size", "reserve_size", Kind::Count),
    ("max_db_connections", "max_servers", Kind::Count),
    ("max_db_client_connections", "max_clients", Kind::Count),
    ("server_lifetime", "lifetime", Kind::Time),
];

const USER_KEYS: &[Key] = &[
    ("pool_mode", "mode", Kind::Mode),
    ("pool_size", "size", Kind::Count),
    ("reserve_pool_size", "reserve_size", Kind::Count),
    ("max_user_connections", "max_servers", Kind::Count),
    ("max_user_client_connections", "max_clients", Kind::Count),
    ("query_timeout", "query_timeout", Kind::Limit),
    ("transaction_timeout", "transaction_timeout", Kind::Limit),
    ("idle_transaction_timeout", "idle_transaction_timeout", Kind::Limit),
    ("client_idle_timeout", "client_idle_timeout", Kind::Limit),
];

/// What Bellwether does by itself, or leaves to systemd and the kernel.
const NOT_NEEDED: &[&str] = &[
    "logfile",
    "pidfile",
    "user",
    "verbose",
    "syslog",
    "syslog_facility",
    "syslog_ident",
    "log_connections",
    "log_disconnections",
    "log_pooler_errors",
    "log_stats",
    "stats_period",
    "server_reset_query",
    "server_reset_query_always",
    "server_check_query",
    "server_check_delay",
    "server_fast_close",
    "server_login_retry",
    "server_round_robin",
    "ignore_startup_parameters",
    "max_prepared_statements",
    "track_extra_parameters",
    "disable_pqexec",
    "application_name_add_host",
    "cancel_wait_timeout",
    "suspend_timeout",
    "autodb_idle_timeout",
    "listen_backlog",
    "pkt_buf",
    "sbuf_loopcnt",
    "max_packet_size",
    "so_reuseport",
    "tcp_defer_accept",
    "tcp_keepalive",
    "tcp_keepcnt",
    "tcp_keepidle",
    "tcp_keepintvl",
    "tcp_user_timeout",
    "tcp_socket_buffer",
    "dns_max_ttl",
    "dns_nxdomain_ttl",
    "dns_zone_check_period",
    "resolv_conf",
    "conffile",
    "service_name",
    "job_name",
    "unix_socket_mode",
    "unix_socket_group",
];

/// `key: value` pairs for a YAML mapping in one line.
type Keys = Vec<(&'static str, String)>;

#[derive(Default)]
struct Import {
    report: Vec<String>,
    listen_addresses: Vec<String>,
    listen_port: Option<String>,
    socket_directory: Option<String>,
    auth: Keys,
    admin: Keys,
    pool: Keys,
    nodes: Vec<String>,
    databases: Vec<(String, Keys)>,
    users: Vec<(String, Keys)>,
}

impl Import {
    fn global(&mut self, key: &str, value: &str) {
        if let Some(known) = GLOBAL_KEYS.iter().find(|(theirs, ..)| *theirs == key) {
            if let Some(said) = self.setting(key, value, *known) {
                self.pool.push(said);
            }
            return;
        }
        let names = || value.split(',').map(|name| quoted(name.trim())).collect::<Vec<_>>().join(", ");
        match key {
            "listen_addr" => {
                self.listen_addresses = value.split(',').map(|host| host.trim().to_owned()).collect();
            }
            "listen_port" => self.listen_port = Some(value.to_owned()),
            "unix_socket_dir" => self.socket_directory = Some(value.to_owned()),
            "admin_users" => self.admin.push(("users", format!("[{}]", names()))),
            "stats_users" => self.admin.push(("stats_users", format!("[{}]", names()))),
            "auth_file" => self.auth.push(("users_file", quoted(value))),
            "auth_type" => self.auth_type(value),
            _ if NOT_NEEDED.contains(&key) => {}
            _ => self.report.push(format!("{key} = {value}: {}", advice(key))),
        }
    }

    fn auth_type(&mut self, value: &str) {
        match value {
            "md5" | "scram-sha-256" | "trust" => self.auth.push(("method", value.to_owned())),
            _ => self.report.push(format!("auth_type = {value}: write auth.rules; scram-sha-256 until then")),
        }
    }

    fn database(&mut self, name: &str, value: &str) {
        let said = pairs(value);
        let of = |wanted: &str| said.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
        let port = of("port").unwrap_or("5432");
        for host in of("host").unwrap_or("/tmp").split(',').map(str::trim) {
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let address = format!("{host}:{port}");
            if !self.nodes.contains(&address) {
                self.nodes.push(address);
            }
        }
        if of("dbname").is_some_and(|real| real != name) && name != "*" {
            self.report.push(format!("[databases] {name}: dbname: clients use the database's own name"));
        }
        let rest: Vec<Entry> =
            said.into_iter().filter(|(key, _)| !["host", "port", "dbname"].contains(&key.as_str())).collect();
        let keys = self.settings(&format!("[databases] {name}"), &rest, DATABASE_KEYS);
        match name {
            "*" if keys.is_empty() => {}
            "*" => self.report.push(
                "[databases] *: its settings are for every other database: say them directly under pool"
                    .to_owned(),
            ),
            _ => self.databases.push((name.to_owned(), keys)),
        }
    }

    fn settings(&mut self, place: &str, said: &[Entry], known: &[Key]) -> Keys {
        let mut keys = vec![];
        for (key, value) in said {
            match known.iter().find(|(theirs, ..)| theirs == key) {
                Some(known) => keys.extend(self.setting(&format!("{place}: {key}"), value, *known)),
                None if key == "password" => {
                    self.report.push(format!("{place}: password: {}", advice("user")));
                }
                None => self.report.push(format!("{place}: {key} = {value}: {}", advice(key))),
            }
        }
        keys
    }

    /// Our key and value.
    fn setting(&mut self, place: &str, value: &str, (_, ours, kind): Key) -> Option<(&'static str, String)> {
        let seconds = || value.trim_end_matches('s').trim().parse::<f64>().ok().filter(|time| *time >= 0.0);
        let written = match kind {
            Kind::Count => value.parse::<u32>().ok().filter(|count| *count > 0 || ours.ends_with("_size")),
            Kind::Time | Kind::Limit | Kind::Mode => None,
        };
        let written = match kind {
            Kind::Count => written.map(|count| count.to_string()),
            Kind::Limit if seconds() == Some(0.0) => Some("off".to_owned()),
            Kind::Time | Kind::Limit => {
                seconds().filter(|time| *time > 0.0).map(|time| format!("{}ms", (time * 1000.0).round()))
            }
            Kind::Mode => ["session", "transaction", "statement"].contains(&value).then(|| value.to_owned()),
        };
        if written.is_none() {
            // Mostly 0 for "no limit": the default is one.
            self.report.push(format!("{place} = {value}: has no equivalent; {ours} keeps its default"));
        }
        written.map(|written| (ours, written))
    }

    fn listen(&mut self) -> Vec<String> {
        let port = self.listen_port.clone().unwrap_or_else(|| "6432".to_owned());
        let mut listen = vec![];
        for host in std::mem::take(&mut self.listen_addresses) {
            let host = match host.as_str() {
                "*" => "0.0.0.0".to_owned(),
                "localhost" => "127.0.0.1".to_owned(),
                host if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]"),
                host if host.parse::<std::net::Ipv4Addr>().is_ok() => host.to_owned(),
                other => {
                    self.report.push(format!("listen_addr = {other}: an IP address is needed"));
                    continue;
                }
            };
            listen.push(format!("address: {}", quoted(&format!("{host}:{port}"))));
        }
        if let Some(directory) = self.socket_directory.take().filter(|directory| !directory.is_empty()) {
            listen.push(format!("unix: {}, port: {port}", quoted(&directory)));
        }
        if listen.is_empty() {
            listen.push(format!("address: \"127.0.0.1:{port}\""));
        }
        listen
    }

    fn finish(mut self) -> Imported {
        let mut yaml =
            "# Made by `bellwether import-pgbouncer`. To be completed: nodes, server_login, wal, state.\n\
                        cluster: imported\ninstance: bw1\nlisten:\n"
                .to_owned();
        for listen in self.listen() {
            let _ = writeln!(yaml, "  - {{{listen}}}");
        }
        self.admin.insert(0, ("address", "\"127.0.0.1:9632\"".to_owned()));
        let _ = writeln!(yaml, "admin: {}", mapping(&self.admin));
        yaml += "# All servers of the cluster, the primary and its standbys.\nnodes:\n";
        if self.nodes.is_empty() {
            self.report.push("[databases]: is empty: complete nodes".to_owned());
            self.nodes.push("127.0.0.1:5432".to_owned());
        }
        if self.nodes.len() > 1 {
            let what = format!("[databases]: servers {}: keep those of one cluster", self.nodes.join(", "));
            self.report.push(what);
        }
        for (number, address) in (1..).zip(&self.nodes) {
            let _ = writeln!(yaml, "  - {{name: pg{number}, address: {}}}", quoted(address));
        }
        yaml += "server_login: {user: bellwether, password_file: /etc/bellwether/password}\n";
        if !self.auth.is_empty() {
            let _ = writeln!(yaml, "auth: {}", mapping(&self.auth));
        }
        self.write_pool(&mut yaml);
        yaml += "wal: {dir: /var/lib/bellwether/wal}\nstate: {file: /var/lib/bellwether/state}\n";
        Imported { yaml, report: self.report }
    }

    fn write_pool(&self, yaml: &mut String) {
        let lists = [("databases", &self.databases), ("users", &self.users)];
        let said = |list: &[(String, Keys)]| list.iter().any(|(_, keys)| !keys.is_empty());
        if self.pool.is_empty() && !lists.iter().any(|(_, list)| said(list)) {
            return;
        }
        yaml.push_str("pool:\n");
        for (key, value) in &self.pool {
            let _ = writeln!(yaml, "  {key}: {value}");
        }
        for (name, list) in lists.into_iter().filter(|(_, list)| said(list)) {
            let _ = writeln!(yaml, "  {name}:");
            for (name, keys) in list.iter().filter(|(_, keys)| !keys.is_empty()) {
                let named = [("name", quoted(name))].into_iter().chain(keys.iter().cloned()).collect();
                let _ = writeln!(yaml, "    - {}", mapping(&named));
            }
        }
    }
}

/// What to do about a key that is not taken over.
fn advice(key: &str) -> &'static str {
    match key {
        "auth_query" | "auth_user" | "auth_dbname" => {
            "users are looked up on the servers: see auth.query and auth.lookup"
        }
        "auth_hba_file" | "auth_ident_file" => "write auth.rules and auth.maps",
        "user" | "force_user" => "every client logs in at the servers as itself",
        "max_db_connections"
        | "max_user_connections"
        | "max_db_client_connections"
        | "max_user_client_connections" => "say max_servers or max_clients for each database or user in pool",
        "client_encoding" | "datestyle" | "timezone" | "connect_query" | "application_name" => {
            "set it with ALTER DATABASE or ALTER ROLE"
        }
        _ if key.contains("_tls_") => "write it under tls",
        _ => "has no equivalent",
    }
}

fn mapping(keys: &Keys) -> String {
    let pairs: Vec<String> = keys.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// As JSON's, which YAML reads.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::import;
    use crate::app::config::{Sources, parse};

    /// Every file has something in it.
    struct Full;

    impl Sources for Full {
        fn file(&self, path: &Path) -> std::io::Result<String> {
            let users = path.ends_with("userlist.txt");
            Ok(if users { "\"app\" \"md5d51d3c0d3a2b5e9b34bd5bfe4e1a6ed9\"\n" } else { "secret" }.to_owned())
        }

        fn env(&self, _: &str) -> Option<String> {
            None
        }

        fn command(&self, _: &str) -> std::io::Result<String> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    /// The lines from `listen:` on, without the example at the end; and the report. What comes out can be used.
    fn check(ini: &str, expected: &str, report: &[&str]) {
        let imported = import(ini);
        let (config, findings) = parse(&imported.yaml, Path::new("/etc/bellwether"), &Full);
        assert!(config.is_some(), "{findings:?}\n{}", imported.yaml);
        let kept = imported.yaml.lines().skip(3).filter(|line| {
            !line.starts_with('#')
                && !["server_login:", "wal:", "state:"].iter().any(|key| line.starts_with(key))
        });
        assert_eq!(kept.collect::<Vec<_>>().join("\n"), expected.trim());
        assert_eq!(imported.report, report);
    }

    #[test]
    fn a_distributions_own_file() {
        check(
            "[databases]\n\
             app = host=10.0.0.11 port=5433 dbname=app pool_size=50 pool_mode=session\n\
             * = host=10.0.0.11 port=5433\n\
             [users]\nreport = pool_mode=session max_user_connections=5 query_timeout=30\n\
             [pgbouncer]\n\
             logfile = /var/log/postgresql/pgbouncer.log\n\
             pidfile = /var/run/postgresql/pgbouncer.pid\n\
             listen_addr = localhost, 10.0.0.5\n\
             listen_port = 6433\n\
             unix_socket_dir = /var/run/postgresql\n\
             auth_type = md5\n\
             auth_file = /etc/pgbouncer/userlist.txt\n\
             admin_users = postgres, root\n\
             pool_mode = transaction\n\
             max_client_conn = 500\n\
             default_pool_size = 25\n\
             server_idle_timeout = 60\n\
             query_wait_timeout = 1.5\n\
             idle_transaction_timeout = 0\n",
            r#"
listen:
  - {address: "127.0.0.1:6433"}
  - {address: "10.0.0.5:6433"}
  - {unix: "/var/run/postgresql", port: 6433}
admin: {address: "127.0.0.1:9632", users: ["postgres", "root"]}
nodes:
  - {name: pg1, address: "10.0.0.11:5433"}
auth: {method: md5, users_file: "/etc/pgbouncer/userlist.txt"}
pool:
  mode: transaction
  max_clients: 500
  size: 25
  idle: 60000ms
  wait: 1500ms
  idle_transaction_timeout: off
  databases:
    - {name: "app", mode: session, size: 50}
  users:
    - {name: "report", mode: session, max_servers: 5, query_timeout: 30000ms}
"#
            .replace("mode: session, size: 50", "size: 50, mode: session")
            .as_str(),
            &[],
        );
    }

    #[test]
    fn what_has_no_equivalent_is_told() {
        check(
            "%include /etc/pgbouncer/more.ini\n\
             [databases]\n\
             orders = host=db1,db2 dbname=orders_v2 user=shared password='s' connect_query='SET x = 1'\n\
             [pgbouncer]\n\
             listen_addr = pooler.example\n\
             auth_type = hba\n\
             auth_hba_file = /etc/pgbouncer/hba.conf\n\
             server_lifetime = 0\n\
             client_tls_sslmode = require\n\
             max_db_connections = 100\n\
             frobnicate = 1\n",
            r#"
listen:
  - {address: "127.0.0.1:6432"}
admin: {address: "127.0.0.1:9632"}
nodes:
  - {name: pg1, address: "db1:5432"}
  - {name: pg2, address: "db2:5432"}
"#,
            &[
                "%include /etc/pgbouncer/more.ini: not read",
                "auth_type = hba: write auth.rules; scram-sha-256 until then",
                "auth_hba_file = /etc/pgbouncer/hba.conf: write auth.rules and auth.maps",
                "server_lifetime = 0: has no equivalent; lifetime keeps its default",
                "client_tls_sslmode = require: write it under tls",
                "max_db_connections = 100: say max_servers or max_clients for each database or user in pool",
                "frobnicate = 1: has no equivalent",
                "[databases] orders: dbname: clients use the database's own name",
                "[databases] orders: user = shared: every client logs in at the servers as itself",
                "[databases] orders: password: every client logs in at the servers as itself",
                "[databases] orders: connect_query = SET x = 1: set it with ALTER DATABASE or ALTER ROLE",
                "listen_addr = pooler.example: an IP address is needed",
                "[databases]: servers db1:5432, db2:5432: keep those of one cluster",
            ],
        );
    }
}
