//! What people and tools look at: metrics, health, the cluster's state, the elections; over HTTP.
//!
//! `view` and `answer` are functions of the planes' published values and of `now`; `http` is the thin shell around them,
//! [`console`] the same over SQL. This room reads and decides nothing; `order` passes an operator's commands on.

mod answer;
mod client;
pub mod console;
mod http;
mod member;
mod order;
mod pass_on;
mod reload;
mod text;
mod view;

pub use client::{ClientError, fetch, post};
pub use http::{Sources, serve};
pub use member::{AskedMember, MAX_WAITING, MemberError, MemberQuestion, MemberQuestions, PATIENCE};
pub use pass_on::Orders;
pub use reload::{Asked, Reload, ReloadError, Reloaded};
pub use text::{history_json, history_text, restarted_text, status_text};
pub use view::{ClusterView, Identity, Snapshot, cluster};
