//! The console's side of the protocol: simple queries, and extended ones without parameters.

use std::collections::HashMap;
use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::command::Command;
use super::table::Formats;
use super::{Console, Done, Right};
use crate::net::{Client, Stream};
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::pg::protocol::backend::{self, TransactionStatus};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::protocol::{Malformed, frontend};

/// A longer message is no console command.
const MAX_MESSAGE: usize = 64 * 1024;
/// Prepared statements, and portals, of one client. One more is refused.
const MAX_PREPARED: usize = 64;

/// What drivers want to know of a server.
const PARAMETERS: [(&str, &str); 7] = [
    ("server_version", concat!("15.0 (Bellwether ", env!("CARGO_PKG_VERSION"), ")")),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
];

pub(super) async fn hold(console: &Console, client: Client, right: Right, stop: &CancellationToken) {
    let mut conversation = Conversation {
        console,
        right,
        wire: Wire { stream: client.stream, received: client.received, out: client.out },
        statements: HashMap::new(),
        portals: HashMap::new(),
        skipping: false,
    };
    conversation.greet();
    let ended = tokio::select! {
        ended = conversation.go_on() => ended,
        () = stop.cancelled() => {
            let why = "terminating connection due to administrator command";
            Err(End::Because(ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, why)))
        }
    };
    if let Err(End::Because(why)) = ended {
        why.encode(&mut conversation.wire.out);
        // Whoever does not listen is not told.
        drop(conversation.wire.flush().await);
    }
}

struct Conversation<'a> {
    console: &'a Console,
    right: Right,
    wire: Wire,
    statements: HashMap<Vec<u8>, Command>,
    portals: HashMap<Vec<u8>, Portal>,
    /// After an error in the extended protocol, up to the next Sync.
    skipping: bool,
}

#[derive(Clone)]
struct Portal {
    command: Command,
    formats: Formats,
}

struct Wire {
    stream: Stream,
    received: BytesMut,
    out: BytesMut,
}

/// Why the conversation ended.
enum End {
    /// The client left.
    Gone,
    Because(ErrorFields),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Gone
    }
}

impl From<Malformed> for ErrorFields {
    fn from(error: Malformed) -> ErrorFields {
        error.fields()
    }
}

impl Conversation<'_> {
    fn greet(&mut self) {
        let out = &mut self.wire.out;
        for (name, value) in PARAMETERS {
            backend::parameter_status(name, value, out);
        }
        // Nothing here can be cancelled; a client that goes is noticed.
        backend::backend_key_data(0, &[0; 4], out);
        backend::ready_for_query(TransactionStatus::Idle, out);
    }

    async fn go_on(&mut self) -> Result<(), End> {
        loop {
            let Some(header) = self.wire.message().await? else { return Ok(()) };
            let message = self.wire.received.split_to(header.total);
            let payload = &message[HEADER_LEN..];
            let failed = match header.tag {
                b'X' => return Ok(()),
                b'Q' => {
                    self.query(payload).await?;
                    continue;
                }
                b'S' => {
                    self.skipping = false;
                    backend::ready_for_query(TransactionStatus::Idle, &mut self.wire.out);
                    continue;
                }
                b'H' => continue,
                _ if self.skipping => continue,
                b'P' => self.prepare(payload),
                b'B' => self.bind(payload),
                b'D' => self.describe(payload).await?,
                b'E' => self.execute(payload).await?,
                b'C' => self.close(payload),
                other => {
                    let message = format!("invalid frontend message type {other}");
                    return Err(End::Because(ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, message)));
                }
            };
            if let Err(error) = failed {
                error.encode(&mut self.wire.out);
                self.skipping = true;
            }
        }
    }

    async fn query(&mut self, payload: &[u8]) -> Result<(), End> {
        let command = frontend::decode_query(payload).map_err(ErrorFields::from).and_then(parse);
        let done = match command {
            Ok(command) => self.run(&command).await?,
            Err(error) => Err(error),
        };
        let out = &mut self.wire.out;
        let answered = done.and_then(|done| {
            if let Done::Rows(table) = &done {
                table.describe(&Formats::default(), out)?;
            }
            complete(&done, &Formats::default(), out)
        });
        if let Err(error) = answered {
            error.encode(out);
        }
        backend::ready_for_query(TransactionStatus::Idle, out);
        Ok(())
    }

    /// Ends early when the client goes: nobody waits for a PAUSE any more.
    async fn run(&mut self, command: &Command) -> Result<Result<Done, ErrorFields>, End> {
        let (console, right) = (self.console, self.right);
        tokio::select! {
            done = console.run(command, right) => Ok(done),
            end = self.wire.hung_up() => Err(end),
        }
    }

    fn prepare(&mut self, payload: &[u8]) -> Result<(), ErrorFields> {
        let parse_message = frontend::decode_parse(payload)?;
        if parse_message.types.len() > 2 {
            return Err(no_parameters());
        }
        let command = parse(parse_message.sql)?;
        keep(&mut self.statements, parse_message.statement, command)?;
        backend::parse_complete(&mut self.wire.out);
        Ok(())
    }

    fn bind(&mut self, payload: &[u8]) -> Result<(), ErrorFields> {
        let bind = frontend::decode_bind(payload)?;
        // Formats and values of parameters, of which there are none; then formats of results.
        let formats = match bind.rest {
            [0, 0, 0, 0, formats @ ..] => Formats::read(formats),
            _ => return Err(no_parameters()),
        };
        let formats = formats.ok_or_else(|| {
            ErrorFields::error(SqlState::PROTOCOL_VIOLATION, "invalid result formats in bind message")
        })?;
        let command = self.statements.get(bind.statement).cloned().ok_or_else(|| missing("statement"))?;
        keep(&mut self.portals, bind.portal, Portal { command, formats })?;
        backend::bind_complete(&mut self.wire.out);
        Ok(())
    }

    async fn describe(&mut self, payload: &[u8]) -> Result<Result<(), ErrorFields>, End> {
        let portal = match frontend::decode_named(payload) {
            Err(error) => return Ok(Err(error.into())),
            Ok((b'S', name)) => {
                let found = self.statements.get(name).cloned().ok_or_else(|| missing("statement"));
                if found.is_ok() {
                    backend::parameter_description(&[], &mut self.wire.out);
                }
                found.map(|command| Portal { command, formats: Formats::default() })
            }
            Ok((_, name)) => self.portals.get(name).cloned().ok_or_else(|| missing("portal")),
        };
        let portal = match portal {
            Ok(portal) if portal.command.has_rows() => portal,
            Ok(_) => {
                backend::no_data(&mut self.wire.out);
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
        };
        let done = self.run(&portal.command).await?;
        let out = &mut self.wire.out;
        Ok(done.and_then(|done| match done {
            Done::Rows(table) => table.describe(&portal.formats, out),
            Done::Ordered(..) | Done::Nothing => {
                backend::no_data(out);
                Ok(())
            }
        }))
    }

    /// All rows at once, whatever the limit: there are few.
    async fn execute(&mut self, payload: &[u8]) -> Result<Result<(), ErrorFields>, End> {
        let portal = match frontend::decode_execute(payload) {
            Err(error) => return Ok(Err(error.into())),
            Ok((portal, _)) => self.portals.get(portal).cloned().ok_or_else(|| missing("portal")),
        };
        let Portal { command, formats } = match portal {
            Ok(portal) => portal,
            Err(error) => return Ok(Err(error)),
        };
        let done = self.run(&command).await?;
        Ok(done.and_then(|done| complete(&done, &formats, &mut self.wire.out)))
    }

    fn close(&mut self, payload: &[u8]) -> Result<(), ErrorFields> {
        match frontend::decode_named(payload)? {
            (b'S', name) => drop(self.statements.remove(name)),
            (_, name) => drop(self.portals.remove(name)),
        }
        backend::close_complete(&mut self.wire.out);
        Ok(())
    }
}

