//! What is known of etcd, out of answers and events in whatever order they come. PURE.
//!
//! Answers overtake each other: a read can be older than the event before it, and what was put is known before the watch
//! tells of it. So each key has the revision up to which it is known, and nothing older counts. Two things are never
//! taken for news: a store whose revisions went back, and a state that cannot be read or is gone.

use std::time::{Duration, Instant};

use super::wire::{Event, EventKind, Header, KeyValue};
use super::{Fence, Leader, Link, Revision, Seen, Versioned};
use crate::failover::decide::State;

/// The keys of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// All of them begin so.
    pub(super) prefix: String,
    pub(super) leader: String,
    pub(super) state: String,
    pub(super) history: String,
    pub(super) member: String,
}

#[derive(Debug)]
pub(super) struct View {
    keys: Keys,
    link: Link,
    /// When something was read last.
    up_at: Instant,
    /// Failed in a row.
    failures: usize,
    /// How many of them are one round over all endpoints.
    round: usize,
    cluster_id: Option<u64>,
    /// The newest that etcd was seen to have.
    revision: Revision,
    /// For good: this is not the etcd that was seen before.
    refused: Option<(Instant, String)>,
    /// Until a newer one can be read.
    unreadable: Option<(Instant, String)>,
    state: Option<Versioned>,
    state_at: Revision,
    leader: Option<LeaderKey>,
    leader_at: Revision,
    lease: Option<Lease>,
    /// Given up, whatever etcd says yet; and all before it.
    resigned: Option<Fence>,
    /// A leadership that a request under way still brings is given up as well before then.
    campaign_from: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LeaderKey {
    name: String,
    created: Fence,
    lease: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) id: u64,
    /// etcd does not end it before.
    pub(super) until: Instant,
    pub(super) renew_at: Instant,
}

/// What is to be done about the lease and the leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    Grant,
    Renew(u64),
    /// The leadership was resigned, and its key is still there.
    Remove(Fence),
    /// Nobody leads.
    Campaign(u64),
    Wait(Instant),
}

impl Lease {
    /// Asked for, or renewed, at `sent`. etcd counts from when it has heard of that, so later. A tenth is for clocks that
    /// run at different speeds.
    pub(super) fn new(id: u64, ttl: Duration, sent: Instant) -> Lease {
        Lease { id, until: sent + ttl - ttl / 10, renew_at: sent + ttl / 5 }
    }
}

impl Keys {
    pub(super) fn new(cluster: &str, instance: &str) -> Keys {
        let prefix = format!("/bellwether/{cluster}/");
        let key = |name: &str| format!("{prefix}{name}");
        Keys {
            leader: key("leader"),
            state: key("state"),
            history: key("history/"),
            member: key("members/") + instance,
            prefix,
        }
    }
}

impl View {
    pub(super) fn new(keys: Keys, endpoints: usize, now: Instant) -> View {
        View {
            keys,
            link: Link::Starting,
            up_at: now,
            failures: 0,
            round: endpoints,
            cluster_id: None,
            revision: Revision(0),
            refused: None,
            unreadable: None,
            state: None,
            state_at: Revision(0),
            leader: None,
            leader_at: Revision(0),
            lease: None,
            resigned: None,
            campaign_from: None,
        }
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What an answer to a request that is sent now has to reach.
    pub(super) fn floor(&self) -> Revision {
        self.revision
    }

    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_ref().map(|(_, why)| why.as_str())
    }

    /// Why what nobody can overlook is wrong, if it is: a person has to look.
    pub(super) fn alarm(&self) -> Option<&str> {
        self.refused.as_ref().or(self.unreadable.as_ref()).map(|(_, why)| why.as_str())
    }

    /// Whether an answer is from the etcd that was seen before. It was asked, by way of the quorum, when `floor` had been
    /// seen.
    pub(super) fn believe(&mut self, header: Header, floor: Revision, now: Instant) -> Result<(), String> {
        if let Some(why) = self.refused() {
            return Err(why.to_owned());
        }
        self.believe_cluster(header)?;
        let revision = Revision(header.revision.0);
        if revision < floor {
            let (found, seen) = (revision.0, floor.0);
            let why =
                format!("its revision is {found}, where {seen} was seen: was it restored from a backup?");
            self.refused = Some((now, why.clone()));
            return Err(why);
        }
        self.revision = self.revision.max(revision);
        Ok(())
    }

