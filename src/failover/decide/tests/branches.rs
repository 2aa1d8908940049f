//! WAL that is in nobody's history.

use super::world::World;
use crate::pg::TimelineId;
use crate::topology::Durability;

#[test]
fn what_was_given_up_is_not_taken_up_by_the_next_election() {
    let mut world = World::steady(Durability::Async);
    world.kill("pg1");
    world.run_until("another primary", |w| w.is_open() && w.primary() == Some("pg2"));
    world.run_until("whole again", |w| w.state.deposed.is_empty());
    let fork = world.state.primary.as_ref().and_then(|primary| primary.fork_of(TimelineId(1)));
    let fork = fork.expect("it was promoted");
    world.kill("pg2");
    // The relay that is asked has heard of nothing since, and has more of the first timeline than went on.
    world.wal.timeline = TimelineId(1);
    (world.wal.durable, world.wal.verified) = (fork.advanced(0x1000), fork.advanced(0x1000));
    world.run_until("fenced", |w| w.fenced().is_some());
    let fenced = world.fenced().expect("just seen");
    assert_eq!((fenced.timeline, fenced.durable, fenced.verified), (TimelineId(1), fork, fork));
}
