//! libpq connection strings in their keyword form (`conninfo_parse`, fe-connect.c).

use std::fmt;

/// `host=... port=...`: pairs in their order, each keyword once.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Conninfo {
    pairs: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConninfo {
    #[error("missing \"=\" after \"{keyword}\" in a connection string")]
    MissingEquals { keyword: String },
    #[error("unterminated quoted string in a connection string")]
    UnterminatedQuote,
    #[error("a connection string in keyword form is expected, not a URI")]
    Uri,
}

impl Conninfo {
    pub fn new() -> Conninfo {
        Conninfo::default()
    }

    pub fn parse(text: &str) -> Result<Conninfo, InvalidConninfo> {
        if text.starts_with("postgresql://") || text.starts_with("postgres://") {
            return Err(InvalidConninfo::Uri);
        }
        let mut parsed = Conninfo::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
            let (keyword, after) = rest.split_at(end);
            let Some(value) = after.trim_start().strip_prefix('=') else {
                return Err(InvalidConninfo::MissingEquals { keyword: keyword.to_owned() });
            };
            let (value, after) = take_value(value.trim_start())?;
            parsed = parsed.with(keyword, value);
            rest = after.trim_start();
        }
        Ok(parsed)
    }

    pub fn value(&self, keyword: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == keyword).map(|(_, value)| value.as_str())
    }

    /// Replaces the keyword's value, or appends the pair.
    #[must_use]
    pub fn with(mut self, keyword: &str, value: impl Into<String>) -> Conninfo {
        let value = value.into();
        match self.pairs.iter_mut().find(|(k, _)| k == keyword) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((keyword.to_owned(), value)),
        }
        self
    }
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (keyword, value)) in self.pairs.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            let plain =
                !value.is_empty() && !value.contains(['\'', '\\']) && !value.contains(char::is_whitespace);
            if plain {
                write!(f, "{space}{keyword}={value}")?;
            } else {
                write!(f, "{space}{keyword}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))?;
            }
        }
        Ok(())
    }
}

/// Without the values: one of them may be a password.
impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pairs.iter().map(|(keyword, _)| keyword)).finish()
    }
}

/// The value at the start of `text`, and what follows it.
fn take_value(text: &str) -> Result<(String, &str), InvalidConninfo> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(InvalidConninfo::UnterminatedQuote) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::{Conninfo, InvalidConninfo};

    #[test]
    fn a_conninfo_reads_what_it_prints() {
        let check = |text: &str, printed: &str| {
            let parsed = Conninfo::parse(text).map(|c| c.to_string());
            assert_eq!(parsed.as_deref(), Ok(printed), "{text}");
            assert_eq!(Conninfo::parse(printed).map(|c| c.to_string()).as_deref(), Ok(printed));
        };
        check("", "");
        check("host=127.0.0.1 port=6432", "host=127.0.0.1 port=6432");
        check("  host = a   user='bell wether' ", "host=a user='bell wether'");
        check(r"password='it\'s \\ it' options=", r"password='it\'s \\ it' options=''");
        check(r"password=a\ b", "password='a b'");
    }

    #[test]
    fn malformed_ones_are_refused() {
        let error = |text: &str| Conninfo::parse(text).err();
        assert_eq!(error("host"), Some(InvalidConninfo::MissingEquals { keyword: "host".into() }));
        assert_eq!(error("host='a"), Some(InvalidConninfo::UnterminatedQuote));
        assert_eq!(error("postgresql://a/b"), Some(InvalidConninfo::Uri));
    }

    #[test]
    fn with_replaces() {
        let conninfo = Conninfo::parse("application_name=x host=a").unwrap().with("application_name", "pg-1");
        assert_eq!(conninfo.to_string(), "application_name=pg-1 host=a");
        assert!(!format!("{:?}", conninfo.with("password", "secret")).contains("secret"));
    }
}
