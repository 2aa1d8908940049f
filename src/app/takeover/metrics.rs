//! What a takeover counts, in the new process: the old one's numbers are not asked for any more.

use std::time::Duration;

use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};

use super::message::Status;

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    /// Of the old process.
    pub(super) connections: IntGauge,
    gone: IntCounterVec,
    seconds: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let metrics = Metrics {
            connections: IntGauge::new(
                "bellwether_draining_clients",
                "Connections that the process before this one still serves",
            )?,
            gone: IntCounterVec::new(
                Opts::new(
                    "bellwether_drained_clients_total",
                    "What became of the others: left by themselves, ended with a transaction, or cut",
                ),
                &["how"],
            )?,
            seconds: Gauge::new(
                "bellwether_takeover_seconds",
                "From the question to the old process until this one had everything",
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.gone.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }

    /// `last` is what was counted before.
    pub(super) fn count(&self, last: &Status, now: &Status) {
        self.connections.set(i64::try_from(now.connections).unwrap_or(i64::MAX));
        let (last, now) = (last.gone, now.gone);
        for (how, last, now) in
            [("left", last.left, now.left), ("ended", last.ended, now.ended), ("cut", last.cut, now.cut)]
        {
            let more = u64::try_from(now.saturating_sub(last)).unwrap_or(u64::MAX);
            self.gone.with_label_values(&[how]).inc_by(more);
        }
    }

    pub(super) fn settled(&self, took: Duration) {
        self.seconds.set(took.as_secs_f64());
    }
}
