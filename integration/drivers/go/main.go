// pgx 4, as Debian has it. The server is the one that the PG* variables name.
package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

var ctx = context.Background()

type body func(connection *pgx.Conn) error

func main() {
	feature("types", types)
	feature("prepared", prepared)
	feature("transactions", transactions)
	feature("savepoints", savepoints)
	feature("copy", copyBothWays)
	feature("cursors", cursors)
	feature("notify", notify)
	feature("cancel", cancel)
	feature("errors", serverErrors)
	feature("big", big)
	feature("pipeline", batch)
	feature("settings", settings)
	feature("pool", pool)
}

func feature(name string, run body) {
	if err := connected(run); err != nil {
		reason := strings.Join(strings.Fields(err.Error()), " ")
		fmt.Printf("%s FAIL %.300s\n", name, reason)
		return
	}
	fmt.Println(name, "ok")
}

func connected(run body) error {
	connection, err := pgx.Connect(ctx, "options='-c work_mem=7MB' application_name='from startup'")
	if err != nil {
		return err
	}
	defer connection.Close(ctx)
	return run(connection)
}

func equal(found, expected interface{}) error {
	if !reflect.DeepEqual(found, expected) {
		return fmt.Errorf("%.100v instead of %.100v", found, expected)
	}
	return nil
}

func sqlstate(err error) string {
	var told *pgconn.PgError
	if errors.As(err, &told) {
		return told.Code
	}
	return fmt.Sprint(err)
}

// Statements one after the other, each on its own.
func execute(connection *pgx.Conn, statements ...string) error {
	for _, sql := range statements {
		if _, err := connection.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

func expectInt(query func() pgx.Row, expected int) error {
	var found int
	if err := query().Scan(&found); err != nil {
		return err
	}
	return equal(found, expected)
}

func expectText(connection *pgx.Conn, sql, expected string) error {
	var found string
	if err := connection.QueryRow(ctx, sql).Scan(&found); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return equal(found, expected)
}

func count(connection *pgx.Conn, sql string, expected int) error {
	return expectInt(func() pgx.Row { return connection.QueryRow(ctx, sql) }, expected)
}

func types(connection *pgx.Conn) error {
	moment := time.Date(2024, 2, 29, 12, 30, 15, 123456000, time.UTC)
	sql := "SELECT $1::int4, $2::int8, $3::numeric::text, $4::text, $5::bytea, $6::bool, $7::date," +
		" $8::timestamptz, $9::uuid::text, $10::jsonb, $11::int4[], $12::text"
	var (
		small    int32
		large    int64
		numeric  string
		text     string
		raw      []byte
		truth    bool
		date, at time.Time
		id       string
		document map[string]interface{}
		list     []int32
		null     *string
	)
	arguments := []interface{}{
		-7, int64(1) << 40, "12345678901234567890.123456789", "grüße 🐑 'quoted'", []byte{0, 255, 92}, true,
		moment.Truncate(24 * time.Hour), moment, "0188a6f8-0000-7000-8000-000000000001",
		map[string]interface{}{"a": []interface{}{1.0, nil, "ü"}}, []int32{1, 2, 3}, nil,
	}
	err := connection.QueryRow(ctx, sql, arguments...).
		Scan(&small, &large, &numeric, &text, &raw, &truth, &date, &at, &id, &document, &list, &null)
	if err != nil {
		return err
	}
	found := []interface{}{int(small), large, numeric, text, raw, truth, date.UTC(), at.UTC(), id, document, list}
	if err := equal(found, arguments[:11]); err != nil {
		return err
	}
	return equal(null == nil, true)
}

func prepared(connection *pgx.Conn) error {
	err := execute(connection, "DROP TABLE IF EXISTS numbers",
		"CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n")
	if err != nil {
		return err
	}
	double := func(from, to int) error {
		for n := from; n <= to; n++ {
			row := func() pgx.Row {
				return connection.QueryRow(ctx, "SELECT n + $1 FROM numbers WHERE n = $2", n, n)
			}
			if err := expectInt(row, 2*n); err != nil {
				return err
			}
		}
		return nil
	}
	if err := double(1, 20); err != nil {
		return err
	}
	// pgx keeps 512 statements and deallocates the oldest.
	for text := 0; text < 600; text++ {
		for n := 0; n < 2; n++ {
			row := func() pgx.Row { return connection.QueryRow(ctx, fmt.Sprintf("SELECT $1::int + %d", text), n) }
			if err := expectInt(row, n+text); err != nil {
				return err
			}
		}
	}
	if _, err := connection.Prepare(ctx, "named", "SELECT $1::int * 3"); err != nil {
		return err
	}
	for n := 0; n < 10; n++ {
		row := func() pgx.Row { return connection.QueryRow(ctx, "named", n) }
		if err := expectInt(row, 3*n); err != nil {
			return err
		}
	}
	if err := connection.Deallocate(ctx, "named"); err != nil {
		return err
	}
	if err := execute(connection, "ALTER TABLE numbers ADD note text"); err != nil {
		return err
	}
	return double(1, 9)
}

func transactions(connection *pgx.Conn) error {
	if err := execute(connection, "DROP TABLE IF EXISTS ledger", "CREATE TABLE ledger (n int)"); err != nil {
		return err
	}
	err := connection.BeginFunc(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO ledger VALUES ($1)", 1)
		return err
	})
	if err != nil {
		return err
	}
	undone := errors.New("undone")
	err = connection.BeginFunc(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO ledger VALUES ($1)", 2); err != nil {
			return err
		}
		return undone
	})
	if !errors.Is(err, undone) {
		return err
	}
	if err := count(connection, "SELECT sum(n) FROM ledger", 1); err != nil {
		return err
	}
	readOnly := pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly}
	err = connection.BeginTxFunc(ctx, readOnly, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO ledger VALUES (3)")
		return err
	})
	return equal(sqlstate(err), "25006")
}

