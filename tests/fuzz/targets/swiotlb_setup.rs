//! Feature words, options, constraints, regions, frames and grants as anybody
//! could state them.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::setup::Story| fuzz::setup::play(story));
