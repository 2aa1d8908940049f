//! What makes a data directory a standby's: its signal file and its settings.

use std::path::Path;

use super::error::AgentError;
use super::user::RunAs;
use super::{AUTO_CONF, STANDBY_SIGNAL, files};
use crate::pg::SlotName;
use crate::pg::settings::{self, Change, RECOVERY_TARGET_DETAILS, RECOVERY_TARGETS};

/// Set by `ALTER SYSTEM` on a primary; on a standby it would wait for standbys that are not its own as soon as
/// it is promoted.
const PRIMARY_ONLY: &str = "synchronous_standby_names";

/// Of `upstream`, from its next start on. `further` settings of its own come first.
pub(super) fn become_standby(
    dir: &Path,
    upstream: &str,
    slot: Option<&SlotName>,
    further: &[Change<'_>],
    owner: Option<&RunAs>,
) -> Result<(), AgentError> {
    // First the signal: a directory that has it is not started as a primary, whatever else is missing.
    files::write_durably(&dir.join(STANDBY_SIGNAL), b"", owner)?;
    let changes = [further, &following(upstream, slot.map(SlotName::as_str))].concat();
    edit_settings(&dir.join(AUTO_CONF), &changes, owner)
}

fn following<'a>(upstream: &'a str, slot: Option<&'a str>) -> Vec<Change<'a>> {
    let standbys = [
        ("primary_conninfo", Some(upstream)),
        ("primary_slot_name", slot),
        ("recovery_target_timeline", Some("latest")),
        (PRIMARY_ONLY, None),
    ];
    // Of a cluster that was restored once. Its standby would stop there again, or promote itself.
    let targets = RECOVERY_TARGETS.into_iter().chain(RECOVERY_TARGET_DETAILS).map(|name| (name, None));
    standbys.into_iter().chain(targets).collect()
}

pub(super) fn edit_settings(
    path: &Path,
    changes: &[Change<'_>],
    owner: Option<&RunAs>,
) -> Result<(), AgentError> {
    let text = files::read_or_empty(path)?;
    let edited = settings::edit(&text, changes)
        .map_err(|source| AgentError::Settings { file: path.to_owned(), source })?;
    Ok(files::write_durably(path, edited.as_bytes(), owner)?)
}

#[cfg(test)]
mod tests {
    use super::following;
    use crate::pg::settings::edit;

    /// As `bellwether restore` and `ALTER SYSTEM` leave them.
    #[test]
    fn a_standby_follows_and_stops_nowhere() {
        let before = "recovery_target_time = '2026-11-21 10:30:00+00'\n\
                      recovery_target_action = 'promote'\n\
                      recovery_target_timeline = '2'\n\
                      recovery_target_lsn = '0/5000000'\n\
                      recovery_target_inclusive = off\n\
                      recovery_target = 'immediate'\n\
                      recovery_target_name = 'x'\n\
                      recovery_target_xid = '7'\n\
                      synchronous_standby_names = 'ANY 1 (x)'\n\
                      recovery_min_apply_delay = '1h'\n";
        let after = edit(before, &following("host=bw", Some("pg_1")));
        assert_eq!(
            after.as_deref(),
            Ok("recovery_min_apply_delay = '1h'\n\
                primary_conninfo = 'host=bw'\n\
                primary_slot_name = 'pg_1'\n\
                recovery_target_timeline = 'latest'\n")
        );
    }
}
