//! From whom a base backup is taken. PURE.

use crate::pg::TimelineId;
use crate::topology::{Directive, Follower, FollowerState, Node, Role};

/// A server that could give a base backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) node: Node,
    pub(super) role: Role,
}

impl Source {
    /// Of metrics.
    pub(super) fn label(&self) -> &'static str {
        match self.role {
            Role::Primary => "primary",
            Role::Standby => "standby",
        }
    }
}

/// Whom to ask, the best first: the standbys that stream from us on our timeline, those with the least lag first,
/// since a backup costs the primary what its clients want; then the primary.
pub(super) fn candidates(
    nodes: &[Node],
    directive: &Directive,
    followers: &[Follower],
    timeline: TimelineId,
) -> Vec<Source> {
    let is_primary = |node: &Node| directive.primary.as_ref() == Some(&node.name);
    // Who is being promoted has other work, and its backup would fail with that.
    let is_candidate =
        |node: &Node| directive.candidate.as_ref().is_some_and(|candidate| candidate.node == node.name);
    let rests = |node: &Node| {
        directive.resting.as_ref() == Some(&node.name) || directive.is_in_maintenance(&node.name)
    };
    let lag_of = |node: &Node| {
        let streams = |follower: &&Follower| {
            follower.application_name == node.name.as_str()
                && follower.timeline == timeline
                && follower.state != FollowerState::Startup
                && follower.replay.is_valid()
        };
        followers.iter().filter(streams).map(|follower| follower.lag.bytes).min()
    };
    let mut standbys: Vec<(u64, &Node)> = nodes
        .iter()
        .filter(|node| !is_primary(node) && !is_candidate(node) && !rests(node))
        .filter_map(|node| Some((lag_of(node)?, node)))
        .collect();
    standbys.sort_by_key(|(lag_bytes, _)| *lag_bytes);
    let standbys = standbys.into_iter().map(|(_, node)| Source { node: node.clone(), role: Role::Standby });
    let primary = nodes.iter().filter(|node| is_primary(node));
    let primary = primary.map(|node| Source { node: node.clone(), role: Role::Primary });
    standbys.chain(primary).collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::candidates;
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Address, Candidate, Directive, Durability, Follower, FollowerState, Hearing, Lag, Node, NodeName,
    };

    fn name(name: &str) -> NodeName {
        name.parse().expect("a node's name")
    }

    fn node(named: &str) -> Node {
        let address = Address { host: named.to_owned(), port: 5432 };
        Node { name: name(named), address, priority: 0, zone: None, no_failover: false }
    }

    fn follower(name: &str, timeline: u32, state: FollowerState, lag_bytes: u64) -> Follower {
        let at = Lsn(100);
        Follower {
            application_name: name.to_owned(),
            pid: 1,
            timeline: TimelineId(timeline),
            state,
            sent: at,
            write: at,
            flush: at,
            replay: at,
            lag: Lag { bytes: lag_bytes, time: Duration::ZERO },
            reported_at: Instant::now(),
            hearing: Hearing::ByStream,
        }
    }

    #[test]
    fn standbys_first_and_the_primary_last() {
        use FollowerState::{Catchup, Startup, Streaming};
        let nodes = ["pg1", "pg2", "pg3", "pg4"].map(node);
        let check =
            |primary: Option<&str>, candidate: Option<&str>, followers: &[Follower], expected: &[&str]| {
                let directive = Directive {
                    primary: primary.map(name),
                    candidate: candidate.map(|node| Candidate { node: name(node), round: 1 }),
                    ..Directive::starting(Durability::Async)
                };
                let found = candidates(&nodes, &directive, followers, TimelineId(2));
                let found: Vec<&str> = found.iter().map(|source| source.node.name.as_str()).collect();
                assert_eq!(found, expected);
            };
        let two = [follower("pg2", 2, Streaming, 7), follower("pg3", 2, Catchup, 3)];
        check(Some("pg1"), None, &two, &["pg3", "pg2", "pg1"]);
        check(None, None, &two, &["pg3", "pg2"]);
        check(None, Some("pg3"), &two, &["pg2"]);
        // A standby that was promoted since still has its connection.
        check(Some("pg3"), None, &two, &["pg2", "pg3"]);
        let unfit = [
            follower("pg2", 1, Streaming, 0),
            follower("pg3", 2, Startup, 0),
            follower("pg_receivewal", 2, Streaming, 0),
        ];
        check(Some("pg1"), None, &unfit, &["pg1"]);
        check(None, None, &[], &[]);
        let maintained =
            Directive { maintenance: vec![name("pg3")], ..Directive::starting(Durability::Async) };
        let found = candidates(&nodes, &maintained, &two, TimelineId(2));
        assert_eq!(found.iter().map(|source| source.node.name.as_str()).collect::<Vec<_>>(), ["pg2"]);
    }
}
