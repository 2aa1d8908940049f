//! From the name in a certificate to users: the maps of `pg_ident.conf` (check_ident_usermap in hba.c).

use std::sync::Arc;

use super::pattern::Pattern;

/// All lines of one map: a name may become several users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameMap(Arc<[MapLine]>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapLine {
    system: SystemName,
    user: MappedUser,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SystemName {
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum MappedUser {
    All,
    Name(String),
    /// A name in which the first `\1` stands for what the pattern's first group has matched.
    Template(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapLineError {
    #[error("{0} is no regular expression")]
    Pattern(String),
    #[error("\\1 needs a group in the regular expression")]
    NoGroup,
    #[error("{0} is not supported: name the user, or all")]
    Unsupported(String),
}

impl NameMap {
    pub fn new(lines: Vec<MapLine>) -> NameMap {
        NameMap(lines.into())
    }

    pub(super) fn lets(&self, system: &str, user: &str) -> bool {
        self.0.iter().any(|line| line.lets(system, user))
    }
}

impl MapLine {
    /// `system`: a name, or `/` and a regular expression. `user`: a name, with `\1` for the expression's group, or
    /// `all`.
    pub fn new(system: &str, user: &str) -> Result<MapLine, MapLineError> {
        let system = match system.strip_prefix('/') {
            None => SystemName::Name(system.to_owned()),
            Some(expression) => Pattern::new(expression)
                .map(SystemName::Pattern)
                .ok_or_else(|| MapLineError::Pattern(system.to_owned()))?,
        };
        let user = match (user, &system) {
            ("all", _) => MappedUser::All,
            (user, _) if user.starts_with(['+', '/']) => {
                return Err(MapLineError::Unsupported(user.to_owned()));
            }
            (user, SystemName::Pattern(pattern)) if user.contains("\\1") => {
                if pattern.regex().captures_len() < 2 {
                    return Err(MapLineError::NoGroup);
                }
                MappedUser::Template(user.to_owned())
            }
            (user, _) => MappedUser::Name(user.to_owned()),
        };
        Ok(MapLine { system, user })
    }

    fn lets(&self, system: &str, user: &str) -> bool {
        let group = match &self.system {
            SystemName::Name(name) if name == system => "",
            SystemName::Name(_) => return false,
            SystemName::Pattern(pattern) => match pattern.regex().captures(system) {
                Some(captures) => captures.get(1).map_or("", |group| group.as_str()),
                None => return false,
            },
        };
        match &self.user {
            MappedUser::All => true,
            MappedUser::Name(name) => name == user,
            // An empty group would make a user of the rest of the template.
            MappedUser::Template(template) => !group.is_empty() && template.replacen("\\1", group, 1) == user,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MapLine, MapLineError, NameMap};

    #[test]
    fn names_become_users() {
        let check = |system: &str, user: &str, from: &str, to: &str, expected: bool| {
            let map = NameMap::new(vec![MapLine::new(system, user).expect("a line")]);
            assert_eq!(map.lets(from, to), expected, "{system} {user}: {from} as {to}");
        };
        check("joe@example.com", "joe", "joe@example.com", "joe", true);
        check("joe@example.com", "joe", "joe@example.com", "jim", false);
        check("joe@example.com", "joe", "jim@example.com", "joe", false);
        check("/^(.*)@example\\.com$", "\\1", "joe@example.com", "joe", true);
        check("/^(.*)@example\\.com$", "\\1_ro", "joe@example.com", "joe_ro", true);
        check("/^(.*)@example\\.com$", "\\1", "joe@exampleXcom", "joe", false);
        check("/^(.*)@example\\.com$", "\\1", "$1@example.com", "$1", true);
        check("/^(.*)@example\\.com$", "\\1admin", "@example.com", "admin", false);
        check("/^(x)?(joe)$", "\\1", "joe", "", false);
        check("/@example\\.com$", "guest", "joe@example.com", "guest", true);
        check("root", "all", "root", "anybody", true);
        check("joe", "\\1", "joe", "\\1", true);
    }

    #[test]
    fn any_line_will_do() {
        let line = |system, user| MapLine::new(system, user).expect("a line");
        let map = NameMap::new(vec![line("joe", "a"), line("jim", "b"), line("joe", "b")]);
        for (system, user, expected) in [("joe", "a", true), ("joe", "b", true), ("jim", "a", false)] {
            assert_eq!(map.lets(system, user), expected, "{system} as {user}");
        }
    }

    #[test]
    fn lines_that_cannot_work() {
        assert_eq!(MapLine::new("/(", "joe").err(), Some(MapLineError::Pattern("/(".to_owned())));
        assert_eq!(MapLine::new("/joe", "\\1").err(), Some(MapLineError::NoGroup));
        assert_eq!(MapLine::new("joe", "+staff").err(), Some(MapLineError::Unsupported("+staff".to_owned())));
    }
}
