#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]
//! One instance among several: what its planes are told in place of what it sees, and orders, itself.
//!
//! * The query plane obeys the directive only while it is vouched for; else nobody is primary for it.
//! * It routes, and people see, by the WAL status of all relays.
//! * The relay ships what enough relays have.
//!
//! An instance that is alone has none of this: there the planes' own channels are joined directly. What follows from
//! what is computed in [`Members`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::topology::{ANSWER_AGE, Agreed, Directive, Members, WalStatus};

/// How often it is looked at whether a word has grown too old.
const TICK: Duration = Duration::from_millis(100);

/// What is seen and ordered.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) members: watch::Receiver<Arc<Members>>,
    pub(super) ordered: watch::Receiver<Arc<Directive>>,
    pub(super) wal: watch::Receiver<Arc<WalStatus>>,
}

/// What the planes are told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) directive: watch::Sender<Arc<Directive>>,
    pub(super) wal: watch::Sender<Arc<WalStatus>>,
    pub(super) agreed: watch::Sender<Agreed>,
}

/// What follows from all that is known at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gated {
    /// For the query plane.
    pub(crate) directive: Arc<Directive>,
    pub(crate) wal: Arc<WalStatus>,
    pub(crate) agreed: Agreed,
    pub(crate) is_vouched: bool,
}

/// `ordered` and `wal` are this instance's own; `told` is what the query plane was told before.
pub(crate) fn gated(
    now: Instant,
    members: &Members,
    ordered: &Arc<Directive>,
    wal: &WalStatus,
    told: &Directive,
) -> Gated {
    let is_vouched = members.vouched_until(now, wal, ordered).is_some();
    let mut directive = if is_vouched { ordered.clone() } else { Arc::new(ordered.unvouched()) };
    // That there is no later term says nothing of how far the others are in this one, or still in one before.
    let known_at = [
        members.vouched_at(now, wal, ordered),
        members.all_commits_at(now, ordered),
        members.obeyed_at(now, ordered),
    ];
    let is_old = |at: &Instant| now.saturating_duration_since(*at) >= ANSWER_AGE;
    let is_known = known_at.iter().all(|at| at.is_some_and(|at| !is_old(&at)));
    let is_sure = is_vouched && (ordered.writable().is_some() || is_known);
    if !is_sure {
        let known_until = known_at.into_iter().flatten().filter(is_old).min();
        Arc::make_mut(&mut directive).unsure_since = told.unsure_since.or(known_until).or(Some(now));
    }
    Gated {
        directive,
        wal: Arc::new(members.wal(now, wal, ordered)),
        agreed: Agreed::Quorum { term: ordered.term, end: members.durable(wal, ordered) },
        is_vouched,
    }
}

/// Never ends.
pub(super) async fn tell(mut own: Own, told: Told) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut vouched = true;
    // Before, it looks as if nothing had ever been promised.
    if own.wal.changed().await.is_err() {
        return std::future::pending().await;
    }
    loop {
        let (members, ordered, wal) = (
            own.members.borrow_and_update().clone(),
            own.ordered.borrow_and_update().clone(),
            own.wal.borrow_and_update().clone(),
        );
        let before = told.directive.borrow().clone();
        let Gated { directive, wal, agreed, is_vouched } =
            gated(Instant::now(), &members, &ordered, &wal, &before);
        replace(&told.wal, &wal);
        told.agreed.send_if_modified(|current| std::mem::replace(current, agreed) != agreed);
        // Where nobody is primary there is nothing to be vouched for.
        if ordered.primary.is_some() && is_vouched != vouched {
            tracing::info!(term = %ordered.term, is_vouched, "what the other instances say of the term");
            vouched = is_vouched;
        }
        replace(&told.directive, &directive);
        tokio::select! {
            Ok(()) = own.members.changed() => {}
            Ok(()) = own.ordered.changed() => {}
            Ok(()) = own.wal.changed() => {}
            _ = tick.tick() => {}
        }
    }
}

