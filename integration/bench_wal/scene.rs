//! A primary behind Bellwether, with no standby that Bellwether knows of, and what is set up beside it.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

use super::harness::{Cluster, Durability, LoneServer, Options, Server, eventually};

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) primary: Server,
    /// A superuser's session at the primary that waits for no standby.
    pub(crate) sql: Sql,
}

/// The records that the log is filled with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Records {
    /// 128 KiB each, as large as nothing but large values makes them: the byte counts.
    Large,
    /// Rows of a table, about 100 B each: the record counts.
    Small,
}

impl Scene {
    pub(crate) fn start(durability: Durability) -> Scene {
        let cluster = Cluster::start(Options {
            nodes: 1,
            durability,
            // A process that is stopped and continued misses its turns.
            expected_warnings: &[" WARN "],
            ..Options::default()
        });
        let primary = cluster.primary();
        let sql = Sql::connect(&cluster.direct_conninfo(&primary, "postgres"));
        sql.run("ALTER SYSTEM SET wal_keep_size = '2GB'");
        sql.run("ALTER SYSTEM SET max_wal_size = '4GB'");
        // Whoever is stopped for a while stays connected.
        sql.run("ALTER SYSTEM SET wal_sender_timeout = 0");
        sql.run("SELECT pg_reload_conf()");
        sql.run("SET synchronous_commit = local");
        sql.run("CREATE TABLE filler (a int, b text)");
        Scene { cluster, primary, sql }
    }

    /// What connects the cluster's own login to a server or endpoint of this host.
    pub(crate) fn conninfo(&self, port: u16) -> String {
        let password = self.cluster.superuser_password();
        format!("host=127.0.0.1 port={port} user=bellwether password={password}")
    }

    pub(crate) fn bellwether(&self) -> u32 {
        self.cluster.bellwether_pid()
    }

    pub(crate) fn postmaster(&self) -> u32 {
        u32::try_from(self.cluster.pid(&self.primary).expect("a running primary").as_raw()).expect("a pid")
    }

    /// A standby that nobody but its upstream at `port` knows of, and a session at it.
    pub(crate) fn standby(&self, name: &str, port: u16) -> (LoneServer, Sql) {
        let server = self.copy(name);
        server.become_standby();
        let settings = format!(
            "primary_conninfo = '{} application_name={name}'\nwal_keep_size = 0\nmin_wal_size = 2GB\n\
             max_wal_size = 4GB\nwal_receiver_timeout = 0\n",
            self.conninfo(port)
        );
        server.start(&self.cluster, &settings);
        let sql = Sql::connect(&format!("{} dbname=postgres", self.conninfo(server.port)));
        eventually("the standby streams", Duration::from_secs(60), || {
            let streams = sql.number("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'");
            if streams == 1 { Ok(()) } else { Err(server.log()) }
        });
        (server, sql)
    }

    pub(crate) fn copy(&self, name: &str) -> LoneServer {
        LoneServer::copy(&self.cluster, name, &self.conninfo(self.primary.port))
    }

    /// Writes about so much WAL; where it begins and ends.
    pub(crate) fn write_wal(&self, records: Records, mebibytes: u64) -> (u64, u64) {
        let start = self.end();
        match records {
            Records::Large => self.sql.run(&format!(
                "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 4096))) \
                 FROM generate_series(1, {}) i",
                mebibytes * 8
            )),
            Records::Small => {
                self.sql.run("TRUNCATE filler");
                let rows = mebibytes * 10_000;
                self.sql.run(&format!(
                    "INSERT INTO filler SELECT i, md5(i::text) FROM generate_series(1, {rows}) i"
                ));
            }
        }
        (start, self.end())
    }

    pub(crate) fn initialise_pgbench(&self) {
        let mut pgbench = self.cluster.program("pgbench");
        pgbench.args(["-i", "-q", "-s", "10"]);
        let conninfo = format!("{} dbname=postgres", self.conninfo(self.primary.port));
        let output = pgbench.arg(conninfo).output().expect("pgbench");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Of the primary's WAL, all of it flushed.
    pub(crate) fn end(&self) -> u64 {
        // A commit flushes what is before it.
        self.sql.run("SELECT pg_logical_emit_message(true, 'filler', '')");
        self.sql.position("pg_current_wal_flush_lsn()")
    }
}

/// A session for one question at a time.
pub(crate) struct Sql {
    runtime: Runtime,
    client: Client,
}

impl Sql {
    pub(crate) fn connect(conninfo: &str) -> Sql {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let connecting = tokio_postgres::connect(conninfo, NoTls);
        let (client, connection) = runtime.block_on(connecting).expect("a connection");
        // It runs whenever an answer is waited for.
        runtime.spawn(connection);
        Sql { runtime, client }
    }

    pub(crate) fn run(&self, text: &str) {
        self.runtime.block_on(self.client.batch_execute(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
    }

    pub(crate) fn prepare(&self, text: &str) -> Statement {
        self.runtime.block_on(self.client.prepare(text)).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// The first column of the only row.
    pub(crate) fn ask(&self, statement: &Statement, values: &[&(dyn ToSql + Sync)]) -> Option<i64> {
        self.runtime.block_on(self.client.query_opt(statement, values)).expect("an answer")?.get(0)
    }

    pub(crate) fn number(&self, text: &str) -> i64 {
        self.ask(&self.prepare(text), &[]).expect("a number")
    }

    /// An LSN as a number.
    pub(crate) fn position(&self, expression: &str) -> u64 {
        u64::try_from(self.number(&format!("SELECT ({expression} - '0/0')::int8"))).expect("a position")
    }

    /// Waits until an LSN has come to `end`.
    pub(crate) fn await_position(&self, expression: &str, end: u64) {
        let statement = self.prepare(&format!("SELECT ({expression} - '0/0')::int8"));
        eventually(expression, Duration::from_secs(120), || {
            let now = self.ask(&statement, &[]).unwrap_or_default();
            if now >= i64::try_from(end).expect("a position") { Ok(()) } else { Err(format!("{now}")) }
        });
    }
}
