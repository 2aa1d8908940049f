//! What the shell does around the core, over sockets.
#![expect(clippy::disallowed_methods, reason = "tests: samples are stamped as the sampler does it")]

use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{answer, query};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::{Lsn, TimelineId};
use crate::proxy::session::commit::ResolveCommits;
use crate::proxy::stage::{Stage, let_in};
use crate::proxy::{Entrance, ProxyConfig};
use crate::topology::{CommitOutcome, CommitOutcomes, Searching, Term};

/// The bodies of all messages up to the next one with `tag`, that one included.
async fn until(stream: &mut UnixStream, tag: u8) -> Vec<Vec<u8>> {
    let mut all = vec![];
    loop {
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header).await.expect("a message");
        let Header { tag: found, total } = Header::peek(&header).expect("a length").expect("a whole header");
        let mut body = vec![0; total - HEADER_LEN];
        stream.read_exact(&mut body).await.expect("the rest of it");
        all.push(body);
        if found == tag {
            return all;
        }
    }
}

async fn send(stream: &mut UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the other end is there");
}

/// The server goes on after it was lost to us: it writes the commit's record, and then the relay finds that.
#[tokio::test]
async fn a_position_from_before_a_commit_was_resolved_is_not_that_of_the_commit() {
    let stage = Stage::new(ProxyConfig { resolve_commits: ResolveCommits::Yes, ..ProxyConfig::default() });
    stage.order(|order| order.timeline = Some(TimelineId(3)));
    let (worker, (ours, mut client)) = (stage.worker(), Stage::client());
    let shared = stage.shared();
    let script = async {
        let mut server = stage.accept().await;
        let_in(&mut server).await;
        until(&mut client, b'Z').await;
        for (sql, said) in [("/**/begin", "C:BEGIN ZT"), ("insert into t values (1)", "C:INSERT_0_1 ZT")] {
            send(&mut client, &query(sql)).await;
            until(&mut server, b'Q').await;
            send(&mut server, &answer(said)).await;
            until(&mut client, b'Z').await;
        }
        send(&mut client, &query("commit")).await;
        until(&mut server, b'Q').await;
        send(&mut server, &answer("V:200 ZT V:742 ZT")).await;
        drop(server);
        let mut in_doubt = stage.in_doubt.clone();
        let asked = in_doubt.wait_for(|asked| !asked.is_empty()).await.expect("it is asked for").clone();
        // Now, and the commit's record is written behind it.
        shared.sampler.learn(Instant::now(), Lsn(0x100));
        let known = asked.iter().map(|commit| (*commit, CommitOutcome::Committed)).collect();
        stage.outcomes.send_replace(Arc::new(CommitOutcomes { searching: Searching::Yes, known }));
        stage.order(|order| {
            (order.term, order.primary, order.timeline) = (Term(8), None, Some(TimelineId(4)));
        });
        until(&mut client, b'Z').await;
        send(&mut client, &query("show bellwether.lsn")).await;
        let wanted = async {
            while !shared.sampler.is_wanted() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            told = until(&mut client, b'Z') => panic!("a position that nobody asked for since: {told:?}"),
            () = wanted => {}
        }
        shared.sampler.learn(Instant::now(), Lsn(0x200));
        let told = until(&mut client, b'D').await.pop().expect("a row");
        assert!(told.ends_with(b"0/200"), "{told:?}");
    };
    let directive = shared.inputs.directive.clone();
    tokio::select! {
        () = script => {}
        () = stage.proxy.serve(&worker, Entrance::default(), ours) => panic!("the session goes on"),
        () = shared.shown.run(shared.login.clone(), Vec::new(), directive) => {}
    }
}
