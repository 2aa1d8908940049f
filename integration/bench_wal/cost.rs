//! CPU time of processes, thread by thread, in nanoseconds (`/proc/PID/task/TID/schedstat`).

use std::collections::BTreeMap;
use std::fs;

/// What threads have used up to one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage(BTreeMap<u32, Thread>);

#[derive(Clone, Debug)]
struct Thread {
    name: String,
    nanoseconds: u64,
}

impl Usage {
    /// Of all threads that `processes` have now. One that has ended is not counted.
    pub(crate) fn of(processes: &[u32]) -> Usage {
        let mut threads = BTreeMap::new();
        for process in processes {
            let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
            for entry in entries.filter_map(Result::ok) {
                let file = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
                let first = file("schedstat").split(' ').next().and_then(|number| number.parse().ok());
                let tid = entry.file_name().to_str().and_then(|name| name.parse().ok());
                if let (Some(tid), Some(nanoseconds)) = (tid, first) {
                    threads.insert(tid, Thread { name: file("comm").trim().to_owned(), nanoseconds });
                }
            }
        }
        Usage(threads)
    }

    /// Milliseconds of CPU since `before`, all threads together.
    pub(crate) fn since(&self, before: &Usage) -> f64 {
        self.by_thread(before).values().sum()
    }

    /// The same by the threads' names; numbers in them are left out.
    pub(crate) fn by_thread(&self, before: &Usage) -> BTreeMap<String, f64> {
        let mut used = BTreeMap::new();
        for (tid, thread) in &self.0 {
            let at_first = before.0.get(tid).map_or(0, |thread| thread.nanoseconds);
            let name = thread.name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
            *used.entry(name).or_default() += thread.nanoseconds.saturating_sub(at_first) as f64 / 1e6;
        }
        used
    }
}

/// `postmaster` and its children.
pub(crate) fn server(postmaster: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |process: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    numbers.filter(|process| *process == postmaster || parent(*process) == Some(postmaster)).collect()
}
