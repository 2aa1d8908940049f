//! From the client to the server.

use std::sync::Arc;

use super::core::{Ask, Core, PoolMode, ServerState, Texts};
use super::downstream::no_blocks;
use super::lane::Lane;
use super::ledger::{Follow, For, Owed, Undo};
use super::look::{self, Look, MAX_QUERY, malformed, query_text, unexpected};
use super::message::{self, Parse, Status, bind_names, put, put_head, target};
use super::names::Readiness;
use super::pins::Pin;
use super::portals::Followed;
use super::unit::Pace;
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::proxy::prepared::{NOT_KNOWN, Statements};
use crate::proxy::route::{KnobCommand, Shown, Verdict};

/// Between two messages.
#[derive(Debug)]
pub(super) enum Step {
    Next,
    /// For the rest of a message of this length in all, or (0) for the server.
    Wait(usize),
    Ask(Ask),
}

/// Both lanes of a session.
#[derive(Debug)]
pub(super) struct Lanes<'a> {
    pub(super) up: &'a mut Lane,
    pub(super) down: &'a mut Lane,
}

impl Core {
    /// Decides about as many of the client's messages as it can.
    pub(crate) fn client(
        &mut self,
        up: &mut Lane,
        down: &mut Lane,
        mut server: Option<&mut ServerState>,
        texts: &mut Texts<'_>,
    ) -> Ask {
        let mut lanes = Lanes { up, down };
        self.wants = 0;
        if self.holds_client() {
            return Ask::Nothing;
        }
        loop {
            if !self.go_on_with_message(lanes.up) {
                return Ask::Nothing;
            }
            let header = match Header::peek(lanes.up.unread()) {
                Err(error) => return Ask::Fatal(Core::violation(&error)),
                Ok(None) => return Ask::Nothing,
                Ok(Some(header)) => header,
            };
            let step = match (&mut server, self.skip_to_sync) {
                // What was sent before it is run and answered first, as a server does.
                _ if header.tag == b'X' && self.ledger.will_answer() => Step::Wait(0),
                _ if header.tag == b'X' => return Ask::End,
                (_, Some(status)) => self.skip(header, status, &mut lanes),
                (Some(server), None) => self.forward(header, &mut lanes, server, texts),
                (None, None) => self.without_server(header, &mut lanes, texts),
            };
            match step {
                Step::Next => {}
                Step::Wait(total) => {
                    self.wants = total;
                    return Ask::Nothing;
                }
                Step::Ask(ask) => return ask,
            }
        }
    }

    /// How many unread bytes of the client may have to be held before the next decision.
    pub(crate) fn wants(&self) -> usize {
        self.wants
    }

    /// Whether the message under way has been dealt with.
    fn go_on_with_message(&mut self, up: &mut Lane) -> bool {
        let passed = self.up_pass.min(up.unread().len());
        up.pass(passed);
        self.up_pass -= passed;
        let skipped = self.up_skip.min(up.unread().len());
        if skipped > 0 {
            up.skip(skipped);
            self.up_skip -= skipped;
        }
        self.up_pass == 0 && self.up_skip == 0
    }

    /// After an error of our own in the extended protocol.
    fn skip(&mut self, header: Header, status: Status, lanes: &mut Lanes<'_>) -> Step {
        self.up_skip = header.total;
        if header.tag == b'S' {
            self.skip_to_sync = None;
            message::put_ready(lanes.down.out(), status);
        }
        Step::Next
    }

