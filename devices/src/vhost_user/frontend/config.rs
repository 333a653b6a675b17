//! What a user says about a device behind a vhost-user back end, and the
//! immutable spec it is checked into.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::features;
use crate::unix::PATH_MAX;
use crate::virtio::DeviceType;

/// Highest virtio device id that a driver can name.
const ID_MAX: u32 = 63;
/// The id of input devices. virtio 1.3 §5.8
const INPUT: u32 = 18;
/// Most queues: the protocol has eight bits for their number.
const QUEUES_MAX: u16 = 128;
/// Largest queue.
const QUEUE_SIZE_MAX: u16 = 4096;
/// Largest pool of a queue, MiB.
const POOL_MAX: u32 = 1024;
/// Longest bounds, seconds.
const SECONDS_MAX: u32 = 86_400;
/// Longest configuration space, bytes. VHOST_USER_MAX_CONFIG_SIZE
const CONFIG_MAX: usize = 256;

/// What of a buffer reaches the guest when a request is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyBack {
    /// What the back end declares written.
    #[default]
    Declared,
    /// All of it, zeroes where the back end has written nothing: for back ends
    /// that declare less than they wrote, or more than they could have.
    Whole,
}

/// Which memory a back end is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// A pool of its own, through which everything is copied: the guest's memory
    /// stays the guest's.
    #[default]
    Bounce,
    /// All of the guest's, and its rings as they are: nothing is copied, and
    /// nothing checked. On Xen for plain addresses only, and for back ends that
    /// can map foreign memory.
    Foreign,
}

/// What becomes of requests that a back end had when it went away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterRestart {
    /// The next one gets them, once, in their order.
    #[default]
    Repeat,
    /// Buffers that it was only to fill are given to the next one; if there
    /// was a request with data for it, the device needs a reset: for devices
    /// whose requests must not be done twice.
    Reset,
}

/// What a back end is told when the driver writes to its configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigWrites {
    /// The bytes that were written.
    Changed,
    /// All of the space, with these bytes in it: for back ends of a space that
    /// shows what was chosen in it, as an input device's does.
    Whole,
}

/// A device behind a vhost-user back end, as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VhostUserConfig {
    /// The socket that the back end listens on. It need not be there yet.
    pub socket: PathBuf,
    /// The virtio device id, which the guest's driver is chosen by: 1 to 63.
    pub virtio_id: u32,
    /// Queues: 1 to 128.
    #[serde(default = "default_queues")]
    pub queues: u16,
    /// Descriptors of each queue: a power of two from 2 to 4096. A back end
    /// cannot be asked for the most that it takes; it refuses what is more.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// Which memory the back end is given.
    #[serde(default)]
    pub memory: Memory,
    /// Bounce memory of each queue, MiB: a power of two from 1 to 1024. Bounds
    /// what is in flight at once, and what one request can have.
    #[serde(default = "default_pool")]
    pub pool_mib: u32,
    /// What of a buffer reaches the guest.
    #[serde(default)]
    pub copy_back: CopyBack,
    /// What becomes of requests when the back end goes away.
    #[serde(default)]
    pub after_restart: AfterRestart,
    /// Numbers of feature bits that are not used though the back end has them:
    /// 0 to 23 and 50 to 63, which the guest is not offered then, and 28 and 29
    /// (INDIRECT_DESC, EVENT_IDX) of the back end's ring, for back ends that
    /// cannot deal with them.
    #[serde(default)]
    pub refuse_features: Vec<u8>,
    /// The configuration space in hexadecimal digits, in place of what the
    /// back end says: up to 256 bytes.
    #[serde(default)]
    pub config_space: Option<String>,
    /// Bytes that the back end has to give of its configuration space: 1 to
    /// 256. Without it as many as it gives.
    #[serde(default)]
    pub config_size: Option<u16>,
    /// What the back end is told of a driver's writes to the configuration
    /// space. Without it the changed bytes, and all of an input device's
    /// (virtio-id 18), as QEMU does.
    #[serde(default)]
    pub config_writes: Option<ConfigWrites>,
    /// How long the back end may take to answer a message before it is taken
    /// for hung, seconds: 1 to 86400.
    #[serde(default = "default_answer_timeout")]
    pub answer_timeout: u32,
    /// How long a driver waits for a back end that has never been there, before
    /// it is offered a device without features: seconds, 0 to 86400. Its vCPU
    /// waits with it.
    #[serde(default = "default_start_wait")]
    pub start_wait: u32,
    /// How long a back end may be away before a driver that is up is told that
    /// the device needs a reset, seconds: 1 to 86400. Without it, it waits.
    #[serde(default)]
    pub give_up_after: Option<u32>,
}

