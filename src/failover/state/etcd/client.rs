//! The HTTP client, with the certificates that are wanted. Made when it is first needed, and again from the files as
//! they are then when a request has failed: certificates are renewed without anybody telling.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use reqwest::{Certificate, Identity};

/// For endpoints with `https`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// Whose certificates are believed; `None`: those of the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// What we show: certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("read {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is no certificate, or no key")]
    Certificate {
        path: PathBuf,
        #[source]
        source: reqwest::Error,
    },
    #[error("TLS for etcd")]
    Tls(#[source] reqwest::Error),
}

#[derive(Debug)]
pub(super) struct Client {
    tls: EtcdTls,
    made: Mutex<Option<reqwest::Client>>,
}

impl Client {
    pub(super) fn new(tls: EtcdTls) -> Client {
        Client { tls, made: Mutex::new(None) }
    }

    pub(super) async fn http(&self) -> Result<reqwest::Client, ClientError> {
        let made = self.made.lock().clone();
        match made {
            Some(client) => Ok(client),
            None => {
                let client = make(&self.tls).await?;
                Ok(self.made.lock().get_or_insert(client).clone())
            }
        }
    }

    /// With other files it might be better.
    pub(super) fn has_failed(&self) {
        if self.tls != EtcdTls::default() {
            *self.made.lock() = None;
        }
    }
}

async fn make(tls: &EtcdTls) -> Result<reqwest::Client, ClientError> {
    // The client's TLS asks for the process's provider; ours is the only one that is built in.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let mut client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
    if let Some(path) = &tls.ca_file {
        let authorities = Certificate::from_pem_bundle(&read(path).await?);
        client = client.tls_certs_only(authorities.map_err(|source| certificate(path, source))?);
    }
    if let Some((chain, key)) = &tls.identity {
        let pem = [read(chain).await?, read(key).await?].concat();
        client = client.identity(Identity::from_pem(&pem).map_err(|source| certificate(chain, source))?);
    }
    client.build().map_err(ClientError::Tls)
}

async fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|source| ClientError::File { path: path.to_owned(), source })
}

fn certificate(path: &Path, source: reqwest::Error) -> ClientError {
    ClientError::Certificate { path: path.to_owned(), source }
}
