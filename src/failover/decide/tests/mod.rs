//! The rules at work: courses of events in a small world, and verdicts as a table of cases.

mod best;
mod branches;
mod budget;
mod maintenance;
mod peers;
mod rolling;
mod several;
mod switchover;
mod world;

use self::world::SYSTEM;
use self::world::{Life, World};
use super::{Agent, EstablishStep, Phase, Primary, RuleId, State, Step};
use crate::failover::command::Command;
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Ailment, ArchiveStatus, Candidate, Durability, Follower, NodeName, Outcome, Term};

fn step_name(state: &State) -> &'static str {
    match &state.phase {
        Phase::Election(election) => election.step.name(),
        _ => "none",
    }
}

fn name(name: &str) -> NodeName {
    name.parse().unwrap()
}

#[test]
fn every_rule_is_in_the_table_once() {
    for (index, rule) in super::RULES.iter().enumerate() {
        assert_eq!(rule.id.rule().map(|r| r.name), Some(rule.name));
        assert!(super::RULES[..index].iter().all(|other| other.id != rule.id), "{:?}", rule.id);
    }
}

#[test]
fn a_killed_primary_is_replaced_by_the_book() {
    for durability in [Durability::Quorum, Durability::Async] {
        let mut world = World::steady(durability);
        assert_eq!((world.state.term, world.primary(), world.is_open()), (Term(1), Some("pg1"), true));
        world.kill("pg1");
        world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
        use RuleId::{E1, E3, E4, E5, E6, E7, E8, E9, F1, S1};
        assert_eq!(world.rules, [F1, E1, E3, E4, E5, E6, E7, E8, E9, S1]);
        assert_eq!((world.state.term, world.primary()), (Term(2), Some("pg2")));

        let election = world.history.last().unwrap();
        assert_eq!(election.outcome, Outcome::Completed);
        assert_eq!((election.from.clone(), election.to.clone()), (Some(name("pg1")), Some(name("pg2"))));
        let phases: Vec<&str> = election.phases.iter().map(|p| p.name.as_str()).collect();
        let expected = ["fence", "elect", "catch_up", "prepare", "promote", "verify", "follow", "marker"];
        assert_eq!(phases, expected);

        world.run_until("the old primary follows", |w| w.state.deposed.is_empty());
        assert_eq!(world.server("pg1").role, crate::topology::Role::Standby);
    }
}

