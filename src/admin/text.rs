//! `bellwether status` and `history`: the same JSON, for people. PURE.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::view::{AilmentView, ClusterView, FollowerView, MemberView, NodeView, WritesView};
use crate::topology::{
    Acknowledgers, Alarm, Durability, Election, Failovers, LeftBehind, NodeName, Outcome, Restart,
    RestartedNode, Role, SavedTail,
};

/// The cluster at a glance.
pub fn status_text(view: &ClusterView) -> String {
    let durability = match view.durability {
        Durability::Async => "async",
        Durability::Quorum => "quorum",
    };
    let writes = match (&view.directive.writes, &view.directive.primary) {
        (WritesView::Open, Some(primary)) => format!("open on {primary}"),
        (WritesView::Open, None) => "open, but no primary".to_owned(),
        (WritesView::Held { reason }, _) => format!("held ({reason}), {} waiting", view.clients.held),
    };
    let upstream = &view.wal.upstream;
    let from = upstream.node.as_ref().map(|node| format!(" from {node}")).unwrap_or_default();
    let why = upstream.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut text = format!(
        "cluster {} at {}: term {}, durability {durability}\nwrites  {writes}\nwal     timeline {}, durable {}, {}{from}{why}\n\n",
        view.cluster, view.instance, view.term, view.wal.timeline, view.wal.durable, upstream.state,
    );
    if let Some(ailment) = &view.ailment {
        // In front of the empty line.
        text.pop();
        text += &ailment_text(ailment);
    }
    if !view.members.is_empty() {
        // In front of the empty line.
        text.pop();
        let leader = view.leader.as_deref().unwrap_or("nobody that is known");
        let _ = write!(
            text,
            "leader  {leader}\n{}",
            acknowledgers_line(view.durability, &view.directive.acknowledgers)
        );
    }
    if let Some(archive) = &view.wal.archive {
        // In front of the empty line.
        text.pop();
        let lag = bytes_text(archive.lag_bytes);
        let trouble = archive.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let _ = writeln!(text, "archive up to {}, {lag} behind{trouble}\n", archive.archived);
    }
    match view.failovers {
        Failovers::Automatic => {}
        Failovers::Manual | Failovers::Paused => {
            text.pop();
            let _ = writeln!(text, "failover {}\n", view.failovers);
        }
        Failovers::Spent { since_ms, .. } => {
            text.pop();
            let _ = writeln!(text, "alarm   {}, since {}\n", view.failovers, time_text(since_ms));
        }
    }
    for alarm in &view.wal.alarms {
        // In front of the empty line.
        text.pop();
        let _ = writeln!(text, "alarm   {}, since {}\n", alarm.what, time_text(alarm.raised_at_ms));
    }
    if let Some(restart) = &view.restart {
        // In front of the empty line.
        text.pop();
        let _ = writeln!(text, "restart {}\n", restart_line(restart));
    }
    let draining = match view.clients.draining {
        Some(0) => None,
        Some(count) => Some(count.to_string()),
        None => Some("an unknown number".to_owned()),
    };
    if let Some(draining) = draining {
        // In front of the empty line.
        text.pop();
        let _ = writeln!(text, "clients {draining} still at the process before this one\n");
    }
    let mut nodes = vec![
        ["NODE", "ROLE", "STATE", "TIMELINE", "POSITION", "LAG", "STREAM", "VERSION", "ADDRESS"]
            .map(str::to_owned),
    ];
    nodes.extend(view.nodes.iter().map(node_row));
    text += &table(&nodes);
    text += &members(&view.members);
    let strangers =
        view.followers.iter().filter(|f| !view.nodes.iter().any(|n| n.name.as_str() == f.application_name));
    let mut others = vec![["FOLLOWER", "PID", "STATE", "TIMELINE", "REPLAY", "LAG"].map(str::to_owned)];
    others.extend(strangers.map(follower_row));
    if others.len() > 1 {
        text += "\n";
        text += &table(&others);
    }
    text
}

