//! A request of the ioreq page, decoded.

use xen::ioreq::{Direction, Ioreq};

/// One access to a device's registers or configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// From the start of the device's window, bytes.
    pub offset: u64,
    /// 1, 2, 4 or 8 bytes.
    pub size: u8,
    /// What is written; nothing for a read.
    pub write: Option<u64>,
}

/// What a memory request is, wherever it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Guest-physical address of its first byte.
    pub address: u64,
    /// 1, 2, 4 or 8 bytes.
    pub size: u8,
    /// What is written, and no more than its size; nothing for a read.
    pub write: Option<u64>,
}

impl Decoded {
    /// Decodes a request. Nothing if it is none that a register could answer:
    /// x86's repeated accesses and values behind pointers, or a width that no
    /// processor has.
    pub(super) fn of(request: &Ioreq) -> Option<Self> {
        let size = match request.size {
            size @ (1 | 2 | 4 | 8) => u8::try_from(size).ok()?,
            _ => return None,
        };
        if request.count != 1 || request.data_is_ptr {
            return None;
        }
        request.address.checked_add(u64::from(size) - 1)?;
        let write = match request.direction {
            Direction::Read => None,
            // Xen passes the whole register on, whatever the access's width
            Direction::Write => Some(request.data & mask(size)),
        };
        Some(Decoded {
            address: request.address,
            size,
            write,
        })
    }

    /// Its last byte.
    pub(super) fn last(&self) -> u64 {
        self.address.saturating_add(u64::from(self.size) - 1)
    }

    /// The access, seen from a window at `base`.
    pub(super) fn within(&self, base: u64) -> Access {
        Access {
            offset: self.address.saturating_sub(base),
            size: self.size,
            write: self.write,
        }
    }
}

/// The bits of `size` bytes.
pub(super) fn mask(size: u8) -> u64 {
    match size {
        0..8 => (1 << (8 * u32::from(size))) - 1,
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use xen::ioreq::IoreqKind;

    use super::*;

    fn request(size: u32) -> Ioreq {
        Ioreq {
            vcpu: 0,
            address: 0x0200_0070,
            data: 0xffff_ffff_1234_5678,
            count: 1,
            size,
            direction: Direction::Write,
            kind: IoreqKind::Copy,
            df: false,
            data_is_ptr: false,
        }
    }

    #[test]
    fn a_write_is_cut_to_its_width() {
        let written = |size| Decoded::of(&request(size)).and_then(|decoded| decoded.write);

        assert_eq!(written(1), Some(0x78));
        assert_eq!(written(2), Some(0x5678));
        assert_eq!(written(4), Some(0x1234_5678));
        assert_eq!(written(8), Some(0xffff_ffff_1234_5678));
    }

    #[test]
    fn a_read_writes_nothing() {
        let read = Ioreq {
            direction: Direction::Read,
            ..request(4)
        };

        let decoded = Decoded::of(&read).unwrap();

        assert_eq!(decoded.write, None);
        assert_eq!(decoded.last(), 0x0200_0073);
    }

    #[test]
    fn what_no_register_can_answer_is_nothing() {
        let sizes = [0, 3, 5, 16, u32::MAX].map(request);
        let repeated = Ioreq {
            count: 2,
            ..request(4)
        };
        let pointer = Ioreq {
            data_is_ptr: true,
            ..request(4)
        };
        let wrapping = Ioreq {
            address: u64::MAX - 2,
            ..request(4)
        };

        assert_eq!(sizes.map(|request| Decoded::of(&request)), [None; 5]);
        assert_eq!(Decoded::of(&repeated), None);
        assert_eq!(Decoded::of(&pointer), None);
        assert_eq!(Decoded::of(&wrapping), None);
    }
}
