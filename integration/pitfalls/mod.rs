//! Twenty ways in which others who ship WAL have lost it or stalled, each brought about on real servers.
//!
//! | | pitfall | the fault | shown by |
//! |---|---|---|---|
//! | 1 | WAL shipped before it is synced | fdatasync hangs; kill -9 and power cuts under load | `durable` |
//! | 2 | acknowledged before it is synced | power cuts that take every unsynced write; the primary lost, too | `durable` |
//! | 3 | a failed sync tried again | one EIO | `durable` |
//! | 4 | WAL of an old timeline beyond its end | the relay holds segments of it | `timeline` |
//! | 5 | promoted before all is there | only the relay has an acknowledged commit; replay is paused | `timeline` |
//! | 6 | the next timeline is not the next number | two promotions that skip one each, while a standby is away | `timeline` |
//! | 7 | a switch that only a new connection survives | real standbys of every major | `timeline` |
//! | 8 | a fork segment without its beginning | its start is asked for on the new timeline | `timeline` |
//! | 9 | zeros or a file's size taken for the end | a promoted server's own fork segment, stale pages and all | `timeline` |
//! | 10 | other bytes on the same timeline | a copy of the primary comes up in its place and writes | `upstream` |
//! | 11 | another cluster, or segments of another size | the other cluster is in the old one's place; 1 MB and 64 MB | `foreign` |
//! | 12 | half a record, then another | the primary's machine is lost in the middle of a 256 MB record | `upstream` |
//! | 13 | an error for who asks slightly ahead | the next segment's start at a quiet end | `crowd` |
//! | 14 | silence while the primary is away | three times the standby's wal_receiver_timeout | `upstream` |
//! | 15 | a slow follower slows the others or fills the memory | a walreceiver stopped under load | `crowd` |
//! | 16 | both sides write and neither reads | a follower that floods status updates and never reads | `crowd` |
//! | 17 | WAL removed that somebody needs | a slot in the middle of a segment, and pruning behind it; a rewound node whose WAL the primary has no more | `crowd`, `timeline` |
//! | 18 | what comes next is nowhere any more | the primary has removed it: a standby has it, or nobody has; the same behind a switch, the fork among it | `crate::sources`, `removed` |
//! | 19 | a commit that waits for a replay that nobody reports | `synchronous_commit = remote_apply` | `crate::remote_apply` |
//! | 20 | killed in the middle of a rollover or a switch | kill -9 and a power cut before each call on the disk | `killed` |

mod crowd;
mod durable;
mod foreign;
mod killed;
mod removed;
mod timeline;
mod upstream;
