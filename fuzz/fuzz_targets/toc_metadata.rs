//! `headstart_server::fuzz::toc_metadata` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_server::fuzz::toc_metadata(data);
});
