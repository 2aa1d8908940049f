//! COPY in both protocols.

use super::{Scene, answer, check, extended, query};

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
fn what_stands_behind_a_copy_in_the_same_write_is_answered() {
    let done = b"d\0\0\0\x05xc\0\0\0\x04";
    for (client, server, expected) in [
        (
            [&extended("P::copy t from stdin|B|E")[..], done, &extended("S"), &query("select 1")].concat(),
            "1 2 G C:COPY_1 ZI C:SELECT_1 ZI",
            "need(write) >PBEdcSQ <12GCZ(I) <CZ(I) release",
        ),
        (
            [&query("copy t from stdin")[..], done, &query("select 1")].concat(),
            "G C:COPY_1 ZI C:SELECT_1 ZI",
            "need(write) >QdcQ <GCZ(I) <CZ(I) release",
        ),
        // There was nothing to copy to.
        (
            [&extended("P::copy t from stdin|B|E")[..], done, &extended("S"), &query("select 1")].concat(),
            "1 2 E:42P01 ZI C:SELECT_1 ZI",
            "need(write) >PBEdcSQ <12E(42P01)Z(I) <CZ(I) release",
        ),
    ] {
        let mut scene = Scene::new();
        scene.client(&client).server(&answer(server));
        check(&scene, expected);
    }
}

#[test]
fn a_sync_that_a_copy_swallows_ends_no_unit() {
    let mut scene = Scene::new();
    scene.client(&extended("P::copy t from stdin|B|E|S")).server(&answer("1 2 G"));
    scene.client(b"c\0\0\0\x04").server(&answer("C:COPY_0"));
    scene.client(&[query("select 1"), extended("S")].concat()).server(&answer("C:SELECT_1 ZT ZI"));
    check(&scene, "need(write) >PBES <12G >c <C >QS <CZ(T) <Z(I) retire");
}

/// The server ignores it in a COPY, and answers it when the COPY has failed meanwhile: nobody knows which.
#[test]
fn a_sync_amid_a_copy_may_be_answered_when_the_next_client_has_the_server() {
    let mut scene = Scene::new();
    scene.client(&query("copy t from stdin")).server(&answer("G"));
    scene.client(&[b"d\0\0\0\x05x", &extended("S")[..]].concat()).server(&answer("E:22P02 ZI"));
    check(&scene, "need(write) >Q <G >dS <E(22P02)Z(I) retire");
}

#[test]
fn who_breaks_a_copy_hears_the_servers_own_last_words() {
    let mut scene = Scene::new();
    scene.client(&query("copy t from stdin")).server(&answer("G")).client(&query("select 1"));
    scene.server(&answer("E:08P01 F:08P01"));
    check(&scene, "need(write) >Q <G >Q <E(08P01)E(08P01) over");
}
