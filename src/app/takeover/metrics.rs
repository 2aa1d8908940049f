//! What a takeover counts, in the new process: the old one's numbers are not asked for any more.

use std::time::Duration;

use prometheus::{Gauge, IntGauge, Registry};

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    /// Of the old process.
    pub(super) connections: IntGauge,
    seconds: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let metrics = Metrics {
            connections: IntGauge::new(
                "bellwether_draining_clients",
                "Connections that the process before this one still serves",
            )?,
            seconds: Gauge::new(
                "bellwether_takeover_seconds",
                "From the question to the old process until this one had everything",
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }

    pub(super) fn settled(&self, took: Duration) {
        self.seconds.set(took.as_secs_f64());
    }
}
