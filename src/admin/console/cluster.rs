//! The tables about what PgBouncer does not know: nodes, WAL, elections. PURE.

use std::time::Instant;

use prometheus::proto::MetricFamily;

use super::table::{Columns, Table, Type, value};
use crate::admin::view::{ClusterView, WritesView};
use crate::relay::{SlotView, WalAvailability};
use crate::topology::{Election, Members, Outcome};

use Type::{Float8, Int4, Int8, Text};

const NODES: Columns = &[
    ("name", Text),
    ("address", Text),
    ("state", Text),
    ("role", Text),
    ("writes", Text),
    ("timeline", Int4),
    ("position", Text),
    ("lag_bytes", Int8),
    ("lag_seconds", Float8),
    ("seen_seconds_ago", Float8),
    ("why", Text),
    ("maintenance", Text),
];

pub(super) fn nodes(view: &ClusterView) -> Table {
    let rows = view.nodes.iter().map(|node| {
        let writes = match &view.directive.writes {
            _ if view.directive.primary.as_ref() != Some(&node.name) => "no".to_owned(),
            WritesView::Open => "open".to_owned(),
            WritesView::Held { reason } => format!("held: {reason}"),
        };
        vec![
            value(&node.name),
            value(&node.address),
            value(&node.state),
            node.role.map(role),
            value(writes),
            node.timeline.and_then(value),
            value(node.position),
            node.lag_bytes.and_then(value),
            node.lag_seconds.and_then(value),
            node.seen_seconds_ago.and_then(value),
            node.why.clone(),
            value(if node.maintenance { "t" } else { "f" }),
        ]
    });
    Table::new(NODES, rows)
}

fn role(role: crate::topology::Role) -> String {
    match role {
        crate::topology::Role::Primary => "primary",
        crate::topology::Role::Standby => "standby",
    }
    .to_owned()
}

pub(super) fn lag(view: &ClusterView) -> Table {
    let standbys = view.nodes.iter().filter(|node| node.lag_bytes.is_some());
    let rows = standbys.map(|node| {
        vec![value(&node.name), node.lag_bytes.and_then(value), node.lag_seconds.and_then(value)]
    });
    Table::new(&[("node", Text), ("lag_bytes", Int8), ("lag_seconds", Float8)], rows)
}

/// Named as in `pg_stat_replication`.
const FOLLOWERS: Columns = &[
    ("pid", Int4),
    ("application_name", Text),
    ("state", Text),
    ("timeline", Int4),
    ("sent_lsn", Text),
    ("write_lsn", Text),
    ("flush_lsn", Text),
    ("replay_lsn", Text),
    ("lag_bytes", Int8),
    ("lag_seconds", Float8),
];

pub(super) fn followers(view: &ClusterView) -> Table {
    let rows = view.followers.iter().map(|follower| {
        vec![
            value(follower.pid),
            value(&follower.application_name),
            value(&follower.state),
            value(follower.timeline),
            value(follower.sent),
            value(follower.write),
            value(follower.flush),
            value(follower.replay),
            value(follower.lag_bytes),
            value(follower.lag_seconds),
        ]
    });
    Table::new(FOLLOWERS, rows)
}

const WAL: Columns = &[
    ("upstream", Text),
    ("state", Text),
    ("timeline", Int4),
    ("received_lsn", Text),
    ("durable_lsn", Text),
    ("verified_lsn", Text),
    ("upstream_lsn", Text),
    ("promised_term", Int8),
    ("why", Text),
];

pub(super) fn wal(view: &ClusterView) -> Table {
    let wal = &view.wal;
    let row = vec![
        wal.upstream.node.as_ref().and_then(value),
        value(&wal.upstream.state),
        value(wal.timeline),
        value(wal.received),
        value(wal.durable),
        value(wal.verified),
        value(wal.upstream_end),
        value(wal.promised),
        wal.upstream.why.clone(),
    ];
    Table::new(WAL, [row])
}

