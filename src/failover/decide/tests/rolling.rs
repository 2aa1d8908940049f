//! Restarts of servers: by the book, and what a disturbance at each step leads to.

use super::world::{Life, World};
use super::{name, step_name};
use crate::failover::command::{Command, Servers};
use crate::failover::decide::{Agent, RuleId, State, Stragglers, Turn};
use crate::topology::{Draining, Durability, Outcome, Restart, Term};

const NODES: [&str; 3] = ["pg1", "pg2", "pg3"];

fn order(world: &mut World, servers: Servers, stragglers: Stragglers) -> Result<String, String> {
    world.order(&Command::Restart { servers, stragglers }).map_err(|error| error.to_string())
}

fn all(world: &mut World) {
    order(world, Servers::All, Stragglers::Spared).expect("all is well");
}

fn one(node: &str) -> Servers {
    Servers::One(name(node))
}

fn step(world: &World) -> Option<(String, Turn)> {
    let rolling = world.state.restarts.now.as_ref()?;
    Some((rolling.turn()?.to_string(), rolling.step.clone()))
}

fn last(world: &World) -> &Restart {
    world.state.restarts.past.last().expect("one has ended")
}

fn why_failed(world: &World) -> &str {
    match &last(world).outcome {
        Outcome::Failed { why } => why,
        other => panic!("{other:?}"),
    }
}

fn starts(world: &mut World) -> [String; 3] {
    NODES.map(|node| world.server(node).started_at())
}

/// While nobody else takes a server down, one is down at most.
fn run_to_the_end(world: &mut World) {
    for _ in 0..2000 {
        let down = world.servers.iter().filter(|server| server.life != Life::Runs).count();
        assert!(down <= 1, "{:#?}", world.servers);
        if !world.state.restarts.past.is_empty() && world.state.restarts.now.is_none() {
            return;
        }
        world.step();
    }
    panic!("never over: {:#?}", world.state);
}

fn whole(world: &World) -> bool {
    let all_run = world.servers.iter().all(|server| server.life == Life::Runs);
    world.is_open() && world.state.deposed.is_empty() && all_run && world.state.restarts.now.is_none()
}

#[test]
fn all_are_restarted_one_after_the_other_and_the_primary_at_last() {
    for durability in [Durability::Quorum, Durability::Async] {
        let mut world = World::steady(durability);
        world.servers.iter_mut().for_each(|server| server.installed = "15.2".to_owned());
        let before = starts(&mut world);
        let said = order(&mut world, Servers::All, Stragglers::Spared);
        assert_eq!(said.as_deref(), Ok("the restart of pg2, pg3 and pg1 has begun, one after the other"));
        run_to_the_end(&mut world);
        use RuleId::{R1, R2, R3, R4, R5, R6, R7, R9, W1, W4};
        let own: Vec<RuleId> =
            world.rules.iter().copied().filter(|rule| rule.as_str().starts_with('R')).collect();
        assert_eq!(own, [R1, R2, R3, R4, R5, R2, R3, R4, R5, R6, R7, R5, R9]);
        assert!([W1, W4].iter().all(|rule| world.rules.contains(rule)), "{:?}", world.rules);
        assert_eq!((world.primary(), world.state.term), (Some("pg2"), Term(2)));
        assert!(starts(&mut world).iter().zip(&before).all(|(now, before)| now != before));

        let restart = last(&world).clone();
        assert_eq!(restart.outcome, Outcome::Completed);
        assert!(restart.ended_at_ms.is_some_and(|at| at > restart.started_at_ms));
        let of = |index: usize| {
            let node = &restart.nodes[index];
            let phases: Vec<&str> = node.phases.iter().map(|phase| phase.name.as_str()).collect();
            (node.node.as_str(), phases.join(" "), node.from_version.as_deref(), node.to_version.as_deref())
        };
        let (old, new) = (Some("15.1"), Some("15.2"));
        assert_eq!(of(0), ("pg2", "wait checkpoint drain restart".to_owned(), old, new));
        assert_eq!(of(1), ("pg3", "wait checkpoint drain restart".to_owned(), old, new));
        assert_eq!(of(2), ("pg1", "wait hand_over rejoin".to_owned(), old, new));
        assert_eq!(restart.nodes[0].evidence, ["sessions pinned by temp_table, cut off: 2"]);
        let evidence = &world.history.last().expect("the switchover").evidence;
        assert_eq!(evidence[0], "pg1 is to be restarted");
        assert!(world.alarms.is_empty(), "{:?}", world.alarms);

        // And again, in another term or the same.
        all(&mut world);
        world.state.restarts.past.clear();
        world.run_until("again", |w| w.state.restarts.past.len() == 2);
        assert_eq!((last(&world).outcome.clone(), world.primary()), (Outcome::Completed, Some("pg1")));
    }
}

