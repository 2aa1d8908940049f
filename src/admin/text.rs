//! `bellwether status` and `history`: the same JSON, for people. PURE.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::view::{ClusterView, FollowerView, NodeView, WritesView};
use crate::topology::{Alarm, Election, LeftBehind, NodeName, Outcome, Role, SavedTail};

/// The cluster at a glance.
pub fn status_text(view: &ClusterView) -> String {
    let durability = match view.durability {
        crate::topology::Durability::Async => "async",
        crate::topology::Durability::Quorum => "quorum",
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
    if let Some(archive) = &view.wal.archive {
        // In front of the empty line.
        text.pop();
        let lag = bytes_text(archive.lag_bytes);
        let trouble = archive.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let _ = writeln!(text, "archive up to {}, {lag} behind{trouble}\n", archive.archived);
    }
    for alarm in &view.wal.alarms {
        // In front of the empty line.
        text.pop();
        let _ = writeln!(text, "alarm   {}, since {}\n", alarm.what, time_text(alarm.raised_at_ms));
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
        ["NODE", "ROLE", "STATE", "TIMELINE", "POSITION", "LAG", "STREAM", "ADDRESS"].map(str::to_owned),
    ];
    nodes.extend(view.nodes.iter().map(node_row));
    text += &table(&nodes);
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

fn node_row(node: &NodeView) -> [String; 8] {
    let role = match node.role {
        Some(Role::Primary) => "primary",
        Some(Role::Standby) => "standby",
        None => "-",
    };
    let state = match &node.why {
        Some(why) => format!("{}: {why}", node.state),
        None => node.state.clone(),
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

/// Every election and every alarm, the oldest first.
pub fn history_text(elections: &[Election], alarms: &[Alarm]) -> String {
    let elections = elections.iter().map(|election| (election.started_at_ms, election_text(election)));
    let alarms = alarms.iter().map(|alarm| (alarm.raised_at_ms, alarm_text(alarm)));
    let mut entries: Vec<(u64, String)> = elections.chain(alarms).collect();
    if entries.is_empty() {
        return "no elections yet\n".to_owned();
    }
    entries.sort_by_key(|(at, _)| *at);
    entries.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
}

/// The same as one list of JSON, each entry with all that the instance tells of it.
pub fn history_json(elections: Vec<serde_json::Value>, alarms: Vec<serde_json::Value>) -> String {
    let mut entries: Vec<serde_json::Value> = elections.into_iter().chain(alarms).collect();
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
    use super::super::view::tests::{identity, snapshot};
    use super::{bytes_text, history_json, history_text, status_text};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Alarm, AlarmKind, ArchiveStatus, Draining, Election, Outcome, Phase, SavedTail, Term, Writes,
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

NODE  ROLE     STATE                         TIMELINE  POSITION  LAG           STREAM     ADDRESS
pg1   primary  up                            2         0/3E8     -             -          10.0.0.1:5432
pg2   standby  up                            2         0/370     100 B 0.012s  streaming  10.0.0.1:5432
pg3   standby  up                            2         0/190     600 B         -          10.0.0.1:5432
pg4   -        down: refused the connection  2         0/0       -             -          10.0.0.1:5432
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
        Arc::make_mut(&mut seen.directive).writes = Writes::Held { reason: "electing".to_owned() };
        Arc::make_mut(&mut seen.proxy).held = 5;
        Arc::make_mut(&mut seen.proxy).draining = Draining::Known(2);
        Arc::make_mut(&mut seen.wal).followers[0].application_name = "stranger".to_owned();
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("writes  held (electing), 5 waiting\n"), "{text}");
        assert!(text.contains("\nclients 2 still at the process before this one\n\nNODE"), "{text}");
        assert!(text.contains("stranger  7    streaming  2         0/384   100 B 0.012s\n"), "{text}");
        Arc::make_mut(&mut seen.proxy).draining = Draining::Unknown;
        let text = status_text(&cluster(&identity(), &seen, now));
        assert!(text.contains("\nclients an unknown number still at the process before"), "{text}");
    }

    #[test]
    fn history_tells_the_whole_election() {
        let election = Election {
            term: Term(2),
            started_at_ms: 1_700_000_000_123,
            rule: "F3".to_owned(),
            evidence: vec!["the stream ended".to_owned(), "3 probes failed".to_owned()],
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
            history_text(&[election], &[]),
            "\
term 2  2023-11-14T22:13:20.123Z  pg1 -> pg2  completed
  rule      F3
  timeline  2 from 0/30000000
  lost      0 B
  left      100 B that no client was told of
  saved     100 B of pg1: pg_waldump -p /data/pg1.discarded/timeline-1 -t 1 -s 0/30000000
  phases    fence 12 + promote 230 = 242 ms
  evidence  the stream ended
            3 probes failed
"
        );
        assert_eq!(history_text(&[], &[]), "no elections yet\n");
        let alarm = Alarm {
            kind: AlarmKind::LostSlot,
            object: "pg3".to_owned(),
            what: "replication slot pg3 is lost".to_owned(),
            raised_at_ms: 1_700_000_000_123,
            over_at_ms: None,
        };
        let over = Alarm { over_at_ms: Some(1_700_000_001_000), raised_at_ms: 0, ..alarm.clone() };
        assert_eq!(
            history_text(&[], &[alarm, over]),
            "\
alarm  1970-01-01T00:00:00.000Z  lost_slot  over 2023-11-14T22:13:21.000Z
  replication slot pg3 is lost

alarm  2023-11-14T22:13:20.123Z  lost_slot  lasts
  replication slot pg3 is lost
"
        );
    }

    #[test]
    fn json_tells_all_that_the_instance_tells() {
        let elections = vec![serde_json::json!({"term": 2, "started_at_ms": 7, "new": [1]})];
        let alarms = [9, 5].map(|at| serde_json::json!({"kind": "gap", "raised_at_ms": at})).to_vec();
        let text = history_json(elections, alarms);
        let entries: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
        let kinds: Vec<bool> = entries.iter().map(|entry| entry.get("kind").is_some()).collect();
        assert_eq!(kinds, [true, false, true], "{text}");
        assert_eq!(entries[1]["new"][0], 1);
        assert_eq!(history_json(Vec::new(), Vec::new()), "[]\n");
    }

    #[test]
    fn bytes() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (16 << 20, "16.0 MiB")] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
