//! What a client of some database and user may have: the pool's sizes and every limit in time.
//!
//! Defaults, what the configuration says for all, for a database, for a user: the later wins. Values only; the
//! pools, the sessions and the watch over their time each take what concerns them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::session::core::PoolMode;

/// After all overrides, for one database and user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub mode: PoolMode,
    pub size: PoolSize,
    /// How long a client waits for a server connection; then 53300.
    pub wait: Duration,
    /// A client that has waited so long is told in a NOTICE that it waits.
    pub notice_after: Duration,
    pub timeouts: Timeouts,
}

/// How many server connections one pool (a node, a database, a user) has, and how long it keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// Those being dialled included. Beyond it clients wait.
    pub size: usize,
    /// So many are kept open, and opened again, once the pool has been used. At most `size`.
    pub min_size: usize,
    /// So many more for clients that have waited for `reserve_after`.
    pub reserve_size: usize,
    pub reserve_after: Duration,
    /// An idle connection beyond `min_size` is closed after this time.
    pub idle: Duration,
    /// A connection is closed at about this age, when it is idle.
    pub lifetime: Duration,
}

/// What a session may spend; `None`: as long as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// For the answer to a statement. Then it is cancelled (57014).
    pub query: Option<Duration>,
    /// For a transaction. Then the session ends (25P04).
    pub transaction: Option<Duration>,
    /// Doing nothing within a transaction. Then the session ends (25P03).
    pub idle_transaction: Option<Duration>,
    /// Doing nothing outside of one. Then the session ends (57P05).
    pub client_idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            mode: PoolMode::Transaction,
            size: PoolSize {
                size: 20,
                min_size: 0,
                reserve_size: 0,
                reserve_after: seconds(5),
                idle: seconds(600),
                lifetime: seconds(3600),
            },
            wait: seconds(60),
            notice_after: seconds(5),
            timeouts: Timeouts::default(),
        }
    }
}

/// What one part of the configuration says; `None`: nothing. A timeout can be said to be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub mode: Option<PoolMode>,
    pub size: Option<usize>,
    pub min_size: Option<usize>,
    pub reserve_size: Option<usize>,
    pub reserve_after: Option<Duration>,
    pub idle: Option<Duration>,
    pub lifetime: Option<Duration>,
    pub wait: Option<Duration>,
    pub notice_after: Option<Duration>,
    pub query_timeout: Option<Option<Duration>>,
    pub transaction_timeout: Option<Option<Duration>>,
    pub idle_transaction_timeout: Option<Option<Duration>>,
    pub client_idle_timeout: Option<Option<Duration>>,
    pub totals: Totals,
}

/// Limits on sums over pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Client connections. One more is refused with 53300.
    pub max_clients: Option<usize>,
    /// Server connections per node. Beyond it clients wait.
    pub max_servers: Option<usize>,
}

/// The limits on server connections that one pool is subject to, each shared with other pools of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caps {
    pub(crate) all: Option<usize>,
    pub(crate) database: Option<usize>,
    pub(crate) user: Option<usize>,
}

/// Everything the configuration says about limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub all: Settings,
    pub databases: BTreeMap<String, Settings>,
    pub users: BTreeMap<String, Settings>,
}

impl Plan {
    pub(crate) fn limits(&self, database: &str, user: &str) -> Limits {
        let said = [Some(&self.all), self.databases.get(database), self.users.get(user)];
        let limits = said.into_iter().flatten().fold(Limits::default(), Limits::with);
        let min_size = limits.size.min_size.min(limits.size.size);
        Limits { size: PoolSize { min_size, ..limits.size }, ..limits }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.all.totals
    }

    pub(crate) fn totals_of_database(&self, database: &str) -> Totals {
        self.databases.get(database).map(|said| said.totals).unwrap_or_default()
    }

    pub(crate) fn totals_of_user(&self, user: &str) -> Totals {
        self.users.get(user).map(|said| said.totals).unwrap_or_default()
    }

    pub(crate) fn caps(&self, database: &str, user: &str) -> Caps {
        Caps {
            all: self.totals().max_servers,
            database: self.totals_of_database(database).max_servers,
            user: self.totals_of_user(user).max_servers,
        }
    }

    /// Whether any session's time is limited.
    pub(crate) fn has_timeouts(&self) -> bool {
        let said = std::iter::once(&self.all).chain(self.databases.values()).chain(self.users.values());
        said.into_iter().any(|said| Limits::default().with(said).timeouts != Timeouts::default())
    }
}

impl Limits {
    fn with(self, said: &Settings) -> Limits {
        let (size, timeouts) = (self.size, self.timeouts);
        Limits {
            mode: said.mode.unwrap_or(self.mode),
            size: PoolSize {
                size: said.size.unwrap_or(size.size),
                min_size: said.min_size.unwrap_or(size.min_size),
                reserve_size: said.reserve_size.unwrap_or(size.reserve_size),
                reserve_after: said.reserve_after.unwrap_or(size.reserve_after),
                idle: said.idle.unwrap_or(size.idle),
                lifetime: said.lifetime.unwrap_or(size.lifetime),
            },
            wait: said.wait.unwrap_or(self.wait),
            notice_after: said.notice_after.unwrap_or(self.notice_after),
            timeouts: Timeouts {
                query: said.query_timeout.unwrap_or(timeouts.query),
                transaction: said.transaction_timeout.unwrap_or(timeouts.transaction),
                idle_transaction: said.idle_transaction_timeout.unwrap_or(timeouts.idle_transaction),
                client_idle: said.client_idle_timeout.unwrap_or(timeouts.client_idle),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Caps, Plan, Settings, Totals};
    use crate::proxy::session::core::PoolMode;

    #[test]
    fn a_user_overrides_its_database_and_a_database_what_is_for_all() {
        let second = Duration::from_secs(1);
        let all = Settings {
            size: Some(5),
            min_size: Some(9),
            query_timeout: Some(Some(second)),
            totals: Totals { max_servers: Some(50), ..Totals::default() },
            ..Settings::default()
        };
        let database = Settings {
            size: Some(6),
            mode: Some(PoolMode::Session),
            totals: Totals { max_servers: Some(7), ..Totals::default() },
            ..Settings::default()
        };
        let user = Settings { size: Some(8), query_timeout: Some(None), ..Settings::default() };
        let plan = Plan {
            all,
            databases: [("d".to_owned(), database)].into(),
            users: [("u".to_owned(), user)].into(),
        };
        let of = |database, user| {
            let limits = plan.limits(database, user);
            (limits.size.size, limits.size.min_size, limits.mode, limits.timeouts.query)
        };
        assert_eq!(of("-", "-"), (5, 5, PoolMode::Transaction, Some(second)), "min_size is within size");
        assert_eq!(of("d", "-"), (6, 6, PoolMode::Session, Some(second)));
        assert_eq!(of("d", "u"), (8, 8, PoolMode::Session, None), "off is said, too");
        assert_eq!(plan.caps("d", "u"), Caps { all: Some(50), database: Some(7), user: None });
        assert!(plan.has_timeouts());
        assert!(!Plan::default().has_timeouts());
    }
}
