//! sqlx. The server is the one that the PG* variables name.

use std::env;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use drivers::{Failure, Outcome, TYPES, absent, equal, feature};
use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio::time::timeout;
use uuid::Uuid;

#[tokio::main]
async fn main() {
    feature("types", types()).await;
    feature("prepared", prepared()).await;
    feature("transactions", transactions()).await;
    feature("savepoints", savepoints()).await;
    feature("copy", copy()).await;
    feature("cursors", cursors()).await;
    feature("notify", notify()).await;
    absent("cancel");
    feature("errors", errors()).await;
    feature("big", big()).await;
    absent("pipeline");
    feature("settings", settings()).await;
    feature("pool", pool()).await;
}

fn options() -> PgConnectOptions {
    let variable = |name| env::var(name).unwrap_or_default();
    PgConnectOptions::new_without_pgpass()
        .host(&variable("PGHOST"))
        .port(variable("PGPORT").parse().unwrap_or(5432))
        .username(&variable("PGUSER"))
        .password(&variable("PGPASSWORD"))
        .database(&variable("PGDATABASE"))
        .ssl_mode(PgSslMode::Disable)
        .options([("work_mem", "7MB")])
        .application_name("from startup")
        .disable_statement_logging()
}

async fn connect() -> Result<PgConnection, sqlx::Error> {
    options().connect().await
}

fn sqlstate<T>(result: Result<T, sqlx::Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(sqlx::Error::Database(told)) => told.code().unwrap_or_default().into_owned(),
        Err(error) => error.to_string(),
    }
}

async fn int(connection: &mut PgConnection, sql: &str) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar(sql).fetch_one(connection).await
}

async fn text(connection: &mut PgConnection, sql: &str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(sql).fetch_one(connection).await
}

async fn types() -> Outcome {
    let mut connection = connect().await?;
    let moment: DateTime<Utc> = "2024-02-29T12:30:15.123456Z".parse()?;
    let date = NaiveDate::from_ymd_opt(2024, 2, 29);
    let uuid = Uuid::parse_str("0188a6f8-0000-7000-8000-000000000001")?;
    let document = json!({"a": [1, null, "ü"]});
    let (words, raw, list) = ("grüße 🐑 'quoted'", vec![0_u8, 255, 92], vec![1, 2, 3]);
    let row = sqlx::query(TYPES)
        .bind(-7)
        .bind(1_i64 << 40)
        .bind(words)
        .bind(&raw)
        .bind(true)
        .bind(date)
        .bind(moment)
        .bind(uuid)
        .bind(&document)
        .bind(&list)
        .bind(None::<String>)
        .fetch_one(&mut connection)
        .await?;
    equal(row.try_get::<i32, _>(0)?, -7)?;
    equal(row.try_get::<i64, _>(1)?, 1 << 40)?;
    equal(row.try_get::<&str, _>(2)?, words)?;
    equal(row.try_get::<Vec<u8>, _>(3)?, raw)?;
    equal(row.try_get::<bool, _>(4)?, true)?;
    equal(row.try_get::<Option<NaiveDate>, _>(5)?, date)?;
    equal(row.try_get::<DateTime<Utc>, _>(6)?, moment)?;
    equal(row.try_get::<Uuid, _>(7)?, uuid)?;
    equal(row.try_get::<serde_json::Value, _>(8)?, document)?;
    equal(row.try_get::<Vec<i32>, _>(9)?, list)?;
    equal(row.try_get::<Option<String>, _>(10)?, None)
}

async fn prepared() -> Outcome {
    let mut connection = connect().await?;
    connection.execute("DROP TABLE IF EXISTS numbers").await?;
    connection.execute("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n").await?;
    const SUM: &str = "SELECT n + $1 FROM numbers WHERE n = $2";
    for n in 1..=20 {
        let found: i32 = sqlx::query_scalar(SUM).bind(n).bind(n).fetch_one(&mut connection).await?;
        equal(found, 2 * n)?;
    }
    // More than the 100 statements that sqlx keeps: it closes the oldest.
    for number in 0..120 {
        let sql = format!("SELECT $1::int + {number}");
        for n in 0..7 {
            let found: i32 = sqlx::query_scalar(&sql).bind(n).fetch_one(&mut connection).await?;
            equal(found, n + number)?;
        }
    }
    connection.execute("ALTER TABLE numbers ADD note text").await?;
    for n in 1..10 {
        let found: i32 = sqlx::query_scalar(SUM).bind(n).bind(n).fetch_one(&mut connection).await?;
        equal(found, 2 * n)?;
    }
    connection.clear_cached_statements().await?;
    equal(int(&mut connection, "SELECT 1").await?, 1)
}