func savepoints(connection *pgx.Conn) error {
	err := execute(connection, "DROP TABLE IF EXISTS saved", "CREATE TABLE saved (n int PRIMARY KEY)")
	if err != nil {
		return err
	}
	err = connection.BeginFunc(ctx, func(tx pgx.Tx) error {
		insert := func(n int) error {
			return tx.BeginFunc(ctx, func(nested pgx.Tx) error {
				_, err := nested.Exec(ctx, "INSERT INTO saved VALUES ($1)", n)
				return err
			})
		}
		if err := insert(1); err != nil {
			return err
		}
		if err := equal(sqlstate(insert(1)), "23505"); err != nil {
			return err
		}
		return insert(2)
	})
	if err != nil {
		return err
	}
	return count(connection, "SELECT sum(n) FROM saved", 3)
}

func copyBothWays(connection *pgx.Conn) error {
	err := execute(connection, "DROP TABLE IF EXISTS copied", "CREATE TABLE copied (n int, note text)")
	if err != nil {
		return err
	}
	rows := make([][]interface{}, 20000)
	for n := range rows {
		rows[n] = []interface{}{int32(n), fmt.Sprintf("note\t%d", n)}
	}
	columns := []string{"n", "note"}
	copied, err := connection.CopyFrom(ctx, pgx.Identifier{"copied"}, columns, pgx.CopyFromRows(rows))
	if err != nil {
		return err
	}
	if err := equal(copied, int64(20000)); err != nil {
		return err
	}
	var out strings.Builder
	_, err = connection.PgConn().CopyTo(ctx, &out, "COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT")
	if err != nil {
		return err
	}
	if err := equal(strings.Count(out.String(), "\n"), 20000); err != nil {
		return err
	}
	bad := strings.NewReader("none\tof the kind\n")
	_, err = connection.PgConn().CopyFrom(ctx, bad, "COPY copied FROM STDIN")
	if err := equal(sqlstate(err), "22P02"); err != nil {
		return err
	}
	return count(connection, "SELECT count(*) FROM copied", 20000)
}

