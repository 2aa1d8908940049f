//! `make chaos`: a real cluster on several hosts, one fault after the other, under a load whose histories are checked.
//!
//! * [`layout`]: which hosts there are. [`hosts`]: made of network namespaces. [`cluster`], [`daemon`], [`config`]: what runs
//!   there.
//! * [`faults`]: what is to happen, from a seed. [`inject`]: done, and undone.
//! * [`load`]: clients, and what they did and heard. [`sampler`]: who takes writes. [`check`]: whether it can be true.
//!
//! What breaks the run: an acknowledged commit that is lost, a refused one that is there, a read that saw what never was,
//! a second writable primary, servers that differ, and a cluster that is not whole again within a minute of the last
//! fault's end. Killed processes are started again, as an init system does; nobody touches anything else.
//!
//! Not here: power that fails (hosts share a kernel, whose page cache survives them); clocks that jump.

#![expect(clippy::disallowed_methods, reason = "tests and their clients read clocks and start tasks")]

mod check;
mod cluster;
mod config;
mod daemon;
mod faults;
#[allow(dead_code, unused_imports, reason = "the tests use more of the harness")]
#[path = "../harness/mod.rs"]
mod harness;
mod hosts;
mod inject;
mod layout;
mod load;
mod report;
mod run;
mod sampler;
