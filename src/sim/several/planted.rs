//! Bugs to order, each in a shell or in what is around the cores, never in a core: some seed must find each.

use super::checks::Promise;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    /// A relay that starts again knows of no promise, and its instance of an earlier state only.
    ForgetPromise,
    /// Followers get all that is durable at their relay.
    ShipOwnDurable,
    /// A primary takes a relay's word, and gives it WAL, in the name of any term.
    NameWithoutTerm,
    /// etcd writes what it is told, whatever was written meanwhile.
    PutWithoutCompare,
    /// A leader goes on when it is not known whether its state was written.
    UnknownPutIsDone,
    /// A proxy obeys what is ordered, vouched for or not.
    IgnoreGate,
    /// An answer is as new as its arrival.
    AskedAtArrival,
    /// Nobody remembers who was told what.
    NoLastWords,
    /// What a relay has not got, it says was never committed.
    LackingIsLost,
    /// A relay obeys a new term and keeps the old stream.
    KeepOldStream,
    /// What is written is acknowledged before it is on disk.
    AcknowledgeBeforeSync,
    /// A relay goes back behind a floor that it had reached.
    LeaveWhatCounts,
    /// The directive goes out before it is journaled.
    DirectBeforeJournal,
    /// Whoever takes the lead knows of no failover before.
    ForgetBudget,
    /// ... or who is in maintenance.
    ForgetMaintenance,
    /// Who was ever heard still is, for whoever decides.
    NobodyIsSilent,
    /// The agent of a dead primary waits for the election to be fenced.
    LeaveOldPrimary,
}

impl Plant {
    pub(super) const ALL: [(Plant, &[Promise]); 17] = [
        (Plant::ForgetPromise, &[Promise::Quorum, Promise::OnePrimary, Promise::Stale]),
        (Plant::ShipOwnDurable, &[Promise::NotAhead]),
        (Plant::NameWithoutTerm, &[Promise::Quorum]),
        (Plant::PutWithoutCompare, &[Promise::OnePrimary]),
        (Plant::UnknownPutIsDone, &[Promise::OnePrimary]),
        (Plant::IgnoreGate, &[Promise::Stale]),
        (Plant::AskedAtArrival, &[Promise::Stale]),
        (Plant::NoLastWords, &[Promise::Stale]),
        (Plant::LackingIsLost, &[Promise::InDoubt]),
        (Plant::KeepOldStream, &[Promise::OnePrimary]),
        (Plant::AcknowledgeBeforeSync, &[Promise::Quorum]),
        (Plant::LeaveWhatCounts, &[Promise::Quorum, Promise::NotAhead]),
        (Plant::DirectBeforeJournal, &[Promise::OnePrimary]),
        (Plant::ForgetBudget, &[Promise::Budget]),
        (Plant::ForgetMaintenance, &[Promise::Maintenance]),
        (Plant::NobodyIsSilent, &[Promise::Liveness]),
        (Plant::LeaveOldPrimary, &[Promise::Liveness]),
    ];
}
