//! Whole conversations as data: what the client and the server say, and what of it the other one gets.

mod amid;
mod commits;
mod copy;
mod deferred;
mod fuzz;
mod listen;
mod losses;
mod model;
mod names;
mod pins;
mod quorum;
mod reports;
mod schema;
mod settings;
mod shell;
mod statements;
mod twins;
mod units;

use std::fmt::Write as _;
use std::sync::Arc;

use super::core::{Ask, Core, Heard, PoolMode, ServerState, Takes, Texts};
use super::knobs::Knobs;
use super::lane::Lane;
use super::listening::Listens;
use super::losses::{AfterLoss, Loss};
use super::message::{put, put_complete, put_error, put_parameter, put_query};
use super::reported::Reported;
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::pg::protocol::frame::Header;
use crate::proxy::guc::Settings;
use crate::proxy::listen::Notification;
use crate::proxy::prepared::Statements;
use crate::proxy::route::Classifier;
use crate::topology::Role;

/// One session, with a server at hand as soon as it asks for one.
struct Scene {
    core: Core,
    up: Lane,
    down: Lane,
    server: ServerState,
    attached: bool,
    takes: Takes,
    role: Role,
    /// What the shared connection says when it is asked to listen.
    listens: Listens,
    /// What it has heard when it is asked for that.
    heard: Vec<Arc<Notification>>,
    statements: Statements,
    classifier: Classifier,
    /// All that was written, to the server and to the client.
    wires: [Vec<u8>; 2],
    /// What happened, in order: `>` to the server, `<` to the client.
    log: String,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            core: Core::new(PoolMode::Transaction, 1, Knobs::default()),
            up: Lane::default(),
            down: Lane::default(),
            server: ServerState::default(),
            attached: false,
            takes: Takes::Everything,
            role: Role::Primary,
            listens: Listens::No,
            heard: vec![],
            statements: Statements::default(),
            classifier: Classifier::default(),
            wires: [vec![], vec![]],
            log: String::new(),
        }
    }

    fn in_mode(mode: PoolMode) -> Scene {
        let mut scene = Scene::new();
        scene.core = Core::new(mode, 1, Knobs::default());
        scene
    }

    /// A server that has reported this after login, and a client that was greeted with it.
    fn login(&mut self, parameters: &[(&str, &str)]) {
        self.server = Scene::server_after_login(parameters);
        self.core.greet(&owned(parameters), &mut vec![]);
    }

    fn server_after_login(parameters: &[(&str, &str)]) -> ServerState {
        ServerState { reported: Reported::first(owned(parameters)), ..ServerState::default() }
    }

    fn client(&mut self, bytes: &[u8]) -> &mut Scene {
        self.up.input.push(bytes);
        self.settle();
        self
    }

    fn server(&mut self, bytes: &[u8]) -> &mut Scene {
        self.down.input.push(bytes);
        loop {
            let heard = self.core.server(&mut self.down, &mut self.server);
            self.flush();
            match heard {
                Heard::Nothing => break,
                Heard::Ready if self.core.can_release(&self.up) => {
                    self.core.take_ended();
                    self.core.detached();
                    self.attached = false;
                    self.log.push_str(if self.server.retires { " retire" } else { " release" });
                    break;
                }
                Heard::Ready => {}
                Heard::Settle => {
                    self.log.push_str(" settle");
                    self.core.settled(std::mem::take(&mut self.heard));
                }
                Heard::Lost(error) => {
                    let _ = write!(self.log, " lost({})", error.code);
                    let unbegun = error.code == SqlState::ADMIN_SHUTDOWN && !self.core.has_answered();
                    self.lose(if unbegun { Loss::Unbegun } else { Loss::Connection });
                    break;
                }
                Heard::Over => {
                    self.log.push_str(" over");
                    return self;
                }
                Heard::Broken(error) => {
                    let _ = write!(self.log, " broken({})", error.message);
                    break;
                }
                Heard::Refused(error) => {
                    let _ = write!(self.log, " refused({})", error.code);
                    self.attached = false;
                    let after = self.core.settings_refused(error, self.role, &mut self.up, &mut self.down);
                    if let AfterLoss::Fatal(error) = after {
                        let _ = write!(self.log, " fatal({})", error.code);
                    }
                    self.flush();
                    break;
                }
            }
        }
        self.settle();
        self
    }

    fn lose(&mut self, loss: Loss) -> &mut Scene {
        self.attached = false;
        match self.core.lost(loss, self.role, "", &mut self.up, &mut self.down) {
            AfterLoss::GoOn => {}
            AfterLoss::Retry => self.log.push_str(" retry"),
            AfterLoss::Fatal(error) => {
                let _ = write!(self.log, " fatal({})", error.code);
            }
            AfterLoss::Close => self.log.push_str(" close"),
        }
        self.flush();
        self.settle();
        self
    }

    fn settle(&mut self) {
        loop {
            let mut texts = Texts { classifier: &mut self.classifier, statements: &self.statements };
            let server = self.attached.then_some(&mut self.server);
            let ask = self.core.client(&mut self.up, &mut self.down, server, &mut texts);
            self.flush();
            match ask {
                Ask::Nothing => return,
                Ask::Server(demand) => {
                    let access =
                        if demand.verdict.is_read() && demand.forced.is_none() { "read" } else { "write" };
                    let _ = write!(self.log, " need({access})");
                    self.attached = true;
                    self.core.attached(self.takes, &mut self.server, &mut self.up);
                    self.core.serves(self.role);
                }
                Ask::Listen(channels) => {
                    if self.listens == Listens::Yes {
                        let _ = write!(self.log, " listen({})", channels.join(" "));
                    }
                    self.core.listens(self.listens);
                    assert!(!self.core.is_at_rest(&self.up), "the LISTEN is still to be sent");
                }
                // Known, or not to be had: the same command again.
                Ask::Position => self.log.push_str(" position"),
                Ask::End => return self.log.push_str(" end"),
                Ask::Fatal(error) => {
                    let _ = write!(self.log, " fatal({})", error.code);
                    return;
                }
            }
        }
    }

    fn flush(&mut self) {
        let lanes = [(&mut self.up, '>'), (&mut self.down, '<')];
        for ((lane, arrow), all) in lanes.into_iter().zip(&mut self.wires) {
            let mut wire = vec![];
            while lane.has_pending() {
                let bytes = lane.pending().to_vec();
                lane.wrote(bytes.len());
                wire.extend(bytes);
            }
            all.extend_from_slice(&wire);
            if !wire.is_empty() {
                let _ = write!(self.log, " {arrow}{}", tags(&wire, arrow));
            }
        }
    }
}

