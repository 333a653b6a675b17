//! What a user says about a network card, and the immutable spec it is checked
//! into.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::mac::Mac;
use crate::unix;

/// Longest name of a network interface, bytes. Linux linux/if.h, IFNAMSIZ
const TAP_MAX: usize = 15;
/// Bounds of the pairs of queues.
const PAIRS_MAX: u16 = 16;
/// Bounds of a queue.
const QUEUE_SIZE_MIN: u16 = 4;
const QUEUE_SIZE_MAX: u16 = 1024;
/// Smallest MTU. virtio 1.3 §5.1.4.1
const MTU_MIN: u16 = 68;

/// Whether a card's cable is plugged in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cable {
    /// The link is up as the other end is.
    #[default]
    Up,
    /// The link is down.
    Down,
}

/// A network card as its user describes it. It has a `tap` or a `socket`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetConfig {
    /// The name of a tap interface, at most 15 bytes; one that does not exist
    /// is made, and goes with the card. Linux tuntap
    #[serde(default)]
    pub tap: Option<String>,
    /// A unix socket that frames go over, each behind its length: four bytes,
    /// big-endian. The protocol of QEMU's `-netdev stream` and of passt.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Whether the card listens on the socket, for one client at a time, or
    /// connects to it, again and again.
    #[serde(default)]
    pub listen: bool,
    /// The guest's address, such as `52:54:00:12:34:56`. Without it one that
    /// is made of the guest's identity, or of the host's and the interface.
    #[serde(default)]
    pub mac: Option<String>,
    /// `down` plugs the card's cable out: no frame passes, and the guest is
    /// told. Changes while the card is served.
    #[serde(default)]
    pub link: Cable,
    /// The most that a frame carries: bytes, 68 to 65535. Without it the
    /// guest is told none.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Pairs of queues, 1 to 16, each with two threads of its own; more than
    /// one for a tap alone.
    #[serde(default = "default_queues")]
    pub queues: u16,
    /// Whether checksums and segmentation may be left to the host, by a tap
    /// alone. Without it they may.
    #[serde(default)]
    pub offload: Option<bool>,
    /// Descriptors of each queue: a power of two from 4 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

fn default_queues() -> u16 {
    1
}

fn default_queue_size() -> u16 {
    256
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            tap: None,
            socket: None,
            listen: false,
            mac: None,
            link: Cable::default(),
            mtu: None,
            queues: default_queues(),
            offload: None,
            queue_size: default_queue_size(),
        }
    }
}

/// A configuration that no network card can have. Names the key and its value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Nothing that the card is connected to.
    #[error("tap or socket is missing: one of them says what the card is connected to")]
    NoBackend,
    /// Two things that the card is connected to.
    #[error("tap {tap:?} and socket {socket:?} are two ends: a card has one")]
    TwoBackends {
        /// The name of the one.
        tap: String,
        /// The path of the other.
        socket: PathBuf,
    },
    /// A name that no interface can have.
    #[error("tap {0:?} is no name of an interface: 1 to 15 bytes without / : and blanks")]
    Tap(String),
    /// A path that names no socket.
    #[error("socket {path:?} has {len} bytes; a socket's path has 1 to 107")]
    Socket {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// A tap does not listen.
    #[error("listen true is for a socket, and this card has a tap")]
    Listen,
    /// Not an address of a single card.
    #[error("mac {0:?} is no address of a card, such as 52:54:00:12:34:56")]
    Mac(String),
    /// The MTU is out of bounds.
    #[error("mtu {0} is not from 68 to 65535")]
    Mtu(u16),
    /// The number of queues is out of bounds.
    #[error("queues {0} is not from 1 to 16")]
    Queues(u16),
    /// More queues than the socket can have.
    #[error("queues {0} with a socket: only a tap has more than one")]
    SocketQueues(u16),
    /// What a socket cannot do.
    #[error("offload true is for a tap, and this card has a socket")]
    Offload,
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 4 to 1024")]
    QueueSize(u16),
}

impl ConfigError {
    /// The key whose value it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            ConfigError::NoBackend | ConfigError::TwoBackends { .. } | ConfigError::Tap(_) => "tap",
            ConfigError::Socket { .. } => "socket",
            ConfigError::Listen => "listen",
            ConfigError::Mac(_) => "mac",
            ConfigError::Mtu(_) => "mtu",
            ConfigError::Queues(_) | ConfigError::SocketQueues(_) => "queues",
            ConfigError::Offload => "offload",
            ConfigError::QueueSize(_) => "queue-size",
        }
    }
}

impl NetConfig {
    /// The paths that it names, by their keys.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.socket.iter().map(|path| ("socket", path.as_path()))
    }

    /// A card on a tap, with everything else at its default.
    pub fn tap(name: impl Into<String>) -> Self {
        NetConfig {
            tap: Some(name.into()),
            ..NetConfig::default()
        }
    }

    /// A card that connects to a socket, with everything else at its default.
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        NetConfig {
            socket: Some(path.into()),
            ..NetConfig::default()
        }
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    /// The first key whose value no card can have.
    pub fn validate(self) -> Result<NetSpec, ConfigError> {
        let backend = backend(self.tap, self.socket, self.listen)?;
        if !(1..=PAIRS_MAX).contains(&self.queues) {
            return Err(ConfigError::Queues(self.queues));
        }
        let is_tap = matches!(backend, Backend::Tap(_));
        if self.queues > 1 && !is_tap {
            return Err(ConfigError::SocketQueues(self.queues));
        }
        if self.offload == Some(true) && !is_tap {
            return Err(ConfigError::Offload);
        }
        if let Some(mtu) = self.mtu
            && mtu < MTU_MIN
        {
            return Err(ConfigError::Mtu(mtu));
        }
        let sizes = QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX;
        if !self.queue_size.is_power_of_two() || !sizes.contains(&self.queue_size) {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        let mac = match self.mac {
            Some(text) => Some(Mac::parse(&text).ok_or(ConfigError::Mac(text))?),
            None => None,
        };
        Ok(NetSpec {
            backend,
            mac,
            link: self.link,
            mtu: self.mtu,
            pairs: self.queues,
            offload: is_tap && self.offload != Some(false),
            queue_size: self.queue_size,
        })
    }
}

