//! The table of statements and where they go: every row that other routers are known to get wrong, and more.

use std::sync::Arc;

use super::{
    Access, AdvisoryCall, Classifier, CopyData, Isolation, Knob, KnobCommand, MayWrite, NewValue, Route,
    Scope, SessionEffect, Shown, SqlPrepare, Step, TransactionAccess, TransactionEffect, TransactionEnd,
    TransactionModes, WriteReason, classify,
};

/// `expected` is `read`, or the label of the reason.
fn check_access(expected: &str, statements: &[&str]) {
    let mut remembering = Classifier::default();
    for sql in statements.iter().chain(statements) {
        let verdict = classify(sql);
        assert_eq!(*remembering.verdict(sql), verdict, "{sql}");
        let actual = match &verdict.access {
            Access::Read => "read",
            Access::Write { reason } => reason.as_str(),
        };
        assert_eq!(actual, expected, "{sql}\n{verdict:?}");
        if verdict.is_read() {
            assert!(!verdict.commits() || verdict.transaction.ends_with_commit(), "{sql}");
        }
    }
}

#[test]
fn reads() {
    check_access(
        "read",
        &[
            "SELECT 1",
            "select * from accounts where aid = $1",
            "TABLE t",
            "VALUES (1, 'a'), (2, 'b')",
            "SELECT DISTINCT ON (a) a, b FROM t ORDER BY a, b DESC NULLS LAST LIMIT 10 OFFSET $1",
            "SELECT a, count(*) FILTER (WHERE b > 0), string_agg(c, ',' ORDER BY d) FROM t GROUP BY a HAVING sum(b) > 1",
            "SELECT a, b, grouping(a, b), sum(c) FROM t GROUP BY GROUPING SETS ((a, b), ROLLUP (a), CUBE (a, b), ())",
            "SELECT rank() OVER w, lag(x, 1) OVER (PARTITION BY y ORDER BY z ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) \
         FROM t WINDOW w AS (PARTITION BY a ORDER BY b)",
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t",
            "SELECT 1 UNION ALL (SELECT 2 EXCEPT SELECT 3) INTERSECT SELECT 4 ORDER BY 1",
            "WITH a AS (SELECT 1), b AS MATERIALIZED (SELECT * FROM a) SELECT * FROM b",
            "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 100) SEARCH DEPTH FIRST BY n SET o \
         CYCLE n SET c USING p SELECT sum(n) FROM t",
            "SELECT * FROM a JOIN b USING (id) LEFT JOIN LATERAL (SELECT * FROM c WHERE c.id = a.id) x ON true NATURAL JOIN d",
            "SELECT * FROM generate_series(1, 3) WITH ORDINALITY AS g(i, n), ROWS FROM (unnest(ARRAY[1, 2]), upper('x')) AS u",
            "SELECT * FROM json_to_record('{}') AS x(a int, b text)",
            "SELECT * FROM t TABLESAMPLE bernoulli (10) REPEATABLE (1)",
            "SELECT CASE WHEN a THEN 1 ELSE 2 END, COALESCE(a, b), NULLIF(a, b), GREATEST(1, 2), a IS NULL, a IS NOT TRUE FROM t",
            "SELECT CAST(a AS numeric(10, 2)), a::text[], 'x'::regclass, (a).b, a[1:2], ROW(1, 2), ARRAY[[1], [2]] FROM t",
            "SELECT EXTRACT(year FROM d), d AT TIME ZONE 'UTC', SUBSTRING(s FROM 1 FOR 2), TRIM(BOTH 'x' FROM s), \
         POSITION('a' IN s), OVERLAY(s PLACING 'x' FROM 1), NORMALIZE(s), s IS NORMALIZED, COLLATION FOR (s) FROM t",
            "SELECT (a, b) OVERLAPS (c, d), s LIKE 'x' ESCAPE '!', s SIMILAR TO 'y', s ~~* 'z', a BETWEEN 1 AND 2 FROM t",
            "SELECT CURRENT_TIMESTAMP, CURRENT_DATE, LOCALTIME, CURRENT_USER, SESSION_USER, CURRENT_SCHEMA, CURRENT_CATALOG",
            "SELECT now(), clock_timestamp(), random(), gen_random_uuid(), pg_sleep(0), version()",
            "SELECT pg_catalog.lower('X'), LOWER('X'), \"lower\"('X')",
            "SELECT a COLLATE \"C\" FROM t WHERE a = ANY (ARRAY[1]) AND b IN (SELECT b FROM u) AND NOT EXISTS (SELECT 1)",
            "SELECT make_interval(days => 3), concat(VARIADIC ARRAY['a'])",
            "SELECT xmlelement(name a, xmlattributes(1 AS b), xmlforest(c), xmlagg(d)), xmlserialize(content x AS text) FROM t",
            "SELECT * FROM XMLTABLE('/r' PASSING doc COLUMNS id int PATH '@id' DEFAULT 0, n FOR ORDINALITY) AS x",
            "SELECT * FROM JSON_TABLE(j, '$[*]' PASSING 1 AS y COLUMNS (i FOR ORDINALITY, a int PATH '$.a' DEFAULT 1 ON EMPTY, \
         NESTED PATH '$.b[*]' COLUMNS (c text PATH '$'))) AS jt",
            "SELECT JSON_VALUE(j, '$.a' RETURNING int DEFAULT 0 ON ERROR), JSON_QUERY(j, '$' WITH WRAPPER), \
         JSON_EXISTS(j, '$.a'), JSON_OBJECT('a': 1), JSON_ARRAY(1, 2), JSON_ARRAY(SELECT 1), JSON('{}'), \
         JSON_SCALAR(1), JSON_SERIALIZE('{}'), JSON_OBJECTAGG('a': b), JSON_ARRAYAGG(a ORDER BY a), j IS JSON OBJECT FROM t",
            "SELECT * FROM pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE pg_table_is_visible(c.oid)",
            "SELECT * FROM information_schema.columns",
            "SELECT current_setting('server_version_num')",
            "SELECT 1 WHERE a OPERATOR(pg_catalog.=) 1 ORDER BY b USING <",
            "EXPLAIN SELECT * FROM t",
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM t",
            "COPY t TO STDOUT",
            "COPY (SELECT * FROM t) TO STDOUT (FORMAT csv)",
            "SHOW search_path",
            "SHOW TRANSACTION ISOLATION LEVEL",
            "SHOW server_version",
            "DECLARE c CURSOR FOR SELECT * FROM t",
            "SELECT 1; SELECT 2;",
            "BEGIN READ ONLY",
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            "BEGIN READ ONLY; SELECT * FROM t; COMMIT",
            "COMMIT",
            "ROLLBACK TO SAVEPOINT s",
            "",
            " ; ",
            "-- nothing",
            "/* /* nested */ */",
            "/* a comment */ SELECT 1 -- another",
        ],
    );
}

