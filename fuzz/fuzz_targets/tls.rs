//! Fuzz target of `checks/tls.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_lib::checks::check("tls", input));
