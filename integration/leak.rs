//! Clean hands: many clients on few servers in transaction mode. Each leaves as much behind as it can, in every way
//! there is to leave, and checks every answer against what only it may see.

use std::env;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bellwether::net::{Credentials, Target, TlsForServers, dial};
use bellwether::topology::Address;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::AsyncWriteExt;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::harness::{Cluster, Durability, Options};

const CLIENTS: u64 = 40;
const SERVERS: u32 = 20;
const LASTS: Duration = Duration::from_secs(20);
const SOAK_CLIENTS: u64 = 200;
const SOAK_LASTS: Duration = Duration::from_secs(180);

/// Actions of one connection at most.
const ACTIONS: u32 = 12;
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn nobody_sees_what_is_anothers() {
    run(CLIENTS, LASTS);
}

#[test]
#[ignore = "long: make soak"]
fn nobody_sees_what_is_anothers_for_minutes() {
    run(SOAK_CLIENTS, SOAK_LASTS);
}

fn run(clients: u64, lasts: Duration) {
    let seed = env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u32>);
    println!("SEED={seed}");
    let mut cluster = Cluster::start(Options { durability: Durability::Async, ..Options::default() });
    cluster.reconfigure(|config| {
        let pool = format!("{{mode: transaction, size: {SERVERS}, wait: 30min}}");
        config["pool"] = serde_yaml::from_str(&pool).expect("the test's own YAML");
    });
    let world = Arc::new(World {
        conninfo: cluster.conninfo(),
        port: cluster.port,
        usual: usual(&cluster),
        locks: Default::default(),
        wrong: Mutex::default(),
        done: AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let until = Instant::now() + lasts;
        let lives: Vec<_> =
            (1..=clients).map(|who| tokio::spawn(live(Arc::clone(&world), who, seed, until))).collect();
        for life in lives {
            life.await.expect("a client ends in order");
        }
    });
    let wrong = world.wrong.lock().expect("nobody panicked");
    assert!(wrong.is_empty(), "SEED={seed}: {} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    let done = world.done.load(Ordering::Relaxed);
    println!("{done} actions");
    assert!(done > clients, "hardly anything was done: {done} actions");
}

/// What a session finds that nobody has touched.
fn usual(cluster: &Cluster) -> String {
    cluster.psql(FINDS).expect("a fresh session")
}

const FINDS: &str = "SELECT concat_ws('|', current_setting('work_mem'), current_setting('TimeZone'), \
    nullif(current_setting('a.token', true), ''), to_regclass('pg_temp.scratch')::text, \
    (SELECT count(*) FROM pg_cursors), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    current_setting('transaction_read_only'), current_user)";

struct World {
    conninfo: String,
    port: u16,
    usual: String,
    /// Who holds each advisory lock, 0 for nobody.
    locks: [AtomicU64; 8],
    wrong: Mutex<Vec<String>>,
    done: AtomicU64,
}

async fn live(world: Arc<World>, who: u64, seed: u32, until: Instant) {
    let random = StdRng::seed_from_u64((u64::from(seed) << 32) | who);
    let mut person = Person { world, who, random, count: 0, doing: "" };
    while Instant::now() < until {
        let episode = tokio::time::timeout(LIMIT, person.connection()).await;
        match episode {
            Ok(Ok(())) => {}
            Ok(Err(error)) => person.complain(&error),
            Err(_) => person.complain(&"no answer in time"),
        }
    }
}

struct Person {
    world: Arc<World>,
    who: u64,
    random: StdRng,
    /// Of the tokens it has made.
    count: u64,
    doing: &'static str,
}

type Done = Result<(), tokio_postgres::Error>;

impl Person {
    fn complain(&self, what: &dyn Debug) {
        let mut wrong = self.world.wrong.lock().expect("nobody panicked");
        if wrong.len() < 20 {
            wrong.push(format!("client {}, {}: {what:?}", self.who, self.doing));
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "most of what is compared was made for it")]
    fn expect<T: PartialEq + Debug>(&self, found: T, expected: T) {
        if found != expected {
            self.complain(&format!("found {found:?} instead of {expected:?}"));
        }
    }

    /// What no one else ever has.
    fn token(&mut self) -> String {
        self.count += 1;
        format!("{}-{}", self.who, self.count)
    }

