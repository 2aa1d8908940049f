#![expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Core, Decided, Effect};
use crate::failover::command::{Command, Servers, Upkeep};
use crate::failover::decide::{Action, Automatic, Finding, Mode, Now, Phase, Policy, Primary, State, What};
use crate::failover::error::CommandError;
use crate::failover::health::{Detect, Facts, ProbeResult, SlotState, Watch};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Acknowledgers, Durability, Election, Heard, Member, Members, Node, NodeName, Outcome, ProxyStatus, Role,
    SavedTail, StreamEnd, Term, Upstream, WalStatus,
};

const SYSTEM: SystemIdentifier = SystemIdentifier(7);

fn name(name: &str) -> NodeName {
    name.parse().expect("a node name")
}

/// Term 1 is steady; pg1 is primary, and no agent is here.
fn steady() -> (Core, Now, WalStatus) {
    let nodes: Vec<Node> = ["pg1", "pg2"]
        .into_iter()
        .map(|node| Node {
            name: name(node),
            address: "127.0.0.1:5432".parse().expect("an address"),
            priority: 100,
            zone: None,
            no_failover: false,
        })
        .collect();
    let primary = Primary {
        node: name("pg1"),
        system: SYSTEM,
        timeline: TimelineId(1),
        term: Term(1),
        forks: Vec::new(),
        started_at: Some("1".to_owned()),
    };
    let state = State {
        term: Term(1),
        primary: Some(primary),
        phase: Phase::Steady,
        ..State::bootstrapping(Durability::Quorum, 0)
    };
    let watch = Watch::new(&nodes, Detect::default());
    let policy = Policy::new("bw", Mode::Automatic, Durability::Quorum);
    let core = Core::new(nodes, [name("pg1")].into(), policy, watch, state, Vec::new());
    let wal = WalStatus { system: Some(SYSTEM), timeline: TimelineId(1), ..WalStatus::starting() };
    (core, Now { instant: Instant::now(), unix_ms: 0 }, wal)
}

fn facts(role: Role) -> ProbeResult {
    ProbeResult::Answered(Facts {
        role,
        system: SYSTEM,
        timeline: TimelineId(1),
        position: Lsn(0x1000),
        received: Lsn::INVALID,
        started_at: "1".to_owned(),
        server_version: "15.1".to_owned(),
        synchronous_standby_names: "\"bellwether_bw_t1\"".to_owned(),
        checkpoint_timeline: TimelineId(1),
        relay_slot: if role == Role::Primary { SlotState::Active } else { SlotState::Absent },
        stalled_since: None,
    })
}

/// The names of a turn's effects, in their order; what people are told of the primary's ailment left out.
fn turn(core: &mut Core, now: Now, wal: &WalStatus, proxy: &ProxyStatus) -> Vec<String> {
    let effects = core.turn(now, &Arc::new(wal.clone()), proxy);
    effects.iter().filter(|effect| !matches!(effect, Effect::Diagnosed(_))).map(text).collect()
}

fn text(effect: &Effect) -> String {
    match effect {
        Effect::Fired { rule, .. } => rule.as_str().to_owned(),
        Effect::Warn { .. } => "warning".to_owned(),
        Effect::Diagnosed(_) => "diagnosed".to_owned(),
        Effect::Alarm { .. } => "alarm".to_owned(),
        Effect::Journal(state) => format!("journal {}", state.term),
        Effect::GiveUpBefore(term) => format!("give up before {term}"),
        Effect::Concluded(_) => "concluded".to_owned(),
        Effect::LeftBehind(_) => "left behind".to_owned(),
        Effect::Direct(directive) => format!("direct {}", directive.term),
        Effect::Probe(node) => format!("probe {node}"),
        Effect::Remember(history) => format!("remember {}", history.len()),
        Effect::Start(action) => format!("{} {}", action.what.name(), action.node),
    }
}

