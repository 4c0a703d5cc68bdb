//! Rings that an adversary writes to: see `xsk_client::hostile`.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| xsk_client::hostile::play(script));
