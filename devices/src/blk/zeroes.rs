//! Zeroes that are written where the host cannot make them by itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::request::Extent;

/// A part of them.
pub(super) static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// Writes zeroes over an extent of a file.
///
/// # Errors
/// What the host said.
pub(super) fn write_zeroes(file: &File, extent: &Extent) -> io::Result<()> {
    let end = extent.offset + extent.len;
    let mut at = extent.offset;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(usize::MAX);
        let chunk = ZEROES.get(..count).unwrap_or(&ZEROES);
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_written_to_their_extent_alone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        let extent = Extent {
            offset: 512,
            len: 150_016,
            unmap: false,
        };

        write_zeroes(&file, &extent).unwrap();

        let mut bytes = vec![0; 200_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[512..150_528].iter().all(|byte| *byte == 0));
        assert!(bytes[..512].iter().all(|byte| *byte == 7));
        assert!(bytes[150_528..].iter().all(|byte| *byte == 7));
    }
}
