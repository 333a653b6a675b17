//! The card as its transport sees it: features, configuration space, queues;
//! and how its host sees it while it runs.

use std::path::Path;
use std::sync::{Arc, Weak};

use thiserror::Error;
use zerocopy::byteorder::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::config::NetSpec;
use super::control::Control;
use super::features as net;
use super::port::{OpenError, Port, Wire};
use super::receive::Receive;
use super::stats::{NetStatsSnapshot, Stats, TRANSMIT};
use super::transmit::Transmit;
use crate::registry::DeviceSpec;
use crate::virtio::{Device, DeviceError, DeviceType, QueueHandler};

/// virtio 1.3 §5.1.4
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
struct ConfigSpace {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
}

/// What a queue is for. virtio 1.3 §5.1.2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Brings frames to the guest, as one of a pair.
    Receive(u16),
    /// Brings frames from the guest.
    Transmit(u16),
    /// Brings commands.
    Control,
}

impl Role {
    /// The control queue follows the pairs that the driver knows of: a driver
    /// without MQ knows of one.
    fn of(index: u16, pairs: u16, features: u64) -> Option<Role> {
        let known = match features & net::MQ {
            0 => 1,
            _ => pairs,
        };
        match (index / 2, index % 2) {
            (pair, 0) if pair < known => Some(Role::Receive(pair)),
            (pair, _) if pair < known => Some(Role::Transmit(pair)),
            (pair, 0) if pair == known && features & net::CTRL_VQ != 0 => Some(Role::Control),
            _ => None,
        }
    }
}

/// A queue that the card does not have.
#[derive(Debug, Error)]
#[error("a card with these features has no queue {0}")]
struct NoSuchQueue(u16);

/// A virtio network card. Its other end stays as it is over resets.
#[derive(Debug)]
pub struct NetDevice {
    port: Arc<Port>,
    queue_sizes: Vec<u16>,
    features: u64,
    /// A driver has begun since the last reset.
    begun: bool,
}

impl NetDevice {
    /// Takes the tap or the socket of `spec`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(spec: NetSpec) -> Result<Self, OpenError> {
        let queue_sizes = vec![spec.queue_size; usize::from(spec.pairs) * 2 + 1];
        let port = Port::open(spec)?;
        let features = features(&port);
        tracing::info!(
            wire = port.wire.name(),
            mac = %port.mac(),
            queues = port.spec.pairs,
            link_up = port.is_up(),
            offload = features & net::CSUM != 0,
            "network card opened"
        );
        Ok(NetDevice {
            port: Arc::new(port),
            queue_sizes,
            features,
            begun: false,
        })
    }

    /// What its workers share.
    #[cfg(test)]
    pub(super) fn port(&self) -> &Port {
        &self.port
    }

    /// How its host sees it while it runs.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle {
            port: Arc::downgrade(&self.port),
            stats: Arc::clone(&self.port.stats),
        }
    }
}

fn features(port: &Port) -> u64 {
    let mut features = net::MAC
        | net::STATUS
        | net::MRG_RXBUF
        | net::CTRL_VQ
        | net::CTRL_RX
        | net::CTRL_VLAN
        | net::CTRL_RX_EXTRA
        | net::CTRL_MAC_ADDR
        | net::GUEST_ANNOUNCE;
    if port.spec.mtu.is_some() {
        features |= net::MTU;
    }
    if port.spec.pairs > 1 {
        features |= net::MQ;
    }
    if let Wire::Tap(tap) = &port.wire {
        features |= tap.features;
        if tap.features & net::GUEST_CSUM != 0 {
            features |= net::CTRL_GUEST_OFFLOADS;
        }
    }
    features
}

impl Device for NetDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::NETWORK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = ConfigSpace {
            mac: self.port.mac().0,
            status: self.port.status().into(),
            max_virtqueue_pairs: self.port.spec.pairs.into(),
            mtu: self.port.spec.mtu.unwrap_or(0).into(),
        };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.as_bytes().get(at..).unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        let features = features & self.features;
        let role = Role::of(index, self.port.spec.pairs, features);
        let role = role.ok_or(NoSuchQueue(index))?;
        let port = Arc::clone(&self.port);
        // and not with a queue that is reset alone
        if !std::mem::replace(&mut self.begun, true) {
            port.begin(features);
        }
        Ok(match role {
            Role::Receive(pair) => Box::new(Receive::new(port, pair, features)?),
            Role::Transmit(pair) => Box::new(Transmit::new(port, pair, features)?),
            Role::Control => Box::new(Control { port, features }),
        })
    }

    fn reconfigure(&mut self, spec: &DeviceSpec) {
        if let DeviceSpec::Net(spec) = spec {
            self.port.plug(spec.link);
        }
    }

    fn reset(&mut self) {
        self.begun = false;
        self.port.begin(0);
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.port.stats.counters.snapshot().list();
        list.push(("link_up", self.port.is_up().into()));
        list.extend(self.port.stats.transmit_latency.list(&TRANSMIT));
        list
    }

    fn host_path(&self) -> Option<&Path> {
        match &self.port.wire {
            Wire::Tap(_) => None,
            Wire::Link(link) => Some(link.path()),
        }
    }
}

/// A network card as its host sees it; clones are the same. It does not keep
/// the card alive.
#[derive(Clone, Debug)]
pub struct NetHandle {
    port: Weak<Port>,
    stats: Arc<Stats>,
}

impl NetHandle {
    /// Whether frames pass.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.port.upgrade().is_some_and(|port| port.is_up())
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> NetStatsSnapshot {
        self.stats.counters.snapshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_queue_follows_the_pairs_that_the_driver_knows_of() {
        let with = net::CTRL_VQ | net::MQ;

        let many: Vec<_> = (0..6).map(|index| Role::of(index, 2, with)).collect();
        let one: Vec<_> = (0..4)
            .map(|index| Role::of(index, 2, net::CTRL_VQ))
            .collect();
        let none = Role::of(2, 1, 0);

        let pair = |n| [Some(Role::Receive(n)), Some(Role::Transmit(n))];
        let control = [Some(Role::Control), None];
        assert_eq!(many, [pair(0), pair(1), control].concat());
        assert_eq!(one, [pair(0), control].concat());
        assert_eq!(none, None);
    }
}
