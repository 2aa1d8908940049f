//! What the servers' answers mean, and what mends them. PURE.

use super::facts::{Facts, NoFacts};
use super::hba::{self, Match, Purpose};
use super::{Finding, connections};
use crate::app::config::{AuthQuery, Config, ListenOn, NodeConfig};
use crate::app::plans;
use crate::net::LookupStatement;
use crate::pg::settings::RECOVERY_TARGETS;
use crate::topology::{Durability, RemoteApply};

/// The oldest PostgreSQL that we know.
const OLDEST_VERSION: i32 = 140_000;
/// One for the relay, two for a base backup.
const WAL_SENDERS: u32 = 3;

/// `answers` in the order of `config.nodes`.
pub(super) fn judge(config: &Config, answers: &[Result<Facts, NoFacts>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (node, answer) in config.nodes.iter().zip(answers) {
        match answer {
            Ok(facts) => {
                findings.extend(grants(config, node, facts));
                findings.extend(settings(config, node, facts));
                findings.extend(connections::judge(config, &place(node), facts));
                findings.extend(idle_slots(config, node, facts));
                findings.extend(recovery_targets(node, facts));
                findings.extend(upstream(config, node, facts));
                findings.extend(admission(config, node, facts));
            }
            Err(none) => findings.push(absence(config, node, none)),
        }
    }
    let answered: Vec<(&NodeConfig, &Facts)> = config
        .nodes
        .iter()
        .zip(answers)
        .filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?)))
        .collect();
    findings.extend(one_cluster(&answered));
    findings.extend(one_host(config));
    findings
}

fn place(node: &NodeConfig) -> String {
    format!("{} ({})", node.node.name, node.node.address)
}

fn absence(config: &Config, node: &NodeConfig, none: &NoFacts) -> Finding {
    let login = &config.server_login;
    match none {
        NoFacts::Unreachable(why) => Finding::error(place(node), format!("cannot be reached: {why}"))
            .mend("start the server, or correct the address in nodes"),
        NoFacts::Refused { code, message } => {
            let finding = Finding::error(place(node), format!("refuses {}: {message} ({code})", login.user));
            match code.as_str() {
                "28P01" => finding.mend(format!(
                    "correct server_login, or on the primary: CREATE ROLE {} LOGIN SUPERUSER PASSWORD '...';",
                    identifier(&login.user)
                )),
                "28000" => finding.mend(format!(
                    "in pg_hba.conf: host all,replication {} <this host>/32 scram-sha-256",
                    login.user
                )),
                "3D000" => finding.mend("correct server_login.database"),
                _ => finding,
            }
        }
    }
}

fn grants(config: &Config, node: &NodeConfig, facts: &Facts) -> Vec<Finding> {
    if facts.superuser {
        return Vec::new();
    }
    let user = identifier(&config.server_login.user);
    let mut findings = Vec::new();
    let mut missing = |what: &str, mend: String| {
        findings.push(Finding::error(place(node), format!("{user} {what}")).mend(mend));
    };
    if !facts.may_replicate {
        missing("may not stream WAL", format!("ALTER ROLE {user} REPLICATION;"));
    }
    if !facts.may_monitor {
        missing("may not see statistics and settings", format!("GRANT pg_monitor TO {user};"));
    }
    if !facts.may_promote {
        let grant = format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) TO {user};");
        missing("may not promote", grant);
    }
    if !facts.may_reload {
        let grant = format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO {user};");
        missing("may not reload the server's configuration", grant);
    }
    if !facts.may_alter_system {
        let grant = if facts.version >= 150_000 {
            format!("GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO {user};")
        } else {
            format!("ALTER ROLE {user} SUPERUSER;")
        };
        missing("may not set synchronous_standby_names", grant);
    }
    if !facts.may_checkpoint && facts.version >= 150_000 {
        missing("may not request a checkpoint after a promotion", format!("GRANT pg_checkpoint TO {user};"));
    }
    if !facts.may_read_files {
        let grant = format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO {user};");
        missing("may not read the history of a new timeline", grant);
    }
    let as_ourselves = config.auth.query == AuthQuery::On
        && config.auth.lookup_login.is_none()
        && config.auth.lookups.statement == LookupStatement::Authid;
    if as_ourselves && !facts.may_read_authid {
        let grant =
            format!("GRANT SELECT ON pg_catalog.pg_authid TO {user}; or auth: {{query: off, users: [...]}}");
        missing("may not look up users' password verifiers", grant);
    }
    findings
}

