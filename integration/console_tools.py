"""The console (its conninfo is the argument) as psycopg 2 and psycopg 3 use it; silent when all is well."""

import sys

import psycopg
import psycopg2

conninfo = sys.argv[1]


def check(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


# Simple queries, on their own and in what the driver takes for a transaction.
for autocommit in (True, False):
    connection = psycopg2.connect(conninfo)
    connection.set_session(autocommit=autocommit)
    with connection.cursor() as cursor:
        cursor.execute("SET extra_float_digits = 3")
        cursor.execute("SHOW LISTS;")
        check([column.name for column in cursor.description], ["list", "items"])
        lists = dict(cursor.fetchall())
        check(lists["databases"], 1)
        cursor.execute("SHOW STATS")
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row)) for row in cursor.fetchall()]
        check([row["database"] for row in rows], ["app"])
        assert rows[0]["total_query_count"] > 0
        try:
            cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            check(error.pgcode, "42601")
        else:
            raise AssertionError("the console runs no SQL")
    connection.rollback()
    connection.close()

# The extended protocol, with results in text and in binary, unprepared and prepared.
for autocommit in (True, False):
    with psycopg.connect(conninfo, autocommit=autocommit) as connection:
        for binary in (False, True):
            for prepare in (False, True):
                for what in ("POOLS", "CLIENTS", "DATABASES", "STATS", "CONFIG", "MEM", "NODES"):
                    cursor = connection.cursor(binary=binary)
                    cursor.execute(f"SHOW {what}", prepare=prepare)
                    rows = cursor.fetchall()
                    assert rows and len(rows[0]) == len(cursor.description), what
                cursor.execute("SHOW STATS", prepare=prepare)
                stats = dict(zip([column.name for column in cursor.description], cursor.fetchone()))
                check(stats["database"], "app")
                assert stats["total_query_count"] > 0 and stats["total_received"] > 10_000, stats
                cursor.execute("SHOW LISTS", prepare=prepare)
                check(dict(cursor.fetchall())["databases"], 1)
        check(connection.execute("SET extra_float_digits = 3").statusmessage, "SET")
with psycopg.connect(conninfo, autocommit=True) as connection:
    with connection.pipeline():
        cursors = [connection.execute("SHOW VERSION") for _ in range(3)]
    for cursor in cursors:
        assert cursor.fetchone()[0].startswith("Bellwether "), "the version"
    try:
        connection.execute("SHOW POOLS WHERE database = %s", ("app",))
    except psycopg.errors.Error as error:
        assert error.sqlstate in ("42601", "0A000"), error.sqlstate
    else:
        raise AssertionError("no parameters")
    assert connection.execute("SHOW USERS").fetchall(), "the connection goes on"
