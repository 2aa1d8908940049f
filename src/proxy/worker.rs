//! What the sessions of one worker thread share, without locks.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock for the view")]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::guc::Settings;
use super::metrics::{Counters, Metrics};
use super::quorum::Quorum;
use super::route::{Classifier, View};
use super::session::lane::{BUFFER_LEN, Lane};
use super::stats::{Counts, Stats};
use super::{Inputs, ProxyConfig};
use crate::topology::{Directive, Health, Term, WalStatus};

/// Buffers of each kind kept for the next session that needs one.
const SPARE_BUFFERS: usize = 64;
/// Startup packets remembered; beyond it the first is forgotten.
const STARTUPS: usize = 32;

#[derive(Debug)]
pub struct Worker {
    pub(crate) index: usize,
    pub(crate) classifier: RefCell<Classifier>,
    pub(crate) counters: RefCell<Counters>,
    view: RefCell<Watched>,
    /// What clients begin with, which is the same for most of them.
    startups: RefCell<VecDeque<Arc<Settings>>>,
    /// Filled with zeros, to be read into.
    spare: RefCell<Vec<Vec<u8>>>,
    /// Empty, to be written to.
    spare_outputs: RefCell<Vec<Vec<u8>>>,
    rotation: Cell<usize>,
    /// Of the databases that clients of this worker use.
    counts: RefCell<HashMap<Arc<str>, Arc<Counts>>>,
}

#[derive(Debug)]
struct Watched {
    directive: watch::Receiver<Arc<Directive>>,
    health: watch::Receiver<Arc<Health>>,
    wal: watch::Receiver<Arc<WalStatus>>,
    quorum: watch::Receiver<Quorum>,
    config: watch::Receiver<Arc<ProxyConfig>>,
    view: View,
    order: Order,
}

/// Which order a view belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) term: Term,
    pub(crate) drains: u64,
    /// Counts the views of a worker.
    view: u64,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        inputs: &Inputs,
        mut quorum: watch::Receiver<Quorum>,
        mut config: watch::Receiver<Arc<ProxyConfig>>,
        metrics: &Metrics,
    ) -> Worker {
        let (mut directive, mut health, mut wal) =
            (inputs.directive.clone(), inputs.health.clone(), inputs.wal.clone());
        let now = Instant::now();
        let order = directive.borrow_and_update().clone();
        let policy = config.borrow_and_update().policy;
        let view =
            View::new(now, None, &order, &health.borrow_and_update(), &wal.borrow_and_update(), policy)
                .with_quorum(*quorum.borrow_and_update());
        let order = Order { term: order.term, drains: order.drains, view: 0 };
        Worker {
            index,
            classifier: RefCell::default(),
            counters: RefCell::new(Counters::new(metrics)),
            view: RefCell::new(Watched { directive, health, wal, quorum, config, view, order }),
            startups: RefCell::default(),
            spare: RefCell::default(),
            spare_outputs: RefCell::default(),
            rotation: Cell::new(index),
            counts: RefCell::default(),
        }
    }

    /// With the latest view of the cluster and the order it belongs to.
    pub(crate) fn with_view<T>(&self, now: Instant, look: impl FnOnce(&View, Order) -> T) -> T {
        let mut watched = self.view.borrow_mut();
        let watched = &mut *watched;
        // A sender that is gone changes nothing any more.
        let changed = watched.directive.has_changed().unwrap_or(false)
            || watched.health.has_changed().unwrap_or(false)
            || watched.wal.has_changed().unwrap_or(false)
            || watched.quorum.has_changed().unwrap_or(false)
            || watched.config.has_changed().unwrap_or(false);
        if changed {
            let order = watched.directive.borrow_and_update().clone();
            let (health, wal) = (watched.health.borrow_and_update(), watched.wal.borrow_and_update());
            let policy = watched.config.borrow_and_update().policy;
            let quorum = *watched.quorum.borrow_and_update();
            let view = View::new(now, Some(&watched.view), &order, &health, &wal, policy);
            watched.view = view.with_quorum(quorum);
            let number = watched.order.view.wrapping_add(1);
            watched.order = Order { term: order.term, drains: order.drains, view: number };
        }
        look(&watched.view, watched.order)
    }

    /// Whether nothing else was ordered since. Without a lock: all workers ask it for every transaction.
    pub(crate) fn is_latest(&self, order: Order) -> bool {
        let watched = self.view.borrow();
        watched.order.view == order.view && !watched.directive.has_changed().unwrap_or(false)
    }

    /// Seen up to the order that the view is of.
    pub(crate) fn directive(&self) -> watch::Receiver<Arc<Directive>> {
        self.view.borrow().directive.clone()
    }

    /// The numbers of this worker and `database`. `None`: they are not kept.
    pub(crate) fn counts(&self, database: &Arc<str>, stats: &Stats) -> Option<Arc<Counts>> {
        let mut all = self.counts.borrow_mut();
        if let Some(counts) = all.get(database) {
            return Some(counts.clone());
        }
        let counts = stats.counts(database)?;
        all.insert(database.clone(), counts.clone());
        Some(counts)
    }

    pub(crate) fn rotation(&self) -> usize {
        let rotation = self.rotation.get().wrapping_add(1);
        self.rotation.set(rotation);
        rotation
    }

    /// One and the same for clients whose startup packets say the same.
    pub(crate) fn startup(&self, settings: Settings) -> Arc<Settings> {
        let mut known = self.startups.borrow_mut();
        if let Some(same) = known.iter().find(|known| ***known == settings) {
            return same.clone();
        }
        if known.len() == STARTUPS {
            known.pop_front();
        }
        let settings = Arc::new(settings);
        known.push_back(settings.clone());
        settings
    }

    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.spare.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_LEN])
    }

    /// Something will be said: where the lanes have no room for that of their own, they get what is left of others.
    pub(crate) fn lend(&self, lanes: [&mut Lane; 2]) {
        let mut spare = self.spare_outputs.borrow_mut();
        for lane in lanes {
            lane.lend_output(|| spare.pop());
        }
    }

    /// Nothing moves: a session that waits holds no buffer that is empty.
    pub(crate) fn take_back(&self, lanes: [&mut Lane; 2]) {
        for lane in lanes {
            keep(&self.spare, lane.input.give_back());
            keep(&self.spare_outputs, lane.give_output_back());
        }
    }
}

/// Unless there are enough, or it has grown.
fn keep(spare: &RefCell<Vec<Vec<u8>>>, buffer: Option<Vec<u8>>) {
    let Some(buffer) = buffer else { return };
    let mut spare = spare.borrow_mut();
    if buffer.capacity() <= 4 * BUFFER_LEN && spare.len() < SPARE_BUFFERS {
        spare.push(buffer);
    }
}
