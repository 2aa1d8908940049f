//! Logs: `tracing` to standard error, as text or as JSON lines. Set up once, by the process; `run` only logs.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::config::{Log, LogFormat};

/// Installs the process's subscriber. A second call changes nothing: the first one's subscriber stays.
pub fn install(log: &Log) {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Only a second call fails.
    let _ = match log.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).compact().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
}
