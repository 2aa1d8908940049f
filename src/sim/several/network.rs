//! Between hosts: delays, and cuts of one way or both.

use std::time::Duration;

use crate::sim::clock::Rng;

/// Of an instance, of a node, or of both; the last one is etcd's.
pub(super) type Host = usize;

#[derive(Debug)]
pub(super) struct Network {
    hosts: usize,
    /// Each with its number; ways from and to.
    cuts: Vec<(u64, Vec<(Host, Host)>)>,
    slow: Duration,
}

impl Network {
    pub(super) fn new(hosts: usize) -> Network {
        Network { hosts, cuts: Vec::new(), slow: Duration::ZERO }
    }

    pub(super) fn etcd(&self) -> Host {
        self.hosts - 1
    }

    pub(super) fn hosts(&self) -> usize {
        self.hosts
    }

    pub(super) fn cut(&mut self, number: u64, ways: Vec<(Host, Host)>) {
        self.cuts.push((number, ways));
    }

    pub(super) fn mend(&mut self, number: u64) {
        self.cuts.retain(|(cut, _)| *cut != number);
    }

    pub(super) fn mend_all(&mut self) {
        self.cuts.clear();
        self.slow = Duration::ZERO;
    }

    /// From now on some messages take as long as this.
    pub(super) fn slow(&mut self, most: Duration) {
        self.slow = most;
    }

    pub(super) fn is_open(&self, from: Host, to: Host) -> bool {
        !self.cuts.iter().any(|(_, ways)| ways.contains(&(from, to)))
    }

    /// `None`: it does not arrive.
    pub(super) fn delay(&self, from: Host, to: Host, rng: &mut Rng) -> Option<Duration> {
        if from == to {
            return Some(rng.micros(20, 100));
        }
        let late = if rng.percent(2) { rng.micros(0, self.slow.as_micros() as u64) } else { Duration::ZERO };
        self.is_open(from, to).then(|| rng.micros(100, 1500) + late)
    }
}
