//! How a server leaves a session: given back when nothing ties it to the client, lost, or cleaned behind a client that
//! has gone. How it comes is [`super::attach`]'s.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::attach::Refusal;
use super::core::{Core, Heard};
use super::lane::Lane;
use super::losses::{AfterLoss, Loss};
use super::message;
use super::run::{Attached, Session, route_word, shutting_down};
use super::wire::{read_lane, write_lane};
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::cancel::Hands;
use crate::proxy::pool::Lease;
use crate::topology::{CommitOutcome, NodeName, Role};

/// For the DISCARD ALL behind a session that kept its server.
const CLEAN_LIMIT: Duration = Duration::from_secs(5);
/// How long a client whose primary broke waits for the word whether a failover has begun.
pub(in crate::proxy) const VERDICT_LIMIT: Duration = Duration::from_secs(1);
/// A read that only needs another server is run again this often.
const MAX_RETRIES: u32 = 3;

impl Session<'_> {
    /// Gives the server back.
    pub(super) async fn release(&mut self) {
        if let Some(attached) = self.try_release() {
            // On the heap, as whatever is rare.
            Box::pin(self.release_later(*attached)).await;
        }
        if self.ending {
            // The answer first.
            Box::pin(self.say_farewell(&shutting_down())).await;
        }
    }

    /// The server, where a cancel is on its way to it: nobody else may have it before that has arrived.
    fn try_release(&mut self) -> Option<Box<Attached>> {
        let now = Instant::now();
        self.note_write(now);
        let mut attached = self.attached.take()?;
        self.core.detached();
        self.tell_pin();
        self.ear.leave_server();
        self.retries = 0;
        let route = route_word(attached.role);
        let served = now.saturating_duration_since(attached.since);
        self.tally.served(served);
        self.worker.counters.borrow().served(route, served.as_secs_f64());
        attached.lease.pool().evidence.answered(now);
        // Clean hands: whatever was not asked for does not go to the next client, nor does what may fail it.
        let retires = attached.lease.connection().is_none_or(|server| server.state.retires);
        let unread = self.down.unread().len();
        self.down.skip(unread);
        let clean = unread == 0 && !retires;
        match self.slot.try_release() {
            None if clean => return Some(Box::new(attached)),
            Some(Hands::Clean) if clean => attached.lease.put_back(now),
            Some(_) | None => {}
        }
        None
    }

    async fn release_later(&self, attached: Attached) {
        if self.slot.release().await == Hands::Clean {
            attached.lease.put_back(Instant::now());
        }
    }

    /// The server is not used any more.
    pub(super) fn drop_server(&mut self) -> Option<Role> {
        let attached = self.attached.take()?;
        self.slot.vacate();
        self.ear.leave_server();
        Some(attached.role)
    }

    /// A session that keeps its server ends with it.
    fn count_cut(&self) {
        let session = self.core.keeps_server().then_some("session_pooling");
        if let Some(reason) = self.core.pinned().or(session) {
            self.shared.metrics.pins_cut.with_label_values(&[reason]).inc();
        }
    }

    /// The server at hand is gone. `Err`: the session ends, with or without a last word.
    pub(super) async fn lost(&mut self, loss: Loss, what: &str) -> Result<(), Option<ErrorFields>> {
        let now = Instant::now();
        let Some(attached) = self.attached.take() else { return Ok(()) };
        self.slot.vacate();
        self.ear.leave_server();
        if loss == Loss::Connection {
            attached.lease.pool().evidence.broken(now);
        }
        tracing::info!(node = %attached.node, loss = ?loss, what, "server connection lost");
        let (node, role) = (attached.node.clone(), attached.role);
        // Not ours any more before anything is waited for: the fence counts it.
        drop(attached);
        self.shared.pressing.notify_one();
        let mut ended = Ok(());
        let mut loss = loss;
        if role == Role::Primary {
            if self.core.may_be_committing() {
                // What the quorum has not is not to be found.
                if loss == Loss::Unacknowledged {
                    self.count_in_doubt(CommitOutcome::Unknown);
                } else {
                    ended = self.resolve_commit(what).await;
                }
                // Not before: the server may have written the commit's record after it was lost to us, and who asks meanwhile
                // for a position may get one that lies before that.
                self.written_at = Some(Instant::now());
            }
            loss = self.cause_of_loss(loss, &node).await;
        }
        self.count_cut();
        let after = self.core.lost(loss, role, what, &mut self.up, &mut self.down);
        match ended {
            Ok(()) => {}
            Err(Refusal::Unit(last_words) | Refusal::Session(last_words)) => return Err(Some(last_words)),
            Err(Refusal::Gone) => return Err(None),
        }
        match after {
            AfterLoss::GoOn => Ok(()),
            AfterLoss::Retry if self.retries < MAX_RETRIES => {
                self.retries += 1;
                Ok(())
            }
            AfterLoss::Retry => {
                let error =
                    ErrorFields::error(SqlState::CONNECTION_FAILURE, "the connection to the server was lost");
                self.core.refuse(&error, &mut self.up, &mut self.down);
                Ok(())
            }
            AfterLoss::Fatal(error) => Err(Some(error)),
            AfterLoss::Close => Err(None),
        }
    }

    /// The server at hand leaves out what follows, up to a Sync: it is not used any more.
    pub(super) fn settings_refused(&mut self, error: ErrorFields) -> Result<(), ErrorFields> {
        let Some(role) = self.drop_server() else { return Ok(()) };
        match self.core.settings_refused(error, role, &mut self.up, &mut self.down) {
            AfterLoss::Fatal(error) => Err(error),
            AfterLoss::GoOn | AfterLoss::Retry | AfterLoss::Close => Ok(()),
        }
    }

    /// A primary that breaks is on its way to be replaced more often than not, and then the client may safely
    /// try again (40001). The control plane knows a moment later than the socket does.
    async fn cause_of_loss(&self, loss: Loss, node: &NodeName) -> Loss {
        if self.is_between() || self.core.runs_again(loss) || loss == Loss::Unacknowledged {
            return loss;
        }
        let mut directive = self.shared.inputs.directive.clone();
        let replaced = directive.wait_for(|order| order.writable() != Some(node));
        match tokio::time::timeout(VERDICT_LIMIT, replaced).await {
            Ok(Ok(_)) => Loss::Failover,
            Ok(Err(_)) | Err(_) => loss,
        }
    }

    /// The client is gone: what happens to its server.
    pub(super) async fn finish(&mut self) {
        let is_between = self.core.is_between_messages() && !self.up.has_pending();
        let is_heard_out = self.down.unread().is_empty();
        for lane in [&mut self.up, &mut self.down] {
            lane.discard_pending();
            let unread = lane.unread().len();
            lane.skip(unread);
        }
        self.worker.take_back([&mut self.up, &mut self.down]);
        let Some(mut attached) = self.attached.take() else { return };
        if self.core.is_busy() {
            self.slot.vacate();
            // Nobody waits for this any more; the server would only notice when it wants to write. Not a commit:
            // cancelled while it waits for the quorum, others would see it before it is durable.
            if let Some(server) = attached.lease.connection().filter(|_| !self.core.may_be_committing()) {
                let backend = server.backend.clone();
                let sent =
                    crate::net::cancel(&backend.address, &backend.tls, &backend.key, CLEAN_LIMIT).await;
                drop(sent);
            }
            return;
        }
        let retires = attached.lease.connection().is_none_or(|server| server.state.retires);
        let reusable = self.slot.release().await == Hands::Clean
            && self.core.status() == message::Status::Idle
            && is_between
            && is_heard_out
            && !retires;
        if reusable && clean(&mut attached.lease).await.is_some() {
            attached.lease.put_back(Instant::now());
        }
    }
}

