"""psycopg 3. The server is the one that the PG* variables name."""

import datetime
import decimal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from features import equal, feature


def connect(**options):
    return psycopg.connect("", autocommit=True, **options)


def one(connection, sql, *parameters):
    return connection.execute(sql, parameters).fetchone()[0]


@feature("types")
def _():
    values = (
        -7,
        2**40,
        decimal.Decimal("12345678901234567890.123456789"),
        "grüße 🐑 'quoted'",
        b"\x00\xff\\",
        True,
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, datetime.timezone.utc),
        uuid.UUID("0188a6f8-0000-7000-8000-000000000001"),
        Jsonb({"a": [1, None, "ü"]}),
        [1, 2, 3],
        None,
    )
    sql = (
        "SELECT %s::int4, %s::int8, %s::numeric, %s::text, %s::bytea, %s::bool, %s::date, %s::timestamptz,"
        " %s::uuid, %s::jsonb, %s::int4[], %s::text"
    )
    with connect() as connection:
        for binary in (False, True):
            row = connection.cursor(binary=binary).execute(sql, values).fetchone()
            equal(row, tuple(v.obj if isinstance(v, Jsonb) else v for v in values))


@feature("prepared")
def _():
    with connect() as connection:
        connection.execute("DROP TABLE IF EXISTS numbers")
        connection.execute("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n")
        for n in range(1, 21):
            equal(one(connection, "SELECT n + %s FROM numbers WHERE n = %s", n, n), 2 * n)
        # More than the 100 statements that psycopg keeps prepared: it deallocates the oldest.
        for text in range(120):
            for n in range(7):
                equal(one(connection, f"SELECT %s::int + {text}", n), n + text)
        connection.execute("ALTER TABLE numbers ADD note text")
        for n in range(1, 10):
            equal(one(connection, "SELECT n + %s FROM numbers WHERE n = %s", n, n), 2 * n)


@feature("transactions")
def _():
    with connect() as connection:
        connection.execute("DROP TABLE IF EXISTS ledger")
        connection.execute("CREATE TABLE ledger (n int)")
        with connection.transaction():
            connection.execute("INSERT INTO ledger VALUES (1)")
        with connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO ledger VALUES (2)")
        try:
            with connection.transaction():
                connection.execute("INSERT INTO ledger VALUES (3)")
                raise LookupError
        except LookupError:
            pass
        equal(one(connection, "SELECT sum(n) FROM ledger"), 1)
        connection.read_only = True
        try:
            with connection.transaction():
                connection.execute("INSERT INTO ledger VALUES (4)")
            raise AssertionError("a read-only transaction wrote")
        except errors.ReadOnlySqlTransaction:
            pass


@feature("savepoints")
def _():
    with connect() as connection:
        connection.execute("DROP TABLE IF EXISTS saved")
        connection.execute("CREATE TABLE saved (n int PRIMARY KEY)")
        with connection.transaction():
            connection.execute("INSERT INTO saved VALUES (1)")
            for n in (1, 2):
                try:
                    with connection.transaction():
                        connection.execute("INSERT INTO saved VALUES (%s)", (n,))
                except errors.UniqueViolation:
                    equal(n, 1)
        equal(one(connection, "SELECT sum(n) FROM saved"), 3)


@feature("copy")
def _():
    with connect() as connection:
        connection.execute("DROP TABLE IF EXISTS copied")
        connection.execute("CREATE TABLE copied (n int, note text)")
        with connection.cursor() as cursor:
            with cursor.copy("COPY copied FROM STDIN") as copy:
                for n in range(20000):
                    copy.write_row((n, f"note\t{n}"))
            with cursor.copy("COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT") as copy:
                equal(sum(int(row[0]) for row in copy.rows()), sum(range(20000)))
            try:
                with cursor.copy("COPY copied FROM STDIN") as copy:
                    copy.write("none\tof the kind\n")
                raise AssertionError("no error")
            except errors.InvalidTextRepresentation:
                pass
        equal(one(connection, "SELECT count(*) FROM copied"), 20000)


@feature("cursors")
def _():
    with connect() as connection:
        with connection.transaction():
            with connection.cursor("forward") as cursor:
                cursor.itersize = 100
                cursor.execute("SELECT generate_series(1, 1000)")
                equal(sum(row[0] for row in cursor), 500500)
            with connection.cursor("both_ways", scrollable=True) as cursor:
                cursor.execute("SELECT generate_series(1, 1000)")
                cursor.scroll(500)
                equal(cursor.fetchone()[0], 501)
                cursor.scroll(-11)
                equal(cursor.fetchone()[0], 491)
        with connection.cursor("kept", withhold=True) as cursor:
            cursor.execute("SELECT generate_series(1, 10)")
            equal(cursor.fetchmany(3), [(1,), (2,), (3,)])
            time.sleep(0.05)
            equal(cursor.fetchone(), (4,))


