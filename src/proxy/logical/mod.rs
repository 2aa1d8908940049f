//! Logical replication (`replication=database`: Debezium, pg_recvlogical), passed through to the primary as it is.
//!
//! Such a client has a server connection of its own, opened as itself and with its own startup parameters, which
//! serves nobody else before or after. It counts against the limits on clients and on server connections, but
//! takes no place in a pool; the limits in time are not for it. Since SQL can be run through it, too, it is a user
//! of the primary like any session: when the primary is none any more the connection is cut (57P01) before
//! the term is confirmed.
//!
//! Not here: routing, and a truth about what was under way when the server was lost: 57P01 leaves it open, as
//! PostgreSQL's own does. Slots are the server's: whether one is there after a failover is between it and the client.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

mod passage;
mod wait;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;

use self::passage::{Next, Passage};
use self::wait::{Obstacle, Patience, Pause};
use super::cancel::{About, Poke, Serving, Slot};
use super::clients::Entered;
use super::config::Entrance;
use super::evidence::{DialEvidence, NodeEvidence};
use super::guc::Startup;
use super::pool::{BackendKey, Key, Permit};
use super::route::{Route, classify};
use super::session::Refusal;
use super::session::lane::Lane;
use super::session::message::{self, Status};
use super::session::run::{application_name, shutting_down};
use super::session::wire::{farewell, read_lane, write_lane};
use super::timeouts::{Activity, Doing};
use super::{Shared, session};
use crate::net::{self, Client, DialError, Stream, Target};
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::pg::protocol::frame::{HEADER_LEN, InvalidLength};
use crate::pg::protocol::startup::CancelKey;
use crate::pg::protocol::{backend, frontend};
use crate::topology::{Durability, NodeName, RemoteApply, Term};

/// Between two looks at whether what is waited for has come.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A client that talks before it was greeted is not listened to beyond this.
const MAX_EARLY: usize = 64 * 1024;

/// Serves `client` until it leaves, or loses the primary.
pub(super) async fn serve(shared: &Shared, entrance: Entrance, client: Client) {
    let plan = shared.plan();
    let _entered = match Entered::new(&shared.clients, &client.database, &client.user, &plan) {
        Ok(entered) => entered,
        Err(error) => return client.refuse(error).await,
    };
    if let Some(error) = unfit(shared, entrance, &client) {
        return client.refuse(error).await;
    }
    let about = About {
        database: client.database.clone(),
        user: client.user.clone(),
        application_name: application_name(&client.parameters),
        peer: client.peer.address,
        connected_at: SystemTime::now(),
    };
    let registered = shared.slots.register(about, client.minor);
    Replication::new(shared, registered.slot.clone(), client).run().await;
}

/// Why what the client asks for cannot be had here.
fn unfit(shared: &Shared, entrance: Entrance, client: &Client) -> Option<ErrorFields> {
    if entrance.route == Route::Standby {
        let message = "logical replication needs the primary, and this listener is for standbys";
        return Some(ErrorFields::fatal(SqlState::READ_ONLY_SQL_TRANSACTION, message));
    }
    let durability = shared.inputs.directive.borrow().durability;
    let settings = Startup::read(&client.parameters).settings;
    Refusal::of(&settings, durability, shared.config().remote_apply).map(|refused| refused.fatal())
}

/// A server connection that is one client's.
#[derive(Debug)]
struct Server {
    stream: Stream,
    node: NodeName,
    /// Behind the stream: the place is free when the connection is gone.
    _permit: Permit,
}

#[derive(Debug)]
struct Replication<'a> {
    shared: &'a Shared,
    slot: Arc<Slot>,
    client: Client,
    /// To the server.
    up: Lane,
    upward: Passage,
    down: Lane,
    downward: Passage,
    farewell: Farewell,
}

/// Who has announced the end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    Nobody,
    /// The client by Terminate, or the server by a FATAL error, which the client has got.
    Said,
}

