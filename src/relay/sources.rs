//! Whom to ask for WAL next. PURE.
//!
//! The directive's upstream comes first, always, and is tried again for as long as it is the directive's. Others are
//! *substitutes*: any node of the cluster, then the other instances' relays, then `wal.upstreams`. They are asked
//!
//! * at once, when the upstream says that it does not keep the WAL that comes next: whoever has it;
//! * after [`PATIENCE`], when the upstream cannot be streamed from for another reason. Most of these reasons pass, or
//!   end in another term. Then nobody is asked who follows this relay (and does not wait for more than it has, as one
//!   does that came from another relay): what is shipped is durable here.
//!
//! What a substitute may give is bounded by [`known`]: WAL of timelines that are in the history of the directive's
//! upstream as *it* has told it. Anything else could be a fork that lost its election, and a relay that holds WAL
//! behind the end of its timeline could not follow the true one any more. So nobody stands in for an upstream of which
//! nothing was heard since its promotion, no log begins with a substitute, and in an election, when the directive names
//! nobody, nobody is asked: the durable end that this relay has promised is final.
//!
//! Nothing is ever skipped. When the upstream does not keep what comes next, and nobody else who answers has it
//! either, that is a gap ([`Sources::is_gap`]): the relay stays where it is, says so, and goes on asking, since who was
//! down may come back with it. To begin anew behind the gap is a person's decision.

use std::time::{Duration, Instant};

use crate::pg::TimelineId;

/// How long the upstream's trouble lasts before somebody else is asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Of what a source does not keep it is asked again at most this often.
const LACKS_RETRY: Duration = Duration::from_secs(5);
const SUBSTITUTE_FIRST_RETRY: Duration = Duration::from_secs(1);
const SUBSTITUTE_LAST_RETRY: Duration = Duration::from_secs(30);

/// The newest timeline that a substitute's WAL may be of; `None`: no substitute is believed. `directive`: the timeline
/// of the directive's upstream, as it was verified. `own`: what the store is on. An earlier one is continued up to its
/// end in the history of the directive's, where that is stored; histories come from named upstreams alone.
pub(super) fn known(
    directive: Option<TimelineId>,
    own: TimelineId,
    has_history: impl Fn(TimelineId) -> bool,
) -> Option<TimelineId> {
    directive.filter(|theirs| own.0 > 0 && (own == *theirs || (own < *theirs && has_history(*theirs))))
}

/// What came of asking a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It streamed for longer than a retry takes, or brought something new.
    Served,
    /// Not reached, lost, or refused.
    Failed,
    /// It does not keep what comes next, or has nothing behind it.
    Lacks,
}

/// Why there is no stream from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Away,
    /// It does not keep the WAL that comes next.
    Lacks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Upstream,
    /// By its number.
    Substitute(usize),
    WaitUntil(Instant),
}

/// The sources for one directive.
#[derive(Debug)]
pub(super) struct Sources {
    upstream: Source,
    /// Since when there is no stream from the upstream.
    missed_since: Instant,
    /// In the order in which they are asked.
    substitutes: Vec<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    outcome: Option<Outcome>,
    not_before: Instant,
    /// Unspread.
    retry: Duration,
}

/// Spreads retries, so that relays that lost the same server do not come back together: a factor of 0.75 to 1.25.
#[derive(Clone, Copy, Debug)]
pub(super) struct Jitter(f64);

impl Jitter {
    /// `random`: 0 to 1.
    pub(super) fn new(random: f64) -> Jitter {
        Jitter(0.75 + random.clamp(0.0, 1.0) / 2.0)
    }

    pub(super) fn spread(self, duration: Duration) -> Duration {
        duration.mul_f64(self.0)
    }
}

impl Sources {
    pub(super) fn new(substitutes: usize, now: Instant) -> Sources {
        let source = |retry| Source { outcome: None, not_before: now, retry };
        Sources {
            upstream: source(FIRST_RETRY),
            missed_since: now,
            substitutes: vec![source(SUBSTITUTE_FIRST_RETRY); substitutes],
        }
    }

