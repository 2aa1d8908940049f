//! The journal: the state before it is acted on, and the elections that were.
//!
//! One instance keeps it in a file ([`FileJournal`]). Several share it in etcd ([`EtcdJournal`]), where who leads is
//! decided, too, and each keeps its copy of the last state in its file. What both promise: what was put is there
//! after a crash, and a journal that cannot be read is an error, never an empty one.

mod etcd;
mod file;

pub use etcd::{
    ClientError, EtcdConfig, EtcdError, EtcdJournal, EtcdLogin, EtcdMetrics, EtcdTls, Fence, Kept, Leader,
    Link, Look, RequestError, Revision, Seen, Versioned, look,
};
pub use file::FileJournal;

/// Elections remembered; the oldest are forgotten first.
pub const MAX_HISTORY: usize = 1000;
