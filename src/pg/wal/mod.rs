//! pg/wal
