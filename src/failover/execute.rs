//! Does what was decided, one action at a time per call, each within its limit.
//!
//! Every action looks first at what is there: done twice, it does nothing the second time. It knows nothing of
//! the election; whether its result still matters is the decision's to say.

use std::collections::HashMap;
use std::time::Duration;

use super::agent::{AgentError, Discarded, LocalServer, Rejoined, StopMode};
use super::conflicts::{self, Conflicts, Measure};
use super::decide::{Action, Finding, Patient, Promoted, StartAs, SyncNames, What};
use super::error::ActionError;
use super::sql::{row, rows, sql_names};
use crate::net::Target;
use crate::net::sql::{self, SqlConnection};
use crate::pg::wal::History;
use crate::pg::{Lsn, SlotName, SystemIdentifier, TimelineId};
use crate::topology::{NodeName, Role, SavedTail, Term};

/// A server on this host.
#[derive(Clone, Debug)]
pub struct LocalNode {
    pub server: LocalServer,
    /// What its `primary_conninfo` has to be: the relay, with the node's name as `application_name`.
    pub primary_conninfo: String,
}

#[derive(Debug)]
pub(super) struct Executor {
    pub(super) targets: HashMap<NodeName, Target>,
    pub(super) local: HashMap<NodeName, LocalNode>,
    pub(super) relay_slots: Vec<SlotName>,
    pub(super) promote_limit: Duration,
}

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const SETTING_LIMIT: Duration = Duration::from_secs(10);
/// A marker that waits longer for the relay is let go ...
const COMMIT_LIMIT: Duration = Duration::from_secs(3);
/// ... or, if it cannot be, given up, and another tried.
const MARKER_LIMIT: Duration = Duration::from_secs(8);
/// A checkpoint of large shared buffers takes its time.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);
/// The agent has its own limits below this one.
const SERVER_LIMIT: Duration = Duration::from_secs(3600);
/// A copy of many terabytes takes its time; one that stands still is ended by the agent.
const COPY_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// A stream of an earlier term is waited for so often.
const STREAM_POLLS: usize = 200;
/// Between two looks at something that PostgreSQL does asynchronously and tells nobody.
const POLL: Duration = Duration::from_millis(2);

impl Executor {
    pub(super) async fn run(&self, action: &Action) -> Result<Finding, ActionError> {
        let node = &action.node;
        let limit = self.limit(&action.what);
        let work = async {
            match &action.what {
                What::Prepare { names } => self.prepare(node, names, action.term).await,
                What::Promote { from } => self.promote(node, *from).await,
                What::Inspect { from } => self.inspect(&self.connect(node).await?, node, *from).await,
                What::Marker => self.marker(action).await,
                What::Checkpoint => {
                    rows(&self.connect(node).await?, "CHECKPOINT").await?;
                    Ok(Finding::Done)
                }
                What::DropSlot => self.drop_slot(&self.connect(node).await?).await,
                What::Start { role } => self.start(node, *role).await,
                What::Stop => {
                    self.local(node)?.server.stop(StopMode::Fast).await.map_err(agent_error)?;
                    Ok(Finding::Done)
                }
                What::StopStandby => {
                    self.local(node)?.server.stop_standby().await.map_err(agent_error)?;
                    tracing::info!(%node, "standby stopped, to be started again");
                    Ok(Finding::Done)
                }
                What::ShutDown => self.shut_down(node).await,
                What::LastWord => self.last_word(node).await,
                What::Rejoin { source } => self.rejoin(node, source).await,
                What::Locate => self.locate(node).await,
                What::Rebuild { source } => self.rebuild(node, source).await,
                What::Advise { source, patient } => {
                    advise(node, source, *patient);
                    Ok(Finding::Done)
                }
            }
        };
        tokio::time::timeout(limit, Box::pin(work)).await.unwrap_or(Err(ActionError::Timeout(limit)))
    }

