//! What must be there before anything is made: programs, a user, ports.

use std::net::{Ipv4Addr, TcpListener};

use super::Options;
use crate::failover::agent::{BinariesError, PgBinaries, RunAs, RunAsError};

#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("--nodes {nodes}: 1 to {} are possible", Options::MAX_NODES)]
    Nodes { nodes: u16 },
    #[error("--port and --admin-port are both {port}")]
    SamePort { port: u16 },
    #[error("port {port} is taken: choose another with {option}")]
    PortTaken {
        option: &'static str,
        port: u16,
        #[source]
        source: std::io::Error,
    },
    #[error("no free port for the servers")]
    NoPort(#[source] std::io::Error),
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    #[error(transparent)]
    RunAs(#[from] RunAsError),
}

/// What the servers are run with.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) binaries: PgBinaries,
    pub(super) run_as: Option<RunAs>,
}

pub(super) async fn check(options: &Options) -> Result<Host, PreflightError> {
    if !(1..=Options::MAX_NODES).contains(&options.nodes) {
        return Err(PreflightError::Nodes { nodes: options.nodes });
    }
    if options.port == options.admin_port {
        return Err(PreflightError::SamePort { port: options.port });
    }
    let path = std::env::var_os("PATH");
    let pg_bin = options.pg_bin.as_deref().map(std::path::absolute).and_then(Result::ok);
    let binaries = PgBinaries::discover(pg_bin.as_deref(), path.as_deref()).await?;
    let run_as = RunAs::resolve(None)?;
    Ok(Host { binaries, run_as })
}

pub(super) fn ports_are_free(ports: &[(&'static str, u16)]) -> Result<(), PreflightError> {
    for &(option, port) in ports {
        bind(port).map_err(|source| PreflightError::PortTaken { option, port, source })?;
    }
    Ok(())
}

/// One free port per node: those behind the endpoint's where they are free.
pub(super) fn node_ports(options: &Options) -> Result<Vec<u16>, PreflightError> {
    // Held until all are chosen, so that none is chosen twice.
    let mut held = Vec::new();
    for n in 1..=options.nodes {
        let wanted = options.port.checked_add(n).filter(|port| *port != options.admin_port);
        let listener = match wanted.map(bind) {
            Some(Ok(listener)) => listener,
            _ => bind(0).map_err(PreflightError::NoPort)?,
        };
        held.push(listener);
    }
    let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port()));
    ports.collect::<Result<_, _>>().map_err(PreflightError::NoPort)
}

fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::{Options, PreflightError, bind, node_ports, ports_are_free};
    use crate::topology::Durability;

    #[test]
    fn a_taken_port_is_named_and_not_given_to_a_node() {
        let taken = bind(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = ports_are_free(&[("--port", port)]).unwrap_err();
        assert_eq!(error.to_string(), format!("port {port} is taken: choose another with --port"));
        assert!(matches!(error, PreflightError::PortTaken { .. }));

        let options = Options {
            dir: None,
            nodes: 3,
            port: port.saturating_sub(1),
            admin_port: port.saturating_add(1),
            pg_bin: None,
            durability: Durability::Async,
        };
        let ports = node_ports(&options).unwrap();
        assert_eq!(ports.len(), 3);
        assert!(!ports.contains(&port) && !ports.contains(&options.admin_port), "{ports:?}");
    }
}
