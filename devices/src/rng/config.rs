//! What a user says about a source of entropy, and the immutable spec it is
//! checked into.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::virtio::bucket::Rate;

/// Largest queue.
const QUEUE_SIZE_MAX: u16 = 1024;
/// Highest rate, bytes per second.
const RATE_MAX: u64 = 1 << 30;
/// Largest burst, bytes.
const BURST_MAX: u32 = 1 << 20;
/// Smallest burst that is taken for a rate by itself, bytes: what Linux asks
/// for at once.
const BURST_DEFAULT_MIN: u64 = 64;

/// A source of entropy as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RngConfig {
    /// What random bytes are read from, such as `/dev/hwrng`: a character
    /// device, a named pipe, or a file, which is read once from start to end.
    /// Without it the kernel's random number generator.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The most that the guest gets over time: bytes per second, 1 to
    /// 1073741824. Without it there is no limit.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// The most that the guest gets at once after it has asked for nothing for
    /// a while: bytes, 1 to 1048576. Without it what a second yields, at least
    /// 64. Only with `bytes-per-second`.
    #[serde(default)]
    pub burst: Option<u32>,
    /// Descriptors of the queue: a power of two from 1 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

fn default_queue_size() -> u16 {
    64
}

impl Default for RngConfig {
    fn default() -> Self {
        RngConfig {
            path: None,
            bytes_per_second: None,
            burst: None,
            queue_size: default_queue_size(),
        }
    }
}

/// A configuration that no source of entropy can have. Names the key and its
/// value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A path that names nothing.
    #[error("path is empty: name a source of random bytes, or leave it out")]
    NoPath,
    /// The rate is out of bounds.
    #[error("bytes-per-second {0} is not from 1 to 1073741824")]
    Rate(u64),
    /// The burst is out of bounds.
    #[error("burst {0} is not from 1 to 1048576")]
    Burst(u32),
    /// A burst of a rate that there is not.
    #[error("burst {0} without bytes-per-second limits nothing")]
    BurstAlone(u32),
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 1 to 1024")]
    QueueSize(u16),
}

impl ConfigError {
    /// The key whose value it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            ConfigError::NoPath => "path",
            ConfigError::Rate(_) => "bytes-per-second",
            ConfigError::Burst(_) | ConfigError::BurstAlone(_) => "burst",
            ConfigError::QueueSize(_) => "queue-size",
        }
    }
}

impl RngConfig {
    /// The paths that it names, by their keys.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.path.iter().map(|path| ("path", path.as_path()))
    }

    /// Checks everything that can be checked without opening the source.
    ///
    /// # Errors
    /// The first key whose value no source can have.
    pub fn validate(self) -> Result<RngSpec, ConfigError> {
        if self
            .path
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            return Err(ConfigError::NoPath);
        }
        if !self.queue_size.is_power_of_two() || self.queue_size > QUEUE_SIZE_MAX {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        Ok(RngSpec {
            rate: rate(self.bytes_per_second, self.burst)?,
            path: self.path,
            queue_size: self.queue_size,
        })
    }
}

fn rate(bytes_per_second: Option<u64>, burst: Option<u32>) -> Result<Option<Rate>, ConfigError> {
    if let Some(burst) = burst
        && !(1..=BURST_MAX).contains(&burst)
    {
        return Err(ConfigError::Burst(burst));
    }
    match (bytes_per_second, burst) {
        (None, None) => Ok(None),
        (None, Some(burst)) => Err(ConfigError::BurstAlone(burst)),
        (Some(rate), _) if !(1..=RATE_MAX).contains(&rate) => Err(ConfigError::Rate(rate)),
        (Some(bytes_per_second), burst) => {
            let usual = bytes_per_second.clamp(BURST_DEFAULT_MIN, BURST_MAX.into());
            let burst = burst.unwrap_or(u32::try_from(usual).unwrap_or(BURST_MAX));
            Ok(Some(Rate {
                per_second: bytes_per_second,
                burst: burst.into(),
            }))
        }
    }
}

/// A checked [`RngConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngSpec {
    pub(super) path: Option<PathBuf>,
    pub(super) rate: Option<Rate>,
    pub(super) queue_size: u16,
}

impl RngSpec {
    /// What random bytes are read from; `None` for the kernel's generator.
    #[must_use]
    pub fn path(&self) -> Option<&std::path::Path> {
        self.path.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{Error, MapDeserializer};

    use super::*;

    fn limited(bytes_per_second: u64, burst: Option<u32>) -> Result<RngSpec, ConfigError> {
        RngConfig {
            bytes_per_second: Some(bytes_per_second),
            burst,
            ..RngConfig::default()
        }
        .validate()
    }

    #[test]
    fn nothing_said_is_the_kernels_generator_without_a_limit() {
        let none = MapDeserializer::<_, Error>::new(std::iter::empty::<(&str, &str)>());

        let config = RngConfig::deserialize(none).unwrap();
        let spec = config.clone().validate().unwrap();

        assert_eq!(config, RngConfig::default());
        assert_eq!((spec.path(), spec.rate, spec.queue_size), (None, None, 64));
    }

    #[test]
    fn a_key_that_does_not_exist_is_named() {
        let keys = MapDeserializer::<_, Error>::new([("rate", "4")].into_iter());

        let error = RngConfig::deserialize(keys).unwrap_err().to_string();

        assert!(error.contains("rate") && error.contains("bytes-per-second"));
    }

    #[test]
    fn a_burst_is_a_seconds_worth_within_bounds() {
        let burst = |rate| limited(rate, None).unwrap().rate.unwrap().burst;

        assert_eq!((burst(1), burst(1000)), (64, 1000));
        assert_eq!(burst(1 << 30), 1 << 20);
        assert_eq!(limited(1000, Some(7)).unwrap().rate.unwrap().burst, 7);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let alone = RngConfig {
            burst: Some(5),
            ..RngConfig::default()
        };
        let nowhere = RngConfig {
            path: Some(PathBuf::new()),
            ..RngConfig::default()
        };
        let queue = |queue_size| RngConfig {
            queue_size,
            ..RngConfig::default()
        };

        let errors = [
            limited(0, None),
            limited(RATE_MAX + 1, None),
            limited(1, Some(0)),
            limited(1, Some(BURST_MAX + 1)),
            alone.validate(),
            nowhere.validate(),
            queue(0).validate(),
            queue(48).validate(),
            queue(2048).validate(),
        ]
        .map(Result::unwrap_err);

        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(error.key()), "{text}");
        }
    }
}
