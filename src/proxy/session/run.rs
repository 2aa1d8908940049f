//! The session's shell: one task, two sockets, no decision.
//!
//! Every turn moves what can be moved and then waits for both sockets at once. A slow client is not read for
//! by its server's side: while answers are pending the server's socket is left alone, so the server waits and
//! nothing piles up here.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use super::attach::Refusal;
use super::core::{Ask, Core, Demand, Heard, ServerState, Texts};
use super::durability;
use super::hear::Ear;
use super::knobs::{Defaults, Knobs};
use super::lane::Lane;
use super::look::MAX_LOOK;
use super::losses::Loss;
use super::message;
use super::tally::Tally;
use super::wire::{farewell, read_lane, write_lane};
use crate::net::{Client, Credentials, Stream};
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::cancel::{About, Poke, Registered, Slot};
use crate::proxy::clients::Entered;
use crate::proxy::config::Entrance;
use crate::proxy::guc::{Settings, Startup};
use crate::proxy::limits::Limits;
use crate::proxy::pool::{Lease, Pool};
use crate::proxy::stats::Counts;
use crate::proxy::timeouts::{Activity, Doing};
use crate::proxy::{Shared, Worker};
use crate::topology::{Durability, NodeName, RemoteApply, Role, Term};

/// How long SHOW bellwether.lsn waits for the position of the write before it; then it is empty.
const POSITION_LIMIT: Duration = Duration::from_secs(1);
/// From one look whether it is known to the next.
const POSITION_PAUSE: Duration = Duration::from_millis(5);

/// A server at the session's disposal.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) lease: Lease,
    pub(super) node: NodeName,
    pub(super) role: Role,
    /// In which it was chosen.
    pub(super) term: Term,
    pub(super) since: Instant,
    /// What was set at the server when it came.
    pub(super) settings_before: Arc<Settings>,
}

#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) shared: &'a Shared,
    pub(super) worker: &'a Worker,
    pub(super) client: Stream,
    pub(super) core: Core,
    pub(super) up: Lane,
    pub(super) down: Lane,
    pub(super) slot: Arc<Slot>,
    pub(super) attached: Option<Attached>,
    /// The pools this session has used.
    pub(super) pools: Vec<Arc<Pool>>,
    pub(super) user: Arc<str>,
    pub(super) database: Arc<str>,
    pub(super) credentials: Credentials,
    pub(super) ear: Ear,
    /// As last told to whoever looks at the time it takes.
    activity: Activity,
    pub(super) tally: Tally,
    /// Where it is added to; from the first transaction on.
    counts: Option<Arc<Counts>>,
    /// When the last write's answer came, while its position is not known.
    pub(super) written_at: Option<Instant>,
    pub(super) retries: u32,
    /// Why it keeps its server, as it was last told and counted.
    pinned: Option<&'static str>,
    pub(super) ending: bool,
    // Last, so that they are dropped when nothing of the session is left.
    _registered: Registered<'a>,
    _entered: Entered<'a>,
}

/// Why a turn ended.
#[derive(Debug)]
pub(super) enum Turn {
    Need(Demand),
    /// The client asks where its last write is.
    Position,
    /// The server can go back.
    Release,
    ServerLost {
        loss: Loss,
        what: String,
    },
    /// The server did not take the client's settings.
    Refused(ErrorFields),
    /// The client is told, and disconnected.
    Fatal(ErrorFields),
    /// The server has told it.
    Over,
    /// The client has said goodbye; it may still read.
    Terminate,
    /// The client hung up.
    End,
}

/// Serves `client` until it leaves.
pub(crate) async fn serve(shared: &Shared, worker: &Rc<Worker>, entrance: Entrance, client: Box<Client>) {
    match Session::begin(shared, worker, entrance, client) {
        Ok(mut session) => {
            session.run().await;
            Box::pin(session.finish()).await;
        }
        Err(Refused { mut stream, last_words }) => Box::pin(farewell(&mut stream, &last_words)).await,
    }
}

/// A client that cannot have a session.
pub(super) struct Refused {
    stream: Stream,
    last_words: Vec<u8>,
}

