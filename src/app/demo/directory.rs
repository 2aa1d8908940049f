//! The demo's directory: whose it is, what lies where, and what is left of it.
//!
//! ```text
//! bellwether.yaml   what the endpoint runs with
//! demo.lock         held while a demo runs on it
//! password          of Bellwether's own login; app.password: of the visitor's
//! pgpass            the first one again, for the standbys' connections to the endpoint
//! state, wal/       Bellwether's
//! pg1/ pg1.log ...  the servers'
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::preflight::{Host, PreflightError, node_ports};
use super::{APP, APP_PASSWORD, Options, SUPERUSER};
use crate::failover::agent::RunAs;
use crate::topology::Durability;

const CONFIG: &str = "bellwether.yaml";
const LOCK: &str = "demo.lock";

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("{} is not empty and holds no demo", dir.display())]
    NotADemo { dir: PathBuf },
    #[error("a demo is running in {}", dir.display())]
    InUse { dir: PathBuf },
    #[error("user {user} may not enter {}: choose another --dir", ancestor.display())]
    NoEntry { user: String, ancestor: PathBuf },
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Ports(#[from] PreflightError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    New,
    /// There was a demo in it.
    Resumed,
}

/// Whose the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Nobody named it: it goes at the end.
    Temporary,
    /// Named, and made by us.
    Made,
    /// Named, and there before.
    Found,
}

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    origin: Origin,
    start: Start,
    _lock: Flock<File>,
}

impl Directory {
    /// Makes or takes over the directory, exclusively.
    pub(super) fn open(named: Option<&Path>, run_as: Option<&RunAs>) -> Result<Directory, DirectoryError> {
        let (path, temporary) = match named {
            Some(dir) => (std::path::absolute(dir).map_err(failed("find", dir))?, None),
            None => (temporary_path(), Some(Origin::Temporary)),
        };
        let found = path.exists();
        let start = if found { what_is_in(&path)? } else { Start::New };
        if let (Some(user), Some(parent)) = (run_as, path.parent()) {
            can_enter(user, parent)?;
        }
        if !found {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(failed("create directory", parent))?;
            }
            // The servers' user passes through on the way to its data directories.
            let mode = if run_as.is_some() { 0o711 } else { 0o700 };
            DirBuilder::new().mode(mode).create(&path).map_err(failed("create directory", &path))?;
        }
        if let Some(user) = run_as {
            can_enter(user, &path)?;
        }
        let lock = lock(&path)?;
        let origin = temporary.unwrap_or(if found { Origin::Found } else { Origin::Made });
        Ok(Directory { path, origin, start, _lock: lock })
    }

    pub(super) fn start(&self) -> Start {
        self.start
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    pub(super) fn write_config(&self, options: &Options, host: &Host) -> Result<(), DirectoryError> {
        let password = format!("{:032x}", rand::random::<u128>());
        let ports = node_ports(options)?;
        self.write("password", &password, None)?;
        self.write("app.password", APP_PASSWORD, None)?;
        let login = format!("127.0.0.1:{}:*:{SUPERUSER}:{password}\n", options.port);
        self.write("pgpass", &login, host.run_as.as_ref())?;
        // Last: a directory with this file can be resumed.
        self.write(CONFIG, &config(&self.path, options, host, &ports), None)
    }

    /// Removes what is not to be kept.
    pub(super) fn close(self, keep: Keep) -> Result<(), DirectoryError> {
        let path = self.path.as_path();
        match (self.origin, keep) {
            (Origin::Temporary, _) | (Origin::Made, Keep::Nothing) => {
                remove_tree(path).map_err(failed("remove", path))
            }
            (Origin::Found, Keep::Nothing) => remove_content(path).map_err(failed("remove what is in", path)),
            (Origin::Made | Origin::Found, Keep::All) => Ok(()),
        }
    }

    fn write(&self, name: &str, content: &str, owner: Option<&RunAs>) -> Result<(), DirectoryError> {
        let path = self.path.join(name);
        let written = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(content.as_bytes())?;
            if let Some(user) = owner {
                chown(&path, Some(user.uid), Some(user.gid))?;
            }
            file.sync_all()
        };
        written().map_err(failed("write", &path))
    }
}

/// What of a named directory stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    Nothing,
}

/// The demo's `bellwether.yaml`. Strings are written as JSON's, which YAML reads.
fn config(dir: &Path, options: &Options, host: &Host, ports: &[u16]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let at = |name: &str| quoted(&dir.join(name).to_string_lossy());
    let passfile = at("pgpass");
    let bin_dir = quoted(&host.binaries.bin_dir.to_string_lossy());
    let run_as =
        host.run_as.as_ref().map(|user| format!(", run_as: {}", quoted(&user.name))).unwrap_or_default();
    let durability = match options.durability {
        Durability::Async => "async",
        Durability::Quorum => "quorum",
    };
    let mut yaml = format!(
        "# Made by `bellwether demo`.\n\
         cluster: demo\n\
         instance: demo\n\
         listen:\n  - {{address: \"127.0.0.1:{}\", route: auto}}\n\
         admin: {{address: \"127.0.0.1:{}\"}}\n\
         nodes:\n",
        options.port, options.admin_port
    );
    for (name, port) in (1..).map(|n| format!("pg{n}")).zip(ports) {
        let data_dir = at(&name);
        yaml += &format!(
            "  - name: {name}\n    address: \"127.0.0.1:{port}\"\n    \
             local: {{data_dir: {data_dir}, bin_dir: {bin_dir}, passfile: {passfile}{run_as}}}\n"
        );
    }
    yaml += &format!(
        "server_login: {{user: {SUPERUSER}, password_file: {}}}\n\
         auth:\n  method: scram-sha-256\n  users:\n    - {{name: {APP}, password_file: {}}}\n\
         wal: {{dir: {}}}\n\
         durability: {{mode: {durability}}}\n\
         # A demo's servers are there to be killed, one after the other.\n\
         failover: {{budget: {{failovers: off}}}}\n\
         state: {{file: {}}}\n",
        at("password"),
        at("app.password"),
        at("wal"),
        at("state")
    );
    yaml
}

