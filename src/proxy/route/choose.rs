//! Which node gets it: what a session needs against what is known of the cluster, the promise "fresh reads".
//!
//! [`View`] is made once per change of directive, health or WAL status; [`View::choose`] runs per routed
//! statement, allocates nothing and asks no clock.
//!
//! A standby in maintenance gets nothing. Any other one is fresh when the last probe found it up as a standby and not
//! quarantined, when it streams from a relay on the store's timeline, has reported within [`Policy::report_limit`], and
//! lags within the bound in bytes and in time. The lag is measured from the last position its relay heard from the
//! primary; so while writes are open, the time since then counts, too, when that stream is broken or silent (the relay
//! asks an idle primary within a third of the bound). While there is no primary or writes are held, nothing new is
//! committed, and what the relay has durably is all there is (of several relays, what one has that has the longest log, or
//! has heard the primary about as long as any), as far as it is certain that no other instance has gone on
//! ([`Directive::unsure_since`]). Under quorum durability that is so while the stream of the only relay is silent.

use std::time::{Duration, Instant};

use super::knob::{Consistency, MaxLag, Route};
use super::verdict::{Access, WriteReason};
use crate::pg::Lsn;
use crate::proxy::quorum::Quorum;
use crate::topology::{
    Directive, Durability, Follower, FollowerState, Health, Hearing, Lag, NodeHealth, NodeName, NodeState,
    Role, Upstream, WalStatus,
};

/// What a session needs for its next transaction (or its next statement outside of one).
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub access: &'a Access,
    pub transaction: Transaction,
    /// The listener's, the session's setting, or the statement's hint: the innermost one that says something.
    pub route: Route,
    pub consistency: Consistency,
    pub own_write: OwnWrite,
    /// `bellwether.min_lsn`: obeyed under every consistency.
    pub min_lsn: Option<Lsn>,
    /// `bellwether.max_lag`.
    pub max_lag: MaxLag,
}

/// The transaction that the statement opens or would be in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transaction {
    /// None: the statement is its own.
    #[default]
    Autocommit,
    ReadOnly,
    ReadWrite,
    /// At whatever access mode.
    Serializable,
}

/// Where the session's own last write is in the WAL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnWrite {
    #[default]
    None,
    /// It ended at or before this position.
    At(Lsn),
    /// It wrote, and the position has not been learned yet.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `reason` with `role` is the label of `bellwether_statements_total{route,reason}`.
    Node { node: NodeName, role: Role, reason: &'static str },
    /// It is the primary's, and writes are held: wait for that to change, up to `hold_clients`.
    Wait { reason: &'static str },
    /// 57P03: a standby was asked for and none is fresh enough.
    Unavailable { reason: &'static str },
    /// 25006: a standby was asked for, for something that certainly writes or locks.
    ReadOnly { reason: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub max_lag_bytes: u64,
    pub max_lag_time: Duration,
    /// A follower that has been silent for longer is not fresh, whatever it said last. A caught-up walreceiver
    /// reports every `wal_receiver_status_interval` (10 s).
    pub report_limit: Duration,
    pub balance: Balance,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_lag_bytes: 16 << 20,
            max_lag_time: Duration::from_secs(1),
            report_limit: Duration::from_secs(15),
            balance: Balance::LeastOutstanding,
        }
    }
}

/// Among fresh standbys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest statements in flight; ties rotate.
    #[default]
    LeastOutstanding,
    RoundRobin,
}

/// What is known of the cluster, digested for [`View::choose`].
#[derive(Clone, Debug)]
pub struct View {
    /// Where writes may go; `Err` is the reason to wait.
    primary: Result<NodeName, &'static str>,
    /// Without it the primary is there for reads only.
    quorum: Quorum,
    policy: Policy,
    /// In the order of the configuration, without the primary and whoever is being made one.
    standbys: Vec<Standby>,
    sight: Sight,
    /// When any relay has heard last how far the primary is, or was.
    told_at: Option<Instant>,
}

