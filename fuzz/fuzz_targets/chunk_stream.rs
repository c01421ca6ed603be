//! `headstart_server::fuzz::chunk_stream` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_server::fuzz::chunk_stream(data);
});
