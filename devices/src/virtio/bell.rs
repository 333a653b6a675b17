//! Tells a thread that something has changed.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{ReadWriteFlags, preadv2};

/// Whatever file it is, from where it stands. Linux preadv2(2)
const NO_OFFSET: u64 = u64::MAX;

/// Readable once it was rung, until it is heard.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Bell(eventfd(0, flags)?))
    }

    pub fn ring(&self) {
        // a counter that is full is rung already
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// [`make_room`] in it.
    pub fn make_room(&self) {
        make_room(self.as_fd());
    }

    /// As [`Bell::hear`], of a bell that another process has and can make wait.
    pub fn hear_at_once(&self) -> bool {
        hear_at_once(self.as_fd())
    }

    /// Whether it was rung since the last call.
    pub fn hear(&self) -> bool {
        matches!(rustix::io::read(&self.0, &mut [0; 8]), Ok(8))
    }
}

/// Empties an eventfd where it has no room, so that whoever rings it goes on.
/// Another process that has it can fill it and make ringing wait; this never does.
pub(crate) fn make_room(bell: BorrowedFd<'_>) {
    let mut room = [PollFd::from_borrowed_fd(bell, PollFlags::OUT)];
    if let Ok(0) = poll(&mut room, Some(&Timespec::default())) {
        // there is room if it was not rung
        hear_at_once(bell);
    }
}

/// Whether an eventfd was rung, which is forgotten then. It may be one that another
/// process has, too, and has made wait.
pub(crate) fn hear_at_once(bell: BorrowedFd<'_>) -> bool {
    let mut count = [0; 8];
    let mut parts = [IoSliceMut::new(&mut count)];
    let heard = preadv2(bell, &mut parts, NO_OFFSET, ReadWriteFlags::NOWAIT);
    matches!(heard, Ok(8))
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    use super::*;

    #[test]
    fn whoever_waits_to_ring_a_full_bell_goes_on_when_room_is_made() {
        let bell = Arc::new(Bell::new().unwrap());
        rustix::io::write(&bell.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let flags = fcntl_getfl(&bell.0).unwrap();
        fcntl_setfl(&bell.0, flags & !OFlags::NONBLOCK).unwrap();
        let ringing = Arc::clone(&bell);

        let ringer = std::thread::spawn(move || ringing.ring());
        let end = Instant::now() + Duration::from_secs(60);
        while !ringer.is_finished() {
            assert!(Instant::now() < end, "it waits for ever");
            bell.make_room();
            std::thread::sleep(Duration::from_millis(1));
        }

        assert!(ringer.join().is_ok());
    }

    #[test]
    fn to_make_room_never_waits_and_leaves_a_rung_bell_rung() {
        let bell = Bell::new().unwrap();
        let flags = fcntl_getfl(&bell.0).unwrap();
        fcntl_setfl(&bell.0, flags & !OFlags::NONBLOCK).unwrap();

        bell.make_room();
        let before = bell.hear_at_once();
        bell.ring();
        bell.make_room();

        assert!(!before && bell.hear_at_once());
    }
}
