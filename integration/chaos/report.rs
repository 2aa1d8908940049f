//! What a round came to, in a line, and all rounds in a table. PURE.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::check::{Moment, Outcome};
use super::load::Histories;

/// How clients fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) acknowledged: usize,
    /// By SQLSTATE, or `cut`.
    pub(crate) refused: BTreeMap<String, usize>,
    pub(crate) in_doubt: BTreeMap<String, usize>,
}

impl Tally {
    pub(crate) fn of(histories: &Histories) -> Tally {
        let transactions = histories.transactions.iter().map(|transaction| &transaction.outcome);
        let transfers = histories.transfers.iter().map(|transfer| &transfer.outcome);
        let mut tally = Tally::default();
        transactions.chain(transfers).for_each(|outcome| tally.count(outcome));
        tally
    }

    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Acknowledged => self.acknowledged += 1,
            Outcome::Refused(why) => *self.refused.entry(code(why)).or_default() += 1,
            Outcome::Unknown(why) => *self.in_doubt.entry(code(why)).or_default() += 1,
        }
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        self.acknowledged += other.acknowledged;
        for (all, more) in [(&mut self.refused, &other.refused), (&mut self.in_doubt, &other.in_doubt)] {
            for (code, count) in more {
                *all.entry(code.clone()).or_default() += count;
            }
        }
    }
}

/// The SQLSTATE that it begins with.
fn code(why: &str) -> String {
    let first = why.split(' ').next().unwrap_or_default();
    let is_code =
        first.len() == 5 && first.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    if is_code { first.to_owned() } else { "cut".to_owned() }
}

/// The longest time from one commit to the next, of whichever clients, that ended after `since`.
pub(crate) fn without_writes(acknowledged: &[Moment], since: Moment) -> Duration {
    let pairs = acknowledged.windows(2).filter(|pair| pair[1] > since);
    pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// One round.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) what: String,
    pub(crate) without_writes: Duration,
    /// From the last fault's end on.
    pub(crate) whole_after: Duration,
    pub(crate) tally: Tally,
    /// How often a server that was neither standby nor primary was written to, past the endpoint.
    pub(crate) probes: usize,
    pub(crate) wrong: usize,
}

pub(crate) const HEAD: &str = "| round | fault | ms without writes | s until whole | committed | refused | in doubt | wrong |\n\
                               |---|---|---|---|---|---|---|---|";

impl Line {
    pub(crate) fn text(&self) -> String {
        format!(
            "| {} | {} | {} | {:.1} | {} | {} | {} | {} |",
            self.number,
            self.what,
            self.without_writes.as_millis(),
            self.whole_after.as_secs_f64(),
            self.tally.acknowledged,
            counts(&self.tally.refused),
            counts(&self.tally.in_doubt),
            self.wrong
        )
    }
}

fn counts(by_code: &BTreeMap<String, usize>) -> String {
    let each = by_code.iter().map(|(code, count)| format!("{code}: {count}"));
    each.collect::<Vec<_>>().join(", ")
}

/// Behind the table.
pub(crate) fn summary(lines: &[Line], faults: usize) -> String {
    let mut total = Tally::default();
    lines.iter().for_each(|line| total.add(&line.tally));
    let mut outages: Vec<u128> = lines.iter().map(|line| line.without_writes.as_millis()).collect();
    outages.sort_unstable();
    let at = |part: usize| outages.get((outages.len().max(1) - 1) * part / 100).copied().unwrap_or_default();
    let mut text = format!(
        "{faults} faults in {} rounds: {} committed; refused {}; in doubt {}\n",
        lines.len(),
        total.acknowledged,
        counts(&total.refused),
        counts(&total.in_doubt)
    );
    let _ = writeln!(text, "without writes, ms: median {}, p95 {}, worst {}", at(50), at(95), at(100));
    let probes: usize = lines.iter().map(|line| line.probes).sum();
    let _ = writeln!(text, "{probes} writes tried at servers that were neither standby nor primary");
    let whole = lines.iter().map(|line| line.whole_after).max().unwrap_or_default();
    let _ = writeln!(text, "whole again after at most {:.1} s", whole.as_secs_f64());
    text
}

/// What instances said to people, how often: their WARN and ERROR lines without time and fields.
pub(crate) fn said<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut messages: BTreeMap<String, usize> = BTreeMap::new();
    lines.filter_map(message).for_each(|message| *messages.entry(message).or_default() += 1);
    messages.into_iter().fold(String::new(), |mut text, (message, times)| {
        let _ = writeln!(text, "{times} times {message}");
        text
    })
}

/// Fields are `name=value`, behind the message.
fn message(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let alarming = rest.starts_with("WARN ") || rest.starts_with("ERROR ");
    let words = rest.split(' ').take_while(|word| !word.contains('='));
    alarming.then(|| words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{code, message, without_writes};

    #[test]
    fn messages() {
        let warning = "2026-11-21T21:09:12.254358Z  WARN bellwether::relay: it is late node=pg1 why=\"x\"";
        assert_eq!(message(warning).as_deref(), Some("WARN bellwether::relay: it is late"));
        assert_eq!(message("2026-11-21T21:09:12.254358Z  INFO bellwether::relay: fine"), None);
        assert_eq!(message("panicked"), None);
    }

    #[test]
    fn codes() {
        for (why, expected) in
            [("40001 cut", "40001"), ("57P03 no primary", "57P03"), ("before COMMIT: x", "cut")]
        {
            assert_eq!(code(why), expected);
        }
    }

    #[test]
    fn the_longest_pause() {
        let at = |millis: &[u64]| millis.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        let since = Duration::from_millis(100);
        // The pause before the fault is nobody's; one that it falls into is its.
        let acknowledged = at(&[0, 90, 300, 310, 450]);
        assert_eq!(without_writes(&acknowledged, since), Duration::from_millis(210));
        assert_eq!(without_writes(&at(&[]), since), Duration::ZERO);
    }
}
