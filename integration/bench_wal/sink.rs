//! A follower that reads WAL, looks at the messages' headers, throws the rest away, and says how far it is.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use bellwether::net::{Backend, Credentials, Target, TlsForServers, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::scene::Scene;

const BUFFER: usize = 256 << 10;
/// Of WAL, from one status update to the next.
const STATUS_EVERY: u64 = 4 << 20;
/// Tag, length, kind, start, end, time.
const HEADER: usize = 1 + 4 + 1 + 8 + 8 + 8;

pub(crate) fn target(scene: &Scene, port: u16) -> Target {
    Target {
        address: format!("127.0.0.1:{port}").parse().expect("an address"),
        user: "bellwether".into(),
        database: "replication".into(),
        credentials: Credentials::Password(scene.cluster.superuser_password().into()),
        tls: TlsForServers::default(),
        parameters: vec![("replication".to_owned(), "true".to_owned())],
    }
}

/// Logs in, waits for the others at the first barrier, takes the WAL from `start` to `end`, and stays until all have been
/// at the second one twice. Returns its server process and when it had everything.
pub(crate) fn drain(target: &Target, (start, end): (u64, u64), [ready, done]: [&Barrier; 2]) -> Instant {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let Backend { mut stream, .. } = dial(target, Duration::from_secs(10)).await.expect("a login");
        ready.wait();
        let command = format!("START_REPLICATION PHYSICAL {:X}/{:X} TIMELINE 1\0", start >> 32, start as u32);
        let mut query = vec![b'Q'];
        query.extend_from_slice(&(command.len() as u32 + 4).to_be_bytes());
        query.extend_from_slice(command.as_bytes());
        stream.write_all(&query).await.expect("a listening server");
        let mut reader = Reader { next: start, header: Vec::with_capacity(HEADER), skip: 0 };
        let mut buffer = vec![0; BUFFER];
        let mut said = start;
        while reader.next < end {
            let read = stream.read(&mut buffer).await.expect("a server that speaks");
            assert_ne!(read, 0, "the stream has ended at {:X}", reader.next);
            let asked = reader.take(&buffer[..read]);
            if asked || reader.next >= said + STATUS_EVERY {
                said = reader.next;
                stream.write_all(&status(said)).await.expect("a listening server");
            }
        }
        let at = Instant::now();
        // All have everything; and what their servers have used has been looked at.
        done.wait();
        done.wait();
        at
    })
}

struct Reader {
    next: u64,
    /// Of a message, as far as it has come.
    header: Vec<u8>,
    /// What is left of a message behind its header.
    skip: usize,
}

impl Reader {
    /// Whether an answer is asked for.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut asked = false;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = self.wanted();
            let taken = (wanted - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.header.len() == self.wanted() {
                asked |= self.message();
                self.header.clear();
            }
        }
        asked
    }

    /// So long is what must be seen of the message at hand.
    fn wanted(&self) -> usize {
        match self.header.get(5) {
            _ if self.header.len() < 5 => 5,
            None if self.header[0] == b'd' => 6,
            Some(b'w') => HEADER,
            _ => 1 + self.length(),
        }
    }

    fn length(&self) -> usize {
        u32::from_be_bytes([self.header[1], self.header[2], self.header[3], self.header[4]]) as usize
    }

    fn message(&mut self) -> bool {
        let word = |at: usize| u64::from_be_bytes(self.header[at..at + 8].try_into().expect("eight bytes"));
        match (self.header[0], self.header.get(5)) {
            (b'd', Some(b'w')) => {
                assert_eq!(word(6), self.next, "WAL goes on where it was");
                self.skip = 1 + self.length() - HEADER;
                self.next += self.skip as u64;
                false
            }
            (b'd', Some(b'k')) => self.header.last() == Some(&1),
            (b'E', _) => panic!("the server says: {}", String::from_utf8_lossy(&self.header)),
            _ => false,
        }
    }
}

fn status(position: u64) -> Vec<u8> {
    let mut message = vec![b'd', 0, 0, 0, 38, b'r'];
    for position in [position, position, 0, 0] {
        message.extend_from_slice(&position.to_be_bytes());
    }
    message.push(0);
    message
}
