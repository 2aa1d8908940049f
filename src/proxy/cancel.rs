//! Every session's slot: who can be told to stop, and what runs where.
//!
//! A client's CancelRequest names the session; it goes to the backend that runs the session's statement at that
//! moment, and the session does not give that backend back before the request has been dealt with. So a cancel
//! never reaches another client's statement. The same slots tell which sessions use a primary, and wake them
//! when it no longer is one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::limits::Timeouts;
use super::peers::Mark;
use super::pool::BackendKey;
use super::timeouts::{Activity, Doing, Due, Watch};
use crate::net::PeerAddress;
use crate::pg::error::ErrorFields;
use crate::pg::protocol::startup::{CancelKey, Minor};
use crate::topology::{Drained, NodeName, Term};

/// What a session runs on.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    pub(crate) backend: Arc<BackendKey>,
    pub(crate) node: NodeName,
    /// Checked out as this term's primary.
    pub(crate) primary_of: Option<Term>,
}

#[derive(Debug, Default)]
struct State {
    serving: Option<Serving>,
    /// CancelRequests on their way to `serving`.
    cancels: usize,
    /// Of the requests to `serving`, one may still arrive.
    overdue: bool,
    waker: Option<Waker>,
    /// For a server.
    waiting_since: Option<Instant>,
    /// Why it keeps its server.
    pinned: Option<&'static str>,
    /// Rare enough to be elsewhere: there may be thousands of idle sessions.
    limits: Option<Box<Limited>>,
    end: Option<Box<End>>,
}

/// A session whose time is limited.
#[derive(Debug)]
struct Limited {
    timeouts: Timeouts,
    watch: Option<Watch>,
}

/// Why a session, or the commit that it waits for, is to end.
#[derive(Debug)]
struct End {
    /// Only if it still does this.
    doing: Option<Activity>,
    why: Poke,
}

/// What the next client of a server connection could meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hands {
    Clean,
    /// A CancelRequest that was not seen to arrive: the connection must not serve anybody else.
    Cancelling,
}

/// Why a session was woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Poke {
    /// Its server is no longer the primary.
    Cut,
    Shutdown,
    /// Its commit waits for a quorum that is lost, and has waited long enough.
    Unacknowledged,
    /// The client is told this and disconnected.
    End(ErrorFields),
}

const POKED_CUT: u8 = 1;
const POKED_SHUTDOWN: u8 = 2;
const POKED_END: u8 = 4;

/// Whose session it is.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) database: Arc<str>,
    pub(crate) user: Arc<str>,
    pub(crate) application_name: Arc<str>,
    pub(crate) peer: PeerAddress,
    pub(crate) connected_at: SystemTime,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: CancelKey,
    pub(crate) about: About,
    state: Mutex<State>,
    poked: AtomicU8,
    /// An [`Activity`], written by the session only.
    activity: AtomicU64,
    /// The last cancel on its way has arrived.
    quiet: Notify,
}

impl Slot {
    pub(crate) fn serve(&self, serving: Serving) {
        let mut state = self.state.lock();
        state.serving = Some(serving);
        state.overdue = false;
    }

