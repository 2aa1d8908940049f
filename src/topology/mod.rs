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
//! | [`Election`], [`Restart`] | failover | admin: the history |
//! | [`Failovers`] | failover | admin shows it |
//! | [`Members`] | app, of what the other instances say | failover, and what gates proxy and relay |

mod alarm;
mod commits;
mod diagnosis;
mod directive;
mod failovers;
mod health;
mod history;
pub(crate) mod members;
mod node;
mod proxy;
mod quorum;
mod restart;
mod wal;

pub use alarm::{Alarm, AlarmKind};
pub use commits::{CommitInDoubt, CommitOutcome, CommitOutcomes, CommitsInDoubt, Ending, Searching};
pub use diagnosis::{Ailment, Diagnosis, Evidence, Mark};
pub use directive::{
    Acknowledgers, Candidate, Directive, Drain, Durability, Floor, RemoteApply, Term, Writes,
    relay_application_name, relay_of, term_named,
};
pub use failovers::Failovers;
pub use health::{Health, NodeHealth, NodeState};
pub use history::{Deed, Done, Election, LeftBehind, Outcome, Phase, SavedTail};
pub use members::{ANSWER_AGE, Heard, Log, Member, Members, VOUCH, Waited, Waiting};
pub use node::{Address, InvalidNodeName, Node, NodeName, Role};
pub use proxy::{ClientEvidence, Drained, Draining, ProxyStatus};
pub use quorum::{Position, Quorum};
pub use restart::{Restart, RestartedNode};
pub use wal::{
    Agreed, ArchiveStatus, Follower, FollowerState, Hearing, Lag, Refusal, StreamEnd, Told, UnknownBackup,
    Upstream, WalAlarm, WalStatus,
};
