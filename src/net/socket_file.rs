//! The file of a unix socket, and the lock file beside it, as postmaster keeps them (`CreateSocketLockFile` in
//! miscinit.c): `.s.PGSQL.<port>` and `.s.PGSQL.<port>.lock`, whose first line is the pid of whoever listens.
//!
//! Files stay behind when a process is killed. Who finds them takes them over when nobody is there any more; a pid in
//! the lock file is no proof by itself, since the number may be another process's by now: that one is given a moment
//! to answer on the socket.
//!
//! A process that takes over a running one's sockets claims the lock file when it begins to accept. Only whoever is
//! named in it removes the files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getpid};

/// Who is named in a lock file and does not answer on the socket yet may just be starting: so often, and so long in
/// all, it is looked at again.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Another process may get in between as often; then it is an error.
const MAX_TRIES: u32 = LOOKS + 10;

/// The socket's file and its lock file, removed with this if they are this process's then.
#[derive(Debug)]
pub struct SocketFile {
    /// `None`: not to be removed.
    path: Option<PathBuf>,
    port: u16,
}

/// Why a socket cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Obstacle {
    #[error("another process listens on it")]
    Listens,
    #[error("there is a file of that name that is no socket")]
    NoSocket,
    #[error("its lock file {} names process {pid}, which runs; if it has nothing to do with it, remove the file", path.display())]
    Locked { path: PathBuf, pid: i32 },
    #[error("its lock file {} names no process; if nobody uses it, remove it", path.display())]
    Nameless { path: PathBuf },
    #[error("others want it at the same time")]
    Contested,
}

/// Who holds the lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// This process, or one before it that had its pid, as in a container that has started again.
    Me,
    /// A process that is not there.
    Gone,
    Alive(i32),
    /// Perhaps it is just being written.
    Nameless,
}

/// What a connection to the socket meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Absent,
    NoSocket,
    /// Nobody listens.
    Shut,
    Open,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Free,
    /// Both files are nobody's.
    Stale,
    LookAgain(Obstacle),
    Taken(Obstacle),
}

fn verdict(holder: Holder, door: Door, lock: &Path) -> Verdict {
    let path = lock.to_owned();
    match (holder, door) {
        (_, Door::Open) => Verdict::Taken(Obstacle::Listens),
        (_, Door::NoSocket) => Verdict::Taken(Obstacle::NoSocket),
        (Holder::Alive(pid), Door::Absent) => Verdict::Taken(Obstacle::Locked { path, pid }),
        (Holder::Nameless, Door::Absent) => Verdict::LookAgain(Obstacle::Nameless { path }),
        // Killed, and its pid another's; or about to listen.
        (Holder::Alive(pid), Door::Shut) => Verdict::LookAgain(Obstacle::Locked { path, pid }),
        (Holder::Nobody, Door::Absent) => Verdict::Free,
        (Holder::Nobody | Holder::Me | Holder::Gone | Holder::Nameless, Door::Shut)
        | (Holder::Me | Holder::Gone, Door::Absent) => Verdict::Stale,
    }
}

impl SocketFile {
    /// Makes the name free, and this process's: the socket is to be bound next. Blocks for a moment when it is not
    /// clear whether somebody is there.
    pub(super) fn claim_name(path: &Path, port: u16) -> io::Result<SocketFile> {
        let (lock, mut looks) = (lock_path(path), 0);
        for _ in 0..MAX_TRIES {
            match verdict(holder(&lock)?, door(path)?, &lock) {
                Verdict::Free => {
                    let file = SocketFile { path: Some(path.to_owned()), port };
                    match file.create_lock(&lock) {
                        Ok(()) => return Ok(file),
                        // Somebody was faster: who it is shows the next look.
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => file.leave(),
                        Err(error) => return Err(error),
                    }
                }
                Verdict::Stale => remove_both(path, &lock)?,
                Verdict::LookAgain(_) if looks < LOOKS => {
                    looks += 1;
                    std::thread::sleep(LOOK_AGAIN);
                }
                // It does not listen in all that time: the pid is another process's.
                Verdict::LookAgain(Obstacle::Locked { .. }) => remove_both(path, &lock)?,
                Verdict::LookAgain(obstacle) | Verdict::Taken(obstacle) => return Err(in_use(obstacle)),
            }
        }
        Err(in_use(Obstacle::Contested))
    }

    /// Of a socket that another process of ours listens on, until [`SocketFile::claim`].
    pub(super) fn of_another(path: PathBuf, port: u16) -> SocketFile {
        SocketFile { path: Some(path), port }
    }

    /// From now on this process is named in the lock file.
    pub fn claim(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let lock = lock_path(path);
        if holder(&lock)? == Holder::Me {
            return Ok(());
        }
        let mut new = lock.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let _ = fs::remove_file(&new);
        self.create_lock(&new)?;
        fs::rename(&new, &lock)
    }

    /// It stays: the socket is another process's now.
    pub fn leave(mut self) {
        self.path = None;
    }

    /// As postmaster's, line by line; for a data directory and a start time nobody would look here.
    fn create_lock(&self, lock: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(lock)?;
        let directory = lock.parent().unwrap_or(Path::new("")).display();
        write!(file, "{}\n\n\n{}\n{directory}\n", getpid(), self.port)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        let lock = lock_path(path);
        if matches!(holder(&lock), Ok(Holder::Me)) {
            // Somebody may have removed them before us; the next start copes with what is left behind.
            let _ = remove_both(path, &lock);
        }
    }
}