/// What is known of the primary's end of WAL.
#[derive(Clone, Copy, Debug)]
enum Sight {
    /// Nothing can have been committed beyond it.
    Clear,
    /// It streams, and was heard at this moment.
    Heard(Instant),
    /// Writes are open, and the relay does not hear from the primary how far its WAL goes.
    BlindSince(Instant),
    /// [`Directive::unsure_since`].
    UnsureSince(Instant),
}

#[derive(Clone, Debug)]
struct Standby {
    name: NodeName,
    state: Result<Position, Stale>,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    replay: Lsn,
    lag: Lag,
    reported_at: Instant,
    hearing: Hearing,
}

/// Why a standby does not get a read. In the order of how near it is to getting it: the nearest one of all
/// standbys is the reason that the statement gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    NoStandby,
    Maintenance,
    Unknown,
    Down,
    Quarantined,
    NotAStandby,
    Restarting,
    NotStreaming,
    OtherTimeline,
    Silent,
    Blind,
    Lag,
    Global,
    MinLsn,
    OwnWrite,
}

impl Stale {
    fn as_str(self) -> &'static str {
        match self {
            Stale::NoStandby => "no_standby",
            Stale::Maintenance => "standby_in_maintenance",
            Stale::Unknown => "standby_unknown",
            Stale::Down => "standby_down",
            Stale::Quarantined => "standby_quarantined",
            Stale::NotAStandby => "not_a_standby",
            Stale::Restarting => "standby_restarting",
            Stale::NotStreaming => "standby_not_streaming",
            Stale::OtherTimeline => "other_timeline",
            Stale::Silent => "standby_silent",
            Stale::Blind => "blind",
            Stale::Lag => "lag",
            Stale::Global => "global",
            Stale::MinLsn => "min_lsn",
            Stale::OwnWrite => "own_write",
        }
    }
}

impl View {
    /// `previous` tells since when the primary has not been heard, across rebuilds.
    pub fn new(
        now: Instant,
        previous: Option<&View>,
        directive: &Directive,
        health: &Health,
        wal: &WalStatus,
        policy: Policy,
    ) -> View {
        let state = |node: &NodeHealth| {
            if directive.is_in_maintenance(&node.name) {
                Err(Stale::Maintenance)
            } else if directive.resting.as_ref() == Some(&node.name) {
                Err(Stale::Restarting)
            } else {
                position(node, wal)
            }
        };
        let standby = |node: &NodeHealth| Standby { name: node.name.clone(), state: state(node) };
        let taken = [
            directive.primary.as_ref(),
            directive.candidate.as_ref().map(|candidate| &candidate.node),
            directive.drain.as_ref().map(|drain| &drain.successor),
        ];
        let not_primary = |node: &&NodeHealth| !taken.contains(&Some(&node.name));
        View {
            primary: directive.writable().cloned().ok_or(match directive.primary {
                Some(_) => "held",
                None => "no_primary",
            }),
            quorum: Quorum::Acknowledges,
            policy,
            standbys: health.nodes.iter().filter(not_primary).map(standby).collect(),
            sight: sight(now, previous.map(|previous| previous.sight), directive, wal),
            told_at: wal.told.map(|told| told.at),
        }
    }

    #[must_use]
    pub(in crate::proxy) fn with_quorum(self, quorum: Quorum) -> View {
        View { quorum, ..self }
    }

    /// A node for `request`. `outstanding` gives the statements in flight at a node; `rotation` is any number
    /// that changes from call to call (a counter).
    pub fn choose(
        &self,
        request: &Request<'_>,
        now: Instant,
        rotation: usize,
        outstanding: impl Fn(&NodeName) -> usize,
    ) -> Choice {
        let standby = || self.standby(request, now, rotation, outstanding);
        match (request.route, must_write(request)) {
            (Route::Primary, None) => self.primary("asked"),
            (Route::Primary, Some(_)) => self.written_primary("asked"),
            (Route::Auto, Some(reason)) => self.written_primary(reason.as_str()),
            (Route::Auto, None) => match standby() {
                Ok(node) => Choice::Node { node: node.clone(), role: Role::Standby, reason: "read" },
                Err(stale) => self.primary(stale.as_str()),
            },
            (Route::Standby, Some(reason)) if reason.certainly_writes() => {
                Choice::ReadOnly { reason: reason.as_str() }
            }
            (Route::Standby, _) => match standby() {
                Ok(node) => Choice::Node { node: node.clone(), role: Role::Standby, reason: "asked" },
                Err(stale) => Choice::Unavailable { reason: stale.as_str() },
            },
        }
    }