fn default_queues() -> u16 {
    1
}

fn default_queue_size() -> u16 {
    128
}

fn default_pool() -> u32 {
    16
}

fn default_answer_timeout() -> u32 {
    10
}

fn default_start_wait() -> u32 {
    10
}

/// A configuration that no such device can have. Names the key and its value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A path that no socket can have.
    #[error("socket {} is empty or longer than {PATH_MAX} bytes", .0.display())]
    Socket(PathBuf),
    /// The id is out of bounds.
    #[error("virtio-id {0} is not from 1 to 63")]
    VirtioId(u32),
    /// The number of queues is out of bounds.
    #[error("queues {0} is not from 1 to 128")]
    Queues(u16),
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 2 to 4096")]
    QueueSize(u16),
    /// The pool is out of bounds.
    #[error("pool-mib {0} is no power of two from 1 to 1024")]
    Pool(u32),
    /// A feature that is neither the device's own nor its ring's.
    #[error("refuse-features {0} is none of 0 to 23, 28, 29 and 50 to 63")]
    RefuseFeatures(u8),
    /// No bytes in hexadecimal digits.
    #[error("config-space {0:?} is not one to 256 bytes in hexadecimal digits")]
    ConfigSpace(String),
    /// The size is out of bounds.
    #[error("config-size {0} is not from 1 to 256")]
    ConfigSize(u16),
    /// A key of the other kind of memory.
    #[error("{0} says nothing beside memory = \"foreign\": leave one of them out")]
    Foreign(&'static str),
    /// The size of what is said already.
    #[error("config-size {0} says nothing beside config-space: leave one of them out")]
    ConfigTwice(u16),
    /// The bound is out of bounds.
    #[error("answer-timeout {0} is not from 1 to 86400")]
    AnswerTimeout(u32),
    /// The bound is out of bounds.
    #[error("start-wait {0} is not from 0 to 86400")]
    StartWait(u32),
    /// The bound is out of bounds.
    #[error("give-up-after {0} is not from 1 to 86400")]
    GiveUpAfter(u32),
}

impl ConfigError {
    /// The key whose value it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            ConfigError::Socket(_) => "socket",
            ConfigError::VirtioId(_) => "virtio-id",
            ConfigError::Queues(_) => "queues",
            ConfigError::QueueSize(_) => "queue-size",
            ConfigError::Pool(_) => "pool-mib",
            ConfigError::Foreign(key) => key,
            ConfigError::RefuseFeatures(_) => "refuse-features",
            ConfigError::ConfigSpace(_) => "config-space",
            ConfigError::ConfigSize(_) | ConfigError::ConfigTwice(_) => "config-size",
            ConfigError::AnswerTimeout(_) => "answer-timeout",
            ConfigError::StartWait(_) => "start-wait",
            ConfigError::GiveUpAfter(_) => "give-up-after",
        }
    }
}

