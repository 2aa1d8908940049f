//! What a client asks of the protocol in its first packet, and gets: as at a server of PostgreSQL 18.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Cluster, Durability, Options, second_major};

const LIMIT: Duration = Duration::from_secs(120);

/// A connection on which messages are whole.
struct Raw(TcpStream);

impl Raw {
    fn send(port: u16, packet: &[u8]) -> Raw {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        socket.set_read_timeout(Some(LIMIT)).expect("time limit");
        socket.write_all(packet).expect("write");
        Raw(socket)
    }

    /// The next message; `None` at the end.
    fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return None;
            }
            Err(error) => panic!("no message: {error}"),
        }
        let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
        let mut payload = vec![0; length - 4];
        self.0.read_exact(&mut payload).expect("a whole message");
        Some((head[0], payload))
    }

    fn until(&mut self, tag: u8) -> Vec<u8> {
        loop {
            let (got, payload) = self.next().unwrap_or_else(|| panic!("ended before {}", char::from(tag)));
            if got == tag {
                return payload;
            }
        }
    }
}

fn packet(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&length.to_be_bytes()[..], body].concat()
}

fn startup(major: u16, minor: u16, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = [major.to_be_bytes(), minor.to_be_bytes()].concat();
    for (key, value) in parameters {
        body.extend([key.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    packet(&body)
}

/// What is answered up to the question for a password: an error by its code and message.
fn answer(port: u16, packet: &[u8]) -> Vec<(char, Vec<u8>)> {
    let mut raw = Raw::send(port, packet);
    let mut said = Vec::new();
    while let Some((tag, payload)) = raw.next() {
        let told = match tag {
            b'R' => Vec::new(),
            b'E' => {
                let fields = payload.split(|byte| *byte == 0);
                fields.filter(|field| matches!(field.first(), Some(b'C' | b'M'))).collect::<Vec<_>>().concat()
            }
            _ => payload,
        };
        said.push((char::from(tag), told));
        if matches!(tag, b'R' | b'E') {
            break;
        }
    }
    said
}

#[test]
fn versions_options_and_keys() {
    let binaries = second_major();
    let options = Options {
        nodes: 1,
        durability: Durability::Async,
        pg_bin: Some(binaries.bin()),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options);
    let server = cluster.primary();
    let app = ("user", "app");
    let mut packets = vec![startup(4, 1, &[app]), startup(3, 2, &[("database", "app")])];
    packets.push(startup(3, 2, &[app, ("replication", "maybe")]));
    for minor in [0, 1, 2, 3, 9999] {
        packets.push(startup(3, minor, &[app]));
        packets.push(startup(3, minor, &[("_pq_.one", "1"), app]));
        packets.push(startup(3, minor, &[("_pq_.one", "1"), app, ("_pq_.two", "on"), ("_pq_", "no")]));
    }
    for packet in packets {
        assert_eq!(answer(cluster.port, &packet), answer(server.port, &packet), "{packet:?}");
    }

    // No password for the rest of it.
    cluster.reconfigure(|config| {
        let rules = "[{type: host, database: app, user: app, address: 127.0.0.1, method: trust},
             {type: host, database: all, user: all, address: all, method: scram-sha-256},
             {type: host, database: replication, user: all, address: all, method: scram-sha-256}]";
        let auth = config["auth"].as_mapping_mut().expect("auth");
        auth.remove("method");
        auth.insert("rules".into(), serde_yaml::from_str(rules).expect("YAML"));
    });
    for (minor, length) in [(0, 4), (1, 4), (2, 32), (3, 32)] {
        a_cancel_with_its_whole_key(&cluster, minor, length);
    }
}

fn a_cancel_with_its_whole_key(cluster: &Cluster, minor: u16, length: usize) {
    let mut client = Raw::send(cluster.port, &startup(3, minor, &[("user", "app")]));
    let key = client.until(b'K');
    assert_eq!(key.len(), 4 + length, "3.{minor}");
    client.until(b'Z');
    client.0.write_all(b"Q\0\0\0\x1aSELECT pg_sleep(600);\0").expect("write");
    let cancel = |key: &[u8]| {
        let request = packet(&[b"\x04\xd2\x16\x2e", key].concat());
        assert!(Raw::send(cluster.port, &request).next().is_none(), "a cancel has no answer");
    };
    let mut wrong = key.clone();
    wrong[3 + length] ^= 1;
    cancel(&wrong);
    if length > 4 {
        cancel(&key[..8]);
    }
    cancel(&[&key[..], b"\0"].concat());
    client.0.set_read_timeout(Some(Duration::from_millis(300))).expect("time limit");
    let mut byte = [0];
    let heard = client.0.peek(&mut byte).map_err(|error| error.kind());
    assert_eq!(heard, Err(ErrorKind::WouldBlock), "3.{minor}: a wrong key has cancelled");
    // One that comes before the statement runs cancels nothing.
    let mut heard = Err(ErrorKind::WouldBlock);
    for _ in 0..100 {
        cancel(&key);
        heard = client.0.peek(&mut byte).map_err(|error| error.kind());
        if heard.is_ok() {
            break;
        }
    }
    assert_eq!(heard, Ok(1), "3.{minor}: the right key has not cancelled");
    client.0.set_read_timeout(Some(LIMIT)).expect("time limit");
    let error = client.until(b'E');
    assert!(error.windows(6).any(|field| field == b"C57014"), "{error:?}");
}
