//! Signals for the servers' processes.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::eventually;

/// `epoll_wait` or `epoll_pwait`, of x86-64 and of aarch64 (`WaitEventSetWait` in latch.c).
const WAITS: [&str; 3] = ["232", "281", "22"];

/// Stops a process of a server where it waits for something to do: elsewhere it may have a lock that all others wait for.
pub(crate) fn stop_waiting(pid: Pid) {
    eventually("a process that waits", Duration::from_secs(30), || {
        kill(pid, Signal::SIGSTOP).map_err(|error| error.to_string())?;
        let call = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is ours");
            let stopped = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
            if stopped {
                Ok(fs::read_to_string(format!("/proc/{pid}/syscall")).expect("ours"))
            } else {
                Err(stat)
            }
        };
        let call = (0..1000).find_map(|_| call().ok()).unwrap_or_default();
        if call.split(' ').next().is_some_and(|number| WAITS.contains(&number)) {
            return Ok(());
        }
        kill(pid, Signal::SIGCONT).map_err(|error| error.to_string())?;
        Err(call)
    });
}
