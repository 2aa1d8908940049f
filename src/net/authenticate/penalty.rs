//! What a failed login costs whoever tries: a second before the answer comes, and a limit on how many such
//! seconds one address may spend at a time.
//!
//! So one address makes at most [`MAX_WAITING`] guesses a second, however many connections it opens. An
//! application with a wrong password that tries over and over is slowed down; others behind its address are not
//! turned away until it has that many connections waiting.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

use crate::net::PeerAddress;

/// Failed logins of one address that wait for their answer. While there are so many, its next one is refused with
/// 53300 before it is asked for a proof.
const MAX_WAITING: u32 = 32;

#[derive(Debug)]
pub(super) struct Penalties {
    delay: Duration,
    waiting: Mutex<Waiting>,
}

/// Not longer than the list of clients that are logging in, which has its own limit: who is in it waits.
#[derive(Debug, Default)]
struct Waiting(HashMap<Place, u32>);

/// An address as far as it tells one client from another: a host of IPv6 has a whole /64 to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Local,
    V4(Ipv4Addr),
    V6([u16; 4]),
}

impl Penalties {
    pub(super) fn new(delay: Duration) -> Penalties {
        Penalties { delay, waiting: Mutex::default() }
    }

    /// Whether so many of the address's logins have failed just now that another must not even be tried.
    pub(super) fn exceeds(&self, address: PeerAddress) -> bool {
        self.waiting.lock().exceeds(address.into())
    }

    /// Waits; cut short, the place is free again.
    pub(super) async fn serve(&self, address: PeerAddress) {
        let place = Place::from(address);
        self.waiting.lock().enter(place);
        let _leaves = Leaves { penalties: self, place };
        tokio::time::sleep(self.delay).await;
    }
}

struct Leaves<'a> {
    penalties: &'a Penalties,
    place: Place,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.penalties.waiting.lock().leave(self.place);
    }
}

impl Waiting {
    fn exceeds(&self, place: Place) -> bool {
        self.0.get(&place).is_some_and(|count| *count >= MAX_WAITING)
    }

    fn enter(&mut self, place: Place) {
        *self.0.entry(place).or_default() += 1;
    }

    fn leave(&mut self, place: Place) {
        if let Some(count) = self.0.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&place);
            }
        }
    }
}

impl From<PeerAddress> for Place {
    fn from(address: PeerAddress) -> Place {
        match address {
            PeerAddress::Unix | PeerAddress::Unknown => Place::Local,
            PeerAddress::Tcp(address) => match address.ip().to_canonical() {
                std::net::IpAddr::V4(address) => Place::V4(address),
                std::net::IpAddr::V6(address) => Place::V6(network_of(address)),
            },
        }
    }
}

/// The first 64 bits.
fn network_of(address: Ipv6Addr) -> [u16; 4] {
    let [a, b, c, d, ..] = address.segments();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::{MAX_WAITING, PeerAddress, Place, Waiting};

    fn place(address: &str) -> Place {
        PeerAddress::Tcp((address.parse::<std::net::IpAddr>().expect("an address"), 1).into()).into()
    }

    #[test]
    fn each_address_has_its_own_limit() {
        let mut waiting = Waiting::default();
        let (one, other) = (place("10.0.0.1"), place("10.0.0.2"));
        for _ in 0..MAX_WAITING {
            assert!(!waiting.exceeds(one));
            waiting.enter(one);
        }
        assert!(waiting.exceeds(one) && !waiting.exceeds(other));
        waiting.leave(one);
        assert!(!waiting.exceeds(one));
        for _ in 1..MAX_WAITING {
            waiting.leave(one);
        }
        assert!(waiting.0.is_empty(), "nobody waits, nobody is remembered");
    }

    #[test]
    fn one_host_is_one_address() {
        assert_eq!(place("::ffff:10.0.0.1"), place("10.0.0.1"));
        assert_eq!(place("2001:db8::1"), place("2001:db8::2:3:4:5"));
        assert_ne!(place("2001:db8::1"), place("2001:db8:0:1::1"));
        assert_eq!(Place::from(PeerAddress::Unix), Place::Local);
    }
}
