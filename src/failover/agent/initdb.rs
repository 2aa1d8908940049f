//! A new cluster: `initdb`, and the settings under which a server fits into Bellwether's cluster.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::error::AgentError;
use super::standby::edit_settings;
use super::{AUTO_CONF, LocalServer, files};
use crate::pg::settings::Change;

const INITDB_LIMIT: Duration = Duration::from_secs(180);

/// Who rules the new cluster.
#[derive(Clone)]
pub struct Superuser {
    pub name: String,
    pub password: String,
}

impl std::fmt::Debug for Superuser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Superuser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What all nodes of a cluster have in common: it lies in `postgresql.conf`, which every copy inherits.
/// `wal_log_hints` and checksums make pg_rewind possible, `wal_keep_size` leaves it the WAL back to the last
/// common checkpoint. The short timeouts are for the demo's loopback.
const SHARED_SETTINGS: &str = "
# Bellwether
wal_level = replica
max_wal_senders = 20
max_replication_slots = 20
max_connections = 200
hot_standby = on
hot_standby_feedback = on
wal_log_hints = on
wal_keep_size = 256MB
wal_retrieve_retry_interval = 500ms
wal_receiver_status_interval = 1s
wal_receiver_timeout = 10s
wal_sender_timeout = 10s
password_encryption = scram-sha-256
logging_collector = off
log_line_prefix = '%m [%p] %q%u@%d/%a '
log_replication_commands = on
";

/// Only this host, and nobody without a password.
const HBA: &str = "\
# TYPE  DATABASE     USER  ADDRESS       METHOD
host    all          all   127.0.0.1/32  scram-sha-256
host    all          all   ::1/128       scram-sha-256
host    replication  all   127.0.0.1/32  scram-sha-256
host    replication  all   ::1/128       scram-sha-256
";

impl LocalServer {
    /// Makes a new cluster in the data directory, which must be empty or absent; it appears there
    /// complete or not at all. The server listens on its address
    /// only, and on no unix socket (whose path a deep directory makes longer than the system allows).
    pub async fn init(&self, superuser: &Superuser) -> Result<(), AgentError> {
        let _lock = self.lock()?;
        if self.data_dir.exists() {
            // Only an empty directory goes.
            let removed = fs::remove_dir(&self.data_dir);
            removed.map_err(|_| AgentError::NotEmpty { data_dir: self.data_dir.clone() })?;
        }
        let making = self.beside(".new");
        files::remove_tree(&making)?;
        files::create_private_dir(&making, self.run_as.as_ref())?;
        self.initdb(&making, superuser).await?;
        self.configure(&making)?;
        Ok(files::rename(&making, &self.data_dir)?)
    }

    async fn initdb(&self, into: &Path, superuser: &Superuser) -> Result<(), AgentError> {
        let password_file = self.beside(".pw");
        files::write_durably(&password_file, superuser.password.as_bytes(), self.run_as.as_ref())?;
        let call = self.program("initdb", INITDB_LIMIT).arg("-D").arg(into);
        let call =
            call.args(["-U", &superuser.name, "-A", "scram-sha-256", "-k", "-E", "UTF8", "--no-locale"]);
        let made = call.arg("--pwfile").arg(&password_file).run().await;
        files::remove_file(&password_file)?;
        Ok(made.map(drop)?)
    }

    fn configure(&self, dir: &Path) -> Result<(), AgentError> {
        let owner = self.run_as.as_ref();
        let conf = dir.join("postgresql.conf");
        let text = files::read_or_empty(&conf)? + SHARED_SETTINGS;
        files::write_durably(&conf, text.as_bytes(), owner)?;
        files::write_durably(&dir.join("pg_hba.conf"), HBA.as_bytes(), owner)?;
        edit_settings(&dir.join(AUTO_CONF), &self.own_settings().each(), owner)
    }

    /// What differs from node to node.
    pub(super) fn own_settings(&self) -> OwnSettings<'_> {
        OwnSettings { server: self, port: self.address.port.to_string() }
    }
}

/// Owns the texts that its [`Change`]s borrow.
pub(super) struct OwnSettings<'a> {
    server: &'a LocalServer,
    port: String,
}

impl OwnSettings<'_> {
    pub(super) fn each(&self) -> [Change<'_>; 4] {
        [
            ("listen_addresses", Some(&self.server.address.host)),
            ("port", Some(&self.port)),
            ("cluster_name", Some(self.server.node.as_str())),
            ("unix_socket_directories", Some("")),
        ]
    }
}