fn settings(config: &Config, node: &NodeConfig, facts: &Facts) -> Vec<Finding> {
    let setting = |name: &str| facts.settings.get(name).map(String::as_str);
    let number = |name: &str| setting(name).and_then(|text| text.parse::<u32>().ok());
    let mut findings = Vec::new();
    if facts.version < OLDEST_VERSION {
        let version = facts.version / 10_000;
        findings.push(Finding::error(
            place(node),
            format!("is PostgreSQL {version}; 14 and later are supported"),
        ));
    }
    if setting("wal_level") == Some("minimal") {
        let finding = Finding::error(place(node), "wal_level is minimal");
        findings.push(finding.mend("ALTER SYSTEM SET wal_level = replica; and restart"));
    }
    if let Some(found) = number("max_wal_senders").filter(|n| *n < WAL_SENDERS) {
        let what = format!("max_wal_senders is {found}; the relay takes one, a base backup two");
        let mend = "ALTER SYSTEM SET max_wal_senders = 10; and restart";
        findings.push(Finding::error(place(node), what).mend(mend));
    }
    if number("max_replication_slots") == Some(0) {
        let finding = Finding::error(place(node), "max_replication_slots is 0; the relay needs a slot");
        findings.push(finding.mend("ALTER SYSTEM SET max_replication_slots = 10; and restart"));
    }
    if setting("hot_standby") == Some("off") {
        let finding = Finding::error(place(node), "hot_standby is off: as a standby it would answer nothing");
        findings.push(finding.mend("ALTER SYSTEM SET hot_standby = on; and restart"));
    }
    if setting("wal_log_hints") == Some("off") && setting("data_checksums") == Some("off") {
        let what = "has neither wal_log_hints nor checksums: it can return only by a new base backup";
        let mend = "ALTER SYSTEM SET wal_log_hints = on; and restart";
        findings.push(Finding::warn(place(node), what).mend(mend));
    }
    if setting("full_page_writes") == Some("off") {
        let finding = Finding::warn(place(node), "full_page_writes is off: pg_rewind would refuse");
        findings.push(finding.mend("ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();"));
    }
    if setting("fsync") == Some("off") {
        let finding =
            Finding::error(place(node), "fsync is off: a crash of the host may corrupt the cluster");
        findings.push(finding.mend("ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();"));
    }
    let weak = setting("synchronous_commit").filter(|value| ["off", "local", "remote_write"].contains(value));
    if let Some(value) = weak.filter(|_| config.durability == Durability::Quorum) {
        let what = format!("synchronous_commit is {value}: commits would slip past durability quorum");
        let mend = "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();";
        findings.push(Finding::error(place(node), what).mend(mend));
    }
    let unreplayed = config.durability == Durability::Quorum && config.wal.remote_apply == RemoteApply::Off;
    if unreplayed && setting("synchronous_commit") == Some("remote_apply") {
        let what =
            "synchronous_commit is remote_apply: commits would wait for ever, the relay replays nothing";
        let mend = "wal: {remote_apply: followers} in the configuration, or \
                    ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();";
        findings.push(Finding::error(place(node), what).mend(mend));
    }
    findings
}

/// Left by an instance that is none any more: it keeps WAL on the primary, for ever.
fn idle_slots(config: &Config, node: &NodeConfig, facts: &Facts) -> Vec<Finding> {
    let ours = plans::relay_slots(config);
    let idle = facts.idle_relay_slots.iter().filter(|slot| ours.iter().all(|ours| ours.as_str() != *slot));
    let finding = |slot: &String| {
        let what = format!("the slot {slot} is of no instance in this file, and keeps WAL");
        Finding::warn(place(node), what).mend(format!("SELECT pg_drop_replication_slot('{slot}');"))
    };
    idle.map(finding).collect()
}

/// Left by a restore or by hand. A primary's counts when it comes back as a standby.
fn recovery_targets(node: &NodeConfig, facts: &Facts) -> Option<Finding> {
    let is_set = |name: &&str| facts.settings.get(*name).is_some_and(|value| !value.is_empty());
    let name = RECOVERY_TARGETS.into_iter().find(is_set)?;
    let what = format!("{name} is set: as a standby it would stop there, or promote itself");
    Some(Finding::warn(place(node), what).mend(format!("ALTER SYSTEM RESET {name}; and restart")))
}

