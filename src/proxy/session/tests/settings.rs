//! Settings that go with the client from server to server.

use std::sync::Arc;

use super::{Scene, answer, check, extended, followed, query};
use crate::proxy::guc::{Settings, Startup};
use crate::proxy::session::core::ServerState;
use crate::topology::Role;

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
fn a_reset_goes_back_to_what_the_startup_packet_asked_for() {
    let asked = vec![("application_name".to_owned(), "app".to_owned())];
    let settings = "1 2 C:BEGIN 1 2 D C:SELECT_1 1 2 C:COMMIT";
    let mut scene = Scene::new();
    scene.core = scene.core.with_settings(Arc::new(Startup::read(&asked).settings));
    scene.login(&[("application_name", "")]);
    let set = format!("{settings} C:SET S:application_name=x ZI");
    scene.client(&query("set application_name = x")).server(&answer(&set));
    assert_eq!(followed(&scene).0, "(application_name,x)");
    // The server's own default is not the client's: it hears of its own.
    scene.client(&query("reset all")).server(&answer("C:RESET S:application_name= ZI"));
    assert_eq!(followed(&scene).0, "(application_name,app)");
    assert_eq!(scene.core.told.value("application_name"), Some("app"));
    check(&scene, "need(write) >PBEPBEPBEQ <CSZ(I) release need(write) >Q <CSZ(I) release");
    scene.log.clear();
    // A server that is kept gets it back as one that is taken does.
    scene.client(&query("listen x; reset all")).server(&answer(&format!("{settings} C:LISTEN C:RESET ZI")));
    let back = format!("{settings} C:SELECT_1 S:application_name=app ZI");
    scene.client(&query("select 1")).server(&answer(&back));
    check(&scene, "need(write) >PBEPBEPBEQ <CCZ(I) >PBEPBEPBEQ <CZ(I)");
}

#[test]
fn what_a_function_sets_is_seen_where_the_server_reports_it() {
    let mut scene = Scene::new();
    scene.login(&[("TimeZone", "UTC")]);
    scene.client(&query("select f()")).server(&answer("T D C:SELECT_1 S:TimeZone=Asia/Tokyo ZI"));
    assert_eq!(followed(&scene).0, "(timezone,Asia/Tokyo)");
    // SET LOCAL is over when the transaction is.
    let mut scene = Scene::new();
    scene.login(&[("TimeZone", "UTC")]);
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
fn our_own_settings_never_reach_a_server() {
    let mut scene = Scene::new();
    scene.client(&query("set bellwether.route = 'primary'")).client(&query("show bellwether.route"));
    scene.client(&extended("P::set bellwether.route = 'standby'|B|D|E|S"));
    check(&scene, "<CZ(I) <TDCZ(I) <12tnCZ(I)");
    assert_eq!(scene.core.knobs.route(), crate::proxy::route::Route::Standby);
}
