//! How a statement, a pipeline and a block take a server and give it back; what breaks the protocol.

use super::{Scene, answer, check, extended, query};
use crate::proxy::route::OwnWrite;
use crate::proxy::session::core::{PoolMode, Takes};
use crate::proxy::session::message::{Status, put_ready};

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
fn a_sync_is_believed_its_length_when_it_is_there() {
    for (sync, expected) in [(&b"S\0\x20\0\0"[..], "fatal(08P01)"), (b"S\0\0\0\x05", "")] {
        let mut scene = Scene::new();
        let mut bytes = extended("P::show bellwether.route|B|E");
        bytes.extend(sync);
        scene.client(&bytes);
        check(&scene, expected);
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
    put_ready(&mut down, Status::Idle);
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
fn a_server_that_was_asked_in_both_protocols_at_once_retires() {
    let call = b"F\0\0\0\x0e\0\0\0\x9a\0\0\0\0\0\0".to_vec();
    for (between, reply, expected) in [
        (query("select 2"), "1 2 C:SELECT_1 C:SELECT_1 ZT ZI", ">PBEQS <12CCZ(T) <Z(I) retire"),
        (call, "1 2 C:SELECT_1 V ZT ZI", ">PBEFS <12CVZ(T) <Z(I)"),
        // Behind the Sync nothing is mixed.
        (extended("S"), "1 2 C:SELECT_1 ZI ZI", ">PBESS <12CZ(I) <Z(I) release"),
    ] {
        let mut scene = Scene::new();
        scene.client(&[extended("P::insert into t values (1)|B|E"), between, extended("S")].concat());
        scene.server(&answer(reply));
        check(&scene, &format!("need(write) {expected}"));
        // A function keeps its server for other reasons.
        assert_eq!(scene.server.retires, !expected.ends_with("release"));
    }
}

#[test]
fn the_last_position_is_waited_for_once() {
    let show = ["show bellwether.lsn", "show bellwether.route"].map(query);
    let extended = extended("P::show bellwether.lsn|B|E|S");
    for (write, bytes, expected) in [
        (OwnWrite::None, &show[0], "<TDCZ(I)"),
        (OwnWrite::Unknown, &show[0], "position <TDCZ(I)"),
        (OwnWrite::Unknown, &extended, "position <12DCZ(I)"),
        (OwnWrite::Unknown, &show[1], "<TDCZ(I)"),
        (OwnWrite::At(crate::pg::Lsn(7)), &show[0], "<TDCZ(I)"),
    ] {
        let mut scene = Scene::new();
        scene.core.knobs.write = write;
        scene.client(bytes);
        check(&scene, expected);
        scene.log.clear();
        scene.client(bytes);
        check(&scene, expected);
    }
}
