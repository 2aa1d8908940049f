#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]
//! Answers the questions of the others.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::answers::{Answers, Matters};
use super::message::{MemberSight, Message, VERSION};
use super::words::{LastWords, Unfit};
use super::{Gate, Own};
use crate::admin::{AskedMember, MemberError};
use crate::topology::Members;

pub(super) struct Telling {
    pub(super) cluster: String,
    pub(super) own: Own,
    pub(super) words: Arc<Mutex<LastWords>>,
    pub(super) gate: watch::Receiver<Gate>,
    pub(super) members: Arc<watch::Sender<Arc<Members>>>,
}

impl Telling {
    /// Never ends.
    pub(super) async fn run(mut self, mut questions: mpsc::Receiver<AskedMember>) {
        // Until the relay has said what it promised in an earlier life, its status says: nothing. Who heard that would go on
        // under a term that is over.
        if self.own.wal.changed().await.is_err() {
            return std::future::pending().await;
        }
        let mut answers = Answers::new();
        loop {
            self.publish_last_words();
            let look = answers.next_look().map(tokio::time::Instant::from_std);
            tokio::select! {
                asked = questions.recv() => match asked {
                    Some(asked) => self.take(asked, &mut answers),
                    // The console has ended.
                    None => return std::future::pending().await,
                },
                () = self.own.changed() => answers.changed(),
                Ok(()) = self.gate.changed() => {}
                () = tokio::time::sleep_until(look.unwrap_or_else(tokio::time::Instant::now)), if look.is_some() => {
                    self.look(&mut answers);
                }
            }
        }
    }

    fn take(&self, asked: AskedMember, answers: &mut Answers<AskedMember>) {
        match self.words.lock().admits(asked.question.asker.as_deref()) {
            Ok(()) => {
                let after = asked.question.after;
                answers.ask(Instant::now(), asked, after);
            }
            Err(unfit) => refuse(asked, unfit),
        }
    }

    /// What is told is put together, and remembered as told, in one step: whoever learns of a later promise learns of all
    /// words before it.
    fn look(&self, answers: &mut Answers<AskedMember>) {
        let mut words = self.words.lock();
        if !words.is_open() {
            answers.dismiss().for_each(|asked| refuse(asked, Unfit::Closed));
            return;
        }
        let now = Instant::now();
        let member = self.own.member(&words, now);
        let (serial, due) = answers.look(now, Matters::of(&member));
        for asker in due.iter().filter_map(|asked| asked.question.asker.as_deref()) {
            words.tell(asker, member.wal.promised, now);
        }
        drop(words);
        if due.is_empty() {
            return;
        }
        let message = Message {
            version: VERSION,
            cluster: self.cluster.clone(),
            instance: self.own.instance.clone(),
            serial,
            member: MemberSight::of(now, &member),
        };
        let text = serde_json::to_string(&message).expect("names, numbers and texts only");
        for asked in due {
            // Whoever has gone is not told.
            let _ = asked.reply.send(Ok(text.clone()));
        }
    }

    /// For this instance's own control plane.
    fn publish_last_words(&self) {
        let words = self.words.lock();
        let promised = self.own.wal.borrow().promised;
        let (last_words, since) = (words.before(promised), words.since());
        drop(words);
        self.members.send_if_modified(|members| {
            let known = (&members.last_words, members.last_words_under, members.speaks_since);
            if known == (&last_words, promised, since) {
                return false;
            }
            let members = Arc::make_mut(members);
            (members.last_words, members.last_words_under, members.speaks_since) =
                (last_words, promised, since);
            true
        });
    }
}

fn refuse(asked: AskedMember, unfit: Unfit) {
    let error = match unfit {
        Unfit::Closed => MemberError::Closed,
        Unfit::Unknown => MemberError::UnknownAsker { asker: asked.question.asker.unwrap_or_default() },
    };
    let _ = asked.reply.send(Err(error));
}
