//! What commits may not do under quorum durability: be told before the quorum has them, or wait for what does not come.

use crate::pg::{ErrorFields, SqlState};
use crate::proxy::guc::Settings;
use crate::proxy::route::Verdict;
use crate::topology::{Durability, RemoteApply};

/// What a client is told that wants commits to slip past the quorum.
const WEAKER_THAN_QUORUM: &str =
    "synchronous_commit must not be weaker than the cluster's durability, which is quorum";

/// ... or to wait for what does not come.
const NOBODY_REPLAYS: &str = "synchronous_commit = remote_apply would wait for ever: no standby's replay counts \
     towards the quorum (wal.remote_apply: followers makes it count)";

/// Why a text is not run under quorum durability.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Refusal {
    /// Sent in its place. The server refuses it (22023), so that a transaction block fails as it does after any other
    /// error.
    pub(in crate::proxy) instead: &'static str,
    /// By this the server's error about it is known, in whatever language.
    value: &'static str,
    words: &'static str,
}

/// Commits would slip past the quorum.
const WEAKER: Refusal = Refusal {
    instead: "SET synchronous_commit TO 'weaker than quorum durability'",
    value: "weaker than quorum durability",
    words: WEAKER_THAN_QUORUM,
};

/// Commits would wait for ever.
const REPLAYED: Refusal = Refusal {
    instead: "SET synchronous_commit TO 'replayed by nobody'",
    value: "replayed by nobody",
    words: NOBODY_REPLAYS,
};

/// What says how commits are to wait.
pub(in crate::proxy) trait Commits {
    fn are_weaker_than_quorum(&self) -> bool;
    fn await_replay(&self) -> bool;
}

impl Commits for Verdict {
    fn are_weaker_than_quorum(&self) -> bool {
        self.weakens_commits()
    }

    fn await_replay(&self) -> bool {
        self.awaits_replay()
    }
}

impl Commits for Settings {
    fn are_weaker_than_quorum(&self) -> bool {
        !self.waits_for_quorum()
    }

    fn await_replay(&self) -> bool {
        self.awaits_replay()
    }
}

impl Refusal {
    /// Of commits that would be told before they are durable on the quorum, or wait for it in vain.
    pub(in crate::proxy) fn of(
        commits: &impl Commits,
        durability: Durability,
        remote_apply: RemoteApply,
    ) -> Option<Refusal> {
        match (durability, remote_apply) {
            (Durability::Async, _) => None,
            (Durability::Quorum, _) if commits.are_weaker_than_quorum() => Some(WEAKER),
            (Durability::Quorum, RemoteApply::Off) if commits.await_replay() => Some(REPLAYED),
            (Durability::Quorum, RemoteApply::Off | RemoteApply::Followers) => None,
        }
    }

    /// Where there is nothing yet that could fail by it: the session does not begin.
    pub(in crate::proxy) fn fatal(&self) -> ErrorFields {
        ErrorFields::fatal(SqlState::INVALID_PARAMETER_VALUE, self.words)
    }

    /// What the client is told in the place of a server's error of this text.
    pub(super) fn words_for(error: &str) -> Option<&'static str> {
        [WEAKER, REPLAYED].iter().find(|refusal| error.contains(refusal.value)).map(|refusal| refusal.words)
    }
}
