#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]
//! Asks the others, each on a connection of its own, and publishes what they say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::watch;

use super::Gate;
use super::peer::{Peer, Stranger};
use crate::app::cli::chain;
use crate::net::{self, Conversation, ConversationError, DialError, Target};
use crate::pg::SqlState;
use crate::topology::{Member, Members};

/// Connecting and logging in, and each question with its answer, take no longer; else it is another connection's turn.
const LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Asking {
    pub(super) peer: Peer,
    pub(super) target: Target,
    pub(super) members: Arc<watch::Sender<Arc<Members>>>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error("no answer within {LIMIT:?}")]
    Silent,
    #[error("an answer without a value")]
    Empty,
}

/// What the log was told last of a peer.
enum Said {
    Nothing,
    Heard,
    Trouble(String),
}

/// While the gate is open. Never ends.
pub(super) async fn all(mut asking: Vec<Asking>, mut gate: watch::Receiver<Gate>) {
    loop {
        if gate.wait_for(|gate| *gate == Gate::Open).await.is_err() {
            return std::future::pending().await;
        }
        tokio::select! {
            _ = join_all(asking.iter_mut().map(Asking::go_on)) => {}
            _ = gate.changed() => {}
        }
    }
}

impl Asking {
    /// Never ends.
    async fn go_on(&mut self) {
        let mut said = Said::Nothing;
        loop {
            let Err(trouble) = self.converse(&mut said).await;
            said.trouble(self.peer.instance(), &trouble);
            tokio::time::sleep(self.peer.pause(rand::random())).await;
        }
    }

    /// One connection.
    async fn converse(&mut self, said: &mut Said) -> Result<std::convert::Infallible, Trouble> {
        let backend = net::dial(&self.target, LIMIT).await?;
        let mut conversation = Conversation::new(backend, LIMIT);
        self.peer.connected();
        loop {
            let asked_at = Instant::now();
            let answer = tokio::time::timeout(LIMIT, ask(&mut conversation, &self.peer.question())).await;
            let text = answer.map_err(|_| Trouble::Silent)??;
            let heard = self.peer.answer(asked_at, Instant::now(), &text)?;
            self.members.send_modify(|members| {
                Arc::make_mut(members).others.insert(self.peer.instance().to_owned(), Some(heard));
            });
            said.heard(self.peer.instance());
        }
    }
}

/// Why an instance that was asked once is not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) enum NotHeard {
    /// As hosts and processes come and go.
    Away(String),
    /// It answers, and the configurations do not fit each other.
    Unfit(String),
}

/// How the instance `peer` stands, asked once by nobody in particular: what it says is vouched for to nobody.
pub(in crate::app) async fn hear(
    cluster: &str,
    own: &str,
    peer: &str,
    target: &Target,
) -> Result<Member, NotHeard> {
    let mut peer = Peer::new(cluster, own, peer);
    let heard = async {
        let mut conversation = Conversation::new(net::dial(target, LIMIT).await?, LIMIT);
        let asked_at = Instant::now();
        let answer = tokio::time::timeout(LIMIT, ask(&mut conversation, "SHOW MEMBER")).await;
        let text = answer.map_err(|_| Trouble::Silent)??;
        Ok::<_, Trouble>(peer.answer(asked_at, Instant::now(), &text)?)
    };
    match heard.await {
        Ok(heard) => Ok(Arc::unwrap_or_clone(heard.member)),
        Err(trouble) if trouble.passes() => Err(NotHeard::Away(chain(&trouble))),
        Err(trouble) => Err(NotHeard::Unfit(chain(&trouble))),
    }
}

async fn ask(conversation: &mut Conversation, question: &str) -> Result<String, Trouble> {
    conversation.send_query(question).await?;
    let rows = conversation.rows().await?;
    conversation.expect(b'Z', "ReadyForQuery").await?;
    rows.into_iter().flatten().next().flatten().ok_or(Trouble::Empty)
}

impl Said {
    fn heard(&mut self, instance: &str) {
        if !matches!(self, Said::Heard) {
            tracing::info!(instance, "another instance is heard");
            *self = Said::Heard;
        }
    }

    /// Once, until it is another one.
    fn trouble(&mut self, instance: &str, trouble: &Trouble) {
        let why = trouble.to_string();
        if matches!(self, Said::Trouble(said) if *said == why) {
            return;
        }
        if trouble.passes() {
            tracing::info!(instance, why, "another instance is not heard");
        } else {
            tracing::warn!(instance, why, "another instance is not heard, and will not be by itself");
        }
        *self = Said::Trouble(why);
    }
}

impl Trouble {
    /// As hosts and processes come and go; else the configurations do not fit each other.
    fn passes(&self) -> bool {
        let code = match self {
            Trouble::Dial(DialError::Rejected { error, .. }) => error.code,
            Trouble::Conversation(ConversationError::Server(error)) => error.code,
            Trouble::Dial(_) | Trouble::Conversation(_) | Trouble::Silent => return true,
            Trouble::Stranger(_) | Trouble::Empty => return false,
        };
        code != SqlState::INVALID_PASSWORD
            && code != SqlState::INVALID_AUTHORIZATION_SPECIFICATION
            && code != SqlState::UNDEFINED_OBJECT
            && code != SqlState::SYNTAX_ERROR
            && code != SqlState::FEATURE_NOT_SUPPORTED
    }
}
