//! Logins, counted. By kind only: a name is whatever somebody types.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::pg::SqlState;

#[derive(Clone, Debug)]
pub struct LoginMetrics {
    succeeded: IntCounterVec,
    failed: IntCounterVec,
}

impl LoginMetrics {
    /// Fails when one of the names is registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<LoginMetrics> {
        let metrics = LoginMetrics::unregistered()?;
        registry.register(Box::new(metrics.succeeded.clone()))?;
        registry.register(Box::new(metrics.failed.clone()))?;
        // Whoever waits for the first one to happen can tell none from not known.
        for reason in REASONS {
            metrics.failed.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    pub(super) fn unregistered() -> prometheus::Result<LoginMetrics> {
        let succeeded = Opts::new("bellwether_logins_total", "Clients that have logged in, by method");
        let failed = Opts::new("bellwether_logins_failed_total", "Clients that were not let in, by reason");
        Ok(LoginMetrics {
            succeeded: IntCounterVec::new(succeeded, &["method"])?,
            failed: IntCounterVec::new(failed, &["reason"])?,
        })
    }

    pub(super) fn succeeded(&self, method: &'static str) {
        self.succeeded.with_label_values(&[method]).inc();
    }

    pub(super) fn refused(&self, code: SqlState) {
        self.failed.with_label_values(&[reason(code)]).inc();
    }

    pub(super) fn handshake_failed(&self) {
        self.failed.with_label_values(&[TLS]).inc();
    }
}

const TLS: &str = "tls";
/// No such user, or not its password: nobody is told which.
const PASSWORD: &str = "password";
/// No rule lets it in, or one rejects it; not its certificate; not without TLS; not for replication.
const NOT_ALLOWED: &str = "not_allowed";
const TOO_MANY: &str = "too_many";
/// No server could be asked for the password.
const NO_LOOKUP: &str = "no_lookup";
const TIMEOUT: &str = "timeout";
const PROTOCOL: &str = "protocol";

const REASONS: [&str; 7] = [TLS, PASSWORD, NOT_ALLOWED, TOO_MANY, NO_LOOKUP, TIMEOUT, PROTOCOL];

fn reason(code: SqlState) -> &'static str {
    match code {
        SqlState::INVALID_PASSWORD => PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => NOT_ALLOWED,
        SqlState::TOO_MANY_CONNECTIONS => TOO_MANY,
        SqlState::CANNOT_CONNECT_NOW => NO_LOOKUP,
        SqlState::QUERY_CANCELED => TIMEOUT,
        _ => PROTOCOL,
    }
}
