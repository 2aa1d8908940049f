//! LISTEN and NOTIFY for clients that have no server of their own: one connection per database listens for all of
//! them.
//!
//! [`core`] knows who listens to what; [`link`] is the connection to the primary and speaks for it. A session holds a
//! [`Subscription`], asks for rounds (see `core`) and takes what has come; when PostgreSQL would give it to the
//! client is the session's to decide.
//!
//! The connection is made as the user who listens first, whom the servers admit to that database as they do for its
//! statements. It needs no right that anybody who listens does not have: every user of a database may listen to
//! every channel of it. It is opened with the first LISTEN and closed with the last client that listens. When
//! it breaks, what was said meanwhile is lost, and PostgreSQL's clients know that by the loss of their connection:
//! so the sessions that listened are ended, with 57P01. A client that wants it before there is one, or beyond a
//! limit, listens at a server of its own, which pins it.
//!
//! There is one for each client encoding, so that the server itself translates what it says.

pub(crate) mod core;
mod link;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::core::{Notification, Ticket};
pub(crate) use self::link::run;

use self::core::{ClientId, Core, Left};
use super::cancel::Slot;
use crate::net::Credentials;

/// After a connection could not be had it is not tried again for so long: clients pin meanwhile.
const BACK_OFF: Duration = Duration::from_secs(1);

/// Whose notifications one connection hears.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) database: Arc<str>,
    /// `client_encoding`, as the server reports it.
    pub(crate) encoding: Arc<str>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Hubs {
    /// Locked before any hub's own.
    hubs: Mutex<HashMap<Key, Entry>>,
    /// Those that have no connection yet.
    opened: Mutex<Vec<Arc<Hub>>>,
    more: Notify,
}

#[derive(Debug)]
enum Entry {
    Open(Arc<Hub>),
    Failed { at: Instant },
}

/// One database's.
#[derive(Debug)]
struct Hub {
    key: Key,
    user: Arc<str>,
    credentials: Credentials,
    inside: Mutex<Inside>,
    /// There may be something to say to the server.
    work: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    core: Core,
    slots: HashMap<ClientId, Arc<Slot>>,
    /// Why there is no connection any more.
    lost: Option<Arc<str>>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) listeners: usize,
    pub(crate) channels: usize,
}

impl Hubs {
    /// A place for the client of `slot`, who logs in at servers as `user`; `None` where it cannot be had now.
    pub(crate) fn join(
        &self,
        key: Key,
        (user, credentials): (&Arc<str>, &Credentials),
        slot: &Arc<Slot>,
        now: Instant,
    ) -> Option<Subscription> {
        let mut hubs = self.hubs.lock();
        let hub = match hubs.get(&key) {
            Some(Entry::Open(hub)) => hub.clone(),
            Some(Entry::Failed { at }) if now.saturating_duration_since(*at) < BACK_OFF => return None,
            Some(Entry::Failed { .. }) | None => {
                let hub = Arc::new(Hub {
                    key: key.clone(),
                    user: user.clone(),
                    credentials: credentials.clone(),
                    inside: Mutex::default(),
                    work: Notify::new(),
                });
                hubs.insert(key, Entry::Open(hub.clone()));
                self.opened.lock().push(hub.clone());
                self.more.notify_one();
                hub
            }
        };
        let client = slot.key.pid;
        {
            let mut inside = hub.inside.lock();
            inside.core.join(client);
            inside.slots.insert(client, slot.clone());
        }
        Some(Subscription { hub, client })
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let mut sizes = Sizes::default();
        for entry in self.hubs.lock().values() {
            let Entry::Open(hub) = entry else { continue };
            let inside = hub.inside.lock();
            sizes.listeners += inside.slots.len();
            sizes.channels += inside.core.channels();
        }
        sizes
    }