impl Wire {
    /// The header of the next message, which is there wholly; what was to be said has been. `None`: the client
    /// has gone.
    async fn message(&mut self) -> Result<Option<Header>, End> {
        loop {
            let header = Header::peek(&self.received).map_err(|error| {
                End::Because(ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string()))
            })?;
            match header {
                Some(header) if header.total > MAX_MESSAGE => {
                    let message = "message too long for the console";
                    return Err(End::Because(ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, message)));
                }
                Some(header) if header.total <= self.received.len() => return Ok(Some(header)),
                _ => {}
            }
            self.flush().await?;
            self.received.reserve(1024);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.out.has_remaining() {
            self.stream.write_buf(&mut self.out).await?;
        }
        Ok(())
    }

    /// Resolves when the client goes. What it says meanwhile is kept, up to a bound.
    async fn hung_up(&mut self) -> End {
        while self.received.len() < 2 * MAX_MESSAGE {
            self.received.reserve(1024);
            if !matches!(self.stream.read_buf(&mut self.received).await, Ok(read) if read > 0) {
                return End::Gone;
            }
        }
        std::future::pending().await
    }
}

fn parse(text: &[u8]) -> Result<Command, ErrorFields> {
    let text = std::str::from_utf8(text);
    let text = text.map_err(|_| ErrorFields::error(SqlState::SYNTAX_ERROR, "the command is not UTF-8"))?;
    Command::parse(text)
}

fn complete(done: &Done, formats: &Formats, out: &mut BytesMut) -> Result<(), ErrorFields> {
    match done {
        Done::Rows(table) => {
            table.put_rows(formats, out)?;
            backend::command_complete("SHOW", out);
        }
        Done::Ordered(tag, said) => {
            for said in said {
                let code = SqlState::SUCCESSFUL_COMPLETION;
                ErrorFields::new(Severity::Notice, code, said.as_str()).encode(out);
            }
            backend::command_complete(tag, out);
        }
        Done::Nothing => backend::empty_query_response(out),
    }
    Ok(())
}

fn keep<T>(of: &mut HashMap<Vec<u8>, T>, name: &[u8], kept: T) -> Result<(), ErrorFields> {
    if of.len() >= MAX_PREPARED && !of.contains_key(name) {
        let message = format!("more than {MAX_PREPARED} prepared statements or portals");
        return Err(ErrorFields::error(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message));
    }
    of.insert(name.to_vec(), kept);
    Ok(())
}

fn missing(what: &str) -> ErrorFields {
    ErrorFields::error(SqlState::INVALID_SQL_STATEMENT_NAME, format!("{what} does not exist"))
}

fn no_parameters() -> ErrorFields {
    ErrorFields::error(SqlState::FEATURE_NOT_SUPPORTED, "the console's commands take no parameters")
}
