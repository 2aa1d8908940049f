//! Proving who one is: SCRAM-SHA-256 (RFC 5802, RFC 7677; auth-scram.c) and md5 (crypt.c), both sides, as state
//! machines over strings. PURE: nonces and salts are arguments.

pub mod md5;
pub mod scram;