    /// From a login to one of several ends.
    async fn connection(&mut self) -> Done {
        self.doing = "connect";
        if self.random.random_bool(0.1) {
            self.leave_amid_a_message().await;
        }
        let (client, connection) = tokio_postgres::connect(&self.world.conninfo, NoTls).await?;
        tokio::spawn(connection);
        self.doing = "look around";
        let found = text(&client, FINDS).await?;
        self.expect(found, Some(self.world.usual.clone()));
        let mut kept = Kept::default();
        for _ in 0..self.random.random_range(1..=ACTIONS) {
            self.act(&client, &mut kept).await?;
            self.world.done.fetch_add(1, Ordering::Relaxed);
            if kept.leaves {
                break;
            }
        }
        for lock in kept.locks {
            self.world.locks[lock].store(0, Ordering::SeqCst);
        }
        if !kept.leaves && self.random.random_bool(0.3) {
            // With a block open.
            client
                .batch_execute("BEGIN; SET LOCAL work_mem = '11MB'; CREATE TEMP TABLE left_open (n int)")
                .await?;
        }
        Ok(())
    }

    async fn act(&mut self, client: &Client, kept: &mut Kept) -> Done {
        match self.random.random_range(0..11) {
            0 => self.set(client, kept).await?,
            1 => self.look(client, kept).await?,
            2 => self.prepare(client).await?,
            3 => self.prepare_by_sql(client, kept).await?,
            4 => self.temporary(client, kept).await?,
            5 => self.lock(client, kept).await?,
            6 => self.abort(client).await?,
            7 => {
                // Its cancel may come late, and hit its next statement rightly; so there is none.
                kept.leaves = true;
                return self.cancel(client).await;
            }
            8 => self.block(client, kept).await?,
            _ => self.ask(client).await?,
        }
        self.look(client, kept).await
    }

    async fn ask(&mut self, client: &Client) -> Done {
        self.doing = "ask";
        let token = self.token();
        let rows = self.random.random_range(1..200);
        let sql = format!("SELECT '{token}' FROM generate_series(1, {rows})");
        let found = client.query(&sql, &[]).await?;
        self.expect(found.len(), rows);
        for row in found {
            self.expect(row.get::<_, String>(0), token.clone());
        }
        Ok(())
    }

    async fn set(&mut self, client: &Client, kept: &mut Kept) -> Done {
        self.doing = "set";
        let token = self.token();
        let zone = if self.who.is_multiple_of(2) { "Asia/Tokyo" } else { "Europe/Paris" };
        let work_mem = format!("{}MB", 10 + self.who % 90);
        client.batch_execute(&format!("SET a.token = '{token}'")).await?;
        client.batch_execute(&format!("SET work_mem = '{work_mem}'; SET TimeZone = '{zone}'")).await?;
        kept.settings = Some((token, work_mem, zone));
        Ok(())
    }

    /// Everything kept is there, and nothing else.
    async fn look(&mut self, client: &Client, kept: &Kept) -> Done {
        self.doing = "look";
        let found = text(client, "SELECT current_setting('a.token', true)").await?.filter(|t| !t.is_empty());
        self.expect(found, kept.settings.as_ref().map(|(token, ..)| token.clone()));
        if let Some((_, work_mem, zone)) = &kept.settings {
            self.expect(text(client, "SHOW work_mem").await?, Some(work_mem.clone()));
            self.expect(text(client, "SHOW TimeZone").await?, Some((*zone).to_owned()));
        }
        if let Some(token) = &kept.scratch {
            let seen = text(client, "SELECT string_agg(who, ',') FROM scratch").await?;
            self.expect(seen, Some(token.clone()));
        }
        // Others have one of the same name, perhaps at this very server.
        match &kept.prepared {
            Some(token) => self.expect(text(client, "EXECUTE mine").await?, Some(token.clone())),
            None => {
                let unknown = client.batch_execute("EXECUTE mine").await;
                self.expect(code(&unknown), Some("26000".to_owned()));
            }
        }
        Ok(())
    }

    /// One text for all clients, and one of its own.
    async fn prepare(&mut self, client: &Client) -> Done {
        self.doing = "prepare";
        let token = self.token();
        let shared = client.prepare("SELECT $1::text || '!'").await?;
        let own = client.prepare(&format!("SELECT '{token}' || $1::text")).await?;
        for _ in 0..self.random.random_range(1..8) {
            let found: String = client.query_one(&shared, &[&token]).await?.get(0);
            self.expect(found, format!("{token}!"));
            let found: String = client.query_one(&own, &[&"?"]).await?.get(0);
            self.expect(found, format!("{token}?"));
        }
        Ok(())
    }

    async fn prepare_by_sql(&mut self, client: &Client, kept: &mut Kept) -> Done {
        self.doing = "prepare by SQL";
        if kept.prepared.take().is_some() {
            client.batch_execute("DEALLOCATE mine").await?;
        }
        let token = self.token();
        client.batch_execute(&format!("PREPARE mine AS SELECT '{token}'")).await?;
        kept.prepared = Some(token);
        Ok(())
    }

