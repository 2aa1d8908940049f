//! Listening sockets, as postmaster makes them (pqcomm.c): TCP, or `.s.PGSQL.<port>` in a directory.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::socket_file::SocketFile;
use super::stream::tune;
use super::{PeerAddress, Stream};

/// Connections that the kernel holds until they are accepted; beyond it they wait in SYN or are refused.
const BACKLOG: i32 = 1024;

/// How long accepting rests when the process or the system has no more descriptors.
const REST: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenAddress {
    Tcp(SocketAddr),
    Unix { directory: PathBuf, port: u16 },
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix { directory, port } => socket_path(directory, *port).display().fmt(f),
        }
    }
}

/// The socket file in `directory` for `port`, named as libpq looks for it.
pub(super) fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenAddress,
    /// Goes with the listener, unless it was taken.
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Who may connect to a unix socket, as a file's mode: who writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl Default for SocketMode {
    /// As `unix_socket_permissions`: it is up to the directory and to authentication.
    fn default() -> SocketMode {
        SocketMode(0o777)
    }
}

impl Listener {
    /// Inside a runtime. A port or socket that somebody listens on is `AddrInUse`; a socket file that nobody
    /// listens on is replaced.
    pub fn bind(address: &ListenAddress, mode: SocketMode) -> io::Result<Listener> {
        match address {
            ListenAddress::Tcp(address) => bind_tcp(*address),
            ListenAddress::Unix { directory, port } => bind_unix(directory, *port, mode),
        }
    }

    /// Inside a runtime. `socket` is one that another process of ours has bound to `address` and listens on. The
    /// kernel keeps who has connected and was not accepted, whoever accepts next.
    pub fn adopt(address: &ListenAddress, socket: OwnedFd) -> io::Result<Listener> {
        match address {
            ListenAddress::Tcp(expected) => {
                let socket = std::net::TcpListener::from(socket);
                if socket.local_addr()? != *expected {
                    return Err(io::ErrorKind::AddrNotAvailable.into());
                }
                socket.set_nonblocking(true)?;
                let socket = Socket::Tcp(TcpListener::from_std(socket)?);
                Ok(Listener { socket, address: address.clone(), file: None })
            }
            ListenAddress::Unix { directory, port } => {
                let path = socket_path(directory, *port);
                let socket = std::os::unix::net::UnixListener::from(socket);
                if socket.local_addr()?.as_pathname() != Some(&path) {
                    return Err(io::ErrorKind::AddrNotAvailable.into());
                }
                socket.set_nonblocking(true)?;
                let socket = Socket::Unix(UnixListener::from_std(socket)?);
                Ok(Listener {
                    socket,
                    address: address.clone(),
                    file: Some(SocketFile::of_another(path, *port)),
                })
            }
        }
    }

    /// The same socket once more: it listens until the last one of it is closed.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// From now on the file goes with what is returned.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        self.file.take()
    }

    /// Where it listens: with the port the kernel chose, when 0 was asked for.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The next connection. Errors of one connection are its own; when there are no descriptors left, accepting
    /// rests and tries again.
    pub async fn accept(&self) -> (Stream, PeerAddress) {
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                Err(error) if is_shortage(&error) => {
                    tracing::warn!(listen = %self.address, %error, "cannot accept connections");
                    tokio::time::sleep(REST).await;
                }
                Err(error) => tracing::debug!(listen = %self.address, %error, "a connection ended early"),
            }
        }
    }

    async fn try_accept(&self) -> io::Result<(Stream, PeerAddress)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), PeerAddress::Tcp(peer)))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), PeerAddress::Unix))
            }
        }
    }
}

/// Out of descriptors or memory: the connection stays in the backlog, and trying again at once would spin.
fn is_shortage(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let shortages = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| shortages.contains(&Errno::from_raw(code)))
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    tune(&SockRef::from(&socket))?;
    let listener = socket.listen(BACKLOG.unsigned_abs())?;
    let address = ListenAddress::Tcp(listener.local_addr()?);
    Ok(Listener { socket: Socket::Tcp(listener), address, file: None })
}

