//! What the workers of a card share: its other end, and what the guest was
//! told or has asked for.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::config::{Backend, NetSpec};
use super::features as net;
use super::filter::Filter;
use super::link::Link;
use super::mac::Mac;
use super::stats::Stats;
use super::tap::{Tap, TapError};
use crate::unix::ListenError;
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;

/// The link is there. virtio 1.3 §5.1.4
const STATUS_LINK_UP: u16 = 1;
/// The guest is to announce itself.
const STATUS_ANNOUNCE: u16 = 2;

/// Why a card cannot be made.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The tap cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No event files.
    #[error("the host has no descriptors left")]
    Means(#[source] std::io::Error),
}

/// The other end.
#[derive(Debug)]
pub(super) enum Wire {
    Tap(Tap),
    Link(Link),
}

impl Wire {
    /// What it is called in the log.
    pub fn name(&self) -> String {
        match self {
            Wire::Tap(tap) => format!("tap {}", tap.name()),
            Wire::Link(link) => format!("socket {}", link.path().display()),
        }
    }
}

/// The bells of a pair's workers.
#[derive(Debug)]
pub(super) struct Bells {
    pub receive: Bell,
    pub transmit: Bell,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Port {
    pub spec: NetSpec,
    pub wire: Wire,
    pub stats: Arc<Stats>,
    /// One for each pair.
    pub bells: Vec<Bells>,
    /// The address that the card has while the guest gives it no other.
    mac: Mac,
    /// Made anew by each command, and looked at for each frame by those who
    /// have taken it.
    filter: Mutex<Arc<Filter>>,
    /// Counts filters.
    filters: AtomicU64,
    /// The other end is there.
    connected: AtomicBool,
    /// The host's user wants the link up.
    enabled: AtomicBool,
    announce: AtomicBool,
    /// The guest is to hear of the configuration space.
    news: AtomicBool,
    /// Pairs that the guest uses.
    pairs: AtomicU16,
    /// There is no control queue to say so by: it is those whose queues are
    /// served.
    as_served: AtomicBool,
}

impl Port {
    /// Takes the tap, or the socket.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(spec: NetSpec) -> Result<Self, OpenError> {
        let wire = match &spec.backend {
            Backend::Tap(name) => Wire::Tap(Tap::open(name, spec.pairs, spec.offload)?),
            Backend::Socket { path, listen } => Wire::Link(Link::open(path, *listen)?),
        };
        let mac = spec.mac.unwrap_or_else(|| {
            // nobody knows whose card it is: this host's, on this interface
            let host = std::fs::read("/etc/machine-id").unwrap_or_default();
            Mac::derived(&[&host, wire.name().as_bytes()])
        });
        let bells = || {
            Ok(Bells {
                receive: Bell::new()?,
                transmit: Bell::new()?,
            })
        };
        let bells = (0..spec.pairs).map(|_| bells());
        let bells = bells
            .collect::<std::io::Result<_>>()
            .map_err(OpenError::Means)?;
        let connected = match &wire {
            Wire::Tap(_) => true,
            // who is there already is met at once, and others later
            Wire::Link(link) => matches!(link.meet(), Ok(Some(_))),
        };
        Ok(Port {
            connected: AtomicBool::new(connected),
            enabled: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            news: AtomicBool::new(false),
            pairs: AtomicU16::new(1),
            as_served: AtomicBool::new(false),
            filter: Mutex::new(Arc::new(Filter::new(mac, false))),
            filters: AtomicU64::new(0),
            stats: Arc::default(),
            mac,
            bells,
            wire,
            spec,
        })
    }

    /// The driver begins anew, with these features.
    pub fn begin(&self, features: u64) {
        let vlans = features & net::CTRL_VLAN != 0;
        // no driver takes the one without the other, but a vhost-user front
        // end that serves the control queue itself: it starts the pairs that
        // its guest uses. virtio 1.3 §5.1.3.1
        let as_served = features & net::MQ != 0 && features & net::CTRL_VQ == 0;
        self.as_served.store(as_served, Ordering::SeqCst);
        self.change_filter(|filter| *filter = Filter::new(self.mac, vlans));
        self.announce.store(false, Ordering::SeqCst);
        self.set_pairs(1);
        self.set_offload(features);
    }

