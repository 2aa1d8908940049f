//! What somebody types at the console. PURE.
//!
//! Keywords in any case; names as PostgreSQL reads them: folded to lower case unless they are in quotes.

use super::pooler;
use crate::admin::MemberQuestion;
use crate::admin::pass_on::Reach;
use crate::failover::{self, Handover, Servers, Stragglers, Upkeep};
use crate::pg::error::{ErrorFields, SqlState};
use crate::topology::NodeName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Show(Show),
    ShowMember(MemberQuestion),
    Candidates,
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
    Kill(String),
    KillClient(u32),
    Reload,
    /// The control plane's. `PAUSE` and `RESUME` are the pools', as PgBouncer has them.
    Order(failover::Command, Reach),
    /// What drivers send of their own accord: answered with this tag, and nothing happens.
    Courtesy(&'static str),
    Nothing,
}

macro_rules! shows {
    ($($name:ident = $word:literal,)*) => {
        /// What can be shown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Show { $($name,)* }

        impl Show {
            const ALL: &'static [(&'static str, Show)] = &[$(($word, Show::$name),)*];
        }
    };
}

shows! {
    Pools = "pools",
    Clients = "clients",
    Servers = "servers",
    Databases = "databases",
    Users = "users",
    Stats = "stats",
    StatsTotals = "stats_totals",
    StatsAverages = "stats_averages",
    Lists = "lists",
    Config = "config",
    Version = "version",
    State = "state",
    Mem = "mem",
    Sockets = "sockets",
    ActiveSockets = "active_sockets",
    DnsHosts = "dns_hosts",
    DnsZones = "dns_zones",
    Nodes = "nodes",
    Lag = "lag",
    Followers = "followers",
    Slots = "slots",
    Wal = "wal",
    History = "history",
    Routes = "routes",
    Members = "members",
    Help = "help",
}

impl Command {
    /// Whether it only looks.
    pub(super) fn is_harmless(&self) -> bool {
        match self {
            Command::Show(_) | Command::Candidates | Command::Courtesy(_) | Command::Nothing => true,
            Command::Order(
                failover::Command::Foresee { .. } | failover::Command::ForeseeRestart { .. },
                _,
            ) => true,
            // Who asks in an instance's name is taken for it.
            Command::ShowMember(question) => question.asker.is_none(),
            _ => false,
        }
    }

    pub(super) fn has_rows(&self) -> bool {
        matches!(self, Command::Show(_) | Command::ShowMember(_) | Command::Candidates)
    }

    pub(super) fn parse(text: &str) -> Result<Command, ErrorFields> {
        let tokens = tokens(text).ok_or_else(|| unknown(text))?;
        let words: Vec<String> = tokens.iter().map(Token::keyword).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let database = || tokens.get(1).map(Token::name);
        Ok(match words.as_slice() {
            [] => Command::Nothing,
            // For its own takeover: it would hand its sockets out.
            ["show", "fds"] => {
                let message = "SHOW FDS is not supported: sockets are not handed out here";
                return Err(ErrorFields::error(SqlState::FEATURE_NOT_SUPPORTED, message));
            }
            ["show", "member", ..] => {
                Command::ShowMember(question(&tokens[2..]).ok_or_else(|| unknown(text))?)
            }
            ["show", "candidates"] => Command::Candidates,
            ["show", what] => {
                let found = Show::ALL.iter().find(|(word, _)| word == what);
                Command::Show(found.ok_or_else(|| unknown(text))?.1)
            }
            ["pause"] | ["pause", _] => Command::Pause(database()),
            ["resume"] | ["resume", _] => Command::Resume(database()),
            ["reconnect"] | ["reconnect", _] => Command::Reconnect(database()),
            ["kill", _] => Command::Kill(tokens[1].name()),
            ["kill_client", id] => Command::KillClient(client(id)?),
            ["reload"] => Command::Reload,
            ["switchover" | "failover" | "maintenance" | "restart", ..] => {
                order(&tokens)?.ok_or_else(|| unknown(text))?
            }
            ["set", assignment, ..] if pooler::is_config_key(name_in(assignment)) => {
                let message = format!("\"{}\" cannot be set at the console", name_in(assignment));
                return Err(ErrorFields::error(SqlState::FEATURE_NOT_SUPPORTED, message)
                    .with_hint("Change the configuration file, then RELOAD."));
            }
            ["set", ..] => Command::Courtesy("SET"),
            ["begin", ..] | ["start", "transaction", ..] => Command::Courtesy("BEGIN"),
            ["commit"] | ["end"] => Command::Courtesy("COMMIT"),
            ["rollback"] | ["abort"] => Command::Courtesy("ROLLBACK"),
            ["discard", "all"] => Command::Courtesy("DISCARD ALL"),
            _ => return Err(unknown(text)),
        })
    }
}

