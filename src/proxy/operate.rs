//! What an operator may ask of the query plane. The meanings are PgBouncer's.

use std::sync::Arc;
use std::time::Duration;

use super::pool::Key;
use super::{Proxy, ProxyConfig, Shared};
use crate::pg::error::{ErrorFields, SqlState};
use crate::topology::NodeName;

/// Whether all servers of a paused database have come back is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    #[error("no such database: {0}")]
    NoDatabase(String),
    #[error("no such client: {0}")]
    NoClient(u32),
}

impl From<OperateError> for ErrorFields {
    fn from(error: OperateError) -> ErrorFields {
        let code = match &error {
            OperateError::NoDatabase(_) => SqlState::INVALID_CATALOG_NAME,
            OperateError::NoClient(_) => SqlState::UNDEFINED_OBJECT,
        };
        ErrorFields::error(code, error.to_string())
    }
}

impl Proxy {
    /// From now on nobody gets a server of `database`, or of any; done when those in use have come back. New work
    /// waits in the queue, for as long as `wait` allows. Given up, it stays paused.
    pub async fn pause(&self, database: Option<&str>) -> Result<(), OperateError> {
        self.shared.knows(database)?;
        self.shared.pools.pause(database);
        let in_use = || {
            let of_pools = self.shared.pools.of_database(database).iter().any(|pool| pool.sizes() != (0, 0));
            of_pools || self.shared.slots.use_servers_of(database)
        };
        while in_use() && !self.shared.stop.is_cancelled() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// After a pause, or a kill.
    pub fn resume(&self, database: Option<&str>) -> Result<(), OperateError> {
        self.shared.knows(database)?;
        self.shared.pools.resume(database);
        Ok(())
    }

    /// Every server connection of `database`, or of any, is replaced: idle ones at once, others when they come
    /// back.
    pub fn reconnect(&self, database: Option<&str>) -> Result<(), OperateError> {
        self.shared.knows(database)?;
        for pool in self.shared.pools.of_database(database) {
            pool.renew();
        }
        Ok(())
    }

    /// Pauses `database`, and ends its sessions at once.
    pub fn kill(&self, database: &str) -> Result<(), OperateError> {
        self.shared.knows(Some(database))?;
        self.shared.pools.pause(Some(database));
        for slot in self.shared.slots.all() {
            if *slot.about.database == *database {
                slot.end(None, killed());
            }
        }
        Ok(())
    }

    /// Ends all sessions at once.
    pub fn kill_all(&self) {
        for slot in self.shared.slots.all() {
            slot.end(None, killed());
        }
    }

    /// Takes the node's servers from the sessions that use them now: a commit under way is in doubt (08007), a
    /// transaction is cut (40001).
    pub fn cut(&self, node: &NodeName) {
        self.shared.slots.clear(node);
    }

    /// Ends one session.
    pub fn kill_client(&self, id: u32) -> Result<(), OperateError> {
        let slots = self.shared.slots.all();
        let slot = slots.iter().find(|slot| slot.key.pid == id).ok_or(OperateError::NoClient(id))?;
        slot.end(None, killed());
        Ok(())
    }

    /// Another configuration, for those who are connected already, too. Only a session's pool mode and consistency
    /// stay as they were.
    pub fn reconfigure(&self, config: ProxyConfig) {
        let plan = config.plan.clone();
        self.shared.config.send_replace(Arc::new(config));
        let of = |key: &Key| (plan.limits(&key.database, &key.user), plan.caps(&key.database, &key.user));
        self.shared.pools.resize(of);
        for slot in self.shared.slots.all() {
            slot.set_timeouts(plan.limits(&slot.about.database, &slot.about.user).timeouts);
        }
    }
}

impl Shared {
    /// A database is known by what is configured for it, by its clients, or by its servers.
    fn knows(&self, database: Option<&str>) -> Result<(), OperateError> {
        let Some(name) = database else { return Ok(()) };
        let known = self.plan().databases.contains_key(name)
            || self.pools.is_paused(name)
            || !self.pools.of_database(database).is_empty()
            || self.slots.all().iter().any(|slot| *slot.about.database == *name);
        if known { Ok(()) } else { Err(OperateError::NoDatabase(name.to_owned())) }
    }
}

fn killed() -> ErrorFields {
    ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}
