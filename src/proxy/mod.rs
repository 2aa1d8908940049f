//! proxy

pub mod route;
