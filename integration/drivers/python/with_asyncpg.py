"""asyncpg. The server is the one that the PG* variables name."""

import asyncio
import datetime
import decimal
import io
import json
import uuid

import asyncpg

from features import absent, equal, feature


def on_a_connection(body, **options):
    """`body` as a function that feature() can run."""

    async def run():
        connection = await asyncpg.connect(**options)
        try:
            await body(connection)
        finally:
            await connection.close(timeout=5)

    return lambda: asyncio.run(run())


async def expect(sqlstate, awaitable):
    try:
        await awaitable
    except asyncpg.PostgresError as error:
        equal(error.sqlstate, sqlstate)
        return error
    raise AssertionError(f"no {sqlstate}")


async def types(connection):
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
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
        {"a": [1, None, "ü"]},
        [1, 2, 3],
        None,
    )
    row = await connection.fetchrow(
        "SELECT $1::int4, $2::int8, $3::numeric, $4::text, $5::bytea, $6::bool, $7::date, $8::timestamptz,"
        " $9::uuid, $10::jsonb, $11::int4[], $12::text",
        *values,
    )
    equal(tuple(row), values)
    # asyncpg asks the catalogs how this one is made.
    await connection.execute("DROP TYPE IF EXISTS mood")
    await connection.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    equal(await connection.fetchval("SELECT ARRAY[$1::mood]", "glad"), ["glad"])


async def prepared(connection):
    await connection.execute("DROP TABLE IF EXISTS numbers")
    await connection.execute("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n")
    for n in range(1, 21):
        equal(await connection.fetchval("SELECT n + $1 FROM numbers WHERE n = $2", n, n), 2 * n)
    statement = await connection.prepare("SELECT n * $1 FROM numbers WHERE n = 2")
    # More than the 100 statements that asyncpg keeps: it closes the oldest.
    for text in range(120):
        for n in range(7):
            equal(await connection.fetchval(f"SELECT $1::int + {text}", n), n + text)
        equal(await statement.fetchval(text), 2 * text)
    await connection.execute("ALTER TABLE numbers ADD note text")
    for n in range(1, 10):
        equal(await connection.fetchval("SELECT n + $1 FROM numbers WHERE n = $2", n, n), 2 * n)
    await connection.reload_schema_state()
    equal(await connection.fetchval("SELECT count(*) FROM numbers"), 100)


async def transactions(connection):
    await connection.execute("DROP TABLE IF EXISTS ledger")
    await connection.execute("CREATE TABLE ledger (n int)")
    async with connection.transaction():
        await connection.execute("INSERT INTO ledger VALUES ($1)", 1)
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO ledger VALUES (2)")
            raise LookupError
    except LookupError:
        pass
    equal(await connection.fetchval("SELECT sum(n) FROM ledger"), 1)
    async with connection.transaction(isolation="serializable", readonly=True, deferrable=True):
        equal(await connection.fetchval("SHOW transaction_isolation"), "serializable")
        equal(await connection.fetchval("SHOW transaction_read_only"), "on")


async def savepoints(connection):
    await connection.execute("DROP TABLE IF EXISTS saved")
    await connection.execute("CREATE TABLE saved (n int PRIMARY KEY)")
    async with connection.transaction():
        await connection.execute("INSERT INTO saved VALUES (1)")
        for n in (1, 2):
            try:
                async with connection.transaction():
                    await connection.execute("INSERT INTO saved VALUES ($1)", n)
            except asyncpg.UniqueViolationError:
                equal(n, 1)
    equal(await connection.fetchval("SELECT sum(n) FROM saved"), 3)


async def copy(connection):
    await connection.execute("DROP TABLE IF EXISTS copied")
    await connection.execute("CREATE TABLE copied (n int, note text)")
    records = [(n, f"note\t{n}") for n in range(20000)]
    equal(await connection.copy_records_to_table("copied", records=records), "COPY 20000")
    out = io.BytesIO()
    await connection.copy_from_query("SELECT n, note FROM copied ORDER BY n", output=out)
    equal(len(out.getvalue().splitlines()), 20000)
    bad = connection.copy_to_table("copied", source=io.BytesIO(b"none\tof the kind\n"))
    await expect("22P02", bad)
    equal(await connection.fetchval("SELECT count(*) FROM copied"), 20000)


async def cursors(connection):
    async with connection.transaction():
        total = 0
        async for row in connection.cursor("SELECT generate_series(1, $1)", 1000, prefetch=100):
            total += row[0]
        equal(total, 500500)
        cursor = await connection.cursor("SELECT generate_series(1, 1000)")
        await cursor.forward(500)
        equal([row[0] for row in await cursor.fetch(2)], [501, 502])
    await connection.execute("DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)")
    equal(len(await connection.fetch("FETCH 3 FROM kept")), 3)
    equal(await connection.fetchval("FETCH kept"), 4)
    await connection.execute("CLOSE kept")


