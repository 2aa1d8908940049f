//! Obeys the directive: whom to stream from, and the promise of a term.
//!
//! On a higher term the old stream is closed first, then the term is made durable behind everything that the
//! old stream had brought, and only then anything of the new term happens. So a promise that is published says:
//! no byte of an earlier term's primary is taken or acknowledged any more, and `durable` is final.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::RelayInputs;
use super::followers::Followers;
use super::metrics::Metrics;
use super::receiver::{self, Progress, ReceiverConfig, Surroundings};
use super::status::UpstreamStatus;
use super::store::{Change, Store, StoreError, StreamId};
use crate::net::{self, Backend, DialError, Target};
use crate::pg::SlotName;
use crate::topology::{Directive, Node, NodeName, StreamEnd, Term, Upstream, relay_application_name};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// For a connection and its login.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Steering {
    pub(super) inputs: RelayInputs,
    pub(super) instance: String,
    pub(super) slot: SlotName,
    pub(super) upstream_timeout: Duration,
    pub(super) store: Store,
    pub(super) followers: Arc<Followers>,
    pub(super) metrics: Metrics,
    pub(super) status: watch::Sender<UpstreamStatus>,
    pub(super) streams: u64,
    /// The stream is ended in order, and no other begun.
    pub(super) closing: CancellationToken,
}