fn backend(
    tap: Option<String>,
    socket: Option<PathBuf>,
    listen: bool,
) -> Result<Backend, ConfigError> {
    match (tap, socket) {
        (Some(_), None) if listen => Err(ConfigError::Listen),
        (Some(name), None) => {
            let odd = |character: char| character.is_whitespace() || "/:%".contains(character);
            let dots = name == "." || name == "..";
            match name.is_empty() || name.len() > TAP_MAX || name.contains(odd) || dots {
                true => Err(ConfigError::Tap(name)),
                false => Ok(Backend::Tap(name)),
            }
        }
        (None, Some(path)) => {
            let len = path.as_os_str().len();
            match (1..=unix::PATH_MAX).contains(&len) {
                true => Ok(Backend::Socket { path, listen }),
                false => Err(ConfigError::Socket { path, len }),
            }
        }
        (None, None) => Err(ConfigError::NoBackend),
        (Some(tap), Some(socket)) => Err(ConfigError::TwoBackends { tap, socket }),
    }
}

/// What a card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// The tap of this name.
    Tap(String),
    /// The socket at a path.
    Socket { path: PathBuf, listen: bool },
}

/// A checked [`NetConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    pub(super) backend: Backend,
    pub(super) mac: Option<Mac>,
    /// The cable as it is when the card is made.
    pub(super) link: Cable,
    pub(super) mtu: Option<u16>,
    /// Pairs of queues.
    pub(super) pairs: u16,
    pub(super) offload: bool,
    pub(super) queue_size: u16,
}

impl NetSpec {
    /// Gives the card an address of the guest's identity, the same each time,
    /// if it has none: `guest` is unique, and `device` is in the guest.
    #[must_use]
    pub fn or_address_of(mut self, guest: &str, device: u32) -> Self {
        self.mac
            .get_or_insert_with(|| Mac::derived(&[guest.as_bytes(), &device.to_le_bytes()]));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(keys: &str) -> NetConfig {
        toml::from_str(keys).unwrap()
    }

    #[test]
    fn a_tap_or_a_socket_is_all_that_has_to_be_said() {
        let tap = read("tap = 'vm1'");
        let socket = read("socket = '/run/s'\nlisten = true");

        assert_eq!(tap, NetConfig::tap("vm1"));
        let spec = tap.validate().unwrap();
        assert_eq!((spec.pairs, spec.offload, spec.mac), (1, true, None));
        let spec = socket.validate().unwrap();
        let path = PathBuf::from("/run/s");
        assert_eq!(spec.backend, Backend::Socket { path, listen: true });
        assert!(!spec.offload, "a socket leaves nothing to the host");
    }

    #[test]
    fn a_key_that_does_not_exist_is_named() {
        let wrong: Result<NetConfig, _> = toml::from_str("tap = 'a'\nbridge = 'b'");
        let error = wrong.unwrap_err().to_string();

        assert!(error.contains("bridge") && error.contains("queue-size"));
    }

    #[test]
    fn an_address_of_the_guests_identity_is_stable_and_gives_way() {
        let spec = |config: NetConfig| config.validate().unwrap();
        let of = |guest, device| {
            spec(NetConfig::tap("a"))
                .or_address_of(guest, device)
                .mac
                .unwrap()
        };
        let given = NetConfig {
            mac: Some("52:54:00:00:00:01".into()),
            ..NetConfig::tap("a")
        };

        assert_eq!(of("one", 0), of("one", 0));
        assert_ne!(of("one", 0), of("one", 1));
        assert_ne!(of("one", 0), of("two", 0));
        let kept = spec(given).or_address_of("one", 0).mac.unwrap();
        assert_eq!(kept.to_string(), "52:54:00:00:00:01");
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let with = |change: fn(&mut NetConfig)| {
            let mut config = NetConfig::tap("vm1");
            change(&mut config);
            config.validate().unwrap_err()
        };

        let errors = [
            with(|config| config.tap = None),
            with(|config| config.socket = Some("/s".into())),
            with(|config| config.tap = Some("sixteen-letters!".into())),
            with(|config| config.tap = Some("a b".into())),
            with(|config| config.tap = Some("..".into())),
            with(|config| config.tap = Some(String::new())),
            with(|config| *config = NetConfig::socket("")),
            with(|config| *config = NetConfig::socket("/".repeat(108))),
            with(|config| config.listen = true),
            with(|config| config.mac = Some("52:54:00".into())),
            with(|config| config.mac = Some("ff:ff:ff:ff:ff:ff".into())),
            with(|config| config.mtu = Some(67)),
            with(|config| config.queues = 0),
            with(|config| config.queues = 17),
            with(|config| {
                *config = NetConfig::socket("/s");
                config.queues = 2;
            }),
            with(|config| {
                *config = NetConfig::socket("/s");
                config.offload = Some(true);
            }),
            with(|config| config.queue_size = 2),
            with(|config| config.queue_size = 96),
            with(|config| config.queue_size = 2048),
        ];

        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(error.key()), "{text}");
        }
    }
}
