//! Reads a YAML document key by key and collects every problem on the way, each with its path in the file.
//!
//! serde would stop at the first one; who writes a configuration wants all of them at once. A [`Section`]
//! knows which keys were asked for, so when its reader returns, what is left over is unknown, and an error.

use std::fmt;

use serde_yaml::{Mapping, Value};

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `nodes[1].address`; empty for the document as a whole.
    pub path: String,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.what) } else { write!(f, "{}: {}", self.path, self.what) }
    }
}

/// What reading a document brought up beside its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The configuration cannot be used.
    pub problems: Vec<Problem>,
    /// It can, but somebody should know.
    pub warnings: Vec<Problem>,
}

/// What a value's parser answers: the value, or what is expected there instead.
pub(super) type Parsed<T> = Result<T, String>;

/// One mapping of the document while it is read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    /// `None`: absent or empty, which for a section are the same.
    entries: Option<&'a Mapping>,
    known: Vec<&'static str>,
    findings: &'a mut Findings,
}

impl<'a> Section<'a> {
    /// Reads the whole document with `read`.
    pub(super) fn document<T>(
        document: &'a Value,
        findings: &'a mut Findings,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        Section::read(String::new(), Some(document), findings, read)
    }

    fn read<T>(
        path: String,
        value: Option<&Value>,
        findings: &mut Findings,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let entries = match value {
            Some(Value::Mapping(entries)) => Some(entries),
            None | Some(Value::Null) => None,
            Some(_) => {
                findings
                    .problems
                    .push(Problem { path: path.clone(), what: "must be a mapping (key: value)".to_owned() });
                None
            }
        };
        let mut section = Section { path, entries, known: Vec::new(), findings };
        let result = read(&mut section);
        section.report_unknown_keys();
        result
    }

    /// The value of `key`; `None` where it is absent, or is wrong and has been reported.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Parsed<T>,
    ) -> Option<T> {
        let parsed = parse(self.value(key)?);
        parsed.map_err(|what| self.problem(key, what)).ok()
    }

    /// The value of `key`, whose absence is a problem too.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Parsed<T>,
    ) -> Option<T> {
        if self.value(key).is_none() {
            self.problem(key, "is missing");
        }
        self.optional(key, parse)
    }

    /// The value of `key`, or `default`.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Value) -> Parsed<T>,
    ) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// The mapping under `key`; where it is absent, an empty one, so that its defaults are in one place.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let value = self.value(key);
        Section::read(self.path_of(key), value, self.findings, read)
    }

    /// The list of mappings under `key`; what `read` answers with `None` has been reported.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_>) -> Option<T>,
    ) -> Vec<T> {
        let items: &[Value] = match self.value(key) {
            None => &[],
            Some(Value::Sequence(items)) => items,
            Some(_) => {
                self.problem(key, "must be a list (- item)");
                &[]
            }
        };
        let base = self.path_of(key);
        let numbered = items.iter().enumerate();
        numbered
            .filter_map(|(i, item)| {
                Section::read(format!("{base}[{i}]"), Some(item), self.findings, &mut read)
            })
            .collect()
    }

    /// Whether the section itself is not there.
    pub(super) fn is_absent(&self) -> bool {
        self.entries.is_none()
    }

    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.findings.problems.push(Problem { path: self.path_of(key), what: what.into() });
    }

    pub(super) fn warning(&mut self, key: &str, what: impl Into<String>) {
        self.findings.warnings.push(Problem { path: self.path_of(key), what: what.into() });
    }

    /// Remembers that `key` is known. `null` counts as absent.
    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries.and_then(|entries| entries.get(key)).filter(|value| !value.is_null())
    }

    fn path_of(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn report_unknown_keys(&mut self) {
        let Some(entries) = self.entries else { return };
        for key in entries.keys() {
            let Some(key) = key.as_str() else {
                self.problem("", format!("has a key that is not text: {key:?}"));
                continue;
            };
            if !self.known.contains(&key) {
                let what = match nearest(key, &self.known) {
                    Some(near) => format!("unknown key; did you mean {near}?"),
                    None => format!("unknown key; known here: {}", self.known.join(", ")),
                };
                self.problem(key, what);
            }
        }
    }
}

/// The candidate within two edits of `word` that is nearest to it.
fn nearest<'k>(word: &str, candidates: &[&'k str]) -> Option<&'k str> {
    let distances = candidates.iter().map(|candidate| (edit_distance(word, candidate), *candidate));
    let close = distances.filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len());
    close.min().map(|(_, candidate)| candidate)
}

/// Levenshtein's, row by row.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{Findings, Problem, Section, edit_distance};
    use crate::app::config::units::text;

    fn problems(yaml: &str, read: impl FnOnce(&mut Section<'_>)) -> Vec<String> {
        let document = serde_yaml::from_str(yaml).expect("the test's own YAML");
        let mut findings = Findings::default();
        Section::document(&document, &mut findings, read);
        findings.problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn every_problem_has_its_path() {
        let found = problems("{a: {b: [{nam: x}, 3, {name: [1]}]}, zzzzzz: 1}", |root| {
            root.required("missing", text);
            root.section("a", |a| {
                a.list("b", |item| item.required("name", text));
            });
        });
        assert_eq!(
            found,
            [
                "missing: is missing",
                "a.b[0].name: is missing",
                "a.b[0].nam: unknown key; did you mean name?",
                "a.b[1]: must be a mapping (key: value)",
                "a.b[1].name: is missing",
                "a.b[2].name: text is expected, not a list",
                "zzzzzz: unknown key; known here: missing, a",
            ]
        );
    }

    #[test]
    fn an_absent_or_empty_section_has_its_defaults() {
        for yaml in ["{}", "{pool: }", "pool: {}"] {
            let found = problems(yaml, |root| {
                assert_eq!(
                    root.section("pool", |pool| pool.or("mode", "default".to_owned(), text)),
                    "default"
                );
            });
            assert_eq!(found, [""; 0], "{yaml}");
        }
    }

    #[test]
    fn edits() {
        for (a, b, expected) in [("", "", 0), ("abc", "abc", 0), ("adress", "address", 1), ("ab", "ba", 2)] {
            assert_eq!(edit_distance(a, b), expected, "{a} {b}");
        }
    }
}
