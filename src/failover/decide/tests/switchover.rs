//! Planned switchovers: by the book, and what a disturbance at each step leads to.

use super::world::{Life, World};
use super::{name, step_name};
use crate::failover::command::Command;
use crate::failover::decide::{Agent, Handover, Mode, Phase, RuleId, Stragglers};
use crate::failover::health::SlotState;
use crate::pg::Lsn;
use crate::topology::{Draining, Durability, Election, Outcome, Role, Term};

const STEPS: [&str; 11] = [
    "checkpoint",
    "drain",
    "shut_down",
    "fence",
    "elect",
    "catch_up",
    "prepare",
    "promote",
    "verify",
    "follow",
    "marker",
];
/// Nobody has been asked to promote yet.
const BEFORE_PROMOTION: usize = 7;

fn order(world: &mut World, to: Option<&str>, stragglers: Stragglers) -> Result<String, String> {
    let to = to.map(name);
    world.order(&Command::Switchover { to, stragglers }).map_err(|error| error.to_string())
}

fn begin(world: &mut World, to: &str) {
    order(world, Some(to), Stragglers::Spared).unwrap();
}

fn run_to(world: &mut World, step: &str) -> bool {
    for _ in 0..100 {
        if step_name(&world.state) == step {
            return true;
        }
        world.step();
    }
    false
}

fn whole(world: &World) -> bool {
    world.is_open() && world.state.deposed.is_empty()
}

fn last(world: &World) -> &Election {
    world.history.last().unwrap()
}

/// The one that a forecast names is the one that takes over, and nothing is done before that.
#[test]
fn what_is_foreseen_happens() {
    for (handover, command) in [
        (Handover::Failover, Command::Failover { to: None }),
        (Handover::Switchover, Command::Switchover { to: None, stragglers: Stragglers::Spared }),
    ] {
        let mut world = World::steady(Durability::Quorum);
        world.server("pg2").backlog = 0x100;
        world.step();
        let (state, said) = (world.state.clone(), world.order(&Command::Foresee { handover, to: None }));
        let said = said.expect("it is steady");
        assert!(said.contains("from pg1 to pg3: 0 bytes of WAL lost"), "{said}");
        assert!(said.contains("pg2 could take over: 0 bytes to receive, 256 to replay"), "{said}");
        world.step();
        assert_eq!(world.state, state, "nothing is done");
        world.order(&command).expect("it is steady");
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
    }
    let mut world = World::steady(Durability::Quorum);
    world.kill("pg2");
    world.run(50);
    let said = world.order(&Command::Foresee { handover: Handover::Failover, to: None });
    assert!(said.is_ok_and(|said| said.contains("\npg2 could")), "the others are told of, too");
    let unknown = world.order(&Command::Foresee { handover: Handover::Failover, to: Some(name("pg9")) });
    assert!(unknown.is_err());
}

#[test]
fn a_switchover_by_the_book() {
    for durability in [Durability::Quorum, Durability::Async] {
        let mut world = World::steady(durability);
        let said = order(&mut world, Some("pg3"), Stragglers::Spared);
        assert_eq!(said.as_deref(), Ok("switchover from pg1 to pg3 has begun"));
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
        use RuleId::{E1, E3, E4, E5, E6, E7, E8, E9, W1, W2, W3, W4};
        assert_eq!(world.rules[..12], [W1, W2, W3, W4, E1, E3, E4, E5, E6, E7, E8, E9]);
        assert_eq!(world.state.term, Term(2));

        let election = last(&world).clone();
        assert_eq!(election.outcome, Outcome::Completed);
        assert_eq!((election.term, election.rule.as_str()), (Term(2), "W1"));
        assert_eq!((election.from, election.to), (Some(name("pg1")), Some(name("pg3"))));
        assert_eq!((election.lost_bytes, election.unacknowledged_bytes), (0, 0));
        assert_eq!(
            election.evidence,
            ["an operator asked for it", "sessions pinned by temp_table, cut off: 2"]
        );
        let phases: Vec<&str> = election.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(phases, STEPS);

        world.run_until("the old primary follows", whole);
        assert_eq!(world.server("pg1").role, Role::Standby);
        assert!(world.alarms.is_empty(), "{:?}", world.alarms);
        begin(&mut world, "pg1");
        world.run_until("and back", |w| whole(w) && w.primary() == Some("pg1"));
    }
}

