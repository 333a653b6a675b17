//! What becomes of a request, in the engines' common words.

use std::io;
use std::sync::Arc;

use swiotlb::InFlight;

use crate::blk::image::Image;
use crate::blk::op::{Op, Outcome};
use crate::blk::request::{Request, Status};
use crate::blk::stats::BlkStats;

/// Notes outcomes, and tells of the host's failures.
pub(super) struct Outcomes {
    image: Arc<Image>,
    stats: Arc<BlkStats>,
}

impl Outcomes {
    pub(super) fn new(image: Arc<Image>, stats: Arc<BlkStats>) -> Self {
        Outcomes { image, stats }
    }

    /// Notes what became of `flight`, of whose memory `moved` bytes were read or
    /// written.
    pub(super) fn note(&mut self, flight: &mut InFlight<Op>, moved: u64, result: io::Result<()>) {
        let (name, written) = match flight.token().for_engine() {
            Some(request @ Request::Read { .. }) => (name(request), moved),
            Some(request) => (name(request), 0),
            // refused before: its outcome stands
            None => return,
        };
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => self.failed(name, &error),
        };
        flight.token_mut().complete(Outcome { status, written });
        flight.set_written(written);
    }

    /// Notes that all of them wait for something that failed.
    pub(super) fn note_all(&mut self, flights: &mut [InFlight<Op>], error: &io::Error) {
        for flight in flights {
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            self.note(flight, 0, Err(io::Error::from_raw_os_error(code)));
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) -> Status {
        if let Some(failures) = self.stats.count_failure() {
            tracing::warn!(
                image = %self.image.path().display(),
                failures,
                %error,
                "{what} failed"
            );
        }
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Status::Unsupported,
            _ => Status::IoErr,
        }
    }
}

/// A request that moves no more bytes though it has some left: the image ends
/// early, for it has shrunk under its guest.
pub(super) fn ended_early() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Read { .. } => "read",
        Request::Write { .. } => "write",
        Request::Flush => "flush",
        Request::GetId => "get-id",
        Request::Discard(_) => "discard",
        Request::WriteZeroes(_) => "write-zeroes",
    }
}
