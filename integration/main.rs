//! The main job on real parts: PostgreSQL servers, psql, pgbench, drivers. Every test starts its own cluster on
//! free ports in a temporary directory and leaves no process behind, also when it fails.

mod bad_input;
mod failover;
mod harness;
mod lag_gate;
mod relay;
mod smoke;
