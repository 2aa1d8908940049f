//! What an init system does: keeps processes running. One that ended is started again after a second, unless it is
//! held down.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const RESTART: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Daemon {
    pub(crate) name: String,
    /// The index of its host.
    pub(crate) host: usize,
    pub(crate) log: PathBuf,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    life: Mutex<Life>,
}

enum Life {
    Runs(Child),
    /// It ended then, and is started again.
    Ended(Instant),
    /// It is not to run.
    Held,
}

impl Daemon {
    pub(crate) fn new(
        name: &str,
        host: usize,
        log: PathBuf,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Daemon {
        let life = Mutex::new(Life::Held);
        Daemon { name: name.to_owned(), host, log, command: Box::new(command), life }
    }

    /// SIGKILL; it stays away until [`Daemon::release`].
    pub(crate) fn hold(&self) {
        let mut life = self.life.lock().expect("nobody panics with it");
        if let Life::Runs(child) = &mut *life {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        *life = Life::Held;
    }

    /// Starts it if it was held.
    pub(crate) fn release(&self) {
        let mut life = self.life.lock().expect("nobody panics with it");
        if matches!(*life, Life::Held) {
            *life = Life::Runs(self.start());
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match &*self.life.lock().expect("nobody panics with it") {
            Life::Runs(child) => Some(child.id()),
            Life::Ended(_) | Life::Held => None,
        }
    }

    fn look(&self) {
        let mut life = self.life.lock().expect("nobody panics with it");
        let next = match &mut *life {
            Life::Runs(child) => {
                child.try_wait().expect("wait").is_some().then(|| Life::Ended(Instant::now()))
            }
            Life::Ended(at) if at.elapsed() >= RESTART => Some(Life::Runs(self.start())),
            Life::Ended(_) | Life::Held => None,
        };
        if let Some(next) = next {
            *life = next;
        }
    }

    fn start(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).expect("log file");
        let mut command = (self.command)();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log file")).stderr(log);
        command.spawn().expect("a daemon starts")
    }
}

pub(crate) struct Supervisor {
    pub(crate) daemons: Arc<Vec<Daemon>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// None of them runs before it is released.
    pub(crate) fn over(daemons: Vec<Daemon>) -> Supervisor {
        let (daemons, end) = (Arc::new(daemons), Arc::new(AtomicBool::new(false)));
        let (watched, told) = (daemons.clone(), end.clone());
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                watched.iter().for_each(Daemon::look);
                thread::sleep(LOOK);
            }
        });
        Supervisor { daemons, end, thread: Some(thread) }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.daemons.iter().for_each(Daemon::hold);
    }
}
