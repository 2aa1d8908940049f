//! The composition root: command line, configuration, wiring. It alone builds the planes and connects them, and
//! it alone listens for signals, reads the environment and decides on exit codes.

pub mod check;
mod cli;
pub mod config;
pub mod demo;
mod explain;
pub mod run;
pub mod shutdown;
pub mod telemetry;

pub use cli::main;
