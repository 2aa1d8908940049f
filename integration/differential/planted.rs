//! Whether a fault is seen at all: a relay in front of a server changes one thing in its answers, and the two traces
//! must part.

use std::io;

use bellwether::net::Target;
use bellwether::pg::protocol::frame::{HEADER_LEN, Header};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::client::{Between, Client, Delivery, Trace};
use super::judge::compare;
use super::known;
use super::script::{self, Script};
use super::world::{Mode, World};

/// What is done to the first message of a type, behind the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    Drop(u8),
    Double(u8),
    /// It comes behind the next one.
    Late(u8),
    /// Its last byte is another.
    Change(u8),
}

/// Every type of message that a script of a few lines calls forth.
const SCRIPT: &str = "\
== planted
query SET TimeZone = 'Asia/Tokyo'

parse - SELECT $1::int, 'text'
describe statement -
bind - - 7
execute - 1
execute -
close statement -
sync

query SELECT warn('what'); SELECT 1/0

query COPY items TO STDOUT
";

const FAULTS: &[Fault] = &[
    Fault::Drop(b'S'),
    Fault::Drop(b'1'),
    Fault::Drop(b't'),
    Fault::Drop(b'D'),
    Fault::Drop(b'N'),
    Fault::Drop(b'E'),
    Fault::Drop(b'd'),
    Fault::Drop(b'Z'),
    Fault::Double(b'2'),
    Fault::Double(b'D'),
    Fault::Double(b'Z'),
    Fault::Late(b'C'),
    Fault::Late(b'1'),
    Fault::Late(b'T'),
    Fault::Late(b'N'),
    Fault::Late(b's'),
    Fault::Late(b'd'),
    Fault::Change(b'S'),
    Fault::Change(b't'),
    Fault::Change(b'T'),
    Fault::Change(b'D'),
    Fault::Change(b'C'),
    Fault::Change(b'N'),
    Fault::Change(b'E'),
    Fault::Change(b'H'),
    Fault::Change(b'd'),
    Fault::Change(b'Z'),
];

/// A script with nobody beside it.
struct Alone;

impl Between for Alone {
    async fn batch(&mut self, _idle: bool) {}

    async fn other(&mut self, _sql: &str) {}
}

#[test]
fn every_planted_fault_is_seen() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let scripts = script::read(SCRIPT).expect("a script");
    let script: &'static Script = Box::leak(Box::new(scripts[0].clone()));
    runtime.block_on(async {
        let mut world = World::start(None).await;
        let [mut lane, _] = world.enter(Mode::Session).await;
        let [direct, endpoint] = lane.run(script, Delivery::Whole).await;
        assert_eq!(compare([direct.clone(), endpoint]), None);
        assert_eq!(compare([direct.clone(), with(Fault::Nothing, lane.server(), script).await]), None);
        // Some make an answer fail to come, which takes a while to see.
        let run = |fault: &Fault| (*fault, tokio::spawn(with(*fault, lane.server(), script)));
        let runs: Vec<_> = FAULTS.iter().map(run).collect();
        for (fault, run) in runs {
            let found = compare([direct.clone(), run.await.expect("a run")]);
            let judged = known::judge(&script.name, Mode::Session, found.as_ref());
            assert!(judged.is_err(), "{fault:?} was not seen");
        }
    });
}

/// What `script` hears of `server` with `fault` in it.
async fn with(fault: Fault, server: Target, script: &'static Script) -> Trace {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let (host, server_port) = (server.address.host.clone(), server.address.port);
    let relay = tokio::spawn(async move {
        let (client, _) = listener.accept().await?;
        relay(client, TcpStream::connect((host, server_port)).await?, fault).await
    });
    let mut target = server;
    target.address.port = port;
    let trace = Client::connect(&target).await.run(script, Delivery::Whole, &mut Alone).await;
    relay.abort();
    trace
}

async fn relay(client: TcpStream, server: TcpStream, fault: Fault) -> io::Result<()> {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = answers(from_server, to_client, fault);
    tokio::select! {
        done = up => done.map(drop),
        done = down => done,
    }
}

async fn answers(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, fault: Fault) -> io::Result<()> {
    let mut received = BytesMut::new();
    let (mut greeted, mut planted, mut late) = (false, false, None);
    loop {
        let header = Header::peek(&received).map_err(io::Error::other)?;
        let Some(header) = header.filter(|header| received.remaining() >= header.total) else {
            if server.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let message = received.split_to(header.total);
        if greeted && !planted && fault.is_for(header.tag) {
            planted = true;
            match fault {
                Fault::Late(_) => late = Some(message),
                _ => client.write_all(&fault.plant(&message)).await?,
            }
            continue;
        }
        greeted |= header.tag == b'Z';
        client.write_all(&message).await?;
        if let Some(late) = late.take() {
            client.write_all(&late).await?;
        }
    }
}

impl Fault {
    fn is_for(self, tag: u8) -> bool {
        match self {
            Fault::Nothing => false,
            Fault::Drop(of) | Fault::Double(of) | Fault::Late(of) | Fault::Change(of) => of == tag,
        }
    }

    fn plant(self, message: &[u8]) -> Vec<u8> {
        let mut planted = message.to_vec();
        match self {
            Fault::Drop(_) => planted.clear(),
            Fault::Double(_) => planted.extend_from_slice(message),
            Fault::Change(_) => planted[HEADER_LEN..].last_mut().into_iter().for_each(|byte| *byte ^= 1),
            Fault::Nothing | Fault::Late(_) => {}
        }
        planted
    }
}
