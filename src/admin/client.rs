//! The other end, for the admin commands: one exchange, bounded in time and size.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// For a question and its answer.
const LIMIT: Duration = Duration::from_secs(5);
/// For an order: a reload runs the commands that print secrets.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// Of an answer's body.
const MAX_BODY: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url} is not of the form http://HOST:PORT")]
    Url { url: String },
    #[error("no instance answers at {url}")]
    Connect {
        url: String,
        #[source]
        source: io::Error,
    },
    #[error("{url} did not answer within {limit:?}")]
    Timeout { url: String, limit: Duration },
    #[error("{url} answered {status}: {body}")]
    Status { url: String, status: StatusCode, body: String },
    #[error("{url} does not speak HTTP")]
    Http { url: String, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The body at `path` of the instance at `base` (`http://127.0.0.1:9632`).
pub async fn fetch(base: &str, path: &str) -> Result<Bytes, ClientError> {
    ask(Method::GET, base, path, LIMIT).await
}

/// Has the instance at `base` do what `path` says; its answer.
pub async fn post(base: &str, path: &str) -> Result<Bytes, ClientError> {
    ask(Method::POST, base, path, ORDER_LIMIT).await
}

async fn ask(method: Method, base: &str, path: &str, limit: Duration) -> Result<Bytes, ClientError> {
    let url = base.to_owned();
    let authority = base.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let Some(authority) = authority.filter(|it| !it.is_empty() && !it.contains('/')) else {
        return Err(ClientError::Url { url });
    };
    match tokio::time::timeout(limit, exchange(&url, authority, method, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::Timeout { url, limit }),
    }
}

async fn exchange(url: &str, authority: &str, method: Method, path: &str) -> Result<Bytes, ClientError> {
    let http =
        |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Http { url: url.to_owned(), source };
    let stream = TcpStream::connect(authority)
        .await
        .map_err(|source| ClientError::Connect { url: url.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| http(e.into()))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|e| http(e.into()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| http(e.into()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(http)?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let body = String::from_utf8_lossy(&body).trim_end().to_owned();
        Err(ClientError::Status { url: url.to_owned(), status, body })
    };
    // The connection carries the exchange; it ends with it.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}