async fn transactions() -> Outcome {
    let mut connection = connect().await?;
    connection.execute("DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (n int)").await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("INSERT INTO ledger VALUES ($1)").bind(1).execute(&mut *transaction).await?;
    transaction.commit().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("INSERT INTO ledger VALUES ($1)").bind(2).execute(&mut *transaction).await?;
    drop(transaction);
    equal(int(&mut connection, "SELECT sum(n)::int FROM ledger").await?, 1)?;
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY").await?;
    equal(sqlstate(transaction.execute("INSERT INTO ledger VALUES (3)").await), "25006".to_owned())?;
    Ok(transaction.rollback().await?)
}

async fn savepoints() -> Outcome {
    let mut connection = connect().await?;
    connection.execute("DROP TABLE IF EXISTS saved; CREATE TABLE saved (n int PRIMARY KEY)").await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("INSERT INTO saved VALUES (1)").await?;
    let mut nested = transaction.begin().await?;
    equal(sqlstate(nested.execute("INSERT INTO saved VALUES (1)").await), "23505".to_owned())?;
    nested.rollback().await?;
    let mut nested = transaction.begin().await?;
    nested.execute("INSERT INTO saved VALUES (2)").await?;
    nested.commit().await?;
    transaction.commit().await?;
    equal(int(&mut connection, "SELECT sum(n)::int FROM saved").await?, 3)
}

async fn copy() -> Outcome {
    let mut connection = connect().await?;
    connection.execute("DROP TABLE IF EXISTS copied; CREATE TABLE copied (n int, note text)").await?;
    let lines: String = (0..20000).map(|n| format!("{n}\tnote {n}\n")).collect();
    let mut copy = connection.copy_in_raw("COPY copied FROM STDIN").await?;
    copy.send(lines.as_bytes()).await?;
    equal(copy.finish().await?, 20000)?;
    let out = connection.copy_out_raw("COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT").await?;
    let out: Vec<_> = out.try_collect().await?;
    equal(out.concat() == lines.into_bytes(), true)?;
    let mut copy = connection.copy_in_raw("COPY copied FROM STDIN").await?;
    copy.send(b"none\tof the kind\n".as_slice()).await?;
    equal(sqlstate(copy.finish().await), "22P02".to_owned())?;
    let copy = connection.copy_in_raw("COPY copied FROM STDIN").await?;
    copy.abort("given up").await?;
    equal(int(&mut connection, "SELECT count(*)::int FROM copied").await?, 20000)
}

async fn cursors() -> Outcome {
    let mut connection = connect().await?;
    let mut rows = sqlx::query_scalar::<_, i32>("SELECT generate_series(1, $1)").bind(1000).fetch(&mut connection);
    let mut sum = 0;
    while let Some(n) = rows.try_next().await? {
        sum += n;
    }
    drop(rows);
    equal(sum, 500_500)?;
    // Left in the middle: what remains is read and dropped before the next statement.
    let mut rows = sqlx::query_scalar::<_, i32>("SELECT generate_series(1, $1)").bind(1000).fetch(&mut connection);
    equal(rows.try_next().await?, Some(1))?;
    drop(rows);
    connection.execute("DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)").await?;
    equal(connection.fetch_all("FETCH 3 FROM kept").await?.len(), 3)?;
    equal(connection.fetch_one("FETCH kept").await?.try_get::<i32, _>(0)?, 4)?;
    connection.execute("CLOSE kept").await?;
    Ok(())
}