    async fn temporary(&mut self, client: &Client, kept: &mut Kept) -> Done {
        self.doing = "make a temporary table";
        if kept.scratch.take().is_some() {
            client.batch_execute("DROP TABLE scratch").await?;
        }
        let token = self.token();
        client.batch_execute(&format!("CREATE TEMP TABLE scratch AS SELECT '{token}'::text AS who")).await?;
        kept.scratch = Some(token);
        Ok(())
    }

    async fn lock(&mut self, client: &Client, kept: &mut Kept) -> Done {
        self.doing = "lock";
        let lock = self.random.random_range(0..self.world.locks.len());
        if let Some(held) = kept.locks.pop() {
            self.world.locks[held].store(0, Ordering::SeqCst);
            let unlocked = text(client, &format!("SELECT pg_advisory_unlock({held})")).await?;
            self.expect(unlocked.as_deref(), Some("t"));
        } else if text(client, &format!("SELECT pg_try_advisory_lock({lock})")).await?.as_deref() == Some("t")
        {
            let holder = self.world.locks[lock].swap(self.who, Ordering::SeqCst);
            self.expect(holder, 0);
            kept.locks.push(lock);
        }
        Ok(())
    }

    async fn abort(&mut self, client: &Client) -> Done {
        self.doing = "abort";
        client
            .batch_execute(
                "BEGIN; SET work_mem = '9MB'; SET a.token = 'aborted'; PREPARE aborted AS SELECT 1",
            )
            .await?;
        let failed = client.batch_execute("SELECT 1/0").await;
        self.expect(code(&failed), Some("22012".to_owned()));
        let failed = client.batch_execute("SELECT 1").await;
        self.expect(code(&failed), Some("25P02".to_owned()));
        // PREPARE does not ask for transactions.
        client.batch_execute("ROLLBACK; DEALLOCATE aborted").await
    }

    /// Only its own statement ends: whoever else heard 57014 would complain.
    async fn cancel(&mut self, client: &Client) -> Done {
        self.doing = "cancel";
        let token = client.cancel_token();
        let after = Duration::from_millis(self.random.random_range(0..200));
        let cancel = async {
            tokio::time::sleep(after).await;
            token.cancel_query(NoTls).await
        };
        // One that comes too early hits nothing: the statement ends by itself.
        let (cancelled, slept) = tokio::join!(cancel, client.batch_execute("SELECT pg_sleep(1)"));
        cancelled?;
        if let Some(code) = code(&slept) {
            self.expect(code, "57014".to_owned());
        }
        Ok(())
    }

    async fn block(&mut self, client: &Client, kept: &Kept) -> Done {
        self.doing = "run a block";
        let token = self.token();
        client.batch_execute("BEGIN").await?;
        client.batch_execute(&format!("SET LOCAL a.token = '{token}'")).await?;
        for _ in 0..3 {
            let found = text(client, "SELECT current_setting('a.token')").await?;
            self.expect(found, Some(token.clone()));
        }
        client.batch_execute(if self.who.is_multiple_of(3) { "ROLLBACK" } else { "COMMIT" }).await?;
        self.look(client, kept).await
    }

    /// Half a message, or half a block, and gone.
    async fn leave_amid_a_message(&mut self) {
        let target = Target {
            address: Address { host: "127.0.0.1".to_owned(), port: self.world.port },
            user: "app".into(),
            database: "app".into(),
            credentials: Credentials::Password("demo".into()),
            tls: TlsForServers::default(),
            parameters: vec![("application_name".to_owned(), format!("leaves {}", self.who))],
        };
        let Ok(mut backend) = dial(&target, LIMIT).await else { return self.complain(&"no login") };
        let begin = b"Q\0\0\0\x32BEGIN; SET a.token = 'gone'; SELECT 1 AS one;\0";
        let most = self.random.random_range(1..begin.len() * 2);
        let bytes = [&begin[..], begin].concat();
        let _ = backend.stream.write_all(&bytes[..most]).await;
    }
}

/// What a client has left at its session.
#[derive(Default)]
struct Kept {
    settings: Option<(String, String, &'static str)>,
    scratch: Option<String>,
    prepared: Option<String>,
    locks: Vec<usize>,
    leaves: bool,
}

/// The first value of the first row.
async fn text(client: &Client, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

fn code<T>(result: &Result<T, tokio_postgres::Error>) -> Option<String> {
    let error = result.as_ref().err()?;
    Some(error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))
}
