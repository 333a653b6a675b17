//! Messages of a vhost-user front end, with their files.
#![no_main]

libfuzzer_sys::fuzz_target!(|story: fuzz::vhost_user::Story| fuzz::vhost_user::play(story));
