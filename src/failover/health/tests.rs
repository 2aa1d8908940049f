//! Evidence as data, and what it amounts to.
#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]

use std::time::{Duration, Instant};

use super::{Cause, Detect, Facts, Knock, PrimaryVerdict, ProbeResult, SlotState, Told, Watch, diagnose};
use crate::pg::{Lsn, SqlState, SystemIdentifier, TimelineId};
use crate::topology::{ClientEvidence, Node, NodeName, ProxyStatus, Role, StreamEnd, Upstream, WalStatus};

/// What each side has seen of pg1 for how many seconds; pg2 is the other node.
struct Seen {
    pg1: ProbeResult,
    pg2: ProbeResult,
    seconds: u64,
    stream: Stream,
    clients: Clients,
}

#[derive(Clone, Copy)]
enum Stream {
    Talks,
    Silent,
    Ended,
    Idle,
}

#[derive(Clone, Copy)]
enum Clients {
    Answered,
    Silent,
}

fn check(seen: &Seen, expected: &str) {
    let start = Instant::now();
    let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
    let nodes = [node("pg1"), node("pg2")];
    let (pg1, pg2) = (&nodes[0].name, &nodes[1].name);
    let mut watch = Watch::new(&nodes, Detect::default());
    watch.expect_primary(Some(pg1));
    watch.tick(start);
    watch.observe(start, pg1, answer(Role::Primary));
    watch.observe(start, pg2, answer(Role::Standby));
    for tenths in 1..=seen.seconds * 10 {
        watch.tick(at(tenths));
        watch.observe(at(tenths), pg1, seen.pg1.clone());
        watch.observe(at(tenths), pg2, seen.pg2.clone());
    }
    let now = at(seen.seconds * 10);
    let streaming = |last_message| Upstream::Streaming { node: pg1.clone(), since: start, last_message };
    let how = StreamEnd::Lost { why: "reset".to_owned() };
    let upstream = match seen.stream {
        Stream::Talks => streaming(now),
        Stream::Silent => streaming(start),
        Stream::Ended => Upstream::Ended { node: pg1.clone(), at: now, how },
        Stream::Idle => Upstream::Idle,
    };
    let answered_at = match seen.clients {
        Clients::Answered => Some(now),
        Clients::Silent => Some(start),
    };
    let clients = ClientEvidence { node: pg1.clone(), answered_at, refused_at: None, broken_at: None };
    let wal = WalStatus { upstream, ..WalStatus::starting() };
    let proxy = ProxyStatus { evidence: vec![clients], ..ProxyStatus::default() };
    let verdict = watch.verdict(now, &wal, &proxy);
    let found = watch.symptoms(now, &wal, &proxy, Told::default()).as_ref().and_then(diagnose);
    let is_dead = matches!(verdict, PrimaryVerdict::Dead { .. });
    assert!(!is_dead || found.is_some_and(|found| !found.evidence.is_empty()), "{:?} has no name", seen.pg1);
    let verdict = match verdict {
        PrimaryVerdict::Alive => "alive",
        PrimaryVerdict::Suspect { .. } => "suspect",
        PrimaryVerdict::Unknown => "unknown",
        PrimaryVerdict::Dead { cause: Cause::Gone } => "gone",
        PrimaryVerdict::Dead { cause: Cause::Silent } => "silent",
        PrimaryVerdict::Dead { cause: Cause::Stalled } => "stalled",
        PrimaryVerdict::Dead { cause: Cause::Restarting } => "restarting",
        PrimaryVerdict::Dead { cause: Cause::Demoted } => "demoted",
    };
    assert_eq!(verdict, expected, "{:?} for {} s", seen.pg1, seen.seconds);
}

