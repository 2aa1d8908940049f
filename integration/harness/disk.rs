//! A disk under the WAL store that fails on command: `disk.c`, preloaded into a real Bellwether.

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system of its own, in memory, of a few MiB.
pub(crate) struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    /// In `directory`, which is made. `None`: nothing can be mounted here, for want of root or in a container.
    pub(crate) fn mount(directory: PathBuf, mib: u32) -> Option<SmallDisk> {
        fs::create_dir_all(&directory).expect("a directory");
        let size = format!("size={mib}m,mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&directory).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(SmallDisk { directory })
    }

    /// Not a byte is left.
    pub(crate) fn fill(&self) {
        let mut filler = fs::File::create(self.directory.join("filler")).expect("a file");
        let chunk = vec![0; 64 << 10];
        while filler.write_all(&chunk).is_ok() {}
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.directory.join("filler")).expect("it was full");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still uses it keeps it until its end.
        let _ = Command::new("umount").arg("--lazy").arg(&self.directory).status();
    }
}

pub(crate) struct Disk {
    /// What it is about.
    wal_dir: PathBuf,
    control: PathBuf,
    serial: Cell<u64>,
}

/// What is to happen to calls of libc on the store's files, such as `fdatasync+rename`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The process ends before its n-th such call.
    KillBefore { calls: &'static str, n: u32 },
    /// The next one fails with EIO, those behind it do not.
    IoErrorOnce { calls: &'static str },
    /// All of them fail with ENOSPC.
    Full { calls: &'static str },
    /// All of them wait.
    Hang { calls: &'static str },
    /// Each of them takes so much longer.
    Delay { calls: &'static str, millis: u32 },
}

impl Disk {
    pub(crate) fn new(directory: &Path, wal_dir: PathBuf) -> Disk {
        let control = directory.join("disk");
        fs::create_dir_all(control.join("kept")).expect("a directory");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/harness/disk.c");
        let disk = Disk { wal_dir, control, serial: Cell::new(0) };
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(disk.library()).arg(source).arg("-ldl");
        assert!(cc.status().expect("a C compiler").success());
        disk
    }

    /// `command` will have this disk.
    pub(crate) fn put_under(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.library());
        command.env("DISK_DIRECTORY", &self.wal_dir).env("DISK_CONTROL", &self.control);
    }

    /// From the next call on, in place of the order before; calls are counted anew.
    pub(crate) fn order(&self, fault: Fault) {
        let (action, calls, n) = match fault {
            Fault::KillBefore { calls, n } => ("kill", calls, n),
            Fault::IoErrorOnce { calls } => ("eio", calls, 1),
            Fault::Full { calls } => ("enospc", calls, 1),
            Fault::Hang { calls } => ("hang", calls, 1),
            Fault::Delay { calls, millis } => ("delay", calls, millis),
        };
        self.serial.set(self.serial.get() + 1);
        let aside = self.control.join("order.next");
        fs::write(&aside, format!("{} {action} {calls} {n}\n", self.serial.get())).expect("an order");
        fs::rename(aside, self.control.join("order")).expect("an order");
    }

    /// No fault any more.
    pub(crate) fn heal(&self) {
        fs::remove_file(self.control.join("order")).expect("an order");
    }

    /// The calls that orders were about, from the first that was hit on: `eio fdatasync FILE`.
    pub(crate) fn hit(&self) -> Vec<String> {
        let done = fs::read_to_string(self.control.join("done")).unwrap_or_default();
        done.lines().map(str::to_owned).collect()
    }

    /// The power fails, once the process has been killed: what it had not synced is gone.
    pub(crate) fn cut_power(&self) {
        let mut nothing = Command::new("true");
        self.put_under(&mut nothing);
        assert!(nothing.env("DISK_CUT", "1").status().expect("true").success());
    }

    fn library(&self) -> PathBuf {
        self.control.join("disk.so")
    }
}
