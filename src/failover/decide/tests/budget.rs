//! How many automatic failovers there may be: F7, S6, and who gives a fresh budget.

use std::time::Duration;

use super::world::{Life, World};
use crate::failover::command::Command;
use crate::failover::decide::{Agent, Budget, Mode, Phase, RuleId, Spent, State};
use crate::topology::{Durability, Failovers};

const WINDOW: Duration = Duration::from_secs(60);

/// Steps of a tenth of a second.
const STEPS_OF_WINDOW: usize = 600;

/// The budget of one is spent: pg2 has taken over from pg1.
fn spent(agent: Agent) -> World {
    let mut world = World::steady_with(Durability::Quorum, agent);
    world.set_budget(1, WINDOW);
    world.kill("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
    if agent == Agent::Local {
        world.run_until("whole again", |w| w.state.deposed.is_empty());
    }
    world.rules.clear();
    world
}

fn begins(world: &World) -> usize {
    use RuleId::{F1, F2, F3, F4, F5, F6};
    world.rules.iter().filter(|rule| [F1, F2, F3, F4, F5, F6].contains(rule)).count()
}

#[test]
fn the_window_slides() {
    let budget = Budget { failovers: 2, window: Duration::from_millis(100) };
    for (begun_ms, now_ms, expected) in [
        (&[][..], 1000, None),
        (&[1000], 1000, None),
        (&[990, 1000], 1000, Some(1090)),
        (&[990, 1000], 1089, Some(1090)),
        (&[990, 1000], 1090, None),
        // The limit was higher once.
        (&[950, 980, 990], 1000, Some(1080)),
        // A clock that was set back: what lies far ahead says nothing, and what is near may be another host's.
        (&[5000, 5001], 1000, None),
        (&[1050, 1060], 1000, Some(1150)),
    ] {
        let spent: Spent =
            serde_json::from_value(serde_json::json!({"begun_ms": begun_ms, "stopped_ms": null}))
                .expect("as it is written");
        assert_eq!(budget.waits_until(&spent, now_ms), expected, "{begun_ms:?} at {now_ms}");
    }
}

#[test]
fn when_the_budget_is_spent_nobody_is_promoted_until_the_window_has_passed() {
    let mut world = spent(Agent::None);
    world.kill("pg2");
    world.run(50);
    assert_eq!(world.rules, [RuleId::F7]);
    assert_eq!((world.primary(), world.warnings.len(), &*world.alarms), (Some("pg2"), 1, &[][..]));
    let told = "1 automatic failovers within 1m are enough";
    assert!(world.warnings[0].contains(told), "{:?}", world.warnings);
    world.run(STEPS_OF_WINDOW);
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
    assert_eq!((world.rules[1], begins(&world)), (RuleId::F1, 1));
    assert_eq!(world.failovers(), Failovers::Automatic);
}

#[test]
fn the_same_primary_comes_back_without_a_hand() {
    let mut world = spent(Agent::Local);
    let term = world.state.term;
    world.kill("pg2");
    world.run_until("started", |w| w.rules.contains(&RuleId::P3));
    assert_eq!((world.rules[0], begins(&world)), (RuleId::F7, 0));
    assert_eq!((world.primary(), world.is_open()), (Some("pg2"), true));
    assert!(world.state.term > term, "what its recovery brought back is the quorum's first");
    assert_eq!((world.failovers(), &*world.alarms), (Failovers::Automatic, &[][..]));
}

#[test]
fn a_primary_that_was_only_silent_goes_on() {
    let mut world = spent(Agent::Local);
    let term = world.state.term;
    world.server("pg2").life = Life::Frozen;
    world.run_until("spent", |w| matches!(w.failovers(), Failovers::Spent { .. }));
    world.server("pg2").life = Life::Runs;
    world.run(50);
    assert_eq!(world.rules, [RuleId::F7, RuleId::S6]);
    assert_eq!((world.state.term, world.failovers()), (term, Failovers::Automatic));
}

#[test]
fn a_restart_forgets_nothing() {
    let mut world = spent(Agent::None);
    world.restart();
    world.run_until("steady", |w| matches!(w.state.phase, Phase::Steady));
    world.rules.clear();
    world.kill("pg2");
    world.run(50);
    assert_eq!(world.rules, [RuleId::F7]);
    world.restart();
    world.run(50);
    assert!(matches!(world.failovers(), Failovers::Spent { .. }));
    assert_eq!(begins(&world), 0);
}

#[test]
fn a_person_gives_a_fresh_one() {
    let failover = Command::Failover { to: None };
    for (order, begun_by) in [(Command::Resume, RuleId::F1), (failover, RuleId::F6)] {
        let mut world = spent(Agent::None);
        world.kill("pg2");
        world.run(50);
        world.order(&order).expect("it is steady");
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
        assert_eq!(world.rules[..2], [RuleId::F7, begun_by]);
        // Its own failover is the person's: the budget of one is there yet.
        world.kill("pg3");
        world.run(50);
        let expected = if begun_by == RuleId::F6 { RuleId::F1 } else { RuleId::F7 };
        assert_eq!(world.rules.iter().rfind(|rule| [RuleId::F1, RuleId::F7].contains(rule)), Some(&expected));
    }
}

/// It crashes in the middle of being made ready again.
#[test]
fn a_person_is_obeyed_while_the_primary_crashes_again_and_again() {
    for mode in [Mode::Automatic, Mode::Manual] {
        let mut world = spent(Agent::None);
        world.set_mode(mode);
        world.unpreparable.push("pg2");
        world.kill("pg2");
        world.run(50);
        world.revive("pg2");
        world.run_until("establishing", |w| matches!(w.state.phase, Phase::Establishing { .. }));
        world.run(10);
        let failover = Command::Failover { to: None };
        world.order(&failover).expect_err("it is well");
        world.kill("pg2");
        world.run(50);
        assert!(matches!(world.state.phase, Phase::Establishing { .. }), "{:?}", world.state.phase);
        world.order(&failover).expect("nobody else does anything about it");
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
        assert_eq!(begins(&world), 1, "{mode:?}: {:?}", world.rules);
    }
}

#[test]
fn what_is_paused_is_not_started() {
    let mut world = spent(Agent::Local);
    world.unstartable.push("pg2");
    world.kill("pg2");
    world.run(50);
    assert_eq!(world.rules, [RuleId::F7]);
    world.order(&Command::Pause).expect("at any time");
    world.run(1);
    world.unstartable.clear();
    world.run(200);
    assert_eq!(world.server("pg2").life, Life::Dead);
}

#[test]
fn what_is_not_automatic_spends_nothing() {
    let mut world = spent(Agent::None);
    world.set_mode(Mode::Manual);
    world.kill("pg2");
    world.run(50);
    assert_eq!((&*world.rules, world.alarms.len()), (&[][..], 1));
    assert_eq!(world.failovers(), Failovers::Manual);
}

/// Of a version that knew of no budget.
#[test]
fn an_old_state_has_spent_nothing() {
    let state = State::bootstrapping(Durability::Quorum, 7);
    let mut json = serde_json::to_value(&state).expect("JSON");
    json.as_object_mut().and_then(|fields| fields.remove("budget")).expect("it is written");
    assert_eq!(serde_json::from_value::<State>(json).expect("it is read"), state);
}
