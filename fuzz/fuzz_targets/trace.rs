//! `headstart_server::fuzz::trace` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_server::fuzz::trace(data);
});
