//! A node that an operator works on.

use super::world::{Life, World};
use super::{name, step_name};
use crate::failover::CommandError;
use crate::failover::command::{Command, Upkeep};
use crate::failover::decide::{Agent, RuleId, Stragglers};
use crate::topology::{Durability, Role};

fn order(world: &mut World, node: &str, upkeep: Upkeep) -> Result<String, CommandError> {
    world.order(&Command::Maintenance { node: name(node), upkeep })
}

/// pg2 is the operator's.
fn begun(durability: Durability) -> World {
    let mut world = World::steady(durability);
    assert_eq!(order(&mut world, "pg2", Upkeep::Begin), Ok("pg2 is in maintenance".to_owned()));
    world.run(1);
    world
}

#[test]
fn its_agent_keeps_its_hands_off_until_it_is_over() {
    for life in [Life::Dead, Life::Unmade] {
        let mut world = begun(Durability::Quorum);
        world.server("pg2").life = life;
        world.run(100);
        assert_eq!((world.server("pg2").life, &*world.alarms, &*world.rules), (life, &[][..], &[][..]));
        world.restart();
        world.run(100);
        assert_eq!(world.server("pg2").life, life, "a restart forgets nothing");
        order(&mut world, "pg2", Upkeep::End).expect("at any time");
        world.run_until("taken care of", |w| w.wal.follower(&name("pg2")).is_some());
        assert_eq!(world.server("pg2").life, Life::Runs);
    }
}

#[test]
fn it_is_not_promoted() {
    let mut world = begun(Durability::Async);
    let unfit = Err(CommandError::Unfit(name("pg2"), "it is in maintenance".to_owned()));
    let to = || Some(name("pg2"));
    assert_eq!(world.order(&Command::Failover { to: to() }), unfit);
    assert_eq!(world.order(&Command::Switchover { to: to(), stragglers: Stragglers::Spared }), unfit);
    world.kill("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    assert_eq!(world.primary(), Some("pg3"));
}

#[test]
fn without_it_there_is_nobody_and_the_old_primary_is_restored() {
    let mut world = begun(Durability::Quorum);
    let said = order(&mut world, "pg3", Upkeep::Begin).expect("a standby");
    assert_eq!(said, "pg3 is in maintenance; no other node could take over from the primary now");
    world.kill("pg1");
    world.run_until("open again", |w| w.rules.contains(&RuleId::E2) && w.is_open());
    assert_eq!(world.primary(), Some("pg1"));
}

/// It was primary a moment ago, and is worked on before it is a standby again.
#[test]
fn a_deposed_primary_is_left_as_it_is() {
    let mut world = World::steady(Durability::Quorum);
    world.unrejoinable = vec!["pg1"];
    world.kill("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
    // While its agent is at work on it, it is not.
    while order(&mut world, "pg1", Upkeep::Begin).is_err() {
        world.step();
    }
    world.unrejoinable.clear();
    let copies = world.copies;
    world.run(200);
    assert_eq!((world.copies, world.state.deposed.clone()), (copies, vec![name("pg1")]));
    order(&mut world, "pg1", Upkeep::End).expect("at any time");
    world.run_until("whole again", |w| w.state.deposed.is_empty());
    assert_eq!(world.server("pg1").role, Role::Standby);
}

#[test]
fn what_is_refused() {
    let mut world = World::steady_with(Durability::Quorum, Agent::None);
    let check = |world: &mut World, node, expected: &str| {
        assert_eq!(
            order(world, node, Upkeep::Begin).map_err(|error| error.to_string()),
            Err(expected.into())
        );
    };
    check(&mut world, "pg9", "pg9 is not a node of this cluster");
    check(&mut world, "pg1", "pg1 is the primary: switch over first, then it can be in maintenance");
    world.kill("pg1");
    world.run_until("an election", |w| step_name(&w.state) != "none");
    check(&mut world, "pg2", "not now: an election, a switchover or the start is under way");
    assert_eq!(order(&mut world, "pg2", Upkeep::End), Ok("pg2 is not in maintenance".to_owned()));
}
