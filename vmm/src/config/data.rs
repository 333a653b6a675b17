//! Values that `swiotlb` reads: how the data of requests is reached.

use serde::Deserialize;
use swiotlb::{Error, GrantMode, Options};

use crate::guest::DataPath;

/// Bytes of the largest pool of a queue.
const LARGEST: u64 = 1 << 30;

/// The bounce pool of each queue, in the words of Linux's `swiotlb=`: slots of
/// 2 KiB, areas, `force` or `noforce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PoolOptions(Options);

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions(DataPath::default().pool)
    }
}

impl PoolOptions {
    /// What it says.
    #[must_use]
    pub fn options(self) -> Options {
        self.0
    }
}

impl TryFrom<String> for PoolOptions {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let mut options: Options = text.parse()?;
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            options.adjust_size(DataPath::SLOTS);
        }
        if options.sizing(1).bytes() > LARGEST {
            return Err(Error::BadOption {
                option: text,
                reason: "is more than the 524288 slots (1 GiB) that a queue's pool may have",
            });
        }
        Ok(PoolOptions(options))
    }
}

/// Whether granted data is mapped or copied: `adaptive`, `map`, `copy`, or
/// `copy-up-to:BYTES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GrantedData(GrantMode);

impl GrantedData {
    /// What it says.
    #[must_use]
    pub fn mode(self) -> GrantMode {
        self.0
    }
}

impl TryFrom<String> for GrantedData {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse().map(GrantedData)
    }
}
