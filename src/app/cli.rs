//! The command line.
//!
//! Exit codes: 0 done; 1 it failed, and standard error says why (for `check`: there are errors); 2 the command
//! line itself is wrong. Those of `wal get` are what PostgreSQL expects of a `restore_command`, whatever goes wrong.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::check::{self, Severity};
use super::commands::backup::{self, CommandError, Restore};
use super::commands::follower::{self, Follower, FollowerError};
use super::commands::restart::{self, RestartError};
use super::commands::switchover::{self, SwitchoverError, Wish};
use super::commands::wal::{self, Wal};
use super::config::{self, LoadError};
use super::demo::{self, DemoError};
use super::run::{self, RunError, Succession};
use super::{import, shutdown, telemetry};
use crate::admin::{self, ClientError, ClusterView};
use crate::proxy::route::explain;
use crate::topology::{Durability, NodeName};

/// One endpoint in front of a PostgreSQL cluster: pooling, routing, WAL relay and failover in one process.
#[derive(Debug, Parser)]
#[command(name = "bellwether", version, after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line.")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a real cluster on this host and run an instance in front of it, until Ctrl-C
    Demo(Demo),
    /// Run an instance until SIGTERM or SIGINT, or until another takes its place
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Take the place of the instance that runs, if there is one: no connection is refused, and its sessions go
        /// on until they end
        #[arg(long)]
        takeover: bool,
    },
    /// Report every error of a configuration at once, then look at its servers
    Check(ConfigFile),
    /// Show nodes, roles, timelines, lag, the term, and whether writes are open
    Status {
        #[command(flatten)]
        instance: Instance,
        /// Show it again every second
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// Print the JSON of /api/v1/cluster
        #[arg(long)]
        json: bool,
    },
    /// Show every election: evidence, rule, phases, WAL lost
    History {
        #[command(flatten)]
        instance: Instance,
        /// Print JSON: the entries of /api/v1/history and of /api/v1/alarms, the oldest first
        #[arg(long)]
        json: bool,
    },
    /// Hand over to a standby: nothing is lost, and a transaction that ends in time notices only latency
    #[command(after_help = "Exit codes: 0 done, 1 given up (then the old primary goes on) or not begun.")]
    Switchover {
        #[command(flatten)]
        instance: Instance,
        #[command(flatten)]
        wish: Wish,
    },
    /// Restart servers one after the other, by the binaries that are installed now: the standbys, then the primary behind a
    /// switchover. A transaction that ends in time notices only latency
    #[command(after_help = "Exit codes: 0 done, 1 given up (what was stopped is started) or not begun.")]
    Restart {
        #[command(flatten)]
        instance: Instance,
        #[command(flatten)]
        wish: restart::Wish,
    },
    /// Promote a standby now, whatever the primary is doing
    Failover {
        #[command(flatten)]
        instance: Instance,
        /// Which one [default: the best]
        #[arg(long, value_name = "NODE")]
        to: Option<NodeName>,
        /// Tell what it would come to now, and who would be chosen; nothing is done
        #[arg(long)]
        dry_run: bool,
    },
    /// No automatic failover until resumed
    Pause(Instance),
    /// Automatic failover again
    Resume(Instance),
    /// Leave a standby to whoever works on it: no reads, no promotion, and its agent keeps its hands off it
    Maintenance {
        #[command(flatten)]
        instance: Instance,
        /// Which one; not the primary: switch over first
        node: NodeName,
        /// It is over: its agent takes care of it again
        #[arg(long)]
        end: bool,
    },
    /// Read the configuration again; tells what is in effect now, and what needs a restart
    Reload(Instance),
    /// Tell where a statement would go, and why; needs no server
    Route {
        /// The statement, or - for standard input
        sql: String,
    },
    /// Look at the relay's WAL and the archive
    #[command(subcommand)]
    Wal(Wal),
    /// Put a base backup into the archive now
    Backup(ConfigFile),
    /// Make a data directory of the archive, as of a chosen moment
    Restore(Restore),
    /// New standbys
    #[command(subcommand)]
    Follower(Follower),
    /// Print a pgbouncer.ini as a bellwether.yaml; what has no equivalent is told on standard error
    ImportPgbouncer {
        /// The pgbouncer.ini
        #[arg(value_name = "FILE.ini")]
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
struct Demo {
    /// Where the cluster lives, to be resumed by the next demo [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "D")]
    dir: Option<PathBuf>,
    /// PostgreSQL servers: one primary, the others standbys
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    /// Of the endpoint
    #[arg(long, default_value_t = 6432)]
    port: u16,
    /// Of status page and metrics
    #[arg(long, default_value_t = 9632)]
    admin_port: u16,
    /// Where initdb, pg_ctl and postgres are [default: as in PATH, else the newest of /usr/lib/postgresql]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// When a commit counts as done
    #[arg(long, value_enum, default_value = "async")]
    durability: DurabilityMode,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DurabilityMode {
    /// On the primary's disk
    Async,
    /// On the primary's and the relay's
    Quorum,
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "bellwether.yaml")]
    config: PathBuf,
}

