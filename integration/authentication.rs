//! Stock clients log in by every kind of rule and secret, and PostgreSQL's servers take what that gives us.

use std::fs;
use std::io::Write;
use std::time::Duration;

use serde_yaml::Value;

use crate::harness::{Authority, Cluster, Options, eventually, set_mode};

const LIMIT: Duration = Duration::from_secs(120);

/// Straight to the primary, as superuser.
fn direct(cluster: &Cluster, database: &str, sql: &str) -> String {
    let conninfo = cluster.direct_conninfo(&cluster.primary(), database);
    cluster.psql_at(&conninfo, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Who one is after logging in as `user`, or why one is not let in.
fn log_in(cluster: &Cluster, user: &str, password: &str) -> Result<String, String> {
    log_in_to(cluster, user, password, "app")
}

fn log_in_to(cluster: &Cluster, user: &str, password: &str, database: &str) -> Result<String, String> {
    let port = cluster.port;
    let conninfo = format!("host=127.0.0.1 port={port} user={user} password={password} dbname={database}");
    cluster.psql_at(&conninfo, "SELECT current_user")
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).expect("the test's own YAML")
}

/// Users whose passwords only the servers have, in each form that PostgreSQL stores.
fn make_users(cluster: &Cluster) {
    for sql in [
        "CREATE ROLE scram_user LOGIN PASSWORD 'one'",
        "SET password_encryption = md5; CREATE ROLE md5_user LOGIN PASSWORD 'two'",
        "CREATE ROLE expired LOGIN PASSWORD 'three' VALID UNTIL '2000-01-01'",
        "CREATE ROLE not_yet LOGIN PASSWORD 'three' VALID UNTIL '2999-01-01'",
        "CREATE ROLE for_ever LOGIN PASSWORD 'three' VALID UNTIL 'infinity'",
        "CREATE ROLE no_login PASSWORD 'four'",
        "CREATE ROLE unwanted LOGIN PASSWORD 'five'",
    ] {
        direct(cluster, "postgres", sql);
    }
    for server in cluster.servers() {
        let path = server.data_dir.join("pg_hba.conf");
        let rules = fs::read_to_string(&path).expect("pg_hba.conf");
        let mut file = fs::File::create(&path).expect("pg_hba.conf");
        write!(file, "host all md5_user 127.0.0.1/32 md5\n{rules}").expect("pg_hba.conf");
        let reload = "SELECT pg_reload_conf()";
        cluster.psql_at(&cluster.direct_conninfo(&server, "postgres"), reload).expect("reload");
    }
}

const RULES: &str = "
- {type: host, database: replication, user: bellwether, address: 127.0.0.1, method: scram-sha-256}
- {type: host, database: all, user: unwanted, address: all, method: reject}
- {type: hostssl, database: all, user: only_tls, address: all, method: scram-sha-256}
- {type: host, database: [app, postgres], user: all, address: 127.0.0.0/8, method: md5}
";

#[test]
fn rules_and_secrets() {
    let mut cluster = Cluster::start(Options::default());
    make_users(&cluster);
    cluster.reconfigure(|config| {
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.remove("method");
        auth.insert("rules".into(), yaml(RULES));
        auth.insert("lookup".into(), yaml("{keep: 1h}"));
    });

    // Every form of secret, listed here and looked up there.
    for (user, password) in [
        ("app", "demo"),
        ("scram_user", "one"),
        ("md5_user", "two"),
        ("not_yet", "three"),
        ("for_ever", "three"),
    ] {
        assert_eq!(log_in(&cluster, user, password).as_deref(), Ok(user));
    }
    // Nobody learns why not.
    for (user, password) in [
        ("app", "wrong"),
        ("scram_user", "wrong"),
        ("md5_user", "wrong"),
        ("expired", "three"),
        ("no_login", "four"),
        ("nobody_here", "six"),
    ] {
        let said = log_in(&cluster, user, password).expect_err("let in");
        assert!(said.contains(&format!("password authentication failed for user \"{user}\"")), "{said}");
    }
    let said = log_in(&cluster, "unwanted", "five").expect_err("let in");
    let expected =
        "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"unwanted\", database \"app\"";
    assert!(said.contains(expected), "{said}");
    let said = log_in_to(&cluster, "app", "demo", "template1").expect_err("let in");
    let expected =
        "no pg_hba.conf entry for host \"127.0.0.1\", user \"app\", database \"template1\", no encryption";
    assert!(said.contains(expected), "{said}");
    let replicating =
        format!("host=127.0.0.1 port={} user=app password=demo dbname=app replication=true", cluster.port);
    let said = cluster.psql_at(&replicating, "IDENTIFY_SYSTEM").expect_err("let in");
    assert!(
        said.contains("no pg_hba.conf entry for replication connection from host \"127.0.0.1\""),
        "{said}"
    );
    let metric = |name: &str| cluster.metric(name).unwrap_or_default();
    assert!(metric("bellwether_logins_total{method=\"md5\"}") >= 5.0);
    assert!(metric("bellwether_logins_total{method=\"scram-sha-256\"}") >= 1.0, "followers");
    assert!(metric("bellwether_logins_failed_total{reason=\"password\"}") >= 6.0);
    assert!(metric("bellwether_logins_failed_total{reason=\"not_allowed\"}") >= 3.0);
    assert_eq!(cluster.metric("bellwether_logins_failed_total{reason=\"tls\"}"), Some(0.0));
}

/// What was looked up is kept for an hour, and a changed password works nevertheless.
#[test]
fn a_changed_password_is_looked_up_again() {
    let mut cluster = Cluster::start(Options::default());
    make_users(&cluster);
    for sql in [
        "CREATE ROLE looks_up LOGIN PASSWORD 'seven'",
        "CREATE SCHEMA auth",
        "CREATE FUNCTION auth.secret(wanted text) RETURNS TABLE (name name, secret text) \
         LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog \
         AS 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = wanted AND NOT rolsuper'",
        "REVOKE ALL ON FUNCTION auth.secret(text) FROM PUBLIC",
        "GRANT USAGE ON SCHEMA auth TO looks_up",
        "GRANT EXECUTE ON FUNCTION auth.secret(text) TO looks_up",
    ] {
        direct(&cluster, "app", sql);
    }
    let password = cluster.data().join("looks_up.password");
    fs::write(&password, "seven\n").expect("password file");
    cluster.reconfigure(|config| {
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.insert("method".into(), "md5".into());
        let lookup = "{user: looks_up, database: app, keep: 1h, sql: 'SELECT * FROM auth.secret($1)'}";
        let mut lookup = yaml(lookup);
        lookup["password_file"] = password.display().to_string().into();
        auth.insert("lookup".into(), lookup);
    });
    for (user, password) in [("scram_user", "one"), ("md5_user", "two")] {
        assert_eq!(log_in(&cluster, user, password).as_deref(), Ok(user));
    }
    let said = log_in(&cluster, "bellwether_not_listed", "x").expect_err("let in");
    assert!(said.contains("password authentication failed"), "{said}");

    direct(&cluster, "postgres", "ALTER ROLE scram_user PASSWORD 'new one'");
    direct(&cluster, "postgres", "SET password_encryption = md5; ALTER ROLE md5_user PASSWORD 'new_two'");
    // The old one still fits what is kept here. The server turns it down, at the latest when it dials anew.
    for server in cluster.servers() {
        let kick =
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'scram_user'";
        cluster.psql_at(&cluster.direct_conninfo(&server, "postgres"), kick).expect("terminate");
    }
    let said = log_in(&cluster, "scram_user", "one").expect_err("the old password");
    assert!(said.contains("password authentication failed for user \"scram_user\""), "{said}");
    eventually("a login with the new password", LIMIT, || log_in(&cluster, "scram_user", "'new one'"));
    eventually("an md5 login with the new password", LIMIT, || log_in(&cluster, "md5_user", "new_two"));
    let said = log_in(&cluster, "scram_user", "one").expect_err("the old password");
    assert!(said.contains("password authentication failed for user \"scram_user\""), "{said}");
}

const RULES_OVER_TLS: &str = r"
rules:
- {type: host, database: replication, user: bellwether, address: 127.0.0.1, method: scram-sha-256}
- {type: hostssl, database: postgres, user: all, address: all, method: cert, map: hosts}
- {type: hostssl, database: all, user: all, address: all, method: scram-sha-256}
maps:
- {map: hosts, system: '/^(.*)\.example\.com$', user: '\1'}
";

/// A proof that is bound to its connection, and a certificate in place of a proof.
#[test]
fn over_tls() {
    let mut cluster = Cluster::start(Options::default());
    let authority = Authority::new(cluster.data().join("tls"));
    authority.sign(&authority.dir, "server", "server");
    for name in ["app", "report"] {
        authority.sign(&authority.dir, name, &format!("{name}.example.com"));
        // libpq uses no key that others may read.
        set_mode(authority.file(&format!("{name}.key")).as_ref(), 0o600);
    }
    cluster.reconfigure(|config| {
        let [certificate, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| authority.file(name));
        config["tls"] = yaml(&format!("{{cert_file: {certificate}, key_file: {key}, client_ca_file: {ca}}}"));
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.remove("method");
        for (key, value) in yaml(RULES_OVER_TLS).as_mapping().expect("rules and maps") {
            auth.insert(key.clone(), value.clone());
        }
    });

    let verifying = format!("sslmode=verify-full sslrootcert={}", authority.file("ca.crt"));
    let bound = format!("{} {verifying} channel_binding=require", cluster.conninfo());
    assert_eq!(cluster.psql_at(&bound, "SELECT 1"), Ok("1".to_owned()));
    let plain = format!("{} sslmode=disable", cluster.conninfo());
    let said = cluster.psql_at(&plain, "SELECT 1").expect_err("let in");
    assert!(said.contains("no pg_hba.conf entry") && said.contains("no encryption"), "{said}");

    let port = cluster.port;
    let with = |name: &str| {
        let (certificate, key) =
            (authority.file(&format!("{name}.crt")), authority.file(&format!("{name}.key")));
        let conninfo = format!(
            "host=127.0.0.1 port={port} user=app dbname=postgres {verifying} sslcert={certificate} sslkey={key}"
        );
        cluster.psql_at(&conninfo, "SELECT current_user")
    };
    assert_eq!(with("app").as_deref(), Ok("app"));
    let said = with("report").expect_err("let in");
    assert!(said.contains("certificate authentication failed for user \"app\""), "{said}");
    let said = with("nothing_there").expect_err("let in");
    assert!(said.contains("connection requires a valid client certificate"), "{said}");
}