#[test]
fn durable_then_told_then_done() {
    let (mut core, now, mut wal) = steady();
    let mut proxy = ProxyStatus::default();
    core.probed(now.instant, &name("pg1"), facts(Role::Primary));
    core.probed(now.instant, &name("pg2"), facts(Role::Standby));
    assert_eq!(turn(&mut core, now, &wal, &proxy), [""; 0]);

    core.probed(now.instant, &name("pg1"), ProbeResult::Refused);
    let how = StreamEnd::Lost { why: "connection reset".to_owned() };
    wal.upstream = Upstream::Ended { node: name("pg1"), at: now.instant, how };
    let fenced = ["F1", "journal 2", "give up before 2", "direct 2", "probe pg1"];
    assert_eq!(turn(&mut core, now, &wal, &proxy), fenced);
    assert_eq!(core.history().len(), 1, "the running one");

    // Nobody can be promoted: the agent may start the old primary, which comes back.
    (wal.promised, proxy.confirmed, wal.upstream) = (Term(2), Term(2), Upstream::Idle);
    let later = |secs| Now { instant: now.instant + Duration::from_secs(secs), unix_ms: secs * 1000 };
    assert_eq!(
        turn(&mut core, now, &wal, &proxy),
        ["E1", "journal 2", "give up before 2", "probe pg1"],
        "the directive stays what it is"
    );
    assert_eq!(turn(&mut core, later(4), &wal, &proxy), ["start pg1"]);
    assert_eq!(turn(&mut core, later(4), &wal, &proxy), [""; 0], "it is under way");
    assert_eq!(turn(&mut core, later(10), &wal, &proxy), ["alarm"]);
    assert_eq!(turn(&mut core, later(11), &wal, &proxy), [""; 0], "once");
    core.probed(later(11).instant, &name("pg1"), facts(Role::Primary));
    let restored = [
        "E2",
        "journal 2",
        "give up before 2",
        "concluded",
        "direct 2",
        "probe pg1",
        "remember 1",
        "prepare pg1",
    ];
    assert_eq!(turn(&mut core, later(11), &wal, &proxy), restored);
}

#[test]
fn a_saved_tail_is_told_of_in_the_election_that_made_it_one() {
    let (mut core, now, wal) = steady();
    let wal = Arc::new(wal);
    let saved = SavedTail {
        node: name("pg2"),
        timeline: TimelineId(1),
        from: Lsn(0x1000),
        to: Lsn(0x1100),
        directory: "/data/pg2.discarded/timeline-1".to_owned(),
    };
    let what = What::Rejoin { source: name("pg1") };
    let action = Action { term: Term(1), node: name("pg2"), what };
    let back = |saved| Some(Finding::Back { saved });
    core.acted(&action, back(Some(saved.clone())), now.instant);
    assert_eq!(core.turn(now, &wal, &ProxyStatus::default()), [], "of no election");

    core.history = vec![ended(Outcome::Completed), ended(Outcome::Failed { why: String::new() })];
    core.acted(&action, back(Some(saved.clone())), now.instant);
    core.acted(&action, back(None), now.instant);
    let effects = core.turn(now, &wal, &ProxyStatus::default());
    let [Effect::Remember(history)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((&history[0].saved, &history[1].saved), (&vec![saved], &vec![]));
    assert_eq!(core.turn(now, &wal, &ProxyStatus::default()), [], "once");
}

fn ended(outcome: Outcome) -> Election {
    Election {
        term: Term(1),
        started_at_ms: 0,
        rule: "F1".to_owned(),
        evidence: Vec::new(),
        ailment: None,
        from: None,
        to: None,
        timeline: None,
        switchpoint: None,
        lost_bytes: 0,
        unacknowledged_bytes: 0,
        left_behind: Vec::new(),
        saved: Vec::new(),
        phases: Vec::new(),
        outcome,
    }
}

#[test]
fn rules_that_go_round_in_a_circle_are_told_of() {
    let (mut core, now, mut wal) = steady();
    core.probed(now.instant, &name("pg1"), ProbeResult::Refused);
    let how = StreamEnd::Lost { why: "connection reset".to_owned() };
    wal.upstream = Upstream::Ended { node: name("pg1"), at: now.instant, how };
    let (wal, proxy) = (Arc::new(wal), ProxyStatus::default());
    let mut effects = Vec::new();
    core.decide(1, now, &wal, &proxy, &mut Decided::default(), &mut effects);
    assert_eq!(effects.iter().map(text).collect::<Vec<_>>(), ["F1", "alarm"]);
    assert_eq!(core.obstacle.as_deref(), Some("the rules go round in a circle: 1 have fired at once"));
    core.decide(1, now, &wal, &proxy, &mut Decided::default(), &mut effects);
    assert_eq!((effects.len(), core.obstacle), (2, None), "over");
}

#[test]
fn what_an_operator_ordered_is_journaled() {
    let (mut core, now, wal) = steady();
    let (wal, proxy) = (Arc::new(wal), ProxyStatus::default());
    core.command(&Command::Pause, now, &wal, &proxy).expect("it is steady");
    let effects = core.turn(now, &wal, &proxy);
    let Some(Effect::Journal(state)) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(state.automatic, Automatic::Paused);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Direct(_))), "nothing new in it");
    let unknown = Command::Failover { to: Some(name("pg9")) };
    assert!(core.command(&unknown, now, &wal, &proxy).is_err());
}

