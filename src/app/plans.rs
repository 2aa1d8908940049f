//! Each plane's own configuration, made from the file's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::config::{self, Config};
use crate::admin::console;
use crate::failover::decide::{Budget, Mode};
use crate::failover::health::Detect;
use crate::failover::{self, EtcdLogin, FailoverConfig, Tuning};
use crate::net::{Credentials, Target, TlsForServers};
use crate::pg::SlotName;
use crate::proxy::peers::{Peer, Peers};
use crate::proxy::route::{Balance, Consistency, Policy};
use crate::proxy::{self, ProxyConfig, ResolveCommits};
use crate::relay::{RelayConfig, RelayInputs, RelayTuning};
use crate::topology::{Address, Agreed, CommitsInDoubt, Directive, Node, WalStatus};

pub(super) fn nodes(config: &Config) -> Vec<Node> {
    config.nodes.iter().map(|node| node.node.clone()).collect()
}

/// As whom we come to the servers.
pub(super) fn credentials(config: &Config) -> Credentials {
    match &config.server_login.password {
        Some(password) => Credentials::Password(password.reveal().clone()),
        None => Credentials::Trust,
    }
}

pub(super) fn target(config: &Config, tls: &TlsForServers, node: &Node) -> Target {
    Target {
        address: node.address.clone(),
        user: config.server_login.user.as_str().into(),
        database: config.server_login.database.as_str().into(),
        credentials: credentials(config),
        tls: tls.clone(),
        parameters: vec![("application_name".to_owned(), format!("bellwether_{}", config.instance))],
    }
}

/// Another instance's console.
pub(super) fn peer_target(config: &Config, tls: &TlsForServers, peer: &Peer) -> Target {
    Target {
        address: peer.address.clone(),
        user: config.server_login.user.as_str().into(),
        database: console::DATABASES[0].into(),
        credentials: credentials(config),
        tls: tls.clone(),
        parameters: vec![("application_name".to_owned(), format!("bellwether_{}", config.instance))],
    }
}

/// Where users are looked up, and as whom.
pub(super) fn lookup_target(config: &Config, tls: &TlsForServers, node: &Node) -> Target {
    let ours = target(config, tls, node);
    let Some(login) = &config.auth.lookup_login else { return ours };
    let password = login.password.as_ref().map(|password| Credentials::Password(password.reveal().clone()));
    Target {
        user: login.user.as_str().into(),
        database: login.database.as_deref().map_or(ours.database, Into::into),
        credentials: password.unwrap_or(Credentials::Trust),
        ..ours
    }
}

/// The primary is asked for a sign of life often enough that a standby's lag in time is known within its bound,
/// with room for the answer; not more often than this.
const LEAST_SILENCE: Duration = Duration::from_millis(20);

pub(super) fn relay(config: &Config) -> RelayConfig {
    let mut relay = RelayConfig::new(config.instance.as_str(), &config.wal.dir);
    relay.archive = config.wal.archive.clone();
    relay
}

pub(super) fn relay_tuning(config: &Config) -> RelayTuning {
    RelayTuning {
        remote_apply: config.wal.remote_apply,
        retain: config.wal.retain,
        follower_rate: config.wal.follower_rate,
        ask_after: (config.routing.max_lag_time / 3).max(LEAST_SILENCE),
    }
}

pub(super) fn relay_inputs(
    config: &Config,
    tls: &TlsForServers,
    tuning: watch::Receiver<RelayTuning>,
    directive: watch::Receiver<Arc<Directive>>,
    in_doubt: watch::Receiver<Arc<CommitsInDoubt>>,
    (agreed, all): (watch::Receiver<Agreed>, watch::Receiver<Arc<WalStatus>>),
) -> RelayInputs {
    RelayInputs {
        tuning,
        directive,
        in_doubt,
        agreed,
        all,
        nodes: nodes(config),
        peers: other_relays(config),
        relays: config.wal.upstreams.clone(),
        user: config.server_login.user.as_str().into(),
        credentials: credentials(config),
        tls: tls.clone(),
    }
}