/// A standby must stream from a listener of ours, by its node's name and through its node's slot.
fn upstream(config: &Config, node: &NodeConfig, facts: &Facts) -> Vec<Finding> {
    if !facts.in_recovery {
        return Vec::new();
    }
    let setting = |name: &str| facts.settings.get(name).map_or("", String::as_str);
    let Some(conninfo) = facts.settings.get("primary_conninfo") else { return Vec::new() };
    let conninfo: Vec<(String, String)> = conninfo_pairs(conninfo);
    let value =
        |key: &str| conninfo.iter().rev().find(|(k, _)| k == key).map_or("", |(_, value)| value.as_str());
    let ports: Vec<u16> = config
        .listen
        .iter()
        .map(|listen| match &listen.on {
            ListenOn::Tcp(address) => address.port(),
            ListenOn::Unix { port, .. } => *port,
        })
        .collect();
    let mut findings = Vec::new();
    let (name, slot) = (node.node.name.as_str(), node.node.name.slot());
    let streams_from_us =
        value("port").split(',').any(|port| port.parse().is_ok_and(|port| ports.contains(&port)));
    if !streams_from_us {
        let port = ports.first().copied().unwrap_or(6432);
        let user = &config.server_login.user;
        findings.push(Finding::warn(place(node), "does not stream from a listener of this instance").mend(format!(
            "ALTER SYSTEM SET primary_conninfo = 'host=<this host> port={port} user={user} application_name={name}'; SELECT pg_reload_conf();"
        )));
    }
    // A walreceiver without application_name goes by cluster_name, else as walreceiver (walreceiver.c).
    let known_as = match (value("application_name"), setting("cluster_name")) {
        ("", "") => "walreceiver",
        ("", cluster_name) => cluster_name,
        (application_name, _) => application_name,
    };
    if known_as != name {
        let what = format!("streams as {known_as}: its lag will not be known as this node's");
        let mend = format!("application_name={name} in its primary_conninfo");
        findings.push(Finding::warn(place(node), what).mend(mend));
    }
    if setting("primary_slot_name") != slot.as_str() {
        let what = "does not use its slot at the relay: WAL that it still needs may be removed";
        let mend = format!("ALTER SYSTEM SET primary_slot_name = '{slot}'; SELECT pg_reload_conf();");
        findings.push(Finding::warn(place(node), what).mend(mend));
    }
    findings
}

fn admission(config: &Config, node: &NodeConfig, facts: &Facts) -> Vec<Finding> {
    let user = &config.server_login.user;
    let Some(rules) = &facts.hba else {
        let finding = Finding::warn(place(node), format!("{} may not look at pg_hba.conf", identifier(user)));
        let grant = format!(
            "GRANT SELECT ON pg_catalog.pg_hba_file_rules TO {0}; GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO {0};",
            identifier(user)
        );
        return vec![finding.mend(grant)];
    };
    let line = |databases: &str, user: &str| match facts.our_address {
        Some(address) => {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            format!("in pg_hba.conf: host {databases} {user} {address}/{bits} scram-sha-256")
        }
        None => format!("in pg_hba.conf: local {databases} {user} scram-sha-256"),
    };
    let mut findings = Vec::new();
    for broken in rules.iter().filter_map(|rule| Some((rule.line, rule.error.as_ref()?))) {
        findings.push(Finding::error(place(node), format!("pg_hba.conf line {}: {}", broken.0, broken.1)));
    }
    if hba::admits(rules, Purpose::Replication, user, facts.our_address) == Match::No {
        let what = format!("pg_hba.conf has no line that lets {user} stream WAL from here");
        findings.push(Finding::error(place(node), what).mend(line("replication", user)));
    }
    for client in config.auth.users.iter().map(|user| user.name.as_str()) {
        if hba::admits(rules, Purpose::Database(client), client, facts.our_address) == Match::No {
            let what = format!("pg_hba.conf has no line that lets {client} in from here");
            findings.push(Finding::warn(place(node), what).mend(line("all", client)));
        }
    }
    for rule in hba::bypasses(rules, user, facts.our_address) {
        let what = format!(
            "pg_hba.conf line {} lets {} in from {}: connections that bypass Bellwether are not fenced by it",
            rule.line,
            rule.users.join(","),
            if rule.netmask.is_empty() {
                rule.address.clone()
            } else {
                format!("{}/{}", rule.address, rule.netmask)
            }
        );
        findings.push(Finding::warn(place(node), what).mend("let in this host's address only"));
    }
    findings
}