    /// The session's task, to be woken by [`Slot::poke`].
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.state.lock().waker = Some(waker.clone());
    }

    /// The session gives its server up, at once.
    pub(crate) fn vacate(&self) -> Hands {
        let mut state = self.state.lock();
        state.serving = None;
        self.poked.fetch_and(!POKED_CUT, Ordering::Relaxed);
        if state.cancels > 0 || state.overdue { Hands::Cancelling } else { Hands::Clean }
    }

    /// The session gives its server up, unless it would have to wait; see [`Slot::release`].
    pub(crate) fn try_release(&self) -> Option<Hands> {
        let hands = self.vacate();
        (self.state.lock().cancels == 0).then_some(hands)
    }

    /// The session gives its server up, and waits until no cancel is on its way to it.
    pub(crate) async fn release(&self) -> Hands {
        self.vacate();
        while self.state.lock().cancels > 0 {
            self.quiet.notified().await;
        }
        self.vacate()
    }

    /// Whether [`Slot::poked`] would say something.
    pub(crate) fn is_poked(&self) -> bool {
        self.poked.load(Ordering::Relaxed) != 0
    }

    /// Checked at every turn of the session.
    pub(crate) fn poked(&self) -> Option<Poke> {
        if self.poked.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let poked = self.poked.fetch_and(!(POKED_CUT | POKED_END), Ordering::Relaxed);
        if poked & POKED_END != 0
            && let Some(end) = self.state.lock().end.take()
            && end.doing.is_none_or(|doing| doing == self.activity())
        {
            return Some(end.why);
        }
        match poked & (POKED_CUT | POKED_SHUTDOWN) {
            0 => None,
            POKED_SHUTDOWN => Some(Poke::Shutdown),
            _ => Some(Poke::Cut),
        }
    }

    pub(crate) fn set_activity(&self, activity: Activity) {
        self.activity.store(activity.pack(), Ordering::Relaxed);
    }

    pub(crate) fn activity(&self) -> Activity {
        Activity::unpack(self.activity.load(Ordering::Relaxed))
    }

    pub(crate) fn serving(&self) -> Option<Serving> {
        self.state.lock().serving.clone()
    }

    pub(crate) fn set_waiting(&self, since: Option<Instant>) {
        self.state.lock().waiting_since = since;
    }

    pub(crate) fn set_pinned(&self, reason: Option<&'static str>) {
        self.state.lock().pinned = reason;
    }

    pub(crate) fn pinned(&self) -> Option<&'static str> {
        self.state.lock().pinned
    }

    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.state.lock().waiting_since
    }

    pub(crate) fn set_timeouts(&self, timeouts: Timeouts) {
        let mut state = self.state.lock();
        let watch = state.limits.take().and_then(|limited| limited.watch);
        let limited = || Box::new(Limited { timeouts, watch });
        state.limits = (timeouts != Timeouts::default()).then(limited);
    }

    /// The session ends with `last_words`; with `doing`, only if it still does that.
    pub(crate) fn end(&self, doing: Option<Activity>, last_words: ErrorFields) {
        self.poke_to_end(End { doing, why: Poke::End(last_words) });
    }

    /// The session gives up the commit that it waits for, if it still does.
    pub(crate) fn give_up(&self, doing: Activity) {
        self.poke_to_end(End { doing: Some(doing), why: Poke::Unacknowledged });
    }

    fn poke_to_end(&self, end: End) {
        let mut state = self.state.lock();
        // Who is to end altogether need not hear of less.
        if end.why == Poke::Unacknowledged && state.end.is_some() {
            return;
        }
        state.end = Some(Box::new(end));
        self.poke(&state, POKED_END);
    }

    /// What the session's limits call for.
    fn look(&self, now: Instant) -> Option<(Activity, Due)> {
        let activity = self.activity();
        let mut state = self.state.lock();
        let Limited { timeouts, watch } = &mut **state.limits.as_mut()?;
        let watch = watch.get_or_insert_with(|| Watch::new(now));
        watch.look(now, activity, timeouts).map(|due| (activity, due))
    }

    /// For what the session finds elsewhere.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &self.state.lock().waker {
            waker.wake_by_ref();
        }
    }

    fn poke(&self, state: &State, what: u8) {
        self.poked.fetch_or(what, Ordering::Relaxed);
        if let Some(waker) = &state.waker {
            waker.wake_by_ref();
        }
    }
}

/// All sessions by the pid they were told.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// In every pid.
    own: Mark,
    slots: Mutex<HashMap<u32, Arc<Slot>>>,
}

impl Slots {
    pub(crate) fn of(own: Mark) -> Slots {
        Slots { own, slots: Mutex::default() }
    }

