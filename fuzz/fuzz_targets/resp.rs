//! See `checks/resp.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| rooms::checks::check("resp", input));