fn one_cluster(answered: &[(&NodeConfig, &Facts)]) -> Vec<Finding> {
    let Some((first, reference)) = answered.first() else { return Vec::new() };
    let mut findings = Vec::new();
    for (node, facts) in &answered[1..] {
        if facts.system_identifier != reference.system_identifier {
            let what = format!(
                "is of another cluster: system identifier {}, that of {} is {}",
                facts.system_identifier, first.node.name, reference.system_identifier
            );
            findings
                .push(Finding::error(place(node), what).mend("rebuild it from a base backup of the primary"));
        }
        if facts.version / 10_000 != reference.version / 10_000 {
            let majors = (facts.version / 10_000, reference.version / 10_000);
            let what = format!("is PostgreSQL {}, {} is {}", majors.0, first.node.name, majors.1);
            findings.push(Finding::error(place(node), what));
        }
    }
    let primaries: Vec<&str> =
        answered.iter().filter(|(_, f)| !f.in_recovery).map(|(n, _)| n.node.name.as_str()).collect();
    match primaries.as_slice() {
        [_] => {}
        [] => findings.push(Finding::error("nodes", "none that answers is a primary")),
        several => {
            let what = format!("{} all are primaries", several.join(", "));
            findings.push(Finding::error("nodes", what));
        }
    }
    findings
}

/// A relay on the primary's host is lost with it.
fn one_host(config: &Config) -> Option<Finding> {
    let here = |node: &&NodeConfig| {
        let host = node.node.address.host.as_str();
        let loopback = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        node.local.is_some() || loopback || host == "localhost" || host.starts_with('/')
    };
    let local: Vec<&str> = config.nodes.iter().filter(here).map(|node| node.node.name.as_str()).collect();
    // Of several instances the one beside the primary does not acknowledge.
    if config.durability == Durability::Async || local.is_empty() || !plans::is_alone(config) {
        return None;
    }
    if local.len() == config.nodes.len() {
        // Nothing could survive it: a try-out.
        return Some(Finding::warn(
            "durability.mode",
            "every node is on this host; quorum does not survive its loss",
        ));
    }
    let what = format!(
        "quorum does not survive the loss of this host: {} and the relay are both on it",
        local.join(", ")
    );
    Some(Finding::error("durability.mode", what).mend("run the relay on a host without a server"))
}

/// `key=value` pairs as libpq reads them (`conninfo_parse`): values may be quoted, backslash escapes.
fn conninfo_pairs(conninfo: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = conninfo.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut chars = after.char_indices().skip(usize::from(quoted));
        let mut end = after.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    end = at + 1;
                    break;
                }
                c if c.is_whitespace() && !quoted => {
                    end = at;
                    break;
                }
                c => value.push(c),
            }
        }
        pairs.push((key.trim().to_owned(), value));
        rest = after[end..].trim_start();
    }
    pairs
}

