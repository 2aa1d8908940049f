//! Whole messages, one at a time: what logging in needs, on either side. Sessions and streams of WAL have their
//! own, faster ways.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Client, Stream};
use crate::pg::error::ErrorFields;
use crate::pg::protocol::frame::{HEADER_LEN, Header, InvalidLength};

/// How long a peer that is told why it must go has to read it, and how much it may still say meanwhile.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) stream: Stream,
    /// Read and not yet consumed.
    pub(super) received: BytesMut,
    /// To be sent by [`Wire::flush`].
    pub(super) out: BytesMut,
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) payload: BytesMut,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Length(#[from] InvalidLength),
}

impl From<WireError> for io::Error {
    fn from(error: WireError) -> io::Error {
        match error {
            WireError::Io(error) => error,
            WireError::Length(error) => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Wire {
        Wire { stream, received: BytesMut::new(), out: BytesMut::new() }
    }

    /// The next message; a payload longer than `max_payload` is refused before it is read. End of file is
    /// `UnexpectedEof`, also between messages.
    pub(super) async fn message(&mut self, max_payload: usize) -> Result<Message, WireError> {
        let header = loop {
            match Header::peek(&self.received)? {
                Some(header) => break header,
                None => self.fill().await?,
            }
        };
        let payload = header.total - HEADER_LEN;
        if payload > max_payload {
            let length = u32::try_from(header.total - 1).unwrap_or(u32::MAX);
            return Err(InvalidLength { tag: header.tag, length }.into());
        }
        while self.received.len() < header.total {
            self.fill().await?;
        }
        self.received.advance(HEADER_LEN);
        Ok(Message { tag: header.tag, payload: self.received.split_to(payload) })
    }

    /// Reads at least one byte more.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        self.received.reserve(1024);
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Sends what is in `out`. Cut short by a time limit, the connection is of no more use.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        self.stream.flush().await
    }

    /// Sends what is in `out` and closes. Closing with unread bytes resets the connection, and the reset may
    /// overtake what was sent; so what still comes is read and dropped, within limits.
    pub(super) async fn farewell(mut self) {
        let last_words = async {
            self.flush().await?;
            self.stream.shutdown().await?;
            let mut dropped = self.received.len();
            while dropped < FAREWELL_BYTES {
                self.received.clear();
                self.fill().await?;
                dropped += self.received.len();
            }
            io::Result::Ok(())
        };
        // Whatever goes wrong now: the connection ends anyway.
        let _ = tokio::time::timeout(FAREWELL, last_words).await;
    }
}

impl Client {
    /// Tells the client why it cannot stay, and closes. Takes at most two seconds.
    pub async fn refuse(self, why: ErrorFields) {
        let mut wire = Wire { stream: self.stream, received: self.received, out: self.out };
        why.encode(&mut wire.out);
        wire.farewell().await;
    }
}
