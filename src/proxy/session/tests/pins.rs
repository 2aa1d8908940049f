//! What keeps a server, and when that is over.

use super::{Scene, answer, check, followed, query};

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
fn what_stays_at_the_server_pins_until_discard_all() {
    let mut scene = Scene::new();
    scene.client(&query("listen x")).server(&answer("C:LISTEN ZI"));
    assert_eq!(scene.core.pinned(), Some("listen"));
    scene.client(&query("select 1")).server(&answer("C:SELECT_1 ZI"));
    scene.client(&query("discard all")).server(&answer("C:DISCARD_ALL ZI"));
    check(&scene, "need(write) >Q <CZ(I) >Q <CZ(I) >Q <CZ(I) release");
}
