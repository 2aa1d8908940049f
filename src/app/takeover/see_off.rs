//! The old process after it has handed over: its sessions, the new process's directive, and the end.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::drain::{Drain, Limits, Order, Ruler};
use super::hand_over::Heir;
use super::link::{Link, LinkError};
use super::message::{FromIncumbent, FromSuccessor, Status};
use super::{Offer, link_failed};
use crate::app::instance::Departing;
use crate::net::CancelKey;

/// How often what is left is counted.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The new process must take a message within this time, or it counts as lost.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Until no session is left, or none that is waited for. `shutdown`: nobody is waited for who is in no transaction.
pub(in crate::app) async fn see_off(
    departing: Departing,
    heir: Heir,
    offer: Offer,
    limits: Limits,
    shutdown: CancellationToken,
) {
    offer.leave();
    // Until the process has ended, and not a moment less: the new one takes our sessions for gone when it is free.
    std::mem::forget(heir.draining);
    let began = Instant::now();
    let connections = departing.connections();
    tracing::info!(connections, limit = ?limits.drain, "seeing sessions off");
    let drain = Drain::new(began, limits, connections);
    let mut seeing = SeeingOff { departing, drain, ruler: Ruler::Heard, told: None, cancels: JoinSet::new() };
    seeing.run(heir.link, shutdown).await;
    let count = seeing.drain.count();
    let ms = began.elapsed().as_millis();
    tracing::info!(left = count.left, ended = count.ended, cut = count.cut, ms, "sessions seen off");
}

struct SeeingOff {
    departing: Departing,
    drain: Drain,
    ruler: Ruler,
    told: Option<Status>,
    cancels: JoinSet<bool>,
}

impl SeeingOff {
    async fn run(&mut self, mut link: Link, shutdown: CancellationToken) {
        let mut hurried = false;
        let mut proxy = self.departing.proxy_status();
        loop {
            tokio::select! {
                message = link.receive(), if self.ruler == Ruler::Heard => match message {
                    Ok(message) => self.obey(message),
                    Err(error) => self.lost(&error),
                },
                Ok(()) = proxy.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.cancelled(), if !hurried => {
                    hurried = true;
                    let order = self.drain.hurry(Instant::now());
                    self.carry_out(order);
                }
                Some(_) = self.cancels.join_next() => {}
            }
            let order = self.drain.look(Instant::now(), self.departing.connections(), self.ruler);
            self.carry_out(order);
            // The last word, too.
            if let Err(error) = self.report(&link).await {
                self.lost(&error);
            }
            if order == Order::Leave {
                return;
            }
        }
    }

    fn carry_out(&self, order: Order) {
        match order {
            Order::Wait | Order::Leave => {}
            Order::End => self.departing.end(),
            Order::Cut => self.departing.cut(),
        }
    }

    fn obey(&mut self, message: FromSuccessor) {
        match message {
            FromSuccessor::Sight(sight) => {
                let (directive, health, wal) = sight.at(Instant::now());
                self.departing.obey(Arc::new(directive), Arc::new(health), Arc::new(wal));
            }
            FromSuccessor::Cancel { pid, secret } => {
                let proxy = self.departing.proxy();
                self.cancels.spawn(async move { proxy.cancel(&CancelKey { pid, secret }).await });
            }
            FromSuccessor::Ask(_) | FromSuccessor::Ready => {
                self.lost(&LinkError::Io(std::io::ErrorKind::InvalidData.into()));
            }
        }
    }

    async fn report(&mut self, link: &Link) -> Result<(), LinkError> {
        if self.ruler == Ruler::Lost {
            return Ok(());
        }
        let proxy = self.departing.proxy_status().borrow().clone();
        let status = Status {
            confirmed: proxy.confirmed,
            cleared: proxy.cleared.clone(),
            held: proxy.held,
            connections: self.departing.connections(),
            gone: self.drain.count(),
        };
        if self.told.as_ref() == Some(&status) {
            return Ok(());
        }
        self.told = Some(status.clone());
        let sent = tokio::time::timeout(SEND_LIMIT, link.send(&FromIncumbent::Status(status))).await;
        sent.map_err(|_| LinkError::Io(std::io::ErrorKind::TimedOut.into()))?
    }

    fn lost(&mut self, error: &LinkError) {
        if self.ruler == Ruler::Heard {
            self.ruler = Ruler::Lost;
            let why = link_failed(error);
            tracing::info!(why, "the new process is lost: all sessions are ended");
        }
    }
}
