//! `struct virtio_console_control` and what follows it. virtio 1.3 §5.3.6.2

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::console::size::Size;

/// What a message is about. virtio 1.3 §5.3.6.2
pub(super) mod event {
    /// The driver has set the device up.
    pub const DEVICE_READY: u16 = 0;
    /// There is a port.
    pub const PORT_ADD: u16 = 1;
    /// The driver has set a port up.
    pub const PORT_READY: u16 = 3;
    /// A port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// A console's window has a size.
    pub const RESIZE: u16 = 5;
    /// A side of a port was opened, or closed.
    pub const PORT_OPEN: u16 = 6;
    /// A port has a name.
    pub const PORT_NAME: u16 = 7;
}

/// The head of every message, and all of those that a driver sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Message {
    pub port: U32,
    pub event: U16,
    pub value: U16,
}

impl Message {
    /// Bytes.
    pub const LEN: usize = size_of::<Message>();

    pub fn new(port: u32, event: u16, value: u16) -> Self {
        Message {
            port: port.into(),
            event: event.into(),
            value: value.into(),
        }
    }

    /// Its bytes, and those of what follows it.
    pub fn with(self, rest: &[u8]) -> Vec<u8> {
        [self.as_bytes(), rest].concat()
    }
}

/// What follows a RESIZE: columns, then rows.
pub(super) fn size(size: Size) -> [u8; 4] {
    let [a, b] = size.cols.to_le_bytes();
    let [c, d] = size.rows.to_le_bytes();
    [a, b, c, d]
}
