//! Whether a server has room for the connections that the instances may open. PURE.

use super::Finding;
use super::facts::Facts;
use crate::app::config::Config;
use crate::app::plans;
use crate::proxy::limits::Plan;

/// Of one instance at one node, beside the pools: the probe, its heartbeat, an action of the control plane, the sampler,
/// the lookup of users, LISTEN. (Relays and base backups take `max_wal_senders`, which are apart.)
const OWN: usize = 6;

/// `place`: of the node.
pub(super) fn judge(config: &Config, place: &str, facts: &Facts) -> Option<Finding> {
    let number = |name: &str| facts.settings.get(name).and_then(|text| text.parse::<usize>().ok());
    let all = number("max_connections")?;
    // Those of 16 and later are for members of a role; whom the clients are we do not know.
    let reserved =
        number("superuser_reserved_connections").unwrap_or(0) + number("reserved_connections").unwrap_or(0);
    let room = all.saturating_sub(reserved);
    let instances = plans::members(config).len().max(1);
    let (pools, which) = pools(&config.pool.limits);
    let wanted = instances * (pools + OWN);
    if wanted <= room {
        return None;
    }
    let who = if instances == 1 { String::new() } else { format!("each of {instances} instances may open ") };
    let what = format!(
        "has room for {room} connections (max_connections {all}, {reserved} of them reserved): \
         {who}{pools} ({which}) and {OWN} of its own"
    );
    let fits = (room / instances).saturating_sub(OWN);
    let more = wanted + reserved;
    let raise = format!("ALTER SYSTEM SET max_connections = {more}; and restart");
    Some(Finding::warn(place, what).mend(match fits {
        0 => raise,
        fits => format!("{raise}; or pool: {{max_servers: {fits}}} in the configuration"),
    }))
}

/// So many the pools of a node may have at once, and why. Without `pool.max_servers` there is a pool for each pair of a user
/// and a database: as far as the file knows of them.
fn pools(plan: &Plan) -> (usize, String) {
    let size = |database: &str, user: &str| {
        let size = plan.limits(database, user).size;
        size.size + size.reserve_size
    };
    let databases: Vec<&str> = names(plan.databases.keys());
    let users: Vec<&str> = names(plan.users.keys());
    let pairs = databases.iter().flat_map(|database| users.iter().map(move |user| (*database, *user)));
    let (count, sum) = pairs.fold((0, 0), |(count, sum), (database, user)| {
        let caps = [plan.databases.get(database), plan.users.get(user)];
        let cap = caps.into_iter().flatten().filter_map(|said| said.totals.max_servers).min();
        (count + 1, sum + cap.map_or(size(database, user), |cap| cap.min(size(database, user))))
    });
    match plan.all.totals.max_servers {
        Some(most) if most <= sum || count == 1 => (most, "pool.max_servers".to_owned()),
        _ if count == 1 => (sum, "one pool's, of one user in one database".to_owned()),
        _ => (sum, format!("the sum of {count} pools, of the users and databases that pool names")),
    }
}

/// Who is not named has one pool at least.
fn names<'a>(keys: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let names: Vec<&str> = keys.map(String::as_str).collect();
    if names.is_empty() { vec![""] } else { names }
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::app::check::facts::Facts;
    use crate::app::check::judge::tests::{config, one_of_three};
    use crate::app::config::Config;

    /// `max_connections superuser_reserved_connections reserved_connections`.
    fn check(config: &Config, settings: &str, expected: Option<&str>) {
        let names = ["max_connections", "superuser_reserved_connections", "reserved_connections"];
        let settings = names.map(str::to_owned).into_iter().zip(settings.split(' ').map(str::to_owned));
        let facts = Facts { settings: settings.collect(), ..Facts::default() };
        let found = judge(config, "pg1", &facts).map(|finding| finding.to_string());
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn what_may_be_opened_fits() {
        check(&config(""), "100 3", None);
        check(&config(""), "29 3", None);
        check(
            &config(""),
            "28 3",
            Some(
                "WARN pg1: has room for 25 connections (max_connections 28, 3 of them reserved): 20 (one pool's, of one \
                 user in one database) and 6 of its own. Mend: ALTER SYSTEM SET max_connections = 29; and restart; \
                 or pool: {max_servers: 19} in the configuration",
            ),
        );
        check(&one_of_three("pool: {max_servers: 20}"), "100 3 5", None);
        check(
            &one_of_three("pool: {max_servers: 50}"),
            "100 3 5",
            Some(
                "WARN pg1: has room for 92 connections (max_connections 100, 8 of them reserved): each of 3 instances may \
                 open 50 (pool.max_servers) and 6 of its own. Mend: ALTER SYSTEM SET max_connections = 176; and \
                 restart; or pool: {max_servers: 24} in the configuration",
            ),
        );
        let two = "pool: {size: 30, databases: [{name: a}, {name: b, max_servers: 10}], users: [{name: c, reserve_size: 5}]}";
        check(
            &config(two),
            "40 3",
            Some(
                "WARN pg1: has room for 37 connections (max_connections 40, 3 of them reserved): 45 (the sum of 2 pools, of \
                 the users and databases that pool names) and 6 of its own. Mend: ALTER SYSTEM SET max_connections \
                 = 54; and restart; or pool: {max_servers: 31} in the configuration",
            ),
        );
    }
}
