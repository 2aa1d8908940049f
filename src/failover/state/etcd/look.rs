//! What each endpoint says when it is looked at: for people. Writes nothing.

use serde::Deserialize;

use super::gateway::{Gateway, RequestError};
use super::metrics::EtcdMetrics;
use super::view::Keys;
use super::wire::{Compare, Encoded, Header, Number, Operation, Put, Range, RangeAnswer, Txn, TxnAnswer};
use super::{EtcdConfig, EtcdError};
use crate::failover::decide::State;
use crate::pg::SystemIdentifier;

/// One endpoint's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Of etcd.
    pub version: String,
    /// The same for all members of one etcd.
    pub cluster_id: u64,
    /// Whose state is kept under this cluster's name.
    pub state: Kept,
}

/// The state in etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    /// None, or one without a primary.
    #[default]
    Nothing,
    Of(SystemIdentifier),
}

/// `POST /v3/maintenance/status`, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    header: Header,
    version: String,
}

/// All endpoints of `config`, in their order, each asked by itself.
pub async fn look(config: &EtcdConfig) -> Vec<(String, Result<Look, EtcdError>)> {
    let each = config.endpoints.iter().map(|endpoint| async {
        let alone = EtcdConfig { endpoints: vec![endpoint.clone()], ..config.clone() };
        (endpoint.clone(), look_at(&alone).await)
    });
    futures_util::future::join_all(each).await
}

async fn look_at(config: &EtcdConfig) -> Result<Look, EtcdError> {
    let gateway = Gateway::new(config, EtcdMetrics::new().expect("its names are well formed"));
    let keys = Keys::new(&config.cluster, &config.instance);
    let at = gateway.current();
    let status: Status =
        gateway.ask(at, "maintenance/status", &serde_json::json!({})).await.map_err(EtcdError::Read)?;
    let state: RangeAnswer =
        gateway.ask(at, "kv/range", &Range::one(&keys.state)).await.map_err(EtcdError::Read)?;
    may_write(&gateway, &keys).await.map_err(EtcdError::Read)?;
    let unreadable =
        |error: serde_json::Error| EtcdError::Unreadable { key: keys.state.clone(), what: error.to_string() };
    let kept = state.kvs.first().map(|key| serde_json::from_slice::<State>(&key.value.0)).transpose();
    let primary = kept.map_err(unreadable)?.and_then(|state| state.primary);
    Ok(Look {
        version: status.version,
        cluster_id: status.header.cluster_id.0,
        state: primary.map_or(Kept::Nothing, |primary| Kept::Of(primary.system)),
    })
}

/// etcd looks at what a transaction would need, whether it comes to that or not (`checkTxnAuth` in apply.go). No key was
/// created at this revision.
async fn may_write(gateway: &Gateway, keys: &Keys) -> Result<(), RequestError> {
    let never = i64::MAX.unsigned_abs();
    let put = Put { key: keys.leader.as_str().into(), value: Encoded::default(), lease: Number(0) };
    let txn = Txn {
        compare: vec![Compare::created(&keys.leader, never)],
        success: vec![Operation::Put(put)],
        failure: Vec::new(),
    };
    let _: TxnAnswer = gateway.ask(gateway.current(), "kv/txn", &txn).await?;
    Ok(())
}