#[test]
fn what_could_not_be_made_durable_is_decided_again() {
    let (mut core, now, wal) = steady();
    let proxy = ProxyStatus::default();
    core.probed(now.instant, &name("pg1"), facts(Role::Primary));
    core.probed(now.instant, &name("pg2"), facts(Role::Standby));
    assert_eq!(turn(&mut core, now, &wal, &proxy), [""; 0]);
    core.command(&Command::Failover { to: None }, now, &Arc::new(wal.clone()), &proxy).expect("it is steady");
    let fenced = ["F6", "journal 2", "give up before 2", "direct 2", "probe pg1"];
    assert_eq!(turn(&mut core, now, &wal, &proxy), fenced);
    core.retract();
    assert_eq!((core.state().term, core.history().len()), (Term(1), 0));
    assert_eq!(turn(&mut core, now, &wal, &proxy), fenced, "the order still stands");
}

#[test]
fn what_was_to_begin_behind_the_journal_is_begun_with_the_next_attempt() {
    let (mut core, now, wal) = steady();
    let proxy = ProxyStatus::default();
    core.probed(now.instant, &name("pg1"), facts(Role::Primary));
    core.probed(now.instant, &name("pg2"), facts(Role::Standby));
    assert_eq!(turn(&mut core, now, &wal, &proxy), [""; 0]);
    let ProbeResult::Answered(restarted) = facts(Role::Primary) else { panic!("an answer") };
    let restarted = Facts { started_at: "2".to_owned(), ..restarted };
    core.probed(now.instant, &name("pg1"), ProbeResult::Answered(restarted));
    let adopted = ["S2", "A1", "journal 2", "give up before 2", "direct 2", "probe pg1", "prepare pg1"];
    for _ in 0..3 {
        assert_eq!(turn(&mut core, now, &wal, &proxy), adopted);
        core.retract();
    }
}

#[test]
fn who_leads_obeys_what_was_journaled_before() {
    let (mut core, now, wal) = steady();
    let proxy = ProxyStatus::default();
    core.follow(core.state().clone());
    // A write of its own that it has taken for lost, for instance.
    let journaled = State { term: Term(2), ..core.state().clone() };
    core.lead(journaled);
    assert_eq!(turn(&mut core, now, &wal, &proxy), ["direct 2"]);
    assert_eq!(turn(&mut core, now, &wal, &proxy), [""; 0]);
}

/// `bw`, which does not lead, and `bw2`, which has been heard or not.
fn follows(heard: Option<WalStatus>) -> (Core, Now, WalStatus) {
    let (mut core, now, mut wal) = steady();
    wal.promised = Term(1);
    let quorum = Acknowledgers { relays: ["bw", "bw2", "bw3"].map(str::to_owned).to_vec(), acks: 2 };
    let primary = core.state().primary.clone().map(|primary| Primary { node: name("pg2"), ..primary });
    let state = State { quorums: vec![quorum], primary, ..core.state().clone() };
    core.follow(state);
    let member = heard.map(|wal| Member {
        instance: "bw2".to_owned(),
        directive: Arc::new(core.state().directive()),
        wal: Arc::new(wal),
        proxy: Arc::default(),
        local: Vec::new(),
        at_work: Vec::new(),
        deeds: Vec::new(),
        last_words: BTreeMap::new(),
        speaks_since: now.instant,
        instances: Vec::new(),
    });
    let heard = member.map(|member| Heard { asked_at: now.instant, member: Arc::new(member) });
    let others = [("bw2".to_owned(), heard), ("bw3".to_owned(), None)].into();
    core.heard(Arc::new(Members { own: "bw".to_owned(), others, ..Members::default() }), now.instant);
    (core, now, wal)
}

