//! Messages and bytes of a console of several ports.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::console::play(input));
