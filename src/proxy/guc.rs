//! PostgreSQL's settings (GUCs) as one client has them, and how a server connection that has others gets them.
//!
//! A server connection is dialled without any of a client's, so that a setting that is not named here has the
//! server's own default there (but for `synchronous_commit` under quorum durability, which is ours). What RESET
//! means to a client is another matter: its startup packet's value, as it would be without us.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::route::{self, NewValue, SessionEffect, knob::PREFIX};

/// Ordinary settings by name in lower case. Ours (`bellwether.*`) are not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<Box<str>, Box<str>>);

/// What a startup packet's parameters come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Startup {
    pub(crate) settings: Settings,
    /// `bellwether.*`, in their order.
    pub(crate) knobs: Vec<(String, String)>,
}

/// Bound on the settings of one client. More in a startup packet are ignored; a client that SETs more keeps its
/// server.
pub(crate) const MAX_SETTINGS: usize = 100;

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
            self.settings.0.insert(name.into(), value.into());
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
        self.0.get(name).map(AsRef::as_ref)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.into(), value.into());
    }

    /// Those that are not set in `other`.
    pub(crate) fn missing_in(&self, other: &Settings) -> impl Iterator<Item = (&str, &str)> {
        let missing = self.0.iter().filter(|(name, _)| !other.0.contains_key(*name));
        missing.map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// What `effect` makes of these, where a reset goes back to `defaults`.
    pub(crate) fn apply(&mut self, effect: &SessionEffect, defaults: &Settings) {
        match effect {
            SessionEffect::Set(name, NewValue::Value(value)) => self.set(name, value),
            SessionEffect::Set(name, NewValue::Default) | SessionEffect::Reset(name) => {
                self.reset(name, defaults);
            }
            SessionEffect::ResetAll => {
                // GUC_NO_RESET_ALL in guc_tables.c.
                self.0.retain(|name, _| is_identity(name));
                let others = defaults.0.iter().filter(|(name, _)| !is_identity(name));
                self.0.extend(others.map(|(name, value)| (name.clone(), value.clone())));
            }
            _ => return,
        }
        if matches!(effect, SessionEffect::Set(name, _) | SessionEffect::Reset(name) if **name == *AUTHORIZATION)
        {
            // SetSessionAuthorization in miscinit.c: the role is the new user's own.
            self.0.remove(ROLE);
        }
    }

    fn reset(&mut self, name: &str, defaults: &Settings) {
        match defaults.value(name) {
            Some(value) => self.set(name, value),
            None => drop(self.0.remove(name)),
        }
    }

    /// Whether commits under these settings wait for the synchronous standbys.
    pub(crate) fn waits_for_quorum(&self) -> bool {
        self.value("synchronous_commit").is_none_or(route::waits_for_quorum)
    }

    /// ... and to be replayed there.
    pub(crate) fn awaits_replay(&self) -> bool {
        self.value("synchronous_commit").is_some_and(|value| value.eq_ignore_ascii_case("remote_apply"))
    }

    /// Those of these settings that may say what a text means when it is parsed, as a key: all but the ones that are
    /// known not to.
    pub(crate) fn parse_context(&self) -> Arc<[u8]> {
        // Not client_encoding: the same bytes are another text in another encoding.
        const IRRELEVANT: [&str; 11] = [
            "application_name",
            "bytea_output",
            "client_min_messages",
            "extra_float_digits",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
            "lock_timeout",
            "statement_timeout",
            "synchronous_commit",
            "transaction_timeout",
            "work_mem",
        ];
        let relevant = self.0.iter().filter(|(name, _)| !IRRELEVANT.contains(&name.as_ref()));
        let mut key = Vec::new();
        for (name, value) in relevant {
            key.extend_from_slice(name.as_bytes());
            key.push(b'=');
            key.extend_from_slice(value.as_bytes());
            key.push(0);
        }
        key.into()
    }

    /// Under these settings what looks like a read may be none on a standby: SERIALIZABLE is refused there, and
    /// a schema in front of `pg_catalog` may hide its functions.
    pub(crate) fn need_primary(&self) -> bool {
        let serializable = self
            .value("default_transaction_isolation")
            .is_some_and(|level| level.eq_ignore_ascii_case("serializable"));
        let hides = self.value("search_path").is_some_and(|path| {
            let path = path.trim_start().to_ascii_lowercase();
            let names_catalog = path.contains("pg_catalog") && !path.starts_with("pg_catalog");
            names_catalog || path.contains("pg_temp")
        });
        serializable || hides
    }

    /// The query that turns a server with `present` into one with these; `None` when nothing differs. It is one
    /// SELECT, whose list is evaluated in its order. `set_config` with NULL resets (guc_funcs.c).
    pub(crate) fn change_from(&self, present: &Settings) -> Option<String> {
        if self == present {
            return None;
        }
        let mut calls = vec![];
        // Whoever was switched to may not be allowed the rest.
        for name in [ROLE, AUTHORIZATION] {
            calls.extend(present.value(name).map(|_| set_config(name, None)));
        }
        for name in present.0.keys().filter(|name| !is_identity(name) && !self.0.contains_key(*name)) {
            calls.push(set_config(name, None));
        }
        for (name, value) in &self.0 {
            if !is_identity(name) && present.value(name) != Some(value) {
                calls.push(set_config(name, Some(value)));
            }
        }
        for name in [AUTHORIZATION, ROLE] {
            calls.extend(self.value(name).map(|value| set_config(name, Some(value))));
        }
        Some(format!("SELECT {}", calls.join(",")))
    }
}

