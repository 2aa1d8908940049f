//! What ails the primary, by name. PURE.
//!
//! The verdict ([`super::PrimaryVerdict`]) says whether to act, this says why it is as it is; nothing is decided by a name,
//! and nothing waits for one. Who is silent is told apart by what is asked beside the probe: its host's kernel takes a bare
//! connection (frozen), refuses it (dead), or is not there (host gone); the other instances say whether they hear the
//! primary (the network is cut, and on which side), and other nodes answer, or do not (our own blindness).
//!
//! First-hand is what this instance has seen itself. What others say, and what follows from it, is inferred.

use std::time::Duration;

use super::{Stream, seconds};
use crate::pg::SqlState;
use crate::topology::{Ailment, Diagnosis, Evidence};

/// So long after a refusal it is a contradiction that somebody else still hears the server; before, what was said of it, and
/// what it had sent, may be on the way.
const SETTLED: Duration = Duration::from_secs(1);

/// A bare connection to the server's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    /// The kernel of its host takes connections, also for a server that stands still.
    Accepted,
    /// Nobody listens there.
    Refused,
    /// Not even that, or there is no way to its host.
    NoAnswer,
}

/// What is known of the primary at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Symptoms {
    pub(super) node: String,
    pub(super) probe: Asked,
    pub(super) knock: Option<(Knock, Duration)>,
    /// Of this instance's relay.
    pub(super) stream: Stream,
    /// When it last answered a client of this instance, if that is not too long ago.
    pub(super) clients: Option<Duration>,
    /// When a write failed for want of space, while it last answered.
    pub(super) disk_full: Option<Duration>,
    /// Other nodes that answer.
    pub(super) nodes: Vec<String>,
    pub(super) told: Told,
}

/// What the probe has come to, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Answers,
    /// So long after the answer before.
    AnswersLate(Duration),
    /// It answers, and a commit on its own disk does not end.
    CommitHangs(Duration),
    InRecovery,
    Refused(Duration),
    Rejected {
        code: SqlState,
        message: String,
        lasting: Duration,
    },
    /// For longer than is usual there.
    Silent(Duration),
    /// Not for long.
    Hesitates,
}

/// What the other instances say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Who was heard of late.
    pub heard: Vec<String>,
    /// Of them, who hears WAL from the primary.
    pub hearing: Vec<String>,
    /// Who is on the primary's host, heard or not.
    pub beside: Vec<String>,
}

/// `None`: nothing that is worth a word.
pub fn diagnose(seen: &Symptoms) -> Option<Diagnosis> {
    Some(Diagnosis { ailment: name(seen)?, evidence: evidence(seen), outlook: None })
}

fn name(seen: &Symptoms) -> Option<Ailment> {
    let full = seen.disk_full.is_some().then_some(Ailment::DiskFull);
    match &seen.probe {
        Asked::CommitHangs(_) => Some(Ailment::DiskStalled),
        Asked::AnswersLate(_) => full.or(Some(Ailment::Overloaded)),
        Asked::Answers | Asked::Hesitates => full,
        Asked::InRecovery => Some(Ailment::InRecovery),
        // A walsender has a postmaster: something else refuses in its place.
        Asked::Refused(lasting) if *lasting >= SETTLED && seen.is_alive(*lasting) => Some(Ailment::Unclear),
        // PANIC, when there was no room for WAL: its last word says why it is dead.
        Asked::Refused(_) => full.or(Some(Ailment::ProcessDead)),
        Asked::Rejected { code, .. } if *code == SqlState::CANNOT_CONNECT_NOW => {
            full.or(Some(Ailment::Restarting))
        }
        Asked::Rejected { code, .. } if *code == SqlState::TOO_MANY_CONNECTIONS => Some(Ailment::Overloaded),
        Asked::Rejected { code, .. } if *code == SqlState::DISK_FULL => Some(Ailment::DiskFull),
        Asked::Rejected { .. } => Some(Ailment::ShutOut),
        Asked::Silent(_) => Some(name_of_silence(seen)),
    }
}

