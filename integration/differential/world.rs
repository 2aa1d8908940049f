//! Where scripts run: a cluster, and lanes that do not see each other, each with a database for the server itself
//! and one for the endpoint, both made anew before every script.

use std::path::PathBuf;
use std::time::Duration;

use bellwether::net::{Credentials, Target, TlsForServers};
use bellwether::topology::Address;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::client::{Between, Client, Delivery, Trace};
use super::script::Script;
use crate::harness::{Cluster, Durability, Options};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Session,
    Transaction,
}

pub(super) struct World {
    cluster: Cluster,
}

/// Enough to keep two cores busy.
pub(super) const LANES: usize = 2;

const REPLAY_POLL: Duration = Duration::from_millis(1);
const REPLAYED_WITHIN: Duration = Duration::from_secs(120);

impl World {
    pub(super) async fn start(pg_bin: Option<PathBuf>) -> World {
        // A standby, so that reads may be routed away.
        let options = Options { nodes: 2, durability: Durability::Async, pg_bin, ..Options::default() };
        let world = World { cluster: Cluster::start(options) };
        let primary = world.cluster.primary();
        let setup = connect(&world.cluster.direct_conninfo(&primary, "postgres")).await;
        // Nothing here is about durability, and every script begins with a dozen of commands that make files.
        for setting in ["fsync", "full_page_writes"] {
            setup.batch_execute(&format!("ALTER SYSTEM SET {setting} = off")).await.expect("a setting");
        }
        setup.batch_execute("SELECT pg_reload_conf()").await.expect("reload");
        for lane in 0..LANES {
            for side in ["direct", "endpoint"] {
                let create = format!("CREATE DATABASE {side}_{lane} OWNER app");
                setup.batch_execute(&create).await.expect("a database");
            }
        }
        world
    }

    /// Sets the endpoint to `mode`.
    pub(super) async fn enter(&mut self, mode: Mode) -> [Lane; LANES] {
        let pool = match mode {
            Mode::Session => "{mode: session}",
            Mode::Transaction => "{mode: transaction}",
        };
        self.cluster.reconfigure(|config| {
            config["pool"] = serde_yaml::from_str(pool).expect("the test's own YAML");
        });
        let lane = async |number| Lane::open(&self.cluster, number, mode).await;
        [lane(0).await, lane(1).await]
    }
}

/// One script at a time.
pub(super) struct Lane {
    pub(super) mode: Mode,
    direct: Target,
    endpoint: Target,
    /// Superusers' at the primary, in both databases.
    owners: [tokio_postgres::Client; 2],
    standbys: Vec<tokio_postgres::Client>,
    beside_direct: Beside,
    beside_endpoint: Beside,
}

impl Lane {
    async fn open(cluster: &Cluster, number: usize, mode: Mode) -> Lane {
        let primary = cluster.primary();
        let [direct, endpoint] = [format!("direct_{number}"), format!("endpoint_{number}")];
        let owner = async |database: &str| connect(&cluster.direct_conninfo(&primary, database)).await;
        let mut standbys = Vec::new();
        for standby in cluster.standbys() {
            standbys.push(connect(&cluster.direct_conninfo(&standby, "postgres")).await);
        }
        let owners = [owner(&direct).await, owner(&endpoint).await];
        let login = |port: u16, database: &str| {
            format!("host=127.0.0.1 port={port} user=app password=demo dbname={database}")
        };
        let rivals = match mode {
            Mode::Session => Vec::new(),
            Mode::Transaction => {
                let conninfo = login(cluster.port, &endpoint);
                let rivals = vec![connect(&conninfo).await, connect(&conninfo).await];
                for rival in &rivals {
                    rival.batch_execute(RIVALS_OWN).await.expect("a rival's statement");
                }
                rivals
            }
        };
        Lane {
            mode,
            direct: target(primary.port, &direct),
            endpoint: target(cluster.port, &endpoint),
            owners,
            standbys,
            beside_direct: Beside::new(connect(&login(primary.port, &direct)).await, Vec::new()),
            beside_endpoint: Beside::new(connect(&login(cluster.port, &endpoint)).await, rivals),
        }
    }