    /// What may be left open in frames for the guest.
    pub fn set_offload(&self, features: u64) {
        if let Wire::Tap(tap) = &self.wire {
            tap.set_offload(features & tap.features);
        }
    }

    /// How many pairs the guest uses from now on.
    pub fn set_pairs(&self, pairs: u16) {
        let fewer = pairs < self.pairs.load(Ordering::SeqCst);
        // nobody uses a queue of the tap that is out of use
        if fewer {
            self.pairs.store(pairs, Ordering::SeqCst);
        }
        if let Wire::Tap(tap) = &self.wire {
            tap.use_queues(pairs);
        }
        self.pairs.store(pairs, Ordering::SeqCst);
        self.bells.iter().for_each(|bells| bells.receive.ring());
    }

    /// A pair is served from now on.
    pub fn pair_begins(&self, pair: u16) {
        let used = self.pairs.load(Ordering::SeqCst);
        if self.as_served.load(Ordering::SeqCst) && pair >= used {
            self.set_pairs(pair.saturating_add(1));
        }
    }

    /// A pair is not served any more.
    pub fn pair_ends(&self, pair: u16) {
        let used = self.pairs.load(Ordering::SeqCst);
        if self.as_served.load(Ordering::SeqCst) && (1..used).contains(&pair) {
            self.set_pairs(pair);
        }
    }

    /// Whether the guest uses a pair.
    pub fn uses(&self, pair: u16) -> bool {
        pair < self.pairs.load(Ordering::SeqCst)
    }

    /// The filter, and its number.
    pub fn filter(&self) -> (u64, Arc<Filter>) {
        let filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        (self.filters.load(Ordering::SeqCst), Arc::clone(&filter))
    }

    /// The number of the filter: with another one there is another filter.
    pub fn filter_number(&self) -> u64 {
        self.filters.load(Ordering::SeqCst)
    }

    /// Makes another filter.
    pub fn change_filter<R>(&self, change: impl FnOnce(&mut Filter) -> R) -> R {
        let mut current = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filter = Filter::clone(&current);
        let result = change(&mut filter);
        *current = Arc::new(filter);
        self.filters.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// The other end has come, or has gone; true if that is news.
    pub fn set_connected(&self, connected: bool) -> bool {
        let news = self.connected.swap(connected, Ordering::SeqCst) != connected;
        if news {
            let counters = &self.stats.counters;
            match connected {
                true => add(&counters.link_ups, 1),
                false => add(&counters.link_downs, 1),
            }
            self.tell();
            // frames wait for it, or for the other end that there is not
            self.bells.iter().for_each(|bells| bells.transmit.ring());
        }
        news
    }

    /// The other end is there.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    /// The host's user plugs the card in, or out.
    pub fn enable(&self, enabled: bool) {
        if self.enabled.swap(enabled, Ordering::SeqCst) != enabled {
            self.tell();
        }
    }

    /// Frames pass.
    pub fn is_up(&self) -> bool {
        self.is_connected() && self.enabled.load(Ordering::SeqCst)
    }

    /// Has the guest announce itself, as after it has moved.
    pub fn announce(&self) {
        self.announce.store(true, Ordering::SeqCst);
        self.tell();
    }

    /// The guest has announced itself.
    pub fn announced(&self) {
        self.announce.store(false, Ordering::SeqCst);
    }

    /// The status as the guest reads it. virtio 1.3 §5.1.4
    pub fn status(&self) -> u16 {
        let bit = |set: bool, bit| if set { bit } else { 0 };
        bit(self.is_up(), STATUS_LINK_UP)
            | bit(self.announce.load(Ordering::SeqCst), STATUS_ANNOUNCE)
    }

    /// The address that the card has now.
    pub fn mac(&self) -> Mac {
        self.filter().1.mac
    }

    /// Whether the guest has to be told, once for each change.
    pub fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::SeqCst)
    }

    fn tell(&self) {
        self.news.store(true, Ordering::SeqCst);
        if let Some(bells) = self.bells.first() {
            bells.receive.ring();
        }
    }
}