impl Steering {
    /// Runs until it is closed, or the directive's sender is gone. An error is the store's and ends the plane.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut directives = self.inputs.directive.clone();
        loop {
            let directive = directives.borrow_and_update().clone();
            let promised = self.store.report().borrow().promised;
            if directive.term > promised {
                self.store.change(Change::Promise(directive.term)).await?;
                tracing::info!(term = %directive.term, "term promised");
            }
            let order = if directive.term < promised { None } else { self.order(&directive) };
            let Some((node, term)) = order else {
                self.show(Upstream::Idle);
                match self.closing.run_until_cancelled(directives.changed()).await {
                    Some(Ok(())) => continue,
                    Some(Err(_)) | None => return Ok(()),
                }
            };
            let other_order = directives.wait_for(|next| {
                next.term > term || (next.term == term && next.upstream.as_ref() != Some(&node.name))
            });
            tokio::select! {
                result = self.follow(&node, &directive) => return result,
                changed = other_order => if changed.is_err() { return Ok(()) },
            }
        }
    }

    fn order(&self, directive: &Directive) -> Option<(Node, Term)> {
        let name = directive.upstream.as_ref()?;
        let node = self.inputs.nodes.iter().find(|node| node.name == *name);
        if node.is_none() {
            tracing::error!(node = %name, "the directive's upstream is no configured node");
        }
        Some((node?.clone(), directive.term))
    }

    fn show(&self, upstream: Upstream) {
        self.status.send_modify(|status| status.upstream = upstream);
    }

    /// Connects again and again. Dropping it closes the stream.
    async fn follow(&mut self, node: &Node, directive: &Directive) -> Result<(), StoreError> {
        let since = Instant::now();
        let mut last_error: Option<String> = None;
        let mut retry = FIRST_RETRY;
        loop {
            if !matches!(self.status.borrow().upstream, Upstream::Ended { .. }) {
                let last_error = last_error.clone();
                self.show(Upstream::Connecting { node: node.name.clone(), since, last_error });
            }
            let closing = self.closing.clone();
            let target = self.target(node, directive.term);
            let Some(dialed) = closing.run_until_cancelled(net::dial(&target, DIAL_LIMIT)).await else {
                return Ok(());
            };
            let error = match dialed {
                Ok(backend) => {
                    let began = Instant::now();
                    let end = self.stream(node, directive, backend).await?;
                    if began.elapsed() > LAST_RETRY {
                        retry = FIRST_RETRY;
                    }
                    self.ended(&node.name, end, last_error.as_deref())
                }
                Err(error) => {
                    let text = with_cause(&error);
                    if last_error.as_ref() != Some(&text) {
                        tracing::info!(node = %node.name, error = text, "upstream not reached");
                    }
                    self.show(Upstream::Connecting {
                        node: node.name.clone(),
                        since,
                        last_error: Some(text.clone()),
                    });
                    text
                }
            };
            last_error = Some(error);
            if closing.run_until_cancelled(tokio::time::sleep(retry)).await.is_none() {
                return Ok(());
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    fn target(&self, node: &Node, term: Term) -> Target {
        let application_name = relay_application_name(&self.instance, term);
        Target {
            address: node.address.clone(),
            user: self.inputs.user.clone(),
            database: "replication".into(),
            credentials: self.inputs.credentials.clone(),
            tls: self.inputs.tls.clone(),
            parameters: vec![
                ("replication".to_owned(), "true".to_owned()),
                ("application_name".to_owned(), application_name),
            ],
        }
    }

    async fn stream(
        &mut self,
        node: &Node,
        directive: &Directive,
        backend: Backend,
    ) -> Result<StreamEnd, StoreError> {
        self.metrics.upstream_connects.inc();
        // What an earlier stream left in the queue is stored before the new one looks at the end.
        self.store.change(Change::Settle).await?;
        if *self.store.server_parameters() != backend.parameters {
            self.store.change(Change::Parameters(backend.parameters.clone())).await?;
        }
        self.streams += 1;
        let config = ReceiverConfig {
            slot: self.slot.clone(),
            durability: directive.durability,
            upstream_timeout: self.upstream_timeout,
            ask_after: self.inputs.tuning.borrow().ask_after.min(self.upstream_timeout / 2),
            upstream_major: major(&backend.parameters),
        };
        let id = StreamId(self.streams);
        let since = Instant::now();
        let status = self.status.clone();
        let mut publish = |progress: Progress| publish(&status, &node.name, since, progress);
        let surroundings = Surroundings {
            store: &self.store,
            followers: &self.followers,
            metrics: &self.metrics,
            tuning: self.inputs.tuning.clone(),
            closing: &self.closing,
        };
        receiver::stream(backend, config, id, surroundings, &mut publish).await
    }

    /// Says so, once for the same cause, and returns it.
    fn ended(&self, node: &NodeName, end: StreamEnd, last_error: Option<&str>) -> String {
        let why = match &end {
            StreamEnd::TimelineEnd { next, switchpoint } => {
                format!("timeline {next} begins at {switchpoint}")
            }
            StreamEnd::Shutdown => "orderly shutdown".to_owned(),
            StreamEnd::Lost { why } | StreamEnd::Refused { why } => why.clone(),
        };
        if last_error != Some(why.as_str()) {
            match &end {
                StreamEnd::Refused { .. } => tracing::error!(%node, why, "upstream refused"),
                _ => tracing::info!(%node, why, "WAL stream ended"),
            }
        }
        self.show(Upstream::Ended { node: node.clone(), at: Instant::now(), how: end });
        why
    }
}

fn publish(status: &watch::Sender<UpstreamStatus>, node: &NodeName, since: Instant, progress: Progress) {
    let upstream = progress.streaming.map(|_| Upstream::Streaming {
        node: node.clone(),
        since,
        last_message: progress.heard_at,
    });
    status.send_if_modified(|status| {
        let next = UpstreamStatus {
            upstream: upstream.unwrap_or_else(|| status.upstream.clone()),
            received: progress.received,
            // Of this upstream: another one's end says nothing of it.
            upstream_end: if progress.upstream_end.is_valid() {
                progress.upstream_end
            } else {
                status.upstream_end
            },
        };
        let changed = next != *status;
        *status = next;
        changed
    });
}

/// `15.20 (Debian 15.20-1)`: 15. Unknown is 0, the least capable.
fn major(parameters: &[(String, String)]) -> u32 {
    let version = parameters.iter().find(|(name, _)| name == "server_version").map_or("", |(_, v)| v);
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().unwrap_or(0)
}

fn with_cause(error: &DialError) -> String {
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::watch;

    use super::{Progress, UpstreamStatus, major, publish};
    use crate::pg::{Lsn, TimelineId};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn the_end_of_a_lost_primary_is_not_the_next_ones() {
        let status = watch::Sender::new(UpstreamStatus::idle());
        let node = "pg1".parse().expect("a name");
        let now = Instant::now();
        let told = |upstream_end| {
            let streaming = Some(TimelineId(1));
            let progress =
                Progress { received: Lsn(90), upstream_end: Lsn(upstream_end), heard_at: now, streaming };
            publish(&status, &node, now, progress);
            status.borrow().upstream_end
        };
        assert_eq!(told(100), Lsn(100));
        assert_eq!(told(0), Lsn(100), "a new connection that has not heard yet");
        assert_eq!(told(95), Lsn(95), "a promoted standby begins before it");
    }

    #[test]
    fn versions() {
        let of = |version: &str| major(&[("server_version".to_owned(), version.to_owned())]);
        assert_eq!(of("15.20 (Debian 15.20-0+deb12u1)"), 15);
        assert_eq!(of("18beta1"), 18);
        assert_eq!(of(""), 0);
        assert_eq!(major(&[]), 0);
    }
}
