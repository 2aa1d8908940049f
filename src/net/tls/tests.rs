//! Both ends against each other over loopback TCP, with certificates made for the occasion.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{
    ForClients, ForServers, ServerTlsMode, TlsForClients, TlsForServers, TlsVersion, files, provider,
};
use crate::net::authenticate::{Method, Rules};
use crate::net::dial::reach;
use crate::net::{
    Acceptor, Authenticator, ClientTls, Hello, Peer, Reception, Stream, TlsFacts, Users, hello,
};
use crate::pg::protocol::startup::{put_ssl_request, put_startup};
use crate::topology::Address;

/// Far beyond any of these dialogues; a test that needs it has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// An authority and what it has signed, as files.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let dir = TempDir::new().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).expect("write");
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Writes `<file>.crt` and `<file>.key`; who they are for is a host or a person.
    fn sign(&self, file: &str, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Orders, Inc.");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |extension: &str| self.dir.path().join(format!("{file}.{extension}"));
        std::fs::write(path("crt"), certificate.pem()).expect("write");
        std::fs::write(path("key"), key.serialize_pem()).expect("write");
        (path("crt"), path("key"))
    }

    fn for_clients(&self, name: &str) -> ForClients {
        let (cert_file, key_file) = self.sign("server", name);
        let client_ca_file = Some(self.ca());
        ForClients { cert_file, key_file, client_ca_file, min_version: TlsVersion::default() }
    }
}

fn acceptor(tls: ClientTls) -> Acceptor {
    let users = Arc::new(Users::listed_only([], [0; 32]));
    Acceptor::uncounted(Reception::by(Authenticator::new(Rules::all_by(&Method::Trust), users)).with_tls(tls))
}

fn allow(settings: &ForClients) -> ClientTls {
    ClientTls::Allow(Arc::new(TlsForClients::load(settings).expect("good files")))
}

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, Address { host: "localhost".into(), port })
}

/// Who was let in; the connection is closed then.
async fn greeted(listener: &TcpListener, acceptor: &Acceptor) -> Option<Peer> {
    let (stream, _) = listener.accept().await.expect("a client");
    match hello(Stream::Tcp(stream), None, acceptor).await {
        Hello::Client(_, client) => Some(client.peer),
        Hello::Cancel(..) | Hello::Closed => None,
    }
}

/// A server that offers TLS, and what a client makes of it: how it is encrypted, or why it failed.
async fn reached(ours: ForClients, theirs: ForServers) -> Result<(Stream, Option<TlsFacts>), String> {
    let (listener, address) = listen().await;
    let acceptor = acceptor(allow(&ours));
    let tls = TlsForServers::load(&theirs).expect("good files");
    let greeting = async {
        loop {
            drop(greeted(&listener, &acceptor).await);
        }
    };
    tokio::select! {
        () = greeting => unreachable!("endless"),
        reached = reach(&address, &tls) => reached.map_err(|error| format!("{error:?}")),
    }
}

fn servers(mode: ServerTlsMode, ca_file: Option<PathBuf>) -> ForServers {
    ForServers { mode, ca_file, identity: None }
}

#[tokio::test]
async fn the_modes_towards_servers() {
    use ServerTlsMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
    let (ours, others) = (Authority::new(), Authority::new());
    let check = async |name: &str, mode, ca: Option<&Authority>, expected: Result<bool, ()>| {
        let reached = reached(ours.for_clients(name), servers(mode, ca.map(Authority::ca))).await;
        let encrypted = reached.as_ref().map(|(_, facts)| facts.is_some()).map_err(|_| ());
        assert_eq!(encrypted, expected, "{mode:?} {name}: {:?}", reached.err());
    };
    check("localhost", Disable, None, Ok(false)).await;
    check("localhost", Prefer, None, Ok(true)).await;
    check("localhost", Require, None, Ok(true)).await;
    check("elsewhere", Require, Some(&ours), Ok(true)).await;
    check("localhost", Require, Some(&others), Err(())).await;
    check("elsewhere", VerifyCa, Some(&ours), Ok(true)).await;
    check("localhost", VerifyCa, Some(&others), Err(())).await;
    check("localhost", VerifyFull, Some(&ours), Ok(true)).await;
    check("elsewhere", VerifyFull, Some(&ours), Err(())).await;
    // Better than nothing is all that was asked for.
    check("localhost", Prefer, Some(&others), Ok(false)).await;
}

#[tokio::test]
async fn a_server_without_tls() {
    let check = async |mode, expected: Result<bool, ()>| {
        let (listener, address) = listen().await;
        let (acceptor, tls) = (acceptor(ClientTls::Disable), TlsForServers::load(&servers(mode, None)));
        let tls = tls.expect("no files");
        let reached = tokio::select! {
            _ = greeted(&listener, &acceptor) => unreachable!("nobody starts a session"),
            reached = reach(&address, &tls) => reached,
        };
        let encrypted = reached.map(|(_, facts)| facts.is_some()).map_err(|_| ());
        assert_eq!(encrypted, expected, "{mode:?}");
    };
    check(ServerTlsMode::Prefer, Ok(false)).await;
    check(ServerTlsMode::Require, Err(())).await;
}

