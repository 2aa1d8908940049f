//! Who gets a statement, as a table: a small cluster, one change to it, and the answer.

use std::time::{Duration, Instant};

use super::{
    Access, Balance, Choice, Consistency, Directive, Durability, Follower, FollowerState, Health, Hearing,
    Lag, Lsn, MaxLag, NodeHealth, NodeName, NodeState, OwnWrite, Policy, Quorum, Request, Role, Route,
    Transaction, Upstream, View, WalStatus, WriteReason,
};
use crate::pg::TimelineId;
use crate::topology::{Acknowledgers, Term, Told, Writes};

struct World {
    now: Instant,
    /// When the view was made before, from what the relay told then.
    seen_before: Option<(Instant, WalStatus)>,
    directive: Directive,
    health: Health,
    wal: WalStatus,
    quorum: Quorum,
    policy: Policy,
    /// Statements in flight at pg2 and pg3.
    outstanding: [usize; 2],
    rotation: usize,
}

const SECOND: Duration = Duration::from_secs(1);

/// pg1 is the primary at 0/1000; pg2 and pg3 have replayed everything.
fn world() -> World {
    #[expect(clippy::disallowed_methods, reason = "an origin for the test's own clock")]
    let now = Instant::now() + 3600 * SECOND;
    let name = |name: &str| name.parse::<NodeName>().expect("a node name");
    let node = |node, role| NodeHealth {
        name: name(node),
        address: "127.0.0.1:5432".parse().expect("an address"),
        state: NodeState::Up,
        role: Some(role),
        timeline: Some(TimelineId(1)),
        system: None,
        position: Lsn(0x1000),
        server_version: None,
        seen_at: Some(now),
    };
    let follower = |node: &str| Follower {
        application_name: node.to_owned(),
        pid: 1,
        timeline: TimelineId(1),
        state: FollowerState::Streaming,
        sent: Lsn(0x1000),
        write: Lsn(0x1000),
        flush: Lsn(0x1000),
        replay: Lsn(0x1000),
        lag: Lag::default(),
        reported_at: now,
        hearing: Hearing::ByStream,
    };
    World {
        now,
        seen_before: None,
        directive: Directive {
            term: Term(1),
            primary: Some(name("pg1")),
            writes: Writes::Open,
            upstream: Some(name("pg1")),
            ..Directive::starting(Durability::Async)
        },
        health: Health {
            nodes: vec![node("pg1", Role::Primary), node("pg2", Role::Standby), node("pg3", Role::Standby)],
            diagnosis: None,
        },
        wal: WalStatus {
            timeline: TimelineId(1),
            durable: Lsn(0x1000),
            upstream_end: Lsn(0x1000),
            upstream: Upstream::Streaming { node: name("pg1"), since: now, last_message: now },
            followers: vec![follower("pg2"), follower("pg3")],
            ..WalStatus::starting()
        },
        quorum: Quorum::Acknowledges,
        policy: Policy::default(),
        outstanding: [0, 0],
        rotation: 0,
    }
}

impl World {
    fn both_followers(&mut self, change: impl Fn(&mut Follower)) {
        self.wal.followers.iter_mut().for_each(change);
    }

    fn hold(&mut self) {
        self.directive.writes = Writes::Held { reason: "switchover".to_owned() };
    }

    fn lose_upstream(&mut self, since: Duration) {
        self.wal.upstream = Upstream::Idle;
        self.seen_before = Some((self.now - since, self.wal.clone()));
    }

    fn choose(&self, request: &Request<'_>) -> Choice {
        let view = |now, previous: Option<&View>, directive: &Directive, wal: &WalStatus| {
            let view = View::new(now, previous, directive, &self.health, wal, self.policy);
            view.with_quorum(self.quorum)
        };
        let before = self.seen_before.as_ref().map(|(at, wal)| view(*at, None, &self.directive, wal));
        view(self.now, before.as_ref(), &self.directive, &self.wal).choose(
            request,
            self.now,
            self.rotation,
            |node| match node.as_str() {
                "pg2" => self.outstanding[0],
                "pg3" => self.outstanding[1],
                other => panic!("nobody asks for the load of {other}"),
            },
        )
    }
}

