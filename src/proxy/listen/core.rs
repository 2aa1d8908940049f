//! Who listens to what, and what it has to be told. PURE.
//!
//! One command at a time is under way at the server, a *round*: it brings the server's channels up to date, or is
//! empty. A round also tells how far we have heard: a server tells its notifications before the ReadyForQuery of
//! the next command (`PostgresMain`), so once a round is done that began at some moment, everything that was
//! committed before that moment has been heard.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::proxy::session::message::put;

/// Channels of one client. One that wants more listens at a server of its own.
pub(crate) const MAX_CHANNELS_OF_CLIENT: usize = 1000;
/// Channels of all clients of a database; beyond it the same.
pub(crate) const MAX_CHANNELS: usize = 10_000;
/// What waits for one client that does not read, or does not end its transaction, in bytes; clients share them. Beyond it
/// the client is ended.
pub(crate) const MAX_UNDELIVERED: usize = 32 << 20;
/// What a notification in a queue costs beside its bytes.
const OVERHEAD: usize = 64;

/// The number of a round.
pub(crate) type Ticket = u64;

/// Of one client, by the pid that it was told.
pub(crate) type ClientId = u32;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    pub(crate) channel: Box<str>,
    /// NotificationResponse.
    pub(crate) message: Box<[u8]>,
}

impl Notification {
    fn size(&self) -> usize {
        self.message.len() + OVERHEAD
    }
}

/// More channels than are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

/// What waits for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Some,
    /// There was more than is kept.
    TooMuch,
}

#[derive(Debug, Default)]
struct Listener {
    channels: BTreeSet<Box<str>>,
    queue: Queue,
}

#[derive(Debug)]
enum Queue {
    Open {
        waiting: VecDeque<Arc<Notification>>,
        bytes: usize,
    },
    /// Full once, and nothing of it is kept.
    Overflowed,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue::Open { waiting: VecDeque::new(), bytes: 0 }
    }
}

#[derive(Debug, Default)]
struct Channel {
    listeners: BTreeSet<ClientId>,
    /// Once the commands that have been sent are done.
    at_server: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Core {
    listeners: HashMap<ClientId, Listener>,
    /// Each with somebody who listens, or still to be given up at the server.
    channels: BTreeMap<Box<str>, Channel>,
    /// Those of which the server is to be told.
    changed: BTreeSet<Box<str>>,
    /// done <= begun <= done + 1; wanted <= begun + 1.
    begun: Ticket,
    done: Ticket,
    wanted: Ticket,
    /// When the round under way began, and the last one that is done.
    began_at: Option<Instant>,
    heard_until: Option<Instant>,
    /// Who is to be woken when a round is done.
    waiting: Vec<(Ticket, ClientId)>,
    /// Backends whose notifications are one client's for certain.
    owners: HashMap<u32, ClientId>,
}

impl Core {
    pub(crate) fn join(&mut self, client: ClientId) {
        self.listeners.entry(client).or_default();
    }

    pub(crate) fn leave(&mut self, client: ClientId) {
        self.keep_only(client, &BTreeSet::new());
        self.disown(client);
        self.listeners.remove(&client);
        self.waiting.retain(|(_, waiting)| *waiting != client);
    }

    pub(crate) fn is_deserted(&self) -> bool {
        self.listeners.is_empty()
    }

    pub(crate) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.listeners.keys().copied()
    }

    /// How many channels somebody listens to.
    pub(crate) fn channels(&self) -> usize {
        self.channels.values().filter(|channel| !channel.listeners.is_empty()).count()
    }

    /// In effect when the round is done.
    pub(crate) fn listen(&mut self, client: ClientId, channels: &[Box<str>]) -> Result<Ticket, TooMany> {
        let Some(listener) = self.listeners.get_mut(&client) else { return Err(TooMany) };
        let new = channels.iter().filter(|channel| !self.channels.contains_key(*channel)).count();
        if listener.channels.len() + channels.len() > MAX_CHANNELS_OF_CLIENT
            || self.channels.len() + new > MAX_CHANNELS
        {
            return Err(TooMany);
        }
        for channel in channels {
            listener.channels.insert(channel.clone());
            let entry = self.channels.entry(channel.clone()).or_default();
            entry.listeners.insert(client);
            if !entry.at_server {
                self.changed.insert(channel.clone());
            }
        }
        Ok(self.want_round(client))
    }

