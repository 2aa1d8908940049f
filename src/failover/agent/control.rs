//! What a stopped server's files say about it: `global/pg_control` (pg_control.h) and `postmaster.pid`
//! (pidfile.h). Pure readers; the first fields of `ControlFileData` have not moved since PostgreSQL 9.

use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// `DBState`: what the server was doing when it last wrote its control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl DbState {
    /// A server in one of these states last ran as a standby; one in any other may have written WAL of its own.
    pub(super) fn is_recovery(self) -> bool {
        matches!(self, DbState::ShutDownInRecovery | DbState::InArchiveRecovery)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFile {
    pub system: SystemIdentifier,
    pub state: DbState,
    /// Where the record of the last checkpoint begins.
    pub checkpoint: Lsn,
    /// Of the last checkpoint.
    pub timeline: TimelineId,
    /// Of `minRecoveryPoint`, to which a standby has replayed at least; 0 when there is none, or where the layout is
    /// not known.
    pub min_recovery_timeline: TimelineId,
}

/// `pg_control_version` of the layouts in which `minRecoveryPointTLI` is at the same place: PostgreSQL 12 to 18.
const KNOWN_LAYOUTS: std::ops::RangeInclusive<u32> = 1201..=1800;

/// The checksum is the last field, behind some that not all majors have: at 288 up to PostgreSQL 17.
const CHECKSUM_AT: std::ops::Range<usize> = 280..320;

impl ControlFile {
    /// Of a server that runs, and may be writing it: `None`, too, unless the checksum is right (as in `get_controlfile`).
    pub(super) fn parse_whole(bytes: &[u8]) -> Option<ControlFile> {
        let is_sum = |at: usize| {
            let sum = bytes.get(at..at + 4);
            sum.is_some_and(|sum| sum == crc32c::crc32c(&bytes[..at]).to_ne_bytes())
        };
        ControlFile::parse(bytes).filter(|_| CHECKSUM_AT.step_by(4).any(is_sum))
    }

    /// `None`: cut short, or of a layout we do not know.
    pub(super) fn parse(bytes: &[u8]) -> Option<ControlFile> {
        let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let system = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
        let state = match u32_at(16)? {
            0 => DbState::StartingUp,
            1 => DbState::ShutDown,
            2 => DbState::ShutDownInRecovery,
            3 => DbState::ShuttingDown,
            4 => DbState::InCrashRecovery,
            5 => DbState::InArchiveRecovery,
            6 => DbState::InProduction,
            _ => return None,
        };
        let checkpoint = Lsn(u64::from_ne_bytes(bytes.get(32..40)?.try_into().ok()?));
        // checkPointCopy begins at 40: redo (8 bytes), ThisTimeLineID.
        let timeline = TimelineId(u32_at(48)?);
        // checkPointCopy ends at 128; unloggedLSN and minRecoveryPoint (8 bytes each) follow it.
        let known = KNOWN_LAYOUTS.contains(&u32_at(8)?);
        let min_recovery_timeline = TimelineId(if known { u32_at(144)? } else { 0 });
        Some(ControlFile {
            system: SystemIdentifier(system),
            state,
            checkpoint,
            timeline,
            min_recovery_timeline,
        })
    }
}

/// `postmaster.pid`: one value per line; the file grows line by line while the server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub(super) pid: i32,
}

impl PidFile {
    pub(super) fn parse(text: &str) -> Option<PidFile> {
        // A standalone backend (`postgres --single`) writes its own pid negated (CreateLockFile, miscinit.c).
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        let pid = pid.checked_abs().filter(|pid| *pid > 0)?;
        Some(PidFile { pid })
    }
}

#[cfg(test)]
mod tests {
    use super::{ControlFile, DbState, PidFile};
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};

    #[test]
    fn a_control_file_tells_state_and_timeline() {
        let mut bytes = [0u8; 512];
        bytes[..8].copy_from_slice(&7_000_000_000_000_000_001u64.to_ne_bytes());
        bytes[16..20].copy_from_slice(&6u32.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1700u32.to_ne_bytes());
        bytes[32..40].copy_from_slice(&0x0300_0028u64.to_ne_bytes());
        bytes[48..52].copy_from_slice(&3u32.to_ne_bytes());
        bytes[144..148].copy_from_slice(&4u32.to_ne_bytes());
        let expected = ControlFile {
            system: SystemIdentifier(7_000_000_000_000_000_001),
            state: DbState::InProduction,
            checkpoint: Lsn(0x0300_0028),
            timeline: TimelineId(3),
            min_recovery_timeline: TimelineId(4),
        };
        assert_eq!(ControlFile::parse(&bytes), Some(expected));
        assert_eq!(ControlFile::parse(&bytes[..50]), None);
        assert_eq!(ControlFile::parse_whole(&bytes), None, "it has no checksum");
        for at in [288, 292] {
            let sum = crc32c::crc32c(&bytes[..at]).to_ne_bytes();
            bytes[at..at + 4].copy_from_slice(&sum);
            assert_eq!(ControlFile::parse_whole(&bytes), Some(expected));
            // What the server writes next, read too early: its state, and the checkpoint of before.
            let mut torn = bytes;
            torn[16] = 1;
            assert_eq!(ControlFile::parse_whole(&torn), None);
        }
        assert_eq!(ControlFile::parse_whole(&bytes[..290]), None);
        bytes[16] = 7;
        assert_eq!(ControlFile::parse(&bytes), None);
    }

    #[test]
    fn pid_files() {
        let pid = |text: &str| PidFile::parse(text).map(|file| file.pid);
        assert_eq!(pid("4711\n/data\n1700000000\n5432\n"), Some(4711));
        assert_eq!(pid("-4711\n"), Some(4711));
        for text in ["", "\n", "x", "0\n", "-2147483648"] {
            assert_eq!(pid(text), None, "{text:?}");
        }
    }
}
