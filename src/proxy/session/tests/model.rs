//! A server as far as names, portals, blocks and settings go: what of postgres.c, prepare.c and portalmem.c decides what
//! a client hears.
//!
//! It knows a handful of texts. A row has one value.

use std::collections::HashMap;

use super::super::message::{
    Parse, Status, bind_names, cstr, put, put_complete, put_error, put_ready, target,
};
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::frame::{HEADER_LEN, Header};

#[derive(Debug)]
pub(super) struct Model {
    prepared: HashMap<Vec<u8>, String>,
    portals: HashMap<Vec<u8>, Portal>,
    status: Status,
    /// After an error, up to a Sync.
    skips: bool,
    whose: Whose,
    /// Of a message whose end has not come.
    unheard: Vec<u8>,
    /// Of the one setting there is: now, and when the transaction began.
    work_mem: String,
    work_mem_before: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Clients,
    Pools,
}

#[derive(Clone, Debug)]
struct Portal {
    text: String,
    is_done: bool,
}

type Answer<T> = Result<T, SqlState>;

const DUPLICATE_CURSOR: &[u8; 5] = b"42P03";
const DUPLICATE_STATEMENT: &[u8; 5] = b"42P05";
const NO_COLUMN: &[u8; 5] = b"42703";
const NO_CURSOR: &[u8; 5] = b"34000";
const DIVISION_BY_ZERO: &[u8; 5] = b"22012";
const WRONG_STATE: &[u8; 5] = b"55000";

fn code<T>(code: &[u8; 5]) -> Answer<T> {
    Err(SqlState::parse(code).expect("five letters"))
}

impl Model {
    pub(super) fn new(whose: Whose) -> Model {
        let work_mem = "4MB".to_owned();
        Model {
            prepared: HashMap::new(),
            portals: HashMap::new(),
            status: Status::Idle,
            skips: false,
            whose,
            unheard: vec![],
            work_mem_before: work_mem.clone(),
            work_mem,
        }
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// What it answers to `bytes`, which may end within a message.
    pub(super) fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        let mut unheard = std::mem::take(&mut self.unheard);
        unheard.extend_from_slice(bytes);
        let mut rest = &unheard[..];
        while let Ok(Some(header)) = Header::peek(rest) {
            let Some((message, behind)) = rest.split_at_checked(header.total) else { break };
            self.hear(message, &mut out);
            rest = behind;
        }
        self.unheard = rest.to_vec();
        out
    }

    fn hear(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let answer = match message[0] {
            b'S' => {
                self.skips = false;
                if self.status == Status::Idle {
                    self.end(Commits::Yes);
                }
                return put_ready(out, self.status);
            }
            // Known: who leaves out a Parse of the unnamed statement has none, instead of the one before.
            b'P' if self.skips && message[HEADER_LEN] == 0 && self.whose == Whose::Clients => {
                self.prepared.remove(&b""[..]);
                return;
            }
            _ if self.skips => return,
            b'Q' => return self.query(&message[HEADER_LEN..message.len() - 1], out),
            b'P' => self.parse(message).map(|()| put(out, b'1', &[])),
            b'B' => self.bind(message).map(|()| put(out, b'2', &[])),
            b'D' => self.describe(message, out),
            b'E' => self.execute(message, out),
            b'C' => {
                let (kind, name) = target(message).expect("a Close");
                if kind == b'S' {
                    self.prepared.remove(name);
                } else {
                    self.portals.remove(name);
                }
                put(out, b'3', &[]);
                Ok(())
            }
            b'H' => Ok(()),
            other => panic!("no such message: {}", char::from(other)),
        };
        if let Err(error) = answer {
            self.fail(error, out);
            self.skips = true;
        }
    }

    fn fail(&mut self, error: SqlState, out: &mut Vec<u8>) {
        put_error(out, &ErrorFields::error(error, "m"));
        match self.status {
            Status::Idle => self.end(Commits::No),
            Status::Block | Status::Failed => self.status = Status::Failed,
        }
    }

    fn end(&mut self, commits: Commits) {
        match commits {
            Commits::Yes => self.work_mem_before.clone_from(&self.work_mem),
            Commits::No => self.work_mem.clone_from(&self.work_mem_before),
        }
        self.portals.clear();
        self.status = Status::Idle;
    }

    fn query(&mut self, text: &[u8], out: &mut Vec<u8>) {
        self.prepared.remove(&b""[..]);
        self.portals.remove(&b""[..]);
        for statement in text_of(text).split(';') {
            let answer = self.analyze(statement).and_then(|()| self.run(statement, Rows::Described, out));
            if let Err(error) = answer {
                self.fail(error, out);
                return put_ready(out, self.status);
            }
        }
        if self.status == Status::Idle {
            self.end(Commits::Yes);
        }
        put_ready(out, self.status);
    }

    fn parse(&mut self, message: &[u8]) -> Answer<()> {
        let Parse { name, text, .. } = Parse::read(message).expect("a Parse");
        if name.is_empty() {
            self.prepared.remove(name);
        }
        let text = text_of(text);
        self.analyze(&text)?;
        if self.prepared.contains_key(name) {
            return code(DUPLICATE_STATEMENT);
        }
        self.prepared.insert(name.to_vec(), text);
        Ok(())
    }