/// With an empty line behind it.
fn acknowledgers_line(durability: Durability, sets: &[Acknowledgers]) -> String {
    let of = |count: usize, set: &Acknowledgers| format!("{count} of {}", set.relays.join(", "));
    let recruits = |set: &Acknowledgers| of(set.quorum().recruits(), set);
    let Some((last, before)) = sets.split_last() else { return "\n".to_owned() };
    let mut line = match durability {
        Durability::Quorum => format!("commits acknowledged by {}", of(last.quorum().acks(), last)),
        Durability::Async => format!("elections need {}", recruits(last)),
    };
    if !before.is_empty() {
        let before: Vec<String> = before.iter().map(recruits).collect();
        let _ = write!(
            line,
            "; until all have confirmed the term, an election also needs {}",
            before.join(" and ")
        );
    }
    line + "\n\n"
}

/// With an empty line behind it.
fn ailment_text(ailment: &AilmentView) -> String {
    let mut text = format!("primary {}: {}\n", ailment.name, ailment.sentence);
    for evidence in &ailment.evidence {
        let _ = writeln!(text, "        {evidence}");
    }
    if let Some(outlook) = &ailment.outlook {
        let _ = writeln!(text, "        nobody is promoted: {outlook}");
    }
    text.push('\n');
    text
}

fn members(members: &[MemberView]) -> String {
    if members.is_empty() {
        return String::new();
    }
    let heading = ["INSTANCE", "HEARD", "TERM", "PROMISED", "LOG TERM", "DURABLE", "CONFIRMED", "AGENT OF"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(members.iter().map(member_row));
    let mut text = format!("\n{}", table(&rows));
    for member in members {
        let counts = member.said.as_ref().and_then(|said| said.counts.as_ref());
        let Some(counts) = counts else { continue };
        let _ =
            writeln!(text, "{} counts other instances than this one: {}", member.instance, counts.join(", "));
    }
    text
}

fn member_row(member: &MemberView) -> [String; 8] {
    let instance = member.instance.clone();
    let Some(said) = &member.said else {
        return [instance.as_str(), "never", "-", "-", "-", "-", "-", "-"].map(str::to_owned);
    };
    let agents = said.agents.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
    [
        instance,
        format!("{:.3}s ago", said.seconds_ago),
        said.term.to_string(),
        said.promised.to_string(),
        said.log_term.to_string(),
        format!("{} on {}", said.durable, said.timeline),
        said.confirmed.to_string(),
        if agents.is_empty() { "-".to_owned() } else { agents },
    ]
}

fn node_row(node: &NodeView) -> [String; 9] {
    let role = match node.role {
        Some(Role::Primary) => "primary",
        Some(Role::Standby) => "standby",
        None => "-",
    };
    let maintenance = if node.maintenance { ", in maintenance" } else { "" };
    let state = match &node.why {
        Some(why) => format!("{}{maintenance}: {why}", node.state),
        None => format!("{}{maintenance}", node.state),
    };
    let lag = match (node.lag_bytes, node.lag_seconds) {
        (None, _) => "-".to_owned(),
        (Some(bytes), None) => bytes_text(bytes),
        (Some(bytes), Some(seconds)) => format!("{} {seconds:.3}s", bytes_text(bytes)),
    };
    [
        node.name.to_string(),
        role.to_owned(),
        state,
        node.timeline.map_or_else(|| "-".to_owned(), |timeline| timeline.to_string()),
        node.position.to_string(),
        lag,
        node.follower.clone().unwrap_or_else(|| "-".to_owned()),
        node.server_version.clone().unwrap_or_else(|| "-".to_owned()),
        node.address.clone(),
    ]
}

fn follower_row(follower: &FollowerView) -> [String; 6] {
    [
        follower.application_name.clone(),
        follower.pid.to_string(),
        follower.state.clone(),
        follower.timeline.to_string(),
        follower.replay.to_string(),
        format!("{} {:.3}s", bytes_text(follower.lag_bytes), follower.lag_seconds),
    ]
}

/// How far it is, or why it ended.
fn restart_line(restart: &Restart) -> String {
    let back = restart.nodes.iter().filter(|node| node.is_back()).count();
    let far = format!("{back} of {} restarted", restart.nodes.len());
    let turn = restart.turn().map(|node| format!(", now {}", node.node)).unwrap_or_default();
    match &restart.outcome {
        Outcome::Running => {
            let waits = restart.waits_for.as_ref().map(|why| format!("; waits for: {why}"));
            format!("{far}{turn}{}", waits.unwrap_or_default())
        }
        Outcome::Completed => far,
        Outcome::Failed { why } => format!("given up, {far}: {why}"),
    }
}

fn restart_text(restart: &Restart) -> String {
    let outcome = match &restart.outcome {
        Outcome::Running => "running".to_owned(),
        Outcome::Completed => "completed".to_owned(),
        Outcome::Failed { why } => format!("failed: {why}"),
    };
    let mut text = format!("restart  {}  {outcome}\n", time_text(restart.started_at_ms));
    for node in &restart.nodes {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}", restarted_text(node));
        for evidence in &node.evidence {
            let _ = writeln!(text, "            {evidence}");
        }
    }
    text
}

