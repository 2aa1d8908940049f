//! Events for other programs: elections, restarts, roles, alarms, and whether failovers are automatic, by a command and a
//! webhook.
//!
//! [`core`] says what has happened, from what the planes publish for everybody; a queue of [`QUEUED`] lies between that
//! and the deliveries, which come one event after the other. So whatever a command or a server does, nobody waits for it
//! but the next event. What fails is counted, told once and not tried again: the history has it.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

mod core;
mod metrics;

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

use self::core::{Event, Watcher};
use self::metrics::{Metrics, Sink};
use super::cli::chain;
use super::config::Events;
use crate::admin::Identity;
use crate::topology::{Election, Failovers, Health, Restart, WalStatus};

/// Events that wait for those before them. When full, the newest is dropped, and that is counted.
const QUEUED: usize = 64;

/// What is published is looked at at most so often: positions move with every sync.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Where events are seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) history: watch::Receiver<Arc<Vec<Election>>>,
    pub(super) restarts: watch::Receiver<Arc<Vec<Restart>>>,
    pub(super) wal: watch::Receiver<Arc<WalStatus>>,
    pub(super) health: watch::Receiver<Arc<Health>>,
    pub(super) failovers: watch::Receiver<Arc<Failovers>>,
}

/// As it is delivered.
#[derive(Debug, Serialize)]
struct Message<'a> {
    cluster: &'a str,
    instance: &'a str,
    /// Milliseconds since the Unix epoch, when it was seen.
    at_ms: u64,
    #[serde(flatten)]
    event: &'a Event,
}

#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("run {program}")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} ended with {status}")]
    Status { program: String, status: ExitStatus },
    /// Without its address, which may hold a secret.
    #[error("the webhook")]
    Http(#[source] reqwest::Error),
    #[error("the webhook answered {0}")]
    Refused(reqwest::StatusCode),
    #[error("not done within {0:?}")]
    Timeout(Duration),
}

/// The hooks of an instance.
#[derive(Debug)]
pub(super) struct Hooks {
    config: Events,
    client: Option<reqwest::Client>,
    identity: Identity,
    metrics: Metrics,
}

impl Hooks {
    /// `None`: nobody is to be told.
    pub(super) fn new(
        config: &Events,
        identity: Identity,
        registry: &prometheus::Registry,
    ) -> Result<Option<Hooks>, prometheus::Error> {
        if config.command.is_empty() && config.webhook.is_none() {
            return Ok(None);
        }
        let client = config.webhook.as_ref().map(|_| client());
        let metrics = Metrics::new(registry)?;
        Ok(Some(Hooks { config: config.clone(), client, identity, metrics }))
    }

    /// Never ends.
    pub(super) async fn run(self, seen: Seen) {
        let (queue, waiting) = mpsc::channel(QUEUED);
        tokio::join!(self.watch(seen, queue), self.deliver(waiting));
    }

