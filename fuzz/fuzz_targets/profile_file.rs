//! `headstart_server::fuzz::profile_file` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_server::fuzz::profile_file(data);
});