/// `[AFTER serial] [FOR 'instance']`.
fn question(tokens: &[Token]) -> Option<MemberQuestion> {
    let mut question = MemberQuestion::default();
    let mut rest = tokens;
    if let [keyword, serial, behind @ ..] = rest
        && keyword.keyword() == "after"
    {
        question.after = Some(serial.keyword().parse().ok()?);
        rest = behind;
    }
    match rest {
        [] => Some(question),
        [keyword, asker] if keyword.keyword() == "for" => {
            Some(MemberQuestion { asker: Some(asker.name()), ..question })
        }
        _ => None,
    }
}

/// `SWITCHOVER [TO node] [FORCE | DRY_RUN] [HERE]`, `FAILOVER [[TO node] [DRY_RUN] | PAUSE | RESUME] [HERE]`,
/// `MAINTENANCE node [END] [HERE]`.
/// `RESTART {{NODE node | ALL} [FORCE | DRY_RUN] | CANCEL} [HERE]`.
fn order(tokens: &[Token]) -> Result<Option<Command>, ErrorFields> {
    let words: Vec<String> = tokens.iter().map(Token::keyword).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    // A node of that name stands behind TO or NODE.
    let is_name = words.ends_with(&["to", "here"]) || words.ends_with(&["node", "here"]);
    let handed = words.len() > 1 && words.ends_with(&["here"]) && !is_name;
    let reach = if handed { Reach::Here } else { Reach::Cluster };
    words.truncate(words.len() - usize::from(handed));
    let to = match words.as_slice() {
        [_, "to", _, ..] => Some(node(&tokens[2].name())?),
        _ => None,
    };
    let order = match words.as_slice() {
        ["switchover"] | ["switchover", "to", _] => {
            failover::Command::Switchover { to, stragglers: Stragglers::Spared }
        }
        ["switchover", "force"] | ["switchover", "to", _, "force"] => {
            failover::Command::Switchover { to, stragglers: Stragglers::Cut }
        }
        ["switchover", "dry_run"] | ["switchover", "to", _, "dry_run"] => {
            failover::Command::Foresee { handover: Handover::Switchover, to }
        }
        ["failover", "dry_run"] | ["failover", "to", _, "dry_run"] => {
            failover::Command::Foresee { handover: Handover::Failover, to }
        }
        ["failover"] | ["failover", "to", _] => failover::Command::Failover { to },
        ["maintenance", _] => {
            failover::Command::Maintenance { node: node(&tokens[1].name())?, upkeep: Upkeep::Begin }
        }
        ["maintenance", _, "end"] => {
            failover::Command::Maintenance { node: node(&tokens[1].name())?, upkeep: Upkeep::End }
        }
        ["failover", "pause"] => failover::Command::Pause,
        ["failover", "resume"] => failover::Command::Resume,
        ["restart", which @ ..] => match restart(which, &tokens[1..])? {
            Some(order) => order,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(Command::Order(order, reach)))
}

fn restart(words: &[&str], tokens: &[Token]) -> Result<Option<failover::Command>, ErrorFields> {
    let (servers, rest) = match words {
        ["cancel"] => return Ok(Some(failover::Command::CancelRestart)),
        ["all", rest @ ..] => (Servers::All, rest),
        ["node", _, rest @ ..] => (Servers::One(node(&tokens[1].name())?), rest),
        _ => return Ok(None),
    };
    Ok(match rest {
        [] => Some(failover::Command::Restart { servers, stragglers: Stragglers::Spared }),
        ["force"] => Some(failover::Command::Restart { servers, stragglers: Stragglers::Cut }),
        ["dry_run"] => Some(failover::Command::ForeseeRestart { servers }),
        _ => None,
    })
}

/// Of `name=value`, or the beginning of `name = value`.
fn name_in(assignment: &str) -> &str {
    assignment.split('=').next().unwrap_or_default()
}

/// One line each.
pub(super) fn help() -> String {
    let shown: Vec<String> = Show::ALL.iter().map(|(word, _)| word.to_uppercase()).collect();
    format!(
        "SHOW {}\nSHOW CANDIDATES\nSHOW MEMBER [AFTER serial] [FOR instance]\nPAUSE [db], RESUME [db], RECONNECT [db], KILL db, KILL_CLIENT id, RELOAD\nSWITCHOVER [TO node] [FORCE|DRY_RUN], FAILOVER [TO node] [DRY_RUN], FAILOVER PAUSE, FAILOVER RESUME\nMAINTENANCE node [END]\nRESTART {{NODE node|ALL}} [FORCE|DRY_RUN], RESTART CANCEL",
        shown.join("|")
    )
}

fn unknown(text: &str) -> ErrorFields {
    // Somebody else's text may be long.
    let shown: String = text.chars().take(100).collect();
    ErrorFields::error(SqlState::SYNTAX_ERROR, format!("unknown command: {shown}"))
        .with_hint(format!("The console's commands are: {}", help()))
}

fn client(id: &str) -> Result<u32, ErrorFields> {
    let parsed = match id.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => id.parse(),
    };
    parsed.map_err(|_| {
        let message = format!("not a client's id: {id}");
        ErrorFields::error(SqlState::INVALID_PARAMETER_VALUE, message).with_hint("SHOW CLIENTS has them.")
    })
}

