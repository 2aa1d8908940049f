//! What the servers say of themselves. Asks, does not judge.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::hba::Rule;
use crate::app::config::Config;
use crate::app::{cli, plans};
use crate::net::{DialError, Target, TlsForServers, sql};
use crate::pg::settings::RECOVERY_TARGETS;

/// For everything one server is asked.
const LIMIT: Duration = Duration::from_secs(10);

/// One server's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `server_version_num`.
    pub(super) version: i32,
    pub(super) in_recovery: bool,
    pub(super) system_identifier: i64,
    pub(super) superuser: bool,
    /// By attribute; a superuser may anyway.
    pub(super) may_replicate: bool,
    pub(super) may_monitor: bool,
    pub(super) may_promote: bool,
    pub(super) may_reload: bool,
    /// `ALTER SYSTEM SET synchronous_standby_names`.
    pub(super) may_alter_system: bool,
    /// `pg_read_file`: of a new timeline's history, to verify a promotion.
    pub(super) may_read_files: bool,
    pub(super) may_checkpoint: bool,
    /// Reads password verifiers.
    pub(super) may_read_authid: bool,
    /// Of `pg_settings`; what the login may not see is absent.
    pub(super) settings: HashMap<String, String>,
    /// As the server sees this host; `None`: over a unix socket.
    pub(super) our_address: Option<IpAddr>,
    /// Slots of relays that nobody uses.
    pub(super) idle_relay_slots: Vec<String>,
    /// `None`: the login may not look.
    pub(super) hba: Option<Vec<Rule>>,
}

/// Why a server gave none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoFacts {
    Unreachable(String),
    /// The server answered with an error.
    Refused {
        code: String,
        message: String,
    },
}

const SETTINGS: &[&str] = &[
    "data_checksums",
    "fsync",
    "full_page_writes",
    "hot_standby",
    "cluster_name",
    "max_connections",
    "max_replication_slots",
    "max_wal_senders",
    "primary_conninfo",
    "primary_slot_name",
    "reserved_connections",
    "superuser_reserved_connections",
    "synchronous_commit",
    "wal_level",
    "wal_log_hints",
];

/// The answers of all nodes, in their order; asked in parallel, each within ten seconds.
pub(super) async fn gather(config: &Config, tls: &TlsForServers) -> Vec<Result<Facts, NoFacts>> {
    let mut asking = JoinSet::new();
    for (i, node) in config.nodes.iter().enumerate() {
        let mut target = plans::target(config, tls, &node.node);
        target.parameters = vec![("application_name".to_owned(), "bellwether_check".to_owned())];
        asking.spawn(async move {
            let answer = tokio::time::timeout(LIMIT, ask(&target)).await;
            let silence = || NoFacts::Unreachable(format!("no answer within {LIMIT:?}"));
            (i, answer.unwrap_or_else(|_| Err(silence())))
        });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|(i, _)| *i);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

async fn ask(target: &Target) -> Result<Facts, NoFacts> {
    let connection = sql::connect(target, LIMIT).await.map_err(unreached)?;
    read(&connection).await.map_err(|error| no_facts(&error))
}

async fn read(client: &Client) -> Result<Facts, tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
                    (SELECT system_identifier FROM pg_control_system()),
                    r.rolsuper, r.rolreplication OR r.rolsuper,
                    pg_has_role(current_user, 'pg_monitor', 'USAGE'),
                    has_function_privilege('pg_catalog.pg_promote(boolean, integer)', 'EXECUTE'),
                    has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE'),
                    has_table_privilege('pg_catalog.pg_authid', 'SELECT'),
                    host(inet_client_addr()),
                    has_function_privilege('pg_catalog.pg_read_file(text)', 'EXECUTE')
               FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
            &[],
        )
        .await?;
    let address: Option<String> = row.get(9);
    let mut facts = Facts {
        version: row.get(0),
        in_recovery: row.get(1),
        system_identifier: row.get(2),
        superuser: row.get(3),
        may_replicate: row.get(4),
        may_monitor: row.get(5),
        may_promote: row.get(6),
        may_reload: row.get(7),
        may_read_authid: row.get(8),
        may_read_files: row.get(10),
        our_address: address.and_then(|text| text.parse().ok()),
        ..Facts::default()
    };
    let granted = if facts.superuser { [true; 2] } else { since_15(client, facts.version).await? };
    [facts.may_alter_system, facts.may_checkpoint] = granted;
    let names = [SETTINGS, &RECOVERY_TARGETS].concat();
    for row in client.query("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", &[&names]).await? {
        facts.settings.insert(row.get(0), row.get(1));
    }
    let slots = "SELECT slot_name::text FROM pg_replication_slots
                  WHERE slot_type = 'physical' AND NOT active AND starts_with(slot_name, 'bellwether_') ORDER BY 1";
    facts.idle_relay_slots = client.query(slots, &[]).await?.iter().map(|row| row.get(0)).collect();
    facts.hba = hba(client).await?;
    Ok(facts)
}

/// ALTER SYSTEM and CHECKPOINT can be granted since PostgreSQL 15; before, they take a superuser.
async fn since_15(client: &Client, version: i32) -> Result<[bool; 2], tokio_postgres::Error> {
    if version < 150_000 {
        return Ok([false; 2]);
    }
    let sql = "SELECT has_parameter_privilege('synchronous_standby_names', 'ALTER SYSTEM'),
                      pg_has_role(current_user, 'pg_checkpoint', 'USAGE')";
    let row = client.query_one(sql, &[]).await?;
    Ok([row.get(0), row.get(1)])
}

async fn hba(client: &Client) -> Result<Option<Vec<Rule>>, tokio_postgres::Error> {
    let allowed = "SELECT has_table_privilege('pg_catalog.pg_hba_file_rules', 'SELECT')
                      AND has_function_privilege('pg_catalog.pg_hba_file_rules()', 'EXECUTE')";
    if !client.query_one(allowed, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT line_number, coalesce(type, ''), coalesce(database, '{}'), coalesce(user_name, '{}'),
                      coalesce(address, ''), coalesce(netmask, ''), coalesce(auth_method, ''), error
                 FROM pg_hba_file_rules ORDER BY 1";
    let rows = client.query(sql, &[]).await?;
    let rule = |row: &tokio_postgres::Row| Rule {
        line: row.get(0),
        kind: row.get(1),
        databases: row.get(2),
        users: row.get(3),
        address: row.get(4),
        netmask: row.get(5),
        method: row.get(6),
        error: row.get(7),
    };
    Ok(Some(rows.iter().map(rule).collect()))
}

fn no_facts(error: &tokio_postgres::Error) -> NoFacts {
    match error.as_db_error() {
        Some(said) => {
            NoFacts::Refused { code: said.code().code().to_owned(), message: said.message().to_owned() }
        }
        None => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            NoFacts::Unreachable(format!("{error}{}", cause.unwrap_or_default()))
        }
    }
}

fn unreached(error: DialError) -> NoFacts {
    match error {
        DialError::Rejected { error, .. } => {
            NoFacts::Refused { code: error.code.to_string(), message: error.message }
        }
        error => NoFacts::Unreachable(cli::chain(&error)),
    }
}
