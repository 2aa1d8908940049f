//! IPv6 wherever an address can be written: listeners, nodes, rules.

use std::fs;
use std::net::TcpListener;

use crate::harness::{Cluster, Durability, Options};

/// The second rule is for a network that nobody here is in, and none is for IPv4.
const RULES: &str = "
- {type: host, database: all, user: app, address: '::1/128', method: scram-sha-256}
- {type: host, database: all, user: bellwether, address: 'fd12:3456::/32', method: scram-sha-256}
- {type: host, database: replication, user: bellwether, address: '::/0', method: scram-sha-256}
";

#[test]
fn listeners_nodes_and_rules() {
    let Ok(free) = TcpListener::bind("[::1]:0").and_then(|listener| listener.local_addr()) else {
        println!("this host has no IPv6: nothing is tested");
        return;
    };
    let mut cluster =
        Cluster::start(Options { nodes: 1, durability: Durability::Async, ..Options::default() });
    cluster.interrupt_bellwether();
    let server = cluster.servers().remove(0);
    let settings = server.data_dir.join("postgresql.auto.conf");
    let text = fs::read_to_string(&settings).expect("settings");
    fs::write(&settings, text + "listen_addresses = '127.0.0.1, ::1'\n").expect("settings");
    let hba = server.data_dir.join("pg_hba.conf");
    let text = fs::read_to_string(&hba).expect("pg_hba.conf");
    let lines = "host all all ::1/128 scram-sha-256\nhost replication all ::1/128 scram-sha-256\n";
    fs::write(&hba, lines.to_owned() + &text).expect("pg_hba.conf");
    cluster.rewrite(|config| {
        let listen = config["listen"].as_sequence_mut().expect("listeners");
        listen.push(serde_yaml::from_str(&format!("{{address: '{free}'}}")).expect("YAML"));
        config["nodes"][0]["address"] = format!("[::1]:{}", server.port).into();
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.remove("method");
        auth.insert("rules".into(), serde_yaml::from_str(RULES).expect("YAML"));
    });
    cluster.run_bellwether(None);
    cluster.await_steady();

    let at = |host: &str, port: u16, user: &str| {
        let password = if user == "app" { "demo".to_owned() } else { cluster.superuser_password() };
        format!("host={host} port={port} user={user} password={password} dbname=app")
    };
    let app = at("::1", free.port(), "app");
    assert_eq!(cluster.psql_at(&app, "SELECT host(inet_server_addr())").as_deref(), Ok("::1"));
    let bellwether = at("::1", free.port(), "bellwether");
    let replicating = bellwether.clone() + " replication=true";
    assert!(cluster.psql_at(&replicating, "IDENTIFY_SYSTEM").expect("may").contains('|'));
    for (conninfo, host, user) in
        [(bellwether, "::1", "bellwether"), (at("127.0.0.1", cluster.port, "app"), "127.0.0.1", "app")]
    {
        let said = cluster.psql_at(&conninfo, "SELECT 1").expect_err("no rule");
        let expected = format!("no pg_hba.conf entry for host \"{host}\", user \"{user}\"");
        assert!(said.contains(&expected), "{said}");
    }
    let state = cluster.api("/api/v1/cluster").expect("state");
    assert_eq!(state["nodes"][0]["address"], format!("[::1]:{}", server.port));
}