#[test]
fn writes_go_on_until_the_checkpoint_is_there_and_wait_from_then_on() {
    let mut world = World::steady(Durability::Quorum);
    begin(&mut world, "pg2");
    assert!(run_to(&mut world, "checkpoint"));
    let directive = world.state.directive();
    assert_eq!((directive.writable(), &directive.drain), (Some(&name("pg1")), &None));
    assert!(run_to(&mut world, "drain"));
    let directive = world.state.directive();
    assert_eq!((directive.writable(), &directive.primary), (None, &Some(name("pg1"))));
    assert_eq!(directive.upstream, Some(name("pg1")), "the relay goes on");
    assert_eq!((directive.drain.map(|drain| drain.successor), directive.drains), (Some(name("pg2")), 1));
    assert_eq!(world.state.term, Term(1), "nothing is cut");
    // Until it is the candidate nothing begins at the successor, which would be cut off then.
    while world.state.directive().candidate.is_none() {
        let directive = world.state.directive();
        assert_eq!(directive.drain.map(|drain| drain.successor), Some(name("pg2")));
        world.step();
    }
    // From its term on it is, all the time for the same turn.
    let candidate = world.state.directive().candidate;
    assert_eq!(
        candidate.as_ref().map(|candidate| (&candidate.node, candidate.round)),
        Some((&name("pg2"), 1))
    );
    assert_eq!((world.state.term, step_name(&world.state)), (Term(2), "fence"));
    while !world.is_open() {
        assert_eq!(world.state.directive().candidate, candidate);
        world.step();
    }
}

/// What the candidate needs it has before clients wait, and is not asked again.
#[test]
fn the_successor_is_made_ready_while_clients_go_on() {
    for durability in [Durability::Quorum, Durability::Async] {
        let mut world = World::steady(durability);
        begin(&mut world, "pg2");
        assert!(run_to(&mut world, "checkpoint") && world.is_open());
        assert!(run_to(&mut world, "drain"));
        let names = if durability == Durability::Quorum { "\"bellwether_bw_t2\"" } else { "" };
        let successor = world.server("pg2");
        assert_eq!((successor.names.as_str(), successor.slot), (names, SlotState::Inactive));
        // From here on it cannot be.
        world.unpreparable = vec!["pg2"];
        world.run_until("open there", |w| w.is_open() && w.primary() == Some("pg2"));
        assert!(world.history.iter().all(|election| election.outcome == Outcome::Completed));
    }
}

#[test]
fn a_successor_that_cannot_be_made_ready_costs_nobody_anything() {
    let mut world = World::steady(Durability::Quorum);
    world.unpreparable = vec!["pg2"];
    begin(&mut world, "pg2");
    while world.history.is_empty() {
        assert!(world.is_open(), "{}", step_name(&world.state));
        world.step();
    }
    let why = "pg2 could not be made ready".to_owned();
    assert_eq!(last(&world).outcome, Outcome::Failed { why });
    assert_eq!((world.primary(), world.state.term, world.state.drains), (Some("pg1"), Term(1), 0));
    world.unpreparable.clear();
    begin(&mut world, "pg2");
    world.run_until("open there", |w| w.is_open() && w.primary() == Some("pg2"));
}

/// On a standby a slot keeps WAL for ever. For the next switchover it is there again, whatever is remembered of the one before.
#[test]
fn what_a_switchover_made_ready_goes_when_it_is_given_up() {
    let slot = |world: &World| world.servers[1].slot;
    let mut world = World::steady(Durability::Quorum);
    world.open_transactions = 1;
    begin(&mut world, "pg2");
    assert!(run_to(&mut world, "drain"));
    assert_eq!(slot(&world), SlotState::Inactive);
    world.run_until("taken back", |w| w.is_open() && slot(w) == SlotState::Absent);
    assert_eq!((world.primary(), world.state.term), (Some("pg1"), Term(1)));
    begin(&mut world, "pg2");
    assert!(run_to(&mut world, "drain"));
    assert_eq!(slot(&world), SlotState::Inactive);
}

/// For another term, or other relays, it is not: somebody has promised a term meanwhile, and the successor is prepared anew.
#[test]
fn ready_for_another_term_is_not_ready() {
    let mut world = World::steady(Durability::Quorum);
    begin(&mut world, "pg2");
    assert!(run_to(&mut world, "shut_down"));
    let Phase::Election(election) = &mut world.state.phase else { panic!("no switchover") };
    let ready = election.planned.as_mut().and_then(|planned| planned.ready.as_mut()).expect("it is ready");
    ready.term = Term(9);
    world.server("pg2").names = "\"bellwether_bw_t9\"".to_owned();
    world.restart();
    // Before it is primary, and would be mended as such.
    assert!(run_to(&mut world, "promote"));
    let term = world.state.term;
    assert_eq!(world.server("pg2").names, format!("\"bellwether_bw_t{term}\""));
}

