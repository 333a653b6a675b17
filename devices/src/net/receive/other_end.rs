//! Other ends that come and go.

use super::{LISTENER, RETRY, Receive};
use crate::net::link::Link;
use crate::net::port::Wire;
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;

impl Receive {
    /// There is no other end any more.
    pub(super) fn gone(&mut self) {
        if let Wire::Link(link) = &self.port.wire {
            self.stream = None;
            self.deframer.clear();
            link.part();
            // somebody may be there soon, and not at once again and again
            self.resting = true;
            self.timer.arm(RETRY);
        }
        self.port.lost();
    }

    /// Sees to it that somebody is there, if it is a socket.
    pub(super) fn meet(&mut self) {
        let Wire::Link(link) = &self.port.wire else {
            return;
        };
        if self.stream.is_some() || self.resting {
            return;
        }
        match link.meet() {
            Ok(Some(stream)) => {
                self.stream = Some(stream);
                self.port.set_connected(true);
                tracing::info!(wire = self.port.wire.name(), "a network card is connected");
                // what it has sent may be there already
                self.await_source();
            }
            Ok(None) => Self::await_client(link, &self.poller),
            Err(error) => {
                let failed = link.listener().is_some();
                add(&self.port.stats.counters.host_errors, failed.into());
                if let Some(withheld) = self.port.receive_log.due() {
                    let wire = self.port.wire.name();
                    tracing::info!(wire, %error, withheld, "nobody is at a network card's socket");
                }
                self.resting = true;
                self.timer.arm(RETRY);
            }
        }
    }

    fn await_client(link: &Link, poller: &Poller) {
        if let Some(listener) = link.listener()
            && let Err(error) = poller.await_input(listener, LISTENER)
        {
            tracing::error!(%error, "a network card's clients cannot be waited for");
        }
    }
}
