//! The size of a console's window, and whether the guest was told of it.

use std::sync::atomic::{AtomicU32, Ordering};

/// A window's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub cols: u16,
    pub rows: u16,
}

impl Size {
    fn pack(self) -> u32 {
        u32::from(self.cols) << 16 | u32::from(self.rows)
    }

    fn unpack(word: u32) -> Self {
        let [a, b, c, d] = word.to_be_bytes();
        Size {
            cols: u16::from_be_bytes([a, b]),
            rows: u16::from_be_bytes([c, d]),
        }
    }
}

/// The size as it is, and as the guest was last told by an interrupt. Set by
/// anyone, read on the thread that answers register accesses, told by the
/// worker of the receive queue.
#[derive(Debug)]
pub(super) struct Window {
    now: AtomicU32,
    told: AtomicU32,
}

impl Window {
    pub fn new(size: Size) -> Self {
        Window {
            now: size.pack().into(),
            told: size.pack().into(),
        }
    }

    /// The size now.
    pub fn size(&self) -> Size {
        Size::unpack(self.now.load(Ordering::SeqCst))
    }

    /// Changes the size; true if it was another one.
    pub fn set(&self, size: Size) -> bool {
        self.now.swap(size.pack(), Ordering::SeqCst) != size.pack()
    }

    /// Whether the guest has to be told, once for each change.
    pub fn take_news(&self) -> bool {
        let now = self.now.load(Ordering::SeqCst);
        self.told.swap(now, Ordering::SeqCst) != now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size { cols: 80, rows: 24 };
    const LARGE: Size = Size {
        cols: 0xfedc,
        rows: 0xba98,
    };

    #[test]
    fn a_change_is_told_once() {
        let window = Window::new(SMALL);
        let at_first = window.take_news();

        let changed = (window.set(LARGE), window.set(LARGE));

        assert!(!at_first);
        assert_eq!(changed, (true, false));
        assert_eq!(window.size(), LARGE);
        assert_eq!((window.take_news(), window.take_news()), (true, false));
    }

    #[test]
    fn a_change_that_was_taken_back_in_time_is_none() {
        let window = Window::new(SMALL);

        window.set(LARGE);
        window.set(SMALL);

        assert!(!window.take_news());
    }
}
