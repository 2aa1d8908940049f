//! What became of the events.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    Command,
    Webhook,
}

impl Sink {
    pub(super) fn label(self) -> &'static str {
        match self {
            Sink::Command => "command",
            Sink::Webhook => "webhook",
        }
    }
}

#[derive(Debug)]
pub(super) struct Metrics {
    deliveries: IntCounterVec,
    dropped: IntCounter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let deliveries =
            Opts::new("bellwether_event_deliveries_total", "Events that were told to a command or a webhook");
        let metrics = Metrics {
            deliveries: IntCounterVec::new(deliveries, &["hook", "outcome"])?,
            dropped: IntCounter::new(
                "bellwether_events_dropped_total",
                "Events of which nobody was told, since too many waited",
            )?,
        };
        registry.register(Box::new(metrics.deliveries.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        Ok(metrics)
    }

    pub(super) fn delivered(&self, sink: Sink) {
        self.deliveries.with_label_values(&[sink.label(), "delivered"]).inc();
    }

    pub(super) fn failed(&self, sink: Sink) {
        self.deliveries.with_label_values(&[sink.label(), "failed"]).inc();
    }

    pub(super) fn dropped(&self) {
        self.dropped.inc();
    }
}