fn name_of_silence(seen: &Symptoms) -> Ailment {
    let knock = seen.knock.map(|(knock, _)| knock);
    let is_alive_here = seen.is_alive_here(Duration::MAX);
    let is_heard = seen.is_alive(Duration::MAX);
    match knock {
        Some(Knock::Refused) if is_heard => Ailment::Unclear,
        // It reaches us, or takes our connections and reaches others: what is missing is its time.
        _ if is_alive_here => Ailment::Overloaded,
        Some(Knock::Accepted) if is_heard => Ailment::Overloaded,
        _ if is_heard && seen.told.hearing.iter().any(|name| !seen.told.beside.contains(name)) => {
            Ailment::NetworkCutHere
        }
        _ if is_heard => Ailment::NetworkCutThere,
        Some(Knock::Refused) => Ailment::ProcessDead,
        _ if seen.nodes.is_empty() => Ailment::Blind,
        Some(Knock::Accepted) => Ailment::ServerFrozen,
        _ if seen.beside_heard().next().is_some() => Ailment::NetworkCutThere,
        Some(Knock::NoAnswer) => Ailment::HostGone,
        None => Ailment::Unclear,
    }
}

fn evidence(seen: &Symptoms) -> Vec<Evidence> {
    let first_hand = [of_probe(seen), of_knock(seen), of_clients(seen), of_disk(seen)];
    let first_hand = first_hand.into_iter().flatten().chain([of_stream(seen), of_nodes(seen)]);
    first_hand.map(Evidence::first_hand).chain(of_others(seen).into_iter().map(Evidence::inferred)).collect()
}

fn of_probe(seen: &Symptoms) -> Option<String> {
    let node = &seen.node;
    Some(match &seen.probe {
        Asked::Answers => format!("{node} answers the probe"),
        Asked::AnswersLate(late) => format!("{node} has answered the probe after {}", seconds(*late)),
        Asked::CommitHangs(lasting) => format!(
            "{node} answers queries, but a commit on its own disk has been hanging for {}",
            seconds(*lasting)
        ),
        Asked::InRecovery => format!("{node} answers that it is in recovery"),
        Asked::Refused(lasting) => {
            format!("the probe's connection was refused (for {})", seconds(*lasting))
        }
        Asked::Rejected { code, message, lasting } if *code == SqlState::CANNOT_CONNECT_NOW => {
            format!("it has not accepted connections for {}: {message}", seconds(*lasting))
        }
        Asked::Rejected { code, message, lasting } => {
            format!("the probe has been rejected for {}: {message} ({code})", seconds(*lasting))
        }
        Asked::Silent(lasting) => format!("no answer to the probe for {}", seconds(*lasting)),
        Asked::Hesitates => return None,
    })
}

fn of_knock(seen: &Symptoms) -> Option<String> {
    let (knock, ago) = seen.knock?;
    Some(match knock {
        Knock::Accepted => format!("its host took a bare connection {} ago", seconds(ago)),
        Knock::Refused => "its host refuses a bare connection".to_owned(),
        Knock::NoAnswer => "no bare connection to its host can be made".to_owned(),
    })
}

fn of_clients(seen: &Symptoms) -> Option<String> {
    seen.clients.map(|ago| format!("it answered a client {} ago", seconds(ago)))
}

fn of_disk(seen: &Symptoms) -> Option<String> {
    seen.disk_full.map(|ago| format!("a write failed there {} ago: no space is left", seconds(ago)))
}

fn of_stream(seen: &Symptoms) -> String {
    match &seen.stream {
        Stream::Talking => "its WAL stream is alive".to_owned(),
        Stream::Silent(lasting) => format!("no byte of WAL for {}", seconds(*lasting)),
        Stream::Ended(how) => format!("the WAL stream ended: {how}"),
        Stream::None => "no WAL comes from it".to_owned(),
    }
}

fn of_nodes(seen: &Symptoms) -> String {
    if seen.nodes.is_empty() {
        return "meanwhile no other node answered".to_owned();
    }
    format!("meanwhile {} answered", seen.nodes.join(", "))
}

