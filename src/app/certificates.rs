//! The instance's certificates: read at the start, and again on a reload.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use super::config::{ClientTls, Config};
use crate::net::{self, ForServers, TlsError, TlsForClients, TlsForServers};

#[derive(Clone, Debug)]
pub(super) struct Certificates {
    pub(super) for_clients: net::ClientTls,
    pub(super) for_servers: TlsForServers,
    pub(super) files: Fingerprints,
}

/// What the files held, by their keys: enough to tell whether one has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprints(BTreeMap<String, Option<u64>>);

impl Certificates {
    /// Blocks.
    pub(super) fn load(config: &Config) -> Result<Certificates, TlsError> {
        let files = Fingerprints::take(config);
        let read = |files: &net::ForClients| TlsForClients::load(files).map(Arc::new);
        let for_clients = match &config.tls.clients {
            ClientTls::Disable => net::ClientTls::Disable,
            ClientTls::Allow(files) => net::ClientTls::Allow(read(files)?),
            ClientTls::Require(files) => net::ClientTls::Require(read(files)?),
        };
        Ok(Certificates { for_clients, for_servers: Certificates::towards_servers(config)?, files })
    }

    /// Blocks.
    pub(super) fn towards_servers(config: &Config) -> Result<TlsForServers, TlsError> {
        let others = config.nodes.iter().filter_map(|node| Some((&node.node.address, node.tls.as_ref()?)));
        TlsForServers::load_with(&config.tls.servers, others)
    }
}

impl Fingerprints {
    fn take(config: &Config) -> Fingerprints {
        let mut taken = Fingerprints::default();
        if let ClientTls::Allow(files) | ClientTls::Require(files) = &config.tls.clients {
            taken.add("tls.cert_file", Some(&files.cert_file));
            taken.add("tls.key_file", Some(&files.key_file));
            taken.add("tls.client_ca_file", files.client_ca_file.as_deref());
        }
        taken.add_servers("tls.servers", &config.tls.servers);
        for (at, node) in config.nodes.iter().enumerate() {
            if let Some(tls) = &node.tls {
                taken.add_servers(&format!("nodes[{at}].tls"), tls);
            }
        }
        taken
    }

    fn add_servers(&mut self, section: &str, tls: &ForServers) {
        let (certificate, key) = tls.identity.as_ref().map(|(one, other)| (&**one, &**other)).unzip();
        self.add(&format!("{section}.ca_file"), tls.ca_file.as_deref());
        self.add(&format!("{section}.cert_file"), certificate);
        self.add(&format!("{section}.key_file"), key);
    }

    fn add(&mut self, key: &str, file: Option<&Path>) {
        if let Some(file) = file {
            self.0.insert(key.to_owned(), fingerprint(file));
        }
    }

    /// The keys of both whose files held something else in `before`.
    pub(super) fn differing(&self, before: &Fingerprints) -> Vec<String> {
        let differs =
            |(key, now): &(&String, &Option<u64>)| before.0.get(*key).is_some_and(|before| before != *now);
        self.0.iter().filter(differs).map(|(key, _)| key.clone()).collect()
    }
}

fn fingerprint(file: &Path) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(file).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}