fn request(access: &Access) -> Request<'_> {
    Request {
        access,
        transaction: Transaction::Autocommit,
        route: Route::Auto,
        consistency: Consistency::Session,
        own_write: OwnWrite::None,
        min_lsn: None,
        max_lag: MaxLag::default(),
    }
}

fn check(access: &Access, expected: &str, change: impl Fn(&mut World, &mut Request<'_>)) {
    let (mut world, mut request) = (world(), request(access));
    change(&mut world, &mut request);
    let told = match world.choose(&request) {
        Choice::Node { node, role: Role::Primary, reason } => format!("primary {node}: {reason}"),
        Choice::Node { node, role: Role::Standby, reason } => format!("standby {node}: {reason}"),
        Choice::Wait { reason } => format!("wait: {reason}"),
        Choice::Unavailable { reason } => format!("unavailable: {reason}"),
        Choice::ReadOnly { reason } => format!("read only: {reason}"),
    };
    assert_eq!(told, expected);
}

const READ: Access = Access::Read;
const DML: Access = Access::Write { reason: WriteReason::Dml };

#[test]
fn without_the_quorum_the_primary_is_there_for_reads() {
    let lost = |w: &mut World| w.quorum = Quorum::Lost;
    check(&DML, "wait: quorum_lost", |w, _| lost(w));
    check(&READ, "standby pg2: read", |w, _| lost(w));
    check(&READ, "primary pg1: asked", |w, r| {
        lost(w);
        r.route = Route::Primary;
    });
    check(&READ, "wait: quorum_lost", |w, r| {
        lost(w);
        (r.route, r.transaction) = (Route::Primary, Transaction::ReadWrite);
    });
    check(&READ, "primary pg1: own_write", |w, r| {
        lost(w);
        r.own_write = OwnWrite::Unknown;
    });
    check(&DML, "wait: held", |w, _| {
        lost(w);
        w.hold();
    });
}

#[test]
fn by_access_and_transaction() {
    check(&READ, "standby pg2: read", |_, _| {});
    check(&DML, "primary pg1: dml", |_, _| {});
    check(&READ, "primary pg1: transaction", |_, r| r.transaction = Transaction::ReadWrite);
    check(&READ, "standby pg2: read", |_, r| r.transaction = Transaction::ReadOnly);
    check(&READ, "primary pg1: serializable", |_, r| r.transaction = Transaction::Serializable);
    check(&DML, "primary pg1: dml", |_, r| r.transaction = Transaction::ReadWrite);
}

#[test]
fn by_what_was_asked_for() {
    let function = Access::Write { reason: WriteReason::Function("f".into()) };
    check(&READ, "primary pg1: asked", |_, r| r.route = Route::Primary);
    check(&DML, "primary pg1: asked", |_, r| r.route = Route::Primary);
    check(&READ, "standby pg2: asked", |_, r| r.route = Route::Standby);
    check(&DML, "read only: dml", |_, r| r.route = Route::Standby);
    check(&function, "standby pg2: asked", |_, r| r.route = Route::Standby);
    check(&READ, "read only: serializable", |_, r| {
        (r.route, r.transaction) = (Route::Standby, Transaction::Serializable);
    });
    check(&READ, "standby pg2: asked", |_, r| {
        (r.route, r.transaction) = (Route::Standby, Transaction::ReadWrite);
    });
    check(&READ, "unavailable: no_standby", |w, r| {
        r.route = Route::Standby;
        w.health.nodes.truncate(1);
    });
}

#[test]
fn while_writes_are_held() {
    check(&DML, "wait: held", |w, _| w.hold());
    check(&DML, "wait: no_primary", |w, _| {
        w.hold();
        w.directive.primary = None;
    });
    check(&READ, "wait: held", |w, r| {
        w.hold();
        r.route = Route::Primary;
    });
    // Nothing new is committed, so that a standby is as fresh as anything can be.
    check(&READ, "standby pg2: read", |w, _| {
        w.hold();
        w.lose_upstream(600 * SECOND);
    });
    check(&READ, "wait: held", |w, r| {
        w.hold();
        r.own_write = OwnWrite::At(Lsn(0x1001));
    });
    // Unless another instance may have gone on unheard.
    let unsure = |since: Duration| {
        move |w: &mut World, _: &mut Request<'_>| {
            w.directive = Directive { unsure_since: Some(w.now - since), ..w.directive.unvouched() };
        }
    };
    check(&READ, "standby pg2: read", unsure(SECOND / 2));
    check(&READ, "wait: no_primary", unsure(SECOND));
    check(&READ, "unavailable: blind", |w, r| {
        unsure(600 * SECOND)(w, r);
        r.route = Route::Standby;
    });
    // A relay of several that has not heard the primary for as long as another one lacks what that has heard.
    let hears = |told: Option<Duration>, last: Option<Duration>, unsure_for: Option<Duration>| {
        move |w: &mut World, _: &mut Request<'_>| {
            let unsure_since = unsure_for.map(|age| w.now - age);
            let durability = Durability::Quorum;
            w.directive = Directive { unsure_since, durability, ..w.directive.unvouched() };
            w.wal.told = last.map(|age| Told { term: Term(1), at: w.now - age });
            let hearing = told.map_or(Hearing::Never, |age| Hearing::At(w.now - age));
            w.both_followers(|f| f.hearing = hearing);
        }
    };
    let (served, waits, long) = ("standby pg2: read", "wait: no_primary", 600 * SECOND);
    let quarter = SECOND / 4;
    for (unsure, so_far) in [(None, Duration::ZERO), (Some(quarter), quarter)] {
        check(&READ, served, hears(Some(long), Some(long), unsure));
        check(&READ, served, hears(Some(long), Some(long - SECOND / 2), unsure));
        check(&READ, waits, hears(Some(long), Some(long - (SECOND - so_far)), unsure));
        check(&READ, waits, hears(None, Some(long), unsure));
        check(&READ, served, hears(None, None, unsure));
    }
    check(&READ, waits, hears(Some(SECOND), Some(SECOND), Some(SECOND)));
    // Commits without a quorum are where nobody has heard of them.
    check(&READ, waits, |w, r| {
        hears(Some(SECOND), Some(SECOND), Some(quarter))(w, r);
        w.directive.durability = Durability::Async;
    });
    // The old primary is no standby yet.
    check(&READ, "wait: no_primary", |w, _| {
        w.hold();
        w.directive.primary = None;
        w.wal.followers.clear();
    });
}

