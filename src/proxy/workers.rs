//! The worker threads: each has a runtime of its own, and a client stays on the one it was given to.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use super::{Proxy, background};

/// Accepted connections that a worker has not begun with. Beyond it `dispatch` gives the connection back, and
/// the listener's backlog holds what comes.
const QUEUE: usize = 256;

/// Running worker threads. `S` is what an accepted connection is before anybody has read from it.
#[derive(Debug)]
pub struct Workers<S> {
    workers: Arc<[Handle<S>]>,
    threads: Vec<JoinHandle<()>>,
    /// Cancelled by the first thread that ends, however it ends.
    ended: CancellationToken,
}

#[derive(Debug)]
struct Handle<S> {
    queue: mpsc::Sender<S>,
    /// Connections given to it and not finished.
    load: Arc<AtomicUsize>,
}

/// Hands connections to the workers; cheap to clone.
#[derive(Debug)]
pub struct Dispatch<S>(Arc<[Handle<S>]>);

impl<S> Clone for Dispatch<S> {
    fn clone(&self) -> Self {
        Dispatch(self.0.clone())
    }
}

impl<S> Dispatch<S> {
    /// To the worker with the fewest connections. Gives `socket` back when all queues are full or the workers
    /// are stopping.
    pub fn dispatch(&self, socket: S) -> Result<(), S> {
        let least = self.0.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        let Some(worker) = least else { return Err(socket) };
        worker.load.fetch_add(1, Ordering::Relaxed);
        worker.queue.try_send(socket).map_err(|error| {
            worker.load.fetch_sub(1, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(socket) | mpsc::error::TrySendError::Closed(socket) => socket,
            }
        })
    }
}

impl<S: Send + 'static> Workers<S> {
    /// Starts `count` threads, and one for the plane's own tasks. `handle` deals with one connection: attaches
    /// it to the runtime it is called in, greets and authenticates, and calls [`Proxy::serve`]. After `stop`
    /// the threads end when their last connection has.
    pub fn start<F, Fut>(
        count: usize,
        proxy: &Proxy,
        stop: &CancellationToken,
        handle: F,
    ) -> io::Result<Workers<S>>
    where
        F: Fn(Rc<Worker>, S) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let mut workers = vec![];
        let ended = CancellationToken::new();
        let mut threads = vec![background::start(proxy, stop, ended.clone().drop_guard())?];
        for index in 0..count.max(1) {
            let (queue, sockets) = mpsc::channel(QUEUE);
            let load = Arc::new(AtomicUsize::new(0));
            let thread = Thread { index, proxy: proxy.clone(), stop: stop.clone(), load: load.clone() };
            let handle = handle.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let end = ended.clone().drop_guard();
            let run = move || {
                let _end = end;
                runtime.block_on(thread.run(sockets, handle));
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(run)?);
            workers.push(Handle { queue, load });
        }
        Ok(Workers { workers: workers.into(), threads, ended })
    }

    pub fn dispatch(&self) -> Dispatch<S> {
        Dispatch(self.workers.clone())
    }

    /// Resolves when a thread has ended. Before `stop` that is a panic, and the process must not limp: without
    /// the plane's own tasks no term would ever be confirmed again.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Waits for the threads, after `stop`. Blocks.
    pub fn join(self) {
        drop(self.workers);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

struct Thread {
    index: usize,
    proxy: Proxy,
    stop: CancellationToken,
    load: Arc<AtomicUsize>,
}

impl Thread {
    async fn run<S, F, Fut>(self, mut sockets: mpsc::Receiver<S>, handle: F)
    where
        S: 'static,
        F: Fn(Rc<Worker>, S) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        let worker = Rc::new(self.proxy.worker(self.index));
        let tasks = LocalSet::new();
        tasks
            .run_until(async {
                loop {
                    let socket = tokio::select! {
                        socket = sockets.recv() => socket,
                        () = self.stop.cancelled() => None,
                    };
                    let Some(socket) = socket else { return };
                    let (served, load) = (handle(worker.clone(), socket), Ended(self.load.clone()));
                    // Not awaited: a panic in a session costs that client only.
                    tokio::task::spawn_local(async move {
                        let _load = load;
                        served.await;
                    });
                }
            })
            .await;
        tasks.await;
    }
}

/// Counts a connection out, however it ends.
struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
