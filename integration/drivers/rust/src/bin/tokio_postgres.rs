//! tokio-postgres, with deadpool as its pool. The server is the one that the PG* variables name.

use std::env;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use drivers::{Outcome, TYPES, equal, feature};
use futures_util::future::{join_all, try_join_all};
use futures_util::{SinkExt, StreamExt, TryStreamExt, pin_mut, stream};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls};
use uuid::Uuid;

type Messages = mpsc::UnboundedReceiver<AsyncMessage>;

#[tokio::main]
async fn main() {
    feature("types", types()).await;
    feature("prepared", prepared()).await;
    feature("transactions", transactions()).await;
    feature("savepoints", savepoints()).await;
    feature("copy", copy()).await;
    feature("cursors", cursors()).await;
    feature("notify", notify()).await;
    feature("cancel", cancel()).await;
    feature("errors", errors()).await;
    feature("big", big()).await;
    feature("pipeline", pipeline()).await;
    feature("settings", settings()).await;
    feature("pool", pool()).await;
}

fn config() -> Config {
    let variable = |name| env::var(name).unwrap_or_default();
    let mut config = Config::new();
    config.host(variable("PGHOST")).port(variable("PGPORT").parse().unwrap_or(5432));
    config.user(variable("PGUSER")).password(variable("PGPASSWORD")).dbname(variable("PGDATABASE"));
    config.options("-c work_mem=7MB").application_name("from startup");
    config
}

async fn connect() -> Result<(Client, Messages), Error> {
    let (client, mut connection) = config().connect(NoTls).await?;
    let (sender, messages) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut stream = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = stream.next().await {
            let _ = sender.send(message);
        }
    });
    Ok((client, messages))
}

async fn client() -> Result<Client, Error> {
    Ok(connect().await?.0)
}

fn sqlstate<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

async fn text(client: &Client, sql: &str) -> Result<String, Error> {
    client.query_one(sql, &[]).await?.try_get(0)
}

