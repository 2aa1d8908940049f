//! LISTEN by way of the connection that all share, and whose a notification is.

use std::sync::Arc;

use super::{Scene, answer, check, extended, query};
use crate::pg::protocol::frame::Header;
use crate::proxy::listen::Notification;
use crate::proxy::session::core::{Core, Heard, PoolMode};
use crate::proxy::session::knobs::Knobs;
use crate::proxy::session::listening::Listens;
use crate::proxy::session::losses::Loss;
use crate::proxy::session::message::{cstr, put};

const CLIENT: u32 = 4711;
const BACKEND: u32 = 70;

fn scene(mode: PoolMode) -> Scene {
    let mut scene = Scene::new();
    scene.core = Core::new(mode, 1, Knobs::default()).with_pid(CLIENT);
    scene.server.pid = BACKEND;
    scene.listens = Listens::Yes;
    scene
}

fn notification(sender: u32, channel: &str) -> Vec<u8> {
    let mut message = vec![];
    put(&mut message, b'A', &[&sender.to_be_bytes(), channel.as_bytes(), b"\0x\0"]);
    message
}

fn heard(channels: &[&str]) -> Vec<Arc<Notification>> {
    let of = |channel: &&str| {
        let message = notification(7, channel).into();
        Arc::new(Notification { channel: (*channel).into(), message })
    };
    channels.iter().map(of).collect()
}

/// What went over a wire: texts, command tags, and who notified on which channel.
fn said(mut bytes: &[u8]) -> String {
    let mut words = vec![];
    while let Ok(Some(header)) = Header::peek(bytes) {
        let (message, rest) = bytes.split_at(header.total);
        bytes = rest;
        let body = &message[5..];
        let text = |bytes: &[u8]| String::from_utf8_lossy(cstr(bytes).expect("a text").0).into_owned();
        match header.tag {
            b'Q' => words.push(text(body).replace(" /* bellwether: LISTEN */", "!")),
            b'P' => words.push(text(cstr(body).expect("a name").1).replace(" /* bellwether: LISTEN */", "!")),
            b'C' => words.push(text(body)),
            b'A' => {
                let sender = u32::from_be_bytes(*body.first_chunk().expect("a pid"));
                words.push(format!("{sender}:{}", text(&body[4..])));
            }
            b'Z' => words.push(char::from(body[0]).to_string()),
            _ => {}
        }
    }
    words.join(" ")
}

#[track_caller]
fn told(scene: &mut Scene, expected: &str) {
    assert_eq!(said(&std::mem::take(&mut scene.wires[1])), expected);
}

fn channels(scene: &Scene) -> String {
    let channels: Vec<_> = scene.core.state.channels().iter().map(AsRef::as_ref).collect();
    channels.join(" ")
}

#[test]
fn no_server_is_left_listening() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&query("LISTEN News")).server(&answer("C:UNLISTEN ZI"));
    check(&scene, "need(write) listen(news) >Q <C settle <Z(I) release");
    assert_eq!(said(&scene.wires[0]), "UNLISTEN! News");
    told(&mut scene, "LISTEN I");
    assert_eq!((channels(&scene).as_str(), scene.core.pinned()), ("news", None));
    // What is listened to already needs no asking.
    scene.log.clear();
    scene.client(&query("LISTEN news")).server(&answer("C:UNLISTEN ZI"));
    check(&scene, "need(write) >Q <C settle <Z(I) release");
}

#[test]
fn without_a_shared_connection_it_pins() {
    let mut scene = scene(PoolMode::Transaction);
    scene.listens = Listens::No;
    scene.client(&query("LISTEN news")).server(&answer("C:LISTEN ZI"));
    check(&scene, "need(write) >Q <CZ(I)");
    assert_eq!(said(&scene.wires[0]), "LISTEN news");
    assert_eq!((channels(&scene).as_str(), scene.core.pinned()), ("", Some("listen")));
    // And so does what is said together with other things, whose errors name a place in the text.
    let mut scene = self::scene(PoolMode::Transaction);
    scene.client(&query("LISTEN news; SELECT 1")).server(&answer("C:LISTEN T D C:SELECT_1 ZI"));
    check(&scene, "need(write) >Q <CTDCZ(I)");
    assert_eq!(scene.core.pinned(), Some("listen"));
}