fn node(name: &str) -> Result<NodeName, ErrorFields> {
    let parsed = name.parse::<NodeName>();
    parsed.map_err(|error| ErrorFields::error(SqlState::INVALID_PARAMETER_VALUE, error.to_string()))
}

#[derive(Debug)]
enum Token {
    Bare(String),
    Quoted(String),
}

impl Token {
    /// What is quoted is no keyword.
    fn keyword(&self) -> String {
        match self {
            Token::Bare(word) => word.to_ascii_lowercase(),
            Token::Quoted(name) => format!("\"{name}"),
        }
    }

    fn name(&self) -> String {
        match self {
            Token::Bare(word) => word.to_ascii_lowercase(),
            Token::Quoted(name) => name.clone(),
        }
    }
}

/// `None`: a quote without its end, or more than one statement.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = vec![];
    let mut rest = text.trim().trim_end_matches(';').trim_end();
    while let Some(first) = rest.chars().next() {
        if first == '"' || first == '\'' {
            let (name, behind) = quoted(&rest[1..], first)?;
            tokens.push(Token::Quoted(name));
            rest = behind.trim_start();
            continue;
        }
        let end = rest.find(|c: char| c.is_whitespace() || c == ';' || c == '"').unwrap_or(rest.len());
        if rest[end..].starts_with(';') {
            return None;
        }
        tokens.push(Token::Bare(rest[..end].to_owned()));
        rest = rest[end..].trim_start();
    }
    Some(tokens)
}