#[test]
fn the_operators_choice_and_priority_are_heard() {
    let mut world = World::steady(Durability::Quorum);
    world.server("pg3").node.priority = 200;
    world.restart();
    world.run_until("open with it", World::is_open);
    world.kill("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
    world.run_until("whole again", |w| w.state.deposed.is_empty());

    world.order_failover(Some(name("pg2")));
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
    assert!(world.rules.contains(&RuleId::F6));
    // The primary was alive: it is stopped and comes back as a standby.
    world.run_until("whole again", |w| w.state.deposed.is_empty());
}

#[test]
fn of_equals_the_one_in_the_primarys_zone_wins_and_then_the_one_with_less_to_replay() {
    let check = |zones: [Option<&str>; 3], backlog: [u64; 2], chosen: &str| {
        let mut world = World::steady(Durability::Quorum);
        for (node, zone) in ["pg1", "pg2", "pg3"].into_iter().zip(zones) {
            world.server(node).node.zone = zone.map(str::to_owned);
        }
        for (node, backlog) in ["pg2", "pg3"].into_iter().zip(backlog) {
            world.server(node).backlog = backlog;
        }
        world.restart();
        world.run_until("open with it", World::is_open);
        world.kill("pg1");
        world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
        assert_eq!(world.primary(), Some(chosen), "{zones:?}, {backlog:?}");
    };
    check([None; 3], [0, 0], "pg2");
    check([Some("a"), Some("b"), Some("a")], [0, 0x400], "pg3");
    check([None, Some("b"), Some("a")], [0x400, 0], "pg3");
    check([Some("a"), Some("b"), Some("c")], [0, 0x400], "pg2");
}

#[test]
fn blind_is_not_dead() {
    let mut world = World::steady(Durability::Quorum);
    world.blind = true;
    world.run(600);
    assert_eq!(world.ailments, ["blind"]);
    world.blind = false;
    world.run(50);
    assert_eq!((world.state.term, world.primary(), &*world.rules), (Term(1), Some("pg1"), &[][..]));
}

#[test]
fn a_frozen_primary_is_replaced_and_thawed_as_a_standby() {
    let mut world = World::steady(Durability::Quorum);
    world.server("pg1").life = Life::Frozen;
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    assert_eq!(world.rules[0], RuleId::F2);
    assert_eq!(world.history[0].ailment, Some(Ailment::ServerFrozen));
    world.server("pg1").life = Life::Runs;
    world.run_until("the old primary follows", |w| w.state.deposed.is_empty());
}

/// Why do you not fail over?
#[test]
fn what_ails_the_primary_is_told_while_nobody_is_promoted() {
    let mut world = World::steady(Durability::Quorum);
    let said = |world: &World| {
        let found = world.diagnosis()?;
        Some((found.ailment, found.outlook))
    };
    let expected = |ailment, outlook: &str| Some((ailment, Some(outlook.to_owned())));
    assert_eq!(said(&world), None);
    world.blind = true;
    world.run(50);
    let unseen = "not to see a server is no evidence that it is dead";
    assert_eq!(said(&world), expected(Ailment::Blind, unseen));
    world.blind = false;
    world.run(20);
    assert_eq!(said(&world), None);
    world.order(&Command::Pause).expect("it is steady");
    world.server("pg1").life = Life::Frozen;
    world.run(50);
    assert_eq!(said(&world), expected(Ailment::ServerFrozen, "automatic failover is paused"));
    world.kill("pg1");
    world.run(50);
    assert_eq!(said(&world), expected(Ailment::ProcessDead, "automatic failover is paused"));
    assert_eq!(world.ailments, ["blind", "server_frozen", "process_dead"]);
    world.order(&Command::Resume).expect("it is steady");
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    let election = &world.history[0];
    assert_eq!((&*election.rule, election.ailment), ("F1", Some(Ailment::ProcessDead)));
    assert!(election.evidence.iter().all(|item| item.starts_with("first-hand: ")), "{election:?}");
    world.run(20);
    assert_eq!(said(&world), None);
}

#[test]
fn nobody_to_promote_means_the_old_primary_is_restored() {
    let mut world = World::steady(Durability::Quorum);
    for node in ["pg1", "pg2", "pg3"] {
        world.kill(node);
    }
    world.run_until("open again", |w| w.is_open() && w.state.term > Term(1));
    assert_eq!(world.primary(), Some("pg1"));
    assert!(world.rules.contains(&RuleId::E2), "{:?}", world.rules);
}

#[test]
fn half_a_record_that_the_relay_forgets_is_not_waited_for() {
    let mut world = World::unattended(Durability::Quorum);
    world.kill("pg1");
    for standby in ["pg2", "pg3"] {
        world.server(standby).flush = Lsn(0x1000);
    }
    world.wal.durable = world.wal.verified.advanced(8);
    world.run_until("catching up", |w| step_name(&w.state) == "catch_up");
    world.restart();
    world.wal.durable = world.wal.verified;
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
}

#[test]
fn without_an_agent_a_dead_primary_stays_out_until_it_is_a_standby() {
    let mut world = World::unattended(Durability::Quorum);
    world.kill("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    let term = world.state.term;
    world.revive("pg1");
    world.run(100);
    assert_eq!((world.state.term, world.state.deposed.clone()), (term, vec![name("pg1")]));
}

#[test]
fn more_than_may_be_lost_is_not_lost() {
    let mut world = World::unattended(Durability::Async);
    world.kill("pg1");
    world.wal.upstream_end = world.wal.upstream_end.advanced(1);
    world.run(200);
    assert_eq!(step_name(&world.state), "elect");
    world.revive("pg1");
    world.run_until("open again", World::is_open);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn a_restarted_primary_takes_a_new_term_under_quorum() {
    let mut world = World::steady(Durability::Quorum);
    world.server("pg1").life = Life::Dead;
    world.revive("pg1");
    world.run_until("open again", |w| w.is_open() && w.state.term > Term(1));
    assert_eq!((world.primary(), world.rules[0]), (Some("pg1"), RuleId::S2));
}

#[test]
fn a_primary_that_comes_back_with_less_is_not_opened() {
    let cases = [(Durability::Quorum, false), (Durability::Quorum, true), (Durability::Async, true)];
    for (durability, restart) in cases {
        let mut world = World::unattended(durability);
        world.kill("pg1");
        let server = world.server("pg1");
        server.flush = Lsn(server.flush.0 - 0x500);
        world.revive("pg1");
        if restart {
            world.restart();
        }
        world.run(300);
        assert!(!world.is_open());
        assert!(
            matches!(world.state.phase, Phase::Establishing { step: EstablishStep::Confirm, .. }),
            "{:?}",
            world.state.phase
        );
    }
}

/// Whatever happens at whatever step of an election: the cluster ends open, whole, and with every promise kept
/// (the world looks at them after every decision).
#[test]
fn every_disturbance_at_every_step() {
    let steps = ["fence", "elect", "catch_up", "prepare", "promote", "verify", "follow", "marker"];
    type Disturbance = (&'static str, fn(&mut World));
    let disturbances: [Disturbance; 7] = [
        ("restart", World::restart),
        ("old primary back", |w| w.revive("pg1")),
        ("candidate dies", |w| w.kill("pg2")),
        ("candidate freezes", |w| w.server("pg2").life = Life::Frozen),
        ("all die", |w| ["pg2", "pg3"].into_iter().for_each(|n| w.kill(n))),
        ("an action fails", |w| w.fail_next = true),
        ("candidate dies, restart", |w| {
            w.kill("pg2");
            w.restart();
        }),
    ];
    for durability in [Durability::Quorum, Durability::Async] {
        for at in steps {
            for (what, disturb) in &disturbances {
                let mut world = World::steady(durability);
                world.kill("pg1");
                // Steps that pass within one turn are never seen from outside.
                for _ in 0..100 {
                    if step_name(&world.state) == at {
                        disturb(&mut world);
                        break;
                    }
                    world.step();
                }
                world.run(300);
                world.server("pg2").life = Life::Runs;
                world.run_until(&format!("whole after {what} at {at} ({durability:?})"), |w| {
                    w.is_open() && w.state.deposed.is_empty()
                });
            }
        }
    }
}

/// Random faults, then peace: the promises hold all the time, and in the end writes are open.
#[test]
fn random_faults_and_then_peace() {
    for seed in 1..=200u64 {
        let mut random = Xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let durability = if random.below(2) == 0 { Durability::Quorum } else { Durability::Async };
        let mut world = World::new(durability);
        world.allow_loss(u64::MAX);
        world.run(usize::try_from(random.below(40)).unwrap());
        for _ in 0..60 {
            disturb(&mut world, &mut random);
            world.run(usize::try_from(random.below(60)).unwrap());
        }
        world.blind = false;
        for server in &mut world.servers {
            if server.life == Life::Frozen {
                server.life = Life::Runs;
            }
        }
        world.run_until(&format!("peace with seed {seed}"), |w| w.is_open() && w.state.deposed.is_empty());
    }
}

fn disturb(world: &mut World, random: &mut Xorshift) {
    let node = ["pg1", "pg2", "pg3"][usize::try_from(random.below(3)).unwrap()];
    match random.below(8) {
        0 | 1 => world.kill(node),
        2 => world.server(node).life = Life::Frozen,
        3 | 4 => world.revive(node),
        5 => world.restart(),
        6 => world.fail_next = true,
        _ => world.blind = !world.blind,
    }
}

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn a_step_after_promotion_names_no_candidate() {
    assert_eq!(Step::Follow.candidate(), None);
    assert_eq!(Step::CatchUp { candidate: name("pg2") }.candidate(), Some(&name("pg2")));
}

/// A state file that came from a backup: the relay knows better.
#[test]
fn a_relay_that_has_promised_a_later_term_is_obeyed() {
    for durability in [Durability::Quorum, Durability::Async] {
        let mut world = World::steady(durability);
        world.wal.promised = Term(7);
        world.restart();
        world.run_until("open above it", |w| w.is_open() && w.state.term == Term(8));
        assert_eq!(world.primary(), Some("pg1"));
    }
    let mut world = World::steady(Durability::Quorum);
    world.wal.promised = Term(7);
    world.server("pg1").life = Life::Dead;
    world.revive("pg1");
    world.run_until("open above it", |w| w.is_open() && w.state.term == Term(8));
    assert_eq!((world.primary(), world.rules[0]), (Some("pg1"), RuleId::S2));
}

#[test]
fn what_nobody_was_told_of_is_not_lost() {
    for (durability, lost, unacknowledged) in [(Durability::Quorum, 0, 0x40), (Durability::Async, 0x40, 0)] {
        let mut world = World::steady(durability);
        world.allow_loss(0x40);
        world.kill("pg1");
        world.wal.upstream_end = world.wal.upstream_end.advanced(0x40);
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
        let election = world.history.last().unwrap();
        assert_eq!((election.lost_bytes, election.unacknowledged_bytes), (lost, unacknowledged));
    }
}

#[test]
fn a_standby_beyond_the_fork_is_rebuilt() {
    for agent in [Agent::Local, Agent::None] {
        let mut world = World::steady_with(Durability::Quorum, agent);
        // As if it had been rewound to pg1 a moment ago: it has what the relay has not.
        let server = world.server("pg3");
        server.flush = server.flush.advanced(0x200);
        world.kill("pg1");
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
        world.run_until("known", |w| w.state.stranded == [name("pg3")]);
        assert!(world.rules.contains(&RuleId::S4));
        world.restart();
        if agent == Agent::None {
            world.run(100);
            assert_eq!(world.state.stranded, [name("pg3")], "a person has to do it");
        } else {
            world.run_until("whole again", |w| w.state.stranded.is_empty() && w.state.deposed.is_empty());
        }
    }
}

#[test]
fn a_standby_that_lacks_what_nobody_keeps_is_rebuilt() {
    for agent in [Agent::Local, Agent::None] {
        let mut world = starved(agent);
        world.run(250);
        assert!(world.state.stranded.is_empty(), "it may find it elsewhere");
        world.run_until("known", |w| w.state.stranded == [name("pg3")]);
        assert_eq!(world.rules, [RuleId::S5]);
        world.restart();
        if agent == Agent::None {
            world.run(100);
            assert_eq!(world.state.stranded, [name("pg3")], "a person has to do it");
        } else {
            world.run_until("whole again", |w| w.state.stranded.is_empty());
            world.run(400);
            assert!(world.state.stranded.is_empty(), "once");
        }
    }
    let mut world = starved(Agent::Local);
    world.wal.archive = Some(ArchiveStatus { archived: Lsn(0), trouble: None, unknown_backups: Vec::new() });
    world.run(600);
    assert!(world.state.stranded.is_empty(), "its restore_command may find it");
}

/// (1) Its slot is lost where it does not stream from; (2) long after, the relay's process starts anew that it does.
#[test]
fn a_standby_that_streamed_a_moment_ago_may_find_it_elsewhere() {
    let mut world = World::steady_with(Durability::Quorum, Agent::Local);
    world.lose_slot("pg3", Lsn(0x1000));
    world.run(600);
    world.server("pg3").life = Life::Frozen;
    world.run(3);
    world.wal.oldest = world.wal.durable;
    world.server("pg3").life = Life::Runs;
    world.run(250);
    assert!(world.state.stranded.is_empty(), "{:?}", world.rules);
    world.run_until("known", |w| w.state.stranded == [name("pg3")]);
}

#[test]
fn what_a_standby_has_received_it_need_not_ask_for() {
    let mut world = starved(Agent::Local);
    let oldest = world.wal.oldest;
    let standby = world.server("pg3");
    standby.paused_at = Some(standby.flush);
    standby.flush = oldest;
    world.run(600);
    assert_eq!((&world.rules[..], &world.state.stranded[..]), (&[][..], &[][..]));
    let standby = world.server("pg3");
    standby.flush = Lsn(oldest.0 - 1);
    world.run_until("known", |w| w.rules == [RuleId::S5]);
}

#[test]
fn a_standby_that_lacks_what_nobody_keeps_is_no_candidate() {
    let mut world = starved(Agent::None);
    world.kill("pg1");
    world.kill("pg2");
    world.run(600);
    assert!(!world.is_open() && !world.rules.contains(&RuleId::E3), "{:?}", world.rules);
    world.revive("pg2");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
}

/// pg3 was away for too long.
fn starved(agent: Agent) -> World {
    let mut world = World::steady_with(Durability::Quorum, agent);
    world.server("pg3").life = Life::Frozen;
    world.run(50);
    world.lose_slot("pg3", world.wal.durable);
    world.server("pg3").life = Life::Runs;
    world.rules.clear();
    world
}

#[test]
fn a_server_that_is_not_there_is_made() {
    let mut world = World::steady(Durability::Quorum);
    world.server("pg3").life = Life::Unmade;
    world.run(5);
    world.run_until("made", |w| {
        w.wal.follower(&"pg3".parse().expect("a name")).is_some_and(Follower::streams)
    });
    assert_eq!(world.copies, 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn who_takes_up_an_election_looks_for_itself_before_it_asks_for_a_person() {
    let mut world = World::unattended(Durability::Quorum);
    world.unpreparable = vec!["pg2", "pg3"];
    world.kill("pg1");
    world.run(600);
    assert_eq!(world.alarms.len(), 1, "{:?}", world.alarms);
    world.unpreparable.clear();
    world.restart();
    world.run_until("open again", World::is_open);
    assert_eq!(world.alarms.len(), 1, "{:?}", world.alarms);
}

#[test]
fn what_replaces_a_servers_files_is_tried_ever_more_seldom_and_told() {
    let mut world = World::steady(Durability::Quorum);
    world.unrejoinable = vec!["pg1"];
    world.kill("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() != Some("pg1"));
    world.run(60);
    assert!(world.alarms.is_empty(), "it may pass: {:?}", world.alarms);
    world.run(36_000);
    assert!((8..20).contains(&world.copies), "{} times in an hour", world.copies);
    assert_eq!(world.alarms.len(), 1, "{:?}", world.alarms);
    assert!(world.alarms[0].starts_with("pg1 does not follow after "), "{:?}", world.alarms);
    world.unrejoinable.clear();
    world.restart();
    world.run_until("it follows", |w| w.state.deposed.is_empty());
    world.run(100);
    assert_eq!(world.alarms.len(), 1, "{:?}", world.alarms);
}

#[test]
fn forks_are_found_by_timeline() {
    let fork = |timeline, at| super::Fork { timeline: TimelineId(timeline), at: Lsn(at) };
    let primary = Primary {
        node: name("pg1"),
        system: SYSTEM,
        timeline: TimelineId(5),
        term: Term(9),
        forks: vec![fork(2, 0x200), fork(4, 0x400)],
        started_at: None,
    };
    let check = |timeline, expected: Option<u64>| {
        assert_eq!(primary.fork_of(TimelineId(timeline)), expected.map(Lsn), "{timeline}");
    };
    check(1, Some(0x200));
    check(2, Some(0x200));
    check(3, Some(0x400));
    check(4, Some(0x400));
    check(5, None);
    check(6, None);
    assert_eq!(primary.forks_of_successor(Some(Lsn(0x500))).last(), Some(&fork(5, 0x500)));
}

#[test]
fn a_state_file_of_before_still_opens() {
    let state = World::steady(Durability::Quorum).state;
    let mut old = serde_json::to_value(&state).unwrap();
    old.as_object_mut().unwrap().remove("stranded").unwrap();
    old["primary"].as_object_mut().unwrap().remove("forks").unwrap();
    assert_eq!(serde_json::from_value::<State>(old).unwrap(), state);
}

#[test]
fn nobody_is_promoted_under_a_session() {
    let mut world = World::steady(Durability::Quorum);
    world.clinging = vec!["pg2"];
    world.kill("pg1");
    world.run_until("prepared", |w| step_name(&w.state) == "prepare");
    world.run(50);
    assert_eq!(step_name(&world.state), "prepare");
    assert_eq!(world.state.directive().candidate, Some(Candidate { node: name("pg2"), round: 1 }));
    world.clinging.clear();
    world.run_until("followed", |w| step_name(&w.state) == "follow" || w.is_open());
    world.run_until("open again", World::is_open);
    assert_eq!((world.primary(), world.state.directive().candidate), (Some("pg2"), None));
}

#[test]
fn a_candidate_that_is_never_cleared_is_passed_over() {
    for to in [None, Some(name("pg2"))] {
        let mut world = World::steady(Durability::Quorum);
        world.clinging = vec!["pg2"];
        match &to {
            Some(_) => world.order_failover(to),
            None => world.kill("pg1"),
        }
        world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg3"));
        assert!(world.rules.contains(&RuleId::E12), "{:?}", world.rules);
        assert_eq!(world.server("pg2").role, crate::topology::Role::Standby);
    }
}

#[test]
fn a_proxy_that_clears_nobody_holds_the_election_and_is_named() {
    let mut world = World::unattended(Durability::Quorum);
    world.clinging = vec!["pg2", "pg3"];
    world.kill("pg1");
    world.run_until("a person is asked", |w| !w.alarms.is_empty());
    let said = world.alarms.last().unwrap();
    assert!(said.contains("pg3") && said.contains("proxy of bw"), "{said}");
    world.run(3000);
    assert!(!world.is_open());
    assert!(world.servers.iter().all(|s| s.timeline == TimelineId(1)), "nobody was promoted");

    let mut restored = World::unattended(Durability::Quorum);
    restored.clinging = vec!["pg2", "pg3"];
    restored.kill("pg1");
    restored.run_until("a person is asked", |w| !w.alarms.is_empty());
    restored.revive("pg1");
    restored.run_until("open again", World::is_open);
    assert_eq!(restored.primary(), Some("pg1"));

    world.clinging.clear();
    world.run_until("open again", World::is_open);
    assert_eq!(world.alarms.len(), 1, "told once: {:?}", world.alarms);
    assert!(world.history.last().unwrap().phases.len() < 100);

    let mut started = World::steady(Durability::Quorum);
    started.clinging = vec!["pg2", "pg3"];
    started.kill("pg1");
    started.run_until("the agent has started the old primary", |w| w.is_open() && w.primary() == Some("pg1"));
}

/// There is nobody else: it stays prepared, and is prepared again and again.
#[test]
fn the_only_candidate_is_waited_for_in_one_breath() {
    let mut world = World::unattended(Durability::Quorum);
    world.kill("pg3");
    world.clinging = vec!["pg2"];
    world.kill("pg1");
    world.run_until("a person is asked", |w| !w.alarms.is_empty());
    world.run(600);
    assert_eq!((step_name(&world.state), world.alarms.len()), ("prepare", 1), "{:?}", world.alarms);
    world.clinging.clear();
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
}

#[test]
fn a_candidate_that_is_cleared_later_is_returned_to() {
    let mut world = World::unattended(Durability::Quorum);
    world.clinging = vec!["pg2", "pg3"];
    world.kill("pg1");
    world.run_until("the second is tried", |w| candidate(&w.state) == Some("pg3"));
    world.clinging = vec!["pg3"];
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
}

#[test]
fn what_a_candidate_failed_at_once_is_tried_again() {
    // For a time, and for ever.
    for (passing, lasting) in [(vec!["pg2", "pg3"], vec![]), (vec!["pg2", "pg3"], vec!["pg2"])] {
        let mut world = World::unattended(Durability::Quorum);
        world.unpreparable = passing;
        world.kill("pg1");
        world.run(200);
        assert!(!world.is_open() && world.alarms.len() == 1, "{:?}", world.alarms);
        world.unpreparable = lasting.clone();
        world.run_until("open again", World::is_open);
        assert!(world.primary().is_some_and(|primary| primary != "pg1" && !lasting.contains(&primary)));
    }
    // The old primary is better than who failed.
    let mut world = World::unattended(Durability::Quorum);
    world.unpreparable = vec!["pg2", "pg3"];
    world.kill("pg1");
    world.run(200);
    world.revive("pg1");
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg1"));
}

/// (1) The proxy clears pg2, which fails, then pg3 has its turn, and sessions may use pg2; (2) the proxy hangs, and
/// what it said last is of pg2; (3) pg2 has its turn again.
#[test]
fn a_word_of_an_earlier_turn_clears_nobody() {
    let mut world = World::unattended(Durability::Quorum);
    world.unpreparable = vec!["pg2", "pg3"];
    world.kill("pg1");
    world.run_until("its turn", |w| candidate(&w.state) == Some("pg2"));
    world.run_until("cleared", |w| w.proxy.cleared.is_some());
    world.stuck = true;
    world.run_until("another's turn", |w| candidate(&w.state) == Some("pg3"));
    world.unpreparable = vec!["pg3"];
    world.run_until("its turn again", |w| candidate(&w.state) == Some("pg2"));
    world.run(80);
    assert!(world.servers.iter().all(|s| s.timeline == TimelineId(1)), "nobody was promoted");
    world.stuck = false;
    world.run_until("open again", |w| w.is_open() && w.primary() == Some("pg2"));
}

fn candidate(state: &State) -> Option<&str> {
    let Phase::Election(election) = &state.phase else { return None };
    election.step.candidate().map(NodeName::as_str)
}

#[test]
fn a_primary_that_cannot_be_opened_is_told_of() {
    let mut world = World::unattended(Durability::Quorum);
    world.unheard = vec!["pg2"];
    world.kill("pg1");
    world.run_until("a person is asked", |w| !w.alarms.is_empty());
    assert!(world.alarms[0].contains("the relay does not stream from it"), "{:?}", world.alarms);
    world.restart();
    world.run(600);
    assert_eq!((world.is_open(), world.alarms.len()), (false, 2), "{:?}", world.alarms);
    world.unheard.clear();
    world.run_until("open", |w| w.is_open() && w.primary() == Some("pg2"));

    world.unheard = vec!["pg2"];
    world.wal.upstream = crate::topology::Upstream::Idle;
    world.restart();
    world.run_until("a person is asked again", |w| w.alarms.len() == 3);
    assert!(world.alarms[2].contains("pg2 is not opened"), "{:?}", world.alarms);
}

#[test]
fn who_does_not_confirm_a_term_is_named() {
    let mut world = World::steady(Durability::Quorum);
    world.deaf = true;
    world.kill("pg1");
    world.run_until("a person is asked", |w| !w.alarms.is_empty());
    let said = world.alarms.last().unwrap();
    assert!(said.contains("the proxy of bw") && !said.contains("relay"), "{said}");
    world.deaf = false;
    world.run_until("open again", World::is_open);
}
