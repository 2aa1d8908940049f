//! What we read from a certificate beside verifying it: the hash for channel binding, and a client's names.

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;

use crate::net::ClientCertificate;

/// `tls-server-end-point` of `certificate` (RFC 5929, section 4.1): its hash by its own signature's algorithm,
/// where MD5 and SHA-1 count as SHA-256. `None` for algorithms without one, as in
/// `be_tls_get_certificate_hash` (be-secure-openssl.c).
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    Some(match hash(parsed.signature_algorithm().oid)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// RSA's are of PKCS #1, ECDSA's of ANSI X9.62. RSASSA-PSS keeps its hash in parameters: SHA-256 in practice,
/// and a wrong guess would only fail the login that asks for channel binding.
fn hash(signature: ObjectIdentifier) -> Option<Hash> {
    match signature.to_string().as_str() {
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        _ => None,
    }
}

/// The subject of a verified certificate; `None` when it cannot be read after all.
pub(super) fn subject(certificate: &[u8]) -> Option<ClientCertificate> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let subject = parsed.tbs_certificate().subject();
    // Two common names are an attempt to be two people; one with a NUL was taken for its beginning once
    // (CVE-2009-4034).
    let mut names = subject.iter().filter(|part| part.oid.to_string() == "2.5.4.3");
    let common_name = match (names.next(), names.next()) {
        (Some(only), None) => std::str::from_utf8(only.value.value()).ok().map(str::to_owned),
        _ => None,
    };
    let common_name = common_name.filter(|name| !name.is_empty() && !name.contains('\0'));
    Some(ClientCertificate { common_name, distinguished_name: subject.to_string() })
}
