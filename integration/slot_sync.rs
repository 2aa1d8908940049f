//! Logical slots that PostgreSQL 17 and later keep on standbys: synchronised through the endpoint, as if it were the
//! primary, and still there when a standby has become one.

use std::fs;
use std::io::Write;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Cluster, Durability, Options, eventually, second_major};

const LIMIT: Duration = Duration::from_secs(120);
const TAKE: &str = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('consumer', NULL, NULL, \
                    'proto_version', '1', 'publication_names', 'everything')";

#[test]
fn a_logical_consumer_goes_on_behind_a_failover() {
    let binaries = second_major();
    let options = Options {
        nodes: 2,
        durability: Durability::Quorum,
        pg_bin: Some(binaries.bin()),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options);
    cluster.interrupt_bellwether();
    for server in cluster.servers() {
        let conf = server.data_dir.join("postgresql.conf");
        let mut conf = fs::File::options().append(true).open(conf).expect("postgresql.conf");
        conf.write_all(b"wal_level = logical\nsync_replication_slots = on\n").expect("write");
    }
    cluster.start_bellwether();
    cluster.await_steady();

    let (primary, standby) = (cluster.primary(), cluster.standbys().remove(0));
    let endpoint = superuser(&cluster);
    let ask = |sql: &str| cluster.psql_at(&endpoint, sql);
    ask("CREATE TABLE t (n int PRIMARY KEY)").expect("create");
    ask("CREATE PUBLICATION everything FOR ALL TABLES").expect("publication");
    ask("SELECT pg_create_logical_replication_slot('consumer', 'pgoutput', false, false, true)")
        .expect("slot");
    let at_standby = cluster.direct_conninfo(&standby, "app");
    eventually("the slot at the standby", LIMIT, || {
        // A slot that nobody reads from does not come to where the standby can keep it.
        ask("SELECT pg_log_standby_snapshot()")?;
        ask(TAKE)?;
        let slots = cluster.psql_at(
            &at_standby,
            "SELECT slot_name FROM pg_replication_slots WHERE synced AND NOT temporary",
        )?;
        let log = || fs::read_to_string(standby.data_dir.with_file_name(format!("{}.log", standby.name)));
        if slots == "consumer" { Ok(()) } else { Err(log().unwrap_or_default()) }
    });

    ask("INSERT INTO t VALUES (1)").expect("insert");
    cluster.signal(&primary, Signal::SIGKILL);
    cluster.await_primary(&standby);
    let taken = ask(TAKE).expect("changes");
    // Begin, the table's description, the row, commit; what was taken shortly before may come again.
    assert!(taken.parse::<u32>().is_ok_and(|changes| 4 <= changes), "{taken}");
}

fn superuser(cluster: &Cluster) -> String {
    let (port, password) = (cluster.port, cluster.superuser_password());
    format!("host=127.0.0.1 port={port} user=bellwether password={password} dbname=app")
}