async fn int(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<i32, Error> {
    client.query_one(sql, parameters).await?.try_get(0)
}

async fn types() -> Outcome {
    let client = client().await?;
    let moment: DateTime<Utc> = "2024-02-29T12:30:15.123456Z".parse()?;
    let date = NaiveDate::from_ymd_opt(2024, 2, 29);
    let uuid = Uuid::parse_str("0188a6f8-0000-7000-8000-000000000001")?;
    let document = json!({"a": [1, null, "ü"]});
    let (words, raw, list) = ("grüße 🐑 'quoted'", vec![0_u8, 255, 92], vec![1, 2, 3]);
    let large = 1_i64 << 40;
    let none: Option<String> = None;
    let row = client
        .query_one(
            TYPES,
            &[&-7, &large, &words, &raw, &true, &date, &moment, &uuid, &document, &list, &none],
        )
        .await?;
    equal(row.try_get::<_, i32>(0)?, -7)?;
    equal(row.try_get::<_, i64>(1)?, large)?;
    equal(row.try_get::<_, &str>(2)?, words)?;
    equal(row.try_get::<_, Vec<u8>>(3)?, raw)?;
    equal(row.try_get::<_, bool>(4)?, true)?;
    equal(row.try_get::<_, Option<NaiveDate>>(5)?, date)?;
    equal(row.try_get::<_, DateTime<Utc>>(6)?, moment)?;
    equal(row.try_get::<_, Uuid>(7)?, uuid)?;
    equal(row.try_get::<_, serde_json::Value>(8)?, document)?;
    equal(row.try_get::<_, Vec<i32>>(9)?, list)?;
    equal(row.try_get::<_, Option<String>>(10)?, none)?;
    // The driver asks the catalogs how this one is made.
    client.batch_execute("DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'glad')").await?;
    let statement = client.prepare("SELECT 'glad'::mood").await?;
    equal(statement.columns()[0].type_().name(), "mood")
}

async fn prepared() -> Outcome {
    let client = client().await?;
    client.batch_execute("DROP TABLE IF EXISTS numbers").await?;
    client.batch_execute("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n").await?;
    let sum = client.prepare("SELECT n + $1 FROM numbers WHERE n = $2").await?;
    for n in 1..=20_i32 {
        equal(client.query_one(&sum, &[&n, &n]).await?.try_get::<_, i32>(0)?, 2 * n)?;
    }
    let texts = (0..120).map(|text| format!("SELECT $1::int + {text}"));
    let statements = try_join_all(texts.map(|text| {
        let client = &client;
        async move { client.prepare_typed(&text, &[Type::INT4]).await }
    }))
    .await?;
    for (text, statement) in (0..).zip(&statements) {
        for n in 0..7 {
            equal(client.query_one(statement, &[&n]).await?.try_get::<_, i32>(0)?, n + text)?;
        }
    }
    drop(statements);
    client.batch_execute("ALTER TABLE numbers ADD note text").await?;
    for n in 1..10_i32 {
        equal(client.query_one(&sum, &[&n, &n]).await?.try_get::<_, i32>(0)?, 2 * n)?;
    }
    Ok(())
}

async fn transactions() -> Outcome {
    let mut client = client().await?;
    client.batch_execute("DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (n int)").await?;
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO ledger VALUES ($1)", &[&1]).await?;
    transaction.commit().await?;
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO ledger VALUES ($1)", &[&2]).await?;
    // Rolled back without waiting for it.
    drop(transaction);
    equal(int(&client, "SELECT sum(n)::int FROM ledger", &[]).await?, 1)?;
    let builder = client.build_transaction().isolation_level(IsolationLevel::Serializable).read_only(true);
    let transaction = builder.start().await?;
    equal(sqlstate(transaction.execute("INSERT INTO ledger VALUES (3)", &[]).await), "25006".to_owned())?;
    transaction.rollback().await?;
    equal(int(&client, "SELECT sum(n)::int FROM ledger", &[]).await?, 1)
}

async fn savepoints() -> Outcome {
    let mut client = client().await?;
    client.batch_execute("DROP TABLE IF EXISTS saved; CREATE TABLE saved (n int PRIMARY KEY)").await?;
    let mut transaction = client.transaction().await?;
    transaction.execute("INSERT INTO saved VALUES (1)", &[]).await?;
    let nested = transaction.transaction().await?;
    equal(sqlstate(nested.execute("INSERT INTO saved VALUES ($1)", &[&1]).await), "23505".to_owned())?;
    nested.rollback().await?;
    let nested = transaction.savepoint("s").await?;
    nested.execute("INSERT INTO saved VALUES ($1)", &[&2]).await?;
    nested.commit().await?;
    transaction.commit().await?;
    equal(int(&client, "SELECT sum(n)::int FROM saved", &[]).await?, 3)
}

async fn copy() -> Outcome {
    let client = client().await?;
    client.batch_execute("DROP TABLE IF EXISTS copied; CREATE TABLE copied (n int, note text)").await?;
    let lines: Vec<String> = (0..20000).map(|n| format!("{n}\tnote {n}\n")).collect();
    let sink = client.copy_in::<_, bytes::Bytes>("COPY copied FROM STDIN").await?;
    let mut chunks =
        stream::iter(lines.chunks(100).map(|lines| Ok(lines.concat().into_bytes().into())).collect::<Vec<_>>());
    pin_mut!(sink);
    sink.send_all(&mut chunks).await.map_err(|error: Error| error)?;
    equal(sink.finish().await?, 20000)?;
    let out = client.copy_out("COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT").await?;
    let out: Vec<_> = out.try_collect().await?;
    equal(out.concat() == lines.concat().into_bytes(), true)?;
    let sink = client.copy_in::<_, bytes::Bytes>("COPY copied FROM STDIN").await?;
    pin_mut!(sink);
    sink.send("none\tof the kind\n".into()).await?;
    equal(sqlstate(sink.finish().await), "22P02".to_owned())?;
    // One that is given up in the middle.
    let given_up = client.copy_in::<_, bytes::Bytes>("COPY copied FROM STDIN").await?;
    drop(given_up);
    equal(int(&client, "SELECT count(*)::int FROM copied", &[]).await?, 20000)
}

async fn cursors() -> Outcome {
    let mut client = client().await?;
    let transaction = client.transaction().await?;
    let portal = transaction.bind("SELECT generate_series(1, $1::int)", &[&1000]).await?;
    let mut sum = 0;
    loop {
        let rows = transaction.query_portal(&portal, 100).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            sum += row.try_get::<_, i32>(0)?;
        }
    }
    equal(sum, 500_500)?;
    transaction.commit().await?;
    client.batch_execute("DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)").await?;
    equal(client.query("FETCH 3 FROM kept", &[]).await?.len(), 3)?;
    equal(int(&client, "FETCH kept", &[]).await?, 4)?;
    Ok(client.batch_execute("CLOSE kept").await?)
}

