//! How the sessions of the old process end. PURE.
//!
//! For a time they go on as they were, so that clients that soon leave by themselves notice nothing. Then each ends with
//! its transaction, an idle one at once. Who is in a transaction still when a further time is over is cut. When the new
//! process is lost, nobody rules what they do: all are cut at once.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Sessions are served on for so long.
    pub(crate) drain: Duration,
    /// Then transactions have so long to end.
    pub(crate) transactions: Duration,
}

/// For those that are cut to hear why.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Wait,
    /// Every session ends at its transaction's end.
    End,
    /// Every session ends now.
    Cut,
    /// Nothing is left, or nothing that would be waited for.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruler {
    Heard,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving { until: Instant },
    Ending { until: Instant },
    Cutting { until: Instant },
}

/// What became of the connections that were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    /// By themselves.
    pub(super) left: usize,
    /// At their transaction's end.
    pub(super) ended: usize,
    pub(super) cut: usize,
}

#[derive(Debug)]
pub(super) struct Drain {
    limits: Limits,
    phase: Phase,
    /// At the last look.
    connections: usize,
    count: Count,
}

impl Drain {
    pub(super) fn new(now: Instant, limits: Limits, connections: usize) -> Drain {
        let phase = Phase::Serving { until: now + limits.drain };
        Drain { limits, phase, connections, count: Count::default() }
    }

    /// Called again and again, with how many connections there are now.
    pub(super) fn look(&mut self, now: Instant, connections: usize, ruler: Ruler) -> Order {
        self.add(connections);
        match self.phase {
            _ if connections == 0 => Order::Leave,
            Phase::Cutting { until } if now < until => Order::Wait,
            Phase::Cutting { .. } => {
                self.add(0);
                Order::Leave
            }
            _ if ruler == Ruler::Lost => self.cut(now),
            Phase::Serving { until } if now >= until => self.end(now),
            Phase::Ending { until } if now >= until => self.cut(now),
            Phase::Serving { .. } | Phase::Ending { .. } => Order::Wait,
        }
    }

    /// The operator does not want to wait for those who leave by themselves.
    pub(super) fn hurry(&mut self, now: Instant) -> Order {
        match self.phase {
            Phase::Serving { .. } => self.end(now),
            Phase::Ending { .. } | Phase::Cutting { .. } => Order::Wait,
        }
    }

    pub(super) fn count(&self) -> Count {
        self.count
    }

    fn end(&mut self, now: Instant) -> Order {
        self.phase = Phase::Ending { until: now + self.limits.transactions };
        Order::End
    }

    fn cut(&mut self, now: Instant) -> Order {
        self.phase = Phase::Cutting { until: now + FAREWELL };
        Order::Cut
    }

    /// So many are still there.
    fn add(&mut self, connections: usize) {
        let gone = self.connections.saturating_sub(connections);
        match self.phase {
            Phase::Serving { .. } => self.count.left += gone,
            Phase::Ending { .. } => self.count.ended += gone,
            Phase::Cutting { .. } => self.count.cut += gone,
        }
        self.connections = connections;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Count, Drain, Limits, Order, Ruler};

    /// `second connections`, `!` when the new process is lost; the orders, and the count in the end.
    fn check(looks: &[(&str, Order)], count: Count) {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
        let start = Instant::now();
        let limits = Limits { drain: Duration::from_secs(30), transactions: Duration::from_secs(10) };
        let mut drain = Drain::new(start, limits, 10);
        for (look, order) in looks {
            let (look, ruler) = match look.strip_suffix('!') {
                Some(look) => (look, Ruler::Lost),
                None => (*look, Ruler::Heard),
            };
            let (second, connections) = look.split_once(' ').expect("two numbers");
            let now = start + Duration::from_secs(second.parse().expect("seconds"));
            let connections = connections.parse().expect("a number");
            assert_eq!(drain.look(now, connections, ruler), *order, "{look}");
        }
        assert_eq!(drain.count(), count);
    }

    #[test]
    fn who_leaves_in_time_is_not_disturbed() {
        check(
            &[("1 10", Order::Wait), ("29 1", Order::Wait), ("29 0", Order::Leave)],
            Count { left: 10, ..Count::default() },
        );
    }

    #[test]
    fn then_sessions_end_with_their_transactions_and_at_last_are_cut() {
        let looks = [
            ("30 8", Order::End),
            ("31 5", Order::Wait),
            ("40 3", Order::Cut),
            ("40 3", Order::Wait),
            ("40 0", Order::Leave),
        ];
        check(&looks, Count { left: 2, ended: 5, cut: 3 });
    }

    #[test]
    fn who_does_not_even_take_the_last_word_is_not_waited_for() {
        let looks = [("30 1", Order::End), ("40 1", Order::Cut), ("41 1", Order::Leave)];
        check(&looks, Count { left: 9, ended: 0, cut: 1 });
    }

    #[test]
    fn without_the_new_process_all_are_cut_at_once() {
        check(
            &[("2 4!", Order::Cut), ("2 4!", Order::Wait), ("3 0!", Order::Leave)],
            Count { left: 6, ended: 0, cut: 4 },
        );
        check(
            &[("30 4", Order::End), ("31 2!", Order::Cut), ("32 2!", Order::Leave)],
            Count { left: 6, ended: 2, cut: 2 },
        );
    }
}
