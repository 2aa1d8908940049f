//! Twenty ways in which others who ship WAL have lost it or stalled, each brought about on real servers.
//!
//! | | pitfall | the fault | shown by |
//! |---|---|---|---|
//! | 1 | WAL shipped before it is synced | fdatasync hangs; kill -9 and power cuts under load | `durable` |
//! | 2 | acknowledged before it is synced | power cuts that take every unsynced write; the primary lost, too | `durable` |
//! | 3 | a failed sync tried again | one EIO | `durable` |
//! | 13 | an error for who asks slightly ahead | the next segment's start at a quiet end | `crowd` |
//! | 15 | a slow follower slows the others or fills the memory | a walreceiver stopped under load | `crowd` |
//! | 16 | both sides write and neither reads | a follower that floods status updates and never reads | `crowd` |
//! | 17 | WAL removed that somebody needs | a slot in the middle of a segment, and pruning behind it | `crowd` |

mod crowd;
mod durable;
