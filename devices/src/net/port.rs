//! What the workers of a card share: its other end, and what the guest was
//! told or has asked for.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::config::{Backend, Cable, NetSpec};
use super::features as net;
use super::filter::Filter;
use super::interface::{Interfaces, Seen};
use super::link::Link;
use super::mac::Mac;
use super::stats::Stats;
use super::tap::{Tap, TapError};
use crate::unix::ListenError;
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;
use crate::virtio::log_limit::LogLimit;

/// The link is there. virtio 1.3 §5.1.4
const STATUS_LINK_UP: u16 = 1;
/// The guest is to announce itself.
const STATUS_ANNOUNCE: u16 = 2;

/// What the link is up by: all of them together. The other end is there.
const CONNECTED: u8 = 1;
/// The host's user wants it up.
const ENABLED: u8 = 2;
/// The tap's interface is up on the host.
const CARRIED: u8 = 4;
const UP: u8 = CONNECTED | ENABLED | CARRIED;

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
    /// Troubles of the workers that receive, and of those that transmit.
    pub receive_log: LogLimit,
    pub transmit_log: LogLimit,
    /// One for each pair.
    pub bells: Vec<Bells>,
    /// The address that the card has while the guest gives it no other.
    mac: Mac,
    /// Made anew by each command, and looked at for each frame by those who
    /// have taken it.
    filter: Mutex<Arc<Filter>>,
    /// Counts filters.
    filters: AtomicU64,
    /// Of [`UP`], what is so. One word: workers and the thread of the registers
    /// change it, and each change tells by itself whether it was the one that
    /// has brought the link up, or down.
    link: AtomicU8,
    /// Tells of changes of the tap's interface.
    interfaces: Option<Interfaces>,
    /// The bridge that it was on, while that was up. Locked while the interface
    /// is looked at, so that what was seen last counts.
    bridge: Mutex<Option<String>>,
    /// The driver can announce its guest.
    announces: AtomicBool,
    /// The guest has to announce itself when it has heard of its link.
    unknown: AtomicBool,
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
        let interfaces = match &wire {
            Wire::Tap(tap) => interfaces(tap),
            Wire::Link(_) => None,
        };
        let seen = seen(interfaces.as_ref(), &wire);
        let carried = seen.as_ref().is_none_or(|seen| seen.up);
        let bit = |bit: u8, so: bool| if so { bit } else { 0 };
        let link = bit(CONNECTED, connected)
            | bit(ENABLED, spec.link == Cable::Up)
            | bit(CARRIED, carried);
        Ok(Port {
            link: AtomicU8::new(link),
            bridge: Mutex::new(seen.and_then(|seen| seen.bridge)),
            interfaces,
            announces: AtomicBool::new(false),
            unknown: AtomicBool::new(false),
            announce: AtomicBool::new(false),
            news: AtomicBool::new(false),
            pairs: AtomicU16::new(1),
            as_served: AtomicBool::new(false),
            filter: Mutex::new(Arc::new(Filter::new(mac, false))),
            filters: AtomicU64::new(0),
            stats: Arc::default(),
            receive_log: LogLimit::default(),
            transmit_log: LogLimit::default(),
            mac,
            bells,
            wire,
            spec,
        })
    }

    /// The bells of a pair's workers.
    pub fn bells_of(&self, pair: u16) -> Option<&Bells> {
        self.bells.get(usize::from(pair))
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
        let announces = features & net::GUEST_ANNOUNCE != 0;
        self.announces.store(announces, Ordering::SeqCst);
        self.set_pairs(1);
        self.set_offload(features);
        self.look();
    }

    /// What may be left open in frames for the guest.
    pub fn set_offload(&self, features: u64) {
        if let Wire::Tap(tap) = &self.wire
            && !tap.set_offload(features & tap.features)
        {
            self.lost();
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
        self.set(CONNECTED, connected)
    }

    /// The other end has gone.
    pub fn lost(&self) {
        if self.set_connected(false) {
            tracing::warn!(
                wire = self.wire.name(),
                "a network card has lost its other end: its link is down"
            );
        }
    }

    /// The other end is there.
    pub fn is_connected(&self) -> bool {
        self.link.load(Ordering::SeqCst) & CONNECTED != 0
    }

    /// The host's user plugs the cable in, or out.
    pub fn plug(&self, cable: Cable) {
        if self.set(ENABLED, cable == Cable::Up) {
            tracing::info!(wire = self.wire.name(), ?cable, "a network card's cable");
        }
    }

    /// What tells of changes of the tap's interface, after which it is to be
    /// looked at.
    pub fn interfaces(&self) -> Option<&Interfaces> {
        self.interfaces.as_ref()
    }

    /// Looks at the tap's interface.
    pub fn look(&self) {
        let mut before = self.bridge.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Seen { up, bridge }) = seen(self.interfaces.as_ref(), &self.wire) else {
            return;
        };
        if self.set(CARRIED, up) {
            let wire = self.wire.name();
            match up {
                true => {
                    tracing::info!(wire, "a network card's interface is up: so may its link be")
                }
                false => {
                    tracing::info!(wire, "a network card's interface is down, and so its link")
                }
            }
        }
        if *before != bridge {
            let new = bridge.is_some();
            *before = bridge;
            drop(before);
            if new {
                self.be_unknown();
            }
        }
    }

    /// Sets one of what the link depends on; true if that is news.
    fn set(&self, what: u8, to: bool) -> bool {
        let before = match to {
            true => self.link.fetch_or(what, Ordering::SeqCst),
            false => self.link.fetch_and(!what, Ordering::SeqCst),
        };
        let news = (before & what != 0) != to;
        if news && before | what == UP {
            let counters = &self.stats.counters;
            match to {
                true => add(&counters.link_ups, 1),
                false => add(&counters.link_downs, 1),
            }
            self.tell();
            if to {
                self.be_unknown();
            }
            // frames wait for it, or for the other end that there is not
            self.bells.iter().for_each(|bells| bells.transmit.ring());
        }
        news
    }

    /// Frames pass.
    pub fn is_up(&self) -> bool {
        self.link.load(Ordering::SeqCst) == UP
    }

    /// Others may not know where the guest is.
    fn be_unknown(&self) {
        self.unknown.store(true, Ordering::SeqCst);
        if let Some(bells) = self.bells.first() {
            bells.receive.ring();
        }
    }

    /// Whether the guest is to announce itself in a moment, once for each time.
    pub fn take_unknown(&self) -> bool {
        self.unknown.swap(false, Ordering::SeqCst)
    }

    /// Has the guest announce itself, if it can.
    pub fn announce(&self) {
        if self.is_up() && self.announces.load(Ordering::SeqCst) {
            add(&self.stats.counters.announcements, 1);
            self.announce.store(true, Ordering::SeqCst);
            self.tell();
        }
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

/// How a tap's interface is found; nothing where it is not known, or was
/// removed, which whoever reads or writes the tap finds out.
fn seen(interfaces: Option<&Interfaces>, wire: &Wire) -> Option<Seen> {
    match (interfaces, wire) {
        (Some(interfaces), Wire::Tap(tap)) => interfaces.look(tap.any_queue()?).ok(),
        _ => None,
    }
}

/// What tells of a tap's interface; nothing where the host tells nobody.
fn interfaces(tap: &Tap) -> Option<Interfaces> {
    let interfaces = Interfaces::new();
    if let Err(error) = &interfaces {
        tracing::warn!(
            tap = tap.name(),
            %error,
            "the host does not tell of its interfaces: the guest's link will not follow the tap's"
        );
    }
    interfaces.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::NetConfig;

    #[test]
    fn a_link_that_goes_up_and_down_by_several_hands_is_told_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let config = NetConfig {
            listen: true,
            ..NetConfig::socket(directory.path().join("card"))
        };
        let port = Port::open(config.validate().unwrap()).unwrap();
        let change = |set: &dyn Fn(bool)| (0..20_000).for_each(|round| set(round % 2 == 0));

        std::thread::scope(|threads| {
            threads.spawn(|| {
                change(&|up| {
                    port.set_connected(up);
                });
            });
            threads.spawn(|| {
                change(&|up| {
                    port.plug(match up {
                        true => Cable::Up,
                        false => Cable::Down,
                    });
                });
            });
        });
        port.plug(Cable::Up);
        port.set_connected(true);

        let told = port.stats.counters.snapshot();
        assert!(port.is_up());
        assert_eq!(told.link_ups - told.link_downs, 1);
    }
}