fn what_is_in(dir: &Path) -> Result<Start, DirectoryError> {
    if dir.join(CONFIG).is_file() && dir.join(LOCK).is_file() {
        return Ok(Start::Resumed);
    }
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    // The lock alone is what a demo leaves that was killed before it had made anything.
    let foreign = entries.flatten().any(|entry| entry.file_name() != LOCK);
    if foreign { Err(DirectoryError::NotADemo { dir: dir.to_owned() }) } else { Ok(Start::New) }
}

fn lock(dir: &Path) -> Result<Flock<File>, DirectoryError> {
    let path = dir.join(LOCK);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(failed("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => DirectoryError::InUse { dir: dir.to_owned() },
        error => DirectoryError::Io { action: "lock", path, source: error.into() },
    })
}

/// PostgreSQL must reach its data directory through every directory above it.
fn can_enter(user: &RunAs, dir: &Path) -> Result<(), DirectoryError> {
    for ancestor in dir.ancestors() {
        // What is not there yet will be made, open enough.
        let Ok(metadata) = fs::metadata(ancestor) else { continue };
        let bit = match metadata {
            ref m if m.uid() == user.uid => 0o100,
            ref m if m.gid() == user.gid => 0o010,
            _ => 0o001,
        };
        if metadata.mode() & bit == 0 {
            return Err(DirectoryError::NoEntry { user: user.name.clone(), ancestor: ancestor.to_owned() });
        }
    }
    Ok(())
}

fn temporary_path() -> PathBuf {
    std::env::temp_dir().join(format!("bellwether-demo-{:08x}", rand::random::<u32>()))
}

fn remove_content(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { remove_tree(&path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

/// The thread that unpacks a base backup may still make its last file: then once more.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(dir),
        removed => removed,
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{CONFIG, Directory, DirectoryError, Keep, LOCK, Options, Start, config, what_is_in};
    use crate::app::config::{Sources, parse};
    use crate::app::demo::preflight::Host;
    use crate::failover::agent::{PgBinaries, PgVersion, RunAs};
    use crate::topology::Durability;

    struct Files;

    impl Sources for Files {
        fn file(&self, _: &Path) -> std::io::Result<String> {
            Ok("secret".to_owned())
        }
        fn env(&self, _: &str) -> Option<String> {
            None
        }
        fn command(&self, _: &str) -> std::io::Result<String> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn what_is_written_is_a_configuration() {
        let dir = Path::new("/tmp/a \"strange\" place");
        let options = Options {
            dir: None,
            nodes: 2,
            port: 6432,
            admin_port: 9632,
            pg_bin: None,
            durability: Durability::Quorum,
        };
        let binaries = PgBinaries {
            bin_dir: PathBuf::from("/pg/bin"),
            version: PgVersion { major: 15, minor: 0 },
            pg_rewind: None,
        };
        let run_as = Some(RunAs { name: "postgres".to_owned(), uid: 1, gid: 1, home: "/".into() });
        let yaml = config(dir, &options, &Host { binaries, run_as }, &[6433, 6434]);
        let (config, findings) = parse(&yaml, dir, &Files);
        assert_eq!((&findings.problems, &findings.warnings), (&vec![], &vec![]), "{yaml}");
        let config = config.unwrap();
        assert_eq!(config.durability, Durability::Quorum);
        assert_eq!(config.nodes.len(), 2);
        let local = config.nodes[1].local.as_ref().unwrap();
        assert_eq!(local.data_dir, dir.join("pg2"));
        assert_eq!(local.run_as.as_deref(), Some("postgres"));
    }

    #[test]
    fn only_empty_directories_and_demos_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(dir.path().join(name), "").unwrap();
        assert_eq!(what_is_in(dir.path()).unwrap(), Start::New);
        file(LOCK);
        assert_eq!(what_is_in(dir.path()).unwrap(), Start::New);
        file(CONFIG);
        assert_eq!(what_is_in(dir.path()).unwrap(), Start::Resumed);
        std::fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert!(matches!(what_is_in(dir.path()), Err(DirectoryError::NotADemo { .. })));
    }

    #[test]
    fn one_demo_at_a_time_and_nothing_left_of_a_failed_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("demo");
        let first = Directory::open(Some(&path), None).unwrap();
        assert!(matches!(Directory::open(Some(&path), None), Err(DirectoryError::InUse { .. })));
        first.close(Keep::Nothing).unwrap();
        assert!(!path.exists());
        let again = Directory::open(Some(&path), None).unwrap();
        again.close(Keep::All).unwrap();
        assert!(path.exists());
    }
}