#[test]
fn what_other_routers_send_to_a_standby() {
    check_access(
        "function",
        &[
            "SELECT upsert_ttl()",
            "SELECT nextval('s')",
            "SELECT pg_catalog.nextval('s')",
            "SELECT setval('s', 1)",
            "SELECT currval('s'), lastval()",
            "SELECT pg_notify('c', 'x')",
            "SELECT pg_logical_emit_message(true, 'a', 'b')",
            "SELECT lo_create(0)",
            "SELECT txid_current()",
            "SELECT pg_current_xact_id()",
            "SELECT dblink_exec('...', 'DELETE FROM t')",
            "EXPLAIN ANALYZE SELECT writer()",
        ],
    );
    check_access("advisory_lock", &["SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_xact_lock(1, 2)"]);
    check_access(
        "locking_clause",
        &[
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
            "SELECT * FROM t FOR SHARE NOWAIT",
            "SELECT * FROM t FOR KEY SHARE OF t",
            "SELECT * FROM (SELECT * FROM t FOR UPDATE) x",
            "WITH x AS (SELECT * FROM t FOR SHARE) SELECT * FROM x",
            "SELECT 1 UNION SELECT (SELECT a FROM t FOR UPDATE)",
            "COPY (SELECT * FROM t FOR UPDATE) TO STDOUT",
        ],
    );
    check_access(
        "modifying_cte",
        &[
            "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
            "WITH x AS (DELETE FROM t) SELECT 1",
            "WITH a AS (WITH b AS (UPDATE t SET x = 1 RETURNING *) SELECT * FROM b) SELECT * FROM a",
            "SELECT lower((SELECT y FROM a LEFT JOIN LATERAL (SELECT * FROM (WITH z AS (DELETE FROM t RETURNING y) \
         SELECT y FROM z) s) q ON upper(q.y) = 'A'))",
            "WITH m AS (MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE RETURNING *) TABLE m",
        ],
    );
    check_access(
        "select_into",
        &["SELECT * INTO u FROM t", "SELECT 1 INTO TEMP u", "EXPLAIN ANALYZE SELECT 1 INTO u"],
    );
    check_access(
        "dml",
        &[
            "COPY (DELETE FROM t RETURNING *) TO STDOUT",
            "COPY (INSERT INTO t VALUES (1) RETURNING *) TO STDOUT",
            "SELECT 1; INSERT INTO t VALUES (1)",
            "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
            "MERGE INTO t USING u ON t.id = u.id WHEN NOT MATCHED THEN INSERT VALUES (1)",
            "INSERT INTO t SELECT * FROM u ON CONFLICT (id) DO UPDATE SET a = excluded.a RETURNING *",
            "UPDATE t SET (a, b) = (SELECT 1, 2) WHERE CURRENT OF c",
            "WITH x AS (SELECT 1) DELETE FROM t USING x RETURNING old.*",
        ],
    );
    check_access(
        "copy_from",
        &["COPY t FROM STDIN", "COPY t (a) FROM '/tmp/x' WHERE a > 1", "COPY t FROM PROGRAM 'x'"],
    );
    check_access(
        "unparsable",
        &["SELEC 1", "SELECT 'open", "SELECT 1 FROM", "BEGIN; SELEC 1; COMMIT", "\0", "SELECT 1\0"],
    );
}

