#![expect(
    clippy::disallowed_methods,
    reason = "shell: reads the clock, for ages as of when they are asked for"
)]
//! Who is heard, and since when no more.

use std::sync::Arc;
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use tokio::sync::watch;

use crate::topology::{Members, VOUCH};

pub(super) fn register(
    registry: &Registry,
    members: watch::Receiver<Arc<Members>>,
) -> prometheus::Result<()> {
    let up = Opts::new("bellwether_member_up", "1 while another instance of the cluster is heard");
    let agrees = Opts::new(
        "bellwether_member_agrees",
        "1 while another instance goes by the same list of instances as this one",
    );
    let heard = Opts::new("bellwether_member_heard_seconds", "Age of what another instance said last");
    registry.register(Box::new(Gauges {
        members,
        up: IntGaugeVec::new(up, &["instance"])?,
        agrees: IntGaugeVec::new(agrees, &["instance"])?,
        heard: GaugeVec::new(heard, &["instance"])?,
    }))
}

struct Gauges {
    members: watch::Receiver<Arc<Members>>,
    up: IntGaugeVec,
    /// Of who was heard.
    agrees: IntGaugeVec,
    heard: GaugeVec,
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        [self.up.desc(), self.agrees.desc(), self.heard.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (now, members) = (Instant::now(), self.members.borrow().clone());
        let names = members.names();
        for (instance, heard) in &members.others {
            let age = heard.as_ref().map(|heard| now.saturating_duration_since(heard.asked_at));
            let is_up = age.is_some_and(|age| age < VOUCH);
            self.up.with_label_values(&[instance]).set(i64::from(is_up));
            if let Some(heard) = heard {
                let agrees = heard.member.instances == names;
                self.agrees.with_label_values(&[instance]).set(i64::from(agrees));
            }
            if let Some(age) = age {
                self.heard.with_label_values(&[instance]).set(age.as_secs_f64());
            }
        }
        [self.up.collect(), self.agrees.collect(), self.heard.collect()].concat()
    }
}
