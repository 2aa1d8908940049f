//! Ports that belong to one test at a time, also where several runs share a machine.

use std::env::temp_dir;
use std::fs::{File, create_dir_all};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Below what Linux gives to outgoing connections (`net.ipv4.ip_local_port_range`), or somebody's
/// connection could have the port before its server does.
const PORTS: std::ops::Range<u16> = 10_000..32_768;

/// The demo gives its servers the ports behind the endpoint's: they belong to it.
const BLOCK: usize = 8;

/// A port that nobody listens on, and that no other call gets as long as this process lives; nor the few behind it.
pub(crate) fn free_port() -> u16 {
    let locks = temp_dir().join("bellwether-ports");
    create_dir_all(&locks).expect("a directory for the locks of ports");
    PORTS.step_by(BLOCK).find(|port| reserve(&locks, *port)).expect("a port without owner")
}

/// A lock on a file of the port's name, which the kernel releases at the end of the process.
fn reserve(locks: &Path, port: u16) -> bool {
    let file = File::options().create(true).append(true).open(locks.join(port.to_string()));
    let Ok(file) = file else { return false };
    let ours = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && TcpListener::bind(("127.0.0.1", port)).is_ok();
    if ours {
        // Never closed: the process's end does that.
        let _ = file.into_raw_fd();
    }
    ours
}
