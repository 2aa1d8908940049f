//! The values of a server's parameters (ParameterStatus): those that a server connection has, and those that a client
//! has been told.
//!
//! Since PostgreSQL 14 a server reports what has changed in front of ReadyForQuery and nowhere else
//! (`ReportChangedGUCOptions` in guc.c). A client of many servers is told there what the one at hand has otherwise
//! than it has heard, whichever server made the difference and when.

use std::sync::Arc;

use super::core::{Core, ServerState};
use super::lane::Lane;
use super::message;

#[derive(Debug, Default)]
pub(crate) struct Reported {
    /// After login, or in the greeting; shared by all who have the same.
    first: Arc<[(String, String)]>,
    /// Otherwise than in `first`, by name. At most [`MAX_CHANGED`], and for most clients one: a list needs less room
    /// than a map.
    since: Vec<(Box<str>, Box<str>)>,
}

/// PostgreSQL 18 reports 15 parameters. Beyond the bound a change is not noted, and so not passed on.
const MAX_CHANGED: usize = 64;

/// Not the session's, but the node's or the database's. A client hears of them in its greeting alone.
const OF_THE_NODE: [&str; 4] = ["in_hot_standby", "integer_datetimes", "server_encoding", "server_version"];

impl Reported {
    pub(crate) fn first(first: Arc<[(String, String)]>) -> Reported {
        Reported { first, since: vec![] }
    }

    /// What was reported after login.
    pub(crate) fn default_of(&self, name: &str) -> Option<&str> {
        self.first.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        match self.find(name) {
            Ok(at) => Some(&self.since[at].1),
            Err(_) => self.default_of(name),
        }
    }

    /// Notes a value; whether it is news.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> bool {
        if self.value(name) == Some(value) {
            return false;
        }
        let is_first = self.default_of(name) == Some(value);
        match self.find(name) {
            Ok(at) if is_first => drop(self.since.remove(at)),
            Ok(at) => self.since[at].1 = value.into(),
            Err(_) if self.since.len() == MAX_CHANGED => return false,
            Err(at) => {
                self.since.reserve_exact(1);
                self.since.insert(at, (name.into(), value.into()));
            }
        }
        true
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.since.binary_search_by(|(known, _)| (**known).cmp(name))
    }

    /// Known to be the same at a glance.
    pub(crate) fn is_same(&self, other: &Reported) -> bool {
        Arc::ptr_eq(&self.first, &other.first) && self.since == other.since
    }

    /// What a session can have at a server that has reported this.
    pub(crate) fn of_session(&self) -> impl Iterator<Item = (&str, &str)> {
        let first = self.first.iter().map(|(name, _)| name.as_str());
        let later = self.since.iter().map(|(name, _)| &**name).filter(|name| self.default_of(name).is_none());
        first
            .chain(later)
            .filter(|name| !OF_THE_NODE.contains(name))
            .filter_map(|name| Some((name, self.value(name)?)))
    }

    /// Takes `other`'s first values for its own where they are the same, so that this is seen at a glance from now on.
    pub(crate) fn share_first(&mut self, other: &Reported) {
        let same = |(name, value): &(String, String)| {
            OF_THE_NODE.contains(&name.as_str()) || other.default_of(name) == Some(value.as_str())
        };
        if self.first.len() == other.first.len() && self.first.iter().all(same) {
            self.first = other.first.clone();
        }
    }
}

impl Core {
    /// ParameterStatus in the greeting: what a server has reported, but for what the client has asked for itself.
    pub(crate) fn greet(&mut self, parameters: &Arc<[(String, String)]>, out: &mut Vec<u8>) {
        self.told = Reported::first(parameters.clone());
        for (name, value) in parameters.iter() {
            let asked = self.state.settings().value(&name.to_ascii_lowercase());
            // The server's own spelling of the same.
            let asked = asked.filter(|asked| !asked.eq_ignore_ascii_case(value));
            self.told.set(name, asked.unwrap_or(value));
            message::put_parameter(out, name, asked.unwrap_or(value));
        }
    }

    /// In front of a ReadyForQuery: what the client has been told otherwise.
    pub(super) fn tell_changes(&mut self, server: &mut ServerState, down: &mut Lane) {
        let instead = self.state.instead(server);
        if instead.is_empty() && self.told.is_same(&server.reported) {
            return;
        }
        for (name, value) in server.reported.of_session() {
            let kept = instead.iter().find(|(other, _)| name.eq_ignore_ascii_case(other));
            let value = kept.map_or(value, |(_, kept)| kept);
            if self.told.set(name, value) {
                message::put_parameter(down.out(), name, value);
            }
        }
        server.reported.share_first(&self.told);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Reported;

    fn first(values: &[(&str, &str)]) -> Reported {
        Reported::first(
            values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        )
    }

    #[test]
    fn a_value_is_news_once() {
        let mut reported = first(&[("TimeZone", "UTC")]);
        assert!(!reported.set("TimeZone", "UTC"));
        assert!(reported.set("TimeZone", "CET"));
        assert!(!reported.set("TimeZone", "CET"));
        assert!(reported.set("search_path", "public"));
        assert!(reported.set("TimeZone", "UTC"));
        assert_eq!(
            (reported.value("TimeZone"), reported.value("search_path")),
            (Some("UTC"), Some("public"))
        );
        assert_eq!(reported.since.len(), 1, "back to the first value is no change");
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let mut reported = Reported::default();
        for n in 0..super::MAX_CHANGED {
            assert!(reported.set(&format!("a.b{n}"), "1"));
        }
        assert!(!reported.set("a.c", "1") && reported.set("a.b0", "2"));
    }

    #[test]
    fn servers_that_differ_as_nodes_do_are_the_same_to_a_client() {
        let client = first(&[("in_hot_standby", "off"), ("TimeZone", "UTC")]);
        for (zone, same) in [("UTC", true), ("CET", false)] {
            let mut server = first(&[("in_hot_standby", "on"), ("TimeZone", zone)]);
            assert!(!client.is_same(&server));
            server.share_first(&client);
            assert_eq!(client.is_same(&server), same);
            assert_eq!(server.of_session().collect::<Vec<_>>(), [("TimeZone", zone)]);
        }
        let mut changed = Reported::first(client.first.clone());
        changed.set("TimeZone", "CET");
        assert!(!client.is_same(&changed));
        assert!(Arc::ptr_eq(&client.first, &changed.first));
    }
}