#[test]
fn who_cannot_know_whether_its_term_holds_leaves_its_servers_alone() {
    let promised = |term| WalStatus { promised: Term(term), ..WalStatus::starting() };
    for (heard, starts) in [(Some(promised(1)), true), (Some(promised(2)), false), (None, false)] {
        let (mut core, now, wal) = follows(heard.clone());
        core.probed(now.instant, &name("pg1"), ProbeResult::Refused);
        let effects = turn(&mut core, now, &wal, &ProxyStatus::default());
        let started = effects.contains(&"start pg1".to_owned());
        assert_eq!(started, starts, "{heard:?}: {effects:?}");
    }
}

/// `bw` leads, and is beside pg1; by the configuration of all, these are the instances. `bw` and `bw2` acknowledge.
fn leads_among(instances: &str) -> (Core, Now, WalStatus) {
    let (mut core, now, mut wal) = steady();
    (wal.promised, wal.log_term, wal.durable) = (Term(1), Term(1), Lsn(0x3000));
    wal.upstream = Upstream::Streaming { node: name("pg1"), since: now.instant, last_message: now.instant };
    core.policy.members = instances.split(' ').map(str::to_owned).collect();
    let quorum = Acknowledgers { relays: ["bw", "bw2"].map(str::to_owned).to_vec(), acks: 2 };
    core.lead(State { quorums: vec![quorum], ..core.state().clone() });
    core.probed(now.instant, &name("pg1"), facts(Role::Primary));
    core.probed(now.instant, &name("pg2"), facts(Role::Standby));
    (core, now, wal)
}

/// `bw2 promised confirmed: bw bw2 bw3`: who is heard, and its list; its relay streams as this one does, unless it is
/// `idle`.
fn hear(core: &mut Core, now: Now, wal: &WalStatus, said: &[&str]) {
    let heard = |said: &&str| {
        let (head, list) = said.split_once(": ").expect("a list");
        let words: Vec<&str> = head.split(' ').collect();
        let term = |at: usize| Term(words[at].parse().expect("a term"));
        let upstream = if words.contains(&"idle") { Upstream::Idle } else { wal.upstream.clone() };
        let wal = WalStatus { promised: term(1), log_term: term(1), upstream, ..wal.clone() };
        let member = Member {
            instance: words[0].to_owned(),
            directive: Arc::new(core.state().directive()),
            wal: Arc::new(wal),
            proxy: Arc::new(ProxyStatus { confirmed: term(2), ..ProxyStatus::default() }),
            local: Vec::new(),
            at_work: Vec::new(),
            deeds: Vec::new(),
            last_words: list.split(' ').map(|peer| (peer.to_owned(), now.instant)).collect(),
            speaks_since: now.instant,
            instances: list.split(' ').map(str::to_owned).collect(),
        };
        (words[0].to_owned(), Some(Heard { asked_at: now.instant, member: Arc::new(member) }))
    };
    let others = said.iter().map(heard).collect();
    let last_words_under = wal.promised;
    let members = Members { own: "bw".to_owned(), others, last_words_under, ..Members::default() };
    core.heard(Arc::new(members), now.instant);
}

/// Each set of relays that counts.
fn quorums(core: &Core) -> Vec<String> {
    core.directive().quorums.iter().map(|quorum| quorum.relays.join(" ")).collect()
}

fn confirmed(term: u64) -> ProxyStatus {
    ProxyStatus { confirmed: Term(term), ..ProxyStatus::default() }
}