    fn limit(&self, what: &What) -> Duration {
        match what {
            What::Prepare { .. }
            | What::DropSlot
            | What::Advise { .. }
            | What::Inspect { .. }
            | What::LastWord => SETTING_LIMIT,
            What::Promote { .. } => self.promote_limit,
            What::Marker => MARKER_LIMIT,
            What::Checkpoint | What::Locate => CHECKPOINT_LIMIT,
            What::Start { .. } | What::Stop | What::StopStandby | What::ShutDown => SERVER_LIMIT,
            What::Rejoin { .. } | What::Rebuild { .. } => COPY_LIMIT,
        }
    }

    /// The slot first: WAL is kept from here on, before anything else happens.
    async fn prepare(&self, node: &NodeName, names: &SyncNames, term: Term) -> Result<Finding, ActionError> {
        let sql = self.connect(node).await?;
        let slots = sql_names(&self.relay_slots);
        // On a standby a slot of ours can only be left from when it was primary: it keeps WAL, or has lost it.
        let stale = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name IN ({slots}) AND NOT active AND (pg_is_in_recovery() OR restart_lsn IS NULL)"
        );
        rows(&sql, &stale).await?;
        let create = format!(
            "SELECT pg_create_physical_replication_slot(name, true) FROM unnest(ARRAY[{slots}]) AS name \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name)"
        );
        rows(&sql, &create).await?;
        if let Err(error) = rows(&sql, &self.name_standby_slots()).await {
            tracing::info!(%node, error = &error as &dyn std::error::Error, "standbys will not synchronise logical slots");
        }
        if !names.fits(&self.sync_names(&sql, node).await?) {
            let setting = names.setting().replace('\'', "''");
            rows(&sql, &format!("ALTER SYSTEM SET synchronous_standby_names = '{setting}'")).await?;
            rows(&sql, "SELECT pg_reload_conf()").await?;
            self.await_setting(&sql, node, names).await?;
        }
        end_streams_before(&sql, node, term).await;
        // Of a candidate, which is a standby, nobody needs it.
        let end = "SELECT CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn() END";
        Ok(Finding::Prepared { end: lsn(&sql, node, end).await? })
    }

    /// A standby of 17 or later synchronises logical slots only from a primary that has a slot of its
    /// `primary_slot_name` (`validate_remote_info`, slotsync.c). Its real one is the relay's: these hold nothing back.
    fn name_standby_slots(&self) -> String {
        let names: Vec<String> = self.targets.keys().map(|node| format!("'{}'", node.slot())).collect();
        format!(
            "SELECT pg_create_physical_replication_slot(name, false) FROM unnest(ARRAY[{}]) AS name \
             WHERE current_setting('wal_level') = 'logical' \
               AND current_setting('server_version_num')::int >= 170000 \
               AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name)",
            names.join(", ")
        )
    }

    /// The reload reaches this backend by a signal.
    async fn await_setting(
        &self,
        sql: &SqlConnection,
        node: &NodeName,
        names: &SyncNames,
    ) -> Result<(), ActionError> {
        let mut found = String::new();
        for _ in 0..1000 {
            found = self.sync_names(sql, node).await?;
            if names.fits(&found) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(ActionError::SettingStays { found })
    }

    async fn sync_names(&self, sql: &SqlConnection, node: &NodeName) -> Result<String, ActionError> {
        let row = row(sql, node, "SELECT current_setting('synchronous_standby_names')").await?;
        Ok(text(node, row.try_get(0)?)?.to_owned())
    }

    /// Does not wait in `pg_promote` itself, which looks only every 100 ms (`pg_promote` in xlogfuncs.c).
    async fn promote(&self, node: &NodeName, from: TimelineId) -> Result<Finding, ActionError> {
        let sql = self.connect(node).await?;
        let (mut asked, mut waited, mut conflicts) = (false, Duration::ZERO, Conflicts::default());
        while text(node, row(&sql, node, "SELECT pg_is_in_recovery()").await?.try_get(0)?)? == "t" {
            if !asked {
                rows(&sql, "SELECT pg_promote(false)").await?;
                asked = true;
            } else if !rows(&sql, conflicts::IS_HELD_UP).await?.is_empty()
                && let Some(measure) = conflicts.measure(waited)
            {
                clear_away(&sql, node, measure).await;
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        self.inspect(&sql, node, from).await
    }

    /// The timeline's history file tells where it forked; without the right to read files, the end of replay
    /// does, which is where a promotion puts the fork.
    async fn inspect(
        &self,
        sql: &SqlConnection,
        node: &NodeName,
        from: TimelineId,
    ) -> Result<Finding, ActionError> {
        let question = "SELECT (SELECT system_identifier FROM pg_control_system()), \
                        substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), pg_last_wal_replay_lsn()";
        let row = row(sql, node, question).await?;
        let unreadable = |what: &str| ActionError::Answer { node: node.clone(), what: what.to_owned() };
        let system = text(node, row.try_get(0)?)?.parse().map_err(|_| unreadable("system identifier"))?;
        let timeline = text(node, row.try_get(1)?)?;
        let timeline = u32::from_str_radix(timeline, 16).map_err(|_| unreadable("timeline"))?;
        let timeline = TimelineId(timeline);
        let replayed: Option<Lsn> = row.try_get(2)?.and_then(|lsn| lsn.parse().ok());
        let forked = self.fork_by_history(sql, timeline, from).await;
        Ok(Finding::Promoted(Promoted {
            system: SystemIdentifier(system),
            timeline,
            switchpoint: forked.or(replayed),
        }))
    }

    async fn fork_by_history(
        &self,
        sql: &SqlConnection,
        timeline: TimelineId,
        from: TimelineId,
    ) -> Option<Lsn> {
        let read = format!("SELECT pg_read_file('pg_wal/{:08X}.history')", timeline.0);
        let row = rows(sql, &read).await.ok()?.into_iter().next()?;
        let history = History::parse(timeline, row.try_get(0).ok()??.as_bytes()).ok()?;
        history.switchpoint(from)
    }

    /// Commits as a client's transaction would; a heartbeat of the same name commits locally only.
    ///
    /// A backend that waits for a relay which does not come notices neither that we have gone nor a timeout, only a
    /// cancel (`SyncRepWaitForLSN` in syncrep.c): given up without one, each attempt would leave a backend behind. It
    /// then says that it has committed, which proves nothing.
    async fn marker(&self, action: &Action) -> Result<Finding, ActionError> {
        let node = &action.node;
        let sql = self.connect(node).await?;
        let marker = format!(
            "BEGIN READ WRITE; SET LOCAL synchronous_commit = on; \
             SELECT pg_logical_emit_message(true, 'bellwether', 'term {}'); COMMIT",
            action.term
        );
        let mut committed = std::pin::pin!(rows(&sql, &marker));
        match tokio::time::timeout(COMMIT_LIMIT, &mut committed).await {
            Ok(committed) => committed?,
            Err(_elapsed) => {
                sql::cancel(self.target(node)?, &sql, CONNECT_LIMIT).await?;
                committed.await?;
                return Err(ActionError::Timeout(COMMIT_LIMIT));
            }
        };
        flushed(&sql, node).await
    }

    /// Its own disk is enough: whether the relay has it is looked at elsewhere.
    async fn last_word(&self, node: &NodeName) -> Result<Finding, ActionError> {
        let sql = self.connect(node).await?;
        let last_word = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; \
                         SELECT pg_logical_emit_message(true, 'bellwether', 'last word'); COMMIT";
        rows(&sql, last_word).await?;
        flushed(&sql, node).await
    }

    async fn shut_down(&self, node: &NodeName) -> Result<Finding, ActionError> {
        let checkpoint = self.local(node)?.server.shut_down().await.map_err(agent_error)?;
        tracing::info!(%node, %checkpoint, "server shut down");
        Ok(Finding::ShutDown { checkpoint })
    }

    async fn drop_slot(&self, sql: &SqlConnection) -> Result<Finding, ActionError> {
        let slots = sql_names(&self.relay_slots);
        let drop = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name IN ({slots}) AND NOT active AND pg_is_in_recovery()"
        );
        rows(sql, &drop).await?;
        Ok(Finding::Done)
    }

    async fn start(&self, node: &NodeName, role: StartAs) -> Result<Finding, ActionError> {
        let server = &self.local(node)?.server;
        let Some(on_disk) = server.role_on_disk() else { return Ok(Finding::NothingThere) };
        let role = match role {
            StartAs::Standby => Role::Standby,
            StartAs::ItIs => on_disk,
        };
        match server.start(role).await {
            // Somebody is at its files: it is looked at again.
            Err(AgentError::Busy { .. }) => return Ok(Finding::Done),
            started => started.map_err(agent_error)?,
        }
        tracing::info!(%node, ?role, "server started");
        Ok(Finding::Done)
    }

    async fn rejoin(&self, node: &NodeName, source: &NodeName) -> Result<Finding, ActionError> {
        let local = self.local(node)?;
        let source = self.target(source)?;
        let rejoined = match local.server.rejoin(source, &local.primary_conninfo, &node.slot()).await {
            Err(AgentError::Busy { .. }) => return Ok(Finding::Done),
            rejoined => rejoined.map_err(agent_error)?,
        };
        let Rejoined { outcome, discarded } = rejoined;
        tracing::info!(%node, ?outcome, "server rejoined as a standby");
        Ok(back(node, discarded))
    }

    /// A restartpoint writes where replay is, and on which timeline, into the control file. The first may be due and
    /// then writes only where its checkpoint was; the second has nothing to do but that (`CreateRestartPoint`).
    async fn locate(&self, node: &NodeName) -> Result<Finding, ActionError> {
        let sql = self.connect(node).await?;
        let replayed = row(&sql, node, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')").await?;
        rows(&sql, "CHECKPOINT").await?;
        rows(&sql, "CHECKPOINT").await?;
        // A standby's timeline only grows: the highest is the one it is on.
        let timeline = "SELECT greatest((SELECT received_tli FROM pg_stat_wal_receiver), \
                        (SELECT min_recovery_end_timeline FROM pg_control_recovery()), \
                        (SELECT timeline_id FROM pg_control_checkpoint()))";
        let timeline = row(&sql, node, timeline).await?;
        let unreadable = |what: &str| ActionError::Answer { node: node.clone(), what: what.to_owned() };
        let replayed =
            text(node, replayed.try_get(0)?)?.parse().map_err(|_| unreadable("replay position"))?;
        let timeline = text(node, timeline.try_get(0)?)?.parse().map_err(|_| unreadable("timeline"))?;
        Ok(Finding::Located { timeline: TimelineId(timeline), replayed })
    }

    async fn rebuild(&self, node: &NodeName, source: &NodeName) -> Result<Finding, ActionError> {
        let local = self.local(node)?;
        let source = self.target(source)?;
        let Rejoined { discarded, .. } =
            match local.server.rebuild(source, &local.primary_conninfo, &node.slot()).await {
                Err(AgentError::Busy { .. }) => return Ok(Finding::Done),
                rebuilt => rebuilt.map_err(agent_error)?,
            };
        tracing::info!(%node, "server rebuilt: it held WAL that is not in the primary's history");
        Ok(back(node, discarded))
    }

    async fn connect(&self, node: &NodeName) -> Result<SqlConnection, ActionError> {
        Ok(sql::connect(self.target(node)?, CONNECT_LIMIT).await?)
    }

    fn target(&self, node: &NodeName) -> Result<&Target, ActionError> {
        self.targets.get(node).ok_or_else(|| ActionError::UnknownNode(node.clone()))
    }

    fn local(&self, node: &NodeName) -> Result<&LocalNode, ActionError> {
        self.local.get(node).ok_or_else(|| ActionError::NoAgent(node.clone()))
    }
}

/// Relays that have not heard of `term` take nothing more from here: what is written from now on they would count, and
/// ship, under a term that is over. They come again, and see by the setting that they are late (`relay/receiver/core`).
/// A walsender may have its answer to the old setting, too, until it has read the new one. One that cannot be ended is
/// blocked by who does not read, and has nothing newer to send.
async fn end_streams_before(sql: &SqlConnection, node: &NodeName, term: Term) {
    let earlier = format!(
        "FROM pg_stat_replication WHERE application_name ~ '^bellwether_.*_t[0-9]{{1,18}}$' \
         AND substring(application_name FROM '[0-9]+$')::int8 < {term}"
    );
    let (end, look) = (
        format!("SELECT application_name, pg_terminate_backend(pid) {earlier}"),
        format!("SELECT application_name {earlier}"),
    );
    let mut streams = rows(sql, &end).await;
    let ended = streams.as_ref().map_or(0, Vec::len);
    for _ in 0..STREAM_POLLS {
        if streams.as_ref().map_or(true, Vec::is_empty) {
            break;
        }
        tokio::time::sleep(POLL).await;
        streams = rows(sql, &look).await;
    }
    match streams {
        Ok(streams) if streams.is_empty() && ended == 0 => {}
        Ok(streams) => {
            tracing::info!(%node, %term, ended, left = streams.len(), "streams of earlier terms ended");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::info!(%node, %term, error, "streams of earlier terms cannot be ended");
        }
    }
}

/// What holds up the replay of a candidate. Without the right to (`pg_signal_backend`) it is waited for.
async fn clear_away(sql: &SqlConnection, node: &NodeName, measure: Measure) {
    match rows(sql, &measure.statement()).await {
        Ok(sessions) => {
            tracing::info!(%node, ?measure, sessions = sessions.len(), "sessions held up the promotion");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::info!(%node, ?measure, error, "sessions hold up the promotion, and cannot be ended");
        }
    }
}

async fn flushed(sql: &SqlConnection, node: &NodeName) -> Result<Finding, ActionError> {
    Ok(Finding::Committed { lsn: lsn(sql, node, "SELECT pg_current_wal_flush_lsn()").await? })
}

async fn lsn(sql: &SqlConnection, node: &NodeName, question: &str) -> Result<Lsn, ActionError> {
    let row = row(sql, node, question).await?;
    let lsn = text(node, row.try_get(0)?)?.parse();
    lsn.map_err(|error: crate::pg::ParseLsnError| ActionError::Answer {
        node: node.clone(),
        what: error.to_string(),
    })
}

fn text<'a>(node: &NodeName, value: Option<&'a str>) -> Result<&'a str, ActionError> {
    value.ok_or_else(|| ActionError::Answer { node: node.clone(), what: "NULL".to_owned() })
}