    fn without_server(&mut self, header: Header, lanes: &mut Lanes<'_>, texts: &mut Texts<'_>) -> Step {
        match header.tag {
            b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C' => {}
            // Left over from a COPY that has failed (postgres.c ignores them too); nothing to flush.
            b'd' | b'c' | b'f' | b'H' => {
                self.up_skip = header.total;
                return Step::Next;
            }
            b'S' => {
                self.up_skip = header.total;
                let status = if self.cut.is_some() { Status::Failed } else { self.status };
                message::put_ready(lanes.down.out(), status);
                return Step::Next;
            }
            other => return Step::Ask(Ask::Fatal(unexpected(other))),
        }
        let look = self.look(header, lanes.up.unread(), texts);
        match look {
            Look::More(total) => Step::Wait(total),
            Look::Fatal(error) => Step::Ask(Ask::Fatal(error)),
            Look::Serve(demand, total) if self.cut.is_some() => self.answer_cut(&demand, total, lanes),
            Look::Own(total) if self.cut.is_some() => self.answer_cut_own(total, lanes),
            Look::Own(_) if self.awaits_position() => Step::Ask(Ask::Position),
            Look::Own(total) => {
                self.answer_own(total, lanes, texts);
                Step::Next
            }
            Look::Serve(..) if self.ahead.iter().any(|verdict| self.is_refused_by_mode(verdict)) => {
                self.refuse(&no_blocks(), lanes.up, lanes.down);
                Step::Next
            }
            Look::Serve(demand, Some(total))
                if header.tag == b'Q' && self.answer_block(&demand.verdict, total, lanes) =>
            {
                Step::Next
            }
            Look::Serve(demand, _) => Step::Ask(Ask::Server(self.demand_of_block(demand))),
        }
    }

    fn forward(
        &mut self,
        header: Header,
        lanes: &mut Lanes<'_>,
        server: &mut ServerState,
        texts: &mut Texts<'_>,
    ) -> Step {
        let starts_unit = !self.unit.open && !matches!(header.tag, b'd' | b'c' | b'f' | b'H' | b'S');
        let one_by_one =
            !self.takes_all || self.unit.pace == Pace::OneByOne || self.mode == PoolMode::Statement;
        if self.ledger.is_full() || (starts_unit && one_by_one && self.ledger.units() > 0) {
            return Step::Wait(0);
        }
        if starts_unit && self.status == Status::Idle && !Arc::ptr_eq(&server.settings, self.state.settings())
        {
            // A server that is kept has other settings than the client: after RESET, its own defaults.
            if !self.ledger.is_empty() {
                return Step::Wait(0);
            }
            self.bring_settings(server, lanes.up);
        }
        if self.ledger.is_skipping() && !matches!(header.tag, b'S' | b'H') {
            return self.leave_out_message(header, lanes.up);
        }
        server.retires |= self.mixes_protocols(header.tag);
        match header.tag {
            b'Q' => self.forward_query(header, lanes, server, texts),
            b'P' => self.forward_parse(header, lanes, server, texts),
            b'B' => self.forward_bind(header, lanes, server, texts.statements),
            b'D' | b'C' => self.forward_target(header, lanes, server, texts.statements),
            b'E' => self.forward_execute(header, lanes.up, server, texts.statements),
            b'H' => {
                // Amid an answer they come behind it.
                while let Some(tag) = (!self.is_amid_an_answer()).then(|| self.ledger.pop_own()).flatten() {
                    put(lanes.down.out(), tag, &[]);
                }
                self.send(header, None, lanes.up)
            }
            b'S' => {
                // In a COPY it is none. But the COPY may have failed by the time that the server reads it, and then its
                // answer comes when nobody waits for it.
                server.retires |= self.ledger.takes_copy_data();
                self.unit.open &= self.ledger.takes_copy_data();
                self.send(header, Some(Owed::Sync), lanes.up)
            }
            b'F' => {
                self.note(&look::unread());
                self.send(header, Some(Owed::Function), lanes.up)
            }
            b'd' | b'c' | b'f' if self.ledger.is_empty() => {
                self.up_skip = header.total;
                Step::Next
            }
            b'd' => self.send(header, None, lanes.up),
            b'c' | b'f' => self.send(header, Some(Owed::CopyEnd), lanes.up),
            other => Step::Ask(Ask::Fatal(unexpected(other))),
        }
    }

    /// The server would read it and drop it.
    fn leave_out_message(&mut self, header: Header, up: &Lane) -> Step {
        if matches!(header.tag, b'P' | b'Q') {
            let Some(name) = up.unread().get(HEADER_LEN) else { return Step::Wait(header.total) };
            // What it would replace is gone as it is for one that was sent before the error was heard.
            if header.tag == b'P' && *name == 0 {
                self.prepared.forget_unnamed();
            }
            self.ahead.pop_front();
        }
        self.up_skip = header.total;
        Step::Next
    }

