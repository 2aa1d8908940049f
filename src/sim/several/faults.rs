//! What goes wrong, from the seed: whom it befalls is chosen when it happens, the leader and the primary before others.

use std::time::Duration;

use super::network::Host;
use super::stage::{InstanceId, NodeId};
use crate::sim::clock::Rng;

pub(super) const FAULTS_BEGIN: Duration = Duration::from_secs(6);
pub(super) const FAULTS_END: Duration = Duration::from_secs(32);
const MOST: u64 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The postmaster is killed; somebody may start it again, as whatever it was.
    KillNode {
        of: Choice,
        restart: Option<Duration>,
    },
    PauseNode {
        of: Choice,
        lasts: Duration,
    },
    KillInstance {
        of: Choice,
        lasts: Duration,
    },
    /// In the middle of the next turn that journals.
    DoomInstance {
        of: Choice,
        effects: usize,
    },
    PauseInstance {
        of: Choice,
        lasts: Duration,
    },
    /// Everything on a host.
    KillHost {
        of: Choice,
        lasts: Duration,
    },
    /// A host, or the instance on it alone: it never comes back. A person knows, and starts what ran beside the instance. Of
    /// three hosts or more, one at most; and not while an election needs enough of two sets of relays ("Known limits").
    Lose {
        what: Loss,
        of: Choice,
    },
    /// From and to one host.
    Isolate {
        of: Choice,
        ways: Ways,
        lasts: Duration,
    },
    /// Between two hosts.
    Cut {
        of: Choice,
        other: u64,
        ways: Ways,
        lasts: Duration,
    },
    /// Between a host and etcd.
    CutEtcd {
        of: Choice,
        ways: Ways,
        lasts: Duration,
    },
    StopEtcd {
        lasts: Duration,
    },
    SlowDisk {
        of: Choice,
        lasts: Duration,
    },
    FullDisk {
        of: Choice,
        lasts: Duration,
    },
    SlowNetwork {
        most: Duration,
    },
    /// Hardly back: what an election waits for is counted by the calendar, and would take so much longer.
    Calendar {
        of: Choice,
        millis: i64,
    },
    Order(Order),
    /// It is started anew, with one instance more in its list.
    List(InstanceId),
    /// All is to be well from now on.
    Peace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Host,
    Instance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Switchover,
    /// Of all servers, one after the other.
    Restart,
    CancelRestart,
    Failover,
    Pause,
    Resume,
    /// Of whoever is no primary then.
    Maintain(NodeId),
    Serve(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Leader,
    /// The primary, or what is on its host.
    Primary,
    Any(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ways {
    Both,
    From,
    To,
}

impl Ways {
    pub(super) fn between(self, host: Host, others: impl IntoIterator<Item = Host>) -> Vec<(Host, Host)> {
        let mut ways = Vec::new();
        for other in others {
            if self != Ways::To {
                ways.push((host, other));
            }
            if self != Ways::From {
                ways.push((other, host));
            }
        }
        ways
    }
}

/// When what happens.
pub(super) fn plan(rng: &mut Rng) -> Vec<(Duration, Fault)> {
    let mut faults = Vec::new();
    for _ in 0..rng.between(2, MOST) {
        let at = rng.millis(FAULTS_BEGIN.as_millis() as u64, FAULTS_END.as_millis() as u64 - 1);
        faults.push((at, fault(rng)));
        // Seldom comes one alone.
        let soon = (at + rng.millis(0, 1500)).min(FAULTS_END - Duration::from_millis(1));
        match rng.below(8) {
            0 | 1 => faults.push((soon, fault(rng))),
            2 => faults.extend(pair(rng).map(|fault| (soon, fault))),
            _ => {}
        }
    }
    faults.push((FAULTS_END, Fault::Peace));
    faults
}

/// The primary comes back so soon that nobody takes its place, in a term of which one instance does not hear; and then it
/// is gone.
pub(super) fn comes_back(number: u64) -> [(Duration, Fault); 3] {
    let at = FAULTS_BEGIN + Duration::from_millis(number * 7919 % 12_000);
    let kill = |restart| Fault::KillNode { of: Choice::Primary, restart };
    let unheard = Fault::CutEtcd { of: Choice::Any(number), ways: Ways::Both, lasts: Duration::from_secs(5) };
    [
        (at, unheard),
        (at + Duration::from_millis(200), kill(Some(Duration::ZERO))),
        (at + Duration::from_millis(3500), kill(None)),
    ]
}

/// What is lost for good. Chance is not asked: other seeds have the course that they had.
pub(super) fn losses(seed: u64) -> impl Iterator<Item = (Duration, Fault)> {
    let at = FAULTS_BEGIN + Duration::from_millis(seed * 6007 % 25_000);
    let soon = at + Duration::from_millis(seed * 37 % 500);
    let lose = |what, of| Fault::Lose { what, of };
    let losses = match seed % 16 {
        0 => vec![(at, lose(Loss::Host, Choice::Primary))],
        8 => vec![(at, lose(Loss::Host, Choice::Any(seed / 16)))],
        15 => vec![(at, lose(Loss::Instance, Choice::Any(seed / 16)))],
        // An election has just begun, and some have confirmed its term.
        12 => vec![
            (at, Fault::KillNode { of: Choice::Primary, restart: None }),
            (soon, lose(Loss::Host, Choice::Primary)),
        ],
        _ => Vec::new(),
    };
    losses.into_iter()
}

/// What is worse together.
fn pair(rng: &mut Rng) -> [Fault; 2] {
    let (of, lasts) = (Choice::Any(rng.next()), rng.millis(2000, 12_000));
    match rng.below(3) {
        // Nobody but its clients hears of an instance while its primary is replaced at once.
        0 => [
            Fault::Isolate { of, ways: Ways::Both, lasts },
            Fault::KillNode { of: Choice::Primary, restart: None },
        ],
        1 => [Fault::Isolate { of, ways: Ways::Both, lasts }, Fault::Order(Order::Failover)],
        // It knows what its disk knows.
        _ => [Fault::CutEtcd { of, ways: Ways::Both, lasts }, Fault::KillInstance { of, lasts: lasts / 8 }],
    }
}

fn fault(rng: &mut Rng) -> Fault {
    let of = choice(rng);
    let lasts = if rng.percent(50) { rng.millis(200, 4000) } else { rng.millis(4000, 14_000) };
    let ways = match rng.below(4) {
        0 => Ways::From,
        1 => Ways::To,
        _ => Ways::Both,
    };
    match rng.below(22) {
        0..=2 => {
            Fault::KillNode { of: node_choice(rng), restart: rng.percent(50).then(|| rng.millis(0, 3000)) }
        }
        3 => Fault::PauseNode { of: node_choice(rng), lasts },
        4 => Fault::KillInstance { of, lasts },
        5 => Fault::DoomInstance { of: Choice::Leader, effects: rng.below(6) as usize },
        6 | 7 => Fault::PauseInstance { of, lasts },
        8 => Fault::KillHost { of: node_choice(rng), lasts },
        9 | 10 => Fault::Isolate { of, ways, lasts },
        11 | 12 => Fault::Cut { of, other: rng.next(), ways, lasts },
        13 => Fault::CutEtcd { of, ways, lasts },
        14 => Fault::StopEtcd { lasts },
        15 => match rng.below(3) {
            0 => Fault::FullDisk { of, lasts },
            _ => Fault::SlowDisk { of, lasts },
        },
        16 => Fault::SlowNetwork { most: rng.millis(5, 400) },
        17 => Fault::Calendar { of, millis: rng.between(0, 4_000_000) as i64 - 3000 },
        18 => Fault::Isolate { of: Choice::Primary, ways: Ways::Both, lasts },
        19 => Fault::Order(Order::Switchover),
        20 => Fault::Order(Order::Restart),
        _ => Fault::Order(match rng.below(4) {
            0 => Order::Pause,
            1 => Order::Failover,
            2 => Order::Resume,
            _ => Order::Switchover,
        }),
    }
}

fn choice(rng: &mut Rng) -> Choice {
    match rng.below(6) {
        0 | 1 => Choice::Leader,
        2 | 3 => Choice::Primary,
        _ => Choice::Any(rng.next()),
    }
}

fn node_choice(rng: &mut Rng) -> Choice {
    if rng.percent(70) { Choice::Primary } else { Choice::Any(rng.next()) }
}
