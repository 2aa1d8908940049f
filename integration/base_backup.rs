//! Base backups through the endpoint with stock programs, under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::ledger::Ledger;
use crate::harness::{Cluster, Durability, Options};

/// What pg_basebackup is asked for.
const WAYS: [&[&str]; 4] = [
    &["-Xstream", "-Fp", "-C", "-Snew", "-P"],
    &["-Xfetch", "-Ft", "-cfast"],
    &["-Xnone", "-Fp", "--max-rate=900M"],
    &["-Xstream", "-Ft", "-P", "-z"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_pg_basebackup() {
    let mut cluster = small();
    in_turns(&cluster, 3).await;
    a_standby_whose_start_is_gone_is_passed_over(&mut cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make soak"]
async fn stock_pg_basebackup_twenty_times() {
    in_turns(&small(), 20).await;
}

fn small() -> Cluster {
    Cluster::start(Options { nodes: 2, durability: Durability::Async, ..Options::default() })
}

/// Every copy is whole by its manifest, and a standby's work.
async fn in_turns(cluster: &Cluster, turns: usize) {
    let ledger = Ledger::start(&cluster.conninfo(), 1, 2).await;
    for (turn, way) in WAYS.iter().cycle().take(turns).enumerate() {
        let into = cluster.data().join("copy");
        // Between checkpoints of the servers' own, backups ask for theirs.
        succeeds(&basebackup(cluster, &into, way).output().expect("pg_basebackup runs"), way);
        verify(cluster, &into, way);
        assert_eq!(taken_from(cluster, "standby"), turn + 1);
        if way.contains(&"-C") {
            let slots = cluster.psql_at(&console(cluster), "SHOW SLOTS").expect("slots");
            assert!(slots.lines().any(|slot| slot.starts_with("new|")), "{slots}");
            drop_slot(cluster, "new");
        }
        fs::remove_dir_all(&into).expect("remove");
    }
    ledger.finish().await;
}

fn basebackup(cluster: &Cluster, into: &Path, way: &[&str]) -> Command {
    let mut command = cluster.program("pg_basebackup");
    command.args(way).arg("-D").arg(into).arg("-d").arg(replication(cluster)).arg("--no-sync");
    command
}

/// Through the endpoint, as the servers' own superuser.
fn replication(cluster: &Cluster) -> String {
    let password = cluster.superuser_password();
    format!("host=127.0.0.1 port={} user=bellwether password={password}", cluster.port)
}

fn console(cluster: &Cluster) -> String {
    format!("{} dbname=bellwether", replication(cluster))
}

fn drop_slot(cluster: &Cluster, slot: &str) {
    let conninfo = replication(cluster);
    let receivewal =
        cluster.program("pg_receivewal").args(["--drop-slot", "-S", slot, "-d", &conninfo]).output();
    succeeds(&receivewal.expect("pg_receivewal runs"), &["--drop-slot"]);
}

fn taken_from(cluster: &Cluster, source: &str) -> usize {
    let name = format!("bellwether_base_backups_total{{source=\"{source}\"}}");
    cluster.metric(&name).unwrap_or_default() as usize
}

fn verify(cluster: &Cluster, copy: &Path, way: &[&str]) {
    if way.contains(&"-Ft") {
        let archives: Vec<PathBuf> = ["base.tar", "base.tar.gz"].map(|name| copy.join(name)).into();
        let archive = archives.iter().find(|archive| archive.is_file()).expect("an archive");
        let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(copy).output();
        succeeds(&unpacked.expect("tar runs"), way);
        fs::remove_file(archive).expect("remove");
        for wal in ["pg_wal.tar", "pg_wal.tar.gz"].map(|name| copy.join(name)) {
            if wal.is_file() {
                let into = copy.join("pg_wal");
                let unpacked = Command::new("tar").arg("-xf").arg(&wal).arg("-C").arg(into).output();
                succeeds(&unpacked.expect("tar runs"), way);
                fs::remove_file(wal).expect("remove");
            }
        }
    }
    let mut verify = cluster.program("pg_verifybackup");
    if way.contains(&"-Xnone") {
        verify.arg("--no-parse-wal");
    }
    succeeds(&verify.arg(copy).output().expect("pg_verifybackup runs"), way);
}

fn succeeds(output: &Output, what: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what:?}: {said}");
}

/// A standby's backup begins at its last restartpoint. The relay keeps two segments here, the primary has written
/// more since, and there was no checkpoint that the standby could follow.
fn a_standby_whose_start_is_gone_is_passed_over(cluster: &mut Cluster) {
    cluster.reconfigure(|config| {
        let wal = config["wal"].as_mapping_mut().expect("a section");
        let retain = wal.entry("retain".into()).or_insert_with(|| serde_yaml::Mapping::new().into());
        retain.as_mapping_mut().expect("a section").insert("size".into(), "32MiB".into());
    });
    let superuser = cluster.direct_conninfo(&cluster.primary(), "postgres");
    let fill =
        "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1 << 20))) FROM generate_series(1, 24)";
    for _ in 0..6 {
        cluster.psql_at(&superuser, fill).expect("WAL");
        cluster.psql_at(&superuser, "SELECT pg_switch_wal()").expect("a new segment");
    }
    cluster.await_steady();
    let way = ["-Xstream", "-Fp", "-cfast"];
    let into = cluster.data().join("copy");
    succeeds(&basebackup(cluster, &into, &way).output().expect("pg_basebackup runs"), &way);
    verify(cluster, &into, &way);
    assert_eq!((taken_from(cluster, "standby"), taken_from(cluster, "primary")), (0, 1), "{}", cluster.log());

    // A request that the server does not understand is its own to refuse, and so is what follows.
    let refused = basebackup(cluster, &cluster.data().join("other"), &["-Xnone", "--manifest-checksums=MD4"]);
    let refused = { refused }.output().expect("pg_basebackup runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("unrecognized checksum algorithm"), "{said}");
}