impl<'a> Session<'a> {
    /// On the heap: most sessions are idle, and what serves them should hold a pointer only. Of the login only what
    /// is needed is kept.
    pub(super) fn begin(
        shared: &'a Shared,
        worker: &'a Worker,
        entrance: Entrance,
        client: Box<Client>,
    ) -> Result<Box<Session<'a>>, Refused> {
        let Client { stream, peer, received, out, user, database, parameters, credentials, minor } = *client;
        let config = shared.config();
        let counted = Entered::new(&shared.clients, &database, &user, &config.plan);
        let startup = Startup::read(&parameters);
        let durability = shared.inputs.directive.borrow().durability;
        let defaults = Defaults { route: entrance.route, consistency: config.consistency };
        let admitted = counted
            .and_then(|entered| Ok((entered, admit(&startup, defaults, durability, config.remote_apply)?)));
        let (entered, knobs) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                let mut last_words = out.to_vec();
                message::put_error(&mut last_words, &error);
                return Err(Refused { stream, last_words });
            }
        };
        let mode = config.plan.limits(&database, &user).mode;
        let number = shared.last_session.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "only has to be unique among living sessions")]
        let core = Core::new(mode, number as u32, knobs)
            .with_durability(durability)
            .with_remote_apply(config.remote_apply)
            .with_resolved_commits(config.resolve_commits)
            .with_settings(worker.startup(startup.settings))
            .with_schema(shared.statements.schema.clone());
        let about = About {
            database: database.clone(),
            user: user.clone(),
            application_name: application_name(&parameters),
            peer: peer.address,
            connected_at: SystemTime::now(),
        };
        let registered = shared.slots.register(about, minor);
        if shared.stop.is_cancelled() {
            // Who tells the sessions may have seen the last of them.
            let mut last_words = out.to_vec();
            message::put_error(&mut last_words, &shutting_down());
            return Err(Refused { stream, last_words });
        }
        let mut session = Box::new(Session {
            shared,
            worker,
            client: stream,
            core: core.with_pid(registered.slot.key.pid),
            up: Lane::default(),
            down: Lane::default(),
            slot: registered.slot.clone(),
            attached: None,
            pools: vec![],
            user,
            database,
            credentials,
            ear: Ear::default(),
            activity: Activity::default(),
            tally: Tally::default(),
            counts: None,
            written_at: None,
            retries: 0,
            pinned: None,
            ending: false,
            _registered: registered,
            _entered: entered,
        });
        // Who changes them looks for slots afterwards: one of the two finds the other.
        session.slot.set_timeouts(session.limits().timeouts);
        session.up.input.push(&received);
        session.down.out().extend_from_slice(&out);
        Ok(session)
    }
}

/// What the startup packet says of routing, if it says nothing that cannot be had.
fn admit(
    startup: &Startup,
    defaults: Defaults,
    durability: Durability,
    remote_apply: RemoteApply,
) -> Result<Knobs, ErrorFields> {
    if let Some(refused) = durability::Refusal::of(&startup.settings, durability, remote_apply) {
        return Err(refused.fatal());
    }
    let knobs = Knobs::new(defaults, &startup.knobs);
    knobs.map_err(|error| ErrorFields::fatal(error.sqlstate(), error.to_string()))
}

