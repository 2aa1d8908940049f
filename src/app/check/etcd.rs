//! Whether every endpoint of `state.etcd` is there, lets us in, and is the same etcd; and whose state it keeps.

use super::{Finding, cli};
use crate::app::config::Config;
use crate::app::plans;
use crate::failover::{EtcdError, Kept, Look, look};
use crate::pg::SystemIdentifier;

const PLACE: &str = "state.etcd";

/// Of the servers: the first that says which cluster it is of.
pub(super) type System<'a> = Option<(&'a str, SystemIdentifier)>;

pub(super) type Looks = Vec<(String, Result<Look, EtcdError>)>;

pub(super) async fn gather(config: &Config) -> Looks {
    match plans::etcd(config) {
        Some(etcd) => look(&etcd).await,
        None => Vec::new(),
    }
}

/// PURE.
pub(super) fn judge(config: &Config, looks: &Looks, system: System<'_>) -> Vec<Finding> {
    if looks.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut seen: Vec<(&str, &Look)> = Vec::new();
    for (endpoint, look) in looks {
        match look {
            Ok(look) => seen.push((endpoint, look)),
            Err(error) => findings.push(absence(config, endpoint, error)),
        }
    }
    findings.extend(seen.iter().filter_map(|(endpoint, look)| too_old(endpoint, look)));
    if let [(first, reference), others @ ..] = &seen[..] {
        let strangers = others.iter().filter(|(_, look)| look.cluster_id != reference.cluster_id);
        findings.extend(strangers.map(|(endpoint, _)| {
            Finding::error(PLACE, format!("{endpoint} is a member of another etcd than {first}"))
                .mend("endpoints are the members of one etcd")
        }));
    }
    findings.extend(seen.iter().find_map(|(_, look)| another_clusters(config, look, system)));
    findings.extend(few(looks));
    findings
}

fn absence(config: &Config, endpoint: &str, error: &EtcdError) -> Finding {
    let why = cli::chain(error);
    let finding = Finding::error(PLACE, format!("{endpoint}: {why}"));
    let user = config.etcd.as_ref().and_then(|etcd| etcd.login.as_ref()).map(|(user, _)| user);
    let prefix = format!("/bellwether/{}/", config.cluster);
    match (why.contains("permission denied"), user) {
        (true, Some(user)) => finding.mend(format!(
            "etcdctl role add bellwether; etcdctl role grant-permission bellwether --prefix=true readwrite {prefix}; \
             etcdctl user grant-role {user} bellwether"
        )),
        _ if why.contains("user name is empty") => finding.mend("user and password_file: etcd asks who we are"),
        _ if why.contains("404") => finding.mend("enable-grpc-gateway: true in etcd's configuration"),
        _ => finding,
    }
}

/// The JSON gateway has its place, and watches report their end, since 3.4.
fn too_old(endpoint: &str, look: &Look) -> Option<Finding> {
    let mut numbers = look.version.split('.').map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().flatten()?, numbers.next().flatten()?);
    let what = || format!("{endpoint} is etcd {}; 3.4 and later are supported", look.version);
    (version < (3, 4)).then(|| Finding::error(PLACE, what()))
}

/// Two clusters of one name in one etcd would each take the other's primary for theirs.
fn another_clusters(config: &Config, look: &Look, system: System<'_>) -> Option<Finding> {
    let (Kept::Of(kept), Some((node, system))) = (&look.state, system) else { return None };
    let what = || {
        format!(
            "what is kept under /bellwether/{}/ is of another cluster: system identifier {kept}, that of {node} is \
             {system}",
            config.cluster
        )
    };
    (*kept != system).then(|| Finding::error(PLACE, what()).mend("another name in `cluster`"))
}

/// A majority of the members has to be there.
fn few(looks: &Looks) -> Option<Finding> {
    let host = |endpoint: &str| {
        let url: Option<reqwest::Url> = endpoint.parse().ok();
        url.and_then(|url| url.host_str().map(str::to_owned))
    };
    let mut hosts: Vec<_> = looks.iter().map(|(endpoint, _)| host(endpoint)).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let what = match (looks.len(), hosts.len()) {
        (1, _) => "there is one endpoint only: while it is away nobody is promoted",
        (_, 1) => "all endpoints are on one host: while it is away nobody is promoted",
        _ => return None,
    };
    Some(Finding::warn(PLACE, what).mend("three members of etcd, on three hosts"))
}

#[cfg(test)]
mod tests {
    use super::{Kept, Look, judge};
    use crate::app::check::judge::tests::one_of_three;
    use crate::failover::EtcdError;
    use crate::pg::SystemIdentifier;

    fn look(version: &str, cluster_id: u64, state: Kept) -> Result<Look, EtcdError> {
        Ok(Look { version: version.to_owned(), cluster_id, state })
    }

    fn check(looks: Vec<(&str, Result<Look, EtcdError>)>, expected: &[&str]) {
        let config = one_of_three("");
        let looks = looks.into_iter().map(|(endpoint, look)| (endpoint.to_owned(), look)).collect();
        let findings = judge(&config, &looks, Some(("pg1", SystemIdentifier(7))));
        let found: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_whole_etcd_is_as_it_should_be() {
        let kept = || Kept::Of(SystemIdentifier(7));
        check(
            vec![
                ("http://10.0.0.1:2379", look("3.4.23", 9, kept())),
                ("http://10.0.0.2:2379", look("3.5.0", 9, Kept::Nothing)),
            ],
            &[],
        );
    }

    #[test]
    fn what_is_wrong_with_it_is_named() {
        let few = "Mend: three members of etcd, on three hosts";
        check(
            vec![("http://10.0.0.1:2379", look("3.3.9", 9, Kept::Of(SystemIdentifier(8))))],
            &[
                "ERROR state.etcd: http://10.0.0.1:2379 is etcd 3.3.9; 3.4 and later are supported.",
                "ERROR state.etcd: what is kept under /bellwether/orders/ is of another cluster: system identifier 8, \
                 that of pg1 is 7. Mend: another name in `cluster`",
                &format!(
                    "WARN state.etcd: there is one endpoint only: while it is away nobody is promoted. {few}"
                ),
            ],
        );
        let refused = EtcdError::Refused("it is another".to_owned());
        check(
            vec![
                ("http://a:1", look("3.5.1", 9, Kept::Nothing)),
                ("http://a:2", look("3.5.1", 8, Kept::Nothing)),
                ("http://a:3", Err(refused)),
            ],
            &[
                "ERROR state.etcd: http://a:3: etcd is not believed: it is another.",
                "ERROR state.etcd: http://a:2 is a member of another etcd than http://a:1. Mend: endpoints are the \
                 members of one etcd",
                &format!(
                    "WARN state.etcd: all endpoints are on one host: while it is away nobody is promoted. {few}"
                ),
            ],
        );
    }
}