#[test]
fn functions_in_every_place() {
    check_access(
        "function",
        &[
            "VALUES (nextval('s'))",
            "SELECT 1 WHERE f()",
            "SELECT 1 ORDER BY f()",
            "SELECT 1 LIMIT f()",
            "SELECT 1 OFFSET f()",
            "SELECT a FROM t GROUP BY f(a)",
            "SELECT a FROM t GROUP BY GROUPING SETS ((f(a)))",
            "SELECT 1 HAVING f()",
            "SELECT DISTINCT ON (f()) 1",
            "SELECT * FROM f()",
            "SELECT * FROM ROWS FROM (generate_series(1, 2), f())",
            "SELECT * FROM LATERAL f() x",
            "SELECT * FROM a JOIN b ON f()",
            "SELECT sum(x) FILTER (WHERE f()) FROM t",
            "SELECT array_agg(x ORDER BY f()) FROM t",
            "SELECT rank() OVER (PARTITION BY f()) FROM t",
            "SELECT rank() OVER (ORDER BY f()) FROM t",
            "SELECT sum(x) OVER (ORDER BY y ROWS f() PRECEDING) FROM t",
            "SELECT rank() OVER w FROM t WINDOW w AS (ORDER BY f())",
            "SELECT CASE WHEN f() THEN 1 END",
            "SELECT CASE f() WHEN 1 THEN 1 END",
            "SELECT COALESCE(1, f()), GREATEST(1, 2)",
            "SELECT LEAST(f(), 1)",
            "SELECT NULLIF(f(), 1)",
            "SELECT f() IS NULL",
            "SELECT f() IS NOT TRUE",
            "SELECT ARRAY[f()]",
            "SELECT ARRAY(SELECT f())",
            "SELECT ROW(f())",
            "SELECT (f()).x",
            "SELECT a[f()] FROM t",
            "SELECT a[1:f()] FROM t",
            "SELECT f()::text",
            "SELECT f() COLLATE \"C\"",
            "SELECT f() BETWEEN 1 AND 2",
            "SELECT 1 IN (1, f())",
            "SELECT f() IN (SELECT 1)",
            "SELECT EXISTS (SELECT f())",
            "SELECT lower(upper(f()))",
            "SELECT make_interval(days => f())",
            "SELECT concat(VARIADIC f())",
            "SELECT (f(), 1) OVERLAPS (2, 3)",
            "SELECT f() AT TIME ZONE 'UTC'",
            "SELECT EXTRACT(year FROM f())",
            "SELECT xmlelement(name a, xmlattributes(f() AS b))",
            "SELECT xmlforest(f() AS a)",
            "SELECT xmlserialize(content f() AS text)",
            "SELECT * FROM XMLTABLE('/r' PASSING f() COLUMNS id int PATH '@id')",
            "SELECT * FROM XMLTABLE('/r' PASSING d COLUMNS id int PATH '@id' DEFAULT f())",
            "SELECT * FROM XMLTABLE(XMLNAMESPACES(f() AS x), '/r' PASSING d COLUMNS id int)",
            "SELECT * FROM JSON_TABLE(f(), '$' COLUMNS (a int)) x",
            "SELECT * FROM JSON_TABLE(j, '$' PASSING f() AS y COLUMNS (a int)) x",
            "SELECT * FROM JSON_TABLE(j, '$' COLUMNS (a int DEFAULT f() ON EMPTY)) x",
            "SELECT * FROM JSON_TABLE(j, '$' COLUMNS (NESTED PATH '$' COLUMNS (a int DEFAULT f() ON ERROR))) x",
            "SELECT JSON_VALUE(f(), '$')",
            "SELECT JSON_VALUE(j, '$' DEFAULT f() ON EMPTY) FROM t",
            "SELECT JSON_OBJECT('a': f())",
            "SELECT JSON_OBJECT(f(): 1)",
            "SELECT JSON_ARRAY(f())",
            "SELECT JSON_ARRAY(SELECT f())",
            "SELECT JSON(f())",
            "SELECT JSON_SCALAR(f())",
            "SELECT JSON_SERIALIZE(f())",
            "SELECT f() IS JSON",
            "SELECT JSON_OBJECTAGG('a': f())",
            "SELECT JSON_ARRAYAGG(a ORDER BY f()) FROM t",
            "SELECT JSON_ARRAYAGG(a) FILTER (WHERE f()) FROM t",
            "SELECT * FROM t TABLESAMPLE bernoulli (f())",
            "SELECT * FROM t TABLESAMPLE system (1) REPEATABLE (f())",
            "SELECT * FROM t TABLESAMPLE tsm_system_rows (1)",
            "WITH RECURSIVE x AS (SELECT 1 a UNION ALL SELECT f() FROM x) TABLE x",
            "SELECT 1 UNION SELECT 2 UNION SELECT f()",
            "DECLARE c CURSOR FOR SELECT f()",
            "EXPLAIN SELECT f()",
            "COPY (SELECT f()) TO STDOUT",
            "SELECT 1; SELECT f(); SELECT 2",
        ],
    );
}

