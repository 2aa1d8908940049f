//! Who is chosen of several that are fit.
#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]

use std::sync::Arc;
use std::time::Instant;

use crate::failover::decide::election::best;
use crate::failover::decide::{Agent, Ledger, NodeView, Primary, Process, State, View};
use crate::failover::health::{Facts, PrimaryVerdict, ReplaySpeed, SlotState, SpeedKind};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Draining, Durability, Follower, FollowerState, Hearing, Lag, Node, NodeHealth, NodeName, NodeState, Role,
    Term, WalStatus,
};

const END: u64 = 1 << 30;

/// Of each its name, what it has to replay, and how many bytes of it in a second, if that was seen.
fn check(standbys: &[(&str, u64, Option<u64>)], chosen: &str) {
    let node = |(name, ..): &(&str, u64, Option<u64>)| Node {
        name: name.parse().expect("a name"),
        address: "127.0.0.1:5432".parse().expect("an address"),
        priority: 100,
        zone: None,
        no_failover: false,
    };
    let nodes: Vec<Node> = standbys.iter().map(node).collect();
    let health: Vec<NodeHealth> = nodes.iter().map(up).collect();
    let followers = nodes.iter().zip(standbys).map(|(node, (_, backlog, _))| follower(node, *backlog));
    let wal = WalStatus { timeline: TimelineId(1), followers: followers.collect(), ..WalStatus::starting() };
    let (facts, ledger) = (facts(), Ledger::default());
    let views = nodes.iter().zip(&health).zip(standbys).map(|((node, health), (_, _, speed))| NodeView {
        node,
        health,
        facts: Some(&facts),
        replay: speed.map(|bytes_per_second| ReplaySpeed { bytes_per_second, kind: SpeedKind::Measured }),
        process: Process::PresentOrUnknown,
        agent: Agent::None,
        beside: Vec::new(),
        streamed_at: None,
    });
    let view = View {
        nodes: views.collect(),
        verdict: PrimaryVerdict::Unknown,
        diagnosis: None,
        wal: Arc::new(wal),
        promised: Term(1),
        unheard: 0,
        agreed_on_instances: crate::failover::decide::Agreement::Yes,
        settled: crate::failover::decide::Agreement::No,
        streaming: Vec::new(),
        waited: crate::topology::Waited::default(),
        log: None,
        agreed: None,
        confirmed: Term(1),
        cleared: None,
        drained: None,
        draining: Draining::default(),
        at_work: Vec::new(),
        ledger: &ledger,
        request: None,
    };
    let primary = Primary {
        node: "pg1".parse().expect("a name"),
        system: facts.system,
        timeline: TimelineId(1),
        term: Term(1),
        forks: Vec::new(),
        started_at: None,
    };
    let state = State { primary: Some(primary), ..State::bootstrapping(Durability::Quorum, 0) };
    let found = best(&view, &state, Lsn(END), None, view.nodes.iter());
    assert_eq!(found.map(NodeName::as_str), Some(chosen), "{standbys:?}");
}

fn facts() -> Facts {
    Facts {
        role: Role::Standby,
        system: SystemIdentifier(7),
        timeline: TimelineId(1),
        position: Lsn(1),
        received: Lsn::INVALID,
        started_at: String::new(),
        synchronous_standby_names: String::new(),
        checkpoint_timeline: TimelineId(1),
        relay_slot: SlotState::Absent,
        stalled_since: None,
        server_version: "15.14".to_owned(),
    }
}

fn up(node: &Node) -> NodeHealth {
    NodeHealth {
        name: node.name.clone(),
        address: node.address.clone(),
        state: NodeState::Up,
        role: Some(Role::Standby),
        timeline: Some(TimelineId(1)),
        system: None,
        position: Lsn(1),
        seen_at: None,
        server_version: None,
    }
}

fn follower(node: &Node, backlog: u64) -> Follower {
    Follower {
        application_name: node.name.to_string(),
        pid: 1,
        timeline: TimelineId(1),
        state: FollowerState::Streaming,
        sent: Lsn(END),
        write: Lsn(END),
        flush: Lsn(END),
        replay: Lsn(END - backlog),
        lag: Lag::default(),
        reported_at: Instant::now(),
        hearing: Hearing::ByStream,
    }
}

#[test]
fn who_serves_soonest_wins() {
    check(&[("a", 5000, None), ("b", 4000, None)], "b");
    // 2 s, 4 s.
    check(&[("a", 5000, Some(2500)), ("b", 4000, Some(1000))], "a");
    // Of one it is not known: bytes decide.
    check(&[("a", 5000, Some(2500)), ("b", 4000, None)], "b");
    // Within a tenth of a second they are equal, and bytes decide.
    check(&[("a", 5000, Some(100_000)), ("b", 4000, Some(80_001))], "b");
    check(&[("b", 0, Some(1)), ("a", 0, Some(1_000_000))], "a");
}
