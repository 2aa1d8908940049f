//! Looking ahead: what the next unit of the client's messages is, before a server is chosen for it.
//!
//! A unit is one simple query, one FunctionCall, or everything up to a Sync; all of it goes to one node. What
//! cannot be seen to its end belongs to the primary.

use std::sync::Arc;

use super::core::{Core, Demand, Texts};
use super::message::{Parse, bind_names, target};
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::protocol::frontend::decode_execute;
use crate::proxy::route::{
    Access, CopyData, KnobCommand, MayAlter, MayWrite, SessionEffect, Shown, TransactionEffect, Verdict,
    WriteReason,
};

/// A unit longer than this is not waited for: it is the primary's.
pub(super) const MAX_LOOK: usize = 64 * 1024;
/// A query text up to this long is read whole; a longer one is forwarded unread, pins, and is the primary's.
pub(super) const MAX_QUERY: usize = 1 << 20;
/// A Parse is always read whole; a longer one is refused.
pub(super) const MAX_PARSE: usize = 16 << 20;

/// What was seen.
#[derive(Debug)]
pub(super) enum Look {
    /// The message in front must be there up to this length first.
    More(usize),
    /// Its length, and that all of it is ours to answer.
    Own(usize),
    /// With its length where the end was seen.
    Serve(Demand, Option<usize>),
    Fatal(ErrorFields),
}

/// The union of the verdicts met.
#[derive(Debug, Default)]
struct Seen<'a> {
    /// The names that this unit prepares: what they meant before does not matter.
    named: Vec<&'a [u8]>,
    /// The same for the unnamed one, which is the usual.
    unnamed: bool,
    /// The portals that this unit binds. No other is ours: what is not there is for the server to say.
    portals: Vec<&'a [u8]>,
    first: Option<Arc<Verdict>>,
    writing: Option<Arc<Verdict>>,
    /// Something that needs a server.
    foreign: bool,
    /// A DEALLOCATE, which counts on what comes before it.
    deallocates: bool,
    /// Messages that run something, or close a statement.
    deeds: usize,
    shows_position: bool,
}

impl Seen<'_> {
    fn add(&mut self, verdict: &Arc<Verdict>) {
        self.shows_position |= verdict.knobs.contains(&KnobCommand::Show(Shown::Lsn));
        if self.writing.is_none() && !verdict.is_read() {
            self.writing = Some(verdict.clone());
        }
        if self.first.is_none() {
            self.first = Some(verdict.clone());
        }
    }

    fn needs_server(&self) -> bool {
        self.foreign || self.deallocates && self.deeds > 1
    }

    fn demand(self, forced: Option<&'static str>) -> Demand {
        Demand { verdict: self.writing.or(self.first).unwrap_or_else(|| Arc::new(nothing())), forced }
    }
}

/// The verdict on a unit without a text: Describe or Close of what is not there.
pub(super) fn nothing() -> Verdict {
    Verdict {
        access: Access::Read,
        statements: 0,
        transaction: TransactionEffect::None,
        session: Vec::new(),
        steps: Vec::new(),
        knobs: Vec::new(),
        hint: None,
        copy: CopyData::None,
        may_write: MayWrite::No,
        may_alter: MayAlter::No,
    }
}

/// The verdict on what was not read.
pub(super) fn unread() -> Verdict {
    let access = Access::Write { reason: WriteReason::Unparsable };
    Verdict { access, may_write: MayWrite::Yes, may_alter: MayAlter::Yes, ..nothing() }
}

pub(super) fn malformed(tag: u8) -> ErrorFields {
    let message = format!("invalid message format in message of type 0x{tag:02x}");
    ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, message)
}

pub(super) fn unexpected(tag: u8) -> ErrorFields {
    ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, format!("invalid frontend message type {tag}"))
}

impl Core {
    /// The unit at the start of `bytes`, whose first header is `header`.
    pub(super) fn look(&mut self, header: Header, bytes: &[u8], texts: &mut Texts<'_>) -> Look {
        self.ahead.clear();
        match header.tag {
            b'Q' => self.look_at_query(header, bytes, texts),
            b'F' => Look::Serve(Seen::default().demand(Some("function_call")), None),
            _ => self.look_at_extended(bytes, texts),
        }
    }

    fn look_at_query(&mut self, header: Header, bytes: &[u8], texts: &mut Texts<'_>) -> Look {
        if header.total > MAX_QUERY {
            let verdict = Arc::new(unread());
            return Look::Serve(Demand { verdict, forced: None }, None);
        }
        let Some(message) = bytes.get(..header.total) else { return Look::More(header.total) };
        let Some(text) = query_text(message) else { return Look::Fatal(malformed(b'Q')) };
        let verdict = texts.verdict(text);
        self.ahead.push_back(verdict.clone());
        self.shows_position = verdict.knobs.contains(&KnobCommand::Show(Shown::Lsn));
        if self.is_own(&verdict) {
            return Look::Own(header.total);
        }
        Look::Serve(Demand { verdict, forced: None }, Some(header.total))
    }

