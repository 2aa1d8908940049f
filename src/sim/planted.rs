//! Bugs to order, each in the shell of the world and never in a core: what they break must be found.

use super::invariants::Promise;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// The receiver is told that WAL is durable when it is only written.
    AcknowledgeBeforeSync,
    /// Walsenders are told that WAL is durable when it is only written.
    ShipBeforeSync,
    /// Bellwether starts as if there were no journal.
    ForgetJournal,
    /// The marker is taken for committed without looking.
    SkipMarker,
    /// The proxy goes on writing to the primary that it knew first.
    RouteToOldPrimary,
    /// The relay obeys a new term and keeps the old stream.
    KeepOldStream,
    /// Followers are fed late, and said to have everything.
    SkipCatchUp,
    /// A follower's connection is never served.
    RefuseFollowers,
    /// A byte of what is shipped is not what was stored.
    FlipBit,
    /// Actions begin before what they follow from is journaled.
    ActBeforeJournal,
    /// The directive goes out before it is journaled.
    DirectBeforeJournal,
    /// The proxy says that nobody uses the candidate, without looking.
    ClearedAtOnce,
    /// The proxy says that no transaction is open, without looking.
    DrainedAtOnce,
    /// A server that was told to shut down is believed to have done so, and its last record to be there.
    BelieveShutdown,
}

impl Plant {
    pub(super) const ALL: [(Plant, &[Promise]); 14] = [
        (Plant::AcknowledgeBeforeSync, &[Promise::DurableBeforeShipped]),
        (Plant::ShipBeforeSync, &[Promise::DurableBeforeShipped]),
        (Plant::ForgetJournal, &[Promise::OnePrimary]),
        (Plant::SkipMarker, &[Promise::VisibleIsDurable]),
        (Plant::RouteToOldPrimary, &[Promise::OnePrimary]),
        (Plant::KeepOldStream, &[Promise::OnePrimary]),
        (Plant::SkipCatchUp, &[Promise::Quorum, Promise::Liveness]),
        (Plant::RefuseFollowers, &[Promise::Liveness]),
        (Plant::FlipBit, &[Promise::Bytes]),
        (Plant::ActBeforeJournal, &[Promise::OnePrimary]),
        (Plant::DirectBeforeJournal, &[Promise::OnePrimary]),
        (Plant::ClearedAtOnce, &[Promise::OnePrimary]),
        (Plant::DrainedAtOnce, &[Promise::Drained]),
        (Plant::BelieveShutdown, &[Promise::Complete]),
    ];
}
