//! proxy

pub mod route;
mod prepared;
mod session;
mod settings;
