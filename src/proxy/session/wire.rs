//! Between a [`Lane`] and a socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::lane::{BUFFER_MAX, Lane};
use crate::net::Stream;

/// A last word to the client must be taken within this time.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// Room for one read at least.
const LEAST_READ: usize = 4096;

/// Whether anything was written.
pub(in crate::proxy) fn write_lane(
    stream: &mut Stream,
    lane: &mut Lane,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    let mut wrote = false;
    while lane.has_pending() {
        match Pin::new(&mut *stream).poll_write(cx, lane.pending())? {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(count) => {
                lane.wrote(count);
                wrote = true;
            }
            Poll::Pending => return Ok(wrote),
        }
    }
    // TLS takes more than its socket does. Pending: the task is woken to come back here.
    if let Poll::Ready(Err(error)) = Pin::new(stream).poll_flush(cx) {
        return Err(error);
    }
    Ok(wrote)
}

pub(in crate::proxy) fn read_lane(
    stream: &mut Stream,
    lane: &mut Lane,
    cx: &mut Context<'_>,
) -> io::Result<Poll<usize>> {
    let space = lane.input.space(LEAST_READ);
    let most = space.len().min(BUFFER_MAX);
    let mut into = ReadBuf::new(&mut space[..most]);
    match Pin::new(stream).poll_read(cx, &mut into)? {
        Poll::Pending => Ok(Poll::Pending),
        Poll::Ready(()) => {
            let read = into.filled().len();
            lane.input.filled(read);
            lane.received += read as u64;
            lane.input.grow_if_full();
            Ok(Poll::Ready(read))
        }
    }
}

pub(in crate::proxy) async fn farewell(stream: &mut Stream, bytes: &[u8]) {
    let said = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    // Whoever does not take it does not get it.
    drop(tokio::time::timeout(FAREWELL_LIMIT, said).await);
}
