//! What the control plane counts.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::topology::{Ailment, Directive, Election, Failovers, Health, Outcome, WalStatus};

#[derive(Clone, Debug)]
pub struct Metrics {
    node_up: IntGaugeVec,
    node_primary: IntGaugeVec,
    node_maintenance: IntGaugeVec,
    node_lag_bytes: IntGaugeVec,
    node_lag_seconds: GaugeVec,
    primary_ailing: IntGaugeVec,
    term: IntGauge,
    failovers: IntCounterVec,
    automatic: IntGaugeVec,
    phase_seconds: HistogramVec,
    /// How long a decision took to become durable.
    pub(super) journal_seconds: Histogram,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let gauges = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["node"]);
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let histogram = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(buckets.clone());
        let metrics = Metrics {
            node_up: gauges("bellwether_node_up", "1 while the node answers and may be used")?,
            node_primary: gauges("bellwether_node_primary", "1 for the primary of the current term")?,
            node_maintenance: gauges("bellwether_node_maintenance", "1 while an operator works on the node")?,
            node_lag_bytes: gauges("bellwether_node_lag_bytes", "WAL the standby has not replayed")?,
            node_lag_seconds: GaugeVec::new(
                Opts::new(
                    "bellwether_node_lag_seconds",
                    "Age of the oldest WAL the standby has not replayed",
                ),
                &["node"],
            )?,
            primary_ailing: IntGaugeVec::new(
                Opts::new("bellwether_primary_ailing", "1 while something ails the primary, by its name"),
                &["reason"],
            )?,
            term: IntGauge::new("bellwether_term", "The current term")?,
            failovers: IntCounterVec::new(
                Opts::new(
                    "bellwether_failovers_total",
                    "Elections, by the rule that began them and their outcome",
                ),
                &["rule", "outcome"],
            )?,
            automatic: IntGaugeVec::new(
                Opts::new(
                    "bellwether_failover_mode",
                    "1 for what holds: a dead primary is replaced (automatic), or is not: by the configuration \
                     (manual), an operator's order (paused), or because failover.budget is spent (spent)",
                ),
                &["mode"],
            )?,
            phase_seconds: HistogramVec::new(
                histogram("bellwether_failover_phase_seconds", "Time spent in each phase of an election"),
                &["phase"],
            )?,
            journal_seconds: Histogram::with_opts(histogram(
                "bellwether_failover_journal_seconds",
                "Time to make a decision durable",
            ))?,
        };
        registry.register(Box::new(metrics.node_up.clone()))?;
        registry.register(Box::new(metrics.node_primary.clone()))?;
        registry.register(Box::new(metrics.node_maintenance.clone()))?;
        registry.register(Box::new(metrics.node_lag_bytes.clone()))?;
        registry.register(Box::new(metrics.node_lag_seconds.clone()))?;
        registry.register(Box::new(metrics.primary_ailing.clone()))?;
        registry.register(Box::new(metrics.term.clone()))?;
        registry.register(Box::new(metrics.failovers.clone()))?;
        registry.register(Box::new(metrics.automatic.clone()))?;
        registry.register(Box::new(metrics.phase_seconds.clone()))?;
        registry.register(Box::new(metrics.journal_seconds.clone()))?;
        Ok(metrics)
    }

    pub fn observe(&self, health: &Health, wal: &WalStatus, directive: &Directive) {
        self.term.set(i64::try_from(directive.term.0).unwrap_or(i64::MAX));
        let ailment = health.diagnosis.as_ref().map(|found| found.ailment);
        for name in Ailment::ALL {
            self.primary_ailing.with_label_values(&[name.as_str()]).set(i64::from(ailment == Some(name)));
        }
        for node in &health.nodes {
            let label = &[node.name.as_str()];
            let is_primary = directive.primary.as_ref() == Some(&node.name);
            let maintenance = directive.is_in_maintenance(&node.name);
            self.node_maintenance.with_label_values(label).set(i64::from(maintenance));
            self.node_up.with_label_values(label).set(i64::from(node.state.is_up()));
            self.node_primary.with_label_values(label).set(i64::from(is_primary));
            match wal.follower(&node.name).map(|f| f.lag) {
                _ if is_primary => self.set_lag(label, 0, 0.0),
                Some(lag) => self.set_lag(label, lag.bytes, lag.time.as_secs_f64()),
                // A lag that nobody reports is not zero.
                None => {
                    self.node_lag_bytes.remove_label_values(label).ok();
                    self.node_lag_seconds.remove_label_values(label).ok();
                }
            }
        }
    }

    pub fn failovers_are(&self, failovers: Failovers) {
        for mode in ["automatic", "manual", "paused", "spent"] {
            self.automatic.with_label_values(&[mode]).set(i64::from(mode == failovers.word()));
        }
    }

    pub fn concluded(&self, election: &Election) {
        let outcome = match election.outcome {
            Outcome::Running => "running",
            Outcome::Completed => "completed",
            Outcome::Failed { .. } => "failed",
        };
        self.failovers.with_label_values(&[election.rule.as_str(), outcome]).inc();
        for phase in &election.phases {
            let seconds = std::time::Duration::from_millis(phase.millis).as_secs_f64();
            self.phase_seconds.with_label_values(&[phase.name.as_str()]).observe(seconds);
        }
    }

    fn set_lag(&self, label: &[&str; 1], bytes: u64, seconds: f64) {
        self.node_lag_bytes.with_label_values(label).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.node_lag_seconds.with_label_values(label).set(seconds);
    }
}