fn owned(parameters: &[(&str, &str)]) -> Arc<[(String, String)]> {
    parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The messages by their tags; with statement names, error codes and transaction states.
fn tags(mut bytes: &[u8], arrow: char) -> String {
    let mut tags = String::new();
    while let Ok(Some(header)) = Header::peek(bytes) {
        let Some((message, rest)) = bytes.split_at_checked(header.total) else { break };
        bytes = rest;
        tags.push(char::from(header.tag));
        let body = &message[5..];
        let name = match header.tag {
            b'P' => super::message::cstr(body).map(|(name, _)| name),
            b'B' => super::message::bind_names(message).map(|(_, name)| name),
            b'C' | b'D' if arrow == '>' && body.first() == Some(&b'S') => Some(&body[1..body.len() - 1]),
            b'Z' => Some(body),
            _ => None,
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let _ = write!(tags, "({})", String::from_utf8_lossy(name));
        }
        if header.tag == b'E'
            && let Some(error) = super::message::read_error(message).filter(|error| !error.message.is_empty())
        {
            let _ = write!(tags, "({})", error.code);
        }
    }
    if bytes.is_empty() { tags } else { format!("{tags}+{}", bytes.len()) }
}

fn query(text: &str) -> Vec<u8> {
    let mut out = vec![];
    put_query(&mut out, text);
    out
}

/// Extended messages: `P:name:text`, `B:name`, `D:name`, `C:name`, `E`, `H`, `S`.
fn extended(script: &str) -> Vec<u8> {
    let mut out = vec![];
    for word in script.split('|') {
        let mut parts = word.splitn(3, ':');
        let (tag, name, text) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let name = name.as_bytes();
        match tag {
            Some("P") => put(&mut out, b'P', &[name, b"\0", text.as_bytes(), b"\0\0\0"]),
            Some("B") => put(&mut out, b'B', &[b"\0", name, b"\0\0\0\0\0\0\0"]),
            Some("D") => put(&mut out, b'D', &[b"S", name, b"\0"]),
            Some("C") => put(&mut out, b'C', &[b"S", name, b"\0"]),
            Some("E") => put(&mut out, b'E', &[b"\0\0\0\0\0"]),
            Some("H") => put(&mut out, b'H', &[]),
            Some("S") => put(&mut out, b'S', &[]),
            other => panic!("no such message: {other:?}"),
        }
    }
    out
}

/// Server messages: a tag each, `Z` followed by the status; `C:tag`, `D:value`, `E:code`, `F:code` (fatal), `S:name=value`.
fn answer(script: &str) -> Vec<u8> {
    let mut out = vec![];
    for word in script.split(' ') {
        match (word.split_once(':'), word.as_bytes()) {
            (Some(("C", tag)), _) => put_complete(&mut out, &tag.replace('_', " ")),
            (Some(("S", report)), _) => {
                let (name, value) = report.split_once('=').expect("name=value");
                put_parameter(&mut out, name, value);
            }
            // A row of one value.
            (Some(("D", value)), _) => {
                let value = value.replace('_', " ");
                let length = u32::try_from(value.len()).expect("short").to_be_bytes();
                put(&mut out, b'D', &[&[0, 1], &length, value.as_bytes()]);
            }
            // A function's result.
            (Some(("V", value)), _) => {
                let value: u64 = value.parse().expect("a number");
                put(&mut out, b'V', &[&8_u32.to_be_bytes(), &value.to_be_bytes()]);
            }
            (Some((kind, code)), _) => {
                let severity = if kind == "F" { Severity::Fatal } else { Severity::Error };
                let code = SqlState::parse(code.as_bytes()).expect("a code");
                put_error(&mut out, &ErrorFields::new(severity, code, "m"));
            }
            (None, [b'Z', status]) => {
                put(&mut out, b'Z', &[&[*status]]);
            }
            (None, [tag]) => put(&mut out, *tag, &[]),
            (None, other) => panic!("no such message: {other:?}"),
        }
    }
    out
}

#[track_caller]
fn check(scene: &Scene, expected: &str) {
    assert_eq!(scene.log.trim_start(), expected);
}

/// What another server would be told to have the settings of `scene`'s client, and the reason of a pin.
fn followed(scene: &Scene) -> (String, Option<&'static str>) {
    let change = scene.core.settings().change_from(&Settings::default()).unwrap_or_default();
    let short = change.replace("pg_catalog.set_config", "").replace(",false)", ")").replace('\'', "");
    (short.trim_start_matches("SELECT ").to_owned(), scene.core.pinned())
}