fn bind_unix(directory: &Path, port: u16, mode: SocketMode) -> io::Result<Listener> {
    let path = socket_path(directory, port);
    let file = SocketFile::claim_name(&path, port)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(&path)?)?;
    // While nobody listens, nobody can connect.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode.0))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = UnixListener::from_std(socket.into())?;
    let address = ListenAddress::Unix { directory: directory.to_owned(), port };
    Ok(Listener { socket: Socket::Unix(listener), address, file: Some(file) })
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{ListenAddress, Listener, PeerAddress, SocketMode, Stream, socket_path};

    #[tokio::test]
    async fn tcp_and_the_way_to_another_runtime() {
        let listener = Listener::bind(&ListenAddress::Tcp(([127, 0, 0, 1], 0).into()), SocketMode::default())
            .expect("a free port");
        let ListenAddress::Tcp(address) = *listener.address() else { panic!("not TCP") };
        let mut client = tokio::net::TcpStream::connect(address).await.expect("connect");
        client.write_all(b"hello").await.expect("write");
        let (stream, peer) = listener.accept().await;
        assert_eq!(peer, stream.peer());
        assert!(peer.is_local());
        let Stream::Tcp(socket) = &stream else { panic!("not TCP") };
        let options = socket2::SockRef::from(socket);
        assert!(options.tcp_nodelay().expect("an option") && options.keepalive().expect("an option"));

        let detached = stream.detach().expect("detach");
        let read = std::thread::Builder::new().spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut bytes = [0; 5];
                detached.attach()?.read_exact(&mut bytes).await?;
                io::Result::Ok(bytes)
            })
        });
        let read = read.expect("a thread").join().expect("no panic");
        assert_eq!(&read.expect("read"), b"hello");
    }

    #[tokio::test]
    async fn a_socket_in_use_is_respected_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let address = ListenAddress::Unix { directory: directory.path().to_owned(), port: 6432 };
        let path = socket_path(directory.path(), 6432);
        // A listener of the standard library leaves its file behind, like a killed process.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());

        let first = Listener::bind(&address, SocketMode::default()).expect("the stale file goes");
        assert_eq!(
            Listener::bind(&address, SocketMode::default()).err().map(|e| e.kind()),
            Some(io::ErrorKind::AddrInUse)
        );
        let _client = tokio::net::UnixStream::connect(&path).await.expect("connect");
        // The failed bind above has connected too, and gone.
        let (stream, peer) = first.accept().await;
        assert!(matches!((stream, peer), (Stream::Unix(_), PeerAddress::Unix)));
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_connects_before_the_next_process_accepts_is_not_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let unix = ListenAddress::Unix { directory: directory.path().to_owned(), port: 6432 };
        let path = socket_path(directory.path(), 6432);
        for address in [ListenAddress::Tcp(([127, 0, 0, 1], 0).into()), unix] {
            let mut first = Listener::bind(&address, SocketMode::default()).expect("bind");
            let address = first.address().clone();
            let (socket, file) = (first.share().expect("share"), first.take_file());
            drop(first);
            let waiting = async {
                match &address {
                    ListenAddress::Tcp(address) => drop(tokio::net::TcpStream::connect(address).await?),
                    ListenAddress::Unix { .. } => drop(tokio::net::UnixStream::connect(&path).await?),
                }
                io::Result::Ok(())
            };
            waiting.await.expect("somebody listens");
            let next = Listener::adopt(&address, socket).expect("adopt");
            if let Some(file) = file {
                file.leave();
                assert!(path.exists());
            }
            next.accept().await;
        }
        assert!(!path.exists(), "it goes with the last listener");
    }

    #[tokio::test]
    async fn a_socket_of_another_address_is_not_adopted() {
        let any = ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&any, SocketMode::default()).expect("bind");
        let other = ListenAddress::Tcp(([127, 0, 0, 1], 1).into());
        assert!(Listener::adopt(&other, listener.share().expect("share")).is_err());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = socket_path(directory.path(), 6432);
        std::fs::write(&path, "precious").expect("write");
        let address = ListenAddress::Unix { directory: directory.path().to_owned(), port: 6432 };
        assert!(Listener::bind(&address, SocketMode::default()).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    }
}
