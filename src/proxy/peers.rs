//! Other instances, as far as a client's cancel may reach the wrong one: behind a load balancer the CancelRequest is
//! a connection of its own.
//!
//! The pid that a client is told carries the mark of its instance, so that whoever gets the CancelRequest knows
//! whose it is, and passes it on to that peer as a CancelRequest whose secret ends with [`PASSED`]. One that
//! was passed on is carried out or forgotten, and never passed on again, whatever the configurations say. As
//! everywhere in PostgreSQL, the one who cancels hears nothing of it.
//!
//! Not here: what the instances need of each other beside that.

use std::sync::Arc;

use crate::pg::protocol::startup::CancelKey;
use crate::topology::Address;

/// CancelRequests on their way to peers at a time. Beyond that they are forgotten, and counted: the stranger who
/// sends them is not to make us send as many.
pub(super) const MAX_UNDER_WAY: usize = 64;

/// At the end of the secret of a CancelRequest that comes from a peer.
const PASSED: &[u8; 8] = b"\0peer\0bw";
/// `CancelKey::secret` has at least this many bytes.
const MIN_SECRET: usize = 4;

/// An instance in a pid: the upper 11 of its 31 bits, which leaves a million sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u16);

impl Mark {
    const BITS: u32 = 11;
    const SESSION_BITS: u32 = 31 - Mark::BITS;

    /// By its name alone, so that instances need not agree on anything (FNV-1a, folded). Two names may have the same
    /// one: that is for the configuration to refuse.
    pub fn of(instance: &str) -> Mark {
        let add = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let hash = instance.bytes().fold(0x811C_9DC5, add);
        let folded = hash ^ (hash >> Mark::BITS) ^ (hash >> (2 * Mark::BITS));
        Mark((folded & ((1 << Mark::BITS) - 1)) as u16)
    }

    /// Positive as an i32, which is what drivers take it for.
    pub(super) fn pid(self, session: u32) -> u32 {
        (u32::from(self.0) << Mark::SESSION_BITS) | (session & ((1 << Mark::SESSION_BITS) - 1))
    }

    fn in_pid(pid: u32) -> Mark {
        Mark(((pid >> Mark::SESSION_BITS) & ((1 << Mark::BITS) - 1)) as u16)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub instance: String,
    /// One of its listeners. Reached as servers are, by `tls.servers`.
    pub address: Address,
}

/// This instance's mark, and the others.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    pub(super) own: Mark,
    peers: Arc<[(Mark, Peer)]>,
}

/// Where a CancelRequest came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    Client,
    Peer,
}

impl Peers {
    pub fn new(instance: &str, peers: &[Peer]) -> Peers {
        let marked = peers.iter().map(|peer| (Mark::of(&peer.instance), peer.clone()));
        Peers { own: Mark::of(instance), peers: marked.collect() }
    }

    /// Whom to pass on a request for `pid`, which is no session's here.
    pub(super) fn of(&self, pid: u32, via: Via) -> Option<&Peer> {
        let mark = Mark::in_pid(pid);
        let is_anothers = via == Via::Client && mark != self.own;
        self.peers.iter().find(|(of, _)| is_anothers && *of == mark).map(|(_, peer)| peer)
    }
}

/// The key as it was given out.
pub(super) fn unwrapped(key: &CancelKey) -> (CancelKey, Via) {
    match key.secret.strip_suffix(PASSED) {
        Some(secret) if secret.len() >= MIN_SECRET => {
            (CancelKey { pid: key.pid, secret: secret.to_vec() }, Via::Peer)
        }
        _ => (key.clone(), Via::Client),
    }
}

/// The key as a peer gets it.
pub(super) fn wrapped(key: &CancelKey) -> CancelKey {
    CancelKey { pid: key.pid, secret: [&key.secret, PASSED.as_slice()].concat() }
}

#[cfg(test)]
mod tests {
    use super::{Mark, Peer, Peers, Via, unwrapped, wrapped};
    use crate::pg::protocol::startup::CancelKey;

    fn peers(own: &str, others: &[&str]) -> Peers {
        let peer = |instance: &&str| Peer {
            instance: (*instance).to_owned(),
            address: "127.0.0.1:6432".parse().expect("an address"),
        };
        Peers::new(own, &others.iter().map(peer).collect::<Vec<_>>())
    }

    #[test]
    fn a_pid_is_positive_and_tells_the_instance() {
        for instance in ["bw1", "bw2", "bw3", "demo"] {
            for session in [0, 1, 0x000F_FFFF, u32::MAX] {
                let pid = Mark::of(instance).pid(session);
                assert!(i32::try_from(pid).is_ok(), "{pid:x}");
                assert_eq!(Mark::in_pid(pid), Mark::of(instance));
            }
        }
        // It must not change between versions: instances are not all replaced at once.
        assert_eq!([Mark::of("bw1").0, Mark::of("bw2").0, Mark::of("demo").0], [1609, 828, 43]);
    }

    #[test]
    fn a_cancel_goes_to_its_instance_and_only_from_the_first() {
        let here = peers("bw1", &["bw2", "bw3"]);
        let whose = |instance: &str, via| {
            let pid = Mark::of(instance).pid(7);
            here.of(pid, via).map(|peer| peer.instance.clone())
        };
        assert_eq!(whose("bw2", Via::Client).as_deref(), Some("bw2"));
        assert_eq!(whose("bw3", Via::Client).as_deref(), Some("bw3"));
        assert_eq!(whose("bw1", Via::Client), None, "ours");
        assert_eq!(whose("bw9", Via::Client), None, "nobody's");
        assert_eq!(whose("bw2", Via::Peer), None, "a peer of ours takes us for bw2");
    }

    #[test]
    fn what_was_passed_on_is_known_by_its_secret() {
        for length in [4, 32] {
            let key = CancelKey { pid: 7, secret: vec![9; length] };
            assert_eq!(unwrapped(&key), (key.clone(), Via::Client));
            assert_eq!(unwrapped(&wrapped(&key)), (key.clone(), Via::Peer));
        }
        let too_short = CancelKey { pid: 7, secret: b"abc\0peer\0bw".to_vec() };
        assert_eq!(unwrapped(&too_short), (too_short.clone(), Via::Client));
    }
}
