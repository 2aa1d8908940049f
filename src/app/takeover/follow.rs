//! The new process rules the sessions of the old one until they are gone.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::fence::{Old, both, is_waited_for};
use super::link::{Link, LinkError, Process};
use super::link_failed;
use super::lock::Theirs;
use super::message::{FromIncumbent, FromSuccessor, Status};
use super::metrics::Metrics;
use super::sight::Sight;
use crate::net::CancelKey;
use crate::topology::{Directive, Health, Heard, ProxyStatus, WalStatus};

/// Positions and health are passed on at most so often; a directive is at once.
const SIGHT_INTERVAL: Duration = Duration::from_millis(25);
/// The other end must take a message within this time, or the link is given up.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// A fence waits so long for the old process alone, and so long for its end behind a broken link, or from when it took no
/// message any more; then it is killed.
const OBEY_LIMIT: Duration = Duration::from_secs(5);
/// CancelRequests on their way to the old process; more are dropped, as the network may drop them.
const CANCELS: usize = 64;

/// The link to the old process.
#[derive(Debug)]
pub(in crate::app) struct Follow {
    link: Link,
    /// The old process.
    process: Option<Process>,
    /// Locked by the old process as long as it runs.
    draining: Theirs,
    /// When the takeover began.
    began: Instant,
    /// What the other instances had told the old process.
    heard: Vec<(String, Heard)>,
    /// Since when a message waits to be taken.
    untaken_since: Option<Instant>,
}

/// What the rest of the instance has to do with the old process.
#[derive(Debug)]
pub(in crate::app) struct Predecessor {
    pub(in crate::app) directive: watch::Receiver<Arc<Directive>>,
    pub(in crate::app) health: watch::Receiver<Arc<Health>>,
    pub(in crate::app) wal: watch::Receiver<Arc<WalStatus>>,
    /// Of this process alone.
    own: watch::Receiver<Arc<ProxyStatus>>,
    /// Of both.
    proxy: watch::Sender<Arc<ProxyStatus>>,
    cancels: mpsc::Receiver<CancelKey>,
    gone: watch::Sender<bool>,
    /// Since when a fence may be waiting for the old process alone.
    waited_since: Option<Instant>,
    metrics: Metrics,
}

/// How the rest of the instance reaches it.
#[derive(Debug)]
pub(in crate::app) struct Reach {
    pub(in crate::app) proxy: watch::Receiver<Arc<ProxyStatus>>,
    pub(in crate::app) cancels: mpsc::Sender<CancelKey>,
    /// Whether it has ended.
    pub(in crate::app) gone: watch::Receiver<bool>,
}

impl Predecessor {
    /// Nothing is known of it yet: nothing is confirmed.
    pub(in crate::app) fn new(
        directive: watch::Receiver<Arc<Directive>>,
        health: watch::Receiver<Arc<Health>>,
        wal: watch::Receiver<Arc<WalStatus>>,
        own: watch::Receiver<Arc<ProxyStatus>>,
        registry: &prometheus::Registry,
    ) -> prometheus::Result<(Predecessor, Reach)> {
        let metrics = Metrics::new(registry)?;
        let (proxy, seen) = watch::channel(Arc::new(both(&own.borrow(), &Old::Unknown)));
        let (cancel, cancels) = mpsc::channel(CANCELS);
        let (gone, is_gone) = watch::channel(false);
        let reach = Reach { proxy: seen, cancels: cancel, gone: is_gone };
        let waited_since = None;
        Ok((Predecessor { directive, health, wal, own, proxy, cancels, gone, waited_since, metrics }, reach))
    }

    fn publish(&mut self, old: &Old) {
        let own = self.own.borrow_and_update().clone();
        let next = both(&own, old);
        let waited_since = self.waited_since.take();
        self.waited_since = is_waited_for(&own, old).then(|| waited_since.unwrap_or_else(Instant::now));
        self.proxy.send_if_modified(|last| {
            let modified = **last != next;
            if modified {
                *last = Arc::new(next);
            }
            modified
        });
    }
}

/// Resolves when it has been waited for long enough.
async fn overdue(waited_since: Option<Instant>) {
    match waited_since {
        Some(since) => tokio::time::sleep_until((since + OBEY_LIMIT).into()).await,
        None => std::future::pending().await,
    }
}

impl Follow {
    pub(super) fn new(link: Link, draining: Theirs, began: Instant, heard: Vec<(String, Heard)>) -> Follow {
        Follow { process: named(&link), link, draining, began, heard, untaken_since: None }
    }

    /// What the other instances had told the old process, as old as it is.
    pub(in crate::app) fn heard(&mut self) -> Vec<(String, Heard)> {
        std::mem::take(&mut self.heard)
    }

