//! When the primary shows a commit that is known to have happened.
//!
//! A primary shows a transaction when its backend has heard that the quorum has it (`CommitTransaction` in xact.c:
//! `ProcArrayEndTransaction` comes behind `SyncRepWaitForLSN`). The relay may know that before. Whoever hears of a commit must
//! find it in the next statement, and so must everybody else. So where the server of a commit in doubt goes on as primary,
//! it is asked; a primary of a later timeline had it before it was one.
//!
//! One connection asks for all sessions, while any of them waits.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::config::ServerLogin;
use crate::net::sql::{self, SqlConnection};
use crate::topology::{CommitInDoubt, Directive, Ending, Node, Term};

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(10);
/// For one answer, and for connecting.
const LIMIT: Duration = Duration::from_secs(2);
/// After a failure.
const BACK_OFF: Duration = Duration::from_millis(200);

/// `$1` are transactions that have ended, as `xid8`. A backend that waits has its xid still, also behind a PREPARE
/// TRANSACTION, whose own keeps it for whoever ends it.
const SHOWS: &str = "SELECT xid FROM unnest($1::text[]) AS asked (xid) \
     WHERE pg_catalog.pg_visible_in_snapshot(xid::xid8, pg_catalog.pg_current_snapshot())";
const PREPARED: &str = "SELECT xid FROM unnest($1::text[]) AS asked (xid) \
     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE backend_xid = xid::xid8::xid)";
/// It is listed until it has left the snapshots (`FinishPreparedTransaction` in twophase.c). `$1` as `xid`.
const ENDED: &str = "SELECT xid FROM unnest($1::text[]) AS asked (xid) \
     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts WHERE transaction = xid::xid)";

/// Who waits; at most as many as commits may be in doubt ([`super::session`] counts them).
#[derive(Debug, Default)]
pub(crate) struct Shown {
    waiting: Mutex<Vec<Waits>>,
    asked: Notify,
}

type Waits = (CommitInDoubt, oneshot::Sender<()>);

/// What is to be done about a commit under an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Whoever is primary has it in its history.
    Shown,
    /// Its server goes on.
    Ask,
    /// Nobody is primary.
    Wait,
}

fn standing(order: &Directive, commit: &CommitInDoubt) -> Standing {
    match order.timeline {
        Some(timeline) if timeline > commit.timeline => Standing::Shown,
        Some(timeline) if timeline == commit.timeline && order.writable().is_some() => Standing::Ask,
        Some(_) | None => Standing::Wait,
    }
}

impl Shown {
    /// Until the primary shows `commit`, which has happened.
    pub(crate) async fn await_shown(&self, commit: CommitInDoubt) {
        let (shown, told) = oneshot::channel();
        self.waiting.lock().push((commit, shown));
        self.asked.notify_one();
        if told.await.is_err() {
            // Nobody asks any more.
            std::future::pending::<()>().await;
        }
    }

    /// Never ends.
    pub(crate) async fn run(
        &self,
        login: ServerLogin,
        nodes: Vec<Node>,
        directive: watch::Receiver<Arc<Directive>>,
    ) {
        self.ask_all(directive, &mut Server { login, nodes, connection: None }).await;
    }

    async fn ask_all(&self, mut directive: watch::Receiver<Arc<Directive>>, primary: &mut impl Primary) {
        loop {
            let order = directive.borrow_and_update().clone();
            let questions = self.settle(&order);
            if !self.is_waited_for() {
                primary.leave();
                self.asked.notified().await;
                continue;
            }
            let mut pause = INTERVAL;
            if !questions.is_empty() {
                let answer = tokio::select! {
                    shown = primary.show(&order, &questions) => shown,
                    // There may be nobody to ask any more.
                    Ok(()) = directive.changed() => continue,
                };
                match answer {
                    Some(shown) => tell(&mut self.waiting.lock(), |commit| shown.contains(commit)),
                    None => pause = BACK_OFF,
                }
            }
            tokio::select! {
                Ok(()) = directive.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    /// Tells those for whom nobody has to be asked; for whom the primary has to.
    fn settle(&self, order: &Directive) -> Vec<CommitInDoubt> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|(_, told)| !told.is_closed());
        tell(&mut waiting, |commit| standing(order, commit) == Standing::Shown);
        let asked = waiting.iter().filter(|(commit, _)| standing(order, commit) == Standing::Ask);
        asked.map(|(commit, _)| *commit).collect()
    }
}

fn tell(waiting: &mut Vec<Waits>, is_shown: impl Fn(&CommitInDoubt) -> bool) {
    for (_, told) in waiting.extract_if(.., |(commit, _)| is_shown(commit)) {
        // Whoever has left meanwhile needs no word.
        let _ = told.send(());
    }
}

/// Who is asked.
trait Primary {
    /// Which of them it shows; `None`: it does not say.
    async fn show(&mut self, order: &Directive, questions: &[CommitInDoubt]) -> Option<Vec<CommitInDoubt>>;
    /// Nobody asks for now.
    fn leave(&mut self);
}

struct Server {
    login: ServerLogin,
    nodes: Vec<Node>,
    connection: Option<(Term, SqlConnection)>,
}

impl Primary for Server {
    async fn show(&mut self, order: &Directive, questions: &[CommitInDoubt]) -> Option<Vec<CommitInDoubt>> {
        if self.connection.as_ref().is_none_or(|(term, _)| *term != order.term) {
            self.connection = None;
            self.connection = Some((order.term, self.connect(order).await?));
        }
        let (_, connection) = self.connection.as_ref()?;
        let shown = ask(connection, questions).await;
        if shown.is_none() {
            self.connection = None;
        }
        shown
    }

