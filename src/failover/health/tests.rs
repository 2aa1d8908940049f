//! Evidence as data, and what it amounts to.
#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]

use std::time::{Duration, Instant};

use super::{Cause, Detect, Facts, PrimaryVerdict, ProbeResult, SlotState, Watch};
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
    let verdict = match watch.verdict(now, &wal, &proxy) {
        PrimaryVerdict::Alive => "alive",
        PrimaryVerdict::Suspect { .. } => "suspect",
        PrimaryVerdict::Unknown => "unknown",
        PrimaryVerdict::Dead { cause: Cause::Gone, .. } => "gone",
        PrimaryVerdict::Dead { cause: Cause::Silent, .. } => "silent",
        PrimaryVerdict::Dead { cause: Cause::Stalled, .. } => "stalled",
        PrimaryVerdict::Dead { cause: Cause::Restarting, .. } => "restarting",
        PrimaryVerdict::Dead { cause: Cause::Demoted, .. } => "demoted",
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
    assert!(matches!(verdict(10), PrimaryVerdict::Dead { cause: Cause::Stalled, .. }));
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
        let dead = matches!(verdict, PrimaryVerdict::Dead { cause: Cause::Silent, .. });
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

fn answer(role: Role) -> ProbeResult {
    ProbeResult::Answered(Facts {
        role,
        system: SystemIdentifier(7),
        timeline: TimelineId(1),
        position: Lsn(1),
        received: Lsn::INVALID,
        started_at: "today".to_owned(),
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
    Node { name, address: "127.0.0.1:5432".parse().unwrap(), priority: 100, no_failover: false }
}
