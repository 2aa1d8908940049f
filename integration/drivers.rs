//! `make drivers`: every driver in `integration/drivers/` does the same list of things straight at a server, and
//! through the endpoint in transaction and in session mode. What fails anywhere fails here. The table is printed
//! and, when all drivers ran, kept in `integration/drivers/README.md`. `DRIVERS=pgx,JDBC` runs only those.
//!
//! Beside them other clients change settings and prepare statements, so that in transaction mode a driver's next
//! statement often meets another server connection than its last.

#![expect(clippy::disallowed_methods, reason = "which drivers to run is a variable; other clients are tasks")]

#[allow(dead_code, unused_imports, reason = "the tests use more of the harness than this")]
mod harness;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use harness::{Cluster, Options};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// For one driver's whole list at one address.
const LIMIT_SECONDS: &str = "90";
const FEATURES: [&str; 13] = [
    "types",
    "prepared",
    "transactions",
    "savepoints",
    "copy",
    "cursors",
    "notify",
    "cancel",
    "errors",
    "big",
    "pipeline",
    "settings",
    "pool",
];
const OTHER_CLIENTS: usize = 4;
const BEGIN: &str = "<!-- written by make drivers -->\n";
const END: &str = "<!-- end -->\n";

struct Driver {
    name: &'static str,
    /// As `integration/setup.sh drivers` leaves it. It runs in `integration/drivers`.
    command: &'static str,
}

const DRIVERS: [Driver; 13] = [
    Driver { name: "psycopg 3", command: "../../target/drivers/venv/bin/python python/with_psycopg3.py" },
    Driver { name: "psycopg 2", command: "../../target/drivers/venv/bin/python python/with_psycopg2.py" },
    Driver { name: "asyncpg", command: "../../target/drivers/venv/bin/python python/with_asyncpg.py" },
    Driver { name: "SQLAlchemy", command: "../../target/drivers/venv/bin/python python/with_sqlalchemy.py" },
    Driver { name: "node-postgres", command: "node node/with_pg.cjs" },
    Driver { name: "postgres.js", command: "node node/with_postgres_js.cjs" },
    Driver { name: "pgx", command: "../../target/drivers/pgx" },
    Driver {
        name: "JDBC",
        command: "java -cp ../../target/drivers/java:/usr/share/java/postgresql.jar Jdbc",
    },
    Driver { name: "tokio-postgres", command: "../../target/drivers/rust/debug/tokio_postgres" },
    Driver { name: "sqlx", command: "../../target/drivers/rust/debug/sqlx" },
    Driver { name: "Ruby pg", command: "ruby ruby/with_pg.rb" },
    Driver { name: "PHP PDO", command: "php php/with_pdo.php" },
    Driver { name: "Perl DBD::Pg", command: "perl perl/with_dbd_pg.pl" },
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed(String),
    /// The driver has no such thing.
    Absent,
}

/// What one driver said of each feature, at one address.
type Report = BTreeMap<&'static str, Outcome>;

/// The addresses, in the order in which a cell of the table is decided.
const PLACES: [&str; 3] = ["direct", "transaction mode", "session mode"];

