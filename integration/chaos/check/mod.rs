//! What clients were told, compared with what the servers hold in the end. PURE: histories in, violations out; `append` is
//! about lists, `bank` about accounts, `writable` about who takes writes; each has planted lies among its tests.

pub(crate) mod append;
pub(crate) mod bank;
pub(crate) mod writable;

use std::time::Duration;

/// Since the begin of the round.
pub(crate) type Moment = Duration;

/// What a client was told about one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// COMMIT succeeded.
    Acknowledged,
    /// It did not happen, and never will: an SQLSTATE that says so, or the connection ended before COMMIT was sent.
    Refused(String),
    /// 08007, or no word at all: either.
    Unknown(String),
}

/// Unique over a run.
pub(crate) type Token = i64;

/// How often what a client wrote may be there.
fn is_truth(outcome: &Outcome, times: usize) -> bool {
    match outcome {
        Outcome::Acknowledged => times == 1,
        Outcome::Refused(_) => times == 0,
        Outcome::Unknown(_) => times <= 1,
    }
}
