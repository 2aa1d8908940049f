//! The handshake with clients.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::certificate::{end_point, subject};
use super::{ALPN, TlsError, TlsVersion, files, provider};
use crate::net::stream::Carrier;
use crate::net::{Stream, TlsFacts};

/// Our certificate, and what clients have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForClients {
    /// The certificate, then the chain to its authority.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// With it clients are asked for a certificate. Who shows none goes on without; a wrong one ends the handshake.
    pub client_ca_file: Option<PathBuf>,
    pub min_version: TlsVersion,
}

/// How the client came to TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Negotiation {
    SslRequest,
    /// Its first byte was a handshake's. ALPN is mandatory then: a client of another protocol must not be taken
    /// for one of ours (ProcessSSLStartup, backend_startup.c).
    Direct,
}

/// What clients are shown.
#[derive(Debug)]
pub struct TlsForClients {
    config: Arc<ServerConfig>,
    server_end_point: Option<Vec<u8>>,
}

impl TlsForClients {
    /// Reads the files. Blocks.
    pub fn load(settings: &ForClients) -> Result<TlsForClients, TlsError> {
        let ForClients { cert_file, key_file, client_ca_file, min_version } = settings;
        let chain = files::certificates(cert_file)?;
        let server_end_point = chain.first().and_then(|certificate| end_point(certificate));
        let pair = |source| TlsError::Pair { certificate: cert_file.clone(), key: key_file.clone(), source };
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(min_version.and_newer()).map_err(pair)?;
        let builder = match client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let authorities = Arc::new(files::authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider());
                let verifier = verifier.allow_unauthenticated().build();
                let bad = |source| TlsError::Verifier { path: path.clone(), source };
                builder.with_client_cert_verifier(verifier.map_err(bad)?)
            }
        };
        let mut config = builder.with_single_cert(chain, files::key(key_file)?).map_err(pair)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsForClients { config: Arc::new(config), server_end_point })
    }

    #[cfg(test)]
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        self.server_end_point.clone()
    }

    /// The handshake, from the client's first byte of it. Within its caller's limit.
    pub(in crate::net) async fn accept(
        &self,
        stream: TcpStream,
        negotiation: Negotiation,
    ) -> io::Result<(Stream, TlsFacts)> {
        let accepted = TlsAcceptor::from(self.config.clone()).accept(Carrier::new(stream)).await?;
        let (_, connection) = accepted.get_ref();
        if negotiation == Negotiation::Direct && connection.alpn_protocol().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "direct TLS without ALPN"));
        }
        let shown = connection.peer_certificates().and_then(|chain| chain.first());
        let facts = TlsFacts {
            server_end_point: self.server_end_point.clone(),
            client: shown.and_then(|certificate| subject(certificate)),
        };
        Ok((Stream::Tls(Box::new(accepted.into())), facts))
    }
}
