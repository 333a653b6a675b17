//! Messages and bytes of a console of several ports.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::console::Story| fuzz::console::play(story));