fn in_use(obstacle: Obstacle) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, obstacle)
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn remove_both(socket: &Path, lock: &Path) -> io::Result<()> {
    // The lock last: as long as it is there, nobody else begins.
    for path in [socket, lock] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn holder(lock: &Path) -> io::Result<Holder> {
    let text = match fs::read_to_string(lock) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Holder::Nameless),
        Err(error) => return Err(error),
    };
    // A standalone backend writes its pid with a minus.
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).map(i32::saturating_abs);
    Ok(match pid {
        None | Some(0) => Holder::Nameless,
        Some(pid) if Pid::from_raw(pid) == getpid() => Holder::Me,
        Some(pid) => match kill(Pid::from_raw(pid), None) {
            // EPERM: another user's process has the pid, as postmaster sees it, too.
            Err(Errno::ESRCH | Errno::EPERM) => Holder::Gone,
            Ok(()) | Err(_) => Holder::Alive(pid),
        },
    })
}

fn door(socket: &Path) -> io::Result<Door> {
    match UnixStream::connect(socket) {
        Ok(_) => Ok(Door::Open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Door::Absent),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let is_socket = fs::symlink_metadata(socket)?.file_type().is_socket();
            Ok(if is_socket { Door::Shut } else { Door::NoSocket })
        }
        // Its backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Door::Open),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use super::{Door, Holder, Obstacle, SocketFile, Verdict, lock_path, verdict};

    #[test]
    fn whose_the_files_are() {
        let path = || PathBuf::from("lock");
        let locked = || Obstacle::Locked { path: path(), pid: 7 };
        for (holder, door, expected) in [
            (Holder::Nobody, Door::Absent, Verdict::Free),
            (Holder::Nobody, Door::Shut, Verdict::Stale),
            (Holder::Nobody, Door::Open, Verdict::Taken(Obstacle::Listens)),
            (Holder::Nobody, Door::NoSocket, Verdict::Taken(Obstacle::NoSocket)),
            (Holder::Me, Door::Absent, Verdict::Stale),
            (Holder::Me, Door::Shut, Verdict::Stale),
            (Holder::Me, Door::Open, Verdict::Taken(Obstacle::Listens)),
            (Holder::Gone, Door::Absent, Verdict::Stale),
            (Holder::Gone, Door::Shut, Verdict::Stale),
            (Holder::Alive(7), Door::Absent, Verdict::Taken(locked())),
            (Holder::Alive(7), Door::Shut, Verdict::LookAgain(locked())),
            (Holder::Alive(7), Door::Open, Verdict::Taken(Obstacle::Listens)),
            (Holder::Nameless, Door::Absent, Verdict::LookAgain(Obstacle::Nameless { path: path() })),
            (Holder::Nameless, Door::Shut, Verdict::Stale),
        ] {
            assert_eq!(verdict(holder, door, Path::new("lock")), expected, "{holder:?} {door:?}");
        }
    }

    /// A socket's path, what lies there, and the pid in its lock file.
    fn scene(pid: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(".s.PGSQL.6432");
        if !pid.is_empty() {
            fs::write(lock_path(&path), format!("{pid}\n/data\n")).expect("write");
        }
        (directory, path)
    }

    fn first_line(path: &Path) -> String {
        let text = fs::read_to_string(lock_path(path)).expect("a lock file");
        text.lines().next().expect("a line").to_owned()
    }

    #[test]
    fn files_of_a_killed_process_are_taken_over_and_removed_in_the_end() {
        // Beyond any pid of Linux.
        let (_directory, path) = scene("2147483646");
        drop(UnixListener::bind(&path).expect("bind"));
        let file = SocketFile::claim_name(&path, 6432).expect("stale");
        assert!(!path.exists(), "the name is free to bind");
        assert_eq!(first_line(&path), std::process::id().to_string());
        let _listener = UnixListener::bind(&path).expect("bind");
        drop(file);
        assert!(!path.exists() && !lock_path(&path).exists());
    }

    #[test]
    fn a_process_that_lives_keeps_its_files() {
        // That of this test's parent: it lives, and has no socket.
        let parent = std::os::unix::process::parent_id().to_string();
        let (_directory, path) = scene(&parent);
        let error = SocketFile::claim_name(&path, 6432).expect_err("somebody is there");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&format!("names process {parent}")), "{error}");
        assert_eq!(first_line(&path), parent);
    }

    #[test]
    fn what_is_another_process_s_is_not_removed_until_it_is_claimed() {
        let parent = std::os::unix::process::parent_id().to_string();
        let (_directory, path) = scene(&parent);
        let _listener = UnixListener::bind(&path).expect("bind");
        drop(SocketFile::of_another(path.clone(), 6432));
        assert!(path.exists() && lock_path(&path).exists());
        let file = SocketFile::of_another(path.clone(), 6432);
        file.claim().expect("claim");
        assert_eq!(first_line(&path), std::process::id().to_string());
        drop(file);
        assert!(!path.exists() && !lock_path(&path).exists());
    }
}
