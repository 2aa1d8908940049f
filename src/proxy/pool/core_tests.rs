//! One pool's bookkeeping, call by call.

use std::time::{Duration, Instant};

use super::core::{Checkout, Core, HOT, MAX_PASSED_OVER, Next, Returned};
use crate::proxy::limits::PoolSize;

const SECOND: Duration = Duration::from_secs(1);

type Names = Core<&'static str, &'static str>;

fn pool(size: usize) -> (Names, Instant) {
    let limits = PoolSize {
        size,
        min_size: 0,
        reserve_size: 0,
        reserve_after: 5 * SECOND,
        idle: 10 * SECOND,
        lifetime: 100 * SECOND,
    };
    // The only clock of these tests: everything else is relative to it.
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    let now = Instant::now();
    (Core::new(limits), now)
}

fn with(pool: &mut Names, change: impl FnOnce(&mut PoolSize)) {
    let mut limits = pool.limits();
    change(&mut limits);
    pool.set_limits(limits);
}

fn checkout(pool: &mut Names, worker: usize, now: Instant, who: &'static str) -> Checkout<&'static str> {
    pool.checkout(worker, now, |_| false, || true, || who)
}

fn put_back(
    pool: &mut Names,
    connection: &'static str,
    worker: usize,
    now: Instant,
) -> Next<&'static str, &'static str> {
    let returned = Returned { worker, generation: 0, expires_at: now + 100 * SECOND };
    pool.put_back(connection, returned, now)
}

/// With `count` connections out.
fn dialled(count: usize, size: usize) -> (Names, Instant) {
    let (mut pool, now) = pool(size);
    for _ in 0..count {
        assert_eq!(checkout(&mut pool, 0, now, ""), Checkout::Dial);
    }
    (pool, now)
}

#[test]
fn first_come_first_served() {
    let (mut pool, now) = dialled(1, 1);
    for (ticket, who) in [(1, "b"), (2, "c"), (3, "d")] {
        assert_eq!(checkout(&mut pool, 0, now, who), Checkout::Wait(ticket));
    }
    pool.give_up(2);
    assert_eq!(put_back(&mut pool, "s1", 0, now), Next::Serve("b", "s1"));
    // A connection that breaks leaves its place to the next one.
    assert_eq!(pool.closed(), Next::Dial("d"));
    assert_eq!(put_back(&mut pool, "s2", 0, now), Next::Nobody);
    assert_eq!((pool.idle(), pool.in_use()), (1, 0));
}

#[test]
fn a_worker_gets_its_own_connection_back() {
    let (mut pool, now) = dialled(3, 3);
    for (connection, worker) in [("s0", 0), ("s1", 1), ("s2", 2)] {
        assert_eq!(put_back(&mut pool, connection, worker, now), Next::Nobody);
    }
    assert_eq!(checkout(&mut pool, 0, now, ""), Checkout::Idle("s0"));
    assert_eq!(checkout(&mut pool, 0, now, ""), Checkout::Idle("s1"), "the one unused for longest");
}

#[test]
fn a_connection_that_suits_is_taken_before_a_later_one() {
    let (mut pool, now) = dialled(3, 3);
    for connection in ["s0", "s1", "s2"] {
        assert_eq!(put_back(&mut pool, connection, 0, now), Next::Nobody);
    }
    let suiting = |pool: &mut Names, wanted| pool.checkout(0, now, |c| *c == wanted, || true, || "");
    assert_eq!(suiting(&mut pool, "s1"), Checkout::Idle("s1"));
    assert_eq!(suiting(&mut pool, "s1"), Checkout::Idle("s2"), "none does: the latest");
}

#[test]
fn a_hot_connection_is_left_to_its_worker_while_there_is_room() {
    let (mut pool, now) = dialled(1, 2);
    assert_eq!(put_back(&mut pool, "s0", 0, now), Next::Nobody);
    assert_eq!(pool.checkout(1, now, |_| false, || false, || ""), Checkout::Idle("s0"), "there is no permit");
    assert_eq!(put_back(&mut pool, "s0", 0, now), Next::Nobody);
    assert_eq!(checkout(&mut pool, 1, now, ""), Checkout::Dial);
    assert_eq!(checkout(&mut pool, 1, now, ""), Checkout::Idle("s0"), "there is no room");
    assert_eq!(put_back(&mut pool, "s0", 1, now), Next::Nobody);
    assert_eq!(pool.closed(), Next::Nobody);
    assert_eq!(checkout(&mut pool, 0, now + HOT, ""), Checkout::Idle("s0"), "it has cooled down");
}

#[test]
fn those_of_the_connections_worker_go_first_but_not_for_ever() {
    let (mut pool, now) = dialled(1, 1);
    assert_eq!(checkout(&mut pool, 1, now, "of another"), Checkout::Wait(1));
    for _ in 0..MAX_PASSED_OVER {
        assert!(matches!(checkout(&mut pool, 0, now, "own"), Checkout::Wait(_)));
        assert_eq!(put_back(&mut pool, "s", 0, now), Next::Serve("own", "s"));
    }
    assert!(matches!(checkout(&mut pool, 0, now, "own"), Checkout::Wait(_)));
    assert_eq!(put_back(&mut pool, "s", 0, now), Next::Serve("of another", "s"));
    assert_eq!(put_back(&mut pool, "s", 0, now), Next::Serve("own", "s"));
}

#[test]
fn old_broken_and_unused_connections_are_closed() {
    let (mut pool, now) = dialled(5, 5);
    with(&mut pool, |limits| limits.min_size = 1);
    let old = Returned { worker: 0, generation: 0, expires_at: now };
    assert_eq!(pool.put_back("old", old, now), Next::Close("old"));
    assert_eq!(pool.closed(), Next::Nobody);
    for connection in ["broken", "unused", "kept"] {
        assert_eq!(put_back(&mut pool, connection, 0, now), Next::Nobody);
    }
    let alive = |connection: &mut &str| *connection != "broken";
    assert_eq!(pool.expire(now + 10 * SECOND, alive), ["broken"]);
    assert_eq!(pool.closed(), Next::Nobody, "the last one that was out");
    assert_eq!(pool.expire(now + 11 * SECOND, alive), ["unused"], "one stays");
    assert_eq!(pool.expire(now + 100 * SECOND, alive), ["kept"], "however few there are: it is old");
    assert_eq!((pool.idle(), pool.in_use()), (0, 0));
}

#[test]
fn nothing_of_an_earlier_generation_is_used_again() {
    let (mut pool, now) = dialled(2, 2);
    assert_eq!(put_back(&mut pool, "idle", 0, now), Next::Nobody);
    assert_eq!(pool.renew(), ["idle"]);
    assert_eq!(put_back(&mut pool, "before", 0, now), Next::Close("before"));
    assert_eq!(pool.closed(), Next::Nobody);
    assert_eq!((pool.idle(), pool.in_use()), (0, 0));
}

#[test]
fn the_reserve_is_for_those_who_have_waited_long() {
    let (mut pool, now) = dialled(1, 1);
    with(&mut pool, |limits| limits.reserve_size = 1);
    assert_eq!(checkout(&mut pool, 0, now, "a"), Checkout::Wait(1));
    assert_eq!(checkout(&mut pool, 0, now, "b"), Checkout::Wait(2));
    assert!(!pool.take_reserve(1, now + 4 * SECOND, || true), "too early");
    assert!(!pool.take_reserve(1, now + 5 * SECOND, || false), "no permit");
    assert!(pool.take_reserve(1, now + 5 * SECOND, || true));
    assert!(!pool.take_reserve(1, now + 5 * SECOND, || true), "it does not wait any more");
    assert!(!pool.take_reserve(2, now + 6 * SECOND, || true), "the reserve is used up");
    assert_eq!((pool.in_use(), pool.waiting()), (2, 1));
}

#[test]
fn the_minimum_is_opened_ahead_of_need() {
    let (mut pool, now) = dialled(1, 3);
    with(&mut pool, |limits| limits.min_size = 2);
    assert!(!pool.warm_up(|| false), "no permit");
    assert!(pool.warm_up(|| true));
    assert!(!pool.warm_up(|| true), "there are enough");
    assert_eq!(put_back(&mut pool, "warm", usize::MAX, now), Next::Nobody);
    assert_eq!((pool.idle(), pool.in_use()), (1, 1));
}

#[test]
fn who_lacks_a_permit_waits_with_room_and_is_not_overtaken() {
    let (mut pool, now) = pool(2);
    assert_eq!(pool.checkout(0, now, |_| false, || false, || "a"), Checkout::Wait(1));
    assert!(pool.wants_permit());
    assert_eq!(checkout(&mut pool, 0, now, "b"), Checkout::Wait(2), "although there was one for it");
    assert_eq!(pool.offer(|| false), None);
    assert_eq!(pool.offer(|| true), Some("a"));
    assert_eq!(pool.offer(|| true), Some("b"));
    assert_eq!((pool.offer(|| true), pool.in_use()), (None, 2));
}

#[test]
fn what_is_owed_is_closed_instead_of_given_to_those_who_wait() {
    let (mut pool, now) = dialled(2, 2);
    assert_eq!(checkout(&mut pool, 0, now, "a"), Checkout::Wait(1));
    pool.owe();
    assert_eq!(put_back(&mut pool, "s1", 0, now), Next::Close("s1"));
    assert_eq!(pool.closed(), Next::Nobody, "its permit is free, and not for this pool");
    assert!(pool.wants_permit());
    assert_eq!(put_back(&mut pool, "s2", 0, now), Next::Serve("a", "s2"));
    assert_eq!(put_back(&mut pool, "s2", 0, now), Next::Nobody);
    pool.owe();
    assert_eq!(pool.evict(), Some("s2"), "nothing in use is owed");
    assert_eq!((pool.evict(), pool.in_use()), (None, 0));
}

#[test]
fn a_pool_that_was_made_smaller_shrinks_as_connections_come_back() {
    let (mut pool, now) = dialled(2, 2);
    assert_eq!(checkout(&mut pool, 0, now, "a"), Checkout::Wait(1));
    with(&mut pool, |limits| limits.size = 1);
    assert_eq!(put_back(&mut pool, "s1", 0, now), Next::Close("s1"));
    assert_eq!(pool.closed(), Next::Nobody);
    assert_eq!(put_back(&mut pool, "s2", 0, now), Next::Serve("a", "s2"));
}

#[test]
fn a_paused_pool_empties_and_lets_nobody_in_until_it_is_resumed() {
    let (mut pool, now) = dialled(2, 2);
    assert_eq!(put_back(&mut pool, "idle", 0, now), Next::Nobody);
    assert_eq!(pool.pause(), ["idle"]);
    assert_eq!(checkout(&mut pool, 0, now, "a"), Checkout::Wait(1));
    assert_eq!(put_back(&mut pool, "busy", 0, now), Next::Close("busy"));
    assert_eq!((pool.closed(), pool.in_use()), (Next::Nobody, 0));
    assert_eq!((pool.offer(|| true), pool.warm_up(|| true)), (None, false));
    pool.resume();
    assert_eq!(pool.offer(|| true), Some("a"));
}
