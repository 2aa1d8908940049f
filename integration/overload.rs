//! A machine that has far too much to do, and on which nothing is wrong: nobody is to be replaced for that.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::ledger::{Ledger, audit, tokens};
use crate::harness::{Instances, Options, SHORT_SILENCE};

/// Per processor.
const BUSY_THREADS: usize = 8;

/// Keeps all processors and the disk busy until it is dropped.
struct Stress {
    end: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Stress {
    fn start() -> Stress {
        let end = Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().map_or(4, usize::from);
        let mut threads = Vec::new();
        for _ in 0..processors * BUSY_THREADS {
            let end = end.clone();
            threads.push(thread::spawn(move || {
                let mut sum = 0u64;
                while !end.load(Ordering::Relaxed) {
                    for n in 0..1_000_000u64 {
                        sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(n));
                    }
                }
            }));
        }
        for _ in 0..2 {
            let end = end.clone();
            threads.push(thread::spawn(move || {
                let dir = tempfile::tempdir().expect("a directory");
                let block = vec![7u8; 1 << 20];
                while !end.load(Ordering::Relaxed) {
                    let mut file = File::create(dir.path().join("written")).expect("a file");
                    for _ in 0..16 {
                        file.write_all(&block).expect("room for 16 MiB");
                    }
                    file.sync_all().expect("a sync");
                }
            }));
        }
        Stress { end, threads }
    }
}

impl Drop for Stress {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "ten minutes: make soak"]
async fn a_machine_with_too_much_to_do_is_no_fault() {
    let instances = Instances::start(Options { silence: SHORT_SILENCE, ..Options::default() });
    let primary = instances.await_steady();
    let term = instances.state(0).expect("a state")["term"].clone();
    let ledger = Ledger::start(&instances.conninfo(), 1, 8).await;
    let stress = Stress::start();
    let began = Instant::now();
    let (mut last, mut standstill) = (ledger.acknowledged(), Duration::ZERO);
    let mut moved = began;
    while began.elapsed() < Duration::from_secs(600) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = ledger.acknowledged();
        if now > last {
            (last, moved) = (now, Instant::now());
        }
        standstill = standstill.max(moved.elapsed());
    }
    drop(stress);
    println!("{last} commits in ten minutes, none for {standstill:?} at the longest");
    let state = instances.state(0).expect("a state");
    assert_eq!(
        (&state["term"], &state["directive"]["primary"]),
        (&term, &primary.name.as_str().into()),
        "{state}"
    );
    let entries = ledger.finish().await;
    let found = tokens(&instances.cluster.direct_conninfo(&primary, "app")).await;
    assert_eq!(audit(&entries, &found), Vec::<String>::new());
}
