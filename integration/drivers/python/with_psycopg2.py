"""psycopg 2. The server is the one that the PG* variables name."""

import datetime
import decimal
import io
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
from psycopg2 import errors
from psycopg2.extras import Json
from psycopg2.pool import ThreadedConnectionPool

from features import absent, equal, feature


def connect(**options):
    connection = psycopg2.connect("", **options)
    connection.autocommit = True
    return connection


def execute(connection, sql, *parameters):
    cursor = connection.cursor()
    cursor.execute(sql, parameters or None)
    return cursor


def one(connection, sql, *parameters):
    return execute(connection, sql, *parameters).fetchone()[0]


def expect(sqlstate, connection, sql):
    try:
        execute(connection, sql)
    except psycopg2.Error as error:
        equal(error.pgcode, sqlstate)
        return error
    raise AssertionError(f"no {sqlstate}")


@feature("types")
def _():
    values = [
        -7,
        2**40,
        decimal.Decimal("12345678901234567890.123456789"),
        "grüße 🐑 'quoted'",
        b"\x00\xff\\",
        True,
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, datetime.timezone.utc),
        "0188a6f8-0000-7000-8000-000000000001",
        {"a": [1, None, "ü"]},
        [1, 2, 3],
        None,
    ]
    sql = (
        "SELECT %s::int4, %s::int8, %s::numeric, %s::text, %s::bytea, %s::bool, %s::date, %s::timestamptz,"
        " %s::uuid, %s::jsonb, %s::int4[], %s::text"
    )
    sent = [Json(value) if isinstance(value, dict) else value for value in values]
    row = list(execute(connect(), sql, *sent).fetchone())
    row[4] = bytes(row[4])
    equal(row, values)


@feature("prepared")
def _():
    # It has no prepared statements of its own: SQL's.
    connection = connect()
    execute(connection, "DROP TABLE IF EXISTS numbers")
    execute(connection, "CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n")
    execute(connection, "PREPARE double (int) AS SELECT n + $1 FROM numbers WHERE n = $1")
    for n in range(1, 21):
        equal(one(connection, "EXECUTE double (%s)", n), 2 * n)
    execute(connection, "ALTER TABLE numbers ADD note text")
    for n in range(1, 10):
        equal(one(connection, "EXECUTE double (%s)", n), 2 * n)
    equal(one(connection, "SELECT count(*) FROM pg_prepared_statements WHERE name = 'double'"), 1)
    execute(connection, "DEALLOCATE double")
    expect("26000", connection, "EXECUTE double (1)")


@feature("transactions")
def _():
    connection = connect()
    execute(connection, "DROP TABLE IF EXISTS ledger")
    execute(connection, "CREATE TABLE ledger (n int)")
    connection.autocommit = False
    with connection:
        execute(connection, "INSERT INTO ledger VALUES (1)")
    execute(connection, "INSERT INTO ledger VALUES (2)")
    connection.rollback()
    equal(one(connection, "SELECT sum(n) FROM ledger"), 1)
    connection.commit()
    connection.set_session(isolation_level="SERIALIZABLE", readonly=True)
    equal(one(connection, "SHOW transaction_isolation"), "serializable")
    expect("25006", connection, "INSERT INTO ledger VALUES (3)")
    connection.rollback()


@feature("savepoints")
def _():
    connection = connect()
    execute(connection, "DROP TABLE IF EXISTS saved")
    execute(connection, "CREATE TABLE saved (n int PRIMARY KEY)")
    connection.autocommit = False
    execute(connection, "INSERT INTO saved VALUES (1)")
    execute(connection, "SAVEPOINT s")
    expect("23505", connection, "INSERT INTO saved VALUES (1)")
    execute(connection, "ROLLBACK TO s")
    execute(connection, "INSERT INTO saved VALUES (2)")
    execute(connection, "RELEASE s")
    connection.commit()
    equal(one(connection, "SELECT sum(n) FROM saved"), 3)


@feature("copy")
def _():
    connection = connect()
    execute(connection, "DROP TABLE IF EXISTS copied")
    execute(connection, "CREATE TABLE copied (n int, note text)")
    lines = "".join(f"{n}\tnote {n}\n" for n in range(20000))
    cursor = connection.cursor()
    cursor.copy_expert("COPY copied FROM STDIN", io.StringIO(lines))
    out = io.StringIO()
    cursor.copy_expert("COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT", out)
    equal(out.getvalue() == lines, True)
    try:
        cursor.copy_expert("COPY copied FROM STDIN", io.StringIO("none\tof the kind\n"))
        raise AssertionError("no error")
    except errors.InvalidTextRepresentation:
        pass
    equal(one(connection, "SELECT count(*) FROM copied"), 20000)


