//! One Bellwether: the real cores, with shells that live in virtual time.
//!
//! Each shell does in its room's order what the production shell does: [`relay`] stands for `relay::steer`,
//! `receiver::stream`, `sender::serve` and the store's thread, [`control`] for `failover::control`, [`proxy`]
//! for as much of the query plane as clients need to write. A crash drops all of it; the directory stays.

mod control;
mod proxy;
mod relay;

use std::collections::BTreeMap;
use std::time::Duration;

use tempfile::TempDir;

pub(super) use self::control::{Control, Ended};
pub(super) use self::proxy::Proxy;
pub(super) use self::relay::Relay;

use super::disk::Disk;
use super::planted::Plant;
use super::stage::{Event, NodeId, Stage};
use crate::failover::Command;
use crate::topology::{Durability, Node};

pub(super) const INSTANCE: &str = "sim";

/// What outlives the process.
#[derive(Debug)]
pub(super) struct Bellwether {
    /// Counts starts.
    pub(super) life: u64,
    directory: TempDir,
    disk: Option<Disk>,
    nodes: Vec<Node>,
    durability: Durability,
    next_token: u64,
    /// When the next probe in turn of each node is due.
    probes: BTreeMap<NodeId, Duration>,
    pub(super) running: Option<Running>,
}

/// The process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) relay: Relay,
    pub(super) control: Control,
    pub(super) proxy: Proxy,
}

impl Bellwether {
    pub(super) fn new(nodes: Vec<Node>, durability: Durability) -> Bellwether {
        // In memory where there is such a place: a sync there costs nothing.
        let directory =
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        Bellwether {
            life: 0,
            disk: Some(Disk::new()),
            directory,
            nodes,
            durability,
            next_token: 0,
            probes: BTreeMap::new(),
            running: None,
        }
    }

    pub(super) fn start(&mut self, stage: &mut Stage) {
        let Some(disk) = self.disk.take() else { return };
        self.life += 1;
        stage.note(format!("Bellwether starts, life {}", self.life));
        let life = self.life;
        let relay = Relay::open(stage, life, disk, &self.nodes, self.durability);
        let journal = self.directory.path().join("state");
        if stage.plant == Some(Plant::ForgetJournal) && journal.exists() {
            std::fs::remove_file(&journal).expect("it exists");
        }
        let control = Control::open(stage, life, journal, &self.nodes, self.durability);
        let proxy = Proxy::new(life, self.durability, self.next_token);
        self.probes.clear();
        self.running = Some(Running { relay, control, proxy });
        for node in 0..self.nodes.len() {
            stage.soon(Event::Probe { life, node });
        }
        stage.soon(Event::Obey { life });
        stage.soon(Event::ProxyObeys { life });
        stage.soon(Event::Client { life });
    }

    pub(super) fn crash(&mut self, stage: &mut Stage) {
        let Some(running) = self.running.take() else { return };
        stage.note("Bellwether crashes");
        self.next_token = running.proxy.next_token();
        self.disk = Some(running.relay.crash(stage));
        stage.cut_all(|_| true);
    }

    /// Whether the next probe in turn of the node lies ahead already; else it is taken to be put now.
    pub(super) fn probing(&mut self, node: NodeId, now: Duration) -> bool {
        let ahead = self.probes.get(&node).is_some_and(|due| now < *due);
        if !ahead {
            self.probes.insert(node, now + Duration::from_millis(400));
        }
        ahead
    }

    /// The process, if it still is the one that the event is for.
    pub(super) fn living(&mut self, life: u64) -> Option<&mut Running> {
        self.running.as_mut().filter(|_| self.life == life)
    }
}

impl Running {
    /// What cannot be done now is refused.
    pub(super) fn order(&mut self, stage: &mut Stage, command: &Command) {
        let wal = self.relay.status(stage);
        let proxy = self.proxy.status(stage);
        self.control.order(stage, command, wal, &proxy);
    }

    pub(super) fn turn(&mut self, stage: &mut Stage) -> Ended {
        let wal = self.relay.status(stage);
        let proxy = self.proxy.status(stage);
        self.control.turn(stage, wal, &proxy)
    }
}

pub(super) fn node_id(nodes: &[Node], name: &crate::topology::NodeName) -> NodeId {
    nodes.iter().position(|node| node.name == *name).expect("a configured node")
}
