//! What the instances of a cluster tell each other: how each stands, directly, from console to console.
//!
//! Every instance asks each of its peers over a connection of its own (`SHOW MEMBER AFTER n FOR 'own'`) and is told
//! when something that matters has changed, or a quarter of a second later. So one round of questions carries news in
//! one way's time, shows that the other lives, and says since when: an answer holds from when its question left. What was
//! heard is published as [`Members`]; nothing is decided here.
//!
//! [`answers`], [`words`], [`peer`] and [`message`] are pure; [`tell`] and [`ask`] do.
//!
//! The answers of this instance are from one process only: the one that decides and receives WAL. [`Exchange::open`] and
//! [`Exchange::close`] follow that, so that after a takeover no old process tells of an old promise. It asks on until it has handed over ([`Exchange::leave`]):
//! its sessions go on by what is answered, and the new process begins with that.

mod answers;
mod ask;
mod message;
mod metrics;
mod peer;
mod tell;
mod words;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::{mpsc, watch};

pub(super) use self::ask::{NotHeard, hear};
pub(super) use self::message::MemberSight;

use self::ask::Asking;
use self::peer::Peer;
use self::tell::Telling;
use self::words::LastWords;
use super::config::Config;
use super::plans;
use crate::admin::AskedMember;
use crate::net::TlsForServers;
use crate::topology::{Deed, Directive, Member, Members, NodeName, ProxyStatus, WalStatus};

/// Nobody was heard yet.
pub(super) fn configured(config: &Config) -> Members {
    if plans::is_alone(config) {
        return Members::alone();
    }
    let others = config.peers.iter().map(|peer| (peer.instance.clone(), None)).collect();
    Members { own: config.instance.clone(), others, ..Members::default() }
}

/// This instance, as its planes publish it.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) instance: String,
    pub(super) directive: watch::Receiver<Arc<Directive>>,
    pub(super) wal: watch::Receiver<Arc<WalStatus>>,
    pub(super) proxy: watch::Receiver<Arc<ProxyStatus>>,
    pub(super) local: Vec<NodeName>,
    pub(super) at_work: watch::Receiver<Arc<Vec<NodeName>>>,
    pub(super) deeds: watch::Receiver<Arc<Vec<Deed>>>,
    /// All of the cluster, in order.
    pub(super) instances: Vec<String>,
}

impl Own {
    /// As of `now`, no earlier.
    fn member(&self, words: &LastWords, now: Instant) -> Member {
        let wal = self.wal.borrow().clone();
        Member {
            instance: self.instance.clone(),
            directive: self.directive.borrow().clone(),
            last_words: words.before(wal.promised),
            speaks_since: words.since().unwrap_or(now),
            instances: self.instances.clone(),
            wal,
            proxy: self.proxy.borrow().clone(),
            local: self.local.clone(),
            at_work: self.at_work.borrow().to_vec(),
            deeds: self.deeds.borrow().to_vec(),
        }
    }

    /// Until any of it has been published again. Never, when the planes have ended.
    async fn changed(&mut self) {
        let changed = tokio::select! {
            changed = self.directive.changed() => changed,
            changed = self.wal.changed() => changed,
            changed = self.proxy.changed() => changed,
            changed = self.at_work.changed() => changed,
            changed = self.deeds.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether this process speaks for its instance; or whether it asks the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Closed,
    Open,
}

/// The conversations with the others, from outside.
#[derive(Debug)]
pub(super) struct Exchange {
    peers: Vec<String>,
    words: Arc<Mutex<LastWords>>,
    telling: watch::Sender<Gate>,
    asking: watch::Sender<Gate>,
}

impl Exchange {
    /// It is closed at first. The future never ends.
    pub(super) fn new(
        config: &Config,
        tls: &TlsForServers,
        own: Own,
        questions: mpsc::Receiver<AskedMember>,
        members: watch::Sender<Arc<Members>>,
        registry: &Registry,
    ) -> prometheus::Result<(Exchange, impl Future<Output = ()> + use<>)> {
        metrics::register(registry, members.subscribe())?;
        let members = Arc::new(members);
        let words = Arc::new(Mutex::new(LastWords::default()));
        let (telling, told) = watch::channel(Gate::Closed);
        let (asking, asked) = watch::channel(Gate::Closed);
        let peers: Vec<Asking> = (config.peers.iter())
            .map(|peer| Asking {
                peer: Peer::new(&config.cluster, &config.instance, &peer.instance),
                target: plans::peer_target(config, tls, peer),
                members: members.clone(),
            })
            .collect();
        let answers =
            Telling { cluster: config.cluster.clone(), own, words: words.clone(), gate: told, members };
        let run = async move {
            tokio::join!(answers.run(questions), ask::all(peers, asked));
        };
        let peers = config.peers.iter().map(|peer| peer.instance.clone()).collect();
        Ok((Exchange { peers, words, telling, asking }, run))
    }

    /// This process speaks for its instance from `now` on, and hears the others.
    pub(super) fn open(&self, now: Instant) {
        self.words.lock().open(now, self.peers.iter().cloned());
        self.telling.send_replace(Gate::Open);
        self.asking.send_if_modified(|gate| std::mem::replace(gate, Gate::Open) != Gate::Open);
    }

    /// When this returns, nothing more is told. The others are heard on: its sessions go on by what they say.
    pub(super) fn close(&self) {
        self.words.lock().close();
        self.telling.send_replace(Gate::Closed);
    }

    /// The others are asked no more: another process does.
    pub(super) fn leave(&self) {
        self.asking.send_replace(Gate::Closed);
    }
}
