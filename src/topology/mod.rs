//! What the planes tell each other. PURE, and made of values only: a plane publishes its own, `app` carries
//! them to the others through `watch` channels, nobody calls across.
//!
//! | value | published by | read by |
//! |---|---|---|
//! | [`Directive`] | failover | proxy obeys it, relay obeys it |
//! | [`Health`] | failover | proxy routes by it, admin shows it |
//! | [`WalStatus`] | relay | proxy gates reads by it, failover decides by it |
//! | [`ProxyStatus`] | proxy | failover: evidence, and the confirmation of a term |
//! | [`CommitsInDoubt`] | proxy | relay looks for them in its WAL |
//! | [`CommitOutcomes`] | relay | proxy tells its clients |
//! | [`Election`] | failover | admin: the history |

mod alarm;
mod commits;
mod directive;
mod health;
mod history;
mod node;
mod proxy;
mod quorum;
mod wal;

pub use alarm::{Alarm, AlarmKind};
pub use commits::{CommitInDoubt, CommitOutcome, CommitOutcomes, CommitsInDoubt, Ending, Searching};
pub use directive::{
    Candidate, Directive, Drain, Durability, RemoteApply, Term, Writes, relay_application_name,
};
pub use health::{Health, NodeHealth, NodeState};
pub use history::{Election, LeftBehind, Outcome, Phase, SavedTail};
pub use node::{Address, InvalidNodeName, Node, NodeName, Role};
pub use proxy::{ClientEvidence, Drained, Draining, ProxyStatus};
pub use quorum::{Position, Quorum};
pub use wal::{
    ArchiveStatus, Follower, FollowerState, Lag, Refusal, StreamEnd, UnknownBackup, Upstream, WalAlarm,
    WalStatus,
};
