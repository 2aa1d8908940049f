//! Who must prove what: a list of rules in the manner of `pg_hba.conf` (hba.c), of which the first that matches
//! counts. Matching is a function of values: no clock, no socket.
//!
//! Not here: host names, `samehost`, `samenet`, roles (`+name`): they need a resolver, the host's interfaces, a
//! server.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::NameMap;
use super::pattern::Pattern;
use crate::net::{Peer, PeerAddress};
use crate::pg::protocol::startup::Replication;
use crate::pg::{ErrorFields, SqlState};

/// Read top-down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub origin: Origin,
    pub databases: Vec<DatabaseName>,
    pub users: Vec<UserName>,
    pub method: Method,
}

/// Which connections a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Unix sockets.
    Local,
    /// TCP, from any address where `network` is `None`.
    Host { encryption: Encryption, network: Option<IpNet> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// `host`
    Either,
    /// `hostssl`
    Tls,
    /// `hostnossl`
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseName {
    /// Every database; physical replication is none.
    All,
    /// The one of the user's own name.
    SameUser,
    /// Physical replication.
    Replication,
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    All,
    Name(String),
    Pattern(Pattern),
}

/// What a client must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Nothing.
    Trust,
    /// Nothing would do.
    Reject,
    /// md5, or SCRAM for those whose password is stored that way.
    Md5,
    ScramSha256,
    /// A certificate whose subject names the user, or maps to it.
    Cert {
        name: CertificateName,
        map: Option<NameMap>,
    },
}

/// What of a certificate's subject is compared (`clientname`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    Common,
    Distinguished,
}

/// What a client wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) peer: &'a Peer,
    pub(super) user: &'a str,
    pub(super) database: &'a str,
    pub(super) replication: Replication,
}

/// A keyword of `pg_hba.conf` that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{0} is not supported: name the users or databases")]
    Unsupported(String),
    #[error("{0} is no regular expression")]
    Pattern(String),
}

impl Rules {
    pub fn new(rules: Vec<Rule>) -> Rules {
        Rules(rules)
    }

    /// One method for everybody from everywhere; `trust` for unix sockets and loopback addresses only.
    pub fn all_by(method: &Method) -> Rules {
        let host = |network: Option<&str>| Origin::Host {
            encryption: Encryption::Either,
            network: network.map(|network| network.parse().expect("a network of ours")),
        };
        let origins = match method {
            Method::Trust => vec![Origin::Local, host(Some("127.0.0.0/8")), host(Some("::1/128"))],
            _ => vec![Origin::Local, host(None)],
        };
        let rule = |origin| Rule {
            origin,
            databases: vec![DatabaseName::All, DatabaseName::Replication],
            users: vec![UserName::All],
            method: method.clone(),
        };
        Rules(origins.into_iter().map(rule).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// With its place in the list.
    pub(super) fn find(&self, wanted: Wanted<'_>) -> Option<(usize, &Rule)> {
        self.0.iter().enumerate().find(|(_, rule)| rule.matches(wanted))
    }

    /// Rules that no connection reaches, each with the earlier one that takes all of its: by their place.
    pub fn unreachable(&self) -> impl Iterator<Item = (usize, usize)> {
        self.0.iter().enumerate().filter_map(|(at, rule)| {
            let earlier = self.0[..at].iter().position(|earlier| earlier.covers(rule))?;
            Some((at, earlier))
        })
    }
}

impl Rule {
    fn matches(&self, wanted: Wanted<'_>) -> bool {
        self.origin.matches(wanted.peer)
            && self.databases.iter().any(|name| name.matches(wanted))
            && self.users.iter().any(|name| name.matches(wanted.user))
    }

    /// Whether it matches whatever `other` does, as far as that is plain to see.
    fn covers(&self, other: &Rule) -> bool {
        self.origin.covers(&other.origin)
            && other.databases.iter().all(|name| self.databases.iter().any(|mine| mine.covers(name)))
            && other.users.iter().all(|name| self.users.iter().any(|mine| mine.covers(name)))
    }
}

impl Method {
    /// Its word in a rule.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Method::Trust => "trust",
            Method::Reject => "reject",
            Method::Md5 => "md5",
            Method::ScramSha256 => "scram-sha-256",
            Method::Cert { .. } => "cert",
        }
    }
}