pub(super) fn failover(
    config: &Config,
    tls: &TlsForServers,
    tuning: watch::Receiver<Tuning>,
) -> FailoverConfig {
    FailoverConfig {
        instance: config.instance.clone(),
        members: members(config),
        acks: config.acks.map(count),
        relay_slots: relay_slots(config),
        nodes: nodes(config),
        login: failover::ServerLogin {
            user: config.server_login.user.as_str().into(),
            database: config.server_login.database.as_str().into(),
            credentials: credentials(config),
            tls: tls.clone(),
        },
        durability: config.durability,
        tuning,
        state: config.state_file.clone(),
        etcd: etcd(config),
    }
}

pub(super) fn etcd(config: &Config) -> Option<failover::EtcdConfig> {
    let config::Etcd { endpoints, lease, login, tls } = config.etcd.clone()?;
    let login = login.map(|(user, password)| EtcdLogin { user, password: password.reveal().clone() });
    let (cluster, instance) = (config.cluster.clone(), config.instance.clone());
    Some(failover::EtcdConfig { endpoints, cluster, instance, lease, login, tls })
}

/// They serve replication where they serve everything.
fn other_relays(config: &Config) -> Vec<(String, Address)> {
    let peers = config.peers.iter().filter(|_| !is_alone(config));
    peers.map(|peer| (peer.instance.clone(), peer.address.clone())).collect()
}

/// Whether there is no other instance to agree with.
pub(super) fn is_alone(config: &Config) -> bool {
    etcd(config).is_none()
}

/// All instances, in order; none while this one is alone.
pub(super) fn members(config: &Config) -> Vec<String> {
    if etcd(config).is_none() {
        return Vec::new();
    }
    let others = config.peers.iter().map(|peer| peer.instance.clone());
    let mut members: Vec<String> = others.chain([config.instance.clone()]).collect();
    members.sort_unstable();
    members
}

/// Every relay's, wherever it is.
pub(super) fn relay_slots(config: &Config) -> Vec<SlotName> {
    let own = [config.instance.clone()];
    let members = members(config);
    let instances = if members.is_empty() { &own[..] } else { &members };
    let slot = |instance: &String| {
        let name = format!("bellwether_{instance}").parse();
        name.expect("an instance's name is short and of a slot's letters")
    };
    instances.iter().map(slot).collect()
}

pub(super) fn failover_tuning(config: &Config) -> Tuning {
    let limits = &config.failover;
    Tuning {
        mode: match limits.mode {
            config::FailoverMode::Automatic => Mode::Automatic,
            config::FailoverMode::Manual => Mode::Manual,
        },
        budget: limits.budget.map(|config::Budget { failovers, within }| Budget {
            failovers: count(failovers),
            window: within,
        }),
        max_lost_bytes: limits.max_lost_bytes,
        drain: limits.drain,
        detect: Detect {
            interval: limits.interval,
            timeout: limits.timeout,
            restart_timeout: limits.restart_timeout,
            stall_timeout: limits.stall_timeout,
        },
    }
}

pub(super) fn proxy(config: &Config) -> ProxyConfig {
    let (pool, routing) = (&config.pool, &config.routing);
    ProxyConfig {
        remote_apply: config.wal.remote_apply,
        resolve_commits: if config.resolve_commits { ResolveCommits::Yes } else { ResolveCommits::No },
        plan: Arc::new(pool.limits.clone()),
        connect_timeout: pool.connect_timeout,
        hold_clients: config.failover.hold_clients,
        policy: Policy {
            max_lag_bytes: routing.max_lag_bytes,
            max_lag_time: routing.max_lag_time,
            balance: match routing.balance {
                config::Balance::LeastOutstanding => Balance::LeastOutstanding,
                config::Balance::RoundRobin => Balance::RoundRobin,
            },
            ..Policy::default()
        },
        consistency: match routing.consistency {
            config::Consistency::Eventual => Consistency::Eventual,
            config::Consistency::Session => Consistency::Session,
            config::Consistency::Global => Consistency::Global,
        },
        peers: Peers::new(&config.instance, &config.peers),
    }
}

pub(super) fn proxy_login(config: &Config, tls: &TlsForServers) -> proxy::ServerLogin {
    proxy::ServerLogin {
        user: config.server_login.user.as_str().into(),
        database: config.server_login.database.as_str().into(),
        credentials: credentials(config),
        tls: tls.clone(),
    }
}

/// One per four cores unless the file says otherwise: "Runtime layout, measured" in ARCHITECTURE.md.
pub(super) fn workers(config: &Config) -> usize {
    let quarter = || std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(4));
    config.workers.map_or_else(quarter, count)
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
