//! What ails a primary is told by name, with the evidence, also while nobody is promoted for it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Cluster, Disk, Fault, Options, SHORT_SILENCE, Server, bellwether, distribution_bin, eventually, pg_ctl,
    set_mode,
};

const SOON: Duration = Duration::from_secs(120);

#[test]
fn what_ails_a_primary_has_a_name() {
    let expected_warnings = &["a person is needed"];
    let mut cluster =
        Cluster::start(Options { nodes: 2, silence: SHORT_SILENCE, expected_warnings, ..Options::default() });
    let primary = cluster.primary();
    order(&cluster, "pause");

    cluster.signal_machine(&primary, Signal::SIGSTOP);
    ails(&cluster, "server_frozen", Some("automatic failover is paused"));
    let status = status(&cluster);
    assert!(status.contains("\nprimary server_frozen: the server is frozen"), "{status}");
    assert!(status.contains("\n        first-hand: its host took a bare connection"), "{status}");
    assert!(status.contains("\n        nobody is promoted: automatic failover is paused\n"), "{status}");
    cluster.signal_machine(&primary, Signal::SIGCONT);
    is_well(&cluster);

    pg_ctl(&cluster, &primary.data_dir, &["stop", "-m", "fast"]);
    ails(&cluster, "process_dead", Some("automatic failover is paused"));
    let disk = disk_under(&cluster, &primary);
    let mut server = start_on(&cluster, &primary, &disk);
    is_well(&cluster);

    disk.order(Fault::Hang { calls: "fdatasync" });
    ails(&cluster, "disk_stalled", Some("this is not enough to act on: a local commit has been hanging"));
    disk.heal();
    is_well(&cluster);

    // One of its processes dies, and all begin anew.
    let walwriter = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let walwriter =
        cluster.psql_at(&cluster.direct_conninfo(&primary, "postgres"), walwriter).expect("a pid");
    kill(Pid::from_raw(walwriter.parse().expect("a pid")), Signal::SIGKILL).expect("a walwriter");
    eventually("the restart is seen", SOON, || {
        let log = cluster.log();
        // The first one was that with the disk.
        if log.matches("rule=\"S2\"").count() >= 2 { Ok(()) } else { Err(log) }
    });
    is_well(&cluster);

    // A heartbeat has no room for its WAL: the server panics, and does so again at the end of each recovery.
    disk.order(Fault::Full { calls: "pwrite" });
    ails(&cluster, "disk_full", Some("automatic failover is paused"));
    order(&cluster, "resume");
    eventually("another primary", SOON, || {
        let now = cluster.api("/api/v1/cluster")?["directive"]["primary"].clone();
        if now.is_string() && now != primary.name.as_str() { Ok(()) } else { Err(now.to_string()) }
    });
    // It would go round for as long as the agent waits for it to stop in order.
    if cluster.pid(&primary).is_some() {
        cluster.lose_machine(&primary);
    }
    server.wait().expect("our child");
    cluster.await_steady();
    let history = cluster.api("/api/v1/history").expect("the history");
    let last = history.as_array().and_then(|all| all.last()).expect("an election");
    assert_eq!((last["rule"].as_str(), last["ailment"].as_str()), (Some("F4"), Some("disk_full")), "{last}");
    let evidence = last["evidence"].as_array().expect("a list");
    assert!(evidence.iter().all(|item| item.as_str().is_some_and(|item| item.starts_with("first-hand: "))));
    assert!(cluster.log().contains("ailment=\"disk_full\""), "the rule's line tells of it");
}

fn order(cluster: &Cluster, order: &str) {
    let (status, answer) = cluster.http("POST", &format!("/api/v1/{order}")).expect("an answer");
    assert_eq!(status, 200, "{answer}");
}

fn ails(cluster: &Cluster, name: &str, outlook: Option<&str>) {
    let mut found = serde_json::Value::Null;
    eventually(name, SOON, || {
        found = cluster.api("/api/v1/cluster")?["ailment"].clone();
        let told = found["outlook"].as_str();
        let is_it = found["name"] == name
            && outlook.is_none_or(|outlook| told.is_some_and(|told| told.starts_with(outlook)));
        if is_it { Ok(()) } else { Err(found.to_string()) }
    });
    let first = found["evidence"][0].as_str().unwrap_or_default();
    assert!(first.starts_with("first-hand: "), "{found}");
    let metric = format!("bellwether_primary_ailing{{reason=\"{name}\"}}");
    assert_eq!(cluster.metric(&metric), Some(1.0), "{name}");
}

fn is_well(cluster: &Cluster) {
    eventually("nothing ails it, and it is open", SOON, || {
        let state = cluster.api("/api/v1/cluster")?;
        let well = state["ailment"].is_null() && state["directive"]["writes"]["state"] == "open";
        if well { Ok(()) } else { Err(state.to_string()) }
    });
}

fn status(cluster: &Cluster) -> String {
    let config = cluster.data().join("bellwether.yaml");
    let output = bellwether().arg("status").arg("--config").arg(config).output().expect("it runs");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Under the server's WAL.
fn disk_under(cluster: &Cluster, server: &Server) -> Disk {
    let disk = Disk::new(cluster.dir(), server.data_dir.join("pg_wal"));
    // The server is another user.
    for directory in ["disk", "disk/kept"] {
        set_mode(&cluster.dir().join(directory), 0o777);
    }
    disk
}

/// `pg_ctl` would keep the disk for itself.
fn start_on(cluster: &Cluster, server: &Server, disk: &Disk) -> Child {
    let mut command = Command::new(distribution_bin().join("postgres"));
    command.arg("-D").arg(&server.data_dir).current_dir(Path::new("/"));
    disk.put_under(&mut command);
    cluster.run_as_server_user(&mut command);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres runs")
}
