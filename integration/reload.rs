//! The configuration is read again while clients are connected: what changes, what does not, and what is told.

use std::fs;
use std::time::Duration;

use serde_yaml::Value;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::harness::{Cluster, Durability, Options, bellwether, eventually};

const LIMIT: Duration = Duration::from_secs(120);

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).expect("the test's own YAML")
}

fn one_server(expected_warnings: &'static [&'static str]) -> Cluster {
    Cluster::start(Options {
        nodes: 1,
        durability: Durability::Async,
        expected_warnings,
        ..Options::default()
    })
}

/// Exit code, standard output and standard error of `bellwether reload`.
fn reload(cluster: &Cluster) -> (Option<i32>, String, String) {
    let mut command = bellwether();
    command.arg("reload").arg("--config").arg(cluster.data().join("bellwether.yaml"));
    let output = command.output().expect("bellwether runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The command succeeds and says this.
fn reloaded(cluster: &Cluster, expected: &[&str]) {
    let (code, said, error) = reload(cluster);
    assert_eq!((code, said.lines().collect::<Vec<_>>()), (Some(0), expected.to_vec()), "{error}");
}

fn log_in(cluster: &Cluster, user: &str, password: &str) -> Result<String, String> {
    let port = cluster.port;
    let conninfo = format!("host=127.0.0.1 port={port} user={user} password={password} dbname=app");
    cluster.psql_at(&conninfo, "SELECT current_user")
}

fn direct(cluster: &Cluster, sql: &str) {
    let conninfo = cluster.direct_conninfo(&cluster.primary(), "postgres");
    cluster.psql_at(&conninfo, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

const RULES: &str = "
- {type: host, database: replication, user: bellwether, address: 127.0.0.1, method: scram-sha-256}
- {type: host, database: all, user: '/^unwanted', address: all, method: reject}
- {type: host, database: all, user: all, address: 127.0.0.0/8, method: scram-sha-256}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_rules_and_limits() {
    let cluster = one_server(&[]);
    let users_file = cluster.data().join("userlist.txt");
    fs::write(&users_file, "\"listed\" \"one\"\n").expect("userlist.txt");
    for role in ["listed", "unwanted_one"] {
        direct(&cluster, &format!("CREATE ROLE {role} LOGIN PASSWORD 'one'"));
    }
    let (client, connection) = tokio_postgres::connect(&cluster.conninfo(), NoTls).await.expect("a login");
    tokio::spawn(connection);
    client
        .batch_execute("BEGIN; CREATE TEMPORARY TABLE t ON COMMIT DROP AS SELECT 1 AS n")
        .await
        .expect("begun");
    assert_eq!(log_in(&cluster, "unwanted_one", "one").as_deref(), Ok("unwanted_one"));

    reloaded(&cluster, &["nothing has changed"]);
    cluster.rewrite(|config| {
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.remove("method");
        auth.insert("rules".into(), yaml(RULES));
        auth.insert("users_file".into(), users_file.display().to_string().into());
        config["pool"] = yaml("{size: 7, login: 9s}");
        config["routing"] = yaml("{max_lag: {bytes: 1MiB}}");
        config["failover"]["mode"] = "manual".into();
        config["log"]["level"] = "info,bellwether::net=debug".into();
        config["workers"] = 3.into();
    });
    reloaded(
        &cluster,
        &[
            "in effect: pool.size, routing.max_lag.bytes, failover.mode, log.level",
            "in effect for new connections: auth.rules, auth.users, pool.login",
            "needs a restart: workers",
        ],
    );
    let said = log_in(&cluster, "unwanted_one", "one").expect_err("a rule rejects it");
    assert!(said.contains("pg_hba.conf rejects connection"), "{said}");
    assert_eq!(log_in(&cluster, "listed", "one").as_deref(), Ok("listed"));
    assert!(cluster.log().contains(" DEBUG bellwether::net"), "the level has changed");

    // A secret in a file: the configuration itself is the same.
    fs::write(&users_file, "\"listed\" \"two\"\n").expect("userlist.txt");
    direct(&cluster, "ALTER ROLE listed PASSWORD 'two'");
    reloaded(&cluster, &["in effect for new connections: auth.users", "needs a restart: workers"]);
    assert_eq!(log_in(&cluster, "listed", "two").as_deref(), Ok("listed"));
    let said = log_in(&cluster, "listed", "one").expect_err("the old password");
    assert!(said.contains("password authentication failed"), "{said}");

    // Who was there has noticed nothing of all that.
    let row = client.query_one("SELECT n FROM t", &[]).await.expect("in its transaction");
    assert_eq!(row.get::<_, i32>(0), 1);
    client.batch_execute("COMMIT").await.expect("committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_changes_nothing() {
    let cluster = one_server(&["the configuration stays as it was"]);
    cluster.rewrite(|config| {
        config["pool"] = yaml("{size: 7, sise: 8}");
        config["auth"]["method"] = "none".into();
        config["routing"] = yaml("{max_lag: {time: soon}}");
    });
    let mistakes = ["auth.method: must be one of", "pool.sise: unknown key", "routing.max_lag.time: "];
    let all_are_in = |said: &str| {
        for mistake in mistakes {
            assert!(said.contains(mistake), "{mistake}: {said}");
        }
    };
    let (code, _, error) = reload(&cluster);
    assert_eq!(code, Some(1));
    all_are_in(&error);
    let (status, body) = cluster.http("POST", "/api/v1/reload").expect("an answer");
    assert_eq!(status, 422);
    all_are_in(&body);
    let password = cluster.superuser_password();
    let console =
        format!("host=127.0.0.1 port={} user=bellwether password={password} dbname=bellwether", cluster.port);
    let said = cluster.psql_at(&console, "RELOAD").expect_err("a bad file");
    assert!(said.contains("F0000"), "{said}");
    all_are_in(&said);

    // A certificate that is not there is found before anything else has changed.
    cluster.rewrite(|config| {
        config["auth"]["method"] = "scram-sha-256".into();
        config["pool"] = yaml("{size: 7}");
        config["routing"] = yaml("{}");
        config["tls"] = yaml("{cert_file: none.crt, key_file: none.key}");
    });
    let (code, _, error) = reload(&cluster);
    assert!(code == Some(1) && error.contains("none.crt"), "{error}");
    let config = cluster.psql_at(&console, "SHOW CONFIG").expect("shown");
    assert!(config.lines().any(|line| line.starts_with("default_pool_size|20|")), "{config}");

    // SIGHUP says so in the log.
    let refused = || cluster.log().matches("the configuration stays as it was").count();
    let before = refused();
    let (status, _) = cluster.http("POST", "/api/v1/reload").expect("an answer");
    assert_eq!(status, 422);
    eventually(
        "a line in the log",
        LIMIT,
        || if refused() > before { Ok(()) } else { Err("none".to_owned()) },
    );

    // And at the console the outcome of a good one is told in notices.
    cluster.rewrite(|config| drop(config.as_mapping_mut().expect("a mapping").remove("tls")));
    let (client, mut connection) = tokio_postgres::connect(&console, NoTls).await.expect("a login");
    let (notices, mut noticed) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message {
                let _ = notices.send(notice.message().to_owned());
            }
        }
    });
    client.simple_query("RELOAD").await.expect("reloaded");
    assert_eq!(noticed.recv().await.as_deref(), Some("in effect: pool.size"));
}
