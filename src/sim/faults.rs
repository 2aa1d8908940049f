//! What goes wrong, and when: all of it follows from the seed.

use std::time::Duration;

use super::stage::{Event, NodeId, Stage};
use crate::failover::Stragglers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server's process, or its host. `back`: somebody starts it again, as what its files say.
    Crash {
        node: NodeId,
        back: Option<Duration>,
    },
    /// Whoever is primary then.
    CrashPrimary {
        back: Option<Duration>,
    },
    Start {
        node: NodeId,
    },
    /// Bellwether's process and host; it is started again.
    CrashBellwether {
        back: Duration,
    },
    /// It dies in the middle of a turn of its control plane, the next one that journals.
    CrashInTurn {
        /// Effects of the turn that still take place.
        after: usize,
        back: Duration,
    },
    /// Every connection of the node breaks.
    Cut {
        node: NodeId,
    },
    /// Nothing passes between the node and Bellwether.
    Isolate {
        node: NodeId,
        lasting: Duration,
    },
    /// A session on the node cannot be taken from it; `None`: as long as the process lives.
    Cling {
        node: NodeId,
        lasting: Option<Duration>,
    },
    /// A standby connects again while its old connection still lives.
    Reconnect {
        node: NodeId,
    },
    /// An operator asks for one.
    Switchover {
        to: Option<NodeId>,
        stragglers: Stragglers,
    },
}

/// When the cluster is left alone to become whole.
pub(super) const FAULTS_END: Duration = Duration::from_secs(40);
const FAULTS_BEGIN: Duration = Duration::from_millis(1500);

/// Puts this seed's faults into the queue.
pub(super) fn plan(stage: &mut Stage, nodes: usize) {
    let count = stage.rng.between(1, 9);
    let span = u64::try_from((FAULTS_END - FAULTS_BEGIN).as_micros()).expect("seconds");
    // Spread, or one upon the other, so that they meet each step of an election.
    let clustered = stage.rng.percent(50);
    let mut at = FAULTS_BEGIN + stage.rng.micros(0, span / 2);
    for _ in 0..count {
        at = if clustered {
            (at + stage.rng.micros(0, 400_000)).min(FAULTS_END)
        } else {
            FAULTS_BEGIN + stage.rng.micros(0, span)
        };
        let fault = choose(stage, nodes);
        stage.queue.put(at, Event::Fault(fault));
    }
}

fn choose(stage: &mut Stage, nodes: usize) -> Fault {
    let node = stage.rng.below(nodes as u64) as usize;
    let back = stage.rng.percent(60).then(|| stage.rng.millis(50, 12_000));
    match stage.rng.below(17) {
        0 | 1 => Fault::CrashPrimary { back },
        2 | 3 => Fault::Crash { node, back },
        4 | 5 => Fault::CrashBellwether { back: stage.rng.millis(20, 4000) },
        6 => Fault::Cut { node },
        7 | 8 => Fault::Isolate { node, lasting: stage.rng.millis(200, 15_000) },
        9 => Fault::CrashInTurn { after: stage.rng.below(8) as usize, back: stage.rng.millis(20, 4000) },
        10 | 11 => {
            Fault::Cling { node, lasting: stage.rng.percent(50).then(|| stage.rng.millis(200, 30_000)) }
        }
        12 => Fault::Reconnect { node },
        _ => Fault::Switchover {
            to: stage.rng.percent(50).then_some(node),
            stragglers: if stage.rng.percent(80) { Stragglers::Spared } else { Stragglers::Cut },
        },
    }
}