#[test]
fn a_session_with_a_server_of_its_own_listens_there() {
    let mut scene = scene(PoolMode::Session);
    scene.client(&query("LISTEN news")).server(&answer("C:LISTEN ZI"));
    assert_eq!(said(&scene.wires[0]), "LISTEN news");
    let both = [notification(BACKEND, "news"), notification(BACKEND + 1, "news")].concat();
    scene.server(&both);
    told(&mut scene, "LISTEN I 4711:news 71:news");
}

#[test]
fn it_counts_when_the_transaction_commits() {
    for (script, expected) in [
        (&["begin", "listen a", "commit"][..], "a"),
        (&["begin", "listen a", "rollback"], ""),
        (&["begin", "listen a", "savepoint s", "listen b", "rollback to s", "commit"], "a"),
        (&["begin", "savepoint s", "listen b", "release s", "commit"], "b"),
        (&["listen a", "begin", "unlisten a", "rollback"], "a"),
        (&["listen a", "listen b", "unlisten a"], "b"),
        (&["listen a", "begin", "unlisten *", "listen b", "commit"], "b"),
        (&["listen a", "discard all"], ""),
        (&["begin; listen a; commit"], "a"),
        (&["listen a; listen b; unlisten a"], "b"),
    ] {
        let mut scene = scene(PoolMode::Transaction);
        let mut status = 'I';
        for text in script {
            let mut tags = String::new();
            for statement in text.split("; ") {
                let word = statement.split(' ').next().expect("a word").to_ascii_uppercase();
                status = match word.as_str() {
                    "BEGIN" => 'T',
                    "COMMIT" => 'I',
                    "ROLLBACK" if statement == "rollback" => 'I',
                    _ => status,
                };
                let tag = match word.as_str() {
                    "LISTEN" => "UNLISTEN",
                    "DISCARD" => "DISCARD_ALL",
                    other => other,
                };
                tags.push_str(&format!("C:{tag} "));
            }
            let reply = answer(&format!("{tags}Z{status}"));
            // The block that begins in front of its first statement.
            let ahead = if scene.core.deferred.is_some() { answer("1 2 C:BEGIN") } else { vec![] };
            scene.client(&query(text));
            if scene.attached {
                scene.server(&[ahead, reply].concat());
            }
        }
        assert_eq!(channels(&scene), expected, "{script:?}");
        assert_eq!(scene.core.pinned(), None);
    }
}

#[test]
fn a_statement_that_fails_listens_to_nothing() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("select 1/0")).server(&answer("E:22012 ZE"));
    scene.log.clear();
    // Nobody is asked for what is sure to fail.
    scene.client(&query("listen a")).server(&answer("E:25P02 ZE"));
    scene.client(&query("rollback")).server(&answer("C:ROLLBACK ZI"));
    check(&scene, ">Q <E(25P02)Z(E) >Q <CZ(I) release");
    assert_eq!(channels(&scene), "");
}