/// A turn, and what it begins comes to `finding`.
fn turn_and_done(core: &mut Core, now: Now, wal: &WalStatus, finding: &Finding) -> Vec<String> {
    let proxy = confirmed(wal.promised.0);
    let effects = core.turn(now, &Arc::new(wal.clone()), &proxy);
    for effect in &effects {
        if let Effect::Start(action) = effect {
            core.acted(action, Some(finding.clone()), now.instant);
        }
    }
    effects.iter().map(text).collect()
}

const ALL: &str = "bw bw2 bw3";

#[test]
fn an_instance_more_acknowledges_once_all_lists_have_it() {
    for (said, changes) in [
        (["bw2 1 1: bw bw2 bw3", "bw3 1 1: bw bw2 bw3"], true),
        (["bw2 1 1: bw bw2", "bw3 1 1: bw bw2 bw3"], false),
        (["bw2 1 1: bw bw2 bw3", "bw3 1 1: bw bw2 bw3 bw4"], false),
        // Nobody could commit anything before they do.
        (["bw2 1 1 idle: bw bw2 bw3", "bw3 1 1 idle: bw bw2 bw3"], false),
        (["bw2 1 1 idle: bw bw2 bw3", "bw3 1 1: bw bw2 bw3"], true),
    ] {
        let (mut core, now, wal) = leads_among(ALL);
        hear(&mut core, now, &wal, &said);
        let prepared = Finding::Prepared { end: Lsn(0x2000) };
        let texts = turn_and_done(&mut core, now, &wal, &prepared);
        assert_eq!(texts.contains(&"S7".to_owned()), changes, "{said:?}: {texts:?}");
        if !changes {
            continue;
        }
        // The primary stays in use; enough of those before are still needed; and the floor is not known yet.
        let directive = core.directive().clone();
        assert_eq!((directive.term, directive.primary), (Term(2), Some(name("pg1"))));
        assert_eq!(quorums(&core), ["bw bw2", "bw2 bw3"], "pg1 is beside bw");
        assert_eq!((directive.upstream, directive.floor), (None, None));
        let texts = turn(&mut core, now, &wal, &ProxyStatus::default());
        assert!(texts.contains(&"P1".to_owned()), "{texts:?}");
        let floor = core.directive().floor.clone().expect("it is known");
        assert_eq!(floor.end, Lsn(0x2000), "where the setting of before was no more");
    }
}

/// `bw3` came, and a commit of term 2 has come through by it; of `bw2` nothing was heard but that it lives.
fn opened_under_others() -> (Core, Now, WalStatus) {
    let (mut core, now, mut wal) = leads_among(ALL);
    hear(&mut core, now, &wal, &["bw2 1 1: bw bw2 bw3", "bw3 1 1: bw bw2 bw3"]);
    turn_and_done(&mut core, now, &wal, &Finding::Prepared { end: Lsn(0x2000) });
    (wal.promised, wal.log_term) = (Term(2), Term(2));
    hear(&mut core, now, &wal, &["bw2 1 1: bw bw2 bw3", "bw3 2 2: bw bw2 bw3"]);
    let rules = turn_and_done(&mut core, now, &wal, &Finding::Committed { lsn: Lsn(0x2040) });
    assert_eq!(rules[..2], ["P1", "P2"]);
    (core, now, wal)
}

#[test]
fn those_before_count_until_they_cannot_vouch_for_the_term_before() {
    for (said, left) in [
        // It may be vouched for by its own word, and by no other.
        (&["bw2 1 1: bw bw2 bw3", "bw3 2 2: bw bw2 bw3"][..], &["bw bw2", "bw2 bw3"][..]),
        // Its sessions have not ended.
        (&["bw2 2 1: bw bw2 bw3", "bw3 2 2: bw bw2 bw3"], &["bw bw2", "bw2 bw3"]),
        (&["bw2 2 2: bw bw2 bw3", "bw3 2 2: bw bw2 bw3"], &["bw2 bw3"]),
        // It was taken out of the lists: not while another has it in its own.
        (&["bw3 2 2: bw bw2 bw3"], &["bw bw2", "bw2 bw3"]),
        (&["bw3 2 2: bw bw3"], &["bw2 bw3"]),
    ] {
        let (mut core, now, wal) = opened_under_others();
        hear(&mut core, now, &wal, said);
        let rules = turn(&mut core, now, &wal, &confirmed(2));
        assert!(rules.contains(&"P3".to_owned()) && core.is_steady(), "{rules:?}");
        assert_eq!(quorums(&core), left, "{said:?}: {rules:?}");
        assert_eq!(core.directive().term, Term(2));
    }
}