    fn written_primary(&self, reason: &'static str) -> Choice {
        match (&self.primary, self.quorum) {
            (Ok(_), Quorum::Lost) => Choice::Wait { reason: "quorum_lost" },
            (_, Quorum::Acknowledges) | (Err(_), Quorum::Lost) => self.primary(reason),
        }
    }

    fn primary(&self, reason: &'static str) -> Choice {
        match &self.primary {
            Ok(node) => Choice::Node { node: node.clone(), role: Role::Primary, reason },
            Err(reason) => Choice::Wait { reason },
        }
    }

    fn standby(
        &self,
        request: &Request<'_>,
        now: Instant,
        rotation: usize,
        outstanding: impl Fn(&NodeName) -> usize,
    ) -> Result<&NodeName, Stale> {
        let mut nearest = Stale::NoStandby;
        let mut chosen: Option<(usize, &NodeName)> = None;
        let first = rotation.checked_rem(self.standbys.len()).unwrap_or(0);
        let (before, after) = self.standbys.split_at(first);
        for standby in after.iter().chain(before) {
            match self.fresh(standby, request, now) {
                Err(stale) => nearest = nearest.max(stale),
                Ok(()) => {
                    let load = match self.policy.balance {
                        Balance::LeastOutstanding => outstanding(&standby.name),
                        Balance::RoundRobin => 0,
                    };
                    // Strictly less: among equals the first one of this rotation stays.
                    if chosen.is_none_or(|(least, _)| load < least) {
                        chosen = Some((load, &standby.name));
                    }
                }
            }
        }
        chosen.map(|(_, name)| name).ok_or(nearest)
    }

    /// The promise "fresh reads".
    fn fresh(&self, standby: &Standby, request: &Request<'_>, now: Instant) -> Result<(), Stale> {
        let position = standby.state.as_ref().map_err(|stale| *stale)?;
        let max_bytes = request.max_lag.bytes.unwrap_or(self.policy.max_lag_bytes);
        let max_time = request.max_lag.time.unwrap_or(self.policy.max_lag_time);
        let silence = now.saturating_duration_since(position.reported_at);
        // What has WAL to replay reports as it goes; its silence ages the WAL it has not confirmed.
        if silence > self.policy.report_limit || (position.lag.bytes > 0 && silence > max_time) {
            return Err(Stale::Silent);
        }
        if position.lag.bytes > max_bytes || position.lag.time > max_time {
            return Err(Stale::Lag);
        }
        let age = |since: Instant| now.saturating_duration_since(since);
        let is_late = |at: Instant| position.lag.time + age(at) >= max_time;
        // What one relay hears, another's followers may wait for.
        let is_deaf = match position.hearing {
            Hearing::ByStream => false,
            Hearing::At(at) => is_late(at),
            Hearing::Never => true,
        };
        // While nobody may write: up to the last that any relay has heard.
        let missed = match (position.hearing, self.told_at) {
            (Hearing::ByStream, _) | (_, None) => Some(Duration::ZERO),
            (Hearing::At(at), Some(last)) => Some(last.saturating_duration_since(at)),
            (Hearing::Never, Some(_)) => None,
        };
        let has_missed = |more| missed.is_none_or(|missed| position.lag.time + missed + more >= max_time);
        let is_blind = match self.sight {
            Sight::Heard(at) => age(at) >= max_time || is_deaf,
            Sight::BlindSince(since) => is_late(since) || is_deaf,
            Sight::Clear => has_missed(Duration::ZERO),
            Sight::UnsureSince(since) => has_missed(age(since)),
        };
        if is_blind {
            return Err(Stale::Blind);
        }
        self.replayed_enough(position.replay, request)
    }

