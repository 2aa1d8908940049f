//! `pgbouncer.ini` as sections, keys and values; and the connection strings in it. PURE.

/// A key, in lower case, and its value.
pub(super) type Entry = (String, String);

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ini {
    pub(super) databases: Vec<Entry>,
    pub(super) users: Vec<Entry>,
    pub(super) pgbouncer: Vec<Entry>,
    /// Lines that are none of this.
    pub(super) others: Vec<String>,
}

impl Ini {
    pub(super) fn parse(text: &str) -> Ini {
        let (mut ini, mut section) = (Ini::default(), String::new());
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.trim().to_ascii_lowercase();
                continue;
            }
            let entry = line.split_once('=').map(|(key, value)| (key.trim(), value.trim().to_owned()));
            match (section.as_str(), entry) {
                ("databases", Some((name, value))) => ini.databases.push((unquoted(name), value)),
                ("users", Some((name, value))) => ini.users.push((unquoted(name), value)),
                ("pgbouncer", Some((key, value))) => ini.pgbouncer.push((key.to_ascii_lowercase(), value)),
                _ => ini.others.push(line.to_owned()),
            }
        }
        ini
    }
}

fn unquoted(name: &str) -> String {
    let inner = name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.map_or_else(|| name.to_owned(), |inner| inner.replace("\"\"", "\""))
}

/// `host=... port=... name='a value'`, as libpq reads it; doubled quotes stand for one.
pub(super) fn pairs(text: &str) -> Vec<Entry> {
    let mut pairs = vec![];
    let mut rest = text.trim_start();
    while let Some((key, behind)) = rest.split_once('=') {
        let behind = behind.trim_start();
        let (value, next) = match behind.strip_prefix('\'') {
            Some(quoted) => until_quote(quoted),
            None => {
                let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
                (behind[..end].to_owned(), &behind[end..])
            }
        };
        pairs.push((key.trim().to_ascii_lowercase(), value));
        rest = next.trim_start();
    }
    pairs
}

fn until_quote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(end) = rest.find('\'') {
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('\'') {
            Some(behind) => {
                value.push('\'');
                rest = behind;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::{Ini, pairs};

    #[test]
    fn sections_comments_and_quotes() {
        let ini = Ini::parse(
            "; a comment\n[databases]\n\"my db\" = host=/tmp password='it''s' pool_size = 5\n# another\n* = host=h\n\
             [pgbouncer]\nListen_Port = 6432\n%include other.ini\n[peers]\n1 = host=a\n",
        );
        assert_eq!(ini.databases[0].0, "my db");
        assert_eq!(ini.databases[1], ("*".to_owned(), "host=h".to_owned()));
        assert_eq!(ini.pgbouncer, [("listen_port".to_owned(), "6432".to_owned())]);
        assert_eq!(ini.others, ["%include other.ini", "1 = host=a"]);
        let expected = [("host", "/tmp"), ("password", "it's"), ("pool_size", "5")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(pairs(&ini.databases[0].1), expected);
    }
}