    /// That the cluster is the one that was seen first. Another one is only an endpoint that does not belong to it.
    pub(super) fn believe_cluster(&mut self, header: Header) -> Result<(), String> {
        let (found, known) = (header.cluster_id.0, *self.cluster_id.get_or_insert(header.cluster_id.0));
        if found == known {
            return Ok(());
        }
        Err(format!("it belongs to the etcd cluster {found:x}, where {known:x} was seen"))
    }

    /// Both keys, as they were at one moment. Has to be [believed](View::believe).
    pub(super) fn read(
        &mut self,
        header: Header,
        leader: Option<&KeyValue>,
        state: Option<&KeyValue>,
        now: Instant,
    ) {
        let at = Revision(header.revision.0);
        self.link = Link::Up;
        self.up_at = now;
        self.failures = 0;
        self.set_leader(at, leader, now);
        self.set_state(at, state, now);
    }

    /// What a watch tells.
    pub(super) fn changed(&mut self, header: Header, events: &[Event], now: Instant) -> Result<(), String> {
        self.believe_cluster(header)?;
        for Event { kind, kv } in events {
            let at = Revision(kv.mod_revision.0);
            self.revision = self.revision.max(at);
            let found = (*kind == EventKind::Put).then_some(kv);
            if kv.key.0 == self.keys.leader.as_bytes() {
                self.set_leader(at, found, now);
            } else if kv.key.0 == self.keys.state.as_bytes() {
                self.set_state(at, found, now);
            }
        }
        Ok(())
    }

    /// Put by us.
    pub(super) fn put(&mut self, at: Revision, state: State) {
        if at > self.state_at {
            self.state_at = at;
            self.state = Some(Versioned { revision: at, state });
            self.unreadable = None;
        }
    }

    pub(super) fn set_leader(&mut self, at: Revision, found: Option<&KeyValue>, now: Instant) {
        if at < self.leader_at {
            return;
        }
        self.leader_at = at;
        self.leader = found.map(|kv| LeaderKey {
            name: String::from_utf8_lossy(&kv.value.0).into_owned(),
            created: Fence(Revision(kv.create_revision.0)),
            lease: kv.lease.0,
        });
        if self.campaign_from.is_some_and(|from| now < from) {
            self.give_up();
        }
    }

    fn set_state(&mut self, at: Revision, found: Option<&KeyValue>, now: Instant) {
        if at < self.state_at {
            return;
        }
        let newest = self.state.as_ref();
        let read = match (found, newest) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err("it was removed".to_owned()),
            (Some(kv), Some(known)) if kv.mod_revision.0 == known.revision.0 => Ok(None),
            (Some(kv), Some(known)) if kv.mod_revision.0 < known.revision.0 => {
                Err(format!("it went back to revision {} from {}", kv.mod_revision.0, known.revision.0))
            }
            (Some(kv), known) => read_state(kv, known).map(Some),
        };
        self.state_at = at;
        match read {
            Ok(news) => {
                self.unreadable = None;
                self.state = news.or(self.state.take());
            }
            Err(why) => {
                self.unreadable.get_or_insert_with(|| (now, format!("{}: {why}", self.keys.state)));
            }
        }
    }

    pub(super) fn holds(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    pub(super) fn lease_is_gone(&mut self, id: u64) {
        self.lease = self.lease.filter(|lease| lease.id != id);
    }

    /// Nothing could be read. After a whole round of that etcd is away. Answers how many rounds it has been by now.
    pub(super) fn failed(&mut self, why: String) -> usize {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.round {
            self.link = Link::Lost { since: self.up_at, why };
        }
        self.failures / self.round
    }

    /// Nothing is known from now on, and nobody is led.
    pub(super) fn stop(&mut self, now: Instant) {
        self.lease = None;
        self.leader = None;
        self.link = Link::Lost { since: now, why: "this instance stops".to_owned() };
    }

    /// From now on we do not lead, and do not want to before `campaign_from`.
    pub(super) fn resign(&mut self, campaign_from: Instant) {
        self.campaign_from = Some(campaign_from);
        self.give_up();
    }

    fn give_up(&mut self) {
        self.resigned = self.resigned.max(self.own_key().map(|key| key.created));
    }

    fn own_key(&self) -> Option<&LeaderKey> {
        self.leader.as_ref().filter(|key| self.lease.is_some_and(|lease| lease.id == key.lease))
    }

    pub(super) fn seen(&self, now: Instant) -> Seen {
        let wrong = self.refused.as_ref().or(self.unreadable.as_ref());
        let link = match wrong {
            Some((since, why)) => Link::Lost { since: *since, why: why.clone() },
            None => self.link.clone(),
        };
        Seen { link, state: self.state.clone(), leader: self.leader(now) }
    }

    fn leader(&self, now: Instant) -> Leader {
        match (&self.leader, self.own_key(), self.lease) {
            (None, ..) => Leader::Nobody,
            (Some(_), Some(key), Some(lease)) => {
                let fence = key.created;
                let leads = now < lease.until && self.resigned < Some(fence) && self.refused.is_none();
                if leads { Leader::Own { fence, until: lease.until } } else { Leader::Nobody }
            }
            (Some(other), ..) => Leader::Other(other.name.clone()),
        }
    }

    pub(super) fn duty(&self, now: Instant) -> Duty {
        let Some(lease) = self.lease else { return Duty::Grant };
        if let Some(key) = self.own_key().filter(|key| Some(key.created) <= self.resigned) {
            return Duty::Remove(key.created);
        }
        if lease.renew_at <= now {
            return Duty::Renew(lease.id);
        }
        let free = self.leader.is_none() && self.link == Link::Up && self.alarm().is_none();
        match self.campaign_from.filter(|from| now < *from) {
            None if free => Duty::Campaign(lease.id),
            Some(from) if free => Duty::Wait(lease.renew_at.min(from)),
            _ => Duty::Wait(lease.renew_at),
        }
    }
}

