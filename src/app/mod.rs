//! The composition root: command line, configuration, wiring. It alone builds the planes and connects them, and
//! it alone listens for signals, reads the environment and decides on exit codes.

mod certificates;
pub mod check;
mod cli;
mod commands;
pub mod config;
pub mod demo;
mod descriptors;
mod events;
mod front;
mod import;
mod instance;
pub mod local;
mod members;
mod plans;
mod reload;
pub mod run;
pub mod shutdown;
mod sight;
mod takeover;
pub mod telemetry;
pub(crate) mod together;
mod users;

pub use cli::main;
