//! The front door: the first worker accepts, a worker greets, and whoever has proved who they are goes to their
//! plane.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::{Listen, ListenOn, ListenRoute};
use super::run::RunError;
use super::takeover::Inherited;
use crate::admin::console::{self, Console};
use crate::net::{
    Acceptor, CancelKey, ConnectionKind, Hello, ListenAddress, Listener, Proxies, SocketFile, SocketMode,
    Stream, hello,
};
use crate::proxy::route::Route;
use crate::proxy::{Entrance, Proxy, Seats, Served, Worker};
use crate::relay::Relay;

/// Bound, not yet accepting: what cannot be bound is told before anything else is started.
#[derive(Debug)]
pub(super) struct Listening {
    listeners: Vec<(Listener, Way)>,
    runtime: Unused,
}

/// A runtime that nothing runs on yet. The usual drop waits, which is not allowed where this one may happen.
#[derive(Debug)]
struct Unused(Option<Runtime>);

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
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
    /// A socket that is inherited is not bound again.
    pub(super) fn bind(listen: &[Listen], inherited: &mut Inherited) -> Result<Listening, RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = Unused(Some(runtime.map_err(RunError::Threads)?));
        let inside = runtime.0.as_ref().map(Runtime::enter);
        let mut listeners = Vec::new();
        for wanted in listen {
            let address = address(&wanted.on);
            let listener = match inherited.clients(&address) {
                Some(socket) => Listener::adopt(&address, socket),
                None => Listener::bind(&address, mode(&wanted.on)),
            };
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

    /// What the first worker runs on and does: while the front is open it accepts, until that is dropped; then the
    /// sockets are closed.
    #[expect(clippy::type_complexity, reason = "a function in it has no name")]
    pub(super) fn accepting(
        mut self,
    ) -> io::Result<((Runtime, impl AsyncFnOnce(Seats<Way>) + Send + 'static), Front)> {
        let mut sockets = Vec::new();
        for (listener, _) in &mut self.listeners {
            sockets.push(Shared {
                address: listener.address().clone(),
                socket: listener.share()?,
                file: listener.take_file(),
            });
        }
        let ended = CancellationToken::new();
        let ends = ended.clone().drop_guard();
        let (gate, opened) = watch::channel(Gate::Closed);
        let Listening { listeners, mut runtime } = self;
        let runtime = runtime.0.take().expect("taken here only");
        let accept = async move |seats: Seats<Way>| {
            // Also when it panics.
            let _ends = ends;
            let seats = Rc::new(seats);
            let mut accepting = JoinSet::new();
            for (listener, way) in listeners {
                accepting.spawn_local(accept(listener, way, seats.clone(), opened.clone()));
            }
            accepting.join_next().await;
        };
        Ok(((runtime, accept), Front { ended, gate, sockets }))
    }
}

/// Accepting connections, as the rest of the instance sees it. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Front {
    ended: CancellationToken,
    gate: watch::Sender<Gate>,
    sockets: Vec<Shared>,
}

/// While it is closed, who connects waits in the sockets' backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Closed,
    Open,
}

/// A listening socket that the first worker accepts from.
#[derive(Debug)]
struct Shared {
    address: ListenAddress,
    socket: OwnedFd,
    file: Option<SocketFile>,
}

impl Front {
    /// From now on the sockets are this process's.
    pub(super) fn open(&self) {
        for Shared { address, file, .. } in &self.sockets {
            if let Some(Err(error)) = file.as_ref().map(SocketFile::claim) {
                tracing::warn!(listen = %address, %error, "the socket's lock file names another process");
            }
        }
        self.gate.send_replace(Gate::Open);
    }

    pub(super) fn close(&self) {
        self.gate.send_replace(Gate::Closed);
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = (&ListenAddress, BorrowedFd<'_>)> {
        self.sockets.iter().map(|shared| (&shared.address, shared.socket.as_fd()))
    }

    /// The sockets are another process's; here they are closed.
    pub(super) fn hand_over(self) {
        for shared in self.sockets {
            if let Some(file) = shared.file {
                file.leave();
            }
        }
    }

    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

async fn accept(listener: Listener, way: Way, seats: Rc<Seats<Way>>, mut gate: watch::Receiver<Gate>) {
    while gate.wait_for(|gate| *gate == Gate::Open).await.is_ok() {
        tokio::select! {
            (stream, _) = listener.accept() => seats.give(stream, way.clone()),
            changed = gate.changed() => if changed.is_err() { return },
        }
    }
}

/// What a worker does with a connection. `stop` ends logins; the planes end their own.
pub(super) fn greeter(
    proxy: Proxy,
    relay: Relay,
    console: Arc<Console>,
    acceptor: Arc<Acceptor>,
    elsewhere: Option<mpsc::Sender<CancelKey>>,
    stop: CancellationToken,
) -> impl Fn(Rc<Worker>, Stream, Way) -> Served + Clone + Send + 'static {
    let door = Door { proxy, relay, console, acceptor, elsewhere, stop };
    move |worker, stream, way| Box::pin(door.clone().serve(worker, stream, way))
}

#[derive(Clone, Debug)]
struct Door {
    proxy: Proxy,
    relay: Relay,
    console: Arc<Console>,
    acceptor: Arc<Acceptor>,
    /// Whoever is not known here may be a client of the process before this one.
    elsewhere: Option<mpsc::Sender<CancelKey>>,
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
                if !Box::pin(self.proxy.cancel(&key)).await
                    && let Some(elsewhere) = &self.elsewhere
                {
                    // It may be lost, as any may.
                    let _ = elsewhere.try_send(key);
                }
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
        ListenOn::Unix { directory, port, .. } => {
            ListenAddress::Unix { directory: directory.clone(), port: *port }
        }
    }
}

fn mode(on: &ListenOn) -> SocketMode {
    match on {
        ListenOn::Tcp(_) => SocketMode::default(),
        ListenOn::Unix { mode, .. } => *mode,
    }
}

fn route(route: ListenRoute) -> Route {
    match route {
        ListenRoute::Auto => Route::Auto,
        ListenRoute::Primary => Route::Primary,
        ListenRoute::Standby => Route::Standby,
    }
}
