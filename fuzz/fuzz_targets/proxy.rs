#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmlan_fuzz::proxy::run(data));
