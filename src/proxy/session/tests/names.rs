//! SQL's PREPARE, EXECUTE and DEALLOCATE, whose names are the protocol's.

use super::{Scene, answer, check, extended, query};
use crate::proxy::guc::Settings;
use crate::proxy::prepared::MAX_PER_CLIENT;
use crate::proxy::session::core::ServerState;
use crate::proxy::session::message::put;

/// What brings along what SQL has prepared as `q`, and what the server says to it.
const BROUGHT: &str = "C(q)P(bw_)B(bw_)ECC(bw_)";
const DONE: &str = "3 1 2 C:PREPARE 3 3";

/// Somebody else with the same server.
fn next_client(first: &mut Scene) -> Scene {
    let mut next = Scene::new();
    next.server = std::mem::take(&mut first.server);
    next.statements = std::mem::take(&mut first.statements);
    next
}

fn elsewhere(scene: &mut Scene) {
    scene.server = ServerState::default();
    scene.log.clear();
}

#[test]
fn what_sql_prepares_goes_with_its_client() {
    let mut scene = Scene::new();
    scene.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    scene.client(&query("execute q")).server(&answer("T D C:SELECT_1 ZI"));
    check(&scene, "need(write) >C(q)Q <CZ(I) release need(write) >Q <TDCZ(I) release");
    elsewhere(&mut scene);
    scene.client(&query("explain execute q")).server(&answer(&format!("{DONE} ZI T D C:EXPLAIN ZI")));
    scene.client(&query("create table t as execute q")).server(&answer("C:SELECT_1 ZI"));
    check(&scene, &format!("need(write) >{BROUGHT}SQ <TDCZ(I) release need(write) >Q <CZ(I) release"));
    // A rollback takes nothing back.
    elsewhere(&mut scene);
    scene.client(&query("begin; prepare r as select 2; rollback"));
    scene.server(&answer("3 C:BEGIN C:PREPARE C:ROLLBACK ZI"));
    scene.client(&query("execute r")).server(&answer("T D C:SELECT_1 ZI"));
    check(&scene, "need(write) >C(r)Q <CCCZ(I) release need(write) >Q <TDCZ(I) release");
}

#[test]
fn a_name_is_each_clients_own() {
    let mut one = Scene::new();
    one.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    let mut other = next_client(&mut one);
    other.client(&query("execute q")).server(&answer("3 E:26000 ZI"));
    check(&other, "need(write) >C(q)Q <E(26000)Z(I) release");
    one = {
        one.server = std::mem::take(&mut other.server);
        one.statements = std::mem::take(&mut other.statements);
        one
    };
    one.log.clear();
    one.client(&query("execute q")).server(&answer(&format!("{DONE} ZI T D C:SELECT_1 ZI")));
    check(&one, &format!("need(write) >{BROUGHT}SQ <TDCZ(I) release"));
    // Whoever prepares the same has the same.
    other = next_client(&mut one);
    other.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    one.server = std::mem::take(&mut other.server);
    one.log.clear();
    one.client(&query("execute q")).server(&answer("T D C:SELECT_1 ZI"));
    check(&one, "need(write) >Q <TDCZ(I) release");
}

#[test]
fn a_name_of_ours_may_be_a_clients() {
    let mut one = Scene::new();
    one.client(&extended("P:s:select 1|S")).server(&answer("1 ZI"));
    let mut other = next_client(&mut one);
    other.client(&query("execute bw_1")).server(&answer("3 E:26000 ZI"));
    other.client(&query("prepare bw_1 as select 2")).server(&answer("3 C:PREPARE ZI"));
    check(&other, "need(write) >C(bw_1)Q <E(26000)Z(I) release need(write) >C(bw_1)Q <CZ(I) release");
    one.server = std::mem::take(&mut other.server);
    one.log.clear();
    one.client(&extended("B:s|E|S")).server(&answer("3 1 2 C:SELECT_1 ZI"));
    check(&one, "need(read) >C(bw_1)P(bw_1)B(bw_1)ES <2CZ(I) release");
}

