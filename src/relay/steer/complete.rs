//! Streams from the relay whose log an election goes on with, until this one has as much.

use std::time::Duration;

use super::progress::publish_substitute;
use super::substitute::Substitute;
use super::{Order, Steering, jitter, words};
use crate::relay::receiver::{Progress, Role};
use crate::relay::store::{Change, StoreError};
use crate::topology::{Address, Floor, Term};

/// An election waits for it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

impl Steering {
    /// Until the floor is reached, or it is closed.
    pub(super) async fn complete(
        &mut self,
        order: &Order,
        source: &(String, Address),
        floor: &Floor,
    ) -> Result<(), StoreError> {
        let mut source = Substitute::peer(source);
        let mut pause = FIRST_PAUSE;
        while !self.has_reached(order.term()) {
            self.complete_from(order, &mut source, floor).await?;
            if self.has_reached(order.term()) {
                tracing::info!(source = source.name, term = %order.term(), end = %floor.end, "the log is complete");
                break;
            }
            let paused = tokio::time::sleep(jitter().spread(pause));
            if self.closing.run_until_cancelled(paused).await.is_none() {
                break;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
        Ok(())
    }

    async fn complete_from(
        &mut self,
        order: &Order,
        source: &mut Substitute,
        floor: &Floor,
    ) -> Result<(), StoreError> {
        let Some(backend) = self.dial_substitute(order, source).await else { return Ok(()) };
        let id = self.next_stream();
        let (status, name) = (self.status.clone(), source.name.clone());
        let mut publish = |progress: Progress| publish_substitute(&status, &name, progress);
        let this = &*self;
        let role = Role::Source { timeline: floor.timeline };
        let end = tokio::select! {
            end = this.stream(order, backend, role, id, &mut publish) => Some(end?),
            () = this.reached(order.term()) => None,
        };
        self.status.send_modify(|status| status.substitute = None);
        self.store.change(Change::Settle).await?;
        if let Some(end) = end {
            self.raise_divergence(&source.name, &end);
            source.say(&words(&end));
            self.leave_branch_of(order, &source.name, &end).await?;
        }
        Ok(())
    }

    fn has_reached(&self, term: Term) -> bool {
        self.store.report().borrow().log_term() >= term
    }

    async fn reached(&self, term: Term) {
        let mut report = self.store.report();
        if report.wait_for(|report| report.log_term() >= term).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
