//! What of `pg_catalog` a standby may be asked: functions, relations and settings, by name. Allow-lists: what is
//! not named here belongs to the primary.

const FUNCTIONS: &str = include_str!("functions.txt");

/// The names of the safe functions, in byte order.
pub fn safe_functions() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.lines().filter(|line| !line.starts_with('#'))
}

/// A binary search over the lines of the list, so that nothing has to be built or kept.
pub(super) fn is_safe_function(name: &str) -> bool {
    let names =
        FUNCTIONS.rfind('#').and_then(|at| FUNCTIONS[at..].split_once('\n')).map_or("", |(_, names)| names);
    let (mut low, mut high) = (0, names.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = names[low..middle].rfind('\n').map_or(low, |at| low + at + 1);
        let end = names[middle..high].find('\n').map_or(high, |at| middle + at);
        match names[start..end].cmp(name) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => low = end + 1,
            std::cmp::Ordering::Greater => high = start,
        }
    }
    false
}

/// Functions that change nothing and tell of the server they run on.
pub(super) fn tells_of_server(function: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "inet_client_",
        "inet_server_",
        "pg_control_",
        "pg_current_wal_",
        "pg_get_wal_",
        "pg_is_in_",
        "pg_is_wal_",
        "pg_last_",
        "pg_ls_",
        "pg_show_all_",
        "pg_stat_get_",
        "pg_walfile_name",
    ];
    const NAMES: [&str; 18] = [
        "pg_backend_pid",
        "pg_blocking_pids",
        "pg_conf_load_time",
        "pg_config",
        "pg_current_snapshot",
        "pg_cursor",
        "pg_database_size",
        "pg_get_replication_slots",
        "pg_indexes_size",
        "pg_listening_channels",
        "pg_lock_status",
        "pg_postmaster_start_time",
        "pg_prepared_statement",
        "pg_relation_size",
        "pg_table_size",
        "pg_tablespace_size",
        "pg_total_relation_size",
        "txid_current_snapshot",
    ];
    PREFIXES.iter().any(|prefix| function.starts_with(prefix)) || NAMES.binary_search(&function).is_ok()
}

/// Catalogs and views over catalogs alone: replicated as any table. Every other relation whose name begins with
/// `pg_` tells of a server (`pg_stat_*`, `pg_locks`, `pg_settings`, `pg_sequences` with its `last_value`, ...),
/// also extensions' (`pg_stat_statements`, `pg_buffercache`).
pub(super) fn is_replicated_relation(name: &str) -> bool {
    const RELATIONS: [&str; 80] = [
        "pg_aggregate",
        "pg_am",
        "pg_amop",
        "pg_amproc",
        "pg_attrdef",
        "pg_attribute",
        "pg_auth_members",
        "pg_authid",
        "pg_cast",
        "pg_class",
        "pg_collation",
        "pg_constraint",
        "pg_conversion",
        "pg_database",
        "pg_db_role_setting",
        "pg_default_acl",
        "pg_depend",
        "pg_description",
        "pg_enum",
        "pg_event_trigger",
        "pg_extension",
        "pg_foreign_data_wrapper",
        "pg_foreign_server",
        "pg_foreign_table",
        "pg_group",
        "pg_index",
        "pg_indexes",
        "pg_inherits",
        "pg_init_privs",
        "pg_language",
        "pg_largeobject",
        "pg_largeobject_metadata",
        "pg_matviews",
        "pg_namespace",
        "pg_opclass",
        "pg_operator",
        "pg_opfamily",
        "pg_parameter_acl",
        "pg_partitioned_table",
        "pg_policies",
        "pg_policy",
        "pg_proc",
        "pg_publication",
        "pg_publication_namespace",
        "pg_publication_rel",
        "pg_publication_tables",
        "pg_range",
        "pg_replication_origin",
        "pg_rewrite",
        "pg_roles",
        "pg_rules",
        "pg_seclabel",
        "pg_seclabels",
        "pg_sequence",
        "pg_shadow",
        "pg_shdepend",
        "pg_shdescription",
        "pg_shseclabel",
        "pg_statistic",
        "pg_statistic_ext",
        "pg_statistic_ext_data",
        "pg_stats",
        "pg_stats_ext",
        "pg_stats_ext_exprs",
        "pg_subscription",
        "pg_subscription_rel",
        "pg_tables",
        "pg_tablespace",
        "pg_transform",
        "pg_trigger",
        "pg_ts_config",
        "pg_ts_config_map",
        "pg_ts_dict",
        "pg_ts_parser",
        "pg_ts_template",
        "pg_type",
        "pg_user",
        "pg_user_mapping",
        "pg_user_mappings",
        "pg_views",
    ];
    RELATIONS.binary_search(&name).is_ok()
}

