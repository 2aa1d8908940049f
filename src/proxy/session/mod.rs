//! One client's conversation.
//!
//! [`core::Core`] decides, over bytes in memory: what of them is forwarded as it is, what is replaced, what is
//! answered by us, when a server is needed and when it can go back. [`run`] does it, with [`attach`] and [`detach`]: one task owns the client's
//! socket and, while one is attached, the server's, so that a message goes from one to the other without a hop.

mod attach;
pub(crate) mod commit;
pub(crate) mod core;
mod deferred;
pub(crate) mod detach;
mod downstream;
mod durability;
pub mod fuzzing;
mod hear;
mod knobs;
pub(crate) mod lane;
mod ledger;
mod listening;
mod local;
mod locks;
mod look;
mod losses;
pub(crate) mod message;
mod names;
mod pins;
mod portals;
pub(crate) mod reported;
mod resolve;
pub(crate) mod run;
mod state;
mod statements;
mod tally;
mod unit;
mod upstream;
pub(crate) mod wire;

pub(in crate::proxy) use durability::Refusal;

#[cfg(test)]
mod tests;
