//! Two traces of the same script: equal, or where they part.

use std::fmt;

use super::client::Trace;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    direct: Trace,
    endpoint: Trace,
    /// The first line that is not the same.
    at: usize,
}

pub(super) fn compare(traces: [Trace; 2]) -> Option<Difference> {
    let [direct, endpoint] = traces.map(in_order);
    let same = direct.iter().zip(&endpoint).take_while(|(one, other)| one == other).count();
    (direct != endpoint).then_some(Difference { direct, endpoint, at: same })
}

/// Parameters that are reported together come as guc.c happens to keep them: by name up to 15, as they were first
/// changed since. The order says nothing.
fn in_order(mut trace: Trace) -> Trace {
    let is_report = |line: &String| line.starts_with("ParameterStatus ");
    trace.chunk_by_mut(|one, other| is_report(one) && is_report(other)).for_each(<[String]>::sort);
    trace
}

impl Difference {
    /// The lines that differ; nothing where a trace has ended.
    pub(super) fn lines(&self) -> [&str; 2] {
        [&self.direct, &self.endpoint].map(|trace| trace.get(self.at).map_or("", String::as_str))
    }
}

/// Lines shown before and behind.
const BEFORE: usize = 4;
const BEHIND: usize = 4;

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.direct[self.at.saturating_sub(BEFORE)..self.at] {
            writeln!(f, "    both      {line}")?;
        }
        for (side, trace) in [("direct  ", &self.direct), ("endpoint", &self.endpoint)] {
            for line in trace[self.at..].iter().take(BEHIND) {
                writeln!(f, "    {side}  {line}")?;
            }
        }
        Ok(())
    }
}

#[test]
fn traces_part_where_they_part() {
    let trace = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Trace>();
    let check = |direct: &[&str], endpoint: &[&str], expected: Option<[&str; 2]>| {
        let found = compare([trace(direct), trace(endpoint)]);
        assert_eq!(found.as_ref().map(Difference::lines), expected);
    };
    check(&["a", "b"], &["a", "b"], None);
    check(&["a", "b"], &["a", "c"], Some(["b", "c"]));
    check(&["a", "b"], &["a"], Some(["b", ""]));
    check(&[], &["a"], Some(["", "a"]));
    let (one, two) = ("ParameterStatus TimeZone UTC", "ParameterStatus DateStyle ISO");
    check(&[one, two, "b"], &[two, one, "b"], None);
    check(&[one, two, "b"], &[one, "b"], Some([two, one]));
    check(&["b", one], &[one, "b"], Some(["b", one]));
}
