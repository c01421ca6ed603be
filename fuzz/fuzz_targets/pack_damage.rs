//! `headstart_server::fuzz::pack_damage` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    headstart_server::fuzz::pack_damage(data);
});
