//! Commits under quorum durability.

use super::{Scene, answer, check, extended, query};
use crate::pg::error::{ErrorFields, SqlState};
use crate::proxy::session::core::{Core, Heard, PoolMode, Takes, Texts};
use crate::proxy::session::knobs::Knobs;
use crate::proxy::session::message::{put, put_error, read_error};

#[test]
fn under_quorum_no_client_chooses_weaker_commits() {
    use crate::topology::Durability;
    let weak = "set synchronous_commit = off";
    for (durability, text, refused) in [
        (Durability::Quorum, weak, true),
        (Durability::Quorum, "begin; set local synchronous_commit = 'LOCAL'; insert into t values (1)", true),
        (Durability::Quorum, "select set_config('synchronous_commit', 'remote_write', true)", true),
        (Durability::Quorum, "select set_config('synchronous_commit', $1, true)", true),
        (Durability::Quorum, "prepare p as select set_config('synchronous_commit', 'off', false)", true),
        (Durability::Quorum, "set synchronous_commit = on", false),
        (Durability::Quorum, "set synchronous_commit to default", false),
        (Durability::Async, weak, false),
    ] {
        for by in ["query", "unnamed", "named"] {
            let mut scene = Scene::new();
            scene.core = Core::new(PoolMode::Transaction, 1, Knobs::default()).with_durability(durability);
            let bytes = match by {
                "query" => query(text),
                "unnamed" => extended(&format!("P::{text}|B|E|S")),
                _ => extended(&format!("P:s:{text}|B:s|E|S")),
            };
            scene.attached = true;
            scene.up.input.push(&bytes);
            let mut texts = Texts { classifier: &mut scene.classifier, statements: &scene.statements };
            let (up, down) = (&mut scene.up, &mut scene.down);
            scene.core.attached(Takes::Everything, &mut scene.server, up);
            let _ = scene.core.client(up, down, Some(&mut scene.server), &mut texts);
            let sent = String::from_utf8_lossy(up.pending()).into_owned();
            assert_eq!(sent.contains("weaker than quorum"), refused, "{durability:?} {text} {by}");
            assert_eq!(sent.contains(text), !refused, "{durability:?} {text} {by}");
        }
    }
}

#[test]
fn commits_wait_for_replay_only_where_the_followers_count() {
    use crate::topology::{Durability, RemoteApply};
    for (rule, text, refused) in [
        (RemoteApply::Off, "set synchronous_commit = remote_apply", true),
        (RemoteApply::Off, "select set_config('synchronous_commit', 'remote_apply', false)", true),
        (
            RemoteApply::Off,
            "prepare p as select set_config('synchronous_commit', 'remote_apply', false)",
            true,
        ),
        (RemoteApply::Off, "set synchronous_commit = on", false),
        (RemoteApply::Followers, "begin; set local synchronous_commit = 'remote_apply'; commit", false),
        (RemoteApply::Followers, "set synchronous_commit = off", true),
    ] {
        let mut scene = Scene::new();
        scene.core = Core::new(PoolMode::Transaction, 1, Knobs::default())
            .with_durability(Durability::Quorum)
            .with_remote_apply(rule);
        scene.attached = true;
        scene.up.input.push(&query(text));
        let mut texts = Texts { classifier: &mut scene.classifier, statements: &scene.statements };
        let (up, down) = (&mut scene.up, &mut scene.down);
        scene.core.attached(Takes::Everything, &mut scene.server, up);
        let _ = scene.core.client(up, down, Some(&mut scene.server), &mut texts);
        let sent = String::from_utf8_lossy(up.pending()).into_owned();
        assert_eq!(sent.contains(text), !refused, "{rule:?} {text}");
    }
}

/// NoticeResponse of `SyncRepWaitForLSN`.
fn cancelled_wait() -> Vec<u8> {
    let mut out = vec![];
    put(&mut out, b'N', &[b"SWARNING\0VWARNING\0C01000\0Mwait cancelled\0RSyncRepWaitForLSN\0\0"]);
    out
}

#[test]
fn a_commit_that_stopped_waiting_for_the_quorum_is_no_success() {
    let mut scene = Scene::new();
    scene.client(&query("insert into t values (1)"));
    scene.log.clear();
    let mut bytes = cancelled_wait();
    bytes.extend(answer("C:INSERT_0_1 ZI"));
    let ended = {
        scene.down.input.push(&bytes);
        scene.core.server(&mut scene.down, &mut scene.server)
    };
    assert!(
        matches!(&ended, Heard::Broken(error) if error.code == SqlState::TRANSACTION_RESOLUTION_UNKNOWN),
        "{ended:?}"
    );
    assert!(!scene.down.has_pending(), "not even the warning");
    // Any other notice is the client's.
    let mut scene = Scene::new();
    scene.client(&query("insert into t values (1)")).server(&answer("N C:INSERT_0_1 ZI"));
    check(&scene, "need(write) >Q <NCZ(I) release");
}

#[test]
fn what_is_refused_is_refused_in_words_of_ours() {
    let mut scene = Scene::new();
    scene.client(&query("insert into t values (1)"));
    let servers = ErrorFields::error(
        SqlState::INVALID_PARAMETER_VALUE,
        "valor no v\u{e1}lido para \"synchronous_commit\": \"weaker than quorum durability\"",
    );
    let mut bytes = vec![];
    put_error(
        &mut bytes,
        &servers.with_hint("Available values: local, remote_write, remote_apply, on, off."),
    );
    scene.down.input.push(&bytes);
    let _ = scene.core.server(&mut scene.down, &mut scene.server);
    let told = read_error(scene.down.pending()).expect("an error");
    assert_eq!(
        told.message,
        "synchronous_commit must not be weaker than the cluster's durability, which is quorum"
    );
    assert_eq!((told.code, told.hint), (SqlState::INVALID_PARAMETER_VALUE, None));
}
