//! Whole conversations as data: what the client and the server say, and what of it the other one gets.

use std::fmt::Write as _;
use std::sync::Arc;

use super::core::{AfterLoss, Ask, Core, Heard, Loss, PoolMode, ServerState, Takes, Texts};
use super::knobs::Knobs;
use super::lane::Lane;
use super::message::{put, put_complete, put_error, put_parameter, put_query, put_ready};
use crate::pg::error::{ErrorFields, Severity, SqlState};
use crate::pg::protocol::frame::Header;
use crate::proxy::guc::{Settings, Startup};
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
    statements: Statements,
    classifier: Classifier,
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
            statements: Statements::default(),
            classifier: Classifier::default(),
            log: String::new(),
        }
    }

    fn in_mode(mode: PoolMode) -> Scene {
        let mut scene = Scene::new();
        scene.core = Core::new(mode, 1, Knobs::default());
        scene
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
                    self.core.detached();
                    self.attached = false;
                    self.log.push_str(" release");
                    break;
                }
                Heard::Ready => {}
                Heard::Lost(error) => {
                    let _ = write!(self.log, " lost({})", error.code);
                    let unbegun = error.code == SqlState::ADMIN_SHUTDOWN && !self.core.has_answered();
                    self.lose(if unbegun { Loss::Unbegun } else { Loss::Connection });
                    break;
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
        match self.core.lost(loss, "", &mut self.up, &mut self.down) {
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
                }
                Ask::End => return self.log.push_str(" end"),
                Ask::Fatal(error) => {
                    let _ = write!(self.log, " fatal({})", error.code);
                    return;
                }
            }
        }
    }

    fn flush(&mut self) {
        for (lane, arrow) in [(&mut self.up, '>'), (&mut self.down, '<')] {
            let mut wire = vec![];
            while lane.has_pending() {
                let bytes = lane.pending().to_vec();
                lane.wrote(bytes.len());
                wire.extend(bytes);
            }
            if !wire.is_empty() {
                let _ = write!(self.log, " {arrow}{}", tags(&wire, arrow));
            }
        }
    }
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