#[test]
fn a_standby_serves_nobody_from_its_drain_until_it_is_back() {
    let mut world = World::steady(Durability::Quorum);
    order(&mut world, one("pg3"), Stragglers::Spared).expect("all is well");
    let (mut rested, mut drains) = (Vec::new(), Vec::new());
    while world.state.restarts.past.is_empty() {
        let resting = world.state.directive().resting;
        let stopped = world.server("pg3").life != Life::Runs;
        assert!(!stopped || resting == Some(name("pg3")));
        assert!(world.is_open() && world.state.directive().drain.is_none(), "writes go on");
        if let Some((_, step)) = step(&world) {
            assert_eq!(resting.is_some(), matches!(step, Turn::Drain | Turn::Restart), "{step:?}");
        }
        if rested.last() != Some(&resting) {
            rested.push(resting);
            drains.push(world.state.drains);
        }
        world.step();
    }
    assert_eq!((rested, drains), (vec![None, Some(name("pg3"))], vec![0, 1]));
    assert_eq!((last(&world).outcome.clone(), world.primary()), (Outcome::Completed, Some("pg1")));
    assert_eq!(world.state.directive().resting, None);
}

#[test]
fn the_primary_alone_is_restarted_by_a_switchover() {
    let mut world = World::steady(Durability::Quorum);
    let before = starts(&mut world);
    order(&mut world, one("pg1"), Stragglers::Spared).expect("all is well");
    run_to_the_end(&mut world);
    assert_eq!((last(&world).outcome.clone(), world.primary()), (Outcome::Completed, Some("pg2")));
    let restarted: Vec<bool> =
        starts(&mut world).iter().zip(&before).map(|(now, before)| now != before).collect();
    assert_eq!(restarted, [true, false, false]);
}

#[test]
fn what_stands_in_the_way_is_told_and_nothing_is_done() {
    let refused = |disturb: fn(&mut World), servers: Servers, expected: &str| {
        let mut world = World::steady(Durability::Quorum);
        disturb(&mut world);
        let foreseen = world.order(&Command::ForeseeRestart { servers: servers.clone() });
        let said = order(&mut world, servers, Stragglers::Spared).unwrap_err();
        assert!(said.contains(expected), "{said:?} instead of {expected:?}");
        let foreseen = foreseen.unwrap_or_else(|error| error.to_string());
        assert!(foreseen.contains(expected), "{foreseen:?}");
        world.run(30);
        assert!(!world.rules.contains(&RuleId::R1) && !world.rules.contains(&RuleId::R2));
    };
    refused(|_| {}, one("pg9"), "pg9 is not a node of this cluster");
    refused(|w| w.proxy.draining = Draining::Unknown, Servers::All, "the process before this one");
    refused(
        |w| {
            w.order(&Command::Pause).expect("it is steady");
        },
        Servers::All,
        "paused",
    );
    refused(|w| w.order_failover(None), one("pg3"), "under way");
    refused(
        |w| {
            w.server("pg1").life = Life::Frozen;
            w.run(5);
        },
        one("pg3"),
        "not well",
    );
    for (servers, expected) in [
        (one("pg3"), "no other standby could take over meanwhile: pg2: it does not stream"),
        (one("pg2"), "pg2: it does not stream"),
        (Servers::All, "pg2: it does not stream"),
    ] {
        refused(|w| w.wal.followers.retain(|f| f.application_name != "pg2"), servers, expected);
    }
    refused(|w| w.wal.followers.clear(), one("pg1"), "no standby can take over");
    let mut world = World::steady(Durability::Quorum);
    all(&mut world);
    for servers in [Servers::All, one("pg3")] {
        let said = order(&mut world, servers, Stragglers::Spared).unwrap_err();
        assert!(said.contains("under way"), "{said}");
        world.step();
    }
    let switchover = Command::Switchover { to: None, stragglers: Stragglers::Spared };
    let said = world.order(&switchover).expect_err("servers are restarted").to_string();
    assert!(said.contains("servers are restarted"), "{said}");
    let mut world = World::steady_with(Durability::Quorum, Agent::None);
    for servers in [Servers::All, one("pg2")] {
        let said = order(&mut world, servers, Stragglers::Spared).unwrap_err();
        assert!(said.starts_with("pg2 cannot be restarted: no agent runs on the host of pg2"), "{said}");
        assert!(said.contains("pg_ctl"), "{said}");
    }
}

