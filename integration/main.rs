//! The main job on real parts: PostgreSQL servers, psql, pgbench, drivers. Every test starts its own cluster on
//! free ports in a temporary directory and leaves no process behind, also when it fails.

#![expect(clippy::disallowed_methods, reason = "tests and their clients read clocks and start tasks")]

mod archive;
mod authentication;
mod bad_input;
mod base_backup;
mod check;
mod console;
mod console_tools;
mod demo;
mod diagnosis;
mod differential;
mod etcd;
mod failover;
mod followers;
mod fuzzed;
#[allow(dead_code, unused_imports, reason = "the benchmark uses more of the harness than the tests")]
mod harness;
mod in_doubt;
mod inspect;
mod instances;
mod ipv6;
mod lag_gate;
mod leak;
mod listen;
mod logical;
mod members;
mod memory;
mod overload;
mod peers;
mod pitfalls;
mod pools;
mod protocol_versions;
mod proxy_protocol;
mod relay;
mod reload;
mod remote_apply;
mod rolling;
mod sessions;
mod slot_sync;
mod smoke;
mod sources;
mod stranded;
mod switchover;
mod takeover;
mod tls;
mod unix_sockets;
