//! `auth:` who may log in, and what they must prove.

use std::collections::BTreeMap;

use serde_yaml::Value;

use super::parse::Parser;
use super::reader::{Parsed, Section};
use super::secret::{self, PASSWORD, Secret, SecretKeys};
use super::units::{duration, on_off, parsed, path, text, texts, word};
use super::{Auth, AuthQuery, ClientTls, LookupLogin, User, userlist};
use crate::net::authenticate::{
    CertificateName, DatabaseName, Encryption, MapLine, Method, NameMap, Origin, Rule, Rules, UserName,
    network,
};
use crate::net::{LookupStatement, Lookups};

/// A setting of a secret that may also be a verifier.
const SECRET: SecretKeys =
    SecretKeys { plain: "secret", file: "secret_file", env: "secret_env", command: "secret_command" };

/// The names of maps that rules may use.
type Maps = BTreeMap<String, NameMap>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    Host(Encryption),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MethodName {
    Trust,
    Reject,
    Md5,
    ScramSha256,
    Cert,
}

pub(super) fn auth(parser: &Parser<'_>, auth: &mut Section<'_>) -> Auth {
    let rules = rules(auth);
    let mut users = from_file(parser, auth);
    users.extend(auth.list("users", |section| user(parser, section)));
    let query = if auth.or("query", true, on_off) { AuthQuery::On } else { AuthQuery::Off };
    if query == AuthQuery::Off && auth.has("lookup") {
        auth.problem("lookup", "says how, and query: off that nobody is looked up");
    }
    let (lookup_login, lookups) = auth.section("lookup", |section| lookup(parser, section));
    let mut replication_users = auth.or("replication_users", Vec::new(), texts);
    replication_users.extend(users.iter().filter(|user| user.replication).map(|user| user.name.clone()));
    let by_password = |rule: &Rule| matches!(rule.method, Method::Md5 | Method::ScramSha256);
    let nobody = !auth.has("users") && !auth.has("users_file");
    if rules.iter().any(by_password) && query == AuthQuery::Off && nobody {
        auth.problem("users", "is missing: with query: off nobody could log in");
    }
    Auth { rules, users, query, lookup_login, lookups, replication_users }
}

/// What the rules need of `tls:` and do not find there.
pub(super) fn against_tls(root: &mut Section<'_>, rules: &Rules, clients: &ClientTls) {
    let client_ca = match clients {
        ClientTls::Disable => None,
        ClientTls::Allow(files) | ClientTls::Require(files) => files.client_ca_file.as_ref(),
    };
    for (at, rule) in rules.iter().enumerate() {
        let over_tls = matches!(rule.origin, Origin::Host { encryption: Encryption::Tls, .. });
        if matches!(rule.method, Method::Cert { .. }) && client_ca.is_none() {
            let what = "cert needs tls.client_ca_file: whose certificates are to be believed?";
            root.problem(&format!("auth.rules[{at}].method"), what);
        } else if over_tls && *clients == ClientTls::Disable {
            let what = "hostssl matches nobody: tls has no certificate for clients";
            root.warning(&format!("auth.rules[{at}].type"), what);
        }
    }
}

/// `rules`, or `method` for everybody.
fn rules(auth: &mut Section<'_>) -> Rules {
    let methods = [("scram-sha-256", Method::ScramSha256), ("md5", Method::Md5), ("trust", Method::Trust)];
    let method = auth.or("method", Method::ScramSha256, word(&methods));
    let maps = maps(auth);
    let mut unused: Vec<String> = maps.keys().cloned().collect();
    let listed = auth.list("rules", |item| {
        if let Some(map) = item.optional("map", text) {
            unused.retain(|name| *name != map);
        }
        rule(item, &maps)
    });
    for name in unused {
        auth.warning("maps", format!("no rule uses map {name}"));
    }
    if !auth.has("rules") {
        return Rules::all_by(&method);
    }
    if auth.has("method") {
        auth.problem("method", "is a rule for everybody; with rules there is no room for it");
    }
    let rules = Rules::new(listed);
    for (at, earlier) in rules.unreachable() {
        auth.warning(
            "rules",
            format!("rule {at} is never reached: rule {earlier} takes all of its connections"),
        );
    }
    let lets_replicate = |rule: &Rule| {
        let replication = rule.databases.iter().any(|name| matches!(name, DatabaseName::Replication));
        replication && !matches!(rule.method, Method::Reject)
    };
    if !rules.iter().any(lets_replicate) {
        auth.warning("rules", "let no follower in: none has database: replication");
    }
    rules
}