#[test]
fn names_that_only_look_safe() {
    check_access(
        "function",
        &[
            "SELECT myschema.lower('x')",
            "SELECT db.pg_catalog.lower('x')",
            "SELECT \"LOWER\"('x')",
            "SELECT \"pg_catalog.lower\"('x')",
            "SELECT query_to_xml('DELETE FROM t', true, true, '')",
            "SELECT * FROM ts_stat('SELECT f()')",
            "SELECT cursor_to_xml('c', 1, true, true, '')",
            "SELECT table_to_xml('t', true, true, '')",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT pg_terminate_backend(1)",
            "SELECT pg_export_snapshot()",
            "SELECT current_setting('transaction_read_only')",
            "SELECT current_setting(name) FROM t",
        ],
    );
    check_access(
        "server_state",
        &[
            "SELECT pg_is_in_recovery()",
            "SELECT pg_current_wal_lsn()",
            "SELECT pg_last_wal_replay_lsn()",
            "SELECT inet_server_addr()",
            "SELECT pg_backend_pid()",
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM pg_catalog.pg_locks",
            "SELECT * FROM pg_replication_slots",
            "SELECT * FROM pg_settings",
            "SELECT * FROM public.pg_stat_statements",
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM pg_prepared_statements)",
            "SELECT * FROM pg_sequences",
            "COPY pg_stat_database TO STDOUT",
            "SHOW transaction_read_only",
            "SHOW in_hot_standby",
            "SHOW ALL",
            "SHOW work_mem",
        ],
    );
    check_access("sequence", &["SELECT last_value FROM s", "SELECT s.is_called FROM s"]);
    check_access(
        "operator",
        &["SELECT 1 OPERATOR(my.+) 2", "SELECT a FROM t ORDER BY a USING OPERATOR(my.<)"],
    );
    check_access("temporary", &["SELECT * FROM pg_temp.t", "SELECT * FROM pg_temp_3.t"]);
}

#[test]
fn statements_that_are_not_queries() {
    check_access(
        "ddl",
        &[
            "CREATE TABLE t (a int)",
            "CREATE TABLE t AS SELECT 1",
            "CREATE INDEX CONCURRENTLY ON t (a)",
            "ALTER TABLE t ADD b int",
            "DROP TABLE t",
            "TRUNCATE t",
            "GRANT SELECT ON t TO x",
            "COMMENT ON TABLE t IS 'x'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE TEMP TABLE t (a int)",
        ],
    );
    check_access(
        "utility",
        &[
            "VACUUM",
            "ANALYZE t",
            "REINDEX TABLE t",
            "REFRESH MATERIALIZED VIEW v",
            "CHECKPOINT",
            "NOTIFY c, 'x'",
            "DO $$ BEGIN PERFORM f(); END $$",
            "CALL p(1)",
            "SET CONSTRAINTS ALL DEFERRED",
            "ALTER SYSTEM SET work_mem = '1MB'",
            "COPY t TO '/tmp/x'",
            "COPY (SELECT 1) TO PROGRAM 'cat'",
        ],
    );
    check_access("lock", &["LOCK TABLE t", "LOCK t IN ACCESS SHARE MODE"]);
    check_access(
        "transaction",
        &[
            "BEGIN",
            "START TRANSACTION READ WRITE",
            "BEGIN; SELECT 1; COMMIT",
            "SET TRANSACTION SNAPSHOT '00000003-0000001B-1'",
            "PREPARE TRANSACTION 'g'",
            "COMMIT PREPARED 'g'",
        ],
    );
    check_access(
        "serializable",
        &[
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        ],
    );
    check_access(
        "session",
        &[
            "SET search_path = a, b",
            "SET LOCAL work_mem = '1MB'",
            "RESET ALL",
            "DISCARD ALL",
            "LISTEN c",
            "UNLISTEN *",
            "PREPARE x AS SELECT 1",
            "EXECUTE x",
            "EXPLAIN EXECUTE x",
            "DEALLOCATE x",
            "LOAD 'x'",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "FETCH NEXT FROM c",
            "CLOSE c",
            "SELECT set_config('a.b', 'c', false)",
        ],
    );
}

