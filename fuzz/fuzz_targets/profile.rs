//! `headstart_server::fuzz::profile` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_server::fuzz::profile(data);
});