async fn notify() -> Outcome {
    let (listener, mut messages) = connect().await?;
    let sender = client().await?;
    listener.batch_execute("LISTEN tokio_postgres").await?;
    equal(int(&listener, "SELECT 1", &[]).await?, 1)?;
    sender.batch_execute("NOTIFY tokio_postgres, 'one'").await?;
    sender.batch_execute("BEGIN; NOTIFY tokio_postgres, 'never'; ROLLBACK").await?;
    sender.query("SELECT pg_notify('tokio_postgres', $1)", &[&"two"]).await?;
    for expected in ["one", "two"] {
        let Some(AsyncMessage::Notification(heard)) = timeout(Duration::from_secs(10), messages.recv()).await?
        else {
            return Err("no notification".into());
        };
        equal(heard.payload(), expected)?;
    }
    listener.batch_execute("UNLISTEN tokio_postgres").await?;
    sender.batch_execute("NOTIFY tokio_postgres, 'three'").await?;
    sleep(Duration::from_millis(200)).await;
    equal(messages.try_recv().is_err(), true)
}

async fn cancel() -> Outcome {
    let client = client().await?;
    for _ in 0..2 {
        let token = client.cancel_token();
        let canceller = tokio::spawn(async move {
            sleep(Duration::from_millis(300)).await;
            token.cancel_query(NoTls).await
        });
        equal(sqlstate(client.batch_execute("SELECT pg_sleep(20)").await), "57014".to_owned())?;
        canceller.await??;
        equal(int(&client, "SELECT 1", &[]).await?, 1)?;
    }
    Ok(())
}

async fn errors() -> Outcome {
    let (client, mut messages) = connect().await?;
    client.batch_execute("DROP TABLE IF EXISTS strict").await?;
    while messages.try_recv().is_ok() {}
    client.batch_execute("CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)").await?;
    client.batch_execute("INSERT INTO strict VALUES (1)").await?;
    let error = client.execute("INSERT INTO strict VALUES ($1)", &[&1]).await.err().ok_or("no error")?;
    equal(error.as_db_error().and_then(|told| told.constraint()), Some("only_one"))?;
    for (sql, expected) in [("SELEC 1", "42601"), ("SELECT * FROM nowhere", "42P01"), ("SELECT 1 / 0", "22012")] {
        equal(sqlstate(client.query(sql, &[]).await), expected.to_owned())?;
    }
    client.batch_execute("BEGIN").await?;
    equal(sqlstate(client.batch_execute("SELECT 1 / 0").await), "22012".to_owned())?;
    equal(sqlstate(client.query("SELECT 1", &[]).await), "25P02".to_owned())?;
    client.batch_execute("ROLLBACK").await?;
    client.batch_execute("DO $$ BEGIN RAISE NOTICE 'hear this'; END $$").await?;
    let Ok(AsyncMessage::Notice(notice)) = messages.try_recv() else { return Err("no notice".into()) };
    equal(notice.message(), "hear this")
}

