//! What an order would come to if it were given now. PURE, and nothing is done.
//!
//! Who would be chosen is asked of the same functions that choose: [`election::best`] after a failure or a failover,
//! [`successor`] for a switchover. It holds for this moment alone: an election goes by what it finds when it has fenced.

use std::fmt;

use super::{Policy, State, View, election, successor};
use crate::failover::health::{ReplaySpeed, SpeedKind};
use crate::topology::{Election, NodeName, Outcome};

/// Which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    Failover,
    Switchover,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    pub handover: Handover,
    pub from: Option<NodeName>,
    /// Or why nobody.
    pub chosen: Result<NodeName, String>,
    /// Bytes of WAL that are known to exist, may have been acknowledged, and would be lost.
    pub lost_bytes: u64,
    /// Every node but the primary.
    pub prospects: Vec<Prospect>,
    /// The median of how long clients have waited in completed elections of this kind; `None`: there is none.
    pub usual_millis: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    pub node: NodeName,
    /// What of the WAL it has; or why it could not take over.
    pub position: Result<Position, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes that relays hold and it has not flushed.
    pub missing: u64,
    /// Bytes that it has to replay, those it is missing included, before it serves.
    pub backlog: u64,
    /// How fast it does that, as far as it was seen.
    pub replay: Option<ReplaySpeed>,
}

pub fn forecast(
    (view, state, policy): (&View<'_>, &State, &Policy),
    handover: Handover,
    to: Option<&NodeName>,
    history: &[Election],
) -> Forecast {
    let from = state.primary.as_ref().map(|primary| primary.node.clone());
    let needed = view.wal.verified;
    let others = view.nodes.iter().filter(|node| Some(&node.node.name) != from.as_ref());
    let prospect = |node: &super::NodeView<'_>| Prospect {
        node: node.node.name.clone(),
        position: election::follower(view, state, node)
            .map(|follower| Position {
                missing: needed.bytes_since(follower.flush.min(needed)),
                backlog: needed.bytes_since(follower.replay.min(needed)),
                replay: node.replay,
            })
            .map_err(|unfit| unfit.to_string()),
    };
    let lost_bytes = match handover {
        Handover::Failover => election::loss(state.durability, view.wal.upstream_end, view.wal.durable),
        Handover::Switchover => 0,
    };
    let chosen = match handover {
        Handover::Switchover => successor(view, state, to),
        Handover::Failover if lost_bytes > policy.max_lost_bytes => {
            Err(format!("{lost_bytes} bytes of WAL would be lost, {} are allowed", policy.max_lost_bytes))
        }
        Handover::Failover => {
            let fit = others.clone().filter(|node| election::follower(view, state, node).is_ok());
            let best = election::best(view, state, needed, to, fit);
            best.cloned().ok_or_else(|| "no standby can be promoted".to_owned())
        }
    };
    Forecast {
        handover,
        chosen,
        lost_bytes,
        prospects: others.map(prospect).collect(),
        usual_millis: usual(handover, history),
        from,
    }
}

fn usual(handover: Handover, history: &[Election]) -> Option<u64> {
    let planned = |election: &&Election| (election.rule == "W1") == (handover == Handover::Switchover);
    let completed = |election: &&Election| election.outcome == Outcome::Completed;
    let held = |election: &Election| {
        // During a checkpoint clients go on.
        election.phases.iter().filter(|phase| phase.name != "checkpoint").map(|phase| phase.millis).sum()
    };
    let mut all: Vec<u64> = history.iter().filter(completed).filter(planned).map(held).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match self.handover {
            Handover::Failover => "failover",
            Handover::Switchover => "switchover",
        };
        let from = self.from.as_ref().map_or("nobody", NodeName::as_str);
        match &self.chosen {
            Ok(to) => write!(f, "{order} from {from} to {to}: {} bytes of WAL lost", self.lost_bytes)?,
            Err(why) => write!(f, "no {order} from {from}: {why}")?,
        }
        for Prospect { node, position } in &self.prospects {
            match position {
                Ok(position @ Position { missing, backlog, .. }) => {
                    let time = self.time_text(*position);
                    write!(
                        f,
                        "\n{node} could take over: {missing} bytes to receive, {backlog} to replay, {time}"
                    )?;
                }
                Err(why) => write!(f, "\n{node} could not take over: {why}")?,
            }
        }
        Ok(())
    }
}

impl Forecast {
    /// When it would serve. What it is missing is on its way within what is usual.
    fn time_text(&self, position: Position) -> String {
        let Some(usual) = self.usual_millis else {
            let replay =
                position.replay_text().map(|(_, text)| format!(" ({text}, in ms)")).unwrap_or_default();
            return format!("serves after an unknown time: no such election is in the history{replay}");
        };
        match (position.backlog, position.replay_text()) {
            (0, _) => format!("serves after {usual} ms, as is usual here"),
            (_, None) => format!("serves after {usual} ms, as is usual here, and the time to replay"),
            (_, Some((millis, text))) => {
                let all = usual.saturating_add(millis);
                format!("serves after some {all} ms: {usual} as is usual here, {text}")
            }
        }
    }
}