impl Origin {
    /// From nowhere but this host.
    pub fn is_on_this_host(&self) -> bool {
        match self {
            Origin::Local => true,
            Origin::Host { network: None, .. } => false,
            Origin::Host { network: Some(network), .. } => {
                let loopback =
                    ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("a network of ours"));
                loopback.iter().any(|ours: &IpNet| ours.contains(network))
            }
        }
    }

    fn matches(&self, peer: &Peer) -> bool {
        match (self, peer.address) {
            (Origin::Local, PeerAddress::Unix) => true,
            (Origin::Host { encryption, network }, PeerAddress::Tcp(address)) => {
                let encrypted = match encryption {
                    Encryption::Either => true,
                    Encryption::Tls => peer.tls.is_some(),
                    Encryption::None => peer.tls.is_none(),
                };
                encrypted && network.is_none_or(|network| network.contains(&address.ip().to_canonical()))
            }
            _ => false,
        }
    }

    fn covers(&self, other: &Origin) -> bool {
        match (self, other) {
            (Origin::Local, Origin::Local) => true,
            (
                Origin::Host { encryption, network },
                Origin::Host { encryption: other_encryption, network: other_network },
            ) => {
                let encryption = *encryption == Encryption::Either || encryption == other_encryption;
                let network = match (network, other_network) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(mine), Some(other)) => mine.contains(other),
                };
                encryption && network
            }
            _ => false,
        }
    }
}

impl DatabaseName {
    /// `check_db`: physical replication is matched by its keyword only; logical replication is of its database.
    fn matches(&self, wanted: Wanted<'_>) -> bool {
        if wanted.replication == Replication::Physical {
            return matches!(self, DatabaseName::Replication);
        }
        match self {
            DatabaseName::All => true,
            DatabaseName::SameUser => wanted.database == wanted.user,
            DatabaseName::Replication => false,
            DatabaseName::Name(name) => name == wanted.database,
            DatabaseName::Pattern(pattern) => pattern.regex().is_match(wanted.database),
        }
    }

    fn covers(&self, other: &DatabaseName) -> bool {
        match (self, other) {
            (DatabaseName::Replication, other) => matches!(other, DatabaseName::Replication),
            (DatabaseName::All, other) => !matches!(other, DatabaseName::Replication),
            (DatabaseName::SameUser, other) => matches!(other, DatabaseName::SameUser),
            (DatabaseName::Name(mine), DatabaseName::Name(other)) => mine == other,
            (DatabaseName::Pattern(mine), DatabaseName::Name(other)) => mine.regex().is_match(other),
            (DatabaseName::Name(_) | DatabaseName::Pattern(_), _) => false,
        }
    }
}

impl UserName {
    fn matches(&self, user: &str) -> bool {
        match self {
            UserName::All => true,
            UserName::Name(name) => name == user,
            UserName::Pattern(pattern) => pattern.regex().is_match(user),
        }
    }

    fn covers(&self, other: &UserName) -> bool {
        match (self, other) {
            (UserName::All, _) => true,
            (mine, UserName::Name(other)) => mine.matches(other),
            (_, UserName::All | UserName::Pattern(_)) => false,
        }
    }
}

impl FromStr for DatabaseName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<DatabaseName, NameError> {
        Ok(match text {
            "all" => DatabaseName::All,
            "sameuser" => DatabaseName::SameUser,
            "replication" => DatabaseName::Replication,
            "samerole" | "samegroup" => return Err(NameError::Unsupported(text.to_owned())),
            _ => match pattern(text)? {
                Some(pattern) => DatabaseName::Pattern(pattern),
                None => DatabaseName::Name(text.to_owned()),
            },
        })
    }
}

impl FromStr for UserName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<UserName, NameError> {
        Ok(match text {
            "all" => UserName::All,
            _ if text.starts_with('+') => return Err(NameError::Unsupported(text.to_owned())),
            _ => match pattern(text)? {
                Some(pattern) => UserName::Pattern(pattern),
                None => UserName::Name(text.to_owned()),
            },
        })
    }
}

/// `/expression`; `@file` would be a list in another file.
fn pattern(text: &str) -> Result<Option<Pattern>, NameError> {
    if text.starts_with('@') {
        return Err(NameError::Unsupported(text.to_owned()));
    }
    let Some(expression) = text.strip_prefix('/') else { return Ok(None) };
    Pattern::new(expression).map(Some).ok_or_else(|| NameError::Pattern(text.to_owned()))
}

/// `HOST/BITS`, or one address. A host's bits beside the network's are no mistake, as in `pg_hba.conf`.
pub fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl Wanted<'_> {
    /// No rule matches.
    pub(super) fn not_let_in(&self) -> ErrorFields {
        match self.replication {
            Replication::Physical => {
                self.refusal("no pg_hba.conf entry for replication connection from host", "")
            }
            Replication::Off | Replication::Logical => {
                self.refusal("no pg_hba.conf entry for host", &format!(", database \"{}\"", self.database))
            }
        }
    }

    /// The rule that matches says so.
    pub(super) fn rejected(&self) -> ErrorFields {
        match self.replication {
            Replication::Physical => self.refusal("pg_hba.conf rejects replication connection for host", ""),
            Replication::Off | Replication::Logical => self.refusal(
                "pg_hba.conf rejects connection for host",
                &format!(", database \"{}\"", self.database),
            ),
        }
    }

    /// In PostgreSQL's words, by which programs know it; the hint says whose rules these are.
    fn refusal(&self, what: &str, database: &str) -> ErrorFields {
        let host = match self.peer.address {
            PeerAddress::Tcp(address) => address.ip().to_canonical().to_string(),
            PeerAddress::Unix | PeerAddress::Unknown => "[local]".to_owned(),
        };
        let encryption = if self.peer.tls.is_some() { "SSL encryption" } else { "no encryption" };
        let message = format!("{what} \"{host}\", user \"{}\"{database}, {encryption}", self.user);
        ErrorFields::fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, message)
            .with_hint("The rules are those of Bellwether's configuration (auth), not of a server.")
    }
}

