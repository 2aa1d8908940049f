//! `pg_receivewal --synchronous`, as people run it: with a slot, which lives as long as it does.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::scene::Scene;

pub(crate) struct ReceiveWal {
    child: Child,
    directory: PathBuf,
}

impl ReceiveWal {
    pub(crate) fn start(scene: &Scene, port: u16) -> ReceiveWal {
        let directory = scene.cluster.data().join(format!("receivewal-{port}"));
        std::fs::create_dir_all(&directory).expect("directory");
        let conninfo = scene.conninfo(port);
        let create = "CREATE_REPLICATION_SLOT receivewal PHYSICAL RESERVE_WAL";
        scene.cluster.psql_at(&format!("{conninfo} replication=true"), create).expect("a slot");
        let mut command = scene.cluster.program("pg_receivewal");
        command.args(["--synchronous", "--slot=receivewal", "-d", &conninfo, "-D"]).arg(&directory);
        let child = command.stderr(Stdio::null()).spawn().expect("pg_receivewal");
        ReceiveWal { child, directory }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is finished goes.
    pub(crate) fn tidy(&self) {
        for entry in std::fs::read_dir(&self.directory).expect("directory").filter_map(Result::ok) {
            if !entry.file_name().to_string_lossy().ends_with(".partial") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for ReceiveWal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
