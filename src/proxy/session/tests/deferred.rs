//! Blocks that have no server yet.

use super::{Scene, answer, check, extended, query};
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::session::core::{Ask, Texts};
use crate::proxy::session::losses::Loss;

#[test]
fn a_block_takes_no_server_until_it_needs_one() {
    for (script, expected) in [
        (&["begin", "commit", "START TRANSACTION", "abort"][..], "<CZ(T) <CZ(I) <CZ(T) <CZ(I)"),
        (&["begin", "set bellwether.route = 'auto'", "end"], "<CZ(T) <CZ(T) <CZ(I)"),
        (&["begin", "select 1"], "<CZ(T) need(write) >PBEQ"),
        (&["begin isolation level repeatable read", "select 1"], "<CZ(T) need(write) >PBEQ"),
        (&["begin read only", "select 1"], "<CZ(T) need(read) >PBEQ"),
        (&["begin read only", "set local work_mem = 1"], "<CZ(T) need(read) >PBEQ"),
        // The shared connection is asked first.
        (&["begin read only", "listen x"], "<CZ(T) need(write) >PBE >Q"),
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