const MEMBERS: Columns = &[
    ("instance", Text),
    ("heard_seconds_ago", Float8),
    ("term", Int8),
    ("promised_term", Int8),
    ("log_term", Int8),
    ("timeline", Int4),
    ("durable_lsn", Text),
    ("confirmed_term", Int8),
    ("instances", Text),
];

/// The others; of who was never heard the name alone.
pub(super) fn members(members: &Members, now: Instant) -> Table {
    let rows = members.others.iter().map(|(instance, heard)| {
        let Some(heard) = heard else {
            let unknown = std::iter::repeat_n(None, MEMBERS.len() - 1);
            return std::iter::once(value(instance)).chain(unknown).collect();
        };
        let member = &heard.member;
        vec![
            value(instance),
            value(now.saturating_duration_since(heard.asked_at).as_secs_f64()),
            value(member.directive.term),
            value(member.wal.promised),
            value(member.wal.log_term),
            value(member.wal.timeline),
            value(member.wal.durable),
            value(member.proxy.confirmed),
            value(member.instances.join(", ")),
        ]
    });
    Table::new(MEMBERS, rows)
}

const HISTORY: Columns = &[
    ("term", Int8),
    ("rule", Text),
    ("from_node", Text),
    ("to_node", Text),
    ("timeline", Int4),
    ("switchpoint", Text),
    ("lost_bytes", Int8),
    ("millis", Int8),
    ("outcome", Text),
    ("evidence", Text),
    ("ailment", Text),
];

pub(super) fn history(elections: &[Election]) -> Table {
    let rows = elections.iter().map(|election| {
        let outcome = match &election.outcome {
            Outcome::Running => "running".to_owned(),
            Outcome::Completed => "completed".to_owned(),
            Outcome::Failed { why } => format!("failed: {why}"),
        };
        vec![
            value(election.term),
            value(&election.rule),
            election.from.as_ref().and_then(value),
            election.to.as_ref().and_then(value),
            election.timeline.and_then(value),
            election.switchpoint.and_then(value),
            value(election.lost_bytes),
            value(election.phases.iter().map(|phase| phase.millis).sum::<u64>()),
            value(outcome),
            value(election.evidence.join(" ")),
            election.ailment.and_then(value),
        ]
    });
    Table::new(HISTORY, rows)
}

/// `bellwether_statements_total`, as rows.
pub(super) fn routes(metrics: &[MetricFamily]) -> Table {
    let family = metrics.iter().find(|family| family.name() == "bellwether_statements_total");
    let rows = family.into_iter().flat_map(MetricFamily::get_metric).map(|metric| {
        let label = |name: &str| {
            let labels = metric.get_label().iter();
            labels.filter(|label| label.name() == name).map(|label| label.value().to_owned()).next()
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let count = metric.get_counter().get_value() as u64;
        vec![label("route"), label("reason"), value(count)]
    });
    Table::new(&[("route", Text), ("reason", Text), ("statements", Int8)], rows)
}

/// Named as in `pg_replication_slots`.
const SLOTS: Columns = &[
    ("slot_name", Text),
    ("active", Text),
    ("active_pid", Int4),
    ("restart_timeline", Int4),
    ("restart_lsn", Text),
    ("wal_status", Text),
    ("retained_bytes", Int8),
    ("safe_wal_size", Int8),
];

pub(super) fn slots(slots: &[SlotView]) -> Table {
    let rows = slots.iter().map(|slot| {
        vec![
            value(&slot.name),
            value(if slot.active_pid.is_some() { "t" } else { "f" }),
            slot.active_pid.and_then(value),
            slot.restart.map(|(timeline, _)| timeline).and_then(value),
            slot.restart.map(|(_, lsn)| lsn).and_then(value),
            slot.wal_status.map(WalAvailability::as_str).and_then(value),
            value(slot.retained_bytes),
            slot.safe_wal_size.and_then(value),
        ]
    });
    Table::new(SLOTS, rows)
}
