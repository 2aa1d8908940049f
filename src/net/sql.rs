//! Our own SQL to the servers: probes, promotion, settings, lookups of users. Not on the way of any client's
//! statement.
#![expect(clippy::disallowed_methods, reason = "shell: a connection needs its task")]

use std::ops::Deref;
use std::time::Duration;

use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::dial::{DialFailure, reach, within};
use super::{Credentials, DialError, Target};
use crate::pg::error::{ErrorFields, Severity, SqlState};

/// A `tokio_postgres::Client` that owns its connection: dropped, the connection is gone, whatever it was doing.
#[derive(Debug)]
pub struct SqlConnection {
    client: tokio_postgres::Client,
    closed: CancellationToken,
    _connection: AbortOnDropHandle<()>,
}

impl SqlConnection {
    /// Until the connection has ended, by whatever cause: a server that goes away is noticed without a query.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Deref for SqlConnection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

/// Logs in at `target`, all within `limit`. The statements have no limit of their own: their callers know best.
/// `target.credentials` must be Trust or Password; its parameters become settings of the session.
pub async fn connect(target: &Target, limit: Duration) -> Result<SqlConnection, DialError> {
    within(limit, &target.address, async {
        let config = config(target)?;
        let (stream, _) = reach(&target.address, &target.tls).await?;
        let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(failure)?;
        // Its error comes to the client's caller as well: nothing is lost with it here.
        let closed = CancellationToken::new();
        let ended = closed.clone().drop_guard();
        let task = tokio::spawn(async move {
            drop(connection.await);
            drop(ended);
        });
        Ok(SqlConnection { client, closed, _connection: AbortOnDropHandle::new(task) })
    })
    .await
}

/// Asks the server to end what runs on `connection`, which goes to `target`.
pub async fn cancel(target: &Target, connection: &SqlConnection, limit: Duration) -> Result<(), DialError> {
    within(limit, &target.address, async {
        let (stream, _) = reach(&target.address, &target.tls).await?;
        connection.cancel_token().cancel_query_raw(stream, NoTls).await.map_err(failure)
    })
    .await
}

fn config(target: &Target) -> Result<Config, DialFailure> {
    let mut config = Config::new();
    config.user(&*target.user).dbname(&*target.database);
    match &target.credentials {
        Credentials::Trust => {}
        Credentials::Password(password) => {
            config.password(password.as_bytes());
        }
        Credentials::ScramKeys(_) | Credentials::Md5(_) => {
            return Err(DialFailure::protocol("our own SQL needs a password or trust"));
        }
    }
    let mut options = String::new();
    for (name, value) in &target.parameters {
        match name.as_str() {
            "application_name" => {
                config.application_name(value);
            }
            "options" => options = format!("{value} {options}"),
            _ => options.push_str(&setting(name, value)),
        }
    }
    if !options.is_empty() {
        config.options(options);
    }
    Ok(config)
}

/// `-c name=value `, with what `pg_split_opts` (postinit.c) treats specially escaped.
fn setting(name: &str, value: &str) -> String {
    let mut text = format!("-c {name}=");
    for c in value.chars() {
        if c == '\\' || c.is_ascii_whitespace() {
            text.push('\\');
        }
        text.push(c);
    }
    text.push(' ');
    text
}

/// The server's own words where it said some.
fn failure(error: tokio_postgres::Error) -> DialFailure {
    let Some(said) = error.as_db_error() else {
        return DialFailure::Protocol(std::io::Error::other(error));
    };
    let code = SqlState::parse(said.code().code().as_bytes()).unwrap_or(SqlState::INTERNAL_ERROR);
    DialFailure::Rejected(ErrorFields {
        severity: Severity::Fatal,
        code,
        message: said.message().to_owned(),
        detail: said.detail().map(str::to_owned),
        hint: said.hint().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn settings_survive_the_splitting_of_options() {
        let check = |value: &str, expected: &str| assert_eq!(super::setting("a.b", value), expected);
        check("pg_catalog", "-c a.b=pg_catalog ");
        check("a b", "-c a.b=a\\ b ");
        check("a\\b", "-c a.b=a\\\\b ");
        check("", "-c a.b= ");
    }
}
