//! Secrets: by `password_file`, `password_env`, `password_command`; plain `password` works, with a warning.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::reader::Section;
use super::units::{path, text};

/// Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(secret: impl Into<Arc<str>>) -> Secret {
        Secret(secret.into())
    }

    pub fn reveal(&self) -> &Arc<str> {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where secrets come from; an argument, so that reading a configuration is otherwise a function of its text.
pub trait Sources {
    fn file(&self, path: &Path) -> io::Result<String>;
    fn env(&self, name: &str) -> Option<String>;
    /// What `sh -c` prints.
    fn command(&self, command: &str) -> io::Result<String>;
}

/// This machine's files, environment and commands. Relative paths start at the configuration's directory.
#[derive(Clone, Debug)]
pub struct System {
    pub directory: PathBuf,
}

/// A command that has not answered by then has failed.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// More than any secret or list of them; what is longer is an error.
const SECRET_LIMIT: u64 = 16 << 20;

impl Sources for System {
    fn file(&self, path: &Path) -> io::Result<String> {
        let mut secret = String::new();
        let file = std::fs::File::open(self.directory.join(path))?;
        let read = file.take(SECRET_LIMIT + 1).read_to_string(&mut secret)?;
        if read as u64 > SECRET_LIMIT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(secret) }
    }

    #[expect(clippy::disallowed_methods, reason = "shell: the environment is one of the sources of secrets")]
    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn command(&self, command: &str) -> io::Result<String> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("its standard output was asked for as a pipe");
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        // Not joined: a grandchild that keeps the pipe open must not keep us.
        std::thread::Builder::new().name("secret".to_owned()).spawn(move || {
            let mut secret = String::new();
            let read = stdout.take(SECRET_LIMIT).read_to_string(&mut secret);
            let _ = sender.send(read.map(|_| secret));
        })?;
        let Ok(printed) = receiver.recv_timeout(COMMAND_LIMIT) else {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("did not answer within {COMMAND_LIMIT:?}")));
        };
        let status = child.wait()?;
        if status.success() { printed } else { Err(io::Error::other(format!("ended with {status}"))) }
    }
}

/// The keys of one secret in a section.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecretKeys {
    pub(super) plain: &'static str,
    pub(super) file: &'static str,
    pub(super) env: &'static str,
    pub(super) command: &'static str,
}

pub(super) const PASSWORD: SecretKeys =
    SecretKeys { plain: "password", file: "password_file", env: "password_env", command: "password_command" };

/// The secret under whichever of `keys` is there. `None`: none is, or it cannot be had, which is reported.
pub(super) fn read(section: &mut Section<'_>, keys: SecretKeys, sources: &dyn Sources) -> Option<Secret> {
    let plain = section.optional(keys.plain, text);
    if plain.is_some() {
        let instead = [keys.file, keys.env, keys.command].join(", ");
        section.warning(keys.plain, format!("is in plain text; there are {instead}"));
    }
    let file = section.optional(keys.file, |value| {
        let path = path(value)?;
        sources.file(&path).map_err(|error| format!("{}: {error}", path.display()))
    });
    let env = section.optional(keys.env, |value| {
        let name = text(value)?;
        sources.env(&name).ok_or_else(|| format!("the environment has no {name}"))
    });
    let command = section
        .optional(keys.command, |value| sources.command(&text(value)?).map_err(|error| error.to_string()));
    let all_keys = [keys.plain, keys.file, keys.env, keys.command];
    let given: Vec<&str> = all_keys.into_iter().filter(|key| section.has(key)).collect();
    if given.len() > 1 {
        section.problem("", format!("has more than one of {}", given.join(", ")));
    }
    let secret = plain.or(file).or(env).or(command)?;
    // Files and commands end their line.
    let secret = secret.strip_suffix('\n').unwrap_or(&secret);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() || secret.contains('\0') {
        section.problem(given.first().unwrap_or(&""), "gives an empty or binary secret");
        return None;
    }
    Some(Secret::new(secret))
}

#[cfg(test)]
mod tests {
    use super::{Sources, System};

    #[test]
    fn a_command_is_a_source_and_its_failure_an_error() {
        let system = System { directory: std::env::temp_dir() };
        assert_eq!(system.command("echo s3cret").expect("sh is there"), "s3cret\n");
        assert!(system.command("exit 3").is_err());
    }
}
