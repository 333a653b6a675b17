//! Requests of a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::blk::Story| fuzz::blk::play(story));