    /// `may_ask`: whether a substitute, by its number, can help with that.
    pub(super) fn next(&self, now: Instant, may_ask: impl Fn(usize, Trouble) -> bool) -> Next {
        if self.upstream.not_before <= now {
            return Next::Upstream;
        }
        let trouble = self.trouble();
        let patience = match trouble {
            Trouble::Lacks => now,
            Trouble::Away => self.missed_since + PATIENCE,
        };
        let due = |number: usize| self.substitutes[number].not_before.max(patience);
        let askable = (0..self.substitutes.len()).filter(|number| may_ask(*number, trouble));
        let substitute = askable.min_by_key(|number| due(*number).max(now));
        match substitute {
            Some(number) if due(number) <= now => Next::Substitute(number),
            Some(number) => Next::WaitUntil(due(number).min(self.upstream.not_before)),
            None => Next::WaitUntil(self.upstream.not_before),
        }
    }

    pub(super) fn upstream_tried(&mut self, now: Instant, outcome: Outcome, jitter: Jitter) {
        let retry = match outcome {
            Outcome::Served => {
                self.missed_since = now;
                self.upstream.retry = FIRST_RETRY;
                FIRST_RETRY
            }
            Outcome::Failed => self.upstream.backed_off(LAST_RETRY),
            Outcome::Lacks => LACKS_RETRY,
        };
        let news = outcome == Outcome::Lacks && self.trouble() == Trouble::Away;
        self.upstream.tried(now, outcome, jitter.spread(retry));
        if news {
            for source in &mut self.substitutes {
                *source = Source { outcome: None, not_before: now, retry: SUBSTITUTE_FIRST_RETRY };
            }
        }
    }

    pub(super) fn substitute_tried(&mut self, number: usize, now: Instant, outcome: Outcome, jitter: Jitter) {
        let source = &mut self.substitutes[number];
        let retry = match outcome {
            Outcome::Served => SUBSTITUTE_FIRST_RETRY,
            Outcome::Failed | Outcome::Lacks => source.backed_off(SUBSTITUTE_LAST_RETRY),
        };
        source.tried(now, outcome, jitter.spread(retry));
        if outcome == Outcome::Served {
            source.retry = SUBSTITUTE_FIRST_RETRY;
            // It may have brought what the upstream lacked.
            self.upstream.not_before = now;
        }
    }

    pub(super) fn trouble(&self) -> Trouble {
        if self.upstream.outcome == Some(Outcome::Lacks) { Trouble::Lacks } else { Trouble::Away }
    }

    /// When the upstream is to be tried again.
    pub(super) fn upstream_due(&self) -> Instant {
        self.upstream.not_before
    }

    /// Nobody who answers has what comes next.
    pub(super) fn is_gap(&self, may_ask: impl Fn(usize, Trouble) -> bool) -> bool {
        let tried_in_vain =
            |source: &Source| matches!(source.outcome, Some(Outcome::Failed | Outcome::Lacks));
        let mut askable =
            self.substitutes.iter().enumerate().filter(|(number, _)| may_ask(*number, Trouble::Lacks));
        self.trouble() == Trouble::Lacks && askable.all(|(_, source)| tried_in_vain(source))
    }
}

impl Source {
    fn tried(&mut self, now: Instant, outcome: Outcome, retry: Duration) {
        self.outcome = Some(outcome);
        self.not_before = now + retry;
    }

    fn backed_off(&mut self, limit: Duration) -> Duration {
        let retry = self.retry;
        self.retry = (retry * 2).min(limit);
        retry
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: an arbitrary instant to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Jitter, Next, Outcome, Sources, Trouble, known};
    use crate::pg::TimelineId;

    const EVEN: Jitter = Jitter(1.0);

