//! What makes a data directory a standby's: its signal file and its settings.

use std::path::Path;

use super::error::AgentError;
use super::settings::{self, Change};
use super::user::RunAs;
use super::{AUTO_CONF, STANDBY_SIGNAL, files};
use crate::pg::SlotName;

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
    let changes = [further, &settings::standby(upstream, slot.map(SlotName::as_str))].concat();
    edit_settings(&dir.join(AUTO_CONF), &changes, owner)
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
