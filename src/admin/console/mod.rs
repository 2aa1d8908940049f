//! The SQL console: databases `bellwether` and `pgbouncer` on the ordinary listeners.
//!
//! [`command`] is what can be typed, `pooler` and `cluster` are the tables, functions of what the planes published;
//! [`conversation`] is the protocol. What changes something is passed on: to the query plane, to the control plane,
//! to whoever reads the configuration again.

mod cluster;
mod command;
mod conversation;
mod pooler;
mod table;

use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::command::{Command, Show};
use self::table::{Table, Type, value};
use super::{ReloadError, Sources, view};
use crate::failover::{self, CommandError};
use crate::net::Client;
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::Proxy;
use crate::relay::Relay;

/// The databases' names.
pub const DATABASES: [&str; 2] = ["bellwether", "pgbouncer"];

/// Who may come to the console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// For everything.
    pub users: Vec<String>,
    /// To look.
    pub stats_users: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Everything,
    Look,
}

/// What the console shows and orders.
#[derive(Clone, Debug)]
pub struct Console {
    pub sources: Sources,
    pub proxy: Proxy,
    pub relay: Relay,
    /// As of now.
    pub access: watch::Receiver<Access>,
}

/// What a command came to.
#[derive(Debug)]
enum Done {
    Rows(Table),
    /// CommandComplete's tag, and what to say beside it, one notice each.
    Ordered(&'static str, Vec<String>),
    Nothing,
}

impl Access {
    fn right(&self, user: &str) -> Option<Right> {
        let listed = |users: &[String]| users.iter().any(|listed| listed == user);
        match () {
            () if listed(&self.users) => Some(Right::Everything),
            () if listed(&self.stats_users) => Some(Right::Look),
            () => None,
        }
    }
}

impl Console {
    /// Serves a client that has proved who it is, until it leaves or `stop`.
    pub async fn serve(&self, client: Client, stop: &CancellationToken) {
        let right = self.access.borrow().right(&client.user);
        let Some(right) = right else {
            let message = format!("user \"{}\" may not use the console", client.user);
            let why = ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
                .with_hint("List the user in admin.users or admin.stats_users.");
            return client.refuse(why).await;
        };
        conversation::hold(self, client, right, stop).await;
    }

    async fn run(&self, command: &Command, right: Right) -> Result<Done, ErrorFields> {
        if right == Right::Look && !command.is_harmless() {
            let message = "only users in admin.users may do this";
            return Err(ErrorFields::error(SqlState::INSUFFICIENT_PRIVILEGE, message));
        }
        if !command.is_harmless() {
            tracing::info!(?command, "an operator's command");
        }
        let ordered = |tag| Ok(Done::Ordered(tag, vec![]));
        match command {
            Command::Show(show) => Ok(self.show(*show)),
            Command::Pause(database) => {
                self.proxy.pause(database.as_deref()).await?;
                ordered("PAUSE")
            }
            Command::Resume(database) => {
                self.proxy.resume(database.as_deref())?;
                ordered("RESUME")
            }
            Command::Reconnect(database) => {
                self.proxy.reconnect(database.as_deref())?;
                ordered("RECONNECT")
            }
            Command::Kill(database) => {
                self.proxy.kill(database)?;
                ordered("KILL")
            }
            Command::KillClient(id) => {
                self.proxy.kill_client(*id)?;
                ordered("KILL_CLIENT")
            }
            Command::Reload => self.ask_to_reload().await,
            Command::Switchover(to) => self.switch_over(to.clone()).await,
            Command::Courtesy(tag) => ordered(tag),
            Command::Nothing => Ok(Done::Nothing),
        }
    }

    async fn ask_to_reload(&self) -> Result<Done, ErrorFields> {
        let done = match &self.sources.reload {
            Some(reload) => reload.ask().await,
            None => Err(ReloadError::Stopped),
        };
        done.map(|reloaded| Done::Ordered("RELOAD", reloaded.lines())).map_err(|error| match error {
            ReloadError::Unusable(why) => {
                ErrorFields::error(SqlState::CONFIG_FILE_ERROR, "the configuration stays as it was")
                    .with_detail(why)
            }
            ReloadError::Stopped => ErrorFields::error(SqlState::ADMIN_SHUTDOWN, error.to_string()),
        })
    }

    async fn switch_over(&self, to: Option<crate::topology::NodeName>) -> Result<Done, ErrorFields> {
        let command = failover::Command::Switchover { to, stragglers: failover::Stragglers::Spared };
        let done = match &self.sources.commands {
            Some(commands) => commands.send(command).await,
            None => Err(CommandError::Stopped),
        };
        done.map(|said| Done::Ordered("SWITCHOVER", vec![said])).map_err(|error| {
            let code = match &error {
                CommandError::UnknownNode(_) => SqlState::UNDEFINED_OBJECT,
                CommandError::Unfit(..) | CommandError::NotNow(_) => SqlState::OBJECT_IN_USE,
                CommandError::Stopped => SqlState::ADMIN_SHUTDOWN,
            };
            ErrorFields::error(code, error.to_string())
        })
    }

    fn show(&self, show: Show) -> Done {
        #[expect(clippy::disallowed_methods, reason = "shell: for the ages that are shown")]
        let view = || view::cluster(&self.sources.identity, &self.sources.snapshot(), Instant::now());
        let report = || self.proxy.report();
        Done::Rows(match show {
            Show::Pools => pooler::pools(&report()),
            Show::Clients => pooler::clients(&report()),
            Show::Servers => pooler::servers(&report()),
            Show::Databases => pooler::databases(&report()),
            Show::Users => pooler::users(&report()),
            Show::Stats => pooler::stats(&report()),
            Show::StatsTotals => pooler::stats_totals(&report()),
            Show::StatsAverages => pooler::stats_averages(&report()),
            Show::Lists => pooler::lists(&report()),
            Show::Config => pooler::config(&report()),
            Show::State => pooler::state(&report()),
            Show::Mem => pooler::mem(resident_bytes()),
            Show::Sockets => pooler::sockets(&report()),
            Show::ActiveSockets => pooler::active_sockets(&report()),
            Show::DnsHosts => pooler::dns_hosts(),
            Show::DnsZones => pooler::dns_zones(),
            Show::Version => pooler::version(),
            Show::Nodes => cluster::nodes(&view()),
            Show::Lag => cluster::lag(&view()),
            Show::Followers => cluster::followers(&view()),
            Show::Wal => cluster::wal(&view()),
            Show::History => cluster::history(&self.sources.history.borrow()),
            Show::Slots => cluster::slots(&self.relay.slots()),
            Show::Routes => cluster::routes(&self.sources.registry.gather()),
            Show::Help => {
                let lines = command::help();
                Table::new(&[("command", Type::Text)], lines.lines().map(|line| vec![value(line)]))
            }
        })
    }
}

/// What of the process is in memory (proc(5)); 0 where that is not told.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kilobytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