    async fn watch(&self, mut seen: Seen, queue: mpsc::Sender<Event>) {
        let mut watcher = Watcher::new(now_ms());
        loop {
            let mut events = watcher.elections(&seen.history.borrow_and_update());
            events.extend(watcher.restarts(&seen.restarts.borrow_and_update()));
            events.extend(watcher.alarms(&seen.wal.borrow_and_update().alarms));
            events.extend(watcher.roles(&seen.health.borrow_and_update()));
            events.extend(watcher.failovers(**seen.failovers.borrow_and_update()));
            for event in events {
                if let Err(error) = queue.try_send(event) {
                    let event = error.into_inner();
                    self.metrics.dropped();
                    tracing::warn!(event = event.name(), "too many events wait: nobody is told of this one");
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            // Who publishes them lives as long as this does.
            let changed = tokio::select! {
                changed = seen.history.changed() => changed,
                changed = seen.restarts.changed() => changed,
                changed = seen.wal.changed() => changed,
                changed = seen.health.changed() => changed,
                changed = seen.failovers.changed() => changed,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn deliver(&self, mut waiting: mpsc::Receiver<Event>) {
        while let Some(event) = waiting.recv().await {
            let Identity { cluster, instance } = &self.identity;
            let message = Message { cluster, instance, at_ms: now_ms(), event: &event };
            let mut body = serde_json::to_vec(&message).expect("plain values are JSON");
            body.push(b'\n');
            let body = Bytes::from(body);
            let (ran, posted) = tokio::join!(self.run_command(body.clone()), self.post(body));
            self.tell(&event, Sink::Command, ran);
            self.tell(&event, Sink::Webhook, posted);
        }
    }

    fn tell(&self, event: &Event, sink: Sink, done: Option<Result<(), HookError>>) {
        match done {
            None => {}
            Some(Ok(())) => self.metrics.delivered(sink),
            Some(Err(error)) => {
                self.metrics.failed(sink);
                let error = chain(&error);
                tracing::warn!(event = event.name(), hook = sink.label(), error, "an event is not delivered");
            }
        }
    }

    /// `None`: there is no command. It has the message on its standard input.
    async fn run_command(&self, body: Bytes) -> Option<Result<(), HookError>> {
        let (program, arguments) = self.config.command.split_first()?;
        let ran = async {
            let failed = |source| HookError::Run { program: program.clone(), source };
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not read has its reasons: how it ends is what counts.
                let _ = stdin.write_all(&body).await;
            }
            let status = child.wait().await.map_err(failed)?;
            if status.success() {
                Ok(())
            } else {
                Err(HookError::Status { program: program.clone(), status })
            }
        };
        Some(self.within_limit(ran).await)
    }

    async fn post(&self, body: Bytes) -> Option<Result<(), HookError>> {
        let (client, url) = self.client.as_ref().zip(self.config.webhook.as_ref())?;
        let failed = |error: reqwest::Error| HookError::Http(error.without_url());
        let posted = async {
            let request = client.post(url.clone()).header("content-type", "application/json").body(body);
            let status = request.send().await.map_err(failed)?.status();
            if status.is_success() { Ok(()) } else { Err(HookError::Refused(status)) }
        };
        Some(self.within_limit(posted).await)
    }

    /// What is given up is over: a command is killed, a connection closed.
    async fn within_limit(&self, work: impl Future<Output = Result<(), HookError>>) -> Result<(), HookError> {
        let limit = self.config.timeout;
        tokio::time::timeout(limit, work).await.unwrap_or(Err(HookError::Timeout(limit)))
    }
}

/// It follows no redirect, which would make a GET of it.
fn client() -> reqwest::Client {
    // The client's TLS asks for the process's provider; ours is the only one that is built in.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
    client.build().expect("nothing of it comes from outside")
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{Registry, TextEncoder};
    use tokio::sync::mpsc;

    use super::{Event, Events, Hooks};
    use crate::admin::Identity;
    use crate::topology::Role;

    #[tokio::test]
    async fn what_fails_is_counted_and_keeps_nobody() {
        let check = async |command: &[&str], webhook: Option<&str>, timeout, expected: &[&str]| {
            let config = Events {
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                webhook: webhook.map(|url| url.parse().expect("a URL")),
                timeout,
            };
            let identity = Identity { cluster: "orders".to_owned(), instance: "bw1".to_owned() };
            let registry = Registry::new();
            let hooks = Hooks::new(&config, identity, &registry).expect("fresh registry").expect("some");
            let node: crate::topology::NodeName = "pg1".parse().expect("a name");
            let event = Event::RoleChanged { node, was: Role::Standby, role: Role::Primary };
            let (queue, waiting) = mpsc::channel(2);
            for _ in 0..2 {
                queue.try_send(event.clone()).expect("room");
            }
            drop(queue);
            hooks.deliver(waiting).await;
            let counted = TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
            let told = |wanted: &&&str| counted.contains(&format!("{{{wanted}}} 2\n"));
            assert_eq!(expected.iter().filter(told).count(), expected.len(), "{command:?}: {counted}");
        };
        let (long, at_once) = (Duration::from_secs(60), Duration::from_millis(1));
        let command = |outcome| format!("hook=\"command\",outcome=\"{outcome}\"");
        let (failed, delivered) = (command("failed"), command("delivered"));
        check(&["cat"], None, long, &[&delivered]).await;
        check(&["false"], None, long, &[&failed]).await;
        check(&["/nowhere/notify"], None, long, &[&failed]).await;
        check(&["sleep", "1000"], None, at_once, &[&failed]).await;
        let refused = "hook=\"webhook\",outcome=\"failed\"";
        check(&["true"], Some("http://127.0.0.1:1/"), long, &[&delivered, refused]).await;
    }
}