#[test]
fn verdicts() {
    use ProbeResult::{Refused, Timeout};
    let up = || answer(Role::Standby);
    let case = |pg1, seconds, stream, clients| Seen { pg1, pg2: up(), seconds, stream, clients };
    let blind = |seconds, stream| Seen { pg2: Timeout, ..case(Timeout, seconds, stream, Clients::Silent) };
    let quiet = Clients::Silent;

    check(&case(answer(Role::Primary), 60, Stream::Silent, quiet), "alive");
    // Gone: at once with the stream's end, after the timeout without a stream, never while it talks.
    check(&case(Refused, 1, Stream::Ended, quiet), "gone");
    check(&case(Refused, 1, Stream::Idle, quiet), "suspect");
    check(&case(Refused, 4, Stream::Idle, quiet), "gone");
    check(&case(Refused, 60, Stream::Talks, quiet), "suspect");
    // Silent: all sides, for the timeout; one that hears it vouches for it.
    check(&case(Timeout, 1, Stream::Silent, quiet), "suspect");
    check(&case(Timeout, 4, Stream::Silent, quiet), "silent");
    check(&case(Timeout, 4, Stream::Ended, quiet), "silent");
    check(&case(Timeout, 60, Stream::Talks, quiet), "suspect");
    check(&case(Timeout, 60, Stream::Silent, Clients::Answered), "suspect");
    // Blind is not dead.
    check(&blind(60, Stream::Silent), "unknown");
    check(&blind(60, Stream::Ended), "unknown");
    // A server that says no is there.
    check(&case(rejected(SqlState::CANNOT_CONNECT_NOW), 5, Stream::Ended, quiet), "suspect");
    check(&case(rejected(SqlState::CANNOT_CONNECT_NOW), 11, Stream::Ended, quiet), "restarting");
    check(&case(rejected(SqlState::TOO_MANY_CONNECTIONS), 60, Stream::Ended, quiet), "suspect");
    check(&case(rejected(SqlState::INVALID_PASSWORD), 60, Stream::Ended, quiet), "suspect");
    check(&case(answer(Role::Standby), 1, Stream::Ended, quiet), "demoted");
}

#[test]
fn a_hanging_commit_is_a_stall_only_after_its_timeout() {
    let start = Instant::now();
    let nodes = [node("pg1")];
    let mut watch = Watch::new(&nodes, Detect::default());
    watch.expect_primary(Some(&nodes[0].name));
    let ProbeResult::Answered(facts) = answer(Role::Primary) else { panic!("an answer") };
    let stalled = Facts { stalled_since: Some(start), ..facts };
    watch.observe(start, &nodes[0].name, ProbeResult::Answered(stalled));
    let verdict = |after| {
        let now = start + Duration::from_secs(after);
        watch.verdict(now, &WalStatus::starting(), &ProxyStatus::default())
    };
    assert!(matches!(verdict(0), PrimaryVerdict::Alive), "it has just begun");
    assert!(matches!(verdict(1), PrimaryVerdict::Suspect { .. }));
    assert!(matches!(verdict(9), PrimaryVerdict::Suspect { .. }));
    assert!(matches!(verdict(10), PrimaryVerdict::Dead { cause: Cause::Stalled }));
}

/// Load is not death: the longest silence that came to nothing, three times. One that ended with a restart is no habit.
#[test]
fn a_primary_that_was_slow_may_be_silent_for_longer() {
    let restarted = |answer| match answer {
        ProbeResult::Answered(facts) => {
            ProbeResult::Answered(Facts { started_at: "since then".to_owned(), ..facts })
        }
        other => other,
    };
    silent_from_then_on(|answer| answer, 65);
    silent_from_then_on(restarted, 40);
}

/// It answers after 1.5 s, as `then` says, and half a second later, and then not any more; it counts as dead from
/// `dead_at` tenths of a second on.
fn silent_from_then_on(then: fn(ProbeResult) -> ProbeResult, dead_at: u64) {
    let start = Instant::now();
    let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
    let nodes = [node("pg1"), node("pg2")];
    let mut watch = Watch::new(&nodes, Detect::default());
    watch.expect_primary(Some(&nodes[0].name));
    for tenths in 0..=80 {
        watch.tick(at(tenths));
        watch.observe(at(tenths), &nodes[1].name, answer(Role::Standby));
        let pg1 = match tenths {
            0 => answer(Role::Primary),
            15 | 20 => then(answer(Role::Primary)),
            _ => ProbeResult::Timeout,
        };
        watch.observe(at(tenths), &nodes[0].name, pg1);
        let verdict = watch.verdict(at(tenths), &WalStatus::starting(), &ProxyStatus::default());
        let dead = matches!(verdict, PrimaryVerdict::Dead { cause: Cause::Silent });
        assert_eq!(dead, tenths >= dead_at, "{tenths}: {verdict:?}");
    }
}

