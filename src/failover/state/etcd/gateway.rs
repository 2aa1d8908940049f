#![expect(clippy::disallowed_methods, reason = "shell: measures how long an answer takes")]
//! Requests to etcd's JSON gateway, over HTTP, each with a time limit. One endpoint is asked; whoever fails with it
//! makes the next one the one that is asked.
//!
//! Nothing is tried again here, but for a token that has run out: whether a request may be sent twice its sender knows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use parking_lot::Mutex;
use reqwest::header::AUTHORIZATION;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::client::{Client, ClientError};
use super::metrics::EtcdMetrics;
use super::wire::{Authenticate, Encoded, Failure, Number, Streamed, Token, Watch, WatchAnswer, WatchCreate};
use super::{EtcdConfig, EtcdLogin};

/// Of an answer, or of a line of a stream. etcd's own requests end at 1.5 MiB, a page of the history has some of them.
const MAX_ANSWER: usize = 64 << 20;

/// gRPC's numbers for how a request ended.
const NOT_FOUND: u32 = 5;
const UNAUTHENTICATED: u32 = 16;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{endpoint} is not reached")]
    Http {
        endpoint: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{endpoint} has not answered within {limit:?}")]
    Timeout { endpoint: String, limit: Duration },
    #[error("{endpoint} refuses: {message}")]
    Refused { endpoint: String, code: u32, message: String },
    #[error("{endpoint} gave an answer that cannot be read: {what}")]
    Answer { endpoint: String, what: String },
    #[error("{endpoint} has ended the watch: {why}")]
    WatchEnded { endpoint: String, why: String },
    #[error("{endpoint} is not believed: {why}")]
    Doubted { endpoint: String, why: String },
}

impl RequestError {
    pub(super) fn is_end_of_watch(&self) -> bool {
        matches!(self, RequestError::WatchEnded { .. })
    }

    pub(super) fn is_lease_gone(&self) -> bool {
        matches!(self, RequestError::Refused { code: NOT_FOUND, message, .. } if message.contains("lease not found"))
    }

    /// A token has run out, or is older than a change of etcd's users (`ErrInvalidAuthToken`, `ErrAuthOldRevision`).
    fn wants_new_token(&self) -> bool {
        matches!(self, RequestError::Refused { code, message, .. }
            if *code == UNAUTHENTICATED || message.contains("revision in header is old"))
    }
}

/// Which of the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint(usize);

#[derive(Debug)]
pub(super) struct Gateway {
    client: Client,
    endpoints: Vec<String>,
    /// Of `endpoints`.
    current: AtomicUsize,
    login: Option<EtcdLogin>,
    token: Mutex<Option<String>>,
    limit: Duration,
    metrics: EtcdMetrics,
}

impl Gateway {
    pub(super) fn new(config: &EtcdConfig, metrics: EtcdMetrics) -> Gateway {
        let endpoints = config.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        Gateway {
            client: Client::new(config.tls.clone()),
            endpoints,
            current: AtomicUsize::new(0),
            login: config.login.clone(),
            token: Mutex::new(None),
            limit: config.request_limit(),
            metrics,
        }
    }

    pub(super) fn current(&self) -> Endpoint {
        Endpoint(self.current.load(Ordering::Relaxed))
    }

    /// The next one is asked from now on, unless somebody has gone on from `failed` already.
    pub(super) fn go_on_from(&self, failed: Endpoint) {
        let next = (failed.0 + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(failed.0, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn name(&self, endpoint: Endpoint) -> &str {
        &self.endpoints[endpoint.0]
    }

    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The answer to `request`, within the limit.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        at: Endpoint,
        path: &'static str,
        request: &impl Serialize,
    ) -> Result<T, RequestError> {
        let asked = async {
            let body = self.send(at, path, encoded(request)).await?;
            self.whole(at, body).await
        };
        let sent = Instant::now();
        let asked = self.within_limit(at, asked).await.and_then(|body| self.read(at, &body));
        self.metrics.asked(sent.elapsed(), &asked);
        if asked.as_ref().is_err_and(|error| !error.is_lease_gone()) {
            self.go_on_from(at);
        }
        asked
    }

    /// What happens to the keys that begin with `prefix`, from `start_revision` on.
    pub(super) async fn watch(
        &self,
        at: Endpoint,
        prefix: &str,
        start_revision: u64,
    ) -> Result<Changes<'_>, RequestError> {
        let key = Encoded::from(prefix);
        let range_end = key.end_of_prefix();
        let create_request = WatchCreate { key, range_end, start_revision: Number(start_revision) };
        let body = encoded(&Watch { create_request });
        let begun = self.within_limit(at, self.send(at, "watch", body)).await;
        let answer = begun.inspect_err(|_| self.go_on_from(at))?;
        Ok(Changes { gateway: self, at, answer, buffer: BytesMut::new() })
    }

    async fn within_limit<T>(
        &self,
        at: Endpoint,
        work: impl Future<Output = Result<T, RequestError>>,
    ) -> Result<T, RequestError> {
        let endpoint = || self.name(at).to_owned();
        let limit = self.limit;
        timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(RequestError::Timeout { endpoint: endpoint(), limit }))
    }

