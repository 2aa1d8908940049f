import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Objects;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.ds.PGPoolingDataSource;
import org.postgresql.util.PGobject;
import org.postgresql.util.PSQLException;

/** pgJDBC. The server is the one that the PG* variables name. */
public final class Jdbc {
    private interface Body {
        void run(Connection connection) throws Exception;
    }

    public static void main(String[] arguments) {
        feature("types", Jdbc::types);
        feature("prepared", Jdbc::prepared);
        feature("transactions", Jdbc::transactions);
        feature("savepoints", Jdbc::savepoints);
        feature("copy", Jdbc::copy);
        feature("cursors", Jdbc::cursors);
        feature("notify", Jdbc::notifications);
        feature("cancel", Jdbc::cancel);
        feature("errors", Jdbc::errors);
        feature("big", Jdbc::big);
        feature("pipeline", Jdbc::batch);
        feature("settings", Jdbc::settings);
        feature("pool", Jdbc::pool);
        System.exit(0);
    }

    private static void feature(String name, Body body) {
        try (Connection connection = connect()) {
            body.run(connection);
            System.out.println(name + " ok");
        } catch (Exception | AssertionError error) {
            String reason = String.valueOf(error).replaceAll("\\s+", " ");
            System.out.println(name + " FAIL " + reason.substring(0, Math.min(reason.length(), 300)));
            error.printStackTrace();
        }
    }

