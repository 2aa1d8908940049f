//! What comes while a message to the client is half there: nothing of ours gets into its middle.

use super::{Scene, answer, extended, query};
use crate::proxy::session::core::Texts;
use crate::proxy::session::message::put;

/// Reads `from_client`, when it is there, in the middle of `message`; what the client gets of all that.
fn amid(scene: &mut Scene, message: &[u8], from_client: &[u8]) -> Vec<u8> {
    let (begin, rest) = message.split_at(message.len() / 2);
    let mut got = vec![];
    for (down, up) in [(begin, from_client), (rest, &[][..])] {
        scene.down.input.push(down);
        let _ = scene.core.server(&mut scene.down, &mut scene.server);
        scene.up.input.push(up);
        let mut texts = Texts { classifier: &mut scene.classifier, statements: &scene.statements };
        let _ = scene.core.client(&mut scene.up, &mut scene.down, Some(&mut scene.server), &mut texts);
        while scene.down.has_pending() {
            let bytes = scene.down.pending().to_vec();
            scene.down.wrote(bytes.len());
            got.extend(bytes);
        }
    }
    got
}

#[test]
fn a_command_of_ours_is_answered_behind_a_notice() {
    for command in [query("show bellwether.route"), extended("P::show bellwether.route|B|E|S")] {
        let mut scene = Scene::new();
        scene.client(&query("create temp table t ()")).server(&answer("C:CREATE_TABLE ZI"));
        // Longer than what is waited for to be there wholly.
        let mut notice = vec![];
        put(&mut notice, b'N', &[b"SNOTICE\0M", &[b'm'; 70_000], b"\0\0"]);
        let got = amid(&mut scene, &notice, &command);
        assert!(got.starts_with(&notice), "the notice in one piece");
        assert!(got.len() > notice.len(), "the answer behind it");
    }
}

#[test]
fn a_flush_does_not_bring_our_answers_into_the_servers() {
    let mut scene = Scene::new();
    scene.client(&extended("P:a:select 1|S")).server(&answer("1 ZI"));
    scene.client(&extended("D:a|H")).server(&answer("1 t"));
    let mut description = vec![];
    put(&mut description, b'T', &[&[0; 40]]);
    let got = amid(&mut scene, &description, &extended("P:b:select 1|H"));
    assert!(got.starts_with(&description), "{got:?}");
    assert_eq!(&got[description.len()..], b"1\0\0\0\x04", "ParseComplete");
}