/// Removes what a client left on the connection; `None` when that did not work.
async fn clean(lease: &mut Lease) -> Option<()> {
    let server = lease.connection()?;
    let mut discard = Core::cleaning();
    let (mut up, mut down) = (Lane::default(), Lane::default());
    message::put_query(up.out(), "DISCARD ALL");
    let work = poll_fn(|cx| -> Poll<Option<()>> {
        loop {
            let Ok(_) = write_lane(&mut server.stream, &mut up, cx) else { return Poll::Ready(None) };
            match read_lane(&mut server.stream, &mut down, cx) {
                Ok(Poll::Pending) => return Poll::Pending,
                Err(_) | Ok(Poll::Ready(0)) => return Poll::Ready(None),
                Ok(Poll::Ready(_)) => {}
            }
            match discard.server(&mut down, &mut server.state) {
                Heard::Nothing => down.discard_pending(),
                Heard::Ready => {
                    let clean = discard.status() == message::Status::Idle && !discard.failed();
                    return Poll::Ready((clean && down.unread().is_empty()).then_some(()));
                }
                Heard::Settle | Heard::Lost(_) | Heard::Over | Heard::Broken(_) | Heard::Refused(_) => {
                    return Poll::Ready(None);
                }
            }
        }
    });
    tokio::time::timeout(CLEAN_LIMIT, work).await.ok()?
}