#[test]
fn a_list_that_is_taken_back_is_gone_back_to() {
    for (bw2, back) in
        [("bw2 2 2: bw bw2", true), ("bw2 2 2 idle: bw bw2", false), ("bw2 2 2: bw bw2 bw3", false)]
    {
        let (mut core, now, mut wal) = opened_under_others();
        // The new ones do not acknowledge the marker.
        wal.durable = Lsn(0x2000);
        core.policy.members = vec!["bw".to_owned(), "bw2".to_owned()];
        hear(&mut core, now, &wal, &[bw2]);
        let rules = turn(&mut core, now, &wal, &confirmed(2));
        assert_eq!(rules.contains(&"S7".to_owned()), back, "{bw2}: {rules:?}");
        let expected: (u64, &[&str]) =
            if back { (3, &["bw bw2", "bw2 bw3", "bw2"]) } else { (2, &["bw bw2", "bw2 bw3"]) };
        assert_eq!(
            (core.directive().term.0, &*quorums(&core)),
            (expected.0, &*expected.1.iter().map(|q| (*q).to_owned()).collect::<Vec<_>>())
        );
    }
}

#[test]
fn nobody_waits_for_a_node_that_was_removed() {
    let (mut core, now, wal) = steady();
    core.lead(State {
        deposed: vec![name("pg7"), name("pg2")],
        stranded: vec![name("pg8")],
        maintenance: vec![name("pg2"), name("pg9")],
        ..core.state().clone()
    });
    let rules = turn(&mut core, now, &wal, &confirmed(1));
    assert_eq!(rules[..2], ["S9", "journal 1"]);
    let State { deposed, stranded, maintenance, .. } = core.state().clone();
    assert_eq!((deposed, stranded, maintenance), (vec![name("pg2")], vec![], vec![name("pg2")]));
    assert_eq!(turn(&mut core, now, &wal, &confirmed(1)), [""; 0]);
}

/// `bw` leads among others; the agent of `bw2` is at work on pg2, or was when it was last heard.
#[test]
fn a_server_that_anybody_works_on_is_left_to_it() {
    let vouch = crate::topology::VOUCH;
    for (at_work, heard_ago, free) in [
        (vec![name("pg2")], Duration::ZERO, false),
        (vec![], Duration::ZERO, true),
        // Nobody else can say when it is done.
        (vec![name("pg2")], vouch, true),
    ] {
        let (mut core, now, wal) = leads_among(ALL);
        hear(&mut core, now, &wal, &["bw2 1 1: bw bw2", "bw3 1 1: bw bw2 bw3"]);
        let mut members = (*core.members).clone();
        for heard in members.others.values_mut().flatten() {
            heard.asked_at -= heard_ago;
            let local = vec![name("pg2")];
            heard.member = Arc::new(Member { local, at_work: at_work.clone(), ..(*heard.member).clone() });
        }
        core.heard(Arc::new(members), now.instant);
        let (wal, proxy) = (Arc::new(wal), confirmed(1));
        core.turn(now, &wal, &proxy);
        let mut order = |command: Command| core.command(&command, now, &wal, &proxy);
        let foreseen = order(Command::ForeseeRestart { servers: Servers::One(name("pg1")) });
        let busy = "pg2's server is being started or made";
        let told = foreseen.expect("it has an agent");
        assert_eq!(!told.contains(busy), free, "{at_work:?}, {heard_ago:?}: {told}");
        let maintained = order(Command::Maintenance { node: name("pg2"), upkeep: Upkeep::Begin });
        let busy = CommandError::NotNow("the agent of pg2 is at work on it".to_owned());
        assert_eq!(maintained.err(), (!free).then_some(busy));
    }
}
