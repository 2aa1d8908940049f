//! Where a statement goes, and why. PURE: the decisions behind "right node" and "fresh reads".
//!
//! [`classify()`] reads a statement text with PostgreSQL's own grammar and says what it does ([`Verdict`]);
//! [`Classifier`] remembers that per text; [`View::choose`] takes what a session needs ([`Request`]), looks
//! at what is known of the cluster, and names a node with the reason; [`explain()`] tells a person.
//!
//! What grammar cannot see: operators, casts to user types, views, row security policies, rules and
//! `t.f` for a function `f(t)` may all call functions, and a schema before `pg_catalog` in `search_path` may
//! hide a safe function behind another of its name; a table may be unlogged. Where such a thing writes or
//! cannot be read on a standby, the standby refuses by itself (25006, or 0A000 for an unlogged table), before
//! it has changed anything: the session may run the statement again on the primary. What a standby does not
//! refuse (a view over a function that takes an advisory lock, or that answers by the server it runs on) stays
//! unseen; `bellwether.route` and the comment are for it.

mod catalog;
pub mod choose;
pub mod classify;
pub mod explain;
pub mod knob;
pub mod verdict;

mod cache;
mod leftovers;
mod listen;
mod settings;
mod shape;
mod statement;
mod walk;

#[cfg(test)]
mod cases;

pub use cache::{CacheLimits, Classifier};
pub use catalog::safe_functions;
pub(crate) use catalog::waits_for_quorum;
pub use choose::{Balance, Choice, OwnWrite, Policy, Request, Transaction, View};
pub use classify::classify;
pub use explain::explain;
pub use knob::{Consistency, InvalidKnob, Knob, KnobCommand, MaxLag, Route, Scope, Shown};
pub(crate) use listen::{is_stand_in, stand_in};
pub use verdict::{
    Access, AdvisoryCall, CopyData, Deallocated, Isolation, MayAlter, MayWrite, NewValue, SessionEffect,
    SqlPrepare, Step, TransactionAccess, TransactionEffect, TransactionEnd, TransactionModes, Verdict,
    WriteReason,
};