#[test]
fn every_driver_finds_a_server() {
    let wanted = std::env::var("DRIVERS").unwrap_or_default();
    let named = |driver: &&Driver| wanted.is_empty() || wanted.split(',').any(|name| name == driver.name);
    let drivers: Vec<&Driver> = DRIVERS.iter().filter(named).collect();
    assert!(!drivers.is_empty(), "DRIVERS={wanted}: none of that name");

    let mut cluster = Cluster::start(Options::default());
    let run_all = |port: u16| -> Vec<Report> { drivers.iter().map(|driver| run(driver, port)).collect() };
    let direct = run_all(cluster.primary().port);
    let mut through = Vec::new();
    for mode in ["transaction", "session"] {
        cluster.reconfigure(|config| {
            let pool = format!("{{mode: {mode}, size: 12}}");
            config["pool"] = serde_yaml::from_str(&pool).expect("the test's own YAML");
        });
        through.push(among_others(&cluster, || run_all(cluster.port)));
    }

    let reports: Vec<(&str, [Report; 3])> = drivers
        .iter()
        .enumerate()
        .map(|(at, driver)| {
            (driver.name, [direct[at].clone(), through[0][at].clone(), through[1][at].clone()])
        })
        .collect();
    let (table, complaints) = table(&reports);
    println!("{table}");
    if drivers.len() == DRIVERS.len() {
        keep(&table);
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Runs `body` while other clients use the same pool.
fn among_others<T>(cluster: &Cluster, body: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut others = JoinSet::new();
    let entered = runtime.enter();
    for number in 0..OTHER_CLIENTS {
        others.spawn(disturb(cluster.conninfo(), number));
    }
    drop(entered);
    let result = body();
    runtime.block_on(async {
        // Each runs until it is stopped: one that has ended before failed.
        assert!(others.try_join_next().is_none(), "another client failed");
        others.shutdown().await;
    });
    result
}

/// A client whose settings and prepared statements are others than everybody else's.
async fn disturb(conninfo: String, number: usize) {
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("connect");
    tokio::spawn(connection);
    let zone = format!("Etc/GMT+{number}");
    client
        .batch_execute(&format!("SET TIME ZONE '{zone}'; SET work_mem = '1{number}MB'"))
        .await
        .expect("set");
    let statement = client.prepare("SELECT current_setting('TimeZone')").await.expect("prepare");
    loop {
        client.batch_execute("BEGIN; LOCK TABLE pg_class IN ACCESS SHARE MODE").await.expect("begin");
        let found: String = client.query_one(&statement, &[]).await.expect("query").get(0);
        tokio::time::sleep(std::time::Duration::from_millis(5 + number as u64)).await;
        client.batch_execute("COMMIT").await.expect("commit");
        assert_eq!(found, zone);
    }
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("integration/drivers")
}

fn run(driver: &Driver, port: u16) -> Report {
    let output = Command::new("timeout")
        .args(["--kill-after=5", LIMIT_SECONDS])
        .args(driver.command.split(' '))
        .current_dir(directory())
        .env("NODE_PATH", directory().join("../../target/drivers/node/node_modules"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGUSER", "app")
        .env("PGPASSWORD", "demo")
        .env("PGDATABASE", "app")
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .output()
        .expect("timeout(1) runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let report = report(&said, &format!("no answer: {}", output.status));
    if report.values().any(|outcome| matches!(outcome, Outcome::Failed(_))) {
        eprintln!("--- {} at port {port}\n{said}{complaints}", driver.name);
    }
    report
}

/// Lines `feature ok`, `feature FAIL reason`, `feature -`; a feature without a line failed for `missing`.
fn report(said: &str, missing: &str) -> Report {
    let outcome = |feature: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(feature)?.strip_prefix(' '));
        match line {
            Some("ok") => Outcome::Ok,
            Some("-") => Outcome::Absent,
            Some(other) => Outcome::Failed(other.trim_start_matches("FAIL ").to_owned()),
            None => Outcome::Failed(missing.to_owned()),
        }
    };
    FEATURES.into_iter().map(|feature| (feature, outcome(feature))).collect()
}

/// As Markdown, with the reasons under it; and the same reasons alone.
fn table(reports: &[(&str, [Report; 3])]) -> (String, Vec<String>) {
    let mut text = format!("| driver | {} |\n|---|{}\n", FEATURES.join(" | "), "---|".repeat(FEATURES.len()));
    let mut complaints = Vec::new();
    for (driver, places) in reports {
        let _ = write!(text, "| {driver} |");
        for feature in FEATURES {
            let failed: Vec<&str> = PLACES
                .into_iter()
                .zip(places)
                .filter_map(|(place, report)| match &report[feature] {
                    Outcome::Failed(reason) => {
                        complaints.push(format!("{driver}, {feature}, {place}: {reason}"));
                        Some(place)
                    }
                    Outcome::Ok | Outcome::Absent => None,
                })
                .collect();
            let cell = match (&places[0][feature], failed.as_slice()) {
                (Outcome::Absent, []) => "-".to_owned(),
                (_, []) => "ok".to_owned(),
                (_, failed) => format!("**fails: {}**", failed.join(", ")),
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    if !complaints.is_empty() {
        text.push('\n');
        complaints.iter().for_each(|line| text += &format!("* {}\n", line.replace('|', "\\|")));
    }
    (text, complaints)
}

fn keep(table: &str) {
    let path = directory().join("README.md");
    let page = fs::read_to_string(&path).expect("README.md");
    let (before, rest) = page.split_once(BEGIN).expect("the table's beginning is marked");
    let (_, after) = rest.split_once(END).expect("the table's end is marked");
    fs::write(&path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).expect("README.md");
}

#[test]
fn the_table_shows_what_fails() {
    let good = report(&FEATURES.map(|feature| format!("{feature} ok\n")).concat(), "no answer");
    let mut poor = good.clone();
    poor.insert("copy", Outcome::Absent);
    let (text, complaints) = table(&[("good", [good.clone(), good.clone(), good.clone()])]);
    assert_eq!(complaints, Vec::<String>::new());
    assert_eq!(text.matches(" ok |").count(), FEATURES.len());
    let (text, complaints) = table(&[("poor", [poor.clone(), poor.clone(), poor])]);
    assert_eq!(complaints, Vec::<String>::new());
    assert_eq!(text.matches(" - |").count(), 1);

    let bad = report("types ok\nprepared FAIL so it is\n", "no answer");
    assert_eq!(bad["prepared"], Outcome::Failed("so it is".to_owned()));
    assert_eq!(bad["pool"], Outcome::Failed("no answer".to_owned()));
    let (text, complaints) = table(&[("bad", [good.clone(), bad, good])]);
    assert_eq!(complaints.len(), FEATURES.len() - 1);
    assert_eq!(complaints[0], "bad, prepared, transaction mode: so it is");
    assert!(text.contains("**fails: transaction mode**"), "{text}");
}