fn read_state(kv: &KeyValue, known: Option<&Versioned>) -> Result<Versioned, String> {
    let state: State = serde_json::from_slice(&kv.value.0).map_err(|error| error.to_string())?;
    match known {
        Some(known) if state.term < known.state.term => {
            Err(format!("its term went back from {} to {}", known.state.term, state.term))
        }
        _ => Ok(Versioned { revision: Revision(kv.mod_revision.0), state }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Duty, Keys, Lease, View};
    use crate::failover::decide::State;
    use crate::failover::state::etcd::wire::{Encoded, Event, EventKind, Header, KeyValue, Number};
    use crate::failover::state::etcd::{Fence, Leader, Link, Revision};
    use crate::topology::{Durability, Term};

    /// What comes, in short.
    #[derive(Clone, Copy, Debug)]
    enum In {
        /// Revision, leader's creation with its lease, state's revision with its term.
        Read(u64, Option<(u64, u64)>, Option<(u64, u64)>),
        /// The same of the state, with a value that is none.
        ReadDamaged(u64),
        StateChanged(u64, u64),
        StateRemoved(u64),
        LeaderChanged(u64, u64),
        LeaderRemoved(u64),
        Put(u64, u64),
        Lease(u64),
        LeaseGone(u64),
        Resign,
        Failed,
        Seconds(u64),
    }

    use In::{
        Failed, LeaderChanged, LeaderRemoved, Lease as Leased, LeaseGone, Put, Read, ReadDamaged, Resign,
        Seconds, StateChanged, StateRemoved,
    };

    struct World {
        view: View,
        start: Instant,
        now: Instant,
    }

    const CLUSTER: u64 = 77;

    fn state(term: u64) -> State {
        State { term: Term(term), ..State::bootstrapping(Durability::Quorum, 7) }
    }

    fn kv(key: &str, value: Vec<u8>, (created, modified): (u64, u64), lease: u64) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: Encoded(value),
            create_revision: Number(created),
            mod_revision: Number(modified),
            lease: Number(lease),
        }
    }

    impl World {
        fn new() -> World {
            let now = Instant::now();
            World { view: View::new(Keys::new("c", "a"), 2, now), start: now, now }
        }

        fn leader(created: u64, lease: u64) -> KeyValue {
            kv("/bellwether/c/leader", format!("of{lease}").into(), (created, created), lease)
        }

        fn state(modified: u64, term: u64) -> KeyValue {
            let value = serde_json::to_vec(&state(term)).unwrap();
            kv("/bellwether/c/state", value, (1, modified), 0)
        }

        fn read(&mut self, revision: u64, leader: Option<&KeyValue>, state: Option<&KeyValue>) {
            let header = Header { cluster_id: Number(CLUSTER), revision: Number(revision) };
            // Late answers, too: what they were to reach was less when they were sent.
            if self.view.believe(header, Revision(0), self.now).is_ok() {
                self.view.read(header, leader, state, self.now);
            }
        }

        fn event(&mut self, kind: EventKind, kv: KeyValue) {
            let header = Header { cluster_id: Number(CLUSTER), revision: kv.mod_revision };
            self.view.changed(header, &[Event { kind, kv }], self.now).unwrap();
        }

        fn take(&mut self, what: In) {
            match what {
                Read(revision, leader, state) => {
                    let leader = leader.map(|(created, lease)| World::leader(created, lease));
                    let state = state.map(|(modified, term)| World::state(modified, term));
                    self.read(revision, leader.as_ref(), state.as_ref());
                }
                ReadDamaged(revision) => {
                    let state = kv("/bellwether/c/state", b"{".to_vec(), (1, revision), 0);
                    self.read(revision, None, Some(&state));
                }
                StateChanged(modified, term) => self.event(EventKind::Put, World::state(modified, term)),
                StateRemoved(at) => {
                    self.event(EventKind::Delete, kv("/bellwether/c/state", vec![], (0, at), 0));
                }
                LeaderChanged(created, lease) => self.event(EventKind::Put, World::leader(created, lease)),
                LeaderRemoved(at) => {
                    self.event(EventKind::Delete, kv("/bellwether/c/leader", vec![], (0, at), 0));
                }
                Put(at, term) => self.view.put(Revision(at), state(term)),
                Leased(id) => self.view.holds(Lease::new(id, Duration::from_secs(10), self.now)),
                LeaseGone(id) => self.view.lease_is_gone(id),
                Resign => self.view.resign(self.now + Duration::from_secs(20)),
                Failed => {
                    self.view.failed("away".to_owned());
                }
                Seconds(n) => self.now += Duration::from_secs(n),
            }
        }

        /// Link, revision and term of the state, leader, duty.
        fn told(&self) -> String {
            let seconds = |at: Instant| at.duration_since(self.start).as_secs();
            let seen = self.view.seen(self.now);
            let link = match seen.link {
                Link::Starting => "starting".to_owned(),
                Link::Up => "up".to_owned(),
                Link::Lost { since, why } => format!("lost since {}: {why}", seconds(since)),
            };
            let state =
                seen.state.map_or("none".to_owned(), |v| format!("{} at {}", v.state.term, v.revision.0));
            let leader = match seen.leader {
                Leader::Nobody => "nobody".to_owned(),
                Leader::Other(name) => name,
                Leader::Own { fence: Fence(Revision(fence)), until } => {
                    format!("own {fence} to {}", seconds(until))
                }
            };
            let duty = match self.view.duty(self.now) {
                Duty::Grant => "grant".to_owned(),
                Duty::Renew(id) => format!("renew {id}"),
                Duty::Remove(Fence(Revision(fence))) => format!("remove {fence}"),
                Duty::Campaign(id) => format!("campaign {id}"),
                Duty::Wait(until) => format!("wait to {}", seconds(until)),
            };
            format!("{link} | {state} | {leader} | {duty}")
        }
    }

    #[track_caller]
    fn check(inputs: &[In], expected: &str) {
        let mut world = World::new();
        for input in inputs {
            world.take(*input);
        }
        assert_eq!(world.told(), expected, "{inputs:?}");
    }

    #[test]
    fn the_newest_counts_whatever_comes_last() {
        check(&[], "starting | none | nobody | grant");
        let read = || Read(9, Some((3, 5)), Some((8, 2)));
        check(&[read()], "up | 2 at 8 | of5 | grant");
        check(&[read(), StateChanged(8, 1), StateChanged(11, 3)], "up | 3 at 11 | of5 | grant");
        check(&[StateChanged(11, 3), LeaderChanged(10, 6), read()], "up | 3 at 11 | of6 | grant");
        check(
            &[read(), Put(12, 4), StateChanged(11, 3), Read(11, None, Some((11, 3)))],
            "up | 4 at 12 | nobody | grant",
        );
        check(&[read(), Failed], "up | 2 at 8 | of5 | grant");
        check(&[Seconds(1), read(), Seconds(4), Failed, Failed], "lost since 1: away | 2 at 8 | of5 | grant");
        check(&[read(), Failed, Failed, Failed, Read(9, None, Some((8, 2)))], "up | 2 at 8 | nobody | grant");
    }

    #[test]
    fn what_is_gone_or_cannot_be_read_is_no_news() {
        let kept = "lost since 2: /bellwether/c/state:";
        let read = || [Read(9, None, Some((8, 2))), Seconds(2)];
        let after = |input: In| [read().to_vec(), vec![Leased(1), input]].concat();
        check(
            &after(ReadDamaged(10)),
            &format!("{kept} EOF while parsing an object at line 1 column 1 | 2 at 8 | nobody | wait to 4"),
        );
        check(&after(StateRemoved(10)), &format!("{kept} it was removed | 2 at 8 | nobody | wait to 4"));
        check(&after(Read(10, None, None)), &format!("{kept} it was removed | 2 at 8 | nobody | wait to 4"));
        let back = format!("{kept} its term went back from 2 to 1 | 2 at 8 | nobody | wait to 4");
        check(&after(StateChanged(10, 1)), &back);
        check(
            &[after(StateChanged(10, 1)), vec![StateChanged(11, 2)]].concat(),
            "up | 2 at 11 | nobody | campaign 1",
        );
        check(
            &[after(ReadDamaged(10)), vec![StateChanged(9, 3)]].concat(),
            &format!("{kept} EOF while parsing an object at line 1 column 1 | 2 at 8 | nobody | wait to 4"),
        );
    }

    #[test]
    fn who_leads_knows_until_when() {
        let leading = || vec![Leased(5), Read(9, Some((3, 5)), None)];
        let then = |more: &[In]| [leading(), more.to_vec()].concat();
        check(&leading(), "up | none | own 3 to 9 | wait to 2");
        check(&then(&[Seconds(2)]), "up | none | own 3 to 9 | renew 5");
        check(&then(&[Seconds(2), Leased(5)]), "up | none | own 3 to 11 | wait to 4");
        // The key is still there: it says of whom, and nobody is certain of it.
        check(&then(&[Seconds(9)]), "up | none | nobody | renew 5");
        check(&then(&[Seconds(9), Leased(5)]), "up | none | own 3 to 18 | wait to 11");
        check(&then(&[LeaseGone(5)]), "up | none | of5 | grant");
        check(&then(&[LeaseGone(4)]), "up | none | own 3 to 9 | wait to 2");
        check(&then(&[LeaderRemoved(10)]), "up | none | nobody | campaign 5");
        check(&then(&[LeaderRemoved(10), LeaderChanged(11, 6)]), "up | none | of6 | wait to 2");
        check(&then(&[Failed, Failed]), "lost since 0: away | none | own 3 to 9 | wait to 2");
        check(&[Leased(5)], "starting | none | nobody | wait to 2");
    }

    #[test]
    fn who_resigns_leads_no_more_whatever_comes() {
        let resigned = || vec![Leased(5), Read(9, Some((3, 5)), None), Resign];
        let then = |more: &[In]| [resigned(), more.to_vec()].concat();
        check(&resigned(), "up | none | nobody | remove 3");
        check(&then(&[LeaderRemoved(10)]), "up | none | nobody | wait to 2");
        // A campaign that was under way.
        check(&then(&[LeaderRemoved(10), LeaderChanged(11, 5)]), "up | none | nobody | remove 11");
        check(&then(&[LeaderRemoved(10), Seconds(20), Leased(5)]), "up | none | nobody | campaign 5");
        // etcd was away for all that time.
        check(&then(&[Seconds(30), Leased(5)]), "up | none | nobody | remove 3");
        check(
            &then(&[LeaderRemoved(10), Seconds(20), Leased(5), LeaderChanged(12, 5)]),
            "up | none | own 12 to 29 | wait to 22",
        );
    }

    #[test]
    fn another_etcd_is_not_believed() {
        let mut world = World::new();
        let header =
            |cluster_id, revision| Header { cluster_id: Number(cluster_id), revision: Number(revision) };
        let mut believe = |header, floor| world.view.believe(header, Revision(floor), world.start).is_ok();
        assert!(believe(header(CLUSTER, 9), 0));
        assert!(!believe(header(CLUSTER + 1, 10), 9), "of another cluster");
        assert!(believe(header(CLUSTER, 8), 8), "overtaken by the answer with 9");
        assert!(!believe(header(CLUSTER, 8), 9), "restored");
        assert!(!believe(header(CLUSTER, 12), 9), "for good");
        let told = world.told();
        assert!(told.starts_with("lost since 0: its revision is 8, where 9 was seen"), "{told}");
    }
}
