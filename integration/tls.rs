//! TLS, between stock clients, the endpoint, and stock servers.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;

use bellwether::net::{self, Credentials, DialError, ForServers, ServerTlsMode, Target, TlsForServers};
use bellwether::topology::Address;
use nix::sys::signal::Signal;

use crate::harness::{
    Authority, Between, Cluster, Durability, Options, Psql, bellwether, eventually, set_mode,
};

const LIMIT: Duration = Duration::from_secs(120);

fn configure(cluster: &mut Cluster, tls: &str) {
    let tls: serde_yaml::Value = serde_yaml::from_str(tls).expect("YAML");
    cluster.reconfigure(|config| config["tls"] = tls);
}

/// Every server gets a certificate of `authority` and offers TLS.
fn turn_tls_on(cluster: &Cluster, authority: &Authority) {
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

/// Certificates of two authorities: whoever believes in one takes nothing else for ours.
#[test]
fn certificates_are_read_again() {
    let mut cluster = Cluster::start(Options {
        nodes: 1,
        durability: Durability::Async,
        expected_warnings: &["the configuration stays as it was"],
        ..Options::default()
    });
    let (old, new) = (Authority::new(cluster.data().join("old")), Authority::new(cluster.data().join("new")));
    old.sign(&old.dir, "server", "server");
    let (certificate, key) = (old.file("server.crt"), old.file("server.key"));
    configure(&mut cluster, &format!("{{cert_file: {certificate}, key_file: {key}, client: require}}"));
    cluster.run_as_service();
    let believing = |authority: &Authority| {
        format!("{} sslmode=verify-full sslrootcert={}", cluster.conninfo(), authority.file("ca.crt"))
    };
    let mut session = Psql::open(&cluster, &believing(&old));
    session.ask("BEGIN");
    session.ask("CREATE TEMPORARY TABLE t ON COMMIT DROP AS SELECT 7 AS n");
    assert!(cluster.psql_at(&believing(&new), "SELECT 1").is_err());

    new.sign(&old.dir, "server", "server");
    cluster.signal_bellwether(Signal::SIGHUP);
    eventually("the new certificate", LIMIT, || cluster.psql_at(&believing(&new), "SELECT 1"));
    let said = cluster.psql_at(&believing(&old), "SELECT 1").expect_err("the old one is not shown any more");
    assert!(said.contains("SSL error"), "{said}");
    assert_eq!(session.ask("SELECT n FROM t"), "7");
    session.ask("COMMIT");

    // Half a renewal: the key does not fit. What is shown stays.
    old.sign(&old.dir, "other", "server");
    fs::copy(old.file("other.key"), old.file("server.key")).expect("copied");
    let (status, said) = cluster.http("POST", "/api/v1/reload").expect("an answer");
    assert!(status == 422 && said.contains("do not go together"), "{status} {said}");
    assert_eq!(cluster.psql_at(&believing(&new), "SELECT 1").as_deref(), Ok("1"));
}

/// Standbys and other followers stream over TLS: those that the agent has set up, as whoever it runs, and those that
/// want to see a certificate.
#[test]
fn followers_with_tls() {
    let mut cluster = Cluster::start(Options::default());
    let authority = Authority::new(cluster.data().join("tls"));
    authority.sign(&authority.dir, "server", "server");
    let (certificate, key) = (authority.file("server.crt"), authority.file("server.key"));
    // Returns when both standbys stream.
    configure(&mut cluster, &format!("{{cert_file: {certificate}, key_file: {key}, client: require}}"));

    let verifying = format!("sslmode=verify-full sslrootcert={}", authority.file("ca.crt"));
    let standby = &cluster.standbys()[0];
    let direct = cluster.direct_conninfo(standby, "postgres");
    let conninfo = cluster.psql_at(&direct, "SHOW primary_conninfo").expect("shown");
    let strict = conninfo.replace("sslmode=prefer", &verifying).replace('\'', "''");
    assert!(strict.contains("verify-full"), "{conninfo}");
    cluster.psql_at(&direct, &format!("ALTER SYSTEM SET primary_conninfo = '{strict}'")).expect("set");
    cluster.psql_at(&direct, "SELECT pg_reload_conf()").expect("reload");
    eventually("a verified stream", LIMIT, || {
        let receiver = "SELECT status, conninfo FROM pg_stat_wal_receiver";
        let found = cluster.psql_at(&direct, receiver)?;
        if found.starts_with("streaming") && found.contains("verify-full") { Ok(()) } else { Err(found) }
    });
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").expect("written");
    eventually("the rows on the standby", LIMIT, || {
        let app = cluster.direct_conninfo(standby, "app");
        match cluster.psql_at(&app, "SELECT count(*) FROM t")?.as_str() {
            "1000" => Ok(()),
            other => Err(other.to_owned()),
        }
    });

    let primary = cluster.direct_conninfo(&cluster.primary(), "postgres");
    let end = cluster.psql_at(&primary, "SELECT pg_current_wal_flush_lsn()").expect("a position");
    let received = cluster.data().join("received");
    fs::create_dir(&received).expect("a directory");
    let password = cluster.superuser_password();
    let relay = format!("host=127.0.0.1 port={} user=bellwether password={password}", cluster.port);
    let receive = |how: &str| {
        let mut program = cluster.program("pg_receivewal");
        program.arg("--no-loop").arg(format!("--endpos={end}")).arg("-D").arg(&received);
        let output = program.arg("-d").arg(format!("{relay} {how}")).output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = receive("sslmode=disable");
    assert!(!done && said.contains("no encryption"), "{said}");
    let (done, said) = receive(&verifying);
    assert!(done, "{said}");
    assert!(fs::read_dir(&received).expect("listed").count() > 0);
}

#[test]
fn servers_with_tls() {
    let mut cluster = Cluster::start(Options::default());
    let authority = Authority::new(cluster.data().join("tls"));
    turn_tls_on(&cluster, &authority);
    let ca = authority.file("ca.crt");
    configure(&mut cluster, &format!("{{servers: {{mode: verify-full, ca_file: {ca}}}}}"));
    // `check` comes to them in the same way, and says who shows what nobody here has signed.
    let unreached = || {
        let mut check = bellwether();
        check.arg("check").arg("--config").arg(cluster.data().join("bellwether.yaml"));
        let said = String::from_utf8(check.output().expect("it runs").stdout).expect("UTF-8");
        let unreached = said.lines().filter(|line| line.contains("cannot be reached"));
        unreached.map(|line| line.split(" (").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(unreached(), [""; 0]);
    let stranger = Authority::new(cluster.data().join("stranger")).file("ca.crt");
    let tls = serde_yaml::from_str(&format!("{{mode: verify-full, ca_file: {stranger}}}"));
    let tls: serde_yaml::Value = tls.expect("YAML");
    cluster.rewrite(|config| config["nodes"][1]["tls"] = tls);
    assert_eq!(unreached(), ["ERROR pg2"]);
    cluster.rewrite(|config| drop(config["nodes"][1].as_mapping_mut().expect("a node").remove("tls")));

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

/// SCRAM binds our proof to the server's certificate: whoever stands in between with another one gets nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_towards_servers_are_bound_to_their_certificate() {
    let cluster = Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    let authority = Authority::new(cluster.data().join("tls"));
    turn_tls_on(&cluster, &authority);
    let server = cluster.primary();
    let password = cluster.superuser_password();
    let way = ForServers { mode: ServerTlsMode::Require, ca_file: None, identity: None };
    let tls = TlsForServers::load(&way).expect("no files");
    let dial = async |port: u16| {
        let target = Target {
            address: Address { host: "127.0.0.1".into(), port },
            user: "bellwether".into(),
            database: "postgres".into(),
            credentials: Credentials::Password(password.as_str().into()),
            tls: tls.clone(),
            parameters: vec![],
        };
        net::dial(&target, LIMIT).await
    };
    dial(server.port).await.expect("a login that is bound to the server's certificate");

    let other = Authority::new(cluster.data().join("other"));
    other.sign(&other.dir, "server", "server");
    let between = Between::listen(&other, server.port).await;
    match dial(between).await {
        Err(DialError::Rejected { error, .. }) => {
            assert_eq!(error.message, "SCRAM channel binding check failed");
        }
        other => panic!("somebody in the middle went unnoticed: {other:?}"),
    }
}