/// Which running instance is asked.
#[derive(Args, Debug)]
struct Instance {
    /// Its admin address
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    admin: Option<String>,
    /// Its configuration, which names the admin address
    #[arg(long, value_name = "FILE", default_value = "bellwether.yaml")]
    config: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{} has no admin address", path.display())]
    NoAdmin { path: PathBuf },
    #[error("set up")]
    SetUp(#[source] io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Demo(Box<DemoError>),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Command(Box<CommandError>),
    #[error(transparent)]
    Switchover(#[from] SwitchoverError),
    #[error(transparent)]
    Restart(#[from] RestartError),
    #[error(transparent)]
    Follower(#[from] FollowerError),
    #[error("the instance's answer is not understood")]
    Answer(#[from] serde_json::Error),
    #[error("read {}", path.display())]
    ReadIni {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read standard input")]
    Input(#[source] io::Error),
    #[error("write to standard output")]
    Output(#[source] io::Error),
}

/// `status --watch` asks so often.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Of a statement on standard input.
const MAX_STATEMENT: u64 = 16 << 20;

/// The command line is not understood.
const USAGE: u8 = 2;

pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if wal::is_get(&words) {
        guarded(wal::failed(), || run(words))
    } else {
        run(words).unwrap_or_else(ExitCode::from)
    }
}

/// For PostgreSQL, which reads a usage error's and even a panic's exit code as "no such file": `failed` instead.
fn guarded(failed: u8, run: impl FnOnce() -> Result<ExitCode, u8>) -> ExitCode {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(code)) => code,
        Ok(Err(_)) | Err(_) => ExitCode::from(failed),
    }
}

/// An error is the exit code of what was told on standard error.
fn run(words: Vec<OsString>) -> Result<ExitCode, u8> {
    let command = match CommandLine::try_parse_from(words) {
        Ok(line) => line.command,
        Err(told) => {
            // Standard error or, for --help, standard output; there is nobody else to tell.
            let _ = told.print();
            return if told.use_stderr() { Err(USAGE) } else { Ok(ExitCode::SUCCESS) };
        }
    };
    match execute(command) {
        // `bellwether history | head`
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        done => done.map_err(|error| {
            eprintln!("bellwether: {}", chain(&error));
            1
        }),
    }
}

/// One runtime on this thread: the control plane's, or whatever a command waits for.
fn execute(command: Command) -> Result<ExitCode, CliError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::SetUp)?;
    let done = runtime.block_on(async {
        match command {
            Command::Demo(options) => {
                demo::demo(options.into()).await.map_err(|error| CliError::Demo(Box::new(error)))?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Run { file, takeover } => {
                let succession = if takeover { Succession::Wanted } else { Succession::Offered };
                run_instance(&file.config, succession).await
            }
            Command::Check(file) => report(&file.config).await,
            Command::Status { instance, watch, json } => status(&instance, watch, json).await,
            Command::History { instance, json } => history(&instance, json).await,
            Command::Switchover { instance, wish } if wish.is_dry() => order(&instance, &wish.path()).await,
            Command::Switchover { instance, wish } => {
                switchover::switchover(&instance.url()?, &wish, print).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Restart { instance, wish } if !wish.is_followed() => {
                order(&instance, &wish.path()).await
            }
            Command::Restart { instance, wish } => {
                restart::restart(&instance.url()?, &wish, print).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Failover { instance, to, dry_run } => {
                let to = to.map(|node| format!("to={node}"));
                let options: Vec<String> =
                    to.into_iter().chain(dry_run.then(|| "dry_run".to_owned())).collect();
                order(&instance, &format!("/api/v1/failover?{}", options.join("&"))).await
            }
            Command::Pause(instance) => order(&instance, "/api/v1/pause").await,
            Command::Resume(instance) => order(&instance, "/api/v1/resume").await,
            Command::Maintenance { instance, node, end } => {
                let end = if end { "&end" } else { "" };
                order(&instance, &format!("/api/v1/maintenance?node={node}{end}")).await
            }
            Command::Reload(instance) => order(&instance, "/api/v1/reload").await,
            Command::Route { sql } => route(&sql),
            Command::Wal(command) => Ok(wal::wal(command).await),
            Command::Backup(file) => tell(backup::backup(&file.config).await),
            Command::Restore(command) => tell(backup::restore(command).await),
            Command::Follower(Follower::Init(options)) => {
                print(&follower::init(options).await?)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::ImportPgbouncer { file } => import_pgbouncer(&file),
        }
    });
    // What is left is a client that did not leave in time; it goes with the process.
    runtime.shutdown_background();
    done
}

async fn run_instance(path: &Path, succession: Succession) -> Result<ExitCode, CliError> {
    let (config, warnings) = config::load(path)?;
    let log_level = telemetry::install(&config.log);
    for warning in warnings {
        tracing::warn!(path = warning.path, "{}", warning.what);
    }
    let shutdown = shutdown::on_signals().map_err(CliError::SetUp)?;
    let ready = |endpoints: &run::Endpoints| tracing::info!(%endpoints, "accepting connections");
    run::run(config, succession, log_level, ready, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

async fn report(path: &Path) -> Result<ExitCode, CliError> {
    let mut findings = check::check(path).await;
    findings.sort();
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    print(&format!("{lines}{}: {errors} errors, {warnings} warnings\n", path.display()))?;
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn status(instance: &Instance, watch: bool, json: bool) -> Result<ExitCode, CliError> {
    let base = instance.url()?;
    let shown = async || -> Result<String, CliError> {
        let body = admin::fetch(&base, "/api/v1/cluster").await?;
        if json {
            return Ok(String::from_utf8_lossy(&body).into_owned() + "\n");
        }
        let view: ClusterView = serde_json::from_slice(&body)?;
        Ok(admin::status_text(&view))
    };
    if !watch {
        print(&shown().await?)?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let text = shown().await.unwrap_or_else(|error| chain(&error) + "\n");
        // Cursor home, clear to the end of the screen.
        print(&format!("\x1b[H\x1b[2J{text}"))?;
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn history(instance: &Instance, json: bool) -> Result<ExitCode, CliError> {
    let base = instance.url()?;
    let elections = admin::fetch(&base, "/api/v1/history").await?;
    let restarts = admin::fetch(&base, "/api/v1/restarts").await?;
    let alarms = admin::fetch(&base, "/api/v1/alarms").await?;
    let text = if json {
        let entries = |body: &[u8]| serde_json::from_slice(body);
        admin::history_json([entries(&elections)?, entries(&restarts)?, entries(&alarms)?])
    } else {
        let elections: Vec<_> = serde_json::from_slice(&elections)?;
        let restarts: Vec<_> = serde_json::from_slice(&restarts)?;
        admin::history_text(&elections, &restarts, &serde_json::from_slice::<Vec<_>>(&alarms)?)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// An accepted command has begun, not ended: the history tells how it went.
async fn order(instance: &Instance, path: &str) -> Result<ExitCode, CliError> {
    let answer = admin::post(&instance.url()?, path).await?;
    print(&String::from_utf8_lossy(&answer))?;
    Ok(ExitCode::SUCCESS)
}

fn tell(done: Result<String, CommandError>) -> Result<ExitCode, CliError> {
    print(&done.map_err(|error| CliError::Command(Box::new(error)))?)?;
    Ok(ExitCode::SUCCESS)
}

fn route(sql: &str) -> Result<ExitCode, CliError> {
    let mut input = String::new();
    let sql = if sql == "-" {
        io::stdin().take(MAX_STATEMENT).read_to_string(&mut input).map_err(CliError::Input)?;
        input.as_str()
    } else {
        sql
    };
    print(&explain(sql))?;
    Ok(ExitCode::SUCCESS)
}

fn import_pgbouncer(file: &Path) -> Result<ExitCode, CliError> {
    let read_error = |source| CliError::ReadIni { path: file.to_owned(), source };
    let imported = import::import(&std::fs::read_to_string(file).map_err(read_error)?);
    print(&imported.yaml)?;
    for line in imported.report {
        eprintln!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

impl From<Demo> for demo::Options {
    fn from(Demo { dir, nodes, port, admin_port, pg_bin, durability }: Demo) -> demo::Options {
        let durability = match durability {
            DurabilityMode::Async => Durability::Async,
            DurabilityMode::Quorum => Durability::Quorum,
        };
        demo::Options { dir, nodes, port, admin_port, pg_bin, durability }
    }
}

impl Instance {
    fn url(&self) -> Result<String, CliError> {
        if let Some(url) = &self.admin {
            return Ok(url.clone());
        }
        let admin = config::admin_address(&self.config)?;
        let address = admin.ok_or_else(|| CliError::NoAdmin { path: self.config.clone() })?;
        Ok(format!("http://{}", reachable(address)))
    }
}

/// Who listens on every address is asked on the loopback one.
fn reachable(address: std::net::SocketAddr) -> std::net::SocketAddr {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, address.port()).into()
}

fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Output)
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use std::ffi::OsString;
    use std::process::ExitCode;

    use super::{CommandLine, guarded, reachable, run};

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn what_people_type() {
        for (line, understood) in [
            ("run --config a.yaml", true),
            ("run --takeover --config a.yaml", true),
            ("check", true),
            ("demo --dir d --nodes 5 --durability quorum", true),
            ("demo --durability some", false),
            ("status --watch", true),
            ("status --watch --json", false),
            ("status --admin http://127.0.0.1:9632", true),
            ("status --admin http://127.0.0.1:9632 --config a.yaml", false),
            ("history --json", true),
            ("failover --to pg2", true),
            ("failover --to PG2", false),
            ("failover --dry-run", true),
            ("switchover --to pg2 --dry-run", true),
            ("switchover --force --dry-run", false),
            ("restart pg2", true),
            ("restart pg2 --force --admin http://127.0.0.1:9632", true),
            ("restart --rolling --dry-run", true),
            ("restart --cancel", true),
            ("restart", false),
            ("restart pg2 --rolling", false),
            ("restart --cancel --force", false),
            ("restart --rolling --force --dry-run", false),
            ("pause", true),
            ("maintenance pg2", true),
            ("maintenance pg2 --end --config a.yaml", true),
            ("maintenance", false),
            ("reload --config a.yaml", true),
            ("route -", true),
            ("route", false),
            ("wal get 000000010000000000000003 pg_wal/RECOVERYXLOG --config a.yaml", true),
            ("wal get 000000010000000000000003 pg_wal/RECOVERYXLOG --archive s3://bucket/prefix", true),
            ("wal get 000000010000000000000003 pg_wal/RECOVERYXLOG --archive bucket", false),
            ("wal get 000000010000000000000003 --config a.yaml", false),
            ("backup --config a.yaml", true),
            ("restore --to-latest --data-dir d --archive file:///a", true),
            ("restore --to-lsn 0/3000000 --timeline 2 --data-dir d --config a.yaml", true),
            ("restore --to-time 2026-11-21T10:30:00Z --data-dir d --config a.yaml", true),
            ("restore --to-time 2026-11-21T10:30:00Z --to-latest --data-dir d --config a.yaml", false),
            ("restore --data-dir d --config a.yaml", false),
            ("restore --to-latest --data-dir d", false),
            ("restore --to-latest --data-dir d --archive file:///a --config a.yaml", false),
            ("wal ls", true),
            ("wal ls --dir d --json", true),
            ("wal verify --config a.yaml", true),
            ("wal verify --config a.yaml --dir d", false),
            ("runn", false),
        ] {
            let words = std::iter::once("bellwether").chain(line.split(' '));
            assert_eq!(CommandLine::try_parse_from(words).is_ok(), understood, "{line}");
        }
    }

    #[test]
    fn a_restore_command_never_says_no_such_file_by_mistake() {
        let words = |line: &str| -> Vec<OsString> { line.split(' ').map(OsString::from).collect() };
        for (line, expected) in [
            ("bellwether wal get 000000010000000000000003 pg_wal/RECOVERYXLOG --confg a.yaml", 255),
            ("bellwether wal get 000000010000000000000003", 255),
            ("bellwether wal get --help", 0),
        ] {
            assert_eq!(guarded(255, || run(words(line))), ExitCode::from(expected), "{line}");
        }
        assert_eq!(guarded(255, || Ok(ExitCode::from(1))), ExitCode::from(1), "there is none");
        assert_eq!(guarded(255, || Err(1)), ExitCode::from(255), "no runtime");
        assert_eq!(guarded(255, || panic!("a mistake of ours")), ExitCode::from(255));
    }

    #[test]
    fn an_unspecified_address_is_asked_on_loopback() {
        for (given, asked) in
            [("0.0.0.0:9632", "127.0.0.1:9632"), ("[::]:1", "[::1]:1"), ("10.0.0.1:9632", "10.0.0.1:9632")]
        {
            assert_eq!(given.parse().map(reachable).map(|a| a.to_string()), Ok(asked.to_owned()));
        }
    }
}