async fn notify() -> Outcome {
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options()).await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("sqlx").await?;
    pool.execute("NOTIFY sqlx, 'one'").await?;
    pool.execute("BEGIN; NOTIFY sqlx, 'never'; ROLLBACK").await?;
    sqlx::query("SELECT pg_notify('sqlx', $1)").bind("two").execute(&pool).await?;
    for expected in ["one", "two"] {
        let heard = timeout(Duration::from_secs(10), listener.recv()).await??;
        equal(heard.payload(), expected)?;
    }
    listener.unlisten("sqlx").await?;
    pool.execute("NOTIFY sqlx, 'three'").await?;
    equal(timeout(Duration::from_millis(200), listener.recv()).await.is_err(), true)
}

async fn errors() -> Outcome {
    let mut connection = connect().await?;
    connection.execute("DROP TABLE IF EXISTS strict").await?;
    connection.execute("CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)").await?;
    connection.execute("INSERT INTO strict VALUES (1)").await?;
    let insert = sqlx::query("INSERT INTO strict VALUES ($1)").bind(1).execute(&mut connection).await;
    let error = insert.err().ok_or("no error")?;
    equal(error.as_database_error().and_then(|told| told.constraint()), Some("only_one"))?;
    for (sql, expected) in [("SELEC 1", "42601"), ("SELECT * FROM nowhere", "42P01"), ("SELECT 1 / 0", "22012")] {
        equal(sqlstate(sqlx::query(sql).execute(&mut connection).await), expected.to_owned())?;
    }
    let mut transaction = connection.begin().await?;
    equal(sqlstate(transaction.execute("SELECT 1 / 0").await), "22012".to_owned())?;
    equal(sqlstate(sqlx::query("SELECT 1").execute(&mut *transaction).await), "25P02".to_owned())?;
    transaction.rollback().await?;
    equal(int(&mut connection, "SELECT 1").await?, 1)
}

async fn big() -> Outcome {
    let mut connection = connect().await?;
    let words = "ü".repeat(5_000_000);
    let raw: Vec<u8> = (0..10_000_000_u32).map(|n| n as u8).collect();
    let row = sqlx::query("SELECT $1::text, $2::bytea").bind(&words).bind(&raw).fetch_one(&mut connection).await?;
    equal(row.try_get::<&str, _>(0)? == words, true)?;
    equal(row.try_get::<&[u8], _>(1)? == raw, true)
}

async fn settings() -> Outcome {
    let mut connection = connect().await?;
    let usual = text(&mut connection, "SHOW statement_timeout").await?;
    for sql in [
        "CREATE SCHEMA IF NOT EXISTS aside",
        "DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n",
        "SET search_path TO aside, public",
        "SET TIME ZONE 'Asia/Tokyo'",
    ] {
        connection.execute(sql).await?;
    }
    sqlx::query("SELECT set_config('lock_timeout', $1, false)").bind("1234ms").execute(&mut connection).await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL statement_timeout = '9s'").await?;
    equal(text(&mut transaction, "SHOW statement_timeout").await?, "9s".to_owned())?;
    transaction.commit().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("SET search_path TO nowhere").await?;
    transaction.rollback().await?;
    for _ in 0..10 {
        for (sql, expected) in [
            ("SHOW statement_timeout", usual.as_str()),
            ("SELECT n::text FROM here", "42"),
            ("SHOW work_mem", "7MB"),
            ("SHOW TimeZone", "Asia/Tokyo"),
            ("SELECT current_setting('lock_timeout')", "1234ms"),
            ("SHOW application_name", "from startup"),
        ] {
            equal(text(&mut connection, sql).await?, expected.to_owned())?;
        }
    }
    connection.execute("RESET ALL").await?;
    equal(text(&mut connection, "SHOW work_mem").await?, "7MB".to_owned())
}

async fn pool() -> Outcome {
    let mut connection = connect().await?;
    connection.execute("DROP TABLE IF EXISTS counter; CREATE TABLE counter AS SELECT 0 AS n").await?;
    let pool = PgPoolOptions::new().max_connections(4).connect_with(options()).await?;
    let mut counts = try_join_all((0..80).map(|_| async {
        let mut transaction = pool.begin().await?;
        let update = sqlx::query_scalar("UPDATE counter SET n = n + $1 RETURNING n").bind(1);
        let n: i32 = update.fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        Ok::<i32, Failure>(n)
    }))
    .await?;
    counts.sort_unstable();
    equal(counts, (1..=80).collect())?;
    connection.close().await?;
    Ok(())
}
