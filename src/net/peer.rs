//! Who is at the other end of a connection, as far as its transport shows.

use super::PeerAddress;

/// The other end of a connection that has been accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it connects from: the address that PROXY protocol names, where a listener asks for that.
    pub address: PeerAddress,
    /// `None`: not encrypted.
    pub tls: Option<TlsFacts>,
}

impl Peer {
    pub fn plain(address: PeerAddress) -> Peer {
        Peer { address, tls: None }
    }
}

/// What a TLS handshake has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFacts {
    /// `tls-server-end-point` (RFC 5929, section 4.1): a hash of the server's certificate, ours on the accepting
    /// side. `None` where that certificate's signature algorithm has no hash of its own (Ed25519): then there is
    /// no channel binding.
    pub server_end_point: Option<Vec<u8>>,
    /// The client's certificate, verified against the authorities for clients; `None` where it showed none.
    pub client: Option<ClientCertificate>,
}

/// The subject of a client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// `None` where the subject has none, or more than one.
    pub common_name: Option<String>,
    /// The whole subject as RFC 2253 writes it.
    pub distinguished_name: String,
}