    fn replayed_enough(&self, replay: Lsn, request: &Request<'_>) -> Result<(), Stale> {
        if request.min_lsn.is_some_and(|min_lsn| replay < min_lsn) {
            return Err(Stale::MinLsn);
        }
        if request.consistency == Consistency::Eventual {
            return Ok(());
        }
        match request.own_write {
            OwnWrite::Unknown => return Err(Stale::OwnWrite),
            OwnWrite::At(written) if replay < written => return Err(Stale::OwnWrite),
            OwnWrite::At(_) | OwnWrite::None => {}
        }
        match request.consistency {
            // Clients are told of commits before anybody else is told how far the relays are.
            Consistency::Global => Err(Stale::Global),
            Consistency::Session | Consistency::Eventual => Ok(()),
        }
    }
}

/// Why the request belongs to the primary whatever the standbys' state; `None` when it does not.
fn must_write<'a>(request: &'a Request<'_>) -> Option<&'a WriteReason> {
    match (request.transaction, request.access) {
        (Transaction::Serializable, _) => Some(&WriteReason::Serializable),
        (_, Access::Write { reason }) => Some(reason),
        (Transaction::ReadWrite, Access::Read) => Some(&WriteReason::Transaction),
        (Transaction::Autocommit | Transaction::ReadOnly, Access::Read) => None,
    }
}

fn sight(now: Instant, previous: Option<Sight>, directive: &Directive, wal: &WalStatus) -> Sight {
    let Some(primary) = directive.writable() else {
        let Some(since) = directive.unsure_since else { return Sight::Clear };
        // Without a quorum a commit needs nobody who tells of it.
        let told_at = match (directive.durability, previous) {
            (Durability::Quorum, _) | (Durability::Async, Some(Sight::Clear)) => None,
            (Durability::Async, Some(Sight::UnsureSince(at))) => Some(at),
            (Durability::Async, Some(Sight::Heard(_) | Sight::BlindSince(_)) | None) => {
                wal.told.map(|told| told.at)
            }
        };
        return Sight::UnsureSince(told_at.map_or(since, |at| since.min(at)));
    };
    match (&wal.upstream, previous) {
        (Upstream::Streaming { node, last_message, .. }, _) if node == primary => {
            match directive.durability {
                Durability::Async => Sight::Heard(*last_message),
                // No commit is acknowledged that the relay has not heard of.
                Durability::Quorum if directive.quorums.is_empty() => Sight::Clear,
                // Others acknowledge as well.
                Durability::Quorum => Sight::Heard(*last_message),
            }
        }
        (_, Some(Sight::Heard(since) | Sight::BlindSince(since) | Sight::UnsureSince(since))) => {
            Sight::BlindSince(since)
        }
        (_, Some(Sight::Clear) | None) => Sight::BlindSince(now),
    }
}

fn position(node: &NodeHealth, wal: &WalStatus) -> Result<Position, Stale> {
    match (&node.state, node.role) {
        (NodeState::Unknown, _) => return Err(Stale::Unknown),
        (NodeState::Down { .. }, _) => return Err(Stale::Down),
        (NodeState::Quarantined { .. }, _) => return Err(Stale::Quarantined),
        (NodeState::Up, Some(Role::Standby)) => {}
        (NodeState::Up, Some(Role::Primary) | None) => return Err(Stale::NotAStandby),
    }
    // Before the relay has heard of any end of WAL, a lag of zero means nothing.
    let follower = wal.follower(&node.name).filter(|_| wal.upstream_end.is_valid());
    let Some(follower) = follower else { return Err(Stale::NotStreaming) };
    match follower {
        Follower { state: FollowerState::Startup, .. } => Err(Stale::NotStreaming),
        Follower { timeline, .. } if *timeline != wal.timeline => Err(Stale::OtherTimeline),
        // One that catches up from files is judged by its lag like any other.
        Follower {
            state: FollowerState::Catchup | FollowerState::Streaming,
            replay,
            lag,
            reported_at,
            hearing,
            ..
        } => Ok(Position { replay: *replay, lag: *lag, reported_at: *reported_at, hearing: *hearing }),
    }
}

#[cfg(test)]
mod cases;
