//! `bellwether check`: everything that is wrong with a file at once, and with live servers, with what mends it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_yaml::Value;

use crate::harness::{Cluster, LoneServer, Options, bellwether, eventually};

/// Exit code and report.
fn check(config: &Path) -> (Option<i32>, String) {
    let output = bellwether().arg("check").arg("--config").arg(config).output().expect("bellwether runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The cluster's configuration with `change` made to it, in a file of its own.
fn changed(cluster: &Cluster, name: &str, change: impl FnOnce(&mut Value)) -> std::path::PathBuf {
    let mut config = cluster.config();
    change(&mut config);
    let path = cluster.data().join(name);
    fs::write(&path, serde_yaml::to_string(&config).expect("YAML")).expect("configuration");
    path
}

#[test]
fn every_error_of_a_file_at_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("bellwether.yaml");
    let yaml = "
cluster: 7
listen: [{adress: '0.0.0.0:6432'}]
nodes:
  - {name: PG1, address: '10.0.0.11'}
  - {name: pg2, address: '10.0.0.12:5432'}
  - {name: pg2, address: '10.0.0.12:5432'}
server_login: {user: bellwether, password_file: not-there}
pool: {mode: transactions, wait: 30}
wal: {}
durability: {mode: quorum}
state: {file: state}
colour: blue
";
    fs::write(&file, yaml).expect("file");
    let (code, report) = check(&file);
    assert_eq!(code, Some(1), "{report}");
    let paths = [
        "cluster",
        "instance",
        "listen[0].adress",
        "nodes[0].name",
        "nodes[0].address",
        "nodes[2].name",
        "nodes[2].address",
        "server_login.password_file",
        "pool.mode",
        "pool.wait",
        "wal.dir",
        "colour",
    ];
    for path in paths {
        let start = format!("ERROR {path}: ");
        assert_eq!(report.lines().filter(|line| line.starts_with(&start)).count(), 1, "{path}:\n{report}");
    }

    let (code, report) = check(&dir.path().join("nowhere.yaml"));
    assert_eq!(code, Some(1));
    assert!(report.contains("cannot read"), "{report}");
}

#[test]
fn live_servers_and_what_mends_them() {
    let cluster = Cluster::start(Options::default());
    let healthy = cluster.data().join("bellwether.yaml");
    let (code, report) = check(&healthy);
    assert_eq!(code, Some(0), "{report}");
    assert!(!report.contains("ERROR"), "{report}");

    a_missing_line_of_pg_hba(&cluster, &healthy);
    a_login_without_rights(&cluster);
    a_server_that_cannot_be_a_primary(&cluster);
    let (code, report) = check(&healthy);
    assert_eq!(code, Some(0), "{report}");
}

fn a_missing_line_of_pg_hba(cluster: &Cluster, config: &Path) {
    let primary = cluster.primary();
    let file = primary.data_dir.join("pg_hba.conf");
    let whole = fs::read_to_string(&file).expect("pg_hba.conf");
    // The file only: the server goes on with what it has read.
    let without: Vec<&str> = whole.lines().filter(|line| !line.contains("replication")).collect();
    fs::write(&file, without.join("\n") + "\n").expect("pg_hba.conf");
    let (code, report) = check(config);
    assert_eq!(code, Some(1), "{report}");
    let expected = format!(
        "ERROR {} (127.0.0.1:{}): pg_hba.conf has no line that lets bellwether stream WAL from here. \
         Mend: in pg_hba.conf: host replication bellwether 127.0.0.1/32 scram-sha-256",
        primary.name, primary.port
    );
    assert!(report.lines().any(|line| line == expected), "{report}");

    let mend = "host replication bellwether 127.0.0.1/32 scram-sha-256";
    fs::write(&file, format!("{}\n{mend}\n", without.join("\n"))).expect("pg_hba.conf");
    let (code, report) = check(config);
    assert_eq!(code, Some(0), "{report}");
    fs::write(&file, whole).expect("pg_hba.conf");
}

/// What `check` says to type is typed, and `check` has nothing left to say.
fn a_login_without_rights(cluster: &Cluster) {
    let direct = cluster.direct_conninfo(&cluster.primary(), "postgres");
    cluster.psql_at(&direct, "CREATE ROLE plain LOGIN PASSWORD 'plain'").expect("role");
    let config = changed(cluster, "plain.yaml", |config| {
        config["server_login"] =
            serde_yaml::from_str("{user: plain, password: plain}").expect("the test's own YAML");
    });
    // The standbys have the role once they have replayed it.
    let mends = eventually("all three refuse the role's rights", Duration::from_secs(120), || {
        let (code, report) = check(&config);
        let promoting = report.matches("plain may not promote").count();
        if code == Some(1) && promoting == 3 { Ok(mends(&report)) } else { Err(report) }
    });
    for expected in [
        "ALTER ROLE plain REPLICATION;",
        "GRANT pg_monitor TO plain;",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) TO plain;",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO plain;",
    ] {
        assert!(mends.iter().any(|mend| mend == expected), "{expected} is not in {mends:?}");
    }
    for mend in mends {
        cluster.psql_at(&direct, &mend).expect(&mend);
    }
    eventually("no right is missing", Duration::from_secs(120), || {
        let (code, report) = check(&config);
        if code == Some(0) && !report.contains("may not") { Ok(()) } else { Err(report) }
    });
}