#[test]
fn by_the_state_of_the_standbys() {
    check(&READ, "primary pg1: no_standby", |w, _| w.health.nodes.truncate(1));
    check(&READ, "standby pg3: read", |w, _| w.health.nodes[1].state = NodeState::Unknown);
    for (state, reason) in [
        (NodeState::Unknown, "standby_unknown"),
        (NodeState::Down { since: world().now, why: "refused".to_owned() }, "standby_down"),
        (NodeState::Quarantined { why: "diverged".to_owned() }, "standby_quarantined"),
    ] {
        check(&READ, &format!("primary pg1: {reason}"), |w, _| {
            w.health.nodes[1..].iter_mut().for_each(|node| node.state = state.clone());
        });
    }
    check(&READ, "primary pg1: not_a_standby", |w, _| {
        w.health.nodes[1..].iter_mut().for_each(|node| node.role = Some(Role::Primary));
    });
    check(&READ, "primary pg1: standby_not_streaming", |w, _| w.wal.followers.clear());
    check(&READ, "primary pg1: standby_not_streaming", |w, _| w.wal.upstream_end = Lsn::INVALID);
    check(&READ, "primary pg1: standby_not_streaming", |w, _| {
        w.both_followers(|f| f.state = FollowerState::Startup);
    });
    check(&READ, "standby pg2: read", |w, _| w.both_followers(|f| f.state = FollowerState::Catchup));
    check(&READ, "primary pg1: other_timeline", |w, _| w.wal.timeline = TimelineId(2));
    let pg2 = || "pg2".parse::<NodeName>().expect("a node name");
    check(&READ, "standby pg3: read", |w, _| w.directive.maintenance = vec![pg2()]);
    check(&READ, "unavailable: standby_in_maintenance", |w, r| {
        w.directive.maintenance = vec![pg2()];
        w.health.nodes.truncate(2);
        r.route = Route::Standby;
    });
    // The primary of the directive gets no reads as a standby, whatever it was when it was probed last.
    check(&READ, "standby pg3: read", |w, _| {
        w.directive.primary = w.health.nodes.get(1).map(|node| node.name.clone());
        w.hold();
    });
}

