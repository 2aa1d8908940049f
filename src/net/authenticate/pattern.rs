//! A regular expression of a rule or a map.

use regex::Regex;

/// Equal to another when it is written the same: so two readings of a configuration can be compared.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// `None`: it is no regular expression.
    pub(super) fn new(expression: &str) -> Option<Pattern> {
        Regex::new(expression).ok().map(Pattern)
    }

    pub(super) fn regex(&self) -> &Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}
