//! The SQL console, as psql and PgBouncer's tools use it.

use std::fs;
use std::time::Duration;

use tokio_postgres::NoTls;

use crate::harness::{Cluster, Durability, Options, eventually, eventually_async};

const LIMIT: Duration = Duration::from_secs(120);

fn cluster() -> Cluster {
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    cluster.reconfigure(|config| {
        let users: serde_yaml::Value = serde_yaml::from_str("[app]").expect("YAML");
        config["admin"]["stats_users"] = users;
    });
    cluster
}

fn admin(cluster: &Cluster, database: &str) -> String {
    let password = cluster.superuser_password();
    format!("host=127.0.0.1 port={} user=bellwether password={password} dbname={database}", cluster.port)
}

/// With the names of the columns in front.
fn table(cluster: &Cluster, command: &str) -> Vec<Vec<String>> {
    let output = cluster
        .program("psql")
        .args(["-X", "-A", "-F", "\t", "-P", "footer=off", "-c", command, "-d", &admin(cluster, "pgbouncer")])
        .output()
        .expect("psql runs");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn order(cluster: &Cluster, command: &str) -> Result<String, String> {
    cluster.psql_at(&admin(cluster, "bellwether"), command)
}

async fn pid(client: &tokio_postgres::Client) -> Result<i32, String> {
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|error| error.to_string())?;
    Ok(row.get(0))
}

