//! What keeps a server, and when that is over.

use super::{Scene, answer, check, extended, followed, query};
use crate::proxy::session::message::put;

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
            scene.client(&query(sql)).server(&answer("D: C:OK ZI"));
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
        ("select pg_advisory_unlock_all(); select pg_advisory_lock(1)", "D: C:SELECT_1 D: C:SELECT_1 ZI"),
    ] {
        let mut scene = Scene::new();
        scene.client(&query("select pg_advisory_lock(1)")).server(&answer("D: C:SELECT_1 ZI"));
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
        ("select pg_advisory_lock(1); rollback", "D: C:SELECT_1 C:ROLLBACK ZI", Some("advisory_lock")),
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

/// Statements, each with its answer, from one session on; why it keeps its server in the end.
#[track_caller]
fn check_pin(conversation: &[(&str, &str)], expected: Option<&str>) {
    let mut scene = Scene::new();
    for (sql, reply) in conversation {
        scene.client(&query(sql)).server(&answer(reply));
    }
    assert_eq!(scene.core.pinned(), expected, "{conversation:?}");
    let idle = conversation.last().is_some_and(|(_, reply)| reply.ends_with("ZI"));
    assert_eq!(scene.attached, expected.is_some() || !idle, "{conversation:?}");
}

const BEGIN: (&str, &str) = ("/**/begin", "C:BEGIN ZT");
const COMMIT: (&str, &str) = ("commit", "C:COMMIT ZI");
const ROLLBACK: (&str, &str) = ("rollback", "C:ROLLBACK ZI");

#[test]
fn the_last_temporary_table_takes_its_pin_along() {
    let create = ("create temp table t (a int)", "C:CREATE_TABLE ZI");
    let drop = ("drop table t", "C:DROP_TABLE ZI");
    let pinned = Some("temporary");
    check_pin(&[create, drop], None);
    check_pin(&[create, ("drop table if exists public.u, pg_temp.t", "C:DROP_TABLE ZI")], None);
    check_pin(&[("select 1 as a into temp t", "C:SELECT_1 ZI"), drop], None);
    check_pin(&[create, ("drop table t", "E:42P01 ZI")], pinned);
    check_pin(&[create, ("drop table public.t", "C:DROP_TABLE ZI")], pinned);
    check_pin(&[create, ("drop view t", "C:DROP_VIEW ZI")], pinned);
    check_pin(&[create, ("create temp table u ()", "C:CREATE_TABLE ZI"), drop], pinned);
    check_pin(&[create, create, drop], None);
    check_pin(&[create, drop, create], pinned);
    // What has another name now, or never had one of its own, is there still.
    check_pin(&[create, ("alter table t rename to u", "C:ALTER_TABLE ZI"), create, drop], pinned);
    check_pin(&[create, ("create temp view v as select 1", "C:CREATE_VIEW ZI"), drop], pinned);
    check_pin(&[create, ("discard temp", "C:DISCARD_TEMP ZI")], None);
    // Where another table may be meant.
    let path = ("set search_path = public, pg_temp", "C:SET ZI");
    check_pin(&[create, path, drop, ("reset all", "C:RESET ZI")], Some("set"));
    let local = ("set local search_path = public, pg_temp", "C:SET ZT");
    check_pin(&[create, BEGIN, local, ("drop table t", "C:DROP_TABLE ZT"), COMMIT], pinned);
    check_pin(&[create, BEGIN, local, ("drop table pg_temp.t", "C:DROP_TABLE ZT"), COMMIT], None);
}

#[test]
fn a_temporary_table_comes_and_goes_with_its_transaction() {
    let create = ("create temp table t (a int)", "C:CREATE_TABLE ZT");
    let created = ("create temp table t (a int)", "C:CREATE_TABLE ZI");
    let drop = ("drop table t", "C:DROP_TABLE ZT");
    let savepoint = ("savepoint s", "C:SAVEPOINT ZT");
    let back = ("rollback to s", "C:ROLLBACK ZT");
    let pinned = Some("temporary");
    check_pin(&[BEGIN, create, drop, COMMIT], None);
    check_pin(&[BEGIN, create, ROLLBACK], None);
    check_pin(&[BEGIN, create, savepoint, drop, back, COMMIT], pinned);
    check_pin(&[BEGIN, savepoint, create, back, COMMIT], None);
    check_pin(&[created, BEGIN, drop, ROLLBACK], pinned);
    check_pin(&[created, BEGIN, drop, COMMIT], None);
    check_pin(&[created, BEGIN, drop, create, COMMIT], pinned);
    let on_commit_drop = ("create temp table t (a int) on commit drop", "C:CREATE_TABLE ZT");
    check_pin(&[BEGIN, on_commit_drop, COMMIT], None);
    let emptied = ("create temp table t (a int) on commit delete rows", "C:CREATE_TABLE ZT");
    check_pin(&[BEGIN, emptied, COMMIT], pinned);
}

#[test]
fn advisory_locks_are_counted_by_their_answers() {
    let lock = ("select pg_advisory_lock(1)", "T D: C:SELECT_1 ZI");
    let unlock = ("select pg_advisory_unlock($1)", "T D:t C:SELECT_1 ZI");
    let pinned = Some("advisory_lock");
    check_pin(&[lock], pinned);
    check_pin(&[lock, unlock], None);
    check_pin(&[lock, lock, unlock], pinned);
    check_pin(&[lock, lock, unlock, unlock], None);
    // Another key's: not held, and a warning.
    check_pin(&[lock, ("select pg_advisory_unlock(2)", "T N D:f C:SELECT_1 ZI")], pinned);
    check_pin(&[("select pg_try_advisory_lock(1)", "T D:f C:SELECT_1 ZI")], None);
    let taken = ("select pg_try_advisory_lock(1)", "T D:\u{1} C:SELECT_1 ZI");
    check_pin(&[taken], pinned);
    check_pin(&[taken, ("select pg_advisory_unlock(1)", "T D:\u{1} C:SELECT_1 ZI")], None);
    // In one text, and whatever becomes of the transaction.
    check_pin(
        &[("select pg_advisory_lock(1); select pg_advisory_unlock(1)", "D: C:SELECT_1 D:t C:SELECT_1 ZI")],
        None,
    );
    let locks = ("select pg_advisory_lock(1)", "T D: C:SELECT_1 ZT");
    check_pin(&[BEGIN, locks, ROLLBACK], pinned);
    check_pin(&[lock, BEGIN, ("select pg_advisory_unlock(1)", "D:t C:SELECT_1 ZT"), ROLLBACK], None);
    // Three at once.
    let several = ("select pg_advisory_lock(generate_series(1, 3))", "D: D: D: C:SELECT_3 ZI");
    check_pin(&[several, unlock, unlock], pinned);
    check_pin(&[several, unlock, unlock, unlock], None);
    // It may hold it all the same, and nobody knows how many this one takes.
    check_pin(&[("select pg_advisory_lock(1)", "E:57014 ZI"), unlock], pinned);
    check_pin(&[("select pg_advisory_lock(a) from t", "D: C:SELECT_1 ZI"), unlock], pinned);
    let all = ("select pg_advisory_unlock_all()", "D: C:SELECT_1 ZI");
    check_pin(&[("select pg_advisory_lock(1)", "E:57014 ZI"), lock, all], None);
}

#[test]
fn advisory_locks_in_a_pipeline_and_in_pieces() {
    let mut scene = Scene::new();
    let mut bytes = extended("P::select pg_advisory_unlock(1)|B|E|S");
    bytes.extend(extended("P::select pg_advisory_lock(1)|B|E|S"));
    scene.client(&bytes).server(&answer("1 2 D:f C:SELECT_1 ZI 1 2 D: C:SELECT_1 ZI"));
    assert_eq!(scene.core.pinned(), Some("advisory_lock"));
    scene.client(&extended("P::select pg_advisory_unlock(1)|B|E|S"));
    for byte in answer("1 2 D:t C:SELECT_1 ZI") {
        scene.server(&[byte]);
    }
    assert_eq!((scene.core.pinned(), scene.attached), (None, false));
    // A portal that has more of them to take.
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&extended("P::select pg_advisory_lock(generate_series(1, 3))|B|E|S"));
    scene.server(&answer("1 2 D: s ZT"));
    scene.client(&query("commit")).server(&answer("C:COMMIT ZI"));
    scene.client(&query("select pg_advisory_unlock(1)")).server(&answer("T D:t C:SELECT_1 ZI"));
    assert_eq!(scene.core.pinned(), Some("advisory_lock"));
}