#[test]
fn names_are_those_of_both_protocols() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s:select 1|S")).server(&answer("1 ZI"));
    scene.client(&query("execute s")).server(&answer("3 1 ZI T D C:SELECT_1 ZI"));
    check(&scene, "need(read) >P(bw_1)S <1Z(I) release need(write) >C(s)P(s)SQ <TDCZ(I) release");
    scene.log.clear();
    scene.client(&query("prepare s as select 2")).server(&answer("E:42P05 ZI"));
    scene.client(&query("prepare q as select 2")).server(&answer("3 C:PREPARE ZI"));
    scene.client(&extended("P:q:select 3|S")).server(&answer("E:42P05 ZI"));
    scene.client(&extended("D:q|B:q|E|S")).server(&answer("t T 2 D C:SELECT_1 ZI"));
    check(
        &scene,
        "need(write) >Q <E(42P05)Z(I) release need(write) >C(q)Q <CZ(I) release \
         need(read) >P(q)S <E(42P05)Z(I) release need(read) >D(q)B(q)ES <tT2DCZ(I) release",
    );
    elsewhere(&mut scene);
    scene.client(&extended("B:q|E|S")).server(&answer(&format!("{DONE} 2 D C:SELECT_1 ZI")));
    scene.client(&extended("C:q|S"));
    scene.client(&extended("B:q|E|S")).server(&answer("3 E:26000 ZI"));
    check(
        &scene,
        &format!(
            "need(read) >{BROUGHT}B(q)ES <2DCZ(I) release <3Z(I) need(read) >C(q)B(q)ES <E(26000)Z(I) release"
        ),
    );
}

#[test]
fn what_cannot_be_brought_is_told_where_it_is_missed() {
    for (reply, expected) in [
        ("3 1 2 E:42P01 ZI T D C:SELECT_1 E:26000 ZI", "<TDCE(42P01)Z(I) release"),
        // The text fails before.
        ("3 1 2 E:42P01 ZI E:22012 ZI", "<E(22012)Z(I) release"),
    ] {
        let mut scene = Scene::new();
        scene.client(&query("prepare q as table t")).server(&answer("3 C:PREPARE ZI"));
        elsewhere(&mut scene);
        scene.client(&query("select 1/0; execute q")).server(&answer(reply));
        check(&scene, &format!("need(write) >{BROUGHT}SQ {expected}"));
        // It is not there, and not taken to be. What it was brought by is there still, and nobody's to execute.
        let mut other = next_client(&mut scene);
        other.client(&query("execute bw_"));
        check(&other, "need(write) >C(bw_)Q");
    }
    // In the extended protocol it fails the unit.
    let mut scene = Scene::new();
    scene.client(&query("prepare q as table t")).server(&answer("3 C:PREPARE ZI"));
    elsewhere(&mut scene);
    scene.client(&extended("P::execute q|B|E|S")).server(&answer("3 1 2 E:42P01 ZI"));
    check(&scene, &format!("need(write) >{BROUGHT}PBES <E(42P01)Z(I) release"));
    // What it was brought by is in the way of the next.
    scene.log.clear();
    scene.client(&query("execute q")).server(&answer(&format!("3 {DONE} ZI C:SELECT_1 ZI")));
    scene.client(&query("begin; execute bw_"));
    check(&scene, "need(write) >C(q)C(bw_)P(bw_)B(bw_)ECC(bw_)SQ <CZ(I) release need(write) >C(bw_)Q");
}

#[test]
fn a_block_begins_before_anything_is_brought() {
    let mut scene = Scene::new();
    scene.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    elsewhere(&mut scene);
    scene.client(&query("begin")).client(&query("execute q")).server(&answer("1 2 C:BEGIN ZT"));
    scene.server(&answer(&format!("{DONE} ZT T D C:SELECT_1 ZT")));
    check(&scene, &format!("<CZ(T) need(write) >PBES >{BROUGHT}SQ <TDCZ(T)"));
    // Where it does not begin, nothing is run.
    let mut scene = Scene::new();
    scene.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    elsewhere(&mut scene);
    scene.client(&query("begin")).client(&query("execute q")).server(&answer("1 2 E:57014"));
    scene.client(&query("rollback"));
    check(&scene, "<CZ(T) need(write) >PBES refused(57014) <E(57014)Z(E) <CZ(I)");
}

