//! Each plane's own configuration, made from the file's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::config::{self, Config};
use crate::failover::decide::Mode;
use crate::failover::health::Detect;
use crate::failover::{self, FailoverConfig, Tuning};
use crate::net::{Credentials, Target, TlsForServers};
use crate::proxy::peers::Peers;
use crate::proxy::route::{Balance, Consistency, Policy};
use crate::proxy::{self, ProxyConfig, ResolveCommits};
use crate::relay::{RelayConfig, RelayInputs, RelayTuning};
use crate::topology::{CommitsInDoubt, Directive, Node};

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
) -> RelayInputs {
    RelayInputs {
        tuning,
        directive,
        in_doubt,
        nodes: nodes(config),
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
        relay_slot: format!("bellwether_{}", config.instance)
            .parse()
            .expect("an instance's name is short and of a slot's letters"),
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
    }
}

pub(super) fn failover_tuning(config: &Config) -> Tuning {
    let limits = &config.failover;
    Tuning {
        mode: match limits.mode {
            config::FailoverMode::Automatic => Mode::Automatic,
            config::FailoverMode::Manual => Mode::Manual,
        },
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
