//! The journal that several instances share, on a real etcd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bellwether::failover::decide::State;
use bellwether::failover::{
    EtcdConfig, EtcdError, EtcdJournal, EtcdLogin, EtcdMetrics, EtcdTls, Fence, Leader, Link, MAX_HISTORY,
    Revision, Seen, look,
};
use bellwether::topology::{Durability, Election, Outcome, Term};
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::harness::{Authority, Etcd, Gate};

const LIMIT: Duration = Duration::from_secs(120);

/// One of several, without the rest of it.
struct Instance {
    journal: EtcdJournal,
    _ends: DropGuard,
}

impl Instance {
    fn start(name: &str, endpoints: Vec<String>) -> Instance {
        Instance::start_as(None, name, endpoints)
    }

    fn start_as(login: Option<EtcdLogin>, name: &str, endpoints: Vec<String>) -> Instance {
        Instance::start_by(EtcdConfig { login, ..config(name, endpoints) })
    }

    fn start_by(config: EtcdConfig) -> Instance {
        let shutdown = CancellationToken::new();
        let journal = EtcdJournal::start(config, EtcdMetrics::new().expect("metrics"), shutdown.clone());
        Instance { journal, _ends: shutdown.drop_guard() }
    }

    /// The first that fits, and when it came.
    async fn sees(&self, what: &str, fits: impl Fn(&Seen) -> bool) -> (Instant, Arc<Seen>) {
        let mut seen = self.journal.seen();
        let found = tokio::time::timeout(LIMIT, seen.wait_for(|seen| fits(seen))).await;
        let Ok(found) = found else {
            panic!("{what}: not within {LIMIT:?}: {:?}", self.journal.seen().borrow())
        };
        (Instant::now(), found.expect("the journal is there").clone())
    }

    async fn leads(&self) -> (Instant, Fence) {
        let (at, seen) = self.sees("it leads", |seen| own(seen).is_some()).await;
        (at, own(&seen).expect("as waited for").0)
    }

    /// The last moment until which it was sure to lead, and what it saw when it was not any more.
    async fn leads_until(&self) -> (Instant, Arc<Seen>) {
        let mut seen = self.journal.seen();
        let mut last = own(&seen.borrow_and_update()).expect("it leads").1;
        loop {
            let changed = tokio::time::timeout(LIMIT, seen.changed()).await;
            changed.expect("its end comes").expect("the journal is there");
            let now = seen.borrow_and_update().clone();
            match own(&now) {
                Some((_, until)) => last = until,
                None => return (last, now),
            }
        }
    }

    async fn put(&self, fence: Fence, expected: Option<Revision>, term: u64) -> Result<Revision, EtcdError> {
        self.journal.put(fence, expected, &state(term)).await
    }
}

fn config(name: &str, endpoints: Vec<String>) -> EtcdConfig {
    EtcdConfig {
        endpoints,
        cluster: "orders".to_owned(),
        instance: name.to_owned(),
        lease: EtcdConfig::MIN_LEASE,
        login: None,
        tls: EtcdTls::default(),
    }
}

fn own(seen: &Seen) -> Option<(Fence, Instant)> {
    match seen.leader {
        Leader::Own { fence, until } => Some((fence, until)),
        Leader::Nobody | Leader::Other(_) => None,
    }
}

fn term(seen: &Seen) -> Option<u64> {
    seen.state.as_ref().map(|versioned| versioned.state.term.0)
}

fn is_lost(seen: &Seen) -> bool {
    matches!(seen.link, Link::Lost { .. })
}

fn state(term: u64) -> State {
    State { term: Term(term), ..State::bootstrapping(Durability::Quorum, 7) }
}