fn of_others(seen: &Symptoms) -> Vec<String> {
    let told = &seen.told;
    let deaf: Vec<&str> =
        told.heard.iter().filter(|name| !told.hearing.contains(name)).map(String::as_str).collect();
    let beside: Vec<&str> = seen.beside_heard().map(String::as_str).collect();
    let gone: Vec<&str> =
        told.beside.iter().filter(|name| !told.heard.contains(name)).map(String::as_str).collect();
    let mut all = Vec::new();
    if !told.hearing.is_empty() {
        all.push(format!("{} hears its WAL", told.hearing.join(", ")));
    }
    if !deaf.is_empty() {
        all.push(format!("no WAL comes from it to {}", deaf.join(", ")));
    }
    if !beside.is_empty() {
        all.push(format!("its host is there: {} answers from it", beside.join(", ")));
    }
    if !gone.is_empty() {
        all.push(format!("{} on its host is not heard either", gone.join(", ")));
    }
    all
}

impl Symptoms {
    /// By what was heard in the last `span`, here or elsewhere.
    fn is_alive(&self, span: Duration) -> bool {
        self.is_alive_here(span) || !self.told.hearing.is_empty()
    }

    fn is_alive_here(&self, span: Duration) -> bool {
        self.stream == Stream::Talking || self.clients.is_some_and(|ago| ago < span)
    }

