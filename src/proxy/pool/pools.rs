//! All pools: made when they are first needed, kept up once a second, and the limits that several of them share.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::census::Census;
use super::core::Core;
use super::{Key, Lease, Pool};
use crate::net::Credentials;
use crate::net::TlsForServers;
use crate::proxy::evidence::NodeEvidence;
use crate::proxy::limits::{Caps, Limits};
use crate::topology::{Address, NodeName};

/// A connection that others wait for because of a shared limit is taken from a pool that has more of them, when
/// they have waited so long. Idle ones are taken at once.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Pools {
    /// Locked when a session first needs a pool, not per statement; before any pool's own lock.
    pools: Mutex<HashMap<Key, Arc<Pool>>>,
    censuses: Mutex<HashMap<NodeName, Arc<Mutex<Census>>>>,
    paused: Mutex<Paused>,
}

/// Whose pools hand nothing out.
#[derive(Debug, Default)]
struct Paused {
    all: bool,
    databases: BTreeSet<String>,
}

impl Paused {
    fn contains(&self, database: &str) -> bool {
        self.all || self.databases.contains(database)
    }
}

/// What a new pool is made of.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub(crate) address: Address,
    pub(crate) tls: TlsForServers,
    /// Of every startup packet.
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) limits: Limits,
    pub(crate) caps: Caps,
    pub(crate) evidence: Arc<NodeEvidence>,
}

impl Pools {
    pub(crate) fn pool(self: &Arc<Pools>, key: &Key, blueprint: impl FnOnce() -> Blueprint) -> Arc<Pool> {
        let new = || {
            let Blueprint { address, tls, parameters, limits, caps, evidence } = blueprint();
            let mut core = Core::new(limits.size);
            if self.paused.lock().contains(&key.database) {
                core.pause();
            }
            Arc::new(Pool {
                key: key.clone(),
                address,
                tls,
                parameters,
                core: Mutex::new(core),
                census: self.censuses.lock().entry(key.node.clone()).or_default().clone(),
                caps: Mutex::new(caps),
                pools: Arc::downgrade(self),
                credentials: Mutex::default(),
                evidence,
            })
        };
        self.pools.lock().entry(key.clone()).or_insert_with(new).clone()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pool>> {
        self.pools.lock().values().cloned().collect()
    }

    pub(crate) fn of(&self, node: &NodeName) -> Vec<Arc<Pool>> {
        self.pools.lock().values().filter(|pool| pool.key.node == *node).cloned().collect()
    }

    /// Those of `database`, or all.
    pub(crate) fn of_database(&self, database: Option<&str>) -> Vec<Arc<Pool>> {
        let wanted = |pool: &&Arc<Pool>| database.is_none_or(|name| *pool.key.database == *name);
        self.pools.lock().values().filter(wanted).cloned().collect()
    }

    pub(crate) fn pause(&self, database: Option<&str>) {
        {
            let mut paused = self.paused.lock();
            match database {
                None => paused.all = true,
                Some(name) => drop(paused.databases.insert(name.to_owned())),
            }
        }
        for pool in self.of_database(database) {
            pool.pause();
        }
    }

    /// Resuming all resumes each.
    pub(crate) fn resume(&self, database: Option<&str>) {
        {
            let mut paused = self.paused.lock();
            match database {
                None => *paused = Paused::default(),
                Some(name) => drop(paused.databases.remove(name)),
            }
            if paused.all {
                return;
            }
        }
        for pool in self.of_database(database) {
            pool.resume();
        }
    }

    pub(crate) fn is_paused(&self, database: &str) -> bool {
        self.paused.lock().contains(database)
    }

    /// Gives every pool its limits anew.
    pub(crate) fn resize(&self, limits: impl Fn(&Key) -> (Limits, Caps)) {
        for pool in self.all() {
            let (limits, caps) = limits(&pool.key);
            pool.resize(limits.size, caps);
        }
    }

    /// A permit of `node` is free: whoever has waited longest for one gets it.
    pub(super) fn offer(&self, node: &NodeName) {
        let mut wanting: Vec<_> =
            self.of(node).into_iter().filter_map(|pool| Some((since(&pool)?, pool))).collect();
        wanting.sort_by_key(|(since, _)| *since);
        for (_, pool) in wanting {
            pool.offer();
        }
    }

    /// Closes an idle connection of a pool that shares a limit with `pool`, which then gets the permit.
    pub(super) fn evict_for(&self, pool: &Pool) {
        let caps = *pool.caps.lock();
        self.evict(&pool.key.node, |other| share(caps, pool, other));
    }

    /// Whether an idle connection was closed.
    fn evict(&self, node: &NodeName, sharing: impl Fn(&Pool) -> bool) -> bool {
        for other in self.of(node).into_iter().filter(|other| sharing(other)) {
            let evicted = other.core.lock().evict();
            if evicted.is_some() {
                drop(evicted);
                other.release_permits(1);
                return true;
            }
        }
        false
    }

    /// The right to a connection outside of the pools that counts against the limits they share. Idle connections
    /// make room for it; `None` when those in use leave none: it does not queue.
    pub(crate) fn permit(self: &Arc<Pools>, key: &Key, caps: Caps) -> Option<Permit> {
        let census = self.censuses.lock().entry(key.node.clone()).or_default().clone();
        let take = || census.lock().take(&key.database, &key.user, caps);
        let taken = take() || (self.evict(&key.node, |other| counts_for(caps, key, &other.key)) && take());
        taken.then(|| Permit { pools: self.clone(), census: census.clone(), key: key.clone() })
    }

    /// To be called about once a second. What should be dialled to keep the pools at their minimum.
    pub(crate) fn keep_up(&self, now: Instant) -> Vec<(Lease, Credentials)> {
        // A pool without connections that no session knows: of a database that does not exist, for instance.
        self.pools.lock().retain(|_, pool| Arc::strong_count(pool) > 1 || pool.sizes() != (0, 0));
        let pools = self.all();
        for pool in &pools {
            pool.expire(now);
            let long_since = |since| now.saturating_duration_since(since) >= PATIENCE;
            if since(pool).is_some_and(long_since) {
                Pools::demand_for(pool, &pools);
            }
        }
        pools.iter().flat_map(Pool::warm_up).collect()
    }

    /// The one with the most connections of those that share a limit with `pool` gives one of them up, if it has
    /// more.
    fn demand_for(pool: &Arc<Pool>, pools: &[Arc<Pool>]) {
        let caps = *pool.caps.lock();
        let total = |pool: &Arc<Pool>| {
            let (idle, in_use) = pool.sizes();
            idle + in_use
        };
        let sharing =
            pools.iter().filter(|other| other.key.node == pool.key.node && share(caps, pool, other));
        let richest = sharing.max_by_key(|other| total(other));
        if let Some(richest) = richest.filter(|richest| total(richest) > total(pool)) {
            richest.core.lock().owe();
        }
    }
}

/// Since when the first who waits there for nothing but a permit has done so.
fn since(pool: &Arc<Pool>) -> Option<Instant> {
    let core = pool.core.lock();
    core.waiting_since().filter(|_| core.wants_permit())
}

/// Whether a connection of `other` counts against a limit of `pool`, another one.
fn share(caps: Caps, pool: &Pool, other: &Pool) -> bool {
    counts_for(caps, &pool.key, &other.key) && pool.key != other.key
}

/// Whether a connection under `other` counts against a limit of what is under `key`.
fn counts_for(caps: Caps, key: &Key, other: &Key) -> bool {
    caps.all.is_some()
        || (caps.database.is_some() && key.database == other.database)
        || (caps.user.is_some() && key.user == other.user)
}

/// One server connection of `key` outside of the pools. Dropped, it makes room for another.
#[derive(Debug)]
pub(crate) struct Permit {
    pools: Arc<Pools>,
    census: Arc<Mutex<Census>>,
    key: Key,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.census.lock().release(&self.key.database, &self.key.user, 1);
        self.pools.offer(&self.key.node);
    }
}