const ROLE: &str = "role";
const AUTHORIZATION: &str = "session_authorization";

/// Who the session is.
fn is_identity(name: &str) -> bool {
    matches!(name, ROLE | AUTHORIZATION)
}

fn set_config(name: &str, value: Option<&str>) -> String {
    let value = value.map_or("NULL".to_owned(), literal);
    format!("pg_catalog.set_config({},{value},false)", literal(name))
}

fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    // E'' reads backslashes the same whatever standard_conforming_strings says.
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::{Settings, Startup};
    use crate::proxy::route::classify;

    fn startup(parameters: &[(&str, &str)]) -> Startup {
        let parameters: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Startup::read(&parameters)
    }

    /// `SELECT` and the calls, short: `a=1,b` (reset).
    fn change(wanted: &Settings, present: &Settings) -> String {
        let Some(sql) = wanted.change_from(present) else { return String::new() };
        let calls = sql.strip_prefix("SELECT pg_catalog.set_config('").expect("calls");
        let calls = calls.strip_suffix(",false)").expect("the session's");
        let short = calls.split(",false),pg_catalog.set_config('").map(|call| match call.split_once("',") {
            Some((name, "NULL")) => name.to_owned(),
            Some((name, value)) => format!("{name}={value}"),
            None => panic!("{call}"),
        });
        short.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_same_bytes_are_another_text_in_another_encoding() {
        let context = |name: &str, value: &str| {
            Startup::read(&[(name.to_owned(), value.to_owned())]).settings.parse_context()
        };
        assert_ne!(context("client_encoding", "LATIN1"), context("client_encoding", "WIN1251"));
        assert_eq!(context("application_name", "a"), context("application_name", "b"));
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
            change(&read.settings, &Settings::default()),
            "application_name='app' datestyle='ISO' geqo='off' search_path='a, b' work_mem='1MB'"
        );
    }

    #[test]
    fn only_the_difference_is_sent() {
        let one = startup(&[("application_name", "it's"), ("timezone", "UTC")]).settings;
        let other = startup(&[("application_name", "b\\c"), ("my.guc", "1"), ("timezone", "UTC")]).settings;
        assert_eq!(change(&one, &one), "");
        assert_eq!(change(&one, &other), "my.guc application_name='it''s'");
        assert_eq!(change(&other, &one), "application_name=E'b\\\\c' my.guc='1'");
    }

    #[test]
    fn whoever_was_switched_to_is_left_first_and_taken_up_last() {
        let of = |pairs: &[(&str, &str)]| startup(pairs).settings;
        let switched = of(&[("role", "r"), ("session_authorization", "s"), ("work_mem", "1MB")]);
        let plain = of(&[("work_mem", "2MB")]);
        assert_eq!(change(&switched, &plain), "work_mem='1MB' session_authorization='s' role='r'");
        assert_eq!(change(&plain, &switched), "role session_authorization work_mem='2MB'");
    }

    #[test]
    fn what_commands_make_of_settings() {
        for (sql, expected) in [
            ("SET work_mem = '1MB'", "application_name='app' work_mem='1MB'"),
            ("SET application_name = 'x'; RESET application_name", "application_name='app'"),
            ("SET work_mem = 1; SET work_mem TO DEFAULT", "application_name='app'"),
            ("SET ROLE r; SET work_mem = 1; RESET ALL", "application_name='app' role='r'"),
            ("SET ROLE r; SET SESSION AUTHORIZATION s", "application_name='app' session_authorization='s'"),
            ("SET LOCAL work_mem = 1", "application_name='app'"),
            ("SELECT set_config('a.b', 'c', false)", "a.b='c' application_name='app'"),
        ] {
            let defaults = startup(&[("application_name", "app")]).settings;
            let mut settings = defaults.clone();
            for effect in classify(sql).steps.iter().flat_map(|step| &step.session) {
                settings.apply(effect, &defaults);
            }
            assert_eq!(change(&settings, &Settings::default()), expected, "{sql}");
        }
    }

    #[test]
    fn some_settings_keep_reads_at_the_primary() {
        for (name, value, expected) in [
            ("search_path", "a, b", false),
            ("search_path", "pg_catalog, a", false),
            ("search_path", "a, pg_catalog", true),
            ("search_path", "pg_temp, a", true),
            ("default_transaction_isolation", "Serializable", true),
            ("default_transaction_isolation", "repeatable read", false),
        ] {
            assert_eq!(startup(&[(name, value)]).settings.need_primary(), expected, "{name} {value}");
        }
    }
}