async def notify(connection):
    sender = await asyncpg.connect()
    heard = asyncio.Queue()
    hear = lambda _connection, _pid, _channel, payload: heard.put_nowait(payload)
    await connection.add_listener("asyncpg", hear)
    equal(await connection.fetchval("SELECT 1"), 1)
    await sender.execute("NOTIFY asyncpg, 'one'")
    transaction = sender.transaction()
    await transaction.start()
    await sender.execute("NOTIFY asyncpg, 'never'")
    await transaction.rollback()
    await sender.execute("SELECT pg_notify('asyncpg', $1)", "two")
    equal([await asyncio.wait_for(heard.get(), 10) for _ in range(2)], ["one", "two"])
    await connection.remove_listener("asyncpg", hear)
    await sender.execute("NOTIFY asyncpg, 'three'")
    await asyncio.sleep(0.2)
    equal(heard.qsize(), 0)
    await sender.close()


async def cancel(connection):
    sleeping = asyncio.create_task(connection.execute("SELECT pg_sleep(20)"))
    await asyncio.sleep(0.3)
    sleeping.cancel()
    try:
        await sleeping
        raise AssertionError("not cancelled")
    except asyncio.CancelledError:
        pass
    equal(await connection.fetchval("SELECT 1"), 1)
    try:
        await connection.execute("SELECT pg_sleep(20)", timeout=0.3)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        pass
    equal(await connection.fetchval("SELECT 2"), 2)


async def errors(connection):
    await connection.execute("DROP TABLE IF EXISTS strict")
    await connection.execute("CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)")
    await connection.execute("INSERT INTO strict VALUES (1)")
    error = await expect("23505", connection.execute("INSERT INTO strict VALUES ($1)", 1))
    equal(error.constraint_name, "only_one")
    await expect("42601", connection.execute("SELEC 1"))
    await expect("42P01", connection.fetch("SELECT * FROM nowhere"))
    await expect("22012", connection.fetchval("SELECT 1 / $1::int", 0))
    await connection.execute("BEGIN")
    await expect("22012", connection.execute("SELECT 1 / 0"))
    await expect("25P02", connection.execute("SELECT 1"))
    await connection.execute("ROLLBACK")
    notices = []
    connection.add_log_listener(lambda _, message: notices.append(message.message))
    await connection.execute("DO $$ BEGIN RAISE NOTICE 'hear this'; END $$")
    await asyncio.sleep(0)
    equal(notices, ["hear this"])


async def big(connection):
    text, raw = "ü" * 5_000_000, bytes(range(256)) * 40_000
    equal(await connection.fetchval("SELECT $1::text", text) == text, True)
    equal(await connection.fetchval("SELECT $1::bytea", raw) == raw, True)


async def settings(connection):
    usual = await connection.fetchval("SHOW statement_timeout")
    await connection.execute("CREATE SCHEMA IF NOT EXISTS aside")
    await connection.execute("DROP TABLE IF EXISTS aside.here")
    await connection.execute("CREATE TABLE aside.here AS SELECT 42 AS n")
    await connection.execute("SET search_path TO aside, public")
    await connection.execute("SET TIME ZONE 'Asia/Tokyo'")
    await connection.execute("SELECT set_config('lock_timeout', $1, false)", "1234ms")
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = '9s'")
        equal(await connection.fetchval("SHOW statement_timeout"), "9s")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SET search_path TO nowhere")
    await transaction.rollback()
    for _ in range(10):
        equal(await connection.fetchval("SHOW statement_timeout"), usual)
        equal(await connection.fetchval("SELECT n FROM here"), 42)
        equal(await connection.fetchval("SHOW work_mem"), "7MB")
        equal(await connection.fetchval("SHOW TimeZone"), "Asia/Tokyo")
        equal(await connection.fetchval("SELECT current_setting('lock_timeout')"), "1234ms")
        equal(await connection.fetchval("SHOW application_name"), "from startup")
    equal(connection.get_settings().TimeZone, "Asia/Tokyo")
    await connection.execute("RESET ALL")
    equal(await connection.fetchval("SHOW work_mem"), "7MB")


async def pool(connection):
    await connection.execute("DROP TABLE IF EXISTS counter")
    await connection.execute("CREATE TABLE counter AS SELECT 0 AS n")
    # Between two users it sends pg_advisory_unlock_all, CLOSE ALL, UNLISTEN * and RESET ALL.
    async with asyncpg.create_pool(min_size=2, max_size=4) as connections:

        async def count():
            async with connections.acquire() as one, one.transaction():
                return await one.fetchval("UPDATE counter SET n = n + $1 RETURNING n", 1)

        equal(sorted(await asyncio.gather(*(count() for _ in range(80)))), list(range(1, 81)))


feature("types")(on_a_connection(types))
feature("prepared")(on_a_connection(prepared))
feature("transactions")(on_a_connection(transactions))
feature("savepoints")(on_a_connection(savepoints))
feature("copy")(on_a_connection(copy))
feature("cursors")(on_a_connection(cursors))
feature("notify")(on_a_connection(notify))
feature("cancel")(on_a_connection(cancel))
feature("errors")(on_a_connection(errors))
feature("big")(on_a_connection(big))
absent("pipeline")
startup = {"application_name": "from startup", "work_mem": "7MB"}
feature("settings")(on_a_connection(settings, server_settings=startup))
feature("pool")(on_a_connection(pool))
