//! What the two processes say to each other, and its framing. PURE.
//!
//! A frame is a length of four bytes, big-endian, and JSON. File descriptors travel beside the bytes of
//! [`FromIncumbent::Yielded`] (`link`).

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::drain::Count;
use super::sight::{HeardSight, Sight};
use crate::net::ListenAddress;
use crate::topology::{Candidate, Durability, Term};

/// Of these messages. Another one is refused: there is no half understanding of who may write.
pub(super) const VERSION: u32 = 6;

/// Of one message, in bytes; the largest carries a follower for each standby. A longer one breaks the link.
const MAX_MESSAGE: usize = 1 << 20;

/// Whose place is taken: these must be the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) version: u32,
    pub(super) cluster: String,
    pub(super) instance: String,
    pub(super) state: PathBuf,
    pub(super) wal: PathBuf,
    /// The sessions that stay were let in under it: what they may set, and what their servers were dialled with.
    pub(super) durability: Durability,
}

/// From the new process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromSuccessor {
    /// To have everything. It has read its configuration and needs nothing else.
    Ask(Identity),
    /// Everything is open; from here on nothing of it can fail.
    Ready,
    /// What the sessions that stayed behind have to obey, and route by.
    Sight(Box<Sight>),
    /// A client's CancelRequest that nobody is known for here.
    Cancel { pid: u32, secret: Vec<u8> },
}

/// From the old process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromIncumbent {
    Refused(Refusal),
    /// Nothing is decided and no WAL is received any more. Beside it: the lock of the state file, then these
    /// sockets.
    Yielded {
        sockets: Vec<Socket>,
    },
    /// One of several instances: what the others have told it, up to now. Always in front of [`FromIncumbent::Yours`].
    Heard(Vec<HeardSight>),
    /// From now on it is all the new process's, whatever happens.
    Yours,
    Status(Status),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) why: String,
    pub(super) again: Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Again {
    Never,
    /// It will pass.
    Later,
}

/// What is listened on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::app) enum Socket {
    Clients(ListenAddress),
    Admin(std::net::SocketAddr),
}

/// The old process's half of the fence, and how far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) confirmed: Term,
    pub(super) cleared: Option<Candidate>,
    pub(super) held: usize,
    /// Connections that are still there.
    pub(super) connections: usize,
    /// What became of the others.
    pub(super) gone: Count,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    #[error("a message of {0} bytes")]
    TooLong(usize),
    #[error("not understood")]
    Json(#[from] serde_json::Error),
}

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_MESSAGE {
        return Err(MessageError::TooLong(body.len()));
    }
    let length = u32::try_from(body.len()).expect("at most MAX_MESSAGE");
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Bytes that have come, on their way to messages.
#[derive(Debug, Default)]
pub(super) struct Inbox(Vec<u8>);

impl Inbox {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `None`: it has not come as a whole.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, MessageError> {
        let Some(length) = self.0.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(MessageError::TooLong(length));
        }
        let Some(body) = self.0.get(4..4 + length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.0.drain(..4 + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::{FromIncumbent, Inbox, MAX_MESSAGE, Socket, encode};

    #[test]
    fn messages_come_through_however_they_are_cut() {
        let messages = [
            FromIncumbent::Yours,
            FromIncumbent::Yielded { sockets: vec![Socket::Admin(([127, 0, 0, 1], 9632).into())] },
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(|message| encode(message).expect("short")).collect();
        for cut in 1..bytes.len() {
            let (mut inbox, mut come) = (Inbox::default(), vec![]);
            for piece in bytes.chunks(cut) {
                inbox.push(piece);
                while let Some(message) = inbox.next::<FromIncumbent>().expect("understood") {
                    come.push(message);
                }
            }
            assert_eq!(come, messages);
        }
    }

    #[test]
    fn what_is_no_message_breaks_the_link() {
        let too_long = u32::try_from(MAX_MESSAGE + 1).expect("short").to_be_bytes();
        for bytes in [&too_long[..], b"\0\0\0\x02{}", b"\0\0\0\x01x", b"\0\0\0\0"] {
            let mut inbox = Inbox::default();
            inbox.push(bytes);
            assert!(inbox.next::<FromIncumbent>().is_err(), "{bytes:?}");
        }
    }
}
