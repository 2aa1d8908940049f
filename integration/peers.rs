//! Two instances behind a load balancer: a client's cancel comes to the one that does not have the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::harness::{Cluster, Options, eventually_async};

const LIMIT: Duration = Duration::from_secs(120);

/// Each in front of a cluster of its own: a cluster has one instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_its_client_whichever_instance_it_comes_to() {
    let options = || Options { nodes: 1, ..Options::default() };
    let (mut demo, mut other) = (Cluster::start(options()), Cluster::start(options()));
    let (demo_port, other_port) = (demo.port, other.port);
    demo.reconfigure(|config| config["peers"] = peer("other", other_port));
    other.reconfigure(|config| {
        config["instance"] = "other".into();
        config["peers"] = peer("demo", demo_port);
    });
    let balancer = Balancer::start(demo_port).await;

    for (at, elsewhere, name, other_name) in
        [(&demo, &other, "demo", "other"), (&other, &demo, "other", "demo")]
    {
        balancer.send_to(at.port);
        let conninfo = at.conninfo_at(balancer.port);
        let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("the endpoint");
        tokio::spawn(connection);
        let cancel = client.cancel_token();
        let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(600)").await });
        eventually_async("it runs", LIMIT, || async {
            let sleepers = sleepers(at);
            if sleepers == 1 { Ok(()) } else { Err(format!("{sleepers} sleep")) }
        })
        .await;

        balancer.send_to(elsewhere.port);
        let (passed, sent_back) = (passed_on(elsewhere, name), passed_on(at, other_name));
        cancel.cancel_query(NoTls).await.expect("the other instance takes it");
        let error = sleeping.await.expect("a client").expect_err("it is cancelled");
        assert_eq!(error.code().map(SqlState::code), Some("57014"), "{error:?}");
        await_passed_on(elsewhere, name, passed + 1.0).await;
        // Its client is gone: what comes to it now is forgotten there, and not sent back.
        cancel.cancel_query(NoTls).await.expect("silence");
        await_passed_on(elsewhere, name, passed + 2.0).await;
        assert_eq!(passed_on(at, other_name), sent_back);
    }
}

/// The driver does not wait for the end of a cancel.
async fn await_passed_on(by: &Cluster, to: &str, count: f64) {
    eventually_async("it is passed on", LIMIT, || async {
        let found = passed_on(by, to);
        if found >= count { Ok(()) } else { Err(format!("{found} of {count}")) }
    })
    .await;
}

fn passed_on(by: &Cluster, to: &str) -> f64 {
    let labels = format!("{{instance=\"{to}\",outcome=\"delivered\"}}");
    by.metric(&format!("bellwether_cancels_passed_on_total{labels}")).unwrap_or(0.0)
}

fn peer(instance: &str, port: u16) -> serde_yaml::Value {
    let text = format!("[{{instance: {instance}, address: '127.0.0.1:{port}'}}]");
    serde_yaml::from_str(&text).expect("the test's own YAML")
}

fn sleepers(cluster: &Cluster) -> usize {
    let question = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' \
                    AND state = 'active'";
    let answer = cluster.psql_at(&cluster.direct_conninfo(&cluster.primary(), "app"), question);
    answer.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// New connections go where it was last told.
struct Balancer {
    port: u16,
    to: Arc<AtomicU16>,
}

impl Balancer {
    async fn start(to: u16) -> Balancer {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
        let port = listener.local_addr().expect("an address").port();
        let to = Arc::new(AtomicU16::new(to));
        let target = to.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = target.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut instance) = TcpStream::connect(("127.0.0.1", to)).await {
                        let _ = copy_bidirectional(&mut client, &mut instance).await;
                    }
                });
            }
        });
        Balancer { port, to }
    }

    fn send_to(&self, port: u16) {
        self.to.store(port, Ordering::SeqCst);
    }
}
