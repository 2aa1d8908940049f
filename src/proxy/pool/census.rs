//! How many server connections of one node there are, where several pools share a limit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::proxy::limits::Caps;

/// One node's.
#[derive(Debug, Default)]
pub(crate) struct Census {
    all: usize,
    databases: HashMap<Arc<str>, usize>,
    users: HashMap<Arc<str>, usize>,
}

impl Census {
    /// One more connection, where none of the limits is reached.
    pub(crate) fn take(&mut self, database: &Arc<str>, user: &Arc<str>, caps: Caps) -> bool {
        let of = |counts: &HashMap<Arc<str>, usize>, name| counts.get(name).copied().unwrap_or(0);
        let counts = [
            (self.all, caps.all),
            (of(&self.databases, database), caps.database),
            (of(&self.users, user), caps.user),
        ];
        let has_room = counts.into_iter().all(|(count, cap)| cap.is_none_or(|cap| count < cap));
        if has_room {
            self.all += 1;
            *self.databases.entry(database.clone()).or_default() += 1;
            *self.users.entry(user.clone()).or_default() += 1;
        }
        has_room
    }

    /// `count` connections are gone.
    pub(crate) fn release(&mut self, database: &Arc<str>, user: &Arc<str>, count: usize) {
        debug_assert!(self.all >= count, "only what was taken is released");
        self.all = self.all.saturating_sub(count);
        for (counts, name) in [(&mut self.databases, database), (&mut self.users, user)] {
            let Some(held) = counts.get_mut(name) else { continue };
            *held = held.saturating_sub(count);
            if *held == 0 {
                counts.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Census;
    use crate::proxy::limits::Caps;

    #[test]
    fn each_limit_counts_what_it_is_for() {
        let mut census = Census::default();
        let names = |database: &str, user: &str| -> (Arc<str>, Arc<str>) { (database.into(), user.into()) };
        let caps = Caps { all: Some(3), database: Some(2), user: Some(1) };
        for (database, user, expected) in [
            ("a", "x", true),
            ("b", "x", false),
            ("a", "y", true),
            ("a", "z", false),
            ("b", "z", true),
            ("c", "w", false),
        ] {
            let (database, user) = names(database, user);
            assert_eq!(census.take(&database, &user, caps), expected, "{database} {user}");
        }
        let (database, user) = names("a", "x");
        census.release(&database, &user, 1);
        assert!(census.take(&"b".into(), &"x".into(), caps));
    }
}
