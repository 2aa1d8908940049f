//! What has happened since one looked last, by what the planes publish. PURE.
//!
//! Elections and alarms carry their begin, and are remembered with their end; so what comes and goes between two looks is
//! told all the same. What began before this process is not told: another one has done that.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::topology::{Alarm, Election, Failovers, Health, NodeName, Outcome, Restart, Role};

/// One event, as commands and webhooks are told of it: with all that `history` and the alarms have of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    ElectionBegun(Election),
    /// Completed or failed.
    ElectionEnded(Election),
    RestartBegun(Restart),
    /// Completed or given up.
    RestartEnded(Restart),
    RoleChanged {
        node: NodeName,
        was: Role,
        role: Role,
    },
    /// Whether a dead primary is replaced by itself.
    FailoversChanged {
        was: Failovers,
        now: Failovers,
    },
    AlarmBegun(Alarm),
    AlarmEnded(Alarm),
}

impl Event {
    /// As it is written in JSON.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Event::ElectionBegun(_) => "election_begun",
            Event::ElectionEnded(_) => "election_ended",
            Event::RestartBegun(_) => "restart_begun",
            Event::RestartEnded(_) => "restart_ended",
            Event::RoleChanged { .. } => "role_changed",
            Event::FailoversChanged { .. } => "failovers_changed",
            Event::AlarmBegun(_) => "alarm_begun",
            Event::AlarmEnded(_) => "alarm_ended",
        }
    }
}

/// What is known already. As long as the lists that it is shown.
#[derive(Debug)]
pub(super) struct Watcher {
    since_ms: u64,
    /// By their begins; there is one at a time.
    elections: BTreeMap<u64, State>,
    /// The same of servers' restarts.
    restarts: BTreeMap<u64, State>,
    /// By their begins, kinds and objects.
    alarms: BTreeMap<(u64, &'static str, String), State>,
    roles: BTreeMap<NodeName, Role>,
    failovers: Option<Failovers>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Lasts,
    Over,
}

impl State {
    fn of(outcome: &Outcome) -> State {
        match outcome {
            Outcome::Running => State::Lasts,
            Outcome::Completed | Outcome::Failed { .. } => State::Over,
        }
    }
}

impl Watcher {
    /// Of a process that began at `since_ms` of the Unix epoch.
    pub(super) fn new(since_ms: u64) -> Watcher {
        Watcher {
            since_ms,
            elections: BTreeMap::new(),
            restarts: BTreeMap::new(),
            alarms: BTreeMap::new(),
            roles: BTreeMap::new(),
            failovers: None,
        }
    }

    /// `history`: all that are remembered.
    pub(super) fn elections(&mut self, history: &[Election]) -> Vec<Event> {
        let state = |election: &Election| State::of(&election.outcome);
        let now = history.iter().map(|election| (election.started_at_ms, state(election))).collect();
        let before = std::mem::replace(&mut self.elections, now);
        let news = history.iter().flat_map(|election| {
            let at = election.started_at_ms;
            let (begun, ended) = news(before.get(&at).copied(), state(election), at >= self.since_ms);
            let begun = begun.then(|| Event::ElectionBegun(election.clone()));
            begun.into_iter().chain(ended.then(|| Event::ElectionEnded(election.clone())))
        });
        news.collect()
    }

    /// `restarts`: all that are remembered.
    pub(super) fn restarts(&mut self, restarts: &[Restart]) -> Vec<Event> {
        let state = |restart: &Restart| State::of(&restart.outcome);
        let now = restarts.iter().map(|restart| (restart.started_at_ms, state(restart))).collect();
        let before = std::mem::replace(&mut self.restarts, now);
        let news = restarts.iter().flat_map(|restart| {
            let at = restart.started_at_ms;
            let (begun, ended) = news(before.get(&at).copied(), state(restart), at >= self.since_ms);
            let begun = begun.then(|| Event::RestartBegun(restart.clone()));
            begun.into_iter().chain(ended.then(|| Event::RestartEnded(restart.clone())))
        });
        news.collect()
    }

    /// `alarms`: all that are remembered.
    pub(super) fn alarms(&mut self, alarms: &[Alarm]) -> Vec<Event> {
        let key = |alarm: &Alarm| (alarm.raised_at_ms, alarm.kind.as_str(), alarm.object.clone());
        let state = |alarm: &Alarm| if alarm.lasts() { State::Lasts } else { State::Over };
        let now = alarms.iter().map(|alarm| (key(alarm), state(alarm))).collect();
        let before = std::mem::replace(&mut self.alarms, now);
        let news = alarms.iter().flat_map(|alarm| {
            let is_ours = alarm.raised_at_ms >= self.since_ms;
            let (begun, ended) = news(before.get(&key(alarm)).copied(), state(alarm), is_ours);
            let begun = begun.then(|| Event::AlarmBegun(alarm.clone()));
            begun.into_iter().chain(ended.then(|| Event::AlarmEnded(alarm.clone())))
        });
        news.collect()
    }

