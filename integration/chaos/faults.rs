//! What is to happen, from a seed. PURE: whom it hits is said by role, and looked up when it strikes.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};

use super::layout::Layout;

/// A server, by its role when it is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    Primary,
    Standby,
}

/// A host, by what was there when it was struck, or by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Of(Server),
    Number(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    Both,
    /// What the first sends to the second is lost.
    There,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// SIGKILL to all processes of a server.
    KillServer(Server),
    /// SIGKILL to one backend: the server restarts itself.
    CrashServer(Server),
    /// SIGSTOP to all processes of a server, SIGCONT later.
    FreezeServer(Server),
    /// An instance, on this host.
    KillInstance(usize),
    FreezeInstance(usize),
    /// A member of etcd, on this host.
    StopEtcd(usize),
    StopAllEtcd,
    /// All processes.
    KillHost(Host),
    FreezeHost(Host),
    Cut(usize, usize, Way),
    /// From all other hosts of the cluster; applications still reach it.
    Isolate(Host),
    /// As if it were unplugged: applications do not reach it either.
    Unplug(Host),
    /// Each fsync takes so many milliseconds more.
    SlowDisk(Host, u32),
    /// Not a byte is left.
    FullDisk(Host),
}

/// One fault. It begins so long after the round's, and is healed when it has lasted: what was cut is joined, what was
/// stopped goes on, what was killed may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) kind: Kind,
    pub(crate) after: Duration,
    pub(crate) lasts: Duration,
}

/// What goes on when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum During {
    Load,
    /// A planned switchover has just been ordered.
    Switchover,
    /// The primary was killed; another is elected, and the old one returns.
    Rejoin,
    /// The same, and it has to be copied anew: `pg_rewind` fails.
    BaseBackup,
    /// A standby's data directory was lost: its agent makes it anew.
    NewServer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) during: During,
    /// One, or two within two seconds.
    pub(crate) strikes: Vec<Strike>,
}

/// How long faults last: shorter than any silence is noticed; until somebody else has been elected; and longer.
const LASTS: [u64; 4] = [1000, 3000, 6000, 10_000];
/// Between the two of a double fault.
const DOUBLE_WITHIN_MILLIS: u64 = 2000;
/// Of an fsync.
const SLOW_MILLIS: [u32; 2] = [20, 300];
/// One round in so many has two faults.
const DOUBLES: u32 = 4;

/// Rounds with `count` faults in all. Every kind comes before one comes again.
pub(crate) fn plan(layout: &Layout, seed: u64, count: usize) -> Vec<Round> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut kinds, mut occasions) = (Vec::new(), Vec::new());
    let mut rounds = Vec::new();
    let mut left = count;
    while left > 0 {
        let during = draw(&mut occasions, &mut random, || OCCASIONS.to_vec());
        let double = left > 1 && random.random_ratio(1, DOUBLES);
        let mut strikes = Vec::new();
        for number in 0..if double { 2 } else { 1 } {
            let kind = draw(&mut kinds, &mut random, || kinds_in(layout));
            strikes.push(strike(kind, during, number, &mut random));
        }
        left -= strikes.len();
        rounds.push(Round { during, strikes });
    }
    rounds
}

const OCCASIONS: [During; 9] = [
    During::Load,
    During::Load,
    During::Load,
    During::Load,
    During::Load,
    During::Switchover,
    During::Rejoin,
    During::BaseBackup,
    During::NewServer,
];

/// The next card of a shuffled deck; a new deck when it is used up.
fn draw<T>(deck: &mut Vec<T>, random: &mut StdRng, fresh: impl FnOnce() -> Vec<T>) -> T {
    if deck.is_empty() {
        *deck = fresh();
        deck.shuffle(random);
    }
    deck.pop().expect("a deck has cards")
}

fn strike(kind: Kind, during: During, number: usize, random: &mut StdRng) -> Strike {
    let apart = match (number, during) {
        (0, During::Load) => 0,
        // Somewhere in what has just begun.
        (0, _) => random.random_range(0..1500),
        (_, _) => random.random_range(0..DOUBLE_WITHIN_MILLIS),
    };
    let lasts = *LASTS.choose(random).expect("there are some");
    Strike { kind, after: Duration::from_millis(apart), lasts: Duration::from_millis(lasts) }
}