    /// What `script` hears at the server, where it goes in one write per batch, and through the endpoint.
    pub(super) async fn run(&mut self, script: &Script, delivery: Delivery) -> [Trace; 2] {
        self.renew().await;
        let direct = async {
            Client::connect(&self.direct).await.run(script, Delivery::Whole, &mut self.beside_direct).await
        };
        let endpoint = async {
            Client::connect(&self.endpoint).await.run(script, delivery, &mut self.beside_endpoint).await
        };
        let (direct, endpoint) = tokio::join!(direct, endpoint);
        [direct, endpoint]
    }

    /// The server itself.
    pub(super) fn server(&self) -> Target {
        self.direct.clone()
    }

    /// What the server says of itself at a session's start, and what the endpoint says.
    pub(super) async fn greetings(&self) -> [Vec<(String, String)>; 2] {
        [Client::connect(&self.direct).await.parameters, Client::connect(&self.endpoint).await.parameters]
    }

    /// Both databases as they were, and so on the standbys.
    async fn renew(&self) {
        let fresh = include_str!("fixture.sql");
        let [direct, endpoint] = &self.owners;
        let (one, other) = tokio::join!(direct.batch_execute(fresh), endpoint.batch_execute(fresh));
        one.and(other).expect("the fixture");
        // The endpoint hears of a change of the schema from its clients.
        let comment = "COMMENT ON SCHEMA public IS NULL";
        self.beside_endpoint.other.batch_execute(comment).await.expect("a change that may be seen");
        let row = direct.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position");
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", row.get::<_, String>(0));
        for standby in &self.standbys {
            let caught_up = async {
                while !standby.query_one(&replayed, &[]).await.expect("a position").get::<_, bool>(0) {
                    tokio::time::sleep(REPLAY_POLL).await;
                }
            };
            tokio::time::timeout(REPLAYED_WITHIN, caught_up).await.expect("the standby replays");
        }
    }
}

/// Who else uses a lane's database while a script runs.
struct Beside {
    other: tokio_postgres::Client,
    /// In transaction mode, clients that take turns in holding the server that the script has just left, so that
    /// it goes on with another one. None of them may find there anything of the script's.
    rivals: Vec<tokio_postgres::Client>,
    holds: usize,
    /// What a rival found the first time.
    usual: Option<String>,
}

/// What a session may leave behind at a server.
const HOLD: &str = "/* bellwether: primary */ BEGIN; SELECT concat_ws('|', current_user, session_user, \
    current_setting('search_path'), current_setting('work_mem'), current_setting('TimeZone'), \
    current_setting('DateStyle'), current_setting('application_name'), current_setting('statement_timeout'), \
    current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
    current_setting('client_encoding'), current_setting('extra_float_digits'), \
    (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_listening_channels()), \
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())); EXECUTE q1";

/// By a name that scripts give, too.
const RIVALS_OWN: &str = "PREPARE q1 AS SELECT 'a rival''s'";

impl Beside {
    fn new(other: tokio_postgres::Client, rivals: Vec<tokio_postgres::Client>) -> Beside {
        Beside { other, rivals, holds: 0, usual: None }
    }
}

impl Between for Beside {
    async fn batch(&mut self, idle: bool) {
        if !idle || self.rivals.is_empty() {
            return;
        }
        let next = (self.holds + 1) % self.rivals.len();
        let found = self.rivals[next].simple_query(HOLD).await.expect("a rival's turn");
        self.rivals[self.holds].batch_execute("ROLLBACK").await.expect("a rival's end");
        self.holds = next;
        let mut rows = found.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let row = rows.next().expect("a row");
        assert_eq!(rows.next().as_deref(), Some("a rival's"), "a name means another client's statement");
        let usual = self.usual.get_or_insert_with(|| row.clone());
        assert_eq!(*usual, row, "a script's state is at a server that another client has");
    }

    async fn other(&mut self, sql: &str) {
        self.other.batch_execute(sql).await.expect("the other client's statement");
    }
}

async fn connect(conninfo: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

fn target(port: u16, database: &str) -> Target {
    Target {
        address: Address { host: "127.0.0.1".to_owned(), port },
        user: "app".into(),
        database: database.into(),
        credentials: Credentials::Password("demo".into()),
        tls: TlsForServers::default(),
        parameters: vec![("application_name".to_owned(), "script".to_owned())],
    }
}