#[test]
fn effects_on_the_session() {
    use SessionEffect as S;
    let set = |name: &str, value: &str| S::Set(name.into(), NewValue::Value(value.into()));
    let default = |name: &str| S::Set(name.into(), NewValue::Default);
    let unknown = |name: &str| S::Set(name.into(), NewValue::Unknown);
    let prepare = |name: &str, text: &str, prepared: &str| {
        let verdict = Arc::new(classify(prepared));
        S::Prepare(Arc::new(SqlPrepare { name: name.into(), text: text.into(), verdict }))
    };
    for (sql, expected) in [
        ("SELECT 1", vec![]),
        ("SET search_path = a, \"B\", \"$user\"", vec![set("search_path", "a, \"B\", \"$user\"")]),
        ("SET search_path = ''", vec![set("search_path", "\"\"")]),
        ("SET DateStyle = iso, 'MDY'", vec![set("datestyle", "iso, MDY")]),
        ("SET TIME ZONE 'UTC'", vec![set("timezone", "UTC")]),
        ("SET TIME ZONE -7.5", vec![set("timezone", "-7.5")]),
        ("SET TIME ZONE INTERVAL '1' HOUR", vec![unknown("timezone")]),
        ("SET TIME ZONE LOCAL", vec![default("timezone")]),
        ("SET NAMES 'UTF8'", vec![set("client_encoding", "UTF8")]),
        ("SET NAMES 'SJIS'", vec![unknown("client_encoding")]),
        ("SET standard_conforming_strings = off", vec![unknown("standard_conforming_strings")]),
        ("SET application_name = 'ü'", vec![unknown("application_name")]),
        ("SET SCHEMA 'a'", vec![set("search_path", "a")]),
        ("SET ROLE r", vec![set("role", "r")]),
        ("SET ROLE NONE", vec![set("role", "none")]),
        ("SET SESSION AUTHORIZATION r", vec![set("session_authorization", "r")]),
        ("SET SESSION AUTHORIZATION DEFAULT", vec![default("session_authorization")]),
        ("SET LOCAL Work_Mem = 1", vec![S::SetLocal("work_mem".into())]),
        ("SET transaction_read_only = on", vec![S::SetLocal("transaction_read_only".into())]),
        ("SET transaction_timeout = 1", vec![set("transaction_timeout", "1")]),
        ("SET geqo = false", vec![set("geqo", "false")]),
        ("SET work_mem = 64; SET work_mem = '1MB'", vec![set("work_mem", "64"), set("work_mem", "1MB")]),
        ("RESET work_mem", vec![S::Reset("work_mem".into())]),
        ("RESET ALL", vec![S::ResetAll]),
        ("SET work_mem TO DEFAULT", vec![default("work_mem")]),
        ("SELECT set_config('Search_Path', '', false)", vec![set("search_path", "")]),
        ("SELECT 1, set_config('a.b', NULL, false), now()", vec![default("a.b")]),
        ("SELECT set_config('a.b', $1, false)", vec![unknown("a.b")]),
        ("SELECT set_config($1, 'x', false)", vec![unknown("set_config")]),
        ("SELECT set_config('a.b', $1, true)", vec![S::SetLocal("a.b".into())]),
        ("SELECT set_config('a.b', 'c', $1)", vec![unknown("a.b")]),
        // It may run or not.
        ("SELECT set_config('a.b', 'c', false) WHERE $1", vec![unknown("a.b")]),
        ("SELECT set_config('a.b', 'c', false) FROM t", vec![unknown("a.b")]),
        ("SELECT CASE WHEN $1 THEN set_config('a.b', 'c', false) END", vec![unknown("a.b")]),
        ("EXPLAIN SELECT set_config('a.b', 'c', false)", vec![unknown("a.b")]),
        ("CREATE TABLE t AS SELECT set_config('a.b', 'c', false) WITH NO DATA", vec![unknown("a.b")]),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, DEFERRABLE",
            vec![
                set("default_transaction_isolation", "repeatable read"),
                set("default_transaction_read_only", "1"),
                set("default_transaction_deferrable", "1"),
            ],
        ),
        ("DISCARD ALL", vec![S::DiscardAll]),
        ("DISCARD TEMP", vec![S::DiscardTemporary]),
        ("DISCARD PLANS", vec![S::Discard]),
        ("LISTEN a; listen \"A b\"; LISTEN A", vec![S::Listen("a".into()), S::Listen("A b".into())]),
        ("UNLISTEN *", vec![S::UnlistenAll]),
        ("UNLISTEN a", vec![S::Unlisten("a".into())]),
        ("CLOSE ALL", vec![S::CloseAll]),
        ("CREATE TEMP TABLE t (a int)", vec![S::TemporaryTable("t".into())]),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS", vec![S::TemporaryTable("t".into())]),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", vec![]),
        ("CREATE TEMP SEQUENCE s", vec![S::Temporary]),
        ("CREATE TEMP VIEW v AS SELECT 1", vec![S::Temporary]),
        ("CREATE TEMP TABLE t AS SELECT 1", vec![S::TemporaryTable("t".into())]),
        ("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1", vec![]),
        ("CREATE TABLE pg_temp.t (a int)", vec![S::Temporary, S::TemporaryTable("t".into())]),
        (
            "DROP TABLE IF EXISTS t, pg_temp.u, public.v",
            vec![S::DropTable("t".into()), S::DropTemporaryTable("u".into())],
        ),
        ("DROP VIEW t", vec![]),
        ("ALTER TABLE t RENAME TO u", vec![S::RenameRelation]),
        ("ALTER INDEX t RENAME TO u", vec![S::RenameRelation]),
        ("ALTER TABLE t RENAME COLUMN a TO b", vec![]),
        ("CREATE FUNCTION PG_TEMP.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", vec![S::Temporary]),
        ("SELECT 1 INTO TEMP t", vec![S::TemporaryTable("t".into())]),
        ("PREPARE p AS SELECT 1", vec![prepare("p", "PREPARE p AS SELECT 1", "SELECT 1")]),
        (
            " SELECT 1; PREPARE \"Q é\" (int) AS DELETE FROM t WHERE id = $1 ;EXECUTE x",
            vec![
                prepare(
                    "Q é",
                    "PREPARE \"Q é\" (int) AS DELETE FROM t WHERE id = $1",
                    "DELETE FROM t WHERE id = $1",
                ),
                S::Execute("x".into()),
            ],
        ),
        ("EXECUTE p(1)", vec![S::Execute("p".into())]),
        ("DEALLOCATE p", vec![S::Deallocate("p".into())]),
        ("DEALLOCATE ALL", vec![S::DeallocateAll]),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", vec![S::DeclareHold("c".into())]),
        ("CLOSE c", vec![S::CloseCursor("c".into())]),
        ("DECLARE c CURSOR FOR SELECT 1", vec![]),
        ("SELECT pg_advisory_lock(1)", vec![S::Advisory(AdvisoryCall::Lock)]),
        (
            "SELECT pg_catalog.pg_try_advisory_lock_shared($1, 2) AS taken",
            vec![S::Advisory(AdvisoryCall::TryLock)],
        ),
        ("SELECT pg_advisory_lock(1), 1", vec![S::AdvisoryLock]),
        ("SELECT pg_advisory_lock(1) LIMIT 0", vec![S::AdvisoryLock]),
        ("SELECT pg_advisory_lock(pg_try_advisory_lock(1)::int)", vec![S::AdvisoryLock]),
        ("SELECT pg_advisory_xact_lock(1)", vec![]),
        ("SELECT pg_advisory_unlock(1)", vec![S::Advisory(AdvisoryCall::Unlock)]),
        ("SELECT pg_advisory_unlock(n) FROM t", vec![S::AdvisoryUnlock]),
        ("SELECT pg_advisory_unlock_all()", vec![S::AdvisoryUnlockAll]),
        ("UPDATE t SET a = 1 WHERE pg_try_advisory_lock(id)", vec![S::AdvisoryLock]),
        ("INSERT INTO t SELECT 1 WHERE pg_try_advisory_lock(1)", vec![S::AdvisoryLock]),
        ("CREATE TABLE t AS SELECT pg_advisory_lock(1)", vec![S::AdvisoryLock]),
        ("LOAD 'x'", vec![S::Load]),
        ("DO 'x'", vec![S::Do]),
        ("CALL p()", vec![S::Call]),
        ("SELECT setseed(0.5)", vec![S::Function("setseed".into())]),
        ("SELECT my_function()", vec![]),
    ] {
        assert_eq!(classify(sql).session, expected, "{sql}");
    }
}