/// The SQL of a report, each statement once.
fn mends(report: &str) -> Vec<String> {
    let mends = report.lines().filter_map(|line| Some(line.split_once("Mend: ")?.1));
    let sql = mends.filter(|mend| mend.starts_with("ALTER ROLE") || mend.starts_with("GRANT"));
    // An alternative in the file may follow the statement.
    let mut sql: Vec<String> =
        sql.map(|mend| mend.split("; or ").next().unwrap_or(mend).to_owned()).collect();
    sql.sort();
    sql.dedup();
    sql
}

fn a_server_that_cannot_be_a_primary(cluster: &Cluster) {
    let server = LoneServer::init(cluster, "lone");
    server.start(
        cluster,
        "wal_level = minimal\nmax_wal_senders = 0\nmax_replication_slots = 0\nfsync = off\n\
         full_page_writes = off\nsynchronous_commit = local\nhot_standby = off\n",
    );
    let address = format!("127.0.0.1:{}", server.port);
    let config = changed(cluster, "lone.yaml", |config| {
        let node = format!("[{{name: lone, address: '{address}'}}]");
        config["nodes"] = serde_yaml::from_str(&node).expect("the test's own YAML");
        config["server_login"] = serde_yaml::from_str("{user: postgres}").expect("the test's own YAML");
    });
    let (code, report) = check(&config);
    assert_eq!(code, Some(1), "{report}");
    for (severity, what, mend) in [
        ("ERROR", "wal_level is minimal", "ALTER SYSTEM SET wal_level = replica;"),
        ("ERROR", "max_wal_senders is 0", "ALTER SYSTEM SET max_wal_senders = 10;"),
        ("ERROR", "max_replication_slots is 0", "ALTER SYSTEM SET max_replication_slots = 10;"),
        ("ERROR", "hot_standby is off", "ALTER SYSTEM SET hot_standby = on;"),
        ("ERROR", "fsync is off", "ALTER SYSTEM SET fsync = on;"),
        ("ERROR", "synchronous_commit is local", "ALTER SYSTEM SET synchronous_commit = on;"),
        ("WARN", "full_page_writes is off", "ALTER SYSTEM SET full_page_writes = on;"),
        ("WARN", "has neither wal_log_hints nor checksums", "ALTER SYSTEM SET wal_log_hints = on;"),
    ] {
        let start = format!("{severity} lone ({address}): {what}");
        let mend = format!("Mend: {mend}");
        let found = report.lines().any(|line| line.starts_with(&start) && line.contains(&mend));
        assert!(found, "{start} ... {mend}:\n{report}");
    }

    // Beside the real ones it is of another cluster, and a second primary.
    let direct = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", server.port);
    cluster.psql_at(&direct, "CREATE ROLE bellwether SUPERUSER LOGIN").expect("role");
    let config = changed(cluster, "stranger.yaml", |config| {
        let node = format!("{{name: lone, address: '{address}'}}");
        let nodes = config["nodes"].as_sequence_mut().expect("nodes");
        nodes.push(serde_yaml::from_str(&node).expect("the test's own YAML"));
    });
    let (code, report) = check(&config);
    assert_eq!(code, Some(1), "{report}");
    assert!(report.contains(&format!("ERROR lone ({address}): is of another cluster")), "{report}");
    let primary = cluster.primary().name;
    assert!(report.contains(&format!("{primary}, lone all are primaries")), "{report}");
}
