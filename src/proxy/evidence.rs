//! What client traffic sees of a node: first-hand evidence for the control plane, and the load for routing.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use crate::net::DialError;
use crate::topology::{ClientEvidence, NodeName};

/// One node's. Written by all workers with relaxed atomics: each number stands for itself.
#[derive(Debug)]
pub(crate) struct NodeEvidence {
    pub(crate) node: NodeName,
    /// What the other times count from, in milliseconds; 0: never.
    origin: Instant,
    answered: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    /// Leases out.
    outstanding: AtomicUsize,
    /// `bellwether_node_statements_total`.
    statements: IntCounter,
}

impl NodeEvidence {
    pub(crate) fn new(node: NodeName, origin: Instant, statements: IntCounter) -> NodeEvidence {
        NodeEvidence {
            node,
            origin,
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            outstanding: AtomicUsize::new(0),
            statements,
        }
    }

    /// The node was chosen for a unit of work.
    pub(crate) fn chosen(&self) {
        self.statements.inc();
    }

    pub(crate) fn lent(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn returned(&self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(crate) fn answered(&self, now: Instant) {
        self.answered.store(self.millis(now), Ordering::Relaxed);
    }

    pub(crate) fn broken(&self, now: Instant) {
        self.broken.store(self.millis(now), Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, now: Instant) {
        self.refused.store(self.millis(now), Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn instant(&self, millis: &AtomicU64) -> Option<Instant> {
        let millis = millis.load(Ordering::Relaxed);
        (millis > 0).then(|| self.origin + Duration::from_millis(millis))
    }

    pub(crate) fn publish(&self) -> ClientEvidence {
        ClientEvidence {
            node: self.node.clone(),
            answered_at: self.instant(&self.answered),
            refused_at: self.instant(&self.refused),
            broken_at: self.instant(&self.broken),
        }
    }
}

/// What a failed dial is evidence of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialEvidence {
    /// Nobody listens.
    Refused,
    /// It answered.
    Answered,
    /// Silence proves nothing.
    Nothing,
}

impl From<&DialError> for DialEvidence {
    fn from(error: &DialError) -> DialEvidence {
        match error {
            DialError::Refused { .. } => DialEvidence::Refused,
            DialError::Rejected { .. } => DialEvidence::Answered,
            DialError::Timeout { .. } | DialError::Protocol { .. } => DialEvidence::Nothing,
        }
    }
}