#[test]
fn nobody_waits_for_the_relay_before_the_marker_begins() {
    let mut world = World::steady(Durability::Quorum);
    begin(&mut world, "pg2");
    world.run_until("followed", |w| w.rules.contains(&RuleId::E8));
    assert!(
        world.rules.contains(&RuleId::E9),
        "its commit was under way when the relay came: {:?}",
        world.rules
    );
}

#[test]
fn without_an_agent_the_old_primary_is_left_to_a_person() {
    let mut world = World::unattended(Durability::Quorum);
    let said = order(&mut world, Some("pg2"), Stragglers::Spared).unwrap();
    assert!(said.contains("made a standby by hand"), "{said}");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
    assert!(last(&world).phases.iter().any(|phase| phase.name == "settle"), "{:?}", last(&world));
    assert_eq!((last(&world).outcome.clone(), last(&world).lost_bytes), (Outcome::Completed, 0));
    assert_eq!(world.state.deposed, [name("pg1")]);
}

#[test]
fn open_transactions_are_spared_unless_they_are_to_be_cut() {
    for agent in [Agent::Local, Agent::None] {
        for stragglers in [Stragglers::Spared, Stragglers::Cut] {
            let mut world = World::steady_with(Durability::Quorum, agent);
            world.open_transactions = 3;
            order(&mut world, Some("pg2"), stragglers).unwrap();
            assert!(run_to(&mut world, "drain"));
            world.run_until("the limit", |w| step_name(&w.state) != "drain");
            world.run_until("open again", World::is_open);
            if stragglers == Stragglers::Cut {
                assert_eq!(world.primary(), Some("pg2"));
                assert!(last(&world).evidence.contains(&"transactions cut off after 5s: 3".to_owned()));
                continue;
            }
            assert_eq!((world.primary(), world.state.term), (Some("pg1"), Term(1)));
            let directive = world.state.directive();
            assert_eq!(
                (directive.drain, directive.drains),
                (None, 1),
                "who saw nothing of it learns that it was"
            );
            let why = "transactions still open after 5s: 3".to_owned();
            assert_eq!(last(&world).outcome, Outcome::Failed { why });
            // What was said of the first drain is no word about the second.
            world.open_transactions = 0;
            begin(&mut world, "pg2");
            world.run_until("open there", |w| w.is_open() && w.primary() == Some("pg2"));
        }
    }
}

#[test]
fn a_proxy_that_says_nothing_is_no_drained_one() {
    let mut world = World::steady(Durability::Quorum);
    world.stuck = true;
    order(&mut world, Some("pg2"), Stragglers::Cut).unwrap();
    assert!(run_to(&mut world, "drain"));
    world.run_until("given up", World::is_open);
    assert_eq!((world.primary(), world.rules.last()), (Some("pg1"), Some(&RuleId::W5)));
}

#[test]
fn what_cannot_be_done_is_refused_in_words() {
    let refused = |disturb: fn(&mut World), to: Option<&str>, expected: &str| {
        let mut world = World::unattended(Durability::Quorum);
        disturb(&mut world);
        let said = order(&mut world, to, Stragglers::Spared).unwrap_err();
        assert!(said.contains(expected), "{said:?} instead of {expected:?}");
        world.rules.clear();
        world.run(30);
        assert!(!world.rules.contains(&RuleId::W1));
    };
    refused(|_| {}, Some("pg9"), "pg9 is not a node of this cluster");
    refused(|_| {}, Some("pg1"), "it is the primary");
    refused(
        |w| {
            w.kill("pg2");
            w.run(5);
        },
        Some("pg2"),
        "pg2: it is down: connection refused",
    );
    refused(
        |w| {
            ["pg2", "pg3"].into_iter().for_each(|node| w.kill(node));
            w.run(5);
        },
        None,
        "no standby can take over: pg2: it is down",
    );
    refused(
        |w| {
            w.order(&Command::Pause).unwrap();
        },
        None,
        "paused",
    );
    refused(
        |w| {
            w.server("pg1").life = Life::Frozen;
            w.run(5);
        },
        None,
        "not well",
    );
    refused(|w| w.proxy.draining = Draining::Unknown, None, "the process before this one");
    refused(
        |w| {
            w.order_failover(None);
            w.step();
        },
        None,
        "under way",
    );
    refused(|w| w.wal.durable = w.wal.durable.advanced(17 << 20), None, "bytes of WAL to replay");
    refused(|w| w.wal.followers.clear(), Some("pg3"), "pg3: it does not stream from the relay");
}