@feature("notify")
def _():
    with connect() as listener, connect() as sender:
        listener.execute("LISTEN psycopg3")
        equal(one(listener, "SELECT 1"), 1)
        sender.execute("NOTIFY psycopg3, 'one'")
        with sender.transaction(force_rollback=True):
            sender.execute("NOTIFY psycopg3, 'never'")
        with sender.transaction():
            sender.execute("SELECT pg_notify('psycopg3', %s)", ("two",))
            sender.execute("SELECT pg_notify('psycopg3', %s)", ("three",))
        heard = [notification.payload for notification in listener.notifies(timeout=10, stop_after=3)]
        equal(heard, ["one", "two", "three"])
        listener.execute("UNLISTEN psycopg3")
        sender.execute("NOTIFY psycopg3, 'four'")
        equal([n.payload for n in listener.notifies(timeout=0.3)], [])


@feature("cancel")
def _():
    with connect() as connection, connect() as other:
        for cancel in (connection.cancel_safe, connection.cancel):
            timer = threading.Timer(0.3, cancel)
            timer.start()
            try:
                connection.execute("SELECT pg_sleep(20)")
                raise AssertionError("not cancelled")
            except errors.QueryCanceled:
                pass
            timer.join()
            equal(one(connection, "SELECT 1"), 1)
            equal(one(other, "SELECT 1"), 1)


@feature("errors")
def _():
    with connect() as connection:
        connection.execute("DROP TABLE IF EXISTS strict")
        connection.execute("CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)")
        connection.execute("INSERT INTO strict VALUES (1)")
        for sql, sqlstate in (
            ("INSERT INTO strict VALUES (1)", "23505"),
            ("SELEC 1", "42601"),
            ("SELECT * FROM nowhere", "42P01"),
            ("SELECT 1 / %s::int", "22012"),
        ):
            try:
                connection.execute(sql, (0,) if "%s" in sql else None)
                raise AssertionError("no error")
            except psycopg.Error as error:
                equal(error.sqlstate, sqlstate)
                if sqlstate == "23505":
                    equal(error.diag.constraint_name, "only_one")
        connection.execute("BEGIN")
        for sqlstate in ("22012", "25P02"):
            try:
                connection.execute("SELECT 1 / 0")
            except psycopg.Error as error:
                equal(error.sqlstate, sqlstate)
        connection.execute("ROLLBACK")
        notices = []
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        connection.execute("DO $$ BEGIN RAISE NOTICE 'hear this'; END $$")
        equal(notices, ["hear this"])


@feature("big")
def _():
    text, raw = "ü" * 5_000_000, bytes(range(256)) * 40_000
    with connect() as connection:
        equal(one(connection, "SELECT %s::text", text) == text, True)
        equal(connection.cursor(binary=True).execute("SELECT %s::bytea", (raw,)).fetchone()[0] == raw, True)
        equal(one(connection, "SELECT length(string_agg(repeat('x', 1000), '')) FROM generate_series(1, 10000)"), 10**7)


@feature("pipeline")
def _():
    with connect() as connection:
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(200)]
        equal([cursor.fetchone()[0] for cursor in cursors], list(range(200)))
        try:
            with connection.pipeline() as pipeline:
                connection.execute("SELECT 1")
                connection.execute("SELECT 1 / 0")
                skipped = connection.execute("SELECT 2")
                pipeline.sync()
            raise AssertionError("no error")
        except errors.DivisionByZero:
            pass
        try:
            skipped.fetchone()
            raise AssertionError("ran behind an error")
        except psycopg.Error:
            pass
        equal(one(connection, "SELECT 3"), 3)


@feature("settings")
def _():
    with connect(options="-c work_mem=7MB", application_name="from startup") as connection:
        usual = one(connection, "SHOW statement_timeout")
        connection.execute("CREATE SCHEMA IF NOT EXISTS aside")
        connection.execute("DROP TABLE IF EXISTS aside.here")
        connection.execute("CREATE TABLE aside.here AS SELECT 42 AS n")
        connection.execute("SET search_path TO aside, public")
        connection.execute("SET TIME ZONE 'Asia/Tokyo'")
        connection.execute("SELECT set_config('lock_timeout', %s, false)", ("1234ms",))
        with connection.transaction():
            connection.execute("SET LOCAL statement_timeout = '9s'")
            equal(one(connection, "SHOW statement_timeout"), "9s")
        with connection.transaction(force_rollback=True):
            connection.execute("SET search_path TO nowhere")
        for _ in range(10):
            equal(one(connection, "SHOW statement_timeout"), usual)
            equal(one(connection, "SELECT n FROM here"), 42)
            equal(one(connection, "SHOW work_mem"), "7MB")
            equal(one(connection, "SHOW TimeZone"), "Asia/Tokyo")
            equal(one(connection, "SELECT current_setting('lock_timeout')"), "1234ms")
            equal(one(connection, "SHOW application_name"), "from startup")
        equal(connection.info.parameter_status("TimeZone"), "Asia/Tokyo")
        connection.execute("RESET ALL")
        equal(one(connection, "SHOW work_mem"), "7MB")
        equal(one(connection, "SHOW lock_timeout"), "0")


@feature("pool")
def _():
    with connect() as connection:
        connection.execute("DROP TABLE IF EXISTS counter")
        connection.execute("CREATE TABLE counter AS SELECT 0 AS n")
    with ConnectionPool("", min_size=2, max_size=4, check=ConnectionPool.check_connection) as pool:

        def count(_):
            with pool.connection() as connection:
                return one(connection, "UPDATE counter SET n = n + %s RETURNING n", 1)

        with ThreadPoolExecutor(8) as threads:
            equal(sorted(threads.map(count, range(80))), list(range(1, 81)))
