//! `tls:`: our certificate for clients, and how the servers are reached.

use std::path::{Path, PathBuf};

use super::reader::Section;
use super::units::{path, word};
use crate::net::{ForClients, ForServers, ServerTlsMode, TlsVersion};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub clients: ClientTls,
    pub servers: ForServers,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientTls {
    #[default]
    Disable,
    Allow(ForClients),
    /// Not of those who come through a unix socket.
    Require(ForClients),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Disable,
    Allow,
    Require,
}

/// Relative paths start at `directory`.
pub(super) fn tls(tls: &mut Section<'_>, directory: &Path) -> Tls {
    let identity = identity(tls, directory);
    let client_ca_file = tls.optional("client_ca_file", path).map(|file| directory.join(file));
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    let min_version = tls.or("min_version", TlsVersion::default(), word(&versions));
    let demands = [("disable", Demand::Disable), ("allow", Demand::Allow), ("require", Demand::Require)];
    let unsaid = if identity.is_some() { Demand::Allow } else { Demand::Disable };
    let demand = tls.or("client", unsaid, word(&demands));
    if demand != Demand::Disable && !tls.has("cert_file") {
        tls.problem("cert_file", "is missing: TLS for clients needs a certificate");
    }
    if client_ca_file.is_some() && !tls.has("cert_file") {
        tls.problem("client_ca_file", "needs cert_file and key_file, too");
    }
    let for_clients =
        identity.map(|(cert_file, key_file)| ForClients { cert_file, key_file, client_ca_file, min_version });
    let clients = match (demand, for_clients) {
        (Demand::Disable, _) | (_, None) => ClientTls::Disable,
        (Demand::Allow, Some(files)) => ClientTls::Allow(files),
        (Demand::Require, Some(files)) => ClientTls::Require(files),
    };
    Tls { clients, servers: tls.section("servers", |servers| for_servers(servers, directory)) }
}

pub(super) fn for_servers(servers: &mut Section<'_>, directory: &Path) -> ForServers {
    let modes = [
        ("disable", ServerTlsMode::Disable),
        ("prefer", ServerTlsMode::Prefer),
        ("require", ServerTlsMode::Require),
        ("verify-ca", ServerTlsMode::VerifyCa),
        ("verify-full", ServerTlsMode::VerifyFull),
    ];
    let mode = servers.or("mode", ServerTlsMode::default(), word(&modes));
    let ca_file = servers.optional("ca_file", path).map(|file| directory.join(file));
    let verifies = matches!(mode, ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull);
    if verifies && !servers.has("ca_file") {
        servers.problem("ca_file", "is missing: this mode verifies the servers' certificates");
    }
    ForServers { mode, ca_file, identity: identity(servers, directory) }
}

/// `cert_file` and `key_file`, which go together.
pub(super) fn identity(section: &mut Section<'_>, directory: &Path) -> Option<(PathBuf, PathBuf)> {
    let certificate = section.optional("cert_file", path);
    let key = section.optional("key_file", path);
    match (section.has("cert_file"), section.has("key_file")) {
        (true, false) => section.problem("key_file", "is missing: it belongs to cert_file"),
        (false, true) => section.problem("cert_file", "is missing: it belongs to key_file"),
        _ => {}
    }
    Some((directory.join(certificate?), directory.join(key?)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ClientTls, Tls, tls};
    use crate::app::config::reader::{Findings, Section};
    use crate::net::{ForClients, ForServers, ServerTlsMode, TlsVersion};

    fn read(yaml: &str) -> (Tls, Vec<String>) {
        let document = serde_yaml::from_str(yaml).expect("the test's own YAML");
        let mut findings = Findings::default();
        let read = Section::document(&document, &mut findings, |section| tls(section, Path::new("/etc")));
        (read, findings.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_understood() {
        let files = |min_version| ForClients {
            cert_file: "/etc/a.crt".into(),
            key_file: "/a.key".into(),
            client_ca_file: None,
            min_version,
        };
        let check = |yaml: &str, clients: ClientTls, servers: ForServers| {
            assert_eq!(read(yaml), (Tls { clients, servers }, vec![]), "{yaml}");
        };
        check("{}", ClientTls::Disable, ForServers::default());
        check(
            "{cert_file: a.crt, key_file: /a.key}",
            ClientTls::Allow(files(TlsVersion::V1_2)),
            ForServers::default(),
        );
        check(
            "{cert_file: a.crt, key_file: /a.key, client: require, min_version: '1.3'}",
            ClientTls::Require(files(TlsVersion::V1_3)),
            ForServers::default(),
        );
        check(
            "{cert_file: a.crt, key_file: /a.key, client: disable}",
            ClientTls::Disable,
            ForServers::default(),
        );
        check(
            "{servers: {mode: verify-full, ca_file: ca.crt, cert_file: us.crt, key_file: us.key}}",
            ClientTls::Disable,
            ForServers {
                mode: ServerTlsMode::VerifyFull,
                ca_file: Some("/etc/ca.crt".into()),
                identity: Some(("/etc/us.crt".into(), "/etc/us.key".into())),
            },
        );
    }

    #[test]
    fn what_is_not() {
        let check = |yaml: &str, problem: &str| assert_eq!(read(yaml).1, [problem], "{yaml}");
        check("{client: require}", "cert_file: is missing: TLS for clients needs a certificate");
        check("{cert_file: a}", "key_file: is missing: it belongs to cert_file");
        check("{client_ca_file: a}", "client_ca_file: needs cert_file and key_file, too");
        check(
            "{servers: {mode: allow}}",
            "servers.mode: must be one of disable, prefer, require, verify-ca, verify-full",
        );
        check(
            "{servers: {mode: verify-ca}}",
            "servers.ca_file: is missing: this mode verifies the servers' certificates",
        );
        check("{min_version: '1.1'}", "min_version: must be one of 1.2, 1.3");
    }
}