/// Whatever happens before somebody is asked to promote: the old primary goes on, or (only if it is gone) another
/// takes over; and the cluster ends whole.
#[test]
fn every_disturbance_at_every_step() {
    type Disturbance = (&'static str, fn(&mut World));
    let disturbances: [Disturbance; 8] = [
        ("restart", World::restart),
        ("primary dies", |w| w.kill("pg1")),
        ("primary restarts", |w| {
            w.kill("pg1");
            w.revive("pg1");
        }),
        ("successor dies", |w| w.kill("pg2")),
        ("successor freezes", |w| w.server("pg2").life = Life::Frozen),
        ("an action fails", |w| w.fail_next = true),
        ("the relay hears nothing", |w| w.unheard = vec!["pg1"]),
        ("successor dies, restart", |w| {
            w.kill("pg2");
            w.restart();
        }),
    ];
    for durability in [Durability::Quorum, Durability::Async] {
        for at in STEPS {
            for (what, disturb) in &disturbances {
                let mut world = World::steady(durability);
                world.allow_loss(1 << 20);
                begin(&mut world, "pg2");
                if run_to(&mut world, at) {
                    disturb(&mut world);
                }
                world.run(400);
                world.unheard.clear();
                for node in ["pg1", "pg2"] {
                    world.server(node).life = if world.server(node).life == Life::Frozen {
                        Life::Runs
                    } else {
                        world.server(node).life
                    };
                }
                world.run_until(&format!("whole after {what} at {at} ({durability:?})"), whole);
            }
        }
    }
}

#[test]
fn a_successor_that_dies_before_its_promotion_leaves_the_old_primary_in_place() {
    for at in &STEPS[..BEFORE_PROMOTION] {
        let mut world = World::steady(Durability::Quorum);
        begin(&mut world, "pg2");
        if !run_to(&mut world, at) {
            // It passes within one turn.
            continue;
        }
        world.kill("pg2");
        world.run_until(&format!("open again after {at}"), |w| w.is_open() && !w.history.is_empty());
        assert_eq!(world.primary(), Some("pg1"), "{at}");
        assert!(matches!(last(&world).outcome, Outcome::Failed { .. }), "{at}: {:?}", last(&world));
        world.run_until("whole", whole);
    }
}

#[test]
fn an_operator_in_manual_mode_gets_the_old_primary_back() {
    let mut world = World::steady(Durability::Quorum);
    world.set_mode(Mode::Manual);
    begin(&mut world, "pg2");
    assert!(run_to(&mut world, "drain"));
    world.open_transactions = 1;
    world.kill("pg1");
    world.run_until("given up", |w| w.rules.last() == Some(&RuleId::W5));
    assert_eq!((world.primary(), world.state.term), (Some("pg1"), Term(1)));
}

/// As after a restart of this process: a walreceiver reports where replay is when it moves, or every 10 s.
#[test]
fn a_standby_that_has_just_connected_is_not_taken_to_be_behind() {
    let mut world = World::steady(Durability::Quorum);
    let far = |lsn: Lsn| lsn.advanced(1 << 30);
    for server in &mut world.servers {
        server.flush = far(server.flush);
    }
    world.run(10);
    for follower in &mut world.wal.followers {
        follower.replay = Lsn::INVALID;
    }
    begin(&mut world, "pg2");
}

#[test]
fn the_best_is_the_one_that_is_wanted_most() {
    let mut world = World::steady(Durability::Quorum);
    world.server("pg3").node.priority = 200;
    world.restart();
    world.run_until("open with it", whole);
    world.run(10);
    let said = order(&mut world, None, Stragglers::Spared);
    assert_eq!(said.as_deref(), Ok("switchover from pg1 to pg3 has begun"));
}

/// A relay that has not got the record of the shutdown is not enough, whatever it had before.
#[test]
fn nobody_is_promoted_without_the_record_of_the_shutdown() {
    let mut world = World::steady(Durability::Quorum);
    begin(&mut world, "pg2");
    assert!(run_to(&mut world, "drain"));
    world.unheard = vec!["pg1"];
    world.run_until("restored", |w| w.rules.contains(&RuleId::E2));
    world.unheard.clear();
    world.run_until("open", World::is_open);
    assert_eq!(world.primary(), Some("pg1"));
    assert!(!world.rules.contains(&RuleId::W4) && !world.rules.contains(&RuleId::E6), "{:?}", world.rules);
}
