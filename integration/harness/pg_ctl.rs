//! A server stopped and started past Bellwether, as an operator or an init script would.

use std::path::Path;
use std::process::{Command, Stdio};

use super::cluster::{Cluster, Server, distribution_bin};

/// `pg_ctl ARGUMENTS` as the server's user, once it has done what was asked.
pub(crate) fn pg_ctl(cluster: &Cluster, data_dir: &Path, arguments: &[&str]) {
    run(cluster, data_dir, &data_dir.join("server.log"), arguments);
}

/// Stopped in this mode, and started as it was before; it goes on with its own log.
pub(crate) fn restart(cluster: &Cluster, server: &Server, mode: &str) {
    let log = server.data_dir.with_file_name(format!("{}.log", server.name));
    run(cluster, &server.data_dir, &log, &["restart", "-m", mode]);
}

fn run(cluster: &Cluster, data_dir: &Path, log: &Path, arguments: &[&str]) {
    let mut command = Command::new(distribution_bin().join("pg_ctl"));
    command.args(arguments).arg("--wait").arg("-D").arg(data_dir).arg("-l").arg(log);
    cluster.run_as_server_user(&mut command);
    let status = command.current_dir("/").stdout(Stdio::null()).status().expect("pg_ctl runs");
    assert!(status.success(), "{command:?}: {status}");
}