#[test]
fn effects_on_the_transaction() {
    use TransactionEffect as T;
    let modes = |access, isolation| TransactionModes { access, isolation };
    let several = |ends, commits| T::Several { ends, commits };
    for (sql, expected) in [
        ("SELECT 1", T::None),
        ("BEGIN", T::Begin(modes(None, None))),
        ("BEGIN READ ONLY", T::Begin(modes(Some(TransactionAccess::ReadOnly), None))),
        ("START TRANSACTION READ WRITE", T::Begin(modes(Some(TransactionAccess::ReadWrite), None))),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            T::Begin(modes(Some(TransactionAccess::ReadOnly), Some(Isolation::Serializable))),
        ),
        ("SET TRANSACTION READ ONLY", T::SetTransaction(modes(Some(TransactionAccess::ReadOnly), None))),
        ("SET TRANSACTION SNAPSHOT 'x'", T::SetTransaction(modes(None, None))),
        ("COMMIT", T::Commit),
        ("END", T::Commit),
        ("COMMIT AND CHAIN", T::CommitAndChain),
        ("ROLLBACK", T::Rollback),
        ("ABORT AND CHAIN", T::RollbackAndChain),
        ("SAVEPOINT s", T::Savepoint("s".into())),
        ("RELEASE s", T::ReleaseSavepoint("s".into())),
        ("ROLLBACK TO s", T::RollbackToSavepoint("s".into())),
        ("PREPARE TRANSACTION 'g'", T::Prepare("g".into())),
        ("COMMIT PREPARED 'g'", T::CommitPrepared("g".into())),
        ("ROLLBACK PREPARED 'g'", T::RollbackPrepared("g".into())),
        ("BEGIN; UPDATE t SET a = 1; COMMIT", several(TransactionEnd::Idle, MayWrite::Yes)),
        ("BEGIN; SELECT 1", several(TransactionEnd::InBlock, MayWrite::No)),
        ("COMMIT; BEGIN", several(TransactionEnd::InBlock, MayWrite::Yes)),
        ("SELECT 1; ROLLBACK", several(TransactionEnd::Idle, MayWrite::No)),
        ("SAVEPOINT a; SELECT 1", several(TransactionEnd::Unchanged, MayWrite::No)),
    ] {
        assert_eq!(classify(sql).transaction, expected, "{sql}");
    }
}

