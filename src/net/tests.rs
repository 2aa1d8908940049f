//! Both sides of the room against each other: `hello` at one end of a socket, `log_in` or raw bytes at the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::authenticate::{Method, Rules};
use super::{
    Acceptor, Authenticator, Backend, CancelKey, Client, ConnectionKind, Credentials, DialError, Hello,
    ListenAddress, Listener, Reception, SocketMode, Stream, Target, TlsForServers, Users, cancel, hello,
    log_in,
};
use crate::pg::auth::md5::Md5Secret;
use crate::pg::auth::scram::{self, Verifier};
use crate::pg::protocol::backend::{self, TransactionStatus};
use crate::pg::protocol::frontend;
use crate::pg::protocol::startup::{Minor, put_startup};
use crate::pg::{ErrorFields, SqlState};
use crate::topology::Address;

/// Far beyond any of these dialogues; a test that needs it has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// `plain` is listed with its password, `scram` with a verifier, `md5` with an md5 secret: all of them `pencil`.
fn acceptor(method: &Method) -> Acceptor {
    Acceptor::uncounted(reception(method))
}

fn reception(method: &Method) -> Reception {
    let scram = Verifier::from_password("pencil", [7; 16]).to_string();
    // The md5 of `pencilmd5`.
    let md5 = "md512acbd04a4b55346555b3fa88c638e11";
    let users = Users::listed_only([("plain", "pencil"), ("scram", scram.as_str()), ("md5", md5)], [3; 32]);
    let authenticator =
        Authenticator::new(Rules::all_by(method), Arc::new(users)).with_penalty(Duration::ZERO);
    Reception::by(authenticator.with_replication_users(["scram".to_owned()]))
}

fn target(user: &str, credentials: Credentials) -> Target {
    Target {
        address: Address { host: "/nowhere".into(), port: 1 },
        user: user.into(),
        database: "orders".into(),
        credentials,
        tls: TlsForServers::default(),
        parameters: vec![("application_name".into(), "test".into())],
    }
}

fn password(password: &str) -> Credentials {
    Credentials::Password(password.into())
}

/// Who came in at one end, and what the other end heard: the plane's part of the greeting is made here.
async fn meet(
    acceptor: &Acceptor,
    target: &Target,
) -> (Option<(ConnectionKind, Box<Client>)>, Result<Backend, DialError>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let accepting = async {
        let Hello::Client(kind, mut client) = hello(Stream::Unix(ours), None, acceptor).await else {
            return None;
        };
        let mut out = std::mem::take(&mut client.out);
        backend::parameter_status("server_version", "15.0", &mut out);
        backend::backend_key_data(7, b"abcd", &mut out);
        backend::ready_for_query(TransactionStatus::Idle, &mut out);
        client.stream.write_all(&out).await.expect("the other end is there");
        Some((kind, client))
    };
    tokio::join!(accepting, log_in(Stream::Unix(theirs), target, LIMIT))
}

async fn admitted(acceptor: &Acceptor, target: &Target) -> (ConnectionKind, Box<Client>) {
    let (client, backend) = meet(acceptor, target).await;
    let backend = backend.expect("logged in");
    assert_eq!(backend.parameters, [("server_version".to_owned(), "15.0".to_owned())]);
    assert_eq!((backend.pid, backend.cancel_key.as_slice()), (7, b"abcd".as_slice()));
    assert!(backend.received.is_empty());
    client.expect("hello let the client in")
}