#[cfg(test)]
mod tests {
    use super::{
        DatabaseName, Encryption, Method, Origin, Replication, Rule, Rules, UserName, Wanted, network,
    };
    use crate::net::{Peer, PeerAddress, TlsFacts};

    /// `type databases users [address]`, as in `pg_hba.conf`; every rule rejects.
    fn rule(line: &str) -> Rule {
        let words: Vec<&str> = line.split_whitespace().collect();
        let encryption = match words[0] {
            "hostssl" => Encryption::Tls,
            "hostnossl" => Encryption::None,
            _ => Encryption::Either,
        };
        let address = words.get(3).filter(|word| **word != "all");
        let network = address.map(|word| network(word).expect("a network"));
        Rule {
            origin: match words[0] {
                "local" => Origin::Local,
                _ => Origin::Host { encryption, network },
            },
            databases: words[1].split(',').map(|name| name.parse().expect("a database")).collect(),
            users: words[2].split(',').map(|name| name.parse().expect("a user")).collect(),
            method: Method::Reject,
        }
    }

    fn peer(from: &str) -> Peer {
        let (address, tls) = match from.strip_suffix("+tls") {
            Some(address) => (address, Some(TlsFacts::default())),
            None => (from, None),
        };
        let address = match address {
            "unix" => PeerAddress::Unix,
            address => PeerAddress::Tcp((address.parse::<std::net::IpAddr>().expect("an address"), 1).into()),
        };
        Peer { address, tls }
    }

    /// Whether `line` matches `user` at `database` (or `replication`, `logical:DATABASE`) from an address.
    fn check(line: &str, from: &str, user: &str, database: &str, expected: bool) {
        let (database, replication) = match (database, database.strip_prefix("logical:")) {
            ("replication", _) => (user, Replication::Physical),
            (_, Some(database)) => (database, Replication::Logical),
            (database, None) => (database, Replication::Off),
        };
        let wanted = Wanted { peer: &peer(from), user, database, replication };
        assert_eq!(rule(line).matches(wanted), expected, "{line}: {user} at {database} from {from}");
    }

    #[test]
    fn where_from() {
        check("local all all", "unix", "joe", "db", true);
        check("local all all", "127.0.0.1", "joe", "db", false);
        check("host all all all", "unix", "joe", "db", false);
        check("host all all all", "10.1.2.3", "joe", "db", true);
        check("host all all all", "2001:db8::1+tls", "joe", "db", true);
        check("host all all 10.0.0.0/8", "10.1.2.3", "joe", "db", true);
        check("host all all 10.9.9.9/8", "10.1.2.3", "joe", "db", true);
        check("host all all 10.0.0.0/8", "11.1.2.3", "joe", "db", false);
        check("host all all 10.0.0.0/8", "::ffff:10.1.2.3", "joe", "db", true);
        check("host all all 0.0.0.0/0", "::1", "joe", "db", false);
        check("host all all ::/0", "10.1.2.3", "joe", "db", false);
        check("host all all 2001:db8::/32", "2001:db8::1", "joe", "db", true);
        check("host all all 10.1.2.3", "10.1.2.3", "joe", "db", true);
        check("host all all 10.1.2.3", "10.1.2.4", "joe", "db", false);
    }

    #[test]
    fn encrypted_or_not() {
        for (kind, plain, tls) in [("host", true, true), ("hostssl", false, true), ("hostnossl", true, false)]
        {
            check(&format!("{kind} all all all"), "10.1.2.3", "joe", "db", plain);
            check(&format!("{kind} all all all"), "10.1.2.3+tls", "joe", "db", tls);
        }
    }

    #[test]
    fn which_database_and_who() {
        check("local db,other all", "unix", "joe", "other", true);
        check("local db all", "unix", "joe", "Db", false);
        check("local sameuser all", "unix", "joe", "joe", true);
        check("local sameuser all", "unix", "joe", "db", false);
        check("local all joe,jim", "unix", "jim", "db", true);
        check("local all joe", "unix", "jim", "db", false);
        check("local /^app_ all", "unix", "joe", "app_1", true);
        check("local /^app_ all", "unix", "joe", "my_app_1", false);
        check("local all /_ro$", "unix", "joe_ro", "db", true);
    }

