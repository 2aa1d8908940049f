//! What each database's clients have used, since the start and on average in the last minute.
//!
//! Sessions count for themselves; at the end of a transaction they add to the numbers of their worker and database,
//! which nobody else writes to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Averages are of a period of this length.
const PERIOD: Duration = Duration::from_secs(60);
/// Databases that are counted. A session of one more counts for nobody.
const MAX_DATABASES: usize = 4096;

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub transactions: u64,
    /// Simple queries, and Syncs.
    pub queries: u64,
    /// Bytes from clients, and to them.
    pub received: u64,
    pub sent: u64,
    /// Microseconds that servers were with clients.
    pub transaction_micros: u64,
    /// Microseconds that clients waited for servers.
    pub wait_micros: u64,
}

/// One worker's numbers of one database. Only that worker adds to them.
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicU64; 6]);

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    counts: Mutex<HashMap<Arc<str>, Vec<Arc<Counts>>>>,
    periods: Mutex<Periods>,
}

/// The ends of the last two whole periods.
#[derive(Debug, Default)]
struct Periods {
    earlier: Option<Sample>,
    later: Option<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    totals: HashMap<Arc<str>, Totals>,
}

/// One database's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct DatabaseStats {
    pub database: Arc<str>,
    pub totals: Totals,
    /// What the totals grew by in the last whole period, and how long that was.
    pub last: Totals,
    pub period: Duration,
}

impl Totals {
    fn parts(self) -> [u64; 6] {
        [self.transactions, self.queries, self.received, self.sent, self.transaction_micros, self.wait_micros]
    }

    fn from_parts(parts: [u64; 6]) -> Totals {
        let [transactions, queries, received, sent, transaction_micros, wait_micros] = parts;
        Totals { transactions, queries, received, sent, transaction_micros, wait_micros }
    }

    fn zip(self, other: Totals, with: impl Fn(u64, u64) -> u64) -> Totals {
        let (mine, others) = (self.parts(), other.parts());
        Totals::from_parts(std::array::from_fn(|i| with(mine[i], others[i])))
    }
}

impl Counts {
    /// No read-modify-write: there is one writer.
    pub(crate) fn add(&self, more: Totals) {
        for (count, more) in self.0.iter().zip(more.parts()) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }

    fn totals(&self) -> Totals {
        Totals::from_parts(std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed)))
    }
}

impl Stats {
    /// For one more worker. `None`: there are too many databases.
    pub(crate) fn counts(&self, database: &Arc<str>) -> Option<Arc<Counts>> {
        let mut all = self.counts.lock();
        if all.len() >= MAX_DATABASES && !all.contains_key(database) {
            return None;
        }
        let counts = Arc::new(Counts::default());
        all.entry(database.clone()).or_default().push(counts.clone());
        Some(counts)
    }

    fn totals(&self) -> HashMap<Arc<str>, Totals> {
        let sum = |counts: &Vec<Arc<Counts>>| {
            counts.iter().fold(Totals::default(), |sum, one| sum.zip(one.totals(), u64::wrapping_add))
        };
        self.counts.lock().iter().map(|(database, counts)| (database.clone(), sum(counts))).collect()
    }

    /// To be called now and then, at least once in a period.
    pub(crate) fn sample(&self, now: Instant) {
        let mut periods = self.periods.lock();
        let is_over = |last: &Sample| now.saturating_duration_since(last.at) >= PERIOD;
        if periods.later.as_ref().is_none_or(is_over) {
            periods.earlier = periods.later.take();
            periods.later = Some(Sample { at: now, totals: self.totals() });
        }
    }

    /// By name.
    pub(crate) fn report(&self) -> Vec<DatabaseStats> {
        let periods = self.periods.lock();
        let of = |sample: &Option<Sample>, database: &str| {
            sample.as_ref().and_then(|sample| sample.totals.get(database)).copied().unwrap_or_default()
        };
        let period = match (&periods.earlier, &periods.later) {
            (Some(earlier), Some(later)) => later.at.saturating_duration_since(earlier.at),
            _ => Duration::ZERO,
        };
        let mut report: Vec<_> = self
            .totals()
            .into_iter()
            .map(|(database, totals)| {
                let (earlier, later) = (of(&periods.earlier, &database), of(&periods.later, &database));
                let last =
                    if period.is_zero() { Totals::default() } else { later.zip(earlier, u64::wrapping_sub) };
                DatabaseStats { database, totals, last, period }
            })
            .collect();
        report.sort_by(|a, b| a.database.cmp(&b.database));
        report
    }
}

#[cfg(test)]
mod tests {
    use super::{PERIOD, Stats, Totals};

    #[test]
    fn workers_add_up_and_averages_are_of_the_last_whole_period() {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let now = std::time::Instant::now();
        let stats = Stats::default();
        let (one, other) =
            (stats.counts(&"d".into()).expect("room"), stats.counts(&"d".into()).expect("room"));
        let queries = |queries| Totals { queries, ..Totals::default() };
        one.add(queries(1));
        stats.sample(now);
        other.add(queries(10));
        stats.sample(now + PERIOD / 2);
        stats.sample(now + PERIOD);
        one.add(queries(100));
        let report = stats.report();
        assert_eq!(report.len(), 1);
        assert_eq!((report[0].totals, report[0].last, report[0].period), (queries(111), queries(10), PERIOD));
    }
}
