//! Error numbers as Linux and Xen give them, inside the fake.

use std::io;

/// One error number, positive.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Errno(pub(super) i32);

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl Errno {
    /// The value that Linux writes into a per-page error array.
    pub(super) fn negative(self) -> i32 {
        -self.0
    }
}
