//! A follower by hand: it speaks the replication protocol to the relay, and does what no stock one would.

use std::time::{Duration, Instant};

use bellwether::net::{Backend, Credentials, Target, TlsForServers, dial};
use bellwether::pg::error::ErrorFields;
use bellwether::pg::protocol::frame::{HEADER_LEN, Header};
use bellwether::pg::protocol::replication::{FromServer, Reply, StandbyStatus};
use bellwether::pg::protocol::{backend, frontend};
use bellwether::pg::{Lsn, PgTimestamp};
use bellwether::topology::Address;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use super::cluster::Cluster;

/// For an answer.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Follower {
    runtime: Runtime,
    backend: Backend,
}

/// What the relay says on a stream.
#[derive(Debug)]
pub(crate) enum Heard {
    Wal {
        start: u64,
        /// The sender's end.
        end: u64,
        bytes: Bytes,
    },
    Keepalive {
        end: u64,
    },
    CopyDone,
    Error(ErrorFields),
    /// Without a word.
    Closed,
    /// Not within the time it was waited for.
    Silence,
}

/// A row's fields as text.
type Row = Vec<Option<String>>;

impl Follower {
    pub(crate) fn connect(cluster: &Cluster, application_name: &str) -> Follower {
        let parameter = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let target = Target {
            address: Address { host: "127.0.0.1".to_owned(), port: cluster.port },
            user: "bellwether".into(),
            database: "replication".into(),
            credentials: Credentials::Password(cluster.superuser_password().into()),
            tls: TlsForServers::default(),
            parameters: vec![
                parameter("replication", "true"),
                parameter("application_name", application_name),
            ],
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let backend = runtime.block_on(dial(&target, LIMIT)).expect("the relay lets it in");
        Follower { runtime, backend }
    }

    /// The rows that `command` gives.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Vec<Row>, ErrorFields> {
        let mut query = BytesMut::new();
        frontend::query(command, &mut query);
        self.send(&query);
        self.rows()
    }

    /// The first error that `bytes` are answered with, however much of them is taken.
    pub(crate) fn provoke(&mut self, bytes: &[u8]) -> ErrorFields {
        let stream = &mut self.backend.stream;
        let write = async { tokio::time::timeout(LIMIT, stream.write_all(bytes)).await };
        // Whoever refuses all of it may not wait for the rest.
        let _ = self.runtime.block_on(write).expect("it is taken or refused");
        loop {
            match self.message(LIMIT).expect("an answer") {
                (b'E', payload) => return backend::decode_error(&payload),
                (other, _) => assert!(b"SNTW".contains(&other), "{:?}", char::from(other)),
            }
        }
    }

    /// `Err`: refused, before or behind CopyBothResponse. That there is nothing left of the timeline is an answer, too:
    /// the next one and its switchpoint.
    pub(crate) fn start(
        &mut self,
        slot: Option<&str>,
        from: u64,
        timeline: u32,
    ) -> Result<Option<Row>, ErrorFields> {
        let slot = slot.map_or_else(String::new, |slot| format!("SLOT \"{slot}\" "));
        let command = format!("START_REPLICATION {slot}PHYSICAL {} TIMELINE {timeline}", Lsn(from));
        let mut query = BytesMut::new();
        frontend::query(&command, &mut query);
        self.send(&query);
        match self.message(LIMIT).expect("an answer") {
            (b'W', _) => Ok(None),
            (b'E', error) => {
                let error = backend::decode_error(&error);
                self.rows().map(|_| ()).expect("it is told once");
                Err(error)
            }
            (b'T', _) => Ok(self.rows()?.pop()),
            (other, _) => panic!("{command}: {:?}", char::from(other)),
        }
    }

