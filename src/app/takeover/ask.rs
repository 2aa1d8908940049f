//! The new process asks for everything.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use super::follow::Follow;
use super::link::{Link, LinkError};
use super::lock::{self, Lock, Theirs};
use super::message::{Again, FromIncumbent, FromSuccessor, Refusal, Socket};
use super::successor::{Input, Outcome, Step, Successor};
use super::{Limits, Place, TakeoverError, identity, link_failed, patience};
use crate::app::config::Config;
use crate::net::ListenAddress;

const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The listening sockets of the old process. Those that are not taken are closed with this.
#[derive(Debug, Default)]
pub(in crate::app) struct Inherited(Vec<(Socket, OwnedFd)>);

impl Inherited {
    pub(in crate::app) fn clients(&mut self, address: &ListenAddress) -> Option<OwnedFd> {
        self.take(&Socket::Clients(address.clone()))
    }

    pub(in crate::app) fn admin(&mut self, address: std::net::SocketAddr) -> Option<OwnedFd> {
        self.take(&Socket::Admin(address))
    }

    fn take(&mut self, wanted: &Socket) -> Option<OwnedFd> {
        let place = self.0.iter().position(|(socket, _)| socket == wanted)?;
        Some(self.0.swap_remove(place).1)
    }
}

/// The old process has let go, and waits for us to be ready.
#[derive(Debug)]
pub(in crate::app) struct Asked {
    core: Successor,
    link: Link,
    place: Place,
    asked_at: Instant,
    yielded_at: Instant,
}

/// Asks the process that runs for its place. `None`: none runs that could be asked.
pub(in crate::app) async fn ask(config: &Config) -> Result<Option<(Asked, Inherited)>, TakeoverError> {
    let started = Instant::now();
    let limits = Limits { drain: config.shutdown.drain, transactions: config.shutdown.transactions };
    loop {
        let Some(link) = connect(config).await? else { return Ok(None) };
        let asked_at = Instant::now();
        let mut asking = Asking { core: Successor::new(identity(config)), link, come: None };
        match asking.until_it_yields().await {
            Outcome::Ours => return asking.accept(config, asked_at).map(Some),
            Outcome::Refused(Refusal { why, again: Again::Never }) => {
                return Err(TakeoverError::Refused(why));
            }
            Outcome::Refused(Refusal { why, again: Again::Later })
                if started.elapsed() > patience(limits) =>
            {
                return Err(TakeoverError::Refused(why));
            }
            Outcome::Refused(_) => tokio::time::sleep(ASK_AGAIN).await,
            Outcome::Failed { why } => return Err(TakeoverError::Failed(why)),
        }
    }
}

async fn connect(config: &Config) -> Result<Option<Link>, TakeoverError> {
    let stream = match UnixStream::connect(lock::beside(&config.state_file, ".takeover")).await {
        Ok(stream) => stream,
        // A door that was left behind refuses.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(TakeoverError::Failed(error.to_string())),
    };
    Link::new(stream).map(Some).map_err(|error| TakeoverError::Failed(link_failed(&error)))
}

struct Asking {
    core: Successor,
    link: Link,
    come: Option<Vec<Socket>>,
}

impl Asking {
    /// [`Outcome::Ours`] stands for: it has yielded.
    async fn until_it_yields(&mut self) -> Outcome {
        loop {
            let step = self.core.step();
            match step {
                Step::Open => return Outcome::Ours,
                Step::Over(outcome) => return outcome,
                step => {
                    let input = converse(&mut self.link, step).await;
                    if let Input::Heard(FromIncumbent::Yielded { sockets }) = &input {
                        self.come = Some(sockets.clone());
                    }
                    self.core.handle(Instant::now(), input);
                }
            }
        }
    }

    fn accept(mut self, config: &Config, asked_at: Instant) -> Result<(Asked, Inherited), TakeoverError> {
        let missing = || TakeoverError::Failed("not all that was announced has come".to_owned());
        let file = self.link.descriptor().ok_or_else(missing)?;
        let path = config.state_file.clone();
        let lock = Lock::inherit(file).map_err(|source| TakeoverError::Lock { path, source })?;
        let lock = lock.ok_or_else(|| TakeoverError::Failed("what was passed is not locked".to_owned()))?;
        let mut inherited = Inherited::default();
        for socket in self.come.take().unwrap_or_default() {
            inherited.0.push((socket, self.link.descriptor().ok_or_else(missing)?));
        }
        let place = Place { lock, identity: identity(config) };
        let asked = Asked { core: self.core, link: self.link, place, asked_at, yielded_at: Instant::now() };
        Ok((asked, inherited))
    }
}

impl Asked {
    /// Everything is open, or why not. From `Ok` on it is all ours.
    pub(in crate::app) async fn settle(
        mut self,
        opened: Result<(), String>,
    ) -> Result<(Place, Follow), TakeoverError> {
        let opened_at = Instant::now();
        let path = self.place.draining();
        // Before the point of no return: without it the end of the old process could not be seen.
        let draining = opened
            .and_then(|()| Theirs::open(&path).map_err(|error| format!("open {}: {error}", path.display())));
        let input = draining.as_ref().map_or_else(|why| Input::Failed(why.clone()), |_| Input::Done);
        self.core.handle(opened_at, input);
        let mut heard = Vec::new();
        let draining = loop {
            match self.core.step() {
                Step::Over(Outcome::Ours) => break draining.map_err(TakeoverError::Failed)?,
                Step::Over(Outcome::Failed { why }) => return Err(TakeoverError::Failed(why)),
                Step::Over(Outcome::Refused(refusal)) => return Err(TakeoverError::Refused(refusal.why)),
                step => {
                    let input = converse(&mut self.link, step).await;
                    let now = Instant::now();
                    if let Input::Heard(FromIncumbent::Heard(sights)) = &input {
                        // It was asked for by our being ready, which is behind `opened_at`.
                        heard = sights.iter().cloned().map(|sight| sight.at(opened_at, now)).collect();
                    }
                    self.core.handle(now, input);
                }
            }
        };
        let millis = |from: Instant, to: Instant| to.saturating_duration_since(from).as_millis();
        tracing::info!(
            from_pid = self.link.pid(),
            yielded_ms = millis(self.asked_at, self.yielded_at),
            opened_ms = millis(self.yielded_at, opened_at),
            settled_ms = millis(opened_at, Instant::now()),
            "took over"
        );
        let follow = Follow::new(self.link, draining, self.asked_at, heard);
        Ok((self.place, follow))
    }
}

/// One step that concerns the link.
async fn converse(link: &mut Link, step: Step) -> Input {
    let broken = |error: &LinkError| Input::Broken(link_failed(error));
    match step {
        Step::Say(message) => said(link.send::<FromSuccessor>(&message).await),
        Step::Hear(until) => match tokio::time::timeout_at(until.into(), link.receive()).await {
            Err(_) => Input::Overdue,
            Ok(Ok(message)) => Input::Heard(message),
            Ok(Err(error)) => broken(&error),
        },
        Step::StopHearing => said(link.stop_hearing().map_err(LinkError::Io)),
        // The end of what has come is in reach: nothing is waited for.
        Step::HearRest => match link.receive().await {
            Ok(message) => Input::Heard(message),
            Err(error) => broken(&error),
        },
        Step::Open | Step::Over(_) => Input::Failed("no step of the link".to_owned()),
    }
}

fn said(result: Result<(), LinkError>) -> Input {
    match result {
        Ok(()) => Input::Done,
        Err(error) => Input::Broken(link_failed(&error)),
    }
}
