//! Asking the servers for what they hold of a user's password.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::cache::{Cache, Found};
use super::{Known, Lookup, Secret};
use crate::net::sql::{self, SqlConnection};
use crate::net::{DialError, Target};
use crate::topology::Address;

/// For connecting to one server, and again for its answer.
const LIMIT: Duration = Duration::from_secs(3);
const DEFAULT_KEEP: Duration = Duration::from_secs(30);

/// Names with their schemas, and `search_path` pinned beside: nobody gets to say what `=` or `now` means here
/// (CVE-2025-12819 in a pooler). An expired password is none (CVE-2025-2291).
const AUTHID: &str = "SELECT rolpassword, \
     CASE WHEN pg_catalog.isfinite(rolvaliduntil) \
          THEN pg_catalog.date_part('epoch', rolvaliduntil - pg_catalog.now()) END \
     FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin \
     AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())";

/// How users are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookups {
    pub statement: LookupStatement,
    /// How long an answer is used without asking again.
    pub keep: Duration,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups { statement: LookupStatement::Authid, keep: DEFAULT_KEEP }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupStatement {
    /// `pg_authid`, which the login must be allowed to read.
    Authid,
    /// As PgBouncer's `auth_query`: `$1` is the name, the last of the first two columns the secret. `VALID UNTIL`
    /// is the statement's own business; names need their schemas.
    Own(String),
}

#[derive(Debug)]
pub(super) struct Servers {
    candidates: watch::Receiver<Vec<Target>>,
    statement: LookupStatement,
    /// One connection and one lookup at a time; whoever waits for it is within its login limit.
    connection: tokio::sync::Mutex<Option<(Address, SqlConnection)>>,
    cache: Mutex<Cache>,
}

impl Servers {
    pub(super) fn new(candidates: watch::Receiver<Vec<Target>>, lookups: Lookups) -> Servers {
        Servers {
            candidates,
            statement: lookups.statement,
            connection: tokio::sync::Mutex::new(None),
            cache: Mutex::new(Cache::new(lookups.keep)),
        }
    }

    pub(super) async fn find(&self, user: &str) -> Lookup {
        let fresh = || self.cache.lock().fresh(user, Instant::now());
        if let Some(lookup) = fresh() {
            return lookup;
        }
        let mut connection = self.connection.lock().await;
        // Somebody may have asked for the same user while we waited.
        if let Some(lookup) = fresh() {
            return lookup;
        }
        match self.ask(&mut connection, user).await {
            Some(found) => {
                self.cache.lock().insert(user, found.clone(), Instant::now());
                found.map_or(Lookup::Unknown, |found| Lookup::Found(found.known))
            }
            None => self.cache.lock().any(user, Instant::now()).unwrap_or(Lookup::Unavailable),
        }
    }

    /// `None`: nobody could answer.
    async fn ask(
        &self,
        connection: &mut Option<(Address, SqlConnection)>,
        user: &str,
    ) -> Option<Option<Found>> {
        let candidates = self.candidates.borrow().clone();
        // The connection stays only while its server is a candidate.
        let usable = |(address, kept): &mut (Address, SqlConnection)| {
            !kept.is_closed() && candidates.iter().any(|target| target.address == *address)
        };
        if let Some((address, kept)) = connection.take_if(usable)
            && let Ok(found) = self.look_up(&kept, user).await
        {
            *connection = Some((address, kept));
            return Some(found);
        }
        *connection = None;
        for target in candidates {
            let address = target.address.clone();
            let attempt = async {
                let opened = sql::connect(&pinned(target), LIMIT).await?;
                let found = self.look_up(&opened, user).await?;
                Ok::<_, LookupError>((opened, found))
            };
            match attempt.await {
                Ok((opened, found)) => {
                    *connection = Some((address, opened));
                    return Some(found);
                }
                Err(error) => error.log(&address),
            }
        }
        None
    }

    async fn look_up(&self, connection: &SqlConnection, user: &str) -> Result<Option<Found>, LookupError> {
        let statement = match &self.statement {
            LookupStatement::Authid => AUTHID,
            LookupStatement::Own(statement) => statement,
        };
        let asked = async { connection.query_opt(statement, &[&user]).await };
        let row = tokio::time::timeout(LIMIT, asked).await.map_err(|_| LookupError::Silence)??;
        let (secret, valid_for) = match (row, &self.statement) {
            (None, _) => return Ok(None),
            (Some(row), LookupStatement::Authid) => {
                let seconds: Option<f64> = row.try_get(1)?;
                let valid_for = seconds.map(|left| Duration::try_from_secs_f64(left).unwrap_or_default());
                (secret_at(&row, 0)?, valid_for)
            }
            (Some(row), LookupStatement::Own(_)) => {
                (secret_at(&row, row.len().min(2).saturating_sub(1))?, None)
            }
        };
        Ok(secret.map(|secret| Found { known: Known::new(secret), valid_for }))
    }
}

/// `None`: no password, or none in a form that PostgreSQL stores.
fn secret_at(row: &Row, column: usize) -> Result<Option<Secret>, tokio_postgres::Error> {
    let stored: Option<String> = row.try_get(column)?;
    Ok(stored.and_then(|stored| Secret::stored(&stored)))
}

fn pinned(mut target: Target) -> Target {
    target.parameters.push(("search_path".to_owned(), "pg_catalog".to_owned()));
    target
}

#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("look up a password")]
    Sql(#[from] tokio_postgres::Error),
    #[error("no answer within {LIMIT:?}")]
    Silence,
}

impl LookupError {
    /// A missing grant is for a person to mend; a server that is not there is somebody else's to report.
    fn log(&self, address: &Address) {
        let denied = match self {
            LookupError::Sql(error) => {
                error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
            }
            LookupError::Dial(_) | LookupError::Silence => false,
        };
        if denied {
            tracing::warn!(%address, "the login for it may not read passwords: users cannot be looked up");
        } else {
            let cause = std::error::Error::source(self).map(ToString::to_string);
            tracing::info!(%address, error = %self, cause, "a user could not be looked up here");
        }
    }
}
