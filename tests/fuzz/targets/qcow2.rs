//! qcow2 images with words of anybody's in their header and tables: opened, read
//! through and written to, they do no harm to anything but themselves.
#![no_main]

use devices::blk::hostile::play;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<(u16, u64)>, Option<u32>)| {
    let (changes, cut) = input;
    let folder = tempfile::tempdir().expect("a folder can be made");
    play(folder.path(), &changes, cut);
});
