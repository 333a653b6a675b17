//! A port: what the two queues of a console share, and what outlives both.
//!
//! A handler takes what is parked when it starts, and parks it again when it
//! ends: so bytes that one side has handed over are not lost in a reset.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::{PortSpec, WhenFull};
use super::control::Place;
use super::endpoint::{Bells, Endpoint, EndpointError, Halt};
use super::log::Log;
use super::outbox::Outbox;
use super::size::{Size, Window};
use super::stats::{ConsoleStats, OUTPUT};
use super::waiter::Bell;
use crate::virtio::counters::add;
use crate::virtio::histogram::Histogram;
use crate::virtio::log_limit::LogLimit;

/// See the module.
#[derive(Debug)]
pub(super) struct Port {
    pub endpoint: Endpoint,
    pub bells: Arc<Bells>,
    pub stats: Arc<ConsoleStats>,
    pub output_latency: Histogram,
    /// Troubles of the two queues' workers.
    pub input_log: LogLimit,
    pub output_log: LogLimit,
    pub when_full: WhenFull,
    /// Descriptors of each queue.
    pub queue_size: usize,
    /// A console is open to the guest whether the guest says so or not.
    console: bool,
    /// The guest has opened it.
    guest_open: AtomicBool,
    /// `None` if the guest is told no size.
    window: Option<Window>,
    /// Output that the host has not taken, while there is no handler.
    outbox: Mutex<Outbox>,
    /// Input that the guest has not taken, while there is no handler.
    inbox: Mutex<Vec<u8>>,
    /// What gets all output besides, while there is no handler.
    log: Mutex<Option<Log>>,
}

impl Port {
    /// Makes the host's end. A port of several has a place where the driver is
    /// told of it.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn open(
        spec: PortSpec,
        queue_size: u16,
        place: Option<Place>,
    ) -> Result<Self, EndpointError> {
        let stats = Arc::default();
        let bells = Arc::new(Bells {
            input: Bell::new().map_err(EndpointError::Means)?,
            output: Bell::new().map_err(EndpointError::Means)?,
            place,
        });
        Ok(Port {
            log: Mutex::new(spec.log.map(Log::open).transpose()?),
            endpoint: Endpoint::open(&spec.target, spec.size, &bells, &stats)?,
            bells,
            stats,
            output_latency: Histogram::default(),
            input_log: LogLimit::default(),
            output_log: LogLimit::default(),
            when_full: spec.when_full,
            queue_size: queue_size.into(),
            console: spec.console,
            guest_open: AtomicBool::new(false),
            window: spec.size.map(Window::new),
            outbox: Mutex::new(Outbox::new(spec.buffer)),
            inbox: Mutex::default(),
        })
    }

    /// What it has done, each value with its name.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.stats.snapshot().list();
        list.extend(self.output_latency.list(&OUTPUT));
        list
    }

    /// The guest has opened it, or closed it.
    pub fn opened_by_guest(&self, open: bool) {
        if self.guest_open.swap(open, Ordering::SeqCst) != open {
            self.bells.input.ring();
        }
    }

    /// Whether the guest keeps what it is given: Linux throws away what comes
    /// for a port that nobody has opened, unless it is a console.
    pub fn takes_input(&self) -> bool {
        self.console || self.guest_open.load(Ordering::SeqCst)
    }

    /// Takes the log, if there is one; the taker parks it again.
    pub fn take_log(&self) -> Option<Log> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.take()
    }

    pub fn park_log(&self, log: Option<Log>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
    }

    /// Takes the output that is left; the taker parks it again.
    pub fn take_outbox(&self) -> Outbox {
        std::mem::take(&mut *self.outbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn park_outbox(&self, outbox: Outbox) {
        *self.outbox.lock().unwrap_or_else(PoisonError::into_inner) = outbox;
    }

    /// Takes the input that is left.
    pub fn take_inbox(&self) -> Vec<u8> {
        std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn park_inbox(&self, inbox: Vec<u8>) {
        *self.inbox.lock().unwrap_or_else(PoisonError::into_inner) = inbox;
    }

    /// The window's size as the guest reads it; `None` if it is told none.
    pub fn size(&self) -> Option<Size> {
        self.window.as_ref().map(Window::size)
    }

    /// Looks at the terminal's size; true if it has changed.
    pub fn look_at_size(&self) -> bool {
        match (&self.window, self.endpoint.size()) {
            (Some(window), Some(size)) => window.set(size),
            _ => false,
        }
    }

    /// The window has another size now. The terminal takes it, too, and the
    /// guest is told when it has the receive queue served.
    pub fn resize(&self, size: Size) {
        if let Some(window) = &self.window
            && window.set(size)
        {
            self.endpoint.set_size(size);
            self.bells.input.ring();
        }
    }

    /// Whether the guest has to be told of a size, once for each change. A
    /// message tells it of the size of one port of several.
    pub fn take_size_news(&self) -> bool {
        let Some(window) = self.window.as_ref().filter(|window| window.take_news()) else {
            return false;
        };
        if let Some(place) = &self.bells.place {
            place.resized(window.size());
        }
        true
    }

    /// A character that the guest writes without a queue; past all others.
    /// virtio 1.3 §5.3.4
    pub fn emergency(&self, character: u8) {
        let written = match self.endpoint.output() {
            Some(stream) => stream.write(&[character]),
            None => Err(Halt::Wait),
        };
        match written {
            Ok(_) => add(&self.stats.emergency_bytes, 1),
            Err(_) => add(&self.stats.emergency_dropped, 1),
        }
    }
}

impl Drop for Port {
    /// Writes what is left as far as that does not block.
    fn drop(&mut self) {
        let mut outbox = self.take_outbox();
        if let Some(stream) = self.endpoint.output() {
            while !outbox.is_empty() {
                match stream.write(outbox.front()) {
                    Ok(count) => {
                        add(&self.stats.written_bytes, count);
                        outbox.consume(count);
                    }
                    Err(_) => break,
                }
            }
        }
        if !outbox.is_empty() {
            add(&self.stats.dropped_bytes, outbox.len());
            tracing::warn!(
                path = %self.endpoint.path().display(),
                bytes = outbox.len(),
                "nobody has read the last output of a console"
            );
        }
    }
}
