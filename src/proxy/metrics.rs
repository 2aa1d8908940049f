//! What the query plane counts. Gauges are set by the background task; on the way of a query there are relaxed
//! atomics only.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) statements: IntCounterVec,
    pub(crate) node_statements: IntCounterVec,
    pub(crate) clients: IntGaugeVec,
    pub(crate) servers: IntGaugeVec,
    pub(crate) pool_wait: Histogram,
    pub(crate) query: HistogramVec,
    pub(crate) commits_in_doubt: IntCounterVec,
    pub(crate) pins: IntCounterVec,
    pub(crate) pins_cut: IntCounterVec,
    pub(crate) timeouts: IntCounterVec,
    pub(crate) listeners: IntGauge,
    pub(crate) listen_channels: IntGauge,
    pub(crate) notifications: IntCounter,
    pub(crate) listeners_ended: IntCounterVec,
    pub(crate) cancels_passed_on: IntCounterVec,
    pub(crate) quorum_lost: IntGauge,
}

/// 100 µs to 100 s.
const QUERY_BUCKETS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 100.0];

impl Metrics {
    /// Fails when one of the names is registered already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let buckets = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(QUERY_BUCKETS.to_vec());
        let metrics = Metrics {
            statements: IntCounterVec::new(
                Opts::new(
                    "bellwether_statements_total",
                    "Units of work (a statement, or all up to a Sync) by node and reason",
                ),
                &["route", "reason"],
            )?,
            node_statements: IntCounterVec::new(
                Opts::new("bellwether_node_statements_total", "Units of work by the node that was chosen"),
                &["node"],
            )?,
            clients: IntGaugeVec::new(Opts::new("bellwether_clients", "Client connections"), &["state"])?,
            servers: IntGaugeVec::new(
                Opts::new("bellwether_servers", "Server connections in the pools"),
                &["node", "state"],
            )?,
            pool_wait: Histogram::with_opts(buckets(
                "bellwether_pool_wait_seconds",
                "How long a client waited for a server connection, when it had to",
            ))?,
            query: HistogramVec::new(
                buckets("bellwether_query_seconds", "How long a server was with a client at a stretch"),
                &["route"],
            )?,
            commits_in_doubt: IntCounterVec::new(
                Opts::new(
                    "bellwether_commits_in_doubt_total",
                    "Commits whose server was lost before it answered, by what was found out of them",
                ),
                &["outcome"],
            )?,
            pins_cut: IntCounterVec::new(
                Opts::new(
                    "bellwether_pins_cut_total",
                    "Sessions that ended (57P01) because the server they kept was lost, by reason",
                ),
                &["reason"],
            )?,
            pins: IntCounterVec::new(
                Opts::new("bellwether_pins_total", "Sessions that had to keep their server, by reason"),
                &["reason"],
            )?,
            cancels_passed_on: IntCounterVec::new(
                Opts::new(
                    "bellwether_cancels_passed_on_total",
                    "CancelRequests for clients of another instance",
                ),
                &["instance", "outcome"],
            )?,
            quorum_lost: IntGauge::new(
                "bellwether_quorum_lost",
                "Whether writes are held because too few relays acknowledge commits",
            )?,
            timeouts: IntCounterVec::new(
                Opts::new(
                    "bellwether_timeouts_total",
                    "Statements and sessions that took longer than they may",
                ),
                &["timeout"],
            )?,
            listeners: IntGauge::new(
                "bellwether_listeners",
                "Clients that listen by way of a connection that they share",
            )?,
            listen_channels: IntGauge::new(
                "bellwether_listen_channels",
                "Channels that such connections listen to",
            )?,
            notifications: IntCounter::new(
                "bellwether_notifications_total",
                "Notifications that such clients were told",
            )?,
            listeners_ended: IntCounterVec::new(
                Opts::new(
                    "bellwether_listeners_ended_total",
                    "Sessions that were ended because they listened: the connection was lost, or they were too slow",
                ),
                &["reason"],
            )?,
        };
        registry.register(Box::new(metrics.statements.clone()))?;
        registry.register(Box::new(metrics.node_statements.clone()))?;
        registry.register(Box::new(metrics.clients.clone()))?;
        registry.register(Box::new(metrics.servers.clone()))?;
        registry.register(Box::new(metrics.pool_wait.clone()))?;
        registry.register(Box::new(metrics.query.clone()))?;
        registry.register(Box::new(metrics.commits_in_doubt.clone()))?;
        registry.register(Box::new(metrics.pins.clone()))?;
        registry.register(Box::new(metrics.pins_cut.clone()))?;
        registry.register(Box::new(metrics.timeouts.clone()))?;
        registry.register(Box::new(metrics.listeners.clone()))?;
        registry.register(Box::new(metrics.listen_channels.clone()))?;
        registry.register(Box::new(metrics.notifications.clone()))?;
        registry.register(Box::new(metrics.listeners_ended.clone()))?;
        registry.register(Box::new(metrics.cancels_passed_on.clone()))?;
        registry.register(Box::new(metrics.quorum_lost.clone()))?;
        Ok(metrics)
    }
}

/// A worker's way to the counters without their maps' locks.
#[derive(Debug)]
pub(crate) struct Counters {
    metrics: Metrics,
    statements: Vec<(&'static str, &'static str, IntCounter)>,
    primary: Histogram,
    standby: Histogram,
}

impl Counters {
    pub(crate) fn new(metrics: &Metrics) -> Counters {
        let query = |route| metrics.query.with_label_values(&[route]);
        Counters {
            metrics: metrics.clone(),
            statements: vec![],
            primary: query("primary"),
            standby: query("standby"),
        }
    }

    pub(crate) fn statement(&mut self, route: &'static str, reason: &'static str) {
        let known = self.statements.iter().find(|(r, why, _)| *r == route && *why == reason);
        if let Some((_, _, counter)) = known {
            counter.inc();
            return;
        }
        let counter = self.metrics.statements.with_label_values(&[route, reason]);
        counter.inc();
        self.statements.push((route, reason, counter));
    }

    pub(crate) fn served(&self, route: &'static str, seconds: f64) {
        if route == "primary" { self.primary.observe(seconds) } else { self.standby.observe(seconds) }
    }
}
