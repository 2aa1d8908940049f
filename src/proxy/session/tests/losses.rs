//! What a client hears when its server is gone.

use super::{Scene, answer, check, extended, query};
use crate::proxy::session::core::{Heard, PoolMode};
use crate::proxy::session::losses::Loss;
use crate::topology::Role;

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
fn a_server_that_dies_is_told_truthfully() {
    for (before, statement, loss, expected) in [
        // Nothing sent to the client yet, and only a read.
        ("", "select 1", Loss::Connection, "retry need(read) >Q"),
        ("", "insert into t values (1)", Loss::Connection, "<E(08007)Z(I)"),
        ("", "insert into t values (1)", Loss::Failover, "<E(08007)Z(I)"),
        ("/**/begin", "insert into t values (1)", Loss::Failover, "<E(40001)Z(E)"),
        ("/**/begin", "insert into t values (1)", Loss::Connection, "<E(08006)Z(E)"),
        ("/**/begin;insert into t values (1)", "commit", Loss::Failover, "<E(08007)Z(I)"),
        ("/**/begin;insert into t values (1)", "commit", Loss::Unacknowledged, "<E(08007)Z(I)"),
        ("", "insert into t values (1)", Loss::Unacknowledged, "<E(08007)Z(I)"),
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

/// What commits by itself is in doubt as soon as it is sent, and not sent again (unless its server has said that it did not
/// begin with it); what only reads is, while nobody has seen anything of its answer.
#[test]
fn statements_outside_of_a_block_by_extended_messages() {
    for (client, heard, loss, expected) in [
        ("P::select 1|B|E|S", "", Loss::Connection, "retry need(read) >PBES"),
        ("P::select 1|B|E|S", "", Loss::Failover, "retry need(read) >PBES"),
        ("P::select 1|B|E|S", "1 2 D:x", Loss::Failover, "<12D <E(40001)Z(I)"),
        ("P::insert into t values (1)|B|E|S", "", Loss::Connection, "<E(08007)Z(I)"),
        ("P::insert into t values (1)|B|E|S", "", Loss::Failover, "<E(08007)Z(I)"),
        ("P::insert into t values (1)|B|E|S", "", Loss::Unacknowledged, "<E(08007)Z(I)"),
        ("P::insert into t values (1)|B|E|S", "1 2 C:INSERT_0_1", Loss::Failover, "<12C <E(08007)Z(I)"),
        ("P:s:update t set a = 1|B:s|E|S", "", Loss::Failover, "<E(08007)Z(I)"),
        ("P::select f()|B|E|S", "", Loss::Failover, "<E(08007)Z(I)"),
        // One of several.
        ("P::select 1|B|E|P::delete from t|B|E|S", "", Loss::Failover, "<E(08007)Z(I)"),
    ] {
        let mut scene = Scene::new();
        scene.client(&extended(client));
        scene.log.clear();
        if !heard.is_empty() {
            scene.server(&answer(heard));
        }
        scene.lose(loss);
        assert_eq!(scene.log.trim_start(), expected, "{client} {heard} {loss:?}");
    }
}

/// What the client says, and hears before the server is lost; whether it is told that something may be committed.
#[test]
fn what_has_failed_is_in_doubt_no_more() {
    let failed = "1 2 E:23505";
    for (client, heard, in_doubt) in [
        ("P::insert into t values (1)|B|E|H", "1 2", true),
        ("P::insert into t values (1)|B|E|H", failed, false),
        ("P::insert into t values (1)|B|E|S", failed, false),
        // What comes behind a failed unit is another one.
        ("P::insert into t values (1)|B|E|S|P::insert into t values (2)|B|E|H", failed, true),
        ("P::insert into t values (1)|B|E|S|P::insert into t values (2)|B|E|S", failed, true),
        // What it had committed before.
        ("P::call p()|B|E|H", failed, true),
        (
            "P::begin|B|E|P::insert into t values (1)|B|E|P::commit|B|E|P::insert into t values (2)|B|E|H",
            failed,
            true,
        ),
    ] {
        let mut scene = Scene::new();
        scene.client(&extended(client)).server(&answer(heard));
        assert_eq!(scene.core.may_be_committing(), in_doubt, "{client}, {heard}");
        scene.lose(Loss::Failover);
        assert_eq!(scene.log.contains("(08007)"), in_doubt, "{client}, {heard}: {}", scene.log);
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
fn a_limit_of_the_clients_own_is_told_as_the_server_tells_it() {
    for (before, status, words, expected) in [
        ("/**/begin", "ZT", "F:25P03", "<E(25P03) over"),
        ("/**/begin", "ZT", "F:25P04", "<E(25P04) over"),
        ("/**/begin; select 1/0", "ZE", "F:25P03", "<E(25P03) over"),
        ("set idle_session_timeout = 1; listen x", "ZI", "F:57P05", "<E(57P05) over"),
        // Of a server that is nobody's.
        ("/**/begin", "ZT", "F:57P05", "lost(57P05)"),
    ] {
        let mut scene = Scene::new();
        let completed = if status == "ZI" { "C:SET C:LISTEN" } else { "C:BEGIN" };
        scene.client(&query(before)).server(&answer(&format!("{completed} {status}")));
        scene.log.clear();
        scene.server(&answer(words));
        check(&scene, expected);
    }
    // Amid a statement.
    let mut scene = Scene::new();
    scene.client(&query("select 1"));
    scene.log.clear();
    scene.server(&answer("T F:25P04"));
    check(&scene, "<TE(25P04) over");
    let mut scene = Scene::in_mode(PoolMode::Session);
    scene.client(&query("select 1")).server(&answer("C:SELECT_1 ZI"));
    scene.log.clear();
    scene.server(&answer("F:57P05"));
    check(&scene, "<E(57P05) over");
}

/// A pinned client is not spared the doubt.
#[test]
fn a_commit_in_doubt_is_told_as_such_with_the_end_of_the_session() {
    for (mode, before, expected) in
        [(PoolMode::Transaction, "listen x", "fatal(08007)"), (PoolMode::Session, "select 1", "fatal(08007)")]
    {
        let mut scene = Scene::in_mode(mode);
        let tag = if before == "listen x" { "C:LISTEN ZI" } else { "C:SELECT_1 ZI" };
        scene.client(&query(before)).server(&answer(tag));
        scene.client(&query("insert into t values (1)"));
        scene.log.clear();
        scene.lose(Loss::Failover);
        check(&scene, expected);
    }
}

/// What was sent to a standby has changed nothing, whatever it looks like.
#[test]
fn nothing_is_in_doubt_at_a_standby() {
    for (before, loss, expected) in [
        ("C:DECLARE_CURSOR ZI", Loss::Failover, "fatal(57P01)"),
        ("C:DECLARE_CURSOR ZI", Loss::Connection, "fatal(57P01)"),
        ("C:BEGIN ZT", Loss::Failover, "<E(40001)Z(E)"),
    ] {
        let mut scene = Scene::new();
        scene.role = Role::Standby;
        let first = if before.ends_with("ZT") {
            "begin read only; select 1"
        } else {
            "declare c cursor with hold for select 1"
        };
        scene.client(&query(first)).server(&answer(before));
        let second = if before.ends_with("ZT") { "select f(); commit; select f()" } else { "select f()" };
        scene.client(&query(second));
        scene.log.clear();
        scene.lose(loss);
        check(&scene, expected);
    }
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
fn what_a_server_said_farewell_to_instead_of_beginning_with_it_runs_again() {
    for (client, server, expected) in [
        ("Q:insert into t values (1)", "F:57P01", "lost(57P01) retry need(write) >Q"),
        ("Q:/**/begin", "F:57P01", "lost(57P01) retry need(write) >Q"),
        ("X:P::insert into t values (1)|B|E|S", "F:57P01", "lost(57P01) retry need(write) >PBES"),
        // Not as a whole undone, or with effects elsewhere.
        ("Q:insert into t values (1); insert into t values (2)", "F:57P01", "lost(57P01) <E(08007)Z(I)"),
        ("Q:call p()", "F:57P01", "lost(57P01) fatal(08007)"),
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
