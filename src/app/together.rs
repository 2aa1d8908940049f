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

use crate::topology::{Agreed, Directive, Members, WalStatus};

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

/// `ordered` and `wal` are this instance's own.
pub(crate) fn gated(now: Instant, members: &Members, ordered: &Arc<Directive>, wal: &WalStatus) -> Gated {
    let is_vouched = members.vouched_until(now, wal, ordered).is_some();
    Gated {
        directive: if is_vouched { ordered.clone() } else { Arc::new(ordered.unvouched()) },
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
        let Gated { directive, wal, agreed, is_vouched } = gated(Instant::now(), &members, &ordered, &wal);
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
