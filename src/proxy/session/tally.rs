//! What a session has used since it was last counted.

use std::time::Duration;

use crate::proxy::stats::Totals;
use crate::proxy::timeouts::Activity;

#[derive(Debug, Default)]
pub(super) struct Tally {
    /// As of the last time.
    counted: Activity,
    received: u64,
    sent: u64,
    transaction_micros: u64,
    wait_micros: u64,
}

impl Tally {
    pub(super) fn served(&mut self, time: Duration) {
        self.transaction_micros += micros(time);
    }

    pub(super) fn waited(&mut self, time: Duration) {
        self.wait_micros += micros(time);
    }

    /// What is new. `received`, `sent`: bytes in all.
    pub(super) fn take(&mut self, activity: Activity, received: u64, sent: u64) -> Totals {
        let before = std::mem::replace(&mut self.counted, activity);
        Totals {
            transactions: u64::from(activity.transactions.wrapping_sub(before.transactions)),
            queries: u64::from(activity.statements.wrapping_sub(before.statements)),
            received: received - std::mem::replace(&mut self.received, received),
            sent: sent - std::mem::replace(&mut self.sent, sent),
            transaction_micros: std::mem::take(&mut self.transaction_micros),
            wait_micros: std::mem::take(&mut self.wait_micros),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
