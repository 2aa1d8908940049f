//! What the WAL plane counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use super::{SlotView, WalAvailability};

use crate::topology::WalAlarm;

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) received_bytes: IntCounter,
    pub(crate) durable_lsn: IntGauge,
    pub(crate) sync_seconds: Histogram,
    pub(crate) upstream_connects: IntCounter,
    gap: IntGauge,
    divergence: IntGauge,
    pub(crate) disk_full: IntGauge,
    pub(super) damaged_segments: IntGauge,
    /// By state: `active`, `inactive`, `lost`.
    slots: IntGaugeVec,
    slot_retained: IntGaugeVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let sync = HistogramOpts::new("bellwether_wal_sync_seconds", "Duration of an fdatasync of WAL")
            .buckets(prometheus::exponential_buckets(0.000_05, 2.0, 16)?);
        let metrics = Metrics {
            received_bytes: IntCounter::new(
                "bellwether_wal_received_bytes_total",
                "WAL received from the upstream, repetitions included",
            )?,
            durable_lsn: IntGauge::new(
                "bellwether_wal_durable_lsn_bytes",
                "End of the WAL that is synced to disk, as a position in bytes",
            )?,
            sync_seconds: Histogram::with_opts(sync)?,
            upstream_connects: IntCounter::new(
                "bellwether_wal_upstream_connects_total",
                "Connections made to an upstream",
            )?,
            gap: IntGauge::new(
                "bellwether_wal_gap",
                "1 while no source that answers has the WAL that comes next",
            )?,
            divergence: IntGauge::new(
                "bellwether_wal_divergence",
                "1 while a source has other WAL than what is stored: split brain",
            )?,
            disk_full: IntGauge::new(
                "bellwether_wal_disk_full",
                "1 while WAL is not acknowledged because the disk is full",
            )?,
            damaged_segments: IntGauge::new(
                "bellwether_wal_damaged_segments",
                "Segments in the store that were found damaged when a follower needed them",
            )?,
            slots: IntGaugeVec::new(
                Opts::new("bellwether_slots", "The relay's replication slots by state"),
                &["state"],
            )?,
            slot_retained: IntGaugeVec::new(
                Opts::new(
                    "bellwether_slot_retained_bytes",
                    "WAL behind the restart point of a replication slot",
                ),
                &["slot"],
            )?,
        };
        registry.register(Box::new(metrics.received_bytes.clone()))?;
        registry.register(Box::new(metrics.durable_lsn.clone()))?;
        registry.register(Box::new(metrics.sync_seconds.clone()))?;
        registry.register(Box::new(metrics.upstream_connects.clone()))?;
        registry.register(Box::new(metrics.gap.clone()))?;
        registry.register(Box::new(metrics.divergence.clone()))?;
        registry.register(Box::new(metrics.disk_full.clone()))?;
        registry.register(Box::new(metrics.damaged_segments.clone()))?;
        registry.register(Box::new(metrics.slots.clone()))?;
        registry.register(Box::new(metrics.slot_retained.clone()))?;
        Ok(metrics)
    }

    pub(super) fn observe_slots(&self, slots: &[SlotView]) {
        let state = |slot: &&SlotView| match (slot.wal_status, slot.active_pid) {
            (Some(WalAvailability::Lost), _) => "lost",
            (_, Some(_)) => "active",
            (_, None) => "inactive",
        };
        for wanted in ["active", "inactive", "lost"] {
            let count = slots.iter().filter(|slot| state(slot) == wanted).count();
            self.slots.with_label_values(&[wanted]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        // A dropped slot has no value any more.
        self.slot_retained.reset();
        for slot in slots {
            let retained = i64::try_from(slot.retained_bytes).unwrap_or(i64::MAX);
            self.slot_retained.with_label_values(&[slot.name.as_str()]).set(retained);
        }
    }

    pub(super) fn show(&self, alarm: Option<&WalAlarm>) {
        self.gap.set(i64::from(matches!(alarm, Some(WalAlarm::Gap { .. }))));
        self.divergence.set(i64::from(matches!(alarm, Some(WalAlarm::Diverged { .. }))));
    }
}