    /// Nobody joins `hub` any more. `failed`: it never had a connection.
    fn close(&self, hub: &Arc<Hub>, failed: Option<Instant>) {
        let mut hubs = self.hubs.lock();
        let is_known = matches!(hubs.get(&hub.key), Some(Entry::Open(known)) if Arc::ptr_eq(known, hub));
        match failed {
            _ if !is_known => {}
            Some(at) => drop(hubs.insert(hub.key.clone(), Entry::Failed { at })),
            None => drop(hubs.remove(&hub.key)),
        }
    }

    /// The same, if nobody listens.
    fn close_deserted(&self, hub: &Arc<Hub>) -> bool {
        let mut hubs = self.hubs.lock();
        let deserted = hub.is_deserted();
        if deserted {
            hubs.remove(&hub.key);
        }
        deserted
    }
}

/// A client's place. Dropped, it listens to nothing any more.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    client: ClientId,
}

/// Why a subscription is of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The connection broke: something may not have been heard.
    Lost(Arc<str>),
    /// The client did not take what was there for it.
    Slow,
}

impl Subscription {
    /// `None`: too many channels.
    pub(crate) fn listen(&self, channels: &[Box<str>]) -> Option<Ticket> {
        let ticket = self.hub.inside.lock().core.listen(self.client, channels).ok()?;
        self.hub.work.notify_one();
        Some(ticket)
    }

    pub(crate) fn keep_only(&self, channels: &BTreeSet<Box<str>>) {
        self.hub.inside.lock().core.keep_only(self.client, channels);
        self.hub.work.notify_one();
    }

    /// When it is done, everything has been heard that was committed before now.
    pub(crate) fn want_round(&self) -> Ticket {
        let ticket = self.hub.inside.lock().core.want_round(self.client);
        self.hub.work.notify_one();
        ticket
    }

    /// Also when it never will be.
    pub(crate) fn is_done(&self, ticket: Ticket) -> bool {
        let inside = self.hub.inside.lock();
        inside.lost.is_some() || inside.core.is_done(ticket)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.hub.inside.lock().lost.is_some()
    }

    /// See [`Core::own`].
    pub(crate) fn own(&self, backend: u32, unused_since: Option<Instant>) -> Option<Ticket> {
        let ticket = self.hub.inside.lock().core.own(self.client, backend, unused_since)?;
        self.hub.work.notify_one();
        Some(ticket)
    }

    pub(crate) fn own_now(&self, backend: u32) {
        self.hub.inside.lock().core.own_now(self.client, backend);
    }

    pub(crate) fn disown(&self) {
        self.hub.inside.lock().core.disown(self.client);
    }

    /// The next of what has come, not many more than `most` bytes.
    pub(crate) fn take(&self, most: usize) -> Vec<Arc<Notification>> {
        self.hub.inside.lock().core.take(self.client, most)
    }

    /// Whether nothing more will come.
    pub(crate) fn ended(&self) -> Option<Ended> {
        let inside = self.hub.inside.lock();
        match (inside.core.left(self.client), &inside.lost) {
            (Left::TooMuch, _) => Some(Ended::Slow),
            (Left::Nothing, Some(why)) => Some(Ended::Lost(why.clone())),
            (Left::Nothing | Left::Some, _) => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inside = self.hub.inside.lock();
        inside.core.leave(self.client);
        inside.slots.remove(&self.client);
        drop(inside);
        self.hub.work.notify_one();
    }
}

impl Hub {
    fn is_deserted(&self) -> bool {
        self.inside.lock().core.is_deserted()
    }

    fn wake(inside: &Inside, clients: impl IntoIterator<Item = ClientId>) {
        for client in clients {
            if let Some(slot) = inside.slots.get(&client) {
                slot.wake();
            }
        }
    }

    fn lose(&self, why: &str) {
        let mut inside = self.inside.lock();
        inside.lost = Some(why.into());
        let all = inside.core.abandon();
        Hub::wake(&inside, all);
    }
}