impl VhostUserConfig {
    /// The paths that it names, by their keys.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        std::iter::once(("socket", self.socket.as_path()))
    }

    /// A device of type `virtio_id` behind `socket`, with everything else at
    /// its default.
    pub fn new(socket: impl Into<PathBuf>, virtio_id: u32) -> Self {
        VhostUserConfig {
            socket: socket.into(),
            virtio_id,
            queues: default_queues(),
            queue_size: default_queue_size(),
            memory: Memory::default(),
            pool_mib: default_pool(),
            copy_back: CopyBack::default(),
            after_restart: AfterRestart::default(),
            refuse_features: Vec::new(),
            config_space: None,
            config_size: None,
            config_writes: None,
            answer_timeout: default_answer_timeout(),
            start_wait: default_start_wait(),
            give_up_after: None,
        }
    }

    /// The virtio device type, checked or not.
    #[must_use]
    pub fn device_type(&self) -> DeviceType {
        DeviceType(self.virtio_id)
    }

    /// Checks everything that can be checked without the back end.
    ///
    /// # Errors
    /// The first key whose value no device can have.
    pub fn validate(self) -> Result<VhostUserSpec, ConfigError> {
        let path = self.socket.as_os_str().len();
        if path == 0 || path > PATH_MAX {
            return Err(ConfigError::Socket(self.socket));
        }
        if !(1..=ID_MAX).contains(&self.virtio_id) {
            return Err(ConfigError::VirtioId(self.virtio_id));
        }
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(ConfigError::Queues(self.queues));
        }
        let size = self.queue_size;
        if !size.is_power_of_two() || !(2..=QUEUE_SIZE_MAX).contains(&size) {
            return Err(ConfigError::QueueSize(size));
        }
        if !self.pool_mib.is_power_of_two() || self.pool_mib > POOL_MAX {
            return Err(ConfigError::Pool(self.pool_mib));
        }
        if self.memory == Memory::Foreign {
            if self.pool_mib != default_pool() {
                return Err(ConfigError::Foreign("pool-mib"));
            }
            if self.copy_back != CopyBack::default() {
                return Err(ConfigError::Foreign("copy-back"));
            }
        }
        let mut refused = 0;
        for bit in self.refuse_features {
            let mask = 1u64.checked_shl(bit.into()).unwrap_or(0);
            if mask & features::REFUSABLE == 0 {
                return Err(ConfigError::RefuseFeatures(bit));
            }
            refused |= mask;
        }
        let seconds = |value: u32| {
            let is_some = (1..=SECONDS_MAX).contains(&value);
            is_some.then(|| Duration::from_secs(value.into()))
        };
        let config_size = self.config_size.map(usize::from);
        if config_size.is_some_and(|size| !(1..=CONFIG_MAX).contains(&size)) {
            return Err(ConfigError::ConfigSize(self.config_size.unwrap_or(0)));
        }
        if let (Some(size), Some(_)) = (self.config_size, &self.config_space) {
            return Err(ConfigError::ConfigTwice(size));
        }
        if self.start_wait > SECONDS_MAX {
            return Err(ConfigError::StartWait(self.start_wait));
        }
        Ok(VhostUserSpec {
            start_wait: Duration::from_secs(self.start_wait.into()),
            config_space: self.config_space.map(hexadecimal).transpose()?,
            answer_timeout: seconds(self.answer_timeout)
                .ok_or(ConfigError::AnswerTimeout(self.answer_timeout))?,
            give_up_after: match self.give_up_after {
                Some(value) => Some(seconds(value).ok_or(ConfigError::GiveUpAfter(value))?),
                None => None,
            },
            socket: self.socket,
            device_type: DeviceType(self.virtio_id),
            queues: self.queues,
            queue_size: size,
            memory: self.memory,
            pool: u64::from(self.pool_mib) << 20,
            copy_back: self.copy_back,
            after_restart: self.after_restart,
            refused,
            config_size,
            config_writes: self.config_writes.unwrap_or(match self.virtio_id {
                INPUT => ConfigWrites::Whole,
                _ => ConfigWrites::Changed,
            }),
        })
    }
}

fn hexadecimal(text: String) -> Result<Vec<u8>, ConfigError> {
    let (digits, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let pair = str::from_utf8(pair).ok()?;
        let signed = pair.starts_with('+');
        u8::from_str_radix(pair, 16).ok().filter(|_| !signed)
    };
    let bytes: Option<Vec<u8>> = digits.iter().map(byte).collect();
    let whole = rest.is_empty() && (1..=CONFIG_MAX).contains(&digits.len());
    match bytes {
        Some(bytes) if whole => Ok(bytes),
        _ => Err(ConfigError::ConfigSpace(text)),
    }
}

/// A checked [`VhostUserConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserSpec {
    pub(super) socket: PathBuf,
    pub(super) device_type: DeviceType,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) memory: Memory,
    /// Bytes of each queue's bounce memory.
    pub(super) pool: u64,
    pub(super) copy_back: CopyBack,
    pub(super) after_restart: AfterRestart,
    /// Features that are not used.
    pub(super) refused: u64,
    pub(super) config_space: Option<Vec<u8>>,
    pub(super) config_size: Option<usize>,
    pub(super) config_writes: ConfigWrites,
    pub(super) answer_timeout: Duration,
    pub(super) start_wait: Duration,
    pub(super) give_up_after: Option<Duration>,
}

