"""SQLAlchemy over psycopg 3. The server is the one that the PG* variables name."""

import datetime
import decimal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from features import equal, feature

engine = sa.create_engine("postgresql+psycopg://", pool_size=4, max_overflow=0, pool_pre_ping=True)
metadata = sa.MetaData()


def fresh(*columns):
    """A table with these columns that was just made."""
    name = f"alchemy_{len(metadata.tables)}"
    table = sa.Table(name, metadata, *columns)
    table.drop(engine, checkfirst=True)
    table.create(engine)
    return table


def sqlstate(error):
    return error.orig.sqlstate


def expect(expected, connection, statement):
    try:
        connection.execute(statement)
    except sa.exc.DBAPIError as error:
        equal(sqlstate(error), expected)
        return
    raise AssertionError(f"no {expected}")


@feature("types")
def _():
    table = fresh(
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("large", sa.BigInteger),
        sa.Column("exact", sa.Numeric),
        sa.Column("text", sa.Text),
        sa.Column("raw", sa.LargeBinary),
        sa.Column("day", sa.Date),
        sa.Column("moment", sa.DateTime(timezone=True)),
        sa.Column("uuid", sa.Uuid),
        sa.Column("document", JSONB),
        sa.Column("list", ARRAY(sa.Integer)),
        sa.Column("mood", sa.Enum("sad", "glad", name="alchemy_mood")),
    )
    row = dict(
        id=1,
        large=2**40,
        exact=decimal.Decimal("12345678901234567890.123456789"),
        text="grüße 🐑 'quoted'",
        raw=b"\x00\xff\\",
        day=datetime.date(2024, 2, 29),
        moment=datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, datetime.timezone.utc),
        uuid=uuid.UUID("0188a6f8-0000-7000-8000-000000000001"),
        document={"a": [1, None, "ü"]},
        list=[1, 2, 3],
        mood="glad",
    )
    with engine.begin() as connection:
        connection.execute(table.insert(), row)
        equal(dict(connection.execute(table.select()).mappings().one()), row)
        equal({column["name"] for column in sa.inspect(connection).get_columns(table.name)}, set(row))


@feature("prepared")
def _():
    table = fresh(sa.Column("n", sa.Integer))
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"n": n} for n in range(100)])
    with engine.connect() as connection:
        for n in range(50):
            equal(connection.scalar(sa.select(table.c.n + n).where(table.c.n == n)), 2 * n)
            connection.commit()


@feature("transactions")
def _():
    table = fresh(sa.Column("n", sa.Integer))
    with engine.begin() as connection:
        connection.execute(table.insert(), {"n": 1})
    with engine.connect() as connection:
        connection.execute(table.insert(), {"n": 2})
        connection.rollback()
        equal(connection.scalar(sa.select(sa.func.sum(table.c.n))), 1)
    serializable = engine.execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True)
    with serializable.connect() as connection:
        equal(connection.scalar(sa.text("SHOW transaction_isolation")), "serializable")
        expect("25006", connection, table.insert().values(n=3))


@feature("savepoints")
def _():
    table = fresh(sa.Column("n", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        for n in (1, 1, 2):
            try:
                with connection.begin_nested():
                    connection.execute(table.insert(), {"n": n})
            except sa.exc.IntegrityError as error:
                equal(sqlstate(error), "23505")
        equal(connection.scalar(sa.select(sa.func.sum(table.c.n))), 3)


@feature("copy")
def _():
    table = fresh(sa.Column("n", sa.Integer))
    with engine.begin() as connection:
        with connection.connection.cursor().copy(f"COPY {table.name} FROM STDIN") as copy:
            for n in range(20000):
                copy.write_row((n,))
        equal(connection.scalar(sa.select(sa.func.count()).select_from(table)), 20000)


@feature("cursors")
def _():
    with engine.connect().execution_options(stream_results=True, max_row_buffer=100) as connection:
        rows = connection.execute(sa.text("SELECT generate_series(1, 1000)"))
        equal(sum(row[0] for row in rows), 500500)


@feature("notify")
def _():
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as listener:
        listener.execute(sa.text("LISTEN alchemy"))
        with engine.begin() as sender:
            sender.execute(sa.select(sa.func.pg_notify("alchemy", "one")))
        heard = listener.connection.driver_connection.notifies(timeout=10, stop_after=1)
        equal([notification.payload for notification in heard], ["one"])
        listener.execute(sa.text("UNLISTEN alchemy"))


@feature("cancel")
def _():
    with engine.connect() as connection:
        timer = threading.Timer(0.3, connection.connection.driver_connection.cancel)
        timer.start()
        expect("57014", connection, sa.text("SELECT pg_sleep(20)"))
        timer.join()
        connection.rollback()
        equal(connection.scalar(sa.text("SELECT 1")), 1)


@feature("errors")
def _():
    table = fresh(sa.Column("n", sa.Integer, primary_key=True))
    with engine.begin() as connection:
        connection.execute(table.insert(), {"n": 1})
    for statement, expected in (
        (table.insert().values(n=1), "23505"),
        (sa.text("SELEC 1"), "42601"),
        (sa.text("SELECT * FROM nowhere"), "42P01"),
    ):
        with engine.connect() as connection:
            expect(expected, connection, statement)
            expect("25P02", connection, sa.text("SELECT 1"))


@feature("big")
def _():
    text, raw = "ü" * 5_000_000, bytes(range(256)) * 40_000
    with engine.connect() as connection:
        row = connection.execute(sa.select(sa.literal(text), sa.literal(raw))).one()
        equal((row[0] == text, row[1] == raw), (True, True))


@feature("pipeline")
def _():
    # insertmanyvalues: thousands of rows in few statements, with their keys in return.
    table = fresh(sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer))
    with engine.begin() as connection:
        insert = table.insert().returning(table.c.id, sort_by_parameter_order=True)
        ids = connection.scalars(insert, [{"n": n} for n in range(5000)]).all()
        equal(ids, list(range(1, 5001)))


@feature("settings")
def _():
    options = {"options": "-c work_mem=7MB", "application_name": "from startup"}
    own = sa.create_engine("postgresql+psycopg://", connect_args=options, pool_size=1)

    @sa.event.listens_for(own, "connect")
    def at_connect(connection, _):
        connection.execute("SET TIME ZONE 'Asia/Tokyo'")
        connection.commit()

    for _ in range(10):
        with own.connect() as connection:
            connection.execute(sa.text("SET LOCAL search_path TO nowhere"))
            equal(connection.scalar(sa.text("SHOW TimeZone")), "Asia/Tokyo")
            equal(connection.scalar(sa.text("SHOW work_mem")), "7MB")
            equal(connection.scalar(sa.text("SHOW application_name")), "from startup")
    own.dispose()


@feature("pool")
def _():
    table = fresh(sa.Column("n", sa.Integer))
    with engine.begin() as connection:
        connection.execute(table.insert(), {"n": 0})

    def count(_):
        with engine.begin() as connection:
            return connection.scalar(table.update().values(n=table.c.n + 1).returning(table.c.n))

    with ThreadPoolExecutor(8) as threads:
        equal(sorted(threads.map(count, range(80))), list(range(1, 81)))
