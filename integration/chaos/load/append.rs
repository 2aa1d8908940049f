//! Appends to lists, and reads of them.

use rand::RngExt as _;
use rand::seq::IteratorRandom as _;

use super::client::{self, Client, Row, Step};
use super::{Histories, LISTS, PAUSE};
use crate::check::append::{Key, Lists, Read, Source, Transaction};
use crate::check::{Outcome, Token};

/// Blocks that read some lists at the primary, and then append to others, or to the same.
pub(super) async fn by_blocks(mut client: Client) -> Histories {
    let mut done = Histories::default();
    while !client.scene.ended() {
        tokio::time::sleep(PAUSE).await;
        let Some(session) = client.begin().await else { continue };
        let (keys, wanted) = {
            let mut random = rand::rng();
            let writes = random.random_range(0..=3);
            ((1..=LISTS).sample(&mut random, 4), (1..=LISTS).sample(&mut random, writes))
        };
        let appends: Vec<(Key, Token)> = wanted.into_iter().map(|key| (key, client.scene.token())).collect();
        let mut statements = vec![read(client.scene.round, &keys)];
        statements.extend(appends.iter().map(|(key, token)| append(client.scene.round, *key, *token)));
        let began = client.scene.now();
        let (rows, outcome) = client.block("BEGIN ISOLATION LEVEL SERIALIZABLE", &statements).await;
        // Each list has a row at the primary: without any, nobody has answered.
        let answered = lists(&keys, &rows).filter(|_| !rows.is_empty());
        let reads = answered.map(|lists| Read { of: Source::Primary, lists });
        note(
            &mut done,
            &client,
            Transaction {
                session,
                began,
                ended: client.scene.now(),
                reads: reads.into_iter().collect(),
                appends,
                outcome,
            },
        );
    }
    done
}

/// Statements outside of blocks: an append, and then a read that any node may answer.
pub(super) async fn one_by_one(mut client: Client) -> Histories {
    let mut done = Histories::default();
    while !client.scene.ended() {
        tokio::time::sleep(PAUSE).await;
        let Some(session) = client.begin().await else { continue };
        let (key, token) = (rand::rng().random_range(1..=LISTS), client.scene.token());
        let began = client.scene.now();
        let appended = client.run(&append(client.scene.round, key, token)).await;
        let outcome = client::outcome(appended.as_ref().err(), Step::Commit);
        let lost = appended.is_err() && client.begin().await != Some(session);
        let (reads, appends) = (Vec::new(), vec![(key, token)]);
        let ended = client.scene.now();
        note(&mut done, &client, Transaction { session, began, ended, reads, appends, outcome });
        if lost {
            continue;
        }
        let others = (1..=LISTS).filter(|other| *other != key).sample(&mut rand::rng(), 5);
        let keys: Vec<Key> = std::iter::once(key).chain(others).collect();
        let began = client.scene.now();
        let answer = client.run(&read(client.scene.round, &keys)).await;
        let outcome = client::outcome(answer.as_ref().err(), Step::Commit);
        let lists = answer.ok().and_then(|rows| lists(&keys, &rows));
        note(
            &mut done,
            &client,
            Transaction {
                session,
                began,
                ended: client.scene.now(),
                reads: lists.map(|lists| Read { of: Source::Anywhere, lists }).into_iter().collect(),
                appends: Vec::new(),
                outcome,
            },
        );
    }
    done
}

fn note(done: &mut Histories, client: &Client, transaction: Transaction) {
    // Who only reads may be served without anybody who could be written to.
    if !transaction.appends.is_empty() {
        client.scene.heard(client.number, &transaction.outcome);
        if transaction.outcome == Outcome::Acknowledged {
            done.acknowledged.push(transaction.ended);
        }
    }
    done.transactions.push(transaction);
}

fn append(round: i32, key: Key, token: Token) -> String {
    format!("UPDATE lists SET tokens = tokens || {token}::bigint WHERE round = {round} AND key = {key}")
}

fn read(round: i32, keys: &[Key]) -> String {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let keys = keys.join(", ");
    format!("SELECT key, array_to_string(tokens, ' ') FROM lists WHERE round = {round} AND key IN ({keys})")
}

/// `None`: the question was not answered. A standby that has not replayed the round's begin has no rows: all are empty.
fn lists(keys: &[Key], rows: &[Row]) -> Option<Lists> {
    let mut lists: Lists = keys.iter().map(|key| (*key, Vec::new())).collect();
    for row in rows {
        let [key, tokens] = row.as_slice() else { return None };
        let tokens = tokens.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        lists.insert(key.parse().ok()?, tokens);
    }
    Some(lists)
}