/// How it ends.
#[derive(Debug)]
enum End {
    ClientLeft,
    /// With these words to the client.
    Tell(ErrorFields),
    /// The server is not the primary any more.
    Cut,
    ServerLost(std::io::Error),
}

impl From<InvalidLength> for End {
    fn from(error: InvalidLength) -> End {
        End::Tell(ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string()))
    }
}

impl<'a> Replication<'a> {
    fn new(shared: &'a Shared, slot: Arc<Slot>, mut client: Client) -> Replication<'a> {
        let (mut up, mut down) = (Lane::default(), Lane::default());
        up.input.push(&client.received.split());
        down.out().extend_from_slice(&client.out.split());
        let (upward, downward) = (Passage::default(), Passage::default());
        Replication { shared, slot, client, up, upward, down, downward, farewell: Farewell::Nobody }
    }

    async fn run(mut self) {
        poll_fn(|cx| {
            self.slot.set_waker(cx.waker());
            Poll::Ready(())
        })
        .await;
        self.tell(Doing::Waiting);
        let mut server = match self.reach().await {
            Ok(server) => server,
            Err(end) => return self.part(end).await,
        };
        // Whoever came behind the shutdown's last look at the slots is not woken by it.
        if self.shared.stop.is_cancelled() {
            return self.part(End::Tell(shutting_down())).await;
        }
        self.tell(Doing::Replicating);
        let (user, database) = (self.client.user.clone(), self.client.database.clone());
        tracing::info!(%user, %database, node = %server.node, "logical replication begins");
        let end = poll_fn(|cx| self.poll(cx, &mut server)).await;
        let node = server.node.clone();
        // Not ours any more before anything else is done: the fence counts it.
        drop(server);
        self.slot.vacate();
        self.shared.pressing.notify_one();
        let end = self.cause(end, &node).await;
        tracing::info!(%user, %database, %node, end = %end, "logical replication ends");
        self.part(end).await;
    }

    fn tell(&self, doing: Doing) {
        self.slot.set_activity(Activity { doing, ..Activity::default() });
    }

    /// A connection to the primary, as soon as there is one.
    async fn reach(&mut self) -> Result<Server, End> {
        let started = Instant::now();
        let plan = self.shared.plan();
        let limits = plan.limits(&self.client.database, &self.client.user);
        let patience = Patience { hold: self.shared.config().hold_clients, wait: limits.wait };
        loop {
            let paused = self.shared.pools.is_paused(&self.client.database);
            let pause = if paused { Pause::Yes } else { Pause::No };
            let found = wait::primary(&self.shared.inputs.directive.borrow(), pause);
            let obstacle = match found {
                Ok((node, term)) => match self.connect(&node, term).await? {
                    Some(server) => return Ok(server),
                    None => Obstacle::Unreachable,
                },
                Err(obstacle) => obstacle,
            };
            let left = patience.left(obstacle, started.elapsed()).map_err(End::Tell)?;
            self.shared.pressing.notify_one();
            tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN.min(left)) => {}
                end = poll_fn(|cx| self.poll_client(cx)) => return Err(end),
            }
        }
    }

    /// `None`: it does not answer, or is the primary no more.
    async fn connect(&mut self, node: &NodeName, term: Term) -> Result<Option<Server>, End> {
        let Client { database, user, .. } = &self.client;
        let key = Key { node: node.clone(), database: database.clone(), user: user.clone() };
        let caps = self.shared.plan().caps(database, user);
        let permit = self.shared.pools.permit(&key, caps).ok_or_else(|| {
            let message = "no server connection is free for logical replication";
            End::Tell(ErrorFields::fatal(SqlState::TOO_MANY_CONNECTIONS, message))
        })?;
        let Some(target) = self.target(node) else { return Ok(None) };
        let limit = self.shared.config().connect_timeout;
        let dialled = tokio::select! {
            dialled = net::dial(&target, limit) => dialled,
            () = self.shared.primary_is_withdrawn(node, term) => return Ok(None),
            end = poll_fn(|cx| self.poll_client(cx)) => return Err(end),
        };
        let backend = match dialled {
            Ok(backend) => backend,
            Err(error) => return self.not_connected(node, error).map(|()| None),
        };
        let key = CancelKey { pid: backend.pid, secret: backend.cancel_key };
        let key = Arc::new(BackendKey { address: target.address, tls: target.tls, key });
        self.slot.serve(Serving { backend: key, node: node.clone(), primary_of: Some(term) });
        if !self.shared.has_primary(node, term) {
            // The order has changed since the choice: nothing of the client's was sent yet.
            self.slot.vacate();
            return Ok(None);
        }
        self.greet(&backend.parameters);
        self.down.input.push(&backend.received);
        Ok(Some(Server { stream: backend.stream, node: node.clone(), _permit: permit }))
    }

    /// `None` when no such node is configured.
    fn target(&self, node: &NodeName) -> Option<Target> {
        let node = self.shared.inputs.nodes.iter().find(|known| known.name == *node)?;
        let mut parameters = self.client.parameters.clone();
        parameters.push(("replication".to_owned(), "database".to_owned()));
        if self.durability() == Durability::Quorum {
            parameters.push(("synchronous_commit".to_owned(), "on".to_owned()));
        }
        Some(Target {
            address: node.address.clone(),
            user: self.client.user.clone(),
            database: self.client.database.clone(),
            credentials: self.client.credentials.clone(),
            tls: self.shared.login.tls.clone(),
            parameters,
        })
    }

    fn durability(&self) -> Durability {
        self.shared.inputs.directive.borrow().durability
    }

    fn not_connected(&self, node: &NodeName, error: DialError) -> Result<(), End> {
        if DialEvidence::from(&error) == DialEvidence::Refused
            && let Some(evidence) = self.evidence(node)
        {
            evidence.refused(Instant::now());
        }
        match error {
            // Starting up, or shutting down: as good as not there.
            DialError::Rejected { error, .. }
                if !matches!(error.code, SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN) =>
            {
                Err(End::Tell(ErrorFields { severity: Severity::Fatal, ..error }))
            }
            error => {
                tracing::info!(%error, "primary not reached");
                Ok(())
            }
        }
    }

    fn evidence(&self, node: &NodeName) -> Option<&NodeEvidence> {
        self.shared.evidence.iter().find(|evidence| evidence.node == *node).map(Arc::as_ref)
    }

    /// As its server did; but the key is ours, which finds the server's.
    fn greet(&mut self, parameters: &[(String, String)]) {
        let out = self.down.out();
        for (name, value) in parameters {
            message::put_parameter(out, name, value);
        }
        let cancel = &self.slot.key;
        message::put(out, backend::BACKEND_KEY_DATA, &[&cancel.pid.to_be_bytes(), &cancel.secret]);
        message::put_ready(out, Status::Idle);
    }

    /// Until the client hangs up, or is to be told to. What it says meanwhile is kept.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.shared.stop.is_cancelled() {
            return Poll::Ready(End::Tell(shutting_down()));
        }
        match self.slot.poked() {
            Some(Poke::End(last_words)) => return Poll::Ready(End::Tell(last_words)),
            Some(Poke::Shutdown) => return Poll::Ready(End::Tell(shutting_down())),
            Some(Poke::Cut | Poke::Unacknowledged) | None => {}
        }
        while self.up.unread().len() < MAX_EARLY {
            match read_lane(&mut self.client.stream, &mut self.up, cx) {
                Ok(Poll::Pending) => break,
                Ok(Poll::Ready(1..)) => {}
                Ok(Poll::Ready(0)) | Err(_) => return Poll::Ready(End::ClientLeft),
            }
        }
        Poll::Pending
    }

    /// Moves bytes both ways until nothing moves any more.
    fn poll(&mut self, cx: &mut Context<'_>, server: &mut Server) -> Poll<End> {
        match self.slot.poked() {
            Some(Poke::Cut) => return Poll::Ready(End::Cut),
            Some(Poke::End(last_words)) => return Poll::Ready(End::Tell(last_words)),
            Some(Poke::Shutdown) => return Poll::Ready(End::Tell(shutting_down())),
            Some(Poke::Unacknowledged) | None => {}
        }
        match self.carry_up(cx, &mut server.stream).and_then(|()| self.carry_down(cx, &mut server.stream)) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    /// A side is read only when the other has taken what was read before: a slow one waits behind its own socket.
    fn carry_up(&mut self, cx: &mut Context<'_>, server: &mut Stream) -> Result<(), End> {
        loop {
            self.approve_up()?;
            // A server that does not take it any more may still have something to say: that is read below.
            let taken = write_lane(server, &mut self.up, cx);
            if taken.is_err() || self.up.has_pending() {
                return Ok(());
            }
            match read_lane(&mut self.client.stream, &mut self.up, cx) {
                Ok(Poll::Pending) => return Ok(()),
                Ok(Poll::Ready(1..)) => {}
                Ok(Poll::Ready(0)) | Err(_) => return Err(End::ClientLeft),
            }
        }
    }

    fn carry_down(&mut self, cx: &mut Context<'_>, server: &mut Stream) -> Result<(), End> {
        loop {
            self.approve_down()?;
            write_lane(&mut self.client.stream, &mut self.down, cx).map_err(|_| End::ClientLeft)?;
            if self.down.has_pending() {
                return Ok(());
            }
            match read_lane(server, &mut self.down, cx).map_err(End::ServerLost)? {
                Poll::Pending => return Ok(()),
                Poll::Ready(1..) => {}
                Poll::Ready(0) => return Err(End::ServerLost(std::io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    fn approve_up(&mut self) -> Result<(), End> {
        let (durability, remote_apply) = (self.durability(), self.shared.config().remote_apply);
        loop {
            let length = match self.upward.next(self.up.unread())? {
                Next::Nothing => return Ok(()),
                Next::Part(length) => length,
                Next::Message(frontend::TERMINATE, message) => {
                    self.farewell = Farewell::Said;
                    message.len()
                }
                Next::Message(frontend::QUERY, message) => {
                    let length = message.len();
                    if let Some(refusal) = refusal(message, durability, remote_apply) {
                        // In its place a text that the server refuses, so that the answers stay in order.
                        self.up.skip(length);
                        message::put_query(self.up.out(), refusal.instead);
                        continue;
                    }
                    length
                }
                Next::Message(_, message) => message.len(),
            };
            self.up.pass(length);
        }
    }

    fn approve_down(&mut self) -> Result<(), End> {
        loop {
            let length = match self.downward.next(self.down.unread())? {
                Next::Nothing => return Ok(()),
                Next::Part(length) => length,
                Next::Message(tag, message) => {
                    if tag == backend::ERROR_RESPONSE
                        && backend::decode_error(&message[HEADER_LEN..]).severity == Severity::Fatal
                    {
                        self.farewell = Farewell::Said;
                    }
                    message.len()
                }
            };
            self.down.pass(length);
        }
    }

    /// What a lost server means: a primary that breaks is on its way to be replaced more often than not, and the
    /// control plane knows a moment later than the socket does.
    async fn cause(&self, end: End, node: &NodeName) -> End {
        let end = match end {
            End::ServerLost(error) if self.farewell == Farewell::Nobody => {
                if let Some(evidence) = self.evidence(node) {
                    evidence.broken(Instant::now());
                }
                self.shared.pressing.notify_one();
                let mut directive = self.shared.inputs.directive.clone();
                let replaced = directive.wait_for(|order| order.writable() != Some(node));
                match tokio::time::timeout(session::detach::VERDICT_LIMIT, replaced).await {
                    Ok(Ok(_)) => End::Cut,
                    Ok(Err(_)) | Err(_) => End::ServerLost(error),
                }
            }
            end => end,
        };
        if matches!(end, End::Cut) {
            self.shared.metrics.pins_cut.with_label_values(&["logical_replication"]).inc();
        }
        end
    }

    async fn part(mut self, end: End) {
        let why = match end {
            End::ClientLeft => return,
            End::ServerLost(_) if self.farewell == Farewell::Said => None,
            End::Tell(error) => Some(error),
            End::Cut => Some(failover()),
            End::ServerLost(_) => Some(lost()),
        };
        let mut rest = BytesMut::new();
        while self.down.has_pending() {
            let pending = self.down.pending();
            rest.extend_from_slice(pending);
            let written = pending.len();
            self.down.wrote(written);
        }
        match why {
            Some(why) if !self.downward.is_amid() => {
                self.client.out = rest;
                self.client.refuse(why).await;
            }
            _ => farewell(&mut self.client.stream, &rest).await,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::ClientLeft => f.write_str("the client has left"),
            End::Tell(error) => error.fmt(f),
            End::Cut => f.write_str("failover"),
            End::ServerLost(error) => write!(f, "the server was lost: {error}"),
        }
    }
}

/// Why this Query is not run.
fn refusal(message: &[u8], durability: Durability, remote_apply: RemoteApply) -> Option<Refusal> {
    if durability == Durability::Async {
        return None;
    }
    let text = message.get(HEADER_LEN..message.len() - 1).and_then(|text| std::str::from_utf8(text).ok())?;
    Refusal::of(&classify(text), durability, remote_apply)
}

fn failover() -> ErrorFields {
    ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "terminating logical replication connection due to failover")
        .with_detail(
            "Its server is not the primary any more. What was under way may or may not have been carried out.",
        )
        .with_hint("Connect again, and look whether the replication slot is there.")
}

fn lost() -> ErrorFields {
    ErrorFields::fatal(SqlState::CONNECTION_FAILURE, "the connection to the primary was lost")
        .with_detail("What was under way may or may not have been carried out.")
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::{About, End, Replication, Server};
    use crate::net::PeerAddress;
    use crate::pg::protocol::startup::Minor;
    use crate::proxy::ProxyConfig;
    use crate::proxy::stage::{Stage, let_in, node_name};
    use crate::topology::{Directive, Term};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum When {
        /// The server has said nothing yet.
        Dialling,
        /// All that it says has come, and was not looked at.
        Greeted,
    }

    /// What comes of a connection when the order changes meanwhile; `None`: it goes on.
    async fn connect(when: When, change: fn(&mut Directive)) -> Option<Result<Option<Server>, End>> {
        let stage = Stage::new(ProxyConfig::default());
        let about = About {
            database: "orders".into(),
            user: "app".into(),
            application_name: "".into(),
            peer: PeerAddress::Unix,
            connected_at: std::time::SystemTime::UNIX_EPOCH,
        };
        let slot = stage.shared().slots.register(about, Minor(0)).slot.clone();
        let (client, _peer) = Stage::client();
        let mut replication = Replication::new(stage.shared(), slot, *client);
        let pg1 = node_name("pg1");
        let mut connecting = std::pin::pin!(replication.connect(&pg1, Term(7)));
        let mut server = tokio::select! {
            server = stage.accept() => server,
            _ = &mut connecting => panic!("nobody has let it in"),
        };
        if when == When::Greeted {
            let_in(&mut server).await;
            // The runtime hears of it meanwhile.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        stage.order(change);
        match connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(connected) => Some(connected),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_primary_that_was_withdrawn_meanwhile_is_not_taken() {
        assert!(connect(When::Dialling, |_| {}).await.is_none());
        // The change and the greeting are looked at in any order.
        for _ in 0..20 {
            assert!(matches!(connect(When::Greeted, |_| {}).await, Some(Ok(Some(_)))));
            for when in [When::Dialling, When::Greeted] {
                let connected = connect(when, |order| *order = order.unvouched()).await;
                assert!(matches!(connected, Some(Ok(None))), "{when:?}: {connected:?}");
                let connected = connect(when, |order| order.term = Term(8)).await;
                assert!(matches!(connected, Some(Ok(None))), "{when:?}: {connected:?}");
            }
        }
    }
}
