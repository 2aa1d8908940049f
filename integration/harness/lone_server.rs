//! A server of its own beside a cluster: another system identifier, or a copy that the cluster does not know of;
//! whatever settings a test wants.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::Command;

use super::cluster::{Cluster, distribution_bin};
use super::port::free_port;

/// Lies in the cluster's directory and goes with it.
pub(crate) struct LoneServer {
    pub(crate) port: u16,
    data_dir: PathBuf,
}

impl LoneServer {
    /// Made by initdb; lets everybody on this host in. Not started.
    pub(crate) fn init(cluster: &Cluster, name: &str) -> LoneServer {
        LoneServer::init_with(cluster, name, &[])
    }

    /// With these options of initdb.
    pub(crate) fn init_with(cluster: &Cluster, name: &str, options: &[&str]) -> LoneServer {
        let data_dir = cluster.data().join(name);
        fs::create_dir(&data_dir).expect("data directory");
        let owner = fs::metadata(&cluster.servers()[0].data_dir).expect("data directory");
        chown(&data_dir, Some(owner.uid()), Some(owner.gid())).expect("owner");
        let server = LoneServer { port: free_port(), data_dir };
        let mut initdb = Command::new(distribution_bin().join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "-D"]).arg(&server.data_dir);
        initdb.args(options);
        server.run(cluster, &mut initdb);
        server
    }

    /// Made by pg_basebackup from `conninfo`, without what ALTER SYSTEM has set there. Not started.
    pub(crate) fn copy(cluster: &Cluster, name: &str, conninfo: &str) -> LoneServer {
        let server = LoneServer { port: free_port(), data_dir: cluster.data().join(name) };
        let mut backup = Command::new(distribution_bin().join("pg_basebackup"));
        backup.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync", "-d", conninfo, "-D"]);
        // The cluster's directory is not the servers' user's to write in.
        let status = backup.arg(&server.data_dir).status().expect("pg_basebackup");
        assert!(status.success(), "pg_basebackup: {status}");
        let owner = fs::metadata(&cluster.servers()[0].data_dir).expect("data directory");
        let mut chown = Command::new("chown");
        chown.arg("-R").arg(format!("{}:{}", owner.uid(), owner.gid())).arg(&server.data_dir);
        assert!(chown.status().expect("chown").success());
        fs::write(server.data_dir.join("postgresql.auto.conf"), "").expect("postgresql.auto.conf");
        server
    }

    /// Starts it with `settings` (lines of `postgresql.conf`) and waits until it answers.
    pub(crate) fn start(&self, cluster: &Cluster, settings: &str) {
        let file = self.data_dir.join("postgresql.conf");
        let conf = fs::read_to_string(&file).expect("postgresql.conf");
        let address =
            format!("port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n", self.port);
        fs::write(&file, conf + &address + settings).expect("postgresql.conf");
        let mut start = Command::new(distribution_bin().join("pg_ctl"));
        start.args(["start", "--wait", "-D"]).arg(&self.data_dir).arg("-l").arg(self.log_path());
        self.run(cluster, &mut start);
    }

    pub(crate) fn stop(&self, cluster: &Cluster) {
        let mut stop = Command::new(distribution_bin().join("pg_ctl"));
        stop.args(["stop", "--wait", "--mode=fast", "-D"]).arg(&self.data_dir);
        self.run(cluster, &mut stop);
    }

    pub(crate) fn become_standby(&self) {
        fs::write(self.data_dir.join("standby.signal"), "").expect("standby.signal");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.data_dir.join("server.log")
    }

    fn run(&self, cluster: &Cluster, command: &mut Command) {
        cluster.run_as_server_user(command);
        let status = command.current_dir("/").stdout(std::process::Stdio::null()).status().expect("starts");
        assert!(status.success(), "{command:?}: {status}\n{}", self.log());
    }
}
