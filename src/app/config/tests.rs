//! What a whole document gives: a configuration, or everything that is wrong with it.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::{AuthQuery, Budget, Config, Findings, ListenOn, Problem, Secret, Sources, Wal, parse};
use crate::net::SocketMode;
use crate::topology::Durability;

/// Two files, one variable, one command.
struct Known;

impl Sources for Known {
    fn file(&self, path: &Path) -> io::Result<String> {
        match path.to_str() {
            Some("/secrets/known") => Ok("from a file\n".to_owned()),
            Some("/secrets/userlist") => Ok("\"listed\" \"pw\"\n".to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn env(&self, name: &str) -> Option<String> {
        (name == "KNOWN").then(|| "from the environment".to_owned())
    }

    fn command(&self, command: &str) -> io::Result<String> {
        if command == "known" {
            Ok("from a command\r\n".to_owned())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

const MINIMAL: &str = "
cluster: orders
instance: bw1
listen: [{address: '0.0.0.0:6432'}]
nodes: [{name: pg1, address: '10.0.0.11:5432'}]
server_login: {user: bellwether, password_env: KNOWN}
wal: {dir: wal}
state: {file: state}
";

pub(super) fn read(yaml: &str) -> (Option<Config>, Findings) {
    parse(yaml, Path::new("/etc/bellwether"), &Known)
}

pub(super) fn problems(yaml: &str) -> Vec<String> {
    let (config, findings) = read(yaml);
    assert_eq!(config.is_some(), findings.problems.is_empty());
    findings.problems.iter().map(Problem::to_string).collect()
}

/// The minimal document with the section of `key` replaced.
pub(super) fn with(key: &str, line: &str) -> String {
    let kept = MINIMAL.lines().filter(|kept| !kept.starts_with(&format!("{key}:")));
    kept.chain([line]).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_smallest_document_has_safe_defaults() {
    let (config, findings) = read(MINIMAL);
    assert_eq!(findings, Findings::default());
    let config = config.expect("no problems");
    assert_eq!(config.wal.dir, Path::new("/etc/bellwether/wal"));
    assert_eq!(config.server_login.password, Some(Secret::new("from the environment")));
    assert_eq!(config.durability, Durability::Async);
    assert_eq!(config.failover.max_lost_bytes, 0);
    let budget = Budget { failovers: 5, within: Duration::from_secs(600) };
    assert_eq!(config.failover.budget, Some(budget));
    assert_eq!(config.auth.query, AuthQuery::On);
    assert!(config.nodes[0].local.is_none());
}

#[test]
fn peers_are_told_apart_by_the_keys_they_give_out() {
    let peers = |items: &[&str]| {
        let item = |name: &&str| format!("{{instance: {name}, address: '10.0.0.2:6432'}}");
        let items: Vec<String> = items.iter().map(item).collect();
        problems(&with("peers", &format!("peers: [{}]", items.join(", "))))
    };
    assert_eq!(peers(&["bw2", "bw3"]), [""; 0]);
    assert_eq!(
        peers(&["bw1", "bw2", "bw2", "bw673"]),
        [
            "peers[0].instance: bw1 is here already, or this instance itself",
            "peers[2].instance: bw2 is here already, or this instance itself",
            "peers[3].instance: bw673 and bw1 look the same in the keys for cancel requests; rename one",
        ]
    );
    let missing = problems(&with("peers", "peers: [{instance: BW2}]"));
    let letters = "may have 1 to 32 lower case letters, digits and '_' only";
    assert_eq!(missing, [format!("peers[0].instance: {letters}"), "peers[0].address: is missing".to_owned()]);
}

#[test]
fn every_problem_of_a_bad_document_at_once() {
    let found = problems(
        "
cluster: 7
listen: [{adress: '0.0.0.0:6432'}, {unix: /run/bellwether, address: '[::]:1'},
  {address: '[::]:2', proxy_protocol: required}, {address: '[::]:3', proxy_from: [here]}]
nodes:
  - {name: PG1, address: '10.0.0.11'}
  - {name: pg2, address: '10.0.0.12:5432', local: {data_dir: /var/lib/pg}}
  - {name: pg2, address: '10.0.0.12:5432'}
server_login: {user: bellwether, password_file: /secrets/none}
auth: {method: plain, users: [{name: app}]}
pool: {mode: each, size: 0, wait: 30, users: [{name: a}, {name: a, sise: 3}]}
routing: {max_lag: {bytes: 16}}
wal: {archive: {url: backups, compression: lzma, level: 20}}
durability: {mode: quorum, acks: 2}
state: {etcd: {}}
tls: {client: require}
",
    );
    assert_eq!(
        found,
        [
            "cluster: text is expected: put it in quotes",
            "instance: is missing",
            "listen[0]: needs address: HOST:PORT or unix: DIRECTORY",
            "listen[0].adress: unknown key; did you mean address?",
            "listen[1]: has both address and unix; make it two items",
            "listen[2].proxy_from: is missing: which addresses are the proxies'? \
             Whoever else sent a header could claim any address",
            "listen[3].proxy_from: here: ADDRESS/BITS or one address is expected",
            "listen[3].proxy_from: belongs to proxy_protocol: required",
            "nodes[0].name: node name \"PG1\" may have 1 to 40 lower case letters, digits, '-' and '_' only",
            "nodes[0].address: address \"10.0.0.11\": HOST:PORT is expected, an IPv6 host in brackets",
            "nodes[1].local.bin_dir: is missing",
            "nodes[2].name: pg2 is the name of another node",
            "nodes[2].address: 10.0.0.12:5432 is the address of another node",
            "server_login.password_file: /secrets/none: entity not found",
            "auth.method: must be one of scram-sha-256, md5, trust",
            "auth.users[0]: needs password_file, password_env, password_command or secret",
            "pool.mode: must be one of transaction, session, statement",
            "pool.size: a whole number from 1 to 10000 is expected",
            "pool.wait: a duration with its unit is expected, such as 500ms, 30s or 5min",
            "pool.users[1].name: a is in the list already",
            "pool.users[1].sise: unknown key; did you mean size?",
            "routing.max_lag.bytes: a size with its unit is expected, such as 64kB, 16MiB or 10GiB",
            "wal.dir: is missing",
            "wal.archive.url: file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix is expected",
            "wal.archive.compression: must be one of zstd",
            "wal.archive.level: a whole number from 1 to 19 is expected",
            "durability.acks: a whole number from 1 to 1 is expected",
            "state.file: is missing",
            "state.etcd.endpoints: is missing",
            "tls.cert_file: is missing: TLS for clients needs a certificate",
        ]
    );
}

#[test]
fn what_is_not_a_document_is_one_problem() {
    for yaml in ["a: [", "a: 1\na: 2", "\u{0}"] {
        let found = problems(yaml);
        assert!(found.len() == 1 && found[0].starts_with("is not YAML"), "{yaml:?}: {found:?}");
    }
    assert_eq!(problems("just text")[0], "must be a mapping (key: value)");
}

#[test]
fn secrets_come_from_four_places_and_one_at_a_time() {
    let login = |keys: &str| read(&with("server_login", &format!("server_login: {{user: u, {keys}}}")));
    for (keys, secret) in [
        ("password_file: /secrets/known", "from a file"),
        ("password_env: KNOWN", "from the environment"),
        ("password_command: known", "from a command"),
        ("password: plain", "plain"),
    ] {
        let (config, findings) = login(keys);
        assert_eq!(config.and_then(|c| c.server_login.password), Some(Secret::new(secret)), "{keys}");
        assert_eq!(findings.warnings.len(), usize::from(secret == "plain"), "{keys}");
    }
    for keys in [
        "password: a, password_env: KNOWN",
        "password_env: UNKNOWN",
        "password_command: unknown",
        "password: ''",
    ] {
        assert_eq!(login(keys).1.problems.len(), 1, "{keys}");
    }
    assert!(!format!("{:?}", login("password: plain").0).contains("plain"));
}

#[test]
fn this_hosts_server_is_named_or_the_only_one() {
    let local = "data_dir: pgdata, bin_dir: /usr/lib/postgresql/15/bin";
    let (config, _) = read(&with("local", &format!("local: {{{local}}}")));
    let config = config.expect("there is one node");
    let agent = config.nodes[0].local.as_ref().expect("the only node is local");
    assert_eq!(agent.data_dir, Path::new("/etc/bellwether/pgdata"));
    let other = with("local", &format!("local: {{node: pg9, {local}}}"));
    assert_eq!(problems(&other), ["local.node: pg9 is not in nodes"]);
}

#[test]
fn a_unix_listener_is_a_directory_a_port_and_a_mode() {
    let check = |keys: &str, expected: Result<(u16, u32), &str>| {
        let (config, findings) =
            read(&with("listen", &format!("listen: [{{unix: /run/bellwether, {keys}}}]")));
        let on = |(port, mode)| ListenOn::Unix {
            directory: "/run/bellwether".into(),
            port,
            mode: SocketMode(mode),
        };
        let problem = findings.problems.first().map(Problem::to_string);
        match expected {
            Ok(expected) => assert_eq!(config.expect("it is whole").listen[0].on, on(expected), "{keys}"),
            Err(expected) => assert_eq!(problem.as_deref(), Some(expected), "{keys}"),
        }
    };
    let octal = "listen[0].mode: octal digits in quotes are expected, such as '0770'";
    check("port: 5432, route: standby", Ok((5432, 0o777)));
    check("mode: '0770'", Ok((6432, 0o770)));
    check("mode: '700'", Ok((6432, 0o700)));
    check("mode: 770", Err(octal));
    check("mode: 0o770", Err(octal));
    check("mode: '0778'", Err(octal));
    check("mode: '1777'", Err(octal));
}

#[test]
fn the_example_says_what_the_defaults_are() {
    let example =
        include_str!("../../../deploy/bellwether.yaml").replace("/etc/bellwether/password", "/secrets/known");
    assert_eq!(problems(&example), [""; 0]);
    // What is commented out, minus prose: every line that is a key when the mark is gone.
    let uncommented: String = example
        .lines()
        .filter(|line| {
            !["# local:", "# rules:", "# maps:", "#   - {type:", "#   - {map:"]
                .iter()
                .any(|alternative| line.trim_start().starts_with(alternative))
        })
        .map(|line| {
            let bare = line.trim_start();
            let key = bare.strip_prefix("# ").filter(|rest| {
                rest.trim_start().split_once([':', '{']).is_some_and(|(key, _)| {
                    key.trim_start_matches("- ").chars().all(|c| c.is_ascii_lowercase() || c == '_')
                })
            });
            let indent = &line[..line.len() - bare.len()];
            key.map_or_else(|| format!("{line}\n"), |key| format!("{indent}{key}\n"))
        })
        .collect();
    let uncommented = uncommented.replace("/etc/bellwether/report.verifier", "/secrets/known");
    let uncommented = uncommented.replace("APP_PASSWORD", "KNOWN").replace("ETCD_PASSWORD", "KNOWN");
    let uncommented = uncommented.replace("/etc/bellwether/userlist.txt", "/secrets/userlist");
    let (with_all, findings) = read(&uncommented);
    let with_all = with_all.unwrap_or_else(|| panic!("{findings:?}\n{uncommented}"));
    let (as_is, _) = read(&example);
    let as_is = as_is.expect("it has no problems");
    assert_eq!(with_all.auth.users.len(), 3);
    assert_eq!(with_all.auth.lookups, as_is.auth.lookups);
    let limits = |config: &Config| (config.pool.limits.limits("-", "-"), config.pool.limits.totals());
    assert_eq!(limits(&with_all), limits(&as_is));
    assert_eq!(with_all.pool.limits.limits("-", "report").size.size, 5);
    assert_eq!((with_all.pool.login, with_all.routing), (as_is.pool.login, as_is.routing));
    let (archiving, _) = read(&with("wal", "wal: {dir: wal, archive: {url: 's3://bucket/prefix'}}"));
    assert_eq!(with_all.wal.archive, archiving.expect("it has no problems").wal.archive);
    let wal = Wal { archive: None, ..with_all.wal };
    assert_eq!((with_all.failover, wal, with_all.log), (as_is.failover, as_is.wal, as_is.log));
    assert_eq!(with_all.shutdown, as_is.shutdown);
    assert_eq!(with_all.etcd.map(|etcd| etcd.lease), Some(Duration::from_secs(5)));
    assert_eq!((with_all.events.timeout, with_all.events.command.len()), (as_is.events.timeout, 3));
}

#[test]
fn who_takes_no_base_backups_removes_none() {
    let plan = |backups: &str| {
        let archive = format!("wal: {{dir: wal, archive: {{url: 's3://bucket', {backups}}}}}");
        let (config, findings) = read(&with("wal", &archive));
        let archive = config.and_then(|config| config.wal.archive);
        let plan = archive.unwrap_or_else(|| panic!("{findings:?}")).backups;
        (plan.every.map(|every| every.as_secs() / 3600), plan.keep)
    };
    assert_eq!(plan(""), (Some(24), Some(7)));
    assert_eq!(plan("backups: {every: 6h}"), (Some(6), Some(7)));
    assert_eq!(plan("backups: {keep: 30}"), (Some(24), Some(30)));
    assert_eq!(plan("backups: {every: off, keep: 30}"), (None, Some(30)));
    assert_eq!(plan("backups: {every: off}"), (None, None));
}

/// What stands in the example as an alternative to `method`.
#[test]
fn the_examples_rules_are_good_ones() {
    let example = include_str!("../../../deploy/bellwether.yaml");
    let rules: String = example
        .lines()
        .filter_map(|line| line.strip_prefix("  # "))
        .filter(|line| ["rules:", "maps:", "  - {type:", "  - {map:"].iter().any(|key| line.starts_with(key)))
        .map(|line| format!("  {line}\n"))
        .collect();
    let tls = "tls: {cert_file: us.crt, key_file: us.key, client_ca_file: ca.crt}";
    let (config, findings) = read(&with("auth", &format!("auth:\n{rules}{tls}")));
    assert_eq!(findings, Findings::default(), "{rules}");
    assert_eq!(config.expect("it is whole").auth.rules.iter().count(), 3);
}