    /// Whether a message of type `tag` stands between extended messages and their Sync, and ends no transaction there
    /// although a server takes it to.
    ///
    /// From PostgreSQL 18 on this leaves the server unfit (postgres.c):
    /// 1. An Execute completes, and its transaction waits for the Sync (`exec_execute_message` sets
    ///    XACT_FLAGS_PIPELINING).
    /// 2. A Query or FunctionCall follows. `start_xact_command` makes an implicit block of the transaction;
    ///    `finish_xact_command` at its end commits nothing in a block, and still takes the transaction for over.
    /// 3. The Sync ends the implicit block (`EndImplicitTransactionBlock`), and has nothing to commit.
    ///
    /// ReadyForQuery says `I`, and the next command finds a transaction that has begun: XX000, "unexpected state
    /// STARTED". That one must not be another client's.
    fn mixes_protocols(&self, tag: u8) -> bool {
        self.unit.open && matches!(tag, b'Q' | b'F')
    }

    /// Forwards the message as it is.
    fn send(&mut self, header: Header, owed: Option<Owed>, up: &mut Lane) -> Step {
        self.keep(header, up);
        self.unit.sent();
        if let Some(owed) = owed {
            self.ledger.sent(owed);
        }
        self.up_pass = header.total;
        Step::Next
    }

    fn forward_extended(&mut self, header: Header, owed: Option<Owed>, up: &mut Lane) -> Step {
        self.unit.open = true;
        self.send(header, owed, up)
    }

    /// Keeps the message in case that it must be run again.
    pub(super) fn keep(&mut self, header: Header, up: &Lane) {
        if self.unit.replay.is_kept() {
            self.unit.replay.keep(up.unread().get(..header.total));
        }
    }

    fn forward_query(
        &mut self,
        header: Header,
        lanes: &mut Lanes<'_>,
        server: &mut ServerState,
        texts: &mut Texts<'_>,
    ) -> Step {
        let verdict = if header.total > MAX_QUERY {
            Arc::new(look::unread())
        } else {
            let Some(message) = lanes.up.unread().get(..header.total) else {
                return Step::Wait(header.total);
            };
            let Some(text) = query_text(message) else { return Step::Ask(Ask::Fatal(malformed(b'Q'))) };
            match self.ahead.pop_front() {
                Some(verdict) => verdict,
                None => texts.verdict(text),
            }
        };
        // Amid an extended unit it is the server's to answer: the Sync that we would wait for comes behind it.
        if !self.unit.open && (verdict.is_own() || self.deallocates(&verdict)) {
            // What is ours to answer has its turn.
            if self.ledger.units() > 0 || self.is_amid_an_answer() {
                return Step::Wait(0);
            }
            if self.is_own(&verdict) {
                self.shows_position = verdict.knobs.contains(&KnobCommand::Show(Shown::Lsn));
                if self.awaits_position() {
                    return Step::Ask(Ask::Position);
                }
                self.answer_own(header.total, lanes, texts);
                return Step::Next;
            }
        }
        if self.is_in_doubt(None, Some(&verdict)) {
            self.ahead.push_front(verdict);
            return Step::Wait(0);
        }
        let text = || lanes.up.unread().get(..header.total).and_then(query_text);
        let stand_in = match self.stand_in(&verdict, text) {
            Ok(stand_in) => stand_in,
            Err(step) => {
                self.ahead.push_front(verdict);
                return step;
            }
        };
        let verdict = self.resolved(verdict);
        let refusal = self.refuses(&verdict);
        if refusal.is_none()
            && self.bring_names(&verdict, lanes.up, server, texts.statements) == Readiness::Waits
        {
            return Step::Wait(0);
        }
        self.portals.drop_unnamed();
        // exec_simple_query drops the unnamed statement, if it is not skipped.
        self.prepared.forget_unnamed();
        server.statements.unnamed = if self.unit.open { NOT_KNOWN } else { 0 };
        if let Some(refusal) = refusal {
            self.unit.sent();
            self.unit.replay.give_up();
            lanes.up.skip(header.total);
            message::put_query(lanes.up.out(), refusal.instead);
            self.ledger.sent(Owed::Query(Follow::default()));
            return Step::Next;
        }
        self.ask_ahead(&verdict, server, lanes.up);
        self.note(&verdict);
        let owed = Owed::Query(self.follow(&verdict, texts.statements));
        let Some(stand_in) = stand_in else { return self.send(header, Some(owed), lanes.up) };
        self.unit.sent();
        self.unit.replay.give_up();
        lanes.up.skip(header.total);
        message::put_query(lanes.up.out(), &stand_in);
        self.ledger.sent(owed);
        Step::Next
    }

