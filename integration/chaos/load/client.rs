//! An application with several hosts in its connection string: it goes to the next one when it loses the one that it has,
//! or hears nothing for too long. And what the end of a conversation means for what was asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{DATABASE, PASSWORD, Scene, USER};
use crate::check::Outcome;

/// For a connection, login included.
const LOGIN: Duration = Duration::from_secs(2);
/// For an answer. Some are more patient than the endpoint, which holds whoever waits for a primary for 30 s.
const PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(40)];
const BACK_OFF: Duration = Duration::from_millis(50);

pub(super) struct Client {
    pub(super) scene: Arc<Scene>,
    pub(super) number: usize,
    patience: Duration,
    /// Of the endpoints, which one is next.
    next: usize,
    session: Option<Session>,
}

struct Session {
    number: u32,
    client: tokio_postgres::Client,
    /// It ends with the session, also when nobody answers it.
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// An SQLSTATE and its message.
    Told { code: String, message: String },
    /// The connection is gone, or silent for too long.
    Cut(String),
}

/// What was under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A commit is still to come.
    Inside,
    /// COMMIT, or a statement outside of a block.
    Commit,
}

pub(super) type Row = Vec<String>;

impl Client {
    pub(super) fn new(scene: Arc<Scene>, number: usize) -> Client {
        let patience = PATIENCE[number / 2 % PATIENCE.len()];
        Client { scene, number, patience, next: number, session: None }
    }

    /// The session that it has, or a new one; `None`: not now.
    pub(super) async fn begin(&mut self) -> Option<u32> {
        if self.session.as_ref().is_none_or(|session| session.client.is_closed()) {
            self.session = self.log_in().await;
        }
        if self.session.is_none() {
            self.next += 1;
            tokio::time::sleep(BACK_OFF).await;
        }
        self.session.as_ref().map(|session| session.number)
    }

    async fn log_in(&self) -> Option<Session> {
        let endpoint = self.scene.endpoints[self.next % self.scene.endpoints.len()];
        let mut config = tokio_postgres::Config::new();
        config.host(endpoint.ip().to_string()).port(endpoint.port());
        config.user(USER).password(PASSWORD).dbname(DATABASE);
        let (client, connection) = tokio::time::timeout(LOGIN, config.connect(NoTls)).await.ok()?.ok()?;
        let connection = tokio::spawn(async {
            // Its error is the client's, too.
            let _ = connection.await;
        });
        let number = self.scene.sessions.fetch_add(1, Ordering::Relaxed);
        Some(Session { number, client, connection })
    }

    /// The rows of a text.
    pub(super) async fn run(&mut self, sql: &str) -> Result<Vec<Row>, Failure> {
        let Some(session) = &self.session else { return Err(Failure::Cut("no session".to_owned())) };
        let answer = match tokio::time::timeout(self.patience, session.client.simple_query(sql)).await {
            Ok(answer) => answer.map_err(|error| Failure::of(&error)),
            Err(_elapsed) => Err(Failure::Cut(format!("no answer within {:?}", self.patience))),
        };
        if let Err(Failure::Cut(_)) = answer {
            self.session = None;
            self.next += 1;
        }
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        };
        Ok(answer?.into_iter().filter_map(row).collect())
    }

    /// All of a block; what its COMMIT came to. The first failure ends it.
    pub(super) async fn block(&mut self, begin: &str, statements: &[String]) -> (Vec<Row>, Outcome) {
        let mut rows = Vec::new();
        for statement in std::iter::once(begin).chain(statements.iter().map(String::as_str)) {
            match self.run(statement).await {
                Ok(more) => rows.extend(more),
                Err(failure) => {
                    self.roll_back(&failure).await;
                    return (rows, failure.outcome(Step::Inside));
                }
            }
        }
        let committed = self.run("COMMIT").await;
        (rows, outcome(committed.as_ref().err(), Step::Commit))
    }

    /// Where it fails, the session ends.
    async fn roll_back(&mut self, failure: &Failure) {
        if matches!(failure, Failure::Told { .. }) && self.run("ROLLBACK").await.is_err() {
            self.session = None;
        }
    }
}

pub(super) fn outcome(failure: Option<&Failure>, step: Step) -> Outcome {
    failure.map_or(Outcome::Acknowledged, |failure| failure.outcome(step))
}

impl Failure {
    fn of(error: &tokio_postgres::Error) -> Failure {
        match error.as_db_error() {
            Some(told) => {
                Failure::Told { code: told.code().code().to_owned(), message: told.message().to_owned() }
            }
            None => Failure::Cut(error.to_string()),
        }
    }

    /// Of what was asked: only 08007 and silence leave a commit in doubt.
    pub(super) fn outcome(&self, step: Step) -> Outcome {
        match (self, step) {
            (Failure::Told { code, message }, _) if code == "08007" => {
                Outcome::Unknown(format!("{code} {message}"))
            }
            (Failure::Told { code, message }, _) => Outcome::Refused(format!("{code} {message}")),
            (Failure::Cut(why), Step::Commit) => Outcome::Unknown(why.clone()),
            (Failure::Cut(why), Step::Inside) => Outcome::Refused(format!("before COMMIT: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Outcome, Step};

    #[test]
    fn what_failures_mean() {
        let told = |code: &str| Failure::Told { code: code.to_owned(), message: String::new() };
        let cut = || Failure::Cut(String::new());
        for (failure, step, unknown) in [
            (told("08007"), Step::Commit, true),
            (told("40001"), Step::Commit, false),
            (told("08006"), Step::Commit, false),
            (told("57P03"), Step::Commit, false),
            (cut(), Step::Commit, true),
            (cut(), Step::Inside, false),
        ] {
            assert_eq!(matches!(failure.outcome(step), Outcome::Unknown(_)), unknown, "{failure:?} {step:?}");
        }
    }
}
