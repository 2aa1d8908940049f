//! Reading the configuration again, on SIGHUP, on the console's RELOAD, and on `POST /api/v1/reload`.
//!
//! [`mod@changes`] tells what differs and what a key's new value holds for. First everything is made that the new values
//! need, certificates and secrets included; what is wrong is told, and nothing has changed. Only then are they given to
//! those who use them, which cannot fail. Sessions go on. What needs a restart stays as it was and is told again by the
//! next reload.

mod changes;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::changes::{Effect, changes};
use super::certificates::{Certificates, Fingerprints};
use super::config::{self, Config, Log, NodeConfig, Problem, Wal};
use super::telemetry::LogLevel;
use super::{cli, plans, users};
use crate::admin::console::Access;
use crate::admin::{Asked, ReloadError, Reloaded};
use crate::failover;
use crate::net::{Acceptor, Reception, Target, TlsForServers};
use crate::proxy::Proxy;
use crate::relay::RelayTuning;
use crate::topology::RemoteApply;

/// Where new values go.
#[derive(Debug)]
pub(super) struct Taps {
    pub(super) proxy: Proxy,
    pub(super) acceptor: Arc<Acceptor>,
    pub(super) tls: TlsForServers,
    pub(super) files: Mutex<Fingerprints>,
    pub(super) tuning: Tuning,
    /// To the console.
    pub(super) access: watch::Sender<Access>,
    /// What is in effect, as a whole.
    pub(super) running: watch::Sender<Arc<Config>>,
    /// Where users are looked up.
    pub(super) candidates: watch::Receiver<Vec<Target>>,
    pub(super) log_level: LogLevel,
}

/// What the planes watch.
#[derive(Debug)]
pub(super) struct Tuning {
    failover: watch::Sender<failover::Tuning>,
    relay: watch::Sender<RelayTuning>,
}

/// Their ends of it.
#[derive(Debug)]
pub(super) struct Tuned {
    pub(super) failover: watch::Receiver<failover::Tuning>,
    pub(super) relay: watch::Receiver<RelayTuning>,
}

impl Tuning {
    pub(super) fn channels(config: &Config) -> (Tuning, Tuned) {
        let failover = watch::channel(plans::failover_tuning(config));
        let relay = watch::channel(plans::relay_tuning(config));
        (Tuning { failover: failover.0, relay: relay.0 }, Tuned { failover: failover.1, relay: relay.1 })
    }
}

/// Never ends, unless signals cannot be waited for.
pub(super) async fn serve(taps: Taps, mut requests: mpsc::Receiver<Asked>) -> io::Result<()> {
    let taps = Arc::new(taps);
    let mut hangups = signal(SignalKind::hangup())?;
    loop {
        let asked = tokio::select! {
            _ = hangups.recv() => None,
            asked = requests.recv() => match asked {
                Some(asked) => Some(asked),
                None => return Ok(()),
            },
        };
        let done = reload(&taps).await;
        match &done {
            Ok(Reloaded { at_once, new_connections, restart, warnings }) => {
                tracing::info!(?at_once, ?new_connections, ?restart, ?warnings, "configuration read again");
            }
            Err(why) => tracing::warn!(%why, "the configuration stays as it was"),
        }
        if let Some(asked) = asked {
            // Whoever asked may have gone.
            let _ = asked.send(done);
        }
    }
}

async fn reload(taps: &Arc<Taps>) -> Result<Reloaded, ReloadError> {
    // Commands that print secrets take their time, and so do keys that are derived; the control plane has none.
    let preparing = taps.clone();
    let prepared = tokio::task::spawn_blocking(move || Prepared::read(&preparing)).await;
    let prepared = prepared.map_err(|_| ReloadError::Unusable("reading it failed".to_owned()))?;
    let prepared = prepared.map_err(ReloadError::Unusable)?;
    Ok(prepared.take_effect(taps))
}

/// Everything that a new configuration needs, made.
struct Prepared {
    /// The new values, and the running ones where a restart is needed.
    effective: Config,
    outcome: Reloaded,
    files: Fingerprints,
    tls: TlsForServers,
    reception: Reception,
}

impl Prepared {
    /// Blocks.
    fn read(taps: &Taps) -> Result<Prepared, String> {
        let running = taps.running.borrow().clone();
        let file = running.file.as_deref().ok_or("this instance was not started from a file")?;
        let (next, warnings) = config::load(file).map_err(|error| cli::chain(&error))?;
        let changes = changes(&running, &next);
        let effective = in_effect(&running, next);
        let certificates =
            Certificates::load(&effective).map_err(|error| format!("tls: {}", cli::chain(&error)))?;
        let greeting = taps.acceptor.reception();
        let authenticator =
            users::succeeding(greeting.authenticator(), &running, &effective, &taps.candidates);
        let reception = Reception::by(authenticator)
            .with_login_limit(effective.pool.login)
            .with_tls(certificates.for_clients);
        let renewed = certificates.files.differing(&taps.files.lock());
        let outcome = outcome(&changes, renewed, &warnings);
        Ok(Prepared {
            effective,
            outcome,
            files: certificates.files,
            tls: certificates.for_servers,
            reception,
        })
    }