    /// The client gives up every other channel.
    pub(crate) fn keep_only(&mut self, client: ClientId, kept: &BTreeSet<Box<str>>) {
        let Some(listener) = self.listeners.get_mut(&client) else { return };
        let given_up: Vec<_> = listener.channels.difference(kept).cloned().collect();
        for name in given_up {
            listener.channels.remove(&name);
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            channel.listeners.remove(&client);
            if !channel.listeners.is_empty() {
                continue;
            }
            if channel.at_server {
                self.changed.insert(name);
            } else {
                self.changed.remove(&name);
                self.channels.remove(&name);
            }
        }
    }

    /// A round that has not begun yet.
    pub(crate) fn want_round(&mut self, client: ClientId) -> Ticket {
        let ticket = self.keep_alive();
        self.waiting.push((ticket, client));
        ticket
    }

    /// The same, and nobody waits for it.
    pub(crate) fn keep_alive(&mut self) -> Ticket {
        self.wanted = self.begun + 1;
        self.wanted
    }

    pub(crate) fn is_done(&self, ticket: Ticket) -> bool {
        self.done >= ticket
    }

    /// Since when a round has been under way.
    pub(crate) fn under_way_since(&self) -> Option<Instant> {
        self.began_at
    }

    /// What to send, if anything: it begins a round.
    pub(crate) fn begin_round(&mut self, now: Instant) -> Option<String> {
        let idle = self.done == self.begun;
        if !idle || (self.wanted <= self.begun && self.changed.is_empty()) {
            return None;
        }
        self.begun += 1;
        self.began_at = Some(now);
        let mut text = String::new();
        for name in std::mem::take(&mut self.changed) {
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            let command = match (channel.listeners.is_empty(), channel.at_server) {
                (false, false) => "LISTEN",
                (true, true) => "UNLISTEN",
                _ => continue,
            };
            channel.at_server = !channel.at_server;
            let quoted = name.replace('"', "\"\"");
            text.push_str(&format!("{command} \"{quoted}\";"));
            if channel.listeners.is_empty() {
                self.channels.remove(&name);
            }
        }
        Some(text)
    }

    /// ReadyForQuery: who is to be woken.
    pub(crate) fn round_done(&mut self) -> Vec<ClientId> {
        self.done = self.begun;
        self.heard_until = self.began_at.take();
        let done = self.done;
        let mut woken = vec![];
        self.waiting.retain(|(ticket, client)| {
            let waits = *ticket > done;
            if !waits {
                woken.push(*client);
            }
            waits
        });
        woken
    }

    /// A client is about to use `backend`, which has served others until `unused_since`. `Some`: what it says
    /// is not known to be the client's own before this round is done and [`Core::own_now`] was called.
    pub(crate) fn own(
        &mut self,
        client: ClientId,
        backend: u32,
        unused_since: Option<Instant>,
    ) -> Option<Ticket> {
        let heard = self.heard_until;
        if unused_since.is_none_or(|since| heard.is_some_and(|until| until > since)) {
            self.own_now(client, backend);
            return None;
        }
        Some(self.want_round(client))
    }

    /// Everything that others have said by way of `backend` has been heard.
    pub(crate) fn own_now(&mut self, client: ClientId, backend: u32) {
        self.disown(client);
        self.owners.insert(backend, client);
    }

    /// The client gives its server up, or has lost it.
    pub(crate) fn disown(&mut self, client: ClientId) {
        self.owners.retain(|_, owner| *owner != client);
    }

