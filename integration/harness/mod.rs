//! A real cluster behind a real `bellwether`, faults to throw at it, and its end.

mod authority;
mod between;
mod cluster;
mod disk;
mod etcd;
mod follower;
mod gate;
mod guardian;
mod instances;
pub(crate) mod ledger;
mod lone_server;
mod majors;
mod pg_ctl;
mod port;
mod process;
mod psql;
mod wait;
pub(crate) mod wal;

pub(crate) use authority::Authority;
pub(crate) use between::Between;
pub(crate) use cluster::{
    Cluster, DiskKind, Durability, Options, SHORT_SILENCE, Server, bellwether, distribution_bin, set_mode,
};
pub(crate) use disk::{Disk, Fault, SmallDisk};
pub(crate) use etcd::Etcd;
pub(crate) use follower::{Follower, Heard, status};
pub(crate) use gate::Gate;
pub(crate) use guardian::Guardian;
pub(crate) use instances::Instances;
pub(crate) use lone_server::LoneServer;
pub(crate) use majors::{major, second_major};
pub(crate) use pg_ctl::{pg_ctl, restart};
pub(crate) use port::free_port;
pub(crate) use process::stop_waiting;
pub(crate) use psql::Psql;
pub(crate) use wait::{eventually, eventually_async};