fn election(term: u64) -> Election {
    Election {
        term: Term(term),
        started_at_ms: 1000 + term,
        rule: "F1".to_owned(),
        evidence: vec![],
        ailment: None,
        from: None,
        to: None,
        timeline: None,
        switchpoint: None,
        lost_bytes: 0,
        unacknowledged_bytes: 0,
        left_behind: vec![],
        saved: vec![],
        phases: vec![],
        outcome: Outcome::Completed,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_only_who_leads_writes() {
    let etcd = Etcd::start(1);
    let gate = Gate::open(etcd.port(0));
    let a = Instance::start("a", vec![format!("http://127.0.0.1:{}", gate.port)]);
    let (_, fence) = a.leads().await;
    let b = Instance::start("b", etcd.endpoints());
    b.sees("who leads", |seen| seen.leader == Leader::Other("a".to_owned())).await;

    let first = a.put(fence, None, 1).await.expect("the first");
    assert_eq!(a.put(fence, None, 1).await.expect("the same again"), first);
    let second = a.put(fence, Some(first), 2).await.expect("who follows it");
    assert!(second > first);
    for (fence, expected, what) in [
        (fence, None, "there is one"),
        (fence, Some(first), "there is a newer one"),
        (Fence(Revision(fence.0.0 - 1)), Some(second), "another leads"),
    ] {
        let put = a.put(fence, expected, 3).await;
        assert!(matches!(put, Err(EtcdError::Lost)), "{what}: {put:?}");
    }
    b.sees("the state", |seen| seen.state.as_ref().is_some_and(|state| state.revision == second)).await;

    history(&a, &b, fence).await;

    // Cut off: until when the one may lead, as far as it knows, is over before the other one does.
    gate.close();
    let ((until, seen), (begun, next)) = tokio::join!(a.leads_until(), b.leads());
    assert!(until <= begun, "two led for {:?}", until - begun);
    assert_eq!((is_lost(&seen), term(&seen)), (true, Some(2)), "what was seen last stays");
    assert!(next > fence);
    let put = a.put(fence, Some(second), 3).await;
    assert!(matches!(put, Err(EtcdError::Unknown(_))), "{put:?}");
    gate.reopen();
    a.sees("who leads now", |seen| seen.leader == Leader::Other("b".to_owned())).await;
    let put = a.put(fence, Some(second), 3).await;
    assert!(matches!(put, Err(EtcdError::Lost)), "{put:?}");
    assert!(matches!(a.journal.put_history(fence, &[election(5000)]).await, Err(EtcdError::Lost)));

    // In good order nobody waits for a lease.
    let third = b.put(next, Some(second), 3).await.expect("who leads writes");
    let (resigned, _) = tokio::join!(b.journal.resign(), a.leads());
    let () = resigned;
    let put = b.put(next, Some(third), 4).await;
    assert!(matches!(put, Err(EtcdError::Lost)), "{put:?}");
    let alive = etcd
        .call(0, "kv/range", &json!({"key": encoded("members/"), "range_end": encoded("members0")}))
        .await;
    assert_eq!(alive["count"], "2", "{alive}");
}

async fn history(a: &Instance, b: &Instance, fence: Fence) {
    let mut history: Vec<Election> = (1..=150).map(election).collect();
    a.journal.put_history(fence, &history).await.expect("three transactions");
    assert_eq!(b.journal.history().await.expect("three pages"), history);
    history[149].lost_bytes = 7;
    history.push(election(151));
    a.journal.put_history(fence, &history[100..]).await.expect("two writes");
    assert_eq!(b.journal.history().await.expect("what was not said stays"), history);
    let many: Vec<Election> = (1..=MAX_HISTORY as u64 + 3).map(election).collect();
    a.journal.put_history(fence, &many).await.expect("many transactions");
    assert_eq!(b.journal.history().await.expect("all but the oldest"), many[3..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_stays_while_etcd_is_away_and_another_etcd_is_refused() {
    let mut etcd = Etcd::start(1);
    let a = Instance::start("a", etcd.endpoints());
    let (_, fence) = a.leads().await;
    let first = a.put(fence, None, 1).await.expect("the first");

    etcd.freeze(0);
    let (_, seen) = a.sees("it is away", is_lost).await;
    assert_eq!(term(&seen), Some(1));
    a.sees("its own lease ends", |seen| own(seen).is_none()).await;
    etcd.thaw(0);
    a.sees("it is back", |seen| seen.link == Link::Up).await;
    a.leads().await;

    etcd.kill(0);
    a.sees("it is away", is_lost).await;
    etcd.restart(0);
    a.sees("it is back", |seen| seen.link == Link::Up).await;
    let (_, fence) = a.leads().await;
    let second = a.put(fence, Some(first), 2).await.expect("it goes on");

    // Compacted away while it is watched; a state that is none; and one again.
    etcd.call(0, "kv/compaction", &json!({"revision": second.0.to_string()})).await;
    let key = encoded("state");
    etcd.call(0, "kv/put", &json!({"key": key, "value": STANDARD.encode("{}")})).await;
    let (_, seen) = a.sees("it cannot be read", is_lost).await;
    assert!(matches!(&seen.link, Link::Lost { why, .. } if why.contains("missing field")), "{:?}", seen.link);
    assert_eq!(term(&seen), Some(2));
    let good = serde_json::to_string(&state(3)).expect("JSON");
    etcd.call(0, "kv/put", &json!({"key": key, "value": STANDARD.encode(good)})).await;
    a.sees("it can be read", |seen| seen.link == Link::Up && term(seen) == Some(3)).await;

    // The same name, addresses and so the same number of the cluster, and nothing of what was.
    etcd.restart_empty(0);
    let restored = |seen: &Seen| matches!(&seen.link, Link::Lost { why, .. } if why.contains("restored"));
    let (_, seen) = a.sees("it is refused", restored).await;
    assert_eq!((own(&seen), term(&seen)), (None, Some(3)));
    assert!(matches!(a.put(fence, None, 4).await, Err(EtcdError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_three_is_not_missed() {
    let mut etcd = Etcd::start(3);
    // Longer than etcd takes to elect another leader of its own.
    let lease = Duration::from_secs(10);
    let a = Instance::start_by(EtcdConfig { lease, ..config("a", etcd.endpoints()) });
    let (_, fence) = a.leads().await;
    let mut last = a.put(fence, None, 1).await.expect("the first");
    // Each of them once, so also etcd's own leader, and whichever is asked.
    for n in 0..3 {
        if n == 1 {
            etcd.kill(n);
        } else {
            etcd.freeze(n);
        }
        let until = Instant::now() + Duration::from_secs(1);
        let put = async {
            loop {
                match a.put(fence, Some(last), 2 + n as u64).await {
                    Err(EtcdError::Unknown(_)) => {}
                    put => return put,
                }
            }
        };
        last = tokio::time::timeout(LIMIT, put).await.expect("two are enough").expect("it leads on");
        a.sees("it leads on", |seen| {
            own(seen).is_some_and(|(same, certain)| same == fence && certain > until)
        })
        .await;
        if n == 1 {
            etcd.restart(n);
        } else {
            etcd.thaw(n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_password_reads_and_writes() {
    let mut etcd = Etcd::start(1);
    let perm = json!({"key": encoded(""), "range_end": STANDARD.encode("/bellwether/orders0"), "permType": "READWRITE"});
    for (path, request) in [
        ("user/add", json!({"name": "root", "password": "root"})),
        ("user/grant", json!({"user": "root", "role": "root"})),
        ("role/add", json!({"name": "orders"})),
        ("role/grant", json!({"name": "orders", "perm": perm})),
        ("user/add", json!({"name": "bw", "password": "secret"})),
        ("user/grant", json!({"user": "bw", "role": "orders"})),
        ("enable", json!({})),
    ] {
        let answer = etcd.call(0, &format!("auth/{path}"), &request).await;
        assert!(answer.get("error").is_none(), "{path}: {answer}");
    }
    let login = |password: &str| Some(EtcdLogin { user: "bw".to_owned(), password: password.into() });
    let a = Instance::start_as(login("secret"), "a", etcd.endpoints());
    let (_, fence) = a.leads().await;
    let first = a.put(fence, None, 1).await.expect("it may");
    let stranger = Instance::start_as(login("guessed"), "b", etcd.endpoints());
    let (_, seen) = stranger.sees("it is refused", is_lost).await;
    assert!(
        matches!(&seen.link, Link::Lost { why, .. } if why.contains("authentication failed")),
        "{:?}",
        seen.link
    );

    // Its tokens go with the process.
    etcd.kill(0);
    a.sees("it is away", is_lost).await;
    etcd.restart(0);
    a.sees("it is back", |seen| seen.link == Link::Up).await;
    let (_, fence) = a.leads().await;
    a.put(fence, Some(first), 2).await.expect("it may again");
}

fn encoded(name: &str) -> String {
    STANDARD.encode(format!("/bellwether/orders/{name}"))
}

/// Both show certificates, and each believes those of its authority only.
#[tokio::test]
async fn with_tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = (Authority::new(dir.path().join("ours")), Authority::new(dir.path().join("theirs")));
    for (name, who) in [("server", "etcd"), ("bw1", "bw1")] {
        ours.sign(&ours.dir, name, who);
        theirs.sign(&theirs.dir, name, who);
    }
    let etcd = Etcd::with_tls(ours.dir.clone());
    let by = |ca: &Authority, shown: Option<&Authority>| EtcdConfig {
        tls: EtcdTls {
            ca_file: Some(ca.dir.join("ca.crt")),
            identity: shown.map(|shown| (shown.dir.join("bw1.crt"), shown.dir.join("bw1.key"))),
        },
        ..config("bw1", etcd.endpoints())
    };
    let instance = Instance::start_by(by(&ours, Some(&ours)));
    let (_, fence) = instance.leads().await;
    instance.put(fence, None, 1).await.expect("written");

    let said = async |config: EtcdConfig| match &look(&config).await[..] {
        [(_, Ok(look))] => look.version.clone(),
        [(_, Err(error))] => chain(error),
        looks => panic!("{looks:?}"),
    };
    assert!(said(by(&ours, Some(&ours))).await.starts_with("3."));
    for (config, expected) in [
        (by(&theirs, Some(&ours)), "invalid peer certificate"),
        (by(&ours, Some(&theirs)), "is not reached"),
        (by(&ours, None), "is not reached"),
    ] {
        let said = said(config).await;
        assert!(said.contains(&etcd.endpoints()[0]) && said.contains(expected), "{expected}: {said}");
    }
}

fn chain(error: &EtcdError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
