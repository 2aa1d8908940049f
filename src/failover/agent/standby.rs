//! What makes a data directory a standby's: its signal file and its settings.

use std::path::Path;

use super::error::AgentError;
use super::user::RunAs;
use super::{AUTO_CONF, STANDBY_SIGNAL, files};
use crate::pg::SlotName;
use crate::pg::settings::{self, Change};

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

fn following<'a>(upstream: &'a str, slot: Option<&'a str>) -> [Change<'a>; 4] {
    [
        ("primary_conninfo", Some(upstream)),
        ("primary_slot_name", slot),
        ("recovery_target_timeline", Some("latest")),
        (PRIMARY_ONLY, None),
    ]
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
