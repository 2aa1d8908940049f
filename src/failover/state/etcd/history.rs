//! Elections in etcd: a key each, so that one more does not rewrite a thousand.

use std::collections::BTreeMap;

use tokio::sync::Mutex;

use super::gateway::RequestError;
use super::put::{leads, transact_for_certain};
use super::view::Keys;
use super::wire::{Delete, Encoded, Number, Operation, Put, Range, RangeAnswer, Txn};
use super::{EtcdError, Fence, Shared};
use crate::failover::state::MAX_HISTORY;
use crate::topology::Election;

/// Keys in an answer, and writes in a transaction: etcd takes 128 unless it was told otherwise.
const PAGE: usize = 64;
/// Of values in a transaction: etcd takes 1.5 MiB in a request, and base64 makes four bytes of three.
const MAX_BYTES: usize = 256 << 10;

/// By key, in their order; and under which leadership that is all there is.
pub(super) type Written = Mutex<Option<(Fence, Elections)>>;
type Elections = BTreeMap<Encoded, Encoded>;

pub(super) async fn read(shared: &Shared) -> Result<Vec<Election>, EtcdError> {
    let elections = read_all(shared).await.map_err(EtcdError::Read)?;
    let parsed = elections.into_iter().map(|(key, value)| {
        serde_json::from_slice(&value.0).map_err(|error| EtcdError::Unreadable {
            key: String::from_utf8_lossy(&key.0).into_owned(),
            what: error.to_string(),
        })
    });
    parsed.collect()
}

pub(super) async fn write(shared: &Shared, leadership: Fence, history: &[Election]) -> Result<(), EtcdError> {
    let keys = shared.keys();
    let mut written = shared.written.lock().await;
    let mut known = match written.take() {
        Some((fence, known)) if fence == leadership => known,
        _ => read_all(shared).await.map_err(EtcdError::Read)?,
    };
    for changes in in_portions(changes(&keys, &known, history)) {
        let compare = vec![leads(&keys.leader, leadership)];
        let success = changes.iter().map(Change::operation).collect();
        let answer = transact_for_certain(shared, &Txn { compare, success, failure: vec![] }).await?;
        if !answer.succeeded {
            return Err(EtcdError::Lost);
        }
        for Change { key, value } in changes {
            match value {
                Some(value) => known.insert(key, value),
                None => known.remove(&key),
            };
        }
    }
    *written = Some((leadership, known));
    Ok(())
}

async fn read_all(shared: &Shared) -> Result<Elections, RequestError> {
    let first = Encoded::from(shared.keys().history.as_str());
    let mut range = Range {
        range_end: Some(first.end_of_prefix()),
        key: first,
        limit: Number(PAGE as u64),
        revision: Number(0),
    };
    let mut elections = Elections::new();
    loop {
        let page: RangeAnswer = shared.gateway.ask(shared.gateway.current(), "kv/range", &range).await?;
        elections.extend(page.kvs.into_iter().map(|kv| (kv.key, kv.value)));
        let Some((last, _)) = elections.last_key_value().filter(|_| page.more) else { return Ok(elections) };
        // The key after it; and all pages as they were at the first one.
        range.key = Encoded([last.0.as_slice(), &[0]].concat());
        if range.revision == Number(0) {
            range.revision = page.header.revision;
        }
    }
}

/// To write a value, or to remove a key.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    key: Encoded,
    value: Option<Encoded>,
}

impl Change {
    fn operation(&self) -> Operation {
        let key = self.key.clone();
        match self.value.clone() {
            Some(value) => Operation::Put(Put { key, value, lease: Number(0) }),
            None => Operation::Delete(Delete { key }),
        }
    }

    fn bytes(&self) -> usize {
        self.key.0.len() + self.value.as_ref().map_or(0, |value| value.0.len())
    }
}

/// What makes `known` have all of `history`, and not more than [`MAX_HISTORY`] elections.
fn changes(keys: &Keys, known: &Elections, history: &[Election]) -> Vec<Change> {
    let wanted: Elections =
        history.iter().map(|election| (key(keys, election), super::encoded(election))).collect();
    let all: std::collections::BTreeSet<&Encoded> = known.keys().chain(wanted.keys()).collect();
    let excess: Vec<&Encoded> = all.iter().copied().take(all.len().saturating_sub(MAX_HISTORY)).collect();
    let puts = wanted.iter().filter(|(key, value)| known.get(*key) != Some(*value) && !excess.contains(key));
    let puts = puts.map(|(key, value)| Change { key: key.clone(), value: Some(value.clone()) });
    let removed = excess.iter().filter(|key| known.contains_key(**key));
    puts.chain(removed.map(|key| Change { key: (*key).clone(), value: None })).collect()
}

/// In the order of time. A term may have a switchover that was given up beside its election.
fn key(keys: &Keys, election: &Election) -> Encoded {
    format!("{}{:020}/{:020}", keys.history, election.term.0, election.started_at_ms).as_str().into()
}

/// What etcd takes in one transaction each.
fn in_portions(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut portions: Vec<Vec<Change>> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        bytes += change.bytes();
        match portions.last_mut().filter(|portion| portion.len() < PAGE && bytes <= MAX_BYTES) {
            Some(portion) => portion.push(change),
            None => {
                bytes = change.bytes();
                portions.push(vec![change]);
            }
        }
    }
    portions
}
