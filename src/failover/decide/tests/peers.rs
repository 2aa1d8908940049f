//! The other instances of the small world: of each a relay and a proxy that obey at once, until its host dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::world::World;
use crate::topology::{
    Directive, Durability, Heard, Member, Members, NodeName, ProxyStatus, Term, Upstream, WalStatus,
};

pub(super) const OWN: &str = "bw";

#[derive(Debug)]
pub(super) struct Peers {
    since: Instant,
    /// What the relay of this instance has told whom; it speaks as the others do.
    own_words: Words,
    pub(super) all: BTreeMap<&'static str, Peer>,
}

#[derive(Debug)]
pub(super) struct Peer {
    died_at: Option<Instant>,
    pub(super) wal: WalStatus,
    proxy: ProxyStatus,
    words: Words,
    /// The nodes on its host.
    local: Vec<NodeName>,
}

#[derive(Debug, Default)]
struct Words {
    promised: Term,
    /// When whom was last told of an earlier promise.
    last: BTreeMap<String, Instant>,
}

impl Peers {
    /// Each by its name, and the nodes on its host behind that.
    pub(super) fn new(peers: &[&'static str], since: Instant) -> Peers {
        let peer = |text: &&'static str| {
            let mut words = text.split(' ');
            let name = words.next().expect("a name");
            let local = words.map(|node| node.parse().expect("a node name")).collect();
            let peer = Peer {
                died_at: None,
                wal: WalStatus::starting(),
                proxy: ProxyStatus::default(),
                words: Words::default(),
                local,
            };
            (name, peer)
        };
        let all = peers.iter().map(peer).collect();
        Peers { since, own_words: Words::default(), all }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let others = self.all.keys().map(|name| (*name).to_owned());
        if self.all.is_empty() { Vec::new() } else { others.chain([OWN.to_owned()]).collect() }
    }

    pub(super) fn kill(&mut self, name: &str, now: Instant) {
        self.all.get_mut(name).expect("one of them").died_at = Some(now);
    }

    pub(super) fn revive(&mut self, name: &str) {
        self.all.get_mut(name).expect("one of them").died_at = None;
    }

    /// Of those that must have a commit, so many have it.
    pub(super) fn acknowledge(&self, directive: &Directive) -> bool {
        let Some(relays) = directive.quorums.last() else { return true };
        let has = |name: &&String| {
            **name == OWN || self.all.get(name.as_str()).is_some_and(|peer| peer.died_at.is_none())
        };
        relays.relays.iter().filter(has).count() >= relays.acks
    }

    /// `own`: the relay of this instance.
    pub(super) fn obey(&mut self, directive: &Directive, own: &mut WalStatus, now: Instant) {
        if self.all.is_empty() {
            return;
        }
        let heard_until: Vec<(String, Instant)> =
            self.all.iter().map(|(name, peer)| ((*name).to_owned(), peer.died_at.unwrap_or(now))).collect();
        self.own_words.promised(own.promised, &heard_until, now);
        let source = directive.floor.as_ref().and_then(|floor| floor.source.as_deref());
        // Who is dead gives nothing; `None`: nobody has to be asked.
        let log = source.map(|source| match self.all.get(source) {
            None => Some(own.clone()),
            Some(peer) => peer.died_at.is_none().then(|| peer.wal.clone()),
        });
        let completes = |wal: &mut WalStatus| {
            if wal.log_term == directive.term {
                return;
            }
            if let (Some(Some(log)), None) = (&log, &directive.upstream) {
                (wal.timeline, wal.durable, wal.verified) = (log.timeline, log.durable, log.verified);
                wal.log_term = directive.term;
            }
        };
        completes(own);
        let streams = matches!(own.upstream, Upstream::Streaming { .. });
        if streams {
            own.log_term = directive.term;
        }
        for peer in self.all.values_mut().filter(|peer| peer.died_at.is_none()) {
            peer.wal.promised = peer.wal.promised.max(directive.term);
            peer.words.promised(peer.wal.promised, &heard_until, now);
            peer.proxy.confirmed = directive.term;
            peer.proxy.cleared.clone_from(&directive.candidate);
            peer.proxy.drained = (!directive.coming_to_rest().is_empty()).then(|| crate::topology::Drained {
                round: directive.drains,
                busy: 0,
                pinned: BTreeMap::new(),
            });
            peer.wal.upstream = Upstream::Idle;
            completes(&mut peer.wal);
            if streams {
                peer.wal = WalStatus { promised: peer.wal.promised, followers: Vec::new(), ..own.clone() };
            }
        }
    }

    pub(super) fn members(&self, now: Instant) -> Members {
        let mut instances = self.names();
        instances.sort_unstable();
        let heard = |(name, peer): (&&'static str, &Peer)| {
            let member = Member {
                instance: (*name).to_owned(),
                directive: Arc::new(Directive::starting(Durability::Quorum)),
                wal: Arc::new(peer.wal.clone()),
                proxy: Arc::new(peer.proxy.clone()),
                local: peer.local.clone(),
                at_work: Vec::new(),
                deeds: Vec::new(),
                last_words: peer.words.last.clone(),
                speaks_since: self.since,
                instances: instances.clone(),
            };
            let asked_at = peer.died_at.unwrap_or(now);
            ((*name).to_owned(), Some(Heard { asked_at, member: Arc::new(member) }))
        };
        if self.all.is_empty() {
            return Members::alone();
        }
        Members {
            own: OWN.to_owned(),
            others: self.all.iter().map(heard).collect(),
            last_words: self.own_words.last.clone(),
            last_words_under: self.own_words.promised,
            speaks_since: Some(self.since),
        }
    }
}

impl Words {
    fn promised(&mut self, term: Term, heard_until: &[(String, Instant)], now: Instant) {
        if term > self.promised {
            self.promised = term;
            self.last = heard_until.iter().map(|(name, until)| (name.clone(), (*until).min(now))).collect();
            self.last.insert(OWN.to_owned(), now);
        }
    }
}

impl World {
    /// Its host is gone.
    pub(super) fn kill_peer(&mut self, name: &str) {
        let now = self.now.instant;
        self.peers.kill(name, now);
    }
}