    private static Connection connect() throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("options", "-c work_mem=7MB");
        properties.setProperty("ApplicationName", "from startup");
        String address = System.getenv("PGHOST") + ":" + System.getenv("PGPORT");
        return DriverManager.getConnection("jdbc:postgresql://" + address + "/" + System.getenv("PGDATABASE"), properties);
    }

    private static void equal(Object found, Object expected) {
        if (!Objects.equals(found, expected)) {
            throw new AssertionError(found + " instead of " + expected);
        }
    }

    private static void execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    private static String one(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < parameters.length; i++) {
                statement.setObject(i + 1, parameters[i]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                return rows.getString(1);
            }
        }
    }

    private static PSQLException expect(String sqlState, Callable<?> action) throws Exception {
        try {
            action.call();
        } catch (PSQLException error) {
            equal(error.getSQLState(), sqlState);
            return error;
        }
        throw new AssertionError("no " + sqlState);
    }

    private static Callable<?> running(Connection connection, String sql) {
        return () -> {
            execute(connection, sql);
            return null;
        };
    }

    private static void types(Connection connection) throws Exception {
        PGobject json = new PGobject();
        json.setType("jsonb");
        json.setValue("{\"a\": [1, null, \"ü\"]}");
        String sql = "SELECT ?::int4, ?::int8, ?::numeric, ?::text, ?::bytea, ?::bool, ?::date, ?::timestamptz,"
            + " ?::uuid, ?::jsonb, ?::int4[], ?::text";
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            // From the fifth time on it is a named statement with binary results.
            for (int round = 0; round < 8; round++) {
                byte[] raw = {0, -1, 92};
                UUID uuid = UUID.fromString("0188a6f8-0000-7000-8000-000000000001");
                OffsetDateTime moment = OffsetDateTime.parse("2024-02-29T12:30:15.123456Z");
                statement.setInt(1, -7);
                statement.setLong(2, 1L << 40);
                statement.setBigDecimal(3, new BigDecimal("12345678901234567890.123456789"));
                statement.setString(4, "grüße 🐑 'quoted'");
                statement.setBytes(5, raw);
                statement.setBoolean(6, true);
                statement.setObject(7, LocalDate.of(2024, 2, 29));
                statement.setObject(8, moment);
                statement.setObject(9, uuid);
                statement.setObject(10, json);
                statement.setArray(11, connection.createArrayOf("int4", new Integer[] {1, 2, 3}));
                statement.setString(12, null);
                try (ResultSet row = statement.executeQuery()) {
                    row.next();
                    equal(row.getInt(1), -7);
                    equal(row.getLong(2), 1L << 40);
                    equal(row.getBigDecimal(3), new BigDecimal("12345678901234567890.123456789"));
                    equal(row.getString(4), "grüße 🐑 'quoted'");
                    equal(Arrays.equals(row.getBytes(5), raw), true);
                    equal(row.getBoolean(6), true);
                    equal(row.getObject(7, LocalDate.class), LocalDate.of(2024, 2, 29));
                    equal(row.getObject(8, OffsetDateTime.class).toInstant(), moment.toInstant());
                    equal(row.getObject(9), uuid);
                    equal(row.getString(10), json.getValue());
                    equal(Arrays.asList((Object[]) row.getArray(11).getArray()), List.of(1, 2, 3));
                    equal(row.getString(12), null);
                }
            }
        }
    }

    private static void prepared(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS numbers");
        execute(connection, "CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n");
        // A statement becomes a named one at its fifth execution; 256 are kept, the eldest is closed.
        for (int n = 1; n <= 20; n++) {
            equal(one(connection, "SELECT n + ? FROM numbers WHERE n = ?", n, n), "" + 2 * n);
        }
        for (int text = 0; text < 300; text++) {
            for (int n = 0; n < 7; n++) {
                equal(one(connection, "SELECT ?::int + " + text, n), "" + (n + text));
            }
        }
        execute(connection, "ALTER TABLE numbers ADD note text");
        for (int n = 1; n < 10; n++) {
            equal(one(connection, "SELECT n + ? FROM numbers WHERE n = ?", n, n), "" + 2 * n);
        }
    }

    private static void transactions(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS ledger");
        execute(connection, "CREATE TABLE ledger (n int)");
        connection.setAutoCommit(false);
        execute(connection, "INSERT INTO ledger VALUES (1)");
        connection.commit();
        execute(connection, "INSERT INTO ledger VALUES (2)");
        connection.rollback();
        equal(one(connection, "SELECT sum(n) FROM ledger"), "1");
        connection.commit();
        connection.setReadOnly(true);
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        equal(one(connection, "SHOW transaction_isolation"), "serializable");
        expect("25006", running(connection, "INSERT INTO ledger VALUES (3)"));
        connection.rollback();
        connection.setReadOnly(false);
        connection.setAutoCommit(true);
        equal(one(connection, "SELECT sum(n) FROM ledger"), "1");
    }

    private static void savepoints(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS saved");
        execute(connection, "CREATE TABLE saved (n int PRIMARY KEY)");
        connection.setAutoCommit(false);
        execute(connection, "INSERT INTO saved VALUES (1)");
        Savepoint savepoint = connection.setSavepoint("s");
        expect("23505", running(connection, "INSERT INTO saved VALUES (1)"));
        connection.rollback(savepoint);
        execute(connection, "INSERT INTO saved VALUES (2)");
        connection.releaseSavepoint(savepoint);
        connection.commit();
        equal(one(connection, "SELECT sum(n) FROM saved"), "3");
        connection.commit();
    }

    private static void copy(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS copied");
        execute(connection, "CREATE TABLE copied (n int, note text)");
        StringBuilder lines = new StringBuilder();
        for (int n = 0; n < 20000; n++) {
            lines.append(n).append("\tnote ").append(n).append('\n');
        }
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        equal(copy.copyIn("COPY copied FROM STDIN", new StringReader(lines.toString())), 20000L);
        StringWriter out = new StringWriter();
        copy.copyOut("COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT", out);
        equal(out.toString().contentEquals(lines), true);
        expect("22P02", () -> copy.copyIn("COPY copied FROM STDIN", new StringReader("none\tof the kind\n")));
        equal(one(connection, "SELECT count(*) FROM copied"), "20000");
    }

    private static void cursors(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("SELECT generate_series(1, ?)")) {
            // Portals that stay open over several Syncs.
            statement.setFetchSize(100);
            statement.setInt(1, 1000);
            for (int round = 0; round < 7; round++) {
                long sum = 0;
                try (ResultSet rows = statement.executeQuery()) {
                    while (rows.next()) {
                        sum += rows.getInt(1);
                    }
                }
                equal(sum, 500500L);
            }
        }
        connection.commit();
        connection.setAutoCommit(true);
        execute(connection, "DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)");
        execute(connection, "FETCH 3 FROM kept");
        equal(one(connection, "FETCH kept"), "4");
        execute(connection, "CLOSE kept");
    }

    private static void notifications(Connection connection) throws Exception {
        try (Connection sender = connect()) {
            execute(connection, "LISTEN jdbc");
            equal(one(connection, "SELECT 1"), "1");
            execute(sender, "NOTIFY jdbc, 'one'");
            execute(sender, "BEGIN; NOTIFY jdbc, 'never'; ROLLBACK");
            one(sender, "SELECT pg_notify('jdbc', ?)", "two");
            List<String> heard = new ArrayList<>();
            for (int waited = 0; heard.size() < 2 && waited < 10; waited++) {
                PGNotification[] some = connection.unwrap(PGConnection.class).getNotifications(1000);
                for (PGNotification notification : some == null ? new PGNotification[0] : some) {
                    heard.add(notification.getParameter());
                }
            }
            equal(heard, List.of("one", "two"));
            execute(connection, "UNLISTEN jdbc");
        }
    }

    private static void cancel(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(300);
                    statement.cancel();
                } catch (Exception error) {
                    error.printStackTrace();
                }
            });
            canceller.start();
            expect("57014", () -> statement.execute("SELECT pg_sleep(20)"));
            canceller.join();
            statement.setQueryTimeout(1);
            expect("57014", () -> statement.execute("SELECT pg_sleep(20)"));
        }
        equal(one(connection, "SELECT 1"), "1");
    }

    private static void errors(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS strict");
        execute(connection, "CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)");
        execute(connection, "INSERT INTO strict VALUES (1)");
        PSQLException error = expect("23505", running(connection, "INSERT INTO strict VALUES (1)"));
        equal(error.getServerErrorMessage().getConstraint(), "only_one");
        expect("42601", running(connection, "SELEC 1"));
        expect("42P01", running(connection, "SELECT * FROM nowhere"));
        expect("22012", () -> one(connection, "SELECT 1 / ?::int", 0));
        connection.setAutoCommit(false);
        expect("22012", running(connection, "SELECT 1 / 0"));
        expect("25P02", running(connection, "SELECT 1"));
        connection.rollback();
        connection.setAutoCommit(true);
        try (Statement statement = connection.createStatement()) {
            statement.execute("DO $$ BEGIN RAISE NOTICE 'hear this'; END $$");
            equal(statement.getWarnings().getMessage(), "hear this");
        }
    }

    private static void big(Connection connection) throws Exception {
        String text = "ü".repeat(5_000_000);
        equal(one(connection, "SELECT ?::text", text).equals(text), true);
        byte[] raw = new byte[10_000_000];
        for (int i = 0; i < raw.length; i++) {
            raw[i] = (byte) i;
        }
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::bytea")) {
            statement.setBytes(1, raw);
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                equal(Arrays.equals(rows.getBytes(1), raw), true);
            }
        }
    }

    /** JDBC's pipelining is the batch. */
    private static void batch(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS batched");
        execute(connection, "CREATE TABLE batched (n int PRIMARY KEY)");
        try (PreparedStatement statement = connection.prepareStatement("INSERT INTO batched VALUES (?)")) {
            for (int n = 0; n < 1000; n++) {
                statement.setInt(1, n);
                statement.addBatch();
            }
            equal(Arrays.stream(statement.executeBatch()).sum(), 1000);
            for (int n : new int[] {1000, 7, 1001}) {
                statement.setInt(1, n);
                statement.addBatch();
            }
            try {
                statement.executeBatch();
                throw new AssertionError("no error");
            } catch (java.sql.BatchUpdateException error) {
                equal(error.getSQLState(), "23505");
            }
        }
        equal(one(connection, "SELECT count(*) FROM batched"), "1000");
    }

    private static void settings(Connection connection) throws Exception {
        String usual = one(connection, "SHOW statement_timeout");
        execute(connection, "CREATE SCHEMA IF NOT EXISTS aside");
        execute(connection, "DROP TABLE IF EXISTS aside.here");
        execute(connection, "CREATE TABLE aside.here AS SELECT 42 AS n");
        connection.setSchema("aside");
        execute(connection, "SET TIME ZONE 'Asia/Tokyo'");
        one(connection, "SELECT set_config('lock_timeout', ?, false)", "1234ms");
        connection.setAutoCommit(false);
        execute(connection, "SET LOCAL statement_timeout = '9s'");
        equal(one(connection, "SHOW statement_timeout"), "9s");
        connection.commit();
        execute(connection, "SET search_path TO nowhere");
        connection.rollback();
        connection.setAutoCommit(true);
        for (int round = 0; round < 10; round++) {
            equal(one(connection, "SHOW statement_timeout"), usual);
            equal(one(connection, "SELECT n FROM here"), "42");
            equal(one(connection, "SHOW work_mem"), "7MB");
            equal(one(connection, "SHOW TimeZone"), "Asia/Tokyo");
            equal(one(connection, "SELECT current_setting('lock_timeout')"), "1234ms");
            equal(one(connection, "SHOW application_name"), "from startup");
        }
        connection.setClientInfo("ApplicationName", "renamed");
        equal(one(connection, "SHOW application_name"), "renamed");
        execute(connection, "RESET ALL");
        equal(one(connection, "SHOW work_mem"), "7MB");
    }

    @SuppressWarnings("deprecation")
    private static void pool(Connection connection) throws Exception {
        execute(connection, "DROP TABLE IF EXISTS counter");
        execute(connection, "CREATE TABLE counter AS SELECT 0 AS n");
        PGPoolingDataSource pool = new PGPoolingDataSource();
        pool.setDataSourceName("drivers");
        pool.setServerNames(new String[] {System.getenv("PGHOST")});
        pool.setPortNumbers(new int[] {Integer.parseInt(System.getenv("PGPORT"))});
        pool.setDatabaseName(System.getenv("PGDATABASE"));
        pool.setUser(System.getenv("PGUSER"));
        pool.setPassword(System.getenv("PGPASSWORD"));
        pool.setMaxConnections(4);
        ExecutorService threads = Executors.newFixedThreadPool(8);
        List<Future<Integer>> counts = new ArrayList<>();
        for (int n = 0; n < 80; n++) {
            counts.add(threads.submit(() -> {
                try (Connection pooled = pool.getConnection()) {
                    pooled.setAutoCommit(false);
                    String count = one(pooled, "UPDATE counter SET n = n + ? RETURNING n", 1);
                    pooled.commit();
                    return Integer.valueOf(count);
                }
            }));
        }
        List<Integer> found = new ArrayList<>();
        for (Future<Integer> count : counts) {
            found.add(count.get());
        }
        threads.shutdown();
        pool.close();
        Collections.sort(found);
        List<Integer> expected = new ArrayList<>();
        for (int n = 1; n <= 80; n++) {
            expected.add(n);
        }
        equal(found, expected);
    }
}
