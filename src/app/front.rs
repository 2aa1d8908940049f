//! The front door: the first worker accepts, a worker greets, and whoever has proved who they are goes to their
//! plane.

use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::{Listen, ListenOn, ListenRoute};
use super::run::RunError;
use crate::admin::console::{self, Console};
use crate::net::{Acceptor, ConnectionKind, Hello, ListenAddress, Listener, Proxies, Stream, hello};
use crate::proxy::route::Route;
use crate::proxy::{Entrance, Proxy, Seats, Served, Worker};
use crate::relay::Relay;

/// Bound, not yet accepting: what cannot be bound is told before anything else is started.
#[derive(Debug)]
pub(super) struct Listening {
    listeners: Vec<(Listener, Way)>,
    runtime: Runtime,
}

/// How connections come in through a listener.
#[derive(Clone, Debug)]
pub(super) struct Way {
    entrance: Entrance,
    /// `None`: clients come by themselves.
    proxies: Option<Arc<Proxies>>,
}

impl Way {
    fn of(listen: &Listen) -> Way {
        let entrance = Entrance { route: route(listen.route) };
        Way { entrance, proxies: listen.proxies.clone().map(Arc::new) }
    }
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
            listeners.push((listener, Way::of(wanted)));
        }
        drop(inside);
        Ok(Listening { listeners, runtime })
    }

    pub(super) fn addresses(&self) -> Vec<ListenAddress> {
        self.listeners.iter().map(|(listener, _)| listener.address().clone()).collect()
    }

    /// What the first worker runs on and does: it accepts until it is dropped; then the sockets are closed.
    pub(super) fn accepting(self) -> ((Runtime, impl AsyncFnOnce(Seats<Way>) + Send + 'static), Front) {
        let ended = CancellationToken::new();
        let ends = ended.clone().drop_guard();
        let Listening { listeners, runtime } = self;
        let accept = async move |seats: Seats<Way>| {
            // Also when it panics.
            let _ends = ends;
            let seats = Rc::new(seats);
            let mut accepting = JoinSet::new();
            for (listener, way) in listeners {
                accepting.spawn_local(accept(listener, way, seats.clone()));
            }
            accepting.join_next().await;
        };
        ((runtime, accept), Front { ended })
    }
}

/// Accepting connections, as the rest of the instance sees it.
#[derive(Debug)]
pub(super) struct Front {
    ended: CancellationToken,
}

impl Front {
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

async fn accept(listener: Listener, way: Way, seats: Rc<Seats<Way>>) {
    loop {
        let (stream, _) = listener.accept().await;
        seats.give(stream, way.clone());
    }
}

/// What a worker does with a connection. `stop` ends logins; the planes end their own.
pub(super) fn greeter(
    proxy: Proxy,
    relay: Relay,
    console: Arc<Console>,
    acceptor: Arc<Acceptor>,
    stop: CancellationToken,
) -> impl Fn(Rc<Worker>, Stream, Way) -> Served + Clone + Send + 'static {
    let door = Door { proxy, relay, console, acceptor, stop };
    move |worker, stream, way| Box::pin(door.clone().serve(worker, stream, way))
}

#[derive(Clone, Debug)]
struct Door {
    proxy: Proxy,
    relay: Relay,
    console: Arc<Console>,
    acceptor: Arc<Acceptor>,
    stop: CancellationToken,
}

impl Door {
    async fn serve(self, worker: Rc<Worker>, stream: Stream, way: Way) {
        let Way { entrance, proxies } = way;
        // On the heap, each only as long as it lasts: what a login needs is not kept for the session.
        let greeting = Box::pin(hello(stream, proxies.as_deref(), &self.acceptor));
        let Some(greeted) = self.stop.run_until_cancelled(greeting).await else { return };
        match greeted {
            Hello::Closed => {}
            // libpq waits for the end of file; it comes when the cancel has been passed on.
            Hello::Cancel(key, stream) => {
                Box::pin(self.proxy.cancel(&key)).await;
                drop(stream);
            }
            Hello::Client(ConnectionKind::Sql, client) if console::DATABASES.contains(&&*client.database) => {
                Box::pin(self.console.serve(*client, &self.stop)).await;
            }
            Hello::Client(ConnectionKind::Sql, client) => {
                self.proxy.serve(&worker, entrance, client).await;
            }
            Hello::Client(ConnectionKind::PhysicalReplication, client) => {
                Box::pin(self.relay.serve(*client)).await;
            }
            Hello::Client(ConnectionKind::LogicalReplication, client) => {
                Box::pin(self.proxy.replicate(entrance, *client)).await;
            }
        }
    }
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