impl VhostUserSpec {
    /// The socket that the back end listens on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The virtio device type.
    #[must_use]
    pub fn device_type(&self) -> DeviceType {
        self.device_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VhostUserConfig {
        VhostUserConfig::new("/run/fs.sock", 26)
    }

    #[test]
    fn a_socket_and_an_id_are_enough() {
        let config: VhostUserConfig =
            toml::from_str("socket = \"/run/fs.sock\"\nvirtio-id = 26").unwrap();

        let spec = config.clone().validate().unwrap();

        assert_eq!(config, self::config());
        assert_eq!(spec.socket(), Path::new("/run/fs.sock"));
        assert_eq!(spec.device_type(), DeviceType(26));
        assert_eq!(
            (spec.queues, spec.queue_size, spec.pool),
            (1, 128, 16 << 20)
        );
        assert_eq!((spec.refused, spec.config_space), (0, None));
        assert_eq!(spec.config_writes, ConfigWrites::Changed);
        assert_eq!(spec.memory, Memory::Bounce);
    }

    #[test]
    fn everything_can_be_said() {
        let config: VhostUserConfig = toml::from_str(
            "socket = \"/s\"\nvirtio-id = 2\nqueues = 4\nqueue-size = 64\n\
             pool-mib = 1\ncopy-back = \"whole\"\nafter-restart = \"reset\"\n\
             refuse-features = [5, 29, 50]\nconfig-space = \"00fFa1\"\n\
             config-writes = \"whole\"\n\
             answer-timeout = 3\nstart-wait = 0\ngive-up-after = 60",
        )
        .unwrap();

        let spec = config.validate().unwrap();

        assert_eq!(spec.refused, 1 << 5 | 1 << 29 | 1 << 50);
        assert_eq!(spec.config_space, Some(vec![0, 0xff, 0xa1]));
        assert_eq!(spec.config_size, None);
        assert_eq!(spec.config_writes, ConfigWrites::Whole);
        assert_eq!(spec.answer_timeout, Duration::from_secs(3));
        assert_eq!(spec.start_wait, Duration::ZERO);
        assert_eq!(spec.give_up_after, Some(Duration::from_secs(60)));
        assert_eq!(spec.copy_back, CopyBack::Whole);
        assert_eq!(spec.after_restart, AfterRestart::Reset);
    }

    #[test]
    fn the_guests_memory_can_be_asked_for() {
        let config: VhostUserConfig =
            toml::from_str("socket = \"/s\"\nvirtio-id = 4\nmemory = \"foreign\"").unwrap();

        assert_eq!(config.validate().unwrap().memory, Memory::Foreign);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let with = |change: fn(&mut VhostUserConfig)| {
            let mut config = config();
            change(&mut config);
            config.validate().unwrap_err()
        };

        let errors = [
            with(|c| c.socket = PathBuf::new()),
            with(|c| c.socket = "/".repeat(108).into()),
            with(|c| c.virtio_id = 0),
            with(|c| c.virtio_id = 64),
            with(|c| c.queues = 0),
            with(|c| c.queues = 129),
            with(|c| c.queue_size = 1),
            with(|c| c.queue_size = 48),
            with(|c| c.queue_size = 8192),
            with(|c| c.pool_mib = 0),
            with(|c| c.pool_mib = 3),
            with(|c| c.pool_mib = 2048),
            with(|c| {
                c.memory = Memory::Foreign;
                c.pool_mib = 32;
            }),
            with(|c| {
                c.memory = Memory::Foreign;
                c.copy_back = CopyBack::Whole;
            }),
            with(|c| c.refuse_features = vec![5, 30]),
            with(|c| c.refuse_features = vec![64]),
            with(|c| c.config_space = Some("0".into())),
            with(|c| c.config_space = Some("+1".into())),
            with(|c| c.config_space = Some(String::new())),
            with(|c| c.config_space = Some("00".repeat(257))),
            with(|c| c.config_size = Some(0)),
            with(|c| c.config_size = Some(257)),
            with(|c| {
                c.config_space = Some("00".into());
                c.config_size = Some(60);
            }),
            with(|c| c.answer_timeout = 0),
            with(|c| c.start_wait = 86_401),
            with(|c| c.give_up_after = Some(86_401)),
        ];

        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(error.key()), "{text}");
        }
    }
}
