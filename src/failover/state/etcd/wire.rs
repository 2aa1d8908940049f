//! What etcd's JSON gateway takes and gives: the protocol buffers of `rpc.proto` and `kv.proto` in their JSON mapping.
//! Keys and values are base64, 64-bit numbers are text, and what is zero or false is left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a key or value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Encoded(pub(super) Vec<u8>);

impl Encoded {
    /// Where the keys that begin with this one end.
    pub(super) fn end_of_prefix(&self) -> Encoded {
        let mut end = self.0.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Encoded(end);
            }
        }
        // etcd's spelling of "all that follow".
        Encoded(vec![0])
    }
}

impl From<&str> for Encoded {
    fn from(text: &str) -> Encoded {
        Encoded(text.as_bytes().to_vec())
    }
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Encoded, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Encoded).map_err(D::Error::custom)
    }
}

/// A 64-bit number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Number(pub(super) u64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Number).map_err(D::Error::custom)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    pub(super) cluster_id: Number,
    pub(super) revision: Number,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    pub(super) key: Encoded,
    pub(super) value: Encoded,
    pub(super) create_revision: Number,
    pub(super) mod_revision: Number,
    pub(super) lease: Number,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Range {
    pub(super) key: Encoded,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range_end: Option<Encoded>,
    pub(super) limit: Number,
    /// At which the keys are looked at; zero: now.
    pub(super) revision: Number,
}