#[test]
fn commits_in_doubt() {
    for (sql, expected) in [
        ("SELECT 1", false),
        ("SELECT * FROM pg_stat_activity", false),
        ("SELECT * FROM t FOR UPDATE", false),
        ("SELECT pg_advisory_lock(1)", false),
        ("SET a.b = 1", false),
        ("BEGIN", false),
        ("ROLLBACK", false),
        ("EXPLAIN DELETE FROM t", false),
        ("EXPLAIN (ANALYZE) DELETE FROM t", true),
        ("SELECT f()", true),
        ("INSERT INTO t VALUES (1)", true),
        ("WITH x AS (DELETE FROM t) SELECT 1", true),
        ("SELECT 1; DELETE FROM t", true),
        ("COMMIT", true),
        ("BEGIN; COMMIT", true),
        ("COMMIT PREPARED 'g'", true),
        ("PREPARE TRANSACTION 'g'", true),
        ("EXECUTE p", true),
        ("CALL p()", true),
        ("COPY t FROM STDIN", true),
        ("CREATE TABLE t (a int)", true),
        ("nonsense", true),
    ] {
        assert_eq!(classify(sql).commits(), expected, "{sql}");
    }
}

#[test]
fn copy_and_counts() {
    for (sql, copy, statements) in [
        ("COPY t FROM STDIN", CopyData::In, 1),
        ("COPY t FROM '/tmp/x'", CopyData::None, 1),
        ("COPY t TO STDOUT; SELECT 1", CopyData::Out, 2),
        ("COPY t TO STDOUT; COPY t FROM STDIN", CopyData::In, 2),
        ("", CopyData::None, 0),
        (";;", CopyData::None, 0),
        ("-- x", CopyData::None, 0),
    ] {
        let verdict = classify(sql);
        assert_eq!((verdict.copy, verdict.statements), (copy, statements), "{sql}");
    }
}