func cursors(connection *pgx.Conn) error {
	err := connection.BeginFunc(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "DECLARE walk SCROLL CURSOR FOR SELECT generate_series(1, 1000)")
		if err != nil {
			return err
		}
		sum, fetched := 0, 0
		for {
			rows, err := tx.Query(ctx, "FETCH 100 FROM walk")
			if err != nil {
				return err
			}
			some := 0
			for rows.Next() {
				var n int
				if err := rows.Scan(&n); err != nil {
					return err
				}
				sum, some = sum+n, some+1
			}
			if rows.Err() != nil {
				return rows.Err()
			}
			if some == 0 {
				break
			}
			fetched += some
		}
		if err := equal([]int{fetched, sum}, []int{1000, 500500}); err != nil {
			return err
		}
		return expectInt(func() pgx.Row { return tx.QueryRow(ctx, "FETCH ABSOLUTE 7 FROM walk") }, 7)
	})
	if err != nil {
		return err
	}
	err = execute(connection, "DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)", "MOVE 3 IN kept")
	if err != nil {
		return err
	}
	if err := count(connection, "FETCH kept", 4); err != nil {
		return err
	}
	return execute(connection, "CLOSE kept")
}

func notify(listener *pgx.Conn) error {
	return connected(func(sender *pgx.Conn) error {
		if err := execute(listener, "LISTEN pgx", "SELECT 1"); err != nil {
			return err
		}
		err := execute(sender, "NOTIFY pgx, 'one'", "BEGIN", "NOTIFY pgx, 'never'", "ROLLBACK",
			"SELECT pg_notify('pgx', 'two')")
		if err != nil {
			return err
		}
		for _, expected := range []string{"one", "two"} {
			waiting, stop := context.WithTimeout(ctx, 10*time.Second)
			notification, err := listener.WaitForNotification(waiting)
			stop()
			if err != nil {
				return err
			}
			if err := equal(notification.Payload, expected); err != nil {
				return err
			}
		}
		return execute(listener, "UNLISTEN pgx")
	})
}

func cancel(connection *pgx.Conn) error {
	for round := 0; round < 2; round++ {
		cancelled := make(chan error)
		go func() {
			time.Sleep(300 * time.Millisecond)
			cancelled <- connection.PgConn().CancelRequest(ctx)
		}()
		_, err := connection.Exec(ctx, "SELECT pg_sleep(20)")
		if err := equal(sqlstate(err), "57014"); err != nil {
			return err
		}
		if err := <-cancelled; err != nil {
			return err
		}
		if err := count(connection, "SELECT 1", 1); err != nil {
			return err
		}
	}
	return nil
}

func serverErrors(connection *pgx.Conn) error {
	err := execute(connection, "DROP TABLE IF EXISTS strict",
		"CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)", "INSERT INTO strict VALUES (1)")
	if err != nil {
		return err
	}
	steps := []struct{ sql, sqlstate string }{
		{"INSERT INTO strict VALUES (1)", "23505"},
		{"SELEC 1", "42601"},
		{"SELECT * FROM nowhere", "42P01"},
		{"SELECT 1 / n.n FROM (VALUES (0)) n (n)", "22012"},
		{"BEGIN", ""},
		{"SELECT 1 / n.n FROM (VALUES (0)) n (n)", "22012"},
		{"SELECT 1", "25P02"},
		{"ROLLBACK", ""},
	}
	for _, step := range steps {
		_, err := connection.Exec(ctx, step.sql)
		if err == nil && step.sqlstate == "" {
			continue
		}
		if err := equal(sqlstate(err), step.sqlstate); err != nil {
			return fmt.Errorf("%s: %w", step.sql, err)
		}
	}
	return nil
}

func big(connection *pgx.Conn) error {
	text := strings.Repeat("ü", 5_000_000)
	raw := make([]byte, 10_000_000)
	for i := range raw {
		raw[i] = byte(i)
	}
	var sameText string
	var sameRaw []byte
	if err := connection.QueryRow(ctx, "SELECT $1::text, $2::bytea", text, raw).Scan(&sameText, &sameRaw); err != nil {
		return err
	}
	return equal([]bool{sameText == text, reflect.DeepEqual(sameRaw, raw)}, []bool{true, true})
}

