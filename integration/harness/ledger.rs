//! Clients that write one unique token per transaction and remember every answer, and the comparison of what
//! they were told with what the table holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use super::wait::eventually_async;

/// What a client was told about one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// COMMIT succeeded: the token must be there exactly once.
    Acknowledged,
    /// 08007: there at most once.
    InDoubt,
    /// 40001, 08006, 57P03, 25006: it did not happen, the token must not be there.
    Refused(String),
    /// The connection to the endpoint itself broke without a word: nothing is known.
    Broken(String),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) token: i64,
    pub(crate) answer: Answer,
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

pub(crate) struct Ledger {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Vec<Entry>>>,
}

const CREATE: &str = "CREATE TABLE IF NOT EXISTS tokens (token bigint NOT NULL)";

impl Ledger {
    /// `writers` clients; every other one commits explicitly, the rest by autocommit. The table has no unique
    /// index on purpose: a transaction that ran twice must show.
    /// Ledgers of different `series` in one database do not share a token.
    pub(crate) async fn start(conninfo: &str, series: i64, writers: i64) -> Ledger {
        let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await.expect("connect");
        let connection = tokio::spawn(connection);
        eventually_async("the ledger's table", Duration::from_secs(120), || async {
            match client.batch_execute(CREATE).await {
                Ok(()) => Ok(()),
                // The primary may be lost meanwhile.
                Err(error)
                    if error
                        .code()
                        .is_some_and(|code| ["08007", "40001", "57P03"].contains(&code.code())) =>
                {
                    Err(error.to_string())
                }
                Err(error) => panic!("{error:?}"),
            }
        })
        .await;
        drop(client);
        let _ = connection.await;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers = (0..writers)
            .map(|number| {
                let writer = Writer {
                    conninfo: conninfo.to_owned(),
                    number,
                    series,
                    stop: Arc::clone(&stop),
                    acknowledged: Arc::clone(&acknowledged),
                };
                tokio::spawn(writer.run())
            })
            .collect();
        Ledger { stop, acknowledged, writers }
    }

    /// How many tokens have been acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(crate) async fn finish(self) -> Vec<Entry> {
        self.stop.store(true, Ordering::Relaxed);
        let mut entries = Vec::new();
        for writer in self.writers {
            entries.extend(writer.await.expect("a writer ends in order"));
        }
        entries
    }
}

struct Writer {
    conninfo: String,
    number: i64,
    series: i64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    async fn run(self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut client = None;
        let mut token = (self.series << 48) | (self.number << 32);
        while !self.stop.load(Ordering::Relaxed) {
            if client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                client = match tokio_postgres::connect(&self.conninfo, NoTls).await {
                    Ok((fresh, connection)) => {
                        tokio::spawn(connection);
                        Some(fresh)
                    }
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
            }
            let Some(connected) = client.as_ref() else { continue };
            token += 1;
            let started = Instant::now();
            let result = self.write(connected, token).await;
            let answer = result.map_or_else(|error| judge(&error), |()| Answer::Acknowledged);
            if answer == Answer::Acknowledged {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                // An explicit block may be open and failed.
                let _ = connected.batch_execute("ROLLBACK").await;
            }
            entries.push(Entry { token, answer, at: Instant::now(), took: started.elapsed() });
        }
        entries
    }

    async fn write(&self, client: &tokio_postgres::Client, token: i64) -> Result<(), tokio_postgres::Error> {
        let insert = format!("INSERT INTO tokens VALUES ({token})");
        if self.number % 2 == 0 {
            return client.batch_execute(&insert).await;
        }
        client.batch_execute("BEGIN").await?;
        client.batch_execute(&insert).await?;
        client.batch_execute("COMMIT").await
    }
}

fn judge(error: &tokio_postgres::Error) -> Answer {
    match error.as_db_error() {
        Some(told) if told.code().code() == "08007" => Answer::InDoubt,
        Some(told) => Answer::Refused(format!("{} {}", told.code().code(), told.message())),
        None => Answer::Broken(error.to_string()),
    }
}

/// What is wrong with `entries` given how often each token is in the table: empty when nothing is.
pub(crate) fn audit(entries: &[Entry], found: &HashMap<i64, i64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in entries {
        let count = found.get(&entry.token).copied().unwrap_or(0);
        let right = match entry.answer {
            Answer::Acknowledged => count == 1,
            Answer::InDoubt | Answer::Broken(_) => count <= 1,
            Answer::Refused(_) => count == 0,
        };
        if !right {
            wrong.push(format!(
                "token {} is there {count} times, but its writer was told {:?}",
                entry.token, entry.answer
            ));
        }
    }
    wrong
}

/// Every token in the table with its count.
pub(crate) async fn tokens(conninfo: &str) -> HashMap<i64, i64> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await.expect("connect");
    tokio::spawn(connection);
    let rows = client.query("SELECT token, count(*) FROM tokens GROUP BY token", &[]).await.expect("tokens");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn the_audit_catches_what_it_is_for() {
    let entry = |token, answer| Entry { token, answer, at: Instant::now(), took: Duration::ZERO };
    let refused = || Answer::Refused("40001".to_owned());
    let found = HashMap::from([(1, 1), (2, 2), (4, 1), (5, 1), (6, 2)]);
    let honest = [entry(1, Answer::Acknowledged), entry(3, refused()), entry(4, Answer::InDoubt)];
    assert_eq!(audit(&honest, &found), Vec::<String>::new());
    let lies = [
        entry(2, Answer::Acknowledged), // twice
        entry(3, Answer::Acknowledged), // lost
        entry(5, refused()),            // happened all the same
        entry(6, Answer::InDoubt),      // twice
    ];
    assert_eq!(audit(&lies, &found).len(), lies.len());
}
