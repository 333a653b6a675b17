//! Frames and commands of a network card, and what comes from its socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::net::play(input));