/// One line: versions, and how long each step took.
pub fn restarted_text(node: &RestartedNode) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".to_owned());
    let versions = match (&node.from_version, &node.to_version) {
        (None, None) => "not its turn".to_owned(),
        (from, to) => format!("{} -> {}", version(from), version(to)),
    };
    let phases: Vec<String> = node.phases.iter().map(|p| format!("{} {}", p.name, p.millis)).collect();
    let phases = if phases.is_empty() { String::new() } else { format!("  {} ms", phases.join(" + ")) };
    format!("{:<8}  {versions}{phases}", node.node.as_str())
}

/// Every election, restart and alarm, the oldest first.
pub fn history_text(elections: &[Election], restarts: &[Restart], alarms: &[Alarm]) -> String {
    let elections = elections.iter().map(|election| (election.started_at_ms, election_text(election)));
    let alarms = alarms.iter().map(|alarm| (alarm.raised_at_ms, alarm_text(alarm)));
    let restarts = restarts.iter().map(|restart| (restart.started_at_ms, restart_text(restart)));
    let mut entries: Vec<(u64, String)> = elections.chain(restarts).chain(alarms).collect();
    if entries.is_empty() {
        return "no elections yet\n".to_owned();
    }
    entries.sort_by_key(|(at, _)| *at);
    entries.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
}

/// The same as one list of JSON, each entry with all that the instance tells of it.
pub fn history_json(of_each_kind: [Vec<serde_json::Value>; 3]) -> String {
    let mut entries: Vec<serde_json::Value> = of_each_kind.into_iter().flatten().collect();
    let begin = |entry: &serde_json::Value| {
        let at = entry.get("started_at_ms").or_else(|| entry.get("raised_at_ms"));
        at.and_then(serde_json::Value::as_u64)
    };
    entries.sort_by_key(begin);
    serde_json::Value::from(entries).to_string() + "\n"
}

fn alarm_text(alarm: &Alarm) -> String {
    let over = alarm.over_at_ms.map_or_else(|| "lasts".to_owned(), |at| format!("over {}", time_text(at)));
    format!("alarm  {}  {}  {over}\n  {}\n", time_text(alarm.raised_at_ms), alarm.kind.as_str(), alarm.what)
}

