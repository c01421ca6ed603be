//! `headstart_shim::fuzz::shim_labels` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_shim::fuzz::shim_labels(data);
});
