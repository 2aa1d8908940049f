//! The handshake with servers, by libpq's `sslmode`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate::end_point;
use super::{TlsError, TlsVersion, files, provider};
use crate::net::stream::Carrier;
use crate::net::{Stream, TlsFacts};
use crate::topology::Address;

/// As libpq's `sslmode`, without `allow`. Through unix sockets there is never TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerTlsMode {
    Disable,
    /// TLS where the server has it: against eavesdroppers, not against somebody in the middle.
    #[default]
    Prefer,
    Require,
    /// The server's certificate comes from one of the authorities.
    VerifyCa,
    /// And is made out to the host that we connect to.
    VerifyFull,
}

/// How servers are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForServers {
    pub mode: ServerTlsMode,
    /// Needed to verify. With it, `Require` verifies as `VerifyCa` does, as in libpq.
    pub ca_file: Option<PathBuf>,
    /// What we show where a server asks: certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Cheap to clone; all clones change together. The default has no TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsForServers {
    current: Arc<Mutex<Arc<Ways>>>,
}

#[derive(Clone, Debug, Default)]
struct Ways {
    usual: Way,
    /// Those who are reached in another.
    others: Vec<(Address, Way)>,
}

/// How a server is reached now.
#[derive(Clone, Debug, Default)]
pub(in crate::net) struct Way(Option<(ServerTlsMode, Arc<ClientConfig>)>);

impl TlsForServers {
    /// Reads the files. Blocks.
    pub fn load(settings: &ForServers) -> Result<TlsForServers, TlsError> {
        TlsForServers::load_with(settings, [])
    }

    /// With others for some servers. Reads the files. Blocks.
    pub fn load_with<'a>(
        usual: &ForServers,
        others: impl IntoIterator<Item = (&'a Address, &'a ForServers)>,
    ) -> Result<TlsForServers, TlsError> {
        let other = |(address, settings): (&Address, _)| Ok((address.clone(), Way::load(settings)?));
        let others = others.into_iter().map(other).collect::<Result<_, TlsError>>()?;
        let ways = Ways { usual: Way::load(usual)?, others };
        Ok(TlsForServers { current: Arc::new(Mutex::new(Arc::new(ways))) })
    }

    /// The connections that are made from now on are made as `other` says.
    pub fn become_as(&self, other: &TlsForServers) {
        let ways = other.current.lock().clone();
        *self.current.lock() = ways;
    }

    pub(in crate::net) fn way(&self, address: &Address) -> Way {
        let ways = self.current.lock().clone();
        let other = ways.others.iter().find(|(other, _)| other == address);
        other.map_or(&ways.usual, |(_, way)| way).clone()
    }
}

impl Way {
    fn load(settings: &ForServers) -> Result<Way, TlsError> {
        Ok(match settings.mode {
            ServerTlsMode::Disable => Way::default(),
            mode => Way(Some((mode, Arc::new(load(settings)?)))),
        })
    }

    pub(in crate::net) fn mode(&self) -> ServerTlsMode {
        self.0.as_ref().map_or(ServerTlsMode::Disable, |(mode, _)| *mode)
    }

    /// The handshake with `host`, after the server has answered an SSLRequest with 'S'. Within its caller's limit.
    pub(in crate::net) async fn connect(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> io::Result<(Stream, TlsFacts)> {
        let Some((_, config)) = &self.0 else { return Err(io::ErrorKind::Unsupported.into()) };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connected = TlsConnector::from(config.clone()).connect(name, Carrier::new(stream)).await?;
        let shown = connected.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let server_end_point = shown.and_then(|certificate| end_point(certificate));
        let facts = TlsFacts { server_end_point, client: None };
        Ok((Stream::Tls(Box::new(connected.into())), facts))
    }
}

fn load(settings: &ForServers) -> Result<ClientConfig, TlsError> {
    let versions = TlsVersion::default().and_newer();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("ring has cipher suites for both versions");
    let authority = match &settings.ca_file {
        None => None,
        Some(path) => {
            let roots = Arc::new(files::authorities(path)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
            Some(verifier.map_err(|source| TlsError::Verifier { path: path.clone(), source })?)
        }
    };
    let names = if settings.mode == ServerTlsMode::VerifyFull { Names::Checked } else { Names::Ignored };
    let verifier = Arc::new(Verifier { provider: provider(), authority, names });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &settings.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let pair = |source| TlsError::Pair { certificate: certificate.clone(), key: key.clone(), source };
            let chain = files::certificates(certificate)?;
            builder.with_client_auth_cert(chain, files::key(key)?).map_err(pair)?
        }
    };
    config.alpn_protocols = vec![super::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Checked,
    Ignored,
}

/// libpq's ladder: without authorities any certificate will do, with them it must come from one of them, and only
/// `verify-full` looks at the name. Signatures of the handshake are always checked.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    authority: Option<Arc<WebPkiServerVerifier>>,
    names: Names,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        let verified =
            authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Webpki looks at the name last: all else was right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.names == Names::Ignored => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
