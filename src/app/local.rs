//! The servers on this host: what their agent needs to know, from the configuration.

use std::collections::HashMap;
use std::path::Path;

use super::config::{Config, ListenOn, Local, NodeConfig};
use super::plans;
use crate::failover::LocalNode;
use crate::failover::agent::{BinariesError, Conninfo, LocalServer, PgBinaries, RunAs, RunAsError};
use crate::topology::NodeName;

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("local server {node}")]
    RunAs {
        node: NodeName,
        #[source]
        source: RunAsError,
    },
    #[error("local server {node}")]
    Binaries {
        node: NodeName,
        #[source]
        source: BinariesError,
    },
}

/// Of one host, where there are several; libpq takes no less than 2 s.
const CONNECT_TIMEOUT: &str = "2";

/// Every node with a `local` section.
pub(super) async fn servers(config: &Config) -> Result<HashMap<NodeName, LocalNode>, LocalError> {
    let mut servers = HashMap::new();
    for node in &config.nodes {
        let Some(local) = &node.local else { continue };
        let server = server(node, local).await?;
        let primary_conninfo = upstream(config, local.passfile.as_deref()).to_string();
        servers.insert(node.node.name.clone(), LocalNode { server, primary_conninfo });
    }
    Ok(servers)
}

/// One server on this host.
pub async fn server(node: &NodeConfig, local: &Local) -> Result<LocalServer, LocalError> {
    let name = node.node.name.clone();
    let run_as = RunAs::resolve(local.run_as.as_deref());
    let run_as = run_as.map_err(|source| LocalError::RunAs { node: name.clone(), source })?;
    let binaries = PgBinaries::discover(Some(&local.bin_dir), None).await;
    let binaries = binaries.map_err(|source| LocalError::Binaries { node: name.clone(), source })?;
    let (address, data_dir) = (node.node.address.clone(), local.data_dir.clone());
    Ok(LocalServer { node: name, address, data_dir, binaries, run_as })
}

/// The `primary_conninfo` of a standby on this host: our first listener, and behind it those of the other instances, in
/// whose relays it finds the same. It stays the same whoever is primary.
pub fn upstream(config: &Config, passfile: Option<&Path>) -> Conninfo {
    let (host, port) = match config.listen.first().map(|listen| &listen.on) {
        Some(ListenOn::Tcp(address)) if address.ip().is_unspecified() => {
            ("127.0.0.1".to_owned(), address.port())
        }
        Some(ListenOn::Tcp(address)) => (address.ip().to_string(), address.port()),
        Some(ListenOn::Unix { directory, port, .. }) => (directory.to_string_lossy().into_owned(), *port),
        None => ("127.0.0.1".to_owned(), 6432),
    };
    let (mut hosts, mut ports) = (vec![host], vec![port.to_string()]);
    for peer in config.peers.iter().filter(|_| !plans::is_alone(config)) {
        hosts.push(peer.address.host.clone());
        ports.push(peer.address.port.to_string());
    }
    let several = hosts.len() > 1;
    let login = Conninfo::new().with("host", hosts.join(",")).with("port", ports.join(","));
    // Else a host that is gone holds up the next one for as long as TCP tries.
    let login = if several { login.with("connect_timeout", CONNECT_TIMEOUT) } else { login };
    let login = login.with("user", &config.server_login.user);
    let login = match (passfile, &config.server_login.password) {
        (Some(passfile), _) => login.with("passfile", passfile.to_string_lossy()),
        (None, Some(password)) => login.with("password", &**password.reveal()),
        (None, None) => login,
    };
    // A walreceiver names none; the worker that synchronises logical slots asks the primary in this database.
    let login = login.with("dbname", &config.server_login.database);
    // It stays in the standby when the configuration changes: good for whatever `tls.client` says, now or then.
    login.with("sslmode", "prefer").with("gssencmode", "disable")
}
