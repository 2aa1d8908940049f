//! The instance's certificates: read at the start, and again on a reload.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use super::config::{ClientTls, Tls};
use crate::net::{self, TlsError, TlsForClients, TlsForServers};

#[derive(Clone, Debug)]
pub(super) struct Certificates {
    pub(super) for_clients: net::ClientTls,
    pub(super) for_servers: TlsForServers,
    pub(super) files: Fingerprints,
}

/// What the files held, by their keys: enough to tell whether one has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprints(BTreeMap<&'static str, Option<u64>>);

impl Certificates {
    /// Blocks.
    pub(super) fn load(tls: &Tls) -> Result<Certificates, TlsError> {
        let files = Fingerprints::take(tls);
        let read = |files: &net::ForClients| TlsForClients::load(files).map(Arc::new);
        let for_clients = match &tls.clients {
            ClientTls::Disable => net::ClientTls::Disable,
            ClientTls::Allow(files) => net::ClientTls::Allow(read(files)?),
            ClientTls::Require(files) => net::ClientTls::Require(read(files)?),
        };
        Ok(Certificates { for_clients, for_servers: TlsForServers::load(&tls.servers)?, files })
    }
}

impl Fingerprints {
    fn take(tls: &Tls) -> Fingerprints {
        let mut taken = BTreeMap::new();
        let mut take = |key, file: Option<&Path>| {
            if let Some(file) = file {
                taken.insert(key, fingerprint(file));
            }
        };
        if let ClientTls::Allow(files) | ClientTls::Require(files) = &tls.clients {
            take("tls.cert_file", Some(&files.cert_file));
            take("tls.key_file", Some(&files.key_file));
            take("tls.client_ca_file", files.client_ca_file.as_deref());
        }
        let identity = tls.servers.identity.as_ref();
        take("tls.servers.ca_file", tls.servers.ca_file.as_deref());
        take("tls.servers.cert_file", identity.map(|(certificate, _)| certificate.as_path()));
        take("tls.servers.key_file", identity.map(|(_, key)| key.as_path()));
        Fingerprints(taken)
    }

    /// The keys of both whose files held something else in `before`.
    pub(super) fn differing(&self, before: &Fingerprints) -> Vec<&'static str> {
        let differs = |(key, now): &(&&'static str, &Option<u64>)| {
            before.0.get(**key).is_some_and(|before| before != *now)
        };
        self.0.iter().filter(differs).map(|(key, _)| *key).collect()
    }
}

fn fingerprint(file: &Path) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(file).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}
