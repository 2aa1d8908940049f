#![expect(clippy::disallowed_methods, reason = "shell: reads the clock, spawns one task per node")]
//! Asks every node how it is, on a connection of its own, and at once when something hints that it is gone.
//!
//! One query gives all facts. On a primary that wrote nothing for a second a heartbeat follows: a transaction
//! of one WAL message, committed on the node's own disk (`synchronous_commit = local`, so that it does not wait
//! for the relay). Where clients write, their WAL is the heartbeat. It runs on a second connection and at most
//! once at a time, so that a hanging disk hangs one backend and not the probe.
//!
//! Who does not answer is asked beside that for a bare connection, which its host's kernel takes or refuses: the next
//! probe does not wait for it.
//!
//! Nothing is concluded here; `health` does that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_postgres::SimpleQueryRow;
use tokio_util::sync::CancellationToken;

use super::Tuning;
use super::health::{Facts, Knock, ProbeResult, SlotState};
use super::sql::{rows, sql_names};
use crate::net::sql::{self, SqlConnection};
use crate::net::{self, DialError, Target};
use crate::pg::{Lsn, SlotName, SqlState, SystemIdentifier, TimelineId};
use crate::topology::{NodeName, Role};

/// An answer may always take this long.
const LEAST_LIMIT: Duration = Duration::from_millis(250);

/// What was seen of a node.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) node: NodeName,
    pub(super) at: Instant,
    pub(super) what: Sign,
}

#[derive(Debug)]
pub(super) enum Sign {
    /// One answer, or the lack of one.
    Answer(ProbeResult),
    /// Beside the lack of one.
    Knock(Knock),
    /// The heartbeat's commit failed for want of space.
    DiskFull,
}

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) node: NodeName,
    pub(super) target: Target,
    pub(super) tuning: watch::Receiver<Tuning>,
    pub(super) relay_slots: Vec<SlotName>,
    /// Probe now, do not wait for the interval.
    pub(super) kick: Arc<Notify>,
}

