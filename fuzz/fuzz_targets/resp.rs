//! Fuzz target of `checks/resp.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_lib::checks::check("resp", input));
