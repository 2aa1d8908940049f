//! Commits whose server is lost before it answers.

use super::{Scene, answer, check, extended, query};
use crate::pg::{Lsn, TimelineId};
use crate::proxy::session::commit::ResolveCommits;
use crate::proxy::session::core::{Core, PoolMode};
use crate::proxy::session::knobs::Knobs;
use crate::proxy::session::losses::Loss;
use crate::proxy::session::message::put;
use crate::topology::{CommitInDoubt, CommitOutcome, Ending, Role};

/// A client in a block that has written, whose server is asked.
fn in_block(mode: PoolMode) -> Scene {
    let mut scene = Scene::new();
    scene.core = Core::new(mode, 1, Knobs::default()).with_resolved_commits(ResolveCommits::Yes);
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.client(&query("insert into t values (1)")).server(&answer("C:INSERT_0_1 ZT"));
    scene.log.clear();
    scene
}

impl Scene {
    /// As the shell does, before anything is sent.
    fn origin(&mut self) -> &mut Scene {
        assert!(self.core.awaits_origin());
        self.core.commits_from(Some((TimelineId(3), Lsn(100))));
        self
    }

    fn resolve(&mut self, outcome: CommitOutcome) -> &mut Scene {
        match outcome {
            CommitOutcome::Committed => self.core.commit_found(&mut self.down),
            CommitOutcome::NotCommitted => self.core.commit_lost("", &mut self.down),
            CommitOutcome::Unknown => {}
        }
        self.lose(Loss::Failover)
    }
}

#[test]
fn the_question_goes_in_front_and_its_answer_is_not_the_clients() {
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&query("commit")).origin().server(&answer("V:200 ZT V:742 ZT C:COMMIT ZI"));
    check(&scene, ">FFQ <CZ(I) release");
    assert_eq!(scene.core.commit_in_doubt(), None);
    // Where its WAL is, the server is asked once.
    scene.log.clear();
    for sql in ["/**/begin", "insert into t values (1)"] {
        scene.client(&query(sql)).server(&answer("C:OK ZT"));
    }
    scene.log.clear();
    scene.client(&extended("P::commit|B|E|S")).server(&answer("V:743 ZT 1 2 C:COMMIT ZI"));
    check(&scene, ">FPBES <12CZ(I) release");
}

/// A client in no block, whose server is asked.
fn idle() -> Scene {
    let mut scene = Scene::new();
    let core = Core::new(PoolMode::Transaction, 1, Knobs::default());
    scene.core = core.with_resolved_commits(ResolveCommits::Yes);
    scene
}

#[test]
fn in_front_of_a_second_phase_its_xid_is_asked_for() {
    let mut scene = idle();
    scene.client(&query("commit prepared 'x'")).origin();
    scene.server(&answer("C:SET T D:742_200 C:SELECT_1 ZI C:COMMIT_PREPARED ZI"));
    check(&scene, "need(write) >QQ <CZ(I) release");
    assert_eq!(scene.core.commit_in_doubt(), None);
    scene.log.clear();
    scene.client(&extended("P::rollback prepared 'x'|B|E|S")).origin();
    scene.server(&answer("C:SET T C:SELECT_0 ZI 1 2 E:42704 ZI"));
    check(&scene, "need(write) >QPBES <12E(42704)Z(I) release");
    // The client's unnamed statement is dropped by the question, and brought again.
    scene.log.clear();
    scene.client(&extended("P:c:commit prepared 'x'|P::select 1|S"));
    scene.server(&answer("C:SET T D:7_200 C:SELECT_1 ZI 1 1 ZI"));
    scene.client(&extended("B:c|E|S")).origin();
    scene.server(&answer("C:SET T D:7_200 C:SELECT_1 ZI 2 C:COMMIT_PREPARED ZI"));
    scene.log.clear();
    scene.client(&extended("B|E|S"));
    check(&scene, "need(read) >PBES");
    // Behind the settings that a server is brought to first.
    let mut scene = idle();
    scene.client(&query("set work_mem = '1MB'")).server(&answer("C:SET ZI"));
    scene.server = super::ServerState::default();
    scene.log.clear();
    scene.client(&query("commit prepared 'x'")).origin();
    scene.server(&answer("1 2 C:BEGIN 1 2 C:SELECT_1 1 2 C:COMMIT C:SET T D:742_200 C:SELECT_1 ZI"));
    check(&scene, "need(write) >PBEPBEPBEQQ");
    assert!(scene.core.commit_in_doubt().is_some());
    // Whatever the name is, the question is about it.
    let mut scene = idle();
    scene.client(&query("commit prepared 'it''s one'"));
    let sent = String::from_utf8_lossy(&scene.wires[0]).into_owned();
    assert!(sent.contains(" 'it''s one'\0"), "{sent}");
    // Whatever the session's defaults are, it waits for nobody.
    assert!(sent.contains("SET TRANSACTION NOT DEFERRABLE;"), "{sent}");
}