#[test]
fn what_is_foreseen() {
    let mut world = World::steady(Durability::Quorum);
    let said = world.order(&Command::ForeseeRestart { servers: Servers::All }).expect("it is steady");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    assert!(lines[0].starts_with("pg2, 15.1: a standby") && lines[2].starts_with("pg1, 15.1: the primary"));
    assert_eq!(lines[3], "nothing stands in the way");
    world.run(30);
    assert!(world.state.restarts.now.is_none());
}

#[test]
fn open_transactions_at_a_standby_are_spared_unless_they_are_to_be_cut() {
    for stragglers in [Stragglers::Spared, Stragglers::Cut] {
        let mut world = World::steady(Durability::Quorum);
        world.open_transactions = 3;
        order(&mut world, one("pg2"), stragglers).expect("all is well");
        world.run_until("over", |w| !w.state.restarts.past.is_empty());
        if stragglers == Stragglers::Cut {
            assert_eq!(last(&world).outcome, Outcome::Completed);
            assert_eq!(last(&world).nodes[0].evidence[0], "transactions cut off after 5s: 3");
        } else {
            assert_eq!(why_failed(&world), "transactions still open at pg2 after 5s: 3");
            assert_eq!(
                (world.server("pg2").started_at(), world.state.directive().resting),
                ("1".into(), None)
            );
        }
    }
    // Those at the primary end its switchover, and the restart with it.
    let mut world = World::steady(Durability::Quorum);
    world.open_transactions = 1;
    order(&mut world, one("pg1"), Stragglers::Spared).expect("all is well");
    world.run_until("over", |w| !w.state.restarts.past.is_empty());
    let why = why_failed(&world);
    assert_eq!(why, "the switchover did not take place: transactions still open after 5s: 1");
    assert_eq!((world.primary(), world.state.term), (Some("pg1"), Term(1)));
}

#[test]
fn a_proxy_that_says_nothing_is_no_drained_one() {
    let mut world = World::steady(Durability::Quorum);
    world.stuck = true;
    order(&mut world, one("pg2"), Stragglers::Cut).expect("all is well");
    world.run_until("over", |w| !w.state.restarts.past.is_empty());
    assert!(why_failed(&world).starts_with("the proxy did not say within 5s"), "{}", why_failed(&world));
}

#[test]
fn one_that_does_not_come_back_ends_it() {
    let mut world = World::steady(Durability::Quorum);
    world.unstartable = vec!["pg2"];
    all(&mut world);
    world.run_until("over", |w| !w.state.restarts.past.is_empty());
    assert_eq!(why_failed(&world), "pg2 did not come back within 60s: it is down: connection refused");
    assert_eq!(world.server("pg3").started_at(), "1", "it is not touched");
    assert_eq!(world.primary(), Some("pg1"));
    world.unstartable.clear();
    world.run_until("it is started all the same", whole);
}