async fn refused(acceptor: &Acceptor, target: &Target) -> ErrorFields {
    let (client, backend) = meet(acceptor, target).await;
    assert!(client.is_none());
    match backend {
        Err(DialError::Rejected { error, .. }) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn scram_with_the_right_password() {
    let acceptor = acceptor(&Method::ScramSha256);
    let (kind, client) = admitted(&acceptor, &target("plain", password("pencil"))).await;
    assert_eq!(kind, ConnectionKind::Sql);
    assert_eq!((&*client.user, &*client.database), ("plain", "orders"));
    assert_eq!(client.parameters, [("application_name".to_owned(), "test".to_owned())]);
    assert_eq!(client.credentials, password("pencil"));
}

#[tokio::test]
async fn a_proof_reveals_keys_that_log_in_in_turn() {
    let acceptor = acceptor(&Method::ScramSha256);
    let (_, client) = admitted(&acceptor, &target("scram", password("pencil"))).await;
    assert!(matches!(client.credentials, Credentials::ScramKeys(_)));
    let (_, again) = admitted(&acceptor, &target("scram", client.credentials.clone())).await;
    assert_eq!(again.credentials, client.credentials);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_hear_the_same() {
    let acceptor = acceptor(&Method::ScramSha256);
    let check = async |user: &str, secret: &str| {
        let said = refused(&acceptor, &target(user, password(secret))).await;
        let message = format!("password authentication failed for user \"{user}\"");
        assert_eq!(said, ErrorFields::fatal(SqlState::INVALID_PASSWORD, message));
    };
    check("plain", "Pencil").await;
    check("scram", "").await;
    check("nobody", "pencil").await;
    // Has no SCRAM password; the client's is right.
    check("md5", "pencil").await;
}

#[tokio::test]
async fn md5_takes_whatever_form_is_stored() {
    let acceptor = acceptor(&Method::Md5);
    let stored = Md5Secret::from_password("plain", "pencil");
    admitted(&acceptor, &target("plain", password("pencil"))).await;
    admitted(&acceptor, &target("plain", Credentials::Md5(stored))).await;
    admitted(&acceptor, &target("scram", password("pencil"))).await;
    for (user, secret) in [("plain", "Pencil"), ("md5", "Pencil"), ("nobody", "pencil")] {
        let said = refused(&acceptor, &target(user, password(secret))).await;
        assert_eq!(said.code, SqlState::INVALID_PASSWORD, "{user}");
    }
}

#[tokio::test]
async fn trust_asks_for_nothing() {
    let acceptor = acceptor(&Method::Trust);
    let (_, client) = admitted(&acceptor, &target("nobody", Credentials::Trust)).await;
    assert_eq!(client.credentials, Credentials::Trust);
    let (_, client) = admitted(&acceptor, &target("plain", Credentials::Trust)).await;
    assert_eq!(client.credentials, password("pencil"));
}

#[tokio::test]
async fn replication_is_a_right_of_its_own() {
    let acceptor = acceptor(&Method::ScramSha256);
    let replicating = |user: &str, mode: &str| {
        let mut target = target(user, password("pencil"));
        target.parameters.push(("replication".into(), mode.into()));
        target
    };
    let (kind, _) = admitted(&acceptor, &replicating("scram", "true")).await;
    assert_eq!(kind, ConnectionKind::PhysicalReplication);
    let (kind, _) = admitted(&acceptor, &replicating("scram", "database")).await;
    assert_eq!(kind, ConnectionKind::LogicalReplication);
    let (kind, _) = admitted(&acceptor, &replicating("plain", "off")).await;
    assert_eq!(kind, ConnectionKind::Sql);
    let said = refused(&acceptor, &replicating("plain", "true")).await;
    assert_eq!(said.code, SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    let said = refused(&acceptor, &replicating("scram", "perhaps")).await;
    assert_eq!(said.code, SqlState::INVALID_PARAMETER_VALUE);
}

#[tokio::test]
async fn an_expected_password_that_we_lack_is_our_own_failure() {
    let (client, backend) = meet(&acceptor(&Method::ScramSha256), &target("plain", Credentials::Trust)).await;
    assert!(client.is_none());
    assert!(matches!(backend, Err(DialError::Protocol { .. })), "{backend:?}");
}

/// What `hello` makes of raw bytes, and all that it answers to them.
async fn say(bytes: &[u8]) -> (Hello, Vec<u8>) {
    let acceptor = acceptor(&Method::ScramSha256);
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let speaking = async {
        theirs.write_all(bytes).await.expect("the other end is there");
        theirs.shutdown().await.expect("half-close");
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.expect("no reset");
        answer
    };
    let listening = async {
        match hello(Stream::Unix(ours), None, &acceptor).await {
            // Hang up, so that the other side sees the end.
            Hello::Cancel(key, _stream) => {
                Hello::Cancel(key, Stream::Unix(UnixStream::pair().expect("a pair").0))
            }
            other => other,
        }
    };
    tokio::join!(listening, speaking)
}

/// The SQLSTATE of the ErrorResponse that `answer` must be.
fn sqlstate(answer: &[u8]) -> Option<String> {
    let payload = answer.strip_prefix(b"E")?.get(4..)?;
    Some(backend::decode_error(payload).code.to_string())
}

#[tokio::test]
async fn garbage_gets_an_error_and_silence_gets_none() {
    let check = async |bytes: &[u8], expected: Option<&str>| {
        let (hello, answer) = say(bytes).await;
        assert!(matches!(hello, Hello::Closed), "{bytes:?}");
        assert_eq!(sqlstate(&answer).as_deref(), expected, "{bytes:?}");
    };
    check(b"", None).await;
    check(b"\0\0\0", None).await;
    check(b"GET / HTTP/1.1\r\n\r\n", Some("08P01")).await;
    check(b"\x7f\xff\xff\xff\0\x03\0\0", Some("08P01")).await;
    check(b"\0\0\0\x07\0\x03\0\0", Some("08P01")).await;
    check(b"\0\0\0\x08\0\x02\0\0", Some("0A000")).await;
    check(b"\0\0\0\x09\0\x03\0\0\0", Some("28000")).await;
    check(b"\0\0\0\x0a\0\x03\0\0xy", Some("08P01")).await;
    // Something put behind an SSLRequest, before the answer to it.
    check(b"\0\0\0\x08\x04\xd2\x16\x2fQ", Some("08P01")).await;
    // Much more than will ever be read.
    check(&[b'x'; 100_000], Some("08P01")).await;
}

#[tokio::test]
async fn a_cancel_request_is_handed_over() {
    let (hello, answer) = say(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd").await;
    let expected = CancelKey { pid: 7, secret: b"abcd".to_vec() };
    assert!(matches!(hello, Hello::Cancel(key, _) if key == expected));
    assert!(answer.is_empty());
}

#[tokio::test]
async fn a_cancel_waits_until_it_was_carried_out() {
    let listener = Listener::bind(&ListenAddress::Tcp(([127, 0, 0, 1], 0).into()), SocketMode::default())
        .expect("a free port");
    let ListenAddress::Tcp(at) = *listener.address() else { panic!("not TCP") };
    let address = Address { host: at.ip().to_string(), port: at.port() };
    let done = std::cell::Cell::new(false);
    let serving = async {
        let (stream, _) = listener.accept().await;
        let Hello::Cancel(key, _stream) = hello(stream, None, &acceptor(&Method::ScramSha256)).await else {
            panic!("no cancel request")
        };
        assert_eq!(key, CancelKey { pid: 7, secret: vec![1; 32] });
        tokio::task::yield_now().await;
        done.set(true);
    };
    let asking = async {
        let key = CancelKey { pid: 7, secret: vec![1; 32] };
        cancel(&address, &TlsForServers::default(), &key, LIMIT)
            .await
            .expect("the connection is closed in the end");
        assert!(done.get());
    };
    tokio::join!(asking, serving);
}

#[tokio::test]
async fn one_login_too_many_is_refused() {
    let said =
        refused(&acceptor(&Method::Trust).with_max_logins(0), &target("joe", Credentials::Trust)).await;
    assert_eq!(said.code, SqlState::TOO_MANY_CONNECTIONS);
}

#[tokio::test]
async fn encryption_is_declined_once_in_each_kind() {
    let acceptor = acceptor(&Method::Trust);
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let speaking = async {
        let mut answer = [0; 1];
        for request in [b"\0\0\0\x08\x04\xd2\x16\x30", b"\0\0\0\x08\x04\xd2\x16\x2f"] {
            theirs.write_all(request).await.expect("write");
            theirs.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(&answer, b"N");
        }
        let mut out = BytesMut::new();
        put_startup("joe", "db", &[], &mut out);
        theirs.write_all(&out).await.expect("write");
    };
    let (hello, ()) = tokio::join!(hello(Stream::Unix(ours), None, &acceptor), speaking);
    let Hello::Client(ConnectionKind::Sql, client) = hello else { panic!("not let in: {hello:?}") };
    assert_eq!(&client.out[..], b"R\0\0\0\x08\0\0\0\0");
}

#[tokio::test]
async fn a_newer_protocol_is_negotiated_down() {
    let acceptor = acceptor(&Method::Trust);
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(b"\0\0\0\x12\0\x03\0\x03user\0joe\0\0").await.expect("write");
    let hello = hello(Stream::Unix(ours), None, &acceptor).await;
    let Hello::Client(ConnectionKind::Sql, client) = hello else { panic!("not let in: {hello:?}") };
    assert_eq!(&client.out[..], b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0R\0\0\0\x08\0\0\0\0");
    assert_eq!(client.minor, Minor(2));
}

#[tokio::test]
async fn who_stops_in_the_middle_is_cut() {
    let check = async |bytes: &[u8], expected: Option<&str>| {
        // What was sent is read before the limit is looked at, however late that is.
        let hasty = reception(&Method::ScramSha256).with_login_limit(Duration::from_millis(1));
        let acceptor = Acceptor::uncounted(hasty);
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.write_all(bytes).await.expect("write");
        let listening = async {
            let mut answer = Vec::new();
            theirs.read_to_end(&mut answer).await.expect("no reset");
            drop(theirs);
            answer
        };
        let (hello, answer) = tokio::join!(hello(Stream::Unix(ours), None, &acceptor), listening);
        assert!(matches!(hello, Hello::Closed), "{bytes:?}");
        // Behind the question for a proof, where one was asked.
        let error = answer.iter().position(|b| *b == b'E').map_or(&[][..], |at| &answer[at..]);
        assert_eq!(sqlstate(error).as_deref(), expected, "{bytes:?}");
    };
    check(b"", None).await;
    check(b"\0\0\0\x12\0\x03\0\0us", Some("08P01")).await;
    check(b"\0\0\0\x12\0\x03\0\0user\0joe\0\0", Some("57014")).await;
}

#[tokio::test]
async fn a_refused_client_hears_why() {
    let acceptor = acceptor(&Method::Trust);
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let refusing = async {
        let Hello::Client(_, client) = hello(Stream::Unix(ours), None, &acceptor).await else {
            panic!("not let in")
        };
        client.refuse(ErrorFields::fatal(SqlState::INVALID_CATALOG_NAME, "no such database")).await;
    };
    let joe = target("joe", Credentials::Trust);
    let ((), heard) = tokio::join!(refusing, log_in(Stream::Unix(theirs), &joe, LIMIT));
    let Err(DialError::Rejected { error, .. }) = heard else { panic!("{heard:?}") };
    assert_eq!((error.code, error.message.as_str()), (SqlState::INVALID_CATALOG_NAME, "no such database"));
}

#[tokio::test]
async fn nobody_there_is_told_from_silence() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = Address { host: directory.path().display().to_string(), port: 1 };
    let mut joe = target("joe", Credentials::Trust);
    joe.address = missing.clone();
    assert!(
        matches!(super::dial(&joe, LIMIT).await, Err(DialError::Refused { address }) if address == missing)
    );

    // Bound and not listening: the kernel refuses.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let port = socket.local_addr().expect("bound").port();
    joe.address = Address { host: "127.0.0.1".into(), port };
    assert!(matches!(super::dial(&joe, LIMIT).await, Err(DialError::Refused { .. })));
    assert!(matches!(super::sql::connect(&joe, LIMIT).await, Err(DialError::Refused { .. })));

    // Somebody accepts and says nothing.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    joe.address.port = listener.local_addr().expect("bound").port();
    let brief = Duration::from_millis(10);
    assert!(matches!(super::dial(&joe, brief).await, Err(DialError::Timeout { .. })));
}

#[tokio::test]
async fn a_server_that_skips_its_half_of_scram_is_none() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut out = BytesMut::new();
    backend::authentication_sasl(&[scram::SCRAM_SHA_256], &mut out);
    backend::authentication_ok(&mut out);
    backend::ready_for_query(TransactionStatus::Idle, &mut out);
    theirs.write_all(&out).await.expect("write");
    let heard = log_in(Stream::Unix(ours), &target("joe", password("pw")), LIMIT).await;
    assert!(matches!(heard, Err(DialError::Protocol { .. })), "{heard:?}");
}

/// Keys of a password that was changed on the server: what a wrong password gets, without a wrong proof on the wire.
#[tokio::test]
async fn keys_of_an_old_password_are_refused() {
    let (_, client) = admitted(&acceptor(&Method::ScramSha256), &target("scram", password("pencil"))).await;
    let changed = Verifier::from_password("eraser", [9; 16]).to_string();
    let users = Users::listed_only([("scram", changed.as_str())], [3; 32]);
    let changed = Authenticator::new(Rules::all_by(&Method::ScramSha256), Arc::new(users));
    let changed = Acceptor::uncounted(Reception::by(changed));
    let said = refused(&changed, &target("scram", client.credentials)).await;
    assert_eq!(said.code, SqlState::INVALID_PASSWORD);
}

/// An address whose failed logins all wait for their answer is not even asked for the next.
#[tokio::test]
async fn guesses_of_one_address_are_limited() {
    let users = Users::listed_only([("plain", "pencil")], [3; 32]);
    let authenticator = Authenticator::new(Rules::all_by(&Method::Md5), Arc::new(users));
    let authenticator = authenticator.with_penalty(Duration::from_secs(3600));
    let patient = Reception::by(authenticator).with_login_limit(Duration::from_secs(7200));
    let acceptor = Arc::new(Acceptor::uncounted(patient));
    let (mut greeting, mut guessing) = (tokio::task::JoinSet::new(), Vec::new());
    let mut guess = BytesMut::new();
    put_startup("plain", "db", &[], &mut guess);
    frontend::password("md5 of something else", &mut guess);
    // What the client hears first: the question for its password, or that it is not asked.
    let heard = loop {
        assert!(guessing.len() <= 40, "nobody is refused");
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let acceptor = acceptor.clone();
        greeting.spawn(async move { drop(hello(Stream::Unix(ours), None, &acceptor).await) });
        theirs.write_all(&guess).await.expect("write");
        let mut heard = vec![0; 1000];
        let length = theirs.read(&mut heard).await.expect("an answer");
        if heard[0] == b'E' {
            break heard[..length].to_vec();
        }
        guessing.push(theirs);
    };
    assert_eq!(sqlstate(&heard).as_deref(), Some("53300"));
    assert!(guessing.len() >= 32);
}
