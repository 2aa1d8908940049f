//! TLS, on both sides: our certificate for clients ([`accept`]), and how servers are reached ([`connect`]).
//!
//! rustls with ring. Certificates come from PEM files. Who wants them read again loads them anew and puts them in the
//! place of the old; connections that are there keep what they began with. There is no session
//! resumption, as in PostgreSQL (be-secure-openssl.c): a cached session would skip the check of a certificate.

mod accept;
mod certificate;
mod connect;
mod files;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::{self, SupportedProtocolVersion, version};

pub(super) use accept::Negotiation;
pub use accept::{ForClients, TlsForClients};
pub use connect::{ForServers, ServerTlsMode, TlsForServers};

/// The name in ALPN, registered for PostgreSQL's protocol.
const ALPN: &[u8] = b"postgresql";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    #[default]
    V1_2,
    V1_3,
}

impl TlsVersion {
    /// What is spoken when this is the oldest that is allowed.
    fn and_newer(self) -> &'static [&'static SupportedProtocolVersion] {
        static ALL: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];
        match self {
            TlsVersion::V1_2 => &ALL,
            TlsVersion::V1_3 => &ALL[1..],
        }
    }
}

/// Why TLS cannot be had as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{} has no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("a certificate of {}", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("certificate {} and key {} do not go together", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("authorities in {}", path.display())]
    Verifier {
        path: PathBuf,
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
