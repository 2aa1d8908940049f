//! `state.etcd`: where several instances agree on who leads, and on the state.

use std::path::Path;
use std::time::Duration;

use super::parse::Parser;
use super::reader::{Parsed, Section};
use super::secret::{self, PASSWORD, Secret};
use super::tls::identity;
use super::units::{duration, path, text, texts};
use crate::failover::{EtcdConfig, EtcdTls};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// At least one, all distinct.
    pub endpoints: Vec<String>,
    pub lease: Duration,
    /// `None`: etcd asks nobody who he is.
    pub login: Option<(String, Secret)>,
    pub tls: EtcdTls,
}

const LEASE: Duration = Duration::from_secs(5);
/// Nobody leads for as long after a crash.
const MAX_LEASE: Duration = Duration::from_secs(60);

/// `None` also when there is no such section.
pub(super) fn etcd(parser: &Parser<'_>, etcd: &mut Section<'_>, directory: &Path) -> Option<Etcd> {
    if etcd.is_absent() {
        return None;
    }
    let endpoints = etcd.required("endpoints", endpoints);
    let lease = etcd.or("lease", LEASE, lease);
    let user = etcd.optional("user", text);
    let password = secret::read(etcd, PASSWORD, parser.sources);
    let login = match (user, password) {
        (Some(user), Some(password)) => Some((user, password)),
        (Some(_), None) => {
            etcd.problem("user", "needs password_file, password_env or password_command");
            None
        }
        (None, Some(_)) => {
            etcd.problem("user", "is missing: whose password is it?");
            None
        }
        (None, None) => None,
    };
    let ca_file = etcd.optional("ca_file", path).map(|file| directory.join(file));
    let tls = EtcdTls { ca_file, identity: identity(etcd, directory) };
    Some(Etcd { endpoints: endpoints?, lease, login, tls })
}

/// Without a slash at the end.
fn endpoints(value: &serde_yaml::Value) -> Parsed<Vec<String>> {
    let mut endpoints: Vec<String> = Vec::new();
    for text in texts(value)? {
        let expected = || format!("{text}: http://HOST:PORT or https://HOST:PORT is expected");
        let url: reqwest::Url = text.parse().map_err(|_| expected())?;
        let named = matches!(url.scheme(), "http" | "https") && url.host().is_some() && url.port().is_some();
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !named || !bare || !url.username().is_empty() || url.password().is_some() {
            return Err(expected());
        }
        let endpoint = url.as_str().trim_end_matches('/').to_owned();
        if endpoints.contains(&endpoint) {
            return Err(format!("{text} is in the list twice"));
        }
        endpoints.push(endpoint);
    }
    if endpoints.is_empty() { Err("at least one is needed".to_owned()) } else { Ok(endpoints) }
}

/// etcd counts in seconds.
fn lease(value: &serde_yaml::Value) -> Parsed<Duration> {
    let lease = duration(value)?;
    if (EtcdConfig::MIN_LEASE..=MAX_LEASE).contains(&lease) && lease.subsec_nanos() == 0 {
        return Ok(lease);
    }
    Err(format!("whole seconds from {:?} to {MAX_LEASE:?} are expected", EtcdConfig::MIN_LEASE))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{problems, read, with};
    use crate::app::config::{Etcd, Secret};
    use crate::failover::EtcdTls;

    fn document(etcd: &str) -> String {
        with("state", &format!("state: {{file: state, etcd: {etcd}}}"))
    }

    #[test]
    fn what_is_understood() {
        let usual = || Etcd {
            endpoints: vec!["http://10.0.0.1:2379".to_owned(), "https://[::1]:2379".to_owned()],
            lease: Duration::from_secs(5),
            login: None,
            tls: EtcdTls::default(),
        };
        let check = |more: &str, expected: Etcd| {
            let yaml = format!("{{endpoints: ['http://10.0.0.1:2379/', 'https://[::1]:2379'] {more}}}");
            let (config, findings) = read(&document(&yaml));
            assert_eq!(config.and_then(|config| config.etcd), Some(expected), "{yaml}: {findings:?}");
        };
        check("", usual());
        check(", lease: 1min", Etcd { lease: Duration::from_secs(60), ..usual() });
        let login = Some(("bw".to_owned(), Secret::new("from the environment")));
        check(", user: bw, password_env: KNOWN", Etcd { login, ..usual() });
        let tls = EtcdTls {
            ca_file: Some("/etc/bellwether/ca.crt".into()),
            identity: Some(("/etc/bellwether/a.crt".into(), "/a.key".into())),
        };
        check(", ca_file: ca.crt, cert_file: a.crt, key_file: /a.key", Etcd { tls, ..usual() });
        assert_eq!(read(&with("state", "state: {file: state}")).0.and_then(|config| config.etcd), None);
    }

    #[test]
    fn what_is_refused() {
        let check = |yaml: &str, expected: &str| assert_eq!(problems(&document(yaml)), [expected], "{yaml}");
        check("{}", "state.etcd.endpoints: is missing");
        check("{endpoints: []}", "state.etcd.endpoints: at least one is needed");
        for endpoint in
            ["10.0.0.1:2379", "ftp://a:1", "http://a", "http://a:1/v3", "http://u:p@a:1", "http://a:1?b"]
        {
            let expected = "http://HOST:PORT or https://HOST:PORT is expected";
            check(
                &format!("{{endpoints: ['{endpoint}']}}"),
                &format!("state.etcd.endpoints: {endpoint}: {expected}"),
            );
        }
        let twice = "state.etcd.endpoints: http://a:1/ is in the list twice";
        check("{endpoints: ['http://a:1', 'http://a:1/']}", twice);
        let with = |more: &str| format!("{{endpoints: ['http://a:1'], {more}}}");
        for lease in ["1s", "61s", "2500ms"] {
            let expected = "state.etcd.lease: whole seconds from 2s to 60s are expected";
            check(&with(&format!("lease: {lease}")), expected);
        }
        let alone = "state.etcd.user: needs password_file, password_env or password_command";
        check(&with("user: bw"), alone);
        check(&with("password_env: KNOWN"), "state.etcd.user: is missing: whose password is it?");
        check(&with("cert_file: a"), "state.etcd.key_file: is missing: it belongs to cert_file");
        check(&with("leese: 5s"), "state.etcd.leese: unknown key; did you mean lease?");
    }

    #[test]
    fn a_cluster_is_one_folder_of_keys() {
        let etcd = document("{endpoints: ['http://a:1']}");
        let yaml = etcd.replace("cluster: orders", "cluster: orders/history");
        assert_eq!(problems(&yaml), ["cluster: may not have a slash: it is part of the keys in etcd"]);
    }
}