    fn look_at_extended(&mut self, bytes: &[u8], texts: &mut Texts<'_>) -> Look {
        let mut seen = Seen::default();
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let header = match Header::peek(rest) {
                Err(error) => return Look::Fatal(Core::violation(&error)),
                Ok(None) if at > MAX_LOOK => return Look::Serve(seen.demand(Some("long")), None),
                Ok(None) => return Look::More(at + HEADER_LEN),
                Ok(Some(header)) => header,
            };
            match header.tag {
                // Its length was not what a Sync has: nothing of it is used before it is there.
                b'S' if header.total > MAX_LOOK => return Look::Fatal(malformed(b'S')),
                b'S' if rest.len() < header.total => return Look::More(at + header.total),
                b'S' if seen.needs_server() => {
                    return Look::Serve(seen.demand(None), Some(at + header.total));
                }
                b'S' => {
                    self.shows_position = seen.shows_position;
                    return Look::Own(at + header.total);
                }
                // More will come after the answers so far, and may write.
                b'H' => return Look::Serve(seen.demand(Some("flush")), None),
                b'P' | b'B' | b'D' | b'E' | b'C' => {}
                _ => return Look::Serve(seen.demand(Some("mixed")), None),
            }
            if header.tag == b'P' && header.total > MAX_PARSE {
                let message = format!("statement longer than {MAX_PARSE} bytes");
                return Look::Fatal(ErrorFields::fatal(SqlState::FEATURE_NOT_SUPPORTED, message));
            }
            let Some(message) = rest.get(..header.total) else {
                if header.tag == b'P' || at + header.total <= MAX_LOOK {
                    return Look::More(at + header.total);
                }
                // A long value. Its statement may already be known to write.
                if let Some(verdict) = bind_names(rest).and_then(|(_, name)| self.prepared.verdict(name)) {
                    seen.add(verdict);
                }
                return Look::Serve(seen.demand(Some("long")), None);
            };
            if !self.look_at(message, &mut seen, texts) {
                return Look::Fatal(malformed(header.tag));
            }
            at += header.total;
        }
    }

    /// One whole message; `false` when it is malformed.
    fn look_at<'a>(&mut self, message: &'a [u8], seen: &mut Seen<'a>, texts: &mut Texts<'_>) -> bool {
        match message[0] {
            b'P' => {
                let Some(parse) = Parse::read(message) else { return false };
                let verdict = texts.verdict(parse.text);
                self.see(&verdict, seen);
                if parse.name.is_empty() {
                    seen.unnamed = true;
                } else {
                    seen.named.push(parse.name);
                }
                self.ahead.push_back(verdict);
            }
            b'B' => {
                let Some((portal, name)) = bind_names(message) else { return false };
                seen.portals.push(portal);
                self.look_at_name(name, seen);
            }
            b'E' => {
                let Ok((portal, _)) = decode_execute(&message[HEADER_LEN..]) else { return false };
                seen.foreign |= !seen.portals.contains(&portal);
                seen.deeds += 1;
            }
            b'D' | b'C' => {
                let Some((kind, name)) = target(message) else { return false };
                match (message[0], kind) {
                    (b'D', b'S') => self.look_at_name(name, seen),
                    (b'D', _) => seen.foreign |= !seen.portals.contains(&name),
                    (_, b'S') => seen.deeds += 1,
                    _ => {}
                }
            }
            _ => {}
        }
        true
    }

    fn see(&self, verdict: &Arc<Verdict>, seen: &mut Seen<'_>) {
        seen.foreign |= !self.is_own(verdict);
        seen.deallocates |= verdict.deallocates().is_some();
        seen.add(verdict);
    }

    fn look_at_name(&self, name: &[u8], seen: &mut Seen<'_>) {
        let prepared_here = if name.is_empty() { seen.unnamed } else { seen.named.contains(&name) };
        if prepared_here {
            return;
        }
        match self.prepared.verdict(name) {
            Some(verdict) => self.see(verdict, seen),
            // An error to come, or SQL's PREPARE in a pinned session.
            None => seen.foreign = true,
        }
    }
}

/// The text of a whole Query.
pub(super) fn query_text(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER_LEN..)?.strip_suffix(b"\0").filter(|text| !text.contains(&0))
}

impl Texts<'_> {
    /// A text in another encoding than UTF-8 is classified by what of it is ASCII: literals and names do not
    /// matter to the grammar.
    pub(super) fn verdict(&mut self, text: &[u8]) -> Arc<Verdict> {
        match std::str::from_utf8(text) {
            Ok(text) => self.classifier.verdict(text),
            Err(_) => {
                let verdict = self.classifier.verdict(&String::from_utf8_lossy(text));
                // What it prepares could not be prepared again.
                let prepares = verdict.session.iter().any(SessionEffect::is_prepare);
                if prepares { Arc::new(unread()) } else { verdict }
            }
        }
    }
}