fn time_text(unix_ms: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

fn election_text(election: &Election) -> String {
    let name =
        |node: &Option<NodeName>| node.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
    let outcome = match &election.outcome {
        Outcome::Running => "running".to_owned(),
        Outcome::Completed => "completed".to_owned(),
        Outcome::Failed { why } => format!("failed: {why}"),
    };
    let mut text = format!(
        "term {}  {}  {} -> {}  {outcome}\n  rule      {}\n",
        election.term,
        time_text(election.started_at_ms),
        name(&election.from),
        name(&election.to),
        election.rule,
    );
    if let Some(ailment) = election.ailment {
        let _ = writeln!(text, "  ailment   {ailment}: {}", ailment.sentence());
    }
    // Writing to a String cannot fail.
    if let (Some(timeline), Some(switchpoint)) = (election.timeline, election.switchpoint) {
        let _ = writeln!(text, "  timeline  {timeline} from {switchpoint}");
    }
    let _ = writeln!(text, "  lost      {}", bytes_text(election.lost_bytes));
    if election.unacknowledged_bytes > 0 {
        let left = bytes_text(election.unacknowledged_bytes);
        let _ = writeln!(text, "  left      {left} that no client was told of");
    }
    for LeftBehind { node, timeline, position } in &election.left_behind {
        let _ =
            writeln!(text, "  stranded  {node} with WAL up to {position} of timeline {timeline}: rebuilt");
    }
    for SavedTail { node, timeline, from, to, directory } in &election.saved {
        let bytes = bytes_text(to.bytes_since(*from));
        let _ = writeln!(
            text,
            "  saved     {bytes} of {node}: pg_waldump -p {directory} -t {timeline} -s {from}"
        );
    }
    if !election.phases.is_empty() {
        let total: u64 = election.phases.iter().map(|phase| phase.millis).sum();
        let phases: Vec<String> =
            election.phases.iter().map(|p| format!("{} {}", p.name, p.millis)).collect();
        let _ = writeln!(text, "  phases    {} = {total} ms", phases.join(" + "));
    }
    for (i, evidence) in election.evidence.iter().enumerate() {
        let _ = writeln!(text, "  {}  {evidence}", if i == 0 { "evidence" } else { "        " });
    }
    text
}

/// `1.5 MiB`; below 1 KiB exact.
fn bytes_text(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// Columns as wide as their widest cell, two spaces apart, nothing behind the last.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::view::cluster;
    use super::super::view::tests::{among_others, identity, snapshot};
    use super::{bytes_text, history_json, history_text, status_text};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Acknowledgers, Ailment, Alarm, AlarmKind, ArchiveStatus, Diagnosis, Draining, Durability, Election,
        Evidence, Failovers, Outcome, Phase, Restart, RestartedNode, SavedTail, Term, Writes,
    };

    #[test]
    fn status_shows_what_one_asks_first() {
        let now = Instant::now();
        let mut seen = snapshot(now);
        assert_eq!(
            status_text(&cluster(&identity(), &seen, now)),
            "\
cluster orders at bw1: term 3, durability quorum
writes  open on pg1
wal     timeline 0, durable 0/0, streaming from pg1

NODE  ROLE     STATE                         TIMELINE  POSITION  LAG           STREAM     VERSION  ADDRESS
pg1   primary  up                            2         0/3E8     -             -          15.14    10.0.0.1:5432
pg2   standby  up                            2         0/370     100 B 0.012s  streaming  15.14    10.0.0.1:5432
pg3   standby  up                            2         0/190     600 B         -          15.14    10.0.0.1:5432
pg4   -        down: refused the connection  2         0/0       -             -          -        10.0.0.1:5432
"
        );
        Arc::make_mut(&mut seen.wal).durable = Lsn(0x3E8);
        Arc::make_mut(&mut seen.wal).archive = Some(ArchiveStatus {
            archived: Lsn(0x384),
            trouble: Some("no such bucket".to_owned()),
            unknown_backups: Vec::new(),
        });
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(
            text.contains("from pg1\narchive up to 0/384, 100 B behind (no such bucket)\n\nNODE"),
            "{text}"
        );
        Arc::make_mut(&mut seen.directive).maintenance = vec!["pg4".parse().expect("a name")];
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("down, in maintenance: refused the connection"), "{text}");
        seen.failovers = Arc::new(Failovers::Paused);
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("\nfailover paused\n\nNODE"), "{text}");
        seen.failovers = Arc::new(Failovers::Spent {
            failovers: 5,
            within_seconds: 600,
            since_ms: 1_700_000_000_123,
            next_at_ms: 1_700_000_300_000,
        });
        let text = status_text(&cluster(&identity(), &seen, now));
        let alarm = "\nalarm   the primary is dead and is not replaced: 5 automatic failovers within 10m are enough \
                     (failover.budget); the next may begin at 2023-11-14T22:18:20Z; `bellwether failover` does not wait, \
                     and `bellwether resume` gives a fresh budget, since 2023-11-14T22:13:20.123Z\n\nNODE";
        assert!(text.contains(alarm), "{text}");
        Arc::make_mut(&mut seen.directive).writes = Writes::Held { reason: "electing".to_owned() };
        Arc::make_mut(&mut seen.proxy).held = 5;
        Arc::make_mut(&mut seen.proxy).draining = Draining::Known(2);
        Arc::make_mut(&mut seen.wal).followers[0].application_name = "stranger".to_owned();
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("writes  held (electing), 5 waiting\n"), "{text}");
        assert!(text.contains("\nclients 2 still at the process before this one\n\nNODE"), "{text}");
        assert!(text.contains("stranger  7    streaming  2         0/384   100 B 0.012s\n"), "{text}");
        Arc::make_mut(&mut seen.proxy).draining = Draining::Unknown;
        Arc::make_mut(&mut seen.health).diagnosis = Some(Diagnosis {
            ailment: Ailment::ServerFrozen,
            evidence: vec![Evidence::first_hand("no answer"), Evidence::inferred("bw2 hears nothing")],
            outlook: Some("automatic failover is paused".to_owned()),
        });
        let text = status_text(&cluster(&identity(), &seen, now));
        let expected = "
