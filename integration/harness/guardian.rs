//! Ends what a test started even when the test itself is killed: a shell that waits for the test's end of a
//! pipe to close, then stops by pid whatever the cluster's directory still names.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

pub(crate) struct Guardian {
    shell: Child,
    /// Closing it, on purpose or by dying, is the signal.
    pipe: Option<ChildStdin>,
}

/// `$1` is the directory that holds the cluster's. Bellwether first, or it would start the servers again. A postmaster that gets
/// SIGQUIT takes its children along at once; one that a test has stopped hears it when it goes on.
const SCRIPT: &str = r#"
while read -r _; do :; done
stop() { kill -"$2" "$(head -n 1 "$1")" 2>/dev/null; }
for round in 1 2 3; do
    for file in "$1"/bellwether*.pid "$1"/etcd*.pid; do [ -f "$file" ] && stop "$file" KILL; done
    for file in "$1"/*/*/postmaster.pid "$1"/*/*/*/postmaster.pid; do [ -f "$file" ] && stop "$file" QUIT && stop "$file" CONT; done
    sleep 0.3
done
for mounted in "$1"/*/small; do [ -d "$mounted" ] && umount --lazy "$mounted" 2>/dev/null; done
rm -rf "$1"
"#;

impl Guardian {
    pub(crate) fn over(dir: &Path) -> io::Result<Guardian> {
        Guardian::with(SCRIPT, [dir])
    }

    /// `script` waits for the end of its standard input first.
    pub(crate) fn with(
        script: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> io::Result<Guardian> {
        let mut shell = Command::new("setsid")
            .args(["bash", "-c", script, "guardian"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = shell.stdin.take();
        Ok(Guardian { shell, pipe })
    }

    /// Everything is stopped and the directory gone when this returns.
    pub(crate) fn finish(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.finish();
    }
}
