//! What the archive counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Metrics {
    pub(super) objects: IntCounterVec,
    pub(super) bytes: IntCounter,
    pub(super) errors: IntCounterVec,
    pub(super) lsn: IntGauge,
    pub(super) lag: IntGauge,
    pub(super) missing: IntCounter,
    pub(super) unknown_backups: IntGauge,
}

impl Metrics {
    pub(in crate::relay) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let objects = Opts::new("bellwether_archive_objects_total", "Objects put into the archive");
        let errors = Opts::new("bellwether_archive_errors_total", "Attempts of the archive that failed");
        let metrics = Metrics {
            objects: IntCounterVec::new(objects, &["kind"])?,
            bytes: IntCounter::new(
                "bellwether_archive_bytes_total",
                "Bytes put into the archive, compressed",
            )?,
            errors: IntCounterVec::new(errors, &["reason"])?,
            lsn: IntGauge::new(
                "bellwether_archive_lsn_bytes",
                "End of the WAL in the archive, the begun segment included, as a position in bytes",
            )?,
            lag: IntGauge::new(
                "bellwether_archive_lag_bytes",
                "WAL that is durable here and not in the archive yet",
            )?,
            missing: IntCounter::new(
                "bellwether_archive_missing_bytes_total",
                "WAL that had to be removed before it was archived",
            )?,
            unknown_backups: IntGauge::new(
                "bellwether_archive_unknown_backups",
                "Base backups of the archive that are not understood, which keep all WAL from their begin on",
            )?,
        };
        registry.register(Box::new(metrics.objects.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.lsn.clone()))?;
        registry.register(Box::new(metrics.lag.clone()))?;
        registry.register(Box::new(metrics.missing.clone()))?;
        registry.register(Box::new(metrics.unknown_backups.clone()))?;
        Ok(metrics)
    }
}