/// Server messages: a tag each, `Z` followed by the status; `C:tag`, `E:code`, `F:code` (fatal), `S:name=value`.
fn answer(script: &str) -> Vec<u8> {
    let mut out = vec![];
    for word in script.split(' ') {
        match (word.split_once(':'), word.as_bytes()) {
            (Some(("C", tag)), _) => put_complete(&mut out, &tag.replace('_', " ")),
            (Some(("S", report)), _) => {
                let (name, value) = report.split_once('=').expect("name=value");
                put_parameter(&mut out, name, value);
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

#[test]
fn a_simple_query_takes_a_server_and_gives_it_back() {
    let mut scene = Scene::new();
    scene.client(&query("select 1")).server(&answer("T D C:SELECT_1 ZI"));
    check(&scene, "need(read) >Q <TDCZ(I) release");
}

#[test]
fn a_block_keeps_its_server() {
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("select 1")).server(&answer("T D C:SELECT_1 ZT"));
    scene.client(&query("commit")).server(&answer("C:COMMIT ZI"));
    check(&scene, "need(write) >Q <CZ(T) >Q <TDCZ(T) >Q <CZ(I) release");
}

#[test]
fn bytes_may_come_in_any_pieces() {
    let (question, reply) = (extended("P::select 1|B|E|S"), answer("1 2 D C:SELECT_1 ZI"));
    let mut scene = Scene::new();
    for byte in &question {
        scene.client(&[*byte]);
    }
    for byte in &reply {
        scene.server(&[*byte]);
    }
    let whole = scene.log.replace(' ', "");
    assert!(whole.starts_with("need(read)>PBES<"), "{whole}");
    assert!(whole.ends_with("release"), "{whole}");
}

#[test]
fn a_named_statement_is_prepared_where_it_is_missing() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select 1|D:s1|S")).server(&answer("1 t n ZI"));
    scene.client(&extended("B:s1|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    // Another server connection.
    scene.server = ServerState::default();
    scene.client(&extended("B:s1|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
    // The same text under another name: nothing to send, but an answer.
    scene.client(&extended("P:s2:select 1|B:s2|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)D(bw_1)S <1tnZ(I) release \
         need(read) >B(bw_1)ES <2CZ(I) release \
         need(read) >P(bw_1)B(bw_1)ES <2CZ(I) release \
         need(read) >B(bw_1)ES <12CZ(I) release",
    );
}

#[test]
fn a_block_takes_no_server_until_it_needs_one() {
    for (script, expected) in [
        (&["begin", "commit", "START TRANSACTION", "abort"][..], "<CZ(T) <CZ(I) <CZ(T) <CZ(I)"),
        (&["begin", "set bellwether.route = 'auto'", "end"], "<CZ(T) <CZ(T) <CZ(I)"),
        (&["begin", "select 1"], "<CZ(T) need(write) >PBEQ"),
        (&["begin isolation level repeatable read", "select 1"], "<CZ(T) need(write) >PBEQ"),
        (&["begin read only", "select 1"], "<CZ(T) need(read) >PBEQ"),
        (&["begin read only", "set local work_mem = 1"], "<CZ(T) need(read) >PBEQ"),
        (&["begin read only", "listen x"], "<CZ(T) need(write) >PBEQ"),
        // The server warns of the second.
        (&["begin", "begin"], "<CZ(T) need(write) >PBEQ"),
        (&["begin", "commit and chain"], "<CZ(T) need(write) >PBEQ"),
        (&["begin; select 1"], "need(write) >Q"),
        (&["begin", "selekt"], "<CZ(T) need(write) >PBEQ"),
    ] {
        let mut scene = Scene::new();
        for sql in script {
            scene.client(&query(sql));
        }
        assert_eq!(scene.log.trim_start(), expected, "{script:?}");
    }
    let mut scene = Scene::new();
    scene.client(&query("begin")).client(&extended("P:s:select 1|B:s|E|S"));
    scene.server(&answer("1 2 C:BEGIN 1 2 D C:SELECT_1 ZT"));
    scene.client(&query("commit")).server(&answer("C:COMMIT ZI"));
    check(&scene, "<CZ(T) need(write) >PBEP(bw_1)B(bw_1)ES <12DCZ(T) >Q <CZ(I) release");
}

#[test]
fn a_block_that_gets_no_server_has_failed() {
    let mut scene = Scene::new();
    scene.client(&query("begin"));
    scene.up.input.push(&query("select 1"));
    let mut texts = Texts { classifier: &mut scene.classifier, statements: &scene.statements };
    assert!(matches!(scene.core.client(&mut scene.up, &mut scene.down, None, &mut texts), Ask::Server(_)));
    let error = ErrorFields::error(SqlState::TOO_MANY_CONNECTIONS, "m");
    scene.core.refuse(&error, &mut scene.up, &mut scene.down);
    scene.client(&query("select 2")).client(&query("rollback")).client(&query("select 3"));
    check(&scene, "<CZ(T) <E(53300)Z(E)E(25P02)Z(E) <CZ(I) need(read) >Q");
}

#[test]
fn a_block_that_loses_its_server_at_its_first_read_begins_anew() {
    let mut scene = Scene::new();
    scene.client(&query("begin")).client(&query("select 1")).lose(Loss::Connection);
    scene.server(&answer("1 2 C:BEGIN T D C:SELECT_1 ZT")).lose(Loss::Failover);
    scene.client(&query("select 2"));
    check(&scene, "<CZ(T) need(write) >PBEQ retry need(write) >PBEQ <TDCZ(T) <E(40001)Z(E)");
    // Whatever ended it, nothing of the block was run.
    let mut scene = Scene::new();
    scene.client(&query("begin")).client(&query("select 1")).server(&answer("1 E:57014"));
    scene.client(&query("rollback"));
    check(&scene, "<CZ(T) need(write) >PBEQ refused(57014) <E(57014)Z(E) <CZ(I)");
}

#[test]
fn a_name_is_not_given_twice() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select 1|S")).server(&answer("1 ZI"));
    scene.client(&extended("P:s1:select 2|S")).server(&answer("E:42P05 ZI"));
    scene.client(&extended("B:s1|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    // Elsewhere it is prepared first, so that there is something to be refused.
    scene.server = ServerState::default();
    scene.client(&extended("P:s1:select 2|S")).server(&answer("1 E:42P05 ZI"));
    scene.client(&extended("C:s1|P:s1:select 2|S")).server(&answer("1 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)S <1Z(I) release need(read) >P(bw_1)S <E(42P05)Z(I) release \
         need(read) >B(bw_1)ES <2CZ(I) release need(read) >P(bw_1)P(bw_1)S <E(42P05)Z(I) release \
         need(read) >P(bw_2)S <31Z(I) release",
    );
}

/// pgx, PDO and others deallocate by SQL what they have prepared by the protocol, under the name they know.
#[test]
fn a_statement_of_the_protocol_is_deallocated_by_sql() {
    let prepare = extended("P:s:SELECT $1::int|D:s|S");
    let use_it = extended("B:s|E|S");
    let mut scene = Scene::new();
    scene.client(&prepare).server(&answer("1 t n ZI"));
    scene.client(&query("DEALLOCATE s")).client(&use_it).server(&answer("E:26000 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)D(bw_1)S <1tnZ(I) release <CZ(I) need(read) >B(s)ES <E(26000)Z(I) release",
    );

    // By the extended protocol, and the name is free for another statement.
    let mut scene = Scene::new();
    scene.client(&prepare).server(&answer("1 t n ZI"));
    scene.client(&extended("P::DEALLOCATE s|B|D|E|S"));
    scene.client(&extended("P:s:SELECT 2|S")).server(&answer("1 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)D(bw_1)S <1tnZ(I) release <12tnCZ(I) need(read) >P(bw_2)S <1Z(I) release",
    );

    // In a block, behind what is under way; not in one that has failed.
    let mut scene = Scene::in_mode(PoolMode::Session);
    scene.client(&prepare).server(&answer("1 t n ZI"));
    scene.client(&[query("BEGIN"), query("DEALLOCATE s")].concat()).server(&answer("C:BEGIN ZT"));
    check(&scene, "need(read) >P(bw_1)D(bw_1)S <1tnZ(I) >Q <CZ(T) <CZ(T)");
    let mut scene = Scene::in_mode(PoolMode::Session);
    scene.client(&prepare).server(&answer("1 t n ZI"));
    scene
        .client(&query("BEGIN"))
        .server(&answer("C:BEGIN ZT"))
        .client(&query("x"))
        .server(&answer("E:42601 ZE"));
    scene.client(&query("DEALLOCATE s")).server(&answer("E:25P02 ZE"));
    check(&scene, "need(read) >P(bw_1)D(bw_1)S <1tnZ(I) >Q <CZ(T) >Q <E(42601)Z(E) >Q <E(25P02)Z(E)");

    // What SQL has prepared is the server's.
    let mut scene = Scene::new();
    scene.client(&query("PREPARE p AS SELECT 1")).server(&answer("C:PREPARE ZI"));
    scene.client(&query("DEALLOCATE p")).server(&answer("C:DEALLOCATE ZI"));
    check(&scene, "need(write) >Q <CZ(I) >Q <CZ(I)");
}

#[test]
fn a_statement_is_shared_by_those_who_mean_the_same_by_it() {
    let mut scene = Scene::new();
    scene.client(&extended("P:a:select '1'::timestamptz|S")).server(&answer("1 ZI"));
    scene.client(&query("set timezone = 'UTC'")).server(&answer("C:SET ZI"));
    // What is prepared stays; what is prepared now, or elsewhere, is another.
    scene.client(&extended("B:a|E|P:b:select '1'::timestamptz|S")).server(&answer("2 C:SELECT_1 1 ZI"));
    scene.server = ServerState { settings: scene.core.settings().clone(), ..ServerState::default() };
    scene.client(&extended("B:a|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
    // Nobody else's, as long as nobody knows what the settings are.
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("set local timezone = 'CET'")).server(&answer("C:SET ZT"));
    scene.client(&extended("P:c:select '1'::timestamptz|S")).server(&answer("1 ZT"));
    scene.client(&query("commit")).server(&answer("C:COMMIT ZI"));
    scene.client(&extended("P:d:select '1'::timestamptz|S")).server(&answer("ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)S <1Z(I) release need(write) >Q <CZ(I) release \
         need(read) >B(bw_1)EP(bw_2)S <2C1Z(I) release need(read) >P(bw_2)B(bw_2)ES <2CZ(I) release \
         need(write) >Q <CZ(T) >Q <CZ(T) >P(bw_3)S <1Z(T) >Q <CZ(I) release \
         need(read) >S <1Z(I) release",
    );
}

#[test]
fn a_statement_that_is_of_no_use_any_more_is_prepared_again() {
    let outdated = {
        let mut out = vec![];
        let fields =
            b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0RRevalidateCachedQuery\0\0";
        put(&mut out, b'E', &[fields]);
        out
    };
    let deallocated = answer("E:26000");
    for (error, again) in [(outdated, "P(bw_2)B(bw_2)ES"), (deallocated, "P(bw_1)B(bw_1)ES")] {
        let mut scene = Scene::new();
        scene.client(&extended("P:s:select * from t|B:s|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
        scene.client(&extended("B:s|E|S")).server(&error).server(&answer("ZI"));
        scene.log.clear();
        scene.client(&extended("B:s|E|S"));
        check(&scene, &format!("need(read) >{again}"));
    }
}

#[test]
fn a_failed_block_denies_a_text_that_its_server_knows() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select 1|S")).server(&answer("1 ZI"));
    scene.client(&query("begin; select 1/0")).server(&answer("C:BEGIN E:22012 ZE"));
    scene.client(&extended("P:s2:select 1|S")).server(&answer("E:25P02 ZE"));
    check(
        &scene,
        "need(read) >P(bw_1)S <1Z(I) release \
         need(write) >Q <CE(22012)Z(E) >P(bw_1)S <E(25P02)Z(E)",
    );
}

#[test]
fn a_statement_that_failed_to_parse_is_not_there() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select nowhere|S")).server(&answer("E:42703 ZI"));
    scene.client(&extended("P:s1:select nowhere|S")).server(&answer("1 ZI"));
    scene.client(&extended("B:gone|E|S")).server(&answer("E:26000 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)S <E(42703)Z(I) release \
         need(read) >P(bw_2)S <1Z(I) release \
         need(read) >B(gone)ES <E(26000)Z(I) release",
    );
}

#[test]
fn the_unnamed_statement_follows_its_client() {
    let mut scene = Scene::new();
    scene.client(&extended("P::select 1|D|S")).server(&answer("1 t n ZI"));
    scene.client(&extended("B|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    // Another client has used the server since.
    scene.server.statements.unnamed = 77;
    scene.client(&extended("B|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
    // A simple query drops it; the other client's must not be met in its place.
    scene.client(&query("select 1")).server(&answer("C:SELECT_1 ZI"));
    scene.server.statements.unnamed = 78;
    scene.client(&extended("B|E|S")).server(&answer("E:26000 ZI"));
    check(
        &scene,
        "need(read) >PDS <1tnZ(I) release \
         need(read) >BES <2CZ(I) release \
         need(read) >PBES <2CZ(I) release \
         need(read) >Q <CZ(I) release \
         need(read) >B(no such statement)ES <E(26000)Z(I) release",
    );
}

#[test]
fn a_pipeline_is_one_unit_up_to_its_sync() {
    let mut scene = Scene::new();
    scene.takes = Takes::ReadsOnly;
    // The write behind the read takes both to the primary; the next unit waits for its own choice.
    let mut bytes = extended("P::select 1|B|E|P::delete from t|B|E|S");
    bytes.extend(extended("P::select 2|B|E|S"));
    scene.client(&bytes).server(&answer("1 2 C:SELECT_1 1 2 C:DELETE_0 ZI"));
    scene.server(&answer("1 2 C:SELECT_1 ZI"));
    check(&scene, "need(write) >PBEPBES <12C12CZ(I) release need(read) >PBES <12CZ(I) release");
}

#[test]
fn an_error_skips_to_the_sync_and_the_server_is_still_clean() {
    let mut scene = Scene::new();
    scene.client(&extended("P:a:select 1|B:a|E|P:b:select 2|B:b|E|S")).server(&answer("1 E:22012 ZI"));
    // `b` was skipped: it is not there, neither here nor at the server.
    scene.client(&extended("P:b:select 2|B:b|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)B(bw_1)EP(bw_2)B(bw_2)ES <1E(22012)Z(I) release \
         need(read) >P(bw_3)B(bw_3)ES <12CZ(I) release",
    );
}

#[test]
fn a_portal_that_was_not_bound_is_for_the_server_to_deny() {
    let mut scene = Scene::new();
    scene.client(&extended("E|S")).server(&answer("E:34000 ZI"));
    check(&scene, "need(read) >ES <E(34000)Z(I) release");
}

#[test]
fn what_was_sent_before_a_terminate_is_answered_first() {
    let terminate = b"X\0\0\0\x04";
    let mut scene = Scene::new();
    scene.client(&[&query("select 1")[..], terminate].concat()).server(&answer("T D C:SELECT_1 ZI"));
    check(&scene, "need(read) >Q <TDCZ(I) release end");
    // Nothing comes without the rest of the data.
    let mut scene = Scene::new();
    scene.client(&query("copy t from stdin")).server(&answer("G")).client(terminate);
    check(&scene, "need(write) >Q <G end");
}

#[test]
fn copy_in_by_both_protocols() {
    let mut scene = Scene::new();
    scene.client(&query("copy t from stdin")).server(&answer("G"));
    scene.client(b"d\0\0\0\x05xd\0\0\0\x05yc\0\0\0\x04").server(&answer("C:COPY_2 ZI"));
    // The first Sync is ignored by the server: it was in copy mode.
    scene.client(&extended("P::copy t from stdin|B|E|S")).server(&answer("1 2 G"));
    scene.client(b"d\0\0\0\x05xc\0\0\0\x04").client(&extended("S")).server(&answer("C:COPY_1 ZI"));
    // What comes after a COPY that failed is for nobody.
    scene.client(b"d\0\0\0\x05xc\0\0\0\x04");
    check(&scene, "need(write) >Q <G >ddc <CZ(I) release need(write) >PBES <12G >dc >S <CZ(I) release");
}

#[test]
fn settings_go_in_front_and_their_answer_is_swallowed() {
    let mut scene = Scene::new();
    let asked = vec![("application_name".to_owned(), "a".to_owned())];
    scene.core = scene.core.with_settings(Arc::new(Startup::read(&asked).settings));
    let settings = "1 2 C:BEGIN 1 2 D C:SELECT_1 1 2 C:COMMIT";
    scene.client(&query("select 1")).server(&answer(settings)).server(&answer("C:SELECT_1 ZI"));
    scene.client(&query("select 2")).server(&answer("C:SELECT_1 ZI"));
    check(&scene, "need(read) >PBEPBEPBEQ <CZ(I) release need(read) >Q <CZ(I) release");
}

#[test]
fn a_statement_does_not_run_when_the_clients_settings_are_refused() {
    let mut scene = Scene::new();
    let asked = vec![("work_mem".to_owned(), "banana".to_owned())];
    scene.core = scene.core.with_settings(Arc::new(Startup::read(&asked).settings));
    scene.client(&query("insert into t values (1)")).server(&answer("E:22023 ZI"));
    check(&scene, "need(write) >PBEPBEPBEQ refused(22023) fatal(22023)");
}

/// What another server would be told to have the settings of `scene`'s client, and the reason of a pin.
fn followed(scene: &Scene) -> (String, Option<&'static str>) {
    let change = scene.core.settings().change_from(&Settings::default()).unwrap_or_default();
    let short = change.replace("pg_catalog.set_config", "").replace(",false)", ")").replace('\'', "");
    (short.trim_start_matches("SELECT ").to_owned(), scene.core.pinned())
}

#[test]
fn settings_are_followed_through_transactions_and_savepoints() {
    for (script, expected) in [
        (&[("set a.b = 1", "C:SET ZI")][..], "(a.b,1)"),
        (&[("set a.b = 1; set a.b = 2; reset a.c", "C:SET C:SET C:RESET ZI")], "(a.b,2)"),
        (&[("select set_config('a.b', '1', false)", "T D C:SELECT_1 ZI")], "(a.b,1)"),
        (&[("set a.b = 1", "C:SET ZI"), ("set a.b = banana", "E:22023 ZI")], "(a.b,1)"),
        (&[("set a.b = 1; select 1/0", "C:SET E:22012 ZI")], ""),
        (&[("set a.b = 1; commit; set a.b = 2; select 1/0", "C:SET N C:COMMIT C:SET E:22012 ZI")], "(a.b,1)"),
        (&[("set a.b = 1", "C:SET ZI"), ("reset all", "C:RESET ZI")], ""),
        (&[("set a.b = 1", "C:SET ZI"), ("discard all", "C:DISCARD_ALL ZI")], ""),
        (&[("/**/begin", "C:BEGIN ZT"), ("set a.b = 1", "C:SET ZT"), ("commit", "C:COMMIT ZI")], "(a.b,1)"),
        (&[("/**/begin", "C:BEGIN ZT"), ("set a.b = 1", "C:SET ZT"), ("rollback", "C:ROLLBACK ZI")], ""),
        (
            &[
                ("/**/begin", "C:BEGIN ZT"),
                ("set a.b = 1", "C:SET ZT"),
                ("select 1/0", "E:22012 ZE"),
                ("commit", "C:ROLLBACK ZI"),
            ],
            "",
        ),
        // A deferred constraint.
        (&[("/**/begin", "C:BEGIN ZT"), ("set a.b = 1", "C:SET ZT"), ("commit", "E:23505 ZI")], ""),
        (
            &[
                ("begin; set a.b = 1; commit and chain", "C:BEGIN C:SET C:COMMIT ZT"),
                ("set a.b = 2", "C:SET ZT"),
                ("rollback", "C:ROLLBACK ZI"),
            ],
            "(a.b,1)",
        ),
        (
            &[
                ("begin; set a.b = 1; savepoint s", "C:BEGIN C:SET C:SAVEPOINT ZT"),
                ("set a.b = 2; savepoint s; set a.c = 3", "C:SET C:SAVEPOINT C:SET ZT"),
                ("select 1/0", "E:22012 ZE"),
                ("rollback to s", "C:ROLLBACK ZT"),
                ("set a.d = 4", "C:SET ZT"),
                ("commit", "C:COMMIT ZI"),
            ],
            "(a.b,2),(a.d,4)",
        ),
        (
            &[
                ("begin; set a.b = 1; savepoint s; set a.b = 2", "C:BEGIN C:SET C:SAVEPOINT C:SET ZT"),
                ("savepoint t; release s; set a.c = 3", "C:SAVEPOINT C:RELEASE C:SET ZT"),
                ("commit", "C:COMMIT ZI"),
            ],
            "(a.b,2),(a.c,3)",
        ),
        (&[("begin; set local a.b = 1; commit", "C:BEGIN C:SET C:COMMIT ZI")], ""),
    ] {
        let mut scene = Scene::new();
        for (sql, reply) in script {
            scene.client(&query(sql)).server(&answer(reply));
        }
        assert_eq!(followed(&scene), (expected.to_owned(), None), "{script:?}");
        assert!(!scene.attached, "{script:?}");
        let there = scene.server.settings.change_from(&Settings::default()).is_none();
        assert_eq!(there, expected.is_empty(), "{script:?}: what is at the server");
    }
}

#[test]
fn settings_are_followed_through_the_extended_protocol() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s:set a.b = 1|B:s|E|P::select 1|B|E|S"));
    scene.server(&answer("1 2 C:SET 1 2 C:SELECT_1 ZI"));
    assert_eq!(followed(&scene), ("(a.b,1)".to_owned(), None));
    // One transaction up to the Sync.
    scene.client(&extended("P::set a.b = 2|B|E|P::select 1/0|B|E|S"));
    scene.server(&answer("1 2 C:SET 1 2 E:22012 ZI"));
    assert_eq!(followed(&scene), ("(a.b,1)".to_owned(), None));
    // Bound, and not executed.
    scene.client(&extended("P::set a.b = 3|B|S")).server(&answer("1 2 ZI"));
    assert_eq!(followed(&scene), ("(a.b,1)".to_owned(), None));
    // At another server.
    scene.server = ServerState::default();
    scene.log.clear();
    scene.client(&extended("B:s|E|S"));
    scene.server(&answer("1 2 C:BEGIN 1 2 D C:SELECT_1 1 2 C:COMMIT 1 2 C:SET ZI"));
    check(&scene, "need(write) >PBEPBEPBEP(bw_2)B(bw_2)ES <2CZ(I) release");
}

#[test]
fn a_driver_that_resets_its_connection_keeps_no_server() {
    let reset = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
    let done = "T D C:SELECT_1 C:CLOSE_CURSOR_ALL C:UNLISTEN C:RESET ZI";
    for (before, kept) in [
        (&[][..], None),
        (&["set a.b = 1", "listen x", "select pg_advisory_lock(1)"], None),
        (&["declare c cursor with hold for select 1"], None),
        (&["create temp table t (a int)"], Some("temporary")),
        (&["do 'x'", "listen x"], Some("do")),
    ] {
        let mut scene = Scene::new();
        for sql in before {
            scene.client(&query(sql)).server(&answer("C:OK ZI"));
        }
        scene.client(&query(reset)).server(&answer(done));
        assert_eq!(followed(&scene), (String::new(), kept), "{before:?}");
        scene.client(&query("discard all")).server(&answer("C:DISCARD_ALL ZI"));
        assert_eq!(scene.core.pinned(), None);
        assert!(!scene.attached);
    }
    // What fails has ended nothing; what comes behind the end stays.
    for (sql, reply) in [
        ("select pg_advisory_unlock_all(); select 1/0", "C:SELECT_1 E:22012 ZI"),
        ("select pg_advisory_unlock_all(); select pg_advisory_lock(1)", "C:SELECT_1 C:SELECT_1 ZI"),
    ] {
        let mut scene = Scene::new();
        scene.client(&query("select pg_advisory_lock(1)")).server(&answer("C:SELECT_1 ZI"));
        scene.client(&query(sql)).server(&answer(reply));
        assert_eq!(scene.core.pinned(), Some("advisory_lock"), "{sql}");
    }
}

#[test]
fn pins_of_a_transaction_that_was_rolled_back_are_none() {
    let block =
        [("/**/begin", "C:BEGIN ZT"), ("listen x; create temp table t ()", "C:LISTEN C:CREATE_TABLE ZT")];
    for (end, reply, expected) in [
        ("commit", "C:COMMIT ZI", Some("listen")),
        ("rollback", "C:ROLLBACK ZI", None),
        ("select pg_advisory_lock(1); rollback", "C:SELECT_1 C:ROLLBACK ZI", Some("advisory_lock")),
    ] {
        let mut scene = Scene::new();
        for (sql, reply) in block.iter().chain([&(end, reply)]) {
            scene.client(&query(sql)).server(&answer(reply));
        }
        assert_eq!(scene.core.pinned(), expected, "{end}");
    }
}

#[test]
fn a_reset_goes_back_to_what_the_startup_packet_asked_for() {
    let asked = vec![("application_name".to_owned(), "app".to_owned())];
    let settings = "1 2 C:BEGIN 1 2 D C:SELECT_1 1 2 C:COMMIT";
    let mut scene = Scene::new();
    scene.core = scene.core.with_settings(Arc::new(Startup::read(&asked).settings));
    let set = format!("{settings} C:SET S:application_name=x ZI");
    scene.client(&query("set application_name = x")).server(&answer(&set));
    assert_eq!(followed(&scene).0, "(application_name,x)");
    // The server's own default is not the client's: it hears of its own.
    scene.client(&query("reset all")).server(&answer("C:RESET S:application_name= ZI"));
    assert_eq!(followed(&scene).0, "(application_name,app)");
    assert!(!scene.core.told.tell("application_name", "app"));
    check(&scene, "need(write) >PBEPBEPBEQ <CSZ(I) release need(write) >Q <CSZ(I) release");
    scene.log.clear();
    // A server that is kept gets it back as one that is taken does.
    scene.client(&query("listen x; reset all")).server(&answer(&format!("{settings} C:LISTEN C:RESET ZI")));
    scene.client(&query("select 1")).server(&answer(&format!("{settings} C:SELECT_1 ZI")));
    check(&scene, "need(write) >PBEPBEPBEQ <CCZ(I) >PBEPBEPBEQ <CZ(I)");
}

#[test]
fn what_a_function_sets_is_seen_where_the_server_reports_it() {
    let mut scene = Scene::new();
    scene.server.parameters = Arc::new([("TimeZone".to_owned(), "UTC".to_owned())]);
    scene.client(&query("select f()")).server(&answer("T D C:SELECT_1 S:TimeZone=Asia/Tokyo ZI"));
    assert_eq!(followed(&scene).0, "(timezone,Asia/Tokyo)");
    // SET LOCAL is over when the transaction is.
    let mut scene = Scene::new();
    scene.server.parameters = Arc::new([("TimeZone".to_owned(), "UTC".to_owned())]);
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene
        .client(&query("set local timezone = 'Asia/Tokyo'"))
        .server(&answer("C:SET S:TimeZone=Asia/Tokyo ZT"));
    scene.client(&query("commit")).server(&answer("C:COMMIT S:TimeZone=UTC ZI"));
    assert_eq!(followed(&scene).0, "");
    // The client hears of a change once, whichever server makes it.
    scene.client(&query("set timezone = 'utc'")).server(&answer("C:SET S:TimeZone=UTC ZI"));
    check(&scene, "need(write) >Q <CZ(T) >Q <CSZ(T) >Q <CSZ(I) release need(write) >Q <CZ(I) release");
}

#[test]
fn settings_that_a_standby_refuses_may_be_had_elsewhere() {
    for (role, expected) in [
        (Role::Standby, "need(read) >PBEPBEPBEQ refused(42704) <E(42704)Z(I)"),
        (Role::Primary, "need(read) >PBEPBEPBEQ refused(42704) fatal(42704)"),
    ] {
        let mut scene = Scene::new();
        scene.client(&query("set role r")).server(&answer("C:SET ZI"));
        scene.server = ServerState::default();
        scene.role = role;
        scene.log.clear();
        scene.client(&query("select 1")).server(&answer("1 2 C:BEGIN 1 2 E:42704"));
        check(&scene, expected);
    }
}

#[test]
fn what_is_sent_behind_discard_all_is_noted_behind_it() {
    let mut scene = Scene::new();
    let mut bytes = query("discard all");
    bytes.extend(query("listen x"));
    scene.client(&bytes).server(&answer("C:DISCARD_ALL ZI"));
    scene.server(&answer("C:LISTEN ZI"));
    check(&scene, "need(write) >Q <CZ(I) release need(write) >Q <CZ(I)");
    assert_eq!(scene.core.pinned(), Some("listen"));
}

#[test]
fn what_could_not_be_read_pins_unless_it_is_no_sql() {
    for (texts, code, pinned) in [
        (&["selekt 1"][..], "42601", None),
        // It ran up to its error: what it left is not known.
        (&["selekt 1"], "22012", Some("unparsable")),
        // The error is another statement's.
        (&["selekt 1", "select 1/0"], "42601", Some("unparsable")),
    ] {
        let mut scene = Scene::new();
        for (n, text) in texts.iter().enumerate() {
            let last = n + 1 == texts.len();
            let reply = if last { format!("E:{code} ZI") } else { "C:OK ZI".to_owned() };
            scene.client(&query(text)).server(&answer(&reply));
        }
        assert_eq!(scene.core.pinned(), pinned, "{texts:?} {code}");
    }
}

#[test]
fn a_cached_parse_is_answered_before_a_flush_is_waited_for() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select 1|B:s1|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
    scene.log.clear();
    scene.client(&extended("B:s1|E|P:s2:select 1|H")).server(&answer("2 C:SELECT_1"));
    check(&scene, "need(write) >B(bw_1)EH <2C1");
}

#[test]
fn under_quorum_no_client_chooses_weaker_commits() {
    use crate::topology::Durability;
    let weak = "set synchronous_commit = off";
    for (durability, text, refused) in [
        (Durability::Quorum, weak, true),
        (Durability::Quorum, "begin; set local synchronous_commit = 'LOCAL'; insert into t values (1)", true),
        (Durability::Quorum, "select set_config('synchronous_commit', 'remote_write', true)", true),
        (Durability::Quorum, "select set_config('synchronous_commit', $1, true)", true),
        (Durability::Quorum, "set synchronous_commit = on", false),
        (Durability::Quorum, "set synchronous_commit to default", false),
        (Durability::Async, weak, false),
    ] {
        for by in ["query", "unnamed", "named"] {
            let mut scene = Scene::new();
            scene.core = Core::new(PoolMode::Transaction, 1, Knobs::default()).with_durability(durability);
            let bytes = match by {
                "query" => query(text),
                "unnamed" => extended(&format!("P::{text}|B|E|S")),
                _ => extended(&format!("P:s:{text}|B:s|E|S")),
            };
            scene.attached = true;
            scene.up.input.push(&bytes);
            let mut texts = Texts { classifier: &mut scene.classifier, statements: &scene.statements };
            let (up, down) = (&mut scene.up, &mut scene.down);
            scene.core.attached(Takes::Everything, &mut scene.server, up);
            let _ = scene.core.client(up, down, Some(&mut scene.server), &mut texts);
            let sent = String::from_utf8_lossy(up.pending()).into_owned();
            assert_eq!(sent.contains("weaker than quorum"), refused, "{durability:?} {text} {by}");
            assert_eq!(sent.contains(text), !refused, "{durability:?} {text} {by}");
        }
    }
}

/// NoticeResponse of `SyncRepWaitForLSN`.
fn cancelled_wait() -> Vec<u8> {
    let mut out = vec![];
    put(&mut out, b'N', &[b"SWARNING\0VWARNING\0C01000\0Mwait cancelled\0RSyncRepWaitForLSN\0\0"]);
    out
}

#[test]
fn a_commit_that_stopped_waiting_for_the_quorum_is_no_success() {
    let mut scene = Scene::new();
    scene.client(&query("insert into t values (1)"));
    scene.log.clear();
    let mut bytes = cancelled_wait();
    bytes.extend(answer("C:INSERT_0_1 ZI"));
    let ended = {
        scene.down.input.push(&bytes);
        scene.core.server(&mut scene.down, &mut scene.server)
    };
    assert!(
        matches!(&ended, Heard::Broken(error) if error.code == SqlState::TRANSACTION_RESOLUTION_UNKNOWN),
        "{ended:?}"
    );
    assert!(!scene.down.has_pending(), "not even the warning");
    // Any other notice is the client's.
    let mut scene = Scene::new();
    scene.client(&query("insert into t values (1)")).server(&answer("N C:INSERT_0_1 ZI"));
    check(&scene, "need(write) >Q <NCZ(I) release");
}

#[test]
fn a_whole_answer_stays_when_a_farewell_comes_with_it() {
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("insert into t values (1)"));
    scene.log.clear();
    scene.down.input.push(&answer("C:INSERT_0_1 ZT F:57P01"));
    assert!(matches!(scene.core.server(&mut scene.down, &mut scene.server), Heard::Ready));
    assert!(matches!(scene.core.server(&mut scene.down, &mut scene.server), Heard::Lost(_)));
    scene.core.take_answer_back(&mut scene.down);
    scene.lose(Loss::Connection);
    check(&scene, "<CZ(T)");
}

#[test]
fn after_a_commit_in_doubt_no_standby_is_asked_what_became_of_it() {
    use crate::proxy::route::OwnWrite;
    for (statement, expected) in
        [("insert into t values (1)", OwnWrite::Unknown), ("select pg_backend_pid()", OwnWrite::None)]
    {
        let mut scene = Scene::new();
        scene.client(&query(statement)).lose(Loss::Failover);
        assert_eq!(scene.core.knobs.write, expected, "{statement}");
    }
}

#[test]
fn what_stays_at_the_server_pins_until_discard_all() {
    let mut scene = Scene::new();
    scene.client(&query("listen x")).server(&answer("C:LISTEN ZI"));
    assert_eq!(scene.core.pinned(), Some("listen"));
    scene.client(&query("select 1")).server(&answer("C:SELECT_1 ZI"));
    scene.client(&query("discard all")).server(&answer("C:DISCARD_ALL ZI"));
    check(&scene, "need(write) >Q <CZ(I) >Q <CZ(I) >Q <CZ(I) release");
}

#[test]
fn our_own_settings_never_reach_a_server() {
    let mut scene = Scene::new();
    scene.client(&query("set bellwether.route = 'primary'")).client(&query("show bellwether.route"));
    scene.client(&extended("P::set bellwether.route = 'standby'|B|D|E|S"));
    check(&scene, "<CZ(I) <TDCZ(I) <12tnCZ(I)");
    assert_eq!(scene.core.knobs.route(), crate::proxy::route::Route::Standby);
}

#[test]
fn a_server_that_dies_is_told_truthfully() {
    for (before, statement, loss, expected) in [
        // Nothing sent to the client yet, and only a read.
        ("", "select 1", Loss::Connection, "retry need(read) >Q"),
        ("", "insert into t values (1)", Loss::Connection, "<E(08007)Z(I)"),
        ("", "insert into t values (1)", Loss::Failover, "<E(08007)Z(I)"),
        ("/**/begin", "insert into t values (1)", Loss::Failover, "<E(40001)Z(E)"),
        ("/**/begin", "insert into t values (1)", Loss::Connection, "<E(08006)Z(E)"),
        ("/**/begin;insert into t values (1)", "commit", Loss::Failover, "<E(08007)Z(I)"),
        ("/**/begin", "commit", Loss::Failover, "<E(40001)Z(E)"),
        // What follows the block's end commits by itself.
        ("/**/begin", "rollback; insert into t values (1)", Loss::Failover, "<E(08007)Z(I)"),
        ("listen x", "select 1", Loss::Failover, "fatal(57P01)"),
    ] {
        let mut scene = Scene::new();
        for sql in before.split(';').filter(|sql| !sql.is_empty()) {
            let status = if sql == "listen x" { "C:LISTEN ZI" } else { "C:OK ZT" };
            scene.client(&query(sql)).server(&answer(status));
        }
        scene.client(&query(statement));
        scene.log.clear();
        scene.lose(loss);
        assert_eq!(scene.log.trim_start(), expected, "{before:?} {statement:?} {loss:?}");
    }
}

#[test]
fn a_block_that_lost_its_server_fails_until_it_is_ended() {
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.log.clear();
    scene.lose(Loss::Failover);
    for sql in ["select 1", "select 2", "rollback", "select 3"] {
        scene.client(&query(sql));
    }
    check(&scene, "<E(40001)Z(E) <E(25P02)Z(E) <CZ(I) need(read) >Q");
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.log.clear();
    scene.lose(Loss::Failover).client(&extended("P::select 1|B|E|S")).client(&extended("P::rollback|B|E|S"));
    check(&scene, "<E(40001)Z(E) <12CZ(I)");
    // A COMMIT as the next statement must not look like a success.
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.log.clear();
    scene.lose(Loss::Failover).client(&query("commit")).client(&query("select 1"));
    check(&scene, "<E(40001)Z(I) need(read) >Q");
}

#[test]
fn a_servers_farewell_is_not_the_sessions() {
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("select 1")).server(&answer("F:57P01"));
    check(&scene, "need(write) >Q <CZ(T) >Q lost(57P01) <E(08006)Z(E)");
}

#[test]
fn every_lost_unit_of_a_pipeline_is_answered() {
    let mut scene = Scene::new();
    let mut bytes = query("insert into t values (1)");
    bytes.extend(query("insert into t values (2)"));
    bytes.extend(extended("P::insert into t values (3)|B|E"));
    scene.client(&bytes);
    scene.log.clear();
    scene.lose(Loss::Connection).client(&extended("S"));
    check(&scene, "<E(08007)Z(I)E(08007)Z(I)E(08007) <Z(I)");
}

#[test]
fn what_is_pipelined_behind_the_end_of_a_block_commits_by_itself() {
    for end in ["commit", "rollback"] {
        let mut scene = Scene::new();
        scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
        let mut bytes = query(end);
        bytes.extend(query("insert into t values (1)"));
        scene.client(&bytes);
        scene.log.clear();
        scene.lose(Loss::Failover);
        check(&scene, "<E(08007)Z(I)E(08007)Z(I)");
    }
}

#[test]
fn violations_end_the_session() {
    for bytes in
        [b"Q\x7f\xff\xff\xff".as_slice(), b"Q\0\0\0\x03", b"p\0\0\0\x05\0", b"Q\0\0\0\x06ab", b"z\0\0\0\x04"]
    {
        let mut scene = Scene::new();
        scene.client(bytes);
        check(&scene, "fatal(08P01)");
    }
    let mut scene = Scene::new();
    scene.client(&extended("S")).client(b"X\0\0\0\x04");
    check(&scene, "<Z(I) end");
}

#[test]
fn a_value_of_a_gigabyte_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.client(&extended("P::select $1|S")).server(&answer("1 ZI"));
    scene.log.clear();
    let mut bind = b"B\x3f\0\0\0\0\0".to_vec();
    bind.resize(70_000, b'x');
    scene.client(&bind);
    assert!(scene.log.contains("need(write) >"), "{}", scene.log);
    let mut down = vec![];
    put_ready(&mut down, super::message::Status::Idle);
    assert!(!scene.core.can_release(&scene.up), "half a message is under way");
}

#[test]
fn statement_mode_takes_no_blocks() {
    for (client, server, expected) in [
        ("Q:select 1", "C:SELECT_1 ZI", "need(read) >Q <CZ(I) release"),
        ("Q:begin", "", "<E(0A000)Z(I)"),
        ("Q:commit and chain", "", "<E(0A000)Z(I)"),
        ("Q:begin; select 1; commit", "C:BEGIN ZI", "need(write) >Q <CZ(I) release"),
        ("X:P::begin|B|E|S", "", "<E(0A000)Z(I)"),
        ("X:P::select 1|P:x:begin|S", "", "<E(0A000)Z(I)"),
        // Opened where no text says so.
        (
            "Q:select 1",
            "C:SELECT_1 ZT",
            "need(read) >Q <C broken(transaction blocks not allowed in statement pooling mode)",
        ),
    ] {
        let mut scene = Scene::in_mode(PoolMode::Statement);
        match client.split_once(':') {
            Some(("Q", text)) => scene.client(&query(text)),
            Some((_, script)) => scene.client(&extended(script)),
            None => panic!("{client}"),
        };
        if !server.is_empty() {
            scene.server(&answer(server));
        }
        check(&scene, expected);
    }
}

#[test]
fn what_a_server_said_farewell_to_instead_of_beginning_with_it_runs_again() {
    for (client, server, expected) in [
        ("Q:insert into t values (1)", "F:57P01", "lost(57P01) retry need(write) >Q"),
        ("Q:/**/begin", "F:57P01", "lost(57P01) retry need(write) >Q"),
        ("X:P::insert into t values (1)|B|E|S", "F:57P01", "lost(57P01) retry need(write) >PBES"),
        // Not as a whole undone, or with effects elsewhere.
        ("Q:insert into t values (1); insert into t values (2)", "F:57P01", "lost(57P01) <E(08007)Z(I)"),
        ("Q:call p()", "F:57P01", "lost(57P01) fatal(57P01)"),
        ("Q:create table t ()", "F:57P01", "lost(57P01) <E(08007)Z(I)"),
        // It had begun to answer: the commit may be behind it.
        (
            "X:P::insert into t values (1)|B|E|S",
            "1 2 n C:INSERT_0_1 F:57P01",
            "<12nC lost(57P01) <E(08007)Z(I)",
        ),
        // No farewell of this backend's own.
        ("Q:insert into t values (1)", "F:57P02", "lost(57P02) <E(08007)Z(I)"),
    ] {
        let mut scene = Scene::new();
        match client.split_once(':') {
            Some(("Q", text)) => scene.client(&query(text)),
            Some((_, script)) => scene.client(&extended(script)),
            None => panic!("{client}"),
        };
        scene.log.clear();
        scene.server(&answer(server));
        check(&scene, expected);
    }
}
