//! The unix socket between the two processes: messages, and file descriptors beside them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::message::{Inbox, MessageError, encode};

/// Sockets that are passed at most; a process that listens on more is not taken over. The kernel's own limit is 253
/// (`SCM_MAX_FD`).
pub(super) const MAX_DESCRIPTORS: usize = 64;

const READ: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the other process has hung up")]
    Closed,
    #[error("the other process is another user's (uid {0})")]
    Stranger(u32),
    #[error("the link to the other process")]
    Io(#[from] io::Error),
    #[error("a message of the other process")]
    Message(#[from] MessageError),
}

#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    inbox: Inbox,
    descriptors: VecDeque<OwnedFd>,
}

impl Link {
    /// Both ends belong to the same user, whatever the file's mode says.
    pub(super) fn new(stream: UnixStream) -> Result<Link, LinkError> {
        let uid = stream.peer_cred()?.uid();
        if uid != nix::unistd::geteuid().as_raw() {
            return Err(LinkError::Stranger(uid));
        }
        Ok(Link { stream, inbox: Inbox::default(), descriptors: VecDeque::new() })
    }

    /// The other process as something that can be ended. The kernel cannot name it so before Linux 5.3.
    pub(super) fn process(&self) -> io::Result<Process> {
        let pid = self.pid().and_then(rustix::process::Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        Ok(Process(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?))
    }

    /// Its pid, for people.
    pub(super) fn pid(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid()
    }

    pub(super) async fn send<T: Serialize>(&self, message: &T) -> Result<(), LinkError> {
        self.send_with(message, &[]).await
    }

    /// The descriptors travel with the first byte.
    pub(super) async fn send_with<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let bytes = encode(message)?;
        let (mut sent, mut descriptors) = (0, descriptors);
        while sent < bytes.len() {
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || send_some(&self.stream, &bytes[sent..], descriptors))
                .await?;
            descriptors = &[];
        }
        Ok(())
    }

    /// The next message. May be dropped while it waits: nothing is lost.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        loop {
            if let Some(message) = self.inbox.next()? {
                return Ok(message);
            }
            let (stream, inbox, descriptors) = (&self.stream, &mut self.inbox, &mut self.descriptors);
            let read =
                stream.async_io(Interest::READABLE, || receive_some(stream, inbox, descriptors)).await?;
            if read == 0 {
                return Err(LinkError::Closed);
            }
        }
    }

    /// The next descriptor that has come.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// What the other end writes from now on fails there. What it has written before can still be received.
    pub(super) fn stop_hearing(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Read)?)
    }
}

/// A process, and no other that gets its pid later.
#[derive(Debug)]
pub(super) struct Process(OwnedFd);

impl Process {
    /// At once and without a word.
    pub(super) fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL)?)
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more sockets than can be passed"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?)
}

fn receive_some(
    stream: &UnixStream,
    inbox: &mut Inbox,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; READ];
    let mut into = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, &mut into, &mut beside, RecvFlags::CMSG_CLOEXEC)?.bytes;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(come) = message {
            // Beyond the bound they are closed: nobody has asked for them.
            descriptors.extend(come.take(MAX_DESCRIPTORS.saturating_sub(descriptors.len())));
        }
    }
    inbox.push(&bytes[..received]);
    Ok(received)
}

/// Where the process that runs can be asked; the file goes with it.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// In place of whatever is there: only who has the state file's lock opens this door. The name appears when
    /// it can be connected to, for our user only.
    pub(super) fn open(path: &Path) -> io::Result<Door> {
        use std::os::unix::fs::PermissionsExt;
        let mut unready = path.as_os_str().to_owned();
        unready.push(".new");
        let unready = PathBuf::from(unready);
        match std::fs::remove_file(&unready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unready)?;
        std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&unready, path)?;
        Ok(Door { listener, path: path.to_owned() })
    }

    pub(super) async fn accept(&self) -> Result<Link, LinkError> {
        Link::new(self.listener.accept().await?.0)
    }

    /// The name is the next process's.
    pub(super) fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.path != PathBuf::new() {
            // Left behind, it refuses: the next start copes.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use tokio::net::UnixStream;

    use super::super::message::{FromIncumbent, FromSuccessor};
    use super::{Door, Link, LinkError};

    #[tokio::test]
    async fn a_socket_goes_beside_a_message() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (one, mut other) = (Link::new(one).expect("ours"), Link::new(other).expect("ours"));
        let (mut read, write) = std::io::pipe().expect("a pipe");
        one.send_with(&FromIncumbent::Yours, &[write.as_fd()]).await.expect("sent");
        drop(write);
        assert_eq!(other.receive::<FromIncumbent>().await.expect("received"), FromIncumbent::Yours);
        let come = other.descriptor().expect("it came along");
        assert!(other.descriptor().is_none());
        drop(come);
        assert_eq!(read.read(&mut [0]).expect("the end"), 0, "nobody else has it");
        drop(one);
        assert!(matches!(other.receive::<FromIncumbent>().await, Err(LinkError::Closed)));
    }

    #[tokio::test]
    async fn who_stops_hearing_still_has_what_was_said() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (one, mut other) = (Link::new(one).expect("ours"), Link::new(other).expect("ours"));
        one.send(&FromIncumbent::Yours).await.expect("sent");
        other.stop_hearing().expect("shut down");
        assert!(one.send(&FromIncumbent::Yours).await.is_err(), "too late");
        assert_eq!(other.receive::<FromIncumbent>().await.expect("received"), FromIncumbent::Yours);
        assert!(matches!(other.receive::<FromIncumbent>().await, Err(LinkError::Closed)));
    }

    #[tokio::test]
    async fn a_door_replaces_what_was_there_and_is_its_users() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.takeover");
        let first = Door::open(&path).expect("open");
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        first.leave();
        let door = Door::open(&path).expect("replaced");
        let asking = Link::new(UnixStream::connect(&path).await.expect("connect")).expect("ours");
        asking.send(&FromSuccessor::Ready).await.expect("sent");
        let mut asked = door.accept().await.expect("ours");
        assert_eq!(asked.receive::<FromSuccessor>().await.expect("received"), FromSuccessor::Ready);
        assert_eq!(asked.pid().map(i32::unsigned_abs), Some(std::process::id()));
        drop(door);
        assert!(!path.exists());
    }
}
