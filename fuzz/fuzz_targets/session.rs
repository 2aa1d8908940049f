#![no_main]

#[path = "../entries.rs"]
#[allow(dead_code, reason = "each target has an entry of its own")]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::session(bytes));