impl Session<'_> {
    /// As of now.
    pub(super) fn limits(&self) -> Limits {
        self.shared.plan().limits(&self.database, &self.user)
    }

    async fn run(&mut self) {
        poll_fn(|cx| {
            self.slot.set_waker(cx.waker());
            Poll::Ready(())
        })
        .await;
        // What few sessions do, or once only, is awaited on the heap: the others need no room for it.
        if let Err(error) = Box::pin(self.greet()).await {
            return Box::pin(self.say_farewell(&error)).await;
        }
        loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Turn::Need(demand) => match self.attach(&demand).await {
                    Ok(()) => self.own_server(),
                    Err(Refusal::Unit(error)) => self.core.refuse(&error, &mut self.up, &mut self.down),
                    Err(Refusal::Session(error)) => return Box::pin(self.say_farewell(&error)).await,
                    Err(Refusal::Gone) => return,
                },
                Turn::Position => Box::pin(self.await_position()).await,
                Turn::Release => self.release().await,
                Turn::ServerLost { loss, what } => {
                    if let Err(error) = Box::pin(self.lost(loss, &what)).await {
                        if let Some(error) = error {
                            Box::pin(self.say_farewell(&error)).await;
                        }
                        return;
                    }
                }
                Turn::Refused(error) => {
                    if let Err(error) = self.settings_refused(error) {
                        return Box::pin(self.say_farewell(&error)).await;
                    }
                }
                Turn::Fatal(error) => return Box::pin(self.say_farewell(&error)).await,
                Turn::Over => {
                    self.drop_server();
                    return Box::pin(self.say_rest()).await;
                }
                Turn::Terminate => return Box::pin(self.say_rest()).await,
                Turn::End => return,
            }
        }
    }

    /// Moves bytes until nothing moves any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if let Some(turn) = self.poked() {
            return Poll::Ready(turn);
        }
        self.worker.lend([&mut self.up, &mut self.down]);
        loop {
            let mut moved = match self.hear_shared() {
                Ok(moved) => moved,
                Err(turn) => return Poll::Ready(turn),
            };
            match self.write_client(cx) {
                Ok(wrote) => moved |= wrote,
                Err(_) => return Poll::Ready(Turn::End),
            }
            if let Some(turn) = self.decide() {
                return Poll::Ready(turn);
            }
            if self.attached.is_some() {
                match self.exchange(cx) {
                    Ok(Some(turn)) => return Poll::Ready(turn),
                    Ok(None) => {}
                    Err(error) => {
                        let what = error.to_string();
                        return Poll::Ready(Turn::ServerLost { loss: Loss::Connection, what });
                    }
                }
            }
            if self.down.has_pending() && self.client_takes(cx) {
                continue;
            }
            match self.read_client(cx) {
                Ok(read) => moved |= read,
                Err(_) => return Poll::Ready(Turn::End),
            }
            moved |= self.ear.take_asked();
            if !moved {
                self.tell_activity();
                self.worker.take_back([&mut self.up, &mut self.down]);
                return Poll::Pending;
            }
        }
    }

    /// For the limits in time: no clock is read here.
    fn tell_activity(&mut self) {
        let doing = match (self.attached.is_some() && self.core.is_busy(), self.core.status()) {
            (true, _) if self.core.may_be_committing() => Doing::Committing,
            (true, _) => Doing::Query,
            (false, message::Status::Idle) => Doing::Idle,
            (false, message::Status::Block | message::Status::Failed) => Doing::IdleInTransaction,
        };
        self.tell(doing);
    }

    pub(super) fn tell(&mut self, doing: Doing) {
        let (statements, transactions) = self.core.answered();
        let activity = Activity { doing, statements, transactions };
        if activity != self.activity {
            self.add_to_stats(activity);
            self.activity = activity;
            self.slot.set_activity(activity);
        }
    }

    /// What was used since the last transaction that was counted.
    fn add_to_stats(&mut self, activity: Activity) {
        if activity.transactions == self.activity.transactions {
            return;
        }
        let more = self.tally.take(activity, self.up.received, self.down.written);
        if self.counts.is_none() {
            self.counts = self.worker.counts(&self.database, &self.shared.stats);
        }
        if let Some(counts) = &self.counts {
            counts.add(more);
        }
    }

    fn poked(&mut self) -> Option<Turn> {
        match self.slot.poked()? {
            Poke::Cut if self.attached.is_some() => Some(Turn::ServerLost {
                loss: Loss::Failover,
                what: "a failover has begun, or WAL is not received any more: this server's commits count no more"
                    .to_owned(),
            }),
            Poke::Cut => None,
            Poke::Unacknowledged => (self.attached.is_some() && self.core.may_be_committing()).then(|| {
                Turn::ServerLost {
                    loss: Loss::Unacknowledged,
                    what: "too few relays acknowledge WAL, and the commit has waited for as long as it may".to_owned(),
                }
            }),
            Poke::Shutdown => {
                self.ending = true;
                (self.attached.is_none() || self.is_between()).then(|| Turn::Fatal(shutting_down()))
            }
            Poke::End(last_words) => Some(Turn::Fatal(last_words)),
        }
    }

    /// Between two transactions, with nothing under way.
    pub(super) fn is_between(&self) -> bool {
        !self.core.is_busy() && self.core.status() == message::Status::Idle
    }

    /// What the client's bytes ask for.
    fn decide(&mut self) -> Option<Turn> {
        loop {
            if self.up.unread().is_empty() {
                return None;
            }
            match self.ask() {
                Ask::Nothing => return None,
                Ask::Server(demand) => return Some(Turn::Need(demand)),
                Ask::Listen(channels) => self.ask_to_listen(&channels),
                Ask::Position => return Some(Turn::Position),
                Ask::End => return Some(Turn::Terminate),
                Ask::Fatal(error) => return Some(Turn::Fatal(error)),
            }
        }
    }

    fn ask(&mut self) -> Ask {
        let mut classifier = self.worker.classifier.borrow_mut();
        let mut texts = Texts { classifier: &mut classifier, statements: &self.shared.statements };
        let server = self.attached.as_mut().and_then(|attached| attached.lease.connection());
        let server = server.map(|server| &mut server.state);
        let ask = self.core.client(&mut self.up, &mut self.down, server, &mut texts);
        if self.core.awaits_origin() {
            self.note_origin();
        }
        ask
    }

    /// To and from the server.
    fn exchange(&mut self, cx: &mut Context<'_>) -> io::Result<Option<Turn>> {
        loop {
            let Some(server) = self.attached.as_mut().and_then(|attached| attached.lease.connection()) else {
                return Ok(None);
            };
            write_lane(&mut server.stream, &mut self.up, cx)?;
            if self.down.has_pending() || self.core.holds_server() {
                return Ok(None);
            }
            let is_at_hand = self.ear.take_resumed() && !self.down.unread().is_empty();
            if !is_at_hand && read_server(&mut server.stream, &mut self.down, self.worker, cx)?.is_pending() {
                return Ok(None);
            }
            let answered = self.core.has_answered();
            let heard = hear(&mut self.core, &mut self.down, &mut self.up, &mut server.state);
            let unbegun = matches!(heard, Heard::Lost(_)) && !self.core.has_answered();
            if matches!(heard, Heard::Lost(_)) && !answered {
                // The start of an answer and its end came in one read: the client has seen nothing of it.
                self.core.take_answer_back(&mut self.down);
            }
            match heard {
                Heard::Nothing => {}
                Heard::Ready if self.core.can_release(&self.up) => return Ok(Some(Turn::Release)),
                Heard::Ready if self.ending && self.is_between() => {
                    return Ok(Some(Turn::Fatal(shutting_down())));
                }
                Heard::Ready => {}
                Heard::Settle => {
                    self.ask_to_settle();
                    return Ok(None);
                }
                Heard::Lost(error) => return Ok(Some(farewell_of_server(error, unbegun))),
                Heard::Over => return Ok(Some(Turn::Over)),
                Heard::Broken(error) => return Ok(Some(Turn::Fatal(error))),
                Heard::Refused(error) => return Ok(Some(Turn::Refused(error))),
            }
            self.tell_pin();
            // What was heard may let the client's next unit go.
            if let Some(turn) = self.decide() {
                return Ok(Some(turn));
            }
            if self.write_client(cx).is_err() {
                return Ok(Some(Turn::End));
            }
        }
    }

    pub(super) fn write_client(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        write_lane(&mut self.client, &mut self.down, cx)
    }

    /// Whether a second attempt to write got anywhere; otherwise the waker is registered.
    fn client_takes(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(self.write_client(cx), Ok(true))
    }

    pub(super) fn read_client(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let most = self.core.wants().max(MAX_LOOK);
        if self.up.has_pending() || self.up.unread().len() >= most || self.down.is_backed_up() {
            return Ok(false);
        }
        if !self.up.input.has_storage() {
            self.up.input.lend(self.worker.buffer());
        }
        match read_lane(&mut self.client, &mut self.up, cx)? {
            Poll::Ready(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(_) => Ok(true),
            Poll::Pending => Ok(false),
        }
    }

    /// Whether the client has hung up. What it said before is kept.
    pub(super) async fn has_left(&mut self) -> bool {
        poll_fn(|cx| {
            loop {
                match self.read_client(cx) {
                    Ok(true) => {}
                    Ok(false) => return Poll::Ready(false),
                    Err(_) => return Poll::Ready(true),
                }
            }
        })
        .await
    }

    /// Remembers that the session has written.
    pub(super) fn note_write(&mut self, now: Instant) {
        let on_primary = self.attached.as_ref().is_some_and(|attached| attached.role == Role::Primary);
        if self.core.take_ended().wrote && on_primary {
            self.core.knobs.write = crate::proxy::route::OwnWrite::Unknown;
            self.written_at = Some(now);
            self.shared.sampler.want();
        }
    }

    /// Until the position of the last write is known, the session is to do something else, or the limit is over.
    async fn await_position(&mut self) {
        let known = async {
            loop {
                self.learn_position();
                if self.written_at.is_none() || self.slot.is_poked() {
                    return;
                }
                tokio::time::sleep(POSITION_PAUSE).await;
            }
        };
        // Whoever hears nothing then knows as little as before.
        drop(tokio::time::timeout(POSITION_LIMIT, known).await);
    }

    /// For whoever asks why servers are kept.
    pub(super) fn tell_pin(&mut self) {
        let pinned = self.core.pinned();
        if pinned == self.pinned {
            return;
        }
        if let (None, Some(reason)) = (self.pinned, pinned) {
            self.shared.metrics.pins.with_label_values(&[reason]).inc();
        }
        self.pinned = pinned;
        self.slot.set_pinned(pinned);
    }

    pub(super) async fn say_farewell(&mut self, error: &ErrorFields) {
        if !self.core.is_amid_an_answer() {
            message::put_error(self.down.out(), error);
        }
        self.say_rest().await;
    }

    /// The rest of the answers, in one run of bytes, and the end.
    async fn say_rest(&mut self) {
        let mut bytes = vec![];
        while self.down.has_pending() {
            bytes.extend_from_slice(self.down.pending());
            let written = self.down.pending().len();
            self.down.wrote(written);
        }
        farewell(&mut self.client, &bytes).await;
    }
}

