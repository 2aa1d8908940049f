//! What can be wrong with the primary: it is away for long, dies in the middle of a record, or is not the one it was.
//!
//! One cluster, whose primary nobody replaces.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::wal::compare_with_primary;
use crate::harness::{Cluster, Durability, Options, Server, eventually, pg_ctl};

const LIMIT: Duration = Duration::from_secs(120);

fn on(cluster: &Cluster, server: &Server, statement: &str) -> String {
    let done = cluster.psql_at(&cluster.direct_conninfo(server, "postgres"), statement);
    done.unwrap_or_else(|error| panic!("{statement}: {error}"))
}

fn durable(cluster: &Cluster) -> f64 {
    cluster.metric("bellwether_wal_durable_lsn_bytes").expect("a metric")
}

fn await_replayed(cluster: &Cluster, primary: &Server, standby: &Server) {
    let end: u64 = on(cluster, primary, "SELECT pg_current_wal_flush_lsn() - '0/0'").parse().expect("an LSN");
    eventually("the standby is where the primary is", LIMIT, || {
        let replayed = "SELECT coalesce(pg_last_wal_replay_lsn() - '0/0', 0)";
        let replayed: u64 = on(cluster, standby, replayed).parse().expect("an LSN");
        if replayed >= end { Ok(()) } else { Err(format!("{replayed} of {end}")) }
    });
}

#[test]
fn a_primary_that_is_away_dies_in_a_record_or_is_another_one() {
    let mut cluster = Cluster::start(Options {
        nodes: 2,
        durability: Durability::Async,
        expected_warnings: &["a person is needed", "split brain"],
        ..Options::default()
    });
    cluster.rewrite(|config| config["failover"]["mode"] = "manual".into());
    cluster.run_as_service();
    let (primary, standby) = (cluster.primary(), cluster.standbys().remove(0));
    on(&cluster, &standby, "ALTER SYSTEM SET wal_receiver_timeout = '6s'");
    on(&cluster, &standby, "SELECT pg_reload_conf()");

    overwritten_record(&cluster, &primary, &standby);
    pg_ctl(&cluster, &primary.data_dir, &["stop", "-m", "fast"]);
    silence(&cluster, &standby);
    diverged_clone(&cluster, &primary);

    await_replayed(&cluster, &primary, &standby);
    compare_with_primary(&cluster, &primary);
}

/// Pitfall 12. What was begun of a record is overwritten after the crash (XLOG_OVERWRITE_CONTRECORD).
fn overwritten_record(cluster: &Cluster, primary: &Server, standby: &Server) {
    for _ in 0..5 {
        let before = durable(cluster);
        let start = on(cluster, primary, "SELECT pg_current_wal_lsn()");
        let mut writer = cluster
            .program("psql")
            .args(["-X", "-q", "-d", &cluster.direct_conninfo(primary, "postgres"), "-c"])
            .arg("SELECT length(pg_logical_emit_message(false, 'x', repeat('x', 256000000))::text)")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql runs");
        eventually("a part of the record is here", LIMIT, || {
            let came = durable(cluster) - before;
            if came > 20e6 { Ok(()) } else { Err(format!("{came} bytes")) }
        });
        cluster.lose_machine(primary);
        writer.wait().expect("psql ends");
        fs::remove_file(primary.data_dir.join("postmaster.pid")).expect("postmaster.pid");
        pg_ctl(cluster, &primary.data_dir, &["start"]);
        on(cluster, primary, "SELECT pg_logical_emit_message(true, 'x', 'behind it')");
        await_replayed(cluster, primary, standby);
        let end = on(cluster, primary, "SELECT pg_current_wal_flush_lsn()");
        compare_with_primary(cluster, primary);
        let mut waldump = cluster.program("pg_waldump");
        waldump.arg("-p").arg(cluster.wal_dir()).args(["-r", "XLOG", "-s", &start, "-e", &end]);
        let records = waldump.output().expect("pg_waldump runs").stdout;
        if String::from_utf8_lossy(&records).contains("OVERWRITE_CONTRECORD") {
            return;
        }
    }
    panic!("five crashes, and none in the middle of a record");
}

/// Pitfall 14. Nobody's connection times out over a primary that is away.
fn silence(cluster: &Cluster, standby: &Server) {
    let walreceiver = || on(cluster, standby, "SELECT pid FROM pg_stat_wal_receiver");
    let before = walreceiver();
    assert_ne!(before, "");
    let begin = on(cluster, standby, "SELECT clock_timestamp()");
    // Three times its wal_receiver_timeout.
    let heard =
        format!("SELECT last_msg_receipt_time > '{begin}'::timestamptz + '18s' FROM pg_stat_wal_receiver");
    eventually("it hears from the relay all the time", LIMIT, || {
        assert_eq!(walreceiver(), before);
        let heard = on(cluster, standby, &heard);
        if heard == "t" { Ok(()) } else { Err(heard) }
    });
    assert_eq!(walreceiver(), before);
}

/// Pitfall 10. A copy of the primary, as old as its last stop, comes up in its place and writes other WAL.
fn diverged_clone(cluster: &Cluster, primary: &Server) {
    let clone = cluster.data().join("clone");
    let mut copy = Command::new("cp");
    assert!(copy.arg("-a").arg(&primary.data_dir).arg(&clone).status().expect("cp runs").success());
    pg_ctl(cluster, &primary.data_dir, &["start"]);
    on(cluster, primary, "SELECT pg_logical_emit_message(true, 'x', 'the true history')");
    compare_with_primary(cluster, primary);
    cluster.lose_machine(primary);

    pg_ctl(cluster, &clone, &["start"]);
    let held = durable(cluster);
    on(cluster, primary, "SELECT pg_logical_emit_message(true, 'x', repeat('y', 300000))");
    eventually("the alarm", LIMIT, || {
        let alarm = cluster.api("/api/v1/cluster")?["wal"]["alarm"].clone();
        let said = alarm.as_str().is_some_and(|alarm| alarm.starts_with("split brain: pg1 has other WAL at"));
        let shown = cluster.metric("bellwether_wal_divergence") == Some(1.0);
        if said && shown { Ok(()) } else { Err(alarm.to_string()) }
    });
    assert!(durable(cluster) <= held, "nothing of the clone's is taken");
    pg_ctl(cluster, &clone, &["stop", "-m", "immediate"]);

    fs::remove_file(primary.data_dir.join("postmaster.pid")).expect("postmaster.pid");
    pg_ctl(cluster, &primary.data_dir, &["start"]);
    on(cluster, primary, "SELECT pg_logical_emit_message(true, 'x', 'the true history goes on')");
    eventually("the alarm is over", LIMIT, || {
        let alarm = cluster.api("/api/v1/cluster")?["wal"]["alarm"].clone();
        if alarm.is_null() { Ok(()) } else { Err(alarm.to_string()) }
    });
}
