//! How many clients there are, of each database and user, and whether one more may come.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::limits::Plan;
use crate::pg::error::{ErrorFields, SqlState};

#[derive(Debug, Default)]
pub(crate) struct Clients {
    all: usize,
    databases: HashMap<Arc<str>, usize>,
    users: HashMap<Arc<str>, usize>,
}

impl Clients {
    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// One more, or why not: the words are PostgreSQL's (`InitPostgres` in postinit.c).
    pub(crate) fn enter(
        &mut self,
        database: &Arc<str>,
        user: &Arc<str>,
        plan: &Plan,
    ) -> Result<(), ErrorFields> {
        let full = |count: Option<&usize>, limit: Option<usize>| {
            limit.is_some_and(|limit| count.copied().unwrap_or(0) >= limit)
        };
        let message = if full(Some(&self.all), plan.totals().max_clients) {
            "sorry, too many clients already".to_owned()
        } else if full(self.databases.get(database), plan.totals_of_database(database).max_clients) {
            format!("too many connections for database \"{database}\"")
        } else if full(self.users.get(user), plan.totals_of_user(user).max_clients) {
            format!("too many connections for role \"{user}\"")
        } else {
            self.all += 1;
            *self.databases.entry(database.clone()).or_default() += 1;
            *self.users.entry(user.clone()).or_default() += 1;
            return Ok(());
        };
        Err(ErrorFields::fatal(SqlState::TOO_MANY_CONNECTIONS, message))
    }

    pub(crate) fn leave(&mut self, database: &Arc<str>, user: &Arc<str>) {
        self.all = self.all.saturating_sub(1);
        for (counts, name) in [(&mut self.databases, database), (&mut self.users, user)] {
            let Some(count) = counts.get_mut(name) else { continue };
            *count -= 1;
            if *count == 0 {
                counts.remove(name);
            }
        }
    }
}

/// A client that was counted in. Dropped, it is counted out.
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    clients: &'a Mutex<Clients>,
    database: Arc<str>,
    user: Arc<str>,
}

impl<'a> Entered<'a> {
    pub(crate) fn new(
        clients: &'a Mutex<Clients>,
        database: &Arc<str>,
        user: &Arc<str>,
        plan: &Plan,
    ) -> Result<Entered<'a>, ErrorFields> {
        clients.lock().enter(database, user, plan)?;
        Ok(Entered { clients, database: database.clone(), user: user.clone() })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.clients.lock().leave(&self.database, &self.user);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Clients;
    use crate::proxy::limits::{Plan, Settings, Totals};

    #[test]
    fn who_may_come_in() {
        let at_most = |max_clients| Settings {
            totals: Totals { max_clients: Some(max_clients), max_servers: None },
            ..Settings::default()
        };
        let plan = Plan {
            all: at_most(4),
            databases: [("d".to_owned(), at_most(2))].into(),
            users: [("u".to_owned(), at_most(1))].into(),
        };
        let mut clients = Clients::default();
        let names = |database: &str, user: &str| -> (Arc<str>, Arc<str>) { (database.into(), user.into()) };
        let mut told = vec![];
        for (database, user) in
            [("d", "u"), ("e", "u"), ("d", "v"), ("d", "w"), ("e", "v"), ("e", "v"), ("e", "w")]
        {
            let (database, user) = names(database, user);
            told.push(clients.enter(&database, &user, &plan).map_err(|error| error.message));
        }
        let refused = |message: &str| Err(message.to_owned());
        assert_eq!(
            told,
            [
                Ok(()),
                refused("too many connections for role \"u\""),
                Ok(()),
                refused("too many connections for database \"d\""),
                Ok(()),
                Ok(()),
                refused("sorry, too many clients already"),
            ]
        );
        let (database, user) = names("d", "u");
        clients.leave(&database, &user);
        assert_eq!(clients.enter(&database, &user, &plan), Ok(()));
        assert_eq!(clients.all(), 4);
    }
}
