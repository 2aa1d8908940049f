//! An operator's order to restart servers: of which, in which order, and why not. PURE.

use std::sync::Arc;

use super::Core;
use crate::failover::command::Servers;
use crate::failover::decide::{self, Automatic, Now, Request, Stragglers};
use crate::failover::error::CommandError;
use crate::topology::{NodeName, ProxyStatus, Restart, WalStatus};

impl Core {
    /// All that are remembered, the one that is under way last.
    pub(crate) fn restarts(&self) -> Vec<Restart> {
        let mut all = self.state.restarts.all();
        if let Some(last) = all.last_mut().filter(|restart| restart.is_running()) {
            last.waits_for.clone_from(&self.waits_for);
        }
        all
    }

    pub(super) fn restart(
        &mut self,
        servers: &Servers,
        stragglers: Stragglers,
        now: Now,
        seen: (&Arc<WalStatus>, &ProxyStatus),
    ) -> Result<String, CommandError> {
        let (nodes, why_not) = self.plan(servers, now, seen)?;
        if let Some(why) = why_not {
            return Err(CommandError::NotNow(why));
        }
        let said = match nodes.as_slice() {
            [only] => format!("the restart of {only} has begun"),
            all => format!("the restart of {} has begun, one after the other", names(all)),
        };
        self.request = Some(Request::Restart { nodes, stragglers });
        Ok(said)
    }

    pub(super) fn foresee_restart(
        &self,
        servers: &Servers,
        now: Now,
        seen: (&Arc<WalStatus>, &ProxyStatus),
    ) -> Result<String, CommandError> {
        let (nodes, why_not) = self.plan(servers, now, seen)?;
        let primary = self.state.primary.as_ref().map(|primary| &primary.node);
        let line = |node: &NodeName| {
            let version = self.watch.facts(node).map_or("?", |facts| facts.server_version.as_str());
            let how = if Some(node) == primary {
                "the primary: a switchover to a standby first, and back as one"
            } else {
                "a standby: its reads go elsewhere, its agent stops and starts it"
            };
            format!("{node}, {version}: {how}")
        };
        let verdict = why_not.map_or_else(
            || "nothing stands in the way".to_owned(),
            |why| format!("it would not begin now: {why}"),
        );
        Ok(nodes.iter().map(line).chain([verdict]).collect::<Vec<_>>().join("\n"))
    }

    pub(super) fn cancel_restart(&mut self) -> Result<String, CommandError> {
        let Some(rolling) = &mut self.state.restarts.now else {
            return Err(CommandError::NotNow("no restart is under way".to_owned()));
        };
        rolling.ends = Some("an operator cancelled it".to_owned());
        Ok("the restart ends; a server that is down for it comes back first".to_owned())
    }

    /// Whose turn comes after whose, and what stands in the way of it now. Who cannot be restarted at all is an error.
    fn plan(
        &self,
        servers: &Servers,
        now: Now,
        (wal, proxy): (&Arc<WalStatus>, &ProxyStatus),
    ) -> Result<(Vec<NodeName>, Option<String>), CommandError> {
        let nodes = self.in_turn(servers)?;
        let health = self.watch.health(now.instant);
        let view = self.view(&health, now, wal, proxy);
        for name in &nodes {
            let node = view.nodes.iter().find(|node| node.node.name == *name);
            if let Some(why) = node.and_then(decide::why_not_by_agent) {
                return Err(CommandError::NotRestarted(name.clone(), why));
            }
        }
        let obstacle = || nodes.iter().find_map(|node| decide::obstacle_to_restart(&view, &self.state, node));
        let why_not = self.not_now().map(str::to_owned).or_else(obstacle);
        Ok((nodes, why_not))
    }

    /// The standbys as they are configured, and the primary behind them.
    fn in_turn(&self, servers: &Servers) -> Result<Vec<NodeName>, CommandError> {
        let mut nodes: Vec<NodeName> = self.nodes.iter().map(|node| node.name.clone()).collect();
        match servers {
            Servers::One(name) if !nodes.contains(name) => Err(CommandError::UnknownNode(name.clone())),
            Servers::One(name) => Ok(vec![name.clone()]),
            Servers::All => {
                let primary = self.state.primary.as_ref().map(|primary| &primary.node);
                nodes.sort_by_key(|name| Some(name) == primary);
                Ok(nodes)
            }
        }
    }

    fn not_now(&self) -> Option<&'static str> {
        if self.state.restarts.now.is_some() {
            Some("a restart is under way already")
        } else if !self.is_steady() || self.request.is_some() {
            Some("an election, a switchover or the start is under way")
        } else if self.state.automatic == Automatic::Paused {
            Some("automatic failover is paused; resume first")
        } else {
            None
        }
    }
}

/// `pg2, pg3 and pg1`.
fn names(nodes: &[NodeName]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
