//! Which hosts there are, and what runs on each. PURE: data.

/// A cluster on several hosts. Beside them there is one more, where the applications are.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    pub(crate) hosts: &'static [HostPlan],
}

#[derive(Debug)]
pub(crate) struct HostPlan {
    pub(crate) name: &'static str,
    /// The name of the Bellwether that runs there.
    pub(crate) instance: Option<&'static str>,
    /// The name of its PostgreSQL server.
    pub(crate) node: Option<&'static str>,
    pub(crate) etcd: Option<&'static str>,
}

/// One instance on a host of its own, the agent of three servers on theirs (as if by a remote hand: see `hosts::Enter`).
const ONE: Layout = Layout {
    name: "one",
    hosts: &[
        HostPlan { name: "bw", instance: Some("bw"), node: None, etcd: None },
        HostPlan { name: "a", instance: None, node: Some("pg1"), etcd: None },
        HostPlan { name: "b", instance: None, node: Some("pg2"), etcd: None },
        HostPlan { name: "c", instance: None, node: Some("pg3"), etcd: None },
    ],
};

/// The same on each of three hosts: an instance, the server whose agent it is, and a member of etcd.
const THREE: Layout = Layout {
    name: "three",
    hosts: &[
        HostPlan { name: "a", instance: Some("bw1"), node: Some("pg1"), etcd: Some("etcd1") },
        HostPlan { name: "b", instance: Some("bw2"), node: Some("pg2"), etcd: Some("etcd2") },
        HostPlan { name: "c", instance: Some("bw3"), node: Some("pg3"), etcd: Some("etcd3") },
    ],
};

pub(crate) const LAYOUTS: [&Layout; 2] = [&ONE, &THREE];

impl Layout {
    pub(crate) fn named(name: &str) -> Option<&'static Layout> {
        LAYOUTS.into_iter().find(|layout| layout.name == name)
    }

    /// Hosts (by their index) with an instance.
    pub(crate) fn instances(&self) -> impl Iterator<Item = (usize, &'static str)> {
        self.hosts.iter().enumerate().filter_map(|(host, plan)| Some((host, plan.instance?)))
    }

    /// Hosts with a server.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (usize, &'static str)> {
        self.hosts.iter().enumerate().filter_map(|(host, plan)| Some((host, plan.node?)))
    }

    /// Hosts with a member of etcd.
    pub(crate) fn etcds(&self) -> impl Iterator<Item = (usize, &'static str)> {
        self.hosts.iter().enumerate().filter_map(|(host, plan)| Some((host, plan.etcd?)))
    }

    /// Whether the instance of host `agent` runs the server of host `node`: its own, or all where it is the only one.
    pub(crate) fn is_agent(&self, agent: usize, node: usize) -> bool {
        agent == node || self.instances().count() == 1
    }
}