// pgx's pipelining is the batch: all messages, then one Sync.
func batch(connection *pgx.Conn) error {
	var batch pgx.Batch
	for n := 0; n < 200; n++ {
		batch.Queue("SELECT $1::int", n)
	}
	results := connection.SendBatch(ctx, &batch)
	for n := 0; n < 200; n++ {
		if err := expectInt(results.QueryRow, n); err != nil {
			return err
		}
	}
	if err := results.Close(); err != nil {
		return err
	}
	var broken pgx.Batch
	broken.Queue("SELECT 1")
	broken.Queue("SELECT 1 / $1::int", 0)
	broken.Queue("SELECT 2")
	results = connection.SendBatch(ctx, &broken)
	if err := expectInt(results.QueryRow, 1); err != nil {
		return err
	}
	_, err := results.Exec()
	if err := equal(sqlstate(err), "22012"); err != nil {
		return err
	}
	if _, err := results.Exec(); err == nil {
		return errors.New("ran behind an error")
	}
	results.Close()
	return count(connection, "SELECT 3", 3)
}

func settings(connection *pgx.Conn) error {
	var usual string
	if err := connection.QueryRow(ctx, "SHOW statement_timeout").Scan(&usual); err != nil {
		return err
	}
	err := execute(connection, "CREATE SCHEMA IF NOT EXISTS aside", "DROP TABLE IF EXISTS aside.here",
		"CREATE TABLE aside.here AS SELECT 42 AS n", "SET search_path TO aside, public",
		"SET TIME ZONE 'Asia/Tokyo'", "SELECT set_config('lock_timeout', '1234ms', false)",
		"BEGIN", "SET LOCAL statement_timeout = '9s'")
	if err != nil {
		return err
	}
	if err := expectText(connection, "SHOW statement_timeout", "9s"); err != nil {
		return err
	}
	if err := execute(connection, "COMMIT", "BEGIN", "SET search_path TO nowhere", "ROLLBACK"); err != nil {
		return err
	}
	for round := 0; round < 10; round++ {
		for _, expected := range []struct{ sql, text string }{
			{"SHOW statement_timeout", usual},
			{"SELECT n::text FROM here", "42"},
			{"SHOW work_mem", "7MB"},
			{"SHOW TimeZone", "Asia/Tokyo"},
			{"SELECT current_setting('lock_timeout')", "1234ms"},
			{"SHOW application_name", "from startup"},
		} {
			if err := expectText(connection, expected.sql, expected.text); err != nil {
				return fmt.Errorf("%s: %w", expected.sql, err)
			}
		}
	}
	if err := equal(connection.PgConn().ParameterStatus("TimeZone"), "Asia/Tokyo"); err != nil {
		return err
	}
	if err := execute(connection, "RESET ALL"); err != nil {
		return err
	}
	return expectText(connection, "SHOW work_mem", "7MB")
}

func pool(connection *pgx.Conn) error {
	err := execute(connection, "DROP TABLE IF EXISTS counter", "CREATE TABLE counter AS SELECT 0 AS n")
	if err != nil {
		return err
	}
	connections, err := pgxpool.Connect(ctx, "pool_max_conns=4")
	if err != nil {
		return err
	}
	defer connections.Close()
	const users = 80
	counts, failures := make([]int, users), make([]error, users)
	var all sync.WaitGroup
	for user := 0; user < users; user++ {
		all.Add(1)
		go func(user int) {
			defer all.Done()
			failures[user] = connections.BeginFunc(ctx, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, "UPDATE counter SET n = n + $1 RETURNING n", 1).Scan(&counts[user])
			})
		}(user)
	}
	all.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	sort.Ints(counts)
	for at, n := range counts {
		if err := equal(n, at+1); err != nil {
			return err
		}
	}
	return nil
}