    fn forward_execute(
        &mut self,
        header: Header,
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Step {
        self.close_our_portal(up);
        if self.portals.is_empty() {
            return self.forward_extended(header, Some(Owed::Execute(Follow::default())), up);
        }
        if header.total > look::MAX_LOOK {
            return Step::Ask(Ask::Fatal(malformed(b'E')));
        }
        let Some(message) = up.unread().get(..header.total) else { return Step::Wait(header.total) };
        let Some((portal, _)) = message::cstr(&message[HEADER_LEN..]) else {
            return Step::Ask(Ask::Fatal(malformed(b'E')));
        };
        let mut follow = self.portals.executed(portal);
        if let Some(verdict) = follow.verdict() {
            self.note(&verdict);
            follow.undo = self.names_executed(&verdict, server, statements);
        }
        self.forward_extended(header, Some(Owed::Execute(follow)), up)
    }

    fn forward_parse(
        &mut self,
        header: Header,
        lanes: &mut Lanes<'_>,
        server: &mut ServerState,
        texts: &mut Texts<'_>,
    ) -> Step {
        if header.total > look::MAX_PARSE {
            return Step::Ask(Ask::Fatal(malformed(b'P')));
        }
        let Some(message) = lanes.up.unread().get(..header.total) else { return Step::Wait(header.total) };
        let Some(parse) = Parse::read(message) else { return Step::Ask(Ask::Fatal(malformed(b'P'))) };
        let verdict = match self.ahead.pop_front() {
            Some(verdict) => verdict,
            None => texts.verdict(parse.text),
        };
        if self.ledger.units() > 0 && !self.unit.open && self.deallocates(&verdict) {
            self.ahead.push_front(verdict);
            return Step::Wait(0);
        }
        if self.is_own(&verdict) && !self.is_busy() {
            if self.is_amid_an_answer() {
                self.ahead.push_front(verdict);
                return Step::Wait(0);
            }
            match self.look(header, lanes.up.unread(), texts) {
                Look::More(total) => return Step::Wait(total),
                Look::Own(_) if self.awaits_position() => return Step::Ask(Ask::Position),
                Look::Own(total) => {
                    self.answer_own(total, lanes, texts);
                    return Step::Next;
                }
                // Mixed with others: the server takes it for a setting of an unknown extension, which is harmless, or
                // knows no statement of that name.
                Look::Serve(..) | Look::Fatal(_) => {
                    self.ahead.pop_front();
                }
            }
        }
        if self.is_in_doubt(Some(parse.name).filter(|name| !name.is_empty()), Some(&verdict)) {
            self.ahead.push_front(verdict);
            return Step::Wait(0);
        }
        if let Some(refusal) = self.refuses(&verdict) {
            return self.parse_instead(
                header,
                refusal.instead,
                Arc::new(look::nothing()),
                lanes,
                server,
                texts,
            );
        }
        self.ask_ahead(&verdict, server, lanes.up);
        let text = || Parse::read(&lanes.up.unread()[..header.total]).map(|parse| parse.text);
        match self.stand_in(&verdict, text) {
            Ok(None) => {}
            Ok(Some(text)) => return self.parse_instead(header, &text, verdict, lanes, server, texts),
            Err(step) => {
                self.ahead.push_front(verdict);
                return step;
            }
        }
        self.bring_names_in_unit(&verdict, lanes.up, server, texts.statements);
        let message = &lanes.up.unread()[..header.total];
        let Some(parse) = Parse::read(message) else { return Step::Ask(Ask::Fatal(malformed(b'P'))) };
        if parse.name.is_empty() {
            self.last_unnamed += 1;
            self.prepared.remember_unnamed(self.last_unnamed, message, verdict);
            server.statements.unnamed = self.last_unnamed;
            return self.forward_extended(
                header,
                Some(Owed::Parse(For::Client, Undo::Unnamed(self.last_unnamed))),
                lanes.up,
            );
        }
        if self.prepared.is_full() {
            return Step::Ask(Ask::Fatal(too_many_statements()));
        }
        let name: Box<[u8]> = parse.name.into();
        if self.prepared.named(&name).is_some() {
            return self.parse_duplicate(&name, header, lanes.up, server, texts.statements);
        }
        let named = self.new_statement(parse.rest, &verdict, texts.statements);
        if self.ledger.is_in_doubt(&name, Some(named.statement.id)) {
            self.ahead.push_front(verdict);
            return Step::Wait(0);
        }
        self.keep(header, lanes.up);
        lanes.up.skip(header.total);
        self.prepare_for_client(name, named, lanes.up, server);
        Step::Next
    }

    /// Names are not given twice (`StorePreparedStatement` in prepare.c), says the server.
    fn parse_duplicate(
        &mut self,
        name: &[u8],
        header: Header,
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Step {
        self.unit.replay.give_up();
        self.provide_stand_in(name, up, server, statements);
        self.forward_extended(header, Some(Owed::Parse(For::Client, Undo::Nothing)), up)
    }

    /// A statement of the client's name with another text, which means `verdict`.
    fn parse_instead(
        &mut self,
        header: Header,
        text: &str,
        verdict: Arc<Verdict>,
        lanes: &mut Lanes<'_>,
        server: &mut ServerState,
        texts: &Texts<'_>,
    ) -> Step {
        let message = &lanes.up.unread()[..header.total];
        let Some(parse) = Parse::read(message) else { return Step::Ask(Ask::Fatal(malformed(b'P'))) };
        let (name, types): (Box<[u8]>, _) = (parse.name.into(), &parse.rest[parse.text.len()..]);
        let rest = [text.as_bytes(), types].concat();
        if self.prepared.named(&name).is_some() {
            return self.parse_duplicate(&name, header, lanes.up, server, texts.statements);
        }
        lanes.up.skip(header.total);
        self.unit.sent_extended();
        self.unit.replay.give_up();
        if name.is_empty() {
            let out = lanes.up.out();
            let begin = out.len();
            put(out, b'P', &[b"\0", &rest]);
            self.last_unnamed += 1;
            self.prepared.remember_unnamed(self.last_unnamed, &out[begin..], verdict);
            server.statements.unnamed = self.last_unnamed;
            self.ledger.sent(Owed::Parse(For::Client, Undo::Unnamed(self.last_unnamed)));
            return Step::Next;
        }
        if self.prepared.is_full() {
            return Step::Ask(Ask::Fatal(too_many_statements()));
        }
        let named = self.new_statement(&rest, &verdict, texts.statements);
        self.prepare_for_client(name, named, lanes.up, server);
        Step::Next
    }

    fn forward_bind(
        &mut self,
        header: Header,
        lanes: &mut Lanes<'_>,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Step {
        let unread = lanes.up.unread();
        let message = &unread[..unread.len().min(header.total)];
        let Some((portal, name)) = bind_names(message) else {
            let whole = message.len() == header.total || message.len() > look::MAX_LOOK;
            return if whole {
                Step::Ask(Ask::Fatal(malformed(b'B')))
            } else {
                Step::Wait(header.total.min(look::MAX_LOOK))
            };
        };
        // The usual unnamed one has no allocation.
        let (portal, name): (Box<[u8]>, Box<[u8]>) = (portal.into(), name.into());
        let verdict = self.prepared.verdict(&name).cloned().map(|verdict| self.resolved(verdict));
        if self.is_in_doubt(Some(&name), verdict.as_deref()) {
            return Step::Wait(0);
        }
        if let Some(verdict) = &verdict {
            if let Some(step) = self.listen_again(verdict, &name) {
                return step;
            }
            self.ask_ahead(verdict, server, lanes.up);
            self.bring_names_in_unit(verdict, lanes.up, server, statements);
        }
        let followed = self.portals.bound(&portal, verdict.as_ref(), self.ledger.unit());
        if followed == Followed::TooMany {
            self.state.pins_mut().take(Pin::Portals);
        }
        if let Some(verdict) = verdict.filter(|_| followed != Followed::Yes) {
            self.note(&verdict);
        }
        let Some(ours) = self.name_at_server(&name, header, Owed::Bind, lanes.up, server, statements) else {
            return Step::Next;
        };
        let ours = ours.as_bytes();
        let head = HEADER_LEN + portal.len() + name.len() + 2;
        lanes.up.skip(head);
        let out = lanes.up.out();
        put_head(out, b'B', header.total - HEADER_LEN - name.len() + ours.len());
        for part in [&portal, b"\0".as_slice(), ours, b"\0"] {
            out.extend_from_slice(part);
        }
        self.up_pass = header.total - head;
        Step::Next
    }

    /// Describe and Close.
    fn forward_target(
        &mut self,
        header: Header,
        lanes: &mut Lanes<'_>,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Step {
        if header.total > look::MAX_LOOK {
            return Step::Ask(Ask::Fatal(malformed(header.tag)));
        }
        let Some(message) = lanes.up.unread().get(..header.total) else { return Step::Wait(header.total) };
        let Some((kind, name)) = target(message) else { return Step::Ask(Ask::Fatal(malformed(header.tag))) };
        let name: Box<[u8]> = name.into();
        let verdict = self.prepared.verdict(&name).filter(|_| header.tag == b'D');
        if kind == b'S' && self.is_in_doubt(Some(&name), verdict.map(|verdict| &**verdict)) {
            return Step::Wait(0);
        }
        match (header.tag, kind) {
            (b'D', b'S') => {
                // Its answer depends on the statement.
                self.commit = None;
                if let Some(verdict) = self.prepared.verdict(&name).cloned() {
                    self.bring_names_in_unit(&verdict, lanes.up, server, statements);
                }
                let Some(ours) =
                    self.name_at_server(&name, header, Owed::Describe, lanes.up, server, statements)
                else {
                    return Step::Next;
                };
                lanes.up.skip(header.total);
                put(lanes.up.out(), b'D', &[b"S", ours.as_bytes(), b"\0"]);
                Step::Next
            }
            (b'D', _) => {
                self.close_our_portal(lanes.up);
                self.forward_extended(header, Some(Owed::Describe), lanes.up)
            }
            (_, b'S')
                if !name.is_empty() && (self.prepared.named(&name).is_some() || self.pinned().is_none()) =>
            {
                self.keep(header, lanes.up);
                let was = self.prepared.take(&name);
                let undo = was.map_or(Undo::Nothing, |was| Undo::Deallocated(name, was));
                lanes.up.skip(header.total);
                self.unit.sent_extended();
                self.ledger.sent(Owed::Close(For::Own, undo));
                Step::Next
            }
            (_, b'S') if name.is_empty() => {
                self.prepared.forget_unnamed();
                server.statements.unnamed = NOT_KNOWN;
                self.forward_extended(header, Some(Owed::Close(For::Client, Undo::Nothing)), lanes.up)
            }
            (_, b'S') => {
                let undo = server.statements.take_name(&name).map_or(Undo::Nothing, Undo::Closed);
                self.forward_extended(header, Some(Owed::Close(For::Client, undo)), lanes.up)
            }
            _ => self.forward_extended(header, Some(Owed::Close(For::Client, Undo::Nothing)), lanes.up),
        }
    }
}

fn too_many_statements() -> crate::pg::error::ErrorFields {
    use crate::pg::error::{ErrorFields, SqlState};
    let message = format!("more than {} prepared statements", crate::proxy::prepared::MAX_PER_CLIENT);
    ErrorFields::fatal(SqlState::FEATURE_NOT_SUPPORTED, message)
}
