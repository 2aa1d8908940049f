//! One other instance: what is asked of it, and what its answers amount to. PURE.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Head, Message, VERSION};
use crate::topology::Heard;

/// From a connection that failed to the next attempt.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const GREATEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Peer {
    cluster: String,
    own: String,
    instance: String,
    /// The last answer's serial number, on this connection.
    after: Option<u64>,
    /// Connections in a row that brought nothing.
    failures: u32,
}

/// It answers, and is not who it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stranger {
    #[error("it speaks version {0} of these messages, this instance {VERSION}")]
    Version(u32),
    #[error("it is of cluster {0}")]
    Cluster(String),
    #[error("it is instance {0}")]
    Instance(String),
    #[error("its answer is not understood")]
    Unreadable(#[from] serde_json::Error),
}

impl Peer {
    pub(super) fn new(cluster: &str, own: &str, instance: &str) -> Peer {
        Peer {
            cluster: cluster.to_owned(),
            own: own.to_owned(),
            instance: instance.to_owned(),
            after: None,
            failures: 0,
        }
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// On a new connection everything is new.
    pub(super) fn connected(&mut self) {
        self.after = None;
    }

    pub(super) fn question(&self) -> String {
        let after = self.after.map(|serial| format!(" AFTER {serial}")).unwrap_or_default();
        format!("SHOW MEMBER{after} FOR '{}'", self.own)
    }

    /// Of a question that left at `asked_at`.
    pub(super) fn answer(&mut self, asked_at: Instant, now: Instant, text: &str) -> Result<Heard, Stranger> {
        let head: Head = serde_json::from_str(text)?;
        match () {
            () if head.version != VERSION => return Err(Stranger::Version(head.version)),
            () if head.cluster != self.cluster => return Err(Stranger::Cluster(head.cluster)),
            () if head.instance != self.instance => return Err(Stranger::Instance(head.instance)),
            () => {}
        }
        let message: Message = serde_json::from_str(text)?;
        (self.after, self.failures) = (Some(message.serial), 0);
        Ok(Heard { asked_at, member: Arc::new(message.member.at(now, head.instance)) })
    }

    /// How long to wait before the next connection. `chance` is in 0.0..1.0: not all come back at once.
    pub(super) fn pause(&mut self, chance: f64) -> Duration {
        let longest = (LEAST_PAUSE * 2_u32.saturating_pow(self.failures.min(8))).min(GREATEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        LEAST_PAUSE.max(longest.mul_f64(0.5 + 0.5 * chance))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{GREATEST_PAUSE, LEAST_PAUSE, Peer};
    use crate::app::members::message::{MemberSight, Message, VERSION};
    use crate::topology::{Directive, Durability, Heard, Member, Term, WalStatus};

    fn member(now: Instant) -> Member {
        Member {
            instance: "bw2".to_owned(),
            directive: Arc::new(Directive::starting(Durability::Quorum)),
            wal: Arc::new(WalStatus { promised: Term(4), ..WalStatus::starting() }),
            proxy: Arc::default(),
            at_work: Vec::new(),
            deeds: Vec::new(),
            local: vec![],
            last_words: [].into(),
            speaks_since: now,
            instances: Vec::new(),
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn who_is_heard() {
        let asked_at = Instant::now() + Duration::from_secs(10);
        let now = asked_at + Duration::from_millis(20);
        let check = |version: u32, cluster: &str, instance: &str, expected: Result<Heard, &str>| {
            let mut peer = Peer::new("orders", "bw1", "bw2");
            assert_eq!(peer.question(), "SHOW MEMBER FOR 'bw1'");
            let (cluster, instance) = (cluster.to_owned(), instance.to_owned());
            let member = MemberSight::of(now, &member(now));
            let message = Message { version, cluster, instance, serial: 7, member };
            let text = serde_json::to_string(&message).expect("JSON");
            let heard = peer.answer(asked_at, now, &text).map_err(|error| error.to_string());
            assert_eq!(heard, expected.map_err(str::to_owned), "{text}");
            let next = if heard.is_ok() { "SHOW MEMBER AFTER 7 FOR 'bw1'" } else { "SHOW MEMBER FOR 'bw1'" };
            assert_eq!(peer.question(), next);
            peer.connected();
            assert_eq!(peer.question(), "SHOW MEMBER FOR 'bw1'", "on a new connection");
        };
        check(VERSION, "orders", "bw2", Ok(Heard { asked_at, member: Arc::new(member(now)) }));
        check(VERSION, "other", "bw2", Err("it is of cluster other"));
        check(VERSION, "orders", "bw3", Err("it is instance bw3"));
        let other_version = format!("it speaks version 99 of these messages, this instance {VERSION}");
        check(99, "orders", "bw2", Err(&other_version));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn another_version_is_known_by_its_number_alone() {
        let mut peer = Peer::new("orders", "bw1", "bw2");
        let mut answer = |text: &str| {
            peer.answer(Instant::now(), Instant::now(), text).map_err(|error| error.to_string()).err()
        };
        let later = r#"{"version": 3, "cluster": "orders", "instance": "bw2", "all": "else"}"#;
        assert_eq!(answer(later).as_deref(), Some("it speaks version 3 of these messages, this instance 2"));
        for text in ["", "null", r#"{"version": 2, "cluster": "orders", "instance": "bw2"}"#] {
            assert_eq!(answer(text).as_deref(), Some("its answer is not understood"), "{text}");
        }
    }

    #[test]
    fn who_is_away_is_asked_less_often() {
        let mut peer = Peer::new("orders", "bw1", "bw2");
        let pauses: Vec<u128> = (0..6).map(|_| peer.pause(1.0).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 2000, 2000]);
        for _ in 0..100 {
            assert_eq!(peer.pause(0.0), GREATEST_PAUSE / 2);
        }
        let mut peer = Peer::new("orders", "bw1", "bw2");
        assert_eq!(peer.pause(0.0), LEAST_PAUSE);
    }
}