    fn take_effect(self, taps: &Taps) -> Reloaded {
        let Prepared { effective, outcome, files, tls, reception } = self;
        taps.acceptor.change(reception);
        taps.tls.become_as(&tls);
        *taps.files.lock() = files;
        taps.proxy.reconfigure(plans::proxy(&effective));
        replace(&taps.tuning.failover, plans::failover_tuning(&effective));
        let told = *taps.tuning.relay.borrow();
        replace(&taps.tuning.relay, for_relay(told, plans::relay_tuning(&effective)));
        replace(&taps.access, effective.console.clone());
        taps.log_level.change(&effective.log);
        taps.running.send_replace(Arc::new(effective));
        outcome
    }
}

fn replace<T: PartialEq>(tap: &watch::Sender<T>, next: T) {
    tap.send_if_modified(|value| {
        let modified = *value != next;
        *value = next;
        modified
    });
}

/// `next`, but for what needs a restart.
fn in_effect(running: &Config, next: Config) -> Config {
    let running = running.clone();
    let peers = if running.etcd.is_some() { running.peers } else { next.peers.clone() };
    Config {
        cluster: running.cluster,
        instance: running.instance,
        peers,
        listen: running.listen,
        admin: running.admin,
        nodes: running.nodes.into_iter().map(|node| reached_as_in(&next, node)).collect(),
        server_login: running.server_login,
        wal: Wal { dir: running.wal.dir, ..next.wal },
        durability: running.durability,
        state_file: running.state_file,
        etcd: running.etcd,
        workers: running.workers,
        log: Log { format: running.log.format, ..next.log },
        ..next
    }
}

/// Sessions that were let in under `wal.remote_apply: followers` may commit with `remote_apply` for as long as they
/// are there; their commits wait for the replay that was told until now. So it is told until the process ends.
fn for_relay(told: RelayTuning, next: RelayTuning) -> RelayTuning {
    match told.remote_apply {
        RemoteApply::Followers => RelayTuning { remote_apply: RemoteApply::Followers, ..next },
        RemoteApply::Off => next,
    }
}

/// How a node is reached needs no restart.
fn reached_as_in(next: &Config, node: NodeConfig) -> NodeConfig {
    match next.node(&node.node.name) {
        Some(found) => NodeConfig { tls: found.tls.clone(), ..node },
        None => node,
    }
}

fn outcome(changes: &[(&'static str, Effect)], renewed: Vec<String>, warnings: &[Problem]) -> Reloaded {
    let of = |wanted: Effect| {
        let keys = changes.iter().filter(|(_, effect)| *effect == wanted);
        keys.map(|(key, _)| (*key).to_owned()).collect::<Vec<_>>()
    };
    let mut new_connections = of(Effect::NewConnections);
    new_connections.extend(renewed.into_iter().map(|key| format!("{key} (the file's content)")));
    Reloaded {
        at_once: of(Effect::AtOnce),
        new_connections,
        restart: of(Effect::Restart),
        warnings: warnings.iter().map(Problem::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::changes::{Effect, changes, tests::config};
    use super::{for_relay, in_effect};
    use crate::app::plans;
    use crate::topology::RemoteApply::{Followers, Off};

    #[test]
    fn replay_that_commits_may_wait_for_is_told_on() {
        let tuning = |rule: &str, rate: &str| {
            let wal = format!("wal: {{dir: wal, remote_apply: {rule}, follower_rate: {rate}}}");
            plans::relay_tuning(&config(&wal))
        };
        for (told, next, expected) in [
            ("off", "off", Off),
            ("off", "followers", Followers),
            ("followers", "off", Followers),
            ("followers", "followers", Followers),
        ] {
            let now = for_relay(tuning(told, "1MiB"), tuning(next, "2MiB"));
            assert_eq!((now.remote_apply, now.follower_rate), (expected, 2 << 20), "{told}, then {next}");
        }
    }

    /// What `changes` says of a key is what becomes of it.
    #[test]
    fn what_needs_a_restart_stays_and_all_else_changes() {
        let running = config("");
        for changed in [
            "cluster: others",
            "listen: [{address: '0.0.0.0:6433'}]",
            "admin: {address: '127.0.0.1:1', users: [joe]}",
            "nodes: [{name: pg2, address: '10.0.0.12:5432'}]",
            "nodes: [{name: pg1, address: '10.0.0.11:5432', tls: {mode: require}}]",
            "server_login: {user: bellwether, password: x}",
            "auth: {method: md5}",
            "pool: {size: 5, mode: session, login: 1s}",
            "routing: {balance: round_robin}",
            "wal: {dir: other, retain: {size: 2GiB}}",
            "durability: {mode: quorum}",
            "failover: {mode: manual}",
            "state: {file: other}",
            "peers: [{instance: bw2, address: '10.0.0.2:6432'}]",
            "workers: 7",
            "tls: {servers: {mode: require}}",
            "log: {level: debug, format: json}",
            "shutdown: {drain: 1s}",
        ] {
            let next = config(changed);
            let told = changes(&running, &next);
            assert!(!told.is_empty(), "{changed}");
            let effective = in_effect(&running, next.clone());
            let missing = changes(&effective, &next);
            let restarts: Vec<_> =
                told.iter().copied().filter(|(_, effect)| *effect == Effect::Restart).collect();
            assert_eq!(missing, restarts, "{changed}");
        }
    }
}
