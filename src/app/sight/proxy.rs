//! [`ProxyStatus`].

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Age;
use crate::topology::{Candidate, ClientEvidence, Drained, Draining, NodeName, ProxyStatus, Term};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::app) struct ProxySight {
    confirmed: Term,
    cleared: Option<Candidate>,
    drained: Option<Drained>,
    held: usize,
    draining: Draining,
    evidence: Vec<EvidenceSight>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct EvidenceSight {
    node: NodeName,
    answered: Option<Age>,
    refused: Option<Age>,
    broken: Option<Age>,
}

impl ProxySight {
    pub(in crate::app) fn of(now: Instant, proxy: &ProxyStatus) -> ProxySight {
        let ProxyStatus { confirmed, cleared, drained, held, draining, evidence } = proxy;
        ProxySight {
            confirmed: *confirmed,
            cleared: cleared.clone(),
            drained: drained.clone(),
            held: *held,
            draining: *draining,
            evidence: evidence.iter().map(|evidence| EvidenceSight::of(now, evidence)).collect(),
        }
    }

    /// As it looks to who has it `now`.
    pub(in crate::app) fn at(self, now: Instant) -> ProxyStatus {
        ProxyStatus {
            confirmed: self.confirmed,
            cleared: self.cleared,
            drained: self.drained,
            held: self.held,
            draining: self.draining,
            evidence: self.evidence.into_iter().map(|evidence| evidence.at(now)).collect(),
        }
    }
}

impl EvidenceSight {
    fn of(now: Instant, evidence: &ClientEvidence) -> EvidenceSight {
        let age = |at: Option<Instant>| at.map(|at| Age::of(now, at));
        EvidenceSight {
            node: evidence.node.clone(),
            answered: age(evidence.answered_at),
            refused: age(evidence.refused_at),
            broken: age(evidence.broken_at),
        }
    }

    fn at(self, now: Instant) -> ClientEvidence {
        let moment = |age: Option<Age>| age.map(|age| age.at(now));
        ClientEvidence {
            node: self.node,
            answered_at: moment(self.answered),
            refused_at: moment(self.refused),
            broken_at: moment(self.broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::ProxySight;
    use crate::topology::{Candidate, ClientEvidence, Drained, Draining, ProxyStatus, Term};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn what_arrives_is_what_was_seen_and_as_old() {
        let now = Instant::now() + Duration::from_secs(100);
        let ago = |millis| Some(now - Duration::from_millis(millis));
        let node = || "pg1".parse().expect("a name");
        for draining in [Draining::Known(3), Draining::Unknown] {
            let proxy = ProxyStatus {
                confirmed: Term(4),
                cleared: Some(Candidate { node: node(), round: 2 }),
                drained: Some(Drained { round: 1, busy: 2, pinned: [("listen".to_owned(), 3)].into() }),
                held: 7,
                draining,
                evidence: vec![
                    ClientEvidence { node: node(), answered_at: ago(1), refused_at: ago(2), broken_at: None },
                    ClientEvidence { node: node(), answered_at: None, refused_at: None, broken_at: ago(3) },
                ],
            };
            let json = serde_json::to_string(&ProxySight::of(now, &proxy)).expect("JSON");
            let come: ProxySight = serde_json::from_str(&json).expect("the same JSON");
            assert_eq!(come.at(now), proxy, "{json}");
        }
    }
}
