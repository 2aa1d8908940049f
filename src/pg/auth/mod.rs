//! pg/auth