fn replace<T: PartialEq>(output: &watch::Sender<Arc<T>>, value: &Arc<T>) {
    output.send_if_modified(|current| {
        let changed = *current != *value;
        if changed {
            current.clone_from(value);
        }
        changed
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::gated;
    use crate::topology::members::tests::{any, members, relay, start};
    use crate::topology::{ANSWER_AGE, Directive, Durability, NodeName, Term, VOUCH, Writes};

    /// `a` and two others, in a term.
    fn order(term: u64, primary: Option<NodeName>) -> Arc<Directive> {
        let writes = match primary {
            Some(_) => Writes::Open,
            None => Writes::Held { reason: "an election".to_owned() },
        };
        let starting = Directive::starting(Durability::Quorum);
        let quorums = vec![any(2, "a b c")];
        Arc::new(Directive { term: Term(term), primary, writes, quorums, ..starting })
    }

    #[test]
    fn without_a_primary_it_counts_what_others_obey() {
        let now = start();
        let pg1 = || Some("pg1".parse::<NodeName>().expect("a name"));
        let election = order(8, None);
        // What is ordered, what `b` obeys, how long ago it was asked, since how long ago others may have gone on.
        let check = |ordered: &Arc<Directive>, theirs: &Arc<Directive>, age, unsure_for: Option<Duration>| {
            let mut all = members(now - age, &["b 8 6 1 50", "c"]);
            let b = all.others.get_mut("b").and_then(Option::as_mut).expect("it was heard");
            Arc::make_mut(&mut b.member).directive = theirs.clone();
            let tell = |now, told: &Directive| {
                gated(now, &all, ordered, &relay("8 6 1 50"), told).directive.unsure_since
            };
            let first = tell(now, ordered);
            assert_eq!(first, unsure_for.map(|age| now - age), "{ordered:?}, {theirs:?}, {age:?}");
            let told = Directive { unsure_since: first, ..(**ordered).clone() };
            let next = tell(now + Duration::from_millis(1), &told);
            assert_eq!(next, first, "it does not begin anew");
        };
        let (now_on, long) = (Some(Duration::ZERO), ANSWER_AGE);
        check(&election, &election, Duration::ZERO, None);
        check(&election, &order(8, pg1()), Duration::ZERO, now_on);
        check(&election, &order(7, pg1()), Duration::ZERO, now_on);
        // From its last word on, long before it is not vouched for any more.
        check(&election, &election, long - Duration::from_millis(2), None);
        check(&election, &election, long, Some(long));
        check(&election, &election, VOUCH, Some(VOUCH));
        // Its stream tells how far the primary is, as long as it is one.
        check(&order(8, pg1()), &election, Duration::ZERO, None);
        check(&order(8, pg1()), &order(8, pg1()), long, None);
        check(&order(8, pg1()), &order(8, pg1()), VOUCH, Some(VOUCH));
    }

    #[test]
    fn who_is_cut_off_along_with_it_knows_nothing() {
        let now = start();
        // `b` is heard, the others are not any more.
        let check_of = |relays, primary: Option<NodeName>, age: Duration, expected: Option<Duration>| {
            let ordered = Arc::new(Directive { quorums: vec![relays], ..(*order(8, primary)).clone() });
            let mut all = members(now, &["b 8 6 1 50", "c 8 6 1 50", "d 8 6 1 50", "e 8 6 1 50"]);
            for (name, heard) in &mut all.others {
                let heard = heard.as_mut().expect("it was heard");
                Arc::make_mut(&mut heard.member).directive = ordered.clone();
                if name != "b" {
                    heard.asked_at = now - age;
                }
            }
            let gated = gated(now, &all, &ordered, &relay("8 6 1 50"), &ordered);
            assert_eq!(gated.directive.unsure_since, expected.map(|age| now - age), "{age:?}");
        };
        let pg1 = || Some("pg1".parse::<NodeName>().expect("a name"));
        // What others acknowledge has to be heard of, though they elect nobody; or nobody acknowledges without these.
        check_of(any(2, "a b c d"), None, ANSWER_AGE, Some(ANSWER_AGE));
        check_of(any(1, "a b c"), None, ANSWER_AGE, Some(ANSWER_AGE));
        check_of(any(2, "a c"), None, ANSWER_AGE, None);
        check_of(any(3, "a b c d"), None, ANSWER_AGE, None);
        let check = |primary, age, expected| check_of(any(3, "a b c d e"), primary, age, expected);
        check(None, Duration::ZERO, None);
        check(None, ANSWER_AGE, Some(ANSWER_AGE));
        check(None, 2 * VOUCH, Some(2 * VOUCH));
        check(pg1(), ANSWER_AGE, None);
        check(pg1(), 2 * VOUCH, Some(2 * VOUCH));
    }
}