/// What `hello` found out about a client that logs in with `identity`.
async fn facts_of(authority: &Authority, identity: Option<(PathBuf, PathBuf)>) -> Option<Peer> {
    let (listener, address) = listen().await;
    let acceptor = acceptor(allow(&authority.for_clients("localhost")));
    let tls = TlsForServers::load(&ForServers { mode: ServerTlsMode::Require, ca_file: None, identity });
    let tls = tls.expect("good files");
    let logging_in = async {
        let Ok((mut stream, _)) = reach(&address, &tls).await else { return };
        let mut startup = BytesMut::new();
        put_startup("joe", "orders", &[], &mut startup);
        // In TLS 1.3 a refused certificate is noticed after the client's handshake is over.
        let _ = stream.write_all(&startup).await;
        let _ = stream.flush().await;
        let _ = stream.read(&mut [0; 64]).await;
    };
    tokio::join!(greeted(&listener, &acceptor), logging_in).0
}

#[tokio::test]
async fn who_the_client_is() {
    let (authority, others) = (Authority::new(), Authority::new());
    let facts = facts_of(&authority, None).await.and_then(|peer| peer.tls).expect("let in");
    assert_eq!(facts.client, None);
    // ECDSA with SHA-256 is what rcgen signs with.
    assert_eq!(facts.server_end_point.map(|hash| hash.len()), Some(32));

    let shown = facts_of(&authority, Some(authority.sign("joe", "joe"))).await.and_then(|peer| peer.tls);
    let shown = shown.and_then(|facts| facts.client).expect("a certificate");
    assert_eq!(shown.common_name.as_deref(), Some("joe"));
    assert_eq!(shown.distinguished_name, "CN=joe,O=Orders\\, Inc.");

    assert_eq!(facts_of(&authority, Some(others.sign("joe", "joe"))).await, None, "another's certificate");
}

#[tokio::test]
async fn both_sides_know_the_same_channel() {
    let authority = Authority::new();
    let ours = authority.for_clients("localhost");
    let certificate = files::certificates(&ours.cert_file).expect("written").remove(0);
    let (_, facts) = reached(ours, servers(ServerTlsMode::Require, None)).await.expect("reached");
    assert_eq!(facts.and_then(|facts| facts.server_end_point), super::certificate::end_point(&certificate));
}

/// A client that speaks TLS without asking first.
async fn direct(settings: ForClients, alpn: &[&str]) -> Option<Peer> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring's")
        .with_root_certificates(files::authorities(settings.client_ca_file.as_deref()?).expect("written"))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let (listener, address) = listen().await;
    let acceptor = acceptor(allow(&settings));
    let logging_in = async {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await.expect("connect");
        let name = ServerName::try_from("localhost").expect("a name");
        let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else { return };
        let mut startup = BytesMut::new();
        put_startup("joe", "orders", &[], &mut startup);
        let _ = stream.write_all(&startup).await;
        let _ = stream.read(&mut [0; 64]).await;
    };
    tokio::join!(greeted(&listener, &acceptor), logging_in).0
}

#[tokio::test]
async fn direct_tls_needs_alpn() {
    let authority = Authority::new();
    let let_in = async |alpn: &[&str]| {
        let peer = direct(authority.for_clients("localhost"), alpn).await;
        peer.is_some_and(|peer| peer.tls.is_some())
    };
    assert!(let_in(&["postgresql"]).await);
    assert!(!let_in(&[]).await);
    assert!(!let_in(&["http/1.1"]).await);
}

/// Whether the client is let in that sends `bytes` in clear, and what it hears otherwise.
async fn heard(tls: ClientTls, bytes: &[u8]) -> (Option<Peer>, String) {
    let (listener, address) = listen().await;
    let acceptor = acceptor(tls);
    let speaking = async {
        let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await.expect("connect");
        stream.write_all(bytes).await.expect("write");
        let mut heard = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut heard)).await.expect("closed");
        String::from_utf8_lossy(&heard).into_owned()
    };
    tokio::join!(greeted(&listener, &acceptor), speaking)
}

#[tokio::test]
async fn without_tls_where_it_is_required() {
    let authority = Authority::new();
    let ClientTls::Allow(tls) = allow(&authority.for_clients("localhost")) else { unreachable!("allowed") };
    let mut startup = BytesMut::new();
    put_startup("joe", "orders", &[], &mut startup);
    let (_, said) = heard(ClientTls::Require(tls.clone()), &startup).await;
    assert!(said.contains("C28000") && said.contains("no encryption"), "{said}");
    assert_eq!(heard(ClientTls::Allow(tls), &startup).await.0.map(|peer| peer.tls), Some(None));
}

