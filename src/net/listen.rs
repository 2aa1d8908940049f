//! Listening sockets, as postmaster makes them (pqcomm.c): TCP, or `.s.PGSQL.<port>` in a directory.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::stream::tune;
use super::{PeerAddress, Stream};

/// Connections that the kernel holds until they are accepted; beyond it they wait in SYN or are refused.
const BACKLOG: u32 = 1024;

/// How long accepting rests when the process or the system has no more descriptors.
const REST: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Goes with the listener.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it before us; the next start copes with one left behind.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Inside a runtime. A port or socket that somebody listens on is `AddrInUse`; a socket file that nobody
    /// listens on is replaced.
    pub fn bind(address: &ListenAddress) -> io::Result<Listener> {
        match address {
            ListenAddress::Tcp(address) => bind_tcp(*address),
            ListenAddress::Unix { directory, port } => bind_unix(directory, *port),
        }
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
    let listener = socket.listen(BACKLOG)?;
    let address = ListenAddress::Tcp(listener.local_addr()?);
    Ok(Listener { socket: Socket::Tcp(listener), address, _file: None })
}

fn bind_unix(directory: &Path, port: u16) -> io::Result<Listener> {
    let path = socket_path(directory, port);
    remove_stale(&path)?;
    let listener = UnixListener::bind(&path)?;
    let file = SocketFile(path);
    // `unix_socket_permissions` defaults to 0777: who may connect is up to the directory and to authentication.
    std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o777))?;
    let address = ListenAddress::Unix { directory: directory.to_owned(), port };
    Ok(Listener { socket: Socket::Unix(listener), address, _file: Some(file) })
}

/// Removes a socket file that nobody listens on. Anything else under that name stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let is_socket =
                std::os::unix::fs::FileTypeExt::is_socket(&std::fs::symlink_metadata(path)?.file_type());
            if is_socket { std::fs::remove_file(path) } else { Err(io::ErrorKind::AddrInUse.into()) }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{ListenAddress, Listener, PeerAddress, Stream, socket_path};

    #[tokio::test]
    async fn tcp_and_the_way_to_another_runtime() {
        let listener = Listener::bind(&ListenAddress::Tcp(([127, 0, 0, 1], 0).into())).expect("a free port");
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

        let first = Listener::bind(&address).expect("the stale file goes");
        assert_eq!(Listener::bind(&address).err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        let _client = tokio::net::UnixStream::connect(&path).await.expect("connect");
        // The failed bind above has connected too, and gone.
        let (stream, peer) = first.accept().await;
        assert!(matches!((stream, peer), (Stream::Unix(_), PeerAddress::Unix)));
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = socket_path(directory.path(), 6432);
        std::fs::write(&path, "precious").expect("write");
        let address = ListenAddress::Unix { directory: directory.path().to_owned(), port: 6432 };
        assert!(Listener::bind(&address).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    }
}