/// This process was stopped: what it did not hear meanwhile was not said to nobody.
#[test]
fn our_own_standstill_is_no_silence() {
    let start = Instant::now();
    let nodes = [node("pg1"), node("pg2")];
    let mut watch = Watch::new(&nodes, Detect::default());
    watch.expect_primary(Some(&nodes[0].name));
    watch.tick(start);
    watch.observe(start, &nodes[0].name, answer(Role::Primary));
    let now = start + Duration::from_secs(60);
    watch.tick(now);
    watch.observe(now, &nodes[1].name, answer(Role::Standby));
    watch.observe(now, &nodes[0].name, ProbeResult::Timeout);
    let verdict = watch.verdict(now, &WalStatus::starting(), &ProxyStatus::default());
    assert!(matches!(verdict, PrimaryVerdict::Suspect { .. }), "{verdict:?}");
}

/// What pg1 says every half second from its first answer on, as pg2 answers and nobody hears pg1's WAL; the last verdict.
fn check_restart(said: &[(&ProbeResult, usize)], expected: &str) {
    let start = Instant::now();
    let (mut watch, pg1, pg2) = two_nodes(start);
    let said = said.iter().flat_map(|(result, times)| std::iter::repeat_n(*result, *times));
    let mut now = start;
    let mut verdict = PrimaryVerdict::Alive;
    for result in said {
        now += Duration::from_millis(500);
        watch.tick(now);
        watch.observe(now, &pg2, answer(Role::Standby));
        watch.observe(now, &pg1, result.clone());
        verdict = watch.verdict(now, &WalStatus::starting(), &ProxyStatus::default());
    }
    let verdict = match verdict {
        PrimaryVerdict::Alive => "alive",
        PrimaryVerdict::Suspect { .. } => "has a chance",
        PrimaryVerdict::Dead { cause: Cause::Restarting } => "restarting",
        PrimaryVerdict::Dead { cause: Cause::Silent } => "silent",
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict, expected);
}

/// A crash-restarting server has its chance: neither what was before it, nor a probe that comes to nothing in between, cuts
/// it short or makes it longer.
#[test]
fn a_restart_has_a_chance_that_ends() {
    let (well, not_now) = (&answer(Role::Primary), &rejected(SqlState::CANNOT_CONNECT_NOW));
    let (full, mute) = (&rejected(SqlState::TOO_MANY_CONNECTIONS), &ProbeResult::Timeout);
    check_restart(&[(not_now, 20)], "has a chance");
    check_restart(&[(not_now, 21)], "restarting");
    check_restart(&[(full, 60), (not_now, 1)], "has a chance");
    check_restart(&[(not_now, 10), (mute, 1)], "has a chance");
    check_restart(&[(not_now, 10), (mute, 2), (not_now, 9)], "restarting");
    check_restart(&[(not_now, 10), (mute, 5)], "silent");
    // One crash after the other.
    check_restart(&[(not_now, 4), (well, 4), (not_now, 4), (well, 4)], "alive");
    check_restart(&[(not_now, 4), (well, 4), (not_now, 4), (well, 4), (not_now, 1)], "restarting");
    check_restart(&[(not_now, 4), (well, 4), (not_now, 4), (well, 22), (not_now, 1)], "has a chance");
}

/// The name of what ails pg1 `millis` after the start, as pg2 answers all the time.
fn named(watch: &Watch, start: Instant, millis: u64) -> &'static str {
    let now = start + Duration::from_millis(millis);
    let (wal, proxy) = (WalStatus::starting(), ProxyStatus::default());
    let seen = watch.symptoms(now, &wal, &proxy, Told::default());
    seen.as_ref().and_then(diagnose).map_or("nothing", |found| found.ailment.as_str())
}

