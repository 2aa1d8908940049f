//! Allocates segments ahead of need, on a thread of its own, so that the log never waits for the file system's
//! allocator.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::files::{Files, SPARE_PREFIX};
use super::writer::Spare;
use crate::pg::wal::WalSegmentSize;

/// How often a full disk is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// One waits in the channel and one in the thread's hands: two segments ahead. The thread ends with the
/// receiver.
pub(super) fn start(files: Files, size: WalSegmentSize) -> Receiver<Spare> {
    let (give, take) = sync_channel(1);
    let run = move || {
        for number in 1_u64.. {
            let name = format!("{SPARE_PREFIX}{number}");
            let spare = files.allocate(&name, size).map(|()| name);
            let failed = spare.is_err();
            if give.send(spare).is_err() {
                return;
            }
            if failed {
                std::thread::sleep(RETRY);
            }
        }
    };
    let spawned = std::thread::Builder::new().name("wal-allocate".to_owned()).spawn(run);
    if let Err(error) = spawned {
        // The receiver finds the channel closed.
        tracing::error!(%error, "cannot start the thread that allocates WAL segments");
    }
    take
}
