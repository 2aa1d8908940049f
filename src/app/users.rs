//! Who may log in here, and where unlisted users are looked up: at the primary first, then at whoever is up.

use std::sync::Arc;

use tokio::sync::watch;

use super::config::{AuthQuery, Config, LookupLogin};
use super::plans;
use crate::net::{Authenticator, Target, TlsForServers, Users};
use crate::pg::auth::scram;
use crate::topology::{Directive, Health, Node};

/// `candidates`: where to look up, as [`follow`] says.
pub(super) fn authenticator(config: &Config, candidates: watch::Receiver<Vec<Target>>) -> Authenticator {
    let known = Users::listed_only(listed(config), mock_secret(config));
    let users = match config.auth.query {
        AuthQuery::On => known.with_lookup(candidates, config.auth.lookups.clone()),
        AuthQuery::Off => known,
    };
    by_rules(config, users)
}

/// In the place of `before`, which was made of `running`. What was looked up stays known, unless it is looked up in
/// another way now.
pub(super) fn succeeding(
    before: &Authenticator,
    running: &Config,
    next: &Config,
    candidates: &watch::Receiver<Vec<Target>>,
) -> Authenticator {
    let known = before.users().relisted(listed(next));
    let how = |config: &Config| {
        let auth = &config.auth;
        (auth.query, auth.lookup_login.clone(), auth.lookups.clone())
    };
    let users = match next.auth.query {
        AuthQuery::Off => known,
        AuthQuery::On if how(running) == how(next) => known.with_lookup_of(before.users()),
        AuthQuery::On => known.with_lookup(candidates.clone(), next.auth.lookups.clone()),
    };
    by_rules(next, users).succeeding(before)
}

/// Names with what proves them. Our own login is known: followers use it to stream.
fn listed(config: &Config) -> impl Iterator<Item = (&str, &str)> {
    let listed = config.auth.users.iter().map(|user| (user.name.as_str(), &**user.secret.reveal()));
    let login = &config.server_login;
    let own = login.password.iter().map(|password| (login.user.as_str(), &**password.reveal()));
    own.chain(listed)
}

fn by_rules(config: &Config, users: Users) -> Authenticator {
    let login = &config.server_login;
    let replication = config.auth.replication_users.iter().cloned().chain([login.user.clone()]);
    Authenticator::new(config.auth.rules.clone(), Arc::new(users)).with_replication_users(replication)
}

/// The same after a restart and on every instance, as far as they share a secret.
fn mock_secret(config: &Config) -> scram::Key {
    match &config.server_login.password {
        Some(password) => scram::mock_secret(password.reveal()),
        None => rand::random(),
    }
}

/// Keeps `targets` in the best order. Never ends.
pub(super) async fn follow(
    mut config: watch::Receiver<Arc<Config>>,
    tls: TlsForServers,
    mut directive: watch::Receiver<Arc<Directive>>,
    mut health: watch::Receiver<Arc<Health>>,
    targets: watch::Sender<Vec<Target>>,
) {
    let mut last: (Vec<Node>, Option<LookupLogin>) = Default::default();
    loop {
        let now = config.borrow_and_update().clone();
        let nodes = plans::nodes(&now);
        let next = order(&nodes, &directive.borrow_and_update(), &health.borrow_and_update());
        let next = (next.into_iter().cloned().collect(), now.auth.lookup_login.clone());
        if next != last {
            let found: &(Vec<Node>, _) = &next;
            targets.send_replace(found.0.iter().map(|node| plans::lookup_target(&now, &tls, node)).collect());
            last = next;
        }
        let changed = tokio::select! {
            changed = config.changed() => changed,
            changed = directive.changed() => changed,
            changed = health.changed() => changed,
        };
        if changed.is_err() {
            // The control plane has ended, and with it soon the instance.
            return std::future::pending().await;
        }
    }
}

/// The primary, then nodes that are up, then the others, which may know better than the last probe.
fn order<'n>(nodes: &'n [Node], directive: &Directive, health: &Health) -> Vec<&'n Node> {
    let mut ordered: Vec<&Node> = nodes.iter().collect();
    ordered.sort_by_key(|node| {
        let is_primary = directive.primary.as_ref() == Some(&node.name);
        let is_up = health.node(&node.name).is_some_and(|health| health.state.is_up());
        (!is_primary, !is_up)
    });
    ordered
}

#[cfg(test)]
mod tests {
    use super::order;
    use crate::pg::Lsn;
    use crate::topology::{Directive, Durability, Health, Node, NodeHealth, NodeState};

    #[test]
    fn the_primary_first_then_who_is_up() {
        let address = || "127.0.0.1:1".parse().expect("an address");
        let nodes: Vec<Node> = ["pg1", "pg2", "pg3"]
            .map(|name| Node {
                name: name.parse().expect("a name"),
                address: address(),
                priority: 0,
                zone: None,
                no_failover: false,
            })
            .into();
        let up = |name: &str| NodeHealth {
            name: name.parse().expect("a name"),
            address: address(),
            state: NodeState::Up,
            role: None,
            timeline: None,
            system: None,
            position: Lsn::INVALID,
            server_version: None,
            seen_at: None,
        };
        let directive = |primary: Option<&str>| Directive {
            primary: primary.and_then(|name| name.parse().ok()),
            ..Directive::starting(Durability::Async)
        };
        for (primary, healthy, expected) in [
            (None, vec![], ["pg1", "pg2", "pg3"]),
            (None, vec!["pg3"], ["pg3", "pg1", "pg2"]),
            (Some("pg2"), vec!["pg3"], ["pg2", "pg3", "pg1"]),
        ] {
            let health = Health { nodes: healthy.into_iter().map(up).collect(), diagnosis: None };
            let found: Vec<&str> =
                order(&nodes, &directive(primary), &health).iter().map(|node| node.name.as_str()).collect();
            assert_eq!(found, expected);
        }
    }
}
