//! Stock followers of the relay that are no nodes of the cluster: pg_receivewal in its ways, a standby with a temporary
//! slot, and one below it, all of them across a switch of timelines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Cluster, Options, bellwether, eventually, free_port};

const LIMIT: Duration = Duration::from_secs(120);
const SEGMENT: &str = "SELECT pg_switch_wal() FROM pg_logical_emit_message(true, 'x', repeat('x', 1 << 20))";

#[test]
fn stock_followers_across_a_switch() {
    let cluster = Cluster::start(Options { nodes: 2, ..Options::default() });
    let (primary, standby) = (cluster.primary(), cluster.standbys().remove(0));
    receivewal_ends_where_it_is_told(&cluster);

    let archive = directory(&cluster, "archive");
    receivewal(&cluster, &["--create-slot", "-S", "archive"]).status().expect("pg_receivewal runs");
    let mut archiving = receivewal(&cluster, &["-S", "archive", "--synchronous", "-s", "1", "-D"]);
    let mut archiving = archiving.arg(&archive).spawn().expect("pg_receivewal runs");
    let temporary = NewStandby::start(
        &cluster,
        "temporary",
        cluster.port,
        "-c wal_receiver_create_temp_slot=on -c primary_slot_name=''",
    );
    let below = NewStandby::start(&cluster, "below", temporary.port, "");
    cluster.psql("CREATE TABLE t AS SELECT 1 AS n").expect("a write");
    for follower in [&temporary, &below] {
        follower.await_rows(&cluster, "1");
    }
    let slots = cluster.psql_at(&console(&cluster), "SHOW SLOTS").expect("slots");
    assert!(slots.lines().any(|slot| slot.starts_with("pg_walreceiver_")), "{slots}");

    cluster.signal(&primary, Signal::SIGKILL);
    cluster.await_primary(&standby);
    cluster.psql("INSERT INTO t VALUES (2)").expect("a write");
    for follower in [&temporary, &below] {
        follower.await_rows(&cluster, "2");
    }
    // On one connection: a stock server would have said that the slot exists, and it would have come again.
    let log = temporary.log();
    assert!(log.contains("on timeline 2"), "{log}");
    assert!(!log.contains("already exists") && !log.contains("FATAL:  could not"), "{log}");

    let promoted = cluster.direct_conninfo(&standby, "app");
    cluster.psql_at(&promoted, SEGMENT).expect("a segment");
    eventually("a whole segment of timeline 2 in the archive", LIMIT, || {
        let names = names(&archive);
        let whole = names.iter().any(|name| name.starts_with("00000002") && name.len() == 24);
        if whole && names.iter().any(|name| name == "00000002.history") {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        }
    });
    stop(&mut archiving);
    assert!(same_as_in_the_store(&cluster, &archive) > 0, "nothing was compared");
}

/// With a slot and without, synchronous and not: up to the given position, and the same bytes as in the store.
fn receivewal_ends_where_it_is_told(cluster: &Cluster) {
    let superuser = cluster.direct_conninfo(&cluster.primary(), "app");
    receivewal(cluster, &["--create-slot", "-S", "once"]).status().expect("pg_receivewal runs");
    let ways: [&[&str]; 3] = [&[], &["-S", "once"], &["-S", "once", "--synchronous"]];
    for (number, way) in ways.into_iter().enumerate() {
        let into = directory(cluster, &format!("received{number}"));
        // From where it is now: the first one begins before anything is written.
        let here = cluster.psql_at(&superuser, "SELECT pg_current_wal_flush_lsn()").expect("an LSN");
        let mut begun = receivewal(cluster, &[way, &["--no-loop", "-s", "1", "-D"]].concat());
        let mut begun =
            begun.arg(&into).arg("--endpos=FFFFFFFF/FFFFFFFF").spawn().expect("pg_receivewal runs");
        eventually("a segment begun", LIMIT, || {
            let names = names(&into);
            if names.iter().any(|name| name.ends_with(".partial")) {
                Ok(())
            } else {
                Err(format!("{here}: {names:?}"))
            }
        });
        stop(&mut begun);
        for _ in 0..2 {
            cluster.psql_at(&superuser, SEGMENT).expect("a segment");
        }
        let end = cluster.psql_at(&superuser, "SELECT pg_current_wal_flush_lsn()").expect("an LSN");
        let mut rest = receivewal(cluster, &[way, &["--no-loop", "-D"]].concat());
        let done = rest.arg(&into).arg(format!("--endpos={end}")).output().expect("pg_receivewal runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{way:?}: {said}");
        assert!(same_as_in_the_store(cluster, &into) >= 2, "{way:?}: {:?}", names(&into));
    }
    receivewal(cluster, &["--drop-slot", "-S", "once"]).status().expect("pg_receivewal runs");
}

