//! The worker threads: each has a runtime of its own, and a client stays on the one it was given to. The first
//! one accepts, too: with one worker, no connection ever changes its thread.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use super::{Proxy, background};
use crate::net::{Detached, Stream};

/// Connections passed on that a worker has not begun with. Beyond it they stay with the thread that accepts.
const QUEUE: usize = 256;

/// Running worker threads.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Connections of each worker.
    loads: Vec<Arc<AtomicUsize>>,
    /// Cancelled by the first thread that ends, however it ends.
    ended: CancellationToken,
}

/// Another worker's thread, as the first one sees it.
#[derive(Debug)]
struct Elsewhere<S> {
    queue: mpsc::Sender<(Detached, S)>,
    /// Connections given to it and not finished.
    load: Arc<AtomicUsize>,
}

/// Gives accepted connections to the workers. It lives on the first worker's thread.
pub struct Seats<S> {
    here: Seat<S>,
    elsewhere: Vec<Elsewhere<S>>,
}

impl<S> fmt::Debug for Seats<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seats").field("elsewhere", &self.elsewhere.len()).finish_non_exhaustive()
    }
}

impl<S> Seats<S> {
    /// To the worker with the fewest connections; among equals the first, which is this thread.
    pub fn give(&self, stream: Stream, asked: S) {
        let here = self.here.load.load(Ordering::Relaxed);
        let least = self.elsewhere.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        let better = least.filter(|worker| worker.load.load(Ordering::Relaxed) < here);
        let Some((worker, place)) =
            better.and_then(|worker| Some((worker, worker.queue.try_reserve().ok()?)))
        else {
            return self.here.take(stream, asked);
        };
        match stream.detach() {
            Ok(stream) => {
                worker.load.fetch_add(1, Ordering::Relaxed);
                place.send((stream, asked));
            }
            Err(error) => tracing::debug!(%error, "a connection ended early"),
        }
    }
}

impl Workers {
    /// Starts `count` threads, and one for the plane's own tasks. The first worker runs on `first` and does
    /// `accept` beside its sessions. `handle` deals with one connection: greets and authenticates, and calls
    /// [`Proxy::serve`]. After `stop` the threads end when their last connection has.
    pub fn start<S, A, F>(
        count: usize,
        proxy: &Proxy,
        stop: &CancellationToken,
        handle: F,
        (first, accept): (Runtime, A),
    ) -> io::Result<Workers>
    where
        S: Send + 'static,
        A: AsyncFnOnce(Seats<S>) + Send + 'static,
        F: Fn(Rc<Worker>, Stream, S) -> Served + Clone + Send + 'static,
    {
        let ended = CancellationToken::new();
        let mut threads = vec![background::start(proxy, stop, ended.clone().drop_guard())?];
        let mut start = |index: usize, run: Box<dyn FnOnce() + Send>| {
            let end = ended.clone().drop_guard();
            let run = move || {
                let _end = end;
                run();
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(run)?);
            io::Result::Ok(())
        };
        let mut elsewhere = vec![];
        let mut loads = vec![Arc::<AtomicUsize>::default()];
        for index in 1..count {
            let (queue, connections) = mpsc::channel(QUEUE);
            let load = Arc::new(AtomicUsize::new(0));
            let thread = Thread { index, proxy: proxy.clone(), stop: stop.clone(), load: load.clone() };
            let handle = handle.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let run =
                move || runtime.block_on(thread.run(handle, async |seat| receive(connections, seat).await));
            start(index, Box::new(run))?;
            loads.push(load.clone());
            elsewhere.push(Elsewhere { queue, load });
        }
        let thread = Thread { index: 0, proxy: proxy.clone(), stop: stop.clone(), load: loads[0].clone() };
        let run =
            move || first.block_on(thread.run(handle, async |here| accept(Seats { here, elsewhere }).await));
        start(0, Box::new(run))?;
        Ok(Workers { threads, loads, ended })
    }

    /// Connections that were accepted and are not finished.
    pub fn connections(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    /// Resolves when a thread has ended. Before `stop` that is a panic, and the process must not limp: without
    /// the plane's own tasks no term would ever be confirmed again.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Waits for the threads, after `stop`. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// What becomes of one connection.
pub type Served = Pin<Box<dyn Future<Output = ()>>>;

struct Thread {
    index: usize,
    proxy: Proxy,
    stop: CancellationToken,
    load: Arc<AtomicUsize>,
}

impl Thread {
    /// Until `stop`, and then until the last connection is finished. `supply` brings the connections.
    async fn run<S: 'static>(
        self,
        handle: impl Fn(Rc<Worker>, Stream, S) -> Served + 'static,
        supply: impl AsyncFnOnce(Seat<S>),
    ) {
        let worker = Rc::new(self.proxy.worker(self.index));
        let serve = Rc::new(move |stream, asked| handle(worker.clone(), stream, asked));
        let tasks = LocalSet::new();
        let supplying = supply(Seat { serve, load: self.load });
        tasks.run_until(self.stop.run_until_cancelled(supplying)).await;
        tasks.await;
    }
}

/// A worker, on its own thread.
struct Seat<S> {
    serve: Rc<dyn Fn(Stream, S) -> Served>,
    load: Arc<AtomicUsize>,
}

impl<S> Seat<S> {
    fn take(&self, stream: Stream, asked: S) {
        self.load.fetch_add(1, Ordering::Relaxed);
        self.begin(stream, asked);
    }

    /// With a connection that is counted already.
    fn begin(&self, stream: Stream, asked: S) {
        let (served, load) = ((self.serve)(stream, asked), Ended(self.load.clone()));
        // Not awaited: a panic in a session costs that client only.
        tokio::task::spawn_local(async move {
            let _load = load;
            served.await;
        });
    }
}

async fn receive<S>(mut connections: mpsc::Receiver<(Detached, S)>, seat: Seat<S>) {
    while let Some((stream, asked)) = connections.recv().await {
        match stream.attach() {
            Ok(stream) => seat.begin(stream, asked),
            Err(error) => {
                drop(Ended(seat.load.clone()));
                tracing::debug!(%error, "a connection ended early");
            }
        }
    }
}

/// Counts a connection out, however it ends.
struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
