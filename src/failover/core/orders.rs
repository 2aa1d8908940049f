//! What an operator may have done now, and what it would come to. PURE.

use std::sync::Arc;

use super::Core;
use crate::failover::command::{Command, Upkeep};
use crate::failover::decide::{self, Agent, Automatic, Handover, Now, Request, Spent};
use crate::failover::error::CommandError;
use crate::topology::{Draining, NodeName, ProxyStatus, WalStatus};

impl Core {
    /// What is accepted holds when the next turn's effects are done.
    pub(crate) fn command(
        &mut self,
        command: &Command,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> Result<String, CommandError> {
        match command {
            Command::Failover { to } => {
                self.check_failover(to.as_ref(), now, wal, proxy)?;
                self.request = Some(Request::Failover { to: to.clone() });
                Ok("failover has begun".to_owned())
            }
            Command::Switchover { to, stragglers } => {
                let to = to.as_ref();
                let (primary, successor) = self.check_switchover(to, now, wal, proxy)?;
                self.request =
                    Some(Request::Switchover { to: Some(successor.clone()), stragglers: *stragglers });
                let has_agent = self.agent(&primary, now) == Agent::Local;
                Ok(if has_agent {
                    format!("switchover from {primary} to {successor} has begun")
                } else {
                    format!(
                        "switchover from {primary} to {successor} has begun; {primary} has no agent here that could \
                         shut it down, so it goes on running, cut off, and must be made a standby by hand afterwards"
                    )
                })
            }
            Command::Restart { servers, stragglers } => self.restart(servers, *stragglers, now, (wal, proxy)),
            Command::ForeseeRestart { servers } => self.foresee_restart(servers, now, (wal, proxy)),
            Command::CancelRestart => self.cancel_restart(),
            Command::Foresee { handover, to } => self.foresee(*handover, to.as_ref(), now, wal, proxy),
            Command::Maintenance { node, upkeep } => self.maintain(node, *upkeep, now),
            Command::Pause => {
                self.state.automatic = Automatic::Paused;
                Ok("automatic failover is paused".to_owned())
            }
            Command::Resume => {
                self.state.automatic = Automatic::On;
                self.state.budget = Spent::refreshed();
                Ok("automatic failover is on".to_owned())
            }
        }
    }

    fn maintain(&mut self, node: &NodeName, upkeep: Upkeep, now: Now) -> Result<String, CommandError> {
        if !self.nodes.iter().any(|n| n.name == *node) {
            return Err(CommandError::UnknownNode(node.clone()));
        }
        let already = self.state.is_in_maintenance(node);
        match upkeep {
            Upkeep::End if already => {
                self.state.maintenance.retain(|other| other != node);
                // What its agent could not do before may well be done now.
                self.ledger.forget_results(node);
                Ok(format!("{node} is in service again"))
            }
            Upkeep::End => Ok(format!("{node} is not in maintenance")),
            Upkeep::Begin if already => Ok(format!("{node} is in maintenance already")),
            Upkeep::Begin if self.state.primary.as_ref().is_some_and(|primary| primary.node == *node) => {
                Err(CommandError::Primary(node.clone()))
            }
            // It may be the one that is to be promoted.
            Upkeep::Begin if !self.is_steady() || self.request.is_some() => {
                Err(CommandError::NotNow("an election, a switchover or the start is under way".to_owned()))
            }
            // What works on its files is left to its end.
            Upkeep::Begin
                if self.ledger.is_server_busy(node)
                    || self.members.at_work(now.instant).any(|other| other == node) =>
            {
                Err(CommandError::NotNow(format!("the agent of {node} is at work on it")))
            }
            Upkeep::Begin => {
                self.state.maintenance.push(node.clone());
                let left = self.nodes.iter().any(|other| self.check_candidate(&other.name).is_ok());
                let warning = if left { "" } else { "; no other node could take over from the primary now" };
                Ok(format!("{node} is in maintenance{warning}"))
            }
        }
    }

    fn foresee(
        &self,
        handover: Handover,
        to: Option<&NodeName>,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> Result<String, CommandError> {
        match handover {
            Handover::Failover => self.check_failover(to, now, wal, proxy)?,
            Handover::Switchover if !self.is_steady() => return Err(not_now()),
            Handover::Switchover => to.map_or(Ok(()), |to| self.check_candidate(to))?,
        }
        let health = self.watch.health(now.instant);
        let view = self.view(&health, now, wal, proxy);
        Ok(decide::forecast((&view, &self.state, &self.policy), handover, to, &self.history).to_string())
    }

    fn check_failover(
        &self,
        to: Option<&NodeName>,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> Result<(), CommandError> {
        let health = self.watch.health(now.instant);
        if !decide::takes_failover(&self.view(&health, now, wal, proxy), &self.state) {
            return Err(not_now());
        }
        to.map_or(Ok(()), |to| self.check_candidate(to))?;
        self.check_relays(now)
    }

    /// From whom to whom, if that is possible now.
    fn check_switchover(
        &self,
        to: Option<&NodeName>,
        now: Now,
        wal: &Arc<WalStatus>,
        proxy: &ProxyStatus,
    ) -> Result<(NodeName, NodeName), CommandError> {
        let not_now = |why: &str| Err(CommandError::NotNow(why.to_owned()));
        if let Some(to) = to {
            self.check_candidate(to)?;
        }
        if !self.is_steady() || self.request.is_some() {
            return not_now("an election, a switchover or the start is under way");
        }
        if self.state.restarts.now.is_some() {
            return not_now("servers are restarted; cancel that first");
        }
        if self.state.automatic == Automatic::Paused {
            return not_now("automatic failover is paused; resume first");
        }
        if proxy.draining != Draining::default() {
            return not_now("connections are still served by the process before this one");
        }
        self.check_relays(now)?;
        let health = self.watch.health(now.instant);
        let view = self.view(&health, now, wal, proxy);
        let successor = decide::successor(&view, &self.state, to).map_err(CommandError::NotNow)?;
        let primary = self.state.primary.as_ref().map(|primary| primary.node.clone());
        primary
            .map(|primary| (primary, successor))
            .ok_or_else(|| CommandError::NotNow("no primary".to_owned()))
    }

    /// Whether an election would be fenced; else the primary would only be away for a while.
    fn check_relays(&self, now: Now) -> Result<(), CommandError> {
        let missing = self.members.missing_for_an_election(now.instant, &self.state.quorums);
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(" and ");
        Err(CommandError::NotNow(format!("too few relays are heard to promise a term; not heard: {missing}")))
    }

    fn check_candidate(&self, to: &NodeName) -> Result<(), CommandError> {
        let node = self.nodes.iter().find(|n| n.name == *to);
        let node = node.ok_or_else(|| CommandError::UnknownNode(to.clone()))?;
        let unfit = |why: &str| Err(CommandError::Unfit(to.clone(), why.to_owned()));
        if self.state.primary.as_ref().is_some_and(|p| p.node == *to) {
            return unfit("it is the primary");
        }
        if self.state.is_in_maintenance(to) {
            return unfit("it is in maintenance");
        }
        if node.no_failover { unfit("it is configured with no_failover") } else { Ok(()) }
    }
}

fn not_now() -> CommandError {
    CommandError::NotNow("an election or the start is under way".to_owned())
}