#[tokio::test]
async fn what_is_stuffed_behind_the_request_is_not_the_clients() {
    let authority = Authority::new();
    let mut bytes = BytesMut::new();
    put_ssl_request(&mut bytes);
    put_startup("joe", "orders", &[], &mut bytes);
    let (_, said) = heard(allow(&authority.for_clients("localhost")), &bytes).await;
    assert!(said.contains("C08P01") && said.contains("unencrypted data"), "{said}");
}

#[tokio::test]
async fn a_stream_goes_to_another_runtime_and_keeps_what_it_owes() {
    let authority = Authority::new();
    let (listener, address) = listen().await;
    let tls = TlsForClients::load(&authority.for_clients("localhost")).expect("good files");
    let client = TlsForServers::load(&servers(ServerTlsMode::Require, None)).expect("no files");
    let serving = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.read_exact(&mut [0; 8]).await.expect("an SSLRequest");
        stream.write_all(b"S").await.expect("write");
        tls.accept(stream, super::Negotiation::SslRequest).await.expect("a handshake")
    };
    let ((mut ours, _), theirs) = tokio::join!(serving, reach(&address, &client));
    let (mut theirs, _) = theirs.expect("reached");
    theirs.write_all(b"before").await.expect("write");
    theirs.flush().await.expect("flush");
    ours.read_exact(&mut [0; 6]).await.expect("read");
    let detached = ours.detach().expect("detach");
    assert!(detached.is_silent());
    let echo = std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut stream = detached.attach()?;
            let mut bytes = vec![0; 5];
            stream.read_exact(&mut bytes).await?;
            // More than the sockets hold: the rest goes out while we read.
            stream.write_all(&vec![7; 8 << 20]).await?;
            stream.read(&mut bytes).await.map(|_| ())
        })
    });
    theirs.write_all(b"hello").await.expect("write");
    let mut heard = vec![0; 8 << 20];
    theirs.read_exact(&mut heard).await.expect("all of it");
    assert!(heard.iter().all(|byte| *byte == 7));
    drop(theirs);
    // A connection without a last word ends with an error.
    let _ = echo.expect("a thread").join().expect("no panic");
}

#[test]
fn files_are_read_when_they_are_loaded_and_not_later() {
    let authority = Authority::new();
    let settings = authority.for_clients("localhost");
    let tls = TlsForClients::load(&settings).expect("good files");
    let before = tls.end_point();
    authority.sign("server", "localhost");
    assert_eq!(tls.end_point(), before);
    let renewed = TlsForClients::load(&settings).expect("good files");
    assert_ne!(renewed.end_point(), before);
    std::fs::write(&settings.key_file, "no key").expect("write");
    assert!(TlsForClients::load(&settings).is_err());
}

#[tokio::test]
async fn all_who_reach_servers_change_together() {
    let authority = Authority::new();
    let (listener, address) = listen().await;
    let acceptor = acceptor(allow(&authority.for_clients("localhost")));
    let tls = TlsForServers::default();
    let ours = tls.clone();
    let encrypted = async |tls: &TlsForServers| {
        let greeting = async {
            loop {
                drop(greeted(&listener, &acceptor).await);
            }
        };
        tokio::select! {
            () = greeting => unreachable!("endless"),
            reached = reach(&address, tls) => reached.map(|(_, facts)| facts.is_some()).map_err(|_| ()),
        }
    };
    assert_eq!(encrypted(&ours).await, Ok(false));
    let next = servers(ServerTlsMode::VerifyFull, Some(authority.ca()));
    tls.become_as(&TlsForServers::load(&next).expect("good files"));
    assert_eq!(encrypted(&ours).await, Ok(true));
}

#[tokio::test]
async fn one_server_may_be_reached_in_another_way() {
    let (ours, others) = (Authority::new(), Authority::new());
    let (listener, address) = listen().await;
    let acceptor = acceptor(allow(&ours.for_clients("localhost")));
    let (usual, other) = (
        servers(ServerTlsMode::VerifyFull, Some(others.ca())),
        servers(ServerTlsMode::VerifyFull, Some(ours.ca())),
    );
    let elsewhere = Address { host: "elsewhere".into(), port: address.port };
    let reached = async |other: (&Address, &ForServers)| {
        let tls = TlsForServers::load_with(&usual, [other]).expect("good files");
        let greeting = async {
            loop {
                drop(greeted(&listener, &acceptor).await);
            }
        };
        tokio::select! {
            () = greeting => unreachable!("endless"),
            reached = reach(&address, &tls) => reached.map(|(_, facts)| facts.is_some()).map_err(|_| ()),
        }
    };
    assert_eq!(reached((&elsewhere, &other)).await, Err(()));
    assert_eq!(reached((&address, &other)).await, Ok(true));
    assert_eq!(
        reached((&address, &ForServers { mode: ServerTlsMode::Disable, ..other.clone() })).await,
        Ok(false)
    );
}