    fn beside_heard(&self) -> impl Iterator<Item = &String> {
        self.told.beside.iter().filter(|name| self.told.heard.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Asked, Knock, Stream, Symptoms, Told, diagnose};
    use crate::pg::SqlState;
    use crate::topology::Mark;

    const SECOND: Duration = Duration::from_secs(1);

    /// A primary that answers, whose WAL comes, among nodes that answer; no instance but this one.
    fn well() -> Symptoms {
        Symptoms {
            node: "pg1".to_owned(),
            probe: Asked::Answers,
            knock: None,
            stream: Stream::Talking,
            clients: None,
            disk_full: None,
            nodes: vec!["pg2".to_owned()],
            told: Told::default(),
        }
    }

    fn rejected(code: SqlState) -> Asked {
        Asked::Rejected { code, message: "no".to_owned(), lasting: SECOND }
    }

    /// `heard; of these hearing; beside`.
    fn told(text: &str) -> Told {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let mut parts = text.split(';').map(names);
        let mut next = || parts.next().unwrap_or_default();
        Told { heard: next(), hearing: next(), beside: next() }
    }

    fn check(seen: &Symptoms, expected: &str) {
        let found = diagnose(seen);
        let name = found.as_ref().map_or("nothing", |found| found.ailment.as_str());
        assert_eq!(name, expected, "{seen:?}");
        let Some(found) = found else { return };
        let inferred = found.evidence.iter().position(|item| item.mark == Mark::Inferred);
        let first_hand = found.evidence.iter().rposition(|item| item.mark == Mark::FirstHand);
        assert!(inferred.is_none_or(|inferred| first_hand < Some(inferred)), "{found:?}");
    }

    #[test]
    fn who_answers_may_ail_all_the_same() {
        let answers = |probe| Symptoms { probe, ..well() };
        check(&well(), "nothing");
        check(&answers(Asked::Hesitates), "nothing");
        check(&answers(Asked::AnswersLate(SECOND)), "overloaded");
        check(&answers(Asked::CommitHangs(SECOND)), "disk_stalled");
        check(&answers(Asked::InRecovery), "in_recovery");
        check(&answers(rejected(SqlState::TOO_MANY_CONNECTIONS)), "overloaded");
        check(&answers(rejected(SqlState::INVALID_PASSWORD)), "shut_out");
        check(&answers(rejected(SqlState::CANNOT_CONNECT_NOW)), "restarting");
    }

    #[test]
    fn a_full_disk_explains_what_comes_of_it() {
        let full = |probe| Symptoms { probe, disk_full: Some(SECOND), ..well() };
        check(&full(Asked::Answers), "disk_full");
        check(&full(Asked::AnswersLate(SECOND)), "disk_full");
        check(&full(rejected(SqlState::CANNOT_CONNECT_NOW)), "disk_full");
        let dead = Symptoms { stream: Stream::Ended("reset".to_owned()), ..full(Asked::Refused(SECOND)) };
        check(&dead, "disk_full");
        // Not where something else is known.
        check(&full(Asked::CommitHangs(SECOND)), "disk_stalled");
        let away = Symptoms { knock: Some((Knock::NoAnswer, SECOND)), ..silent() };
        check(&Symptoms { disk_full: Some(SECOND), ..away }, "host_gone");
    }

    #[test]
    fn a_refusal() {
        let refused = |stream, told| Symptoms { probe: Asked::Refused(SECOND), stream, told, ..well() };
        let ended = || Stream::Ended("reset".to_owned());
        check(&refused(ended(), Told::default()), "process_dead");
        check(&refused(Stream::None, Told::default()), "process_dead");
        check(&refused(ended(), told("b c;;b")), "process_dead");
        // Something refuses in its place.
        check(&refused(Stream::Talking, Told::default()), "unclear");
        check(&refused(ended(), told("b c;c")), "unclear");
        let answered = |ago| Symptoms { clients: Some(ago), ..refused(ended(), Told::default()) };
        check(&answered(SECOND / 2), "unclear");
        check(&answered(SECOND * 2), "process_dead");
        // What was said of it may be older than the refusal.
        let just = |told| Symptoms { probe: Asked::Refused(SECOND / 2), ..refused(Stream::Talking, told) };
        check(&just(told("b c;c")), "process_dead");
    }

    fn silent() -> Symptoms {
        Symptoms { probe: Asked::Silent(SECOND * 3), stream: Stream::Silent(SECOND * 3), ..well() }
    }

    #[test]
    fn a_silence_for_one_instance() {
        let knocked = |knock| Symptoms { knock: Some((knock, SECOND)), ..silent() };
        check(&knocked(Knock::Accepted), "server_frozen");
        check(&knocked(Knock::Refused), "process_dead");
        check(&knocked(Knock::NoAnswer), "host_gone");
        check(&silent(), "unclear");
        // It lives: what is missing is its time.
        for knock in [Knock::Accepted, Knock::NoAnswer] {
            check(&Symptoms { stream: Stream::Talking, ..knocked(knock) }, "overloaded");
            check(&Symptoms { clients: Some(SECOND), ..knocked(knock) }, "overloaded");
        }
        check(&Symptoms { clients: Some(SECOND), ..knocked(Knock::Refused) }, "unclear");
        // Nobody else is heard either.
        let alone = |knock| Symptoms { nodes: Vec::new(), ..knocked(knock) };
        check(&alone(Knock::NoAnswer), "blind");
        check(&alone(Knock::Accepted), "blind");
        check(&alone(Knock::Refused), "process_dead");
    }

    #[test]
    fn a_silence_among_several_instances() {
        let heard = |knock, text| Symptoms { knock: Some((knock, SECOND)), told: told(text), ..silent() };
        let none = Knock::NoAnswer;
        check(&heard(none, "b c;;b"), "network_cut_there");
        check(&heard(none, "c;;b"), "host_gone");
        check(&heard(none, "c;;"), "host_gone");
        check(&heard(none, ";;b"), "host_gone");
        check(&heard(none, "b c;b;b"), "network_cut_there");
        check(&heard(none, "b c;c;b"), "network_cut_here");
        check(&heard(none, "b c;b c;b"), "network_cut_here");
        check(&heard(Knock::Accepted, "b c;;b"), "server_frozen");
        check(&heard(Knock::Accepted, "b c;c;b"), "overloaded");
        check(&heard(Knock::Refused, "b c;c;b"), "unclear");
        // Others hear what we do not: that is no blindness of theirs.
        let alone = |text| Symptoms { nodes: Vec::new(), ..heard(none, text) };
        check(&alone("b c;c;b"), "network_cut_here");
        check(&alone("b c;;b"), "blind");
    }

    #[test]
    fn what_is_seen_and_what_is_told() {
        let seen = Symptoms { knock: Some((Knock::NoAnswer, SECOND)), told: told("c;;b"), ..silent() };
        let found = diagnose(&seen).map(|found| found.evidence.iter().map(ToString::to_string).collect());
        let expected = [
            "first-hand: no answer to the probe for 3.0 s",
            "first-hand: no bare connection to its host can be made",
            "first-hand: no byte of WAL for 3.0 s",
            "first-hand: meanwhile pg2 answered",
            "inferred: no WAL comes from it to c",
            "inferred: b on its host is not heard either",
        ];
        assert_eq!(found, Some(expected.map(str::to_owned).to_vec()));
    }
}
