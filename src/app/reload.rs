//! Reading the configuration again, on SIGHUP and on the console's RELOAD: what concerns pools, clients and their
//! time holds at once, and certificates are read again; of the rest it is said that it needs a restart.

use std::io;
use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::certificates::Certificates;
use super::config::{self, Auth, Config};
use crate::proxy::Proxy;

/// Requests that wait for the one before them.
pub(super) const QUEUE: usize = 4;

type Answer = oneshot::Sender<Result<Vec<String>, String>>;

/// Never ends, unless signals cannot be waited for.
pub(super) async fn serve(
    mut running: Config,
    proxy: Proxy,
    certificates: Certificates,
    mut requests: mpsc::Receiver<Answer>,
) -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    loop {
        let answer = tokio::select! {
            _ = hangups.recv() => None,
            asked = requests.recv() => match asked {
                Some(answer) => Some(answer),
                None => return Ok(()),
            },
        };
        let done = reload(&mut running, &proxy, &certificates);
        match &done {
            Ok(restarts) => tracing::info!(?restarts, "configuration read again; these keys need a restart"),
            Err(why) => tracing::warn!(why, "the configuration stays as it was"),
        }
        if let Some(answer) = answer {
            // Whoever asked may have gone.
            let _ = answer.send(done);
        }
    }
}

fn reload(running: &mut Config, proxy: &Proxy, certificates: &Certificates) -> Result<Vec<String>, String> {
    let file = running.file.as_deref().ok_or("this instance was not started from a file")?;
    let next = read(file)?;
    certificates.reload().map_err(|error| super::cli::chain(&error))?;
    let restarts = restarts(running, &next);
    proxy.set_limits(next.pool.limits.clone());
    // The rest goes on as it was, and is told again next time.
    running.pool.limits = next.pool.limits;
    Ok(restarts)
}

fn read(file: &Path) -> Result<Config, String> {
    config::load(file).map(|(config, _)| config).map_err(|error| error.to_string())
}

/// Rules hold regular expressions, which know no equality; but all that they are is printed.
fn same_auth(one: &Auth, other: &Auth) -> bool {
    let printed = |auth: &Auth| format!("{:?} {:?} {:?}", auth.rules, auth.query, auth.lookups);
    let users = one.users == other.users
        && one.replication_users == other.replication_users
        && one.lookup_login == other.lookup_login;
    users && printed(one) == printed(other)
}

/// The sections that differ and are not taken over.
fn restarts(running: &Config, next: &Config) -> Vec<String> {
    let pool =
        (running.pool.login, running.pool.connect_timeout) == (next.pool.login, next.pool.connect_timeout);
    let same = [
        ("cluster", running.cluster == next.cluster),
        ("instance", running.instance == next.instance),
        ("listen", running.listen == next.listen),
        ("admin", (running.admin, &running.console) == (next.admin, &next.console)),
        ("nodes", running.nodes == next.nodes),
        ("server_login", running.server_login == next.server_login),
        ("auth", same_auth(&running.auth, &next.auth)),
        ("pool.login or pool.connect_timeout", pool),
        ("routing", running.routing == next.routing),
        ("wal", running.wal == next.wal),
        ("durability", running.durability == next.durability),
        ("failover", running.failover == next.failover),
        ("state", running.state_file == next.state_file),
        ("workers", running.workers == next.workers),
        ("tls", running.tls == next.tls),
        ("log", running.log == next.log),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key.to_owned()).collect()
}