/// Up to the closing quote, doubled ones taken for one; and what is behind it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let end = rest.find(quote)?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        if !rest.starts_with(quote) {
            return Some((name, rest));
        }
        name.push(quote);
        rest = &rest[1..];
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, MemberQuestion, Reach, Show, Stragglers, Upkeep, failover};
    use crate::pg::error::SqlState;

    #[test]
    fn commands() {
        let name = |name: &str| Some(name.to_owned());
        let switchover = |to: Option<&str>, stragglers, reach| {
            let to = to.and_then(|to| to.parse().ok());
            Command::Order(failover::Command::Switchover { to, stragglers }, reach)
        };
        let maintenance = |upkeep, reach| {
            let node = "pg2".parse().expect("a name");
            Command::Order(failover::Command::Maintenance { node, upkeep }, reach)
        };
        let question = |after, asker: Option<&str>| MemberQuestion { after, asker: asker.map(str::to_owned) };
        for (text, expected) in [
            ("SHOW POOLS;", Command::Show(Show::Pools)),
            ("  show\n stats_totals ", Command::Show(Show::StatsTotals)),
            ("", Command::Nothing),
            (" ;; ", Command::Nothing),
            ("PAUSE", Command::Pause(None)),
            ("pause Orders", Command::Pause(name("orders"))),
            ("RESUME \"My \"\"db\"", Command::Resume(name("My \"db"))),
            ("RECONNECT 'x;y'", Command::Reconnect(name("x;y"))),
            ("KILL orders", Command::Kill("orders".to_owned())),
            ("KILL_CLIENT 0x1f", Command::KillClient(31)),
            ("KILL_CLIENT 31;", Command::KillClient(31)),
            ("SHOW MEMBER", Command::ShowMember(question(None, None))),
            ("show member after 7;", Command::ShowMember(question(Some(7), None))),
            ("SHOW MEMBER FOR 'bw2'", Command::ShowMember(question(None, Some("bw2")))),
            ("SHOW MEMBER AFTER 7 FOR bw2", Command::ShowMember(question(Some(7), Some("bw2")))),
            ("RELOAD", Command::Reload),
            ("SWITCHOVER", switchover(None, Stragglers::Spared, Reach::Cluster)),
            ("switchover to PG2", switchover(Some("pg2"), Stragglers::Spared, Reach::Cluster)),
            ("SWITCHOVER FORCE", switchover(None, Stragglers::Cut, Reach::Cluster)),
            ("SWITCHOVER TO here", switchover(Some("here"), Stragglers::Spared, Reach::Cluster)),
            ("SWITCHOVER TO force HERE", switchover(Some("force"), Stragglers::Spared, Reach::Here)),
            ("FAILOVER", Command::Order(failover::Command::Failover { to: None }, Reach::Cluster)),
            ("show candidates", Command::Candidates),
            ("restart cancel", Command::Order(failover::Command::CancelRestart, Reach::Cluster)),
            (
                "RESTART NODE here",
                Command::Order(
                    failover::Command::Restart {
                        servers: failover::Servers::One("here".parse().expect("a name")),
                        stragglers: Stragglers::Spared,
                    },
                    Reach::Cluster,
                ),
            ),
            ("FAILOVER PAUSE", Command::Order(failover::Command::Pause, Reach::Cluster)),
            ("failover resume here;", Command::Order(failover::Command::Resume, Reach::Here)),
            ("MAINTENANCE PG2", maintenance(Upkeep::Begin, Reach::Cluster)),
            ("maintenance 'pg2' end;", maintenance(Upkeep::End, Reach::Cluster)),
            ("MAINTENANCE pg2 END HERE", maintenance(Upkeep::End, Reach::Here)),
            // A database may be called that.
            ("PAUSE failover", Command::Pause(Some("failover".to_owned()))),
            ("SET extra_float_digits = 3", Command::Courtesy("SET")),
            ("BEGIN", Command::Courtesy("BEGIN")),
        ] {
            assert_eq!(Command::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_told_what_is() {
        for text in
            ["SHOW MEMBER AFTER", "SHOW MEMBER AFTER x", "SHOW MEMBER FOR bw2 AFTER 7", "SHOW MEMBER 7"]
        {
            assert_eq!(Command::parse(text).expect_err(text).code, SqlState::SYNTAX_ERROR, "{text}");
        }
        for text in
            ["FAILOVER FORCE", "FAILOVER TO", "SWITCHOVER PAUSE", "SWITCHOVER HERE FORCE", "MAINTENANCE"]
        {
            assert_eq!(Command::parse(text).expect_err(text).code, SqlState::SYNTAX_ERROR, "{text}");
        }
        for text in
            ["SELECT 1", "SHOW", "SHOW \"pools\"", "SHOW POOLS; SHOW LISTS", "KILL", "PAUSE a b", "PAUSE \"a"]
        {
            let error = Command::parse(text).expect_err(text);
            assert_eq!(error.code, SqlState::SYNTAX_ERROR, "{text}");
            assert!(
                error.hint.is_some_and(|hint| hint.contains("SHOW POOLS|") && hint.contains("PAUSE")),
                "{text}"
            );
        }
        let error = Command::parse("KILL_CLIENT x").expect_err("no number");
        assert_eq!(error.code, SqlState::INVALID_PARAMETER_VALUE);
    }

    /// PgBouncer would change it; who is told that it was set must be able to rely on that.
    #[test]
    fn what_is_not_set_is_not_said_to_be() {
        for text in ["SET default_pool_size = 50", "set QUERY_TIMEOUT='5'", "SET max_client_conn=1"] {
            let error = Command::parse(text).expect_err(text);
            assert_eq!(error.code, SqlState::FEATURE_NOT_SUPPORTED, "{text}");
            assert!(error.hint.is_some_and(|hint| hint.contains("RELOAD")), "{text}");
        }
        assert_eq!(Command::parse("SET statement_timeout = 0"), Ok(Command::Courtesy("SET")));
    }
}