fn advise(node: &NodeName, source: &NodeName, patient: Patient) {
    match patient {
        Patient::FormerPrimary => tracing::warn!(
            %node,
            primary = %source,
            run = "stop it; pg_rewind --target-pgdata=DIR --source-server='host=PRIMARY ...' (or a new base backup); \
                   touch DIR/standby.signal; start it",
            "a former primary must be made a standby by hand: no agent runs on its host"
        ),
        Patient::Stranded => tracing::warn!(
            %node,
            primary = %source,
            run = "stop it; remove its data directory but for its configuration; take a new base backup of the \
                   primary; touch DIR/standby.signal; start it",
            "a standby cannot follow any more, since it holds WAL beyond the fork or lacks what nobody keeps, and must be \
             made anew by hand: no agent runs on its host"
        ),
    }
}

fn back(node: &NodeName, discarded: Option<Discarded>) -> Finding {
    let saved = discarded.map(|Discarded { timeline, from, to, directory }| {
        let directory = directory.display().to_string();
        tracing::info!(
            %node,
            bytes = to.bytes_since(from),
            look = format!("pg_waldump -p {directory} -t {timeline} -s {from}"),
            "WAL that is not in the primary's history was saved before it was discarded"
        );
        SavedTail { node: node.clone(), timeline, from, to, directory }
    });
    Finding::Back { saved }
}

/// With its causes: the log shows one line.
fn agent_error(error: impl std::error::Error) -> ActionError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    ActionError::Agent(text)
}
