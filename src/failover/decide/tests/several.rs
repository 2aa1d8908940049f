//! Elections among several instances of which some do not come back.

use super::step_name;
use super::world::World;
use crate::failover::command::Command;
use crate::failover::decide::{Agent, RuleId, Stragglers};
use crate::topology::{Durability, Term};

/// Every server is beside this instance, so that the other two acknowledge, one of them is enough, and both promise.
fn of_three(durability: Durability) -> World {
    World::among(durability, Agent::Local, &["bw2", "bw3"])
}

/// (1) The host of a relay is down; (2) the primary's postmaster dies; (3) nobody can be promoted, since one relay alone
/// does not promise for both.
#[test]
fn where_too_few_relays_promise_the_old_primary_goes_on() {
    for durability in [Durability::Quorum, Durability::Async] {
        let mut world = of_three(durability);
        world.kill_peer("bw3");
        world.run(50);
        world.kill("pg1");
        world.run_until("open again", |w| w.is_open() && w.state.term > Term(1));
        assert_eq!(world.primary(), Some("pg1"));
        use RuleId::{E2, F1, P1, P2, P3};
        let expected: &[RuleId] =
            if durability == Durability::Quorum { &[F1, E2, P1, P2, P3] } else { &[F1, E2, P1, P3] };
        assert_eq!(&world.rules[..expected.len()], expected);
        // Once they are enough again, a failover is what it was.
        world.peers.revive("bw3");
        world.run(50);
        world.order_failover(None);
        world.run_until("another is open", |w| w.is_open() && w.primary() != Some("pg1"));
    }
}

#[test]
fn a_primary_that_came_back_with_less_is_not_taken_without_promises_either() {
    let mut world = of_three(Durability::Quorum);
    world.kill_peer("bw3");
    world.run(50);
    world.kill("pg1");
    let server = world.server("pg1");
    server.flush = crate::pg::Lsn(server.flush.0 - 0x500);
    world.run(300);
    assert_eq!((step_name(&world.state), world.is_open()), ("fence", false));
}

#[test]
fn a_healthy_primary_is_not_taken_away_while_too_few_relays_are_heard() {
    let mut world = of_three(Durability::Quorum);
    world.kill_peer("bw3");
    world.run(50);
    for order in
        [Command::Failover { to: None }, Command::Switchover { to: None, stragglers: Stragglers::Spared }]
    {
        let refused = world.order(&order).expect_err("nobody could be promoted").to_string();
        assert_eq!(refused, "not now: too few relays are heard to promise a term; not heard: bw3");
    }
    world.run(50);
    assert_eq!((&world.rules[..], world.is_open()), (&[][..], true));
}

/// (1) A switchover is under way; (2) a relay's host dies when the primary is down already.
#[test]
fn a_switchover_that_cannot_be_fenced_is_given_up() {
    let mut world = of_three(Durability::Quorum);
    world.order(&Command::Switchover { to: None, stragglers: Stragglers::Spared }).expect("all is well");
    world.run_until("shutting down", |w| step_name(&w.state) == "shut_down");
    world.kill_peer("bw3");
    world.run_until("open again", |w| w.is_open() && w.state.term > Term(1));
    assert_eq!(world.primary(), Some("pg1"));
    assert!(world.rules.ends_with(&[RuleId::W5, RuleId::E2, RuleId::P1, RuleId::P2, RuleId::P3]));
}

/// Nobody is beside a server: all four acknowledge, and three of them must, and promise.
fn of_four() -> World {
    World::among(Durability::Quorum, Agent::None, &["bw2", "bw3", "bw4"])
}

/// (1) An instance confirms the term; (2) its host dies before it has said that no session uses the candidate.
#[test]
fn who_has_confirmed_a_term_and_is_gone_is_waited_out_in_the_next() {
    let mut world = of_four();
    world.kill("pg1");
    world.run_until("confirmed", |w| step_name(&w.state) == "fence");
    world.kill_peer("bw4");
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    assert_eq!(world.state.term, Term(3));
    assert_eq!(world.rules.iter().filter(|rule| **rule == RuleId::E11).count(), 1, "{:?}", world.rules);
}

/// (1) One relay has the end of a log that nobody acknowledged, and the election goes on with it; (2) its host dies before
/// anybody else has that end.
#[test]
fn a_log_that_is_gone_with_its_relay_is_not_waited_for() {
    let mut world = of_four();
    world.kill("pg1");
    world.run_until("promised", |w| step_name(&w.state) == "fence");
    let longest = &mut world.peers.all.get_mut("bw4").expect("one of them").wal;
    (longest.durable, longest.verified) = (longest.durable.advanced(0x80), longest.verified.advanced(0x80));
    world.kill_peer("bw4");
    world.run_until("to go on with", |w| step_name(&w.state) == "catch_up");
    let source = world.state.floor.as_ref().and_then(|floor| floor.source.clone());
    assert_eq!(source.as_deref(), Some("bw4"));
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    assert_eq!(world.state.term, Term(3), "{:?}", world.rules);
}

/// (1) The primary's host is gone, and its successor would have relays acknowledge of which that host has one; (2) it dies
/// when it was asked to promote. No relay has followed it, so the relays of before are enough for the next election.
#[test]
fn a_candidate_that_nobody_followed_leaves_no_relays_behind() {
    let mut world = World::among(Durability::Quorum, Agent::None, &["bw2 pg1", "bw3 pg2"]);
    world.kill("pg1");
    world.kill_peer("bw2");
    world.run_until("prepared", |w| step_name(&w.state) == "prepare");
    world.fail_next = true;
    world.run_until("asked to promote", |w| step_name(&w.state) == "promote");
    world.kill("pg2");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
    assert!(world.rules.contains(&RuleId::E11), "{:?}", world.rules);
}