#[test]
fn an_operator_ends_it_at_any_step() {
    let steps: [fn(&Turn) -> bool; 6] = [
        |step| *step == Turn::Wait,
        |step| *step == Turn::Checkpoint,
        |step| *step == Turn::Drain,
        |step| *step == Turn::Restart,
        |step| matches!(step, Turn::HandOver { .. }),
        |step| *step == Turn::Rejoin,
    ];
    for (index, at) in steps.iter().enumerate() {
        for (command, why) in [
            (Command::CancelRestart, "an operator cancelled it"),
            (Command::Pause, "automatic failover was paused"),
        ] {
            let mut world = World::steady(Durability::Quorum);
            all(&mut world);
            for _ in 0..500 {
                if step(&world).is_some_and(|(_, step)| at(&step)) {
                    break;
                }
                world.step();
            }
            if !step(&world).is_some_and(|(_, step)| at(&step)) {
                // It passes within one turn.
                continue;
            }
            world.order(&command).expect("one is under way");
            world.run_until("over", |w| !w.state.restarts.past.is_empty() && whole(w));
            let back = last(&world).nodes.iter().filter(|node| node.is_back()).count();
            if back == 3 {
                assert_eq!(last(&world).outcome, Outcome::Completed, "nothing was left to be ended");
            } else {
                assert_eq!(why_failed(&world), why, "{index}");
            }
        }
    }
    let mut world = World::steady(Durability::Quorum);
    let error = world.order(&Command::CancelRestart).expect_err("none is under way");
    assert_eq!(error.to_string(), "not now: no restart is under way");
}

#[test]
fn another_process_goes_on_with_it() {
    let mut world = World::steady(Durability::Quorum);
    all(&mut world);
    let mut steps = 0;
    while world.state.restarts.past.is_empty() {
        world.step();
        steps += 1;
        // In every step of it, as long as it makes way.
        if steps % 25 == 0 && steps < 1000 {
            world.restart();
        }
        assert!(steps < 5000, "{:#?}", world.state);
    }
    assert_eq!(last(&world).outcome, Outcome::Completed);
    assert!(starts(&mut world).iter().all(|starts| starts != "1"));
}

/// Whatever happens: it ends, and the cluster ends whole; nothing is taken down beside what is down already.
#[test]
fn every_disturbance_at_every_step() {
    type Disturbance = (&'static str, fn(&mut World));
    let disturbances: [Disturbance; 9] = [
        ("restart", World::restart),
        ("primary dies", |w| w.kill("pg1")),
        ("primary restarts", |w| {
            w.kill("pg1");
            w.revive("pg1");
        }),
        ("pg2 dies", |w| w.kill("pg2")),
        ("pg2 freezes", |w| w.server("pg2").life = Life::Frozen),
        ("pg3 dies", |w| w.kill("pg3")),
        ("an action fails", |w| w.fail_next = true),
        ("an operator's failover", |w| {
            // Else it is not the time for one.
            let _ = w.order(&Command::Failover { to: None });
        }),
        ("primary dies, restart", |w| {
            w.kill("pg1");
            w.restart();
        }),
    ];
    for durability in [Durability::Quorum, Durability::Async] {
        for (what, disturb) in &disturbances {
            for at in (1..90).step_by(3) {
                let mut world = World::steady(durability);
                world.allow_loss(1 << 20);
                all(&mut world);
                world.run(at);
                disturb(&mut world);
                world.run(300);
                for node in NODES {
                    if world.server(node).life == Life::Frozen {
                        world.server(node).life = Life::Runs;
                    }
                }
                let case =
                    format!("whole after {what} at {at} ({durability:?}), {}", step_name(&world.state));
                world.run_until(&case, whole);
                assert!(!last(&world).is_running(), "{case}");
            }
        }
    }
}

#[test]
fn a_failover_ends_it_and_says_so() {
    let mut world = World::steady(Durability::Quorum);
    all(&mut world);
    world.run_until("the first one is down", |w| step(w).is_some_and(|(_, step)| step == Turn::Restart));
    world.kill("pg1");
    world.run_until("over", |w| !w.state.restarts.past.is_empty());
    assert!(why_failed(&world).starts_with("a failover began: primary gone (rule F1)"), "{:?}", last(&world));
    world.run_until("whole", whole);
}

#[test]
fn an_old_state_has_no_restarts() {
    let mut world = World::steady(Durability::Quorum);
    all(&mut world);
    world.run_until("begun", |w| w.state.restarts.now.is_some());
    let mut json = serde_json::to_value(&world.state).expect("JSON");
    assert_eq!(serde_json::from_value::<State>(json.clone()).expect("our own"), world.state);
    json.as_object_mut().expect("an object").remove("restarts");
    assert!(serde_json::from_value::<State>(json).expect("an old one").restarts.now.is_none());
}
