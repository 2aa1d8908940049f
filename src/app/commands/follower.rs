//! `bellwether follower init`: a new standby in one command, with its progress on standard error.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::passfile::{Environment, Found, PassfileError};
use super::progress::Display;
use super::{directory, shell_word};
use crate::app::config::{self, LoadError};
use crate::app::local;
use crate::failover::agent::{
    AgentError, Conninfo, CopyProgress, InitProgress, InvalidConninfo, MadeFollower, NewFollower, RunAs,
    RunAsError,
};
use crate::net::{
    Credentials, ForServers, ServerTlsMode, TablespaceMapping, Target, TlsError, TlsForServers,
};
use crate::pg::SlotName;
use crate::topology::Address;

#[derive(Debug, Subcommand)]
pub(in crate::app) enum Follower {
    /// Make a standby of a directory: base backup through the endpoint, verified, with the settings to follow it
    Init(Init),
}

#[derive(Args, Debug)]
pub(in crate::app) struct Init {
    /// Where the standby's data goes: not there, empty, or left behind by an interrupted call
    #[arg(long, value_name = "D")]
    data_dir: PathBuf,
    /// The endpoint, as a connection string; the standby follows it with the same one
    #[arg(long, value_name = "CONNINFO", conflicts_with = "config")]
    endpoint: Option<String>,
    /// The configuration that names the endpoint, and the login
    #[arg(long, value_name = "FILE", default_value = "bellwether.yaml")]
    config: PathBuf,
    /// A replication slot at the endpoint, made when missing, so that the standby's WAL is kept while it is away
    #[arg(long, value_name = "NAME")]
    slot: Option<SlotName>,
    /// The tablespace at OLD comes to NEW [default: to OLD]; \= is an equals sign of a path
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_mapping: Vec<TablespaceMapping>,
    /// Copy no more than this in a second, in kB; suffixes k and M
    #[arg(long, value_name = "RATE", value_parser = max_rate)]
    max_rate: Option<u32>,
    /// Whose the files are when this runs as root [default: postgres]
    #[arg(long, value_name = "USER")]
    run_as: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::app) enum FollowerError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the connection string of the endpoint")]
    Conninfo(#[from] InvalidConninfo),
    #[error("the connection string of the endpoint has no valid {keyword}")]
    Keyword { keyword: &'static str },
    #[error("TLS with the endpoint")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Passfile(#[from] PassfileError),
    #[error(transparent)]
    RunAs(#[from] RunAsError),
    #[error("new standby in {}", data_dir.display())]
    Make {
        data_dir: PathBuf,
        #[source]
        source: Box<AgentError>,
    },
}

/// What a server takes, in kB (`MAX_RATE_LOWER` and `MAX_RATE_UPPER`, basebackup.h).
const MAX_RATES: std::ops::RangeInclusive<u32> = 32..=1024 * 1024;

/// Returns what people want to know at the end.
pub(in crate::app) async fn init(options: Init) -> Result<String, FollowerError> {
    let endpoint = match &options.endpoint {
        Some(endpoint) => Conninfo::parse(endpoint)?,
        None => local::upstream(&config::load(&options.config)?.0, None),
    };
    let run_as = RunAs::resolve(options.run_as.as_deref())?;
    let conninfo = named(endpoint, options.slot.as_ref());
    let found = Environment::of_process().look_up(&conninfo)?;
    let followed = followed(conninfo.clone(), &found, run_as.as_ref());
    let data_dir = directory(&options.data_dir);
    let follower = NewFollower {
        data_dir: data_dir.clone(),
        endpoint: target(&with_password(conninfo, &found))?,
        primary_conninfo: followed.to_string(),
        slot: options.slot,
        tablespaces: options.tablespace_mapping,
        max_rate: options.max_rate,
        run_as,
    };
    let display = Display::new("copying");
    let made = follower.make(Arc::new(move |progress| show(&display, progress))).await;
    let MadeFollower { copied, tablespaces } =
        made.map_err(|source| FollowerError::Make { data_dir: data_dir.clone(), source: Box::new(source) })?;
    let placed: String = tablespaces.iter().map(|tablespace| format!("{tablespace}\n")).collect();
    Ok(format!(
        "{}: a standby as of {} on timeline {}, verified. Start it with: pg_ctl -D {} start\n{placed}",
        data_dir.display(),
        copied.end,
        copied.timeline,
        shell_word(&data_dir.display().to_string())
    ))
}

/// As `parse_max_rate` of pg_basebackup.c has it, in whole numbers.
fn max_rate(text: &str) -> Result<u32, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1),
        Some(b'M') => (&text[..text.len() - 1], 1024),
        _ => (text, 1),
    };
    let rate = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
    match rate {
        Some(rate) if MAX_RATES.contains(&rate) => Ok(rate),
        _ => Err("a rate from 32k to 1024M is expected".to_owned()),
    }
}

/// The endpoint knows followers by their names.
fn named(conninfo: Conninfo, slot: Option<&SlotName>) -> Conninfo {
    match (conninfo.value("application_name"), slot) {
        (None, Some(slot)) => conninfo.with("application_name", slot.as_str()),
        _ => conninfo,
    }
}