    /// A slot with a key that no other session has, as `minor` has them. `random` gives random numbers.
    pub(crate) fn open(&self, about: About, minor: Minor, mut random: impl FnMut() -> u32) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        loop {
            let pid = self.own.pid(random());
            if pid == 0 || slots.contains_key(&pid) {
                continue;
            }
            let mut secret = Vec::with_capacity(minor.cancel_secret_len());
            while secret.len() < minor.cancel_secret_len() {
                secret.extend_from_slice(&random().to_be_bytes());
            }
            let key = CancelKey { pid, secret };
            let slot = Arc::new(Slot {
                key,
                about,
                state: Mutex::default(),
                poked: AtomicU8::new(0),
                activity: AtomicU64::new(0),
                quiet: Notify::new(),
            });
            slots.insert(pid, slot.clone());
            return slot;
        }
    }

    /// The same, closed with what it returns.
    pub(crate) fn register(&self, about: About, minor: Minor) -> Registered<'_> {
        Registered { slots: self, slot: self.open(about, minor, rand::random::<u32>) }
    }

    fn close(&self, slot: &Slot) {
        self.slots.lock().remove(&slot.key.pid);
    }

    /// Looks at what every session spends its time with; those whose limits call for something.
    pub(crate) fn due(&self, now: Instant) -> Vec<(Arc<Slot>, Activity, Due)> {
        let slots = self.slots.lock();
        let due = slots.values().filter_map(|slot| slot.look(now).map(|due| (slot, due)));
        due.map(|(slot, (activity, due))| (slot.clone(), activity, due)).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().values().cloned().collect()
    }

    pub(crate) fn committing(&self) -> Vec<(Arc<Slot>, Activity)> {
        let slots = self.slots.lock();
        let all = slots.values().map(|slot| (slot.clone(), slot.activity()));
        all.filter(|(_, activity)| activity.doing == Doing::Committing).collect()
    }

    pub(crate) fn count(&self, doing: Doing) -> usize {
        self.slots.lock().values().filter(|slot| slot.activity().doing == doing).count()
    }

    /// Whether a session of `database`, or any, has a server.
    pub(crate) fn use_servers_of(&self, database: Option<&str>) -> bool {
        let of = |slot: &Slot| database.is_none_or(|name| *slot.about.database == *name);
        self.slots.lock().values().any(|slot| of(slot) && slot.state.lock().serving.is_some())
    }

    /// The backend to cancel for `key`, as long as the value lives. `None`: no such session, a wrong secret, or
    /// nothing runs.
    pub(crate) fn cancelling(&self, key: &CancelKey) -> Option<Cancelling> {
        let slot = self.slots.lock().get(&key.pid).filter(|slot| slot.key.proves(key))?.clone();
        let backend = {
            let mut state = slot.state.lock();
            let backend = state.serving.as_ref()?.backend.clone();
            state.cancels += 1;
            backend
        };
        Some(Cancelling { slot, backend, arrived: false })
    }

    /// Wakes the sessions that use an earlier term's primary which is not `primary`; how many there are.
    /// `former`: the last primary before. Whoever uses that one, having taken it for a standby before it was
    /// promoted, could write there as well.
    pub(crate) fn cut(&self, term: Term, primary: Option<&NodeName>, former: Option<&NodeName>) -> usize {
        let mut cut = 0;
        for slot in self.slots.lock().values() {
            let state = slot.state.lock();
            let old = |serving: &Serving| {
                let was_primary =
                    serving.primary_of.is_some_and(|of| of < term) || former == Some(&serving.node);
                was_primary && primary != Some(&serving.node)
            };
            if state.serving.as_ref().is_some_and(old) {
                slot.poke(&state, POKED_CUT);
                cut += 1;
            }
        }
        cut
    }

    /// Wakes the sessions that use `node`, as whatever they took it; how many there are.
    pub(crate) fn clear(&self, node: &NodeName) -> usize {
        let mut cut = 0;
        for slot in self.slots.lock().values() {
            let state = slot.state.lock();
            if state.serving.as_ref().is_some_and(|serving| serving.node == *node) {
                slot.poke(&state, POKED_CUT);
                cut += 1;
            }
        }
        cut
    }

    /// What runs at `nodes`. A session that has a server there and nothing to do keeps it for what lives in it.
    pub(crate) fn drained(&self, round: u64, nodes: &[&NodeName]) -> Drained {
        let mut drained = Drained { round, ..Drained::default() };
        for slot in self.slots.lock().values() {
            let pinned = {
                let state = slot.state.lock();
                if !state.serving.as_ref().is_some_and(|serving| nodes.contains(&&serving.node)) {
                    continue;
                }
                state.pinned
            };
            match slot.activity().doing {
                Doing::Waiting | Doing::Query | Doing::Committing | Doing::IdleInTransaction => {
                    drained.busy += 1;
                }
                Doing::Idle => drained.add_pinned(pinned.unwrap_or("session")),
                Doing::Replicating => drained.add_pinned("logical_replication"),
            }
        }
        drained
    }

    /// Every session ends as soon as it is in no transaction; how many there are.
    pub(crate) fn shut_down(&self) -> usize {
        let slots = self.slots.lock();
        for slot in slots.values() {
            slot.poke(&slot.state.lock(), POKED_SHUTDOWN);
        }
        slots.len()
    }
}