#[test]
fn a_cursor_with_hold_is_over_when_it_is_closed() {
    let declare = ("declare c cursor with hold for select 1", "C:DECLARE_CURSOR ZI");
    let declared = ("declare c cursor with hold for select 1", "C:DECLARE_CURSOR ZT");
    let close = ("close c", "C:CLOSE_CURSOR ZI");
    let closed = ("close c", "C:CLOSE_CURSOR ZT");
    let pinned = Some("declare_hold");
    check_pin(&[declare], pinned);
    check_pin(&[declare, close], None);
    check_pin(&[declare, ("close d", "E:34000 ZI")], pinned);
    check_pin(&[declare, ("declare d cursor with hold for select 1", "C:DECLARE_CURSOR ZI"), close], pinned);
    check_pin(&[BEGIN, declared, ROLLBACK], None);
    check_pin(&[BEGIN, declared, closed, COMMIT], None);
    check_pin(&[BEGIN, declared, COMMIT, close], None);
    // Closed is closed.
    check_pin(&[declare, BEGIN, closed, ROLLBACK], None);
    check_pin(&[declare, BEGIN, closed, declared, COMMIT], pinned);
}

/// A portal lives until its transaction ends: drivers bind in one unit and fetch in the next.
#[test]
fn what_a_statement_does_is_noted_when_it_is_executed() {
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&extended("P::select pg_advisory_lock(1)|B|S")).server(&answer("1 2 ZT"));
    scene.client(&extended("E|S")).server(&answer("D: C:SELECT_1 ZT"));
    scene.client(&query("commit")).server(&answer("C:COMMIT ZI"));
    assert_eq!(scene.core.pinned(), Some("advisory_lock"));
    // Bound only, it has ended nothing.
    for ends in ["discard all", "select pg_advisory_unlock_all()"] {
        scene.client(&extended(&format!("P::{ends}|B|S"))).server(&answer("1 2 ZI"));
        assert_eq!(scene.core.pinned(), Some("advisory_lock"), "{ends}");
    }
    scene.client(&extended("P::discard all|B|E|S")).server(&answer("1 2 C:DISCARD_ALL ZI"));
    assert_eq!(scene.core.pinned(), None);
}

