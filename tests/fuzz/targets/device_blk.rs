//! Requests of a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::blk::play(input));