/// Quoted where SQL needs it.
fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::super::facts::{Facts, NoFacts};
    use super::super::hba::tests::rules;
    use super::{conninfo_pairs, identifier, judge};
    use crate::app::config::{Config, System, parse};

    pub(in crate::app::check) fn config(changes: &str) -> Config {
        read(&yaml(changes))
    }

    /// Beside bw2 and bw3.
    pub(in crate::app::check) fn one_of_three(changes: &str) -> Config {
        let peers =
            "peers: [{instance: bw2, address: '10.0.0.2:6432'}, {instance: bw3, address: '10.0.0.3:6432'}]";
        let etcd = "state: {file: state, etcd: {endpoints: ['http://10.0.0.1:2379']}}";
        read(&yaml(&format!("{peers}\n{changes}")).replace("state: {file: state}", etcd))
    }

    fn yaml(changes: &str) -> String {
        format!(
            "
cluster: orders
instance: bw1
listen: [{{address: '0.0.0.0:6432'}}]
nodes:
  - {{name: pg1, address: '10.0.0.11:5432'}}
  - {{name: pg2, address: '10.0.0.12:5432'}}
server_login: {{user: bw}}
wal: {{dir: wal}}
state: {{file: state}}
{changes}"
        )
    }

    fn read(yaml: &str) -> Config {
        let (config, findings) = parse(yaml, Path::new("/"), &System { directory: "/".into() });
        config.unwrap_or_else(|| panic!("{findings:?}"))
    }

    /// A primary with nothing to complain about.
    fn primary() -> Facts {
        let settings = [
            ("data_checksums", "on"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("hot_standby", "on"),
            ("cluster_name", ""),
            ("max_replication_slots", "10"),
            ("max_wal_senders", "10"),
            ("primary_conninfo", ""),
            ("primary_slot_name", ""),
            ("synchronous_commit", "on"),
            ("wal_level", "replica"),
            ("wal_log_hints", "off"),
        ];
        Facts {
            version: 150_007,
            system_identifier: 42,
            superuser: true,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            our_address: "10.0.0.9".parse().ok(),
            hba: Some(rules("host all,replication all 10.0.0.9/255.255.255.255 scram-sha-256")),
            ..Facts::default()
        }
    }

    fn standby() -> Facts {
        let mut facts = Facts { in_recovery: true, ..primary() };
        set(&mut facts, "primary_conninfo", "host=10.0.0.9 port=6432 user=bw application_name=pg2");
        set(&mut facts, "primary_slot_name", "pg2");
        facts
    }

    fn set(facts: &mut Facts, name: &str, value: &str) {
        facts.settings.insert(name.to_owned(), value.to_owned());
    }

    /// The findings when the two servers are changed so.
    fn found(changes: &str, change: impl FnOnce(&mut Facts, &mut Facts)) -> Vec<String> {
        let (mut first, mut second) = (primary(), standby());
        change(&mut first, &mut second);
        judge(&config(changes), &[Ok(first), Ok(second)]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_cluster_has_no_findings() {
        assert_eq!(found("durability: {mode: quorum}", |_, _| {}), [""; 0]);
    }

    #[test]
    fn every_missing_grant_comes_with_its_sql() {
        let findings = found("", |first, _| {
            first.superuser = false;
            first.hba = None;
        });
        let mends: Vec<&str> =
            findings.iter().filter_map(|line| line.split_once("Mend: ").map(|(_, m)| m)).collect();
        assert_eq!(
            mends,
            [
                "ALTER ROLE bw REPLICATION;",
                "GRANT pg_monitor TO bw;",
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) TO bw;",
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO bw;",
                "GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO bw;",
                "GRANT pg_checkpoint TO bw;",
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO bw;",
                "GRANT SELECT ON pg_catalog.pg_authid TO bw; or auth: {query: off, users: [...]}",
                "GRANT SELECT ON pg_catalog.pg_hba_file_rules TO bw; GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO bw;",
            ]
        );
    }

    #[test]
    fn each_bad_setting_is_one_finding() {
        for (name, value, start) in [
            ("wal_level", "minimal", "ERROR pg1 (10.0.0.11:5432): wal_level is minimal. Mend: ALTER SYSTEM"),
            ("max_wal_senders", "2", "ERROR pg1 (10.0.0.11:5432): max_wal_senders is 2"),
            ("max_replication_slots", "0", "ERROR pg1 (10.0.0.11:5432): max_replication_slots is 0"),
            ("hot_standby", "off", "ERROR pg1 (10.0.0.11:5432): hot_standby is off"),
            ("data_checksums", "off", "WARN pg1 (10.0.0.11:5432): has neither wal_log_hints nor checksums"),
            ("full_page_writes", "off", "WARN pg1 (10.0.0.11:5432): full_page_writes is off"),
            ("fsync", "off", "ERROR pg1 (10.0.0.11:5432): fsync is off"),
            (
                "recovery_target_time",
                "2026-11-21 10:30:00+00",
                "WARN pg1 (10.0.0.11:5432): recovery_target_time is set",
            ),
            ("synchronous_commit", "local", "ERROR pg1 (10.0.0.11:5432): synchronous_commit is local"),
        ] {
            let findings = found("durability: {mode: quorum}", |first, _| set(first, name, value));
            assert!(findings.len() == 1 && findings[0].starts_with(start), "{name}: {findings:?}");
        }
        assert_eq!(found("", |first, _| set(first, "synchronous_commit", "off")), [""; 0]);
    }

    #[test]
    fn a_standby_streams_from_here_by_its_name_and_slot() {
        let starts = |conninfo: &str, slot: &str| -> Vec<String> {
            let findings = found("", |_, second| {
                set(second, "primary_conninfo", conninfo);
                set(second, "primary_slot_name", slot);
            });
            let what = findings.iter().filter_map(|line| line.split_once("): "));
            what.map(|(_, what)| what.split([':', '.']).next().unwrap_or("").to_owned()).collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(starts("host=a,b port=5432,6432 application_name='pg2'", "pg2"), none);
        let elsewhere = "does not stream from a listener of this instance";
        assert_eq!(starts("host=10.0.0.11 port=5432 application_name=pg2", "pg2"), [elsewhere]);
        let nameless = "streams as walreceiver";
        let slotless = "does not use its slot at the relay";
        assert_eq!(starts("host=10.0.0.9 port=6432", ""), [nameless, slotless]);
    }

    #[test]
    fn pg_hba_lines_are_named_with_the_text_that_mends() {
        let findings = found("auth: {users: [{name: app, secret: x}]}", |first, _| {
            first.hba = Some(rules(
                "host all bw 10.0.0.9/255.255.255.255 md5\nhost all all 10.1.0.0/255.255.0.0 md5",
            ));
        });
        assert_eq!(
            findings,
            [
                "ERROR pg1 (10.0.0.11:5432): pg_hba.conf has no line that lets bw stream WAL from here. Mend: in pg_hba.conf: host replication bw 10.0.0.9/32 scram-sha-256",
                "WARN pg1 (10.0.0.11:5432): pg_hba.conf has no line that lets app in from here. Mend: in pg_hba.conf: host all app 10.0.0.9/32 scram-sha-256",
                "WARN pg1 (10.0.0.11:5432): pg_hba.conf line 2 lets all in from 10.1.0.0/255.255.0.0: connections that bypass Bellwether are not fenced by it. Mend: let in this host's address only",
            ]
        );
    }

    #[test]
    fn servers_of_different_clusters_are_told_apart() {
        let findings = found("", |_, second| {
            second.system_identifier = 43;
            second.version = 160_001;
            second.in_recovery = false;
        });
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(
            findings[0].contains("another cluster") && findings[2].contains("pg1, pg2 all are primaries")
        );
    }

    #[test]
    fn silence_and_refusal_are_different_things() {
        let refused = |code: &str| NoFacts::Refused { code: code.to_owned(), message: "no".to_owned() };
        let answers = [Err(NoFacts::Unreachable("refused".to_owned())), Err(refused("28000"))];
        let findings: Vec<String> = judge(&config(""), &answers).iter().map(ToString::to_string).collect();
        assert_eq!(
            findings,
            [
                "ERROR pg1 (10.0.0.11:5432): cannot be reached: refused. Mend: start the server, or correct the address in nodes",
                "ERROR pg2 (10.0.0.12:5432): refuses bw: no (28000). Mend: in pg_hba.conf: host all,replication bw <this host>/32 scram-sha-256",
            ]
        );
    }

    #[test]
    fn quorum_on_one_host_is_refused() {
        let local = "local: {node: pg1, data_dir: /d, bin_dir: /b}\n";
        let findings = found(&format!("{local}durability: {{mode: quorum}}"), |_, _| {});
        assert!(findings.len() == 1 && findings[0].starts_with("ERROR durability.mode"), "{findings:?}");
        assert_eq!(found(local, |_, _| {}), [""; 0]);
    }

    #[test]
    fn conninfo_as_libpq_reads_it() {
        let pairs: HashMap<String, String> =
            conninfo_pairs(r" host = 'a b' port=1 password='it\'s' x=a\ b empty='' last=z")
                .into_iter()
                .collect();
        for (key, value) in
            [("host", "a b"), ("port", "1"), ("password", "it's"), ("x", "a b"), ("empty", ""), ("last", "z")]
        {
            assert_eq!(pairs.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert_eq!(identifier("o\"Hara"), "\"o\"\"Hara\"");
    }
}