fn rule(item: &mut Section<'_>, maps: &Maps) -> Option<Rule> {
    let kinds = [
        ("local", Kind::Local),
        ("host", Kind::Host(Encryption::Either)),
        ("hostssl", Kind::Host(Encryption::Tls)),
        ("hostnossl", Kind::Host(Encryption::None)),
    ];
    let kind = item.required("type", word(&kinds));
    let databases = item.required("database", names::<DatabaseName>);
    let users = item.required("user", names::<UserName>);
    let origin = origin(item, kind);
    let method = method(item, kind, maps);
    let (origin, method) = (origin?, method?);
    let force = item.or("force", false, on_off);
    match (&method, force) {
        (Method::Trust, false) if !origin.is_on_this_host() => {
            let what =
                "trust lets anybody in from there; it is for local and loopback addresses, or with force: on";
            item.problem("method", what);
        }
        (Method::Trust, true) if !origin.is_on_this_host() => {
            item.warning("method", "trust lets anybody in from there who says a name");
        }
        (Method::Trust, _) | (_, false) => {}
        (_, true) => item.problem("force", "belongs to trust"),
    }
    Some(Rule { origin, databases: databases?, users: users?, method })
}

fn origin(item: &mut Section<'_>, kind: Option<Kind>) -> Option<Origin> {
    let address = item.optional("address", |value| {
        let address = text(value)?;
        match (address.as_str(), network(&address)) {
            ("all", _) => Ok(None),
            (_, Some(network)) => Ok(Some(network)),
            _ => Err("ADDRESS/BITS, one address, or all is expected; names are not looked up".to_owned()),
        }
    });
    match kind? {
        Kind::Local => {
            if item.has("address") {
                item.problem("address", "belongs to host; local is about unix sockets");
            }
            Some(Origin::Local)
        }
        Kind::Host(encryption) => {
            if !item.has("address") {
                item.problem("address", "is missing");
            }
            Some(Origin::Host { encryption, network: address? })
        }
    }
}

fn method(item: &mut Section<'_>, kind: Option<Kind>, maps: &Maps) -> Option<Method> {
    let words = [
        ("trust", MethodName::Trust),
        ("reject", MethodName::Reject),
        ("md5", MethodName::Md5),
        ("scram-sha-256", MethodName::ScramSha256),
        ("cert", MethodName::Cert),
    ];
    let method = item.required("method", word(&words));
    let map = item.optional("map", |value| {
        let name = text(value)?;
        maps.get(&name).cloned().ok_or_else(|| format!("{name} is not in auth.maps"))
    });
    let parts = [("CN", CertificateName::Common), ("DN", CertificateName::Distinguished)];
    let name = item.or("clientname", CertificateName::Common, word(&parts));
    let method = method?;
    for key in ["map", "clientname"] {
        if method != MethodName::Cert && item.has(key) {
            item.problem(key, "belongs to cert");
        }
    }
    if method == MethodName::Cert && kind.is_some_and(|kind| kind != Kind::Host(Encryption::Tls)) {
        item.problem("method", "cert needs type: hostssl");
    }
    Some(match method {
        MethodName::Trust => Method::Trust,
        MethodName::Reject => Method::Reject,
        MethodName::Md5 => Method::Md5,
        MethodName::ScramSha256 => Method::ScramSha256,
        MethodName::Cert => Method::Cert { name, map },
    })
}

/// One name or several.
fn names<T: std::str::FromStr<Err: std::fmt::Display>>(value: &Value) -> Parsed<Vec<T>> {
    match value {
        Value::Sequence(items) if items.is_empty() => Err("must not be empty".to_owned()),
        Value::Sequence(items) => items.iter().map(parsed).collect(),
        one => parsed(one).map(|name| vec![name]),
    }
}

