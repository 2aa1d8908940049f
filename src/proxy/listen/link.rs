//! The connection that listens: to the primary, as long as it is the primary.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock for rounds and limits")]

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Hub, Hubs};
use crate::net::{self, Backend, Target};
use crate::pg::protocol::backend::{ERROR_RESPONSE, NOTIFICATION_RESPONSE, READY_FOR_QUERY};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::proxy::Shared;
use crate::proxy::session::message::{cstr, put_query, read_error};
use crate::topology::{Directive, NodeName};

/// A round that takes longer is taken for the end of the connection.
const ROUND_LIMIT: Duration = Duration::from_secs(5);
/// A connection that is silent for so long is asked for a sign of life: a host that is gone says nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Nothing that a server says on this connection is longer.
const MAX_MESSAGE: usize = 1 << 20;

/// Keeps a connection for every hub. Never ends.
pub(crate) async fn run(shared: &Arc<Shared>) {
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.hubs.more.notified() => {
                let opened = std::mem::take(&mut *shared.hubs.opened.lock());
                for hub in opened {
                    links.spawn(link(shared.clone(), hub));
                }
            }
            _ = links.join_next(), if !links.is_empty() => {}
        }
    }
}

/// Why there is no connection any more, in words.
type Lost = String;

async fn link(shared: Arc<Shared>, hub: Arc<Hub>) {
    // However this ends, nobody waits for ever.
    let mut closing =
        Closing { hubs: &shared.hubs, hub: &hub, why: "the task ended".to_owned(), failed: None };
    let database = hub.key.database.clone();
    let (backend, node) = match dial(&shared, &hub).await {
        Ok(connected) => connected,
        Err(why) => {
            tracing::info!(%database, why, "no connection to listen by");
            (closing.why, closing.failed) = (why, Some(Instant::now()));
            return;
        }
    };
    match converse(&shared, &hub, backend, &node).await {
        Ok(()) => tracing::debug!(%database, "nobody listens any more"),
        Err(why) => {
            tracing::info!(%database, node = %node, why, "the connection that listens is lost");
            closing.why = why;
        }
    }
}

struct Closing<'a> {
    hubs: &'a Hubs,
    hub: &'a Arc<Hub>,
    why: Lost,
    failed: Option<Instant>,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.hubs.close(self.hub, self.failed);
        self.hub.lose(&self.why);
    }
}

async fn dial(shared: &Shared, hub: &Hub) -> Result<(Backend, NodeName), Lost> {
    let primary = shared.inputs.directive.borrow().writable().cloned().ok_or("there is no primary now")?;
    let node = shared.inputs.nodes.iter().find(|node| node.name == primary).ok_or("no such node")?;
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let target = Target {
        address: node.address.clone(),
        user: hub.user.clone(),
        database: hub.key.database.clone(),
        credentials: hub.credentials.clone(),
        tls: shared.login.tls.clone(),
        parameters: vec![
            setting("application_name", "bellwether_listen"),
            setting("client_encoding", &hub.key.encoding),
            setting("idle_session_timeout", "0"),
        ],
    };
    match net::dial(&target, shared.config().connect_timeout).await {
        Ok(backend) => Ok((backend, primary)),
        Err(error) => Err(error.to_string()),
    }
}

/// Until nobody listens any more.
async fn converse(shared: &Shared, hub: &Arc<Hub>, backend: Backend, node: &NodeName) -> Result<(), Lost> {
    let Backend { mut stream, mut received, .. } = backend;
    let mut directive = shared.inputs.directive.clone();
    let mut heard_at = Instant::now();
    loop {
        hear(hub, &mut received)?;
        if hub.is_deserted() && shared.hubs.close_deserted(hub) {
            return Ok(());
        }
        let (text, under_way_since) = {
            let core = &mut hub.inside.lock().core;
            (core.begin_round(Instant::now()), core.under_way_since())
        };
        if let Some(text) = text {
            let mut query = vec![];
            put_query(&mut query, &text);
            let said = async {
                stream.write_all(&query).await?;
                stream.flush().await
            };
            let said = tokio::time::timeout(ROUND_LIMIT, said).await;
            said.map_err(|_| "it takes nothing".to_owned())?.map_err(|error| error.to_string())?;
        }
        // What comes meanwhile is a sign of life, too: there may be much to say before the answer.
        let limit = if under_way_since.is_some() { ROUND_LIMIT } else { KEEP_ALIVE };
        let alarm = under_way_since.map_or(heard_at, |since| since.max(heard_at)) + limit;
        received.reserve(4096);
        tokio::select! {
            read = stream.read_buf(&mut received) => match read {
                Ok(0) => return Err("the server has closed it".to_owned()),
                Ok(_) => heard_at = Instant::now(),
                Err(error) => return Err(error.to_string()),
            },
            () = hub.work.notified() => {}
            () = replaced(&mut directive, node) => return Err(format!("{node} is no longer the primary")),
            () = tokio::time::sleep_until(alarm.into()) => {
                if under_way_since.is_some() {
                    return Err(format!("it has not answered for {ROUND_LIMIT:?}"));
                }
                hub.inside.lock().core.keep_alive();
            }
        }
    }
}

/// Until another node than `node`, or none, is the primary.
async fn replaced(directive: &mut watch::Receiver<Arc<Directive>>, node: &NodeName) {
    if directive.wait_for(|order| order.primary.as_ref() != Some(node)).await.is_err() {
        // No order will come any more.
        pending::<()>().await;
    }
}

/// All whole messages of `received`.
fn hear(hub: &Hub, received: &mut BytesMut) -> Result<(), Lost> {
    while let Some(header) = Header::peek(received).map_err(|error| error.to_string())? {
        if header.total > MAX_MESSAGE {
            return Err("it says too much at once".to_owned());
        }
        if received.len() < header.total {
            return Ok(());
        }
        let message = received.split_to(header.total);
        match header.tag {
            NOTIFICATION_RESPONSE => {
                let said = read_notification(&message[HEADER_LEN..]).ok_or("a notification is cut short")?;
                let mut inside = hub.inside.lock();
                // A channel whose name is no UTF-8 is nobody's: none could be asked for.
                let Ok(channel) = str::from_utf8(said.channel) else { continue };
                let woken = inside.core.notified(said.backend, channel, said.payload);
                Hub::wake(&inside, woken);
            }
            READY_FOR_QUERY => {
                let mut inside = hub.inside.lock();
                let woken = inside.core.round_done();
                Hub::wake(&inside, woken);
            }
            ERROR_RESPONSE => {
                return Err(read_error(&message).map_or("an error".to_owned(), |error| error.to_string()));
            }
            _ => {}
        }
    }
    Ok(())
}

struct Said<'a> {
    backend: u32,
    channel: &'a [u8],
    payload: &'a [u8],
}

/// The payload of a NotificationResponse.
fn read_notification(bytes: &[u8]) -> Option<Said<'_>> {
    let (backend, rest) = bytes.split_first_chunk::<4>()?;
    let (channel, rest) = cstr(rest)?;
    let (payload, _) = cstr(rest)?;
    Some(Said { backend: u32::from_be_bytes(*backend), channel, payload })
}