impl Range {
    pub(super) fn one(key: &str) -> Range {
        Range { key: key.into(), range_end: None, limit: Number(1), revision: Number(0) }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RangeAnswer {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    pub(super) more: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Put {
    pub(super) key: Encoded,
    pub(super) value: Encoded,
    pub(super) lease: Number,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Delete {
    pub(super) key: Encoded,
}

/// What a transaction looks at.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "target")]
pub(super) enum Compare {
    #[serde(rename = "CREATE")]
    Created { key: Encoded, result: Equal, create_revision: Number },
    #[serde(rename = "MOD")]
    Modified { key: Encoded, result: Equal, mod_revision: Number },
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum Equal {
    #[serde(rename = "EQUAL")]
    Equal,
}

impl Compare {
    /// That `key` was created at this revision; zero: that it is not there.
    pub(super) fn created(key: &str, revision: u64) -> Compare {
        Compare::Created { key: key.into(), result: Equal::Equal, create_revision: Number(revision) }
    }

    /// That `key` was written last at this revision; zero: that it is not there.
    pub(super) fn modified(key: &str, revision: u64) -> Compare {
        Compare::Modified { key: key.into(), result: Equal::Equal, mod_revision: Number(revision) }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(super) enum Operation {
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_delete_range")]
    Delete(Delete),
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Txn {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Operation>,
    pub(super) failure: Vec<Operation>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswer {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    responses: Vec<OperationAnswer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OperationAnswer {
    response_range: RangeAnswer,
}

impl TxnAnswer {
    /// The key that the `n`th operation, a range of one key, has found.
    pub(super) fn found(&self, n: usize) -> Option<&KeyValue> {
        self.responses.get(n)?.response_range.kvs.first()
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Watch {
    pub(super) create_request: WatchCreate,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchCreate {
    pub(super) key: Encoded,
    pub(super) range_end: Encoded,
    pub(super) start_revision: Number,
}

/// A message of a stream, one per line.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Streamed<T> {
    Result(T),
    Error(Failure),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchAnswer {
    pub(super) header: Header,
    /// The watch is over; with `compact_revision` because what it asked for is no longer there.
    pub(super) canceled: bool,
    pub(super) compact_revision: Number,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<Event>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    #[serde(rename = "type")]
    pub(super) kind: EventKind,
    /// Of a deletion `key` and `mod_revision` only.
    pub(super) kv: KeyValue,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum EventKind {
    #[default]
    #[serde(rename = "PUT")]
    Put,
    #[serde(rename = "DELETE")]
    Delete,
}

#[derive(Debug, Serialize)]
pub(super) struct Grant {
    /// Seconds.
    #[serde(rename = "TTL")]
    pub(super) ttl: Number,
}

#[derive(Debug, Serialize)]
pub(super) struct KeepAlive {
    #[serde(rename = "ID")]
    pub(super) id: Number,
}

/// Of a grant, and of a keep-alive.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseAnswer {
    pub(super) header: Header,
    #[serde(rename = "ID")]
    pub(super) id: Number,
    /// Seconds; zero: there is no such lease any more.
    #[serde(rename = "TTL")]
    pub(super) ttl: Number,
}

#[derive(Serialize)]
pub(super) struct Authenticate<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

#[derive(Deserialize)]
pub(super) struct Token {
    pub(super) token: String,
}

/// What is answered in the place of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    /// gRPC's status code; in a stream it is `grpc_code`.
    #[serde(alias = "grpc_code")]
    pub(super) code: u32,
    pub(super) message: String,
}

#[cfg(test)]
mod tests {
    use super::{
        Compare, Encoded, Event, EventKind, Operation, Put, Range, Streamed, Txn, TxnAnswer, WatchAnswer,
    };
    use super::{KeyValue, LeaseAnswer, Number};

    #[test]
    fn a_transaction_as_etcd_reads_it() {
        let put = Put { key: "k".into(), value: "v".into(), lease: Number(7) };
        let txn = Txn {
            compare: vec![Compare::created("k", 0), Compare::modified("k", 5)],
            success: vec![Operation::Put(put)],
            failure: vec![Operation::Range(Range::one("k"))],
        };
        let expected = concat!(
            r#"{"compare":[{"target":"CREATE","key":"aw==","result":"EQUAL","create_revision":"0"},"#,
            r#"{"target":"MOD","key":"aw==","result":"EQUAL","mod_revision":"5"}],"#,
            r#""success":[{"request_put":{"key":"aw==","value":"dg==","lease":"7"}}],"#,
            r#""failure":[{"request_range":{"key":"aw==","limit":"1","revision":"0"}}]}"#,
        );
        assert_eq!(serde_json::to_string(&txn).unwrap(), expected);
    }

    /// As etcd 3.4 has sent them.
    #[test]
    fn answers_as_etcd_writes_them() {
        let txn = concat!(
            r#"{"header":{"cluster_id":"324952591200643719","member_id":"3319814642761637952","revision":"2","#,
            r#""raft_term":"2"},"responses":[{"response_range":{"header":{"revision":"2"},"kvs":[{"key":"aw==","#,
            r#""create_revision":"2","mod_revision":"2","version":"1","value":"YQ==","lease":"9"}],"count":"1"}},"#,
            r#"{"response_range":{"header":{"revision":"2"}}}]}"#,
        );
        let answer: TxnAnswer = serde_json::from_str(txn).unwrap();
        assert!(!answer.succeeded);
        assert_eq!(answer.header.cluster_id, Number(324_952_591_200_643_719));
        let [create_revision, mod_revision] = [Number(2); 2];
        let found =
            KeyValue { key: "k".into(), value: "a".into(), create_revision, mod_revision, lease: Number(9) };
        assert_eq!((answer.found(0), answer.found(1), answer.found(2)), (Some(&found), None, None));

        let line = r#"{"result":{"header":{"revision":"4"},"events":[{"type":"DELETE","kv":{"key":"aw==","mod_revision":"4"}}]}}"#;
        let Streamed::Result(answer) = serde_json::from_str::<Streamed<WatchAnswer>>(line).unwrap() else {
            panic!("no error")
        };
        let kv = KeyValue { key: "k".into(), mod_revision: Number(4), ..KeyValue::default() };
        assert_eq!(answer.events, [Event { kind: EventKind::Delete, kv }]);

        let gone: LeaseAnswer = serde_json::from_str(r#"{"header":{"revision":"4"},"ID":"7"}"#).unwrap();
        assert_eq!((gone.id, gone.ttl), (Number(7), Number(0)));
        assert!(serde_json::from_str::<LeaseAnswer>(r#"{"ID":"-7"}"#).is_err());
    }

    #[test]
    fn where_a_prefix_ends() {
        for (prefix, end) in [(&b"/a/"[..], &b"/a0"[..]), (b"a\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")] {
            assert_eq!(Encoded(prefix.to_vec()).end_of_prefix(), Encoded(end.to_vec()));
        }
    }
}