    /// Until an answer begins that is none of failure.
    async fn send(
        &self,
        at: Endpoint,
        path: &'static str,
        body: Vec<u8>,
    ) -> Result<reqwest::Response, RequestError> {
        if self.login.is_some() && self.token.lock().is_none() {
            self.log_in(at).await?;
        }
        match self.post(at, path, body.clone()).await {
            Err(error) if self.login.is_some() && error.wants_new_token() => {
                self.log_in(at).await?;
                self.post(at, path, body).await
            }
            sent => sent,
        }
    }

    async fn log_in(&self, at: Endpoint) -> Result<(), RequestError> {
        let Some(EtcdLogin { user, password }) = &self.login else { return Ok(()) };
        *self.token.lock() = None;
        let request = encoded(&Authenticate { name: user, password });
        let answer = self.post(at, "auth/authenticate", request).await?;
        let Token { token } = self.read(at, &self.whole(at, answer).await?)?;
        *self.token.lock() = Some(token);
        Ok(())
    }

    async fn post(
        &self,
        at: Endpoint,
        path: &'static str,
        body: Vec<u8>,
    ) -> Result<reqwest::Response, RequestError> {
        let url = format!("{}/v3/{path}", self.name(at));
        // A member that has lost the others is to say so instead of being silent (etcd's `WithRequireLeader`).
        let client = self.client.http().await?;
        let mut request = client.post(url).header("Grpc-Metadata-hasleader", "true").body(body);
        if let Some(token) = self.token.lock().clone() {
            request = request.header(AUTHORIZATION, token);
        }
        let answer = request.send().await.map_err(|source| self.http(at, source))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = self.whole(at, answer).await?;
        let failure = serde_json::from_slice::<Answered>(&body).map(Answered::failure).unwrap_or_default();
        let message = if failure.message.is_empty() { status.to_string() } else { failure.message };
        Err(RequestError::Refused { endpoint: self.name(at).to_owned(), code: failure.code, message })
    }

    async fn whole(&self, at: Endpoint, mut answer: reqwest::Response) -> Result<BytesMut, RequestError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(|source| self.http(at, source))? {
            body.extend_from_slice(&chunk);
            self.bounded(at, &body)?;
        }
        Ok(body)
    }

    /// The only message of a stream.
    pub(super) fn streamed<T>(&self, at: Endpoint, message: Streamed<T>) -> Result<T, RequestError> {
        match message {
            Streamed::Result(answer) => Ok(answer),
            Streamed::Error(Failure { code, message }) => {
                Err(RequestError::Refused { endpoint: self.name(at).to_owned(), code, message })
            }
        }
    }

    fn bounded(&self, at: Endpoint, body: &BytesMut) -> Result<(), RequestError> {
        let too_long = || self.unreadable(at, format!("it is longer than {MAX_ANSWER} bytes"));
        if body.len() <= MAX_ANSWER { Ok(()) } else { Err(too_long()) }
    }

    fn read<T: DeserializeOwned>(&self, at: Endpoint, body: &[u8]) -> Result<T, RequestError> {
        serde_json::from_slice(body).map_err(|error| self.unreadable(at, error.to_string()))
    }

    fn unreadable(&self, at: Endpoint, what: String) -> RequestError {
        RequestError::Answer { endpoint: self.name(at).to_owned(), what }
    }

    fn http(&self, at: Endpoint, source: reqwest::Error) -> RequestError {
        self.client.has_failed();
        RequestError::Http { endpoint: self.name(at).to_owned(), source: source.without_url() }
    }
}

/// A watch that goes on.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    gateway: &'a Gateway,
    at: Endpoint,
    answer: reqwest::Response,
    /// What was received of the next line.
    buffer: BytesMut,
}

impl Changes<'_> {
    /// May be dropped while it waits: nothing is lost then. How long it waits is its caller's to limit.
    pub(super) async fn next(&mut self) -> Result<WatchAnswer, RequestError> {
        let next = self.receive().await;
        next.inspect_err(|_| self.gateway.go_on_from(self.at))
    }

    async fn receive(&mut self) -> Result<WatchAnswer, RequestError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return self.understood(&line);
            }
            self.gateway.bounded(self.at, &self.buffer)?;
            let received = self.answer.chunk().await.map_err(|source| self.gateway.http(self.at, source))?;
            let chunk = received.ok_or_else(|| self.ended("closed".to_owned()))?;
            self.buffer.extend_from_slice(&chunk);
        }
    }

    fn understood(&self, line: &[u8]) -> Result<WatchAnswer, RequestError> {
        match self.gateway.read(self.at, line)? {
            Streamed::Error(Failure { message, .. }) => Err(self.ended(message)),
            Streamed::Result(WatchAnswer { canceled: true, compact_revision, cancel_reason, .. }) => {
                let compacted = || format!("compacted up to revision {}", compact_revision.0);
                Err(self.ended(if cancel_reason.is_empty() { compacted() } else { cancel_reason }))
            }
            Streamed::Result(answer) => Ok(answer),
        }
    }

    /// Another endpoint is asked by now.
    pub(super) fn left(&self) -> RequestError {
        self.ended("left for another endpoint".to_owned())
    }

    fn ended(&self, why: String) -> RequestError {
        RequestError::WatchEnded { endpoint: self.gateway.name(self.at).to_owned(), why }
    }
}

/// A failure, by itself or as the only message of a stream.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Answered {
    Streamed { error: Failure },
    Plain(Failure),
}

impl Answered {
    fn failure(self) -> Failure {
        match self {
            Answered::Streamed { error } | Answered::Plain(error) => error,
        }
    }
}

fn encoded(request: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(request).expect("numbers and text are JSON")
}
