//! Time and chance: a queue of events in virtual time, and a generator whose numbers follow from the seed.

use std::collections::BTreeMap;
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fixed for ever, good enough to choose faults.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `end`, which is left out.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Both ends included.
    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.between(from * 1000, to * 1000))
    }

    pub(super) fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.between(from, to))
    }
}

/// Events by time; those of the same moment in the order in which they were put.
#[derive(Debug)]
pub(super) struct Queue<E> {
    events: BTreeMap<(Duration, u64), E>,
    put: u64,
}

impl<E> Queue<E> {
    pub(super) fn new() -> Queue<E> {
        Queue { events: BTreeMap::new(), put: 0 }
    }

    pub(super) fn put(&mut self, at: Duration, event: E) {
        self.put += 1;
        self.events.insert((at, self.put), event);
    }

    pub(super) fn pop(&mut self) -> Option<(Duration, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Queue, Rng};

    #[test]
    fn events_come_by_time_and_then_by_turn() {
        let mut queue = Queue::new();
        for (at, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            queue.put(Duration::from_secs(at), event);
        }
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, event)| event).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn numbers_follow_from_the_seed() {
        let numbers = |seed| {
            let mut rng = Rng::new(seed);
            [rng.next(), rng.next()]
        };
        // The reference implementation's for seed 0.
        assert_eq!(numbers(0), [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4]);
        assert_ne!(numbers(1), numbers(2));
    }
}
