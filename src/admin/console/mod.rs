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
use self::table::{Columns, Table, Type, value};
use super::pass_on::Reach;
use super::{MemberError, MemberQuestion, MemberQuestions, ReloadError, Sources, view};
use crate::failover::{self, Handover};
use crate::net::Client;
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::Proxy;
use crate::relay::Relay;

const MEMBER: Columns = &[("member", Type::Text)];

const CANDIDATES: Columns = &[("forecast", Type::Text)];

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
    pub member: MemberQuestions,
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
        if !command.is_harmless() && !matches!(command, Command::ShowMember(_)) {
            tracing::info!(?command, "an operator's command");
        }
        let ordered = |tag| Ok(Done::Ordered(tag, vec![]));
        match command {
            Command::Show(show) => Ok(self.show(*show)),
            Command::ShowMember(question) => self.show_member(question.clone()).await,
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
            Command::Candidates => {
                let asked = failover::Command::Foresee { handover: Handover::Failover, to: None };
                let said = self.sources.orders.give(asked, Reach::Cluster).await;
                let said = said.map_err(|error| error.fields())?;
                Ok(Done::Rows(Table::new(CANDIDATES, said.lines().map(|line| vec![value(line)]))))
            }
            Command::Order(order, reach) => {
                let said = self.sources.orders.give(order.clone(), *reach).await;
                said.map(|said| Done::Ordered(tag(order), vec![said])).map_err(|error| error.fields())
            }
            Command::Courtesy(tag) => ordered(tag),
            Command::Nothing => Ok(Done::Nothing),
        }
    }

    async fn show_member(&self, question: MemberQuestion) -> Result<Done, ErrorFields> {
        let answered = self.member.ask(question).await.map_err(|error| {
            let code = match &error {
                MemberError::UnknownAsker { .. } => SqlState::UNDEFINED_OBJECT,
                MemberError::Closed => SqlState::CANNOT_CONNECT_NOW,
                MemberError::Alone => SqlState::FEATURE_NOT_SUPPORTED,
            };
            ErrorFields::error(code, error.to_string())
        });
        Ok(Done::Rows(Table::new(MEMBER, [vec![value(answered?)]])))
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
            #[expect(clippy::disallowed_methods, reason = "shell: for the ages that are shown")]
            Show::Members => cluster::members(&self.sources.members.borrow(), Instant::now()),
            Show::Help => {
                let lines = command::help();
                Table::new(&[("command", Type::Text)], lines.lines().map(|line| vec![value(line)]))
            }
        })
    }
}

fn tag(order: &failover::Command) -> &'static str {
    match order {
        failover::Command::Switchover { .. } => "SWITCHOVER",
        failover::Command::Foresee { handover: Handover::Switchover, .. } => "SWITCHOVER",
        failover::Command::Foresee { handover: Handover::Failover, .. } => "FAILOVER",
        failover::Command::Maintenance { .. } => "MAINTENANCE",
        failover::Command::Restart { .. }
        | failover::Command::ForeseeRestart { .. }
        | failover::Command::CancelRestart => "RESTART",
        failover::Command::Failover { .. } | failover::Command::Pause | failover::Command::Resume => {
            "FAILOVER"
        }
    }
}

/// What of the process is in memory (proc(5)); 0 where that is not told.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kilobytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
pub(super) mod tests {
    use super::Command;
    use crate::admin::pass_on::Reach;
    use crate::failover;

    /// Which order a text is.
    pub(in crate::admin) fn understood(text: &str) -> Option<(failover::Command, Reach)> {
        match Command::parse(text) {
            Ok(Command::Order(order, reach)) => Some((order, reach)),
            _ => None,
        }
    }
}
