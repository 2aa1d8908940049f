//! What the client has been told of the server's parameters (ParameterStatus), so that it hears of a change and
//! not of every server that it is given.

use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct Told {
    /// In the greeting; shared by all clients of a database and user.
    greeting: Arc<[(String, String)]>,
    /// Otherwise than in the greeting. At most [`MAX_CHANGED`].
    changed: BTreeMap<Box<str>, Box<str>>,
}

/// PostgreSQL 18 reports 15 parameters. Beyond the bound a report is passed on each time.
const MAX_CHANGED: usize = 64;

impl Told {
    pub(super) fn greeted(&mut self, greeting: Arc<[(String, String)]>) {
        self.greeting = greeting;
    }

    /// The client is about to be told; whether that is news.
    pub(super) fn tell(&mut self, name: &str, value: &str) -> bool {
        let greeted =
            || self.greeting.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let known = self.changed.get(name).map(AsRef::as_ref).or_else(greeted);
        if known == Some(value) {
            return false;
        }
        if self.changed.len() < MAX_CHANGED || self.changed.contains_key(name) {
            self.changed.insert(name.into(), value.into());
        }
        true
    }
}
