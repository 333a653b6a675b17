//! Messages of a vhost-user back end, and its hands on the rings and the pool.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::front_end::Story| fuzz::front_end::play(story));
