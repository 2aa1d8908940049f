#![expect(
    clippy::disallowed_methods,
    reason = "shell: reads the clock, for an age as of when it is asked for"
)]
//! How etcd answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

use super::gateway::RequestError;

/// Of one instance. All clones are one.
#[derive(Clone, Debug)]
pub struct EtcdMetrics {
    up: IntGauge,
    requests: IntCounterVec,
    seconds: Histogram,
    answered_at: Arc<Mutex<Option<Instant>>>,
}

impl EtcdMetrics {
    /// Counted, and shown to nobody.
    pub fn new() -> prometheus::Result<EtcdMetrics> {
        let requests = Opts::new(
            "bellwether_etcd_requests_total",
            "Requests to etcd, by what came of them: ok, refused, unreachable, timeout, unusable",
        );
        let seconds =
            HistogramOpts::new("bellwether_etcd_request_seconds", "Time to an answer of etcd that is usable")
                .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]);
        Ok(EtcdMetrics {
            up: IntGauge::new(
                "bellwether_etcd_up",
                "1 while etcd answers: without it nobody is promoted, and nobody leads for long",
            )?,
            requests: IntCounterVec::new(requests, &["outcome"])?,
            seconds: Histogram::with_opts(seconds)?,
            answered_at: Arc::default(),
        })
    }

    pub fn registered(registry: &Registry) -> prometheus::Result<EtcdMetrics> {
        let metrics = EtcdMetrics::new()?;
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        let age =
            Gauge::new("bellwether_etcd_answered_seconds", "Since etcd has last given a usable answer")?;
        registry.register(Box::new(Age { answered_at: metrics.answered_at.clone(), age }))?;
        Ok(metrics)
    }

    pub(super) fn asked<T>(&self, took: Duration, answer: &Result<T, RequestError>) {
        if answer.is_ok() {
            self.seconds.observe(took.as_secs_f64());
            *self.answered_at.lock() = Some(Instant::now());
        }
        self.requests.with_label_values(&[outcome(answer)]).inc();
    }

    pub(super) fn linked(&self, up: bool) {
        self.up.set(i64::from(up));
    }
}

fn outcome<T>(answer: &Result<T, RequestError>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        // It was asked for what is no more, and has said so.
        Err(error) if error.is_lease_gone() => "ok",
        Err(RequestError::Refused { .. }) => "refused",
        Err(RequestError::Client(_) | RequestError::Http { .. }) => "unreachable",
        Err(RequestError::Timeout { .. }) => "timeout",
        Err(RequestError::Answer { .. } | RequestError::WatchEnded { .. } | RequestError::Doubted { .. }) => {
            "unusable"
        }
    }
}

/// Absent until there was an answer.
struct Age {
    answered_at: Arc<Mutex<Option<Instant>>>,
    age: Gauge,
}

impl Collector for Age {
    fn desc(&self) -> Vec<&Desc> {
        self.age.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(at) = *self.answered_at.lock() else { return Vec::new() };
        self.age.set(at.elapsed().as_secs_f64());
        self.age.collect()
    }
}
