//! Running PostgreSQL's programs: as the right user, in a known environment, within a time limit, and with
//! what they said kept for the error.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::user::RunAs;

/// The last of a program's output that is kept, per stream, in bytes; what came before is dropped.
const KEPT_OUTPUT: usize = 16 * 1024;

/// libpq's and PostgreSQL's own: what our caller's environment says is not meant for the servers that we run.
const FOREIGN_ENVIRONMENT: [&str; 24] = [
    "PGDATA",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGSSLMODE",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLSNI",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGREQUIREAUTH",
];

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("start {program}")]
    NotStarted {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{program} was not done within {limit:?}")]
    TimedOut { program: PathBuf, limit: Duration },
    #[error("{program} failed ({status}): {output}")]
    Failed { program: PathBuf, status: ExitStatus, output: String },
    #[error("read what {program} says")]
    Output {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One call of a program.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    command: Command,
    limit: Duration,
}

impl Program {
    pub(super) fn new(path: &Path, limit: Duration) -> Program {
        let mut command = Command::new(path);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A directory that every user may enter.
            .current_dir("/")
            .env("LC_ALL", "C")
            // Ctrl-C at our terminal is for us to handle, not for a half-done initdb.
            .process_group(0)
            .kill_on_drop(true);
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        Program { path: path.to_owned(), command, limit }
    }

    pub(super) fn arg(mut self, arg: impl AsRef<OsStr>) -> Program {
        self.command.arg(arg);
        self
    }

    pub(super) fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Program {
        self.command.args(args.into_iter().map(Into::into));
        self
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Program {
        self.command.env(name, value);
        self
    }

    /// The standard library drops root's supplementary groups together with its uid. The environment is the user's,
    /// too: a walreceiver that may not look into our home for a certificate takes that for an error, and goes on
    /// without TLS where it may (`initialize_SSL` in fe-secure-openssl.c).
    pub(super) fn run_as(mut self, user: Option<&RunAs>) -> Program {
        if let Some(user) = user {
            self.command.uid(user.uid).gid(user.gid);
            self.command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
        }
        self
    }

    /// Its standard output, when it succeeds. Beyond the limit the program is killed.
    pub(super) async fn run(self) -> Result<String, ProgramError> {
        let Program { path, command, limit } = self;
        match tokio::time::timeout(limit, run_to_end(&path, command)).await {
            Ok(done) => done,
            Err(_elapsed) => Err(ProgramError::TimedOut { program: path, limit }),
        }
    }
}

async fn run_to_end(path: &Path, mut command: Command) -> Result<String, ProgramError> {
    let program = || path.to_owned();
    let mut child =
        command.spawn().map_err(|source| ProgramError::NotStarted { program: program(), source })?;
    let stdout = tail(child.stdout.take());
    let stderr = tail(child.stderr.take());
    let (stdout, stderr, status) = tokio::try_join!(stdout, stderr, child.wait())
        .map_err(|source| ProgramError::Output { program: program(), source })?;
    if status.success() {
        return Ok(stdout);
    }
    let output = if stderr.trim().is_empty() { stdout } else { stderr };
    Err(ProgramError::Failed { program: program(), status, output: output.trim().to_owned() })
}

/// Reads to the end, keeps the last [`KEPT_OUTPUT`] bytes.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut from) = from else { return Ok(String::new()) };
    let mut kept = Vec::new();
    let mut chunk = vec![0; 4096];
    loop {
        let n = from.read(&mut chunk).await?;
        if n == 0 {
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        kept.extend_from_slice(&chunk[..n]);
        let excess = kept.len().saturating_sub(KEPT_OUTPUT);
        kept.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use nix::unistd::{Gid, Uid};

    use super::{Program, RunAs};

    #[tokio::test]
    async fn the_environment_is_the_users() {
        let user = RunAs {
            name: "joe".to_owned(),
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            home: "/somewhere".into(),
        };
        let program = Program::new(Path::new("/bin/sh"), Duration::from_secs(60));
        let program = program.run_as(Some(&user));
        let said = program.args(["-c", "echo $HOME $USER $LOGNAME"]).run().await.expect("it runs");
        assert_eq!(said.trim(), "/somewhere joe joe");
    }
}
