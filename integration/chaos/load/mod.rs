//! Clients of two kinds, through the endpoints, and all that they did and heard: lists to which they append, and a bank.
//! Each round has lists and accounts of its own.

mod append;
mod bank;
mod client;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use self::client::Client;
use super::check::append::{Key, Transaction};
use super::check::bank::{Account, Sum, Transfer};
use super::check::{Moment, Outcome, Token};

pub(crate) const USER: &str = "app";
pub(crate) const PASSWORD: &str = "app";
pub(crate) const DATABASE: &str = "app";

pub(crate) const LISTS: Key = 20;
pub(crate) const ACCOUNTS: Account = 10;
pub(crate) const INITIAL: i64 = 1000;

/// Half of the clients append by blocks that read first; the other half one by one, and read from anywhere.
const APPENDING: usize = 8;
const MOVING: usize = 4;
const SUMMING: usize = 2;
/// Between two transactions of a client: the histories stay small, the machine has room.
const PAUSE: Duration = Duration::from_millis(25);
/// For the tables of a round, when everything serves.
const PREPARE: Duration = Duration::from_secs(30);

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS lists (round int, key int, tokens bigint[] NOT NULL, PRIMARY KEY (round, key));
CREATE TABLE IF NOT EXISTS accounts (round int, account int, balance bigint NOT NULL, PRIMARY KEY (round, account));
CREATE TABLE IF NOT EXISTS transfers (round int, token bigint NOT NULL);
CREATE TABLE IF NOT EXISTS probes (token bigint NOT NULL)";

/// What all clients of a round share.
struct Scene {
    endpoints: Vec<SocketAddr>,
    round: i32,
    began: Instant,
    end: AtomicBool,
    sessions: AtomicU32,
    tokens: AtomicI64,
    /// When each client that writes was last told of a commit, in milliseconds.
    acknowledged: Vec<AtomicU64>,
}

impl Scene {
    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    fn ended(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    fn token(&self) -> Token {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    fn heard(&self, writer: usize, outcome: &Outcome) {
        if *outcome == Outcome::Acknowledged {
            let millis = u64::try_from(self.now().as_millis()).expect("a run ends");
            self.acknowledged[writer].store(millis, Ordering::Relaxed);
        }
    }
}

/// Everything that the clients of a round did.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) transfers: Vec<Transfer>,
    pub(crate) sums: Vec<Sum>,
    /// When commits were acknowledged, in order.
    pub(crate) acknowledged: Vec<Moment>,
}

pub(crate) struct Load {
    scene: Arc<Scene>,
    clients: Vec<JoinHandle<Histories>>,
    runtime: Handle,
}

impl Load {
    /// Makes the round's lists and accounts, and begins; `Err`: they cannot be made.
    pub(crate) fn start(runtime: &Handle, endpoints: Vec<SocketAddr>, round: i32) -> Result<Load, String> {
        let writers = APPENDING + MOVING;
        let scene = Arc::new(Scene {
            endpoints,
            round,
            began: Instant::now(),
            end: AtomicBool::new(false),
            sessions: AtomicU32::new(0),
            tokens: AtomicI64::new(i64::from(round) << 32),
            acknowledged: (0..writers).map(|_| AtomicU64::new(0)).collect(),
        });
        let prepared = runtime.block_on(async { tokio::time::timeout(PREPARE, prepare(&scene)).await });
        prepared.map_err(|_elapsed| "nobody makes the tables of a round".to_owned())?;
        let client = |number| Client::new(scene.clone(), number);
        let mut clients = Vec::new();
        for writer in 0..APPENDING {
            clients.push(if writer % 2 == 0 {
                runtime.spawn(append::by_blocks(client(writer)))
            } else {
                runtime.spawn(append::one_by_one(client(writer)))
            });
        }
        clients.extend((APPENDING..writers).map(|writer| runtime.spawn(bank::moves(client(writer)))));
        clients.extend((0..SUMMING).map(|reader| runtime.spawn(bank::sums(client(reader)))));
        Ok(Load { scene, clients, runtime: runtime.clone() })
    }

    pub(crate) fn now(&self) -> Moment {
        self.scene.now()
    }

    /// Whether all clients that write were told of a commit after `since`; who was not.
    pub(crate) fn all_acknowledged(&self, since: Moment) -> Result<(), String> {
        let late: Vec<usize> = self
            .scene
            .acknowledged
            .iter()
            .enumerate()
            .filter(|(_, at)| u128::from(at.load(Ordering::Relaxed)) <= since.as_millis())
            .map(|(writer, _)| writer)
            .collect();
        if late.is_empty() { Ok(()) } else { Err(format!("clients {late:?} have committed nothing since")) }
    }

    /// Each client ends with its transaction.
    pub(crate) fn finish(self) -> Histories {
        self.scene.end.store(true, Ordering::Relaxed);
        let mut all = Histories::default();
        for client in self.clients {
            let one = self.runtime.block_on(client).expect("a client ends in order");
            all.transactions.extend(one.transactions);
            all.transfers.extend(one.transfers);
            all.sums.extend(one.sums);
            all.acknowledged.extend(one.acknowledged);
        }
        all.acknowledged.sort();
        all
    }
}

/// Until it has been done; twice does no harm.
async fn prepare(scene: &Arc<Scene>) {
    let round = scene.round;
    let rows = format!(
        "{TABLES};
         INSERT INTO lists SELECT {round}, key, '{{}}' FROM generate_series(1, {LISTS}) key ON CONFLICT DO NOTHING;
         INSERT INTO accounts SELECT {round}, account, {INITIAL} FROM generate_series(1, {ACCOUNTS}) account
         ON CONFLICT DO NOTHING"
    );
    let mut client = Client::new(scene.clone(), 0);
    loop {
        if client.begin().await.is_some() && client.run(&rows).await.is_ok() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