impl Pool {
    /// Places for what is missing at the minimum.
    fn warm_up(self: &Arc<Pool>) -> Vec<(Lease, Credentials)> {
        let mut leases = vec![];
        let Some(credentials) = self.credentials.lock().clone() else { return leases };
        while self.core.lock().warm_up(|| self.take_permit()) {
            leases.push((self.lease(None), credentials.clone()));
        }
        leases
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Key, Pools};
    use crate::proxy::limits::Caps;

    #[test]
    fn a_connection_outside_of_the_pools_counts_as_one_of_theirs() {
        let pools = Arc::new(Pools::default());
        let key = |node: &str, database: &str, user: &str| Key {
            node: node.parse().expect("a name"),
            database: database.into(),
            user: user.into(),
        };
        let caps = Caps { all: Some(2), database: None, user: Some(1) };
        let first = pools.permit(&key("pg1", "d", "a"), caps);
        assert!(first.is_some());
        assert!(pools.permit(&key("pg1", "e", "a"), caps).is_none(), "of the same user");
        let second = pools.permit(&key("pg1", "d", "b"), caps);
        assert!(second.is_some());
        assert!(pools.permit(&key("pg1", "d", "c"), caps).is_none(), "of all");
        assert!(pools.permit(&key("pg2", "d", "a"), caps).is_some(), "per node");
        drop(first);
        assert!(pools.permit(&key("pg1", "e", "a"), caps).is_some());
    }
}