    fn bind(&mut self, message: &[u8]) -> Answer<()> {
        let (portal, name) = bind_names(message).expect("a Bind");
        let Some(text) = self.prepared.get(name).cloned() else {
            return Err(SqlState::INVALID_SQL_STATEMENT_NAME);
        };
        self.deny(&text)?;
        if !portal.is_empty() && self.portals.contains_key(portal) {
            return code(DUPLICATE_CURSOR);
        }
        self.portals.insert(portal.to_vec(), Portal { text, is_done: false });
        Ok(())
    }

    fn describe(&mut self, message: &[u8], out: &mut Vec<u8>) -> Answer<()> {
        // Only of what returns rows, in truth.
        self.deny("")?;
        let text = match target(message).expect("a Describe") {
            (b'S', name) => match self.prepared.get(name) {
                Some(text) => {
                    put(out, b't', &[&[0, 0]]);
                    text
                }
                None => return Err(SqlState::INVALID_SQL_STATEMENT_NAME),
            },
            (_, name) => match self.portals.get(name) {
                Some(portal) => &portal.text,
                None => return code(NO_CURSOR),
            },
        };
        put(out, if text.starts_with("select") { b'T' } else { b'n' }, &[]);
        Ok(())
    }

    fn execute(&mut self, message: &[u8], out: &mut Vec<u8>) -> Answer<()> {
        let (name, _) = cstr(&message[HEADER_LEN..]).expect("an Execute");
        let Some(Portal { text, is_done }) = self.portals.get(name).cloned() else { return code(NO_CURSOR) };
        self.deny(&text)?;
        if is_done {
            return code(WRONG_STATE);
        }
        // What ends a transaction ends its portals, but for the one that is being run (`PreCommit_Portals`).
        let answer = self.run(&text, Rows::Bare, out);
        self.portals.insert(name.to_vec(), Portal { text, is_done: true });
        answer
    }

    /// In a failed block.
    fn deny(&self, text: &str) -> Answer<()> {
        let ends = matches!(text.trim(), "commit" | "rollback");
        if self.status == Status::Failed && !ends {
            return Err(SqlState::IN_FAILED_SQL_TRANSACTION);
        }
        Ok(())
    }

    fn analyze(&self, text: &str) -> Answer<()> {
        self.deny(text)?;
        if text.contains("nowhere") { code(NO_COLUMN) } else { Ok(()) }
    }

    fn run(&mut self, text: &str, rows: Rows, out: &mut Vec<u8>) -> Answer<()> {
        let text = text.trim();
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        let tag = match (command, rest) {
            ("begin", _) => {
                self.status = Status::Block;
                "BEGIN"
            }
            ("commit", _) if self.status != Status::Failed => {
                self.end(Commits::Yes);
                "COMMIT"
            }
            ("commit" | "rollback", _) => {
                self.end(Commits::No);
                "ROLLBACK"
            }
            ("prepare", _) => {
                let (name, text) = rest.split_once(" as ").expect("a statement");
                if self.prepared.contains_key(name.as_bytes()) {
                    return code(DUPLICATE_STATEMENT);
                }
                self.prepared.insert(name.into(), text.to_owned());
                "PREPARE"
            }
            ("execute", name) => {
                let Some(text) = self.prepared.get(name.as_bytes()).cloned() else {
                    return Err(SqlState::INVALID_SQL_STATEMENT_NAME);
                };
                return self.run(&text, rows, out);
            }
            ("deallocate", "all") => {
                self.prepared.retain(|name, _| name.is_empty());
                "DEALLOCATE ALL"
            }
            ("deallocate", name) => {
                if self.prepared.remove(name.as_bytes()).is_none() {
                    return Err(SqlState::INVALID_SQL_STATEMENT_NAME);
                }
                "DEALLOCATE"
            }
            ("set", _) => {
                rest.rsplit('\'').nth(1).expect("a value").clone_into(&mut self.work_mem);
                "SET"
            }
            ("show", _) => {
                put_row(out, rows, &self.work_mem);
                "SHOW"
            }
            ("insert", _) => "INSERT 0 1",
            ("select", "1/0") => return code(DIVISION_BY_ZERO),
            ("select", what) => {
                self.call(what);
                put_row(out, rows, what);
                "SELECT 1"
            }
            other => panic!("no such statement: {other:?}"),
        };
        put_complete(out, tag);
        Ok(())
    }

    fn call(&mut self, what: &str) {
        if let Some(name) = what.strip_prefix("prepares_") {
            let name = name.trim_end_matches("()").as_bytes().to_vec();
            self.prepared.entry(name).or_insert_with(|| "select 666".to_owned());
        } else if what.starts_with("pg_catalog.set_config('work_mem'") {
            let value = what.split('\'').nth(3).unwrap_or("4MB");
            value.clone_into(&mut self.work_mem);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Commits {
    Yes,
    No,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    Described,
    Bare,
}

/// As this server reads it.
fn text_of(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).replace("/**/", "");
    if text.starts_with("SELECT") { text.replacen("SELECT", "select", 1) } else { text }
        .replace("BEGIN ISOLATION LEVEL READ COMMITTED", "begin")
        .replace("COMMIT", "commit")
        .replace("DEALLOCATE", "deallocate")
}

fn put_row(out: &mut Vec<u8>, rows: Rows, value: &str) {
    if rows == Rows::Described {
        put(out, b'T', &[]);
    }
    let length = u32::try_from(value.len()).expect("short").to_be_bytes();
    put(out, b'D', &[&[0, 1], &length, value.as_bytes()]);
}
