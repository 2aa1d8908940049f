//! Writing the state: only by who leads, and only over the state that it has seen.

use super::gateway::RequestError;
use super::wire::{Compare, Number, Operation, Put, Range, Txn};
use super::{EtcdError, Fence, Revision, Shared};
use crate::failover::decide::State;

pub(super) async fn state(
    shared: &Shared,
    leadership: Fence,
    expected: Option<Revision>,
    state: &State,
) -> Result<Revision, EtcdError> {
    let (keys, value) = (shared.keys(), super::encoded(state));
    let put = Put { key: keys.state.as_str().into(), value: value.clone(), lease: Number(0) };
    let Revision(seen) = expected.unwrap_or_default();
    let both = [&keys.leader, &keys.state].map(|key| Operation::Range(Range::one(key)));
    let txn = Txn {
        compare: vec![leads(&keys.leader, leadership), Compare::modified(&keys.state, seen)],
        success: vec![Operation::Put(put)],
        failure: both.to_vec(),
    };
    let answer = transact_for_certain(shared, &txn).await?;
    let now = Revision(answer.header.revision.0);
    if answer.succeeded {
        shared.update(|view, _| view.put(now, state.clone()));
        return Ok(now);
    }
    let (leader, found) = (answer.found(0), answer.found(1));
    shared.update(|view, now| view.read(answer.header, leader, found, now));
    // An earlier request that got no answer may have been the one that wrote it: under this fence nobody else does.
    let still_leads = leader.is_some_and(|key| key.create_revision.0 == leadership.0.0);
    let ours = found
        .filter(|key| still_leads && key.value == value && key.mod_revision.0 > leadership.0.0.max(seen));
    ours.map(|key| Revision(key.mod_revision.0)).ok_or(EtcdError::Lost)
}

pub(super) fn leads(leader: &str, leadership: Fence) -> Compare {
    Compare::created(leader, leadership.0.0)
}

/// Asks every endpoint once if need be. `txn` has to be one that does not matter twice.
pub(super) async fn transact_for_certain(shared: &Shared, txn: &Txn) -> Result<super::TxnAnswer, EtcdError> {
    if let Some(why) = shared.view.lock().refused() {
        return Err(EtcdError::Refused(why.to_owned()));
    }
    let mut last: Option<RequestError> = None;
    for _ in 0..shared.gateway.len() {
        match shared.transact(txn).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
    }
    Err(EtcdError::Unknown(last.expect("there is an endpoint")))
}
