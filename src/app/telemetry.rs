//! Logs: `tracing` to standard error, as text or as JSON lines. Set up once, by the process; `run` only logs, and
//! changes the level on a reload.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use super::config::{Log, LogFormat};

/// What of the process's logs can be changed while it runs.
#[derive(Clone)]
pub struct LogLevel(Arc<dyn Fn(EnvFilter) + Send + Sync>);

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevel(..)")
    }
}

impl LogLevel {
    /// As `log.level` says, from now on.
    pub(super) fn change(&self, log: &Log) {
        (self.0)(filter(log));
    }
}

/// Installs the process's subscriber. A second call changes nothing: the first one's subscriber stays.
pub fn install(log: &Log) -> LogLevel {
    let lines = tracing_subscriber::fmt().with_env_filter(filter(log)).with_writer(io::stderr);
    // Only a second call fails to install, and its level is nobody's.
    match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(io::stderr().is_terminal()).compact().with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            LogLevel(Arc::new(move |filter| drop(handle.reload(filter))))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            LogLevel(Arc::new(move |filter| drop(handle.reload(filter))))
        }
    }
}

/// The configuration has been checked for it.
fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"))
}