fn with_password(conninfo: Conninfo, found: &Found) -> Conninfo {
    match found {
        Found::InEnvironment(password) | Found::InFile { password, .. } => {
            conninfo.with("password", password)
        }
        Found::InConninfo | Found::Nowhere => conninfo,
    }
}

/// What the standby will follow: as with `pg_basebackup -R` it finds its password where we have found it, unless that is
/// a file of another user's.
fn followed(conninfo: Conninfo, found: &Found, run_as: Option<&RunAs>) -> Conninfo {
    match (found, run_as) {
        (Found::InFile { path, .. }, None) => conninfo.with("passfile", path.to_string_lossy()),
        _ => with_password(conninfo, found),
    }
}

fn target(conninfo: &Conninfo) -> Result<Target, FollowerError> {
    let value = |keyword| conninfo.value(keyword).filter(|value| !value.is_empty());
    let required = |keyword| value(keyword).ok_or(FollowerError::Keyword { keyword });
    let port = value("port").map_or(Some(5432), |port| port.parse().ok());
    let mode = match value("sslmode") {
        None | Some("prefer" | "allow") => ServerTlsMode::Prefer,
        Some("disable") => ServerTlsMode::Disable,
        Some("require") => ServerTlsMode::Require,
        Some("verify-ca") => ServerTlsMode::VerifyCa,
        Some("verify-full") => ServerTlsMode::VerifyFull,
        Some(_) => return Err(FollowerError::Keyword { keyword: "sslmode" }),
    };
    let identity = value("sslcert").zip(value("sslkey")).map(|(cert, key)| (cert.into(), key.into()));
    let ca_file = value("sslrootcert").map(PathBuf::from);
    let application_name = value("application_name").unwrap_or("bellwether_follower_init");
    Ok(Target {
        address: Address {
            host: required("host")?.to_owned(),
            port: port.ok_or(FollowerError::Keyword { keyword: "port" })?,
        },
        user: required("user")?.into(),
        database: "replication".into(),
        credentials: value("password")
            .map_or(Credentials::Trust, |password| Credentials::Password(password.into())),
        tls: TlsForServers::load(&ForServers { mode, ca_file, identity })?,
        parameters: vec![("application_name".to_owned(), application_name.to_owned())],
    })
}

fn show(display: &Display, progress: InitProgress) {
    match progress {
        InitProgress::Copying(CopyProgress { received_bytes, total_bytes }) => {
            display.show("copying", received_bytes, total_bytes);
        }
        InitProgress::Verifying { done_bytes, total_bytes } => {
            display.show("verifying", done_bytes, total_bytes);
        }
        InitProgress::Syncing => display.clear(),
    }
}

#[cfg(test)]
mod tests {
    use super::{followed, max_rate, named, target, with_password};
    use crate::app::commands::passfile::Found;
    use crate::failover::agent::Conninfo;
    use crate::net::Credentials;

    #[test]
    fn the_endpoint_is_what_the_standby_will_follow() {
        let parse = |text| Conninfo::parse(text).expect("a connection string");
        let conninfo = parse("host=bw port=6432 user=rep password=secret sslmode=disable");
        let slot = "pg_4".parse().expect("a slot's name");
        let followed = named(conninfo.clone(), Some(&slot));
        assert_eq!(followed.value("application_name"), Some("pg_4"));
        assert_eq!(named(conninfo, None).value("application_name"), None);
        let target = target(&followed).expect("complete");
        assert_eq!((target.address.to_string().as_str(), &*target.user), ("bw:6432", "rep"));
        assert_eq!(target.credentials, Credentials::Password("secret".into()));
        assert_eq!(target.parameters, [("application_name".to_owned(), "pg_4".to_owned())]);
    }

    #[test]
    fn the_standby_finds_its_password() {
        let conninfo = Conninfo::parse("host=bw user=rep").expect("a connection string");
        let file = Found::InFile { password: "secret".to_owned(), path: "/home/joe/.pgpass".into() };
        assert_eq!(with_password(conninfo.clone(), &file).value("password"), Some("secret"));
        let as_ourselves = followed(conninfo.clone(), &file, None);
        assert_eq!(as_ourselves.to_string(), "host=bw user=rep passfile=/home/joe/.pgpass");
        let environment = Found::InEnvironment("secret".to_owned());
        let kept = followed(conninfo.clone(), &environment, None);
        assert_eq!(kept.to_string(), "host=bw user=rep password=secret");
        assert_eq!(followed(conninfo.clone(), &Found::Nowhere, None), conninfo);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error =
            |text| target(&Conninfo::parse(text).expect("parsed")).expect_err("incomplete").to_string();
        assert!(error("user=a").contains("host"));
        assert!(error("host=a").contains("user"));
        assert!(error("host=a user=b port=x").contains("port"));
        assert!(error("host=a user=b sslmode=maybe").contains("sslmode"));
    }

    #[test]
    fn rates_are_pg_basebackups() {
        for (text, expected) in
            [("32", Some(32)), ("100k", Some(100)), ("2M", Some(2048)), ("1024M", Some(1 << 20))]
        {
            assert_eq!(max_rate(text).ok(), expected, "{text}");
        }
        for text in ["", "M", "31", "1025M", "1G", "-5", "5000000M"] {
            assert!(max_rate(text).is_err(), "{text}");
        }
    }
}
