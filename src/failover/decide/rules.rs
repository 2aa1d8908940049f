//! The rule table as data: number, name, condition in words. `bellwether history` and the log name the number.

/// The number of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleId {
    B1,
    A1,
    A2,
    P1,
    P2,
    P3,
    F1,
    F2,
    F3,
    F4,
    F5,
    F6,
    F7,
    E1,
    E2,
    E3,
    E4,
    E5,
    E6,
    E7,
    E8,
    E9,
    E10,
    E11,
    E12,
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    S9,
    W1,
    W2,
    W3,
    W4,
    W5,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
}

#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub id: RuleId,
    pub name: &'static str,
    pub condition: &'static str,
}

/// In the order of the phases.
pub const RULES: &[Rule] = &[
    rule(
        RuleId::B1,
        "bootstrap",
        "no state; exactly one primary, one system identifier, every node accounted for and every instance heard (or a majority of the nodes, after the bootstrap timeout)",
    ),
    rule(
        RuleId::A1,
        "adopt",
        "the recorded primary still is primary on the recorded timeline, and nobody newer is (a relay that has promised a later term is obeyed)",
    ),
    rule(
        RuleId::A2,
        "adopt successor",
        "another node is the only primary, and its history forks from the recorded timeline at or after the relay's last record",
    ),
    rule(RuleId::P1, "prepared", "synchronous_standby_names and the relay's slot are in place"),
    rule(RuleId::P2, "followed", "the relay streams from the primary (async: not waited for)"),
    rule(
        RuleId::P3,
        "open",
        "the marker transaction has committed, and the relay holds it durably (async: on the primary's disk)",
    ),
    rule(RuleId::F1, "primary gone", "connection refused and the WAL stream ended"),
    rule(
        RuleId::F2,
        "primary silent",
        "probe, WAL stream and clients hear nothing for detect.timeout while other nodes answer",
    ),
    rule(RuleId::F3, "primary stalled", "a commit on its own disk hangs for the stall timeout"),
    rule(
        RuleId::F4,
        "primary restarting",
        "it answers 57P03 for the restart timeout, or has crashed once more too often",
    ),
    rule(RuleId::F5, "primary demoted", "it answers that it is in recovery"),
    rule(RuleId::F6, "asked", "an operator asked for a failover"),
    rule(
        RuleId::F7,
        "budget spent",
        "the primary is dead, and as many automatic failovers (F1 to F5) as failover.budget allows have begun within its window: nobody is promoted until the oldest of them is past it, or a person orders a failover or resumes; the same primary may come back",
    ),
    rule(RuleId::E1, "fenced", "the relay has promised and the proxy has confirmed the term"),
    rule(
        RuleId::E2,
        "restored",
        "no candidate (or none that the proxy clears), or too few relays that promise the term, and the old primary is back, unchanged, with everything the relay has",
    ),
    rule(
        RuleId::E3,
        "candidate",
        "a standby that may be promoted streams from the relay on its timeline, and no more WAL than max_lost_bytes would be lost; one that failed before only without another, and without the old primary (E2)",
    ),
    rule(
        RuleId::E4,
        "caught up",
        "the candidate has flushed every whole record that the relay held when it promised",
    ),
    rule(
        RuleId::E5,
        "prepared",
        "synchronous_standby_names and the relay's slot are set on the candidate, still a standby, and no client's session uses it any more",
    ),
    rule(RuleId::E6, "promoted", "the candidate is out of recovery"),
    rule(
        RuleId::E7,
        "verified",
        "same system identifier, a higher timeline, and its switchpoint not before the relay's last record",
    ),
    rule(
        RuleId::E8,
        "followed",
        "the relay streams the new timeline (async: or the follow timeout has passed)",
    ),
    rule(RuleId::E9, "open", "the marker transaction has committed, and the relay holds it durably"),
    rule(
        RuleId::E10,
        "next candidate",
        "the candidate is lost, or its step failed, before it was asked to promote",
    ),
    rule(
        RuleId::E11,
        "fenced again",
        "the candidate is lost after it was asked to promote; or an instance is not heard any more that has confirmed the term and not cleared the candidate, or that alone has the log to go on with",
    ),
    rule(
        RuleId::E12,
        "not cleared",
        "the proxy has not taken the candidate from its sessions within the clear timeout, and there is another",
    ),
    rule(RuleId::S1, "primary seen", "the first probe of a primary since it was elected"),
    rule(
        RuleId::S2,
        "primary restarted",
        "its processes were started anew, be it after a crash: quorum holds writes until the relay has what its recovery brought back",
    ),
    rule(
        RuleId::S3,
        "follows again",
        "a deposed primary or a stranded standby streams from the relay on the primary's timeline",
    ),
    rule(
        RuleId::S4,
        "stranded",
        "a standby that does not follow has replayed an earlier timeline beyond its end in the primary's history: it is rebuilt",
    ),
    rule(
        RuleId::S5,
        "starved",
        "a standby has not streamed for a while, its slot has been lost for as long, and the relay keeps nothing as old as what it needs next (no archive either): it is rebuilt",
    ),
    rule(RuleId::S6, "alive again", "the primary that the budget would not have replaced is alive"),
    rule(
        RuleId::S7,
        "other instances",
        "all instances are heard and have the same list of instances, by it other relays have to acknowledge than do, and enough of these stream: in the next term they do, under the same primary",
    ),
    rule(
        RuleId::S8,
        "settled",
        "of the relays that acknowledged before the last change so many have promised the term (or are in no list any more), and all proxies have confirmed it, that nobody is vouched for by an earlier one: they do not count any more",
    ),
    rule(
        RuleId::S9,
        "removed",
        "a node that is deposed, stranded or in maintenance is not in the configuration any more: nobody waits for it",
    ),
    rule(RuleId::W1, "switchover asked", "an operator asked for a switchover, and a standby is fit for it"),
    rule(
        RuleId::W2,
        "checkpointed",
        "the primary has written a checkpoint, and the successor has what it needs in the next term: new transactions are held from here on",
    ),
    rule(
        RuleId::W3,
        "drained",
        "no transaction is open at the primary and its successor (or the drain limit has passed, and the operator wants what is left cut)",
    ),
    rule(
        RuleId::W4,
        "handed over",
        "the primary is shut down in order, and relay and successor hold the record of its last checkpoint (without an agent: what it had written when it was drained)",
    ),
    rule(
        RuleId::W5,
        "given up",
        "the primary restarts or is lost, the successor is unfit, or a step takes too long: the old primary goes on, started again if it must",
    ),
    rule(RuleId::R1, "restart asked", "an operator asked for a restart of one server, or of all of them"),
    rule(
        RuleId::R2,
        "restart of a standby",
        "it is its turn, it follows, another standby could take over meanwhile (if there is another), and nothing else is wrong or under way",
    ),
    rule(
        RuleId::R3,
        "restartpoint written",
        "or it cannot be had: no new transaction begins at the standby from here on",
    ),
    rule(
        RuleId::R4,
        "standby at rest",
        "no transaction is open there (or the drain limit has passed, and the operator wants what is left cut), and R2 still holds: its agent stops it, and starts it",
    ),
    rule(
        RuleId::R5,
        "back",
        "its postmaster's start time changed, it streams on the primary's timeline, and has little to replay",
    ),
    rule(
        RuleId::R6,
        "restart of the primary",
        "it is its turn, and a standby (one that was restarted, where any was) is fit to take over: a switchover follows",
    ),
    rule(
        RuleId::R7,
        "restart handed over",
        "that standby is the primary: the former one comes back as a standby (R5)",
    ),
    rule(
        RuleId::R8,
        "restart given up",
        "an operator cancelled it or paused failover, a server did not come back in time, or a transaction did not end; any rule that begins a failover, or ends its switchover badly, ends it as well",
    ),
    rule(RuleId::R9, "restart over", "all that were to be restarted are back"),
];

