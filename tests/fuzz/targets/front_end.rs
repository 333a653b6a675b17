//! Messages of a vhost-user back end, and its hands on the rings and the pool.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::front_end::play(input));