    /// The next message of the stream.
    pub(crate) fn hear(&mut self, limit: Duration) -> Heard {
        loop {
            match self.message(limit) {
                Ok((b'd', payload)) => match FromServer::decode(&payload).expect("a message of a stream") {
                    FromServer::XLogData(header, bytes) => {
                        let bytes = payload.slice_ref(bytes);
                        return Heard::Wal { start: header.start.0, end: header.end.0, bytes };
                    }
                    FromServer::Keepalive(keepalive) => {
                        if keepalive.reply == Reply::Requested {
                            // Alive; what it has is for the test to say.
                            self.tell(0, 0, 0);
                        }
                        return Heard::Keepalive { end: keepalive.end.0 };
                    }
                    FromServer::Unknown(kind) => panic!("a message of kind {kind}"),
                },
                Ok((b'c', _)) => return Heard::CopyDone,
                Ok((b'E', payload)) => return Heard::Error(backend::decode_error(&payload)),
                Ok((b'S' | b'N', _)) => {}
                Ok((other, _)) => panic!("{:?} in a stream", char::from(other)),
                Err(heard) => return heard,
            }
        }
    }

    /// WAL from `from` on, as it comes, until `end` is reached, without a hole.
    pub(crate) fn read(&mut self, from: u64, end: u64) -> Vec<u8> {
        let mut wal = Vec::new();
        while (wal.len() as u64) < end - from {
            match self.hear(LIMIT) {
                Heard::Wal { start, bytes, .. } => {
                    assert_eq!(start, from + wal.len() as u64, "a hole");
                    wal.extend_from_slice(&bytes);
                }
                Heard::Keepalive { .. } => {}
                other => panic!("{other:?} behind {} of {} bytes", wal.len(), end - from),
            }
        }
        wal
    }

    pub(crate) fn tell(&mut self, write: u64, flush: u64, apply: u64) {
        self.send(&status(write, flush, apply));
    }

    /// Answers CopyDone, or says it first; what comes next, if the timeline is over.
    pub(crate) fn end(&mut self) -> Option<Row> {
        let mut done = BytesMut::new();
        frontend::copy_done(&mut done);
        self.send(&done);
        self.rows().expect("no error").pop()
    }

    /// Sends as much of `bytes` as is taken within `limit`; how much that was. Reads nothing.
    pub(crate) fn push(&mut self, bytes: &[u8], limit: Duration) -> std::io::Result<usize> {
        let stream = &mut self.backend.stream;
        let write = async { tokio::time::timeout(limit, stream.write(bytes)).await };
        self.runtime.block_on(write).unwrap_or(Ok(0))
    }

    fn send(&mut self, bytes: &[u8]) {
        let stream = &mut self.backend.stream;
        let write = async { tokio::time::timeout(LIMIT, stream.write_all(bytes)).await };
        self.runtime.block_on(write).expect("it is taken").expect("it is taken");
    }

    /// Up to ReadyForQuery.
    fn rows(&mut self) -> Result<Vec<Row>, ErrorFields> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            match self.message(LIMIT).expect("an answer") {
                (b'D', payload) => {
                    let fields = backend::decode_data_row(&payload).expect("a row");
                    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
                    rows.push(fields.into_iter().map(|field| field.map(text)).collect());
                }
                (b'E', payload) => error = Some(backend::decode_error(&payload)),
                (b'Z', _) => break,
                _ => {}
            }
        }
        error.map_or(Ok(rows), Err)
    }

    fn message(&mut self, limit: Duration) -> Result<(u8, Bytes), Heard> {
        loop {
            let received = &mut self.backend.received;
            let header = Header::peek(received).expect("a length");
            if let Some(header) = header.filter(|header| header.total <= received.len()) {
                let payload = received.split_to(header.total).freeze().slice(HEADER_LEN..);
                return Ok((header.tag, payload));
            }
            let stream = &mut self.backend.stream;
            let read = async { tokio::time::timeout(limit, stream.read_buf(received)).await };
            match self.runtime.block_on(read) {
                Ok(Ok(0) | Err(_)) => return Err(Heard::Closed),
                Ok(Ok(_)) => {}
                Err(_) => return Err(Heard::Silence),
            }
        }
    }
}

/// A standby's status update, as it goes over the wire.
pub(crate) fn status(write: u64, flush: u64, apply: u64) -> Bytes {
    let (write, flush, apply) = (Lsn(write), Lsn(flush), Lsn(apply));
    let status = StandbyStatus { write, flush, apply, sent_at: PgTimestamp(0), reply: Reply::Requested };
    let mut payload = Vec::new();
    status.encode(&mut payload);
    let mut message = BytesMut::new();
    frontend::copy_data(&payload, &mut message);
    message.freeze()
}