const fn rule(id: RuleId, name: &'static str, condition: &'static str) -> Rule {
    Rule { id, name, condition }
}

impl RuleId {
    pub fn as_str(self) -> &'static str {
        match self {
            RuleId::B1 => "B1",
            RuleId::A1 => "A1",
            RuleId::A2 => "A2",
            RuleId::P1 => "P1",
            RuleId::P2 => "P2",
            RuleId::P3 => "P3",
            RuleId::F1 => "F1",
            RuleId::F2 => "F2",
            RuleId::F3 => "F3",
            RuleId::F4 => "F4",
            RuleId::F5 => "F5",
            RuleId::F6 => "F6",
            RuleId::F7 => "F7",
            RuleId::E1 => "E1",
            RuleId::E2 => "E2",
            RuleId::E3 => "E3",
            RuleId::E4 => "E4",
            RuleId::E5 => "E5",
            RuleId::E6 => "E6",
            RuleId::E7 => "E7",
            RuleId::E8 => "E8",
            RuleId::E9 => "E9",
            RuleId::E10 => "E10",
            RuleId::E11 => "E11",
            RuleId::E12 => "E12",
            RuleId::S1 => "S1",
            RuleId::S2 => "S2",
            RuleId::S3 => "S3",
            RuleId::S4 => "S4",
            RuleId::S5 => "S5",
            RuleId::S6 => "S6",
            RuleId::S7 => "S7",
            RuleId::S8 => "S8",
            RuleId::S9 => "S9",
            RuleId::W1 => "W1",
            RuleId::W2 => "W2",
            RuleId::W3 => "W3",
            RuleId::W4 => "W4",
            RuleId::W5 => "W5",
            RuleId::R1 => "R1",
            RuleId::R2 => "R2",
            RuleId::R3 => "R3",
            RuleId::R4 => "R4",
            RuleId::R5 => "R5",
            RuleId::R6 => "R6",
            RuleId::R7 => "R7",
            RuleId::R8 => "R8",
            RuleId::R9 => "R9",
        }
    }

    pub fn rule(self) -> Option<&'static Rule> {
        RULES.iter().find(|rule| rule.id == self)
    }
}