async fn big() -> Outcome {
    let client = client().await?;
    let words = "ü".repeat(5_000_000);
    let raw: Vec<u8> = (0..10_000_000_u32).map(|n| n as u8).collect();
    let row = client.query_one("SELECT $1::text, $2::bytea", &[&words, &raw]).await?;
    equal(row.try_get::<_, &str>(0)? == words, true)?;
    equal(row.try_get::<_, &[u8]>(1)? == raw, true)
}

/// Requests that are polled together are sent without waiting for each other's answers.
async fn pipeline() -> Outcome {
    let client = client().await?;
    let statement = client.prepare("SELECT 100 / $1::int").await?;
    let divisors: Vec<i32> = (0..200).map(|n| n % 10).collect();
    let results = join_all(divisors.iter().map(|n| {
        let (client, statement) = (&client, &statement);
        async move { client.query_one(statement, &[n]).await }
    }))
    .await;
    for (n, result) in divisors.into_iter().zip(results) {
        if n == 0 {
            equal(sqlstate(result), "22012".to_owned())?;
        } else {
            equal(result?.try_get::<_, i32>(0)?, 100 / n)?;
        }
    }
    Ok(())
}

async fn settings() -> Outcome {
    let client = client().await?;
    let usual = text(&client, "SHOW statement_timeout").await?;
    for sql in [
        "CREATE SCHEMA IF NOT EXISTS aside",
        "DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n",
        "SET search_path TO aside, public",
        "SET TIME ZONE 'Asia/Tokyo'",
    ] {
        client.batch_execute(sql).await?;
    }
    client.query("SELECT set_config('lock_timeout', $1, false)", &[&"1234ms"]).await?;
    client.batch_execute("BEGIN").await?;
    client.batch_execute("SET LOCAL statement_timeout = '9s'").await?;
    equal(text(&client, "SHOW statement_timeout").await?, "9s".to_owned())?;
    client.batch_execute("COMMIT").await?;
    client.batch_execute("BEGIN; SET search_path TO nowhere; ROLLBACK").await?;
    for _ in 0..10 {
        for (sql, expected) in [
            ("SHOW statement_timeout", usual.as_str()),
            ("SELECT n::text FROM here", "42"),
            ("SHOW work_mem", "7MB"),
            ("SHOW TimeZone", "Asia/Tokyo"),
            ("SELECT current_setting('lock_timeout')", "1234ms"),
            ("SHOW application_name", "from startup"),
        ] {
            equal(text(&client, sql).await?, expected.to_owned())?;
        }
    }
    client.batch_execute("RESET ALL").await?;
    equal(text(&client, "SHOW work_mem").await?, "7MB".to_owned())
}

async fn pool() -> Outcome {
    use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
    let client = client().await?;
    client.batch_execute("DROP TABLE IF EXISTS counter; CREATE TABLE counter AS SELECT 0 AS n").await?;
    // Between two users it sends CLOSE ALL, SET SESSION AUTHORIZATION DEFAULT, RESET ALL, UNLISTEN *, ...
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Clean };
    let pool = Pool::builder(Manager::from_config(config(), NoTls, recycling)).max_size(4).build()?;
    let mut counts = try_join_all((0..80).map(|_| async {
        let mut client = pool.get().await?;
        let transaction = client.transaction().await?;
        let statement = transaction.prepare_cached("UPDATE counter SET n = n + $1 RETURNING n").await?;
        let n: i32 = transaction.query_one(&statement, &[&1]).await?.try_get(0)?;
        transaction.commit().await?;
        Ok::<i32, drivers::Failure>(n)
    }))
    .await?;
    counts.sort_unstable();
    equal(counts, (1..=80).collect())
}