impl Probe {
    pub(super) async fn run(self, results: mpsc::Sender<Probed>, stop: CancellationToken) {
        let mut connection = None;
        let tell = |what| results.send(Probed { node: self.node.clone(), at: Instant::now(), what });
        let mut heartbeat = Heartbeat::new();
        loop {
            let mut result = self.ask(&mut connection).await;
            match heartbeat.ended() {
                Some(Beat::Committed(sql)) => heartbeat.connection = Some(sql),
                Some(Beat::NoSpace) if tell(Sign::DiskFull).await.is_err() => return,
                Some(Beat::NoSpace | Beat::Failed) | None => {}
            }
            if let ProbeResult::Answered(facts) = &mut result {
                facts.stalled_since = heartbeat.beat(facts, &self.target);
            }
            let is_silent = matches!(result, ProbeResult::Timeout | ProbeResult::Broken { .. });
            if tell(Sign::Answer(result)).await.is_err() {
                return;
            }
            let interval = self.tuning.borrow().detect.interval;
            let knock = async {
                if is_silent {
                    // Whoever is not there to hear it has ended this task as well.
                    let _ = tell(Sign::Knock(self.knock(interval).await)).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = knock => {}
                () = self.kick.notified() => {}
                () = closed(connection.as_ref()) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// For connecting, and for the query: three attempts fit into the time after which silence counts.
    fn limit(&self) -> Duration {
        (self.tuning.borrow().detect.timeout / 3).max(LEAST_LIMIT)
    }

    /// Within the time that there is up to the next probe.
    async fn knock(&self, interval: Duration) -> Knock {
        match net::knock(&self.target.address, interval * 9 / 10).await {
            Ok(()) => Knock::Accepted,
            Err(DialError::Refused { .. }) => Knock::Refused,
            Err(_) => Knock::NoAnswer,
        }
    }

    async fn ask(&self, connection: &mut Option<SqlConnection>) -> ProbeResult {
        // A connection that the server closed says nothing about the server now: a new one does.
        let reused = match connection.take().filter(|sql| !sql.is_closed()) {
            Some(sql) => self.query(sql, connection).await,
            None => return self.ask_anew(connection).await,
        };
        match reused {
            ProbeResult::Broken { .. } => self.ask_anew(connection).await,
            result => result,
        }
    }

    async fn ask_anew(&self, connection: &mut Option<SqlConnection>) -> ProbeResult {
        match sql::connect(&self.target, self.limit()).await {
            Ok(sql) => self.query(sql, connection).await,
            Err(DialError::Refused { .. }) => ProbeResult::Refused,
            Err(DialError::Timeout { .. }) => ProbeResult::Timeout,
            Err(DialError::Rejected { error, .. }) => {
                ProbeResult::Rejected { code: error.code, message: error.message }
            }
            Err(error @ DialError::Protocol { .. }) => ProbeResult::Broken { why: error.to_string() },
        }
    }

    /// Keeps the connection when it answered.
    async fn query(&self, sql: SqlConnection, connection: &mut Option<SqlConnection>) -> ProbeResult {
        let rows = tokio::time::timeout(self.limit(), rows(&sql, &question(&self.relay_slots))).await;
        let row = match rows {
            Err(_) => return ProbeResult::Timeout,
            Ok(Ok(rows)) => rows.into_iter().next(),
            Ok(Err(error)) => return of_error(&error),
        };
        *connection = Some(sql);
        match row.as_ref().and_then(facts) {
            Some(facts) => ProbeResult::Answered(facts),
            None => ProbeResult::Broken { why: "an answer that cannot be read".to_owned() },
        }
    }
}

/// Until the server ends the connection; for ever when there is none.
async fn closed(connection: Option<&SqlConnection>) {
    match connection {
        Some(connection) => connection.closed().await,
        None => std::future::pending().await,
    }
}

fn of_error(error: &tokio_postgres::Error) -> ProbeResult {
    let Some(db) = error.as_db_error() else { return ProbeResult::Broken { why: error.to_string() } };
    let code = SqlState::parse(db.code().code().as_bytes()).unwrap_or(SqlState::INTERNAL_ERROR);
    if code == SqlState::ADMIN_SHUTDOWN {
        return ProbeResult::Broken { why: db.message().to_owned() };
    }
    ProbeResult::Rejected { code, message: db.message().to_owned() }
}

/// One row of text. Of the relays' slots a primary has all or they are to be made; a standby, none. A standby's timeline is
/// what its walreceiver is on; the control file's may be older. It was started when its checkpointer was: the crash of one
/// process restarts all (`HandleChildCrash` in postmaster.c), and leaves the postmaster's own time as it is.
fn question(slots: &[SlotName]) -> String {
    let (slots, count) = (sql_names(slots), slots.len());
    format!(
        "SELECT r, (SELECT system_identifier FROM pg_control_system()), \
         CASE WHEN r THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver), \
         (SELECT nullif(min_recovery_end_timeline, 0) FROM pg_control_recovery()), c.timeline_id)::text \
         ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END, \
         CASE WHEN r THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_flush_lsn() END, \
         coalesce((SELECT max(backend_start) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'checkpointer'), \
         pg_postmaster_start_time()), current_setting('synchronous_standby_names'), c.timeline_id, \
         (SELECT CASE WHEN r THEN bool_and(active) WHEN count(*) = {count} THEN bool_or(active) END \
         FROM pg_replication_slots WHERE slot_name IN ({slots})), \
         coalesce(pg_last_wal_receive_lsn(), '0/0'), \
         split_part(current_setting('server_version'), ' ', 1) \
         FROM pg_is_in_recovery() r, pg_control_checkpoint() c"
    )
}

fn facts(row: &SimpleQueryRow) -> Option<Facts> {
    let role = match row.try_get(0).ok()?? {
        "t" => Role::Standby,
        _ => Role::Primary,
    };
    let timeline = row.try_get(2).ok()??;
    let timeline = match role {
        Role::Standby => timeline.parse().ok()?,
        // From a WAL file's name, in hexadecimal.
        Role::Primary => u32::from_str_radix(timeline, 16).ok()?,
    };
    Some(Facts {
        role,
        system: SystemIdentifier(row.try_get(1).ok()??.parse().ok()?),
        timeline: TimelineId(timeline),
        position: row.try_get(3).ok()??.parse().ok()?,
        started_at: row.try_get(4).ok()??.to_owned(),
        synchronous_standby_names: row.try_get(5).ok()??.to_owned(),
        checkpoint_timeline: TimelineId(row.try_get(6).ok()??.parse().ok()?),
        relay_slot: match row.try_get(7).ok()? {
            None => SlotState::Absent,
            Some("t") => SlotState::Active,
            Some(_) => SlotState::Inactive,
        },
        received: row.try_get(8).ok()??.parse().ok()?,
        server_version: row.try_get(9).ok()??.to_owned(),
        stalled_since: None,
    })
}

#[derive(Debug)]
struct Running {
    since: Instant,
    task: JoinHandle<()>,
    /// Brings the connection back.
    done: oneshot::Receiver<Beat>,
}

/// The write path of a primary, exercised when nobody else does.
#[derive(Debug)]
struct Heartbeat {
    running: Option<Running>,
    connection: Option<SqlConnection>,
    position: Lsn,
    moved_at: Instant,
}

/// What became of a heartbeat.
#[derive(Debug)]
enum Beat {
    Committed(SqlConnection),
    NoSpace,
    /// Whatever the reason; the probe itself will see it.
    Failed,
}

impl Heartbeat {
    /// Without WAL for this long, a heartbeat writes some.
    const IDLE: Duration = Duration::from_secs(1);
    /// An attempt that cannot connect ends after this; one that hangs in its commit is left to hang.
    const CONNECT_LIMIT: Duration = Duration::from_secs(2);

    fn new() -> Heartbeat {
        Heartbeat { running: None, connection: None, position: Lsn::INVALID, moved_at: Instant::now() }
    }

    /// Since when a commit hangs, if one does.
    fn beat(&mut self, facts: &Facts, target: &Target) -> Option<Instant> {
        let now = Instant::now();
        if facts.role == Role::Standby || facts.position != self.position {
            self.position = facts.position;
            self.moved_at = now;
        }
        if let Some(running) = &self.running {
            return Some(running.since);
        }
        if now.saturating_duration_since(self.moved_at) >= Self::IDLE {
            let (sender, done) = oneshot::channel();
            let (connection, target) = (self.connection.take(), target.clone());
            let task = tokio::spawn(async move {
                // Nobody listens any more when the probe has ended.
                let _ = sender.send(commit_one_message(connection, target).await);
            });
            self.running = Some(Running { since: now, task, done });
        }
        None
    }

    /// The one that has ended since, if one has: also of a server that does not answer any more.
    fn ended(&mut self) -> Option<Beat> {
        let beat = match self.running.as_mut()?.done.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return None,
            ended => ended.unwrap_or(Beat::Failed),
        };
        self.running = None;
        Some(beat)
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

async fn commit_one_message(connection: Option<SqlConnection>, target: Target) -> Beat {
    let sql = match connection.filter(|sql| !sql.is_closed()) {
        Some(sql) => Ok(sql),
        None => sql::connect(&target, Heartbeat::CONNECT_LIMIT).await,
    };
    let Ok(sql) = sql else { return Beat::Failed };
    let message = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; \
                   SELECT pg_logical_emit_message(true, 'bellwether', 'heartbeat'); COMMIT";
    match rows(&sql, message).await {
        Ok(_) => Beat::Committed(sql),
        // Also as the server's last word: without room for WAL it panics (`XLogFileInitInternal` in xlog.c, called in a
        // critical section).
        Err(error) if error.code().is_some_and(|code| code.code() == "53100") => Beat::NoSpace,
        Err(_) => Beat::Failed,
    }
}
