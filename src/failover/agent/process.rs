//! Which processes belong to a data directory. A pid alone proves nothing: it may have been given to somebody
//! else since, or belong to a zombie that its parent never collects (in a container without an init). So a
//! process counts when it lives and works in the directory, as every PostgreSQL process does
//! (`ChangeToDataDir`, miscinit.c).

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether `pid` is a living process that works in `data_dir`. One that we may not look at counts as such.
pub(super) fn works_in(pid: i32, data_dir: &Path) -> bool {
    if !is_alive(pid) {
        return false;
    }
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => data_dir.canonicalize().is_ok_and(|data_dir| cwd == data_dir),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// PostgreSQL's processes in `data_dir`, whoever their parent is: after the postmaster was killed its backends
/// live on until they notice.
pub(super) fn all_in(data_dir: &Path) -> Vec<i32> {
    let (Ok(entries), Ok(data_dir)) = (fs::read_dir("/proc"), data_dir.canonicalize()) else {
        return Vec::new();
    };
    let belongs = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir)
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "postgres")
            && is_alive(*pid)
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(belongs).collect()
}

/// A fast shutdown (`pg_ctl stop -m fast` sends the same).
pub(super) fn shut_down(postmaster: i32) {
    // Already gone is as good.
    let _ = kill(Pid::from_raw(postmaster), Signal::SIGINT);
}

pub(super) fn kill_all_in(data_dir: &Path) {
    for pid in all_in(data_dir) {
        // Already gone is as good.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Exists and is no zombie.
fn is_alive(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => state_in(&stat).is_some_and(|state| !matches!(state, 'Z' | 'X')),
        Err(_) if Path::new("/proc/self/stat").exists() => false,
        // No /proc on this system: the kernel answers for the pid only.
        Err(_) => !matches!(kill(Pid::from_raw(pid), None), Err(nix::Error::ESRCH)),
    }
}

/// The state in `/proc/<pid>/stat`: the field after the name, which is in parentheses and may hold some itself.
fn state_in(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use super::{all_in, state_in, works_in};

    #[test]
    fn states() {
        assert_eq!(state_in("12 (postgres) S 1 12 12 0"), Some('S'));
        assert_eq!(state_in("12 (a) b) c) Z 1 12 12 0"), Some('Z'));
        assert_eq!(state_in("12"), None);
    }

    #[test]
    fn a_process_elsewhere_is_not_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!works_in(me, dir.path()));
        assert!(works_in(me, &std::env::current_dir().unwrap()));
        assert_eq!(all_in(dir.path()), Vec::<i32>::new());
    }
}
