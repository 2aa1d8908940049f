//! The old process hands everything over, or goes on.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::incumbent::{Incumbent, Input, Outcome, Step};
use super::link::{Link, LinkError, MAX_DESCRIPTORS};
use super::lock::Lock;
use super::message::{FromIncumbent, FromSuccessor, Socket};
use super::sight::HeardSight;
use super::{Place, Question, link_failed};
use crate::app::cli::chain;
use crate::app::instance::Instance;
use crate::app::run::RunError;

/// A message must be taken within this time.
const SEND_LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts to reopen.
const REST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(in crate::app) enum HandedOver {
    /// Everything goes on.
    No,
    /// To whom, and what says that we are still here.
    Yes(Heir),
    /// Neither the new process nor this one has it.
    Lost(String),
}

/// The new process.
#[derive(Debug)]
pub(in crate::app) struct Heir {
    pub(super) link: Link,
    /// Held until the process has ended.
    pub(super) draining: Lock,
}

/// Answers somebody who asks to take over.
pub(in crate::app) async fn hand_over(
    instance: &mut Instance,
    place: &Place,
    Question(link): Question,
) -> HandedOver {
    let began = Instant::now();
    let pid = link.pid();
    let mut shell = Shell {
        core: Incumbent::new(began, place.identity.clone(), instance.busy()),
        instance,
        place,
        link: Some(link),
        draining: None,
        times: Vec::new(),
    };
    let outcome = shell.run().await;
    let times = &shell.times;
    match (outcome, shell.link, shell.draining) {
        (Outcome::Yielded, Some(link), Some(draining)) => {
            tracing::info!(pid, ms = ?times, "a new process has taken over");
            HandedOver::Yes(Heir { link, draining })
        }
        (Outcome::Yielded, ..) => HandedOver::Lost("handed over without a link".to_owned()),
        (Outcome::Stayed { why }, ..) => {
            tracing::info!(pid, why, ms = ?times, "no takeover; everything goes on");
            HandedOver::No
        }
        (Outcome::Lost { why }, ..) => HandedOver::Lost(why),
    }
}

struct Shell<'a> {
    core: Incumbent,
    instance: &'a mut Instance,
    place: &'a Place,
    link: Option<Link>,
    draining: Option<Lock>,
    /// Steps and how long they took, in milliseconds.
    times: Vec<(&'static str, u128)>,
}

impl Shell<'_> {
    async fn run(&mut self) -> Outcome {
        loop {
            let began = Instant::now();
            let (name, input) = match self.core.step() {
                Step::Over(outcome) => return outcome,
                Step::Hear(until) => ("heard", self.hear(until).await),
                Step::Refuse(refusal) => ("refused", self.send(&FromIncumbent::Refused(refusal)).await),
                Step::Close => ("closed", self.close().await),
                Step::Pass => ("passed", self.pass().await),
                Step::HandOver => ("handed_over", self.give().await),
                Step::Reopen => ("reopened", self.reopen().await),
            };
            self.times.push((name, began.elapsed().as_millis()));
            self.core.handle(Instant::now(), input);
        }
    }

    async fn hear(&mut self, until: Instant) -> Input {
        let Some(link) = &mut self.link else { return hung_up() };
        match tokio::time::timeout_at(until.into(), link.receive::<FromSuccessor>()).await {
            Err(_) => Input::Overdue,
            Ok(Ok(message)) => Input::Heard(message),
            Ok(Err(error)) => Input::Broken(link_failed(&error)),
        }
    }

    async fn send(&self, message: &FromIncumbent) -> Input {
        self.send_with(message, &[]).await
    }

    async fn send_with(&self, message: &FromIncumbent, descriptors: &[BorrowedFd<'_>]) -> Input {
        let Some(link) = &self.link else { return hung_up() };
        match tokio::time::timeout(SEND_LIMIT, link.send_with(message, descriptors)).await {
            Ok(Ok(())) => Input::Done,
            Ok(Err(error)) => Input::Broken(link_failed(&error)),
            Err(_) => Input::Broken("it takes no message".to_owned()),
        }
    }

    async fn close(&mut self) -> Input {
        match Lock::try_take(&self.place.draining()) {
            Ok(Some(lock)) => self.draining = Some(lock),
            Ok(None) => return Input::Failed("another process is seeing its sessions off".to_owned()),
            Err(error) => return Input::Failed(error.to_string()),
        }
        match self.instance.close().await {
            Ok(()) => Input::Done,
            Err(error) => self.failed(&error),
        }
    }

    async fn pass(&self) -> Input {
        let sockets = self.instance.sockets();
        if sockets.len() >= MAX_DESCRIPTORS {
            return Input::Failed("there are more listening sockets than can be passed".to_owned());
        }
        let names: Vec<Socket> = sockets.iter().map(|(name, _)| name.clone()).collect();
        let lock = std::iter::once(self.place.lock.as_fd());
        let descriptors: Vec<_> = lock.chain(sockets.iter().map(|(_, socket)| socket.as_fd())).collect();
        self.send_with(&FromIncumbent::Yielded { sockets: names }, &descriptors).await
    }

    /// What was heard of the others goes first, as long as there is a way back: the last word is a few bytes.
    async fn give(&self) -> Input {
        let heard = self.instance.heard();
        let heard: Vec<_> =
            heard.iter().map(|(name, heard)| HeardSight::of(Instant::now(), name, heard)).collect();
        let told = if heard.is_empty() { Input::Done } else { self.send(&FromIncumbent::Heard(heard)).await };
        if told == Input::Done { self.send(&FromIncumbent::Yours).await } else { told }
    }

    async fn reopen(&mut self) -> Input {
        // Whoever is left at the other end hears that it got nothing.
        self.link = None;
        self.draining = None;
        match self.instance.reopen().await {
            Ok(()) => Input::Done,
            Err(error) => {
                let input = self.failed(&error);
                if matches!(input, Input::Failed(_)) {
                    // What fails at once would fill the minute with attempts.
                    tokio::time::sleep(REST).await;
                }
                input
            }
        }
    }

    fn failed(&self, error: &RunError) -> Input {
        let why = chain(error);
        if self.instance.is_ruined() { Input::Ruined(why) } else { Input::Failed(why) }
    }
}

fn hung_up() -> Input {
    Input::Broken(link_failed(&LinkError::Closed))
}