primary server_frozen: the server is frozen: its host takes connections, and the server is mute
        first-hand: no answer
        inferred: bw2 hears nothing
        nobody is promoted: automatic failover is paused
";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("\nclients an unknown number still at the process before"), "{text}");
    }

    #[test]
    fn status_of_several_instances() {
        let now = Instant::now();
        let mut seen = snapshot(now);
        seen.members = Arc::new(among_others(now));
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("streaming from pg1\nleader  bw1\n\nNODE"), "{text}");
        let expected = "
INSTANCE  HEARD       TERM  PROMISED  LOG TERM  DURABLE     CONFIRMED  AGENT OF
bw2       0.250s ago  3     3         2         0/3E8 on 2  3          pg2
bw3       never       -     -         -         -           -          -
bw2 counts other instances than this one: bw1, bw2, bw4
";
        assert!(text.ends_with(expected), "{text}");
        seen.leader = Arc::default();
        let by = |acks, relays: &[&str]| Acknowledgers {
            relays: relays.iter().map(|&relay| relay.to_owned()).collect(),
            acks,
        };
        let mut acknowledged_by = |sets: Vec<Acknowledgers>, expected: &str| {
            Arc::make_mut(&mut seen.directive).quorums = sets;
            let text = status_text(&cluster(&identity(), &seen, now));
            assert!(text.contains(&format!("\nleader  nobody that is known\n{expected}\nNODE")), "{text}");
        };
        acknowledged_by(Vec::new(), "");
        acknowledged_by(vec![by(2, &["bw2", "bw3"])], "commits acknowledged by 2 of bw2, bw3\n");
        acknowledged_by(
            vec![by(1, &["bw1", "bw2"]), by(2, &["bw1", "bw2", "bw3"])],
            "commits acknowledged by 2 of bw1, bw2, bw3; until all have confirmed the term, an election also needs 2 of bw1, bw2\n",
        );
        Arc::make_mut(&mut seen.directive).durability = Durability::Async;
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("\nelections need 2 of bw1, bw2, bw3; until all have"), "{text}");
    }

    #[test]
    fn history_tells_the_whole_election() {
        let election = Election {
            term: Term(2),
            started_at_ms: 1_700_000_000_123,
            rule: "F3".to_owned(),
            evidence: vec!["the stream ended".to_owned(), "3 probes failed".to_owned()],
            ailment: Some(Ailment::DiskStalled),
            from: "pg1".parse().ok(),
            to: "pg2".parse().ok(),
            timeline: Some(TimelineId(2)),
            switchpoint: Some(Lsn(0x3000_0000)),
            lost_bytes: 0,
            unacknowledged_bytes: 100,
            left_behind: Vec::new(),
            saved: vec![SavedTail {
                node: "pg1".parse().expect("a name"),
                timeline: TimelineId(1),
                from: Lsn(0x3000_0000),
                to: Lsn(0x3000_0064),
                directory: "/data/pg1.discarded/timeline-1".to_owned(),
            }],
            phases: vec![
                Phase { name: "fence".to_owned(), millis: 12 },
                Phase { name: "promote".to_owned(), millis: 230 },
            ],
            outcome: Outcome::Completed,
        };
        assert_eq!(
            history_text(&[election], &[], &[]),
            "\
term 2  2023-11-14T22:13:20.123Z  pg1 -> pg2  completed
  rule      F3
  ailment   disk_stalled: its disk is stalled: it answers, and its commits do not end
  timeline  2 from 0/30000000
  lost      0 B
  left      100 B that no client was told of
  saved     100 B of pg1: pg_waldump -p /data/pg1.discarded/timeline-1 -t 1 -s 0/30000000
  phases    fence 12 + promote 230 = 242 ms
  evidence  the stream ended
            3 probes failed
"
        );
        assert_eq!(history_text(&[], &[], &[]), "no elections yet\n");
        let alarm = Alarm {
            kind: AlarmKind::LostSlot,
            object: "pg3".to_owned(),
            what: "replication slot pg3 is lost".to_owned(),
            raised_at_ms: 1_700_000_000_123,
            over_at_ms: None,
        };
        let over = Alarm { over_at_ms: Some(1_700_000_001_000), raised_at_ms: 0, ..alarm.clone() };
        assert_eq!(
            history_text(&[], &[], &[alarm, over]),
            "\
alarm  1970-01-01T00:00:00.000Z  lost_slot  over 2023-11-14T22:13:21.000Z
  replication slot pg3 is lost

alarm  2023-11-14T22:13:20.123Z  lost_slot  lasts
  replication slot pg3 is lost
"
        );
    }

    #[test]
    fn a_restart_tells_how_far_it_is_and_why_it_ended() {
        let node = |name: &str, back: bool| RestartedNode {
            from_version: Some("15.13".to_owned()),
            to_version: back.then(|| "15.14".to_owned()),
            phases: vec![
                Phase { name: "wait".to_owned(), millis: 0 },
                Phase { name: "restart".to_owned(), millis: 812 },
            ],
            ..RestartedNode::new(name.parse().expect("a name"))
        };
        let mut restart = Restart {
            started_at_ms: 1_700_000_000_123,
            ended_at_ms: None,
            nodes: vec![
                node("pg2", true),
                node("pg3", false),
                RestartedNode::new("pg1".parse().expect("a name")),
            ],
            waits_for: Some("pg3 to be back: it is down".to_owned()),
            outcome: Outcome::Running,
        };
        let now = Instant::now();
        let mut seen = snapshot(now);
        let mut status = |restart: &Restart| {
            seen.restarts = Arc::new(vec![restart.clone()]);
            status_text(&cluster(&identity(), &seen, now))
        };
        let text = status(&restart);
        let expected =
            "from pg1\nrestart 1 of 3 restarted, now pg3; waits for: pg3 to be back: it is down\n\nNODE";
        assert!(text.contains(expected), "{text}");
        let why = "a failover began".to_owned();
        restart.outcome = Outcome::Failed { why };
        let text = status(&restart);
        assert!(text.contains("\nrestart given up, 1 of 3 restarted: a failover began\n\nNODE"), "{text}");
        assert_eq!(
            history_text(&[], &[restart.clone()], &[]),
            "\
restart  2023-11-14T22:13:20.123Z  failed: a failover began
  pg2       15.13 -> 15.14  wait 0 + restart 812 ms
  pg3       15.13 -> ?  wait 0 + restart 812 ms
  pg1       not its turn
"
        );
        restart.outcome = Outcome::Completed;
        assert!(!status(&restart).contains("restart"), "it is history");
    }

    #[test]
    fn json_tells_all_that_the_instance_tells() {
        let elections = vec![serde_json::json!({"term": 2, "started_at_ms": 7, "new": [1]})];
        let alarms = [9, 5].map(|at| serde_json::json!({"kind": "gap", "raised_at_ms": at})).to_vec();
        let text = history_json([elections, Vec::new(), alarms]);
        let entries: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
        let kinds: Vec<bool> = entries.iter().map(|entry| entry.get("kind").is_some()).collect();
        assert_eq!(kinds, [true, false, true], "{text}");
        assert_eq!(entries[1]["new"][0], 1);
        assert_eq!(history_json([Vec::new(), Vec::new(), Vec::new()]), "[]\n");
    }

    #[test]
    fn bytes() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (16 << 20, "16.0 MiB")] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
