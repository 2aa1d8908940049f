#![expect(clippy::disallowed_methods, reason = "shell: reads the clock for the ages it shows")]
//! The HTTP server around `answer`: HTTP/1, bounded in connections and in patience.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Answer, answer};
use super::order::{self, Order, Origin, order};
use super::pass_on::{Orders, Reach};
use super::reload::{Reload, ReloadError};
use super::view::{Identity, Snapshot};
use crate::topology::{Directive, Election, Failovers, Health, Members, ProxyStatus, Restart, WalStatus};

/// Connections at a time. One more waits in the kernel's queue until one ends.
const MAX_CONNECTIONS: usize = 64;
/// A client that has not sent a whole request header by then is cut; so is one that keeps an idle connection.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// What a connection may still take after the shutdown began.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// After the kernel could not accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct Sources {
    pub identity: Identity,
    pub directive: watch::Receiver<Arc<Directive>>,
    pub health: watch::Receiver<Arc<Health>>,
    pub wal: watch::Receiver<Arc<WalStatus>>,
    pub proxy: watch::Receiver<Arc<ProxyStatus>>,
    pub history: watch::Receiver<Arc<Vec<Election>>>,
    pub leader: watch::Receiver<Arc<Option<String>>>,
    pub failovers: watch::Receiver<Arc<Failovers>>,
    pub restarts: watch::Receiver<Arc<Vec<Restart>>>,
    pub members: watch::Receiver<Arc<Members>>,
    pub registry: Registry,
    /// Where an operator's commands go. Where nobody takes them, they get 503.
    pub orders: Orders,
    /// Where it is asked for that the configuration is read again. The same holds.
    pub reload: Option<Reload>,
}

impl Sources {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            directive: self.directive.borrow().clone(),
            health: self.health.borrow().clone(),
            wal: self.wal.borrow().clone(),
            proxy: self.proxy.borrow().clone(),
            history: self.history.borrow().clone(),
            leader: self.leader.borrow().clone(),
            failovers: self.failovers.borrow().clone(),
            restarts: self.restarts.borrow().clone(),
            members: self.members.borrow().clone(),
        }
    }

    fn metrics(&self) -> Result<String, String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(|error| error.to_string())
    }
}

/// Answers requests until `shutdown`.
pub async fn serve(listener: TcpListener, sources: Sources, shutdown: CancellationToken) {
    let sources = Arc::new(sources);
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < MAX_CONNECTIONS;
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&sources), shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    let drain = async { while connections.join_next().await.is_some() {} };
    // Who is not done then is cut with the set.
    let _ = tokio::time::timeout(DRAIN_LIMIT, drain).await;
}

async fn connection(stream: TcpStream, sources: Arc<Sources>, shutdown: CancellationToken) {
    let service = service_fn(|request| {
        let sources = Arc::clone(&sources);
        async move { Ok::<_, Infallible>(respond(&request, &sources).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

/// The body of a request is never read.
async fn respond<B>(request: &Request<B>, sources: &Sources) -> Response<Full<Bytes>> {
    let asked = answer::Request {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or(""),
    };
    let origin = if request.headers().contains_key(ORIGIN) { Origin::Page } else { Origin::Program };
    match order(asked, origin) {
        Some(Ok(order)) => {
            tracing::info!(?order, "an operator's command");
            return response(carry_out(order, sources).await);
        }
        Some(Err(refusal)) => return response(refusal),
        None => {}
    }
    response(answer(asked, &sources.identity, &sources.snapshot(), Instant::now(), || sources.metrics()))
}

async fn carry_out(order: Order, sources: &Sources) -> Answer {
    match order {
        Order::Command(command) => order::answer(sources.orders.give(command, Reach::Cluster).await),
        Order::Reload => order::reloaded(match &sources.reload {
            Some(reload) => reload.ask().await,
            None => Err(ReloadError::Stopped),
        }),
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(allow) = answer.allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use prometheus::{IntGauge, Registry};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::super::view::tests::{identity, snapshot};
    use super::super::{ClientError, ClusterView, fetch, post};
    use super::{Orders, Sources, serve};

    #[tokio::test]
    async fn the_client_reads_what_the_server_says_until_it_stops() {
        let seen = snapshot(Instant::now());
        let registry = Registry::new();
        let gauge = IntGauge::new("bellwether_term", "The current term.").expect("a valid name");
        registry.register(Box::new(gauge)).expect("registered once");
        let sources = Sources {
            identity: identity(),
            directive: watch::channel(seen.directive).1,
            health: watch::channel(seen.health).1,
            wal: watch::channel(seen.wal).1,
            proxy: watch::channel(seen.proxy).1,
            history: watch::channel(seen.history).1,
            leader: watch::channel(seen.leader).1,
            failovers: watch::channel(seen.failovers).1,
            restarts: watch::channel(seen.restarts).1,
            members: watch::channel(seen.members).1,
            registry,
            orders: Orders::default(),
            reload: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let shutdown = CancellationToken::new();
        let questions = async {
            let view = fetch(&base, "/api/v1/cluster").await.expect("it is served");
            let view: ClusterView = serde_json::from_slice(&view).expect("it is a ClusterView");
            assert_eq!(view.cluster, "orders");
            let metrics = fetch(&base, "/metrics").await.expect("it is served");
            assert!(metrics.ends_with(b"bellwether_term 0\n"));
            let missing = fetch(&base, "/missing").await.expect_err("there is no such page");
            assert!(matches!(missing, ClientError::Status { status, .. } if status == 404), "{missing}");
            let nobody = post(&base, "/api/v1/pause").await.expect_err("there is no control plane");
            assert!(matches!(nobody, ClientError::Status { status, .. } if status == 503), "{nobody}");
            shutdown.cancel();
        };
        // Returns because the server ends; its port may be another's by then.
        tokio::join!(serve(listener, sources, shutdown.clone()), questions);
    }
}
