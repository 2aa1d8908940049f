//! Looks, as long as a round lasts, for a second server that takes writes, and for instances that contradict each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use super::check::Token;
use super::check::writable::{Order, Probe};
use super::cluster::Cluster;

const EVERY: Duration = Duration::from_millis(300);
/// For a write that may never be acknowledged.
const WRITE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) orders: Vec<Order>,
    pub(crate) probes: Vec<Probe>,
}

pub(crate) struct Sampler<'scope> {
    end: Arc<AtomicBool>,
    thread: ScopedJoinHandle<'scope, Seen>,
}

impl<'scope> Sampler<'scope> {
    pub(crate) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        cluster: &'env Cluster,
        round: i32,
    ) -> Sampler<'scope> {
        let end = Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let thread = scope.spawn(move || {
            let mut seen = Seen::default();
            let mut tokens = i64::from(round) << 32..;
            while !told.load(Ordering::Relaxed) {
                look(cluster, &mut seen, &mut tokens);
                thread::sleep(EVERY);
            }
            seen
        });
        Sampler { end, thread }
    }

    pub(crate) fn finish(self) -> Seen {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler ends in order")
    }
}

fn look(cluster: &Cluster, seen: &mut Seen, tokens: &mut impl Iterator<Item = Token>) {
    let instances = cluster.layout.instances();
    seen.orders.extend(instances.filter_map(|(host, _)| Some(cluster.view_of(host).ok()?.order)));
    for (host, node) in cluster.layout.nodes() {
        if cluster.ask(host, "SELECT pg_is_in_recovery()") != Ok(vec!["f".to_owned()]) {
            continue;
        }
        let (Some(before), Some(token)) = (cluster.view(), tokens.next()) else { continue };
        if before.order.primary.as_deref() == Some(node) {
            continue;
        }
        let write = format!("INSERT INTO probes VALUES ({token})");
        let acknowledged = cluster.ask_for(host, &write, WRITE).is_ok();
        let Some(after) = cluster.view() else { continue };
        let node = node.to_owned();
        seen.probes.push(Probe { token, node, before: before.order, after: after.order, acknowledged });
    }
}
