//! Several hosts on one machine: network namespaces that a bridge in another one connects. Each has a disk of its own (a
//! file system in memory, of a fixed size). Nothing outside of them is touched, and everything goes at the end, also when
//! the run is killed: a shell waits for that.
//!
//! A direction between two hosts is cut by a wrong hardware address: what is sent gets lost without a word, as behind a
//! broken switch. A route or a packet filter would tell the sender.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

use crate::harness::{Guardian, set_mode};

/// The user that PostgreSQL runs as.
pub(crate) const SERVER_USER: &str = "postgres";
/// MiB. A server and a relay's log, twice: a base backup comes beside what is there.
const DISK_MIB: u64 = 1024;
/// Of nobody: locally administered.
const NOWHERE: &str = "02:00:00:00:00:01";

/// `$1` is the run's directory, the rest are namespaces; the first of them is the one that we are in ourselves. Servers are
/// asked first (SIGQUIT), since they leave shared memory behind when they are killed.
const CLEAN_UP: &str = r#"
while read -r _; do :; done
dir=$1; app=$2; shift 2
each() { for space in "$@"; do for pid in $(ip netns pids "$space" 2>/dev/null); do kill -"$signal" "$pid" 2>/dev/null; done; done; }
signal=CONT; each "$@"
for file in "$dir"/*/*/postmaster.pid; do [ -f "$file" ] && kill -QUIT "$(head -n 1 "$file")" 2>/dev/null; done
sleep 0.5
for round in 1 2 3; do signal=KILL; each "$@"; sleep 0.2; done
for space in "$app" "$@"; do ip netns del "$space" 2>/dev/null; done
for mounted in "$dir"/*/; do umount --lazy "$mounted" 2>/dev/null; done
rm -rf "$dir"
"#;

pub(crate) struct Lan {
    pub(crate) hosts: Vec<Host>,
    /// Where the applications, and we, are.
    app: Host,
    /// Of the run, with what belongs to no host.
    pub(crate) dir: PathBuf,
    guardian: Guardian,
}

pub(crate) struct Host {
    pub(crate) address: Ipv4Addr,
    /// On its own disk.
    pub(crate) dir: PathBuf,
    namespace: String,
}

impl Lan {
    /// The thread that calls, and all that it starts from then on, is where the applications are.
    pub(crate) fn build(names: &[&str]) -> Lan {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces and file systems take root to make");
        let dir = TempDir::with_prefix("bellwether-chaos-").expect("temporary directory").keep();
        // Servers run as another user.
        set_mode(&dir, 0o755);
        let prefix = format!("bw-chaos-{}", std::process::id());
        let host = |number: u8, name: &str| Host {
            address: Ipv4Addr::new(10, 99, 0, number),
            dir: dir.join(name),
            namespace: format!("{prefix}-{name}"),
        };
        let switch = format!("{prefix}-lan");
        let app = host(1, "app");
        let hosts: Vec<Host> = (10..).zip(names).map(|(number, name)| host(number, name)).collect();
        let spaces = [&app.namespace, &switch].into_iter().chain(hosts.iter().map(|host| &host.namespace));
        let guardian =
            Guardian::with(CLEAN_UP, std::iter::once(dir.as_os_str()).chain(spaces.map(AsRef::as_ref)));
        let lan = Lan { hosts, app, dir, guardian: guardian.expect("guardian shell") };

        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "bridge", "up"]);
        for (number, host) in lan.everybody().enumerate() {
            host.connect(&switch, &format!("port{number}"));
        }
        for host in &lan.hosts {
            host.mount_disk();
        }
        let own = File::open(Path::new("/run/netns").join(&lan.app.namespace)).expect("a namespace's file");
        setns(own, CloneFlags::CLONE_NEWNET).expect("we enter the applications' namespace");
        lan
    }

    fn everybody(&self) -> impl Iterator<Item = &Host> {
        std::iter::once(&self.app).chain(&self.hosts)
    }

    /// What `from` sends to `to` is lost.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.hosts[from].lose_what_goes_to(&self.hosts[to]);
    }

    /// Between the host and the applications.
    pub(crate) fn cut_from_applications(&self, host: usize) {
        self.hosts[host].lose_what_goes_to(&self.app);
        self.app.lose_what_goes_to(&self.hosts[host]);
    }

    pub(crate) fn join_all(&self) {
        for from in self.everybody() {
            for to in self.everybody() {
                // Where nothing was cut there is nothing of ours.
                let address = to.address.to_string();
                let permanent = ["neigh", "show", "to", &address, "dev", "eth0", "nud", "permanent"];
                if !from.ip(&permanent).is_empty() {
                    from.ip(&["neigh", "del", &address, "dev", "eth0"]);
                }
            }
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.guardian.finish();
    }
}

impl Host {
    fn connect(&self, switch: &str, port: &str) {
        ip(&["netns", "add", &self.namespace]);
        let peer = ["peer", "name", "eth0", "netns", &self.namespace];
        ip(&[&["-n", switch, "link", "add", port, "type", "veth"], &peer[..]].concat());
        ip(&["-n", switch, "link", "set", port, "master", "bridge", "up"]);
        self.ip(&["address", "add", &format!("{}/24", self.address), "dev", "eth0"]);
        self.ip(&["link", "set", "eth0", "up"]);
        self.ip(&["link", "set", "lo", "up"]);
    }

    fn ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.namespace], arguments].concat())
    }

    fn lose_what_goes_to(&self, other: &Host) {
        let address = other.address.to_string();
        self.ip(&["neigh", "replace", &address, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"]);
    }

    /// `program` on this host.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// What a program needs to enter the host: its namespace's file.
    pub(crate) fn door(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    /// All that run there.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let pids = ip(&["netns", "pids", &self.namespace]);
        pids.lines().filter_map(|pid| pid.trim().parse().ok()).map(Pid::from_raw).collect()
    }

    /// PostgreSQL's.
    pub(crate) fn servers_processes(&self) -> Vec<Pid> {
        let is_servers = |pid: &Pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "postgres")
        };
        self.processes().into_iter().filter(is_servers).collect()
    }

    fn mount_disk(&self) {
        fs::create_dir(&self.dir).expect("a mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("mode=0755,size={DISK_MIB}m"), "tmpfs"]).arg(&self.dir);
        assert!(mount.status().expect("mount").success(), "a file system in memory");
        let user = server_user();
        chown(&self.dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("owner");
    }

    /// The disk is as large as what is on it.
    pub(crate) fn fill_disk(&self) {
        // It grows meanwhile, and cannot be made smaller than it is.
        let fits = (0..50).any(|_| {
            let disk = rustix::fs::statvfs(&self.dir).expect("a file system");
            let used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
            self.resize_disk(&format!("{}k", used.div_ceil(1024)))
        });
        assert!(fits, "{} could not be filled", self.dir.display());
    }

    pub(crate) fn empty_disk(&self) {
        assert!(self.resize_disk(&format!("{DISK_MIB}m")), "a larger disk");
    }

    fn resize_disk(&self, size: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={size}")]).arg(&self.dir).stderr(Stdio::null());
        mount.status().expect("mount").success()
    }

    /// For processes with [`Slow`] in their environment.
    pub(crate) fn slow_disk(&self, millis: u32) {
        fs::write(self.slowness(), millis.to_string()).expect("an order");
    }

    pub(crate) fn quick_disk(&self) {
        // There is none where it was not slow.
        let _ = fs::remove_file(self.slowness());
    }

    /// As long as this file is there, `pg_rewind` fails.
    pub(crate) fn no_rewind(&self) -> PathBuf {
        self.dir.with_extension("norewind")
    }

    /// Not on the disk itself, which may be full.
    pub(crate) fn slowness(&self) -> PathBuf {
        self.dir.with_extension("slow")
    }
}

/// `slow.c`, for this run. Of servers and instances; etcd calls the kernel without a library that could be preloaded.
pub(crate) struct Slow {
    library: PathBuf,
}

impl Slow {
    pub(crate) fn build(dir: &Path) -> Slow {
        let library = dir.join("slow.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/chaos/slow.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(cc.status().expect("a C compiler").success());
        Slow { library }
    }

    /// What processes of `host` have in their environment.
    pub(crate) fn environment(&self, host: &Host) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.library.clone()), ("SLOW_DISK", host.slowness())]
    }
}

/// `nsenter` with the right to do it for whoever calls: an agent that has become the servers' user starts servers on other
/// hosts, as if by a remote hand. It lies in the run's directory and goes with it.
pub(crate) struct Enter {
    pub(crate) program: PathBuf,
}

impl Enter {
    pub(crate) fn build(dir: &Path) -> Enter {
        let program = dir.join("enter");
        fs::copy("/usr/bin/nsenter", &program).expect("nsenter");
        let given = Command::new("/usr/sbin/setcap").arg("cap_sys_admin+ep").arg(&program).status();
        assert!(given.expect("setcap").success(), "a capability for {}", program.display());
        Enter { program }
    }
}

pub(crate) fn server_user() -> User {
    let found = User::from_name(SERVER_USER).expect("users");
    found.expect("PostgreSQL's package has made a user")
}

/// One of them may just have ended.
pub(crate) fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill(*pid, signal);
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::UdpSocket;
    use std::thread;
    use std::time::Duration;

    use nix::sched::{CloneFlags, setns};

    use super::{Host, Lan};

    /// A socket belongs to the host that it was made on.
    fn socket(host: &Host) -> UdpSocket {
        let (door, address) = (host.door(), host.address);
        let there = thread::spawn(move || {
            setns(File::open(door).expect("a namespace's file"), CloneFlags::CLONE_NEWNET).expect("we enter");
            UdpSocket::bind((address, 0)).expect("a socket")
        });
        let socket = there.join().expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        socket
    }

    #[test]
    #[ignore = "makes network namespaces: `make chaos`"]
    fn what_is_cut_is_lost_without_a_word_and_a_full_disk_is_full() {
        let lan = Lan::build(&["a", "b"]);
        let (a, b) = (socket(&lan.hosts[0]), socket(&lan.hosts[1]));
        let arrives = |from: &UdpSocket, to: &UdpSocket| {
            from.send_to(b"x", to.local_addr().expect("bound")).expect("nobody tells the sender");
            to.recv(&mut [0]).is_ok()
        };
        assert!(arrives(&a, &b) && arrives(&b, &a));
        lan.cut(0, 1);
        assert!(!arrives(&a, &b) && arrives(&b, &a), "one direction");
        lan.cut(1, 0);
        assert!(!arrives(&a, &b) && !arrives(&b, &a), "both");
        lan.join_all();
        assert!(arrives(&a, &b) && arrives(&b, &a), "joined");

        let file = lan.hosts[0].dir.join("file");
        fs::write(&file, "x").expect("there is room");
        lan.hosts[0].fill_disk();
        let full = fs::write(lan.hosts[0].dir.join("more"), [0; 8192]).expect_err("there is no room");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        fs::write(lan.hosts[1].dir.join("more"), [0; 8192]).expect("another host's disk");
        lan.hosts[0].empty_disk();
        fs::write(file, [0; 8192]).expect("there is room again");
    }
}