    /// Goes on when the old process has ended: somebody has to publish what this one confirms. Never ends.
    pub(in crate::app) async fn run(mut self, mut old: Predecessor) {
        let mut last = Status::default();
        // From here on, not since it was built.
        old.waited_since = None;
        old.publish(&Old::Unknown);
        old.metrics.settled(self.began.elapsed());
        let broken = loop {
            if let Err(error) = self.exchange(&mut old, &mut last).await {
                break error;
            }
        };
        let why = link_failed(&broken);
        // Hanging up ends the sessions that are left.
        drop(self.link);
        // Who takes no message stands still, and had its time meanwhile. Who has hung up has all of it.
        old.waited_since = self.untaken_since.map(|since| old.waited_since.map_or(since, |at| at.min(since)));
        old.publish(&Old::Unknown);
        let freed = self.draining.free();
        let mut freed = std::pin::pin!(freed);
        loop {
            tokio::select! {
                // Who has ended is not killed.
                biased;
                () = &mut freed => break,
                Ok(()) = old.own.changed() => old.publish(&Old::Unknown),
                () = overdue(old.waited_since), if self.process.is_some() => kill(self.process.take()),
            }
        }
        old.metrics.connections.set(0);
        let (ms, gone, unknown) = (self.began.elapsed().as_millis(), last.gone, last.connections);
        tracing::info!(
            ms,
            why,
            left = gone.left,
            ended = gone.ended,
            cut = gone.cut,
            unknown,
            "the old process has ended"
        );
        old.gone.send_replace(true);
        loop {
            old.publish(&Old::Gone);
            if old.own.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What comes next, in either direction.
    async fn exchange(&mut self, old: &mut Predecessor, last: &mut Status) -> Result<(), LinkError> {
        self.send_sight(old).await?;
        let pause = tokio::time::sleep(SIGHT_INTERVAL);
        let mut pause = std::pin::pin!(pause);
        loop {
            tokio::select! {
                // Who has obeyed in time is not killed, though it is heard late.
                biased;
                message = self.link.receive() => match message? {
                    FromIncumbent::Status(status) => {
                        old.metrics.count(last, &status);
                        last.clone_from(&status);
                        old.publish(&Old::Heard(status));
                    }
                    FromIncumbent::Refused(_)
                    | FromIncumbent::Yielded { .. }
                    | FromIncumbent::Heard(_)
                    | FromIncumbent::Yours => {
                        let nonsense = std::io::Error::from(std::io::ErrorKind::InvalidData);
                        return Err(LinkError::Io(nonsense));
                    }
                },
                Ok(()) = old.own.changed() => old.publish(&Old::Heard(last.clone())),
                Some(key) = old.cancels.recv() => {
                    self.send(old, &FromSuccessor::Cancel { pid: key.pid, secret: key.secret }).await?;
                }
                Ok(()) = old.directive.changed() => return Ok(()),
                () = overdue(old.waited_since) => {
                    kill(self.process.take());
                    return Err(LinkError::Io(std::io::ErrorKind::TimedOut.into()));
                }
                () = &mut pause, if !pause.is_elapsed() => {}
                Ok(()) = old.health.changed(), if pause.is_elapsed() => return Ok(()),
                Ok(()) = old.wal.changed(), if pause.is_elapsed() => return Ok(()),
            }
        }
    }

    async fn send_sight(&mut self, old: &mut Predecessor) -> Result<(), LinkError> {
        let sight = Sight::of(
            Instant::now(),
            &old.directive.borrow_and_update(),
            &old.health.borrow_and_update(),
            &old.wal.borrow_and_update(),
        );
        self.send(old, &FromSuccessor::Sight(Box::new(sight))).await
    }

    /// No longer than a fence may wait.
    async fn send(&mut self, old: &Predecessor, message: &FromSuccessor) -> Result<(), LinkError> {
        self.untaken_since = Some(Instant::now());
        let sent = tokio::select! {
            sent = tokio::time::timeout(SEND_LIMIT, self.link.send(message)) => sent.ok(),
            () = overdue(old.waited_since) => None,
        };
        let sent = sent.ok_or_else(|| LinkError::Io(std::io::ErrorKind::TimedOut.into()))?;
        self.untaken_since = None;
        sent
    }
}

/// The old process as something that can be killed.
fn named(link: &Link) -> Option<Process> {
    match link.process() {
        Ok(process) => Some(process),
        Err(error) => {
            tracing::warn!(%error, "the old process cannot be named: it is not killed if it does not obey");
            None
        }
    }
}

/// It does not obey, and may be writing where nobody may write any more.
fn kill(process: Option<Process>) {
    let killed = process.map(|process| process.kill());
    match killed {
        Some(Ok(())) => tracing::warn!(limit = ?OBEY_LIMIT, "the old process did not obey and was killed"),
        Some(Err(error)) => tracing::error!(%error, "the old process does not obey and cannot be killed"),
        None => tracing::error!("the old process does not obey and cannot be named to be killed"),
    }
}