    fn leave(&mut self) {
        self.connection = None;
    }
}

impl Server {
    async fn connect(&self, order: &Directive) -> Option<SqlConnection> {
        let (primary, target) = self.login.at_primary(&self.nodes, order, "bellwether_commits")?;
        let connected = sql::connect(&target, LIMIT).await;
        connected.inspect_err(|error| tracing::info!(%error, node = %primary, "commits: no connection")).ok()
    }
}

/// Which of them the server shows; `None`: it does not say.
async fn ask(connection: &SqlConnection, questions: &[CommitInDoubt]) -> Option<Vec<CommitInDoubt>> {
    let mut shown = Vec::new();
    for sql in [SHOWS, PREPARED, ENDED] {
        let of_kind = |commit: &&CommitInDoubt| question(commit.what) == sql;
        let xids: Vec<String> =
            questions.iter().filter(of_kind).map(|commit| commit.xid.to_string()).collect();
        if xids.is_empty() {
            continue;
        }
        let rows = tokio::time::timeout(LIMIT, connection.query(sql, &[&xids])).await.ok()?;
        let rows = rows.inspect_err(|error| tracing::info!(%error, "commits: no answer")).ok()?;
        let told: Vec<u64> =
            rows.iter().filter_map(|row| row.try_get::<_, &str>(0).ok()?.parse().ok()).collect();
        shown.extend(questions.iter().filter(of_kind).filter(|commit| told.contains(&commit.xid)).copied());
    }
    Some(shown)
}

fn question(what: Ending) -> &'static str {
    match what {
        Ending::Commit => SHOWS,
        Ending::Prepare => PREPARED,
        Ending::CommitPrepared | Ending::RollbackPrepared => ENDED,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::{Primary, Shown, Standing, standing};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{CommitInDoubt, Directive, Durability, Ending, Term, Writes};

    fn commit() -> CommitInDoubt {
        CommitInDoubt { timeline: TimelineId(3), from: Lsn(100), xid: 742, what: Ending::Commit }
    }

    fn order(primary: Option<&str>, timeline: Option<u32>) -> Directive {
        Directive {
            term: Term(7),
            primary: primary.map(|name| name.parse().expect("a name")),
            writes: Writes::Open,
            timeline: timeline.map(TimelineId),
            ..Directive::starting(Durability::Quorum)
        }
    }

    #[test]
    fn whom_to_ask() {
        let held = Writes::Held { reason: String::new() };
        for (order, expected) in [
            (order(Some("pg1"), Some(3)), Standing::Ask),
            // The same server may go on later.
            (order(None, Some(3)), Standing::Wait),
            (Directive { writes: held.clone(), ..order(Some("pg1"), Some(3)) }, Standing::Wait),
            (order(Some("pg1"), None), Standing::Wait),
            // Behind a promotion there is nobody to wait for, whether writes are open or not.
            (order(Some("pg2"), Some(4)), Standing::Shown),
            (Directive { writes: held, ..order(Some("pg2"), Some(4)) }, Standing::Shown),
            (order(None, Some(4)), Standing::Shown),
            // An order of before.
            (order(Some("pg1"), Some(2)), Standing::Wait),
        ] {
            assert_eq!(standing(&order, &commit()), expected, "{order:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_is_told_when_a_later_timeline_has_begun() {
        let shown = Shown::default();
        let mut waits = std::pin::pin!(shown.await_shown(commit()));
        assert!(polled(&mut waits).is_pending());
        assert_eq!(shown.settle(&order(Some("pg1"), Some(3))), [commit()]);
        assert!(polled(&mut waits).is_pending());
        assert_eq!(shown.settle(&order(Some("pg2"), Some(4))), []);
        waits.await;
        // Who has gone is not asked for.
        drop(Box::pin(shown.await_shown(commit())));
        assert!(!shown.is_waited_for());
    }

    /// It says nothing, and the way to it neither ends nor breaks.
    struct Silent(tokio::sync::mpsc::Sender<()>);

    impl Primary for Silent {
        async fn show(&mut self, _: &Directive, _: &[CommitInDoubt]) -> Option<Vec<CommitInDoubt>> {
            self.0.send(()).await.expect("somebody listens");
            std::future::pending().await
        }

        fn leave(&mut self) {}
    }

    #[tokio::test]
    async fn an_order_is_heard_while_the_primary_is_silent() {
        let (orders, directive) = watch::channel(Arc::new(order(Some("pg1"), Some(3))));
        let (said, mut heard) = tokio::sync::mpsc::channel(1);
        let (shown, mut silent) = (Shown::default(), Silent(said));
        let promoted = async {
            heard.recv().await.expect("it is asked");
            orders.send_replace(Arc::new(order(Some("pg2"), Some(4))));
            std::future::pending::<()>().await;
        };
        let told = async {
            tokio::select! {
                () = shown.await_shown(commit()) => {}
                () = shown.ask_all(directive, &mut silent) => {}
                () = promoted => {}
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(60), told).await;
        told.expect("nobody waits for who is primary no more");
    }

    fn polled<F: Future<Output = ()>>(future: &mut std::pin::Pin<&mut F>) -> std::task::Poll<()> {
        future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
