//! `pg_hba.conf` as `pg_hba_file_rules` shows it: who is let in, by the first line that matches (hba.c,
//! `check_hba`). PURE.
//!
//! Host names, `samenet`, regular expressions and groups cannot be decided from here: [`Match::Perhaps`].

use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) line: i32,
    /// `local`, `host`, `hostssl`, `hostnossl`, `hostgssenc`, `hostnogssenc`.
    pub(super) kind: String,
    pub(super) databases: Vec<String>,
    pub(super) users: Vec<String>,
    pub(super) address: String,
    pub(super) netmask: String,
    pub(super) method: String,
    /// The line cannot be read; the server ignores the whole file's change.
    pub(super) error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    No,
    Perhaps,
}

impl Match {
    fn and(self, other: Match) -> Match {
        match (self, other) {
            (Match::No, _) | (_, Match::No) => Match::No,
            (Match::Yes, Match::Yes) => Match::Yes,
            _ => Match::Perhaps,
        }
    }
}

/// What a connection asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose<'a> {
    Replication,
    Database(&'a str),
}

/// Whether `user` is let in from `from` (unencrypted; `None`: a unix socket).
pub(super) fn admits(rules: &[Rule], purpose: Purpose<'_>, user: &str, from: Option<IpAddr>) -> Match {
    let mut open = false;
    for rule in rules.iter().filter(|rule| rule.error.is_none()) {
        let found =
            rule.address_matches(from).and(rule.database_matches(purpose)).and(rule.user_matches(user));
        match (found, rule.method.as_str()) {
            (Match::Yes, "reject") if open => return Match::Perhaps,
            (Match::Yes, "reject") => return Match::No,
            (Match::Yes, _) => return Match::Yes,
            (Match::Perhaps, _) => open = true,
            (Match::No, _) => {}
        }
    }
    if open { Match::Perhaps } else { Match::No }
}

/// Lines that let applications in from other hosts than `ours`, past Bellwether.
pub(super) fn bypasses<'r>(
    rules: &'r [Rule],
    login: &'r str,
    ours: Option<IpAddr>,
) -> impl Iterator<Item = &'r Rule> {
    rules.iter().filter(move |rule| {
        let only_us = match rule.network() {
            Some((base, mask)) => base.is_loopback() || (Some(base) == ours && mask == widest(base)),
            None => rule.address == "samehost",
        };
        rule.error.is_none()
            && rule.kind != "local"
            && rule.method != "reject"
            && !only_us
            && rule.databases.iter().any(|database| database != "replication")
            && rule.users.iter().any(|user| user != login)
    })
}

impl Rule {
    fn address_matches(&self, from: Option<IpAddr>) -> Match {
        let Some(from) = from else { return yes_if(self.kind == "local") };
        match self.kind.as_str() {
            // Our connections to servers are neither encrypted nor GSSAPI's.
            "local" | "hostssl" | "hostgssenc" => return Match::No,
            _ => {}
        }
        match (self.address.as_str(), self.network()) {
            ("all", _) => Match::Yes,
            (_, Some((base, mask))) => yes_if(within(from, base, mask)),
            ("samehost", None) if from.is_loopback() => Match::Yes,
            (_, None) => Match::Perhaps,
        }
    }

    /// `replication` is not part of `all` (hba.c, `check_db`).
    fn database_matches(&self, purpose: Purpose<'_>) -> Match {
        let one = |name: &str| match purpose {
            Purpose::Replication => yes_if(name == "replication"),
            Purpose::Database(_) if name == "replication" => Match::No,
            Purpose::Database(database) => match name {
                "all" => Match::Yes,
                "sameuser" | "samerole" | "samegroup" => Match::Perhaps,
                name if name.starts_with('/') => Match::Perhaps,
                name => yes_if(name == database),
            },
        };
        any(self.databases.iter().map(|name| one(name)))
    }

    fn user_matches(&self, user: &str) -> Match {
        any(self.users.iter().map(|name| match name.as_str() {
            "all" => Match::Yes,
            name if name.starts_with(['+', '/']) => Match::Perhaps,
            name => yes_if(name == user),
        }))
    }

    /// Of an address with a mask.
    fn network(&self) -> Option<(IpAddr, IpAddr)> {
        Some((self.address.parse().ok()?, self.netmask.parse().ok()?))
    }
}

