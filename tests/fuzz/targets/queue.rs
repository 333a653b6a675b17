//! Rings as a driver without manners fills them.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::queue::Story| fuzz::queue::play(story));
