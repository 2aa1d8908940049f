//! The password of a connection string that has none, from where libpq takes it (libpq-pgpass, libpq-envars):
//! `PGPASSWORD`, then the password file, which `passfile`, `PGPASSFILE` or the home directory names.
#![expect(clippy::disallowed_methods, reason = "shell: reads the environment")]

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failover::agent::Conninfo;

#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum PassfileError {
    #[error("read the password file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// libpq warns and goes on without it.
    #[error("the password file {} is readable for others; chmod 0600 mends it", path.display())]
    Access { path: PathBuf },
}

/// Whom a line of the file is to be about.
#[derive(Clone, Copy, Debug)]
struct Login<'a> {
    host: &'a str,
    port: &'a str,
    database: &'a str,
    user: &'a str,
}

/// What libpq's variables say.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    password: Option<String>,
    passfile: Option<PathBuf>,
    home: Option<PathBuf>,
}

/// Where a password was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nowhere,
    InConninfo,
    InEnvironment(String),
    InFile { password: String, path: PathBuf },
}

impl Environment {
    pub(super) fn of_process() -> Environment {
        let path = |name| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Environment {
            password: env::var("PGPASSWORD").ok(),
            passfile: path("PGPASSFILE"),
            home: env::home_dir(),
        }
    }

    /// The password of a replication connection.
    pub(super) fn look_up(self, conninfo: &Conninfo) -> Result<Found, PassfileError> {
        if conninfo.value("password").is_some() {
            return Ok(Found::InConninfo);
        }
        if let Some(password) = self.password {
            return Ok(Found::InEnvironment(password));
        }
        let named = conninfo.value("passfile").filter(|path| !path.is_empty()).map(PathBuf::from);
        let at_home = || Some(self.home?.join(".pgpass"));
        let Some(path) = named.or(self.passfile).or_else(at_home) else { return Ok(Found::Nowhere) };
        let text = read(&path)?.unwrap_or_default();
        let value =
            |keyword, default| conninfo.value(keyword).filter(|value| !value.is_empty()).unwrap_or(default);
        let login = Login {
            host: value("host", "localhost"),
            port: value("port", "5432"),
            database: "replication",
            user: value("user", ""),
        };
        let found = password(&text, login);
        Ok(found.map_or(Found::Nowhere, |password| Found::InFile { password, path }))
    }
}

/// `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>, PassfileError> {
    let failed = |source| PassfileError::Read { path: path.to_owned(), source };
    let status = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        status => status.map_err(failed)?,
    };
    if status.is_file() && status.mode() & 0o077 != 0 {
        return Err(PassfileError::Access { path: path.to_owned() });
    }
    fs::read_to_string(path).map(Some).map_err(failed)
}

/// Of the first line that is about `login`: `host:port:database:user:password`, where `*` is anything and a backslash
/// takes the next character as it is (`passwordFromFile`, fe-connect.c).
fn password(text: &str, login: Login<'_>) -> Option<String> {
    let wanted = [login.host, login.port, login.database, login.user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let rest = wanted.iter().try_fold(line, |line, wanted| behind(line, wanted))?;
        let mut password = String::new();
        let mut chars = rest.chars();
        while let Some(c) = chars.next() {
            password.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        (!password.is_empty()).then_some(password)
    })
}

/// What follows the first field of `line` and its colon, if the field is `wanted`.
fn behind<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        let literal = match c {
            ':' => return wanted.next().is_none().then(|| &line[at + 1..]),
            '\\' => chars.next()?.1,
            c => c,
        };
        if wanted.next() != Some(literal) {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::{Environment, Found, Login, PassfileError, password};
    use crate::failover::agent::Conninfo;

    #[test]
    fn lines_are_libpqs() {
        let login = Login { host: "bw", port: "6432", database: "replication", user: "re:p" };
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(password(text, login).as_deref(), expected, "{text}");
        };
        check("", None);
        check("bw:6432:replication:re\\:p:secret", Some("secret"));
        check("*:*:*:*:any", Some("any"));
        check("bw:*:replication:*:a\\:b\\\\c:d", Some("a:b\\c:d"));
        check("other:*:*:*:1\n# *:*:*:*:2\nbw:5432:*:*:3\nbw:6432:app:*:4\nbw:*:*:*:5\n*:*:*:*:6", Some("5"));
        for none in
            ["#*:*:*:*:x", "bw:6432:replication:re", "bw:6432:replication:re:p:x", "b:*:*:*:x", "bww:*:*:*:x"]
        {
            check(none, None);
        }
        check("*:*:*:*:\nbw:*:*:*:later", Some("later"));
    }

    #[test]
    fn the_nearest_password_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for (name, password) in [(".pgpass", "home"), ("variable", "variable"), ("named", "named")] {
            fs::write(path(name), format!("bw:5432:replication:rep:{password}\n")).expect("written");
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)).expect("changed");
        }
        let look_up = |environment: &Environment, more: &str| {
            let conninfo = Conninfo::parse(&format!("host=bw {more}")).expect("a connection string");
            environment.clone().look_up(&conninfo).expect("read")
        };
        let in_file =
            |password: &str, name: &str| Found::InFile { password: password.into(), path: path(name) };
        let mut environment = Environment::default();
        assert_eq!(look_up(&environment, "user=rep"), Found::Nowhere);
        environment.home = Some(dir.path().to_owned());
        assert_eq!(look_up(&environment, "user=rep"), in_file("home", ".pgpass"));
        assert_eq!(look_up(&environment, "user=joe"), Found::Nowhere);
        environment.passfile = Some(path("variable"));
        assert_eq!(look_up(&environment, "user=rep"), in_file("variable", "variable"));
        let named = format!("user=rep passfile={}", path("named").display());
        assert_eq!(look_up(&environment, &named), in_file("named", "named"));
        environment.password = Some("set".to_owned());
        assert_eq!(look_up(&environment, &named), Found::InEnvironment("set".to_owned()));
        assert_eq!(look_up(&environment, "user=rep password=own"), Found::InConninfo);
    }

    #[test]
    fn what_others_may_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pass");
        let conninfo = Conninfo::parse("host=bw user=rep").expect("a connection string");
        let look_up =
            || Environment { passfile: Some(path.clone()), ..Environment::default() }.look_up(&conninfo);
        assert_eq!(look_up().expect("no such file"), Found::Nowhere);
        fs::write(&path, "*:*:*:*:secret").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        assert!(matches!(look_up(), Err(PassfileError::Access { .. })));
    }
}