#[test]
fn by_lag() {
    let bytes =
        |bytes: u64| move |w: &mut World, _: &mut Request<'_>| w.both_followers(|f| f.lag.bytes = bytes);
    let time = |time: Duration| {
        move |w: &mut World, _: &mut Request<'_>| {
            w.both_followers(|f| f.lag = Lag { bytes: 1, time });
        }
    };
    check(&READ, "standby pg2: read", bytes(16 << 20));
    check(&READ, "primary pg1: lag", bytes((16 << 20) + 1));
    check(&READ, "standby pg2: read", time(SECOND));
    check(&READ, "primary pg1: lag", time(SECOND + Duration::from_millis(1)));
    check(&READ, "standby pg3: read", |w, _| w.wal.followers[0].lag.bytes = 1 << 30);
    // The client's own bounds, looser and tighter.
    check(&READ, "standby pg2: read", |w, r| {
        bytes(1 << 30)(w, r);
        r.max_lag.bytes = Some(1 << 30);
    });
    check(&READ, "primary pg1: lag", |w, r| {
        time(SECOND / 2)(w, r);
        r.max_lag.time = Some(SECOND / 4);
    });
    check(&READ, "unavailable: lag", |w, r| {
        bytes(1 << 30)(w, r);
        r.route = Route::Standby;
    });
}

#[test]
fn by_silence() {
    let silent = |silence: Duration, bytes: u64| {
        move |w: &mut World, _: &mut Request<'_>| {
            let reported_at = w.now - silence;
            w.both_followers(|f| (f.reported_at, f.lag.bytes) = (reported_at, bytes));
        }
    };
    check(&READ, "standby pg2: read", silent(15 * SECOND, 0));
    check(&READ, "primary pg1: standby_silent", silent(16 * SECOND, 0));
    // One with something to replay does not keep silent.
    check(&READ, "standby pg2: read", silent(SECOND, 1));
    check(&READ, "primary pg1: standby_silent", silent(2 * SECOND, 1));
    // Without the primary's stream nobody knows how far behind a standby is.
    check(&READ, "standby pg2: read", |w, _| w.lose_upstream(SECOND / 2));
    check(&READ, "primary pg1: blind", |w, _| w.lose_upstream(SECOND));
    check(&READ, "primary pg1: blind", |w, _| {
        w.lose_upstream(SECOND);
        w.wal.upstream = Upstream::Connecting {
            node: "pg1".parse().expect("a node name"),
            since: w.now,
            last_error: None,
        };
    });
    check(&READ, "primary pg1: blind", |w, _| {
        w.lose_upstream(SECOND);
        w.wal.upstream = Upstream::Streaming {
            node: "pg2".parse().expect("a node name"),
            since: w.now,
            last_message: w.now,
        };
    });
}

/// The primary may have committed what its stream has not told; under quorum durability only what it has.
#[test]
fn by_the_primarys_silence() {
    let silent = |silence: Duration, durability: Durability| {
        move |w: &mut World, _: &mut Request<'_>| {
            w.directive.durability = durability;
            let last_message = w.now - silence;
            let node = "pg1".parse().expect("a node name");
            w.wal.upstream = Upstream::Streaming { node, since: last_message, last_message };
        }
    };
    let milli = Duration::from_millis(1);
    check(&READ, "standby pg2: read", silent(SECOND - milli, Durability::Async));
    check(&READ, "primary pg1: blind", silent(SECOND, Durability::Async));
    check(&READ, "standby pg2: read", silent(10 * SECOND, Durability::Quorum));
    // Among several instances other relays acknowledge, too.
    let several = |w: &mut World| w.directive.quorums = vec![Acknowledgers { relays: Vec::new(), acks: 2 }];
    check(&READ, "primary pg1: blind", |w, r| {
        several(w);
        silent(SECOND, Durability::Quorum)(w, r);
    });
    check(&READ, "standby pg2: read", |w, r| {
        several(w);
        silent(SECOND - milli, Durability::Quorum)(w, r);
    });
    // And each feeds its own followers.
    let deaf = |w: &mut World, silence: Duration, lag: Duration| {
        w.wal.followers[0].hearing = Hearing::At(w.now - silence);
        w.wal.followers[0].lag.time = lag;
        w.wal.followers[1].hearing = Hearing::At(w.now);
    };
    check(&READ, "standby pg2: read", |w, _| deaf(w, SECOND - milli, Duration::ZERO));
    check(&READ, "standby pg3: read", |w, _| deaf(w, SECOND, Duration::ZERO));
    check(&READ, "standby pg3: read", |w, _| deaf(w, SECOND - milli, milli));
    check(&READ, "standby pg3: read", |w, _| w.wal.followers[0].hearing = Hearing::Never);
    check(&READ, "primary pg1: blind", |w, r| {
        silent(SECOND / 2, Durability::Async)(w, r);
        r.max_lag.time = Some(SECOND / 4);
    });
    check(&READ, "standby pg2: read", |w, r| {
        silent(2 * SECOND, Durability::Async)(w, r);
        r.max_lag.time = Some(3 * SECOND);
    });
    check(&READ, "standby pg2: read", |w, r| {
        silent(10 * SECOND, Durability::Async)(w, r);
        w.hold();
    });
    // Its silence counts on when the stream ends.
    check(&READ, "primary pg1: blind", |w, r| {
        silent(SECOND, Durability::Async)(w, r);
        w.seen_before = Some((w.now, w.wal.clone()));
        w.wal.upstream = Upstream::Idle;
    });
}

