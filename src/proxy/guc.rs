//! The settings (PostgreSQL's GUCs) that a client asked for in its startup packet, and how a server connection that has others gets
//! them. A server connection is dialled without any of a client's, so that RESET always means the server's own
//! default (but for `synchronous_commit` under quorum durability, which is ours).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::route::{self, knob::PREFIX};

/// Ordinary settings by name in lower case. Ours (`bellwether.*`) are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<String, String>);

/// What a startup packet's parameters come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Startup {
    pub(crate) settings: Settings,
    /// `bellwether.*`, in their order.
    pub(crate) knobs: Vec<(String, String)>,
}

/// Bound on the settings of one client; the rest is ignored.
const MAX_SETTINGS: usize = 100;

impl Startup {
    /// `options` is read as the server's command line is (`-c name=value`, `--name=value`, backslash escapes;
    /// pg_split_opts in postinit.c).
    pub(crate) fn read(parameters: &[(String, String)]) -> Startup {
        let mut startup = Startup::default();
        // The packet's own parameters win over `options` (process_startup_options in postinit.c).
        let options = parameters.iter().filter(|(name, _)| name == "options");
        for (name, value) in options.flat_map(|(_, text)| read_options(text)) {
            startup.add(&name, value);
        }
        for (name, value) in parameters.iter().filter(|(name, _)| !is_ours_to_read(name)) {
            startup.add(name, value.clone());
        }
        startup
    }

    fn add(&mut self, name: &str, value: String) {
        let name = name.to_ascii_lowercase();
        if name.starts_with(PREFIX) {
            self.knobs.push((name, value));
        } else if self.settings.0.len() < MAX_SETTINGS {
            self.settings.0.insert(name, value);
        }
    }
}

/// Startup parameters that are no settings; `_pq_.` are protocol extensions.
fn is_ours_to_read(name: &str) -> bool {
    matches!(name, "user" | "database" | "options" | "replication") || name.starts_with("_pq_.")
}

fn read_options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![];
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let mut settings = vec![];
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next(),
            Some(assignment) => Some(assignment.to_owned()),
            None => None,
        };
        if let Some((name, value)) = assignment.as_deref().and_then(|a| a.split_once('=')) {
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    settings
}

impl Settings {
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether commits under these settings wait for the synchronous standbys.
    pub(crate) fn waits_for_quorum(&self) -> bool {
        self.value("synchronous_commit").is_none_or(route::waits_for_quorum)
    }

    /// The statements that turn a server with `present` into one with these; empty when nothing differs.
    pub(crate) fn change_from(&self, present: &Settings) -> String {
        let mut sql = String::new();
        for name in present.0.keys().filter(|name| !self.0.contains_key(*name)) {
            let _ = write!(sql, "RESET {};", identifier(name));
        }
        for (name, value) in self.0.iter().filter(|(name, value)| present.0.get(*name) != Some(*value)) {
            let _ = write!(sql, "SET {} TO {};", identifier(name), values(name, value));
        }
        sql
    }
}

fn identifier(name: &str) -> String {
    // `a.b` is two identifiers.
    name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect::<Vec<_>>().join(".")
}

fn values(name: &str, value: &str) -> String {
    let list = matches!(name, "search_path" | "datestyle" | "temp_tablespaces" | "session_preload_libraries");
    if !list {
        return literal(value);
    }
    // SET quotes each argument of a list setting as one name; what the packet has is the list's text.
    let items = value.split(',').map(|item| literal(unquoted(item.trim()).as_str()));
    items.collect::<Vec<_>>().join(", ")
}

fn unquoted(item: &str) -> String {
    match item.strip_prefix('"').and_then(|item| item.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => item.to_owned(),
    }
}

fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    // E'' reads backslashes the same whatever standard_conforming_strings says.
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::{Settings, Startup};

    fn startup(parameters: &[(&str, &str)]) -> Startup {
        let parameters: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Startup::read(&parameters)
    }

    #[test]
    fn startup_packets() {
        let read = startup(&[
            ("user", "u"),
            ("application_name", "app"),
            ("options", "-c geqo=off --work-mem=1MB -cbellwether.route=standby -c search_path=a,\\ b -B 7"),
            ("DateStyle", "ISO"),
        ]);
        assert_eq!(read.knobs, [("bellwether.route".to_owned(), "standby".to_owned())]);
        assert_eq!(
            read.settings.change_from(&Settings::default()),
            "SET \"application_name\" TO 'app';SET \"datestyle\" TO 'ISO';SET \"geqo\" TO 'off';\
             SET \"search_path\" TO 'a', 'b';SET \"work_mem\" TO '1MB';"
        );
    }

    #[test]
    fn only_the_difference_is_sent() {
        let one = startup(&[("application_name", "it's"), ("timezone", "UTC")]).settings;
        let other = startup(&[("application_name", "b\\c"), ("my.guc", "1"), ("timezone", "UTC")]).settings;
        assert_eq!(one.change_from(&one), "");
        assert_eq!(one.change_from(&other), "RESET \"my\".\"guc\";SET \"application_name\" TO 'it''s';");
        assert_eq!(
            other.change_from(&one),
            "SET \"application_name\" TO E'b\\\\c';SET \"my\".\"guc\" TO '1';"
        );
    }
}
