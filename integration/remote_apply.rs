//! Commits that wait until they are replayed: refused where nobody's replay counts, and true where the followers' does.

use crate::harness::{Cluster, Options};

#[test]
fn remote_apply() {
    let mut cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE applied (id int)").expect("a table");
    for statement in [
        "SET synchronous_commit = remote_apply",
        "BEGIN; SET LOCAL synchronous_commit = 'remote_apply'; INSERT INTO applied VALUES (0); COMMIT",
        "SELECT set_config('synchronous_commit', 'remote_apply', false)",
    ] {
        let refused = cluster.psql(statement).expect_err("it would wait for ever");
        assert!(refused.contains("22023") && refused.contains("wal.remote_apply"), "{refused}");
    }
    let at_login = format!("{} options='-c synchronous_commit=remote_apply'", cluster.conninfo());
    let refused = cluster.psql_at(&at_login, "SELECT 1").expect_err("it would wait for ever");
    assert!(refused.contains("wal.remote_apply"), "{refused}");

    cluster.reconfigure(|config| config["wal"]["remote_apply"] = "followers".into());
    let standbys = cluster.standbys();
    for id in 1..=20 {
        let commit = format!(
            "BEGIN; SET LOCAL synchronous_commit = remote_apply; INSERT INTO applied VALUES ({id}); COMMIT"
        );
        cluster.psql(&commit).expect("it is replayed");
        for standby in &standbys {
            let seen =
                cluster.psql_at(&cluster.direct_conninfo(standby, "app"), "SELECT max(id) FROM applied");
            assert_eq!(seen, Ok(id.to_string()), "{} at once", standby.name);
        }
    }
}