impl Position {
    /// How long it replays, in milliseconds and in words; `None`: nothing is to be replayed, or its speed is not known.
    fn replay_text(self) -> Option<(u64, String)> {
        let speed = self.replay.filter(|_| self.backlog > 0)?;
        let millis = u64::try_from(speed.time(self.backlog).as_millis()).unwrap_or(u64::MAX);
        let at = speed.bytes_per_second as f64 / f64::from(1 << 20);
        Some(match speed.kind {
            SpeedKind::Measured => (millis, format!("{millis} to replay at {at:.1} MiB/s")),
            SpeedKind::AtLeast => (millis, format!("at most {millis} to replay at {at:.1} MiB/s or more")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Forecast, Handover, Position, Prospect, ReplaySpeed, SpeedKind, usual};
    use crate::topology::{Election, Outcome, Phase, Term};

    fn election(rule: &str, phases: &[(&str, u64)], outcome: Outcome) -> Election {
        let phase = |(name, millis): &(&str, u64)| Phase { name: (*name).to_owned(), millis: *millis };
        Election {
            term: Term(1),
            started_at_ms: 0,
            rule: rule.to_owned(),
            evidence: Vec::new(),
            ailment: None,
            from: None,
            to: None,
            timeline: None,
            switchpoint: None,
            lost_bytes: 0,
            unacknowledged_bytes: 0,
            left_behind: Vec::new(),
            saved: Vec::new(),
            phases: phases.iter().map(phase).collect(),
            outcome,
        }
    }

    #[test]
    fn what_is_usual_is_the_median_of_its_kind() {
        let completed =
            |rule, millis| election(rule, &[("fence", 10), ("promote", millis)], Outcome::Completed);
        let failed = election("F1", &[("fence", 9000)], Outcome::Failed { why: "gone".to_owned() });
        let planned = election("W1", &[("checkpoint", 5000), ("drain", 20)], Outcome::Completed);
        let history = [completed("F1", 90), failed, completed("F6", 190), completed("F3", 990), planned];
        assert_eq!(usual(Handover::Failover, &history), Some(200));
        assert_eq!(usual(Handover::Switchover, &history), Some(20), "clients go on during the checkpoint");
        assert_eq!(usual(Handover::Failover, &[]), None);
    }

    #[test]
    fn when_it_would_serve() {
        let check = |usual_millis, backlog: u64, replay: Option<(SpeedKind, u64)>, expected: &str| {
            let replay = replay.map(|(kind, mib)| ReplaySpeed { kind, bytes_per_second: mib << 20 });
            let forecast = Forecast {
                handover: Handover::Failover,
                from: None,
                chosen: Err(String::new()),
                lost_bytes: 0,
                prospects: Vec::new(),
                usual_millis,
            };
            let position = Position { missing: 0, backlog: backlog << 20, replay };
            assert_eq!(forecast.time_text(position), format!("serves after {expected}"));
        };
        let measured = Some((SpeedKind::Measured, 40));
        let at_least = Some((SpeedKind::AtLeast, 40));
        let usual = "412 ms, as is usual here";
        check(Some(412), 0, measured, usual);
        check(Some(412), 100, None, &format!("{usual}, and the time to replay"));
        check(Some(412), 100, measured, "some 2912 ms: 412 as is usual here, 2500 to replay at 40.0 MiB/s");
        let text = "some 2912 ms: 412 as is usual here, at most 2500 to replay at 40.0 MiB/s or more";
        check(Some(412), 100, at_least, text);
        let unknown = "an unknown time: no such election is in the history";
        check(None, 0, measured, unknown);
        check(None, 100, measured, &format!("{unknown} (2500 to replay at 40.0 MiB/s, in ms)"));
    }

    #[test]
    fn for_people() {
        let name = |name: &str| name.parse().expect("a node's name");
        let prospect = |node, position| Prospect { node: name(node), position };
        let forecast = Forecast {
            handover: Handover::Failover,
            from: Some(name("pg1")),
            chosen: Ok(name("pg2")),
            lost_bytes: 0,
            prospects: vec![
                prospect("pg2", Ok(Position { missing: 0, backlog: 100, replay: None })),
                prospect("pg3", Err("it is configured with no_failover".to_owned())),
            ],
            usual_millis: Some(412),
        };
        assert_eq!(
            forecast.to_string(),
            "\
failover from pg1 to pg2: 0 bytes of WAL lost
pg2 could take over: 0 bytes to receive, 100 to replay, serves after 412 ms, as is usual here, and the time to replay
pg3 could not take over: it is configured with no_failover"
        );
        let chosen = Err("9 bytes of WAL would be lost, 0 are allowed".to_owned());
        let refused = Forecast { chosen, prospects: Vec::new(), ..forecast };
        assert_eq!(refused.to_string(), "no failover from pg1: 9 bytes of WAL would be lost, 0 are allowed");
    }
}