    #[test]
    fn replication_is_no_database() {
        check("local all all", "unix", "joe", "replication", false);
        check("local sameuser,joe,/joe all", "unix", "joe", "replication", false);
        check("local replication joe", "unix", "joe", "replication", true);
        check("local replication all", "unix", "joe", "db", false);
        check("local replication all", "unix", "joe", "logical:db", false);
        check("local db all", "unix", "joe", "logical:db", true);
    }

    #[test]
    fn the_first_that_matches_counts() {
        let lines = ["host db joe 10.0.0.0/8", "host all joe all", "local all all"];
        let rules = Rules::new(lines.map(rule).into());
        let find = |from: &str, user| {
            let wanted = Wanted { peer: &peer(from), user, database: "db", replication: Replication::Off };
            rules.find(wanted).map(|(at, _)| at)
        };
        assert_eq!(find("10.1.1.1", "joe"), Some(0));
        assert_eq!(find("11.1.1.1", "joe"), Some(1));
        assert_eq!(find("unix", "joe"), Some(2));
        assert_eq!(find("10.1.1.1", "jim"), None);
    }

    #[test]
    fn trust_for_all_is_trust_on_this_host() {
        let let_in = |method: &Method, from: &str| {
            let wanted =
                Wanted { peer: &peer(from), user: "joe", database: "db", replication: Replication::Off };
            Rules::all_by(method).find(wanted).is_some()
        };
        for from in ["unix", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(let_in(&Method::Trust, from), "{from}");
        }
        assert!(!let_in(&Method::Trust, "10.0.0.1"));
        assert!(let_in(&Method::Md5, "10.0.0.1"));
        assert!(Rules::all_by(&Method::Trust).iter().all(|rule| rule.origin.is_on_this_host()));
    }

    #[test]
    fn this_host() {
        let check = |line: &str, expected| {
            assert_eq!(rule(line).origin.is_on_this_host(), expected, "{line}");
        };
        check("local all all", true);
        check("host all all 127.0.0.1", true);
        check("host all all 127.0.0.0/8", true);
        check("host all all ::1", true);
        check("host all all 126.0.0.0/7", false);
        check("host all all ::/0", false);
        check("host all all all", false);
        check("host all all 10.0.0.1", false);
    }

    #[test]
    fn rules_that_nobody_reaches() {
        let check = |first: &str, second: &str, unreachable: bool| {
            let rules = Rules::new(vec![rule(first), rule(second)]);
            let found: Vec<_> = rules.unreachable().collect();
            assert_eq!(found, if unreachable { vec![(1, 0)] } else { vec![] }, "{first} | {second}");
        };
        check("host all all all", "host db joe 10.0.0.0/8", true);
        check("host all all all", "hostssl all all all", true);
        check("host all all all", "host replication all all", false);
        check("host all all all", "host replication,db all all", false);
        check("host all all all", "local all all", false);
        check("hostssl all all all", "host all all all", false);
        check("host db all 10.0.0.0/8", "host db,other all 10.0.0.0/8", false);
        check("host all /^joe all", "host db joe1 all", true);
        check("host all joe all", "host db /^joe$ all", false);
        check("host sameuser all all", "host joe joe all", false);
    }

    #[test]
    fn names_that_mean_something_elsewhere() {
        for text in ["samerole", "samegroup", "@file"] {
            assert!(text.parse::<DatabaseName>().is_err(), "{text}");
        }
        for text in ["+group", "@file", "/(", "/[z-a]"] {
            assert!(text.parse::<UserName>().is_err(), "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0", "example.com", "", "::1/129", "10.0.0.0/255.0.0.0"] {
            assert_eq!(network(text), None, "{text}");
        }
    }

    #[test]
    fn refusals_are_in_postgresqls_words() {
        let message = |from: &str, replication| {
            let peer = peer(from);
            let wanted = Wanted { peer: &peer, user: "joe", database: "db", replication };
            [wanted.not_let_in().message, wanted.rejected().message]
        };
        assert_eq!(
            message("10.0.0.1", Replication::Off),
            [
                "no pg_hba.conf entry for host \"10.0.0.1\", user \"joe\", database \"db\", no encryption",
                "pg_hba.conf rejects connection for host \"10.0.0.1\", user \"joe\", database \"db\", no encryption",
            ]
        );
        assert_eq!(
            message("unix+tls", Replication::Physical),
            [
                "no pg_hba.conf entry for replication connection from host \"[local]\", user \"joe\", SSL encryption",
                "pg_hba.conf rejects replication connection for host \"[local]\", user \"joe\", SSL encryption",
            ]
        );
    }
}