fn within(address: IpAddr, base: IpAddr, mask: IpAddr) -> bool {
    match (address, base, mask) {
        (IpAddr::V4(address), IpAddr::V4(base), IpAddr::V4(mask)) => address & mask == base & mask,
        (IpAddr::V6(address), IpAddr::V6(base), IpAddr::V6(mask)) => address & mask == base & mask,
        _ => false,
    }
}

/// The mask of a single address.
fn widest(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::from([0xFF; 4]),
        IpAddr::V6(_) => IpAddr::from([0xFF; 16]),
    }
}

fn any(matches: impl Iterator<Item = Match>) -> Match {
    matches.fold(Match::No, |found, next| match (found, next) {
        (Match::Yes, _) | (_, Match::Yes) => Match::Yes,
        (Match::No, Match::No) => Match::No,
        _ => Match::Perhaps,
    })
}

fn yes_if(holds: bool) -> Match {
    if holds { Match::Yes } else { Match::No }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;

    use super::{Match, Purpose, Rule, admits, bypasses};

    /// `host all all 10.0.0.0/255.255.255.0 md5`, as one would write it.
    pub(in crate::app::check) fn rules(file: &str) -> Vec<Rule> {
        let words = |text: &str| text.split(',').map(str::to_owned).collect();
        let lines = file.lines().map(str::trim).filter(|line| !line.is_empty()).zip(1..);
        lines
            .map(|(line, number)| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (kind, databases, users) = (fields[0], fields[1], fields[2]);
                let (address, method) =
                    if kind == "local" { ("", fields[3]) } else { (fields[3], fields[4]) };
                let (address, netmask) = address.split_once('/').unwrap_or((address, ""));
                Rule {
                    line: number,
                    kind: kind.to_owned(),
                    databases: words(databases),
                    users: words(users),
                    address: address.to_owned(),
                    netmask: netmask.to_owned(),
                    method: method.to_owned(),
                    error: None,
                }
            })
            .collect()
    }

    #[test]
    fn the_first_line_that_matches_decides() {
        const SQL: Purpose<'_> = Purpose::Database("orders");
        const WAL: Purpose<'_> = Purpose::Replication;
        let net = "10.0.0.0/255.255.255.0";
        for (file, purpose, expected) in [
            (String::new(), SQL, Match::No),
            (format!("host all all {net} md5"), SQL, Match::Yes),
            (format!("host all all {net} md5"), WAL, Match::No),
            (format!("host replication bw {net} md5"), WAL, Match::Yes),
            (format!("host replication bw {net} md5"), SQL, Match::No),
            (format!("host all,replication other,bw {net} md5"), WAL, Match::Yes),
            (format!("host all bw {net} reject\nhost all all all md5"), SQL, Match::No),
            (format!("host shop all {net} reject\nhost all all all md5"), SQL, Match::Yes),
            (format!("hostssl all all {net} md5"), SQL, Match::No),
            (format!("hostnossl all all {net} md5"), SQL, Match::Yes),
            ("host all all 10.0.1.0/255.255.255.0 md5".to_owned(), SQL, Match::No),
            ("host all all ::1/ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff md5".to_owned(), SQL, Match::No),
            ("local all all trust".to_owned(), SQL, Match::No),
            (format!("host all +ops {net} md5"), SQL, Match::Perhaps),
            (format!("host all +ops {net} md5\nhost all all all reject"), SQL, Match::Perhaps),
            ("host all all app.example.org md5".to_owned(), SQL, Match::Perhaps),
        ] {
            let from = "10.0.0.9".parse().ok();
            assert_eq!(admits(&rules(&file), purpose, "bw", from), expected, "{file:?} {purpose:?}");
        }
        assert_eq!(admits(&rules("local all all peer"), SQL, "bw", None), Match::Yes);
    }

    #[test]
    fn a_bypass_is_a_line_for_others_from_elsewhere() {
        let ours: Option<IpAddr> = "10.0.0.9".parse().ok();
        let file = rules(
            "local all all peer
             host all all 127.0.0.1/255.255.255.255 md5
             host all all 10.0.0.9/255.255.255.255 md5
             host all bw 10.0.0.0/255.255.255.0 md5
             host replication all 0.0.0.0/0.0.0.0 md5
             host all all samehost md5
             host shop app 10.0.0.0/255.255.255.0 md5
             host all all 10.0.0.0/255.255.255.0 reject
             host all all all scram-sha-256",
        );
        assert_eq!(bypasses(&file, "bw", ours).map(|rule| rule.line).collect::<Vec<_>>(), [7, 9]);
    }
}