    /// What the server says on behalf of its process `backend`; who is to be woken.
    pub(crate) fn notified(&mut self, backend: u32, channel: &str, payload: &[u8]) -> Vec<ClientId> {
        let Some(listeners) = self.channels.get(channel).map(|channel| &channel.listeners) else {
            return vec![];
        };
        let sender = self.owners.get(&backend).copied().unwrap_or(backend);
        let mut message = vec![];
        put(&mut message, b'A', &[&sender.to_be_bytes(), channel.as_bytes(), b"\0", payload, b"\0"]);
        let notification = Arc::new(Notification { channel: channel.into(), message: message.into() });
        for client in listeners {
            if let Some(listener) = self.listeners.get_mut(client) {
                listener.queue.push(&notification);
            }
        }
        listeners.iter().copied().collect()
    }

    /// The next of what has come for a client: not many more than `most` bytes.
    pub(crate) fn take(&mut self, client: ClientId, most: usize) -> Vec<Arc<Notification>> {
        let mut taken = vec![];
        let Some(listener) = self.listeners.get_mut(&client) else { return taken };
        let Queue::Open { waiting, bytes } = &mut listener.queue else { return taken };
        let left = bytes.saturating_sub(most);
        while let Some(next) = (*bytes > left).then(|| waiting.pop_front()).flatten() {
            *bytes -= next.size();
            taken.push(next);
        }
        taken
    }

    pub(crate) fn left(&self, client: ClientId) -> Left {
        match self.listeners.get(&client).map(|listener| &listener.queue) {
            Some(Queue::Overflowed) => Left::TooMuch,
            Some(Queue::Open { waiting, .. }) if !waiting.is_empty() => Left::Some,
            Some(Queue::Open { .. }) | None => Left::Nothing,
        }
    }

    /// Everybody who waits for a round waits in vain.
    pub(crate) fn abandon(&mut self) -> HashSet<ClientId> {
        self.waiting.clear();
        self.clients().collect()
    }
}

