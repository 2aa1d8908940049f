//! The composition root: command line, configuration, wiring. It alone builds the planes and connects them.

pub mod check;
pub mod config;
pub mod telemetry;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
