//! A frontend that says what a script says and writes down what it hears.

use std::io;
use std::time::Duration;

use bellwether::net::{Backend, Stream, Target, dial};
use bellwether::pg::protocol::frame::{HEADER_LEN, Header};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::owed::Owed;
use super::script::{Line, Script};
use super::trace::Normalise;

/// After that long without an awaited answer it is taken not to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a batch's bytes are cut into writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// All in one.
    Whole,
    /// Each byte its own; longer batches in pieces of a prime number of bytes.
    Bytewise,
    /// Two, with a pause between them; of the nth batch the first has n bytes.
    Cut,
}

/// Above this a batch is not sent byte by byte: a megabyte would be a million system calls.
const BYTEWISE_UP_TO: usize = 2000;
const PIECE: usize = 1009;

impl Delivery {
    fn pieces(self, batch: usize, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Delivery::Whole => vec![bytes],
            Delivery::Bytewise if bytes.len() <= BYTEWISE_UP_TO => bytes.chunks(1).collect(),
            Delivery::Bytewise => bytes.chunks(PIECE).collect(),
            Delivery::Cut => {
                let (first, second) = bytes.split_at(batch.min(bytes.len()));
                vec![first, second]
            }
        }
    }
}

/// What one run of a script was answered with: a line per message, the batches told apart.
pub(super) type Trace = Vec<String>;

/// What stands between batches; it may do something to the other side.
pub(super) trait Between {
    /// `idle`: the session is in no transaction, and nothing is owed to it.
    async fn batch(&mut self, idle: bool);
    /// Another client runs `sql`.
    async fn other(&mut self, sql: &str);
}

pub(super) struct Client {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    received: BytesMut,
    normalise: Normalise,
    owed: Owed,
    /// The last ReadyForQuery's.
    status: u8,
    trace: Trace,
    /// What the server said at the start, in order of the names.
    pub(super) parameters: Vec<(String, String)>,
}

/// There is nothing more to hear.
struct Over;

impl Client {
    pub(super) async fn connect(target: &Target) -> Client {
        let Backend { stream, received, mut parameters, pid, .. } =
            dial(target, PATIENCE).await.expect("a login");
        let (reader, writer) = tokio::io::split(stream);
        parameters.sort();
        Client {
            reader,
            writer,
            received,
            normalise: Normalise::of_session(pid),
            owed: Owed::default(),
            status: b'I',
            trace: Vec::new(),
            parameters,
        }
    }

    /// Runs `script` to its end, then says goodbye and hears what was left.
    pub(super) async fn run(
        mut self,
        script: &Script,
        delivery: Delivery,
        between: &mut impl Between,
    ) -> Trace {
        for (number, batch) in script.batches.iter().enumerate() {
            self.trace.push(format!("-- {}", number + 1));
            between.batch(self.status == b'I' && self.owed.is_empty()).await;
            if self.batch(number + 1, batch, delivery, between).await.is_err() {
                return self.trace;
            }
        }
        self.trace.push("-- end".to_owned());
        // An error comes at once or with the Sync, as it likes. Amid a COPY a server complains of a Terminate to nobody.
        let is_copying = self.owed.is_copying_in().then_some("fail to go on");
        let is_owed = (!self.owed.is_empty()).then_some("sync");
        let last: Vec<Line> = is_copying.into_iter().chain(is_owed).flat_map(Line::read).collect();
        if !last.is_empty() && self.batch(0, &last, Delivery::Whole, between).await.is_err() {
            return self.trace;
        }
        if let Ok(goodbye) = Line::read("terminate") {
            let _ = self.batch(0, &[goodbye], Delivery::Whole, between).await;
        }
        self.trace
    }

    async fn batch(
        &mut self,
        number: usize,
        batch: &[Line],
        delivery: Delivery,
        between: &mut impl Between,
    ) -> Result<(), Over> {
        let mut bytes = BytesMut::new();
        for line in batch {
            match line {
                Line::Send { message, .. } => {
                    self.owed.sent(message);
                    bytes.extend_from_slice(&message.0);
                }
                Line::Other(sql) => between.other(sql).await,
                Line::Hear(tag) => while self.hear().await? != *tag {},
            }
        }
        self.exchange(&delivery.pieces(number, &bytes), delivery).await
    }

    /// Writes and reads at once: a server that cannot get rid of its answers does not read.
    async fn exchange(&mut self, pieces: &[&[u8]], delivery: Delivery) -> Result<(), Over> {
        let mut hearing = Hearing {
            reader: &mut self.reader,
            received: &mut self.received,
            normalise: &mut self.normalise,
            trace: &mut self.trace,
        };
        let write = async {
            for piece in pieces {
                self.writer.write_all(piece).await?;
                if delivery == Delivery::Cut {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            io::Result::Ok(())
        };
        let (owed, status) = (&mut self.owed, &mut self.status);
        let read = async {
            while !owed.is_settled() {
                let waiting_for = || owed.waiting_for();
                let (tag, ready) = hearing.message(waiting_for).await?;
                *status = ready.unwrap_or(*status);
                owed.heard(tag);
            }
            Ok(())
        };
        // A write that fails has been answered with a FATAL error, or with silence.
        let (_, read) = tokio::join!(write, read);
        read
    }

    async fn hear(&mut self) -> Result<u8, Over> {
        let mut hearing = Hearing {
            reader: &mut self.reader,
            received: &mut self.received,
            normalise: &mut self.normalise,
            trace: &mut self.trace,
        };
        hearing.message(|| "a message that comes by itself".to_owned()).await.map(|(tag, _)| tag)
    }
}

/// The reading half, borrowed apart from the writing one.
struct Hearing<'a> {
    reader: &'a mut ReadHalf<Stream>,
    received: &'a mut BytesMut,
    normalise: &'a mut Normalise,
    trace: &'a mut Trace,
}

impl Hearing<'_> {
    /// The next message's tag and, of a ReadyForQuery, the status.
    async fn message(&mut self, waiting_for: impl Fn() -> String) -> Result<(u8, Option<u8>), Over> {
        match tokio::time::timeout(PATIENCE, self.whole()).await {
            Ok(Ok(header)) => {
                let message = self.received.split_to(header.total);
                let payload = &message[HEADER_LEN..];
                self.trace.push(self.normalise.render(header.tag, payload));
                let ready = (header.tag == b'Z').then(|| payload.first().copied()).flatten();
                Ok((header.tag, ready))
            }
            Ok(Err(_)) => {
                // Whether by a FIN or, with something unread, by a reset is chance.
                self.trace.push("closed".to_owned());
                Err(Over)
            }
            Err(_) => {
                self.trace.push(format!("silence, instead of {}", waiting_for()));
                Err(Over)
            }
        }
    }

    async fn whole(&mut self) -> io::Result<Header> {
        loop {
            let header = Header::peek(self.received).map_err(io::Error::other)?;
            if let Some(header) = header.filter(|header| self.received.remaining() >= header.total) {
                return Ok(header);
            }
            if let Some(header) = header {
                self.received.reserve(header.total - self.received.len());
            }
            if self.reader.read_buf(self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
