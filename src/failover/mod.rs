//! The control plane.
pub mod agent;
