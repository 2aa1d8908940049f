//! Bellwether: one endpoint in front of a PostgreSQL cluster.
//!
//! The folders are the architecture: three planes that never import each other, and the floors they stand
//! on. `ARCHITECTURE.md` has the whole picture; `integration/house.rs` fails when an import goes up.

// PostgreSQL's language, pure: LSNs, wire messages, WAL pages and records, SCRAM.
pub mod pg;
// What the planes tell each other, pure: nodes, directive, health, WAL status.
pub mod topology;

// Sockets: accept, startup, authenticate, dial.
pub mod net;

// The control plane: probe, health, decide, execute, agent.
pub mod failover;
// The query plane: sessions, routing, pools.
pub mod proxy;
// The WAL plane: receiver, store, sender.
pub mod relay;

// What people and tools look at: HTTP, metrics, history.
pub mod admin;
// The composition root: command line, configuration, wiring.
pub mod app;

// A deterministic world that drives the real cores.
#[cfg(test)]
mod sim;
