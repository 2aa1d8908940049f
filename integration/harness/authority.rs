//! Certificates.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::cluster::set_mode;

/// Signs certificates for this host, into the cluster's directory.
pub(crate) struct Authority {
    pub(crate) dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(dir: PathBuf) -> Authority {
        fs::create_dir(&dir).expect("a directory");
        set_mode(&dir, 0o755);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("parameters");
        // A name of its own: who signs with the name of its subject has signed itself.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.join("ca.crt"), params.self_signed(&key).expect("a certificate").pem()).expect("write");
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    /// `<name>.crt` and `<name>.key` in `directory`, for somebody of that `common_name` on this host.
    pub(crate) fn sign(&self, directory: &Path, name: &str, common_name: &str) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(directory.join(format!("{name}.crt")), certificate.pem()).expect("write");
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).expect("write");
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}
