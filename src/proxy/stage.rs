//! The plane with one server, which is a socket that does what a test wants.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Commits, Inputs, Proxy, ProxyConfig, ServerLogin, Shared, Worker};
use crate::net::{Client, Credentials, ListenAddress, Peer, PeerAddress, Stream, TlsForServers};
use crate::pg::protocol::backend::{self, TransactionStatus};
use crate::pg::protocol::startup::Minor;
use crate::topology::{
    Acknowledgers, Address, CommitOutcomes, CommitsInDoubt, Directive, Durability, Health, Node, NodeName,
    Searching, Term, WalStatus, Writes,
};

/// One of several instances, in term 7. The primary is pg1; behind both nodes there is a socket of the test's.
pub(super) struct Stage {
    pub(super) proxy: Proxy,
    pub(super) directive: watch::Sender<Arc<Directive>>,
    pub(super) outcomes: watch::Sender<Arc<CommitOutcomes>>,
    pub(super) in_doubt: watch::Receiver<Arc<CommitsInDoubt>>,
    server: UnixListener,
    _wal: watch::Sender<Arc<WalStatus>>,
    _health: watch::Sender<Arc<Health>>,
    _directory: tempfile::TempDir,
}

pub(super) fn node_name(name: &str) -> NodeName {
    name.parse().expect("a node name")
}

impl Stage {
    #[expect(clippy::disallowed_methods, reason = "an origin for the evidence's times")]
    pub(super) fn new(config: ProxyConfig) -> Stage {
        let directory = tempfile::tempdir().expect("a directory");
        let host = directory.path().to_str().expect("a path").to_owned();
        let path = ListenAddress::Unix { directory: directory.path().to_owned(), port: 1 }.to_string();
        let server = UnixListener::bind(path).expect("a socket");
        let address = Address { host, port: 1 };
        let node = |name: &str| Node {
            name: node_name(name),
            address: address.clone(),
            priority: 100,
            zone: None,
            no_failover: false,
        };
        let nodes = vec![node("pg1"), node("pg2")];
        let relays = ["a", "b", "c"].map(str::to_owned).to_vec();
        let (directive, directives) = watch::channel(Arc::new(Directive {
            term: Term(7),
            primary: Some(node_name("pg1")),
            writes: Writes::Open,
            quorums: vec![Acknowledgers { relays, acks: 2 }],
            ..Directive::starting(Durability::Async)
        }));
        let (health, healths) = watch::channel(Arc::default());
        let (wal, wals) = watch::channel(Arc::new(WalStatus::starting()));
        let (asked, in_doubt) = watch::channel(Arc::default());
        let (outcomes, told) = watch::channel(Arc::new(CommitOutcomes {
            searching: Searching::Yes,
            ..CommitOutcomes::default()
        }));
        let commits = Commits { in_doubt: asked, outcomes: told };
        let inputs = Inputs { directive: directives, health: healths, wal: wals, commits, nodes };
        let login = ServerLogin {
            user: "bellwether".into(),
            database: "postgres".into(),
            credentials: Credentials::Trust,
            tls: TlsForServers::default(),
        };
        let (registry, stop) = (prometheus::Registry::new(), CancellationToken::new());
        let (proxy, _) = Proxy::new(Instant::now(), config, inputs, login, &registry, stop)
            .expect("a registry of its own");
        let (_wal, _health, _directory) = (wal, health, directory);
        Stage { proxy, directive, outcomes, in_doubt, server, _wal, _health, _directory }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.proxy.shared
    }

    pub(super) fn worker(&self) -> Rc<Worker> {
        Rc::new(self.proxy.worker(0))
    }

    pub(super) fn order(&self, change: impl FnOnce(&mut Directive)) {
        self.directive.send_modify(|order| change(Arc::make_mut(order)));
    }

    /// A client that has logged in, and its end of the connection.
    pub(super) fn client() -> (Box<Client>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let client = Client {
            stream: Stream::Unix(ours),
            peer: Peer::plain(PeerAddress::Unix),
            received: BytesMut::new(),
            out: BytesMut::new(),
            user: "app".into(),
            database: "orders".into(),
            parameters: Vec::new(),
            credentials: Credentials::Trust,
            minor: Minor(0),
        };
        (Box::new(client), theirs)
    }

    /// The server's end of the next connection, whose startup packet has come.
    pub(super) async fn accept(&self) -> UnixStream {
        let (mut stream, _) = self.server.accept().await.expect("a connection");
        let length = stream.read_u32().await.expect("a startup packet");
        let mut rest = vec![0; length as usize - 4];
        stream.read_exact(&mut rest).await.expect("the whole of it");
        stream
    }
}

/// Lets in who has connected.
pub(super) async fn let_in(server: &mut UnixStream) {
    let mut out = BytesMut::new();
    backend::authentication_ok(&mut out);
    backend::backend_key_data(9, b"abcd", &mut out);
    backend::ready_for_query(TransactionStatus::Idle, &mut out);
    server.write_all(&out).await.expect("the proxy is there");
}