#[test]
fn the_same_effect_again_behind_its_end() {
    let text = "select pg_advisory_lock(1); select pg_advisory_unlock_all(); select pg_advisory_lock(2)";
    check_pin(&[(text, "D: C:SELECT_1 D: C:SELECT_1 D: C:SELECT_1 ZI")], Some("advisory_lock"));
}

#[test]
fn a_table_is_temporary_where_the_path_says_so() {
    let commit = ("commit", "C:COMMIT ZI");
    for (path, pinned) in [("pg_temp", Some("temporary")), ("a, b", None)] {
        let set = format!("set local search_path = {path}");
        let create = ("create table t (a int)", "C:CREATE_TABLE ZT");
        check_pin(&[BEGIN, (set.as_str(), "C:SET ZT"), create, commit], pinned);
    }
}

/// What is bound is noted when it is executed, and that may be when the unit before is answered.
#[test]
fn an_earlier_units_end_leaves_a_later_ones_portals() {
    for (text, expected) in [
        ("set role x", ("(role,x)".to_owned(), None)),
        ("select pg_advisory_lock(1)", (String::new(), Some("advisory_lock"))),
        ("do 'x'", (String::new(), Some("do"))),
    ] {
        let mut scene = Scene::new();
        scene.client(&extended(&format!("P::select 1|B|E|S|P::{text}|B")));
        scene.server(&answer("1 2 C:SELECT_1 ZI")).client(&extended("E|S"));
        scene.server(&answer("1 2 D: C:OK ZI"));
        assert_eq!(followed(&scene), expected, "{text}");
    }
}

/// Another unit's success is none of it.
#[test]
fn what_ends_pins_ends_them_by_its_own_success() {
    for end in ["select 1/0; close all", "select 1/0; discard all"] {
        let mut scene = Scene::new();
        scene
            .client(&query("declare c cursor with hold for select 1"))
            .server(&answer("C:DECLARE_CURSOR ZI"));
        scene.client(&[query("select 1"), query(end)].concat());
        scene.server(&answer("D: C:SELECT_1 ZI")).server(&answer("E:22012 ZI"));
        assert_eq!(scene.core.pinned(), Some("declare_hold"), "{end}");
    }
}

/// However many there are.
#[test]
fn portals_that_are_not_followed_any_more_keep_their_server() {
    let mut scene = Scene::new();
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&extended("P:s:set role x"));
    for portal in 0..=1000 {
        let mut bind = vec![];
        put(&mut bind, b'B', &[format!("p{portal}").as_bytes(), b"\0s\0\0\0\0\0\0\0"]);
        scene.client(&bind);
    }
    scene.client(&extended("S"));
    assert_eq!(scene.core.pinned(), Some("portals"));
}
// x
