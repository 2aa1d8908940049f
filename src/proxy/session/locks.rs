//! Session-level advisory locks, counted by what the server answers.
//!
//! Whatever their keys: a lock that was taken is one more, and an unlock that answers true is one less
//! (`pg_advisory_unlock` in lockfuncs.c). So the last one is known to be gone without knowing which. Calls whose
//! rows do not tell are not counted here: they pin until all locks are released.

use crate::proxy::route::AdvisoryCall;

#[derive(Debug, Default)]
pub(super) struct Locks {
    held: u32,
    under_way: UnderWay,
}

/// The calls that were sent and may not be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum UnderWay {
    #[default]
    Nothing,
    Unlock,
    Lock,
}

impl Locks {
    pub(super) fn are_held(&self) -> bool {
        self.held > 0
    }

    /// None is held, nor may be by what is under way.
    pub(super) fn are_none(&self) -> bool {
        !self.are_held() && !self.may_be_taken()
    }

    /// One may be taken by what is under way.
    pub(super) fn may_be_taken(&self) -> bool {
        self.under_way == UnderWay::Lock
    }

    pub(super) fn heed_rows(&self) -> bool {
        self.under_way != UnderWay::Nothing
    }

    pub(super) fn sent(&mut self, call: AdvisoryCall) {
        let sent = match call {
            AdvisoryCall::Lock | AdvisoryCall::TryLock => UnderWay::Lock,
            AdvisoryCall::Unlock => UnderWay::Unlock,
        };
        self.under_way = self.under_way.max(sent);
    }

    /// One row of the answer, with one value: NULL when the key was, else void or a boolean in either format. `None`:
    /// another kind of row.
    pub(super) fn row(&mut self, call: AdvisoryCall, value: Option<Option<&[u8]>>) {
        let is_true = matches!(value, Some(Some(b"t" | [1])));
        match (call, value) {
            (AdvisoryCall::Lock, Some(None)) => {}
            (AdvisoryCall::TryLock, Some(_)) if !is_true => {}
            (AdvisoryCall::Lock | AdvisoryCall::TryLock, _) => self.held = self.held.saturating_add(1),
            (AdvisoryCall::Unlock, _) if is_true => self.held = self.held.saturating_sub(1),
            (AdvisoryCall::Unlock, _) => {}
        }
    }

    pub(super) fn unlocked_all(&mut self) {
        self.held = 0;
    }

    pub(super) fn all_answered(&mut self) {
        self.under_way = UnderWay::Nothing;
    }
}
