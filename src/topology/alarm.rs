//! What of the WAL plane a person should know of, while it lasts and afterwards.

use serde::{Deserialize, Serialize};

/// One trouble, from its begin to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    pub kind: AlarmKind,
    /// Which slot or segment; empty where there is only one of the kind.
    pub object: String,
    /// In a sentence.
    pub what: String,
    /// Milliseconds since the Unix epoch.
    pub raised_at_ms: u64,
    /// `None`: it lasts.
    pub over_at_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// Nobody has the WAL that comes next.
    Gap,
    /// A source has other WAL than what is stored.
    SplitBrain,
    /// What a slot held back was too much: its follower may have to be made anew.
    LostSlot,
    /// WAL is not acknowledged.
    DiskFull,
    /// Followers that need it are refused.
    DamagedSegment,
    /// A base backup of the archive that nobody understands holds WAL back.
    UnknownBackup,
}

impl AlarmKind {
    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            AlarmKind::Gap => "gap",
            AlarmKind::SplitBrain => "split_brain",
            AlarmKind::LostSlot => "lost_slot",
            AlarmKind::DiskFull => "disk_full",
            AlarmKind::DamagedSegment => "damaged_segment",
            AlarmKind::UnknownBackup => "unknown_backup",
        }
    }
}

impl Alarm {
    pub fn lasts(&self) -> bool {
        self.over_at_ms.is_none()
    }
}