/// The lines of `maps`, as in `pg_ident.conf`, by the name of their map.
fn maps(auth: &mut Section<'_>) -> Maps {
    let lines = auth.list("maps", |item| {
        let map = item.required("map", text);
        let system = item.required("system", text);
        let user = item.required("user", text);
        let (map, system, user) = (map?, system?, user?);
        let line = MapLine::new(&system, &user);
        line.map_err(|error| item.problem("", error.to_string())).ok().map(|line| (map, line))
    });
    let mut maps: BTreeMap<String, Vec<MapLine>> = BTreeMap::new();
    for (map, line) in lines {
        maps.entry(map).or_default().push(line);
    }
    maps.into_iter().map(|(name, lines)| (name, NameMap::new(lines))).collect()
}

fn from_file(parser: &Parser<'_>, auth: &mut Section<'_>) -> Vec<User> {
    let listed = auth.optional("users_file", |value| {
        let path = path(value)?;
        let text = parser.sources.file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let broken = |line| {
            let path = path.display();
            format!("{path}: line {line} is broken: \"user\" \"password\" is expected")
        };
        userlist::parse(&text).map_err(broken)
    });
    let user =
        |(name, secret): (String, String)| User { name, secret: Secret::new(secret), replication: false };
    listed.unwrap_or_default().into_iter().map(user).collect()
}

fn user(parser: &Parser<'_>, user: &mut Section<'_>) -> Option<User> {
    let name = user.required("name", text);
    let password = secret::read(user, PASSWORD, parser.sources);
    let verifier = secret::read(user, SECRET, parser.sources);
    let replication = user.or("replication", false, on_off);
    let secret = match (password, verifier) {
        (Some(_), Some(_)) => {
            user.problem("", "has both password and secret");
            None
        }
        (password, verifier) => password.or(verifier),
    };
    let named = [PASSWORD, SECRET].iter().flat_map(|k| [k.plain, k.file, k.env, k.command]);
    if secret.is_none() && !named.into_iter().any(|key| user.has(key)) {
        user.problem("", "needs password_file, password_env, password_command or secret");
    }
    Some(User { name: name?, secret: secret?, replication })
}