/// Settings that say the same on every server of a cluster, or belong to the session: what drivers ask for.
pub(super) fn is_common_setting(name: &str) -> bool {
    const SETTINGS: [&str; 34] = [
        "application_name",
        "bytea_output",
        "client_encoding",
        "client_min_messages",
        "datestyle",
        "default_text_search_config",
        "default_transaction_isolation",
        "extra_float_digits",
        "idle_in_transaction_session_timeout",
        "integer_datetimes",
        "intervalstyle",
        "is_superuser",
        "lc_collate",
        "lc_ctype",
        "lc_messages",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "lock_timeout",
        "max_function_args",
        "max_identifier_length",
        "max_index_keys",
        "role",
        "row_security",
        "search_path",
        "server_encoding",
        "server_version",
        "server_version_num",
        "session_authorization",
        "standard_conforming_strings",
        "statement_timeout",
        "timezone",
        "transaction_isolation",
        "xmlbinary",
    ];
    SETTINGS.binary_search(&name.to_ascii_lowercase().as_str()).is_ok()
}

/// Whether a commit under this `synchronous_commit` waits until its WAL is flushed on the synchronous standbys
/// (`synchronous_commit_options` in guc_tables.c).
pub(crate) fn waits_for_quorum(value: &str) -> bool {
    ["on", "true", "yes", "1", "remote_apply"].iter().any(|strong| value.eq_ignore_ascii_case(strong))
}

#[cfg(test)]
mod tests {
    use super::{
        is_common_setting, is_replicated_relation, is_safe_function, safe_functions, tells_of_server,
    };

    #[test]
    fn the_list_is_sorted_and_every_name_is_found() {
        let names: Vec<&str> = safe_functions().collect();
        assert!(names.len() > 500, "{} names", names.len());
        assert!(names.is_sorted(), "byte order");
        for name in &names {
            assert!(is_safe_function(name), "{name}");
            assert!(
                !is_safe_function(&format!("{name}_")) || names.contains(&format!("{name}_").as_str()),
                "{name}_"
            );
            assert!(!tells_of_server(name), "{name}");
        }
    }

    #[test]
    fn what_writes_or_tells_of_a_server_is_not_on_the_list() {
        for name in [
            "",
            "a",
            "zzz",
            "#",
            "nextval",
            "setval",
            "currval",
            "lastval",
            "pg_notify",
            "lo_get",
            "lo_import",
            "txid_current",
            "pg_current_xact_id",
            "pg_export_snapshot",
            "set_config",
            "setseed",
            "pg_advisory_lock",
            "pg_try_advisory_xact_lock",
            "pg_is_in_recovery",
            "pg_current_wal_lsn",
            "pg_last_wal_replay_lsn",
            "inet_server_addr",
            "pg_backend_pid",
            "pg_stat_get_activity",
            "query_to_xml",
            "cursor_to_xml",
            "table_to_xml",
            "database_to_xml",
            "ts_stat",
            "ts_rewrite",
            "pg_read_file",
            "pg_ls_dir",
            "pg_switch_wal",
            "pg_logical_emit_message",
            "pg_promote",
            "pg_terminate_backend",
            "pg_walfile_name",
            "dblink_exec",
            "pg_sequence_last_value",
            "pg_stat_reset",
            "pg_relation_size",
            "current_setting",
            "gin_clean_pending_list",
        ] {
            assert!(!is_safe_function(name), "{name}");
        }
    }

    #[test]
    fn relations_and_settings() {
        for name in ["pg_aggregate", "pg_class", "pg_stats", "pg_views"] {
            assert!(is_replicated_relation(name), "{name}");
        }
        for name in [
            "pg_stat_activity",
            "pg_locks",
            "pg_sequences",
            "pg_settings",
            "pg_stat_statements",
            "pg_cursors",
        ] {
            assert!(!is_replicated_relation(name), "{name}");
        }
        assert!(
            is_common_setting("DateStyle") && is_common_setting("xmlbinary") && is_common_setting("timezone")
        );
        for name in ["all", "transaction_read_only", "in_hot_standby", "port", "work_mem"] {
            assert!(!is_common_setting(name), "{name}");
        }
    }
}
