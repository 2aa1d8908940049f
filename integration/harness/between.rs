//! Somebody in the middle: speaks TLS with both sides, with a certificate of its own to the client.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Authority;

#[derive(Clone)]
pub(crate) struct Between {
    accept: TlsAcceptor,
    connect: TlsConnector,
}

/// PostgreSQL's SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

impl Between {
    /// Passes on what comes to the port it returns, to the server at `server`. It shows `server.crt` of `authority`.
    pub(crate) async fn listen(authority: &Authority, server: u16) -> u16 {
        let chain = vec![CertificateDer::from_pem_file(authority.file("server.crt")).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(authority.file("server.key")).expect("a key");
        let provider = Arc::new(ring::default_provider());
        let accept = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring's")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a pair");
        let connect = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring's")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth();
        let between = Between {
            accept: TlsAcceptor::from(Arc::new(accept)),
            connect: TlsConnector::from(Arc::new(connect)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let between = between.clone();
                // Whoever breaks off has its reasons.
                tokio::spawn(async move { drop(between.pass_on(client, server).await) });
            }
        });
        port
    }

    async fn pass_on(self, mut client: TcpStream, server: u16) -> std::io::Result<()> {
        let mut request = [0; 8];
        client.read_exact(&mut request).await?;
        client.write_all(b"S").await?;
        let mut client = self.accept.accept(client).await?;
        let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
        server.write_all(&SSL_REQUEST).await?;
        server.read_exact(&mut [0]).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let mut server = self.connect.connect(name, server).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_| ())
    }
}

/// Believes every certificate.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