/// All that was read, up to the point where the server can go back.
fn hear(core: &mut Core, down: &mut Lane, up: &mut Lane, server: &mut ServerState) -> Heard {
    loop {
        match core.server(down, server) {
            // More may have been read behind it, for the next unit of a pipeline.
            Heard::Ready if !core.can_release(up) && !down.unread().is_empty() => {}
            heard => return heard,
        }
    }
}

/// Something at least, into a buffer that the worker lends.
fn read_server(
    stream: &mut Stream,
    down: &mut Lane,
    worker: &Worker,
    cx: &mut Context<'_>,
) -> io::Result<Poll<()>> {
    if !down.input.has_storage() {
        down.input.lend(worker.buffer());
    }
    match read_lane(stream, down, cx)? {
        Poll::Ready(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Poll::Ready(_) => Ok(Poll::Ready(())),
        Poll::Pending => Ok(Poll::Pending),
    }
}

pub(in crate::proxy) fn application_name(parameters: &[(String, String)]) -> Arc<str> {
    let named = parameters.iter().find(|(name, _)| name == "application_name");
    named.map_or("", |(_, value)| value.as_str()).into()
}

fn farewell_of_server(error: ErrorFields, was_first_word: bool) -> Turn {
    let ends_backend = matches!(error.code, SqlState::ADMIN_SHUTDOWN | SqlState::IDLE_SESSION_TIMEOUT);
    let loss = if was_first_word && ends_backend { Loss::Unbegun } else { Loss::Connection };
    Turn::ServerLost { loss, what: error.message }
}

pub(super) fn route_word(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
    }
}

pub(in crate::proxy) fn shutting_down() -> ErrorFields {
    ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}