#[test]
fn prepared_and_run_again() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&extended("P:s:LISTEN a|B:s|E|S")).server(&answer("1 2 C:UNLISTEN ZI"));
    check(&scene, "need(write) listen(a) >P(bw_1)B(bw_1)ES <12C settle <Z(I) release");
    told(&mut scene, "LISTEN I");
    scene.client(&query("UNLISTEN a")).server(&answer("C:UNLISTEN ZI"));
    told(&mut scene, "UNLISTEN I");
    assert!(scene.core.gives_up().is_some_and(std::collections::BTreeSet::is_empty));
    scene.log.clear();
    scene.client(&extended("B:s|E|S")).server(&answer("2 C:UNLISTEN ZI"));
    check(&scene, "need(write) listen(a) >B(bw_1)ES <2C settle <Z(I) release");
    // An UNLISTEN of the same text is another statement.
    scene.client(&extended("P:u:UNLISTEN a|B:u|E|S")).server(&answer("1 2 C:UNLISTEN ZI"));
    assert_eq!(channels(&scene), "");
    scene.client(&extended("P::LISTEN a|B|E|S")).server(&answer("1 2 C:UNLISTEN ZI"));
    assert_eq!(channels(&scene), "a");
    assert_eq!(said(&scene.wires[0]), "UNLISTEN! a UNLISTEN a UNLISTEN a UNLISTEN! a");
    // What cannot be had any more, where the server was told to do nothing.
    scene.client(&query("UNLISTEN a")).server(&answer("C:UNLISTEN ZI"));
    assert!(scene.core.gives_up().is_some());
    scene.listens = Listens::No;
    scene.log.clear();
    scene.client(&extended("B:s|E|S"));
    check(&scene, "need(write) fatal(57P03)");
}

#[test]
fn notifications_come_before_the_end_of_a_transaction_and_not_within() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&query("LISTEN a")).server(&answer("C:UNLISTEN ZI"));
    scene.wires[1].clear();
    scene.heard = heard(&["a", "b", "a"]);
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("notify a")).server(&answer("C:NOTIFY ZT"));
    assert!(!scene.core.is_at_rest(&scene.up));
    scene.client(&query("commit")).server(&answer("C:COMMIT ZI"));
    told(&mut scene, "BEGIN T NOTIFY T COMMIT 7:a 7:a I");
    // An UNLISTEN of the same transaction comes first.
    scene.heard = heard(&["a"]);
    scene.client(&query("UNLISTEN a")).server(&answer("C:UNLISTEN ZI"));
    told(&mut scene, "UNLISTEN I");
    // Whoever rests is told at once, as long as it listens.
    scene.client(&query("LISTEN a")).server(&answer("C:UNLISTEN ZI"));
    assert!(scene.core.is_at_rest(&scene.up));
    scene.core.tell(&heard(&["b", "a"]), &mut scene.down);
    scene.flush();
    told(&mut scene, "LISTEN I 7:a");
}

#[test]
fn a_server_that_listens_as_well_is_not_heard_twice() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&query("LISTEN a")).server(&answer("C:UNLISTEN ZI"));
    scene.client(&query("LISTEN a; SELECT 1; LISTEN b")).server(&answer("C:LISTEN C:SELECT_1 C:LISTEN ZI"));
    assert_eq!(scene.core.pinned(), Some("listen"));
    scene.wires[1].clear();
    scene.server(&[notification(BACKEND, "a"), notification(BACKEND, "b")].concat());
    told(&mut scene, "4711:b");
}

#[test]
fn what_others_said_by_way_of_the_server_comes_first() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&query("LISTEN a")).server(&answer("C:UNLISTEN ZI"));
    scene.log.clear();
    scene.attached = true;
    scene.core.attached(scene.takes, &mut scene.server, &mut scene.up);
    scene.core.clear_first();
    assert!(scene.core.holds_server());
    scene.client(&query("notify a"));
    check(&scene, "");
    scene.core.cleared();
    scene.settle();
    check(&scene, ">Q");
}

#[test]
fn what_was_heard_is_told_although_the_ready_for_query_behind_it_is_lost() {
    let mut scene = scene(PoolMode::Transaction);
    scene.client(&query("LISTEN news")).server(&answer("C:UNLISTEN ZI"));
    scene.client(&query("insert into t values (1)"));
    scene.wires[1].clear();
    scene.down.input.push(&answer("C:INSERT_0_1 ZI"));
    assert!(matches!(scene.core.server(&mut scene.down, &mut scene.server), Heard::Settle));
    scene.core.settled(heard(&["news", "others"]));
    scene.lose(Loss::Connection);
    assert!(scene.core.is_at_rest(&scene.up));
    scene.core.tell(&[], &mut scene.down);
    scene.flush();
    told(&mut scene, "INSERT 0 1 I 7:news");
}
