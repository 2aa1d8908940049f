//! Whether the other instances answer, and are of one mind with this file.

use super::Finding;
use crate::app::config::Config;
use crate::app::{members, plans};
use crate::net::TlsForServers;
use crate::topology::{Durability, Member};

/// Another instance's name, and what it says, or why it is not heard.
pub(super) type Answers = Vec<(String, Result<Member, members::NotHeard>)>;

/// None where this instance is alone: `peers` are asked for nothing then but to end what is cancelled.
pub(super) async fn gather(config: &Config, tls: &TlsForServers) -> Answers {
    if plans::is_alone(config) {
        return Vec::new();
    }
    let each = config.peers.iter().map(|peer| async {
        let target = plans::peer_target(config, tls, peer);
        (
            peer.instance.clone(),
            members::hear(&config.cluster, &config.instance, &peer.instance, &target).await,
        )
    });
    futures_util::future::join_all(each).await
}

/// PURE.
pub(super) fn judge(config: &Config, answers: &Answers) -> Vec<Finding> {
    answers.iter().flat_map(|(instance, answer)| judge_one(config, instance, answer)).collect()
}

fn judge_one(config: &Config, instance: &str, answer: &Result<Member, members::NotHeard>) -> Vec<Finding> {
    let place = format!("peers ({instance})");
    let member = match answer {
        Ok(member) => member,
        Err(members::NotHeard::Away(why)) => {
            let finding = Finding::warn(place, format!("does not answer: {why}"));
            return vec![finding.mend("start it, or correct its address")];
        }
        Err(members::NotHeard::Unfit(why)) => return vec![Finding::error(place, why.clone())],
    };
    let mut findings = Vec::new();
    let own = plans::members(config);
    if member.instances != own {
        let what = format!(
            "counts {} as the cluster's instances, this file {}",
            list(&member.instances),
            list(&own)
        );
        let mend = "the same instances in all files, then `bellwether run --takeover` or a restart of each, one \
                    after the other";
        findings.push(Finding::warn(&*place, what).mend(mend));
    }
    if member.directive.durability != config.durability {
        let words = |durability| match durability {
            Durability::Async => "async",
            Durability::Quorum => "quorum",
        };
        let (theirs, ours) = (words(member.directive.durability), words(config.durability));
        let what = format!("goes by durability {theirs}, this file says {ours}");
        findings.push(Finding::error(&*place, what).mend("the same durability.mode in all files"));
    }
    findings
}

fn list(instances: &[String]) -> String {
    instances.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::judge;
    use crate::app::check::judge::tests::one_of_three;
    use crate::app::members::NotHeard;
    use crate::topology::members::tests::{member, relay};
    use crate::topology::{Directive, Durability};

    #[test]
    fn who_is_of_another_mind() {
        let config = one_of_three("");
        let mut other = member("bw3", relay("1 1 1 1"), 1);
        other.instances = vec!["bw1".to_owned()];
        other.directive = Arc::new(Directive::starting(Durability::Quorum));
        let answers = vec![
            ("bw2".to_owned(), Err(NotHeard::Away("connection refused".to_owned()))),
            ("bw3".to_owned(), Ok(other)),
            ("bw4".to_owned(), Err(NotHeard::Unfit("it is of cluster other".to_owned()))),
        ];
        let found: Vec<String> = judge(&config, &answers).iter().map(ToString::to_string).collect();
        let expected = [
            "WARN peers (bw2): does not answer: connection refused. Mend: start it, or correct its address",
            "WARN peers (bw3): counts bw1 as the cluster's instances, this file bw1, bw2, bw3. Mend: the same instances in all \
             files, then `bellwether run --takeover` or a restart of each, one after the other",
            "ERROR peers (bw3): goes by durability quorum, this file says async. Mend: the same durability.mode in \
             all files",
            "ERROR peers (bw4): it is of cluster other.",
        ];
        assert_eq!(found, expected);
    }
}
