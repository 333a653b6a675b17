//! A handler's hold on the host's end of its port, in its one direction: the
//! stream, what is waited for, and how long it is left alone when it fails.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;

use super::endpoint::{Halt, RETRY, Stream};
use super::port::Port;
use super::waiter::{Bell, Waiter};
use crate::virtio::counters::add;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the guest.
    Input,
    /// From the guest.
    Output,
}

/// See the module. Belongs to one handler, on its worker's thread.
#[derive(Debug)]
pub(super) struct Reach {
    port: Arc<Port>,
    direction: Direction,
    waiter: Waiter,
    /// Looked up again when the bell rings or it ends.
    stream: Option<Arc<Stream>>,
    /// The stream has failed and is left alone until the timer rings.
    resting: bool,
    /// The stream was found hung up; it may say nothing when it is used.
    hung_up: bool,
}

impl Reach {
    /// # Errors
    /// No descriptors.
    pub fn new(port: Arc<Port>, direction: Direction) -> io::Result<Self> {
        let mut reach = Reach {
            waiter: Waiter::new(bell(&port, direction))?,
            port,
            direction,
            stream: None,
            resting: false,
            hung_up: false,
        };
        reach.look_up();
        Ok(reach)
    }

    fn look_up(&mut self) {
        self.stream = match self.direction {
            Direction::Input => self.port.endpoint.input(),
            Direction::Output => self.port.endpoint.output(),
        };
    }

    /// What can be used now; nothing while it is left alone.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.as_deref().filter(|_| !self.resting)
    }

    /// The stream has halted: whether there may be another one to go on with.
    pub fn goes_on(&mut self, halt: &Halt) -> bool {
        match halt {
            Halt::Wait if !self.hung_up => return false,
            Halt::Wait | Halt::Gone => self.gone(),
            Halt::Failed(error) => self.failed(error),
        }
        true
    }

    /// Nobody is there any more.
    fn gone(&mut self) {
        self.waiter.unwatch();
        self.hung_up = false;
        let Some(stream) = self.stream.take() else {
            return;
        };
        let delay = match self.direction {
            Direction::Input => self.port.endpoint.input_gone(&stream),
            Direction::Output => self.port.endpoint.output_gone(&stream),
        };
        match delay {
            Some(delay) => {
                add(&self.port.stats.hangups, 1);
                self.leave_alone(delay);
            }
            // the bell rings when there is another one
            None => self.look_up(),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        add(&self.port.stats.host_errors, 1);
        // the port's, which outlives resets
        let (log, what) = match self.direction {
            Direction::Input => (&self.port.input_log, "input cannot be read"),
            Direction::Output => (&self.port.output_log, "output cannot be written"),
        };
        if let Some(withheld) = log.due() {
            tracing::warn!(
                path = %self.port.endpoint.path().display(),
                %error,
                withheld,
                "a console's {what}; trying again"
            );
        }
        self.leave_alone(RETRY);
    }

    fn leave_alone(&mut self, delay: Duration) {
        self.waiter.unwatch();
        self.resting = true;
        self.waiter.ring_in(delay);
    }

    /// Waits until the stream can be used, if that is `wanted`, and for the bell
    /// and the timer.
    pub fn rest(&mut self, wanted: bool) {
        let flags = match self.direction {
            Direction::Input => EventFlags::IN,
            Direction::Output => EventFlags::OUT,
        };
        match &self.stream {
            Some(stream) if wanted && !self.resting => {
                // what cannot be waited for, such as a file, is tried again
                if self.waiter.watch(stream, flags).is_err() {
                    self.leave_alone(RETRY);
                }
            }
            _ => self.waiter.unwatch(),
        }
    }

    /// Takes what has happened.
    pub fn wake(&mut self) {
        let happened = self.waiter.take(bell(&self.port, self.direction));
        self.hung_up |= happened.hung_up;
        if happened.timer {
            self.resting = false;
        }
        if happened.bell || happened.timer {
            self.look_up();
        }
    }
}

fn bell(port: &Port, direction: Direction) -> &Bell {
    match direction {
        Direction::Input => &port.bells.input,
        Direction::Output => &port.bells.output,
    }
}

impl AsFd for Reach {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiter.as_fd()
    }
}
