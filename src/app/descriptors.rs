//! File descriptors: a client needs one, and another while it has a server. Shells often allow 1024, and a process
//! may take as many as its hard limit says.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::config::Config;

/// For what is not a client's and not a server connection's: segments, logs, followers, the console.
const OTHERS: u64 = 256;

/// Raises the soft limit to the hard one. What is too low even so is told: whoever comes when all are used is refused.
pub(super) fn raise(config: &Config) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    let totals = config.pool.limits.totals();
    let wanted = totals.max_clients.unwrap_or(0) + totals.max_servers.unwrap_or(0);
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(OTHERS);
    match raised {
        Ok(limit) if limit < wanted => {
            tracing::info!(limit, wanted, "fewer file descriptors (ulimit -n) than all clients would need");
        }
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::info!(%error, "the limit on file descriptors stays as it is"),
    }
}