fn receivewal(cluster: &Cluster, options: &[&str]) -> Command {
    let mut command = cluster.program("pg_receivewal");
    command.arg("-d").arg(login(cluster, cluster.port)).args(options);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn login(cluster: &Cluster, port: u16) -> String {
    format!("host=127.0.0.1 port={port} user=bellwether password={}", cluster.superuser_password())
}

fn console(cluster: &Cluster) -> String {
    format!("{} dbname=bellwether", login(cluster, cluster.port))
}

fn directory(cluster: &Cluster, name: &str) -> PathBuf {
    let directory = cluster.data().join(name);
    fs::create_dir(&directory).expect("a directory");
    directory
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").filter_map(Result::ok);
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// How many whole segments have the same bytes in both.
fn same_as_in_the_store(cluster: &Cluster, received: &Path) -> usize {
    let whole = names(received).into_iter().filter(|name| name.len() == 24);
    let same = |name: String| {
        let (ours, theirs) = (cluster.wal_dir().join(&name), received.join(&name));
        assert!(fs::read(ours).expect("in the store") == fs::read(theirs).expect("received"), "{name}");
    };
    whole.map(same).count()
}

fn stop(child: &mut Child) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("signal");
    let ended =
        eventually("its end", LIMIT, || child.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned()));
    assert!(ended.success(), "{ended}");
}

/// Made by `bellwether follower init`, of whoever listens on a port.
struct NewStandby {
    port: u16,
    data_dir: PathBuf,
}

impl NewStandby {
    fn start(cluster: &Cluster, name: &str, upstream: u16, options: &str) -> NewStandby {
        let standby = NewStandby { port: free_port(), data_dir: cluster.data().join(name) };
        let endpoint = format!("{} application_name={name}", login(cluster, upstream));
        let mut init = bellwether();
        init.args(["follower", "init", "--endpoint", &endpoint, "--data-dir"]).arg(&standby.data_dir);
        let made = init.output().expect("bellwether runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let options = format!("-p {} -c unix_socket_directories='' {options}", standby.port);
        let mut start = cluster.program("pg_ctl");
        start.args(["start", "--wait", "-o", &options, "-D"]).arg(&standby.data_dir);
        start.arg("-l").arg(standby.data_dir.join("log"));
        cluster.run_as_server_user(&mut start);
        let started = start.current_dir("/").stdout(Stdio::null()).status().expect("pg_ctl runs");
        assert!(started.success(), "{}", standby.log());
        standby
    }

    fn log(&self) -> String {
        fs::read_to_string(self.data_dir.join("log")).unwrap_or_default()
    }

    fn await_rows(&self, cluster: &Cluster, count: &str) {
        let conninfo = format!("{} dbname=app", login(cluster, self.port));
        eventually("the rows", LIMIT, || {
            let rows = cluster.psql_at(&conninfo, "SELECT count(*) FROM t")?;
            if rows == count { Ok(()) } else { Err(self.log()) }
        });
    }
}
