//! Where the primary's WAL is, for sessions that have written.
//!
//! A session's own write ended before its answer came. So any position of the primary that was asked for after
//! that answer lies at or behind the write's commit record, and one task that asks every few milliseconds, while
//! anybody wants to know, serves all sessions without a round trip of their own.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: stamps each sample with the time before it was asked for"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};

use super::config::ServerLogin;
use super::session::message;
use crate::net::{self, Backend};
use crate::pg::Lsn;
use crate::pg::protocol::frame::Header;
use crate::topology::{Directive, Node, Term};

/// Two samples are at least this far apart.
const INTERVAL: Duration = Duration::from_millis(10);
/// For one answer, and for connecting.
const LIMIT: Duration = Duration::from_secs(2);
/// After a failure.
const BACK_OFF: Duration = Duration::from_millis(200);
/// The longest answer that could be one.
const MAX_ANSWER: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) lsn: Lsn,
    /// Before the primary was asked.
    pub(crate) started_at: Instant,
    pub(crate) term: Term,
}

#[derive(Debug, Default)]
pub(crate) struct Sampler {
    wanted: AtomicBool,
    asked: Notify,
    latest: Mutex<Option<Sample>>,
}

impl Sampler {
    /// Somebody has written and will want to read.
    pub(crate) fn want(&self) {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.asked.notify_one();
        }
    }

    /// A position that a write which ended at `written_at` is not behind of.
    pub(crate) fn since(&self, written_at: Instant) -> Option<Lsn> {
        let latest = *self.latest.lock();
        latest.filter(|sample| sample.started_at > written_at).map(|sample| sample.lsn)
    }

    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The primary was asked at this moment, and was there.
    #[cfg(test)]
    pub(crate) fn learn(&self, started_at: Instant, lsn: Lsn) {
        *self.latest.lock() = Some(Sample { lsn, started_at, term: Term(7) });
    }

    /// Never ends.
    pub(crate) async fn run(
        self: Arc<Sampler>,
        login: ServerLogin,
        nodes: Vec<Node>,
        mut directive: watch::Receiver<Arc<Directive>>,
    ) {
        let mut connection: Option<(Term, Backend)> = None;
        loop {
            self.asked.notified().await;
            while self.wanted.swap(false, Ordering::Relaxed) {
                let now = directive.borrow_and_update().clone();
                if connection.as_ref().is_none_or(|(term, _)| *term != now.term) {
                    connection = dial(&login, &nodes, &now).await.map(|backend| (now.term, backend));
                }
                let sample = match &mut connection {
                    Some((term, backend)) => sample(backend, *term).await,
                    None => None,
                };
                if let Some(sample) = sample {
                    *self.latest.lock() = Some(sample);
                    tokio::time::sleep(INTERVAL).await;
                } else {
                    connection = None;
                    // Whoever wanted it still does.
                    self.wanted.store(true, Ordering::Relaxed);
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

async fn dial(login: &ServerLogin, nodes: &[Node], directive: &Directive) -> Option<Backend> {
    let (primary, target) = login.at_primary(nodes, directive, "bellwether_sampler")?;
    let dialled = net::dial(&target, LIMIT).await;
    dialled.inspect_err(|error| tracing::info!(%error, node = %primary, "sampler: no connection")).ok()
}

async fn sample(backend: &mut Backend, term: Term) -> Option<Sample> {
    let started_at = Instant::now();
    let mut query = vec![];
    message::put_query(&mut query, "SELECT pg_current_wal_insert_lsn()");
    let answer = async {
        backend.stream.write_all(&query).await.ok()?;
        let mut bytes = Vec::with_capacity(256);
        while !is_complete(&bytes)? {
            if bytes.len() > MAX_ANSWER || backend.stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        read_lsn(&bytes)
    };
    let lsn = tokio::time::timeout(LIMIT, answer).await.ok()??;
    Some(Sample { lsn, started_at, term })
}

/// Whether a ReadyForQuery is there; `None` when this is no answer.
fn is_complete(mut bytes: &[u8]) -> Option<bool> {
    while let Some(header) = Header::peek(bytes).ok()? {
        let Some(rest) = bytes.get(header.total..) else { return Some(false) };
        if header.tag == b'Z' {
            return Some(true);
        }
        bytes = rest;
    }
    Some(false)
}

/// The one value of the one row.
fn read_lsn(mut bytes: &[u8]) -> Option<Lsn> {
    while let Some(header) = Header::peek(bytes).ok()? {
        let (message, rest) = bytes.split_at_checked(header.total)?;
        if header.tag == b'D' {
            // Header, number of columns, length, text.
            return std::str::from_utf8(message.get(11..)?).ok()?.parse().ok();
        }
        bytes = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{is_complete, read_lsn};
    use crate::pg::Lsn;
    use crate::proxy::session::message::{Status, put_complete, put_ready, put_text_column, put_text_row};

    #[test]
    fn the_answer_is_read_when_it_is_complete() {
        let mut answer = vec![];
        put_text_column(&mut answer, "pg_current_wal_insert_lsn");
        put_text_row(&mut answer, "0/16B3748");
        put_complete(&mut answer, "SELECT 1");
        assert_eq!(is_complete(&answer), Some(false));
        put_ready(&mut answer, Status::Idle);
        assert_eq!(is_complete(&answer), Some(true));
        assert_eq!(read_lsn(&answer), Some(Lsn(0x16B_3748)));
        assert_eq!(is_complete(b"D\0\0\0\0..."), None);
    }
}