impl Queue {
    fn push(&mut self, notification: &Arc<Notification>) {
        let Queue::Open { waiting, bytes } = self else { return };
        *bytes += notification.size();
        if *bytes > MAX_UNDELIVERED {
            *self = Queue::Overflowed;
        } else {
            waiting.push_back(notification.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "some moment is needed to count from")]

    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use super::{ClientId, Core, Left, MAX_CHANNELS_OF_CLIENT, MAX_UNDELIVERED, TooMany};

    fn names(list: &str) -> Vec<Box<str>> {
        list.split_ascii_whitespace().map(Into::into).collect()
    }

    fn set(list: &str) -> BTreeSet<Box<str>> {
        names(list).into_iter().collect()
    }

    /// A round from its beginning to its end: what was sent, and who was woken.
    fn round(core: &mut Core, now: Instant) -> Option<(String, Vec<ClientId>)> {
        let sent = core.begin_round(now)?;
        assert_eq!(core.begin_round(now), None, "one at a time");
        Some((sent, core.round_done()))
    }

    fn core(clients: &[ClientId]) -> Core {
        let mut core = Core::default();
        clients.iter().for_each(|client| core.join(*client));
        core
    }

    /// Sender and payload of each.
    fn heard(core: &mut Core, client: ClientId) -> Vec<(u32, String)> {
        let taken = core.take(client, usize::MAX);
        let read = taken.iter().map(|notification| {
            let body = &notification.message[5..];
            let sender = u32::from_be_bytes(*body.first_chunk().expect("a pid"));
            let payload = &body[4 + notification.channel.len() + 1..body.len() - 1];
            (sender, String::from_utf8_lossy(payload).into_owned())
        });
        read.collect()
    }

    #[test]
    fn the_server_listens_to_what_anybody_listens_to() {
        let now = Instant::now();
        let mut core = core(&[1, 2]);
        assert_eq!(round(&mut core, now), None);
        let first = core.listen(1, &names("a b")).expect("room");
        assert_eq!(core.begin_round(now).as_deref(), Some("LISTEN \"a\";LISTEN \"b\";"));
        // While that is under way: it needs another round to be certain of `a`, although nothing is to be said.
        let second = core.listen(2, &names("a")).expect("room");
        assert!(!core.is_done(first));
        assert_eq!(core.round_done(), [1]);
        assert!(core.is_done(first) && !core.is_done(second));
        assert_eq!(round(&mut core, now), Some((String::new(), vec![2])));
        core.keep_only(1, &set("b"));
        assert_eq!(round(&mut core, now), None, "2 listens to a");
        core.leave(2);
        assert_eq!(round(&mut core, now), Some(("UNLISTEN \"a\";".to_owned(), vec![])));
        // Given up before the server heard of it.
        core.listen(1, &names("c \"")).expect("room");
        core.keep_only(1, &set("b \""));
        assert_eq!(round(&mut core, now), Some(("LISTEN \"\"\"\";".to_owned(), vec![1])));
        core.keep_only(1, &set("\""));
        core.listen(1, &names("b")).expect("room");
        assert_eq!(round(&mut core, now), Some((String::new(), vec![1])), "still listened to");
        core.leave(1);
        assert!(core.is_deserted());
        assert_eq!(core.channels(), 0);
    }

    #[test]
    fn each_hears_what_it_listens_to_once_and_in_order() {
        let mut core = core(&[1, 2, 3]);
        for (client, channels) in [(1, "a"), (2, "a b"), (3, "b")] {
            core.listen(client, &names(channels)).expect("room");
        }
        assert_eq!(core.notified(70, "a", b"x"), [1, 2]);
        assert_eq!(core.notified(71, "b", b""), [2, 3]);
        assert!(core.notified(70, "c", b"").is_empty());
        assert_eq!(core.notified(70, "a", b"y"), [1, 2]);
        let of = |list: &[(u32, &str)]| list.iter().map(|(n, s)| (*n, (*s).to_owned())).collect::<Vec<_>>();
        assert_eq!(heard(&mut core, 1), of(&[(70, "x"), (70, "y")]));
        assert_eq!(heard(&mut core, 2), of(&[(70, "x"), (71, ""), (70, "y")]));
        assert_eq!(heard(&mut core, 2), []);
    }

    #[test]
    fn a_sender_is_named_only_when_it_is_certain() {
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        let mut core = core(&[1, 2]);
        core.listen(2, &names("a")).expect("room");
        round(&mut core, at(0));
        // Fresh: nobody else was there.
        assert_eq!(core.own(1, 70, None), None);
        // Somebody was there after what was heard: a message of theirs may still be on its way.
        let ticket = core.own(2, 71, Some(at(1000))).expect("a round first");
        core.notified(70, "a", b"by 1");
        core.notified(71, "a", b"by whoever was there before");
        round(&mut core, at(2000));
        assert!(core.is_done(ticket));
        core.own_now(2, 71);
        core.notified(71, "a", b"by 2");
        core.disown(1);
        core.notified(70, "a", b"by somebody else");
        let senders: Vec<_> = heard(&mut core, 2).into_iter().map(|(sender, _)| sender).collect();
        assert_eq!(senders, [1, 71, 2, 70]);
        // Since then everything has been heard.
        assert_eq!(core.own(1, 72, Some(at(1500))), None);
    }

    #[test]
    fn whoever_does_not_take_its_notifications_loses_them_alone() {
        let mut core = core(&[1, 2]);
        for client in [1, 2] {
            core.listen(client, &names("a")).expect("room");
        }
        let payload = vec![b'x'; 7999];
        for _ in 0..=MAX_UNDELIVERED / 8000 {
            core.notified(70, "a", &payload);
            assert_eq!(core.take(1, 1).len(), 1);
        }
        assert_eq!(core.left(2), Left::TooMuch);
        core.notified(70, "a", b"more");
        assert_eq!((core.take(2, 1), core.left(2)), (vec![], Left::TooMuch));
        assert_eq!(heard(&mut core, 1).len(), 1);
    }

    #[test]
    fn channels_are_bounded() {
        let mut core = core(&[1]);
        let many: Vec<Box<str>> = (0..MAX_CHANNELS_OF_CLIENT).map(|n| n.to_string().into()).collect();
        assert!(core.listen(1, &many).is_ok());
        assert_eq!(core.listen(1, &names("more")), Err(TooMany));
        assert_eq!(core.listen(9, &names("a")), Err(TooMany), "not one of ours");
    }
}
