#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]
//! What goes on all the time: following the keys, and doing what the [`View`] finds to be due about
//! lease and leadership. One task, three loops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::gateway::RequestError;
use super::view::{Duty, Lease, View};
use super::wire::{
    Compare, Delete, Encoded, Grant, KeepAlive, KeyValue, LeaseAnswer, Number, Operation, Put, Range,
    Streamed, Txn, TxnAnswer,
};
use super::{Fence, Leader, Revision, Shared};

/// Between two tries, when no endpoint answers.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let work = async { tokio::join!(follow(&shared), perform(&shared), expire(&shared)) };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = work => {}
    }
    shared.update(View::stop);
}

/// Reads, and watches from there, again and again.
async fn follow(shared: &Shared) {
    loop {
        let Err(error) = follow_once(shared).await;
        let error_text = chain(&error);
        tracing::debug!(error = error_text, "etcd is read anew");
        // That is no loss: the read that comes next shows whether etcd is there.
        let rounds =
            if error.is_end_of_watch() { 1 } else { shared.update(|view, _| view.failed(error_text)) };
        let pause = PAUSE.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
        sleep(pause.min(shared.config.beat())).await;
    }
}

/// The watch only makes it quick. That what is seen is what etcd has, every beat's read shows.
async fn follow_once(shared: &Shared) -> Result<std::convert::Infallible, RequestError> {
    let keys = shared.keys();
    let Revision(read) = look(shared).await?;
    let at = shared.gateway.current();
    let mut changes = shared.gateway.watch(at, &keys.prefix, read + 1).await?;
    let mut beat = interval(shared.config.beat());
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    loop {
        tokio::select! {
            answer = changes.next() => {
                let answer = answer?;
                shared.believed(at, |view, now| view.changed(answer.header, &answer.events, now))?;
            }
            _ = beat.tick() => {
                look(shared).await?;
                if shared.gateway.current() != at {
                    return Err(changes.left());
                }
            }
        }
    }
}

/// Reads both keys, as they are now.
async fn look(shared: &Shared) -> Result<Revision, RequestError> {
    let keys = shared.keys();
    let both = [&keys.leader, &keys.state].map(|key| Operation::Range(Range::one(key)));
    let answer = shared.transact(&Txn { success: both.to_vec(), ..Txn::default() }).await?;
    shared.update(|view, now| view.read(answer.header, answer.found(0), answer.found(1), now));
    Ok(Revision(answer.header.revision.0))
}

/// The lease's end is nobody's event.
async fn expire(shared: &Shared) {
    let mut seen = shared.seen.subscribe();
    loop {
        let until = match seen.borrow_and_update().leader {
            Leader::Own { until, .. } => Some(until),
            Leader::Nobody | Leader::Other(_) => None,
        };
        tokio::select! {
            _ = seen.changed() => {}
            () = sleep_until(until.unwrap_or_else(Instant::now).into()), if until.is_some() => {
                shared.update(|_, _| ());
            }
        }
    }
}

/// Does what is due about lease and leadership.
async fn perform(shared: &Shared) {
    loop {
        let duty = shared.view.lock().duty(Instant::now());
        let done = match duty {
            Duty::Grant => grant(shared).await,
            Duty::Renew(lease) => renew(shared, lease).await,
            Duty::Remove(fence) => remove(shared, fence).await,
            Duty::Campaign(lease) => campaign(shared, lease).await,
            Duty::Wait(until) => {
                tokio::select! {
                    () = shared.changed.notified() => {}
                    () = sleep_until(until.into()) => {}
                }
                Ok(())
            }
        };
        if let Err(error) = done {
            tracing::debug!(?duty, error = chain(&error), "etcd does not answer");
            sleep(PAUSE).await;
        }
    }
}

async fn grant(shared: &Shared) -> Result<(), RequestError> {
    let (at, sent) = (shared.gateway.current(), Instant::now());
    let ttl = Number(shared.config.lease.as_secs());
    let answer: LeaseAnswer = shared.gateway.ask(at, "lease/grant", &Grant { ttl }).await?;
    shared.believed(at, |view, _| view.believe_cluster(answer.header))?;
    let lease = Lease::new(answer.id.0, Duration::from_secs(answer.ttl.0), sent);
    let key = Encoded::from(shared.keys().member.as_str());
    let put = Put { key, value: "{}".into(), lease: answer.id };
    shared.transact(&Txn { success: vec![Operation::Put(put)], ..Txn::default() }).await?;
    shared.update(|view, _| view.holds(lease));
    Ok(())
}

async fn renew(shared: &Shared, id: u64) -> Result<(), RequestError> {
    let (at, sent) = (shared.gateway.current(), Instant::now());
    let answer: Streamed<LeaseAnswer> =
        shared.gateway.ask(at, "lease/keepalive", &KeepAlive { id: Number(id) }).await?;
    let answer = shared.gateway.streamed(at, answer)?;
    shared.believed(at, |view, _| view.believe_cluster(answer.header))?;
    shared.update(|view, _| match answer.ttl.0 {
        0 => view.lease_is_gone(id),
        ttl => view.holds(Lease::new(id, Duration::from_secs(ttl), sent)),
    });
    Ok(())
}

/// Creates the key of the leader, unless it is there.
async fn campaign(shared: &Shared, lease: u64) -> Result<(), RequestError> {
    let key = shared.keys().leader;
    let value = Encoded::from(shared.config.instance.as_str());
    let put = Put { key: key.as_str().into(), value: value.clone(), lease: Number(lease) };
    let txn = Txn {
        compare: vec![Compare::created(&key, 0)],
        success: vec![Operation::Put(put)],
        failure: vec![Operation::Range(Range::one(&key))],
    };
    let answer = match shared.transact(&txn).await {
        Err(error) if error.is_lease_gone() => {
            shared.update(|view, _| view.lease_is_gone(lease));
            return Ok(());
        }
        answer => answer?,
    };
    let created = KeyValue {
        key: key.as_str().into(),
        value,
        create_revision: answer.header.revision,
        mod_revision: answer.header.revision,
        lease: Number(lease),
    };
    let found = if answer.succeeded { Some(&created) } else { answer.found(0) };
    shared.update(|view, now| view.set_leader(Revision(answer.header.revision.0), found, now));
    Ok(())
}

/// Removes the key of a leadership that was resigned, if it is there.
async fn remove(shared: &Shared, fence: Fence) -> Result<(), RequestError> {
    let key = shared.keys().leader;
    let delete = Delete { key: key.as_str().into() };
    let txn = Txn {
        compare: vec![Compare::created(&key, fence.0.0)],
        success: vec![Operation::Delete(delete)],
        failure: vec![Operation::Range(Range::one(&key))],
    };
    let answer: TxnAnswer = shared.transact(&txn).await?;
    let found = if answer.succeeded { None } else { answer.found(0) };
    shared.update(|view, now| view.set_leader(Revision(answer.header.revision.0), found, now));
    Ok(())
}

/// Once; the task goes on trying.
pub(super) async fn give_up(shared: &Shared) {
    let duty = shared.view.lock().duty(Instant::now());
    if let Duty::Remove(fence) = duty
        && let Err(error) = remove(shared, fence).await
    {
        tracing::debug!(error = chain(&error), "etcd does not know yet that the leadership was resigned");
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
