//! The protocol's prepared statements, named and unnamed.

use super::{Scene, answer, check, extended, query};
use crate::proxy::session::core::{PoolMode, ServerState};
use crate::proxy::session::message::put;

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
fn a_name_is_not_given_twice() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select 1|S")).server(&answer("1 ZI"));
    // A stand-in is there to be in the way.
    scene.client(&extended("P:s1:select 2|S")).server(&answer("3 1 E:42P05 ZI"));
    scene.client(&extended("B:s1|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    scene.server = ServerState::default();
    scene.client(&extended("P:s1:select 2|S")).server(&answer("3 1 E:42P05 ZI"));
    scene.client(&extended("C:s1|P:s1:select 2|S")).server(&answer("1 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)S <1Z(I) release need(read) >C(s1)P(s1)P(s1)S <E(42P05)Z(I) release \
         need(read) >B(bw_1)ES <2CZ(I) release need(read) >C(s1)P(s1)P(s1)S <E(42P05)Z(I) release \
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
    scene.client(&query("DEALLOCATE s")).client(&use_it).server(&answer("3 E:26000 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)D(bw_1)S <1tnZ(I) release <CZ(I) need(read) >C(s)B(s)ES <E(26000)Z(I) release",
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
    for (error, again) in [(outdated, "P(bw_2)B(bw_2)ES"), (deallocated, "C(bw_1)P(bw_1)B(bw_1)ES")] {
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
    scene.client(&extended("P:s2:select 1|S")).server(&answer("3 E:25P02 ZE"));
    check(
        &scene,
        "need(read) >P(bw_1)S <1Z(I) release \
         need(write) >Q <CE(22012)Z(E) >C(bw_1)P(bw_1)S <E(25P02)Z(E)",
    );
}

#[test]
fn a_statement_that_failed_to_parse_is_not_there() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select nowhere|S")).server(&answer("E:42703 ZI"));
    scene.client(&extended("P:s1:select nowhere|S")).server(&answer("1 ZI"));
    scene.client(&extended("B:gone|E|S")).server(&answer("3 E:26000 ZI"));
    check(
        &scene,
        "need(read) >P(bw_1)S <E(42703)Z(I) release \
         need(read) >P(bw_2)S <1Z(I) release \
         need(read) >C(gone)B(gone)ES <E(26000)Z(I) release",
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
    scene.client(&extended("B|E|S")).server(&answer("3 E:26000 ZI"));
    check(
        &scene,
        "need(read) >PDS <1tnZ(I) release \
         need(read) >BES <2CZ(I) release \
         need(read) >PBES <2CZ(I) release \
         need(read) >Q <CZ(I) release \
         need(read) >CBES <E(26000)Z(I) release",
    );
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
fn a_statement_of_our_own_is_not_the_clients_unnamed_one() {
    let mut scene = Scene::new();
    scene.client(&query("begin")).client(&extended("B|E|S"));
    scene.server(&answer("1 2 C:BEGIN 3 E:26000 ZE"));
    check(&scene, "<CZ(T) need(write) >PBECBES <E(26000)Z(E)");
}

/// An error leaves out what comes behind it in its unit, also what we put there.
#[test]
fn what_an_earlier_unit_may_leave_out_is_not_relied_on() {
    let elsewhere = |prepare: &str| {
        let mut scene = Scene::new();
        scene.client(&extended(prepare)).server(&answer("1 ZI"));
        scene.server = ServerState::default();
        scene.log.clear();
        scene
    };
    let mut scene = elsewhere("P:a:select 1|S");
    scene.client(&extended("P::select 1/0|B|E|B:a|E|S|B:a|E|S")).server(&answer("1 2 E:22012 ZI"));
    scene.server(&answer("1 2 C:SELECT_1 ZI"));
    check(
        &scene,
        "need(read) >PBEP(bw_1)B(bw_1)ES <12E(22012)Z(I) release need(read) >P(bw_1)B(bw_1)ES <2CZ(I) release",
    );
    // What the unnamed one would be there is another client's.
    let mut scene = elsewhere("P::select 1|S");
    scene.server.statements.unnamed = 77;
    scene.client(&extended("B:gone|B|E|S|B|E|S")).server(&answer("3 E:26000 ZI"));
    check(&scene, "need(read) >C(gone)B(gone)PBES <E(26000)Z(I) release need(read) >PBES");
    // Nor is a name given that may not be there.
    let mut scene = Scene::new();
    scene.client(&extended("P::select nowhere|P:a:select 1|S|P:a:select 2|S")).server(&answer("E:42703 ZI"));
    check(&scene, "need(read) >PP(bw_1)S <E(42703)Z(I) release need(read) >P(bw_2)S");
}

#[test]
fn who_binds_what_he_does_not_have_leaves_nothing_behind() {
    let mut scene = Scene::new();
    scene.client(&extended("P::select 1|S")).server(&answer("1 ZI"));
    // Another client, without an unnamed statement: what was there is closed.
    let mut other = Scene::new();
    other.server = std::mem::take(&mut scene.server);
    other.client(&extended("B|E|S")).server(&answer("3 E:26000 ZI"));
    scene.server = std::mem::take(&mut other.server);
    scene.client(&extended("B|E|S"));
    check(&scene, "need(read) >PS <1Z(I) release need(read) >PBES");
}

/// `exec_simple_query` drops it.
#[test]
fn a_simple_query_that_is_answered_here_ends_the_unnamed_statement() {
    for text in ["begin", "show bellwether.route"] {
        let mut scene = Scene::new();
        scene.client(&extended("P::select 1|S")).server(&answer("1 ZI"));
        scene.client(&query(text));
        scene.log.clear();
        scene.client(&extended("B|E|S"));
        assert!(scene.log.contains("CBES"), "{text}: {}", scene.log);
    }
}

#[test]
fn a_portal_of_our_own_is_not_the_clients_unnamed_one() {
    let describe = b"D\0\0\0\x06P\0".to_vec();
    for (client, sent) in [(extended("E|S"), "CES"), ([describe, extended("S")].concat(), "CDS")] {
        let mut scene = Scene::new();
        scene.client(&query("begin")).client(&client).server(&answer("1 2 C:BEGIN 3 E:34000 ZE"));
        check(&scene, &format!("<CZ(T) need(write) >PBE{sent} <E(34000)Z(E)"));
    }
    // Also in a later unit of the block, and not behind one of the client's own.
    for (client, sent) in [("E|S", "CES"), ("P::select 1|B|E|S|E|S", "PBESES")] {
        let mut scene = Scene::new();
        scene.client(&query("begin")).client(&extended("P:s:select 1|S")).server(&answer("1 2 C:BEGIN 1 ZT"));
        scene.log.clear();
        scene.client(&extended(client));
        check(&scene, &format!(">{sent}"));
    }
    let mut scene = Scene::new();
    scene.client(&query("begin")).client(&query("select 1")).server(&answer("1 2 C:BEGIN C:SELECT_1 ZT"));
    scene.log.clear();
    scene.client(&extended("E|S"));
    check(&scene, ">ES");
}

#[test]
fn an_unnamed_statement_that_was_not_parsed_is_none() {
    let mut scene = Scene::new();
    scene.client(&extended("P::select nowhere|S")).server(&answer("E:42703 ZI"));
    scene.client(&extended("B|E|S")).server(&answer("3 E:26000 ZI"));
    check(&scene, "need(read) >PS <E(42703)Z(I) release need(read) >CBES <E(26000)Z(I) release");
    // Behind it in the same write it is another.
    let mut scene = Scene::new();
    scene.client(&extended("P::select nowhere|S|P::select 1|S")).server(&answer("E:42703 ZI 1 ZI"));
    scene.client(&extended("B|E|S")).server(&answer("2 C:SELECT_1 ZI"));
    check(&scene, "need(read) >PSPS <E(42703)Z(I) <1Z(I) release need(read) >BES <2CZ(I) release");
    // What it stood for before is parsed again where another has been met in its place.
    let mut scene = Scene::new();
    scene.client(&extended("P::select 1|S")).server(&answer("1 ZI"));
    scene.server.statements.unnamed = 77;
    scene.client(&extended("B|E|S")).server(&answer("E:42P01 ZI"));
    scene.client(&extended("B|E|S")).server(&answer("1 2 C:SELECT_1 ZI"));
    check(
        &scene,
        "need(read) >PS <1Z(I) release need(read) >PBES <E(42P01)Z(I) release need(read) >PBES <2CZ(I) release",
    );
}
