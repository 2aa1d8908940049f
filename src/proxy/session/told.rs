//! What the client has been told of the server's parameters (ParameterStatus), so that it hears of a change and
//! not of every server that it is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::proxy::guc::Settings;

#[derive(Debug, Default)]
pub(super) struct Told {
    /// In the greeting; shared by all clients of a database and user.
    greeting: Arc<[(String, String)]>,
    /// What the client asked for in its startup packet, and was greeted with instead.
    asked: Arc<Settings>,
    /// Otherwise than at the beginning. At most [`MAX_CHANGED`].
    changed: BTreeMap<Box<str>, Box<str>>,
}

/// PostgreSQL 18 reports 15 parameters. Beyond the bound a report is passed on each time.
const MAX_CHANGED: usize = 64;

impl Told {
    pub(super) fn greeted(&mut self, greeting: Arc<[(String, String)]>, asked: Arc<Settings>) {
        self.greeting = greeting;
        self.asked = asked;
    }

    /// What the client knows.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let greeted = || {
            let (_, value) = self.greeting.iter().find(|(known, _)| known == name)?;
            Some(self.asked.value(&name.to_ascii_lowercase()).unwrap_or(value))
        };
        self.changed.get(name).map(AsRef::as_ref).or_else(greeted)
    }

    /// The client is about to be told; whether that is news.
    pub(super) fn tell(&mut self, name: &str, value: &str) -> bool {
        if self.value(name) == Some(value) {
            return false;
        }
        if self.changed.len() < MAX_CHANGED || self.changed.contains_key(name) {
            self.changed.insert(name.into(), value.into());
        }
        true
    }
}
