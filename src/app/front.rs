//! The front door: one thread accepts, a worker greets, and whoever has proved who they are goes to their plane.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::{Listen, ListenOn, ListenRoute};
use super::run::RunError;
use crate::net::{Acceptor, Client, ConnectionKind, Detached, Hello, ListenAddress, Listener, hello};
use crate::pg::{ErrorFields, SqlState};
use crate::proxy::route::Route;
use crate::proxy::{Dispatch, Entrance, Proxy, Worker};
use crate::relay::Relay;

/// When every worker's queue is full, connections wait in the kernel's backlog and are offered again so often.
const OFFER_AGAIN: Duration = Duration::from_millis(5);
/// For the last words to a client that is refused.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// A connection nobody has read from, and what its listener asks for.
#[derive(Debug)]
pub(super) struct Accepted {
    stream: Detached,
    entrance: Entrance,
}

/// Bound, not yet accepting: what cannot be bound is told before anything else is started.
#[derive(Debug)]
pub(super) struct Listening {
    listeners: Vec<(Listener, Entrance)>,
    runtime: Runtime,
}

impl Listening {
    pub(super) fn bind(listen: &[Listen]) -> Result<Listening, RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(RunError::Threads)?;
        let inside = runtime.enter();
        let mut listeners = Vec::new();
        for wanted in listen {
            let address = address(&wanted.on);
            let listener = Listener::bind(&address);
            let listener =
                listener.map_err(|source| RunError::Listen { address: address.to_string(), source })?;
            listeners.push((listener, Entrance { route: route(wanted.route) }));
        }
        drop(inside);
        Ok(Listening { listeners, runtime })
    }

    pub(super) fn addresses(&self) -> Vec<ListenAddress> {
        self.listeners.iter().map(|(listener, _)| listener.address().clone()).collect()
    }

    /// Hands connections out until `stop`; then the sockets are closed.
    pub(super) fn start(self, dispatch: Dispatch<Accepted>, stop: CancellationToken) -> io::Result<Front> {
        let ended = CancellationToken::new();
        // Also when the thread panics.
        let ends = ended.clone().drop_guard();
        std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            let _ends = ends;
            let Listening { listeners, runtime } = self;
            runtime.block_on(async {
                let mut accepting = JoinSet::new();
                for (listener, entrance) in listeners {
                    accepting.spawn(accept(listener, entrance, dispatch.clone(), stop.clone()));
                }
                accepting.join_next().await;
            });
        })?;
        Ok(Front { ended })
    }
}

/// The thread that accepts.
#[derive(Debug)]
pub(super) struct Front {
    ended: CancellationToken,
}

impl Front {
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

async fn accept(
    listener: Listener,
    entrance: Entrance,
    dispatch: Dispatch<Accepted>,
    stop: CancellationToken,
) {
    let serving = async {
        loop {
            let (stream, peer) = listener.accept().await;
            match stream.detach() {
                Ok(stream) => offer(Accepted { stream, entrance }, &dispatch).await,
                Err(error) => tracing::debug!(%peer, %error, "a connection ended early"),
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = stop.cancelled() => {}
    }
}

async fn offer(mut accepted: Accepted, dispatch: &Dispatch<Accepted>) {
    while let Err(back) = dispatch.dispatch(accepted) {
        accepted = back;
        tokio::time::sleep(OFFER_AGAIN).await;
    }
}

type Served = Pin<Box<dyn Future<Output = ()>>>;

/// What a worker does with a connection. `stop` ends logins; the planes end their own.
pub(super) fn greeter(
    proxy: Proxy,
    relay: Relay,
    acceptor: Arc<Acceptor>,
    stop: CancellationToken,
) -> impl Fn(Rc<Worker>, Accepted) -> Served + Clone + Send + 'static {
    let door = Door { proxy, relay, acceptor, stop };
    move |worker, accepted| Box::pin(door.clone().serve(worker, accepted))
}

#[derive(Clone, Debug)]
struct Door {
    proxy: Proxy,
    relay: Relay,
    acceptor: Arc<Acceptor>,
    stop: CancellationToken,
}

impl Door {
    async fn serve(self, worker: Rc<Worker>, accepted: Accepted) {
        let Ok(stream) = accepted.stream.attach() else { return };
        let greeted = tokio::select! {
            greeted = hello(stream, &self.acceptor) => greeted,
            () = self.stop.cancelled() => return,
        };
        match greeted {
            Hello::Closed => {}
            // libpq waits for the end of file; it comes when the cancel has been passed on.
            Hello::Cancel(key, stream) => {
                self.proxy.cancel(&key).await;
                drop(stream);
            }
            Hello::Client(ConnectionKind::Sql, client) => {
                self.proxy.serve(&worker, accepted.entrance, client).await;
            }
            Hello::Client(ConnectionKind::PhysicalReplication, client) => self.relay.serve(client).await,
            Hello::Client(ConnectionKind::LogicalReplication, client) => refuse_logical(client).await,
        }
    }
}

async fn refuse_logical(mut client: Client) {
    let why = ErrorFields::fatal(SqlState::FEATURE_NOT_SUPPORTED, "logical replication is not supported yet")
        .with_hint("Connect to the primary for it.");
    why.encode(&mut client.out);
    let farewell = async {
        client.stream.write_all(&client.out).await?;
        client.stream.shutdown().await
    };
    // Whoever does not listen is not told.
    let _ = tokio::time::timeout(FAREWELL_LIMIT, farewell).await;
}

fn address(on: &ListenOn) -> ListenAddress {
    match on {
        ListenOn::Tcp(address) => ListenAddress::Tcp(*address),
        ListenOn::Unix { directory, port } => {
            ListenAddress::Unix { directory: directory.clone(), port: *port }
        }
    }
}

fn route(route: ListenRoute) -> Route {
    match route {
        ListenRoute::Auto => Route::Auto,
        ListenRoute::Primary => Route::Primary,
        ListenRoute::Standby => Route::Standby,
    }
}