@feature("cursors")
def _():
    connection = connect()
    connection.autocommit = False
    with connection, connection.cursor("walk", scrollable=True) as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT generate_series(1, 1000)")
        equal(sum(row[0] for row in cursor), 500500)
        cursor.scroll(7, mode="absolute")
        equal(cursor.fetchone()[0], 8)
    connection.autocommit = True
    with connection.cursor("kept", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 10)")
        equal(cursor.fetchmany(3), [(1,), (2,), (3,)])
        time.sleep(0.05)
        equal(cursor.fetchone(), (4,))


@feature("notify")
def _():
    listener, sender = connect(), connect()
    execute(listener, "LISTEN psycopg2")
    equal(one(listener, "SELECT 1"), 1)
    execute(sender, "NOTIFY psycopg2, 'one'")
    execute(sender, "BEGIN; NOTIFY psycopg2, 'never'; ROLLBACK")
    execute(sender, "SELECT pg_notify('psycopg2', %s)", "two")
    while len(listener.notifies) < 2 and select.select([listener], [], [], 10)[0]:
        listener.poll()
    equal([notification.payload for notification in listener.notifies], ["one", "two"])
    execute(listener, "UNLISTEN psycopg2")
    execute(sender, "NOTIFY psycopg2, 'three'")
    equal(select.select([listener], [], [], 0.2)[0], [])


@feature("cancel")
def _():
    connection = connect()
    for _ in range(2):
        timer = threading.Timer(0.3, connection.cancel)
        timer.start()
        expect("57014", connection, "SELECT pg_sleep(20)")
        timer.join()
        equal(one(connection, "SELECT 1"), 1)


@feature("errors")
def _():
    connection = connect()
    execute(connection, "DROP TABLE IF EXISTS strict")
    execute(connection, "CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)")
    execute(connection, "INSERT INTO strict VALUES (1)")
    equal(expect("23505", connection, "INSERT INTO strict VALUES (1)").diag.constraint_name, "only_one")
    expect("42601", connection, "SELEC 1")
    expect("42P01", connection, "SELECT * FROM nowhere")
    connection.autocommit = False
    expect("22012", connection, "SELECT 1 / 0")
    expect("25P02", connection, "SELECT 1")
    connection.rollback()
    connection.notices.clear()
    execute(connection, "DO $$ BEGIN RAISE NOTICE 'hear this'; END $$")
    equal([notice.split()[0] for notice in connection.notices], ["NOTICE:"])


@feature("big")
def _():
    text, raw = "ü" * 5_000_000, bytes(range(256)) * 40_000
    connection = connect()
    equal(one(connection, "SELECT %s::text", text) == text, True)
    equal(bytes(one(connection, "SELECT %s::bytea", raw)) == raw, True)


absent("pipeline")


@feature("settings")
def _():
    connection = connect(options="-c work_mem=7MB", application_name="from startup")
    usual = one(connection, "SHOW statement_timeout")
    execute(connection, "CREATE SCHEMA IF NOT EXISTS aside")
    execute(connection, "DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n")
    execute(connection, "SET search_path TO aside, public; SET TIME ZONE 'Asia/Tokyo'")
    execute(connection, "SELECT set_config('lock_timeout', %s, false)", "1234ms")
    connection.autocommit = False
    execute(connection, "SET LOCAL statement_timeout = '9s'")
    equal(one(connection, "SHOW statement_timeout"), "9s")
    connection.commit()
    execute(connection, "SET search_path TO nowhere")
    connection.rollback()
    connection.autocommit = True
    for _ in range(10):
        equal(one(connection, "SHOW statement_timeout"), usual)
        equal(one(connection, "SELECT n FROM here"), 42)
        equal(one(connection, "SHOW work_mem"), "7MB")
        equal(one(connection, "SHOW TimeZone"), "Asia/Tokyo")
        equal(one(connection, "SELECT current_setting('lock_timeout')"), "1234ms")
        equal(one(connection, "SHOW application_name"), "from startup")
    connection.set_client_encoding("LATIN1")
    equal(one(connection, "SELECT 'ü'"), "ü")
    connection.reset()
    equal(one(connection, "SHOW lock_timeout"), "0")


@feature("pool")
def _():
    connection = connect()
    execute(connection, "DROP TABLE IF EXISTS counter")
    execute(connection, "CREATE TABLE counter AS SELECT 0 AS n")
    pool = ThreadedConnectionPool(1, 4, "")

    def count(_):
        pooled = pool.getconn()
        try:
            with pooled:
                return one(pooled, "UPDATE counter SET n = n + %s RETURNING n", 1)
        finally:
            pool.putconn(pooled)

    with ThreadPoolExecutor(4) as threads:
        equal(sorted(threads.map(count, range(80))), list(range(1, 81)))
    pool.closeall()