fn lookup(parser: &Parser<'_>, lookup: &mut Section<'_>) -> (Option<LookupLogin>, Lookups) {
    let defaults = Lookups::default();
    let user = lookup.optional("user", text);
    let password = secret::read(lookup, PASSWORD, parser.sources);
    let database = lookup.optional("database", text);
    if user.is_none() && (password.is_some() || database.is_some()) {
        lookup.problem("user", "is missing: without it we look up as server_login does");
    }
    let statement = lookup.optional("sql", |value| {
        let sql = text(value)?;
        if sql.contains("$1") { Ok(sql) } else { Err("must ask for the user in $1".to_owned()) }
    });
    let mentions = |sql: &String, word| sql.to_ascii_lowercase().contains(word);
    if let Some(sql) = &statement
        && (mentions(sql, "pg_shadow") || mentions(sql, "pg_authid"))
        && !(mentions(sql, "valuntil") || mentions(sql, "rolvaliduntil"))
    {
        lookup.warning("sql", "does not look at VALID UNTIL: expired passwords would go on working here");
    }
    let lookups = Lookups {
        statement: statement.map_or(defaults.statement, LookupStatement::Own),
        keep: lookup.or("keep", defaults.keep, duration),
    };
    (user.map(|user| LookupLogin { user, password, database }), lookups)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::Method;
    use crate::app::config::{Config, Findings, Problem, Sources, parse};
    use crate::net::authenticate::Origin;

    /// One file.
    struct Userlist;

    impl Sources for Userlist {
        fn file(&self, path: &Path) -> io::Result<String> {
            match path.to_str() {
                Some("userlist.txt") => Ok("\"joe\" \"pw\"\n\"jim\" \"md5x\"\n".to_owned()),
                Some("broken.txt") => Ok("\"joe\" \"pw\"\njim\n".to_owned()),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn env(&self, _: &str) -> Option<String> {
            None
        }

        fn command(&self, _: &str) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn read(auth: &str) -> (Option<Config>, Findings) {
        read_with(auth, "{cert_file: us.crt, key_file: us.key, client_ca_file: ca.crt}")
    }

    fn read_with(auth: &str, tls: &str) -> (Option<Config>, Findings) {
        let yaml = format!(
            "
cluster: orders
instance: bw1
listen: [{{address: '0.0.0.0:6432'}}]
nodes: [{{name: pg1, address: '10.0.0.11:5432'}}]
server_login: {{user: bellwether}}
wal: {{dir: wal}}
state: {{file: state}}
auth: {auth}
tls: {tls}
"
        );
        parse(&yaml, Path::new("/etc/bellwether"), &Userlist)
    }

    /// Problems, then warnings.
    fn findings(auth: &str) -> Vec<String> {
        let (config, findings) = read(auth);
        assert_eq!(config.is_some(), findings.problems.is_empty(), "{auth}");
        findings.problems.iter().chain(&findings.warnings).map(Problem::to_string).collect()
    }

    /// A rule that lets followers in beside `rule`.
    fn beside(rule: &str) -> Vec<String> {
        findings(&format!(
            "{{rules: [{rule}, {{type: host, database: replication, user: r, address: 10.9.0.0/16, method: md5}}]}}"
        ))
    }

    #[test]
    fn good_rules() {
        for rule in [
            "{type: local, database: all, user: all, method: trust}",
            "{type: host, database: [a, b], user: [joe, '/^app_'], address: 10.0.0.0/8, method: scram-sha-256}",
            "{type: hostnossl, database: sameuser, user: all, address: all, method: reject}",
            "{type: host, database: all, user: all, address: '::1', method: trust}",
            "{type: hostssl, database: all, user: all, address: all, method: cert, clientname: DN}",
        ] {
            assert_eq!(beside(rule), [""; 0], "{rule}");
        }
    }

    #[test]
    fn bad_rules() {
        let check = |rule: &str, expected: &str| {
            let expected = format!("auth.rules[0].{expected}");
            assert_eq!(beside(rule), [expected], "{rule}");
        };
        check("{database: all, user: all, method: md5}", "type: is missing");
        check(
            "{type: local, database: samerole, user: all, method: md5}",
            "database: samerole is not supported: name the users or databases",
        );
        check(
            "{type: local, database: all, user: +staff, method: md5}",
            "user: +staff is not supported: name the users or databases",
        );
        check("{type: local, database: [], user: all, method: md5}", "database: must not be empty");
        check("{type: host, database: all, user: all, method: md5}", "address: is missing");
        check(
            "{type: local, database: all, user: all, address: all, method: md5}",
            "address: belongs to host; local is about unix sockets",
        );
        check(
            "{type: host, database: all, user: all, address: example.com, method: md5}",
            "address: ADDRESS/BITS, one address, or all is expected; names are not looked up",
        );
        check(
            "{type: local, database: all, user: all, method: password}",
            "method: must be one of trust, reject, md5, scram-sha-256, cert",
        );
        check(
            "{type: host, database: all, user: all, address: 0.0.0.0/0, method: trust}",
            "method: trust lets anybody in from there; it is for local and loopback addresses, or with force: on",
        );
        check("{type: local, database: all, user: all, method: md5, force: on}", "force: belongs to trust");
        check(
            "{type: local, database: all, user: all, method: md5, clientname: DN}",
            "clientname: belongs to cert",
        );
        check(
            "{type: host, database: all, user: all, address: all, method: cert}",
            "method: cert needs type: hostssl",
        );
        check(
            "{type: hostssl, database: all, user: all, address: all, method: cert, map: m}",
            "map: m is not in auth.maps",
        );
    }

    #[test]
    fn rules_worth_a_warning() {
        let forced = "{type: host, database: all, user: all, address: all, method: trust, force: on}";
        assert_eq!(
            beside(forced),
            ["auth.rules[0].method: trust lets anybody in from there who says a name"]
        );
        let twice = "{type: local, database: all, user: all, method: md5}";
        assert_eq!(
            beside(&format!("{twice}, {twice}")),
            ["auth.rules: rule 1 is never reached: rule 0 takes all of its connections"]
        );
        assert_eq!(
            findings(&format!("{{rules: [{twice}]}}")),
            ["auth.rules: let no follower in: none has database: replication"]
        );
    }

    #[test]
    fn rules_that_need_tls() {
        let check = |method: &str, tls: &str, expected: &[&str]| {
            let rule = "type: hostssl, database: [all, replication], user: all, address: all";
            let (_, findings) = read_with(&format!("{{rules: [{{{rule}, method: {method}}}]}}"), tls);
            let found: Vec<_> =
                findings.problems.iter().chain(&findings.warnings).map(Problem::to_string).collect();
            assert_eq!(found, expected, "{method} {tls}");
        };
        let no_ca =
            "auth.rules[0].method: cert needs tls.client_ca_file: whose certificates are to be believed?";
        check("cert", "{}", &[no_ca]);
        check("cert", "{cert_file: us.crt, key_file: us.key}", &[no_ca]);
        check("cert", "{cert_file: us.crt, key_file: us.key, client_ca_file: ca.crt}", &[]);
        let nobody = "auth.rules[0].type: hostssl matches nobody: tls has no certificate for clients";
        check("scram-sha-256", "{}", &[nobody]);
        check("scram-sha-256", "{cert_file: us.crt, key_file: us.key}", &[]);
    }

    #[test]
    fn one_method_or_rules() {
        let (config, _) = read("{method: trust}");
        let rules = config.expect("it is whole").auth.rules;
        assert!(rules.iter().all(|rule| matches!(rule.method, Method::Trust)));
        assert!(rules.iter().any(|rule| rule.origin == Origin::Local));
        let both =
            "{method: md5, rules: [{type: local, database: [all, replication], user: all, method: md5}]}";
        assert_eq!(
            findings(both),
            ["auth.method: is a rule for everybody; with rules there is no room for it"]
        );
    }

    #[test]
    fn maps() {
        let check = |line: &str, expected: &[&str]| {
            let rule = "{type: hostssl, database: [all, replication], user: all, address: all, method: cert, map: m}";
            assert_eq!(findings(&format!("{{maps: [{line}], rules: [{rule}]}}")), expected, "{line}");
        };
        check(r"{map: m, system: '/^(.*)@example\.com$', user: '\1'}", &[]);
        check(
            "{map: m, system: a, user: b}, {map: n, system: a, user: b}",
            &["auth.maps: no rule uses map n"],
        );
        let not_there = "auth.rules[0].map: m is not in auth.maps";
        check("{map: m, system: '/(', user: b}", &["auth.maps[0]: /( is no regular expression", not_there]);
        check("{map: m, system: a}", &["auth.maps[0].user: is missing", not_there]);
    }

    #[test]
    fn users_of_a_file() {
        let (config, _) =
            read("{users_file: userlist.txt, users: [{name: joe, secret: x, replication: on}]}");
        let auth = config.expect("it is whole").auth;
        let users: Vec<_> =
            auth.users.iter().map(|user| (user.name.as_str(), &**user.secret.reveal())).collect();
        assert_eq!(users, [("joe", "pw"), ("jim", "md5x"), ("joe", "x")]);
        assert_eq!(auth.replication_users, ["joe"]);
        assert_eq!(
            findings("{users_file: broken.txt}"),
            ["auth.users_file: broken.txt: line 2 is broken: \"user\" \"password\" is expected"]
        );
        assert_eq!(findings("{users_file: none.txt}"), ["auth.users_file: none.txt: entity not found"]);
        assert_eq!(findings("{query: off}"), ["auth.users: is missing: with query: off nobody could log in"]);
        assert_eq!(findings("{query: off, users_file: userlist.txt}"), [""; 0]);
    }

    #[test]
    fn lookups() {
        let check = |lookup: &str, expected: &[&str]| {
            assert_eq!(findings(&format!("{{lookup: {lookup}}}")), expected, "{lookup}");
        };
        check("{user: bw_auth, database: auth, keep: 5s, sql: 'SELECT * FROM auth.secret($1)'}", &[]);
        check("{sql: 'SELECT 1'}", &["auth.lookup.sql: must ask for the user in $1"]);
        check("{database: d}", &["auth.lookup.user: is missing: without it we look up as server_login does"]);
        check(
            "{sql: 'SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1'}",
            &["auth.lookup.sql: does not look at VALID UNTIL: expired passwords would go on working here"],
        );
        assert_eq!(
            findings("{query: off, users_file: userlist.txt, lookup: {keep: 1s}}"),
            ["auth.lookup: says how, and query: off that nobody is looked up"]
        );
    }
}
