//! Asking how this instance stands, in the words that instances tell each other. The answer is put together by
//! somebody else.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Who waits for an answer at a time; one more waits for a place among them.
pub const MAX_WAITING: usize = 64;

/// Who asks for what is new hears at the latest then that nothing is: so silence says something, too.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// `SHOW MEMBER [AFTER serial] [FOR 'instance']`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberQuestion {
    /// The serial number of the answer before; the next one waits for what has changed since, up to [`PATIENCE`].
    pub after: Option<u64>,
    /// The instance that asks. What it was told is remembered.
    pub asker: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error("instance \"{asker}\" is not among the peers of this one")]
    UnknownAsker { asker: String },
    #[error("this instance is starting, or another process has taken its place")]
    Closed,
    #[error("this instance is not one of several")]
    Alone,
}

/// A question, and whom the answer is told.
#[derive(Debug)]
pub struct AskedMember {
    pub question: MemberQuestion,
    pub reply: oneshot::Sender<Result<String, MemberError>>,
}

/// Asks whoever knows.
#[derive(Clone, Debug)]
pub struct MemberQuestions(mpsc::Sender<AskedMember>);

impl MemberQuestions {
    pub fn channel() -> (MemberQuestions, mpsc::Receiver<AskedMember>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (MemberQuestions(sender), receiver)
    }

    /// JSON.
    pub async fn ask(&self, question: MemberQuestion) -> Result<String, MemberError> {
        let (reply, replied) = oneshot::channel();
        let asked = self.0.send(AskedMember { question, reply }).await;
        asked.map_err(|_| MemberError::Alone)?;
        replied.await.unwrap_or(Err(MemberError::Closed))
    }
}