async fn client(cluster: &Cluster) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&cluster.conninfo(), NoTls).await.expect("a login");
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown() {
    let cluster = cluster();
    let app = client(&cluster).await;
    for _ in 0..3 {
        pid(&app).await.expect("a query");
    }

    let pools = table(&cluster, "SHOW POOLS;");
    assert_eq!(pools[0][..4], ["database", "user", "cl_active", "cl_waiting"]);
    let own = pools.iter().find(|row| row[0] == "app" && row[1] == "app").expect("the application's pool");
    assert_eq!((own[2].as_str(), own[9].as_str(), own[15].as_str()), ("1", "1", "transaction"), "{pools:?}");
    let clients = table(&cluster, "SHOW CLIENTS");
    assert_eq!(clients[1][..5], ["C", "app", "app", "none", "idle"]);
    assert_eq!(table(&cluster, "SHOW SERVERS")[1][..5], ["S", "app", "app", "none", "idle"]);
    app.batch_execute("CREATE TEMP TABLE kept (n int)").await.expect("a table");
    for show in ["SHOW CLIENTS", "SHOW SERVERS"] {
        let shown = table(&cluster, show);
        assert_eq!(shown[0].last().map(String::as_str), Some("pinned"), "{shown:?}");
        let kept = shown.iter().filter(|row| row.last().is_some_and(|why| why == "temporary"));
        assert_eq!(kept.count(), 1, "{shown:?}");
    }
    app.batch_execute("DROP TABLE kept").await.expect("a table");
    // A write's position is there as soon as its answer is.
    let answer = app.simple_query("SHOW bellwether.lsn").await.expect("a position");
    let position = answer.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert!(position.is_some_and(|lsn| lsn.contains('/')), "{position:?}");
    assert!(!table(&cluster, "SHOW CLIENTS").iter().flatten().any(|value| value == "temporary"));
    let databases = table(&cluster, "SHOW DATABASES");
    assert!(databases.iter().any(|row| row[0] == "app" && row[5] == "20"), "{databases:?}");
    let stats = table(&cluster, "SHOW STATS_TOTALS");
    let of_app = stats.iter().find(|row| row[0] == "app").expect("the application's database");
    assert!(of_app[2].parse::<u64>().expect("a count") >= 3, "{stats:?}");
    assert!(of_app[3..6].iter().all(|sum| sum.parse::<u64>().expect("a sum") > 0), "{stats:?}");
    let config = table(&cluster, "SHOW CONFIG");
    assert!(config.iter().any(|row| row[..2] == ["max_client_conn", "10000"]), "{config:?}");
    assert!(table(&cluster, "SHOW VERSION")[1][0].starts_with("Bellwether "));
    assert_eq!(table(&cluster, "SHOW STATE")[1], ["active", "yes"]);
    let nodes = table(&cluster, "SHOW NODES");
    assert_eq!(
        (nodes[1][0].as_str(), nodes[1][3].as_str(), nodes[1][4].as_str()),
        ("pg1", "primary", "open")
    );
    for command in [
        "USERS",
        "STATS",
        "STATS_AVERAGES",
        "LISTS",
        "LAG",
        "FOLLOWERS",
        "SLOTS",
        "WAL",
        "HISTORY",
        "ROUTES",
        "HELP",
    ] {
        let shown = table(&cluster, &format!("SHOW {command}"));
        assert!(!shown.is_empty(), "{command}");
    }
    assert!(table(&cluster, "SHOW ROUTES").len() > 1);

    let unknown = order(&cluster, "SHOW ME").expect_err("not a command");
    assert!(
        unknown.contains("42601") && unknown.contains("HINT") && unknown.contains("SHOW POOLS|"),
        "{unknown}"
    );
    // Who may look only, and who may not.
    let look = cluster.conninfo().replace("dbname=app", "dbname=pgbouncer");
    assert!(cluster.psql_at(&look, "SHOW LISTS").is_ok());
    let refused = cluster.psql_at(&look, "PAUSE").expect_err("it may look only");
    assert!(refused.contains("42501"), "{refused}");
    let direct = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&direct, "CREATE ROLE nobody LOGIN PASSWORD 'demo'").expect("a role");
    let nobody = look.replace("user=app", "user=nobody");
    let refused = cluster.psql_at(&nobody, "SHOW LISTS").expect_err("it may not come in");
    assert!(refused.contains("may not use the console"), "{refused}");

    // The extended protocol, as drivers use it for everything.
    let (client, connection) = tokio_postgres::connect(&look, NoTls).await.expect("a login");
    tokio::spawn(connection);
    let prepared = client.prepare("SHOW LISTS").await.expect("prepared");
    let names: Vec<&str> = prepared.columns().iter().map(tokio_postgres::Column::name).collect();
    assert_eq!(names, ["list", "items"]);
    let rows = client.simple_query("SHOW LISTS").await.expect("rows");
    assert!(rows.len() > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ordered() {
    let cluster = cluster();
    let app = client(&cluster).await;
    let first = pid(&app).await.expect("a query");

    order(&cluster, "RECONNECT app").expect("reconnected");
    let second = pid(&app).await.expect("a query");
    assert_ne!(first, second);
    let unknown = order(&cluster, "PAUSE not_there").expect_err("no such database");
    assert!(unknown.contains("3D000"), "{unknown}");

    // PAUSE waits for the transaction, and new work waits for RESUME.
    app.batch_execute("BEGIN; SELECT 1").await.expect("a transaction");
    let conninfo = admin(&cluster, "bellwether");
    let (operator, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("a login");
    tokio::spawn(connection);
    let paused = tokio::spawn(async move { operator.simple_query("PAUSE app").await });
    let other = client(&cluster).await;
    eventually("it is pausing", LIMIT, || {
        let databases = table(&cluster, "SHOW DATABASES");
        let pausing = databases.iter().any(|row| row[0] == "app" && row[11] == "1");
        if pausing { Ok(()) } else { Err(format!("{databases:?}")) }
    });
    let waits = tokio::spawn(async move { pid(&other).await });
    eventually("a client in the queue", LIMIT, || {
        let pools = table(&cluster, "SHOW POOLS");
        if pools.iter().any(|row| row[0] == "app" && row[3] == "1") {
            Ok(())
        } else {
            Err(format!("{pools:?}"))
        }
    });
    assert!(!paused.is_finished() && !waits.is_finished());
    app.batch_execute("COMMIT").await.expect("the transaction goes on");
    paused.await.expect("no panic").expect("paused");
    let databases = table(&cluster, "SHOW DATABASES");
    assert!(databases.iter().any(|row| row[0] == "app" && row[10] == "0" && row[11] == "1"), "{databases:?}");
    assert!(!waits.is_finished());
    order(&cluster, "RESUME app").expect("resumed");
    tokio::time::timeout(LIMIT, waits).await.expect("in time").expect("no panic").expect("served");

    let clients = table(&cluster, "SHOW CLIENTS");
    let column = clients[0].iter().position(|name| name == "id").expect("an id");
    let id = &clients[1][column];
    order(&cluster, &format!("KILL_CLIENT {id}")).expect("ended");
    eventually("its end", LIMIT, || if app.is_closed() { Ok(()) } else { Err("it is there".to_owned()) });

    let app = client(&cluster).await;
    pid(&app).await.expect("a query");
    order(&cluster, "KILL app").expect("killed");
    eventually("the session's end", LIMIT, || if app.is_closed() { Ok(()) } else { Err("open".to_owned()) });
    order(&cluster, "RESUME").expect("resumed");
    eventually_async("a session", LIMIT, async || pid(&client(&cluster).await).await).await;

    // What can be changed while running, and what cannot.
    let file = cluster.data().join("bellwether.yaml");
    let mut config = cluster.config();
    config["pool"] = serde_yaml::from_str("{size: 7, client_idle_timeout: 300ms}").expect("YAML");
    config["log"] = serde_yaml::from_str("{level: debug}").expect("YAML");
    fs::write(&file, serde_yaml::to_string(&config).expect("YAML")).expect("bellwether.yaml");
    let app = client(&cluster).await;
    order(&cluster, "RELOAD").expect("reloaded");
    eventually("the idle client's end", LIMIT, || {
        if app.is_closed() { Ok(()) } else { Err("it is there".to_owned()) }
    });
    let databases = table(&cluster, "SHOW DATABASES");
    assert!(databases.iter().any(|row| row[0] == "app" && row[5] == "7"), "{databases:?}");
}
