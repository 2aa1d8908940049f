//! Simple queries on a connection of ours, message by message: what a replication connection offers
//! (protocol-replication; tokio-postgres speaks SQL connections only).

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Backend, Stream};
use crate::pg::error::ErrorFields;
use crate::pg::protocol::backend::{decode_data_row, decode_error};
use crate::pg::protocol::frame::{HEADER_LEN, Header, InvalidLength};
use crate::pg::protocol::frontend;

/// What one read may bring, in bytes.
const READ_SIZE: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server said nothing for {limit:?}")]
    Silent { limit: Duration },
    #[error("the server said {0}")]
    Server(ErrorFields),
    #[error("the server sent what is no message")]
    Malformed(#[from] InvalidLength),
    #[error("the server sent a message of type {:?} where {expected} was due", char::from(*tag))]
    Unexpected { tag: u8, expected: &'static str },
    #[error("the server sent a malformed {what}")]
    Content { what: &'static str },
}

#[derive(Debug)]
pub struct Conversation {
    stream: Stream,
    received: BytesMut,
    /// How long the server may say nothing while we wait for it.
    silence: Duration,
}

/// One message without its header.
#[derive(Debug)]
pub struct Message {
    pub tag: u8,
    pub body: Bytes,
}

impl Conversation {
    pub fn new(backend: Backend, silence: Duration) -> Conversation {
        Conversation { stream: backend.stream, received: backend.received, silence }
    }

    pub async fn send_query(&mut self, query: &str) -> Result<(), ConversationError> {
        let mut out = BytesMut::new();
        frontend::query(query, &mut out);
        match tokio::time::timeout(self.silence, self.stream.write_all(&out)).await {
            Ok(written) => Ok(written?),
            Err(_elapsed) => Err(ConversationError::Silent { limit: self.silence }),
        }
    }

    /// Runs a query whose rows nobody needs.
    pub async fn execute(&mut self, query: &str) -> Result<(), ConversationError> {
        self.send_query(query).await?;
        while self.next().await?.tag != b'Z' {}
        Ok(())
    }

    /// Runs a command that has no rows. What the server says beside it, a notice each.
    pub async fn notices(&mut self, query: &str) -> Result<Vec<String>, ConversationError> {
        self.send_query(query).await?;
        let mut said = Vec::new();
        loop {
            let message = self.receive().await?;
            match message.tag {
                b'N' => said.push(decode_error(&message.body).message),
                b'E' => return Err(ConversationError::Server(decode_error(&message.body))),
                b'Z' => return Ok(said),
                _ => {}
            }
        }
    }

    /// The next message that is not a notice or a changed parameter; an ErrorResponse is the error.
    pub async fn next(&mut self) -> Result<Message, ConversationError> {
        loop {
            let message = self.receive().await?;
            match message.tag {
                b'N' | b'S' | b'A' => {}
                b'E' => return Err(ConversationError::Server(decode_error(&message.body))),
                _ => return Ok(message),
            }
        }
    }

    /// The next message, which must have this tag.
    pub async fn expect(&mut self, tag: u8, expected: &'static str) -> Result<Bytes, ConversationError> {
        let message = self.next().await?;
        if message.tag == tag {
            Ok(message.body)
        } else {
            Err(ConversationError::Unexpected { tag: message.tag, expected })
        }
    }

    /// The next CopyData of a COPY to us; `None` at its end.
    pub async fn copy_data(&mut self) -> Result<Option<Bytes>, ConversationError> {
        let message = self.next().await?;
        match message.tag {
            b'd' => Ok(Some(message.body)),
            b'c' => Ok(None),
            tag => Err(ConversationError::Unexpected { tag, expected: "CopyData" }),
        }
    }

    /// A whole result set: its rows, every column as text.
    pub async fn rows(&mut self) -> Result<Vec<Vec<Option<String>>>, ConversationError> {
        self.expect(b'T', "RowDescription").await?;
        let mut rows = Vec::new();
        loop {
            let message = self.next().await?;
            match message.tag {
                b'D' => rows.push(columns(&message.body)?),
                b'C' => return Ok(rows),
                tag => return Err(ConversationError::Unexpected { tag, expected: "DataRow" }),
            }
        }
    }

    async fn receive(&mut self) -> Result<Message, ConversationError> {
        loop {
            if let Some(header) = Header::peek(&self.received)? {
                if self.received.len() >= header.total {
                    let mut body = self.received.split_to(header.total).freeze();
                    body.advance(HEADER_LEN);
                    return Ok(Message { tag: header.tag, body });
                }
                self.received.reserve(header.total - self.received.len());
            }
            self.received.reserve(READ_SIZE);
            let read = tokio::time::timeout(self.silence, self.stream.read_buf(&mut self.received)).await;
            match read {
                Ok(read) => {
                    if read? == 0 {
                        return Err(ConversationError::Closed);
                    }
                }
                Err(_elapsed) => return Err(ConversationError::Silent { limit: self.silence }),
            }
        }
    }
}

fn columns(body: &[u8]) -> Result<Vec<Option<String>>, ConversationError> {
    let values = decode_data_row(body).map_err(|_| ConversationError::Content { what: "DataRow" })?;
    Ok(values.into_iter().map(|value| Some(String::from_utf8_lossy(value?).into_owned())).collect())
}
