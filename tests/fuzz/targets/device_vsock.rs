//! Packets of a socket device, and clients of its host.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::vsock::Story| fuzz::vsock::play(story));
