//! Frames and commands of a network card, and what comes from its socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::net::Story| fuzz::net::play(story));