    /// A node that is not seen keeps the role in which it was seen last.
    pub(super) fn roles(&mut self, health: &Health) -> Vec<Event> {
        let mut changed = Vec::new();
        for (node, role) in health.nodes.iter().filter_map(|health| Some((&health.name, health.role?))) {
            if let Some(was) = self.roles.insert(node.clone(), role)
                && was != role
            {
                changed.push(Event::RoleChanged { node: node.clone(), was, role });
            }
        }
        changed
    }

    /// What they are at the first look is no news.
    pub(super) fn failovers(&mut self, now: Failovers) -> Option<Event> {
        let was = self.failovers.replace(now)?;
        (was.word() != now.word()).then_some(Event::FailoversChanged { was, now })
    }
}

/// Whether it has begun, and whether it has ended, since it was looked at.
fn news(before: Option<State>, now: State, is_ours: bool) -> (bool, bool) {
    match (before, now) {
        (None, now) => (is_ours, is_ours && now == State::Over),
        (Some(State::Lasts), State::Over) => (false, true),
        (Some(_), _) => (false, false),
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Watcher};
    use crate::pg::Lsn;
    use crate::topology::{
        Alarm, AlarmKind, Election, Failovers, Health, NodeHealth, NodeState, Outcome, Restart, Role, Term,
    };

    fn election(started_at_ms: u64, outcome: Outcome) -> Election {
        Election {
            term: Term(started_at_ms),
            started_at_ms,
            rule: "F3".to_owned(),
            evidence: vec!["the stream ended".to_owned()],
            ailment: None,
            from: "pg1".parse().ok(),
            to: "pg2".parse().ok(),
            timeline: None,
            switchpoint: Some(Lsn(0x28)),
            lost_bytes: 0,
            unacknowledged_bytes: 0,
            left_behind: Vec::new(),
            saved: Vec::new(),
            phases: Vec::new(),
            outcome,
        }
    }

    fn alarm(object: &str, raised_at_ms: u64, over_at_ms: Option<u64>) -> Alarm {
        let what = format!("slot {object} is lost");
        Alarm { kind: AlarmKind::LostSlot, object: object.to_owned(), what, raised_at_ms, over_at_ms }
    }

    /// `election_begun 7` for each.
    fn told(events: &[Event]) -> Vec<String> {
        let told = |event: &Event| {
            let of = match event {
                Event::ElectionBegun(election) | Event::ElectionEnded(election) => election.term.to_string(),
                Event::RestartBegun(restart) | Event::RestartEnded(restart) => {
                    restart.started_at_ms.to_string()
                }
                Event::AlarmBegun(alarm) | Event::AlarmEnded(alarm) => alarm.object.clone(),
                Event::RoleChanged { node, was, role } => format!("{node} {was:?} {role:?}"),
                Event::FailoversChanged { was, now } => format!("{} {}", was.word(), now.word()),
            };
            format!("{} {of}", event.name())
        };
        events.iter().map(told).collect()
    }

    #[test]
    fn elections_are_told_once_each() {
        let mut watcher = Watcher::new(10);
        let mut check = |history: &[(u64, Outcome)], expected: &[&str]| {
            let history: Vec<_> = history.iter().map(|(at, how)| election(*at, how.clone())).collect();
            assert_eq!(told(&watcher.elections(&history)), expected, "{history:?}");
        };
        let (running, done) = (Outcome::Running, Outcome::Completed);
        check(&[], &[]);
        let old = [(7, done.clone()), (8, running.clone())];
        check(&old, &[]);
        let old = [(7, done.clone()), (8, Outcome::Failed { why: "fenced".to_owned() })];
        check(&old, &["election_ended 8"]);
        check(&[(8, done.clone()), (11, running)], &["election_begun 11"]);
        check(&[(11, done.clone())], &["election_ended 11"]);
        check(&[(11, done.clone())], &[]);
        check(&[(11, done.clone()), (20, done)], &["election_begun 20", "election_ended 20"]);
    }

    #[test]
    fn restarts_are_told_once_each() {
        let mut watcher = Watcher::new(10);
        let mut check = |restarts: &[(u64, Outcome)], expected: &[&str]| {
            let restart = |(started_at_ms, outcome): &(u64, Outcome)| Restart {
                started_at_ms: *started_at_ms,
                ended_at_ms: None,
                nodes: Vec::new(),
                waits_for: None,
                outcome: outcome.clone(),
            };
            let restarts: Vec<_> = restarts.iter().map(restart).collect();
            assert_eq!(told(&watcher.restarts(&restarts)), expected, "{restarts:?}");
        };
        let (running, done) = (Outcome::Running, Outcome::Completed);
        check(&[(7, done.clone())], &[]);
        check(&[(7, done.clone()), (11, running)], &["restart_begun 11"]);
        check(&[(11, Outcome::Failed { why: "paused".to_owned() })], &["restart_ended 11"]);
        check(&[(12, done)], &["restart_begun 12", "restart_ended 12"]);
    }

    #[test]
    fn alarms_are_told_once_each() {
        let mut watcher = Watcher::new(10);
        let mut check = |alarms: &[Alarm], expected: &[&str]| {
            assert_eq!(told(&watcher.alarms(alarms)), expected, "{alarms:?}");
        };
        let old = alarm("old", 5, Some(9));
        check(std::slice::from_ref(&old), &[]);
        check(&[old, alarm("a", 12, None), alarm("b", 12, None)], &["alarm_begun a", "alarm_begun b"]);
        check(&[alarm("a", 12, Some(13)), alarm("b", 12, None)], &["alarm_ended a"]);
        let again = [alarm("a", 12, Some(13)), alarm("a", 14, Some(15)), alarm("b", 12, None)];
        check(&again, &["alarm_begun a", "alarm_ended a"]);
    }

    #[test]
    fn a_role_is_news_when_it_was_another() {
        let mut watcher = Watcher::new(0);
        let mut check = |roles: &[(&str, Option<Role>)], expected: &[&str]| {
            let node = |(name, role): &(&str, Option<Role>)| NodeHealth {
                name: name.parse().expect("a name"),
                address: "10.0.0.1:5432".parse().expect("an address"),
                state: NodeState::Up,
                role: *role,
                timeline: None,
                system: None,
                position: Lsn(0),
                server_version: None,
                seen_at: None,
            };
            let health = Health { nodes: roles.iter().map(node).collect(), diagnosis: None };
            assert_eq!(told(&watcher.roles(&health)), expected, "{roles:?}");
        };
        let (primary, standby) = (Some(Role::Primary), Some(Role::Standby));
        check(&[("pg1", primary), ("pg2", None)], &[]);
        check(&[("pg1", primary), ("pg2", standby)], &[]);
        check(&[("pg1", None), ("pg2", primary)], &["role_changed pg2 Standby Primary"]);
        check(&[("pg1", standby), ("pg2", primary)], &["role_changed pg1 Primary Standby"]);
    }

    #[test]
    fn whether_failovers_are_automatic_is_news_when_it_changes() {
        let mut watcher = Watcher::new(0);
        let mut check = |now: Failovers, expected: &[&str]| {
            let events: Vec<Event> = watcher.failovers(now).into_iter().collect();
            assert_eq!(told(&events), expected, "{now:?}");
        };
        let spent =
            |next_at_ms| Failovers::Spent { failovers: 5, within_seconds: 600, since_ms: 7, next_at_ms };
        check(Failovers::Paused, &[]);
        check(Failovers::Automatic, &["failovers_changed paused automatic"]);
        check(spent(8), &["failovers_changed automatic spent"]);
        check(spent(9), &[]);
        let event = Event::FailoversChanged { was: Failovers::Automatic, now: spent(8) };
        let json = serde_json::to_value(event).expect("JSON");
        assert_eq!((&json["was"]["state"], &json["now"]["next_at_ms"]), (&"automatic".into(), &8.into()));
    }

    #[test]
    fn json_has_the_fields_of_the_history() {
        let event = Event::ElectionEnded(election(7, Outcome::Completed));
        let mut json = serde_json::to_value(&event).expect("JSON");
        let object = json.as_object_mut().expect("an object");
        assert_eq!(object.remove("event"), Some("election_ended".into()));
        assert_eq!(json, serde_json::to_value(election(7, Outcome::Completed)).expect("JSON"));
        let alarm = serde_json::to_value(Event::AlarmBegun(alarm("a", 1, None))).expect("JSON");
        assert_eq!((&alarm["event"], &alarm["kind"]), (&"alarm_begun".into(), &"lost_slot".into()));
    }
}
