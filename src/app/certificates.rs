//! The instance's certificates: read at the start, and again on a reload.

use std::sync::Arc;

use super::config::{ClientTls, Tls};
use crate::net::{self, TlsError, TlsForClients, TlsForServers};

/// Cheap to clone; all clones are reloaded together.
#[derive(Clone, Debug)]
pub(super) struct Certificates {
    pub(super) for_clients: net::ClientTls,
    pub(super) for_servers: TlsForServers,
}

impl Certificates {
    pub(super) fn load(tls: &Tls) -> Result<Certificates, TlsError> {
        let read = |files: &net::ForClients| TlsForClients::load(files.clone()).map(Arc::new);
        let for_clients = match &tls.clients {
            ClientTls::Disable => net::ClientTls::Disable,
            ClientTls::Allow(files) => net::ClientTls::Allow(read(files)?),
            ClientTls::Require(files) => net::ClientTls::Require(read(files)?),
        };
        Ok(Certificates { for_clients, for_servers: TlsForServers::load(tls.servers.clone())? })
    }

    /// For the connections that come from now on. What cannot be read leaves what was there. Blocks.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let clients = match &self.for_clients {
            net::ClientTls::Disable => Ok(()),
            net::ClientTls::Allow(tls) | net::ClientTls::Require(tls) => tls.reload(),
        };
        clients.and(self.for_servers.reload())
    }
}