/// A session's slot, closed however the session ends: one that stays behind would hold up every fence.
#[derive(Debug)]
pub(crate) struct Registered<'a> {
    slots: &'a Slots,
    pub(crate) slot: Arc<Slot>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.slots.close(&self.slot);
    }
}

/// A CancelRequest on its way.
#[derive(Debug)]
pub(crate) struct Cancelling {
    slot: Arc<Slot>,
    pub(crate) backend: Arc<BackendKey>,
    /// The server has dealt with it.
    arrived: bool,
}

impl Cancelling {
    /// The server has dealt with it. One that was given up may lie in the server's backlog and hit whatever
    /// runs when it is read.
    pub(crate) fn arrived(mut self) {
        self.arrived = true;
    }
}

impl Drop for Cancelling {
    fn drop(&mut self) {
        let mut state = self.slot.state.lock();
        state.cancels -= 1;
        state.overdue |= !self.arrived;
        if state.cancels == 0 {
            self.slot.quiet.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{About, Hands, Poke, Serving, Slot, Slots};
    use crate::net::{PeerAddress, TlsForServers};
    use crate::pg::protocol::startup::{CancelKey, Minor};
    use crate::proxy::pool::BackendKey;
    use crate::proxy::timeouts::{Activity, Doing};
    use crate::topology::{Drained, Term};

    fn open(slots: &Slots, random: impl FnMut() -> u32) -> Arc<Slot> {
        let about = About {
            database: "orders".into(),
            user: "app".into(),
            application_name: "".into(),
            peer: PeerAddress::Unix,
            connected_at: std::time::SystemTime::UNIX_EPOCH,
        };
        slots.open(about, Minor(0), random)
    }

    fn serving(node: &str, primary_of: Option<u64>) -> Serving {
        let address = "127.0.0.1:5432".parse().expect("an address");
        let backend = Arc::new(BackendKey {
            address,
            tls: TlsForServers::default(),
            key: CancelKey { pid: 7, secret: vec![0; 4] },
        });
        Serving { backend, node: node.parse().expect("a name"), primary_of: primary_of.map(Term) }
    }

    #[test]
    fn only_the_owner_of_the_key_cancels_and_only_what_runs() {
        let slots = Slots::default();
        let mut numbers = [0, 5, 1, 5, 6, 2].into_iter();
        let mut random = || numbers.next().expect("enough numbers");
        let (one, other) = (open(&slots, &mut random), open(&slots, &mut random));
        assert_eq!((one.key.pid, other.key.pid), (5, 6));
        assert!(slots.cancelling(&one.key).is_none(), "nothing runs");
        one.serve(serving("pg1", None));
        assert!(slots.cancelling(&CancelKey { pid: 5, secret: vec![0; 4] }).is_none(), "a guess");
        let cancelling = slots.cancelling(&one.key).expect("something runs");
        assert_eq!(cancelling.backend.key.pid, 7);
        assert_eq!(one.vacate(), Hands::Cancelling, "the cancel is on its way");
        cancelling.arrived();
        assert_eq!(one.vacate(), Hands::Clean);
        assert_eq!(other.vacate(), Hands::Clean);
    }

    #[test]
    fn a_cancel_that_was_given_up_may_still_arrive() {
        let slots = Slots::default();
        let mut number = 0;
        let slot = open(&slots, || {
            number += 1;
            number
        });
        slot.serve(serving("pg1", None));
        drop(slots.cancelling(&slot.key).expect("something runs"));
        assert_eq!(slot.vacate(), Hands::Cancelling, "the connection serves nobody else");
        slot.serve(serving("pg1", None));
        assert_eq!(slot.vacate(), Hands::Clean, "another connection");
    }

    #[test]
    fn a_new_term_cuts_what_runs_on_another_primary() {
        let slots = Slots::default();
        let mut number = 0;
        let all: Vec<_> = [("pg1", Some(1)), ("pg2", Some(1)), ("pg1", None), ("pg1", Some(2))]
            .into_iter()
            .map(|(node, primary_of)| {
                let slot = open(&slots, || {
                    number += 1;
                    number
                });
                slot.serve(serving(node, primary_of));
                slot
            })
            .collect();
        let pg2 = "pg2".parse().expect("a name");
        assert_eq!(slots.cut(Term(2), Some(&pg2), None), 1);
        let poked: Vec<_> = all.iter().map(|slot| slot.poked()).collect();
        assert_eq!(poked, [Some(Poke::Cut), None, None, None]);
        assert_eq!(slots.cut(Term(2), None, None), 2);
        let pg1 = "pg1".parse().expect("a name");
        assert_eq!(slots.cut(Term(3), None, Some(&pg1)), 4, "also who took it for a standby");
    }

    #[test]
    fn a_candidate_is_taken_from_whoever_uses_it() {
        let slots = Slots::default();
        let mut number = 0;
        let all: Vec<_> = [("pg2", None), ("pg1", Some(1)), ("pg3", None), ("pg2", None)]
            .into_iter()
            .map(|(node, primary_of)| {
                let slot = open(&slots, || {
                    number += 1;
                    number
                });
                slot.serve(serving(node, primary_of));
                slot
            })
            .collect();
        let pg2 = "pg2".parse().expect("a name");
        assert_eq!(slots.clear(&pg2), 2);
        let poked: Vec<_> = all.iter().map(|slot| slot.poked()).collect();
        assert_eq!(poked, [Some(Poke::Cut), None, None, Some(Poke::Cut)]);
        all[0].vacate();
        all[3].vacate();
        assert_eq!(slots.clear(&pg2), 0, "the proxy may say that it is cleared");
    }

    #[test]
    fn a_node_is_drained_when_no_transaction_is_open_there() {
        let slots = Slots::default();
        let mut number = 0;
        let mut at = |node: &str, doing, pinned| {
            let slot = open(&slots, || {
                number += 1;
                number
            });
            slot.serve(serving(node, None));
            slot.set_pinned(pinned);
            slot.set_activity(Activity { doing, ..Activity::default() });
            slot
        };
        let open: Vec<_> = [Doing::Waiting, Doing::Query, Doing::Committing, Doing::IdleInTransaction]
            .into_iter()
            .map(|doing| at("pg1", doing, Some("temp_table")))
            .collect();
        at("pg1", Doing::Idle, Some("temp_table"));
        at("pg2", Doing::Idle, None);
        at("pg2", Doing::Replicating, None);
        at("pg3", Doing::Query, None);
        let [pg1, pg2] = ["pg1", "pg2"].map(|name| name.parse().expect("a name"));
        let pinned =
            ["logical_replication", "session", "temp_table"].map(|reason| (reason.to_owned(), 1)).into();
        assert_eq!(slots.drained(7, &[&pg1, &pg2]), Drained { round: 7, busy: 4, pinned });
        for slot in open {
            slot.vacate();
        }
        assert_eq!(slots.drained(7, &[&pg1, &pg2]).busy, 0);
    }
}