#[test]
fn by_consistency() {
    let own_write = |at: u64, consistency| {
        move |_: &mut World, r: &mut Request<'_>| {
            (r.own_write, r.consistency) = (OwnWrite::At(Lsn(at)), consistency);
        }
    };
    check(&READ, "standby pg2: read", own_write(0x1000, Consistency::Session));
    check(&READ, "primary pg1: own_write", own_write(0x1001, Consistency::Session));
    check(&READ, "standby pg2: read", own_write(0x1001, Consistency::Eventual));
    check(&READ, "primary pg1: own_write", |_, r| r.own_write = OwnWrite::Unknown);
    check(&READ, "standby pg2: read", |_, r| {
        (r.own_write, r.consistency) = (OwnWrite::Unknown, Consistency::Eventual);
    });
    // The one that has got there is found.
    check(&READ, "standby pg3: read", |w, r| {
        own_write(0x1001, Consistency::Session)(w, r);
        w.wal.followers[1].replay = Lsn(0x1001);
    });
    // A token is obeyed under every consistency.
    check(&READ, "primary pg1: min_lsn", |_, r| {
        (r.min_lsn, r.consistency) = (Some(Lsn(0x1001)), Consistency::Eventual);
    });
    check(&READ, "standby pg2: read", |_, r| r.min_lsn = Some(Lsn(0x1000)));
    check(&READ, "unavailable: own_write", |_, r| {
        (r.own_write, r.route) = (OwnWrite::Unknown, Route::Standby);
    });
    // Which commits were told is known too late, under quorum durability, too.
    check(&READ, "primary pg1: global", |_, r| r.consistency = Consistency::Global);
    check(&READ, "primary pg1: global", |w, r| {
        w.directive.durability = Durability::Quorum;
        r.consistency = Consistency::Global;
    });
}

#[test]
fn the_reason_is_that_of_the_nearest_standby() {
    check(&READ, "primary pg1: own_write", |w, r| {
        w.health.nodes[1].state = NodeState::Unknown;
        r.own_write = OwnWrite::At(Lsn(0x1001));
    });
    check(&READ, "primary pg1: lag", |w, _| {
        w.wal.followers.truncate(1);
        w.wal.followers[0].lag.bytes = 1 << 30;
    });
}

#[test]
fn balance() {
    check(&READ, "standby pg3: read", |w, _| w.rotation = 1);
    check(&READ, "standby pg2: read", |w, _| w.rotation = usize::MAX - 1);
    check(&READ, "standby pg3: read", |w, _| w.outstanding = [3, 2]);
    check(&READ, "standby pg2: read", |w, _| (w.outstanding, w.rotation) = ([2, 3], 1));
    check(&READ, "standby pg2: read", |w, _| {
        (w.outstanding, w.policy.balance) = ([9, 0], Balance::RoundRobin);
    });
    check(&READ, "standby pg3: read", |w, _| {
        (w.outstanding, w.policy.balance, w.rotation) = ([0, 9], Balance::RoundRobin, 1);
    });
}
