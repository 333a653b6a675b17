//! Streams of operations on one pool, judged byte by byte: INV-31 to INV-35.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::world::Story| fuzz::world::play(story));
