//! What a connection's TLS facts do for a login: channel binding, certificates.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Authenticator, CertificateName, MapLine, Method, NameMap, Rules, Users};
use crate::net::accept::Refusal;
use crate::net::log_in::LogIn;
use crate::net::wire::Wire;
use crate::net::{
    Backend, ClientCertificate, Credentials, DialError, Peer, PeerAddress, Stream, Target, TlsFacts, dial,
};
use crate::pg::protocol::backend::{self, TransactionStatus};
use crate::pg::protocol::startup::{self, FirstPacket};
use crate::topology::Address;

/// Far beyond any of these dialogues.
const LIMIT: Duration = Duration::from_secs(60);

/// `joe` logs in by `method` over a connection of which each side has seen so much. What he is let in with, or
/// why not.
async fn log_in(
    method: Method,
    theirs: Option<TlsFacts>,
    ours: Option<TlsFacts>,
) -> Result<Credentials, String> {
    let users = Users::listed_only([("joe", "pencil")], [3; 32]);
    let authenticator = Authenticator::new(Rules::all_by(&method), Arc::new(users));
    let authenticator = authenticator.with_penalty(Duration::ZERO);
    let (here, there) = UnixStream::pair().expect("a pair of sockets");
    let accepting = async {
        let peer = Peer { address: PeerAddress::Tcp(([10, 0, 0, 1], 1).into()), tls: ours };
        let mut wire = Wire::new(Stream::Unix(here));
        wire.fill().await.expect("a startup packet");
        let Ok(FirstPacket::Startup(startup)) = startup::parse(&wire.received.split()) else {
            panic!("no startup packet")
        };
        let proven = authenticator.authenticate(&mut wire, &peer, &startup).await;
        match &proven {
            Ok(_) => {
                backend::authentication_ok(&mut wire.out);
                backend::backend_key_data(7, b"abcd", &mut wire.out);
                backend::ready_for_query(TransactionStatus::Idle, &mut wire.out);
            }
            Err(Refusal::Because(why)) => why.encode(&mut wire.out),
            Err(Refusal::Gone | Refusal::Handshake(_)) => panic!("the client has gone"),
        }
        wire.stream.write_all(&wire.out).await.expect("the other end is there");
        proven.ok().map(|admitted| admitted.credentials)
    };
    let target = Target {
        address: Address { host: "/nowhere".into(), port: 1 },
        user: "joe".into(),
        database: "orders".into(),
        credentials: Credentials::Password("pencil".into()),
        tls: crate::net::TlsForServers::default(),
        parameters: Vec::new(),
    };
    let dialling =
        dial::within(LIMIT, &target.address, LogIn::new(Stream::Unix(there), theirs, &target).run());
    let (proven, heard): (Option<Credentials>, Result<Backend, DialError>) =
        tokio::join!(accepting, dialling);
    match heard {
        Ok(_) => Ok(proven.expect("who is told so is let in")),
        Err(DialError::Rejected { error, .. }) => Err(error.to_string()),
        Err(other) => panic!("{other:?}"),
    }
}

fn bound_to(server_end_point: Option<&[u8]>) -> Option<TlsFacts> {
    Some(TlsFacts { server_end_point: server_end_point.map(<[u8]>::to_vec), client: None })
}

#[tokio::test]
async fn a_login_is_bound_to_the_certificate_that_the_client_has_seen() {
    let check = async |theirs: Option<TlsFacts>, ours: Option<TlsFacts>, expected: Result<(), &str>| {
        let found = log_in(Method::ScramSha256, theirs.clone(), ours.clone()).await;
        let found = found.as_ref().map(|_| ()).map_err(String::as_str);
        assert_eq!(found, expected, "{theirs:?} {ours:?}");
    };
    check(bound_to(Some(b"hash")), bound_to(Some(b"hash")), Ok(())).await;
    let failed = "FATAL: SCRAM channel binding check failed (28000)";
    check(bound_to(Some(b"another's")), bound_to(Some(b"hash")), Err(failed)).await;
    // Whoever cannot bind need not.
    check(bound_to(None), bound_to(Some(b"hash")), Ok(())).await;
    check(bound_to(None), bound_to(None), Ok(())).await;
    check(bound_to(Some(b"hash")), bound_to(None), Ok(())).await;
}

fn shown(common_name: Option<&str>) -> Option<TlsFacts> {
    let client = ClientCertificate {
        common_name: common_name.map(str::to_owned),
        distinguished_name: "CN=joe,OU=sales,O=Example".to_owned(),
    };
    Some(TlsFacts { server_end_point: None, client: Some(client) })
}

#[tokio::test]
async fn a_certificate_names_its_user() {
    let check =
        async |name, map: Option<(&str, &str)>, ours: Option<TlsFacts>, expected: Result<(), &str>| {
            let map = map.map(|(system, user)| MapLine::new(system, user).expect("a line"));
            let map = map.map(|line| NameMap::new(vec![line]));
            let found = log_in(Method::Cert { name, map }, None, ours.clone()).await;
            let found = found.as_ref().map(|_| ()).map_err(String::as_str);
            assert_eq!(found, expected, "{ours:?}");
        };
    let (common, distinguished) = (CertificateName::Common, CertificateName::Distinguished);
    let none = Err("FATAL: connection requires a valid client certificate (28000)");
    let another = Err("FATAL: certificate authentication failed for user \"joe\" (28000)");
    check(common, None, shown(Some("joe")), Ok(())).await;
    check(common, None, shown(Some("Joe")), another).await;
    check(common, None, shown(Some("")), another).await;
    check(common, None, shown(None), another).await;
    check(common, None, bound_to(None), none).await;
    check(common, None, None, none).await;
    check(common, Some((r"/^(.*)@example\.com$", r"\1")), shown(Some("joe@example.com")), Ok(())).await;
    // With a map only what it says counts.
    check(common, Some((r"/^(.*)@example\.com$", r"\1")), shown(Some("joe")), another).await;
    check(distinguished, Some(("/,OU=sales,", "joe")), shown(None), Ok(())).await;
    check(distinguished, None, shown(Some("joe")), another).await;
}

/// A certificate tells nothing that a server would take; what is listed does.
#[tokio::test]
async fn who_shows_a_certificate_logs_in_with_what_is_listed() {
    let by_common_name = Method::Cert { name: CertificateName::Common, map: None };
    let credentials = log_in(by_common_name, None, shown(Some("joe"))).await;
    assert_eq!(credentials, Ok(Credentials::Password("pencil".into())));
}
