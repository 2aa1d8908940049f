//! From the start of an instance to its end, or until another process has taken its place.
//!
//! The end, on the shutdown token: accepting stops and sessions get 57P01 when they are in no transaction; when they are
//! gone, or `shutdown.transactions` later, the planes stop, the WAL plane last, since the last commits wait for it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::cli::chain;
use super::config::Config;
use super::descriptors;
use super::front::Listening;
use super::instance::{Commits, Instance, Others, Parts};
use super::local::LocalError;
pub use super::takeover::Succession;
use super::takeover::{self, HandedOver, Inherited, Offer, Place, TakeoverError};
use super::telemetry::LogLevel;
use crate::failover::FailoverError;
use crate::net::{ListenAddress, TlsError};
use crate::relay::RelayError;

/// Where the instance is reached.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub listen: Vec<ListenAddress>,
    pub admin: Option<SocketAddr>,
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listen: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
        f.write_str(&listen.join(", "))?;
        self.admin.map_or(Ok(()), |admin| write!(f, ", admin http://{admin}"))
    }
}

/// Why an instance did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS")]
    Tls(#[from] TlsError),
    #[error("start threads")]
    Threads(#[source] io::Error),
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("start the WAL plane")]
    Relay(#[from] RelayError),
    #[error("the control plane")]
    Failover(#[from] FailoverError),
    #[error("register metrics")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    #[error("the WAL plane: {0}")]
    RelayFailed(Arc<str>),
    #[error("{0} ended early")]
    EndedEarly(&'static str),
    #[error("handed over to a process that did not take it: {0}")]
    Lost(String),
    #[error("a task of the instance")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Runs the instance until `shutdown`, then ends it in order; or until another process has taken its place and its
/// sessions are gone. `ready` is called once, when clients and followers can connect. The configuration's own limits
/// bound every wait in it.
pub async fn run(
    config: Config,
    succession: Succession,
    log_level: LogLevel,
    ready: impl FnOnce(&Endpoints),
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    descriptors::raise(&config);
    let (mut instance, place, endpoints) = start(config, succession, log_level).await?;
    let offer = match succession {
        Succession::None => Offer::none(),
        Succession::Offered | Succession::Wanted => place.offer(),
    };
    ready(&endpoints);
    let ended = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            error = instance.ended_early() => break Err(error),
            question = offer.asked() => {
                match Box::pin(takeover::hand_over(&mut instance, &place, question)).await {
                    HandedOver::No => {}
                    HandedOver::Yes(heir) => {
                        let limits = instance.limits();
                        takeover::see_off(instance.depart(), heir, offer, limits, shutdown).await;
                        return Ok(());
                    }
                    HandedOver::Lost(why) => break Err(RunError::Lost(why)),
                }
            }
        }
    };
    let commits = ended.as_ref().err().map_or(Commits::GoOn, |error| instance.commits_after(error));
    instance.stop(commits).await;
    ended
}

/// By itself, or in the place of the process that runs.
async fn start(
    config: Config,
    succession: Succession,
    log_level: LogLevel,
) -> Result<(Instance, Place, Endpoints), RunError> {
    // Whatever can fail without anybody's help does so before anybody is asked.
    let parts = Parts::load(&config).await?;
    let asked = match succession {
        Succession::None | Succession::Offered => None,
        Succession::Wanted => takeover::ask(&config).await?,
    };
    let Some((asked, mut inherited)) = asked else {
        let state = config.state_file.clone();
        let place = Place::take(&config).await?.ok_or(match succession {
            Succession::Wanted => TakeoverError::Silent { state },
            Succession::None | Succession::Offered => TakeoverError::Running { state },
        })?;
        let (mut instance, endpoints) =
            build(config, parts, log_level, &mut Inherited::default(), Others::None)?;
        instance.open(None)?;
        return Ok((instance, place, endpoints));
    };
    let built = build(config, parts, log_level, &mut inherited, Others::Predecessor);
    let opened = built.as_ref().map(|_| ()).map_err(|error| chain(error));
    let settled = asked.settle(opened).await;
    let (mut instance, endpoints) = built?;
    let (place, follow) = settled?;
    instance.open(Some(follow))?;
    Ok((instance, place, endpoints))
}

fn build(
    config: Config,
    parts: Parts,
    log_level: LogLevel,
    inherited: &mut Inherited,
    others: Others,
) -> Result<(Instance, Endpoints), RunError> {
    let listening = Listening::bind(&config.listen, inherited)?;
    let http = config.admin.map(|address| http(address, inherited)).transpose()?;
    let endpoints =
        Endpoints { listen: listening.addresses(), admin: http.as_ref().map(|(address, _)| *address) };
    Ok((Instance::build(config, parts, log_level, (listening, http), others)?, endpoints))
}

/// Bound, or inherited.
fn http(address: SocketAddr, inherited: &mut Inherited) -> Result<(SocketAddr, OwnedFd), RunError> {
    let listener = match inherited.admin(address) {
        Some(socket) => Ok(std::net::TcpListener::from(socket)),
        None => std::net::TcpListener::bind(address),
    };
    let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener.into())));
    bound.map_err(|source| RunError::Listen { address: format!("{address} (admin)"), source })
}