#[test]
fn our_own_settings() {
    let set = |scope, setting| vec![KnobCommand::Set(scope, setting)];
    for (sql, expected) in [
        ("SET bellwether.route = 'standby'", set(Scope::Session, Knob::Route(Some(Route::Standby)))),
        ("SET bellwether.route TO primary", set(Scope::Session, Knob::Route(Some(Route::Primary)))),
        ("SET LOCAL Bellwether.Route = auto", set(Scope::Local, Knob::Route(Some(Route::Auto)))),
        ("SET bellwether.route TO DEFAULT", set(Scope::Session, Knob::Route(None))),
        ("SET bellwether.min_lsn = '0/10'", set(Scope::Session, Knob::MinLsn(Some(crate::pg::Lsn(16))))),
        ("RESET bellwether.min_lsn", vec![KnobCommand::Reset(Knob::MinLsn(None))]),
        ("SHOW bellwether.lsn", vec![KnobCommand::Show(Shown::Lsn)]),
        (
            "SET bellwether.route = standby; SHOW bellwether.route",
            vec![
                KnobCommand::Set(Scope::Session, Knob::Route(Some(Route::Standby))),
                KnobCommand::Show(Shown::Route),
            ],
        ),
    ] {
        let verdict = classify(sql);
        assert_eq!(verdict.knobs, expected, "{sql}");
        assert!(verdict.is_own() && verdict.session.is_empty(), "{sql}");
    }
    for sql in [
        "SET bellwether.route = 7",
        "SET bellwether.fancy = 1",
        "SET bellwether.lsn = '0/1'",
        "SHOW bellwether.x",
    ] {
        assert!(matches!(classify(sql).knobs[..], [KnobCommand::Invalid(_)]), "{sql}");
    }
    // Beside others they reach the server, too, and it keeps them.
    let mixed = classify("SET bellwether.route = standby; SELECT 1");
    assert!(!mixed.is_own());
    assert_eq!(mixed.session, [SessionEffect::Set("bellwether".into(), NewValue::Unknown)]);
}

#[test]
fn statements_are_followed_one_by_one() {
    assert_eq!(classify("SELECT 1; SELECT 2").steps, []);
    let step = |transaction, session| Step { transaction, session };
    let set = |value: &str| SessionEffect::Set("a.b".into(), NewValue::Value(value.into()));
    assert_eq!(
        classify("SET a.b = 1; SELECT 1; SAVEPOINT s; SET a.b = 1; COMMIT").steps,
        [
            step(TransactionEffect::None, vec![set("1")]),
            Step::default(),
            step(TransactionEffect::Savepoint("s".into()), vec![]),
            step(TransactionEffect::None, vec![set("1")]),
            step(TransactionEffect::Commit, vec![]),
        ]
    );
}

#[test]
fn hints() {
    for (sql, expected) in [
        ("SELECT 1", None),
        ("/* bellwether: primary */ SELECT 1", Some(Route::Primary)),
        ("/*bellwether:standby*/SELECT 1", Some(Route::Standby)),
        ("-- x\n /* y */ /* bellwether: AUTO */ SELECT 1", Some(Route::Auto)),
        ("/* bellwether: any */ SELECT 1", None),
        ("SELECT 1 /* bellwether: primary */", None),
        ("SELECT '/* bellwether: primary */'", None),
        ("/* bellwether: primary", None),
        ("/* bellwether: standby */ nonsense", Some(Route::Standby)),
    ] {
        assert_eq!(classify(sql).hint, expected, "{sql}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        format!("SELECT {}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let deep = [
        format!("SELECT {}", "1 + ".repeat(200_000) + "1"),
        nested("(", "1", ")", 5_000),
        nested("(", "1", ")", 500_000),
        nested("lower(", "'a'", ")", 5_000),
        nested("(SELECT ", "1", ")", 50_000),
        nested("NOT ", "true", "", 200_000),
        nested("- ", "1", "", 200_000),
        nested("CASE WHEN true THEN ", "1", " END", 20_000),
        nested("ARRAY[", "1", "]", 100_000),
        nested("1::int", "", "", 1) + &"::int".repeat(200_000),
        format!("SELECT 1 {}", "UNION SELECT 1 ".repeat(50_000)),
        format!("SELECT * FROM a {}", "JOIN b ON true ".repeat(50_000)),
        format!("EXPLAIN {}", "EXPLAIN ".repeat(10_000)),
        "(".repeat(MAX_TEXT_FOR_TEST),
        format!("SELECT '{}'", "x".repeat(MAX_TEXT_FOR_TEST)),
    ];
    for sql in &deep {
        let verdict = classify(sql);
        assert!(!verdict.is_read() || sql.len() < 20_000, "{}...", &sql[..40]);
    }
    let wide = format!(
        "SELECT * FROM t WHERE a IN ({}) AND {}",
        "1, ".repeat(20_000) + "1",
        "b = 1 AND ".repeat(500) + "c"
    );
    assert!(classify(&wide).is_read(), "{:?}", classify(&wide).access);
    assert!(matches!(classify(&deep[0]).access, Access::Write { reason: WriteReason::Unparsable }));
}

const MAX_TEXT_FOR_TEST: usize = super::classify::MAX_TEXT;
