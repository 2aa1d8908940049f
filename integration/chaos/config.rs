//! What the daemons of a layout are told: `bellwether.yaml`, and etcd's arguments.

use std::fmt::Write as _;

use super::cluster::{ADMIN_PORT, ETCD_PEER_PORT, ETCD_PORT, PASSWORD, PORT, SERVER_PORT, bin_dir, data_dir};
use super::hosts::{Host, Lan, SERVER_USER};
use super::layout::Layout;
use super::load;

/// The `bellwether.yaml` of the instance on this host: default settings, but for what is kept, and for the budget of
/// failovers, which is against what is done here.
pub(crate) fn instance(layout: &Layout, lan: &Lan, host: usize) -> String {
    let plan = &layout.hosts[host];
    let here = &lan.hosts[host];
    let name = plan.instance.expect("a host with an instance");
    let (run, disk) = (lan.dir.display(), here.dir.display());
    let mut yaml = format!(
        "cluster: chaos\n\
         instance: {name}\n\
         listen: [{{address: \"{address}:{PORT}\"}}]\n\
         admin: {{address: \"{address}:{ADMIN_PORT}\"}}\n\
         server_login: {{user: bellwether, password_file: {run}/password}}\n\
         auth: {{method: scram-sha-256, users: [{{name: {user}, password_file: {run}/app.password}}]}}\n\
         wal: {{dir: {disk}/wal, retain: {{size: 128MiB, max_size: 512MiB, min_free: 32MiB}}}}\n\
         durability: {{mode: quorum}}\n\
         failover: {{budget: {{failovers: off}}}}\n",
        address = here.address,
        user = load::USER,
    );
    yaml += "nodes:\n";
    for (node_host, node) in layout.nodes() {
        let there = &lan.hosts[node_host];
        let _ = write!(yaml, "  - name: {node}\n    address: \"{}:{SERVER_PORT}\"\n", there.address);
        if layout.is_agent(host, node_host) {
            let (data_dir, bin_dir) = (data_dir(there, node), bin_dir(there));
            let _ = writeln!(
                yaml,
                "    local: {{data_dir: {}, bin_dir: {}, run_as: {SERVER_USER}}}",
                data_dir.display(),
                bin_dir.display()
            );
        }
    }
    let others: Vec<String> = layout
        .instances()
        .filter(|(other, _)| *other != host)
        .map(|(other, name)| {
            format!("{{instance: {name}, address: \"{}:{PORT}\"}}", lan.hosts[other].address)
        })
        .collect();
    if !others.is_empty() {
        let _ = writeln!(yaml, "peers: [{}]", others.join(", "));
    }
    let etcds: Vec<String> = layout
        .etcds()
        .map(|(host, _)| format!("\"http://{}:{ETCD_PORT}\"", lan.hosts[host].address))
        .collect();
    let etcd = if etcds.is_empty() {
        String::new()
    } else {
        format!(", etcd: {{endpoints: [{}]}}", etcds.join(", "))
    };
    let _ = writeln!(yaml, "state: {{file: {disk}/state{etcd}}}");
    yaml
}

/// What a server has for itself, in its `postgresql.auto.conf`.
pub(crate) fn server(host: &Host, node: &str) -> String {
    format!("listen_addresses = '{}'\nport = {SERVER_PORT}\ncluster_name = '{node}'\n", host.address)
}

/// And what makes it a standby of all instances, the one of its own host first.
pub(crate) fn standby(layout: &Layout, lan: &Lan, host: usize, node: &str) -> String {
    let mut instances: Vec<usize> = layout.instances().map(|(host, _)| host).collect();
    instances.sort_by_key(|instance| *instance != host);
    let hosts: Vec<String> = instances.iter().map(|host| lan.hosts[*host].address.to_string()).collect();
    format!(
        "primary_conninfo = 'host={} port={PORT} user=bellwether password={PASSWORD} connect_timeout=2 \
         dbname=postgres application_name={node}'\nprimary_slot_name = '{node}'\nrecovery_target_timeline = 'latest'\n",
        hosts.join(",")
    )
}

/// etcd's arguments on this host.
pub(crate) fn etcd(layout: &Layout, lan: &Lan, host: usize, name: &str) -> Vec<String> {
    let here = &lan.hosts[host];
    let peer = |host: usize| format!("http://{}:{ETCD_PEER_PORT}", lan.hosts[host].address);
    let cluster: Vec<String> = layout.etcds().map(|(host, name)| format!("{name}={}", peer(host))).collect();
    let clients = format!("http://{}:{ETCD_PORT}", here.address);
    [
        ("name", name.to_owned()),
        ("data-dir", here.dir.join("etcd").display().to_string()),
        ("listen-client-urls", clients.clone()),
        ("advertise-client-urls", clients),
        ("listen-peer-urls", peer(host)),
        ("initial-advertise-peer-urls", peer(host)),
        ("initial-cluster", cluster.join(",")),
        // Members start at different times.
        ("initial-cluster-state", "new".to_owned()),
        ("initial-cluster-token", "chaos".to_owned()),
        ("log-level", "warn".to_owned()),
    ]
    .map(|(name, value)| format!("--{name}={value}"))
    .to_vec()
}
