//! TLS, between stock clients, the endpoint, and stock servers.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;

use crate::harness::{Authority, Cluster, Options, eventually, set_mode};

const LIMIT: Duration = Duration::from_secs(30);

fn configure(cluster: &mut Cluster, tls: &str) {
    let tls: serde_yaml::Value = serde_yaml::from_str(tls).expect("YAML");
    cluster.reconfigure(|config| config["tls"] = tls);
}

#[test]
fn clients_with_tls() {
    let mut cluster = Cluster::start(Options::default());
    let authority = Authority::new(cluster.data().join("tls"));
    authority.sign(&authority.dir, "server", "server");
    let (certificate, key) = (authority.file("server.crt"), authority.file("server.key"));
    configure(&mut cluster, &format!("{{cert_file: {certificate}, key_file: {key}, client: allow}}"));

    let verifying =
        format!("{} sslmode=verify-full sslrootcert={}", cluster.conninfo(), authority.file("ca.crt"));
    cluster.psql_at(&verifying, "CREATE TABLE t AS SELECT 1 AS n").expect("over TLS");
    let large = "SELECT length(repeat('x', 30000000)), length(string_agg(repeat('y', 1000), '')) \
                 FROM generate_series(1, 10000)";
    assert_eq!(cluster.psql_at(&verifying, large), Ok("30000000|10000000".to_owned()));
    // Through our socket and back, more than any buffer holds.
    let sent = cluster.psql_at(&verifying, "SELECT repeat('z', 20000000)").expect("over TLS");
    assert_eq!(sent.len(), 20_000_000);
    let plain = format!("{} sslmode=disable", cluster.conninfo());
    assert_eq!(cluster.psql_at(&plain, "SELECT n FROM t"), Ok("1".to_owned()));
}

#[test]
fn servers_with_tls() {
    let mut cluster = Cluster::start(Options::default());
    let authority = Authority::new(cluster.data().join("tls"));
    for server in cluster.servers() {
        use std::os::unix::fs::MetadataExt;
        authority.sign(&server.data_dir, "server", "server");
        let owner = fs::metadata(&server.data_dir).expect("data directory");
        for file in ["server.crt", "server.key"] {
            let path = server.data_dir.join(file);
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("owner");
            set_mode(&path, 0o600);
        }
        let direct = cluster.direct_conninfo(&server, "postgres");
        fs::write(
            server.data_dir.join("postgresql.auto.conf"),
            fs::read_to_string(server.data_dir.join("postgresql.auto.conf")).expect("settings")
                + "ssl = on\n",
        )
        .expect("settings");
        cluster.psql_at(&direct, "SELECT pg_reload_conf()").expect("reload");
        eventually("TLS at the server", LIMIT, || {
            cluster.psql_at(&format!("{direct} sslmode=require"), "SELECT 1")
        });
    }
    let ca = authority.file("ca.crt");
    configure(&mut cluster, &format!("{{servers: {{mode: verify-full, ca_file: {ca}}}}}"));
    cluster.psql("CREATE TABLE t AS SELECT 1 AS n").expect("through the endpoint");
    let direct = cluster.direct_conninfo(&cluster.primary(), "postgres");
    let of_ours = "SELECT count(*) FILTER (WHERE NOT ssl), count(*) > 2, bool_or(backend_type = 'walsender') \
                   FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                   WHERE backend_type IN ('client backend', 'walsender') AND application_name <> 'psql'";
    eventually("all of ours with TLS", LIMIT, || match cluster.psql_at(&direct, of_ours)?.as_str() {
        "0|t|t" => Ok(()),
        other => Err(other.to_owned()),
    });
}