fn kinds_in(layout: &Layout) -> Vec<Kind> {
    let servers = [Server::Primary, Server::Standby];
    let hosts = 0..layout.hosts.len();
    let mut kinds: Vec<Kind> = Vec::new();
    for server in servers {
        kinds.extend([Kind::KillServer(server), Kind::FreezeServer(server), Kind::CrashServer(server)]);
    }
    let places = servers.map(Host::Of).into_iter().chain(
        // Those without a server have no role.
        hosts.clone().filter(|host| layout.hosts[*host].node.is_none()).map(Host::Number),
    );
    for host in places {
        kinds.extend([Kind::KillHost(host), Kind::FreezeHost(host), Kind::Isolate(host), Kind::Unplug(host)]);
        kinds.push(Kind::FullDisk(host));
        kinds.extend(SLOW_MILLIS.map(|millis| Kind::SlowDisk(host, millis)));
    }
    for (host, _) in layout.instances() {
        kinds.extend([Kind::KillInstance(host), Kind::FreezeInstance(host)]);
    }
    for (host, _) in layout.etcds() {
        kinds.push(Kind::StopEtcd(host));
    }
    if layout.etcds().next().is_some() {
        kinds.push(Kind::StopAllEtcd);
    }
    for one in hosts.clone() {
        for other in hosts.clone().filter(|other| *other != one) {
            kinds.push(Kind::Cut(one, other, Way::There));
            if one < other {
                kinds.push(Kind::Cut(one, other, Way::Both));
            }
        }
    }
    kinds
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::Primary => "primary",
            Server::Standby => "standby",
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Of(server) => write!(f, "the {server}'s host"),
            Host::Number(number) => write!(f, "host {number}"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::KillServer(server) => write!(f, "kill the {server}"),
            Kind::CrashServer(server) => write!(f, "crash the {server}"),
            Kind::FreezeServer(server) => write!(f, "freeze the {server}"),
            Kind::KillInstance(host) => write!(f, "kill the instance on host {host}"),
            Kind::FreezeInstance(host) => write!(f, "freeze the instance on host {host}"),
            Kind::StopEtcd(host) => write!(f, "stop etcd on host {host}"),
            Kind::StopAllEtcd => f.write_str("stop all of etcd"),
            Kind::KillHost(host) => write!(f, "kill all on {host}"),
            Kind::FreezeHost(host) => write!(f, "freeze all on {host}"),
            Kind::Cut(one, other, Way::Both) => write!(f, "cut {one} <-> {other}"),
            Kind::Cut(one, other, Way::There) => write!(f, "cut {one} -> {other}"),
            Kind::Isolate(host) => write!(f, "isolate {host}"),
            Kind::Unplug(host) => write!(f, "unplug {host}"),
            Kind::SlowDisk(host, millis) => write!(f, "slow disk ({millis} ms) on {host}"),
            Kind::FullDisk(host) => write!(f, "full disk on {host}"),
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.during {
            During::Load => {}
            During::Switchover => f.write_str("switchover: ")?,
            During::Rejoin => f.write_str("rejoin: ")?,
            During::BaseBackup => f.write_str("base backup: ")?,
            During::NewServer => f.write_str("new server: ")?,
        }
        for (number, Strike { kind, lasts, .. }) in self.strikes.iter().enumerate() {
            let and = if number == 0 { "" } else { " and " };
            write!(f, "{and}{kind}, {} s", lasts.as_secs())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::layout::LAYOUTS;
    use super::{DOUBLE_WITHIN_MILLIS, OCCASIONS, kinds_in, plan};

    #[test]
    fn a_seed_is_a_plan() {
        for layout in LAYOUTS {
            let rounds = plan(layout, 7, 100);
            assert_eq!(rounds, plan(layout, 7, 100));
            assert_ne!(rounds, plan(layout, 8, 100));
            assert_eq!(rounds.iter().map(|round| round.strikes.len()).sum::<usize>(), 100);
            let struck: HashSet<_> = rounds.iter().flat_map(|round| &round.strikes).map(|s| s.kind).collect();
            assert_eq!(struck, kinds_in(layout).into_iter().collect(), "{}: every kind", layout.name);
            for during in OCCASIONS {
                assert!(rounds.iter().any(|round| round.during == during), "{during:?}");
            }
            let doubles: Vec<_> = rounds.iter().filter(|round| round.strikes.len() == 2).collect();
            assert!(!doubles.is_empty());
            for second in doubles.iter().map(|round| &round.strikes[1]) {
                assert!(second.after.as_millis() < u128::from(DOUBLE_WITHIN_MILLIS));
            }
        }
    }
}
