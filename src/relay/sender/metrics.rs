//! What the walsenders count.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(super) followers: IntGauge,
    pub(super) sent_bytes: IntCounter,
    pub(super) disconnects: IntCounterVec,
    pub(super) base_backups: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics {
            followers: IntGauge::new("bellwether_followers", "Replication connections to this relay.")?,
            sent_bytes: IntCounter::new("bellwether_wal_sent_bytes_total", "WAL sent to all followers.")?,
            disconnects: IntCounterVec::new(
                Opts::new("bellwether_follower_disconnects_total", "Ended replication connections."),
                &["reason"],
            )?,
            base_backups: IntCounterVec::new(
                Opts::new("bellwether_base_backups_total", "Base backups begun through the endpoint."),
                &["source"],
            )?,
        };
        registry.register(Box::new(metrics.followers.clone()))?;
        registry.register(Box::new(metrics.sent_bytes.clone()))?;
        registry.register(Box::new(metrics.disconnects.clone()))?;
        registry.register(Box::new(metrics.base_backups.clone()))?;
        Ok(metrics)
    }
}