/// Probes of pg1 and pg2 at the start.
fn two_nodes(start: Instant) -> (Watch, NodeName, NodeName) {
    let nodes = [node("pg1"), node("pg2")];
    let [pg1, pg2] = nodes.clone().map(|node| node.name);
    let mut watch = Watch::new(&nodes, Detect::default());
    watch.expect_primary(Some(&pg1));
    watch.tick(start);
    watch.observe(start, &pg1, answer(Role::Primary));
    watch.observe(start, &pg2, answer(Role::Standby));
    (watch, pg1, pg2)
}

/// The queue of a server that stands still fills up; what was seen of its host before counts until it is heard again.
#[test]
fn who_took_a_connection_is_not_away() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let (mut watch, pg1, pg2) = two_nodes(start);
    watch.knocked(at(100), &pg1, Knock::NoAnswer);
    watch.observe(at(600), &pg1, ProbeResult::Timeout);
    watch.knocked(at(700), &pg1, Knock::Accepted);
    watch.observe(at(1900), &pg2, answer(Role::Standby));
    assert_eq!(named(&watch, start, 1900), "nothing", "it may only hesitate");
    watch.observe(at(2000), &pg1, ProbeResult::Timeout);
    assert_eq!(named(&watch, start, 2000), "server_frozen");
    watch.knocked(at(2100), &pg1, Knock::NoAnswer);
    assert_eq!(named(&watch, start, 2100), "server_frozen");
    watch.knocked(at(2200), &pg1, Knock::Refused);
    assert_eq!(named(&watch, start, 2200), "process_dead");
    // It is heard, and the next silence begins anew.
    watch.observe(at(2300), &pg1, ProbeResult::Refused);
    watch.observe(at(2400), &pg1, ProbeResult::Timeout);
    watch.knocked(at(2500), &pg1, Knock::NoAnswer);
    assert_eq!(named(&watch, start, 2600), "host_gone");
}

#[test]
fn a_late_answer_is_load() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let (mut watch, pg1, _) = two_nodes(start);
    watch.observe(at(1000), &pg1, answer(Role::Primary));
    assert_eq!(named(&watch, start, 1000), "nothing");
    watch.observe(at(2001), &pg1, answer(Role::Primary));
    assert_eq!(named(&watch, start, 2001), "overloaded");
    watch.observe(at(2500), &pg1, answer(Role::Primary));
    assert_eq!(named(&watch, start, 2500), "nothing");
}

/// A server that has died is called by its last words; one that has found space again is well.
#[test]
fn a_disk_that_was_full() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let (mut watch, pg1, _) = two_nodes(start);
    watch.disk_was_full(at(500), &pg1);
    assert_eq!(named(&watch, start, 1000), "disk_full");
    assert_eq!(named(&watch, start, 11_000), "nothing");
    watch.observe(at(11_000), &pg1, ProbeResult::Refused);
    assert_eq!(named(&watch, start, 11_000), "process_dead", "that was long ago");
    watch.observe(at(11_500), &pg1, answer(Role::Primary));
    watch.disk_was_full(at(12_000), &pg1);
    watch.observe(at(12_100), &pg1, ProbeResult::Refused);
    assert_eq!(named(&watch, start, 60_000), "disk_full", "as long as it is dead");
}

fn answer(role: Role) -> ProbeResult {
    ProbeResult::Answered(Facts {
        role,
        system: SystemIdentifier(7),
        timeline: TimelineId(1),
        position: Lsn(1),
        received: Lsn::INVALID,
        started_at: "today".to_owned(),
        server_version: "15.1".to_owned(),
        synchronous_standby_names: String::new(),
        checkpoint_timeline: TimelineId(1),
        relay_slot: SlotState::Absent,
        stalled_since: None,
    })
}

fn rejected(code: SqlState) -> ProbeResult {
    ProbeResult::Rejected { code, message: "no".to_owned() }
}

fn node(name: &str) -> Node {
    let name: NodeName = name.parse().unwrap();
    Node { name, address: "127.0.0.1:5432".parse().unwrap(), priority: 100, zone: None, no_failover: false }
}