#[test]
fn what_is_to_be_found_out_about_a_second_phase() {
    let (commit, rollback) = ("commit prepared 'x'", "rollback prepared 'x'");
    let known = |what| Some(CommitInDoubt { timeline: TimelineId(3), from: Lsn(200), xid: 742, what });
    for (statement, heard, expected) in [
        (query(commit), "C:SET T D:742_200 C:SELECT_1 ZI", known(Ending::CommitPrepared)),
        (query(rollback), "C:SET T D:742_200 C:SELECT_1 ZI", known(Ending::RollbackPrepared)),
        (
            extended("P::commit prepared 'x'|B|E|S"),
            "C:SET T D:742_200 C:SELECT_1 ZI 1",
            known(Ending::CommitPrepared),
        ),
        // Not heard yet; nothing is prepared under this name; it may not be asked; answered.
        (query(commit), "C:SET", None),
        (query(commit), "C:SET T C:SELECT_0 ZI", None),
        (query(commit), "C:SET E:42501 ZI", None),
        (query(commit), "C:SET T D:742_200 C:SELECT_1 ZI C:COMMIT_PREPARED", None),
    ] {
        let mut scene = idle();
        scene.client(&statement).origin().server(&answer(heard));
        assert_eq!(scene.core.commit_in_doubt(), expected, "{heard}");
    }
    use CommitOutcome::{Committed, NotCommitted, Unknown};
    for (outcome, expected) in
        [(Committed, "<CZ(I)"), (NotCommitted, "<E(40001)Z(I)"), (Unknown, "<E(08007)Z(I)")]
    {
        for statement in [commit, rollback] {
            let mut scene = idle();
            scene.client(&query(statement)).origin().server(&answer("C:SET T D:742_200 C:SELECT_1 ZI"));
            scene.log.clear();
            scene.resolve(outcome);
            check(&scene, expected);
        }
    }
}

#[test]
fn whom_it_is_not_asked_for() {
    for (before, statement) in [
        ("/**/begin;insert into t values (1)", "commit prepared 'x'"),
        ("", "commit prepared 'ü'"),
        ("", r"commit prepared 'a\\b'"),
        ("", "commit prepared 'x'; select 1"),
        ("", "insert into t values (1)"),
        ("", "commit"),
        ("/**/begin", "commit"),
        ("/**/begin;select 1", "commit"),
        ("/**/begin;insert into t values (1)", "rollback"),
        ("/**/begin;insert into t values (1)", "commit and chain"),
        ("/**/begin;insert into t values (1)", "insert into t values (2); commit"),
    ] {
        for role in [Role::Primary, Role::Standby] {
            let mut scene = Scene::new();
            scene.role = role;
            let core = Core::new(PoolMode::Transaction, 1, Knobs::default());
            scene.core = core.with_resolved_commits(ResolveCommits::Yes);
            for sql in before.split(';').filter(|sql| !sql.is_empty()) {
                scene.client(&query(sql)).server(&answer("C:OK ZT"));
            }
            scene.log.clear();
            scene.client(&query(statement));
            let asked = scene.log.contains('F') || scene.log.contains("QQ");
            assert!(!asked, "{before:?} {statement:?}: {}", scene.log);
        }
    }
    // Of a standby.
    let mut scene = in_block(PoolMode::Transaction);
    scene.core.serves(Role::Standby);
    scene.client(&query("commit"));
    check(&scene, ">Q");
    // Of a block that has failed.
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&query("select 1/0")).server(&answer("E:22012 ZE"));
    scene.log.clear();
    scene.client(&query("commit"));
    check(&scene, ">Q");
    // Amid a pipeline.
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&[query("insert into t values (2)"), query("commit")].concat());
    check(&scene, ">QQ");
}