#[test]
fn names_are_deallocated_among_other_statements() {
    let prepare = extended("P:s:select 1|S");
    let mut scene = Scene::new();
    scene.client(&prepare).server(&answer("1 ZI"));
    scene.client(&query("select 1; deallocate s"));
    scene.server(&answer("3 1 ZI T D C:SELECT_1 C:DEALLOCATE ZI"));
    scene.client(&extended("B:s|E|S")).server(&answer("3 E:26000 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)S <1Z(I) release need(write) >C(s)P(s)SQ <TDCCZ(I) release \
         need(read) >C(s)B(s)ES <E(26000)Z(I) release",
    );
    // In one unit with what comes behind it.
    let unit = extended("P::deallocate s|B|E|P:s:select 2|B:s|E|S");
    for (reply, expected, then) in [
        ("3 1 1 2 C:DEALLOCATE 1 2 C:SELECT_1 ZI", "<12C12CZ(I) release", "B(bw_2)ES"),
        ("3 1 1 2 E:22012 ZI", "<12E(22012)Z(I) release", "B(bw_1)ES"),
    ] {
        let mut scene = Scene::new();
        scene.client(&prepare).server(&answer("1 ZI"));
        scene.log.clear();
        scene.client(&unit).server(&answer(reply)).client(&extended("B:s|E|S"));
        check(&scene, &format!("need(write) >C(s)P(s)PBEP(bw_2)B(bw_2)ES {expected} need(read) >{then}"));
    }
    // And all of them, of a client that keeps no server, without one; the server keeps its own.
    let mut scene = Scene::new();
    scene.client(&prepare).server(&answer("1 ZI"));
    scene.client(&query("DEALLOCATE ALL")).client(&extended("P:s:select 1|S")).server(&answer("ZI"));
    check(&scene, "need(read) >P(bw_1)S <1Z(I) release <CZ(I) need(read) >S <1Z(I) release");
    let mut scene = Scene::new();
    scene.client(&prepare).server(&answer("1 ZI"));
    scene.log.clear();
    scene.client(&extended("P::select 1|P:d:deallocate all|B:d|E|P:s:select 1|S"));
    scene.server(&answer("1 1 2 C:DEALLOCATE_ALL 1 ZI")).client(&extended("B:s|S"));
    check(&scene, "need(write) >PP(bw_2)B(bw_2)EP(bw_1)S <112C1Z(I) release need(read) >B(bw_1)S");
}

/// A function can prepare, which nobody sees.
#[test]
fn what_a_function_has_prepared_is_neither_run_nor_in_the_way() {
    // The name is the client's: what it is brought by would fail with 42P05, and a foreign statement would be run.
    let mut scene = Scene::new();
    scene.client(&extended("P:q:select 1|S")).server(&answer("1 ZI"));
    elsewhere(&mut scene);
    scene.client(&query("execute q"));
    check(&scene, "need(write) >C(q)P(q)SQ");
    // The name is not the client's.
    for (client, expected) in [
        (query("execute q"), "need(write) >C(q)Q"),
        (query("deallocate q"), "need(write) >C(q)Q"),
        (query("prepare q as select 1"), "need(write) >C(q)Q"),
        (extended("D:q|S"), "need(read) >C(q)D(q)S"),
        (extended("P::execute q|S"), "need(write) >C(q)PS"),
    ] {
        let mut scene = Scene::new();
        scene.client(&client);
        check(&scene, expected);
    }
    // It may be the client's where a function of its own has run, and only there.
    for (first, then) in [("select prepares_q()", "Q"), ("select 1", "C(q)Q")] {
        let mut scene = Scene::new();
        scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
        scene.client(&query(first)).server(&answer("C:SELECT_1 ZT"));
        scene.log.clear();
        scene.client(&query("execute q"));
        check(&scene, &format!(">{then}"));
    }
}

#[test]
fn what_is_executed_by_name_does_what_it_does() {
    for (prepare, pinned) in [
        (query("prepare q as select pg_advisory_lock(1)"), Some("advisory_lock")),
        (query("prepare q as select 1"), None),
    ] {
        let mut scene = Scene::new();
        scene.client(&prepare).server(&answer("3 C:PREPARE ZI"));
        scene.client(&query("execute q"));
        assert_eq!(scene.core.pinned(), pinned);
    }
    let mut scene = Scene::new();
    scene.client(&extended("P:s:set work_mem = '5MB'|S")).server(&answer("1 ZI"));
    scene.client(&query("execute s")).server(&answer("3 1 ZI C:SET ZI"));
    assert_eq!(scene.core.settings().value("work_mem"), Some("5MB"));
}

#[test]
fn an_error_takes_back_what_was_not_run() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s:select 1|S")).server(&answer("1 ZI"));
    scene.client(&extended("P::select 1/0|B|E|P::deallocate s|B|E|C:s|S")).server(&answer("1 E:22012 ZI"));
    scene.client(&extended("B:s|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    scene.log.clear();
    // Also behind settings, which are not answered before the Sync.
    let mut others = Settings::default();
    others.set("work_mem", "5MB");
    scene.server.settings = others.into();
    scene.client(&extended("P::deallocate s|B|E|P::select 1/0|B|E|S"));
    scene.server(&answer("1 2 C:BEGIN 1 2 D C:SELECT_1 1 2 C:COMMIT 3 1 1 2 C:DEALLOCATE 1 E:22012 ZI"));
    scene.client(&extended("B:s|E|S"));
    check(&scene, "need(write) >PBEPBEPBEC(s)P(s)PBEPBES <12C1E(22012)Z(I) release need(read) >C(s)B(s)ES");
}

#[test]
fn what_a_failed_block_denies_is_told_in_the_querys_own_words() {
    let mut scene = Scene::new();
    scene.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    elsewhere(&mut scene);
    scene.client(&[query("/**/begin; select 1/0"), query("execute q")].concat());
    scene.server(&answer("C:BEGIN E:22012 ZE 3 E:25P02 ZE E:25P02 ZE"));
    check(&scene, &format!("need(write) >Q{BROUGHT}SQ <CE(22012)Z(E) <E(25P02)Z(E)"));
}

/// The Sync that would end the unit comes behind what is ours to answer.
#[test]
fn amid_an_extended_unit_nothing_is_answered_here() {
    for text in ["deallocate s", "show bellwether.lsn"] {
        let mut scene = Scene::new();
        scene.client(&extended("P:s:select 1|S")).server(&answer("1 ZI"));
        let bytes = [extended("P::select 2|B|E"), query(text), extended("S")].concat();
        scene.client(&bytes).server(&answer("1 2 C:SELECT_1 E:42704 ZI ZI"));
        assert!(!scene.attached, "{text}: {}", scene.log);
    }
}

/// Those that are not followed are at the server that is kept for them.
#[test]
fn what_too_many_are_prepared_behind_can_be_executed() {
    let mut scene = Scene::new();
    for number in 0..MAX_PER_CLIENT {
        let mut bytes = vec![];
        put(&mut bytes, b'P', &[format!("q{number}").as_bytes(), b"\0select 1\0\0\0"]);
        bytes.extend(extended("S"));
        scene.client(&bytes).server(&answer(if number == 0 { "1 ZI" } else { "ZI" }));
    }
    scene.client(&query("prepare x as select 1")).server(&answer("3 C:PREPARE ZI"));
    scene.log.clear();
    scene.client(&query("execute x")).server(&answer("T D C:SELECT_1 ZI"));
    check(&scene, ">Q <TDCZ(I)");
}

/// Of two statements of one name in one text each execution means its own.
#[test]
fn a_name_that_is_given_again_means_what_it_is_given_for() {
    for (text, expected) in [
        (
            "prepare q as select 1; deallocate q; prepare q as select pg_advisory_lock(1); execute q",
            Some("advisory_lock"),
        ),
        (
            "prepare q as select 1; deallocate all; prepare q as select pg_advisory_lock(1); execute q",
            Some("advisory_lock"),
        ),
        ("prepare q as select pg_advisory_lock(1); deallocate q; prepare q as select 1; execute q", None),
    ] {
        let mut scene = Scene::new();
        scene.client(&query(text)).server(&answer("3 C:PREPARE C:DEALLOCATE C:PREPARE T D:1 C:SELECT_1 ZI"));
        assert_eq!(scene.core.pinned(), expected, "{text}");
    }
}

/// Why something could not be brought is told by the text that misses it, and by no other.
#[test]
fn another_text_says_by_itself_what_it_misses() {
    let mut scene = Scene::new();
    scene.client(&query("prepare q as select 1")).server(&answer("3 C:PREPARE ZI"));
    elsewhere(&mut scene);
    scene.client(&[query("select 1/0; execute q"), query("execute nosuch")].concat());
    scene.server(&answer("3 E:42P01 ZI E:22012 ZI E:26000 ZI"));
    assert!(scene.log.ends_with("<E(22012)Z(I) <E(26000)Z(I) release"), "{}", scene.log);
}
