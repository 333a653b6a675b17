//! What the configuration file says about single guests and their disks.

use std::collections::BTreeMap;
use std::ops::Range;

use devices::blk::{BlkConfig, ConfigError as DiskError};
use serde::Deserialize;
use toml::Spanned;

use super::{BadValue, quoted};
use crate::guest::EventMode;

/// The disks of a guest that have no section of their own.
const ANY_DISK: &str = "*";

/// The sections `[guest.…]`, under a uuid, a name, or a pattern with `*` for
/// any text and `?` for any character.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct GuestSections(BTreeMap<String, GuestOverrides>);

/// What is different for a guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct GuestOverrides {
    /// In place of [`super::Config::allow_foreign_with_grants`].
    pub allow_foreign_with_grants: Option<bool>,
    /// In place of [`super::Config::events`].
    pub events: Option<EventMode>,
    /// Under the disk's name (`xvda`), its number (`51712`), or `*`.
    disk: BTreeMap<String, DiskOverrides>,
}

/// What is different for a disk. The keys and their bounds are those of
/// [`BlkConfig`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DiskOverrides {
    serial: Option<Spanned<String>>,
    discard: Option<bool>,
    queue_size: Option<Spanned<u16>>,
    queues: Option<Spanned<u16>>,
    logical_block_size: Option<Spanned<u32>>,
    physical_block_size: Option<Spanned<u32>>,
    engine: Option<devices::blk::EngineKind>,
}

impl GuestSections {
    pub(super) fn check(&self) -> Result<(), BadValue> {
        for (guest, section) in &self.0 {
            for (disk, overrides) in &section.disk {
                let above = format!("guest.{}.disk.{}", quoted(guest), quoted(disk));
                overrides.check(&above)?;
            }
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &str, uuid: Option<&str>) -> Option<&GuestOverrides> {
        let is_uuid = |key: &String| uuid.is_some_and(|uuid| key.eq_ignore_ascii_case(uuid));
        let by_uuid = self
            .0
            .iter()
            .find(|(key, _)| is_uuid(key))
            .map(|(_, section)| section);
        by_uuid.or_else(|| self.0.get(name)).or_else(|| {
            let patterns = self.0.iter().filter(|(key, _)| matches(key, name));
            // the first of equals: the order of the keys decides
            patterns
                .rev()
                .max_by_key(|(key, _)| key.chars().filter(|c| !is_wildcard(*c)).count())
                .map(|(_, section)| section)
        })
    }
}

impl GuestOverrides {
    /// What is different for a disk, known by its name and its number. The
    /// name goes before the number, and both before `*`.
    #[must_use]
    pub fn disk(&self, name: Option<&str>, devid: u32) -> DiskOverrides {
        name.and_then(|name| self.disk.get(name))
            .or_else(|| self.disk.get(&devid.to_string()))
            .or_else(|| self.disk.get(ANY_DISK))
            .cloned()
            .unwrap_or_default()
    }
}

impl DiskOverrides {
    /// Puts what is said here in the place of what `disk` has.
    #[must_use]
    pub fn apply(&self, mut disk: BlkConfig) -> BlkConfig {
        if let Some(serial) = &self.serial {
            disk.serial = Some(serial.get_ref().clone());
        }
        if let Some(size) = &self.logical_block_size {
            disk.logical_block_size = Some(*size.get_ref());
        }
        if let Some(size) = &self.physical_block_size {
            disk.physical_block_size = Some(*size.get_ref());
        }
        disk.discard = self.discard.unwrap_or(disk.discard);
        disk.queue_size = value(&self.queue_size).unwrap_or(disk.queue_size);
        disk.queues = value(&self.queues).unwrap_or(disk.queues);
        disk.engine = self.engine.unwrap_or(disk.engine);
        disk
    }

    fn check(&self, above: &str) -> Result<(), BadValue> {
        match self.apply(BlkConfig::new("any")).validate() {
            Ok(_) => Ok(()),
            Err(error) => {
                let (key, span) = self.place(&error);
                let key = format!("{above}.{key}");
                Err(BadValue {
                    span: span.unwrap_or(0..0),
                    key,
                    message: error.to_string(),
                })
            }
        }
    }

    /// The key that an error is about, and where its value is.
    fn place(&self, error: &DiskError) -> (&'static str, Option<Range<usize>>) {
        match error {
            DiskError::Serial(_) => ("serial", span(&self.serial)),
            DiskError::QueueSize(_) => ("queue-size", span(&self.queue_size)),
            DiskError::Queues(_) => ("queues", span(&self.queues)),
            DiskError::LogicalBlock(_) => ("logical-block-size", span(&self.logical_block_size)),
            DiskError::PhysicalBlock { .. } => {
                ("physical-block-size", span(&self.physical_block_size))
            }
            DiskError::NoPath => ("path", None),
        }
    }
}

fn value<T: Copy>(value: &Option<Spanned<T>>) -> Option<T> {
    value.as_ref().map(|value| *value.get_ref())
}

fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
    value.as_ref().map(Spanned::span)
}

fn is_wildcard(c: char) -> bool {
    matches!(c, '*' | '?')
}

/// Whether `pattern` has a wildcard and matches all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    pattern.iter().any(|c| is_wildcard(*c)) && glob(&pattern, &text)
}

/// Matches without recursion: on a mismatch the last `*` takes one character
/// more.
fn glob(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0_usize, 0_usize);
    let mut last_star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                last_star = Some((p, t));
                p = p.saturating_add(1);
            }
            Some(wanted) if *wanted == '?' || wanted == c => {
                p = p.saturating_add(1);
                t = t.saturating_add(1);
            }
            _ => match last_star {
                Some((star, taken)) => {
                    let taken = taken.saturating_add(1);
                    last_star = Some((star, taken));
                    p = star.saturating_add(1);
                    t = taken;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .unwrap_or_default()
        .iter()
        .all(|c| *c == '*')
}