#[test]
fn what_is_to_be_found_out() {
    let commit = CommitInDoubt { timeline: TimelineId(3), from: Lsn(200), xid: 742, what: Ending::Commit };
    let prepare = CommitInDoubt { what: Ending::Prepare, ..commit };
    for (statement, heard, expected) in [
        ("commit", "V:200 ZT V:742 ZT", Some(commit)),
        // What is durable at the relay lies behind what the server has said.
        ("commit", "V:50 ZT V:742 ZT", Some(CommitInDoubt { from: Lsn(100), ..commit })),
        ("prepare transaction 'x'", "V:200 ZT V:742 ZT", Some(prepare)),
        // Not heard yet; it had none; it has failed; it is answered.
        ("commit", "V:200 ZT", None),
        ("commit", "V:200 ZT V ZT", None),
        ("commit", "E:42501 ZE E:25P02 ZE", None),
        ("commit", "V:200 ZT V:742 ZT C:COMMIT", None),
        ("commit", "V:200 ZT V:742 ZT E:40001", None),
    ] {
        let mut scene = in_block(PoolMode::Transaction);
        scene.client(&query(statement)).origin().server(&answer(heard));
        assert_eq!(scene.core.commit_in_doubt(), expected, "{statement} {heard}");
    }
    // The answer to its Describe is not known.
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&extended("P::commit|D|B|E|S")).server(&answer("V:200 ZT V:742 ZT"));
    assert_eq!(scene.core.commit_in_doubt(), None);
    // Where the server is, nobody knew; something else is under way behind it.
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&query("commit"));
    scene.core.commits_from(None);
    scene.server(&answer("V:200 ZT V:742 ZT"));
    assert_eq!(scene.core.commit_in_doubt(), None);
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&query("commit")).origin().client(&query("insert into t values (3)"));
    scene.server(&answer("V:200 ZT V:742 ZT"));
    assert_eq!(scene.core.commit_in_doubt(), None);
}

fn with_portal_described() -> Vec<u8> {
    let mut described = vec![];
    put(&mut described, b'D', &[b"P\0"]);
    [extended("P::commit|B"), described, extended("E|S")].concat()
}

#[test]
fn the_client_hears_what_became_of_it() {
    use CommitOutcome::{Committed, NotCommitted, Unknown};
    use PoolMode::{Session, Transaction};
    let simple = || query("commit");
    for (mode, statement, outcome, expected) in [
        (Transaction, simple(), Committed, "<CZ(I)"),
        (Transaction, simple(), NotCommitted, "<E(40001)Z(I)"),
        (Transaction, simple(), Unknown, "<E(08007)Z(I)"),
        (Transaction, query("prepare transaction 'x'"), Committed, "<CZ(I)"),
        (Transaction, with_portal_described(), Committed, "<12nCZ(I)"),
        (Transaction, extended("P:c:commit|B:c|E|S"), Committed, "<12CZ(I)"),
        (Transaction, extended("P::commit|B|E|S"), NotCommitted, "<E(40001)Z(I)"),
        (Session, simple(), Committed, "fatal(57P01) <CZ(I)"),
        (Session, simple(), NotCommitted, "fatal(57P01) <E(40001)Z(I)"),
        (Session, simple(), Unknown, "fatal(08007)"),
    ] {
        let mut scene = in_block(mode);
        scene.client(&statement).origin().server(&answer("V:200 ZT V:742 ZT"));
        assert!(scene.core.commit_in_doubt().is_some());
        scene.log.clear();
        scene.resolve(outcome);
        check(&scene, expected);
    }
}

#[test]
fn the_session_goes_on_as_behind_any_commit() {
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&query("set work_mem = '1MB'")).server(&answer("C:SET ZT"));
    scene.client(&extended("P:c:commit|B:c|E|S")).origin().server(&answer("V:200 ZT V:742 ZT"));
    scene.resolve(CommitOutcome::Committed);
    assert_eq!(super::followed(&scene).0, "(work_mem,1MB)");
    // The statement that came with it is the client's.
    scene.server = super::ServerState::default();
    scene.log.clear();
    scene.client(&extended("B:c|E|S"));
    check(&scene, "need(read) >PBEPBEPBEP(bw_2)B(bw_2)ES");
    // Rolled back, and with it what it had set.
    let mut scene = in_block(PoolMode::Transaction);
    scene.client(&query("set work_mem = '1MB'")).server(&answer("C:SET ZT"));
    scene.client(&query("commit")).origin().server(&answer("V:200 ZT V:742 ZT"));
    scene.resolve(CommitOutcome::NotCommitted);
    assert_eq!(super::followed(&scene).0, "");
}
