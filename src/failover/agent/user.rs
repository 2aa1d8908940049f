//! Whom the servers run as: PostgreSQL refuses to run as root.

use std::path::PathBuf;

use nix::unistd::{Uid, User};

/// Tried in turn when we are root and nobody was named.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// The unprivileged user that owns the servers' files and processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Where libpq looks for certificates and passwords on the server's behalf.
    pub home: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum RunAsError {
    #[error("there is no user {name:?} to run PostgreSQL as")]
    Unknown { name: String },
    #[error("PostgreSQL cannot be run as root, and there is no user \"postgres\" or \"nobody\"")]
    Nobody,
    #[error("PostgreSQL cannot be run as root")]
    Root,
    #[error("only root can run PostgreSQL as another user ({name:?})")]
    NotRoot { name: String },
    #[error("look up user {name:?}")]
    Lookup {
        name: String,
        #[source]
        source: nix::Error,
    },
}

impl RunAs {
    /// `None`: as ourselves. Somebody else can be named by root only; root that names nobody gets an
    /// unprivileged user of the system.
    pub fn resolve(name: Option<&str>) -> Result<Option<RunAs>, RunAsError> {
        let me = Uid::effective();
        match name {
            None if !me.is_root() => Ok(None),
            None => {
                let found = UNPRIVILEGED.into_iter().find_map(|name| lookup(name).transpose()).transpose()?;
                found.map(Some).ok_or(RunAsError::Nobody)
            }
            Some(name) => {
                let user = lookup(name)?.ok_or_else(|| RunAsError::Unknown { name: name.to_owned() })?;
                if user.uid == 0 {
                    Err(RunAsError::Root)
                } else if user.uid == me.as_raw() {
                    Ok(None)
                } else if me.is_root() {
                    Ok(Some(user))
                } else {
                    Err(RunAsError::NotRoot { name: name.to_owned() })
                }
            }
        }
    }
}

fn lookup(name: &str) -> Result<Option<RunAs>, RunAsError> {
    let user =
        User::from_name(name).map_err(|source| RunAsError::Lookup { name: name.to_owned(), source })?;
    let run_as = |user: User| RunAs {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir,
    };
    Ok(user.map(run_as))
}