    #[test]
    fn only_wal_of_the_directives_history_is_taken_from_a_substitute() {
        let check = |directive: Option<u32>, own, histories: &[u32]| {
            let has = |timeline: TimelineId| histories.contains(&timeline.0);
            known(directive.map(TimelineId), TimelineId(own), has).map(|timeline| timeline.0)
        };
        assert_eq!(check(Some(2), 2, &[]), Some(2));
        assert_eq!(check(Some(2), 1, &[]), None, "nothing says where timeline 1 ended");
        assert_eq!(check(Some(2), 1, &[2]), Some(2));
        assert_eq!(check(Some(2), 3, &[2, 3]), None, "the directive is behind");
        assert_eq!(check(None, 2, &[2]), None, "nobody is verified");
        assert_eq!(check(Some(1), 0, &[]), None, "a log begins with the primary's WAL");
    }

    /// What was done, in milliseconds, up to `until`, when each source gives these outcomes, the last for ever.
    fn play(until: u64, upstream: &[Outcome], substitutes: &[&[Outcome]]) -> Vec<String> {
        let begin = Instant::now();
        let mut sources = Sources::new(substitutes.len(), begin);
        let (mut now, mut done) = (begin, Vec::new());
        let mut asked = vec![0; substitutes.len() + 1];
        let outcome = |script: &[Outcome], turn: usize| script[turn.min(script.len() - 1)];
        while now.duration_since(begin) <= Duration::from_millis(until) {
            let at = now.duration_since(begin).as_millis();
            match sources.next(now, |_, _| true) {
                Next::WaitUntil(later) => {
                    assert!(later > now, "it would spin");
                    now = later;
                }
                Next::Upstream => {
                    done.push(format!("{at} upstream"));
                    sources.upstream_tried(now, outcome(upstream, asked[0]), EVEN);
                    asked[0] += 1;
                }
                Next::Substitute(number) => {
                    done.push(format!("{at} {number}"));
                    let said = outcome(substitutes[number], asked[number + 1]);
                    sources.substitute_tried(number, now, said, EVEN);
                    asked[number + 1] += 1;
                }
            }
            if sources.is_gap(|_, _| true) && !done.iter().any(|line| line.ends_with("gap")) {
                done.push(format!("{at} gap"));
            }
        }
        done
    }

    #[test]
    fn an_upstream_that_is_away_is_waited_for_before_anybody_else_is_asked() {
        use Outcome::Failed;
        let done = play(4000, &[Failed], &[&[Failed], &[Failed]]);
        let expected = [
            "0 upstream",
            "50 upstream",
            "150 upstream",
            "350 upstream",
            "750 upstream",
            "1550 upstream",
            "2000 0",
            "2000 1",
            "2550 upstream",
            "3000 0",
            "3000 1",
            "3550 upstream",
        ];
        assert_eq!(done, expected);
    }

    #[test]
    fn what_the_upstream_does_not_keep_is_asked_for_elsewhere_at_once() {
        use Outcome::{Failed, Lacks, Served};
        assert_eq!(play(900, &[Lacks], &[&[Failed], &[Lacks]]), ["0 upstream", "0 0", "0 1", "0 gap"]);
        let filled = play(100, &[Lacks, Served], &[&[Lacks], &[Served]]);
        assert_eq!(filled, ["0 upstream", "0 0", "0 1", "0 upstream", "50 upstream", "100 upstream"]);
        assert_eq!(play(900, &[Lacks], &[]), ["0 upstream", "0 gap"]);
    }

    #[test]
    fn who_follows_us_is_asked_only_for_what_the_upstream_lacks() {
        let begin = Instant::now();
        let late = begin + Duration::from_secs(60);
        let asked = |outcome| {
            let mut sources = Sources::new(2, begin);
            sources.upstream_tried(late, outcome, EVEN);
            sources.next(late, |number, trouble| trouble == Trouble::Lacks || number == 1)
        };
        assert_eq!(asked(Outcome::Failed), Next::Substitute(1));
        assert_eq!(asked(Outcome::Lacks), Next::Substitute(0));
    }

    #[test]
    fn retries_are_spread() {
        let second = Duration::from_secs(1);
        let spread = |random| Jitter::new(random).spread(second).as_millis();
        assert_eq!((spread(0.0), spread(0.5), spread(1.0)), (750, 1000, 1250));
    }
}
